//! Which pod an address stands for, and whether it counts.
//!
//! In: an address. Out: the pod. What always holds: an address has at most one owner.

use std::net::IpAddr;

use super::world::Pod;
use super::{Reading, Row};

impl<'a> Reading<'a> {
    /// The pod of this node that a policy could have as its subject, by its address. "Succeeded, Failed ...: on its own node
    /// its isolation stays until its interface is gone or another pod owns the address."
    pub(super) fn local_pod(&self, address: IpAddr) -> Option<&'a Pod<'a>> {
        let pod = self.owner(address).filter(|pod| pod.node() == Some(self.node))?;
        let gone = pod.terminal() && self.mistaken(Row::TerminalSubject);
        (!gone && (pod.terminal() || self.counts(pod))).then_some(pod)
    }

    /// The pod that a selector could match, by its address. "Succeeded, Failed ...: no peer any more."
    pub(super) fn peer_pod(&self, address: IpAddr) -> Option<&'a Pod<'a>> {
        self.owner(address).filter(|pod| self.counts(pod))
    }

    /// "Pending with an address, Unknown, not ready, deletionTimestamp: counts fully. Succeeded, Failed or gone from the API:
    /// no peer any more."
    fn counts(&self, pod: &Pod<'_>) -> bool {
        if pod.healthy() {
            return true;
        }
        pod.terminal() == self.mistaken(Row::Lifetime)
    }

    /// "One address, two pods: not terminal before terminal, then newest creation time, then UID."
    pub(super) fn owner(&self, address: IpAddr) -> Option<&'a Pod<'a>> {
        let claimants: Vec<_> = self.world.pods.iter().filter(|pod| self.owns_addresses(pod, address)).collect();
        if claimants.len() > 1 && self.mistaken(Row::SharedAddress) {
            return claimants.into_iter().min_by_key(|pod| pod.seniority());
        }
        claimants.into_iter().max_by_key(|pod| pod.seniority())
    }

    /// "hostNetwork pods: never subjects; not matched by selectors."
    fn owns_addresses(&self, pod: &Pod<'_>, address: IpAddr) -> bool {
        self.has_address(pod, address) && (!pod.host_network() || self.mistaken(Row::HostNetwork))
    }

    /// "status.podIPs, else podIP; mirror pods count"; "every address of a pod, both families".
    pub(super) fn has_address(&self, pod: &Pod<'_>, address: IpAddr) -> bool {
        if pod.pod_ips.is_empty() {
            return pod.pod_ip == Some(address) && !self.mistaken(Row::PodAddresses);
        }
        if !pod.pod_ips.contains(&address) || (pod.mirror() && self.mistaken(Row::PodAddresses)) {
            return false;
        }
        pod.pod_ips.first() == Some(&address) || !self.mistaken(Row::DualStack)
    }
}
