//! Break-glass: for a while this node enforces nothing.
//!
//! In: what policy says (this stands between the [`crate::controller`] and the engine), `flatfell pause` and
//! `flatfell resume`, the value of the Node's annotation [`ANNOTATION`], and time. Out: what the engine shall enforce,
//! and [`Paused`] for readers. What always holds: while paused the engine gets a policy that isolates nobody, at any
//! other time the real one, newest first; a pause ends by itself, also when nobody reads its end; it is kept in memory
//! alone, so a restart ends a pause by command; what cannot be understood does not pause.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use flatfell_rules::effective::{Effective, EffectivePod, Isolation};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use tokio::sync::{Notify, watch};

use crate::batch::Batch;
use crate::controller::Enforce;

/// The annotation of a Node that pauses it: an RFC 3339 time.
pub const ANNOTATION: &str = "flatfell.io/paused-until";

/// No pause is longer: what shall last is a change of policy.
pub const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// How often the clock is looked at while the annotation pauses: the wall clock can be set.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What readers see of a pause.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paused {
    /// When it ends; `None` when there is none.
    pub until: Option<Timestamp>,
    /// What is wrong with the annotation.
    pub problem: Option<String>,
}

impl Paused {
    /// What an operator should read, though nothing is broken.
    pub fn notes(&self) -> Vec<String> {
        let paused = self.until.map(|until| {
            format!("paused until {until}: this node enforces no policy (`flatfell resume`, or remove the Node's annotation {ANNOTATION})")
        });
        paused.into_iter().chain(self.problem.clone()).collect()
    }
}

/// What came of `flatfell resume`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resumed {
    /// There was no pause.
    WasNotPaused,
    /// Policy is on its way to the kernel.
    Enforcing,
    /// The annotation goes on pausing, until then.
    StillAnnotated(Timestamp),
}

/// A moment by both clocks: commands count time, annotations name it.
#[derive(Clone, Copy, Debug)]
struct Now {
    steady: Instant,
    wall: Timestamp,
}

impl Now {
    fn read() -> Self {
        Self { steady: Instant::now(), wall: Timestamp::now() }
    }

    /// How long until a named time; nothing once it has come.
    fn left(&self, until: Timestamp) -> Option<Duration> {
        let left = until.duration_since(self.wall);
        (left > SignedDuration::ZERO).then(|| left.unsigned_abs())
    }
}

/// What pauses, and what policy says.
#[derive(Debug, Default)]
struct Inner {
    /// By command: the end by the steady clock, and as it was told.
    command: Option<(Instant, Timestamp)>,
    /// By annotation: the same, for a wall clock that is set back must not make it longer.
    annotation: Option<(Instant, Timestamp)>,
    /// The annotation as it was handed over last.
    value: Option<String>,
    problem: Option<String>,
    /// The real policy.
    wanted: Option<Arc<Effective>>,
    /// Whether a pause is in effect.
    is_open: bool,
    /// Nothing pauses any more: the daemon stops, and nobody would end it.
    is_closed: bool,
}

impl Inner {
    /// When the pause ends, as of now.
    fn until(&mut self, now: Now) -> Option<Timestamp> {
        self.command = self.command.filter(|(end, _)| *end > now.steady);
        self.annotation = self.annotation.filter(|(end, named)| *end > now.steady && now.left(*named).is_some());
        let ends = [self.command, self.annotation].into_iter().flatten().map(|(_, end)| end);
        ends.max().filter(|_| !self.is_closed)
    }

    /// Takes the annotation in. The same value again is no news: a time that was refused as too far ahead must not
    /// begin to pause later.
    fn annotate(&mut self, value: Option<&str>, now: Now) {
        if self.value.as_deref() == value {
            return;
        }
        self.value = value.map(str::to_owned);
        let read = value.map(|value| read_annotation(value, now)).transpose();
        self.problem = read.as_ref().err().cloned();
        let end = |until| Some((now.steady + now.left(until)?, until));
        self.annotation = read.ok().flatten().and_then(end);
        if let Some(problem) = &self.problem {
            tracing::warn!("{problem}");
        }
    }
}

fn read_annotation(value: &str, now: Now) -> Result<Timestamp, String> {
    let refused = |why: &str| {
        format!("the Node's annotation {ANNOTATION} is {value:?}, {why}: it is ignored, policy is enforced")
    };
    let until: Timestamp = value.parse().map_err(|_| refused("no RFC 3339 time as 2026-01-31T12:00:00Z"))?;
    match now.left(until) {
        Some(left) if left > LONGEST => Err(refused("more than 24 hours ahead")),
        _ => Ok(until),
    }
}

/// The owner of the pause; stands before whatever enforces.
#[derive(Debug)]
pub struct Pause<E> {
    engine: Arc<E>,
    inner: Mutex<Inner>,
    changed: Notify,
    shown: watch::Sender<Paused>,
}

impl<E: Enforce> Enforce for Pause<E> {
    fn enforce(&self, effective: Arc<Effective>, batch: Batch) {
        let mut inner = self.lock();
        if inner.is_open {
            // What changed does not get to the kernel now.
            self.engine.enforce(Arc::new(opened(&effective)), Batch::default());
        } else {
            self.engine.enforce(Arc::clone(&effective), batch);
        }
        inner.wanted = Some(effective);
    }
}

impl<E: Enforce> Pause<E> {
    /// Not paused.
    pub fn new(engine: Arc<E>) -> Self {
        Self { engine, inner: Mutex::default(), changed: Notify::new(), shown: watch::Sender::default() }
    }

    /// Where readers see it.
    pub fn shown(&self) -> watch::Receiver<Paused> {
        self.shown.subscribe()
    }

    /// `flatfell pause`: from now on for this long, whatever a command said before. Returns the end.
    pub fn pause(&self, length: Duration) -> Timestamp {
        let now = Now::read();
        let length = length.min(LONGEST);
        // No length up to a day is too long for either clock; whole seconds, for people.
        let until = now.wall.checked_add(length).unwrap_or(Timestamp::MAX);
        let until = Timestamp::from_second(until.as_second()).unwrap_or(until);
        self.change(now, |inner| inner.command = Some((now.steady + length, until)));
        until
    }

    /// `flatfell resume`: ends a pause by command.
    pub fn resume(&self) -> Resumed {
        let was_paused = self.shown.borrow().until.is_some();
        let left = self.change(Now::read(), |inner| inner.command = None);
        match left {
            Some(until) => Resumed::StillAnnotated(until),
            None if was_paused => Resumed::Enforcing,
            None => Resumed::WasNotPaused,
        }
    }

    /// The value of the Node's annotation [`ANNOTATION`] as it is now; `None` where there is none. To be handed over
    /// before the first policy, and whenever the Node was seen.
    pub fn annotation(&self, value: Option<&str>) {
        let now = Now::read();
        self.change(now, |inner| inner.annotate(value, now));
    }

    /// Ends every pause for good, for nobody would end it once the daemon is gone. Returns what is to be enforced
    /// before it goes, where that is not in force.
    pub fn close(&self) -> Option<Arc<Effective>> {
        let was_open = self.lock().is_open;
        self.change(Now::read(), |inner| inner.is_closed = true);
        self.lock().wanted.clone().filter(|_| was_open)
    }

    /// Ends pauses whose time is up, until the caller drops this.
    pub async fn follow(&self) {
        loop {
            let changed = self.changed.notified();
            match self.time_left() {
                Some(left) => tokio::select! { () = changed => {}, () = tokio::time::sleep(left) => {} },
                None => changed.await,
            }
            self.change(Now::read(), |_| {});
        }
    }

    /// How long until the clock is to be looked at.
    fn time_left(&self) -> Option<Duration> {
        let now = Now::read();
        let inner = self.lock();
        let command = inner.command.map(|(end, _)| end.saturating_duration_since(now.steady));
        let annotation = inner.annotation.map(|(end, named)| {
            let left = now.left(named).unwrap_or_default();
            left.min(end.saturating_duration_since(now.steady)).min(LOOK_EVERY)
        });
        inner.is_open.then(|| command.into_iter().chain(annotation).min()).flatten()
    }

    /// The one place where a pause begins or ends: under the lock, so that no older policy overtakes a newer one.
    fn change(&self, now: Now, change: impl FnOnce(&mut Inner)) -> Option<Timestamp> {
        let mut inner = self.lock();
        change(&mut inner);
        let until = inner.until(now);
        if inner.is_open != until.is_some() {
            inner.is_open = until.is_some();
            match until {
                Some(until) => tracing::warn!(%until, "paused: from now on this node enforces no policy"),
                None => tracing::warn!("the pause is over: policy is enforced again"),
            }
            if let Some(wanted) = &inner.wanted {
                let effective = if inner.is_open { Arc::new(opened(wanted)) } else { Arc::clone(wanted) };
                self.engine.enforce(effective, Batch::now());
            }
        }
        let paused = Paused { until, problem: inner.problem.clone() };
        let is_news = self.shown.send_if_modified(|shown| {
            let differs = *shown != paused;
            *shown = paused;
            differs
        });
        if is_news {
            self.changed.notify_one();
        }
        until
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The same pods, nobody isolated, no rules, and who is not known passes: as on a node without policies. The rules go too, so that a pause also
/// helps where it is a rule that the kernel refuses.
fn opened(effective: &Effective) -> Effective {
    let open = |pod: &EffectivePod| EffectivePod {
        name: pod.name.clone(),
        addresses: pod.addresses.clone(),
        ingress: Isolation::default(),
        egress: Isolation::default(),
    };
    let mut opened: Effective = effective.pods().values().map(|pod| open(pod)).collect();
    opened.lifted = true;
    opened
}

/// Reads a length as `90s`, `10m` or `1h30m`.
pub fn length(text: &str) -> Result<Duration, LengthError> {
    let mut seconds: u64 = 0;
    let mut rest = text;
    let mut largest = u64::MAX;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or(LengthError::Shape)?;
        let (number, tail) = rest.split_at(digits);
        let unit = match tail.chars().next() {
            Some('h') => 3600,
            Some('m') => 60,
            Some('s') => 1,
            _ => return Err(LengthError::Shape),
        };
        // Each unit once, the largest first: `5m1h` is a slip.
        if unit >= largest {
            return Err(LengthError::Shape);
        }
        largest = unit;
        let number: u64 = number.parse().map_err(|_| LengthError::Shape)?;
        seconds = number.checked_mul(unit).and_then(|more| seconds.checked_add(more)).ok_or(LengthError::Bounds)?;
        rest = &tail[1..];
    }
    match seconds {
        0 if text.is_empty() => Err(LengthError::Shape),
        0 => Err(LengthError::Bounds),
        seconds if seconds > LONGEST.as_secs() => Err(LengthError::Bounds),
        seconds => Ok(Duration::from_secs(seconds)),
    }
}

/// Why a length is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LengthError {
    /// Not of the form.
    #[error("expected a length as 90s, 10m or 1h30m")]
    Shape,
    /// Nothing, or too long.
    #[error("a pause lasts from 1s to 24h")]
    Bounds,
}

#[cfg(test)]
#[path = "pause_tests.rs"]
mod tests;
