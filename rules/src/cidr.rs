//! Arithmetic on address prefixes and port ranges.
//!
//! In: prefixes and ranges in any order, overlapping or not. Out: the one shortest sorted list that covers the same
//! values. What always holds: results do not overlap, no two of them could be written as one, and both address
//! families may occur in one list (IPv4 first).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnetwork::IpNetwork;

/// First and last value of a run of addresses, as numbers.
type Span = (u128, u128);

/// The families, told apart by the bits of their addresses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    const BOTH: [Self; 2] = [Self::V4, Self::V6];

    const fn of(prefix: &IpNetwork) -> Self {
        match prefix {
            IpNetwork::V4(_) => Self::V4,
            IpNetwork::V6(_) => Self::V6,
        }
    }

    const fn bits(self) -> u32 {
        match self {
            Self::V4 => Ipv4Addr::BITS,
            Self::V6 => Ipv6Addr::BITS,
        }
    }

    fn address(self, number: u128) -> IpAddr {
        match self {
            Self::V4 => {
                let [.., a, b, c, d] = number.to_be_bytes();
                Ipv4Addr::new(a, b, c, d).into()
            }
            Self::V6 => Ipv6Addr::from(number).into(),
        }
    }

    /// The prefix of `host_bits` open bits that begins at `first`.
    fn prefix(self, first: u128, host_bits: u32) -> IpNetwork {
        let length = u8::try_from(self.bits() - host_bits).expect("an address has at most 128 bits");
        IpNetwork::new(self.address(first), length).expect("a prefix is no longer than its address")
    }
}

/// `cidr` without `except`; parts of `except` outside of `cidr` take nothing away.
pub fn subtract(cidr: IpNetwork, except: &[IpNetwork]) -> Vec<IpNetwork> {
    let family = Family::of(&cidr);
    let (first, last) = span(&cidr);
    let mut left = Vec::new();
    let mut next = Some(first);
    for (hole_first, hole_last) in spans(except, family) {
        let Some(start) = next.filter(|start| *start <= last) else { break };
        if hole_last < start {
            continue;
        }
        if hole_first > start {
            left.push((start, last.min(hole_first - 1)));
        }
        next = hole_last.checked_add(1);
    }
    if let Some(start) = next.filter(|start| *start <= last) {
        left.push((start, last));
    }
    left.into_iter().flat_map(|span| prefixes(family, span)).collect()
}

/// The same addresses as the fewest prefixes.
pub fn merge(networks: &[IpNetwork]) -> Vec<IpNetwork> {
    Family::BOTH
        .into_iter()
        .flat_map(|family| spans(networks, family).into_iter().flat_map(move |span| prefixes(family, span)))
        .collect()
}

/// The same addresses as ranges that neither overlap nor touch: what an interval set of the kernel takes.
pub fn ranges(networks: &[IpNetwork]) -> Vec<RangeInclusive<IpAddr>> {
    Family::BOTH
        .into_iter()
        .flat_map(|family| {
            spans(networks, family).into_iter().map(move |(first, last)| family.address(first)..=family.address(last))
        })
        .collect()
}

/// The same ports as sorted ranges that neither overlap nor touch; empty ranges are gone.
pub fn merge_ports(ranges: impl IntoIterator<Item = RangeInclusive<u16>>) -> Vec<RangeInclusive<u16>> {
    let spans = ranges
        .into_iter()
        .filter(|range| !range.is_empty())
        .map(|range| (u32::from(*range.start()), u32::from(*range.end())))
        .collect();
    merge_spans(spans).into_iter().map(|(first, last)| port(first)..=port(last)).collect()
}

fn port(number: u32) -> u16 {
    u16::try_from(number).expect("merging makes no value that was not there")
}

fn span(prefix: &IpNetwork) -> Span {
    match prefix {
        IpNetwork::V4(v4) => (u32::from(v4.network()).into(), u32::from(v4.broadcast()).into()),
        IpNetwork::V6(v6) => (v6.network().into(), v6.broadcast().into()),
    }
}

/// The merged spans of one family's prefixes.
fn spans(networks: &[IpNetwork], family: Family) -> Vec<Span> {
    merge_spans(networks.iter().filter(|prefix| Family::of(prefix) == family).map(span).collect())
}

/// Number types that spans are made of.
trait Number: Copy + Ord {
    fn successor(self) -> Option<Self>;
}

impl Number for u128 {
    fn successor(self) -> Option<Self> {
        self.checked_add(1)
    }
}

impl Number for u32 {
    fn successor(self) -> Option<Self> {
        self.checked_add(1)
    }
}

fn merge_spans<N: Number>(mut spans: Vec<(N, N)>) -> Vec<(N, N)> {
    spans.sort_unstable();
    let mut merged: Vec<(N, N)> = Vec::with_capacity(spans.len());
    for (first, last) in spans {
        match merged.last_mut() {
            Some(previous) if previous.1.successor().is_none_or(|next| first <= next) => {
                previous.1 = previous.1.max(last);
            }
            _ => merged.push((first, last)),
        }
    }
    merged
}

/// The fewest prefixes that make up a span: from its start always the largest that is aligned and fits.
fn prefixes(family: Family, (first, last): Span) -> Vec<IpNetwork> {
    let mut found = Vec::new();
    let mut next = Some(first);
    while let Some(start) = next.filter(|start| *start <= last) {
        let mut host_bits = start.trailing_zeros().min(family.bits());
        while start | low_bits(host_bits) > last {
            host_bits -= 1;
        }
        found.push(family.prefix(start, host_bits));
        next = (start | low_bits(host_bits)).checked_add(1);
    }
    found
}

/// A number whose lowest `count` bits are set.
const fn low_bits(count: u32) -> u128 {
    match u128::MAX.checked_shr(u128::BITS - count) {
        Some(bits) => bits,
        None => 0,
    }
}
