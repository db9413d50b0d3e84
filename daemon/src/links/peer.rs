//! What is at the other end of a veth pair, in the pod's network namespace.
//!
//! In: a veth's peer, as rtnetlink names it in this namespace. Out: its link-layer address and its addresses, the oldest first. What
//! always holds: no namespace is entered; what the kernel does not say of exactly that namespace and interface is not taken. The pod
//! itself can change all of it, if it has CAP_NET_ADMIN: who reads it decides what to believe when.

use std::net::IpAddr;

use netlink_packet_core::ParseableParametrized;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};

use super::{LinkError, RTM_GETADDR, RTM_GETLINK};
use crate::netlink::{ACKED, DUMP, Message, NetlinkError, Request, Socket};

const IFLA_TARGET_NETNSID: u16 = 46;
const IFA_TARGET_NETNSID: u16 = 10;

/// The other end of a veth pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// What this namespace calls the other one.
    pub namespace: i32,
    /// Its interface index there.
    pub index: u32,
}

/// What it is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerFacts {
    /// Its link-layer address.
    pub mac: [u8; 6],
    /// Its addresses that are no link-local ones, with when they came (hundredths of a second, by the kernel's clock), the oldest
    /// first.
    pub addresses: Vec<(u32, IpAddr)>,
}

/// Asks for the other ends.
#[derive(Debug)]
pub struct Peers {
    socket: Socket,
}

impl Peers {
    /// In the calling thread's network namespace.
    pub fn open() -> Result<Self, LinkError> {
        let socket = Socket::open(mnl::Bus::Route, 0)?;
        // Without it the kernel would leave out what a dump is to be about.
        socket.strict()?;
        Ok(Self { socket })
    }

    /// What a peer is like; none where it is gone, or is no Ethernet.
    pub fn ask(&mut self, peer: Peer) -> Result<Option<PeerFacts>, LinkError> {
        match self.facts(peer) {
            Err(LinkError::Socket(NetlinkError::Refused { errno, .. })) if is_gone(errno) => Ok(None),
            // What changes meanwhile is asked again soon.
            Err(LinkError::Socket(NetlinkError::Interrupted)) => Ok(None),
            facts => facts,
        }
    }

    fn facts(&mut self, peer: Peer) -> Result<Option<PeerFacts>, LinkError> {
        let namespace = peer.namespace.to_ne_bytes();
        let mut header = [0; 16];
        header[4..8].copy_from_slice(&peer.index.to_ne_bytes());
        let mut mac = None;
        let request = Request::new(RTM_GETLINK, ACKED, &header).attr(IFLA_TARGET_NETNSID, &namespace);
        self.socket.ask::<LinkError>(request, |message| {
            if let RouteNetlinkMessage::NewLink(link) = parse(&message)? {
                mac = mac_of(link, peer);
            }
            Ok(())
        })?;
        let Some(mac) = mac else { return Ok(None) };
        let mut header = [0; 8];
        header[4..8].copy_from_slice(&peer.index.to_ne_bytes());
        let mut addresses = Vec::new();
        let request = Request::new(RTM_GETADDR, DUMP, &header).attr(IFA_TARGET_NETNSID, &namespace);
        self.socket.dump::<LinkError>(request, |message| {
            if let RouteNetlinkMessage::NewAddress(address) = parse(&message)? {
                addresses.extend(address_of(&address, peer));
            }
            Ok(())
        })?;
        addresses.sort();
        Ok(Some(PeerFacts { mac, addresses }))
    }
}

fn is_gone(errno: nix::errno::Errno) -> bool {
    use nix::errno::Errno;
    matches!(errno, Errno::ENODEV | Errno::EINVAL | Errno::ENOENT)
}

pub(super) fn parse(message: &Message<'_>) -> Result<RouteNetlinkMessage, LinkError> {
    RouteNetlinkMessage::parse_with_param(message.payload, message.kind)
        .map_err(|source| LinkError::Decode { kind: message.kind, source })
}

pub(super) fn mac_of(link: LinkMessage, peer: Peer) -> Option<[u8; 6]> {
    let of_namespace = link.attributes.contains(&LinkAttribute::IfNetnsId(peer.namespace));
    let mac = link.attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(bytes) => <[u8; 6]>::try_from(bytes).ok(),
        _ => None,
    });
    mac.filter(|_| of_namespace && link.header.index == peer.index)
}

pub(super) fn address_of(message: &AddressMessage, peer: Peer) -> Option<(u32, IpAddr)> {
    let (mut local, mut other, mut namespace, mut since) = (None, None, None, 0);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => other = Some(*address),
            AddressAttribute::TargetNetNsId(id) => namespace = Some(*id),
            AddressAttribute::CacheInfo(info) => since = info.cstamp,
            _ => {}
        }
    }
    let address = local.or(other).filter(|address| match address {
        IpAddr::V4(four) => !four.is_link_local() && !four.is_loopback(),
        IpAddr::V6(six) => !six.is_unicast_link_local() && !six.is_loopback(),
    })?;
    (namespace == Some(peer.namespace) && message.header.index == peer.index).then_some((since, address))
}
