//! How often each row of the semantics decides a verdict, and how the verdicts are shared out.
//!
//! In: verdicts. Out: a table. What always holds: a row counts only where the verdict would be the other one without it.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use super::generate::{Random, change, cluster, probes};
use super::oracle::{Oracle, Row, Verdict};

/// Counts of verdicts and of what decided them.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    /// How many verdicts were counted.
    pub total: u64,
    /// How many of them let the packet through.
    pub allowed: u64,
    rows: BTreeMap<Row, u64>,
}

impl Coverage {
    /// Counts a verdict.
    pub fn add(&mut self, verdict: &Verdict) {
        self.total += 1;
        self.allowed += u64::from(verdict.allowed);
        for row in &verdict.reasons {
            self.add_row(*row);
        }
    }

    /// Counts a row alone.
    pub fn add_row(&mut self, row: Row) {
        *self.rows.entry(row).or_default() += 1;
    }

    /// How many verdicts a row decided.
    pub fn count(&self, row: Row) -> u64 {
        self.rows.get(&row).copied().unwrap_or_default()
    }

    /// The rows that decided nothing.
    pub fn silent(&self) -> Vec<Row> {
        Row::ALL.iter().copied().filter(|row| self.count(*row) == 0).collect()
    }

    /// The rows that decided one verdict in a hundred at least.
    pub fn frequent(&self) -> usize {
        Row::ALL.iter().filter(|row| self.count(**row) * 100 >= self.total).count()
    }

    /// Adds what another one counted.
    pub fn merge(&mut self, other: &Self) {
        self.total += other.total;
        self.allowed += other.allowed;
        for (row, count) in &other.rows {
            *self.rows.entry(*row).or_default() += count;
        }
    }

    /// Panics unless every row decided a verdict, most rows one in a hundred, and each verdict is 30 % of all.
    pub fn assert_bars(&self) {
        assert_eq!(self.silent(), [], "rows that never decided");
        assert!(self.frequent() * 2 > Row::ALL.len(), "most rows decide 1 % of verdicts");
        for verdicts in [self.allowed, self.total - self.allowed] {
            assert!(verdicts * 10 >= self.total * 3, "30 % of each verdict");
        }
    }

    /// The random clusters of some seeds, each also after one random change.
    pub fn measure(seeds: Range<u64>, probes_each: usize) -> Self {
        let mut coverage = Self::default();
        for seed in seeds {
            let mut random = Random::new(seed);
            let before = cluster(&mut random);
            let asked = probes(&mut random, &before, probes_each);
            let after = change(&mut random, &before);
            let (oracle, later) = (Oracle::new(&before), Oracle::new(&after));
            for probe in &asked {
                let verdict = oracle.verdict(probe);
                if later.allowed(probe) != verdict.allowed {
                    coverage.add_row(Row::Changes);
                }
                coverage.add(&verdict);
            }
        }
        coverage
    }
}

/// Hundredths of a per cent, as text.
fn share(count: u64, total: u64) -> String {
    let hundredths = count * 10_000 / total.max(1);
    format!("{}.{:02} %", hundredths / 100, hundredths % 100)
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, count| writeln!(f, "{name:32} {count:>9} {:>9}", share(count, self.total));
        line("verdicts", self.total)?;
        line("allowed", self.allowed)?;
        line("denied", self.total - self.allowed)?;
        Row::ALL.iter().try_for_each(|row| line(row.name(), self.count(*row)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `rules/tests/agree.rs` measures more clusters and shows the table.
    #[test]
    fn every_row_decides_and_both_verdicts_are_frequent() {
        let mut coverage = Coverage::measure(1..300, 20);
        coverage.merge(&Coverage::measure(300..501, 20));
        assert_eq!(coverage.total, 10_000);
        coverage.assert_bars();
        assert!(coverage.to_string().contains(Row::Except.name()));
    }
}
