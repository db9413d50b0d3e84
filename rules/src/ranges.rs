//! The addresses of this node's pods, as far as they can be told without knowing the pods.
//!
//! In: prefixes that the node gives to pods, addresses that are no pod's. Out: whether an address must be a pod's. What always
//! holds: prefixes are merged and sorted, so that equal ranges are equal values; nothing outside of them is a pod's.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::cidr;

/// Where this node's pods have their addresses. What has one and is no known pod stays closed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodRanges {
    prefixes: Vec<IpNetwork>,
    others: BTreeSet<IpAddr>,
}

impl PodRanges {
    /// These prefixes without `others`: the node's own addresses, broadcast addresses.
    pub fn new(prefixes: &[IpNetwork], others: impl IntoIterator<Item = IpAddr>) -> Self {
        let prefixes = cidr::merge(prefixes);
        let within = |address: &IpAddr| prefixes.iter().any(|prefix| prefix.contains(*address));
        let others = others.into_iter().filter(within).collect();
        Self { prefixes, others }
    }

    /// Whether nothing is known of where pods have their addresses.
    pub fn is_empty(&self) -> bool {
        self.prefixes.is_empty()
    }

    /// The prefixes: disjoint, sorted.
    pub fn prefixes(&self) -> &[IpNetwork] {
        &self.prefixes
    }

    /// The addresses within that are no pod's.
    pub fn others(&self) -> &BTreeSet<IpAddr> {
        &self.others
    }

    /// Whether an address is a pod's of this node, known or not.
    pub fn holds(&self, address: IpAddr) -> bool {
        self.prefixes.iter().any(|prefix| prefix.contains(address)) && !self.others.contains(&address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::ip;

    #[test]
    fn an_address_within_is_a_pods_unless_it_is_another_s() {
        let prefixes = ["10.244.1.1/25", "10.244.1.128/25", "fd00::/64"].map(|text| text.parse().expect("a prefix"));
        let others = ["10.244.1.1", "192.168.0.1", "fd00::1"].map(ip);
        let ranges = PodRanges::new(&prefixes, others);
        assert_eq!(ranges.prefixes(), ["10.244.1.0/24", "fd00::/64"].map(|text| text.parse().expect("a prefix")));
        assert_eq!(*ranges.others(), ["10.244.1.1", "fd00::1"].map(ip).into());
        for (address, holds) in
            [("10.244.1.2", true), ("10.244.1.1", false), ("10.244.2.2", false), ("fd00::2", true), ("fd00::1", false)]
        {
            assert_eq!(ranges.holds(ip(address)), holds, "{address}");
        }
        assert!(PodRanges::default().is_empty() && !PodRanges::default().holds(ip("10.0.0.1")));
    }
}
