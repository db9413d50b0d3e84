//! A table under construction: sets, counters and chains, each made once however many rules name it.
//!
//! In: what [`super::pod`] and [`super::base`] need. Out: the table and the meanings of its counters. What always holds: every set
//! and counter that a rule names exists; a name's properties follow from the identity in it, so that they never change
//! under one name (comments, types and flags are create-time only in the kernel).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnetwork::IpNetwork;

use super::CounterMeaning;
use crate::cidr;
use crate::ids::Origin;
use crate::names;
use crate::object::Protocol;
use crate::policy::Direction;
use crate::ruleset::{Chain, Counter, Datum, Element, KeyType, Set, SetKind, Table, Value};

/// The two address families a set can be of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ip {
    V4,
    V6,
}

impl Ip {
    pub(super) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub(super) const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    pub(super) const fn digit(self) -> char {
        match self {
            Self::V4 => '4',
            Self::V6 => '6',
        }
    }

    pub(super) const fn key_type(self) -> KeyType {
        match self {
            Self::V4 => KeyType::Ipv4Addr,
            Self::V6 => KeyType::Ipv6Addr,
        }
    }
}

/// The value of an address.
pub(super) fn address(address: IpAddr) -> Value {
    match address {
        IpAddr::V4(address) => Value::V4(address),
        IpAddr::V6(address) => Value::V6(address),
    }
}

/// A table under construction.
#[derive(Default)]
pub(super) struct Builder<'a> {
    table: Table,
    counters: BTreeMap<String, CounterMeaning>,
    /// The chains that write an id, by whose it is.
    pub(super) allows: HashMap<(Direction, Origin<'a>), String>,
}

impl Builder<'_> {
    /// The table and what its counters mean.
    pub(super) fn finish(self) -> (Table, BTreeMap<String, CounterMeaning>) {
        (self.table, self.counters)
    }

    /// Adds a chain.
    pub(super) fn chain(&mut self, name: &str, chain: Chain) {
        self.table.chains.insert(name.to_owned(), chain);
    }

    /// The counter with this identity; `human` goes into its name, `text` into its comment.
    pub(super) fn counter(
        &mut self,
        (kind, identity, human): (&str, &str, &str),
        text: &str,
        meaning: CounterMeaning,
    ) -> String {
        let name = names::name(kind, identity, human);
        self.named_counter(name.clone(), text, meaning);
        name
    }

    /// The counter of this name.
    pub(super) fn named_counter(&mut self, name: String, text: &str, meaning: CounterMeaning) {
        self.table.counters.insert(name.clone(), Counter { comment: names::comment(text) });
        self.counters.insert(name, meaning);
    }

    /// A set or map that is there under a fixed name, empty or not.
    pub(super) fn fixed(&mut self, name: &str, kind: SetKind, key: Vec<KeyType>, comment: &str) {
        self.set(name, kind, key, None, comment);
    }

    /// The same for one that never has more elements than this.
    pub(super) fn sized(&mut self, name: &str, kind: SetKind, key: Vec<KeyType>, size: u32, comment: &str) {
        self.set(name, kind, key, Some(size), comment);
    }

    fn set(&mut self, name: &str, kind: SetKind, key: Vec<KeyType>, size: Option<u32>, comment: &str) {
        let set = Set { kind, key, interval: false, size, comment: comment.to_owned(), elements: BTreeMap::new() };
        self.table.sets.insert(name.to_owned(), set);
    }

    /// Adds an element to a set that is there.
    pub(super) fn element(&mut self, set: &str, value: Value, datum: Datum) {
        self.keyed(set, Element::key([value]), datum);
    }

    /// The same for one whose key has several values.
    pub(super) fn keyed(&mut self, set: &str, element: Element, datum: Datum) {
        if let Some(set) = self.table.sets.get_mut(set) {
            set.elements.insert(element, datum);
        }
    }

    /// The set of a peer's addresses of one family.
    pub(super) fn addresses(&mut self, ip: Ip, text: &str, addresses: &BTreeSet<IpAddr>) -> String {
        self.shared(&format!("peer{}", ip.digit()), text, vec![ip.key_type()], false, || {
            let of_family = addresses.iter().filter(|peer| Ip::of(**peer) == ip);
            of_family.map(|peer| Element::key([address(*peer)])).collect()
        })
    }

    /// The interval set of the prefixes of one family; `None` when there are none.
    pub(super) fn blocks(&mut self, ip: Ip, blocks: &[IpNetwork]) -> Option<String> {
        let blocks: Vec<IpNetwork> = blocks.iter().copied().filter(|block| Ip::of(block.ip()) == ip).collect();
        if blocks.is_empty() {
            return None;
        }
        let text = blocks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        Some(self.shared(&format!("block{}", ip.digit()), &text, vec![ip.key_type()], true, || {
            let ranges = cidr::ranges(&blocks).into_iter();
            ranges.map(|range| Element::Range(address(*range.start()), address(*range.end()))).collect()
        }))
    }

    /// The interval set of these ports.
    pub(super) fn ports(&mut self, ranges: &[RangeInclusive<u16>]) -> String {
        let text = ranges.iter().map(port_range).collect::<Vec<_>>().join(", ");
        self.shared("ports", &text, vec![KeyType::InetService], true, || {
            ranges.iter().map(|range| Element::Range(Value::Port(*range.start()), Value::Port(*range.end()))).collect()
        })
    }

    /// The set of destinations by address, protocol and port of one family.
    pub(super) fn endpoints(&mut self, ip: Ip, text: &str, endpoints: &BTreeSet<(IpAddr, Protocol, u16)>) -> String {
        let key = vec![ip.key_type(), KeyType::InetProto, KeyType::InetService];
        self.shared(&format!("endpoint{}", ip.digit()), text, key, false, || {
            let of_family = endpoints.iter().filter(|endpoint| Ip::of(endpoint.0) == ip);
            of_family
                .map(|&(ip, protocol, port)| {
                    Element::key([address(ip), Value::Proto(protocol.number()), Value::Port(port)])
                })
                .collect()
        })
    }

    /// The set with this identity, made when it is first named.
    fn shared(
        &mut self,
        kind: &str,
        identity: &str,
        key: Vec<KeyType>,
        interval: bool,
        elements: impl FnOnce() -> Vec<Element>,
    ) -> String {
        let name = names::name(kind, identity, identity);
        self.table.sets.entry(name.clone()).or_insert_with(|| Set {
            kind: SetKind::Set,
            key,
            interval,
            size: None,
            comment: names::comment(identity),
            elements: elements().into_iter().map(|element| (element, Datum::None)).collect(),
        });
        name
    }
}

/// `80` or `8000-9000`.
pub(super) fn port_range(range: &RangeInclusive<u16>) -> String {
    if range.start() == range.end() { range.start().to_string() } else { format!("{}-{}", range.start(), range.end()) }
}
