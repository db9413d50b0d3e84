//! How two maps by name differ.
//!
//! In: a map as it is and as it shall be. Out: what comes, goes and changes, in the order of the names. What always holds: it costs
//! what the maps do not share.

use imbl::{OrdMap, ordmap::DiffItem};

use crate::ruleset::{Chain, Counter, Name, Set, Table};
use std::sync::Arc;

/// The differences of one map.
#[derive(Debug)]
pub struct Difference<'h, 'w, V> {
    /// What only the wanted map has.
    pub come: Vec<(&'w Name, &'w V)>,
    /// What both have and is not the same: as it is, and as it shall be.
    pub changed: Vec<(&'w Name, &'h V, &'w V)>,
    /// What only the current map has.
    pub gone: Vec<(&'h Name, &'h V)>,
}

impl<'h, 'w, V: PartialEq> Difference<'h, 'w, V> {
    /// From one map to the other.
    pub fn between(have: &'h OrdMap<Name, V>, want: &'w OrdMap<Name, V>) -> Self {
        let mut difference = Self { come: Vec::new(), changed: Vec::new(), gone: Vec::new() };
        for item in have.diff(want) {
            match item {
                DiffItem::Add(name, value) => difference.come.push((name, value)),
                DiffItem::Update { old, new } => difference.changed.push((new.0, old.1, new.1)),
                DiffItem::Remove(name, value) => difference.gone.push((name, value)),
            }
        }
        difference
    }

    fn is_empty(&self) -> bool {
        self.come.is_empty() && self.changed.is_empty() && self.gone.is_empty()
    }
}

/// The differences of a table.
#[derive(Debug)]
pub struct Differences<'h, 'w> {
    pub chains: Difference<'h, 'w, Arc<Chain>>,
    pub sets: Difference<'h, 'w, Arc<Set>>,
    pub counters: Difference<'h, 'w, Counter>,
}

impl<'h, 'w> Differences<'h, 'w> {
    /// From one table to the other.
    pub fn between(have: &'h Table, want: &'w Table) -> Self {
        Self {
            chains: Difference::between(&have.chains, &want.chains),
            sets: Difference::between(&have.sets, &want.sets),
            counters: Difference::between(&have.counters, &want.counters),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.sets.is_empty() && self.counters.is_empty()
    }

    /// Whether what both tables have agrees in all that can be said only at creation.
    pub fn keep_properties(&self) -> bool {
        let chains = self.chains.changed.iter().all(|(_, a, b)| a.hook == b.hook && a.comment == b.comment);
        let set = |set: &Set| (set.kind, set.key.clone(), set.interval, set.size, set.comment.clone());
        chains && self.sets.changed.iter().all(|(_, a, b)| set(a) == set(b)) && self.counters.changed.is_empty()
    }
}
