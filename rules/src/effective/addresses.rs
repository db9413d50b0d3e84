//! Sets of addresses, and of the ports behind a name, that share structure with the sets they were made from.
//!
//! In: addresses of pods. Out: [`Addresses`] and [`Endpoint`]s. What always holds: the families are apart, as they are in
//! the kernel's sets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use imbl::OrdSet;

use crate::object::Protocol;

/// A set of addresses of both families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// The IPv4 ones.
    pub v4: OrdSet<Ipv4Addr>,
    /// The IPv6 ones.
    pub v6: OrdSet<Ipv6Addr>,
}

impl Addresses {
    /// Whether an address is among them.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4.contains(&address),
            IpAddr::V6(address) => self.v6.contains(&address),
        }
    }

    /// Adds an address.
    pub fn insert(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => drop(self.v4.insert(address)),
            IpAddr::V6(address) => drop(self.v6.insert(address)),
        }
    }

    /// Takes an address out.
    pub fn remove(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => drop(self.v4.remove(&address)),
            IpAddr::V6(address) => drop(self.v6.remove(&address)),
        }
    }

    /// All of them, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.v4.iter().copied().map(IpAddr::V4);
        v4.chain(self.v6.iter().copied().map(IpAddr::V6))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }
}

impl FromIterator<IpAddr> for Addresses {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Self {
        let mut all = Self::default();
        for address in addresses {
            all.insert(address);
        }
        all
    }
}

/// A destination behind a port's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// The pod's address.
    pub address: IpAddr,
    /// The protocol of the port.
    pub protocol: Protocol,
    /// Its number.
    pub port: u16,
}
