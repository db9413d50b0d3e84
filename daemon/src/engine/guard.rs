//! Keeps others from our tables: by owning them, or by watching them where that cannot be.
//!
//! In: the kernel's events, and which tables are ours. Out: what was changed by others, and when to put it right. What always holds: a table is
//! owned or watched, from before it is read; who changes it again and again is waited for, but never long.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use flatfell_rules::compile::Slot;
use flatfell_rules::ruleset::Ruleset;

use super::upkeep::Repair;
use crate::kernel::watch::{Part, Watch};
use crate::kernel::{CommitError, Kernel};
use crate::netlink::NetlinkError;

/// Repairs that follow each other within this time are a fight.
const FIGHT: Duration = Duration::from_secs(1);

/// So many of them in a row are nothing yet; then they keep this distance: a tenth of a second is how long a table may be missing.
const PATIENCE: u32 = 5;
const DISTANCE: Duration = Duration::from_millis(80);

/// So many of them in a row are told to the operator.
const TOLD: u32 = 10;

/// The tables' guard.
pub(super) struct Guard {
    /// Whether the kernel is still to be asked if it can own tables.
    is_to_ask: bool,
    /// `None` while nobody else can change the tables.
    watch: Option<Watch>,
    fight: Fight,
}

/// What others did.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Edits {
    /// What must be put right, if that is known.
    pub(super) repairs: BTreeSet<Repair>,
    /// When.
    pub(super) due: Instant,
}

impl Guard {
    /// Owns tables, if `lock` says so and the kernel can, or watches.
    pub(super) fn new(lock: bool, kernel: &Kernel) -> Result<Self, NetlinkError> {
        let watch = if lock { None } else { Some(Watch::open(kernel.port())?) };
        Ok(Self { is_to_ask: lock, watch, fight: Fight::default() })
    }

    /// To be called before what others may have changed is read: from now on nothing they do goes unseen.
    pub(super) fn begin(&mut self, kernel: &mut Kernel) -> Result<(), CommitError> {
        if self.is_to_ask {
            // Asked again after a failure: tables that could be locked must not stay open for a moment without memory.
            if !kernel.own_tables()? {
                tracing::info!("this kernel does not keep others from our tables (Linux 6.9 does); they are watched");
            }
            self.is_to_ask = false;
        }
        if !kernel.owns_tables() && self.watch.is_none() {
            self.watch = Some(Watch::open(kernel.port()).map_err(CommitError::Socket)?);
        }
        Ok(())
    }

    /// Takes the tables of a slot over that another run left. False if one was made without an owner: it can have none.
    pub(super) fn adopt(&self, kernel: &mut Kernel, have: &Ruleset, slot: Slot) -> Result<bool, CommitError> {
        if !kernel.owns_tables() {
            return Ok(true);
        }
        let mut tables = [slot.inet(), slot.bridge()].into_iter().filter(|table| have.tables.contains_key(table));
        tables.try_fold(true, |all, table| Ok(kernel.adopt(&table)? && all))
    }

    /// Whether nobody else can change the tables.
    pub(super) fn is_locked(&self) -> bool {
        self.watch.is_none()
    }

    /// What others did to the tables of a slot since the last question.
    pub(super) fn edits(&mut self, own: u32, slot: Slot, now: Instant) -> Result<Option<Edits>, NetlinkError> {
        let Some(watch) = &mut self.watch else { return Ok(None) };
        let foreign = watch.poll(own, |table| table == slot.table_name())?;
        if !foreign.is_something() {
            return Ok(None);
        }
        let repairs = repairs(&foreign.parts);
        let words: Vec<&str> = repairs.iter().map(|repair| repair.word()).collect();
        let by: Vec<String> = foreign.by.into_iter().collect();
        if foreign.is_unknown {
            tracing::warn!("events of nftables were lost: the tables are read back");
        } else {
            let (changed, by) = (words.join(", "), by.join(", "));
            tracing::warn!(changed, by, "somebody changed Flatfell's tables; they are put right");
        }
        let due = self.fight.next(now);
        self.fight.with = by.join(", ");
        Ok(Some(Edits { repairs, due }))
    }

    /// What an operator should read.
    pub(super) fn warning(&self) -> Option<String> {
        let Fight { row, with, .. } = &self.fight;
        let goes_on = *row >= TOLD && self.fight.last.is_some_and(|last| last.elapsed() < 10 * FIGHT);
        goes_on.then(|| {
            format!("{with} changes Flatfell's tables again and again; they were put right {row} times in a row")
        })
    }

    /// What tells of edits.
    pub(super) fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.watch.as_ref().map(AsFd::as_fd)
    }
}

/// A table that is gone takes all that was in it along.
fn repairs(parts: &BTreeSet<Part>) -> BTreeSet<Repair> {
    if parts.contains(&Part::Table) {
        return BTreeSet::from([Repair::Tables]);
    }
    let repair = |part: &Part| match part {
        Part::Table => Repair::Tables,
        Part::Chain => Repair::Chains,
        Part::Rule => Repair::Rules,
        Part::Set => Repair::Sets,
        Part::Elements => Repair::Elements,
        Part::Counter => Repair::Counters,
    };
    parts.iter().map(repair).collect()
}

/// Somebody who writes what we write.
#[derive(Default)]
struct Fight {
    last: Option<Instant>,
    /// Repairs that followed each other at once.
    row: u32,
    with: String,
}

impl Fight {
    /// When to put right what was changed now.
    fn next(&mut self, now: Instant) -> Instant {
        let last = self.last.filter(|last| now.saturating_duration_since(*last) < FIGHT);
        self.row = if last.is_some() { self.row.saturating_add(1) } else { 0 };
        let due = last.filter(|_| self.row >= PATIENCE).map_or(now, |last| now.max(last + DISTANCE));
        self.last = Some(due);
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fight_keeps_its_distance_and_ends() {
        let start = Instant::now();
        let mut fight = Fight::default();
        let mut now = start;
        for _ in 0..PATIENCE {
            assert_eq!(fight.next(now), now);
        }
        for _ in 0..100 {
            let due = fight.next(now);
            assert_eq!(due, now + DISTANCE);
            now = due;
        }
        now += FIGHT;
        assert_eq!((fight.next(now), fight.row), (now, 0), "it was over");
    }

    #[test]
    fn a_table_that_is_gone_is_one_repair() {
        assert_eq!(repairs(&BTreeSet::from([Part::Table, Part::Rule])), BTreeSet::from([Repair::Tables]));
        let parts = BTreeSet::from([Part::Rule, Part::Counter]);
        assert_eq!(repairs(&parts), BTreeSet::from([Repair::Rules, Repair::Counters]));
    }
}
