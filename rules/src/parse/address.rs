//! Addresses and prefixes as the API server reads them.
//!
//! In: text of a stored object. Out: its meaning and what is sloppy about it. What always holds: the reading is that of
//! the API server's validation (Go's `net.ParseCIDR` before 1.17): leading zeros are decimal, bits behind the prefix
//! are masked, `::ffff:a.b.c.d/96+n` is IPv4.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

/// What was read, and what a stricter reader would object to.
pub(super) struct Sloppy<T> {
    pub(super) value: T,
    pub(super) warnings: Vec<&'static str>,
}

const LEADING_ZEROS: &str = "has leading zeros, which are read as decimal";
const HOST_BITS: &str = "has bits set behind the prefix, which are ignored";
const MAPPED: &str = "is an IPv4-mapped IPv6 address, which is read as IPv4";

/// The bits of the prefix that says an IPv6 address is an IPv4 one.
const MAPPED_BITS: u8 = 96;

/// The prefix a text means to the API server; `None` when it refuses it.
pub fn cidr(text: &str) -> Option<IpNetwork> {
    sloppy_cidr(text).map(|sloppy| sloppy.value)
}

pub(super) fn sloppy_cidr(text: &str) -> Option<Sloppy<IpNetwork>> {
    let (address, length) = text.split_once('/')?;
    let (address, mut warnings) = parse(address)?;
    let plain_length = without_zeros(length, |c| c.is_ascii_digit())?;
    if plain_length != length {
        warnings.push(LEADING_ZEROS);
    }
    let given = IpNetwork::new(address, plain_length.parse().ok()?).ok()?;
    let masked = IpNetwork::new(given.network(), given.prefix()).ok()?;
    if masked != given {
        warnings.push(HOST_BITS);
    }
    let value = unmapped(masked);
    if value != masked {
        warnings.push(MAPPED);
    }
    warnings.dedup();
    Some(Sloppy { value, warnings })
}

/// An address without a prefix.
pub(super) fn sloppy_address(text: &str) -> Option<Sloppy<IpAddr>> {
    let (address, mut warnings) = parse(text)?;
    let value = address.to_canonical();
    if value != address {
        warnings.push(MAPPED);
    }
    Some(Sloppy { value, warnings })
}

/// A prefix within ::ffff:0:0/96 as the IPv4 prefix it means.
fn unmapped(prefix: IpNetwork) -> IpNetwork {
    let IpNetwork::V6(v6) = prefix else { return prefix };
    match (v6.network().to_ipv4_mapped(), v6.prefix().checked_sub(MAPPED_BITS)) {
        (Some(v4), Some(length)) => IpNetwork::new(v4.into(), length).expect("32 bits are left of a mapped prefix"),
        _ => prefix,
    }
}

/// Strips the leading zeros that the standard library refuses, and reads what is left.
fn parse(text: &str) -> Option<(IpAddr, Vec<&'static str>)> {
    let plain = if text.contains(':') {
        let part = |part: &str| match part {
            "" => Some(String::new()),
            part if part.contains('.') => dotted(part),
            part => without_zeros(part, |c| c.is_ascii_hexdigit()),
        };
        text.split(':').map(part).collect::<Option<Vec<_>>>()?.join(":")
    } else {
        dotted(text)?
    };
    let warnings = if plain == text { Vec::new() } else { vec![LEADING_ZEROS] };
    Some((plain.parse().ok()?, warnings))
}

fn dotted(text: &str) -> Option<String> {
    let parts: Option<Vec<_>> = text.split('.').map(|part| without_zeros(part, |c| c.is_ascii_digit())).collect();
    Some(parts?.join("."))
}

/// The number without leading zeros; `None` for an empty one or one with other characters.
fn without_zeros(text: &str, digit: impl Fn(char) -> bool) -> Option<String> {
    if text.is_empty() || !text.chars().all(digit) {
        return None;
    }
    let plain = text.trim_start_matches('0');
    Some(if plain.is_empty() { "0".to_owned() } else { plain.to_owned() })
}
