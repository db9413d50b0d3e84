//! The engine's thread: waits for policy, for interfaces and for time, and reconciles.
//!
//! In: [`Command`]s and link events. Out: a published [`EngineStatus`] after each turn. What always holds: this thread alone
//! writes to the kernel.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use flatfell_rules::effective::Effective;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use tokio::sync::mpsc::UnboundedSender;

use super::counting::{Asker, Counting};
use super::filters::families;
use super::lookout::{Known, LookoutThread, Told};
use super::reconcile::Reconciler;
use super::{Command, EngineConfig, EngineError, Published};
use crate::batch::Batch;
use crate::bypass::IPVS_INTERFACE;
use crate::links::Links;
use crate::lock::Lock;
use crate::memory;

/// How often ways round us are looked for; the foreign ruleset is read less often ([`crate::bypass::EVERY`]).
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How soon to ask again while a look of older knowledge is waiting.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How often it is asked whether a counter was kept long enough.
const CHECK_EVERY: Duration = Duration::from_millis(100);

/// How often counters are read where nobody asks: what somebody resets or flushes is lost from the last reading on.
const READ_EVERY: Duration = Duration::from_secs(5);

/// Operations in one go that take more memory than a node has in use afterwards.
const LARGE: u64 = 4096;

/// What the thread is given.
pub(super) struct Parts {
    pub(super) config: EngineConfig,
    pub(super) counting: Arc<Counting>,
    pub(super) questions: Sender<Asker>,
    pub(super) lock: Lock,
    pub(super) inbox: Receiver<Command>,
    pub(super) wake: Arc<EventFd>,
    pub(super) status: Arc<Published>,
    pub(super) gone: UnboundedSender<IpAddr>,
}

/// Starts the thread, in the caller's network namespace. It opens its sockets itself, and this waits until they are
/// open.
pub(super) fn spawn(parts: Parts) -> Result<JoinHandle<()>, EngineError> {
    let (opened, outcome) = sync_channel(1);
    let thread = std::thread::Builder::new().name("kernel".to_owned()).spawn(move || match Worker::open(parts) {
        Ok(worker) => {
            let _ = opened.send(Ok(()));
            worker.run();
        }
        Err(error) => {
            let _ = opened.send(Err(error));
        }
    })?;
    outcome.recv().unwrap_or(Err(EngineError::Silent))?;
    Ok(thread)
}

/// What the thread owns.
struct Worker {
    inbox: Receiver<Command>,
    wake: Arc<EventFd>,
    status: Arc<Published>,
    questions: Sender<Asker>,
    gone: UnboundedSender<IpAddr>,
    links: Links,
    lookout: LookoutThread,
    reconciler: Reconciler,
    wanted: Option<Arc<Effective>>,
    /// The changes that the kernel does not have.
    waiting: Batch,
    /// When the wanted state shall be tried; `None` when it is enforced.
    due: Option<Instant>,
    look_due: Instant,
    check_due: Instant,
    read_due: Instant,
    link_fault: Option<String>,
    told: Told,
    _lock: Lock,
}

/// Whether the thread goes on.
#[derive(PartialEq, Eq)]
enum Turn {
    GoOn,
    Stop,
}

impl Worker {
    fn open(parts: Parts) -> Result<Self, EngineError> {
        let Parts { config, counting, questions, lock, inbox, wake, status, gone } = parts;
        Ok(Self {
            inbox,
            status,
            questions,
            gone,
            links: Links::open()?,
            lookout: LookoutThread::start(Arc::clone(&wake))?,
            reconciler: Reconciler::open(config, counting, Arc::clone(&wake))?,
            wake,
            wanted: None,
            waiting: Batch::default(),
            due: None,
            look_due: Instant::now(),
            check_due: Instant::now(),
            read_due: Instant::now() + READ_EVERY,
            link_fault: None,
            told: Told::default(),
            _lock: lock,
        })
    }

    /// Until it is told to stop, or its handle is gone.
    fn run(mut self) {
        loop {
            self.wait();
            if self.commands() == Turn::Stop {
                return self.reconciler.end();
            }
            self.interfaces();
            if self.reconciler.take_in_sweep() {
                self.due = self.due.or_else(|| Some(Instant::now()));
            }
            let now = Instant::now();
            if self.check_due <= now {
                self.check_due = now + CHECK_EVERY;
                if self.reconciler.keeps_too_long() || self.finds_ports() {
                    self.due = Some(now);
                }
            }
            self.edits();
            if self.commit_due().is_some_and(|due| due <= now) {
                self.reconcile();
            }
            if self.reconciler.sweeping().due().is_some_and(|due| due <= Instant::now()) {
                self.reconciler.sweeping().begin();
            }
            if self.read_due <= now {
                self.read_due = now + READ_EVERY;
                // Nobody waits for the answer; what cannot be read now is read the next time, or by whoever asks.
                let _ = self.questions.send(channel().0);
            }
            if self.look_due <= now {
                self.look_due = now + if self.look() { LOOK_EVERY } else { LOOK_AGAIN };
            }
            self.publish();
        }
    }

    /// When the wanted state may be tried.
    fn commit_due(&mut self) -> Option<Instant> {
        Some(self.due?.max(self.reconciler.sweeping().may_commit()?))
    }

    fn wait(&mut self) {
        let timers = [Some(self.look_due), Some(self.check_due), self.commit_due(), self.reconciler.sweeping().due()];
        let next = timers.into_iter().flatten().min().unwrap_or(self.check_due);
        // Rounded up: a millisecond too early would spin.
        let left = next.saturating_duration_since(Instant::now()).as_millis().saturating_add(1);
        let timeout = PollTimeout::try_from(i32::try_from(left).unwrap_or(i32::MAX)).unwrap_or(PollTimeout::MAX);
        let told = [Some(self.wake.as_fd()), Some(self.links.as_fd()), self.reconciler.edits_fd()];
        let mut fds: Vec<PollFd<'_>> =
            told.into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        // An interrupted wait is a short one.
        let _ = poll(&mut fds, timeout);
        let _ = self.wake.read();
    }

    fn commands(&mut self) -> Turn {
        loop {
            match self.inbox.try_recv() {
                Ok(Command::Enforce(effective, batch)) => {
                    self.wanted = Some(effective);
                    self.waiting.add(batch);
                    self.reconciler.upkeep().wait(&self.waiting);
                    self.due = Some(Instant::now());
                }
                Ok(Command::NodeRanges(ranges)) => {
                    self.reconciler.ranges().tell(ranges);
                    self.due = self.wanted.as_ref().map(|_| Instant::now());
                }
                Ok(Command::PodPorts(told)) => {
                    self.reconciler.pod_ports().tell(told);
                    self.due = self.wanted.as_ref().map(|_| Instant::now());
                }
                Ok(Command::TakeOver) => {
                    self.reconciler.take_over();
                    self.due = Some(Instant::now());
                }
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return Turn::Stop,
                Err(TryRecvError::Empty) => return Turn::GoOn,
            }
        }
    }

    /// Takes in what changed on the node's interfaces.
    fn interfaces(&mut self) {
        match self.links.process() {
            Ok(change) => {
                self.link_fault = None;
                if change.links {
                    self.look_due = Instant::now();
                }
                if (change.links || change.addresses) && self.wanted.is_some() {
                    self.due = Some(self.due.unwrap_or_else(Instant::now));
                }
            }
            Err(error) => self.link_fault = Some(format!("interfaces cannot be watched: {error}")),
        }
        let Some(wanted) = &self.wanted else { return };
        for address in self.links.interfaces_gone(wanted.local()) {
            // Without a receiver nobody keeps pods that are gone.
            let _ = self.gone.send(address);
        }
    }

    /// Takes in what others changed in our tables.
    fn edits(&mut self) {
        match self.reconciler.see_edits() {
            // A change of policy does not wait for a fight.
            Ok(due) => self.due = due.into_iter().chain(self.due).min(),
            Err(error) => self.link_fault = Some(format!("edits of our tables by others cannot be watched: {error}")),
        }
    }

    /// Whether somebody is found behind a port where nobody was.
    fn finds_ports(&mut self) -> bool {
        let Self { reconciler, wanted, links, .. } = self;
        wanted.as_deref().is_some_and(|wanted| reconciler.finds_ports(wanted, links))
    }

    fn reconcile(&mut self) {
        let Some(wanted) = self.wanted.clone() else { return };
        let before = self.reconciler.operations();
        self.due = self.reconciler.reconcile(&wanted, &mut self.links).map(|delay| Instant::now() + delay);
        if self.reconciler.operations() - before > LARGE {
            memory::give_back();
        }
        if self.reconciler.enforces(&wanted) {
            let served = std::mem::take(&mut self.waiting);
            self.reconciler.upkeep().served(&served, Instant::now(), SystemTime::now());
        }
    }

    /// Asks for a look at ways round us; whether it was taken.
    fn look(&mut self) -> bool {
        let addresses = self.wanted.as_deref().map(|wanted| wanted.local().clone()).unwrap_or_default();
        let pod_bridges = self.reconciler.pod_bridges(&self.links, &addresses);
        let (v4, v6) = families(&addresses, self.reconciler.ranges().told());
        self.reconciler.upkeep().see_bridges(&pod_bridges);
        self.lookout.look(Known { pod_bridges, ipvs: self.links.exists(IPVS_INTERFACE), v4, v6 })
    }

    /// Everything reads what stands here.
    fn publish(&mut self) {
        let mut status = self.reconciler.status();
        status.synced = self.wanted.is_some() && self.due.is_none();
        status.not_ready.extend(self.link_fault.clone());
        let found = self.lookout.found();
        self.told.tell(&found.bypasses);
        status.foreign_engines = found.bypasses.iter().filter_map(|bypass| bypass.engine).collect();
        status.warnings.extend(found.fault);
        for bypass in found.bypasses {
            let list = if bypass.blocks_readiness { &mut status.not_ready } else { &mut status.warnings };
            list.push(bypass.message);
        }
        self.status.publish(status);
    }
}
