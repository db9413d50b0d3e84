//! Who stands where: the address plan of a lab.
//!
//! In: a place (a pod by node and slot, a node, the outside host). Out: its addresses. What always holds: the plan is a
//! pure function, so that a test can name an address before the lab exists.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A MAC address.
pub type Mac = [u8; 6];

/// A network namespace of the lab that sends and receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// The pod in a slot (0..=244) of a node (1..).
    Pod {
        /// Its node.
        node: u8,
        /// Its place on the node.
        slot: u8,
    },
    /// A node (1..).
    Node(u8),
    /// A host on the underlay that is no node.
    Outside,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod { node, slot } => write!(f, "n{node}p{slot}"),
            Self::Node(node) => write!(f, "n{node}"),
            Self::Outside => f.write_str("out"),
        }
    }
}

impl Place {
    /// The pod in slot `slot` of node `node`.
    pub const fn pod(node: u8, slot: u8) -> Self {
        Self::Pod { node, slot }
    }

    /// Its first IPv4 address: 10.244.n.(10+s), 192.168.50.n or 192.168.50.100.
    pub const fn v4(self) -> Ipv4Addr {
        match self {
            Self::Pod { node, slot } => Ipv4Addr::new(10, 244, node, slot + 10),
            Self::Node(node) => Ipv4Addr::new(192, 168, 50, node),
            Self::Outside => Ipv4Addr::new(192, 168, 50, 100),
        }
    }

    /// Its first IPv6 address; the last group shows the IPv4 address's last number in decimal digits.
    pub fn v6(self) -> Ipv6Addr {
        let last = digits(self.v4().octets()[3]);
        match self {
            Self::Pod { node, .. } => Ipv6Addr::new(0xfd00, 0x10, 0x244, digits(node), 0, 0, 0, last),
            Self::Node(_) | Self::Outside => Ipv6Addr::new(0xfd00, 0x192, 0x168, 0x50, 0, 0, 0, last),
        }
    }

    /// Both first addresses.
    pub fn addresses(self) -> [IpAddr; 2] {
        [self.v4().into(), self.v6().into()]
    }

    /// The first address of the same family as `like`.
    pub fn address_like(self, like: IpAddr) -> IpAddr {
        if like.is_ipv4() { self.v4().into() } else { self.v6().into() }
    }

    /// The MAC address of its `eth0`.
    pub const fn mac(self) -> Mac {
        match self {
            Self::Pod { node, slot } => [2, 0xff, 0, node, 1, slot],
            Self::Node(node) => [2, 0xff, 0, node, 2, 0],
            Self::Outside => [2, 0xff, 0, 0, 3, 0],
        }
    }

    /// The link-local address the kernel gives to `eth0`.
    pub fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.mac().map(u16::from);
        Ipv6Addr::new(0xfe80, 0, 0, 0, ((a ^ 2) << 8) | b, (c << 8) | 0xff, 0xfe00 | d, (e << 8) | f)
    }

    /// The node it lives on, or is.
    pub const fn node(self) -> Option<u8> {
        match self {
            Self::Pod { node, .. } | Self::Node(node) => Some(node),
            Self::Outside => None,
        }
    }

    /// The source address its kernel would choose towards `to`.
    pub fn source_towards(self, to: IpAddr) -> IpAddr {
        let Self::Node(node) = self else { return self.address_like(to) };
        match range_of(to) {
            Some(of) if of == node => bridge_address_like(node, to),
            Some(_) => tunnel_address_like(node, to),
            None => self.address_like(to),
        }
    }
}

/// The bridge's MAC address.
pub(crate) const fn bridge_mac(node: u8) -> Mac {
    [2, 0xff, 0, node, 0, 1]
}

/// The MAC address of flannel.1 (`family` 4) and flannel-v6.1 (`family` 6).
pub(crate) const fn tunnel_mac(node: u8, family: u8) -> Mac {
    [2, 0xff, 0, node, 4, family]
}

/// The bridge's address, the pods' default router: 10.244.n.1 or fd00:10:244:n::1.
pub fn bridge_address_like(node: u8, like: IpAddr) -> IpAddr {
    pod_range(node, like, 1)
}

/// The address of flannel.1 (or flannel-v6.1): what other nodes' pods see of this node.
pub fn tunnel_address_like(node: u8, like: IpAddr) -> IpAddr {
    pod_range(node, like, 0)
}

fn pod_range(node: u8, like: IpAddr, last: u8) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::new(10, 244, node, last).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0xfd00, 0x10, 0x244, digits(node), 0, 0, 0, u16::from(last)).into(),
    }
}

/// The node whose pod range holds the address.
pub(crate) fn range_of(address: IpAddr) -> Option<u8> {
    match address {
        IpAddr::V4(v4) => match v4.octets() {
            [10, 244, node, _] => Some(node),
            _ => None,
        },
        IpAddr::V6(v6) => match v6.segments() {
            [0xfd00, 0x10, 0x244, node, ..] => undigits(node),
            _ => None,
        },
    }
}

/// Decimal digits read as hexadecimal, so that ::12 stands beside .12.
fn digits(number: u8) -> u16 {
    let number = u16::from(number);
    (number / 100) * 256 + (number / 10 % 10) * 16 + number % 10
}

fn undigits(group: u16) -> Option<u8> {
    u8::try_from((group >> 8) * 100 + ((group >> 4) & 15) * 10 + (group & 15)).ok()
}

/// The usual writing of a MAC address.
pub fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_read_alike() {
        let pod = Place::pod(2, 2);
        assert_eq!(pod.v4().to_string(), "10.244.2.12");
        assert_eq!(pod.v6().to_string(), "fd00:10:244:2::12");
        assert_eq!(Place::pod(1, 190).v6().to_string(), "fd00:10:244:1::200");
        assert_eq!(range_of(Place::pod(12, 3).v6().into()), Some(12));
        assert_eq!(Place::Outside.v6().to_string(), "fd00:192:168:50::100");
        assert_eq!(pod.link_local().to_string(), "fe80::ff:ff:fe02:102");
    }
}
