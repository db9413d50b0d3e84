//! Netlink messages and attributes, read with bounds checked and written with lengths right.
//!
//! In: received bytes, or what a request shall hold. Out: messages and attributes, or the bytes of a request. What always
//! holds: nothing is read past what was received; what does not fit its own length ends the walk.

use nix::errno::Errno;

/// Bytes of a message header.
const HEADER: usize = 16;

/// Bytes of the netfilter header behind it.
const FAMILY_HEADER: usize = 4;

/// The netlink attribute type without its flags.
const TYPE_MASK: u16 = 0x3fff;

/// NLA_F_NESTED.
const NESTED: u16 = 0x8000;

/// NLMSG_ERROR.
const ERROR: u16 = 2;
/// NLMSG_DONE.
const DONE: u16 = 3;
/// NLM_F_DUMP_INTR.
const INTERRUPTED: u16 = 0x10;
/// NLM_F_ACK_TLVS.
const ACK_TLVS: u16 = 0x200;
/// NLMSGERR_ATTR_MSG.
const ATTR_MSG: u16 = 1;

/// One received message.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Its type.
    pub kind: u16,
    /// Its flags.
    pub flags: u16,
    /// Its sequence number.
    pub seq: u32,
    /// All of it, header included.
    pub bytes: &'a [u8],
}

/// What the kernel answered to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// `None` for success.
    pub error: Option<Errno>,
    /// What the kernel says about it.
    pub message: Option<String>,
}

fn number16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn number32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

impl<'a> Message<'a> {
    fn first(bytes: &'a [u8]) -> Option<Self> {
        let length = usize::try_from(number32(bytes, 0)?).ok()?;
        if length < HEADER {
            return None;
        }
        Some(Self {
            kind: number16(bytes, 4)?,
            flags: number16(bytes, 6)?,
            seq: number32(bytes, 8)?,
            bytes: bytes.get(..length)?,
        })
    }

    /// The attributes behind the netfilter header.
    pub fn attributes(&self) -> Attributes<'a> {
        Attributes(self.bytes.get(HEADER + FAMILY_HEADER..).unwrap_or_default())
    }

    /// The family of the netfilter header.
    pub fn family(&self) -> Option<u8> {
        self.bytes.get(HEADER).copied()
    }

    /// Whether what is dumped changed meanwhile, so that something may be missing.
    pub fn interrupted(&self) -> bool {
        self.flags & INTERRUPTED != 0
    }

    /// The answer this message is: success, an error, or the end of a dump (which can carry an error too).
    pub fn answer(&self) -> Option<Answer> {
        if self.kind != ERROR && self.kind != DONE {
            return None;
        }
        let code = i32::from_ne_bytes(number32(self.bytes, HEADER)?.to_ne_bytes());
        let error = (code != 0).then(|| Errno::from_raw(code.saturating_neg()));
        // An error repeats the header it answers, a dump's end does not; NETLINK_CAP_ACK leaves out the rest.
        let behind = if self.kind == ERROR { HEADER + 4 + HEADER } else { HEADER + 4 };
        let extended = self.flags & ACK_TLVS != 0;
        let attributes = Attributes(if extended { self.bytes.get(behind..).unwrap_or_default() } else { &[] });
        Some(Answer { error, message: attributes.find(ATTR_MSG).map(text) })
    }
}

/// The messages of what was received in one piece.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let message = Message::first(bytes)?;
        bytes = bytes.get(message.bytes.len().next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The value of a string attribute, without the NUL it ends in.
pub fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

/// Attributes one behind the other.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// The attributes nested in one.
    pub fn nested(value: &'a [u8]) -> Self {
        Self(value)
    }

    /// The value of the first attribute of this type.
    pub fn find(mut self, kind: u16) -> Option<&'a [u8]> {
        self.by_ref().find(|(this, _)| *this == kind).map(|(_, value)| value)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(number16(self.0, 0)?);
        let kind = number16(self.0, 2)? & TYPE_MASK;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// A request with a netfilter header.
#[derive(Clone, Debug)]
pub struct Request(Vec<u8>);

impl Request {
    /// A request without attributes. `kind` is subsystem and message type.
    pub fn new(kind: u16, flags: u16, seq: u32, family: u8) -> Self {
        const NLM_F_REQUEST: u16 = 1;
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend(seq.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend([family, 0, 0, 0]);
        Self(bytes)
    }

    /// Adds an attribute.
    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        self.put(kind, value);
        self
    }

    /// Adds an attribute of attributes, which must be short (requests here are a few hundred bytes).
    pub fn nest(mut self, kind: u16, inner: impl FnOnce(Nest) -> Nest) -> Self {
        self.put(kind | NESTED, &inner(Nest(Vec::new())).0);
        self
    }

    fn put(&mut self, kind: u16, value: &[u8]) {
        put(&mut self.0, kind, value);
    }

    /// The bytes to send.
    pub fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// The inside of a nested attribute.
#[derive(Clone, Debug)]
pub struct Nest(Vec<u8>);

impl Nest {
    /// Adds an attribute.
    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        put(&mut self.0, kind, value);
        self
    }

    /// Adds an attribute of attributes.
    pub fn nest(mut self, kind: u16, inner: impl FnOnce(Nest) -> Nest) -> Self {
        put(&mut self.0, kind | NESTED, &inner(Nest(Vec::new())).0);
        self
    }
}

fn put(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_reads_back() {
        let bytes = Request::new(0x0a01, 4, 7, 1)
            .attribute(1, b"abc\0")
            .nest(2, |nest| nest.attribute(3, &[9]).nest(4, |nest| nest.attribute(5, &[1, 2])))
            .finish();
        let all: Vec<_> = messages(&bytes).collect();
        assert_eq!(all.len(), 1);
        let message = all[0];
        assert_eq!((message.kind, message.flags, message.seq, message.family()), (0x0a01, 5, 7, Some(1)));
        let nest = Attributes::nested(message.attributes().find(2).expect("nest"));
        assert_eq!(nest.find(3), Some(&[9_u8][..]));
        assert_eq!(Attributes::nested(nest.find(4).expect("inner")).find(5), Some(&[1_u8, 2][..]));
    }

    #[test]
    fn nothing_is_read_past_what_was_received() {
        let bytes = Request::new(0x0a01, 0, 1, 1).attribute(1, &[1; 30]).finish();
        for end in 0..bytes.len() {
            assert_eq!(messages(&bytes[..end]).count(), 0, "cut at {end}");
        }
        assert_eq!(Attributes(&[3, 0, 1, 0]).count(), 0, "shorter than its own header");
        assert_eq!(Attributes(&[9, 0, 1, 0, 1]).count(), 0, "longer than what is there");
    }
}
