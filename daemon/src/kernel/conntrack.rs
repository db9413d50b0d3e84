//! Tracked connections: which there are, and bits of their marks.
//!
//! In: a mark and a mask; keys of flows. Out: flows, one at a time as they arrive; marks set. What always holds: the kernel
//! filters what is dumped; bits of a mark outside the mask stay; a flow that is gone is no error; no new flow is made.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::errno::Errno;

use super::socket::{DumpError, Socket};
use super::wire::{Attributes, Message, Nest, Request, messages};

// NFNL_SUBSYS_CTNETLINK and IPCTNL_MSG_CT_*.
const CT_NEW: u16 = 0x0100;
const CT_GET: u16 = 0x0101;
const NLM_F_ACK: u16 = 4;

// linux/netfilter/nfnetlink_conntrack.h.
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_MARK: u16 = 8;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_MARK_MASK: u16 = 21;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_TUPLE_ZONE: u16 = 3;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTO_ICMP_ID: u16 = 4;
const CTA_PROTO_ICMPV6_ID: u16 = 7;

const ICMPV6: u8 = 58;
const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Messages of one sendmsg: all their errors must fit the receive buffer.
const PER_SEND: usize = 500;

/// What a protocol tells flows of the same addresses apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// Ports (TCP, UDP, SCTP and others).
    Ports {
        /// Source.
        src: u16,
        /// Destination.
        dst: u16,
    },
    /// ICMP and ICMPv6.
    Icmp {
        /// Identifier.
        id: u16,
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
    },
    /// Nothing.
    None,
}

/// One direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// IP protocol.
    pub proto: u8,
    /// Ports or the like.
    pub transport: Transport,
    /// The zone of this direction alone.
    pub zone: Option<u16>,
}

/// What names a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowKey {
    /// The original direction.
    pub orig: Tuple,
    /// The zone of both directions; 0 for the default one.
    pub zone: u16,
}

/// A tracked flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEntry {
    /// The original direction: what the first packet said, before any NAT.
    pub orig: Tuple,
    /// The way back: who answers, behind any NAT.
    pub reply: Tuple,
    /// Its mark.
    pub mark: u32,
    /// The zone of both directions; 0 for the default one.
    pub zone: u16,
    /// The kernel's number for it.
    pub id: u32,
}

impl FlowEntry {
    /// What names it.
    pub fn key(&self) -> FlowKey {
        FlowKey { orig: self.orig, zone: self.zone }
    }
}

/// What became of flows whose marks were to be set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marked {
    /// Marks set.
    pub set: usize,
    /// Flows that were gone.
    pub gone: usize,
}

/// Why marks were not set.
#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    /// The socket failed; some marks may be set.
    #[error("netlink socket: {0}")]
    Socket(#[from] std::io::Error),
    /// The kernel refused a flow; others are set.
    #[error("mark of {flow:?} refused: {errno} {}", message.as_deref().unwrap_or_default())]
    Refused {
        /// The first flow that was refused.
        flow: Box<FlowKey>,
        /// The kernel's error.
        errno: Errno,
        /// The kernel's words.
        message: Option<String>,
    },
}

/// Conntrack, over netlink, of the network namespace of the thread that opened it.
pub struct Conntrack {
    socket: Socket,
}

impl Conntrack {
    /// Opens the socket.
    pub fn open() -> std::io::Result<Self> {
        Ok(Self { socket: Socket::open()? })
    }

    /// All flows with `flow.mark & mask == mark`.
    pub fn flows(&mut self, mark: u32, mask: u32) -> Result<Vec<FlowEntry>, DumpError> {
        let mut flows = Vec::new();
        self.each_flow(mark, mask, |flow| flows.push(flow))?;
        Ok(flows)
    }

    /// Gives all flows with `flow.mark & mask == mark` to `each`, as they arrive. A flow that comes or goes meanwhile
    /// may be missing, and one that moves in the kernel's table may come twice.
    pub fn each_flow(&mut self, mark: u32, mask: u32, mut each: impl FnMut(FlowEntry)) -> Result<(), DumpError> {
        let fill = |request: Request| {
            request.attribute(CTA_MARK, &mark.to_be_bytes()).attribute(CTA_MARK_MASK, &mask.to_be_bytes())
        };
        self.socket.dump(CT_GET, AF_UNSPEC, fill, |message| {
            each(parse(message)?);
            Ok(())
        })?;
        Ok(())
    }

    /// Sets the bits `mask` of each flow's mark to those of `value`.
    pub fn set_mark(&mut self, flows: &[FlowKey], value: u32, mask: u32) -> Result<Marked, MarkError> {
        let mut marked = Marked::default();
        let mut refused = None;
        for part in flows.chunks(PER_SEND) {
            let result = self.set_marks(part, value & mask, mask, &mut marked)?;
            refused = refused.or(result);
        }
        refused.map_or(Ok(marked), Err)
    }

    /// One sendmsg, whose last message is answered in any case. The first refusal, if there is one.
    fn set_marks(
        &mut self,
        flows: &[FlowKey],
        value: u32,
        mask: u32,
        marked: &mut Marked,
    ) -> Result<Option<MarkError>, MarkError> {
        let mut bytes = Vec::new();
        let mut by_seq = BTreeMap::new();
        let mut last = 0;
        for (place, flow) in flows.iter().enumerate() {
            last = self.socket.next_seq();
            let flags = if place + 1 == flows.len() { NLM_F_ACK } else { 0 };
            bytes.extend(change(flow, value, mask, flags, last));
            by_seq.insert(last, flow);
        }
        self.socket.send(&bytes)?;
        marked.set += flows.len();
        let mut refused = None;
        loop {
            let received = messages(self.socket.receive()?);
            for (seq, answer) in received.filter_map(|message| Some((message.seq, message.answer()?))) {
                if let (Some(flow), Some(errno)) = (by_seq.get(&seq), answer.error) {
                    marked.set -= 1;
                    match errno {
                        Errno::ENOENT => marked.gone += 1,
                        _ if refused.is_some() => {}
                        _ => {
                            let flow = Box::new(**flow);
                            refused = Some(MarkError::Refused { flow, errno, message: answer.message });
                        }
                    }
                }
                if seq == last {
                    return Ok(refused);
                }
            }
        }
    }
}

/// The message that sets a flow's mark. Without NLM_F_CREATE it makes no flow.
fn change(flow: &FlowKey, value: u32, mask: u32, flags: u16, seq: u32) -> Vec<u8> {
    let family = if flow.orig.src.is_ipv4() { AF_INET } else { AF_INET6 };
    let mut request = Request::new(CT_NEW, flags, seq, family)
        .nest(CTA_TUPLE_ORIG, |nest| tuple(nest, &flow.orig))
        .attribute(CTA_MARK, &value.to_be_bytes())
        .attribute(CTA_MARK_MASK, &mask.to_be_bytes());
    if flow.zone != 0 {
        request = request.attribute(CTA_ZONE, &flow.zone.to_be_bytes());
    }
    request.finish()
}

fn tuple(nest: Nest, tuple: &Tuple) -> Nest {
    let nest = nest.nest(CTA_TUPLE_IP, |ip| addresses(ip, tuple)).nest(CTA_TUPLE_PROTO, |proto| {
        let proto = proto.attribute(CTA_PROTO_NUM, &[tuple.proto]);
        transport(proto, tuple)
    });
    match tuple.zone {
        Some(zone) => nest.attribute(CTA_TUPLE_ZONE, &zone.to_be_bytes()),
        None => nest,
    }
}

fn addresses(nest: Nest, tuple: &Tuple) -> Nest {
    let put = |nest: Nest, address: IpAddr, v4, v6| match address {
        IpAddr::V4(address) => nest.attribute(v4, &address.octets()),
        IpAddr::V6(address) => nest.attribute(v6, &address.octets()),
    };
    let nest = put(nest, tuple.src, CTA_IP_V4_SRC, CTA_IP_V6_SRC);
    put(nest, tuple.dst, CTA_IP_V4_DST, CTA_IP_V6_DST)
}

fn transport(nest: Nest, tuple: &Tuple) -> Nest {
    match tuple.transport {
        Transport::Ports { src, dst } => {
            nest.attribute(CTA_PROTO_SRC_PORT, &src.to_be_bytes()).attribute(CTA_PROTO_DST_PORT, &dst.to_be_bytes())
        }
        Transport::Icmp { id, kind, code } => {
            let first = icmp_attribute(tuple.proto);
            nest.attribute(first, &id.to_be_bytes()).attribute(first + 1, &[kind]).attribute(first + 2, &[code])
        }
        Transport::None => nest,
    }
}

/// The attribute of the identifier; type and code follow it.
fn icmp_attribute(proto: u8) -> u16 {
    if proto == ICMPV6 { CTA_PROTO_ICMPV6_ID } else { CTA_PROTO_ICMP_ID }
}

fn parse(message: Message<'_>) -> Result<FlowEntry, DumpError> {
    let attributes = message.attributes();
    let direction = |kind, name| {
        attributes.find(kind).map(Attributes::nested).and_then(parse_tuple).ok_or(DumpError::Malformed(name))
    };
    Ok(FlowEntry {
        orig: direction(CTA_TUPLE_ORIG, "the original direction")?,
        reply: direction(CTA_TUPLE_REPLY, "the reply direction")?,
        mark: number32(attributes, CTA_MARK).unwrap_or(0),
        zone: number16(attributes, CTA_ZONE).unwrap_or(0),
        id: number32(attributes, CTA_ID).unwrap_or(0),
    })
}

fn number32(attributes: Attributes<'_>, kind: u16) -> Option<u32> {
    Some(u32::from_be_bytes(attributes.find(kind)?.try_into().ok()?))
}

fn number16(attributes: Attributes<'_>, kind: u16) -> Option<u16> {
    Some(u16::from_be_bytes(attributes.find(kind)?.try_into().ok()?))
}

fn number8(attributes: Attributes<'_>, kind: u16) -> Option<u8> {
    attributes.find(kind)?.first().copied()
}

fn parse_tuple(attributes: Attributes<'_>) -> Option<Tuple> {
    let ip = Attributes::nested(attributes.find(CTA_TUPLE_IP)?);
    let proto = Attributes::nested(attributes.find(CTA_TUPLE_PROTO)?);
    let number = number8(proto, CTA_PROTO_NUM)?;
    Some(Tuple {
        src: address(ip, CTA_IP_V4_SRC, CTA_IP_V6_SRC)?,
        dst: address(ip, CTA_IP_V4_DST, CTA_IP_V6_DST)?,
        proto: number,
        transport: parse_transport(proto, number),
        zone: number16(attributes, CTA_TUPLE_ZONE),
    })
}

fn address(ip: Attributes<'_>, v4: u16, v6: u16) -> Option<IpAddr> {
    let short = ip.find(v4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()).map(Ipv4Addr::from).map(IpAddr::V4);
    let long = || ip.find(v6).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok()).map(Ipv6Addr::from).map(IpAddr::V6);
    short.or_else(long)
}

fn parse_transport(proto: Attributes<'_>, number: u8) -> Transport {
    let ports = || Some((number16(proto, CTA_PROTO_SRC_PORT)?, number16(proto, CTA_PROTO_DST_PORT)?));
    let first = icmp_attribute(number);
    let icmp = || Some((number16(proto, first)?, number8(proto, first + 1)?, number8(proto, first + 2)?));
    match (ports(), icmp()) {
        (Some((src, dst)), _) => Transport::Ports { src, dst },
        (None, Some((id, kind, code))) => Transport::Icmp { id, kind, code },
        (None, None) => Transport::None,
    }
}
