//! Counters that only rise.
//!
//! In: the kernel's counters as they are read. Out: totals with their meanings. What always holds: within this process no
//! total falls, whatever happens to the kernel's counter (a table taken over, a rule that goes and comes back, `nft
//! reset counters`): what it lost is carried on.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use flatfell_rules::compile::CounterMeaning;
use flatfell_rules::ruleset::CounterValue;

use crate::engine::CounterSnapshot;

/// Totals of counters that are gone are remembered up to this many, in case they come back.
const GONE_MAX: usize = 10_000;

/// A counter and its total.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Total {
    /// What it counts.
    pub meaning: CounterMeaning,
    /// Packets and bytes so far.
    pub value: CounterValue,
}

/// What was seen of a counter.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// Its value when it was read last.
    last: CounterValue,
    /// What it had before it fell.
    carried: CounterValue,
}

impl Seen {
    fn total(self) -> CounterValue {
        CounterValue {
            packets: self.carried.packets.saturating_add(self.last.packets),
            bytes: self.carried.bytes.saturating_add(self.last.bytes),
        }
    }

    fn read(&mut self, value: CounterValue) {
        if value.packets < self.last.packets || value.bytes < self.last.bytes {
            self.carried = self.total();
        }
        self.last = value;
    }
}

/// The totals of all counters.
#[derive(Debug, Default)]
pub struct Totals {
    seen: Mutex<BTreeMap<String, Seen>>,
}

impl Totals {
    /// Takes in what was read, and gives the totals of the counters that have a meaning now. One whose value is missing
    /// (a dump during a commit may leave some out) keeps its last total.
    pub fn update(&self, snapshot: &CounterSnapshot) -> Vec<Total> {
        let totals = self.values(snapshot);
        let named = snapshot.meanings.values().zip(totals);
        named.filter_map(|(meaning, value)| Some(Total { meaning: meaning.clone(), value: value? })).collect()
    }

    /// The same without the meanings, in their order; `None` for a counter that was never read.
    pub fn values(&self, snapshot: &CounterSnapshot) -> Vec<Option<CounterValue>> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, value) in &snapshot.values {
            seen.entry(name.clone()).or_default().read(*value);
        }
        if seen.len() > snapshot.meanings.len().saturating_add(GONE_MAX) {
            seen.retain(|name, _| snapshot.meanings.contains_key(name));
        }
        snapshot.meanings.keys().map(|name| seen.get(name).map(|seen| seen.total())).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use flatfell_rules::compile::Guard;

    use super::*;

    fn snapshot(values: &[(&str, u64)]) -> CounterSnapshot {
        let meanings = [("a".to_owned(), CounterMeaning::Guard(Guard::Frame))];
        CounterSnapshot {
            values: values
                .iter()
                .map(|(name, packets)| ((*name).to_owned(), CounterValue { packets: *packets, bytes: packets * 100 }))
                .collect(),
            meanings: Arc::new(meanings.into()),
        }
    }

    fn packets(totals: &[Total]) -> Vec<u64> {
        totals.iter().map(|total| total.value.packets).collect()
    }

    #[test]
    fn a_counter_that_falls_goes_on_from_where_it_was() {
        let totals = Totals::default();
        let read: Vec<_> =
            [5, 7, 2, 3, 0].iter().map(|value| packets(&totals.update(&snapshot(&[("a", *value)])))).collect();
        assert_eq!(read, [[5], [7], [9], [10], [10]]);
    }

    #[test]
    fn a_missing_value_is_not_zero() {
        let totals = Totals::default();
        assert_eq!(packets(&totals.update(&snapshot(&[]))), [0; 0]);
        totals.update(&snapshot(&[("a", 5)]));
        assert_eq!(packets(&totals.update(&snapshot(&[("b", 1)]))), [5]);
        assert_eq!(packets(&totals.update(&snapshot(&[("a", 6)]))), [6]);
    }
}
