//! The counters, which are read beside the engine's thread.
//!
//! In: the kernel's values, read on a thread with a socket of its own; from the engine's thread, which tables are in force and what their
//! counters mean. Out: totals. What always holds: who asks makes no transaction wait for a dump; what was dumped before the engine remade
//! or read counters is not taken in after it, for an older value would look like a counter that fell.

use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use flatfell_rules::compile::{Meanings, Slot};
use flatfell_rules::ruleset::CounterValue;

use super::{CounterSnapshot, EngineError};
use crate::kernel::{Counters, Kernel};
use crate::netlink::NetlinkError;
use crate::totals::{Totals, TotalsError};

/// How often a dump is tried that the engine's own work makes worthless.
const ATTEMPTS: u32 = 5;

/// Between two of them: a turn of the engine takes about as long.
const PAUSE: Duration = Duration::from_millis(5);

/// What counters add up to, and what may be read now.
struct Books {
    totals: Totals,
    slot: Slot,
    meanings: Meanings,
    places: Places,
    /// Whether the engine is about to remake counters.
    is_closed: bool,
    /// How often the engine has closed or written the books: what was dumped under another number is old.
    edition: u64,
    /// When values were taken in last.
    read: Instant,
    fault: Option<String>,
}

/// Where the totals of some meanings are.
#[derive(Default)]
struct Places {
    meanings: Meanings,
    edition: u64,
    places: Vec<Option<usize>>,
}

/// The one place where counters are added up.
pub(super) struct Counting {
    books: Mutex<Books>,
}

/// Where an answer goes.
pub(super) type Asker = Sender<Result<CounterSnapshot, NetlinkError>>;

/// Starts the thread that reads, in the caller's network namespace. It ends when nobody can ask any more.
pub(super) fn start(counting: Arc<Counting>) -> Result<Sender<Asker>, EngineError> {
    let (questions, inbox) = channel::<Asker>();
    let (opened, outcome) = sync_channel(1);
    thread::Builder::new().name("counters".to_owned()).spawn(move || match Kernel::open() {
        Ok(mut kernel) => {
            let _ = opened.send(Ok(()));
            for asker in inbox {
                // Whoever asked may have given up.
                let _ = asker.send(counting.read(&mut kernel));
            }
        }
        Err(error) => {
            let _ = opened.send(Err(error));
        }
    })?;
    outcome.recv().map_err(|_| EngineError::Silent)??;
    Ok(questions)
}

impl Counting {
    /// Opens the file that remembers what counters lost.
    pub(super) fn open(file: Option<PathBuf>) -> Self {
        let (totals, error) = Totals::open(file);
        let books = Books {
            totals,
            slot: Slot::A,
            meanings: Meanings::new(),
            places: Places::default(),
            is_closed: true,
            edition: 0,
            read: Instant::now(),
            fault: error.as_ref().map(not_carried),
        };
        Self { books: Mutex::new(books) }
    }

    /// What every counter adds up to. While the engine writes all the time it is what was read before, with its age.
    fn read(&self, kernel: &mut Kernel) -> Result<CounterSnapshot, NetlinkError> {
        for _ in 0..ATTEMPTS {
            let Some((slot, edition)) = self.edition() else {
                thread::sleep(PAUSE);
                continue;
            };
            let values = dump(kernel, slot)?;
            if self.take_in_if(edition, &values) {
                break;
            }
        }
        Ok(self.snapshot())
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn edition(&self) -> Option<(Slot, u64)> {
        let books = self.books();
        (!books.is_closed).then_some((books.slot, books.edition))
    }

    fn take_in_if(&self, edition: u64, values: &[Counters]) -> bool {
        let mut books = self.books();
        let is_current = books.edition == edition;
        if is_current {
            books.take_in(values);
        }
        is_current
    }

    fn snapshot(&self) -> CounterSnapshot {
        let mut books = self.books();
        let Books { totals, meanings, places, .. } = &mut *books;
        if !places.meanings.ptr_eq(meanings) || places.edition != totals.edition() {
            let (edition, found) = (totals.edition(), totals.places(meanings.keys()));
            *places = Places { meanings: meanings.clone(), edition, places: found };
        }
        CounterSnapshot { totals: totals.of(&places.places), meanings: meanings.clone(), read: Some(books.read) }
    }

    /// The engine's thread has read these.
    pub(super) fn take_in(&self, values: &[Counters]) {
        let mut books = self.books();
        books.edition += 1;
        books.take_in(values);
    }

    /// Counters are about to be made, deleted or moved.
    pub(super) fn close(&self) {
        let mut books = self.books();
        books.edition += 1;
        books.is_closed = true;
    }

    /// These tables are in force, and their counters mean this.
    pub(super) fn begin(&self, slot: Slot, meanings: Meanings) {
        let mut books = self.books();
        books.edition += 1;
        books.is_closed = false;
        books.slot = slot;
        books.meanings = meanings;
    }

    /// The tables before are in force as they were.
    pub(super) fn reopen(&self) {
        let mut books = self.books();
        books.edition += 1;
        books.is_closed = false;
    }

    /// What the kernel had when a counter was read last.
    pub(super) fn last(&self, name: &str) -> Option<CounterValue> {
        self.books().totals.last(name)
    }

    /// There is no table that counters could go on with.
    pub(super) fn forget(&self) {
        let mut books = self.books();
        books.edition += 1;
        let forgotten = books.totals.forget();
        books.note(forgotten);
    }

    /// Why what counters lost is not remembered, if it is not.
    pub(super) fn fault(&self) -> Option<String> {
        self.books().fault.clone()
    }
}

impl Books {
    fn take_in(&mut self, values: &[Counters]) {
        let taken = self.totals.read(values);
        self.note(taken);
        self.read = Instant::now();
    }

    fn note(&mut self, result: Result<(), TotalsError>) {
        self.fault = result.err().as_ref().map(not_carried);
    }
}

/// The counters of a slot's tables.
pub(super) fn dump(kernel: &mut Kernel, slot: Slot) -> Result<[Counters; 2], NetlinkError> {
    Ok([kernel.counters(&slot.inet())?, kernel.counters(&slot.bridge())?])
}

fn not_carried(error: &TotalsError) -> String {
    format!("what counters lost is not remembered over a restart: {error}")
}

#[cfg(test)]
mod tests {
    use flatfell_rules::compile::CounterMeaning;

    use super::*;
    use crate::testing::in_namespace;

    fn values(packets: u64) -> [Counters; 1] {
        [Counters::from_iter([("c".into(), CounterValue { packets, bytes: 0 })])]
    }

    fn meanings() -> Meanings {
        Meanings::unit("c".into(), Arc::new(CounterMeaning::Unattributed))
    }

    fn total(counting: &Counting) -> Option<u64> {
        counting.snapshot().totals.first().copied().flatten().map(|total| total.packets)
    }

    #[test]
    fn a_dump_from_before_the_engines_own_is_not_taken_in() {
        let counting = Counting::open(None);
        assert_eq!(counting.edition(), None, "nothing is in force");
        counting.begin(Slot::A, meanings());
        let (_, edition) = counting.edition().expect("open");
        // Dumped, then the engine reads more before the dump is taken in.
        counting.take_in(&values(105));
        assert!(!counting.take_in_if(edition, &values(100)), "it would count as a fall");
        assert_eq!(total(&counting), Some(105));
        let (_, edition) = counting.edition().expect("open");
        counting.close();
        assert!(!counting.take_in_if(edition, &values(200)), "the counter begins anew from 105");
        assert_eq!((counting.edition(), total(&counting)), (None, Some(105)));
        counting.reopen();
        let (_, edition) = counting.edition().expect("open again");
        assert!(counting.take_in_if(edition, &values(106)));
        assert_eq!(total(&counting), Some(106));
    }

    #[test]
    fn who_asks_while_the_engine_writes_gets_what_was_read_before() {
        in_namespace(|| {
            let counting = Arc::new(Counting::open(None));
            counting.begin(Slot::A, meanings());
            counting.take_in(&values(7));
            counting.close();
            let before = Instant::now();
            let (asker, answer) = channel();
            start(counting).expect("a thread").send(asker).expect("it listens");
            let snapshot = answer.recv().expect("an answer").expect("a snapshot");
            assert_eq!(snapshot.totals, [Some(CounterValue { packets: 7, bytes: 0 })]);
            assert!(snapshot.read.is_some_and(|read| read < before), "with its age");
            assert!(before.elapsed() < Duration::from_secs(1), "and soon");
        });
    }
}
