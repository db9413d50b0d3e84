//! The text of an ipBlock, read as the API server reads it.
//!
//! In: text such as `010.0.0.7/8`. Out: [`Block`]. What always holds: host bits are masked, a v4-mapped block of at
//! least 96 bits is an IPv4 block.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses that share a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// The first address.
    pub first: IpAddr,
    /// How many bits are fixed.
    pub length: u32,
}

impl Block {
    /// Reads a CIDR: "stored objects may hold leading zeros (decimal), host bits (masked), v4-mapped addresses (are
    /// v4)".
    pub fn read(text: &str) -> Option<Self> {
        let (address, length) = text.split_once('/')?;
        let length = number(length)?;
        let address = read_address(address)?;
        if length > width(address) {
            return None;
        }
        let first = masked(address, length);
        match first {
            IpAddr::V6(six) if length >= 96 => match six.to_ipv4_mapped() {
                Some(four) => Some(Self { first: IpAddr::V4(four), length: length - 96 }),
                None => Some(Self { first, length }),
            },
            _ => Some(Self { first, length }),
        }
    }

    /// Reads a CIDR only if it is written canonically: what a stricter reader would take.
    pub fn read_strictly(text: &str) -> Option<Self> {
        let (address, length) = text.split_once('/')?;
        let address: IpAddr = address.parse().ok()?;
        let block = Self { first: address, length: length.parse().ok()? };
        (block.length <= width(address) && masked(address, block.length) == address).then_some(block)
    }

    /// Whether an address is one of the block's.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.first.is_ipv4() && masked(address, self.length) == self.first
    }

    /// "`except` strictly inside cidr".
    pub fn strictly_inside(&self, outer: &Self) -> bool {
        self.length > outer.length && outer.contains(self.first)
    }
}

/// How many bits an address has.
fn width(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The address with everything behind its first `length` bits cleared.
fn masked(address: IpAddr, length: u32) -> IpAddr {
    match address {
        IpAddr::V4(four) => {
            IpAddr::V4(Ipv4Addr::from_bits(four.to_bits() & u32::MAX.checked_shl(32 - length).unwrap_or(0)))
        }
        IpAddr::V6(six) => {
            IpAddr::V6(Ipv6Addr::from_bits(six.to_bits() & u128::MAX.checked_shl(128 - length).unwrap_or(0)))
        }
    }
}

/// A decimal number of digits only, leading zeros allowed.
fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// An address whose IPv4 octets may have leading zeros.
fn read_address(text: &str) -> Option<IpAddr> {
    if !text.contains(':') {
        return without_zeros(text)?.parse().ok().map(IpAddr::V4);
    }
    match text.rsplit_once(':') {
        Some((head, tail)) if tail.contains('.') => {
            format!("{head}:{}", without_zeros(tail)?).parse().ok().map(IpAddr::V6)
        }
        _ => text.parse().ok().map(IpAddr::V6),
    }
}

/// A dotted address without leading zeros.
fn without_zeros(text: &str) -> Option<String> {
    let octets: Option<Vec<String>> =
        text.split('.').map(|octet| number(octet).map(|value| value.to_string())).collect();
    Some(octets?.join("."))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sloppy_text_is_read_as_the_api_server_does() {
        let ten = Block { first: "10.0.0.0".parse().unwrap(), length: 8 };
        for text in ["10.0.0.0/8", "010.0.0.0/8", "10.1.2.3/08", "::ffff:10.0.0.0/104", "::ffff:010.9.9.9/104"] {
            assert_eq!(Block::read(text), Some(ten), "{text}");
        }
        assert_eq!(Block::read("fd00::5/64"), Some(Block { first: "fd00::".parse().unwrap(), length: 64 }));
        assert!(Block::read("::ffff:10.0.0.0/64").unwrap().first.is_ipv6());
    }

    #[test]
    fn what_is_no_cidr_is_refused() {
        for text in [
            "10.0.0.1",
            "10.0.0.0/33",
            "10.0.0/8",
            "10.0.0.256/32",
            "/8",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "fd00::/129",
            " 10.0.0.0/8",
        ] {
            assert_eq!(Block::read(text), None, "{text}");
        }
    }

    #[test]
    fn an_except_equal_to_its_cidr_is_not_inside() {
        let ten = Block::read("10.0.0.0/8").unwrap();
        assert!(Block::read("10.1.0.0/16").unwrap().strictly_inside(&ten));
        assert!(!ten.strictly_inside(&ten));
        assert!(!Block::read("11.0.0.0/16").unwrap().strictly_inside(&ten));
        assert!(!Block::read("fd00::/16").unwrap().strictly_inside(&ten));
    }

    #[test]
    fn bounds_of_a_block() {
        let all = Block::read("0.0.0.0/0").unwrap();
        assert!(all.contains("255.255.255.255".parse().unwrap()) && !all.contains("::1".parse().unwrap()));
        let one = Block::read("10.0.0.1/32").unwrap();
        assert!(one.contains("10.0.0.1".parse().unwrap()) && !one.contains("10.0.0.2".parse().unwrap()));
    }
}
