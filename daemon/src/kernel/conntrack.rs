//! Tracked connections: which there are, and bits of their marks.
//!
//! In: a mark and a mask; keys of flows. Out: flows, one at a time as they arrive; marks set. What always holds: the kernel
//! filters what is dumped; bits of a mark outside the mask stay; a flow that is gone is no error; no new flow is made.

use std::collections::BTreeMap;
use std::net::IpAddr;

use nix::errno::Errno;

use super::netfilter_socket;
use crate::netlink::{
    ACKED, Answer, Attr, Attrs, DUMP, Malformed, Message, NETFILTER_HEADER, NetlinkError, REQUEST, Request, Socket,
    netfilter, words,
};

// NFNL_SUBSYS_CTNETLINK and IPCTNL_MSG_CT_*.
const CT_NEW: u16 = 0x0100;
const CT_GET: u16 = 0x0101;

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
    #[error(transparent)]
    Socket(#[from] NetlinkError),
    /// The kernel refused a flow; others are set.
    #[error("mark of {flow:?} refused: {errno}{}", words(message.as_deref()))]
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
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self { socket: netfilter_socket()? })
    }

    /// All flows with `flow.mark & mask == mark`.
    pub fn flows(&mut self, mark: u32, mask: u32) -> Result<Vec<FlowEntry>, NetlinkError> {
        let mut flows = Vec::new();
        self.each_flow(mark, mask, |flow| flows.push(flow))?;
        Ok(flows)
    }

    /// Gives all flows with `flow.mark & mask == mark` to `each`, as they arrive. A flow that comes or goes meanwhile
    /// may be missing, and one that moves in the kernel's table may come twice.
    pub fn each_flow(&mut self, mark: u32, mask: u32, mut each: impl FnMut(FlowEntry)) -> Result<(), NetlinkError> {
        let request = Request::new(CT_GET, DUMP, &netfilter(AF_UNSPEC))
            .attr(CTA_MARK, &mark.to_be_bytes())
            .attr(CTA_MARK_MASK, &mask.to_be_bytes());
        let dumped = self.socket.dump::<NetlinkError>(request, |message| {
            each(parse(message)?);
            Ok(())
        });
        match dumped {
            Err(NetlinkError::Interrupted) => Ok(()),
            other => other,
        }
    }

    /// Sets the bits `mask` of each flow's mark to those of `value`.
    pub fn set_mark(&mut self, flows: &[FlowKey], value: u32, mask: u32) -> Result<Marked, MarkError> {
        let flows: Vec<(FlowKey, u32)> = flows.iter().map(|flow| (*flow, value)).collect();
        self.set_marks(&flows, mask)
    }

    /// Sets the bits `mask` of each flow's mark to those of the value beside it.
    pub fn set_marks(&mut self, flows: &[(FlowKey, u32)], mask: u32) -> Result<Marked, MarkError> {
        let mut marked = Marked::default();
        let mut refused = None;
        for part in flows.chunks(PER_SEND) {
            let result = self.send_marks(part, mask, &mut marked)?;
            refused = refused.or(result);
        }
        refused.map_or(Ok(marked), Err)
    }

    /// One sendmsg, whose last message is answered in any case. The first refusal, if there is one.
    fn send_marks(
        &mut self,
        flows: &[(FlowKey, u32)],
        mask: u32,
        marked: &mut Marked,
    ) -> Result<Option<MarkError>, MarkError> {
        let mut bytes = Vec::new();
        let mut by_seq = BTreeMap::new();
        let mut last = 0;
        for (place, (flow, value)) in flows.iter().enumerate() {
            last = self.socket.next_sequence();
            let flags = if place + 1 == flows.len() { ACKED } else { REQUEST };
            bytes.extend(change(flow, value & mask, mask, flags).finish(last).map_err(NetlinkError::from)?);
            by_seq.insert(last, flow);
        }
        self.socket.send(&bytes)?;
        marked.set += flows.len();
        let mut refused = None;
        loop {
            for message in self.socket.receive()? {
                let message = message.map_err(NetlinkError::from)?;
                let Some(answer) = message.answer().map_err(NetlinkError::from)? else { continue };
                if let Answer { error: Some(errno), message: words } = answer
                    && let Some(flow) = by_seq.get(&message.sequence)
                {
                    marked.set -= 1;
                    match errno {
                        Errno::ENOENT => marked.gone += 1,
                        _ if refused.is_some() => {}
                        _ => {
                            let flow = Box::new(**flow);
                            refused = Some(MarkError::Refused { flow, errno, message: words });
                        }
                    }
                }
                if message.sequence == last {
                    return Ok(refused);
                }
            }
        }
    }
}

/// The message that sets a flow's mark. Without NLM_F_CREATE it makes no flow.
pub(super) fn change(flow: &FlowKey, value: u32, mask: u32, flags: u16) -> Request {
    let family = if flow.orig.src.is_ipv4() { AF_INET } else { AF_INET6 };
    let request = Request::new(CT_NEW, flags, &netfilter(family))
        .nest(CTA_TUPLE_ORIG, |nest| tuple(nest, &flow.orig))
        .attr(CTA_MARK, &value.to_be_bytes())
        .attr(CTA_MARK_MASK, &mask.to_be_bytes());
    if flow.zone == 0 { request } else { request.attr(CTA_ZONE, &flow.zone.to_be_bytes()) }
}

fn tuple(nest: Request, tuple: &Tuple) -> Request {
    let nest = nest.nest(CTA_TUPLE_IP, |ip| addresses(ip, tuple)).nest(CTA_TUPLE_PROTO, |proto| {
        let proto = proto.attr(CTA_PROTO_NUM, &[tuple.proto]);
        transport(proto, tuple)
    });
    match tuple.zone {
        Some(zone) => nest.attr(CTA_TUPLE_ZONE, &zone.to_be_bytes()),
        None => nest,
    }
}

fn addresses(nest: Request, tuple: &Tuple) -> Request {
    let put = |nest: Request, address: IpAddr, v4, v6| match address {
        IpAddr::V4(address) => nest.attr(v4, &address.octets()),
        IpAddr::V6(address) => nest.attr(v6, &address.octets()),
    };
    let nest = put(nest, tuple.src, CTA_IP_V4_SRC, CTA_IP_V6_SRC);
    put(nest, tuple.dst, CTA_IP_V4_DST, CTA_IP_V6_DST)
}

fn transport(nest: Request, tuple: &Tuple) -> Request {
    match tuple.transport {
        Transport::Ports { src, dst } => {
            nest.attr(CTA_PROTO_SRC_PORT, &src.to_be_bytes()).attr(CTA_PROTO_DST_PORT, &dst.to_be_bytes())
        }
        Transport::Icmp { id, kind, code } => {
            let first = icmp_attribute(tuple.proto);
            nest.attr(first, &id.to_be_bytes()).attr(first + 1, &[kind]).attr(first + 2, &[code])
        }
        Transport::None => nest,
    }
}

/// The attribute of the identifier; type and code follow it.
fn icmp_attribute(proto: u8) -> u16 {
    if proto == ICMPV6 { CTA_PROTO_ICMPV6_ID } else { CTA_PROTO_ICMP_ID }
}

pub(super) fn parse(message: Message<'_>) -> Result<FlowEntry, Malformed> {
    let attrs = message.attrs(NETFILTER_HEADER)?;
    let number32 = |kind| attrs.find_kind(kind)?.map(|attr| attr.u32_be()).transpose();
    Ok(FlowEntry {
        orig: parse_tuple(&needed(&attrs, CTA_TUPLE_ORIG, "a flow without its original direction")?.nested())?,
        reply: parse_tuple(&needed(&attrs, CTA_TUPLE_REPLY, "a flow without its reply direction")?.nested())?,
        mark: number32(CTA_MARK)?.unwrap_or(0),
        zone: number16(&attrs, CTA_ZONE)?.unwrap_or(0),
        id: number32(CTA_ID)?.unwrap_or(0),
    })
}

fn needed<'a>(attrs: &Attrs<'a>, kind: u16, otherwise: &'static str) -> Result<Attr<'a>, Malformed> {
    attrs.find_kind(kind)?.ok_or(Malformed(otherwise))
}

fn number16(attrs: &Attrs<'_>, kind: u16) -> Result<Option<u16>, Malformed> {
    attrs.find_kind(kind)?.map(|attr| attr.u16_be()).transpose()
}

fn number8(attrs: &Attrs<'_>, kind: u16) -> Result<Option<u8>, Malformed> {
    attrs.find_kind(kind)?.map(|attr| attr.u8()).transpose()
}

fn parse_tuple(attrs: &Attrs<'_>) -> Result<Tuple, Malformed> {
    let ip = needed(attrs, CTA_TUPLE_IP, "a flow without addresses")?.nested();
    let proto = needed(attrs, CTA_TUPLE_PROTO, "a flow without a protocol")?.nested();
    let number = needed(&proto, CTA_PROTO_NUM, "a flow without a protocol number")?.u8()?;
    Ok(Tuple {
        src: address(&ip, CTA_IP_V4_SRC, CTA_IP_V6_SRC)?,
        dst: address(&ip, CTA_IP_V4_DST, CTA_IP_V6_DST)?,
        proto: number,
        transport: parse_transport(&proto, number)?,
        zone: number16(attrs, CTA_TUPLE_ZONE)?,
    })
}

fn address(ip: &Attrs<'_>, v4: u16, v6: u16) -> Result<IpAddr, Malformed> {
    match ip.find_kind(v4)? {
        Some(short) => Ok(IpAddr::from(short.bytes::<4>()?)),
        None => Ok(IpAddr::from(needed(ip, v6, "a flow without an address")?.bytes::<16>()?)),
    }
}

fn parse_transport(proto: &Attrs<'_>, number: u8) -> Result<Transport, Malformed> {
    if let (Some(src), Some(dst)) = (number16(proto, CTA_PROTO_SRC_PORT)?, number16(proto, CTA_PROTO_DST_PORT)?) {
        return Ok(Transport::Ports { src, dst });
    }
    let first = icmp_attribute(number);
    match (number16(proto, first)?, number8(proto, first + 1)?, number8(proto, first + 2)?) {
        (Some(id), Some(kind), Some(code)) => Ok(Transport::Icmp { id, kind, code }),
        _ => Ok(Transport::None),
    }
}
