//! The evaluation: from all that is known to what holds on this node, patched for what each change touches.
//!
//! In: changes. Out: [`Effective`] values. What always holds: the value is the one that an evaluation of the same index
//! from nothing gives; what no change touched is the same value in the same memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::policies::Policies;
use super::population::Population;
use super::{Effective, EffectivePod, EffectiveRule};
use crate::index::{Change, Index, Touched};
use crate::object::{Labels, Mode, ObjectName};

/// What holds on the node of the index.
pub fn evaluate(index: &Index) -> Effective {
    let mut state = State::default();
    state.note(index, index.everything());
    state.settle(index)
}

/// An index, and what holds by it.
#[derive(Debug, Default)]
pub struct Evaluator {
    index: Index,
    state: State,
}

impl Evaluator {
    /// That of this index.
    pub fn new(index: Index) -> Self {
        let mut state = State::default();
        state.note(&index, index.everything());
        Self { index, state }
    }

    /// What is known.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Takes in what happened; whether policy can see a difference.
    pub fn apply(&mut self, change: Change) -> bool {
        let (changed, touched) = self.index.touch(change);
        self.state.note(&self.index, touched);
        changed
    }

    /// What holds now.
    pub fn effective(&mut self) -> Effective {
        self.state.settle(&self.index)
    }
}

/// What was made of an index so far.
#[derive(Debug, Default)]
struct State {
    population: Population,
    policies: Policies,
    /// The subjects of a name: one, but for ghosts.
    subjects: BTreeMap<ObjectName, Vec<Shown>>,
    /// Names of subjects that may be others.
    touched: BTreeSet<ObjectName>,
    effective: Effective,
}

/// A subject as it was evaluated.
#[derive(Debug)]
struct Shown {
    /// What it is called in [`Effective`].
    name: ObjectName,
    /// By which policies select it.
    labels: Labels,
}

impl State {
    fn note(&mut self, index: &Index, touched: Touched) {
        for name in &touched.namespaces {
            let namespace = index.namespace(name);
            self.population.relabel(&mut self.effective, name, namespace.map(|namespace| &namespace.labels));
            if self.policies.audit(name, namespace.is_some_and(|namespace| namespace.mode == Mode::Audit)) {
                self.touch(name, |_| true);
            }
        }
        for (address, old) in &touched.addresses {
            self.population.moved(&mut self.effective, *address, (old.as_ref(), index.peer_at(*address)));
        }
        for name in &touched.policies {
            let policy = index.policy(name);
            let old = self.policies.replace(name, policy);
            let selectors: Vec<_> = old.iter().chain(policy).map(|policy| &policy.subject).collect();
            self.touch(&name.namespace, |labels| selectors.iter().any(|selector| selector.matches(labels)));
        }
        self.touched.extend(touched.subjects);
    }

    /// The subjects of a namespace with such labels may be others.
    fn touch(&mut self, namespace: &str, which: impl Fn(&Labels) -> bool) {
        let own = self.subjects.range(ObjectName::new(namespace, "")..);
        let own = own.take_while(|(name, _)| *name.namespace == *namespace);
        let which = own.filter(|(_, shown)| shown.iter().any(|shown| which(&shown.labels)));
        self.touched.extend(which.map(|(name, _)| name.clone()));
    }

    /// Evaluates the subjects that were touched.
    fn settle(&mut self, index: &Index) -> Effective {
        // Only when all have what they need: a set that goes from one pod to another stays as it is.
        let mut released = Vec::new();
        for name in std::mem::take(&mut self.touched) {
            self.evaluate_named(index, &name, &mut released);
        }
        for rule in &released {
            self.population.release(&mut self.effective, rule);
        }
        self.effective.clone()
    }

    /// Evaluates the subjects of a name. Where there are several, all but the first are shown as `name~uid`, which no
    /// object of the API can be called: names stay unique on the node.
    fn evaluate_named(&mut self, index: &Index, name: &ObjectName, released: &mut Vec<Arc<EffectiveRule>>) {
        let mut shown = Vec::new();
        for subject in index.subjects_named(name) {
            let mut pod = self.policies.effective_pod(&subject);
            if !shown.is_empty() {
                pod.name.name = format!("{}~{}", name.name, subject.pod.uid).into();
            }
            shown.push(Shown { name: pod.name.clone(), labels: subject.pod.labels.clone() });
            self.put(pod, released);
        }
        for old in self.subjects.remove(name).unwrap_or_default() {
            if shown.iter().all(|shown| shown.name != old.name) {
                released.extend(self.effective.remove(&old.name).iter().flat_map(|pod| rules(pod)).cloned());
            }
        }
        if !shown.is_empty() {
            self.subjects.insert(name.clone(), shown);
        } else if !self.has_subjects(&name.namespace) {
            self.policies.rest(&name.namespace);
        }
    }

    fn put(&mut self, pod: EffectivePod, released: &mut Vec<Arc<EffectiveRule>>) {
        let old = self.effective.pods().get(&pod.name);
        if old.is_some_and(|old| **old == pod) {
            return;
        }
        released.extend(old.iter().flat_map(|pod| rules(pod)).cloned());
        for rule in rules(&pod) {
            self.population.acquire(&mut self.effective, rule);
        }
        self.effective.insert(Arc::new(pod));
    }

    fn has_subjects(&self, namespace: &str) -> bool {
        let first = self.subjects.range(ObjectName::new(namespace, "")..).next();
        first.is_some_and(|(name, _)| *name.namespace == *namespace)
    }
}

fn rules(pod: &EffectivePod) -> impl Iterator<Item = &Arc<EffectiveRule>> {
    pod.ingress.rules.iter().chain(&pod.egress.rules)
}
