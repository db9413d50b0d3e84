//! rtnetlink messages as facts about interfaces.
//!
//! In: messages of dumps and events. Out: an [`Event`] for each that says something the daemon needs, or a
//! [`LinkError`]. What always holds: a bridge's word about its own ports (family AF_BRIDGE) never passes for the life
//! or death of an interface; a neighbour without a MAC address is one that is not known.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_core::ParseableParametrized;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{InfoBridge, InfoData, InfoKind, LinkAttribute, LinkInfo, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage},
};

use super::{LinkError, peer::Peer};
use crate::netlink::Message;

/// A link-layer address.
pub type Mac = Vec<u8>;

/// What the daemon needs to know of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub name: String,
    pub master: Option<u32>,
    /// Set for bridges only.
    pub bridge: Option<NfCall>,
    /// Its link-layer address, where it has one of Ethernet.
    pub mac: Option<[u8; 6]>,
    /// Set for a veth whose other end is in another namespace.
    pub peer: Option<Peer>,
}

/// Whether a bridge shows its frames to the hooks of IPv4 and IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NfCall {
    pub v4: bool,
    pub v6: bool,
}

/// An address of this node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Assigned {
    pub index: u32,
    pub address: IpAddr,
    pub prefix: IpNetwork,
}

/// One fact that a message states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Link { index: u32, link: Link },
    LinkGone { index: u32 },
    Address(Assigned),
    AddressGone(Assigned),
    Neighbour { device: u32, address: IpAddr, mac: Option<Mac> },
    Forward { bridge: u32, mac: Mac, vlan: u16, port: Option<u32> },
}

/// Reads one message; `None` for what is of no concern here.
pub fn read(message: &Message<'_>) -> Result<Option<Event>, LinkError> {
    let parsed = RouteNetlinkMessage::parse_with_param(message.payload, message.kind)
        .map_err(|source| LinkError::Decode { kind: message.kind, source })?;
    match parsed {
        RouteNetlinkMessage::NewLink(link) => Ok(link_event(link)),
        RouteNetlinkMessage::DelLink(link) => Ok(link_gone(&link)),
        RouteNetlinkMessage::NewAddress(address) => Ok(assigned(&address)?.map(Event::Address)),
        RouteNetlinkMessage::DelAddress(address) => Ok(assigned(&address)?.map(Event::AddressGone)),
        RouteNetlinkMessage::NewNeighbour(neighbour) => Ok(neighbour_event(neighbour, true)),
        RouteNetlinkMessage::DelNeighbour(neighbour) => Ok(neighbour_event(neighbour, false)),
        _ => Ok(None),
    }
}

fn link_gone(message: &LinkMessage) -> Option<Event> {
    let itself = message.header.interface_family == AddressFamily::Unspec;
    itself.then_some(Event::LinkGone { index: message.header.index })
}

fn link_event(message: LinkMessage) -> Option<Event> {
    if message.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let mut link = Link { name: String::new(), master: None, bridge: None, mac: None, peer: None };
    let (mut peer, mut namespace, mut is_veth) = (None, None, false);
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Controller(index) => link.master = Some(index),
            LinkAttribute::LinkInfo(info) => {
                link.bridge = bridge(&info);
                is_veth = info.contains(&LinkInfo::Kind(InfoKind::Veth));
            }
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok(),
            LinkAttribute::Link(index) => peer = Some(index),
            LinkAttribute::LinkNetNsId(id) => namespace = Some(id),
            _ => {}
        }
    }
    link.peer = peer.zip(namespace).filter(|_| is_veth).map(|(index, namespace)| Peer { namespace, index });
    Some(Event::Link { index: message.header.index, link })
}

fn bridge(info: &[LinkInfo]) -> Option<NfCall> {
    let data = info.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Bridge(data)) => Some(data),
        _ => None,
    })?;
    let v4 = data.contains(&InfoBridge::NfCallIpTables(true));
    let v6 = data.contains(&InfoBridge::NfCallIp6Tables(true));
    Some(NfCall { v4, v6 })
}

fn assigned(message: &AddressMessage) -> Result<Option<Assigned>, LinkError> {
    let mut local = None;
    let mut peer = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => peer = Some(*address),
            _ => {}
        }
    }
    // The prefix belongs to the peer's address where there is one (IFA_ADDRESS), which else is the own address.
    let (Some(address), Some(network)) = (local.or(peer), peer.or(local)) else { return Ok(None) };
    let prefix = IpNetwork::new(network, message.header.prefix_len).map_err(LinkError::Prefix)?;
    Ok(Some(Assigned { index: message.header.index, address, prefix }))
}

fn neighbour_event(message: NeighbourMessage, exists: bool) -> Option<Event> {
    let index = message.header.ifindex;
    let (mut mac, mut address, mut master, mut vlan) = (None, None, None, 0);
    for attribute in message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = Some(bytes),
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(v6)),
            NeighbourAttribute::Controller(bridge) => master = Some(bridge),
            NeighbourAttribute::Vlan(id) => vlan = id,
            _ => {}
        }
    }
    if message.header.family == AddressFamily::Bridge {
        // Entries without a master are a device's own filters, not a bridge's forwarding table.
        return Some(Event::Forward { bridge: master?, mac: mac?, vlan, port: exists.then_some(index) });
    }
    // Groups have entries that are dumped but never told of, and no pod is behind one.
    let address = address.filter(|address| !address.is_multicast())?;
    Some(Event::Neighbour { device: index, address, mac: mac.filter(|_| exists) })
}
