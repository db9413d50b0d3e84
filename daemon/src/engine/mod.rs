//! The engine: holds the kernel to what policy says, on a thread of its own.
//!
//! In: [`Effective`] values, latest wins. Out: the kernel's tables, bridge flags and conntrack marks; a status, counters,
//! and the addresses whose interface is gone. What always holds: rules are in place from the first commit until
//! [`Cleanup`], whatever happens to the process; one daemon a network namespace.

mod cleanup;
mod counting;
mod filters;
mod generations;
mod gone;
mod guard;
mod lookout;
mod pace;
mod pod_ports;
mod ranges;
mod reconcile;
mod retry;
mod status;
mod sweep;
mod sweeping;
mod upkeep;
mod worker;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flatfell_rules::compile::{CounterMeaning, FlowLog, Meanings, Slot};
use flatfell_rules::effective::Effective;
use flatfell_rules::mark::ID_MAX;
use flatfell_rules::ruleset::{CounterValue, Name, TableId};
use ipnetwork::IpNetwork;
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::watch;

use crate::batch::Batch;
use crate::kernel::{CommitError, Kernel};
use crate::links::LinkError;
use crate::lock::{Lock, LockError};
use crate::netlink::NetlinkError;

pub use cleanup::{Cleaned, Cleanup};
use counting::Counting;
pub use pod_ports::{AntiSpoofing, ToldPort};
pub use status::{EngineStatus, RuleIds, TransactionStats};
pub use upkeep::{Programmed, Repair, Upkeep};

/// How long a question to the engine's thread may take before it counts as hung.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// How long the tables of an earlier run may be unreadable before the daemon gives up: on a busy node a dump is often interrupted.
const READ_WITHIN: Duration = Duration::from_secs(30);
const READ_AGAIN: Duration = Duration::from_millis(250);

/// What the engine is told at its start.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Whether pods are held to their egress rules towards their own node.
    pub own_node_egress: bool,
    /// Whether running connections that policy forbids are cut.
    pub cut_established: bool,
    /// The bridges that carry pods; none: found by the pods' addresses.
    pub pod_bridges: Vec<String>,
    /// Whether addresses of the node's pod ranges are closed that are no known pod's.
    pub close_unknown: bool,
    /// The node's pod ranges; none: what [`Engine::node_ranges`] is told and the pod bridges have.
    pub pod_cidrs: Vec<IpNetwork>,
    /// How pods are held to sending as themselves.
    pub anti_spoofing: AntiSpoofing,
    /// Where the rules log denials.
    pub flow_log: Option<FlowLog>,
    /// How long a counter is kept whose rule or pod is gone.
    pub counter_grace: Duration,
    /// How many ids of each direction rules and pods are counted by, at most [`flatfell_rules::mark::ID_MAX`].
    pub rule_ids: u16,
    /// Whether nobody else may change the tables, where the kernel can see to it.
    pub lock_tables: bool,
    /// The file that remembers what counters lost; none: a restart forgets it.
    pub carried: Option<PathBuf>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            own_node_egress: true,
            cut_established: true,
            pod_bridges: Vec::new(),
            close_unknown: true,
            pod_cidrs: Vec::new(),
            anti_spoofing: AntiSpoofing::default(),
            flow_log: None,
            counter_grace: Duration::from_secs(15 * 60),
            rule_ids: ID_MAX,
            lock_tables: true,
            carried: None,
        }
    }
}

/// Why the engine cannot do what it is asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Another daemon enforces in this network namespace, or the lock cannot be taken.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// What the kernel has cannot be read, or no socket to it can be opened.
    #[error("nftables: {0}")]
    Netlink(#[from] NetlinkError),
    /// A transaction that was refused.
    #[error("nftables transaction: {0}")]
    Commit(#[from] CommitError),
    /// A socket to the kernel's interfaces.
    #[error("interfaces: {0}")]
    Links(#[from] LinkError),
    /// The thread or its wake-up could not be made.
    #[error("cannot start the engine's thread: {0}")]
    Open(#[from] std::io::Error),
    /// The thread does not answer.
    #[error("the engine's thread did not answer within {} s", ANSWER_WITHIN.as_secs())]
    Silent,
}

/// Counter values by name, and what they mean.
#[derive(Clone, Debug, Default)]
pub struct CounterSnapshot {
    /// What each name counts.
    pub meanings: Meanings,
    /// What each adds up to, in the order of the names; it never falls. `None` for one that was never read.
    pub totals: Vec<Option<CounterValue>>,
    /// When it was read.
    pub read: Option<Instant>,
}

impl CounterSnapshot {
    /// The counters that were read.
    pub fn iter(&self) -> impl Iterator<Item = (&Name, &Arc<CounterMeaning>, CounterValue)> {
        let all = self.meanings.iter().zip(&self.totals);
        all.filter_map(|((name, meaning), total)| Some((name, meaning, (*total)?)))
    }
}

/// What the engine's thread is asked.
enum Command {
    Enforce(Arc<Effective>, Batch),
    NodeRanges(Vec<IpNetwork>),
    PodPorts(Vec<ToldPort>),
    TakeOver,
    Stop,
}

/// The status that everything reads, and a bell for those who wait for another one.
struct Published {
    status: Mutex<Arc<EngineStatus>>,
    changed: Condvar,
    /// The same bell for those who do not block.
    rung: watch::Sender<()>,
}

impl Published {
    fn new(status: EngineStatus) -> Self {
        Self { status: Mutex::new(Arc::new(status)), changed: Condvar::new(), rung: watch::Sender::default() }
    }

    fn read(&self) -> MutexGuard<'_, Arc<EngineStatus>> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, status: EngineStatus) {
        *self.read() = Arc::new(status);
        self.changed.notify_all();
        self.rung.send_replace(());
    }
}

/// A handle to the engine's thread.
pub struct Engine {
    commands: Sender<Command>,
    questions: Sender<counting::Asker>,
    wake: Arc<EventFd>,
    status: Arc<Published>,
    submitted: Mutex<Option<Arc<Effective>>>,
    told_ranges: Mutex<Vec<IpNetwork>>,
    gone: Mutex<Option<UnboundedReceiver<IpAddr>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Engine {
    /// Takes the lock of this network namespace, opens the sockets and starts the thread. Nothing is written to the
    /// kernel before the first [`Engine::submit`].
    pub fn start(config: EngineConfig) -> Result<Self, EngineError> {
        let lock = Lock::take()?;
        let (commands, inbox) = channel();
        let (gone_sender, gone) = unbounded_channel();
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(errno)?);
        let status = Arc::new(Published::new(EngineStatus::starting()));
        let counting = Arc::new(Counting::open(config.carried.clone()));
        let questions = counting::start(Arc::clone(&counting))?;
        let parts = worker::Parts {
            config,
            counting,
            questions: questions.clone(),
            lock,
            inbox,
            wake: Arc::clone(&wake),
            status: Arc::clone(&status),
            gone: gone_sender,
        };
        let thread = worker::spawn(parts)?;
        Ok(Self {
            commands,
            questions,
            wake,
            status,
            submitted: Mutex::new(None),
            told_ranges: Mutex::default(),
            gone: Mutex::new(Some(gone)),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Enforces this from now on; a value that was not enforced yet is passed over.
    pub fn submit(&self, effective: Arc<Effective>) {
        self.submit_batch(effective, Batch::now());
    }

    /// The same, and the changes that made it so.
    pub fn submit_batch(&self, effective: Arc<Effective>, batch: Batch) {
        *self.submitted.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&effective));
        self.send(Command::Enforce(effective, batch));
    }

    /// Where the node's pods have their addresses, as its Node says.
    pub fn node_ranges(&self, ranges: &[IpNetwork]) {
        let mut told = self.told_ranges.lock().unwrap_or_else(PoisonError::into_inner);
        if *told != ranges {
            *told = ranges.to_vec();
            self.send(Command::NodeRanges(ranges.to_vec()));
        }
    }

    /// Which pods are behind which ports, as the CNI plugin tells it: all of it.
    pub fn pod_ports(&self, told: Vec<ToldPort>) {
        self.send(Command::PodPorts(told));
    }

    /// Moves everything to the other tables, as the engine does by itself after refusals, and enforces there.
    pub fn take_over(&self) {
        self.send(Command::TakeOver);
    }

    /// Waits until the status says what `reached` asks for; whether it does.
    pub fn wait(&self, within: Duration, reached: impl Fn(&EngineStatus) -> bool) -> bool {
        let status = self.status.read();
        let waited = self.status.changed.wait_timeout_while(status, within, |status| !reached(status));
        waited.is_ok_and(|(_, timeout)| !timeout.timed_out())
    }

    /// Waits until the kernel enforces exactly this value; whether it does.
    pub fn wait_enforced(&self, effective: &Arc<Effective>, within: Duration) -> bool {
        self.wait(within, |status| {
            status.synced && status.enforced.as_ref().is_some_and(|enforced| Arc::ptr_eq(enforced, effective))
        })
    }

    /// Changes whenever the status may have.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.status.rung.subscribe()
    }

    /// Addresses of local pods whose interface was deleted. The first call gets them; a later one gets a closed receiver.
    pub fn interface_gone(&self) -> UnboundedReceiver<IpAddr> {
        let gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner).take();
        gone.unwrap_or_else(|| unbounded_channel().1)
    }

    /// What the engine knows of itself.
    pub fn status(&self) -> Arc<EngineStatus> {
        let mut status = Arc::clone(&self.status.read());
        let dead =
            self.thread.lock().unwrap_or_else(PoisonError::into_inner).as_ref().is_none_or(JoinHandle::is_finished);
        if dead {
            Arc::make_mut(&mut status).not_ready.push("the engine's thread has ended".to_owned());
        }
        // What was submitted a moment ago, the thread may not have seen yet.
        let submitted = self.submitted.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |(submitted, enforced)| Arc::ptr_eq(submitted, enforced);
        if status.synced && !submitted.as_ref().zip(status.enforced.as_ref()).is_some_and(same) {
            Arc::make_mut(&mut status).synced = false;
        }
        status
    }

    /// Reads every counter from the kernel, beside the engine's thread.
    pub fn counters(&self) -> Result<CounterSnapshot, EngineError> {
        let (asker, answer) = channel();
        // A thread that has ended closes the answer.
        let _ = self.questions.send(asker);
        match answer.recv_timeout(ANSWER_WITHIN) {
            Ok(snapshot) => Ok(snapshot?),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Err(EngineError::Silent),
        }
    }

    /// Ends the thread; the rules stay.
    pub fn stop(self) {
        drop(self);
    }

    fn end(&self) {
        self.send(Command::Stop);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the engine's thread panicked");
        }
    }

    /// A thread that has ended takes nothing; [`Engine::status`] says that it has.
    fn send(&self, command: Command) {
        if self.commands.send(command).is_ok()
            && let Err(error) = self.wake.write(1)
        {
            tracing::error!(%error, "cannot wake the engine's thread");
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.end();
    }
}

/// Whether this network namespace has tables of the daemon's, of whatever run. Blocks while that cannot be read, for a while.
pub fn tables_exist() -> Result<bool, EngineError> {
    let deadline = Instant::now() + READ_WITHIN;
    loop {
        match Kernel::open().and_then(|mut kernel| our_tables(&mut kernel)) {
            Err(error) if Instant::now() < deadline => {
                tracing::warn!(%error, "the tables that there are cannot be read")
            }
            read => return Ok(!read?.is_empty()),
        }
        std::thread::sleep(READ_AGAIN);
    }
}

/// Every table that there is of a daemon's, of whatever layout.
fn our_tables(kernel: &mut Kernel) -> Result<Vec<TableId>, NetlinkError> {
    let mut tables = kernel.tables()?;
    tables.retain(|table| Slot::is_of_any_layout(&table.name));
    Ok(tables)
}

fn errno(errno: nix::errno::Errno) -> std::io::Error {
    errno.into()
}
