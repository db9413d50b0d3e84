//! Traffic that runs while rules change, counted packet by packet.
//!
//! In: pairs of places, each allowed or forbidden. Out: what was sent, received and lost, live and at the end. What always
//! holds: a message is counted once it has left the sender, and lost only if it has not come long after the last one was
//! sent; a sender that was late skips its turn, so that no burst overflows a queue and looks like a loss of policy.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::lab::{Lab, LabError};
use crate::place::Place;
use crate::wires::Wires;

/// How long a silence must last before what is missing counts as lost, and the longest wait for one.
const SILENCE: Duration = Duration::from_millis(100);
const DRAIN: Duration = Duration::from_secs(2);

/// The shape of a pair's traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// UDP, each datagram from another port: every one is judged afresh.
    Fresh,
    /// UDP on one flow, request and response; a message counts as received when its response is back
    /// (of a forbidden pair: when the request arrived).
    Steady,
    /// UDP on one flow, where the client speaks once and then only the server sends.
    Push,
    /// One TCP connection with numbered messages.
    Stream,
}

/// Who talks to whom.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The client.
    pub from: Place,
    /// The server.
    pub to: Place,
    /// The address the client uses: one of the server's, or a Service's.
    pub address: IpAddr,
    /// The port the client uses.
    pub port: u16,
    /// The port the server listens on, where a Service changes it.
    pub server_port: u16,
    /// The shape.
    pub flow: Flow,
    /// Whether it should pass: then losses count, else arrivals.
    pub allowed: bool,
}

impl Pair {
    /// A pair to one of the server's own addresses.
    pub fn new(from: Place, to: Place, address: impl Into<IpAddr>, port: u16, flow: Flow) -> Self {
        Self { from, to, address: address.into(), port, server_port: port, flow, allowed: true }
    }

    /// The same, not to pass.
    pub fn forbidden(mut self) -> Self {
        self.allowed = false;
        self
    }
}

/// How far a pair is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Messages that left the sender.
    pub sent: u64,
    /// Messages that came to their end.
    pub received: u64,
    /// When the last one was read, which on a busy machine is some milliseconds after it came.
    pub last_received: Option<Instant>,
    /// The longest time between two.
    pub longest_gap: Duration,
}

/// What traffic came to.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Messages of allowed pairs that were sent.
    pub sent: u64,
    /// Those that came.
    pub received: u64,
    /// Those that did not.
    pub lost: u64,
    /// Messages of forbidden pairs that were sent.
    pub forbidden_sent: u64,
    /// Messages of forbidden pairs that came.
    pub forbidden_received: u64,
    /// Each pair, in the order given.
    pub pairs: Vec<Progress>,
}

/// A pair's numbers, written by two threads.
#[derive(Default)]
pub(crate) struct Count {
    pub(crate) sent: AtomicU64,
    received: AtomicU64,
    /// Nanoseconds since the start; 0 for never.
    last: AtomicU64,
    gap: AtomicU64,
}

impl Count {
    pub(crate) fn receive(&self, start: Instant) {
        let now = nanoseconds(start.elapsed());
        let last = self.last.swap(now, Ordering::Relaxed);
        if last != 0 {
            self.gap.fetch_max(now.saturating_sub(last), Ordering::Relaxed);
        }
        self.received.fetch_add(1, Ordering::Release);
    }

    fn progress(&self, start: Instant) -> Progress {
        let last = self.last.load(Ordering::Relaxed);
        Progress {
            received: self.received.load(Ordering::Acquire),
            sent: self.sent.load(Ordering::Acquire),
            last_received: (last != 0).then(|| start + Duration::from_nanos(last)),
            longest_gap: Duration::from_nanos(self.gap.load(Ordering::Relaxed)),
        }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// What sender, receiver and owner share.
pub(crate) struct Shared {
    pub(crate) start: Instant,
    pub(crate) counts: Vec<Count>,
    pub(crate) sending: AtomicBool,
    pub(crate) receiving: AtomicBool,
}

/// Running traffic; stops when dropped.
pub struct Traffic {
    shared: Arc<Shared>,
    pairs: Vec<Pair>,
    threads: Vec<JoinHandle<()>>,
}

impl Traffic {
    /// Starts all pairs; each sends a message every `interval`, or as often as the machine can.
    pub fn start(lab: &Lab, pairs: &[Pair], interval: Duration) -> Result<Self, LabError> {
        let wires = Wires::open(lab, pairs)?;
        let shared = Arc::new(Shared {
            start: Instant::now(),
            counts: pairs.iter().map(|_| Count::default()).collect(),
            sending: AtomicBool::new(true),
            receiving: AtomicBool::new(true),
        });
        let wires = Arc::new(wires);
        let (own, with) = (Arc::clone(&shared), Arc::clone(&wires));
        let receiver = thread::spawn(move || with.receive(&own));
        let (own, with) = (Arc::clone(&shared), wires);
        let sender = thread::spawn(move || with.send(&own, interval));
        Ok(Self { shared, pairs: pairs.to_vec(), threads: vec![sender, receiver] })
    }

    /// How far each pair is, in the order given.
    pub fn progress(&self) -> Vec<Progress> {
        self.shared.counts.iter().map(|count| count.progress(self.shared.start)).collect()
    }

    /// Stops sending, waits for what is on its way, and counts.
    pub fn stop(mut self) -> Report {
        self.end();
        let mut report = Report { pairs: self.progress(), ..Report::default() };
        for (pair, progress) in self.pairs.iter().zip(&report.pairs) {
            if pair.allowed {
                report.sent += progress.sent;
                report.received += progress.received;
                report.lost += progress.sent.saturating_sub(progress.received);
            } else {
                report.forbidden_sent += progress.sent;
                report.forbidden_received += progress.received;
            }
        }
        report
    }

    fn end(&mut self) {
        self.shared.sending.store(false, Ordering::Release);
        let threads = std::mem::take(&mut self.threads);
        if threads.is_empty() {
            return;
        }
        let total = || self.shared.counts.iter().map(|count| count.received.load(Ordering::Acquire)).sum::<u64>();
        let (deadline, mut before) = (Instant::now() + DRAIN, None);
        while before != Some(total()) && Instant::now() < deadline {
            before = Some(total());
            thread::sleep(SILENCE);
        }
        self.shared.receiving.store(false, Ordering::Release);
        for thread in threads {
            if let Err(cause) = thread.join()
                && !thread::panicking()
            {
                std::panic::resume_unwind(cause);
            }
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.end();
    }
}
