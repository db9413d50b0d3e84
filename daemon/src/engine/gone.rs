//! Counters whose rule, pod or policy is gone, kept for a while: whoever comes back goes on counting, and what was counted last
//! is still read.
//!
//! In: the counters that policy wants, one turn after the other, and those found in the kernel. Out: the same with the others beside them.
//! What always holds: a counter is kept for the time that is configured and no longer, and no more than [`GONE_MAX`] are; no rule leads
//! to one; a turn costs what differs from the one before.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use flatfell_rules::compile::Meanings;
use flatfell_rules::ruleset::{Counter, Family, Name, Ruleset};
use imbl::OrdMap;
use imbl::ordmap::DiffItem;

/// Counters that are kept at most; the oldest go first.
const GONE_MAX: usize = 10_000;

/// Counters, and what they mean as far as this process knew them.
#[derive(Clone, Default)]
pub(super) struct Counters {
    pub(super) all: OrdMap<Name, Counter>,
    pub(super) meanings: Meanings,
}

/// All of them.
pub(super) struct GoneCounters {
    keep: Duration,
    /// What policy wanted last.
    wanted: Counters,
    /// That, and what is kept beside it.
    kept: Counters,
    /// When nothing wanted them any more.
    gone: BTreeMap<Name, Instant>,
    /// In that order; one that came back may still be here.
    by_age: VecDeque<(Instant, Name)>,
}

impl GoneCounters {
    /// None yet; each is kept for this time.
    pub(super) fn new(keep: Duration) -> Self {
        let (wanted, kept) = Default::default();
        Self { keep, wanted, kept, gone: BTreeMap::new(), by_age: VecDeque::new() }
    }

    /// Takes in what the kernel was found to have: what nobody wants of it is kept from now on.
    pub(super) fn find(&mut self, have: &Ruleset, now: Instant) {
        let counters = have.tables.iter().filter(|(id, _)| id.family == Family::Inet);
        for (name, counter) in counters.flat_map(|(_, table)| &table.counters) {
            if !self.kept.all.contains_key(name) && !self.keep.is_zero() {
                self.kept.all.insert(name.clone(), counter.clone());
                self.is_gone(name.clone(), now);
            }
        }
    }

    /// What is wanted now, and what is kept beside it.
    pub(super) fn beside(&mut self, wanted: Counters, now: Instant) -> Counters {
        let before = std::mem::replace(&mut self.wanted, wanted.clone());
        for item in before.all.diff(&wanted.all) {
            match item {
                DiffItem::Add(name, counter) | DiffItem::Update { new: (name, counter), .. } => {
                    self.gone.remove(name);
                    self.kept.all.insert(name.clone(), counter.clone());
                }
                DiffItem::Remove(name, _) => self.is_gone(name.clone(), now),
            }
        }
        for item in before.meanings.diff(&wanted.meanings) {
            if let DiffItem::Add(name, meaning) | DiffItem::Update { new: (name, meaning), .. } = item {
                self.kept.meanings.insert(name.clone(), meaning.clone());
            }
        }
        self.drop_the_oldest(now);
        self.kept.clone()
    }

    fn is_gone(&mut self, name: Name, now: Instant) {
        self.by_age.push_back((now, name.clone()));
        self.gone.insert(name, now);
    }

    fn drop_the_oldest(&mut self, now: Instant) {
        let Self { keep, kept, gone, by_age, .. } = self;
        while let Some((since, name)) = by_age.pop_front_if(|(since, _)| *since + *keep <= now || gone.len() > GONE_MAX)
        {
            if gone.get(&name) == Some(&since) {
                gone.remove(&name);
                kept.all.remove(&name);
                kept.meanings.remove(&name);
            }
        }
    }

    /// Whether the time of one is over.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        let is_due = |(since, name): &&(Instant, Name)| *since + self.keep <= now && self.gone.get(name) == Some(since);
        self.by_age.iter().take_while(|(since, _)| *since + self.keep <= now).any(|one| is_due(&one))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use flatfell_rules::compile::{CounterMeaning, Guard, Slot};
    use flatfell_rules::ruleset::Table;

    use super::*;

    const KEEP: Duration = Duration::from_secs(60);

    fn counters(names: &[&str]) -> Counters {
        let meaning = || Arc::new(CounterMeaning::Guard(Guard::Frame));
        Counters {
            all: names.iter().map(|name| (Name::from(*name), Counter::default())).collect(),
            meanings: names.iter().map(|name| (Name::from(*name), meaning())).collect(),
        }
    }

    /// What is there after a turn that wants these, and what is known of it.
    fn turn(gone: &mut GoneCounters, want: &[&str], now: Instant) -> (Vec<String>, Vec<String>) {
        let Counters { all, meanings } = gone.beside(counters(want), now);
        (all.keys().map(ToString::to_string).collect(), meanings.keys().map(ToString::to_string).collect())
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_counter_that_nothing_wants_stays_for_its_time_with_what_it_meant() {
        let (mut gone, start) = (GoneCounters::new(KEEP), Instant::now());
        turn(&mut gone, &["a", "b"], start);
        assert_eq!(turn(&mut gone, &["b"], start), (names(&["a", "b"]), names(&["a", "b"])));
        assert!(!gone.is_due(start + KEEP / 2));
        assert_eq!(turn(&mut gone, &["b"], start + KEEP / 2).0, names(&["a", "b"]));
        assert!(gone.is_due(start + KEEP));
        assert_eq!(turn(&mut gone, &["b"], start + KEEP), (names(&["b"]), names(&["b"])));
        assert!(!gone.is_due(start + KEEP));
    }

    #[test]
    fn what_another_run_left_stays_for_its_time_too() {
        let (mut gone, start) = (GoneCounters::new(KEEP), Instant::now());
        let table = Table { counters: counters(&["a", "b"]).all, ..Table::default() };
        gone.find(&Ruleset { tables: [(Slot::A.inet(), table)].into() }, start);
        assert_eq!(turn(&mut gone, &["b"], start), (names(&["a", "b"]), names(&["b"])), "nobody knows what a was");
        assert_eq!(turn(&mut gone, &["b"], start + KEEP).0, names(&["b"]));
    }

    #[test]
    fn who_comes_back_is_no_longer_gone() {
        let (mut gone, start) = (GoneCounters::new(KEEP), Instant::now());
        turn(&mut gone, &["a"], start);
        turn(&mut gone, &[], start);
        assert_eq!(turn(&mut gone, &["a"], start + KEEP / 2), (names(&["a"]), names(&["a"])));
        assert!(!gone.is_due(start + KEEP), "its time begins anew when it goes again");
        assert_eq!(turn(&mut gone, &["a"], start + KEEP).0, names(&["a"]));
        turn(&mut gone, &[], start + KEEP);
        assert_eq!(turn(&mut gone, &[], start + KEEP + KEEP / 2).0, names(&["a"]));
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many() {
        let (mut gone, start) = (GoneCounters::new(KEEP), Instant::now());
        turn(&mut gone, &["z"], start);
        let many: Vec<String> = (0..GONE_MAX).map(|number| format!("c{number:05}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        turn(&mut gone, &many, start);
        let (kept, _) = turn(&mut gone, &[], start + KEEP / 2);
        assert!(kept.len() == GONE_MAX && !kept.contains(&"z".to_owned()));
    }

    #[test]
    fn nothing_is_kept_for_no_time() {
        let mut gone = GoneCounters::new(Duration::ZERO);
        turn(&mut gone, &["a"], Instant::now());
        assert_eq!(turn(&mut gone, &[], Instant::now()).0, names(&[]));
    }
}
