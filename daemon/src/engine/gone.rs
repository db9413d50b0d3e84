//! Counters whose rule, pod or policy is gone, kept for a while: whoever comes back goes on counting, and what was counted last
//! is still read.
//!
//! In: the counters that the kernel has and those that policy wants. Out: wanted tables that keep the others. What always holds: a
//! counter is kept for the time that is configured and no longer, and no more than [`GONE_MAX`] are; no rule leads to one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use flatfell_rules::compile::CounterMeaning;
use flatfell_rules::ruleset::{Counter, Family, Ruleset, Table};

/// Counters that are kept at most; the oldest go first.
const GONE_MAX: usize = 10_000;

/// A counter that nothing counts in.
struct Gone {
    since: Instant,
    counter: Counter,
    /// What it counted, where this process knew it.
    meaning: Option<CounterMeaning>,
}

/// All of them.
pub(super) struct GoneCounters {
    keep: Duration,
    gone: BTreeMap<String, Gone>,
}

impl GoneCounters {
    /// None yet; each is kept for this time.
    pub(super) fn new(keep: Duration) -> Self {
        Self { keep, gone: BTreeMap::new() }
    }

    /// Has a wanted table keep what the kernel has and nothing wants, with what it meant `before`.
    pub(super) fn keep_in(
        &mut self,
        want: (&mut Table, &mut BTreeMap<String, CounterMeaning>),
        have: &Ruleset,
        before: &BTreeMap<String, CounterMeaning>,
        now: Instant,
    ) {
        let (table, meanings) = want;
        self.gone.retain(|name, _| !table.counters.contains_key(name));
        let keep = self.keep;
        let expired: BTreeMap<String, Gone> = self.gone.extract_if(.., |_, gone| gone.since + keep <= now).collect();
        let counters = have.tables.iter().filter(|(id, _)| id.family == Family::Inet);
        for (name, counter) in counters.flat_map(|(_, table)| &table.counters) {
            let is_new = !self.gone.contains_key(name) && !expired.contains_key(name);
            if is_new && !table.counters.contains_key(name) && !keep.is_zero() {
                let meaning = before.get(name).cloned();
                self.gone.insert(name.clone(), Gone { since: now, counter: counter.clone(), meaning });
            }
        }
        self.drop_the_oldest();
        for (name, Gone { counter, meaning, .. }) in &self.gone {
            table.counters.insert(name.clone(), counter.clone());
            meanings.extend(meaning.clone().map(|meaning| (name.clone(), meaning)));
        }
    }

    fn drop_the_oldest(&mut self) {
        let surplus = self.gone.len().saturating_sub(GONE_MAX);
        let mut by_age: Vec<(Instant, String)> = match surplus {
            0 => return,
            _ => self.gone.iter().map(|(name, gone)| (gone.since, name.clone())).collect(),
        };
        by_age.sort();
        by_age.iter().take(surplus).for_each(|(_, name)| {
            self.gone.remove(name);
        });
    }

    /// Whether the time of one is over.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.gone.values().any(|gone| gone.since + self.keep <= now)
    }
}

#[cfg(test)]
mod tests {
    use flatfell_rules::compile::{Guard, Slot};

    use super::*;

    const KEEP: Duration = Duration::from_secs(60);

    fn table(names: &[&str]) -> Table {
        let counters = names.iter().map(|name| ((*name).to_owned(), Counter { comment: format!("of {name}") }));
        Table { counters: counters.collect(), ..Table::default() }
    }

    fn ruleset(table: Table) -> Ruleset {
        Ruleset { tables: [(Slot::A.inet(), table)].into() }
    }

    /// What is in the kernel after a turn that wants these, with what is known of them.
    fn turn(gone: &mut GoneCounters, have: &[&str], want: &[&str], now: Instant) -> (Vec<String>, Vec<String>) {
        let before = have.iter().map(|name| ((*name).to_owned(), CounterMeaning::Guard(Guard::Frame))).collect();
        let (mut wanted, mut meanings) = (table(want), BTreeMap::new());
        gone.keep_in((&mut wanted, &mut meanings), &ruleset(table(have)), &before, now);
        (wanted.counters.into_keys().collect(), meanings.into_keys().collect())
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_counter_that_nothing_wants_stays_for_its_time_with_what_it_meant() {
        let (mut gone, start) = (GoneCounters::new(KEEP), Instant::now());
        assert_eq!(turn(&mut gone, &["a", "b"], &["b"], start), (names(&["a", "b"]), names(&["a"])));
        assert!(!gone.is_due(start + KEEP / 2));
        assert_eq!(turn(&mut gone, &["a", "b"], &["b"], start + KEEP / 2).0, names(&["a", "b"]));
        assert!(gone.is_due(start + KEEP));
        assert_eq!(turn(&mut gone, &["a", "b"], &["b"], start + KEEP), (names(&["b"]), names(&[])));
    }

    #[test]
    fn who_comes_back_is_no_longer_gone() {
        let (mut gone, start) = (GoneCounters::new(KEEP), Instant::now());
        turn(&mut gone, &["a"], &[], start);
        assert_eq!(turn(&mut gone, &["a"], &["a"], start + KEEP / 2), (names(&["a"]), names(&[])));
        assert!(!gone.is_due(start + KEEP), "its time begins anew when it goes again");
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many() {
        let (mut gone, start) = (GoneCounters::new(KEEP), Instant::now());
        turn(&mut gone, &["z"], &[], start);
        let many: Vec<String> = (0..GONE_MAX).map(|number| format!("c{number:05}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let (kept, _) = turn(&mut gone, &many, &[], start + KEEP / 2);
        assert!(kept.len() == GONE_MAX && !kept.contains(&"z".to_owned()));
    }

    #[test]
    fn nothing_is_kept_for_no_time() {
        let mut gone = GoneCounters::new(Duration::ZERO);
        assert_eq!(turn(&mut gone, &["a"], &[], Instant::now()).0, names(&[]));
    }
}
