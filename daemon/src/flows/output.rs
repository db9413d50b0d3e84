//! Where the flow log is written: standard output, or a file that is rotated.
//!
//! In: records, over a bounded queue. Out: one JSON object a line. What always holds: whoever gives a record is never held
//! up; a file is readable by its owner alone and never grows beyond its limit by more than one batch; what was not written
//! is counted.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use super::counts::{Counts, Loss};
use super::record::Record;

/// Records that may wait for the output.
const WAITING: usize = 4096;

/// Records written at once.
const BATCH: usize = 64;

/// Between two lines about an output that fails.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// How long what waits may take at the end.
const LAST_RECORDS: Duration = Duration::from_secs(1);

/// Where records go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Standard output.
    Stdout,
    /// A file.
    File {
        /// Its path; older ones are beside it as `PATH.1` and so on.
        path: PathBuf,
        /// Bytes of one file.
        max_bytes: u64,
        /// How many files there are at most, the current one too.
        files: u32,
    },
}

/// The end of the queue that takes records.
#[derive(Debug)]
pub struct Writer {
    queue: Option<SyncSender<Arc<Record>>>,
    done: Receiver<()>,
    counts: Arc<Counts>,
}

impl Writer {
    /// Opens the output and starts the thread that writes.
    pub fn start(output: &Output, counts: Arc<Counts>) -> io::Result<Self> {
        let sink: Box<dyn Sink> = match output {
            Output::Stdout => Box::new(Stdout),
            Output::File { path, max_bytes, files } => {
                Box::new(Rotated::open(path.clone(), *max_bytes, (*files).max(1))?)
            }
        };
        Self::spawn(sink, counts)
    }

    fn spawn(sink: Box<dyn Sink>, counts: Arc<Counts>) -> io::Result<Self> {
        let (queue, records) = sync_channel(WAITING);
        let (finished, done) = sync_channel(1);
        let counted = Arc::clone(&counts);
        thread::Builder::new().name("flow-log".to_owned()).spawn(move || {
            write_all(&records, sink, &counted);
            let _ = finished.send(());
        })?;
        Ok(Self { queue: Some(queue), done, counts })
    }

    /// Gives a record on, or counts it as lost.
    pub fn write(&self, record: &Arc<Record>) {
        let sent = self.queue.as_ref().map(|queue| queue.try_send(Arc::clone(record)));
        if !matches!(sent, Some(Ok(()))) {
            debug_assert!(matches!(sent, Some(Err(TrySendError::Full(_)))), "the writer ends with its queue");
            self.counts.lost(Loss::Writer, 1);
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue = None;
        // A pipe that nobody reads would hold up the end for ever.
        let _ = self.done.recv_timeout(LAST_RECORDS);
    }
}

/// Writes until the queue is closed.
fn write_all(records: &Receiver<Arc<Record>>, mut sink: Box<dyn Sink>, counts: &Counts) {
    let mut told: Option<Instant> = None;
    while let Ok(first) = records.recv() {
        let batch: Vec<Arc<Record>> = std::iter::once(first).chain(records.try_iter().take(BATCH - 1)).collect();
        match lines(&batch).and_then(|lines| sink.put(&lines)) {
            Ok(()) => batch.iter().for_each(|record| counts.record(record.verdict)),
            Err(error) => {
                counts.lost(Loss::Writer, u64::try_from(batch.len()).unwrap_or(u64::MAX));
                if told.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
                    tracing::warn!(%error, "the flow log cannot be written: records are lost");
                    told = Some(Instant::now());
                }
            }
        }
    }
}

fn lines(batch: &[Arc<Record>]) -> io::Result<Vec<u8>> {
    let mut lines = Vec::new();
    for record in batch {
        serde_json::to_writer(&mut lines, record.as_ref())?;
        lines.push(b'\n');
    }
    Ok(lines)
}

/// What takes whole lines, all of them or an error.
trait Sink: Send {
    fn put(&mut self, lines: &[u8]) -> io::Result<()>;
}

struct Stdout;

impl Sink for Stdout {
    fn put(&mut self, lines: &[u8]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(lines)?;
        out.flush()
    }
}

/// A file and the older ones beside it.
struct Rotated {
    path: PathBuf,
    max_bytes: u64,
    files: u32,
    file: File,
    size: u64,
    /// The last line may be half a one.
    torn: bool,
}

impl Rotated {
    fn open(path: PathBuf, max_bytes: u64, files: u32) -> io::Result<Self> {
        let file = append(&path)?;
        let size = file.metadata()?.len();
        Ok(Self { path, max_bytes, files, file, size, torn: false })
    }

    /// The name of an older file.
    fn older(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }

    /// The current file becomes the first of the older ones; the oldest goes.
    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..self.files).rev() {
            let from = if number == 1 { self.path.clone() } else { self.older(number - 1) };
            match fs::rename(from, self.older(number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        if self.files == 1 {
            fs::remove_file(&self.path)?;
        }
        self.file = append(&self.path)?;
        self.size = 0;
        self.torn = false;
        Ok(())
    }
}

impl Sink for Rotated {
    fn put(&mut self, lines: &[u8]) -> io::Result<()> {
        let length = u64::try_from(lines.len()).unwrap_or(u64::MAX);
        if self.size > 0 && self.size.saturating_add(length) > self.max_bytes {
            self.rotate()?;
        }
        if self.torn {
            self.file.write_all(b"\n")?;
        }
        self.torn = true;
        self.file.write_all(lines)?;
        self.torn = false;
        self.size = self.size.saturating_add(length);
        Ok(())
    }
}

fn append(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::sync::mpsc::channel;

    use super::super::counts::LoggedPackets;
    use super::super::record::tests::record;
    use super::*;

    fn line() -> u64 {
        u64::try_from(serde_json::to_string(&record()).expect("JSON").len()).expect("short") + 1
    }

    fn count(counts: &Counts, of: &str) -> u64 {
        let numbers = counts.numbers(LoggedPackets::default(), Instant::now());
        let all = numbers.records.iter().chain(&numbers.lost);
        all.filter(|(name, _)| *name == of).map(|(_, count)| count).sum()
    }

    #[test]
    fn files_are_rotated_and_the_oldest_goes() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("flows.json");
        let mut rotated = Rotated::open(path.clone(), 3 * line(), 3).expect("opened");
        let text = lines(&[Arc::new(record())]).expect("lines");
        (0..11).for_each(|_| rotated.put(&text).expect("written"));
        drop(rotated);
        let sizes =
            |name: &str| fs::metadata(dir.path().join(name)).map(|file| (file.len() / line(), file.mode() & 0o777));
        assert_eq!(sizes("flows.json").expect("there"), (2, 0o600));
        assert_eq!(sizes("flows.json.1").expect("there"), (3, 0o600));
        assert_eq!(sizes("flows.json.2").expect("there"), (3, 0o600));
        assert!(sizes("flows.json.3").is_err(), "three files");
        let mut again = Rotated::open(path, 3 * line(), 1).expect("opened");
        (0..2).for_each(|_| again.put(&text).expect("written"));
        assert_eq!(sizes("flows.json").expect("there").0, 1, "it went on where it was, and one file is kept");
    }

    #[test]
    fn what_was_written_is_a_record_and_what_was_not_is_lost() {
        let counts = Arc::new(Counts::default());
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("flows.json");
        let output = Output::File { path: path.clone(), max_bytes: 1 << 20, files: 2 };
        let writer = Writer::start(&output, Arc::clone(&counts)).expect("started");
        (0..100).for_each(|_| writer.write(&Arc::new(record())));
        drop(writer);
        assert_eq!((count(&counts, "denied"), count(&counts, "writer")), (100, 0));
        let text = fs::read_to_string(&path).expect("a file");
        assert_eq!(text.lines().map(serde_json::from_str::<Record>).filter(Result::is_ok).count(), 100);
        let full = Output::File { path: "/dev/full".into(), max_bytes: 1 << 20, files: 2 };
        let writer = Writer::start(&full, Arc::clone(&counts)).expect("started");
        (0..100).for_each(|_| writer.write(&Arc::new(record())));
        drop(writer);
        assert_eq!((count(&counts, "denied"), count(&counts, "writer")), (100, 100));
        let nowhere = Output::File { path: dir.path().join("no/such"), max_bytes: 1 << 20, files: 2 };
        assert!(Writer::start(&nowhere, counts).is_err());
    }

    /// Takes nothing until it is told to.
    struct Stuck(Receiver<()>);

    impl Sink for Stuck {
        fn put(&mut self, _: &[u8]) -> io::Result<()> {
            let _ = self.0.recv();
            Ok(())
        }
    }

    #[test]
    fn an_output_that_is_stuck_holds_nobody_up() {
        let counts = Arc::new(Counts::default());
        let (go, stuck) = channel();
        let writer = Writer::spawn(Box::new(Stuck(stuck)), Arc::clone(&counts)).expect("started");
        let start = Instant::now();
        (0..10_000).for_each(|_| writer.write(&Arc::new(record())));
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        let lost = count(&counts, "writer");
        assert!((10_000 - 4096 - 64..=10_000 - 4096).contains(&lost), "{lost}");
        drop(go);
        drop(writer);
        assert_eq!(count(&counts, "denied") + count(&counts, "writer"), 10_000);
    }
}
