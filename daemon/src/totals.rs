//! Counters that only rise.
//!
//! In: the kernel's counters as they are read. Out: totals. What always holds: no total falls, whatever happens to the kernel's
//! counter (a table taken over, a rule that goes and comes back, `nft reset counters`): what it lost is carried on, in a file
//! too, which lives as long as the kernel's tables and so outlives this process.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use flatfell_rules::compile::CounterMeaning;
use flatfell_rules::ruleset::CounterValue;

/// The file's name in the run directory.
pub const FILE: &str = "carried.json";

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

/// Why carried values are not kept in the file.
#[derive(Debug, thiserror::Error)]
pub enum TotalsError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not what was written.
    #[error("{}: {source}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// The file cannot be written.
    #[error("{}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
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

    /// Whether it fell.
    fn read(&mut self, value: CounterValue) -> bool {
        let fell = value.packets < self.last.packets || value.bytes < self.last.bytes;
        if fell {
            self.carried = self.total();
        }
        self.last = value;
        fell
    }
}

/// Packets and bytes that were carried, by counter, as the file holds them.
type Carried = BTreeMap<String, (u64, u64)>;

/// The totals of all counters.
#[derive(Debug, Default)]
pub struct Totals {
    seen: BTreeMap<String, Seen>,
    file: Option<PathBuf>,
    /// Whether the file does not hold what is carried.
    unsaved: bool,
}

impl Totals {
    /// Totals that go on from what the file holds, if there is one.
    pub fn open(file: Option<PathBuf>) -> (Self, Option<TotalsError>) {
        let (carried, error) = match file.as_deref().map(load) {
            Some(Ok(carried)) => (carried, None),
            Some(Err(error)) => (Carried::new(), Some(error)),
            None => (Carried::new(), None),
        };
        let seen = |(packets, bytes)| Seen { carried: CounterValue { packets, bytes }, ..Seen::default() };
        let seen = carried.into_iter().map(|(name, carried)| (name, seen(carried))).collect();
        (Self { seen, file, unsaved: false }, error)
    }

    /// Forgets everything: there is no table that it could go on with.
    pub fn forget(&mut self) -> Result<(), TotalsError> {
        self.unsaved |= self.seen.values().any(|seen| seen.carried != CounterValue::default());
        self.seen.clear();
        self.save()
    }

    /// Takes in what was read. A counter that is not among it (a dump during a commit may leave some out) keeps its total.
    pub fn read(&mut self, values: &BTreeMap<String, CounterValue>) -> Result<(), TotalsError> {
        // Both are in the same order: no look-ups.
        let mut known = self.seen.iter_mut().peekable();
        let mut new = Vec::new();
        for (name, value) in values {
            while known.next_if(|(other, _)| *other < name).is_some() {}
            match known.next_if(|(other, _)| *other == name) {
                Some((_, seen)) => self.unsaved |= seen.read(*value),
                None => new.push((name.clone(), Seen { last: *value, ..Seen::default() })),
            }
        }
        self.seen.extend(new);
        if self.seen.len() > values.len().saturating_add(GONE_MAX) {
            self.seen.retain(|name, _| values.contains_key(name));
            self.unsaved = true;
        }
        self.save()
    }

    /// What counters add up to, whose names come in order; `None` for one that was never read.
    pub fn of<'a>(&self, names: impl Iterator<Item = &'a String>) -> Vec<Option<CounterValue>> {
        let mut seen = self.seen.iter().peekable();
        let total = |name: &String| {
            while seen.next_if(|(other, _)| *other < name).is_some() {}
            seen.next_if(|(other, _)| *other == name).map(|(_, seen)| seen.total())
        };
        names.map(total).collect()
    }

    /// What a counter adds up to; `None` for one that was never read.
    pub fn total(&self, name: &str) -> Option<CounterValue> {
        self.seen.get(name).map(|seen| seen.total())
    }

    /// What the kernel had when a counter was read last: where it goes on if it is made anew.
    pub fn last(&self, name: &str) -> Option<CounterValue> {
        self.seen.get(name).map(|seen| seen.last)
    }

    /// Writes the file where it says something else.
    fn save(&mut self) -> Result<(), TotalsError> {
        let Some(path) = self.file.as_deref().filter(|_| self.unsaved) else { return Ok(()) };
        let carried = self.seen.iter().filter(|(_, seen)| seen.carried != CounterValue::default());
        let carried: Carried =
            carried.map(|(name, Seen { carried, .. })| (name.clone(), (carried.packets, carried.bytes))).collect();
        store(path, &carried).map_err(|source| TotalsError::Write { path: path.to_owned(), source })?;
        self.unsaved = false;
        Ok(())
    }
}

fn load(path: &Path) -> Result<Carried, TotalsError> {
    let text = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Carried::new()),
        read => read.map_err(|source| TotalsError::Read { path: path.to_owned(), source })?,
    };
    serde_json::from_slice(&text).map_err(|source| TotalsError::Malformed { path: path.to_owned(), source })
}

/// Whoever reads it finds the old text or the new one, whole.
fn store(path: &Path, carried: &Carried) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, serde_json::to_vec(carried)?)?;
    fs::rename(new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(values: &[(&str, u64)]) -> BTreeMap<String, CounterValue> {
        let value = |packets: &u64| CounterValue { packets: *packets, bytes: packets * 100 };
        values.iter().map(|(name, packets)| ((*name).to_owned(), value(packets))).collect()
    }

    /// A name in the machine's temporary directory that no other test has.
    fn file(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("flatfell-totals-{}-{name}.json", std::process::id()))
    }

    fn packets(totals: &Totals, name: &str) -> Option<u64> {
        totals.total(name).map(|total| total.packets)
    }

    #[test]
    fn a_counter_that_falls_goes_on_from_where_it_was() {
        let mut totals = Totals::default();
        let read = [5, 7, 2, 3, 0].map(|value| {
            totals.read(&values(&[("a", value)])).expect("no file");
            packets(&totals, "a").expect("a total")
        });
        assert_eq!(read, [5, 7, 9, 10, 10]);
    }

    #[test]
    fn a_missing_value_is_not_zero() {
        let mut totals = Totals::default();
        assert_eq!(packets(&totals, "a"), None);
        for (read, expected) in [(("a", 5), 5), (("b", 1), 5), (("a", 6), 6)] {
            totals.read(&values(&[read])).expect("no file");
            assert_eq!(packets(&totals, "a"), Some(expected));
        }
    }

    #[test]
    fn what_was_carried_outlives_the_process_but_not_the_tables() {
        let path = file("outlives");
        let open = || {
            let (totals, error) = Totals::open(Some(path.clone()));
            assert!(error.is_none(), "{error:?}");
            totals
        };
        let mut totals = open();
        [("a", 5), ("a", 2)].iter().for_each(|read| totals.read(&values(&[*read])).expect("a file"));
        let mut totals = open();
        totals.read(&values(&[("a", 3)])).expect("a file");
        assert_eq!(packets(&totals, "a"), Some(8));
        totals.forget().expect("a file");
        let mut totals = open();
        totals.read(&values(&[("a", 3)])).expect("a file");
        assert_eq!(packets(&totals, "a"), Some(3));
        fs::remove_file(path).expect("a file");
    }

    #[test]
    fn a_file_of_something_else_is_told_of_and_counts_for_nothing() {
        let path = file("malformed");
        fs::write(&path, "{").expect("a file");
        let (totals, error) = Totals::open(Some(path.clone()));
        assert!(matches!(error, Some(TotalsError::Malformed { .. })), "{error:?}");
        assert_eq!(packets(&totals, "a"), None);
        fs::remove_file(path).expect("a file");
    }
}
