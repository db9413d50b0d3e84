//! The policies in effect, and how many there are of each kind.
//!
//! In: policies that came and went, namespaces that are audited. Out: policies by name, [`PolicyCounts`]. What always
//! holds: a policy is there, or kept for a namespace that is going, never both; the counts are those of all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::object::{Mode, ObjectName};
use crate::policy::Policy;

/// Policies by what they do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyCounts {
    enforced: usize,
    audited: usize,
    refused: usize,
}

impl PolicyCounts {
    /// Each number with its word.
    pub fn modes(self) -> [(&'static str, usize); 3] {
        [("enforced", self.enforced), ("audited", self.audited), ("refused", self.refused)]
    }
}

/// All policies in effect.
#[derive(Clone, Debug, Default)]
pub(super) struct Policies {
    present: BTreeMap<ObjectName, Arc<Policy>>,
    /// Deleted from a namespace that is going.
    going: BTreeMap<ObjectName, Arc<Policy>>,
    audited: BTreeSet<Arc<str>>,
    counts: PolicyCounts,
}

impl Policies {
    /// All, those that are kept last.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.present.values().chain(self.going.values())
    }

    /// Those in the API.
    pub(super) fn present(&self) -> &BTreeMap<ObjectName, Arc<Policy>> {
        &self.present
    }

    /// The one of this name.
    pub(super) fn get(&self, name: &ObjectName) -> Option<&Arc<Policy>> {
        self.present.get(name).or_else(|| self.going.get(name))
    }

    /// How many there are.
    pub(super) fn counts(&self) -> PolicyCounts {
        self.counts
    }

    /// Whether that is another one than before.
    pub(super) fn insert(&mut self, policy: Policy) -> bool {
        let name = policy.name.clone();
        let kept = self.going.remove(&name);
        let policy = Arc::new(policy);
        *self.count(&policy) += 1;
        let old = self.present.insert(name, Arc::clone(&policy)).or(kept);
        if let Some(old) = &old {
            *self.count(old) -= 1;
        }
        old.is_none_or(|old| old != policy)
    }

    /// Whether it was in the API and has no effect any more.
    pub(super) fn remove(&mut self, name: &ObjectName, keep: bool) -> bool {
        let Some(policy) = self.present.remove(name) else { return false };
        if keep {
            self.going.insert(name.clone(), policy);
        } else {
            *self.count(&policy) -= 1;
        }
        !keep
    }

    /// Whether there are deleted ones.
    pub(super) fn keeps_any(&self) -> bool {
        !self.going.is_empty()
    }

    /// Forgets the deleted ones of a namespace.
    pub(super) fn forget(&mut self, namespace: &str) -> Vec<ObjectName> {
        let names: Vec<ObjectName> = in_namespace(&self.going, namespace).map(|policy| policy.name.clone()).collect();
        for name in &names {
            if let Some(policy) = self.going.remove(name) {
                *self.count(&policy) -= 1;
            }
        }
        names
    }

    /// All of a namespace are audited, or none but those that say so themselves.
    pub(super) fn audit(&mut self, namespace: &str, audited: bool) {
        if self.audited.contains(namespace) == audited {
            return;
        }
        let own: Vec<Arc<Policy>> =
            in_namespace(&self.present, namespace).chain(in_namespace(&self.going, namespace)).cloned().collect();
        for policy in &own {
            *self.count(policy) -= 1;
        }
        if audited {
            self.audited.insert(namespace.into());
        } else {
            self.audited.remove(namespace);
        }
        for policy in &own {
            *self.count(policy) += 1;
        }
    }

    fn count(&mut self, policy: &Policy) -> &mut usize {
        match (&policy.refusal, policy.mode) {
            (Some(_), _) => &mut self.counts.refused,
            (None, Mode::Enforce) if !self.audited.contains(&policy.name.namespace) => &mut self.counts.enforced,
            (None, _) => &mut self.counts.audited,
        }
    }
}

/// The policies of a namespace; a map by name keeps them side by side.
fn in_namespace<'a>(
    policies: &'a BTreeMap<ObjectName, Arc<Policy>>,
    namespace: &str,
) -> impl Iterator<Item = &'a Arc<Policy>> {
    let own = move |(name, _): &(&ObjectName, &Arc<Policy>)| *name.namespace == *namespace;
    policies.range(ObjectName::new(namespace, "")..).take_while(own).map(|(_, policy)| policy)
}
