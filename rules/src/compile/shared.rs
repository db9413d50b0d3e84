//! What pods share: sets, the counters of rules that decide without accepting, and what allows.
//!
//! In: what [`super::pod`] names and gives back, and which sets of addresses are others now. Out: the contributions that come and go. What
//! always holds: each is made once, however many rules of however many pods name it.

use std::sync::Arc;

use super::allow::Allows;
use super::part::Part;
use super::pod::Named;
use super::registry::Registry;
use super::{CounterMeaning, Pending, sets};
use crate::effective::{Effective, EffectiveRule, RuleIdentity};
use crate::ruleset::Name;

/// All of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Shared {
    sets: Registry<sets::Key, (Name, Part)>,
    decided: Registry<Arc<RuleIdentity>, (Name, Part)>,
    pub(super) allows: Allows,
}

impl Shared {
    /// The name of a set.
    pub(super) fn set(&mut self, key: &sets::Key, effective: &Effective, pending: &mut Pending) -> Name {
        let (name, _) = self.sets.name(key, || come(set_part(key, effective), pending));
        name.clone()
    }

    /// The name of the counter of a rule that denies or passes on, and what to give back for it.
    pub(super) fn decided(&mut self, rule: &EffectiveRule, pending: &mut Pending) -> (Name, Arc<RuleIdentity>) {
        let (name, _) = self.decided.name(&rule.identity, || come(decided_part(rule), pending));
        (name.clone(), Arc::clone(&rule.identity))
    }

    /// One that named these does no more.
    pub(super) fn release(&mut self, named: &Named, pending: &mut Pending) {
        for key in &named.sets {
            pending.take_out.extend(self.sets.release(key).map(|(_, part)| part));
        }
        for key in &named.decided {
            pending.take_out.extend(self.decided.release(key).map(|(_, part)| part));
        }
        for key in &named.allows {
            self.allows.release(key, pending);
        }
    }

    /// What a set is named for is other addresses now.
    pub(super) fn refresh(&mut self, key: &sets::Key, effective: &Effective, pending: &mut Pending) {
        if let Some(entry) = self.sets.get_mut(key) {
            *entry = come(set_part(key, effective), pending);
        }
    }
}

fn come((name, part): (Name, Part), pending: &mut Pending) -> (Name, Part) {
    pending.put_in.push(part.clone());
    (name, part)
}

fn set_part(key: &sets::Key, effective: &Effective) -> (Name, Part) {
    let (name, set) = sets::make(key, effective);
    let mut part = Part::default();
    part.set(name.clone(), set);
    (name, part)
}

fn decided_part(rule: &EffectiveRule) -> (Name, Part) {
    let EffectiveRule { identity, index, action, .. } = rule;
    let meaning = CounterMeaning::Rule { identity: Arc::clone(identity), index: *index, action: *action };
    let text = format!("{} {}", identity.direction, identity.content());
    let mut part = Part::default();
    let name = part.counter(("rule", &identity.text(), &identity.policy.to_string()), &text, meaning);
    (name, part)
}
