//! Which sets are asked for, and which of them speak of given pods.
//!
//! In: the sets that rules name. Out: those that hold the addresses of pods of a namespace with given labels and ports.
//! What always holds: a set speaks of a pod exactly when its selectors match and, where it is about a port's name, the pod
//! has such a port; a pod of a namespace that is not known matches no namespace selector.

use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use super::selectors::Selectors;
use super::{Addresses, Effective, Endpoint, EndpointKey, PeerMatch, RuleMatch};
use crate::object::{Labels, NamedPort, Pod};
use crate::policy::{Namespaces, PodPeer, Selector};

/// What pods are the same for every set, but for their namespace and addresses. The index keeps equal labels and ports of
/// its pods once, so that where they stand in memory says what they are.
#[derive(Clone, Debug)]
pub(super) struct Kind {
    labels: Labels,
    ports: Arc<[NamedPort]>,
}

impl Kind {
    /// That of a pod.
    pub(super) fn of(pod: &Pod) -> Self {
        Self { labels: pod.labels.clone(), ports: Arc::clone(&pod.ports) }
    }
}

impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        self.labels.place() == other.labels.place() && Arc::ptr_eq(&self.ports, &other.ports)
    }
}

impl Eq for Kind {}

impl Hash for Kind {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.labels.place().hash(state);
        Arc::as_ptr(&self.ports).cast::<NamedPort>().hash(state);
    }
}

/// A set that rules name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum SetKey {
    Peer(Arc<PodPeer>),
    Endpoint(Arc<EndpointKey>),
}

impl SetKey {
    /// The set that an alternative of a rule names.
    pub(super) fn of(alternative: &RuleMatch) -> Option<Self> {
        match alternative {
            RuleMatch::Peer(PeerMatch::Pods(peer), _) => Some(Self::Peer(Arc::clone(peer))),
            RuleMatch::Peer(PeerMatch::Any | PeerMatch::Blocks(_), _) => None,
            RuleMatch::Endpoint(key) => Some(Self::Endpoint(Arc::clone(key))),
        }
    }

    /// The pods it speaks of; `None` for all, whatever is known of their namespaces.
    pub(super) fn pods(&self) -> Option<&PodPeer> {
        match self {
            Self::Peer(peer) => Some(peer),
            Self::Endpoint(key) => match &key.peer {
                PeerMatch::Pods(peer) => Some(peer),
                PeerMatch::Any | PeerMatch::Blocks(_) => None,
            },
        }
    }

    /// Whether it speaks of a kind of pods, where their namespace is one it speaks of.
    pub(super) fn matches(&self, kind: &Kind) -> bool {
        self.pods().is_none_or(|peer| peer.pods.matches(&kind.labels))
            && match self {
                Self::Peer(_) => true,
                Self::Endpoint(key) => kind.ports.iter().any(|port| is_meant(key, port)),
            }
    }

    /// Whether it holds the same of pods of both kinds.
    fn holds_alike(&self, one: &Kind, other: &Kind) -> bool {
        matches!(self, Self::Peer(_)) || Arc::ptr_eq(&one.ports, &other.ports)
    }

    /// Puts an address of a pod of this kind in.
    pub(super) fn insert(&self, effective: &mut Effective, kind: &Kind, address: IpAddr) {
        match self {
            Self::Peer(peer) => {
                if let Some(addresses) = effective.peers.get_mut(peer) {
                    addresses.insert(address);
                }
            }
            Self::Endpoint(key) => {
                let found = endpoints(key, kind, address);
                if let Some(endpoints) = found.is_some().then(|| effective.endpoints.get_mut(key)).flatten() {
                    endpoints.extend(found.into_iter().flatten());
                }
            }
        }
    }

    /// Takes an address of a pod of this kind out.
    pub(super) fn remove(&self, effective: &mut Effective, kind: &Kind, address: IpAddr) {
        match self {
            Self::Peer(peer) => {
                if let Some(addresses) = effective.peers.get_mut(peer) {
                    addresses.remove(address);
                }
            }
            Self::Endpoint(key) => {
                let Some(found) = endpoints(key, kind, address) else { return };
                let Some(endpoints) = effective.endpoints.get_mut(key) else { return };
                for endpoint in found {
                    endpoints.remove(&endpoint);
                }
            }
        }
    }

    /// Makes the set, of these pods' addresses.
    pub(super) fn make<'a>(&self, effective: &mut Effective, pods: impl Iterator<Item = (&'a Kind, &'a [IpAddr])>) {
        match self {
            Self::Peer(peer) => {
                let mut found: Vec<IpAddr> = pods.flat_map(|(_, addresses)| addresses).copied().collect();
                found.sort_unstable();
                effective.peers.insert(Arc::clone(peer), Addresses::from_iter(found));
            }
            Self::Endpoint(key) => {
                let each = |(kind, addresses): (&'a Kind, &'a [IpAddr])| {
                    addresses.iter().filter_map(|address| endpoints(key, kind, *address)).flatten().collect::<Vec<_>>()
                };
                let mut found: Vec<Endpoint> = pods.flat_map(each).collect();
                found.sort_unstable();
                effective.endpoints.insert(Arc::clone(key), found.into_iter().collect());
            }
        }
    }

    /// Throws the set away.
    pub(super) fn unmake(&self, effective: &mut Effective) {
        match self {
            Self::Peer(peer) => drop(effective.peers.remove(peer)),
            Self::Endpoint(key) => drop(effective.endpoints.remove(key)),
        }
    }
}

fn is_meant(key: &EndpointKey, port: &NamedPort) -> bool {
    port.protocol == key.protocol && port.name == key.port
}

/// The destinations behind a port's name at an address; `None` where the address is not one of those the key names.
fn endpoints(key: &EndpointKey, kind: &Kind, address: IpAddr) -> Option<Vec<Endpoint>> {
    let is_named = match &key.peer {
        PeerMatch::Blocks(blocks) => blocks.iter().any(|block| block.contains(address)),
        PeerMatch::Any | PeerMatch::Pods(_) => true,
    };
    let ports = kind.ports.iter().filter(|port| is_meant(key, port));
    let endpoint = |port: &NamedPort| Endpoint { address, protocol: key.protocol, port: port.number };
    is_named.then(|| ports.map(endpoint).collect())
}

/// The sets that differ for an address that is another pod's now: those it leaves, and those it comes into.
pub(super) fn differing(
    (old, left): (&Kind, Vec<SetKey>),
    (new, joined): (&Kind, Vec<SetKey>),
) -> (Vec<SetKey>, Vec<SetKey>) {
    let stay: HashSet<SetKey> = {
        let joined: HashSet<&SetKey> = joined.iter().collect();
        left.iter().filter(|key| joined.contains(key) && key.holds_alike(old, new)).cloned().collect()
    };
    let differ = |keys: Vec<SetKey>| keys.into_iter().filter(|key| !stay.contains(key)).collect();
    (differ(left), differ(joined))
}

/// The sets that rules name, by what they ask of a pod's namespace and labels.
#[derive(Debug, Default)]
pub(super) struct Asked {
    named: HashMap<String, Selectors<SetKey>>,
    /// The namespace selectors there are.
    selectors: Selectors<Selector>,
    matching: HashMap<Selector, Selectors<SetKey>>,
    everywhere: Vec<SetKey>,
}

impl Asked {
    /// Adds a set.
    pub(super) fn insert(&mut self, key: &SetKey) {
        let Some(peer) = key.pods() else {
            self.everywhere.push(key.clone());
            return;
        };
        match &peer.namespaces {
            Namespaces::Named(name) => self.named.entry(name.clone()).or_default().insert(&peer.pods, key),
            Namespaces::Matching(selector) => {
                if !self.matching.contains_key(selector) {
                    self.selectors.insert(selector, selector);
                }
                self.matching.entry(selector.clone()).or_default().insert(&peer.pods, key);
            }
        }
    }

    /// Takes a set out.
    pub(super) fn remove(&mut self, key: &SetKey) {
        let Some(peer) = key.pods() else {
            self.everywhere.retain(|other| other != key);
            return;
        };
        match &peer.namespaces {
            Namespaces::Named(name) => {
                let Some(sets) = self.named.get_mut(name) else { return };
                sets.remove(&peer.pods, key);
                if sets.is_empty() {
                    self.named.remove(name);
                }
            }
            Namespaces::Matching(selector) => {
                let Some(sets) = self.matching.get_mut(selector) else { return };
                sets.remove(&peer.pods, key);
                if sets.is_empty() {
                    self.matching.remove(selector);
                    self.selectors.remove(selector, selector);
                }
            }
        }
    }

    /// The sets that speak of a kind of pods; of the namespace its name and, where it is known, its labels.
    pub(super) fn about(&self, (name, labels): (&str, Option<&Labels>), kind: &Kind) -> Vec<SetKey> {
        let own = self.named.get(name);
        let known = labels
            .into_iter()
            .flat_map(|labels| self.selectors.candidates(labels).filter(|selector| selector.matches(labels)));
        let others = known.filter_map(|selector| self.matching.get(selector));
        let sets = own.into_iter().chain(others).flat_map(|sets| sets.candidates(&kind.labels));
        sets.chain(&self.everywhere).filter(|key| key.matches(kind)).cloned().collect()
    }
}
