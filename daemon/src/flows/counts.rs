//! How many packets the flow log has, and how many it lost and why.
//!
//! In: what reader, writer and events did, and what the kernel counted. Out: [`FlowNumbers`]. What always holds: no number falls; a
//! packet is in one of them; once nothing is on its way, records and losses together are the packets that were denied or
//! audited since the log began.
//!
//! ```text
//! denied + audited   (the kernel's counters of pods)
//!   = beyond the rate                         lost: rate      the kernel counted it
//!   + sent to the group                       the kernel counted it
//!       = never heard                         lost: socket    gaps between sequence numbers; at the end of a burst and while
//!                                                             nobody listens: what the kernel sent less what was heard
//!       + heard = unreadable                  lost: unreadable
//!               + beyond its pod's share      lost: pod
//!               + not written                 lost: writer
//!               + a record
//! ```

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::record::Verdict;

/// What was sent to the group this long ago has been heard or is lost.
const ARRIVES_WITHIN: Duration = Duration::from_secs(2);

/// Why a packet has no record, where the daemon knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Its headers cannot be read.
    Unreadable,
    /// Its pod had more than its share.
    Pod,
    /// The output could not take it.
    Writer,
}

/// What became of a Kubernetes Event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventResult {
    /// The API server has it.
    Created,
    /// The API server does not take it.
    Failed,
    /// There were too many.
    Limited,
}

/// What the metrics show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowNumbers {
    /// Records by verdict.
    pub records: Vec<(&'static str, u64)>,
    /// Packets without a record, by reason.
    pub lost: Vec<(&'static str, u64)>,
    /// Kubernetes Events by result.
    pub events: Vec<(&'static str, u64)>,
}

/// What the kernel counted for the flow log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoggedPackets {
    /// Packets given to the group.
    pub sent: u64,
    /// Packets beyond the rate.
    pub beyond_rate: u64,
}

/// The counters of the daemon's part.
#[derive(Debug, Default)]
pub struct Counts {
    denied: AtomicU64,
    audited: AtomicU64,
    unreadable: AtomicU64,
    pod: AtomicU64,
    writer: AtomicU64,
    heard: AtomicU64,
    gaps: AtomicU64,
    created: AtomicU64,
    failed: AtomicU64,
    limited: AtomicU64,
    unheard: Mutex<Unheard>,
}

/// What the kernel sent and nobody heard.
#[derive(Debug, Default)]
struct Unheard {
    /// What the kernel had sent when the log began.
    before: u64,
    /// An older look at what it has sent.
    look: Option<(Instant, u64)>,
    lost: u64,
}

impl Counts {
    /// The log begins; so much was sent before.
    pub fn begin(&self, sent_before: u64) {
        self.unheard.lock().unwrap_or_else(PoisonError::into_inner).before = sent_before;
    }

    /// Packets that were heard.
    pub fn heard(&self, packets: u64) {
        self.heard.fetch_add(packets, Ordering::Relaxed);
    }

    /// Sequence numbers that were passed over.
    pub fn gap(&self, packets: u64) {
        self.gaps.fetch_add(packets, Ordering::Relaxed);
    }

    /// A packet without a record.
    pub fn lost(&self, loss: Loss, packets: u64) {
        let counter = match loss {
            Loss::Unreadable => &self.unreadable,
            Loss::Pod => &self.pod,
            Loss::Writer => &self.writer,
        };
        counter.fetch_add(packets, Ordering::Relaxed);
    }

    /// A record.
    pub fn record(&self, verdict: Verdict) {
        let counter = match verdict {
            Verdict::Denied => &self.denied,
            Verdict::Audited => &self.audited,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// A Kubernetes Event.
    pub fn event(&self, result: EventResult) {
        let counter = match result {
            EventResult::Created => &self.created,
            EventResult::Failed => &self.failed,
            EventResult::Limited => &self.limited,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// All numbers, with what the kernel counted.
    pub fn numbers(&self, logged: LoggedPackets, now: Instant) -> FlowNumbers {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        FlowNumbers {
            records: vec![(Verdict::Denied.word(), read(&self.denied)), (Verdict::Audited.word(), read(&self.audited))],
            lost: vec![
                ("rate", logged.beyond_rate),
                ("socket", self.unheard(logged.sent, now)),
                ("unreadable", read(&self.unreadable)),
                ("pod", read(&self.pod)),
                ("writer", read(&self.writer)),
            ],
            events: vec![
                ("created", read(&self.created)),
                ("failed", read(&self.failed)),
                ("limited", read(&self.limited)),
            ],
        }
    }

    /// What was lost on the way from the kernel. Both ways to know it say too little at worst: a gap shows with the next
    /// packet only, and of what was sent before an older look, all that was heard since is taken for heard.
    fn unheard(&self, sent: u64, now: Instant) -> u64 {
        let mut unheard = self.unheard.lock().unwrap_or_else(PoisonError::into_inner);
        let (heard, gaps) = (self.heard.load(Ordering::Relaxed), self.gaps.load(Ordering::Relaxed));
        let old = unheard.look.filter(|(at, _)| now.saturating_duration_since(*at) >= ARRIVES_WITHIN);
        if let Some((_, sent)) = old {
            let missing = sent.saturating_sub(unheard.before).saturating_sub(heard);
            unheard.lost = unheard.lost.max(missing);
        }
        if old.is_some() || unheard.look.is_none() {
            unheard.look = Some((now, sent));
        }
        unheard.lost = unheard.lost.max(gaps);
        unheard.lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(sent: u64, beyond_rate: u64) -> LoggedPackets {
        LoggedPackets { sent, beyond_rate }
    }

    fn lost(numbers: &FlowNumbers, wanted: &str) -> u64 {
        numbers.lost.iter().find(|(reason, _)| *reason == wanted).map(|(_, count)| *count).expect("a reason")
    }

    #[test]
    fn everything_is_somewhere_once_nothing_is_on_its_way() {
        let counts = Counts::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        counts.begin(1_000);
        assert_eq!(lost(&counts.numbers(kernel(1_000, 7), at(0)), "socket"), 0);
        // 100 were sent since: 60 are heard, 30 passed over, 10 lost at the end.
        counts.heard(60);
        counts.gap(30);
        counts.lost(Loss::Unreadable, 1);
        counts.lost(Loss::Pod, 20);
        counts.lost(Loss::Writer, 9);
        (0..30).for_each(|count| counts.record(if count < 10 { Verdict::Audited } else { Verdict::Denied }));
        assert_eq!(lost(&counts.numbers(kernel(1_100, 7), at(1)), "socket"), 30, "some may be on their way");
        assert_eq!(lost(&counts.numbers(kernel(1_100, 7), at(2)), "socket"), 30);
        let numbers = counts.numbers(kernel(1_100, 7), at(4));
        assert_eq!(numbers.lost, [("rate", 7), ("socket", 40), ("unreadable", 1), ("pod", 20), ("writer", 9)]);
        assert_eq!(numbers.records, [("denied", 20), ("audited", 10)]);
        let all: u64 = numbers.lost.iter().chain(&numbers.records).map(|(_, count)| count).sum();
        assert_eq!(all, 107);
        counts.heard(5);
        assert_eq!(lost(&counts.numbers(kernel(1_100, 7), at(9)), "socket"), 40, "it never falls");
    }
}
