//! Counters that only rise.
//!
//! In: the kernel's counters as they are read. Out: totals. What always holds: no total falls, whatever happens to the kernel's
//! counter (a table taken over, a rule that goes and comes back, `nft reset counters`): what it lost is carried on, in a file
//! too, which lives as long as the kernel's tables and so outlives this process.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flatfell_rules::compile::CounterMeaning;
use flatfell_rules::ruleset::{CounterValue, Name};

use crate::kernel::Counters;

/// The file's name in the run directory.
pub const FILE: &str = "carried.json";

/// Totals of counters that are gone are remembered up to this many, in case they come back.
const GONE_MAX: usize = 10_000;

/// A counter and its total.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Total {
    /// What it counts.
    pub meaning: Arc<CounterMeaning>,
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

/// The counters that were read last, which those of the next reading mostly are.
#[derive(Debug, Default)]
struct Order {
    /// Of each table.
    names: Vec<Arc<Vec<Name>>>,
    /// Where they are, one behind the other.
    places: Vec<usize>,
    /// Whether each has a place of its own.
    is_each_once: bool,
}

impl Order {
    fn is_of(&self, counters: &[Counters]) -> bool {
        let is_same = |(known, read): (&Arc<_>, &Counters)| Arc::ptr_eq(known, read.names());
        self.names.len() == counters.len() && self.names.iter().zip(counters).all(is_same)
    }
}

/// Packets and bytes that were carried, by counter, as the file holds them.
type Carried = BTreeMap<String, (u64, u64)>;

/// The totals of all counters.
#[derive(Debug, Default)]
pub struct Totals {
    seen: Vec<Seen>,
    places: HashMap<Name, usize>,
    order: Order,
    /// How often places came or went.
    edition: u64,
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
        let mut totals = Self { file, ..Self::default() };
        for (name, (packets, bytes)) in carried {
            let place = totals.place(&name.into());
            totals.seen[place].carried = CounterValue { packets, bytes };
        }
        (totals, error)
    }

    /// Forgets everything: there is no table that it could go on with.
    pub fn forget(&mut self) -> Result<(), TotalsError> {
        self.unsaved |= self.seen.iter().any(|seen| seen.carried != CounterValue::default());
        self.clear();
        self.save()
    }

    /// Takes in what was read of some tables. A counter that is not among it (a dump during a commit may leave some out) keeps its total.
    pub fn read(&mut self, counters: &[Counters]) -> Result<(), TotalsError> {
        if !self.order.is_of(counters) {
            self.order(counters);
        }
        let read = self.order.places.iter().copied().zip(counters.iter().flat_map(Counters::values).copied());
        if self.order.is_each_once {
            for (place, value) in read {
                self.unsaved |= self.seen[place].read(value);
            }
        } else {
            // A counter that moves is at two places for a moment; it goes on at the one where it is larger.
            let mut largest: HashMap<usize, CounterValue> = HashMap::new();
            for (place, value) in read {
                let known = largest.entry(place).or_default();
                known.packets = known.packets.max(value.packets);
                known.bytes = known.bytes.max(value.bytes);
            }
            for (place, value) in largest {
                self.unsaved |= self.seen[place].read(value);
            }
        }
        if self.seen.len() > self.order.places.len().saturating_add(GONE_MAX) {
            self.keep_only(counters);
        }
        self.save()
    }

    /// Finds the places of what was read.
    fn order(&mut self, counters: &[Counters]) {
        let names: Vec<_> = counters.iter().map(|counters| Arc::clone(counters.names())).collect();
        let places: Vec<usize> = names.iter().flat_map(|names| names.iter()).map(|name| self.place(name)).collect();
        let is_each_once = places.iter().collect::<HashSet<_>>().len() == places.len();
        self.order = Order { names, places, is_each_once };
    }

    /// Forgets all others.
    fn keep_only(&mut self, counters: &[Counters]) {
        let kept: HashSet<&Name> = counters.iter().flat_map(|counters| counters.names().iter()).collect();
        let seen = kept.into_iter().map(|name| (name.clone(), self.seen[self.places[name]])).collect::<Vec<_>>();
        self.clear();
        for (name, seen) in seen {
            let place = self.place(&name);
            self.seen[place] = seen;
        }
        self.unsaved = true;
    }

    fn clear(&mut self) {
        (self.seen, self.places, self.order) = Default::default();
        self.edition += 1;
    }

    /// Where a counter is, or will be.
    fn place(&mut self, name: &Name) -> usize {
        if let Some(place) = self.places.get(name) {
            return *place;
        }
        self.places.insert(name.clone(), self.seen.len());
        self.edition += 1;
        self.seen.push(Seen::default());
        self.seen.len() - 1
    }

    /// Whether places are still good is whether this is the same.
    pub fn edition(&self) -> u64 {
        self.edition
    }

    /// Where the counters of these names are; `None` for one that was never read.
    pub fn places<'a>(&self, names: impl Iterator<Item = &'a Name>) -> Vec<Option<usize>> {
        names.map(|name| self.places.get(name).copied()).collect()
    }

    /// What the counters at these places add up to.
    pub fn of(&self, places: &[Option<usize>]) -> Vec<Option<CounterValue>> {
        places.iter().map(|place| Some(self.seen.get((*place)?)?.total())).collect()
    }

    /// What a counter adds up to; `None` for one that was never read.
    pub fn total(&self, name: &str) -> Option<CounterValue> {
        Some(self.seen[*self.places.get(name)?].total())
    }

    /// What the kernel had when a counter was read last: where it goes on if it is made anew.
    pub fn last(&self, name: &str) -> Option<CounterValue> {
        Some(self.seen[*self.places.get(name)?].last)
    }

    /// Writes the file where it says something else.
    fn save(&mut self) -> Result<(), TotalsError> {
        let Some(path) = self.file.as_deref().filter(|_| self.unsaved) else { return Ok(()) };
        let carried = self.places.iter().map(|(name, place)| (name, self.seen[*place].carried));
        let carried = carried.filter(|(_, carried)| *carried != CounterValue::default());
        let carried: Carried =
            carried.map(|(name, carried)| (name.to_string(), (carried.packets, carried.bytes))).collect();
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

    fn values(values: &[(&str, u64)]) -> [Counters; 1] {
        let value = |packets: &u64| CounterValue { packets: *packets, bytes: packets * 100 };
        [values.iter().map(|(name, packets)| (Name::from(*name), value(packets))).collect()]
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
    fn a_counter_at_two_places_did_not_fall() {
        let mut totals = Totals::default();
        for read in [&[("a", 5)][..], &[("a", 5), ("a", 7)], &[("a", 5), ("a", 8)], &[("a", 8)]] {
            totals.read(&values(read)).expect("no file");
        }
        assert_eq!(packets(&totals, "a"), Some(8));
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
    fn the_order_of_a_dump_says_nothing_about_whose_a_value_is() {
        let mut totals = Totals::default();
        let names = ["a", "b", "c"].map(Name::from);
        let value = |packets| CounterValue { packets, bytes: 0 };
        let mut expected = [1, 2, 3];
        for order in [[0, 1, 2], [0, 1, 2], [2, 0, 1], [1, 2, 0]] {
            expected = expected.map(|packets| packets * 2);
            let read = order.map(|at| Counters::from_iter([(names[at].clone(), value(expected[at]))]));
            totals.read(&read).expect("no file");
            totals.read(&read).expect("no file");
            totals.read(&read[..2]).expect("no file");
            let found = names.each_ref().map(|name| packets(&totals, name).expect("a total"));
            assert_eq!(found, expected);
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
