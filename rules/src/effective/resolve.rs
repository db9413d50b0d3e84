//! From peers to addresses.
//!
//! In: the index. Out: the addresses a peer selects, the destinations behind a port's name. What always holds: only
//! pods that count as peers are found (not terminal, not on the host's network, not gone from the API), each with the
//! addresses it owns; a pod of a namespace that is not known matches no namespaceSelector.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::ops::Range;

use imbl::OrdSet;

use super::{Addresses, Endpoint, EndpointKey, PeerMatch};
use crate::index::Index;
use crate::object::{Labels, Lifetime, Pod, Protocol};
use crate::policy::{Namespaces, Operator, PodPeer, Selector};

/// Answers which addresses are meant; built for one evaluation.
pub(super) struct Resolver<'a> {
    /// By namespace and name.
    pods: Vec<Candidate<'a>>,
    by_label: LabelIndex<'a>,
    by_namespace: HashMap<&'a str, Range<usize>>,
    by_port: HashMap<(Protocol, &'a str), Vec<usize>>,
    namespaces: LabelIndex<'a>,
    namespace_names: Vec<&'a str>,
}

/// A pod that can be a peer.
struct Candidate<'a> {
    pod: &'a Pod,
    addresses: Vec<IpAddr>,
}

impl<'a> Resolver<'a> {
    /// Sorts the index's pods by what peers ask for.
    pub(super) fn new(index: &'a Index) -> Self {
        let pods: Vec<Candidate<'a>> = index
            .pods()
            .filter(|pod| !pod.host_network && pod.lifetime == Lifetime::Live)
            .map(|pod| Candidate { pod, addresses: index.owned_addresses(pod) })
            .collect();
        let mut by_namespace: HashMap<&str, Range<usize>> = HashMap::new();
        let mut by_port: HashMap<(Protocol, &str), Vec<usize>> = HashMap::new();
        for (position, Candidate { pod, .. }) in pods.iter().enumerate() {
            by_namespace.entry(&pod.name.namespace).or_insert(position..position).end = position + 1;
            for port in &pod.ports {
                by_port.entry((port.protocol, &port.name)).or_default().push(position);
            }
        }
        Self {
            by_label: LabelIndex::new(pods.iter().map(|candidate| &candidate.pod.labels).collect()),
            pods,
            by_namespace,
            by_port,
            namespaces: LabelIndex::new(index.namespaces().map(|namespace| &namespace.labels).collect()),
            namespace_names: index.namespaces().map(|namespace| namespace.name.as_str()).collect(),
        }
    }

    /// The addresses of the pods a peer selects.
    pub(super) fn addresses(&self, peer: &PodPeer) -> Addresses {
        self.select(peer).into_iter().flat_map(|position| &self.pods[position].addresses).copied().collect()
    }

    /// The destinations behind a port's name.
    pub(super) fn endpoints(&self, key: &EndpointKey) -> OrdSet<Endpoint> {
        let positions = match &key.peer {
            PeerMatch::Pods(peer) => Cow::Owned(self.select(peer)),
            PeerMatch::Any | PeerMatch::Blocks(_) => {
                Cow::Borrowed(self.by_port.get(&(key.protocol, key.port.as_str())).map_or(&[][..], Vec::as_slice))
            }
        };
        let is_meant = |address: &IpAddr| match &key.peer {
            PeerMatch::Blocks(blocks) => blocks.iter().any(|block| block.contains(*address)),
            PeerMatch::Any | PeerMatch::Pods(_) => true,
        };
        let mut found = OrdSet::new();
        for Candidate { pod, addresses } in positions.iter().map(|position| &self.pods[*position]) {
            for number in pod.port_numbers(key.protocol, &key.port) {
                let meant = addresses.iter().copied().filter(is_meant);
                found.extend(meant.map(|address| Endpoint { address, protocol: key.protocol, port: number }));
            }
        }
        found
    }

    /// The positions of the pods a peer selects, by the shorter way: through the namespaces or through the labels.
    fn select(&self, peer: &PodPeer) -> Vec<usize> {
        let namespaces: HashSet<&str> = match &peer.namespaces {
            Namespaces::Named(name) => HashSet::from([name.as_str()]),
            Namespaces::Matching(selector) => {
                self.namespaces.select(selector).into_iter().map(|position| self.namespace_names[position]).collect()
            }
        };
        let ranges: Vec<Range<usize>> =
            namespaces.iter().filter_map(|namespace| self.by_namespace.get(namespace).cloned()).collect();
        if ranges.iter().map(ExactSizeIterator::len).sum::<usize>() <= self.by_label.effort(&peer.pods) {
            let labels = |position: &usize| peer.pods.matches(&self.pods[*position].pod.labels);
            return ranges.into_iter().flatten().filter(labels).collect();
        }
        let mut selected = self.by_label.select(&peer.pods);
        selected.retain(|position| namespaces.contains(self.pods[*position].pod.name.namespace.as_str()));
        selected
    }
}

/// Finds the objects whose labels a selector matches without asking each of them.
struct LabelIndex<'a> {
    labels: Vec<&'a Labels>,
    positions: HashMap<&'a str, HashMap<&'a str, Vec<usize>>>,
}

impl<'a> LabelIndex<'a> {
    fn new(labels: Vec<&'a Labels>) -> Self {
        let mut positions: HashMap<&str, HashMap<&str, Vec<usize>>> = HashMap::new();
        for (position, labels) in labels.iter().enumerate() {
            for (key, value) in labels.iter() {
                positions.entry(key).or_default().entry(value).or_default().push(position);
            }
        }
        Self { labels, positions }
    }

    /// How many objects [`LabelIndex::select`] looks at.
    fn effort(&self, selector: &Selector) -> usize {
        self.narrowest(selector).map_or(self.labels.len(), |(_, effort)| effort)
    }

    fn select(&self, selector: &Selector) -> Vec<usize> {
        let matches = |position: &usize| selector.matches(self.labels[*position]);
        match self.narrowest(selector) {
            Some(((key, values), _)) => {
                values.iter().flat_map(|value| self.having(key, value)).copied().filter(matches).collect()
            }
            None => (0..self.labels.len()).filter(matches).collect(),
        }
    }

    /// The `In` requirement that the fewest objects satisfy, and how many they are.
    fn narrowest<'s>(&self, selector: &'s Selector) -> Option<((&'s str, &'s [String]), usize)> {
        selector
            .requirements
            .iter()
            .filter_map(|requirement| match &requirement.operator {
                Operator::In(values) => Some((requirement.key.as_str(), values.as_slice())),
                Operator::NotIn(_) | Operator::Exists | Operator::DoesNotExist => None,
            })
            .map(|(key, values)| ((key, values), values.iter().map(|value| self.having(key, value).len()).sum()))
            .min_by_key(|(_, effort)| *effort)
    }

    fn having(&self, key: &str, value: &str) -> &[usize] {
        self.positions.get(key).and_then(|values| values.get(value)).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Requirement;

    fn selector(requirements: &[(&str, &[&str])]) -> Selector {
        let values = |values: &[&str]| Operator::In(values.iter().map(|value| (*value).to_owned()).collect());
        let requirement = |(key, of): &(&str, &[&str])| Requirement { key: (*key).to_owned(), operator: values(of) };
        Selector::new(requirements.iter().map(requirement).collect())
    }

    #[test]
    fn only_what_the_narrowest_requirement_names_is_looked_at() {
        let labels = |app: &str, tier: &str| Labels::from_iter([("app", app), ("tier", tier)]);
        let objects = [labels("a", "x"), labels("a", "y"), labels("b", "x"), labels("c", "x")];
        let index = LabelIndex::new(objects.iter().collect());
        for (selector, effort, found) in [
            (selector(&[]), 4, vec![0, 1, 2, 3]),
            (selector(&[("app", &["a"])]), 2, vec![0, 1]),
            (selector(&[("tier", &["x"]), ("app", &["a"])]), 2, vec![0]),
            (selector(&[("tier", &["x", "y"]), ("app", &["a", "b"])]), 3, vec![0, 1, 2]),
            (selector(&[("app", &["z"])]), 0, vec![]),
            (selector(&[("none", &["a"]), ("app", &["a"])]), 0, vec![]),
        ] {
            assert_eq!((index.effort(&selector), index.select(&selector)), (effort, found), "{selector}");
        }
    }
}
