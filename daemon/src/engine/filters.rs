//! Which bridges' packets must pass the inet hooks, and do not yet.
//!
//! In: pod bridges as they are, addresses of pods. Out: the families that must be switched on, and which of them are off. What always holds:
//! what is switched on is noted before.

use std::net::IpAddr;

use flatfell_rules::compile::{BridgeId, Switched};
use flatfell_rules::object::ObjectName;
use imbl::OrdMap;
use ipnetwork::IpNetwork;

use crate::links::PodBridge;

/// The families, IPv4 and IPv6, whose bridged packets must reach policy: those of the pods, and of the ranges they will be in.
/// Every pod speaks link-local IPv6, also where the cluster has IPv4 only.
pub(super) fn families(pods: &OrdMap<IpAddr, ObjectName>, ranges: &[IpNetwork]) -> (bool, bool) {
    // IPv4 addresses stand first.
    let v4 = pods.get_min().is_some_and(|(address, _)| address.is_ipv4()) || ranges.iter().any(IpNetwork::is_ipv4);
    (v4, !pods.is_empty() || !ranges.is_empty())
}

/// A pod bridge whose own switch is off for a family in use there: its packets do not reach the inet hooks.
pub(super) struct Off<'a> {
    pub(super) bridge: &'a PodBridge,
    pub(super) v4: bool,
    pub(super) v6: bool,
}

impl<'a> Off<'a> {
    /// Of a bridge that these families are in use on.
    pub(super) fn of(bridge: &'a PodBridge, v4: bool, v6: bool) -> Option<Self> {
        let (v4, v6) = (v4 && !bridge.nf_call_iptables, v6 && !bridge.nf_call_ip6tables);
        (v4 || v6).then_some(Self { bridge, v4, v6 })
    }

    /// Notes that it was off before.
    pub(super) fn note(&self, switched: &mut Switched) {
        let id = BridgeId { name: self.bridge.name.clone(), index: self.bridge.index };
        if self.v4 {
            switched.v4.insert(id.clone());
        }
        if self.v6 {
            switched.v6.insert(id);
        }
    }
}
