//! Values as nft prints them.
//!
//! In: a [`Value`]. Out: nft's word for it. What always holds: the words are those of nft 1.0.6 on Debian 12, where the names of
//! IP protocols are those of its /etc/protocols; nft reads all of them back.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::ruleset::{Element, Value};

/// Bytes of an interface's name in the kernel.
const IFNAME_BYTES: usize = 16;

/// IP protocols by number; the first name /etc/protocols has for it.
const PROTOCOLS: &[(u8, &str)] = &[
    (0, "ip"),
    (1, "icmp"),
    (2, "igmp"),
    (3, "ggp"),
    (4, "ipencap"),
    (5, "st"),
    (6, "tcp"),
    (8, "egp"),
    (9, "igp"),
    (12, "pup"),
    (17, "udp"),
    (20, "hmp"),
    (22, "xns-idp"),
    (27, "rdp"),
    (29, "iso-tp4"),
    (33, "dccp"),
    (36, "xtp"),
    (37, "ddp"),
    (38, "idpr-cmtp"),
    (41, "ipv6"),
    (43, "ipv6-route"),
    (44, "ipv6-frag"),
    (45, "idrp"),
    (46, "rsvp"),
    (47, "gre"),
    (50, "esp"),
    (51, "ah"),
    (57, "skip"),
    (58, "ipv6-icmp"),
    (59, "ipv6-nonxt"),
    (60, "ipv6-opts"),
    (73, "rspf"),
    (81, "vmtp"),
    (88, "eigrp"),
    (89, "ospf"),
    (93, "ax.25"),
    (94, "ipip"),
    (97, "etherip"),
    (98, "encap"),
    (103, "pim"),
    (108, "ipcomp"),
    (112, "vrrp"),
    (115, "l2tp"),
    (124, "isis"),
    (132, "sctp"),
    (133, "fc"),
    (135, "mobility-header"),
    (136, "udplite"),
    (137, "mpls-in-ip"),
    (138, "manet"),
    (139, "hip"),
    (140, "shim6"),
    (141, "wesp"),
    (142, "rohc"),
    (143, "ethernet"),
];

/// ICMPv6 types that nft has names for.
const ICMPV6_TYPES: &[(u8, &str)] = &[
    (1, "destination-unreachable"),
    (2, "packet-too-big"),
    (3, "time-exceeded"),
    (4, "parameter-problem"),
    (128, "echo-request"),
    (129, "echo-reply"),
    (130, "mld-listener-query"),
    (131, "mld-listener-report"),
    (132, "mld-listener-done"),
    (133, "nd-router-solicit"),
    (134, "nd-router-advert"),
    (135, "nd-neighbor-solicit"),
    (136, "nd-neighbor-advert"),
    (137, "nd-redirect"),
    (138, "router-renumbering"),
    (141, "ind-neighbor-solicit"),
    (142, "ind-neighbor-advert"),
    (143, "mld2-listener-report"),
];

/// Ethernet protocols that nft has names for.
const ETHER_TYPES: &[(u16, &str)] =
    &[(0x0800, "ip"), (0x0806, "arp"), (0x86dd, "ip6"), (0x8100, "8021q"), (0x88a8, "8021ad")];

/// Routing types by their RTN_* number.
const ADDR_TYPES: &[&str] =
    &["unspec", "unicast", "local", "broadcast", "anycast", "multicast", "blackhole", "unreachable", "prohibit"];

/// A value standing alone.
pub fn value(value: &Value) -> String {
    match value {
        Value::V4(address) => address.to_string(),
        Value::V6(address) => v6(*address),
        Value::Proto(number) => named(PROTOCOLS, *number),
        Value::Port(number) => number.to_string(),
        Value::HopLimit(number) => number.to_string(),
        Value::Length(number) => number.to_string(),
        Value::Ether(address) => ether(*address),
        Value::NdOption(bytes) => raw(bytes),
        Value::Ifname(name) => format!("\"{name}\""),
        Value::Mark(mark) => super::hex(*mark),
        Value::Icmpv6Type(number) => named(ICMPV6_TYPES, *number),
        Value::EtherType(number) => ETHER_TYPES
            .iter()
            .find(|(known, _)| known == number)
            .map_or_else(|| format!("0x{number:04x}"), |(_, name)| (*name).to_string()),
        Value::AddrType(number) => usize::try_from(*number)
            .ok()
            .and_then(|index| ADDR_TYPES.get(index))
            .map_or_else(|| number.to_string(), |name| (*name).to_string()),
    }
}

/// From a value to a greater one; nft gives ends of a range as numbers, not as names.
pub fn range(first: &Value, last: &Value) -> String {
    let end = |bound: &Value| match bound {
        Value::Proto(number) | Value::Icmpv6Type(number) | Value::HopLimit(number) => number.to_string(),
        Value::EtherType(number) => format!("0x{number:04x}"),
        Value::AddrType(number) => number.to_string(),
        Value::V4(_)
        | Value::V6(_)
        | Value::Port(_)
        | Value::Ifname(_)
        | Value::Mark(_)
        | Value::Ether(_)
        | Value::Length(_)
        | Value::NdOption(_) => value(bound),
    };
    format!("{}-{}", end(first), end(last))
}

/// An interval of a set: one value, a prefix where the type has prefixes and it is one, else a range.
pub fn interval(first: &Value, last: &Value) -> String {
    if first == last {
        return value(first);
    }
    let length = match (first, last) {
        (Value::V4(first), Value::V4(last)) => prefix_length(first.to_bits().into(), last.to_bits().into(), 32),
        (Value::V6(first), Value::V6(last)) => prefix_length(first.to_bits(), last.to_bits(), 128),
        (Value::Mark(first), Value::Mark(last)) => prefix_length((*first).into(), (*last).into(), 32),
        _ => None,
    };
    length.map_or_else(|| range(first, last), |length| format!("{}/{length}", value(first)))
}

/// The length of the prefix that `first` to `last` is, in a type of `width` bits.
fn prefix_length(first: u128, last: u128, width: u32) -> Option<u32> {
    let host = first ^ last;
    let is_prefix = host & host.wrapping_add(1) == 0 && first & host == 0;
    is_prefix.then(|| width - (u128::BITS - host.leading_zeros()))
}

/// An IPv6 address as inet_ntop(3) of glibc gives it: `::1.2.3.4` where all but the last four bytes are zero and some
/// of the two before the last are not.
fn v6(address: Ipv6Addr) -> String {
    let bits = address.to_bits();
    match u32::try_from(bits) {
        Ok(low) if low > 0xffff => format!("::{}", Ipv4Addr::from_bits(low)),
        _ => address.to_string(),
    }
}

/// A link-layer address.
fn ether(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}

/// Bytes that nft has no type for: one number.
pub fn raw(bytes: &[u8]) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let significant = digits.trim_start_matches('0');
    format!("0x{}", if significant.is_empty() { "0" } else { significant })
}

/// The name of a number, or the number.
fn named(names: &[(u8, &str)], number: u8) -> String {
    names.iter().find(|(known, _)| *known == number).map_or_else(|| number.to_string(), |(_, name)| (*name).to_string())
}

/// What orders elements as nft lists them: single values by number (a name is a number with its first byte lowest),
/// concatenations by all their bytes, the last one highest.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub enum ListingOrder<'a> {
    /// By value.
    Natural(&'a Value),
    /// By bytes from the last to the first.
    Bytes(Vec<u8>),
}

/// Where an element stands in a listing.
pub fn listing_order(element: &Element) -> ListingOrder<'_> {
    match element {
        Element::Range(first, _) => ListingOrder::Natural(first),
        Element::Key(key) => match key.as_slice() {
            [single] if !matches!(single, Value::Ifname(_)) => ListingOrder::Natural(single),
            _ => ListingOrder::Bytes(key.iter().flat_map(bytes).rev().collect()),
        },
    }
}

/// A value as it lies in memory of a little-endian machine.
fn bytes(value: &Value) -> Vec<u8> {
    match value {
        Value::V4(address) => address.octets().to_vec(),
        Value::V6(address) => address.octets().to_vec(),
        Value::Proto(number) | Value::Icmpv6Type(number) | Value::HopLimit(number) => vec![*number],
        Value::Port(number) | Value::EtherType(number) | Value::Length(number) => number.to_be_bytes().to_vec(),
        Value::Ether(address) => address.to_vec(),
        Value::NdOption(bytes) => bytes.to_vec(),
        Value::Mark(number) | Value::AddrType(number) => number.to_le_bytes().to_vec(),
        Value::Ifname(name) => {
            let mut bytes = name.as_bytes().to_vec();
            bytes.resize(IFNAME_BYTES, 0);
            bytes
        }
    }
}
