//! The thread that reads what was logged, gives it names and hands it on.
//!
//! In: the bound group. Out: records. What always holds: a pod gets its share of the log and no more, before its packets cost a
//! look-up; the thread owns the socket and binds the group again where that failed.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flatfell_rules::effective::{Effective, EffectivePod};
use k8s_openapi::jiff::Timestamp;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::mpsc::Sender;

use super::bucket::Bucket;
use super::counts::{EventResult, Loss};
use super::events::Draft;
use super::names::{Names, Owner, peer};
use super::nflog::{Heard, Nflog};
use super::output::Writer;
use super::packet::{Packet, Transport, protocol_word};
use super::record::{End, Icmp, Record, Way};
use super::{FlowConfig, Flows, Opened};
use crate::netlink::NetlinkError;

/// Between two attempts to bind the group.
const AGAIN: Duration = Duration::from_secs(5);

/// What the kernel enforces.
pub type Enforced = Box<dyn Fn() -> Option<Arc<Effective>> + Send>;

/// What the reader is given.
pub struct Parts {
    /// Its flags.
    pub config: FlowConfig,
    /// The bound group.
    pub opened: Opened,
    /// This node's name.
    pub node: String,
    /// Whom to ask for names.
    pub names: Names,
    /// What the kernel enforces.
    pub enforced: Enforced,
    /// Where Kubernetes Events go, if there shall be any.
    pub events: Option<Sender<Draft>>,
    /// Where everything is shown.
    pub flows: Arc<Flows>,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").field("config", &self.config).field("node", &self.node).finish_non_exhaustive()
    }
}

/// The thread with the bound group, before it is told what to do. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Waiting {
    begin: SyncSender<Work>,
    thread: JoinHandle<()>,
}

impl Waiting {
    /// Starts the thread in the caller's network namespace, and says whether it could bind the group: the socket belongs
    /// to the thread.
    pub(super) fn spawn(group: u16) -> io::Result<(Self, Result<(), NetlinkError>)> {
        let (begin, work) = sync_channel::<Work>(1);
        let (opened, outcome) = sync_channel(1);
        let thread = std::thread::Builder::new().name("flows".to_owned()).spawn(move || {
            let (socket, bound) = match Nflog::open(group) {
                Ok(socket) => (Some(socket), Ok(())),
                Err(error) => (None, Err(error)),
            };
            let _ = opened.send(bound);
            if let Ok(work) = work.recv() {
                work.run(socket);
            }
        })?;
        let bound = outcome.recv().map_err(io::Error::other)?;
        Ok((Self { begin, thread }, bound))
    }
}

/// A handle to the thread, which ends with it.
#[derive(Debug)]
pub struct Reader {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    /// Opens the output and lets the thread begin, if anything is logged at all.
    pub fn start(parts: Parts) -> io::Result<Self> {
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let Parts { config, opened, node, names, enforced, events, flows } = parts;
        let writer = config.output.as_ref().map(|output| Writer::start(output, Arc::clone(flows.counts())));
        let writer = writer.transpose()?;
        flows.counts().begin(opened.sent_before);
        flows.set_fault(opened.fault);
        let (Some(log), Some(Waiting { begin, thread })) = (opened.kernel, opened.waiting) else {
            return Ok(Self { stop, thread: None });
        };
        let work = Work {
            group: log.group,
            writer,
            locals: Locals::default(),
            shares: Shares { rate: config.pod_rate, by_pod: HashMap::new() },
            stop: Arc::clone(&stop),
            node,
            names,
            enforced,
            events,
            flows,
        };
        begin.send(work).map_err(|_| io::Error::other("the flow log's thread has ended"))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if self.stop.write(1).is_ok()
            && let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the flow log's thread panicked");
        }
    }
}

/// What the thread owns beside the socket.
struct Work {
    group: u16,
    writer: Option<Writer>,
    locals: Locals,
    shares: Shares,
    stop: Arc<EventFd>,
    node: String,
    names: Names,
    enforced: Enforced,
    events: Option<Sender<Draft>>,
    flows: Arc<Flows>,
}

impl Work {
    fn run(mut self, mut bound: Option<Nflog>) {
        while !self.wait(bound.as_ref()) {
            let Some(socket) = &mut bound else {
                bound = self.bind();
                continue;
            };
            match socket.read() {
                Ok(batch) => {
                    let counts = self.flows.counts();
                    counts.gap(batch.gaps);
                    counts.heard(batch.heard);
                    let readable = u64::try_from(batch.packets.len()).unwrap_or(u64::MAX);
                    counts.lost(Loss::Unreadable, batch.heard.saturating_sub(readable));
                    self.take(batch.packets, Instant::now());
                }
                Err(error) => {
                    tracing::warn!(%error, "the flow log's socket failed; it is opened again");
                    self.flows.set_fault(Some(format!("denials are not logged: {error}")));
                    bound = None;
                }
            }
        }
    }

    /// Waits for packets, or for the time to try again; whether it shall end.
    fn wait(&self, bound: Option<&Nflog>) -> bool {
        let again = PollTimeout::try_from(AGAIN).unwrap_or(PollTimeout::MAX);
        let mut fds = vec![PollFd::new(self.stop.as_fd(), PollFlags::POLLIN)];
        fds.extend(bound.map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)));
        // An interrupted wait is a short one.
        let _ = poll(&mut fds, again);
        self.stop.read().is_ok()
    }

    fn bind(&self) -> Option<Nflog> {
        let group = self.group;
        match Nflog::open(group) {
            Ok(socket) => {
                tracing::info!(group, "denials are logged again");
                self.flows.set_fault(None);
                Some(socket)
            }
            Err(error) => {
                tracing::debug!(%error, group, "the flow log's group cannot be bound");
                None
            }
        }
    }

    /// Makes records of packets and hands them on.
    fn take(&mut self, packets: Vec<Heard>, now: Instant) {
        if packets.is_empty() {
            return;
        }
        self.locals.update((self.enforced)());
        let (locals, shares) = (&self.locals, &mut self.shares);
        let before = packets.len();
        let packets: Vec<Heard> = packets.into_iter().filter(|heard| shares.take(own(heard), locals, now)).collect();
        self.flows.counts().lost(Loss::Pod, u64::try_from(before - packets.len()).unwrap_or(u64::MAX));
        let addresses: BTreeSet<IpAddr> =
            packets.iter().flat_map(|heard| [heard.packet.source, heard.packet.destination]).collect();
        if addresses.is_empty() {
            return;
        }
        let owners = self.names.owners(addresses);
        for heard in &packets {
            let record = Arc::new(self.record(heard, &owners));
            self.hand_on(&record, owners.get(&own(heard)), now);
        }
    }

    fn record(&self, heard: &Heard, owners: &HashMap<IpAddr, Owner>) -> Record {
        let Heard { verdict, way, packet } = *heard;
        let (own, other) = ends(heard);
        let local = self.locals.pod(own);
        let named = match owners.get(&own) {
            Some(Owner::Pod(pod)) => Some((&pod.name).into()),
            Some(Owner::Node(_)) | None => None,
        };
        let isolation = local.map(|pod| pod.isolation(way.into()));
        let (ports, icmp) = transport(&packet);
        Record {
            time: format!("{:.3}", Timestamp::now()),
            verdict,
            direction: way,
            node: self.node.clone(),
            pod: local.map(|pod| (&pod.name).into()).or(named),
            policies: isolation.map(|one| one.policies.iter().map(ToString::to_string).collect()).unwrap_or_default(),
            peer: peer(other, owners.get(&other)),
            source: End { ip: packet.source, port: ports.map(|(source, _)| source) },
            destination: End { ip: packet.destination, port: ports.map(|(_, destination)| destination) },
            protocol: protocol_word(packet.protocol),
            icmp,
            bytes: packet.bytes,
        }
    }

    fn hand_on(&self, record: &Arc<Record>, own: Option<&Owner>, now: Instant) {
        let tell = self.flows.keep(record, now);
        match &self.writer {
            Some(writer) => writer.write(record),
            None => self.flows.counts().record(record.verdict),
        }
        if tell.line {
            tracing::info!("{}", record.sentence());
        }
        if tell.event
            && let (Some(events), Some(Owner::Pod(pod))) = (&self.events, own)
            && events.try_send(Draft { record: Arc::clone(record), pod: Arc::clone(pod) }).is_err()
        {
            self.flows.counts().event(EventResult::Limited);
        }
    }
}

/// The addresses of the local pod and of the other end.
fn ends(heard: &Heard) -> (IpAddr, IpAddr) {
    match heard.way {
        Way::Ingress => (heard.packet.destination, heard.packet.source),
        Way::Egress => (heard.packet.source, heard.packet.destination),
    }
}

fn own(heard: &Heard) -> IpAddr {
    ends(heard).0
}

fn transport(packet: &Packet) -> (Option<(u16, u16)>, Option<Icmp>) {
    match packet.transport {
        Transport::Ports { source, destination } => (Some((source, destination)), None),
        Transport::Icmp { kind, code } => (None, Some(Icmp { kind, code })),
        Transport::None => (None, None),
    }
}

/// The local pods by address, as they are enforced.
#[derive(Default)]
struct Locals {
    effective: Option<Arc<Effective>>,
}

impl Locals {
    fn update(&mut self, enforced: Option<Arc<Effective>>) {
        self.effective = enforced;
    }

    fn pod(&self, address: IpAddr) -> Option<&EffectivePod> {
        self.effective.as_ref()?.pod_at(address).map(AsRef::as_ref)
    }

    /// How many addresses local pods have.
    fn len(&self) -> usize {
        self.effective.as_ref().map_or(0, |effective| effective.local().len())
    }
}

/// What each pod may have of the log.
struct Shares {
    rate: u32,
    /// By the first address of the pod; those that are gone share one.
    by_pod: HashMap<Option<IpAddr>, Bucket>,
}

impl Shares {
    fn take(&mut self, own: IpAddr, locals: &Locals, now: Instant) -> bool {
        let first = locals.pod(own).and_then(|pod| pod.addresses.first().copied());
        if !self.by_pod.contains_key(&first) && self.by_pod.len() > locals.len() {
            self.by_pod.retain(|address, _| address.is_none_or(|address| locals.pod(address).is_some()));
        }
        self.by_pod.entry(first).or_insert_with(|| Bucket::new(self.rate, self.rate, now)).take(now)
    }
}
