//! What lets one half of a connection through, and for whom it counts.
//!
//! In: rules that accept, pods where none is needed, and the [`Ids`]. Out: for each a chain that writes the id, the counters behind it. What
//! always holds: such a chain decides nothing and comes back; what has no id has no counters, and writes the id of all without.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use imbl::OrdSet;
use imbl::ordmap::DiffItem;

use super::part::Part;
use super::registry::Registry;
use super::{CounterMeaning, Pending};
use crate::effective::{EffectiveRule, RuleIdentity};
use crate::ids::{COUNTING, Claims, Ids, Origin, OriginNames, RETIRED};
use crate::mark::{NO_ID, id_bits, id_mask};
use crate::names;
use crate::object::ObjectName;
use crate::policy::Direction;
use crate::ruleset::{Chain, Datum, Expr, Name, Rule, Value};

/// What lets a half through.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Owner {
    /// A rule.
    Rule(Arc<RuleIdentity>),
    /// No rule was needed for this pod.
    Default(ObjectName),
}

/// What lets which half through.
pub(super) type Key = (Direction, Owner);

/// One of them.
#[derive(Clone, Debug)]
struct Allow {
    names: OriginNames,
    /// The place of the rule in its policy.
    index: usize,
    part: Part,
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Allows {
    registry: Registry<Key, Allow>,
    claims: Claims,
    by_counter: HashMap<Name, Key>,
    /// Those whose contribution is to be made anew.
    stale: HashSet<Key>,
    ids: Ids,
}

impl Allows {
    /// The chain to go to where a rule accepts, and what to give back for it.
    pub(super) fn rule(&mut self, half: Direction, rule: &EffectiveRule) -> (Name, Key) {
        self.name((half, Owner::Rule(Arc::clone(&rule.identity))), rule.index)
    }

    /// The chain to go to where a pod needs no rule, and what to give back for it.
    pub(super) fn default(&mut self, half: Direction, pod: &ObjectName) -> (Name, Key) {
        self.name((half, Owner::Default(pod.clone())), 0)
    }

    fn name(&mut self, key: Key, index: usize) -> (Name, Key) {
        let Self { registry, claims, by_counter, stale, .. } = self;
        let allow = registry.name(&key, || {
            let names = origin(&key.1).names(key.0);
            claims.insert(key.0, names.counter.clone());
            by_counter.insert(names.counter.clone(), key.clone());
            stale.insert(key.clone());
            Allow { names, index, part: Part::default() }
        });
        if allow.index != index {
            allow.index = index;
            stale.insert(key.clone());
        }
        (allow.names.chain.clone(), key)
    }

    /// One that named it does no more.
    pub(super) fn release(&mut self, key: &Key, pending: &mut Pending) {
        if let Some(allow) = self.registry.release(key) {
            self.claims.remove(key.0, &allow.names.counter);
            self.by_counter.remove(&allow.names.counter);
            self.stale.remove(key);
            pending.take_out.push(allow.part);
        }
    }

    /// Those that want an id.
    pub(super) fn claims(&self) -> &Claims {
        &self.claims
    }

    /// Makes what is new, and what has another id than before.
    pub(super) fn number(&mut self, ids: &Ids, pending: &mut Pending) {
        for half in Direction::BOTH {
            let (before, now) = (self.ids.of(half), ids.of(half));
            for item in before.given.diff(&now.given) {
                let (DiffItem::Add(name, _) | DiffItem::Remove(name, _) | DiffItem::Update { new: (name, _), .. }) =
                    item;
                self.stale.extend(self.by_counter.get(name).cloned());
            }
            pending.take_out.push(retired(half, before.retired.clone().relative_complement(now.retired.clone())));
            pending.put_in.push(retired(half, now.retired.clone().relative_complement(before.retired.clone())));
        }
        self.ids = ids.clone();
        for key in self.stale.drain() {
            if let Some(allow) = self.registry.get_mut(&key) {
                let part = make(&key, allow, ids);
                pending.take_out.push(std::mem::replace(&mut allow.part, part.clone()));
                pending.put_in.push(part);
            }
        }
    }
}

/// Ids that wait.
fn retired(half: Direction, ids: OrdSet<u16>) -> Part {
    let mut part = Part::default();
    ids.into_iter().for_each(|id| part.element(RETIRED, Value::Mark(id_bits(half, id)), Datum::None));
    part
}

fn origin(owner: &Owner) -> Origin<'_> {
    match owner {
        Owner::Rule(identity) => Origin::Rule(identity),
        Owner::Default(pod) => Origin::Default(pod),
    }
}

fn make((half, owner): &Key, allow: &Allow, ids: &Ids) -> Part {
    let mut part = Part::default();
    let bits = ids.bits(*half, &allow.names.counter);
    if let Some(bits) = bits {
        let names = [&allow.names.counter, &allow.names.connections];
        let counted = names.into_iter().zip(COUNTING).zip(meanings(*half, owner, allow.index));
        for ((name, set), meaning) in counted {
            part.counting(set, bits, name.clone(), meaning);
        }
    }
    let stamp = Expr::SetCtMark { keep: !id_mask(*half), value: bits.unwrap_or_else(|| id_bits(*half, NO_ID)) };
    let rules = vec![Rule { exprs: vec![stamp], comment: String::new() }];
    part.chain(allow.names.chain.clone(), Chain { hook: None, comment: names::comment(&text(*half, owner)), rules });
    part
}

fn text(half: Direction, owner: &Owner) -> String {
    match owner {
        Owner::Rule(identity) => format!("{half} {}", identity.content()),
        Owner::Default(pod) => format!("{half} of pod {pod} without a rule"),
    }
}

/// What the counters of packets and of connections mean.
fn meanings(direction: Direction, owner: &Owner, index: usize) -> [CounterMeaning; 2] {
    match owner {
        Owner::Rule(identity) => {
            let action = identity.action;
            [
                CounterMeaning::Rule { identity: Arc::clone(identity), index, action },
                CounterMeaning::RuleConnections { identity: Arc::clone(identity), index, action },
            ]
        }
        Owner::Default(pod) => [
            CounterMeaning::DefaultAllowed { pod: pod.clone(), direction },
            CounterMeaning::DefaultAllowedConnections { pod: pod.clone(), direction },
        ],
    }
}
