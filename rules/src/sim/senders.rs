//! What a frame from a pod's port may say of its sender: sentences for the guard against forged ones.
//!
//! In: who is behind a port, and a frame. Out: whether it may pass. What always holds: as in [`super`]; the frame is made here, and what
//! the tracer sees of it follows from what it says.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::tracer;
use crate::ruleset::{Family, Hook};

/// A link-layer address.
pub type Mac = [u8; 6];

/// Who is behind a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Behind {
    /// A pod with these addresses, of which the first is its link-layer address.
    Pod(Mac, Vec<IpAddr>),
    /// Nobody that was found yet: pods with these addresses are looked for, and these link-layer addresses are others'.
    Nobody(Vec<IpAddr>, Vec<Mac>),
    /// Somebody who may say what they like.
    Free,
}

/// A frame: the source of its header, and what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The source of its header.
    pub source: Mac,
    /// What is in it.
    pub content: Content,
}

/// What is in a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// ARP of this sender.
    Arp(Mac, Ipv4Addr),
    /// IPv4 from there.
    Four(Ipv4Addr),
    /// IPv6 from there.
    Six(Ipv6Addr, Six),
}

/// What is in an IPv6 packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Six {
    /// TCP.
    Tcp,
    /// A neighbour solicitation.
    Solicitation,
    /// A neighbour advertisement.
    Advertisement {
        /// Whose it is.
        target: Ipv6Addr,
        /// Its options.
        options: Vec<[u8; 8]>,
        /// Whether another header stands before it.
        is_behind: bool,
    },
}

/// Whether the frame may pass.
pub fn may_send(behind: &Behind, frame: &Frame) -> bool {
    match behind {
        Behind::Free => true,
        Behind::Pod(mac, own) => {
            frame.source == *mac && names_only(frame, |sender| sender == *mac, own) && is_plain(frame, *mac)
        }
        Behind::Nobody(unplaced, macs) => {
            !macs.contains(&frame.source) && names_only(frame, |sender| !macs.contains(&sender), unplaced)
        }
    }
}

/// "A pod sends from its own addresses"; link-local and unspecified ones as discovery needs them.
fn names_only(frame: &Frame, is_own_mac: impl Fn(Mac) -> bool, own: &[IpAddr]) -> bool {
    match &frame.content {
        // "A probe asks without an address."
        Content::Arp(mac, sender) => is_own_mac(*mac) && (own.contains(&(*sender).into()) || sender.is_unspecified()),
        Content::Four(source) => own.contains(&(*source).into()),
        Content::Six(source, what) => {
            let is_icmp = *what != Six::Tcp;
            let is_source =
                own.contains(&(*source).into()) || is_link_local(*source) || (source.is_unspecified() && is_icmp);
            let is_target = match what {
                Six::Advertisement { target, .. } => own.contains(&(*target).into()) || target.segments()[0] == 0xfe80,
                Six::Tcp | Six::Solicitation => true,
            };
            is_source && is_target
        }
    }
}

/// "An advertisement says its own link-layer address, or none, and hides nothing."
fn is_plain(frame: &Frame, [a, b, c, d, e, f]: Mac) -> bool {
    match &frame.content {
        Content::Six(_, Six::Advertisement { options, is_behind, .. }) => {
            !is_behind
                && matches!(options.as_slice(), [] | [_])
                && options.iter().all(|it| *it == [2, 1, a, b, c, d, e, f])
        }
        _ => true,
    }
}

fn is_link_local(address: Ipv6Addr) -> bool {
    address.segments()[0] & 0xffc0 == 0xfe80
}

impl Frame {
    /// As it comes in by a port.
    pub fn at(&self, port: &str) -> tracer::Packet {
        let (ether_type, addresses) = match self.content {
            Content::Arp(..) => (0x0806, None),
            Content::Four(source) => (0x0800, Some((source.into(), Ipv4Addr::new(10, 0, 0, 1).into()))),
            Content::Six(source, _) => (0x86dd, Some((source.into(), Ipv6Addr::LOCALHOST.into()))),
        };
        let is_icmp = matches!(self.content, Content::Six(_, Six::Solicitation | Six::Advertisement { .. }));
        tracer::Packet {
            family: Family::Bridge,
            hook: Hook::Prerouting,
            iif: Some(port.to_owned()),
            ether_type,
            addresses,
            protocol: if is_icmp { 58 } else { 6 },
            dport: (addresses.is_some() && !is_icmp).then_some(80),
            hop_limit: 255,
            icmpv6_type: match &self.content {
                Content::Six(_, Six::Solicitation) => Some(135),
                Content::Six(_, Six::Advertisement { .. }) => Some(136),
                _ => None,
            },
            address_type: 1,
            flow: None,
            frame: self.header(),
        }
    }

    fn header(&self) -> tracer::Frame {
        let plain = tracer::Frame { source: self.source, ..tracer::Frame::default() };
        match &self.content {
            Content::Arp(mac, sender) => tracer::Frame { arp: Some((*mac, *sender)), ..plain },
            Content::Six(_, Six::Advertisement { target, options, is_behind }) => {
                let behind = u16::try_from(options.len() + usize::from(*is_behind)).unwrap_or(u16::MAX / 8) * 8;
                tracer::Frame {
                    next_header: if *is_behind { 60 } else { 58 },
                    length: 24 + behind,
                    target: Some(*target),
                    option: options.first().copied(),
                    ..plain
                }
            }
            Content::Six(_, Six::Solicitation) => tracer::Frame { next_header: 58, length: 24, ..plain },
            Content::Six(_, Six::Tcp) => tracer::Frame { next_header: 6, length: 20, ..plain },
            Content::Four(_) => plain,
        }
    }
}
