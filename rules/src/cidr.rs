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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn networks(texts: &[&str]) -> Vec<IpNetwork> {
        texts.iter().map(|text| text.parse().expect("a network")).collect()
    }

    fn subtracted(cidr: &str, except: &[&str]) -> Vec<IpNetwork> {
        subtract(cidr.parse().expect("a network"), &networks(except))
    }

    #[test]
    fn subtraction_leaves_the_fewest_prefixes() {
        assert_eq!(subtracted("10.0.0.0/8", &[]), networks(&["10.0.0.0/8"]));
        assert_eq!(subtracted("10.0.0.0/8", &["10.0.0.0/9"]), networks(&["10.128.0.0/9"]));
        assert_eq!(subtracted("10.0.0.0/8", &["10.128.0.0/9"]), networks(&["10.0.0.0/9"]));
        assert_eq!(
            subtracted("10.0.0.0/30", &["10.0.0.1/32", "10.0.0.2/32"]),
            networks(&["10.0.0.0/32", "10.0.0.3/32"])
        );
        assert_eq!(subtracted("10.0.0.0/8", &["10.0.0.0/9", "10.128.0.0/9"]), []);
        assert_eq!(subtracted("10.0.0.0/8", &["0.0.0.0/0"]), []);
        assert_eq!(subtracted("10.0.0.0/8", &["9.0.0.0/8", "11.0.0.0/8", "::/0"]), networks(&["10.0.0.0/8"]));
    }

    #[test]
    fn subtraction_reaches_both_ends_of_the_address_space() {
        assert_eq!(subtracted("0.0.0.0/0", &["128.0.0.0/1"]), networks(&["0.0.0.0/1"]));
        assert_eq!(subtracted("::/0", &["8000::/1"]), networks(&["::/1"]));
        assert_eq!(subtracted("::/0", &["::/1"]), networks(&["8000::/1"]));
        assert_eq!(subtracted("::/0", &["::/0"]), []);
        assert_eq!(subtracted("::/0", &["::/1", "8000::/2"]), networks(&["c000::/2"]));
    }

    #[test]
    fn merging_joins_what_overlaps_and_what_touches() {
        let merged =
            merge(&networks(&["::/0", "10.0.0.0/9", "10.128.0.0/9", "10.1.0.0/16", "255.255.255.255/32", "8000::/1"]));
        assert_eq!(merged, networks(&["10.0.0.0/8", "255.255.255.255/32", "::/0"]));
        assert_eq!(merge(&networks(&["10.0.0.64/26", "10.0.0.128/26"])), networks(&["10.0.0.64/26", "10.0.0.128/26"]));
    }

    #[test]
    fn ranges_join_prefixes_that_touch() {
        let found = ranges(&networks(&["10.0.0.128/26", "10.0.0.64/26", "fd00::/127"]));
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        assert_eq!(found, [address("10.0.0.64")..=address("10.0.0.191"), address("fd00::")..=address("fd00::1")]);
    }

    #[test]
    fn port_ranges_join_at_the_ends_too() {
        assert_eq!(merge_ports([80..=80, 81..=90, 100..=100, 85..=95]), [80..=95, 100..=100]);
        assert_eq!(merge_ports([1..=65535, 65535..=65535, 1..=1]), [1..=65535]);
        assert_eq!(merge_ports([RangeInclusive::new(5, 4)]), []);
    }

    /// Small prefixes close together, of both families, in 16 addresses at each end of the space and in the middle.
    fn prefix() -> impl Strategy<Value = IpNetwork> {
        let base = prop_oneof![Just(0_u32), Just(u32::MAX - 15), Just(0x0a00_0000)];
        (base, 0_u32..16, 28_u8..=32, any::<bool>()).prop_map(|(base, offset, length, v6)| {
            let (address, length) = match v6 {
                false => (IpAddr::from(Ipv4Addr::from(base + offset)), length),
                true => (IpAddr::from(Ipv6Addr::from(u128::MAX - u128::from(u32::MAX - base - offset))), length + 96),
            };
            let network = IpNetwork::new(address, length).expect("a prefix");
            IpNetwork::new(network.network(), length).expect("a prefix")
        })
    }

    fn addresses(networks: &[IpNetwork]) -> BTreeSet<IpAddr> {
        networks.iter().flat_map(IpNetwork::iter).collect()
    }

    /// Sorted, disjoint, and no two neighbours are the halves of one prefix.
    fn assert_canonical(networks: &[IpNetwork]) {
        let total: usize = networks.iter().map(|network| network.iter().count()).sum();
        assert_eq!(total, addresses(networks).len(), "overlap in {networks:?}");
        for pair in networks.windows(2) {
            assert!(pair[0] < pair[1], "{pair:?}");
            let parent = pair[0].prefix().checked_sub(1).and_then(|length| IpNetwork::new(pair[0].ip(), length).ok());
            let halves = pair[0].prefix() == pair[1].prefix()
                && parent.is_some_and(|parent| parent.network() == pair[0].ip() && parent.contains(pair[1].ip()));
            assert!(!halves, "{pair:?} is one prefix");
        }
    }

    proptest! {
        #[test]
        fn merging_keeps_every_address(networks in prop::collection::vec(prefix(), 0..12)) {
            let merged = merge(&networks);
            assert_canonical(&merged);
            prop_assert_eq!(addresses(&merged), addresses(&networks));
        }

        #[test]
        fn subtraction_takes_exactly_the_exceptions(cidr in prefix(), except in prop::collection::vec(prefix(), 0..6)) {
            let left = subtract(cidr, &except);
            assert_canonical(&left);
            let excepted = addresses(&except);
            let expected: BTreeSet<IpAddr> =
                addresses(&[cidr]).into_iter().filter(|address| !excepted.contains(address)).collect();
            prop_assert_eq!(addresses(&left), expected);
        }

        #[test]
        fn ranges_cover_the_same_addresses_and_do_not_touch(networks in prop::collection::vec(prefix(), 0..12)) {
            let found = ranges(&networks);
            for address in addresses(&networks) {
                prop_assert_eq!(found.iter().filter(|range| range.contains(&address)).count(), 1);
            }
            prop_assert!(found.len() <= merge(&networks).len());
        }

        #[test]
        fn port_ranges_cover_the_same_ports(pairs in prop::collection::vec((1_u16..60, 0_u16..20), 0..10)) {
            let given: Vec<_> = pairs.iter().map(|(first, more)| *first..=*first + *more).collect();
            let merged = merge_ports(given.clone());
            for port in 0..100 {
                let count = merged.iter().filter(|range| range.contains(&port)).count();
                prop_assert_eq!(count, usize::from(given.iter().any(|range| range.contains(&port))));
            }
            for pair in merged.windows(2) {
                prop_assert!(pair[0].end() + 1 < *pair[1].start());
            }
        }
    }
}
