//! The evaluation: from all that is known to what holds on this node.
//!
//! In: the index. Out: [`Effective`]. What always holds: policies that enforce hide those that are audited, by pod and
//! direction; a set is resolved once, however many rules name it.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::resolve::Resolver;
use super::rules::{PreparedRule, prepare};
use super::{Effective, EffectivePod, EndpointKey, Fallback, Isolation, PeerMatch, RuleMatch};
use crate::index::{Index, Subject};
use crate::object::{Mode, ObjectName, Pod};
use crate::policy::{Direction, PodPeer, Policy};

/// What holds on the node of the index.
pub fn evaluate(index: &Index) -> Effective {
    let subjects = index.subjects();
    let mut namespaces: BTreeMap<&str, Vec<Prepared<'_>>> = BTreeMap::new();
    let mut pods = Vec::with_capacity(subjects.len());
    for subject in &subjects {
        let namespace = subject.pod.name.namespace.as_str();
        let policies = namespaces.entry(namespace).or_insert_with(|| prepare_namespace(index, namespace));
        pods.push(effective_pod(subject, policies));
    }
    name_apart(&mut pods, &subjects);
    pods.sort_by(|a, b| a.name.cmp(&b.name));
    resolve_sets(index, pods)
}

/// A policy made ready for all pods of its namespace.
struct Prepared<'a> {
    policy: &'a Policy,
    mode: Mode,
    ingress: Option<Vec<PreparedRule>>,
    egress: Option<Vec<PreparedRule>>,
}

impl Prepared<'_> {
    fn rules(&self, direction: Direction) -> Option<&[PreparedRule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

fn prepare_namespace<'a>(index: &'a Index, namespace: &str) -> Vec<Prepared<'a>> {
    let audited = index.namespace(namespace).is_some_and(|namespace| namespace.mode == Mode::Audit);
    let prepare_policy = |policy: &'a Policy| {
        let rules = |direction| policy.rules(direction).map(|rules| prepare(&policy.name, direction, rules));
        Prepared {
            policy,
            mode: if audited { Mode::Audit } else { policy.mode },
            ingress: rules(Direction::Ingress),
            egress: rules(Direction::Egress),
        }
    };
    index.policies_in(namespace).into_iter().map(prepare_policy).collect()
}

fn effective_pod(subject: &Subject<'_>, policies: &[Prepared<'_>]) -> EffectivePod {
    let selecting: Vec<&Prepared<'_>> =
        policies.iter().filter(|prepared| prepared.policy.subject.matches(&subject.pod.labels)).collect();
    EffectivePod {
        name: subject.pod.name.clone(),
        addresses: subject.addresses.clone(),
        ingress: isolation(subject.pod, &selecting, Direction::Ingress),
        egress: isolation(subject.pod, &selecting, Direction::Egress),
    }
}

/// The enforced policies of a direction decide; where there are none, the audited ones say what they would do.
fn isolation(pod: &Pod, selecting: &[&Prepared<'_>], direction: Direction) -> Isolation {
    for (mode, default) in [(Mode::Enforce, Fallback::Deny), (Mode::Audit, Fallback::Audit)] {
        let mut isolation = Isolation { default, ..Isolation::default() };
        for prepared in selecting.iter().filter(|prepared| prepared.mode == mode) {
            if let Some(rules) = prepared.rules(direction) {
                isolation.policies.push(prepared.policy.name.clone());
                isolation.rules.extend(rules.iter().map(|rule| rule.for_pod(pod)));
            }
        }
        if !isolation.policies.is_empty() {
            return isolation;
        }
    }
    Isolation::default()
}

/// A ghost whose name a later pod has is shown as `name~uid`, which no object of the API can be called: names stay
/// unique on the node.
fn name_apart(pods: &mut [EffectivePod], subjects: &[Subject<'_>]) {
    let mut taken: BTreeSet<ObjectName> = BTreeSet::new();
    for (pod, subject) in pods.iter_mut().zip(subjects) {
        if !taken.insert(pod.name.clone()) {
            pod.name.name = format!("{}~{}", pod.name.name, subject.pod.uid);
        }
    }
}

/// Resolves each set that a rule names, once.
fn resolve_sets(index: &Index, pods: Vec<EffectivePod>) -> Effective {
    let mut peers: HashSet<&PodPeer> = HashSet::new();
    let mut endpoints: HashSet<&EndpointKey> = HashSet::new();
    let rules = pods.iter().flat_map(|pod| pod.ingress.rules.iter().chain(&pod.egress.rules));
    for alternative in rules.flat_map(|rule| &rule.matches) {
        match alternative {
            RuleMatch::Peer(PeerMatch::Pods(peer), _) => {
                peers.insert(peer);
            }
            RuleMatch::Peer(PeerMatch::Any | PeerMatch::Blocks(_), _) => {}
            RuleMatch::Endpoint(key) => {
                endpoints.insert(key);
            }
        }
    }
    let resolver = Resolver::new(index);
    let peers = peers.into_iter().map(|peer| (peer.clone(), resolver.addresses(peer))).collect();
    let endpoints = endpoints.into_iter().map(|key| (key.clone(), resolver.endpoints(key))).collect();
    Effective { pods, peers, endpoints, lifted: false }
}
