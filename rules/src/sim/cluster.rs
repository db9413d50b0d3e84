//! A cluster and a packet as plain data.
//!
//! In: nothing. Out: the values that [`super::generate`] makes and [`super::oracle`] judges. What always holds: objects
//! are raw Kubernetes JSON, exactly what a manifest would hold; a probe says where its packet comes from, so that no
//! address has to be guessed at.

pub mod packet;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::Value;

/// How many pods with an address of their own a node of the lab has room for.
pub const SLOTS: u8 = 8;

/// A cluster: its objects, and what the lab knows of addresses.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// The node under test.
    pub node: String,
    /// Pods, Namespaces and NetworkPolicies, whole.
    pub objects: Vec<Value>,
    /// Every node, the one under test included.
    pub nodes: Vec<Node>,
    /// The addresses of a host that is no part of the cluster; the lab's stands for every address beyond its nodes.
    pub outside: Vec<IpAddr>,
    /// Whether pods may always reach their own node (`--own-node-egress=allow`).
    pub own_node_open: bool,
    /// Whether local addresses that are no known pod's pass (`--unknown-pods=allow`).
    pub unknown_open: bool,
}

impl Cluster {
    /// A cluster without objects on the nodes of the lab, node 1 under test.
    pub fn empty() -> Self {
        Self {
            node: node_name(1),
            objects: Vec::new(),
            nodes: (1..=3).map(Node::lab).collect(),
            outside: vec![IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10)), v6([0x2001, 0xdb8, 0x203, 0, 0x10])],
            own_node_open: false,
            unknown_open: false,
        }
    }

    /// The objects of a kind.
    pub fn kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> + 'a {
        self.objects.iter().filter(move |object| object["kind"] == kind)
    }
}

/// A node and its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its addresses on the network between the nodes, IPv4 then IPv6.
    pub underlay: Vec<IpAddr>,
    /// The addresses of its pod bridge.
    pub gateway: Vec<IpAddr>,
    /// What other nodes' pods see as its source: the addresses of `flannel.1`.
    pub tunnel: Vec<IpAddr>,
}

impl Node {
    /// The lab's node `number`: `192.168.50.n` and `fd00:192:168:50::n` between nodes, `10.244.n.0/24` and
    /// `fd00:10:244:n::/64` for pods, of which `.0` is the tunnel's and `.1` the bridge's.
    pub fn lab(number: u8) -> Self {
        let group = u16::from(number);
        Self {
            name: node_name(number),
            underlay: vec![IpAddr::V4(Ipv4Addr::new(192, 168, 50, number)), v6([0xfd00, 0x192, 0x168, 0x50, group])],
            gateway: vec![IpAddr::V4(Ipv4Addr::new(10, 244, number, 1)), v6([0xfd00, 0x10, 0x244, group, 1])],
            tunnel: vec![IpAddr::V4(Ipv4Addr::new(10, 244, number, 0)), v6([0xfd00, 0x10, 0x244, group, 0])],
        }
    }

    /// Every address of the node.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.underlay.iter().chain(&self.gateway).chain(&self.tunnel).copied()
    }
}

/// The name of the lab's node `number` (from 1).
pub fn node_name(number: u8) -> String {
    format!("node-{number}")
}

/// The IPv4 address of a pod slot: `10.244.<node>.<10 + slot>`.
pub fn pod_v4(node: u8, slot: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 244, node, 10 + slot))
}

/// The IPv6 address of a pod slot: `fd00:10:244:<node>::<10 + slot>`, the decimal digits read as hex.
pub fn pod_v6(node: u8, slot: u8) -> IpAddr {
    let decimal = u16::from(10 + slot);
    v6([0xfd00, 0x10, 0x244, u16::from(node), decimal / 10 * 16 + decimal % 10])
}

/// The node and slot whose address this is.
pub fn slot_of(address: IpAddr) -> Option<(u8, u8)> {
    (1..=3)
        .flat_map(|node| (0..SLOTS).map(move |slot| (node, slot)))
        .find(|&(node, slot)| pod_v4(node, slot) == address || pod_v6(node, slot) == address)
}

/// Four leading groups and the last one.
fn v6([a, b, c, d, last]: [u16; 5]) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, last))
}

/// Where an end of a probe stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// At a port of the pod bridge of this node (or, for a group address, at all of them).
    Pods(String),
    /// This node itself: a process of it, or of a host-network pod.
    Node(String),
    /// A host that is no part of the cluster.
    Outside,
}

/// What travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Packet {
    /// The first packet of a TCP connection.
    Tcp,
    /// The first datagram of a UDP flow.
    Udp,
    /// An SCTP INIT.
    Sctp,
    /// An echo request, ICMP or ICMPv6 by the family of the addresses.
    Echo,
    /// An IPv6 router advertisement.
    RouterAdvertisement,
    /// An IPv6 redirect.
    Redirect,
    /// An IPv6 neighbour solicitation.
    NeighbourSolicitation,
    /// An MLD report.
    MldReport,
}

impl Packet {
    /// The API's word for the protocol, if a policy can name it.
    pub fn protocol(self) -> Option<&'static str> {
        match self {
            Self::Tcp => Some("TCP"),
            Self::Udp => Some("UDP"),
            Self::Sctp => Some("SCTP"),
            _ => None,
        }
    }
}

/// Which packet of a conversation is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// The first packet.
    Opening,
    /// The answer to it: the probe still describes the opening packet.
    Reply,
}

/// What the sender wrote before addresses were translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translated {
    /// The client, where a node masqueraded it.
    pub source: IpAddr,
    /// The Service's address.
    pub destination: IpAddr,
    /// The Service's port.
    pub port: u16,
}

/// A packet of a new connection, as it is seen after destination NAT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Where it comes from.
    pub from: Place,
    /// Its source address.
    pub source: IpAddr,
    /// Where it goes.
    pub to: Place,
    /// Its destination address.
    pub destination: IpAddr,
    /// What it is.
    pub packet: Packet,
    /// Its destination port; 0 where it has none.
    pub port: u16,
    /// Whether the packet itself or its answer is asked about. Both have one verdict.
    pub half: Half,
    /// What it was before NAT. No verdict depends on it.
    pub translated: Option<Translated>,
}

/// How a packet passes through a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// The forward hook, and at which end the pod bridge is (at both for bridged packets).
    Forward {
        /// It comes from the pod bridge.
        from_pods: bool,
        /// It leaves by the pod bridge.
        to_pods: bool,
    },
    /// From a pod to this node: the input hook.
    Input,
    /// From this node to a pod: the output hook.
    Output,
    /// The node does not see it, or no pod of the node has a part in it.
    Elsewhere,
}

impl Probe {
    /// A probe of a new connection without NAT.
    pub fn new(from: (Place, IpAddr), to: (Place, IpAddr), packet: Packet, port: u16) -> Self {
        let ((from, source), (to, destination)) = (from, to);
        Self { from, source, to, destination, packet, port, half: Half::Opening, translated: None }
    }

    /// How it passes through a node.
    pub fn path(&self, node: &str) -> Path {
        let from_pods = matches!(&self.from, Place::Pods(name) if name == node);
        let to_pods = matches!(&self.to, Place::Pods(name) if name == node);
        let from_node = matches!(&self.from, Place::Node(name) if name == node);
        let to_node = matches!(&self.to, Place::Node(name) if name == node);
        match (from_pods, to_pods) {
            (true, false) if to_node => Path::Input,
            (false, true) if from_node => Path::Output,
            (false, false) => Path::Elsewhere,
            _ => Path::Forward { from_pods, to_pods },
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pods(node) => write!(f, "pods of {node}"),
            Self::Node(node) => write!(f, "node {node}"),
            Self::Outside => f.write_str("outside"),
        }
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?} port {}: ", self.half, self.packet, self.port)?;
        write!(f, "{} ({}) to {} ({})", self.source, self.from, self.destination, self.to)?;
        match &self.translated {
            Some(was) => write!(f, ", before NAT {} to {} port {}", was.source, was.destination, was.port),
            None => Ok(()),
        }
    }
}
