//! The flow log: what was denied, or would have been, with names.
//!
//! In: packets that the kernel's rules copied to an NFLOG group ([`nflog`]), and what is known of the cluster. Out: records,
//! written to an output, kept for `flatfell flows`, told in the daemon's own log and as Kubernetes Events; numbers. What
//! always holds: nothing here can hold up or change what is enforced; every queue is bounded, and what it loses is counted
//! ([`counts`]).
//!
//! ```text
//!  kernel: rate -> NFLOG group -> reader (a thread): headers, share of the pod, names
//!                                   +-> the last records, followers        flatfell flows
//!                                   +-> denials                            flatfell status, the daemon's own log
//!                                   +-> writer (a thread)                  file or standard output
//!                                   +-> events (a task)                    the API server
//! ```

mod bucket;
mod counts;
mod denials;
pub mod events;
mod names;
pub mod nflog;
mod output;
mod packet;
mod reader;
mod record;

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use flatfell_rules::compile::{FlowLog, Logged, Slot};
use tokio::sync::broadcast;

pub use bucket::Bucket;
pub use counts::{Counts, EventResult, FlowNumbers, LoggedPackets, Loss};
pub use denials::{DenialReport, Denials, Tell};
pub use names::{Names, Owner, Question};
pub use output::Output;
pub use reader::{Parts, Reader};
pub use record::{End, Filter, Icmp, Peer, PodName, Record, Verdict, Way};

use crate::kernel::Kernel;
use crate::netlink::NetlinkError;
use crate::totals::Totals;
use reader::Waiting;

/// Records that are kept for who asks.
const RECENT: usize = 256;

/// Records that a follower may be behind.
const BEHIND: usize = 1024;

/// What the flow log is told at its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowConfig {
    /// Group and rate in the kernel; `None` for no log at all.
    pub kernel: Option<FlowLog>,
    /// Packets a second of one pod.
    pub pod_rate: u32,
    /// Where records are written.
    pub output: Option<Output>,
}

/// What the flow log shows: its numbers, the last records and those to come.
#[derive(Debug)]
pub struct Flows {
    counts: Arc<Counts>,
    kept: Mutex<Kept>,
    live: broadcast::Sender<Arc<Record>>,
}

/// What is kept of the records.
#[derive(Debug)]
struct Kept {
    recent: VecDeque<Arc<Record>>,
    denials: Denials,
    fault: Option<String>,
}

/// The last records, and those to come.
#[derive(Debug)]
pub struct Feed {
    /// The last ones, the oldest first.
    pub recent: Vec<Arc<Record>>,
    /// Those behind them, without a gap.
    pub live: broadcast::Receiver<Arc<Record>>,
}

impl Default for Flows {
    fn default() -> Self {
        let kept = Kept { recent: VecDeque::new(), denials: Denials::new(Instant::now()), fault: None };
        Self { counts: Arc::default(), kept: Mutex::new(kept), live: broadcast::Sender::new(BEHIND) }
    }
}

impl Flows {
    /// All numbers, with what the kernel counted.
    pub fn numbers(&self, logged: LoggedPackets) -> FlowNumbers {
        self.counts.numbers(logged, Instant::now())
    }

    /// The most frequent denials of the last minutes.
    pub fn denials(&self) -> Vec<DenialReport> {
        self.kept().denials.top(Instant::now())
    }

    /// Why nothing is logged, if that is so.
    pub fn fault(&self) -> Option<String> {
        self.kept().fault.clone()
    }

    /// The last records, and those to come.
    pub fn feed(&self) -> Feed {
        let kept = self.kept();
        Feed { recent: kept.recent.iter().cloned().collect(), live: self.live.subscribe() }
    }

    /// The counters, to count on.
    pub fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_fault(&self, fault: Option<String>) {
        self.kept().fault = fault;
    }

    /// Keeps a record, hands it to followers, and says who else shall be told.
    fn keep(&self, record: &Arc<Record>, now: Instant) -> Tell {
        let mut kept = self.kept();
        if kept.recent.len() == RECENT {
            kept.recent.pop_front();
        }
        kept.recent.push_back(Arc::clone(record));
        // Under the lock, so that a feed has each record once. Nobody may follow.
        let _ = self.live.send(Arc::clone(record));
        kept.denials.note(record, now)
    }
}

/// The bound group, before there are rules that log; and what the rules shall log.
#[derive(Debug)]
pub struct Opened {
    waiting: Option<Waiting>,
    /// Group and rate for the rules; `None` where the kernel has no such log.
    pub kernel: Option<FlowLog>,
    fault: Option<String>,
    sent_before: u64,
}

/// Binds the group in the calling thread's network namespace. A kernel without NFLOG would refuse rules that log: there
/// shall be none then. A group that another program has is tried again later.
pub fn open(config: &FlowConfig, carried: Option<PathBuf>) -> io::Result<Opened> {
    let Some(log) = config.kernel else {
        return Ok(Opened { waiting: None, kernel: None, fault: None, sent_before: 0 });
    };
    let sent_before = sent_before(carried).unwrap_or_default();
    let (waiting, bound) = Waiting::spawn(log.group)?;
    let group = log.group;
    let (kernel, fault) = match bound {
        Ok(()) => (Some(log), None),
        Err(error) if nflog::is_taken(&error) => {
            let why =
                format!("another program has the NFLOG group {group} (--flow-log-group chooses another): {error}");
            (Some(log), Some(why))
        }
        Err(error) => (None, Some(format!("this kernel has no NFLOG (modprobe nfnetlink_log): {error}"))),
    };
    let fault = fault.map(|why| format!("denials are not logged: {why}"));
    if let Some(fault) = &fault {
        tracing::warn!("{fault}");
    }
    Ok(Opened { waiting: kernel.map(|_| waiting), kernel, fault, sent_before })
}

/// What the rules of an earlier run have sent to the group, as [`Totals`] will count it; `carried` is their file.
fn sent_before(carried: Option<PathBuf>) -> Result<u64, NetlinkError> {
    let mut kernel = Kernel::open()?;
    let name = Logged::Sent.counter();
    let mut sent = None;
    for slot in Slot::BOTH {
        let counters = kernel.counters(&slot.inet())?;
        let packets = counters.iter().filter(|(counter, _)| **counter == name).map(|(_, value)| value.packets);
        sent = sent.max(packets.last());
    }
    // What is wrong with the file the engine tells.
    let carried = Totals::open(carried).0.total(&name).map_or(0, |value| value.packets);
    Ok(sent.map_or(0, |sent| sent.saturating_add(carried)))
}

#[cfg(test)]
mod tests {
    use super::record::tests::record;
    use super::*;

    #[test]
    fn a_feed_has_each_record_once() {
        let flows = Flows::default();
        let numbered = |number: u32| Arc::new(Record { bytes: number, ..record() });
        (0..300).for_each(|number| {
            flows.keep(&numbered(number), Instant::now());
        });
        let mut feed = flows.feed();
        (300..310).for_each(|number| {
            flows.keep(&numbered(number), Instant::now());
        });
        let mut all: Vec<u32> = feed.recent.iter().map(|record| record.bytes).collect();
        while let Ok(record) = feed.live.try_recv() {
            all.push(record.bytes);
        }
        assert_eq!(all, (300 - 256..310).collect::<Vec<u32>>());
        assert_eq!(flows.denials()[0].packets, 310);
    }

    #[test]
    fn a_follower_that_is_too_slow_knows_how_many_it_lost() {
        let flows = Flows::default();
        let mut feed = flows.feed();
        (0..2_000).for_each(|_| {
            flows.keep(&Arc::new(record()), Instant::now());
        });
        let lost = feed.live.try_recv().expect_err("too slow");
        assert!(matches!(lost, broadcast::error::TryRecvError::Lagged(976)), "{lost:?}");
    }
}
