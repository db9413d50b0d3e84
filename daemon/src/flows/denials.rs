//! What is denied again and again: each once, with how often.
//!
//! In: records. Out: the most frequent and most recent ones, for `flatfell status`; whether one is new and shall be told. What
//! always holds: memory is bounded; what was told is not told again for [`AGAIN_AFTER`], unless it had to make room.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::bucket::Bucket;
use super::record::{Peer, Record, Verdict, Way};

/// How long something stays told, and how long it is remembered without another packet.
const AGAIN_AFTER: Duration = Duration::from_secs(600);

/// How many are remembered.
const KEPT: usize = 2048;

/// How many [`Denials::top`] gives.
const TOP: usize = 10;

/// Lines a second in the daemon's own log, and at once.
const LINES: (u32, u32) = (2, 20);

/// One kind of packet that is denied.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    verdict: Verdict,
    way: Way,
    pod: String,
    peer: Peer,
    service: String,
}

impl Key {
    fn of(record: &Record) -> Self {
        Self {
            verdict: record.verdict,
            way: record.direction,
            pod: record.pod_text(),
            peer: record.peer.clone(),
            service: record.service(),
        }
    }
}

#[derive(Clone, Debug)]
struct Seen {
    packets: u64,
    policies: Vec<String>,
    last: Instant,
    time: String,
    told: Option<Instant>,
    event: Option<Instant>,
}

/// A denial as `flatfell status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DenialReport {
    /// `denied` or `audited`.
    pub verdict: Verdict,
    /// The direction of the pod.
    pub direction: Way,
    /// The local pod.
    pub pod: String,
    /// The policies that decided.
    pub policies: Vec<String>,
    /// The other end, in words.
    pub peer: String,
    /// Protocol and destination port, or ICMP's type.
    pub service: String,
    /// Packets in the flow log.
    pub packets: u64,
    /// When the last one was.
    pub last: String,
}

/// Who shall be told of a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tell {
    /// The daemon's own log.
    pub line: bool,
    /// A Kubernetes Event.
    pub event: bool,
}

/// What is denied.
#[derive(Debug)]
pub struct Denials {
    seen: HashMap<Key, Seen>,
    lines: Bucket,
}

impl Denials {
    /// None yet.
    pub fn new(now: Instant) -> Self {
        Self { seen: HashMap::new(), lines: Bucket::new(LINES.0, LINES.1, now) }
    }

    /// Takes a record in; who shall be told of it.
    pub fn note(&mut self, record: &Record, now: Instant) -> Tell {
        let key = Key::of(record);
        if !self.seen.contains_key(&key) {
            self.make_room(now);
        }
        let seen = self.seen.entry(key).or_insert_with(|| Seen {
            packets: 0,
            policies: Vec::new(),
            last: now,
            time: String::new(),
            told: None,
            event: None,
        });
        seen.packets += 1;
        seen.last = now;
        seen.time.clone_from(&record.time);
        seen.policies.clone_from(&record.policies);
        let is_due = |told: Option<Instant>| told.is_none_or(|at| now.saturating_duration_since(at) >= AGAIN_AFTER);
        let tell = Tell { line: is_due(seen.told) && self.lines.take(now), event: is_due(seen.event) };
        if tell.line {
            seen.told = Some(now);
        }
        if tell.event {
            seen.event = Some(now);
        }
        tell
    }

    /// The most frequent ones, of equally frequent ones the most recent.
    pub fn top(&self, now: Instant) -> Vec<DenialReport> {
        let mut all: Vec<(&Key, &Seen)> = self.seen.iter().filter(|(_, seen)| !is_old(seen, now)).collect();
        all.sort_by_key(|(key, seen)| (Reverse(seen.packets), Reverse(seen.last), key.pod.clone()));
        let report = |(key, seen): (&Key, &Seen)| DenialReport {
            verdict: key.verdict,
            direction: key.way,
            pod: key.pod.clone(),
            policies: seen.policies.clone(),
            peer: key.peer.to_string(),
            service: key.service.clone(),
            packets: seen.packets,
            last: seen.time.clone(),
        };
        all.into_iter().take(TOP).map(report).collect()
    }

    /// Forgets what is old; where all are young, the rarest half.
    fn make_room(&mut self, now: Instant) {
        if self.seen.len() < KEPT {
            return;
        }
        self.seen.retain(|_, seen| !is_old(seen, now));
        if self.seen.len() < KEPT {
            return;
        }
        let mut ranks: Vec<(u64, Instant)> = self.seen.values().map(|seen| (seen.packets, seen.last)).collect();
        ranks.sort_unstable();
        let middle = ranks[ranks.len() / 2];
        self.seen.retain(|_, seen| (seen.packets, seen.last) > middle);
    }
}

fn is_old(seen: &Seen, now: Instant) -> bool {
    now.saturating_duration_since(seen.last) >= AGAIN_AFTER
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::record;
    use super::super::record::{End, PodName};
    use super::*;

    fn to_port(port: u16) -> Record {
        let record = record();
        Record { destination: End { port: Some(port), ..record.destination }, ..record }
    }

    #[test]
    fn each_is_told_once_in_ten_minutes() {
        let start = Instant::now();
        let mut denials = Denials::new(start);
        let both = Tell { line: true, event: true };
        assert_eq!(denials.note(&to_port(1), start), both);
        assert_eq!(denials.note(&to_port(1), start), Tell::default());
        assert_eq!(denials.note(&to_port(2), start), both, "another port");
        let other = Record { pod: Some(PodName { namespace: "a".into(), name: "b".into() }), ..to_port(1) };
        assert_eq!(denials.note(&other, start), both, "another pod");
        assert_eq!(denials.note(&Record { verdict: Verdict::Audited, ..to_port(1) }, start), both, "another verdict");
        assert_eq!(denials.note(&to_port(1), start + AGAIN_AFTER - Duration::from_secs(1)), Tell::default());
        assert_eq!(denials.note(&to_port(1), start + AGAIN_AFTER), both);
        let top = denials.top(start + AGAIN_AFTER);
        assert_eq!(top.iter().map(|one| one.packets).collect::<Vec<_>>(), [4], "the others are old");
        assert_eq!((top[0].service.as_str(), top[0].peer.as_str()), ("tcp/1", "pod web/frontend"));
    }

    #[test]
    fn lines_are_limited_and_a_line_that_was_not_told_is_told_later() {
        let start = Instant::now();
        let mut denials = Denials::new(start);
        let told = (0..100).filter(|port| denials.note(&to_port(*port), start).line).count();
        assert_eq!(told, 20);
        assert!(denials.note(&to_port(99), start + Duration::from_secs(1)).line);
    }

    #[test]
    fn a_scan_of_all_ports_forgets_no_frequent_one() {
        let start = Instant::now();
        let mut denials = Denials::new(start);
        (0..50).for_each(|_| {
            denials.note(&to_port(7), start);
        });
        for port in 1000..=u16::MAX {
            denials.note(&to_port(port), start + Duration::from_millis(u64::from(port)));
            assert!(denials.seen.len() <= KEPT);
        }
        let top = denials.top(start + Duration::from_secs(66));
        assert_eq!((top.len(), top[0].packets, top[0].service.as_str()), (TOP, 50, "tcp/7"));
        assert_eq!(top[1].service, "tcp/65535", "then the most recent");
    }
}
