//! The socket that denied packets come out of.
//!
//! In: the number of an NFLOG group. Out: batches of packets with their prefix. What always holds: the kernel copies headers
//! only and holds packets back for a tenth of a second at most; sequence numbers begin with 0 when the group is bound, so
//! that every packet that is lost on the way is a gap.

use std::os::fd::{AsFd, BorrowedFd};

use mnl::Bus;
use nix::errno::Errno;

use super::packet::{Packet, decode};
use super::record::{Verdict, Way};
use crate::netlink::{ACKED, Malformed, Message, Messages, NETFILTER_HEADER, NetlinkError, Request, Socket};

// NFNL_SUBSYS_ULOG and NFULNL_MSG_*.
const PACKET: u16 = 0x0400;
const CONFIG: u16 = 0x0401;

// linux/netfilter/nfnetlink_log.h.
const NFULA_PAYLOAD: u16 = 9;
const NFULA_PREFIX: u16 = 10;
const NFULA_SEQ: u16 = 12;
const NFULA_CFG_CMD: u16 = 1;
const NFULA_CFG_MODE: u16 = 2;
const NFULA_CFG_NLBUFSIZ: u16 = 3;
const NFULA_CFG_TIMEOUT: u16 = 4;
const NFULA_CFG_QTHRESH: u16 = 5;
const NFULA_CFG_FLAGS: u16 = 6;
const BIND: u8 = 1;
const COPY_PACKET: u8 = 2;
const F_SEQ: u16 = 1;

/// Bytes of a packet that are copied, as the rules have it.
const COPY_RANGE: u32 = 128;
/// Bytes of one message with several packets; the receive buffer is larger.
const MESSAGE: u32 = 16 * 1024;
/// Hundredths of a second that packets are held back at most, and how many.
const TIMEOUT: u32 = 10;
const THRESHOLD: u32 = 48;
/// Room for what waits while the reader has no processor: seconds of the default rate.
const WAITING: usize = 8 << 20;
/// Datagrams read in one go: some thousand packets.
const DATAGRAMS: usize = 64;

/// One packet that was logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// What became of it.
    pub verdict: Verdict,
    /// In which direction.
    pub way: Way,
    /// Its headers.
    pub packet: Packet,
}

/// What was read in one go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The packets that can be read.
    pub packets: Vec<Heard>,
    /// How many came, the unreadable ones too.
    pub heard: u64,
    /// How many are missing between them.
    pub gaps: u64,
}

/// A bound group.
#[derive(Debug)]
pub struct Nflog {
    socket: Socket,
    next: u32,
}

impl Nflog {
    /// Binds the group in the calling thread's network namespace.
    pub fn open(group: u16) -> Result<Self, NetlinkError> {
        let mut socket = Socket::open(Bus::Netfilter, 0)?;
        socket.widen(WAITING)?;
        let [high, low] = group.to_be_bytes();
        let [a, b, c, d] = COPY_RANGE.to_be_bytes();
        // One message: no packet comes before the options are set.
        let request = Request::new(CONFIG, ACKED, &[0, 0, high, low])
            .attr(NFULA_CFG_CMD, &[BIND])
            .attr(NFULA_CFG_MODE, &[a, b, c, d, COPY_PACKET, 0])
            .attr(NFULA_CFG_NLBUFSIZ, &MESSAGE.to_be_bytes())
            .attr(NFULA_CFG_TIMEOUT, &TIMEOUT.to_be_bytes())
            .attr(NFULA_CFG_QTHRESH, &THRESHOLD.to_be_bytes())
            .attr(NFULA_CFG_FLAGS, &F_SEQ.to_be_bytes());
        socket.ask::<NetlinkError>(request, |_| Ok(()))?;
        Ok(Self { socket, next: 0 })
    }

    /// What waits, without waiting for more.
    pub fn read(&mut self) -> Result<Batch, NetlinkError> {
        let mut batch = Batch::default();
        for _ in 0..DATAGRAMS {
            match self.socket.poll() {
                Ok(Some(messages)) => take_in(messages, &mut self.next, &mut batch),
                Ok(None) => break,
                // How many were lost the next packet tells.
                Err(NetlinkError::Overrun) => {}
                Err(error) if batch == Batch::default() => return Err(error),
                Err(_) => break,
            }
        }
        Ok(batch)
    }
}

/// Whether a refusal to bind says that another program has the group.
pub fn is_taken(error: &NetlinkError) -> bool {
    matches!(error, NetlinkError::Refused { errno: Errno::EBUSY | Errno::EPERM, .. })
}

impl AsFd for Nflog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Takes in one datagram. A message that is malformed leaves its number out: a gap, as one that was lost.
pub(crate) fn take_in(messages: Messages<'_>, next: &mut u32, batch: &mut Batch) {
    messages.flatten().for_each(|message| {
        let _ = take(&message, next, batch);
    });
}

/// Takes in one message.
fn take(message: &Message<'_>, next: &mut u32, batch: &mut Batch) -> Result<(), Malformed> {
    if message.kind != PACKET {
        return Ok(());
    }
    let attrs = message.attrs(NETFILTER_HEADER)?;
    let sequence = attrs.find_kind(NFULA_SEQ)?.ok_or(Malformed("a logged packet without its number"))?.u32_be()?;
    let prefix = attrs.find_kind(NFULA_PREFIX)?.map(|prefix| prefix.text()).transpose()?;
    let payload = attrs.find_kind(NFULA_PAYLOAD)?.map(|payload| payload.payload);
    batch.gaps += u64::from(sequence.wrapping_sub(*next));
    *next = sequence.wrapping_add(1);
    // Somebody else's rule may log to this group too.
    let Some((verdict, way)) = prefix.and_then(meaning) else { return Ok(()) };
    batch.heard += 1;
    batch.packets.extend(payload.and_then(decode).map(|packet| Heard { verdict, way, packet }));
    Ok(())
}

/// What the prefix of a rule says.
fn meaning(prefix: &str) -> Option<(Verdict, Way)> {
    match prefix {
        "denied ingress" => Some((Verdict::Denied, Way::Ingress)),
        "denied egress" => Some((Verdict::Denied, Way::Egress)),
        "audited ingress" => Some((Verdict::Audited, Way::Ingress)),
        "audited egress" => Some((Verdict::Audited, Way::Egress)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::netlink::Messages;
    use crate::testing::in_namespace;

    fn message(prefix: &str, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let request = Request::new(PACKET, 0, &[2, 0, 0, 5]).text(NFULA_PREFIX, prefix);
        let request = request.attr(NFULA_SEQ, &sequence.to_be_bytes()).attr(NFULA_PAYLOAD, payload);
        request.finish(0).expect("short")
    }

    fn taken(bytes: &[u8], next: &mut u32) -> Result<Batch, Malformed> {
        let mut batch = Batch::default();
        for message in Messages::new(bytes) {
            take(&message?, next, &mut batch)?;
        }
        Ok(batch)
    }

    fn ping() -> Vec<u8> {
        let mut bytes = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        bytes.extend([8, 0, 0, 0, 0, 0, 0, 0]);
        bytes
    }

    #[test]
    fn gaps_and_unreadable_packets_are_told() {
        let mut next = 0;
        let bytes = [
            message("denied ingress", 0, &ping()),
            message("audited egress", 3, &ping()),
            message("denied egress", 4, &[0x45, 0]),
            message("somebody's", 5, &ping()),
        ];
        let batch = taken(&bytes.concat(), &mut next).expect("well formed");
        let known: Vec<_> = batch.packets.iter().map(|heard| (heard.verdict, heard.way)).collect();
        assert_eq!(known, [(Verdict::Denied, Way::Ingress), (Verdict::Audited, Way::Egress)]);
        assert_eq!((batch.heard, batch.gaps, next), (3, 2, 6), "what is somebody else's is not ours");
        next = u32::MAX;
        let batch = taken(&message("denied ingress", 1, &ping()), &mut next).expect("well formed");
        assert_eq!((batch.gaps, next), (2, 2), "numbers go round");
    }

    #[test]
    fn a_group_has_one_reader() {
        in_namespace(|| {
            let mut first = Nflog::open(7).expect("bound");
            assert_eq!(first.read().expect("nothing yet"), Batch::default());
            let second = Nflog::open(7).expect_err("taken");
            assert!(is_taken(&second), "{second}");
            assert!(Nflog::open(8).is_ok());
            drop(first);
            assert!(Nflog::open(7).is_ok(), "free again");
        });
    }

    proptest! {
        #[test]
        fn garbage_is_no_panic(
            payload in prop::collection::vec(any::<u8>(), 0..200),
            at in 0..300_usize,
            byte in any::<u8>(),
        ) {
            let mut bytes = message("denied ingress", 0, &payload);
            let length = bytes.len();
            bytes[at % length] = byte;
            let _ = taken(&bytes, &mut 0);
        }
    }
}
