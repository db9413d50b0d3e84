//! The sets of peers, blocks, ports and named ports.
//!
//! In: what a set holds. Out: its name and the set. What always holds: a name's properties follow from the identity in it, so that they
//! never change under one name (comments, types and flags are create-time only in the kernel).

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::cidr;
use crate::effective::{Addresses, Effective, EndpointKey};
use crate::names;
use crate::policy::PodPeer;
use crate::ruleset::{Datum, Element, Elements, KeyType, Name, Set, SetKind, Value};

/// The two address families a set can be of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

/// What a set holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// The addresses of a peer of one family.
    Peer(Ip, Arc<PodPeer>),
    /// Destinations by address, protocol and port of one family.
    Endpoints(Ip, Arc<EndpointKey>),
    /// Prefixes of one family.
    Blocks(Ip, Vec<IpNetwork>),
    /// Ranges of ports.
    Ports(Vec<RangeInclusive<u16>>),
}

/// The prefixes of one family.
pub(super) fn blocks(ip: Ip, blocks: &[IpNetwork]) -> Vec<IpNetwork> {
    blocks.iter().copied().filter(|block| Ip::of(block.ip()) == ip).collect()
}

/// The name and the set of a key.
pub(super) fn make(key: &Key, effective: &Effective) -> (Name, Set) {
    match key {
        Key::Peer(ip, peer) => {
            let elements = effective.peers.get(peer).map_or_else(Elements::new, |addresses| of_family(*ip, addresses));
            set(&format!("peer{}", ip.digit()), &peer.to_string(), vec![ip.key_type()], false, elements)
        }
        Key::Endpoints(ip, key) => {
            let types = vec![ip.key_type(), KeyType::InetProto, KeyType::InetService];
            let endpoints = effective.endpoints.get(key).into_iter().flatten();
            let elements = endpoints.filter(|to| Ip::of(to.address) == *ip).map(|to| {
                let key = [address(to.address), Value::Proto(to.protocol.number()), Value::Port(to.port)];
                (Element::key(key), Datum::None)
            });
            set(&format!("endpoint{}", ip.digit()), &key.to_string(), types, false, elements.collect())
        }
        Key::Blocks(ip, blocks) => {
            let text = blocks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let ranges = cidr::ranges(blocks).into_iter();
            let range = |range: RangeInclusive<IpAddr>| Element::Range(address(*range.start()), address(*range.end()));
            let elements = ranges.map(|one| (range(one), Datum::None)).collect();
            set(&format!("block{}", ip.digit()), &text, vec![ip.key_type()], true, elements)
        }
        Key::Ports(ranges) => {
            let text = ranges.iter().map(port_range).collect::<Vec<_>>().join(", ");
            let range =
                |range: &RangeInclusive<u16>| Element::Range(Value::Port(*range.start()), Value::Port(*range.end()));
            let elements = ranges.iter().map(|one| (range(one), Datum::None)).collect();
            set("ports", &text, vec![KeyType::InetService], true, elements)
        }
    }
}

fn of_family(ip: Ip, addresses: &Addresses) -> Elements {
    match ip {
        Ip::V4 => Elements::v4(addresses.v4.clone()),
        Ip::V6 => Elements::v6(addresses.v6.clone()),
    }
}

/// The set with this identity.
fn set(kind: &str, identity: &str, key: Vec<KeyType>, interval: bool, elements: Elements) -> (Name, Set) {
    let name = names::name(kind, identity, identity);
    (name, Set { kind: SetKind::Set, key, interval, size: None, comment: names::comment(identity), elements })
}

/// `80` or `8000-9000`.
pub(super) fn port_range(range: &RangeInclusive<u16>) -> String {
    if range.start() == range.end() { range.start().to_string() } else { format!("{}-{}", range.start(), range.end()) }
}
