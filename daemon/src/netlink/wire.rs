//! Netlink as bytes: messages and attributes read with every bound checked, requests built.
//!
//! In: buffers the kernel filled; what a request shall hold. Out: borrowed views of messages and attributes, or
//! [`Malformed`]; the bytes of a request. What always holds: no length out of a buffer is believed before it was
//! compared with what is there; a walk that meets a bad length ends with an error, never silently; a request that does
//! not fit its lengths is an error when it is finished.

use nix::errno::Errno;

/// Flags of a request for a dump.
pub const DUMP: u16 = REQUEST | NLM_F_DUMP;

/// Flags of a request whose success is confirmed.
pub const ACKED: u16 = REQUEST | NLM_F_ACK;

/// Flags of a request that is answered only if it fails.
pub const REQUEST: u16 = 0x1;

const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_OVERRUN: u16 = 4;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLMSG_HEADER: usize = 16;
const ATTR_HEADER: usize = 4;
/// NLA_F_NESTED and NLA_F_NET_BYTEORDER share the field of the attribute's type.
const ATTR_KIND: u16 = 0x3fff;
const ATTR_NESTED: u16 = 0x8000;

/// Bytes of [`netfilter`]'s header.
pub const NETFILTER_HEADER: usize = 4;

/// The family header of netfilter's messages: struct nfgenmsg.
pub const fn netfilter(family: u8) -> [u8; NETFILTER_HEADER] {
    [family, 0, 0, 0]
}

/// A message or attribute whose lengths contradict each other, or that lacks what it must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed netlink data: {0}")]
pub struct Malformed(pub &'static str);

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

/// What the kernel answered to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// `None` for success.
    pub error: Option<Errno>,
    /// What the kernel says about it.
    pub message: Option<String>,
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
    /// The port of the socket whose request it answers, or is an event of.
    pub port: u32,
    /// All of it, header included.
    pub bytes: &'a [u8],
    /// What follows the netlink header.
    pub payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The attributes behind a family header of `header` bytes.
    pub fn attrs(&self, header: usize) -> Result<Attrs<'a>, Malformed> {
        let rest = self.payload.get(align(header)..).ok_or(Malformed("family header too short"))?;
        Ok(Attrs::new(rest))
    }

    /// Whether what is dumped changed meanwhile, so that something may be missing.
    pub fn interrupted(&self) -> bool {
        self.flags & NLM_F_DUMP_INTR != 0
    }

    /// Whether the kernel says that it had more to say than the socket could hold.
    pub fn overrun(&self) -> bool {
        self.kind == NLMSG_OVERRUN
    }

    /// The answer this message is: success, an error, or the end of a dump (which can carry an error too).
    pub fn answer(&self) -> Result<Option<Answer>, Malformed> {
        // An error repeats the header it answers, a dump's end does not; NETLINK_CAP_ACK leaves out the rest.
        let behind = match self.kind {
            NLMSG_ERROR => 4 + NLMSG_HEADER,
            NLMSG_DONE => 4,
            _ => return Ok(None),
        };
        let code = i32::from_ne_bytes(field(self.payload, 0)?);
        let error = (code < 0).then(|| Errno::from_raw(code.saturating_neg()));
        let extended = if self.flags & NLM_F_ACK_TLVS != 0 { self.payload.get(behind..) } else { None };
        let words = Attrs::new(extended.unwrap_or_default()).find_kind(NLMSGERR_ATTR_MSG)?;
        Ok(Some(Answer { error, message: words.map(|words| words.text().map(str::to_owned)).transpose()? }))
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
            bytes: message,
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

    /// Four bytes or sixteen as they are: addresses.
    pub fn bytes<const N: usize>(&self) -> Result<[u8; N], Malformed> {
        self.exact()
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
#[derive(Debug, Clone)]
pub struct Request {
    bytes: Vec<u8>,
    fault: Option<Malformed>,
}

impl Request {
    /// A message of this type with its family header; sequence number and length are filled in when it is finished.
    pub fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut bytes = vec![0; NLMSG_HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(header);
        let mut request = Self { bytes, fault: None };
        request.pad();
        request
    }

    /// Adds an attribute.
    pub fn attr(mut self, kind: u16, payload: &[u8]) -> Self {
        let start = self.open();
        self.bytes.extend_from_slice(payload);
        self.close(start, kind)
    }

    /// Adds text with the NUL it ends in.
    pub fn text(mut self, kind: u16, text: &str) -> Self {
        let start = self.open();
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
        self.close(start, kind)
    }

    /// Adds an attribute that holds what `fill` adds.
    pub fn nest(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let start = self.open();
        fill(self).close(start, kind | ATTR_NESTED)
    }

    fn open(&mut self) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; ATTR_HEADER]);
        start
    }

    fn close(mut self, start: usize, kind: u16) -> Self {
        match u16::try_from(self.bytes.len() - start) {
            Ok(length) => self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes()),
            Err(_) => self.fault = Some(Malformed("attribute over 64 KiB")),
        }
        self.bytes[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
        self.pad();
        self
    }

    fn pad(&mut self) {
        self.bytes.resize(align(self.bytes.len()), 0);
    }

    /// The finished message.
    pub fn finish(mut self, sequence: u32) -> Result<Vec<u8>, Malformed> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let length = u32::try_from(self.bytes.len()).map_err(|_| Malformed("message over 4 GiB"))?;
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        Ok(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_reads_back() {
        let request = Request::new(16, ACKED, &[7; 5]).text(3, "cni0");
        let request = request.nest(18, |r| r.attr(1, &[9]).nest(2, |r| r.attr(5, &300_u32.to_be_bytes())));
        let bytes = request.finish(42).expect("short");
        let message = Messages::new(&bytes).next().expect("one message").expect("well formed");
        assert_eq!((message.kind, message.flags, message.sequence), (16, ACKED, 42));
        assert_eq!((message.bytes, message.answer()), (&bytes[..], Ok(None)));
        let attrs = message.attrs(5).expect("header");
        assert_eq!(attrs.find_kind(3).expect("walk").expect("there").text(), Ok("cni0"));
        let nest = attrs.find_kind(18).expect("walk").expect("there").nested();
        assert_eq!(nest.find_kind(1).expect("walk").expect("there").u8(), Ok(9));
        let inner = nest.find_kind(2).expect("walk").expect("there").nested();
        assert_eq!(inner.find_kind(5).expect("walk").expect("there").u32_be(), Ok(300));
        assert_eq!(attrs.find_kind(99), Ok(None));
    }

    #[test]
    fn what_is_too_long_for_its_length_is_not_sent() {
        let long = Request::new(1, REQUEST, &[]).nest(1, |nest| nest.attr(2, &[0; 65_532]));
        assert_eq!(long.finish(1), Err(Malformed("attribute over 64 KiB")));
    }

    #[test]
    fn an_error_comes_with_the_kernels_words() {
        let mut header = (-2_i32).to_ne_bytes().to_vec();
        header.extend([0; NLMSG_HEADER]);
        let bytes =
            Request::new(NLMSG_ERROR, NLM_F_ACK_TLVS, &header).text(1, "no such chain").finish(5).expect("short");
        let answer = Messages::new(&bytes).next().expect("one").expect("well formed").answer();
        let said = Answer { error: Some(Errno::ENOENT), message: Some("no such chain".to_owned()) };
        assert_eq!(answer, Ok(Some(said)));
        let bytes = Request::new(NLMSG_DONE, 0, &0_i32.to_ne_bytes()).finish(5).expect("short");
        let answer = Messages::new(&bytes).next().expect("one").expect("well formed").answer();
        assert_eq!(answer, Ok(Some(Answer { error: None, message: None })));
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
        let request = Request::new(1, DUMP, &[0; 4]).attr(1, &[1, 2, 3, 4, 5]);
        let bytes = request.finish(1).expect("short");
        for end in 0..bytes.len() {
            for message in Messages::new(&bytes[..end]).flatten() {
                assert_eq!(message.attrs(4).map(Iterator::count), Ok(1), "cut at {end}");
            }
        }
    }
}
