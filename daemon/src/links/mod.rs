//! The node's interfaces, as rtnetlink tells of them: pod bridges and their ports, the node's addresses, the interface
//! behind each pod's address.
//!
//! In: dumps at the start, events after. Out: answers about the current state, and [`LinkChange`] to say which answers
//! may be others now. What always holds: the socket that listens was open before the first dump, so no change falls
//! between; lost events lead to a new dump of everything; nothing of the kernel is changed except the nf-call flags of a
//! bridge that the caller holds as a [`PodBridge`].

mod behind;
pub(crate) mod fuzzing;
mod peer;
mod read;
mod state;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    net::IpAddr,
    ops::BitOrAssign,
    os::fd::{AsFd, BorrowedFd},
};

use flatfell_rules::compile::BridgeId;
use flatfell_rules::object::ObjectName;
use imbl::OrdMap;
use ipnetwork::{IpNetwork, IpNetworkError};
use netlink_packet_core::{DecodeError, Emitable};
use netlink_packet_route::link::{InfoBridge, InfoData, InfoKind, LinkAttribute, LinkInfo, LinkMessage};

pub use self::peer::{Peer, PeerFacts, Peers};
use self::{
    behind::Behind,
    read::{Event, Link, NfCall, read},
    state::State,
};
use crate::netlink::{ACKED, DUMP, Messages, NetlinkError, Request, Socket};

/// RTNLGRP_LINK, _NEIGH, _IPV4_IFADDR and _IPV6_IFADDR as bits of a mask.
const GROUPS: u32 = 1 | 1 << 2 | 1 << 4 | 1 << 8;
/// Room for the events of some hundred pods that start or end at once.
const EVENT_BUFFER: usize = 4 * 1024 * 1024;
/// Events read in one call at most: a pod that floods the bridge with MAC addresses must not hold the caller up.
const DATAGRAMS_A_CALL: usize = 4096;
/// Tries at a dump that changes keep interrupting.
const TRIES: usize = 5;

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_GETADDR: u16 = 22;
const RTM_GETNEIGH: u16 = 30;
const AF_BRIDGE: u8 = 7;
const IFLA_EXT_MASK: u16 = 29;
/// RTEXT_FILTER_SKIP_STATS: nobody here reads an interface's counters.
const SKIP_STATS: u32 = 8;

/// Why the interfaces are not known, or a bridge was not changed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// A socket failed.
    #[error("rtnetlink: {0}")]
    Socket(#[from] NetlinkError),
    /// A dump failed, or was interrupted by changes each time.
    #[error("dump of {what} over rtnetlink: {source}")]
    Dump {
        /// What was dumped.
        what: &'static str,
        /// What went wrong.
        source: Box<LinkError>,
    },
    /// A message that cannot be read.
    #[error("rtnetlink message of type {kind}: {source}")]
    Decode {
        /// Its type.
        kind: u16,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// An address with an impossible prefix length.
    #[error("rtnetlink address: {0}")]
    Prefix(#[source] IpNetworkError),
    /// A bridge's flags could not be set.
    #[error("bridge {bridge}: cannot set nf_call_iptables/nf_call_ip6tables: {source}")]
    NfCall {
        /// The bridge's name.
        bridge: String,
        /// What went wrong.
        source: NetlinkError,
    },
}

/// Which answers may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkChange {
    /// A link came or went, or its name, its master or its nf-call flags changed.
    pub links: bool,
    /// An address of the node came or went.
    pub addresses: bool,
    /// An address is behind another MAC address, or a MAC address behind another port.
    pub neighbours: bool,
    /// Events were lost and everything was read again.
    pub resynced: bool,
}

impl LinkChange {
    /// Whether anything changed.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }
}

impl BitOrAssign for LinkChange {
    fn bitor_assign(&mut self, other: Self) {
        self.links |= other.links;
        self.addresses |= other.addresses;
        self.neighbours |= other.neighbours;
        self.resynced |= other.resynced;
    }
}

/// A bridge that carries pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodBridge {
    /// Its name.
    pub name: String,
    /// Its interface index.
    pub index: u32,
    /// Whether its IPv4 frames pass the hooks of `inet`.
    pub nf_call_iptables: bool,
    /// The same for IPv6.
    pub nf_call_ip6tables: bool,
}

/// A port of a bridge whose other end is in another namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Veth {
    /// Its interface index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The other end.
    pub peer: Peer,
}

/// The node's interfaces, kept up to date by [`Links::process`].
#[derive(Debug)]
pub struct Links {
    events: Socket,
    requests: Socket,
    state: State,
    behind: Behind,
}

impl Links {
    /// Listens and reads everything, in the calling thread's network namespace.
    pub fn open() -> Result<Self, LinkError> {
        let events = Socket::open(mnl::Bus::Route, GROUPS)?;
        events.widen(EVENT_BUFFER)?;
        let mut requests = Socket::open(mnl::Bus::Route, 0)?;
        let state = picture(&mut requests)?;
        Ok(Self { events, requests, state, behind: Behind::default() })
    }

    /// Takes in the events that wait, without blocking, and says what changed. There may be more waiting when it
    /// returns: the descriptor stays readable then.
    pub fn process(&mut self) -> Result<LinkChange, LinkError> {
        let mut change = LinkChange::default();
        let mut lost = false;
        for _ in 0..DATAGRAMS_A_CALL {
            match self.events.poll() {
                Ok(Some(messages)) => change |= take_in(&mut self.state, &mut self.behind, messages)?,
                Ok(None) => break,
                Err(NetlinkError::Overrun) => lost = true,
                Err(error) => return Err(error.into()),
            }
        }
        if lost {
            change |= self.resync()?;
        }
        Ok(change)
    }

    fn resync(&mut self) -> Result<LinkChange, LinkError> {
        self.state = picture(&mut self.requests)?;
        for port in self.behind.interfaces() {
            if !self.state.links.contains_key(&port) {
                self.behind.interface_gone(port);
            }
        }
        self.learn_all();
        Ok(LinkChange { links: true, addresses: true, neighbours: true, resynced: true })
    }

    fn learn_all(&mut self) {
        for (device, address, mac) in self.state.neighbours() {
            for port in self.state.ports_of(device, mac) {
                self.behind.seen(address, port);
            }
        }
    }

    /// The bridges that carry pods: those configured, or, when none is, those with an address whose prefix holds the
    /// address of a local pod or shares addresses with a range that pods will be in.
    pub fn pod_bridges(
        &self,
        configured: &[String],
        pods: &OrdMap<IpAddr, ObjectName>,
        ranges: &[IpNetwork],
    ) -> Vec<PodBridge> {
        let of_pods = |prefix: IpNetwork| {
            pods.range(prefix.network()..=prefix.broadcast()).next().is_some()
                || ranges.iter().any(|range| overlap(range, &prefix))
        };
        let carries = |index: &u32, link: &Link| match configured {
            [] => self.prefixes(*index).any(of_pods),
            names => names.contains(&link.name),
        };
        let bridge = |(index, link): (&u32, &Link)| {
            let NfCall { v4, v6 } = link.bridge?;
            let name = link.name.clone();
            carries(index, link).then_some(PodBridge {
                name,
                index: *index,
                nf_call_iptables: v4,
                nf_call_ip6tables: v6,
            })
        };
        self.state.links.iter().filter_map(bridge).collect()
    }

    /// The prefixes that these bridges have addresses of, beside link-local ones.
    pub fn prefixes_of(&self, bridges: &[PodBridge]) -> impl Iterator<Item = IpNetwork> {
        let all = bridges.iter().flat_map(|bridge| self.prefixes(bridge.index));
        all.filter(|prefix| match prefix {
            IpNetwork::V4(v4) => !v4.ip().is_link_local(),
            IpNetwork::V6(v6) => !v6.ip().is_unicast_link_local(),
        })
    }

    /// The broadcast addresses of the networks this node is in.
    pub fn broadcasts(&self) -> impl Iterator<Item = IpAddr> {
        // Two addresses leave no room for one (RFC 3021).
        let with_broadcast = |prefix: &IpNetwork| prefix.is_ipv4() && prefix.prefix() < 31;
        self.state.addresses.iter().map(|assigned| assigned.prefix).filter(with_broadcast).map(|it| it.broadcast())
    }

    fn prefixes(&self, index: u32) -> impl Iterator<Item = IpNetwork> {
        self.state.addresses.iter().filter(move |assigned| assigned.index == index).map(|assigned| assigned.prefix)
    }

    /// The names of the interfaces that are ports of these bridges.
    pub fn ports(&self, bridges: &[PodBridge]) -> BTreeSet<String> {
        let is_port = |link: &&Link| bridges.iter().any(|bridge| link.master == Some(bridge.index));
        self.state.links.values().filter(is_port).map(|link| link.name.clone()).collect()
    }

    /// The ports of these bridges whose other end is in another namespace, where a pod may be.
    pub fn veths(&self, bridges: &[PodBridge]) -> impl Iterator<Item = Veth> {
        self.state.links.iter().filter_map(|(index, link)| {
            let peer = link.peer.filter(|_| bridges.iter().any(|bridge| link.master == Some(bridge.index)))?;
            Some(Veth { index: *index, name: link.name.clone(), peer })
        })
    }

    /// The link-layer addresses of these bridges.
    pub fn macs(&self, bridges: &[PodBridge]) -> BTreeSet<[u8; 6]> {
        bridges.iter().filter_map(|bridge| self.state.links.get(&bridge.index)?.mac).collect()
    }

    /// Every address of this node, on whatever interface.
    pub fn node_addresses(&self) -> BTreeSet<IpAddr> {
        self.state.addresses.iter().map(|assigned| assigned.address).collect()
    }

    /// Whether there is an interface of this name.
    pub fn exists(&self, name: &str) -> bool {
        self.state.links.values().any(|link| link.name == name)
    }

    /// Of these addresses of local pods, those whose interface went since the last call; each is said once.
    ///
    /// An address's interface is the bridge port (or ports) it was seen behind while it was watched; an address that was
    /// never seen is never reported, nor is one whose interface went before it was watched.
    pub fn interfaces_gone(&mut self, watched: &OrdMap<IpAddr, ObjectName>) -> Vec<IpAddr> {
        if self.behind.watch(watched) {
            self.learn_all();
        }
        self.behind.take_gone()
    }

    /// Whether this bridge still lives: one of this name with this index.
    pub fn is_bridge(&self, id: &BridgeId) -> bool {
        self.bridge(id).is_some()
    }

    /// A bridge that still lives, as it is now.
    pub fn bridge(&self, id: &BridgeId) -> Option<PodBridge> {
        let link = self.state.links.get(&id.index).filter(|link| link.name == id.name)?;
        let NfCall { v4, v6 } = link.bridge?;
        Some(PodBridge { name: id.name.clone(), index: id.index, nf_call_iptables: v4, nf_call_ip6tables: v6 })
    }

    /// Sets a pod bridge's nf-call flags of the families given, and touches nothing else of it. The new flags show
    /// after the next [`Links::process`].
    pub fn set_nf_call(&mut self, bridge: &PodBridge, v4: Option<bool>, v6: Option<bool>) -> Result<(), LinkError> {
        let flags = [v4.map(InfoBridge::NfCallIpTables), v6.map(InfoBridge::NfCallIp6Tables)];
        let data = InfoData::Bridge(flags.into_iter().flatten().collect());
        let info = vec![LinkInfo::Kind(InfoKind::Bridge), LinkInfo::Data(data)];
        let mut message = LinkMessage::default();
        message.header.index = bridge.index;
        message.attributes = vec![LinkAttribute::LinkInfo(info)];
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        let answer = self.requests.ask(Request::new(RTM_NEWLINK, ACKED, &bytes), |_| Ok(()));
        answer.map_err(|source| LinkError::NfCall { bridge: bridge.name.clone(), source })
    }
}

impl AsFd for Links {
    /// Readable when [`Links::process`] has something to do.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

/// Whether two prefixes share addresses.
pub fn overlap(one: &IpNetwork, other: &IpNetwork) -> bool {
    one.contains(other.network()) || other.contains(one.network())
}

fn take_in(state: &mut State, behind: &mut Behind, messages: Messages<'_>) -> Result<LinkChange, LinkError> {
    let mut change = LinkChange::default();
    for message in messages {
        if let Some(event) = read(&message.map_err(NetlinkError::from)?)? {
            change |= state.apply(event.clone());
            learn(state, behind, &event);
        }
    }
    Ok(change)
}

/// What an event tells about where watched addresses are.
fn learn(state: &State, behind: &mut Behind, event: &Event) {
    match event {
        Event::LinkGone { index } => behind.interface_gone(*index),
        Event::Neighbour { device, address, mac: Some(mac) } => {
            state.ports_of(*device, mac).for_each(|port| behind.seen(*address, port));
        }
        Event::Forward { bridge, mac, port: Some(port), .. } => {
            state.addresses_of(*bridge, mac).for_each(|address| behind.seen(address, *port));
        }
        _ => {}
    }
}

/// Everything, dumped.
fn picture(socket: &mut Socket) -> Result<State, LinkError> {
    let mut state = State::default();
    let links = Request::new(RTM_GETLINK, DUMP, &[0; 16]).attr(IFLA_EXT_MASK, &SKIP_STATS.to_ne_bytes());
    dump(socket, "links", &mut state, &links)?;
    dump(socket, "addresses", &mut state, &Request::new(RTM_GETADDR, DUMP, &[0; 8]))?;
    dump(socket, "neighbours", &mut state, &Request::new(RTM_GETNEIGH, DUMP, &[0; 12]))?;
    let bridges = [AF_BRIDGE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    dump(socket, "bridge forwarding tables", &mut state, &Request::new(RTM_GETNEIGH, DUMP, &bridges))?;
    Ok(state)
}

/// One dump into the state; what an interrupted dump left out or took twice, the next try or the events behind it set
/// right.
fn dump(socket: &mut Socket, what: &'static str, state: &mut State, request: &Request) -> Result<(), LinkError> {
    let failed = |source| LinkError::Dump { what, source: Box::new(source) };
    for left in (0..TRIES).rev() {
        let dumped = socket.dump::<LinkError>(request.clone(), |message| {
            if let Some(event) = read(&message)? {
                state.apply(event);
            }
            Ok(())
        });
        match dumped {
            Err(LinkError::Socket(NetlinkError::Interrupted)) if left > 0 => {}
            other => return other.map_err(failed),
        }
    }
    Ok(())
}
