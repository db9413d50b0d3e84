//! Netlink as bytes: messages and attributes read with every bound checked, messages built, a socket that asks and
//! dumps.
//!
//! In: buffers the kernel filled; requests to send. Out: borrowed views of messages and attributes, or [`Malformed`].
//! What always holds: no length out of a buffer is believed before it was compared with what is there; a walk that
//! meets a bad length ends with an error, never silently; a dump that the kernel marked as interrupted is said to be so;
//! only the kernel (port 0) is listened to.

use std::{
    io::IoSliceMut,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvmsg, sendto, setsockopt,
            socket, sockopt,
        },
        time::TimeVal,
    },
};

/// Flags of a request for a dump.
pub const DUMP: u16 = NLM_F_REQUEST | NLM_F_DUMP;

/// Flags of a request whose success is confirmed.
pub const ACKED: u16 = NLM_F_REQUEST | NLM_F_ACK;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_OVERRUN: u16 = 4;
const NLMSG_HEADER: usize = 16;
const ATTR_HEADER: usize = 4;
/// NLA_F_NESTED and NLA_F_NET_BYTEORDER share the field of the attribute's type.
const ATTR_KIND: u16 = 0x3fff;
const ATTR_NESTED: u16 = 0x8000;
/// Twice what the kernel puts into one datagram of a dump (32 KiB).
const RECEIVE: usize = 64 * 1024;
/// A kernel that does not answer within this is not going to.
const PATIENCE_SECONDS: i64 = 10;

/// A message or attribute whose lengths contradict each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed netlink data: {0}")]
pub struct Malformed(pub &'static str);

/// What can go wrong on a netlink socket.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// A system call on the socket failed; which one, and why.
    #[error("netlink {step}: {errno}")]
    Call {
        /// The call.
        step: &'static str,
        /// Its error.
        errno: Errno,
    },
    /// The kernel refused the request.
    #[error("netlink request refused: {0}")]
    Refused(Errno),
    /// The kernel had more to say than the socket could hold; what was said is lost in part.
    #[error("netlink socket overrun: messages were lost")]
    Overrun,
    /// The data changed while it was dumped: the dump is no consistent picture.
    #[error("netlink dump interrupted by a change")]
    Interrupted,
    /// One datagram was longer than the receive buffer.
    #[error("netlink datagram of {0} bytes truncated")]
    Truncated(usize),
    /// The kernel sent what does not parse.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// Fixed-size field at an offset, if the buffer reaches that far.
pub fn field<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Malformed> {
    let end = at.checked_add(N).ok_or(Malformed("offset overflows"))?;
    bytes.get(at..end).and_then(|slice| slice.try_into().ok()).ok_or(Malformed("header too short"))
}

fn align(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// Splits `length` bytes and their padding off the front; the last padding may be missing.
fn split(bytes: &[u8], length: usize) -> Option<(&[u8], &[u8])> {
    let head = bytes.get(..length)?;
    Some((head, bytes.get(align(length)..).unwrap_or_default()))
}

/// One netlink message, borrowed from a receive buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// Its type.
    pub kind: u16,
    /// Its flags.
    pub flags: u16,
    /// The sequence number of the request it answers.
    pub sequence: u32,
    /// The port id it is about: of the answered request, or of who caused an event.
    pub port: u32,
    /// What follows the netlink header.
    pub payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The attributes behind a family header of `header` bytes.
    pub fn attrs(&self, header: usize) -> Result<Attrs<'a>, Malformed> {
        let rest = self.payload.get(align(header)..).ok_or(Malformed("family header too short"))?;
        Ok(Attrs::new(rest))
    }

    /// For an NLMSG_ERROR or NLMSG_DONE message: the error in it, or success.
    fn outcome(&self) -> Result<(), NetlinkError> {
        match i32::from_ne_bytes(field(self.payload, 0)?) {
            0.. => Ok(()),
            negative => Err(NetlinkError::Refused(Errno::from_raw(negative.saturating_neg()))),
        }
    }
}

/// The messages of one datagram.
#[derive(Debug, Clone)]
pub struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    /// Walks `datagram`.
    pub fn new(datagram: &'a [u8]) -> Self {
        Self { rest: datagram }
    }

    fn step(&mut self) -> Result<Message<'a>, Malformed> {
        let rest = std::mem::take(&mut self.rest);
        let length = usize::try_from(u32::from_ne_bytes(field(rest, 0)?)).map_err(|_| Malformed("message length"))?;
        let (message, rest) = split(rest, length).ok_or(Malformed("message longer than its datagram"))?;
        let payload = message.get(NLMSG_HEADER..).ok_or(Malformed("message shorter than its header"))?;
        self.rest = rest;
        Ok(Message {
            kind: u16::from_ne_bytes(field(message, 4)?),
            flags: u16::from_ne_bytes(field(message, 6)?),
            sequence: u32::from_ne_bytes(field(message, 8)?),
            port: u32::from_ne_bytes(field(message, 12)?),
            payload,
        })
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() { None } else { Some(self.step()) }
    }
}

/// One attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr<'a> {
    /// Its type, without the flag bits.
    pub kind: u16,
    /// Its value.
    pub payload: &'a [u8],
}

impl<'a> Attr<'a> {
    fn exact<const N: usize>(&self) -> Result<[u8; N], Malformed> {
        self.payload.try_into().map_err(|_| Malformed("attribute of another size"))
    }

    /// The attributes within.
    pub fn nested(&self) -> Attrs<'a> {
        Attrs::new(self.payload)
    }

    /// One byte.
    pub fn u8(&self) -> Result<u8, Malformed> {
        self.exact::<1>().map(|[byte]| byte)
    }

    /// 16 bits in host byte order.
    pub fn u16_ne(&self) -> Result<u16, Malformed> {
        self.exact().map(u16::from_ne_bytes)
    }

    /// 16 bits in network byte order.
    pub fn u16_be(&self) -> Result<u16, Malformed> {
        self.exact().map(u16::from_be_bytes)
    }

    /// 32 bits in host byte order.
    pub fn u32_ne(&self) -> Result<u32, Malformed> {
        self.exact().map(u32::from_ne_bytes)
    }

    /// 32 bits in network byte order.
    pub fn u32_be(&self) -> Result<u32, Malformed> {
        self.exact().map(u32::from_be_bytes)
    }

    /// 64 bits in network byte order.
    pub fn u64_be(&self) -> Result<u64, Malformed> {
        self.exact().map(u64::from_be_bytes)
    }

    /// Text up to its NUL.
    pub fn text(&self) -> Result<&'a str, Malformed> {
        let end = self.payload.iter().position(|byte| *byte == 0).unwrap_or(self.payload.len());
        let text = self.payload.get(..end).unwrap_or_default();
        std::str::from_utf8(text).map_err(|_| Malformed("text is not UTF-8"))
    }
}

/// The attributes of a message or of a nest.
#[derive(Debug, Clone)]
pub struct Attrs<'a> {
    rest: &'a [u8],
}

impl<'a> Attrs<'a> {
    /// Walks `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The first attribute of this type.
    pub fn find_kind(&self, kind: u16) -> Result<Option<Attr<'a>>, Malformed> {
        for attr in self.clone() {
            let attr = attr?;
            if attr.kind == kind {
                return Ok(Some(attr));
            }
        }
        Ok(None)
    }

    fn step(&mut self) -> Result<Attr<'a>, Malformed> {
        let rest = std::mem::take(&mut self.rest);
        let length = usize::from(u16::from_ne_bytes(field(rest, 0)?));
        let kind = u16::from_ne_bytes(field(rest, 2)?) & ATTR_KIND;
        let (attr, rest) = split(rest, length).ok_or(Malformed("attribute longer than its message"))?;
        let payload = attr.get(ATTR_HEADER..).ok_or(Malformed("attribute shorter than its header"))?;
        self.rest = rest;
        Ok(Attr { kind, payload })
    }
}

impl<'a> Iterator for Attrs<'a> {
    type Item = Result<Attr<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() { None } else { Some(self.step()) }
    }
}

/// A request being written.
#[derive(Debug)]
pub struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// A message of this type with its family header; sequence number and length are filled in when it is sent.
    pub fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut bytes = vec![0; NLMSG_HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(header);
        let mut request = Self { bytes };
        request.pad();
        request
    }

    /// Adds an attribute.
    pub fn attr(mut self, kind: u16, payload: &[u8]) -> Result<Self, Malformed> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; ATTR_HEADER]);
        self.bytes.extend_from_slice(payload);
        self.close(start, kind)
    }

    /// Adds an attribute that holds what `fill` adds.
    pub fn nest(mut self, kind: u16, fill: impl FnOnce(Self) -> Result<Self, Malformed>) -> Result<Self, Malformed> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; ATTR_HEADER]);
        fill(self)?.close(start, kind | ATTR_NESTED)
    }

    fn close(mut self, start: usize, kind: u16) -> Result<Self, Malformed> {
        let length = u16::try_from(self.bytes.len() - start).map_err(|_| Malformed("attribute over 64 KiB"))?;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
        self.pad();
        Ok(self)
    }

    fn pad(&mut self) {
        self.bytes.resize(align(self.bytes.len()), 0);
    }

    /// The finished message.
    pub fn finish(mut self, sequence: u32) -> Result<Vec<u8>, Malformed> {
        let length = u32::try_from(self.bytes.len()).map_err(|_| Malformed("message over 4 GiB"))?;
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        Ok(self.bytes)
    }
}

/// A netlink socket with its receive buffer.
#[derive(Debug)]
pub struct Netlink {
    fd: OwnedFd,
    buffer: Vec<u8>,
    sequence: u32,
}

fn call<T>(step: &'static str, result: Result<T, Errno>) -> Result<T, NetlinkError> {
    result.map_err(|errno| NetlinkError::Call { step, errno })
}

impl Netlink {
    /// A socket of this protocol that hears the multicast groups of `groups` (a mask, group 1 is bit 0).
    pub fn open(protocol: SockProtocol, groups: u32) -> Result<Self, NetlinkError> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol);
        let fd = call("socket", fd)?;
        call("bind", bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups)))?;
        call("SO_RCVTIMEO", setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE_SECONDS, 0)))?;
        Ok(Self { fd, buffer: vec![0; RECEIVE], sequence: 0 })
    }

    /// Makes room for bursts of events; needs CAP_NET_ADMIN in the initial user namespace, or takes what the limit
    /// gives.
    pub fn widen(&self, bytes: usize) -> Result<(), NetlinkError> {
        let forced = setsockopt(&self.fd, sockopt::RcvBufForce, &bytes);
        call("SO_RCVBUF", forced.or_else(|_| setsockopt(&self.fd, sockopt::RcvBuf, &bytes)))
    }

    /// One datagram from the kernel; `None` when there is none and `wait` is false.
    pub fn receive(&mut self, wait: bool) -> Result<Option<Messages<'_>>, NetlinkError> {
        let length = loop {
            match self.read(wait) {
                Ok((length, 0)) => break length,
                // Only the kernel has port 0; what another process sent is not an answer.
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if !wait => return Ok(None),
                Err(Errno::ENOBUFS) => return Err(NetlinkError::Overrun),
                Err(errno) => return Err(NetlinkError::Call { step: "recvmsg", errno }),
            }
        };
        let datagram = self.buffer.get(..length).ok_or(NetlinkError::Truncated(length))?;
        Ok(Some(Messages::new(datagram)))
    }

    /// The true length of the next datagram and its sender's port.
    fn read(&mut self, wait: bool) -> Result<(usize, u32), Errno> {
        let flags = MsgFlags::MSG_TRUNC | if wait { MsgFlags::empty() } else { MsgFlags::MSG_DONTWAIT };
        let mut vectors = [IoSliceMut::new(&mut self.buffer)];
        let received = recvmsg::<NetlinkAddr>(self.fd.as_raw_fd(), &mut vectors, None, flags)?;
        Ok((received.bytes, received.address.map_or(u32::MAX, |address| address.pid())))
    }

    fn send(&mut self, request: Request) -> Result<u32, NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = request.finish(self.sequence)?;
        let kernel = NetlinkAddr::new(0, 0);
        call("sendto", sendto(self.fd.as_raw_fd(), &bytes, &kernel, MsgFlags::empty()))?;
        Ok(self.sequence)
    }

    /// Sends a request that asks for an acknowledgement (see [`ACKED`]) and waits for it; answers before it go to
    /// `each`.
    pub fn ask<E: From<NetlinkError>>(
        &mut self,
        request: Request,
        mut each: impl FnMut(Message<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let sequence = self.send(request)?;
        loop {
            let Some(messages) = self.receive(true)? else { continue };
            for message in messages {
                let message = message.map_err(NetlinkError::from)?;
                match message.kind {
                    _ if message.sequence != sequence => {}
                    NLMSG_ERROR => return Ok(message.outcome()?),
                    _ => each(message)?,
                }
            }
        }
    }

    /// Dumps (see [`DUMP`]); each message goes to `each`. An interrupted dump is read to its end and then reported.
    pub fn dump<E: From<NetlinkError>>(
        &mut self,
        request: Request,
        mut each: impl FnMut(Message<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let sequence = self.send(request)?;
        let mut interrupted = false;
        loop {
            let Some(messages) = self.receive(true)? else { continue };
            for message in messages {
                let message = message.map_err(NetlinkError::from)?;
                if message.sequence != sequence {
                    continue;
                }
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_DONE | NLMSG_ERROR => {
                        message.outcome()?;
                        return if interrupted { Err(NetlinkError::Interrupted.into()) } else { Ok(()) };
                    }
                    NLMSG_OVERRUN => return Err(NetlinkError::Overrun.into()),
                    _ => each(message)?,
                }
            }
        }
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_reads_back() {
        let request = Request::new(16, ACKED, &[7; 5]).attr(3, b"cni0\0").expect("short");
        let request = request.nest(18, |r| r.attr(1, &[9])?.attr(2, &300_u32.to_be_bytes())).expect("short");
        let bytes = request.finish(42).expect("short");
        let message = Messages::new(&bytes).next().expect("one message").expect("well formed");
        assert_eq!((message.kind, message.flags, message.sequence), (16, ACKED, 42));
        let attrs = message.attrs(5).expect("header");
        assert_eq!(attrs.find_kind(3).expect("walk").expect("there").text(), Ok("cni0"));
        let nest = attrs.find_kind(18).expect("walk").expect("there").nested();
        assert_eq!(nest.find_kind(1).expect("walk").expect("there").u8(), Ok(9));
        assert_eq!(nest.find_kind(2).expect("walk").expect("there").u32_be(), Ok(300));
        assert_eq!(attrs.find_kind(99), Ok(None));
    }

    #[test]
    fn bad_lengths_end_the_walk_with_an_error() {
        for bytes in [&[3, 0, 1, 0][..], &[8, 0, 1, 0], &[8, 0, 1], &[0, 0, 0, 0, 0]] {
            let walked: Vec<_> = Attrs::new(bytes).collect();
            assert!(matches!(walked[..], [Err(_)]), "{bytes:?}: {walked:?}");
        }
        for bytes in [&[15, 0, 0, 0][..], &[255, 255, 255, 255, 0, 0, 0, 0], &[16, 0]] {
            let walked: Vec<_> = Messages::new(bytes).collect();
            assert!(matches!(walked[..], [Err(_)]), "{bytes:?}: {walked:?}");
        }
    }

    #[test]
    fn every_cut_of_a_message_is_refused_or_shorter_never_a_panic() {
        let request = Request::new(1, DUMP, &[0; 4]).attr(1, &[1, 2, 3, 4, 5]).expect("short");
        let bytes = request.finish(1).expect("short");
        for end in 0..bytes.len() {
            for message in Messages::new(&bytes[..end]).flatten() {
                assert_eq!(message.attrs(4).map(Iterator::count), Ok(1), "cut at {end}");
            }
        }
    }

    #[test]
    fn a_refusal_names_the_errno_and_a_dump_ends() {
        let mut socket = Netlink::open(SockProtocol::NetlinkRoute, 0).expect("socket");
        let nowhere = [0, 0, 0, 0, 255, 255, 255, 127, 0, 0, 0, 0, 0, 0, 0, 0];
        let asked = socket.ask::<NetlinkError>(Request::new(18, ACKED, &nowhere), |_| Ok(()));
        assert!(matches!(asked, Err(NetlinkError::Refused(Errno::ENODEV))), "{asked:?}");
        let mut seen = 0;
        let dumped = socket.dump::<NetlinkError>(Request::new(18, DUMP, &[0; 16]), |_| {
            seen += 1;
            Ok(())
        });
        assert!(dumped.is_ok() && seen > 0, "{dumped:?} {seen}");
    }
}
