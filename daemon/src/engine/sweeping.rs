//! When running connections are swept, and the thread that does it: rules go on being committed meanwhile.
//!
//! In: [`Facts`] after each commit, and whether it began a generation. Out: what a sweep came to. What always holds: a sweep begins when no
//! packet is left that entered before the last commit; one covers all generations before it, and none comes round
//! again before its flows were swept; a sweep that failed is tried again and until then said to be missing.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flatfell_rules::mark::Generation;
use nix::sys::eventfd::EventFd;

use super::pace::Pace;
use super::sweep::{Facts, Stale, SweepError, Sweeper};

/// A packet that entered before a bump must have left before flows are swept, or it makes a flow that the sweep misses,
/// and before the next commit, or it could stamp a stale decision as current; a stolen processor can hold it for
/// milliseconds (docs/dataplane.md).
const REST: Duration = Duration::from_millis(3);

/// However often peers come and go, flows whose client is silent are cut within this time.
const LATEST: Duration = Duration::from_secs(2);

/// Generations that may go by without a sweep: far fewer than there are, since those begun while a sweep runs come on top.
const GENERATIONS_MAX: u32 = 40;

/// A sweep that failed is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// What happened to running connections before is not known.
const UNCHECKED: &str = "running connections are still to be checked";

/// What is to be swept.
struct Pending {
    stale: Stale,
    /// When it was found to be.
    since: Instant,
    /// Whether it waits for nothing but packets.
    is_urgent: bool,
    /// Before then it is in vain.
    not_before: Instant,
    /// Why flows are not known to be as policy says, until it is done.
    fault: Option<String>,
}

/// A sweep on its way.
struct Running {
    /// What it judges by.
    facts: Arc<Facts>,
    /// What it sets right.
    fault: Option<String>,
}

/// The beginning of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bump {
    /// The generation until then.
    pub(super) before: Generation,
    /// Whether rules changed: what an operator edits is cut at once. Peers that come and go are many, and wait for each other.
    pub(super) is_urgent: bool,
}

/// What a sweep came to.
struct Outcome {
    cut: Result<u64, SweepError>,
    cost: Duration,
}

impl Outcome {
    /// Of a sweep that nobody makes any more.
    fn without_thread() -> Self {
        Self { cut: Err(SweepError::Ended), cost: Duration::ZERO }
    }
}

/// What a sweep tells the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Swept {
    /// Flows that were cut.
    pub(super) cut: u64,
    /// Whether it judged by what is in force now: no flow carries an id any more that the rules in force do not write.
    pub(super) is_current: bool,
}

/// Plans sweeps, and has them made.
pub(super) struct Sweeping {
    facts: Option<Arc<Facts>>,
    pending: Option<Pending>,
    running: Option<Running>,
    /// Generations begun since the last sweep did.
    begun: u32,
    /// When the last packets are gone that entered before a bump, or before any commit.
    bump_rested: Instant,
    commit_rested: Instant,
    pace: Pace,
    thread: SweepThread,
}

impl Sweeping {
    /// Starts the thread in the caller's network namespace; it wakes the engine's when it is done.
    pub(super) fn start(wake: Arc<EventFd>) -> std::io::Result<Self> {
        let now = Instant::now();
        Ok(Self {
            facts: None,
            pending: None,
            running: None,
            begun: 0,
            bump_rested: now,
            commit_rested: now,
            pace: Pace::new(now),
            thread: SweepThread::start(wake)?,
        })
    }

    /// What became of flows before is not known. `fault` says why, if more is wrong than that.
    pub(super) fn suspect_all(&mut self, fault: Option<String>) {
        let now = Instant::now();
        self.sweep_all(fault.unwrap_or_else(|| UNCHECKED.to_owned()), now, now);
    }

    fn sweep_all(&mut self, fault: String, since: Instant, not_before: Instant) {
        self.pending = Some(Pending { stale: Stale::Any, since, is_urgent: true, not_before, fault: Some(fault) });
    }

    /// These facts are in force since now, and began another generation if there is a `bump`.
    pub(super) fn committed(&mut self, facts: Facts, bump: Option<Bump>, now: Instant) {
        self.facts = Some(Arc::new(facts));
        self.commit_rested = now + REST;
        if bump.is_some() {
            self.bump_rested = now + REST;
            self.begun += 1;
        }
        // More than one generation has no filter in the kernel, and ids may have gone without one.
        let is_alone = self.pending.is_none() && self.running.is_none();
        match (&mut self.pending, bump) {
            (Some(pending), bump) => {
                pending.stale = Stale::Any;
                pending.is_urgent |= bump.is_some_and(|bump| bump.is_urgent);
            }
            (pending @ None, Some(Bump { before, is_urgent })) => {
                let stale = if is_alone { Stale::Generation(before) } else { Stale::Any };
                *pending = Some(Pending { stale, since: now, is_urgent, not_before: now, fault: None });
            }
            (None, None) => {}
        }
    }

    /// When rules may be committed: the time may be past; `None` when a sweep must end first.
    pub(super) fn may_commit(&self) -> Option<Instant> {
        (self.begun < GENERATIONS_MAX || self.fault().is_some()).then_some(self.bump_rested)
    }

    /// When a sweep shall begin; `None` while none is wanted or one runs.
    pub(super) fn due(&self) -> Option<Instant> {
        let pending = self.pending.as_ref().filter(|_| self.running.is_none() && self.facts.is_some())?;
        let waits = !pending.is_urgent && self.begun < GENERATIONS_MAX;
        let wanted = if waits { self.pace.next().min(pending.since + LATEST) } else { pending.since };
        // A commit a millisecond must not put it off for ever.
        let rested = self.commit_rested.min(pending.since + LATEST + REST);
        Some(wanted.max(pending.not_before).max(rested).max(self.bump_rested))
    }

    /// Begins a sweep of all that is pending.
    pub(super) fn begin(&mut self) {
        let (Some(facts), Some(pending)) = (&self.facts, self.pending.take()) else { return };
        self.running = Some(Running { facts: Arc::clone(facts), fault: pending.fault });
        self.begun = 0;
        self.thread.ask(Arc::clone(facts), pending.stale);
    }

    /// What the sweep came to that ran; `None` while it does.
    pub(super) fn ended(&mut self, now: Instant) -> Option<Swept> {
        let is_orphan = self.running.is_some() && self.thread.is_over();
        let outcome = self.thread.outcome().or_else(|| is_orphan.then(Outcome::without_thread))?;
        let running = self.running.take();
        self.pace.spend(outcome.cost, now);
        match outcome.cut {
            Ok(cut) => {
                let facts = running.as_ref().zip(self.facts.as_ref());
                Some(Swept { cut, is_current: facts.is_some_and(|(swept, now)| Arc::ptr_eq(&swept.facts, now)) })
            }
            Err(error) => {
                self.sweep_all(format!("running connections cannot be checked: {error}"), now, now + RETRY);
                None
            }
        }
    }

    /// Whether all flows were judged by what is in force.
    pub(super) fn is_done(&self) -> bool {
        self.pending.is_none() && self.running.is_none()
    }

    /// Why running connections are not known to be as policy says.
    pub(super) fn fault(&self) -> Option<&str> {
        let pending = self.pending.as_ref().and_then(|pending| pending.fault.as_deref());
        pending.or_else(|| self.running.as_ref()?.fault.as_deref())
    }

    /// Waits for what is pending.
    pub(super) fn finish(mut self) {
        if self.pending.is_some() {
            std::thread::sleep(self.commit_rested.saturating_duration_since(Instant::now()));
            self.begin();
        }
        self.thread.end();
    }
}

/// The thread's other end.
struct SweepThread {
    questions: Sender<(Arc<Facts>, Stale)>,
    outcome: Arc<Mutex<Option<Outcome>>>,
    thread: JoinHandle<()>,
}

impl SweepThread {
    fn start(wake: Arc<EventFd>) -> std::io::Result<Self> {
        let (questions, inbox) = channel();
        let outcome = Arc::new(Mutex::new(None));
        let outbox = Arc::clone(&outcome);
        let thread = std::thread::Builder::new().name("sweep".to_owned()).spawn(move || run(&inbox, &outbox, &wake))?;
        Ok(Self { questions, outcome, thread })
    }

    fn ask(&self, facts: Arc<Facts>, stale: Stale) {
        // A thread that has ended takes nothing; `is_over` says so.
        let _ = self.questions.send((facts, stale));
    }

    fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    fn outcome(&self) -> Option<Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn end(self) {
        drop(self.questions);
        if self.thread.join().is_err() {
            tracing::error!("the thread that checks running connections panicked");
        }
    }
}

/// One sweep for each question. A sweeper that failed is opened anew.
fn run(inbox: &Receiver<(Arc<Facts>, Stale)>, outbox: &Mutex<Option<Outcome>>, wake: &EventFd) {
    let mut sweeper = None;
    while let Ok((facts, stale)) = inbox.recv() {
        let begun = Instant::now();
        let cut = sweep(&mut sweeper, &facts, stale);
        if cut.is_err() {
            sweeper = None;
        }
        *outbox.lock().unwrap_or_else(PoisonError::into_inner) = Some(Outcome { cut, cost: begun.elapsed() });
        // At worst the engine's thread takes it in when it looks again, within a tenth of a second.
        let _ = wake.write(1);
    }
}

fn sweep(sweeper: &mut Option<Sweeper>, facts: &Facts, stale: Stale) -> Result<u64, SweepError> {
    let sweeper = match sweeper {
        Some(sweeper) => sweeper,
        None => sweeper.insert(Sweeper::open()?),
    };
    sweeper.sweep(facts, stale)
}

#[cfg(test)]
mod tests {
    use flatfell_rules::effective::{Effective, Evaluator};
    use flatfell_rules::ids::Ids;
    use flatfell_rules::index::Index;
    use flatfell_rules::ranges::PodRanges;

    use super::*;

    fn facts(current: Generation) -> Facts {
        let effective: Effective = Evaluator::new(Index::new("node")).effective();
        Facts {
            effective: Arc::new(effective),
            ids: Ids::default(),
            current,
            ranges: PodRanges::default(),
            addresses: std::collections::BTreeSet::new(),
            own_node_egress: true,
        }
    }

    /// One whose thread answers nothing, and the present.
    fn sweeping() -> (Sweeping, Instant) {
        let mut sweeping = Sweeping::start(Arc::new(EventFd::new().expect("an eventfd"))).expect("a thread");
        sweeping.thread = SweepThread {
            questions: channel().0,
            outcome: Arc::default(),
            thread: std::thread::spawn(std::thread::park),
        };
        (sweeping, Instant::now())
    }

    /// The beginning of the second generation.
    fn bump(is_urgent: bool) -> (Facts, Option<Bump>) {
        (facts(Generation::FIRST.next()), Some(Bump { before: Generation::FIRST, is_urgent }))
    }

    fn stale(sweeping: &Sweeping) -> Option<Stale> {
        sweeping.pending.as_ref().map(|pending| pending.stale)
    }

    #[test]
    fn one_generation_is_swept_when_packets_from_before_are_gone() {
        let (mut sweeping, now) = sweeping();
        sweeping.committed(facts(Generation::FIRST), None, now);
        assert_eq!((sweeping.due(), stale(&sweeping)), (None, None), "nothing was forbidden");
        let (facts, bump) = bump(false);
        sweeping.committed(facts, bump, now);
        assert_eq!(stale(&sweeping), Some(Stale::Generation(Generation::FIRST)));
        assert_eq!((sweeping.due(), sweeping.may_commit()), (Some(now + REST), Some(now + REST)));
    }

    #[test]
    fn whatever_is_committed_behind_a_generation_makes_it_a_sweep_of_all() {
        for behind in [(facts(Generation::FIRST), None), bump(false)] {
            let (mut sweeping, now) = sweeping();
            for (facts, bump) in [bump(false), behind] {
                sweeping.committed(facts, bump, now);
            }
            assert_eq!(stale(&sweeping), Some(Stale::Any));
        }
    }

    #[test]
    fn under_churn_sweeps_wait_but_not_for_ever_and_not_for_an_edit() {
        let (mut sweeping, now) = sweeping();
        let commit = |sweeping: &mut Sweeping, (facts, bump), now| sweeping.committed(facts, bump, now);
        sweeping.pace.spend(Duration::from_secs(10), now);
        commit(&mut sweeping, bump(false), now);
        assert_eq!(sweeping.due(), Some(now + LATEST));
        let later = now + LATEST + Duration::from_secs(1);
        commit(&mut sweeping, (facts(Generation::FIRST), None), later);
        assert_eq!(sweeping.due(), Some(now + LATEST + REST), "a commit puts off what is late already");
        commit(&mut sweeping, bump(true), now);
        assert_eq!(sweeping.due(), Some(now + REST), "an edit");
    }

    #[test]
    fn no_generation_comes_round_before_a_sweep() {
        let (mut sweeping, now) = sweeping();
        sweeping.pace.spend(Duration::from_secs(10), now);
        for _ in 0..GENERATIONS_MAX {
            assert!(sweeping.may_commit().is_some());
            let (facts, bump) = bump(false);
            sweeping.committed(facts, bump, now);
        }
        assert_eq!((sweeping.may_commit(), sweeping.due()), (None, Some(now + REST)));
    }

    #[test]
    fn what_changes_while_a_sweep_runs_is_swept_behind_it_and_frees_nothing() {
        let (mut sweeping, now) = sweeping();
        let (first, second) = (bump(false), bump(false));
        sweeping.committed(first.0, first.1, now);
        sweeping.begin();
        sweeping.committed(second.0, second.1, now);
        assert_eq!((sweeping.due(), stale(&sweeping)), (None, Some(Stale::Any)));
        *sweeping.thread.outcome.lock().expect("not poisoned") = Some(Outcome { cut: Ok(3), cost: Duration::ZERO });
        assert_eq!(sweeping.ended(now), Some(Swept { cut: 3, is_current: false }));
        assert!(sweeping.due().is_some());
    }

    #[test]
    fn what_is_suspected_while_a_sweep_runs_stays_so_until_the_next_one_ends() {
        let (mut sweeping, now) = sweeping();
        sweeping.suspect_all(None);
        sweeping.committed(facts(Generation::FIRST), None, now);
        sweeping.begin();
        assert!(sweeping.fault().is_some(), "it is on its way");
        sweeping.suspect_all(None);
        let end = |sweeping: &mut Sweeping| {
            *sweeping.thread.outcome.lock().expect("not poisoned") = Some(Outcome { cut: Ok(0), cost: Duration::ZERO });
            sweeping.ended(now).expect("an end");
        };
        end(&mut sweeping);
        assert!(sweeping.fault().is_some(), "the end of a sweep from before");
        sweeping.begin();
        end(&mut sweeping);
        assert_eq!((sweeping.fault(), sweeping.is_done()), (None, true));
    }

    #[test]
    fn a_thread_that_has_ended_is_told_and_stops_no_commit() {
        let (mut sweeping, now) = sweeping();
        sweeping.thread.thread = std::thread::spawn(|| {});
        while !sweeping.thread.is_over() {
            std::thread::yield_now();
        }
        sweeping.suspect_all(None);
        sweeping.committed(facts(Generation::FIRST), None, now);
        sweeping.begin();
        assert_eq!(sweeping.ended(now), None);
        assert!(sweeping.fault().is_some_and(|fault| fault.contains("ended")) && sweeping.may_commit().is_some());
    }
}
