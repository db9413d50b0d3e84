//! The policies in effect, found by the pods they select, with rules made ready once.
//!
//! In: policies and which namespaces are audited. Out: what holds for a subject. What always holds: policies that enforce
//! hide those that are audited, by pod and direction; an edit of a policy leaves alone the rules it did not edit.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::rules::{PreparedRule, prepare};
use super::selectors::Selectors;
use super::{EffectivePod, Fallback, Isolation};
use crate::index::Subject;
use crate::object::{Mode, ObjectName, Pod};
use crate::policy::{Direction, Policy};

/// All policies, by namespace.
#[derive(Debug, Default)]
pub(super) struct Policies {
    namespaces: HashMap<Arc<str>, OfNamespace>,
}

/// The policies of a namespace.
#[derive(Debug, Default)]
struct OfNamespace {
    /// All of them are audited.
    audited: bool,
    by_subject: Selectors<Arc<str>>,
    by_name: BTreeMap<Arc<str>, Held>,
}

/// A policy, and its rules once a pod of this node was selected.
#[derive(Debug)]
struct Held {
    policy: Arc<Policy>,
    ready: Option<Ready>,
}

/// The rules of a policy, ready for all pods of its namespace.
#[derive(Debug, Default)]
struct Ready {
    ingress: Option<Vec<PreparedRule>>,
    egress: Option<Vec<PreparedRule>>,
}

impl Policies {
    /// Another policy, or none, has the name; which one had it before.
    pub(super) fn replace(&mut self, name: &ObjectName, policy: Option<&Arc<Policy>>) -> Option<Arc<Policy>> {
        if !self.namespaces.contains_key(&name.namespace) {
            self.namespaces.insert(name.namespace.clone(), OfNamespace::default());
        }
        let own = self.namespaces.get_mut(&name.namespace)?;
        let old = own.by_name.remove(&name.name);
        if let Some(old) = &old {
            own.by_subject.remove(&old.policy.subject, &name.name);
        }
        let (old, ready) = old.map(|held| (held.policy, held.ready)).unzip();
        if let Some(policy) = policy {
            own.by_subject.insert(&policy.subject, &name.name);
            let ready = ready.flatten().map(|ready| Ready::new(policy, ready));
            own.by_name.insert(name.name.clone(), Held { policy: Arc::clone(policy), ready });
        }
        self.forget_empty(&name.namespace);
        old
    }

    /// Whether all policies of a namespace are audited; whether that is news.
    pub(super) fn audit(&mut self, namespace: &str, audited: bool) -> bool {
        let was = self.namespaces.get(namespace).is_some_and(|own| own.audited);
        if was != audited {
            self.namespaces.entry(namespace.into()).or_default().audited = audited;
            self.forget_empty(namespace);
        }
        was != audited
    }

    /// There is no subject in the namespace any more: its rules need not be ready.
    pub(super) fn rest(&mut self, namespace: &str) {
        for held in self.namespaces.get_mut(namespace).into_iter().flat_map(|own| own.by_name.values_mut()) {
            held.ready = None;
        }
    }

    fn forget_empty(&mut self, namespace: &str) {
        if self.namespaces.get(namespace).is_some_and(|own| own.by_name.is_empty() && !own.audited) {
            self.namespaces.remove(namespace);
        }
    }

    /// What holds for a subject.
    pub(super) fn effective_pod(&mut self, subject: &Subject<'_>) -> EffectivePod {
        let mut drafts = Drafts::default();
        if let Some(own) = self.namespaces.get_mut(&subject.pod.name.namespace) {
            let names: BTreeSet<Arc<str>> = own.by_subject.candidates(&subject.pod.labels).cloned().collect();
            for name in names {
                if let Some(held) = own.by_name.get_mut(&name) {
                    drafts.add(held, own.audited, subject.pod);
                }
            }
        }
        EffectivePod {
            name: subject.pod.name.clone(),
            addresses: subject.addresses.clone(),
            ingress: drafts.ingress.isolation(),
            egress: drafts.egress.isolation(),
        }
    }
}

impl Ready {
    /// With the rules of before where they are the same.
    fn new(policy: &Policy, before: Self) -> Self {
        let rules = |direction, before: Option<Vec<PreparedRule>>| {
            let rules = policy.rules(direction)?;
            Some(prepare(&policy.name, direction, rules, before.unwrap_or_default()))
        };
        Self { ingress: rules(Direction::Ingress, before.ingress), egress: rules(Direction::Egress, before.egress) }
    }
}

/// What policies say of a pod.
#[derive(Default)]
struct Drafts {
    ingress: Draft,
    egress: Draft,
}

/// The same for one direction, by mode.
#[derive(Default)]
struct Draft {
    enforced: Isolation,
    audited: Isolation,
}

impl Drafts {
    fn add(&mut self, held: &mut Held, audited: bool, pod: &Pod) {
        let Held { policy, ready } = held;
        if !policy.subject.matches(&pod.labels) {
            return;
        }
        let mode = if audited { Mode::Audit } else { policy.mode };
        let ready = ready.get_or_insert_with(|| Ready::new(policy, Ready::default()));
        for (draft, rules) in [(&mut self.ingress, &mut ready.ingress), (&mut self.egress, &mut ready.egress)] {
            if let Some(rules) = rules {
                draft.add(mode, &policy.name, rules.iter_mut().map(|rule| rule.for_pod(pod)));
            }
        }
    }
}

impl Draft {
    fn add(&mut self, mode: Mode, policy: &ObjectName, rules: impl Iterator<Item = Arc<super::EffectiveRule>>) {
        let isolation = match mode {
            Mode::Enforce => &mut self.enforced,
            Mode::Audit => &mut self.audited,
        };
        isolation.policies.push(policy.clone());
        isolation.rules.extend(rules);
    }

    /// The enforced policies decide; where there are none, the audited ones say what they would do.
    fn isolation(self) -> Isolation {
        if !self.enforced.policies.is_empty() {
            return Isolation { default: Fallback::Deny, ..self.enforced };
        }
        if !self.audited.policies.is_empty() {
            return Isolation { default: Fallback::Audit, ..self.audited };
        }
        Isolation::default()
    }
}
