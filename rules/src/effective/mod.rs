//! What holds for each pod of this node: its effective policy by direction, with addresses and ports resolved.
//!
//! In: [`crate::index::Index`] and the node's name. Out: [`Effective`], which [`crate::compile`] turns into a ruleset and
//! [`crate::judge`] answers from. What always holds: a function of current state only, in a canonical order; every set
//! that a rule names is in [`Effective::peers`] or [`Effective::endpoints`], even when it is empty.

mod addresses;
mod asked;
mod evaluator;
mod identity;
mod policies;
mod population;
mod rules;
mod selectors;
#[cfg(test)]
mod tests;

pub use addresses::{Addresses, Endpoint};
pub use evaluator::{Evaluator, evaluate};
pub use identity::RuleIdentity;

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use ipnetwork::IpNetwork;

use crate::object::{ObjectName, Protocol};
use crate::policy::{Action, Direction, PodPeer, Tier};

/// Everything that is enforced on one node: a snapshot that is cheap to keep, and shares with the one before it whatever
/// is the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effective {
    pods: OrdMap<ObjectName, Arc<EffectivePod>>,
    local: OrdMap<IpAddr, ObjectName>,
    /// Addresses of the pods each peer selects; equal selectors are one key.
    pub peers: OrdMap<Arc<PodPeer>, Addresses>,
    /// Address, protocol and number of each destination an egress rule names by port name.
    pub endpoints: OrdMap<Arc<EndpointKey>, OrdSet<Endpoint>>,
    /// Addresses that are no known pod's pass too: nothing is enforced for a while.
    pub lifted: bool,
}

impl Effective {
    /// The local pods that own at least one address, by name.
    pub fn pods(&self) -> &OrdMap<ObjectName, Arc<EffectivePod>> {
        &self.pods
    }

    /// The addresses of all local pods, and whose each is.
    pub fn local(&self) -> &OrdMap<IpAddr, ObjectName> {
        &self.local
    }

    /// The local pod that has an address.
    pub fn pod_at(&self, address: IpAddr) -> Option<&Arc<EffectivePod>> {
        self.pods.get(self.local.get(&address)?)
    }

    /// Puts a pod in the place of the one of its name.
    pub fn insert(&mut self, pod: Arc<EffectivePod>) {
        let old = self.pods.insert(pod.name.clone(), Arc::clone(&pod));
        // What stays is not written again, so that it stays shared.
        if old.as_ref().is_some_and(|old| old.addresses == pod.addresses) {
            return;
        }
        self.forget_addresses(old.as_deref());
        for address in &pod.addresses {
            self.local.insert(*address, pod.name.clone());
        }
    }

    /// Takes a pod out.
    pub fn remove(&mut self, name: &ObjectName) -> Option<Arc<EffectivePod>> {
        let pod = self.pods.remove(name);
        self.forget_addresses(pod.as_deref());
        pod
    }

    fn forget_addresses(&mut self, pod: Option<&EffectivePod>) {
        for (address, name) in pod.iter().flat_map(|pod| pod.addresses.iter().map(move |address| (address, &pod.name)))
        {
            if self.local.get(address) == Some(name) {
                self.local.remove(address);
            }
        }
    }
}

/// These pods, and no set.
impl FromIterator<EffectivePod> for Effective {
    fn from_iter<I: IntoIterator<Item = EffectivePod>>(pods: I) -> Self {
        let mut effective = Self::default();
        for pod in pods {
            effective.insert(Arc::new(pod));
        }
        effective
    }
}

/// A local pod and what holds for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EffectivePod {
    /// Namespace and name.
    pub name: ObjectName,
    /// The addresses it owns (see "one address, two pods" in the semantics), sorted.
    pub addresses: Vec<IpAddr>,
    /// Connections to it.
    pub ingress: Isolation,
    /// Connections from it.
    pub egress: Isolation,
}

impl EffectivePod {
    /// What holds in a direction.
    pub fn isolation(&self, direction: Direction) -> &Isolation {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

/// What holds for one direction of one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Isolation {
    /// What happens to a connection that no rule decides.
    pub default: Fallback,
    /// The policies that make it so, sorted: those that isolate, or those that would (audit).
    pub policies: Vec<ObjectName>,
    /// The rules, in the order they are walked: by tier, then by policy, then by place. Pods for which a rule says the
    /// same share it.
    pub rules: Vec<Arc<EffectiveRule>>,
}

/// What happens to a connection of a direction that no rule decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fallback {
    /// Not isolated: it passes.
    #[default]
    Open,
    /// Isolated: it is dropped.
    Deny,
    /// Only audited policies select the pod: it passes and is counted as would-drop.
    Audit,
}

/// A rule with everything resolved that the node knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EffectiveRule {
    /// What it is known by.
    pub identity: Arc<RuleIdentity>,
    /// Its place in the policy's list, from 0: shown, never a key.
    pub index: usize,
    /// Its tier.
    pub tier: Tier,
    /// What it does.
    pub action: Action,
    /// What it matches: any of these; empty matches nothing.
    pub matches: Vec<RuleMatch>,
}

/// One alternative of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RuleMatch {
    /// The other side's address AND the destination port.
    Peer(PeerMatch, PortMatch),
    /// The destination's address, protocol and port are in this set (egress by port name).
    Endpoint(Arc<EndpointKey>),
}

/// The other side's address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerMatch {
    /// Any.
    Any,
    /// In the set of that peer, [`Effective::peers`].
    Pods(Arc<PodPeer>),
    /// In one of these disjoint, sorted prefixes (the union of the rule's ipBlocks).
    Blocks(Vec<IpNetwork>),
}

/// The destination port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PortMatch {
    /// Any port of any protocol, ICMP too.
    Any,
    /// Any port of this protocol.
    All(Protocol),
    /// One of these disjoint, sorted, non-adjacent ranges of this protocol; never empty.
    Ranges(Protocol, Vec<RangeInclusive<u16>>),
}

impl Ord for PortMatch {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let rank = |port: &Self| match port {
            Self::Any => (0, None, Vec::new()),
            Self::All(protocol) => (1, Some(*protocol), Vec::new()),
            Self::Ranges(protocol, ranges) => {
                (2, Some(*protocol), ranges.iter().map(|range| (*range.start(), *range.end())).collect())
            }
        };
        rank(self).cmp(&rank(other))
    }
}

impl PartialOrd for PortMatch {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Destinations by port name: which pods, and what they call the port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointKey {
    /// Which addresses of pods.
    pub peer: PeerMatch,
    /// The protocol of the named port.
    pub protocol: Protocol,
    /// Its name.
    pub port: String,
}

/// The canonical text, for comments and identities.
impl fmt::Display for EndpointKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} of ", self.protocol.name(), self.port)?;
        match &self.peer {
            PeerMatch::Any => f.write_str("all pods"),
            PeerMatch::Pods(pods) => write!(f, "{pods}"),
            PeerMatch::Blocks(blocks) => {
                let blocks: Vec<String> = blocks.iter().map(ToString::to_string).collect();
                write!(f, "pods within {}", blocks.join(", "))
            }
        }
    }
}
