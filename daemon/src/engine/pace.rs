//! How often the table of running connections may be walked: each walk costs as much as the table is large, and a cluster
//! that churns would have one for each event.
//!
//! In: what each walk cost. Out: when the next one may begin. What always holds: a few walks in a row wait for nothing; in the long
//! run they take [`SHARE`] of the time.

use std::time::{Duration, Instant};

/// One part in this many of the time is for walks.
const SHARE: u32 = 200;

/// What may be spent at once, after a rest.
const SAVINGS: Duration = Duration::from_secs(1);

/// What walks may still cost.
pub(super) struct Pace {
    /// The time for which all was spent by then.
    spent_until: Instant,
}

impl Pace {
    /// All is saved.
    pub(super) fn new(now: Instant) -> Self {
        Self { spent_until: now.checked_sub(SAVINGS * SHARE).unwrap_or(now) }
    }

    /// When a walk may begin.
    pub(super) fn next(&self) -> Instant {
        self.spent_until
    }

    /// A walk cost this and is over.
    pub(super) fn spend(&mut self, cost: Duration, now: Instant) {
        let saved_since = now.checked_sub(SAVINGS * SHARE).unwrap_or(self.spent_until);
        self.spent_until = self.spent_until.max(saved_since) + cost * SHARE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COST: Duration = Duration::from_millis(10);

    #[test]
    fn a_few_in_a_row_wait_for_nothing_and_then_each_for_its_share() {
        let now = Instant::now() + SAVINGS * SHARE;
        let mut pace = Pace::new(now);
        let at_once = (0..1_000).take_while(|_| {
            let may = pace.next() <= now;
            pace.spend(COST, now);
            may
        });
        assert_eq!(at_once.count(), 101);
        let before = pace.next();
        pace.spend(COST, now);
        assert_eq!(pace.next() - before, COST * SHARE);
    }

    #[test]
    fn a_long_rest_saves_no_more_than_a_short_one() {
        let start = Instant::now() + SAVINGS * SHARE;
        let mut pace = Pace::new(start);
        let late = start + 100 * SAVINGS * SHARE;
        pace.spend(SAVINGS + COST, late);
        assert_eq!(pace.next(), late + COST * SHARE);
    }
}
