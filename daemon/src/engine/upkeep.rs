//! What the engine's work costs and how late it is.
//!
//! In: batches of changes as they are taken in and served, what was repaired, what the kernel holds. Out: [`Upkeep`], for metrics. What
//! always holds: nothing depends on it; a batch is served once, when the kernel has acknowledged all of it.

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime};

use flatfell_rules::ruleset::{Ruleset, Table};

use crate::batch::{Batch, CreatedKind};
use crate::histogram::Histogram;
use crate::links::PodBridge;

/// What somebody else changed and was set right again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Repair {
    /// Our tables were removed.
    Tables,
    /// Chains.
    Chains,
    /// Rules of a chain.
    Rules,
    /// Sets or maps.
    Sets,
    /// Elements of a set or map.
    Elements,
    /// Counters.
    Counters,
    /// A bridge's filter was switched off.
    BridgeFilter,
}

impl Repair {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Tables, Self::Chains, Self::Rules, Self::Sets, Self::Elements, Self::Counters, Self::BridgeFilter];

    /// The word in metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Tables => "tables",
            Self::Chains => "chains",
            Self::Rules => "rules",
            Self::Sets => "sets",
            Self::Elements => "elements",
            Self::Counters => "counters",
            Self::BridgeFilter => "bridge-filter",
        }
    }
}

/// How many objects of each kind there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Programmed {
    tables: usize,
    chains: usize,
    rules: usize,
    sets: usize,
    elements: usize,
    counters: usize,
}

impl Programmed {
    /// Of a ruleset.
    pub fn of(ruleset: &Ruleset) -> Self {
        let sum = |count: fn(&Table) -> usize| ruleset.tables.values().map(count).sum();
        Self {
            tables: ruleset.tables.len(),
            chains: sum(|table| table.chains.len()),
            rules: sum(|table| table.chains.values().map(|chain| chain.rules.len()).sum()),
            sets: sum(|table| table.sets.len()),
            elements: sum(|table| table.sets.values().map(|set| set.elements.len()).sum()),
            counters: sum(|table| table.counters.len()),
        }
    }

    /// Each number with the word of its kind.
    pub fn by_kind(&self) -> [(&'static str, usize); 6] {
        [
            ("tables", self.tables),
            ("chains", self.chains),
            ("rules", self.rules),
            ("sets", self.sets),
            ("elements", self.elements),
            ("counters", self.counters),
        ]
    }
}

/// How long created objects of one kind took.
#[derive(Clone, Debug, PartialEq)]
pub struct Creations {
    /// Seconds from creation to the kernel.
    pub times: Histogram,
    /// Those whose creation is in this clock's future.
    pub ahead: u64,
}

/// What the engine's work costs and how late it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Upkeep {
    /// Seconds from reading the oldest change of a batch to the kernel's acknowledgement.
    pub event_to_kernel: Histogram,
    /// By kind of object.
    pub creations: BTreeMap<CreatedKind, Creations>,
    /// Turns that were tried again.
    pub retries: u64,
    /// By kind.
    pub repairs: BTreeMap<Repair, u64>,
    /// What the kernel holds.
    pub programmed: Ruleset,
    /// Whether each pod bridge shows its traffic to policy, by name and family.
    pub bridges: BTreeMap<(String, &'static str), bool>,
    /// Changes that are not in the kernel.
    pub waiting: usize,
    /// When the oldest of them was read.
    pub oldest_waiting: Option<Instant>,
}

impl Default for Upkeep {
    fn default() -> Self {
        let creations = || Creations { times: Histogram::new(Histogram::CREATION_SECONDS), ahead: 0 };
        Self {
            event_to_kernel: Histogram::new(Histogram::SECONDS),
            creations: CreatedKind::ALL.into_iter().map(|kind| (kind, creations())).collect(),
            retries: 0,
            repairs: Repair::ALL.into_iter().map(|kind| (kind, 0)).collect(),
            programmed: Ruleset::default(),
            bridges: BTreeMap::new(),
            waiting: 0,
            oldest_waiting: None,
        }
    }
}

impl Upkeep {
    /// Changes wait, the oldest since then.
    pub fn wait(&mut self, batch: &Batch) {
        self.waiting = batch.changes;
        self.oldest_waiting = batch.oldest;
    }

    /// The kernel has all of these.
    pub fn served(&mut self, batch: &Batch, now: Instant, wall: SystemTime) {
        if let Some(oldest) = batch.oldest {
            self.event_to_kernel.observe(now.saturating_duration_since(oldest).as_secs_f64());
        }
        for (kind, created) in &batch.created {
            if let Some(seen) = self.creations.get_mut(kind) {
                match wall.duration_since(*created) {
                    Ok(time) => seen.times.observe(time.as_secs_f64()),
                    Err(_) => seen.ahead += 1,
                }
            }
        }
        self.wait(&Batch::default());
    }

    /// The bridges of pods, as they are.
    pub fn see_bridges(&mut self, bridges: &[PodBridge]) {
        let flags = bridges.iter().flat_map(|bridge| {
            [("ipv4", bridge.nf_call_iptables), ("ipv6", bridge.nf_call_ip6tables)]
                .map(|(family, is_on)| ((bridge.name.clone(), family), is_on))
        });
        self.bridges = flags.collect();
    }

    /// The filter of a bridge is off for these families, and is switched on. Where it was on before, somebody switched it
    /// off.
    pub fn see_off(&mut self, bridge: &str, v4: bool, v6: bool) {
        for (family, is_off) in [("ipv4", v4), ("ipv6", v6)] {
            if is_off && self.bridges.get(&(bridge.to_owned(), family)) == Some(&true) {
                self.repaired(Repair::BridgeFilter);
            }
        }
    }

    /// Something was set right.
    pub fn repaired(&mut self, kind: Repair) {
        *self.repairs.entry(kind).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_creation_in_the_future_is_counted_and_not_measured() {
        let mut upkeep = Upkeep::default();
        let (now, wall) = (Instant::now(), SystemTime::now());
        let second = Duration::from_secs(1);
        let created = vec![(CreatedKind::Pod, wall - 2 * second), (CreatedKind::Pod, wall + second)];
        let batch = Batch { oldest: Some(now - second), changes: 3, created };
        upkeep.wait(&batch);
        assert_eq!((upkeep.waiting, upkeep.oldest_waiting), (3, Some(now - second)));
        upkeep.served(&batch, now, wall);
        assert_eq!((upkeep.waiting, upkeep.oldest_waiting), (0, None));
        let pods = &upkeep.creations[&CreatedKind::Pod];
        assert_eq!((pods.times.count(), pods.times.sum(), pods.ahead), (1, 2.0, 1));
        assert_eq!((upkeep.event_to_kernel.count(), upkeep.event_to_kernel.sum()), (1, 1.0));
        upkeep.served(&Batch::default(), now, wall);
        assert_eq!(upkeep.event_to_kernel.count(), 1, "a retry of what was served is no event");
    }
}
