//! Addresses of local pods that the network plugin told of before the API did.
//!
//! In: [`Claim`]s, one for each sandbox, and pods as the API shows them. Out: the addresses a pod has by both. What always holds: a
//! claim adds to what the API says and takes nothing away; it ends when the API says the same, or with its sandbox.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::object::{ObjectName, Pod};

/// What the network plugin says of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The runtime's name for it: no two live ones have the same.
    pub sandbox: String,
    /// The pod it is for.
    pub pod: ObjectName,
    /// The pod's UID as the kubelet knows it.
    pub uid: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

impl Claim {
    /// Whether it is for this very pod. A static pod has a UID of the kubelet's own (no RFC 4122 one), which the API never
    /// shows: its name, which ends in its node's, must do.
    fn is_for(&self, pod: &Pod) -> bool {
        let is_static = self.uid.len() == 32 && self.uid.bytes().all(|byte| byte.is_ascii_hexdigit());
        self.pod == pod.name && (is_static || *self.uid == *pod.uid)
    }
}

/// The claims that the API does not cover yet.
#[derive(Clone, Debug, Default)]
pub(super) struct Plugged {
    /// By pod, then by sandbox.
    waiting: BTreeMap<ObjectName, BTreeMap<String, Claim>>,
    /// What of a pod's addresses is only claimed, for pods that are there.
    added: BTreeMap<ObjectName, Vec<IpAddr>>,
}

impl Plugged {
    /// Takes a claim in.
    pub(super) fn insert(&mut self, claim: Claim) {
        self.remove(&claim.sandbox);
        self.waiting.entry(claim.pod.clone()).or_default().insert(claim.sandbox.clone(), claim);
    }

    /// Forgets a sandbox; the pod it was for.
    pub(super) fn remove(&mut self, sandbox: &str) -> Option<ObjectName> {
        let (pod, claims) = self.waiting.iter_mut().find(|(_, claims)| claims.contains_key(sandbox))?;
        let pod = pod.clone();
        claims.remove(sandbox);
        if claims.is_empty() {
            self.waiting.remove(&pod);
        }
        Some(pod)
    }

    /// A pod as the API shows it, with what is claimed for it. A claim that the API covers ends here.
    pub(super) fn add_to(&mut self, mut pod: Pod) -> Pod {
        self.added.remove(&pod.name);
        let Some(claims) = self.waiting.get_mut(&pod.name) else { return pod };
        claims.retain(|_, claim| {
            !claim.is_for(&pod) || !claim.addresses.iter().all(|address| pod.addresses.contains(address))
        });
        let claimed = claims.values().filter(|claim| claim.is_for(&pod)).flat_map(|claim| &claim.addresses);
        let mut added: Vec<IpAddr> = claimed.filter(|address| !pod.addresses.contains(address)).copied().collect();
        added.sort_unstable();
        added.dedup();
        if claims.is_empty() {
            self.waiting.remove(&pod.name);
        }
        if !added.is_empty() {
            pod.addresses = pod.addresses.iter().chain(&added).copied().collect();
            self.added.insert(pod.name.clone(), added);
        }
        pod
    }

    /// The pod without what was only claimed.
    pub(super) fn take_from(&self, mut pod: Pod) -> Pod {
        if let Some(added) = self.added.get(&pod.name) {
            pod.addresses = pod.addresses.iter().filter(|address| !added.contains(address)).copied().collect();
        }
        pod
    }

    /// The pod is not there any more.
    pub(super) fn pod_gone(&mut self, name: &ObjectName) {
        self.added.remove(name);
    }
}
