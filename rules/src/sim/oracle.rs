//! What must be true of a packet, straight from the specification.
//!
//! In: a cluster as raw Kubernetes objects and a probe. Out: whether it is allowed, and which sentences of the
//! specification decided that. What always holds: there is a function for each sentence, which quotes it; no code is
//! shared with the parser, the index or the compiler; slowness is fine.
//!
//! **Which rows decide** is found by experiment: each place where a sentence matters asks [`Reading::mistaken`] whether to
//! follow the common mistake instead. A row decided a verdict when that mistake alone turns the verdict round.

mod address;
mod life;
mod origin;
mod policies;
mod refuse;
mod row;
mod rule;
#[cfg(test)]
mod tests;
mod world;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::IpAddr;

pub use origin::Origins;
pub use row::Row;

use crate::sim::cluster::{Cluster, Half, Packet, Path, Place, Probe};
use world::{Pod, World};

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the packet passes.
    pub allowed: bool,
    /// The sentences without each of which the answer would be the other.
    pub reasons: Vec<Row>,
}

/// The side of a connection, seen from its subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    /// The word in policyTypes.
    fn word(self) -> &'static str {
        match self {
            Self::Ingress => "Ingress",
            Self::Egress => "Egress",
        }
    }

    /// The field of a policy with its rules.
    fn rules(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    /// The field of a rule with its peers.
    fn peers(self) -> &'static str {
        match self {
            Self::Ingress => "from",
            Self::Egress => "to",
        }
    }
}

/// A connection, seen from one of its ends.
struct Connection<'a> {
    subject: &'a Pod<'a>,
    direction: Direction,
    other: IpAddr,
    packet: Packet,
    port: u16,
}

/// A cluster, read once.
#[derive(Debug)]
pub struct Oracle<'a> {
    cluster: &'a Cluster,
    world: World<'a>,
}

impl<'a> Oracle<'a> {
    /// Reads a cluster.
    pub fn new(cluster: &'a Cluster) -> Self {
        Self { cluster, world: World::new(&cluster.objects) }
    }

    /// Whether the node under test lets a packet through.
    pub fn allowed(&self, probe: &Probe) -> bool {
        Reading::new(self, &self.cluster.node, None).allowed(probe)
    }

    /// The same, and why.
    pub fn verdict(&self, probe: &Probe) -> Verdict {
        self.explain(|wrong| {
            let reading = Reading::new(self, &self.cluster.node, wrong);
            (reading.allowed(probe), reading.touched.into_inner())
        })
    }

    /// Whether a packet arrives when every node of the cluster enforces.
    pub fn cluster_wide(&self, probe: &Probe) -> Verdict {
        self.explain(|wrong| {
            let readings: Vec<_> =
                self.cluster.nodes.iter().map(|node| Reading::new(self, &node.name, wrong)).collect();
            let allowed = readings.iter().all(|reading| reading.allowed(probe));
            (allowed, readings.into_iter().flat_map(|reading| reading.touched.into_inner()).collect())
        })
    }

    /// Reads the specification rightly, then once more for each sentence that was looked at, with that one mistaken.
    fn explain(&self, read: impl Fn(Option<Row>) -> (bool, BTreeSet<Row>)) -> Verdict {
        let (allowed, touched) = read(None);
        let decisive = |row: &Row| read(Some(*row)).0 != allowed;
        Verdict { allowed, reasons: touched.into_iter().filter(decisive).collect() }
    }
}

/// Whether the node under test lets a packet through, and why.
pub fn verdict(cluster: &Cluster, probe: &Probe) -> Verdict {
    Oracle::new(cluster).verdict(probe)
}

/// Whether a packet arrives when every node enforces, and why.
pub fn cluster_wide(cluster: &Cluster, probe: &Probe) -> Verdict {
    Oracle::new(cluster).cluster_wide(probe)
}

/// The specification as read for one node, possibly with one sentence mistaken.
struct Reading<'a> {
    cluster: &'a Cluster,
    world: &'a World<'a>,
    node: &'a str,
    wrong: Option<Row>,
    touched: RefCell<BTreeSet<Row>>,
}

impl<'a> Reading<'a> {
    fn new(oracle: &'a Oracle<'a>, node: &'a str, wrong: Option<Row>) -> Self {
        Self { cluster: oracle.cluster, world: &oracle.world, node, wrong, touched: RefCell::default() }
    }

    /// Whether this sentence is to be misread; notes that it was looked at.
    fn mistaken(&self, row: Row) -> bool {
        if self.wrong.is_none() {
            self.touched.borrow_mut().insert(row);
        }
        self.wrong == Some(row)
    }

    /// "Replies: allowed implicitly": the answer of an allowed connection passes, that of a denied one does not.
    fn allowed(&self, probe: &Probe) -> bool {
        let opening = self.opening_allowed(probe);
        if probe.half == Half::Reply && opening && self.mistaken(Row::Replies) {
            return self.opening_allowed(&answer_as_new(probe));
        }
        opening
    }

    /// Which hooks a packet passes, and what each of them lets through.
    fn opening_allowed(&self, probe: &Probe) -> bool {
        match probe.path(self.node) {
            Path::Elsewhere => true,
            Path::Output => self.node_to_pod(probe),
            Path::Input => self.group_and_link_local(probe).unwrap_or_else(|| self.pod_to_node(probe)),
            Path::Forward { from_pods, to_pods } => {
                let guard = if from_pods { self.group_and_link_local(probe) } else { None };
                guard.unwrap_or_else(|| !self.is_closed(probe) && self.forwarded(probe, from_pods, to_pods))
            }
        }
    }

    /// "Node to its own pod: always allowed (kubelet probes; also through a Service)."
    fn node_to_pod(&self, probe: &Probe) -> bool {
        !self.mistaken(Row::NodeToPod) || self.end_allows(probe, Direction::Ingress)
    }

    /// "Pod to its own node: judged by the pod's egress rules, like any other destination ... `--own-node-egress=allow`
    /// switches it off."
    fn pod_to_node(&self, probe: &Probe) -> bool {
        let opened = self.cluster.own_node_open;
        let judged = || self.end_allows(probe, Direction::Egress) || self.mistaken(Row::PodToNode);
        opened || (!self.is_closed(probe) && judged())
    }

    /// "New pod: closed until it is known": an end at an address that the node gives to pods, and no pod of the node has it.
    fn is_closed(&self, probe: &Probe) -> bool {
        let unknown = match probe.path(self.node) {
            Path::Forward { from_pods, to_pods } => {
                (from_pods && self.is_unknown(probe.source)) || (to_pods && self.is_unknown(probe.destination))
            }
            Path::Input => !self.cluster.own_node_open && self.is_unknown(probe.source),
            Path::Output | Path::Elsewhere => false,
        };
        unknown && !self.mistaken(Row::UnknownPod)
    }

    fn is_unknown(&self, address: IpAddr) -> bool {
        let Some(node) = self.cluster.nodes.iter().find(|node| node.name == self.node) else { return false };
        let for_pods = node.gateway.iter().any(|gateway| same_range(*gateway, address))
            && !node.addresses().any(|own| own == address)
            && !self.is_group(address);
        for_pods && !self.cluster.unknown_open && self.local_pod(address).is_none()
    }

    /// "A connection needs the source's egress AND the destination's ingress"; "a pod can always reach itself".
    fn forwarded(&self, probe: &Probe, from_pods: bool, to_pods: bool) -> bool {
        if from_pods && to_pods && self.reaches_itself(probe) && !self.mistaken(Row::ItSelf) {
            return true;
        }
        let egress = !from_pods || self.end_allows(probe, Direction::Egress);
        let ingress = !to_pods || self.end_allows(probe, Direction::Ingress);
        if egress != ingress && from_pods && to_pods && self.mistaken(Row::BothEnds) {
            return true;
        }
        egress && ingress
    }

    /// "Self: a pod can always reach itself, through its Service too."
    fn reaches_itself(&self, probe: &Probe) -> bool {
        match (self.local_pod(probe.source), self.local_pod(probe.destination)) {
            (Some(source), Some(destination)) => std::ptr::eq(source, destination),
            _ => false,
        }
    }

    /// What one end says: nothing where it is no pod of this node.
    fn end_allows(&self, probe: &Probe, direction: Direction) -> bool {
        let (source, destination, port) = self.as_seen(probe);
        let (subject, other) = match direction {
            Direction::Egress => (source, destination),
            Direction::Ingress => (destination, source),
        };
        let Some(subject) = self.local_pod(subject) else { return true };
        self.direction_allows(&Connection { subject, direction, other, packet: probe.packet, port })
    }

    /// "Service address: policy applies to the pod behind it (after DNAT)"; "the source that is seen decides".
    fn as_seen(&self, probe: &Probe) -> (IpAddr, IpAddr, u16) {
        let (mut source, mut destination, mut port) = (probe.source, probe.destination, probe.port);
        if let Some(was) = &probe.translated {
            if was.source != source && self.mistaken(Row::SourceSeen) {
                source = was.source;
            }
            if (was.destination, was.port) != (destination, port) && self.mistaken(Row::ServiceAddress) {
                (destination, port) = (was.destination, was.port);
            }
        }
        (source, destination, port)
    }

    /// What comes before every policy. Router advertisements and redirects from pods are always dropped; neighbour
    /// discovery passes on its link, MLD to a group; other link-local, multicast and broadcast packets of pods are dropped "only while the node
    /// has at least one isolated local pod (in either direction)".
    fn group_and_link_local(&self, probe: &Probe) -> Option<bool> {
        if matches!(probe.packet, Packet::RouterAdvertisement | Packet::Redirect) {
            return Some(self.mistaken(Row::RouterAdvertisement));
        }
        let discovery = match probe.packet {
            Packet::NeighbourSolicitation => self.on_one_link(probe),
            Packet::MldReport => probe.destination.is_multicast(),
            _ => false,
        };
        if discovery && !self.mistaken(Row::NeighbourDiscovery) {
            return Some(true);
        }
        if link_local(probe.source) || link_local(probe.destination) {
            return Some(!self.is_closed(probe) && (!self.someone_is_isolated() || self.mistaken(Row::LinkLocal)));
        }
        if self.is_group(probe.destination) {
            return Some(!self.is_closed(probe) && (!self.someone_is_isolated() || self.mistaken(Row::Multicast)));
        }
        None
    }

    /// Between pods of one node, or between a pod and its own node: nothing routes the packet.
    fn on_one_link(&self, probe: &Probe) -> bool {
        match (&probe.from, &probe.to) {
            (Place::Pods(from), Place::Pods(to) | Place::Node(to)) => from == to,
            (Place::Node(from), Place::Pods(to)) => from == to,
            _ => false,
        }
    }

    /// Multicast, the limited broadcast, or the broadcast address of a node's pod range.
    fn is_group(&self, address: IpAddr) -> bool {
        let IpAddr::V4(four) = address else { return address.is_multicast() };
        let pod_range = |gateway: &IpAddr| match gateway {
            IpAddr::V4(gateway) => gateway.octets()[..3] == four.octets()[..3],
            IpAddr::V6(_) => false,
        };
        let in_range = self.cluster.nodes.iter().flat_map(|node| &node.gateway).any(pod_range);
        four.is_multicast() || four.is_broadcast() || (in_range && four.octets()[3] == 255)
    }
}

/// Whether two addresses are of one node's range in the lab's plan: /24 or /64.
fn same_range(one: IpAddr, other: IpAddr) -> bool {
    match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => one.octets()[..3] == other.octets()[..3],
        (IpAddr::V6(one), IpAddr::V6(other)) => one.octets()[..8] == other.octets()[..8],
        _ => false,
    }
}

/// fe80::/10. IPv4's 169.254.0.0/16 is a destination like any other.
fn link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(six) => six.is_unicast_link_local(),
    }
}

/// The answer to a probe, taken for a connection of its own.
fn answer_as_new(probe: &Probe) -> Probe {
    let back = ((probe.to.clone(), probe.destination), (probe.from.clone(), probe.source));
    Probe::new(back.0, back.1, probe.packet, if probe.port == 0 { 0 } else { 40000 })
}
