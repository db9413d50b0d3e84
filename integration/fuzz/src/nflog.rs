//! Packets that rules copied to the NFLOG group: bytes that pods sent.
//!
//! In: a byte (a datagram of the kernel, or a packet alone), and that. Out: nothing. What always holds: a packet that is understood has the addresses
//! that stand in its header; what is heard and cannot be read is counted.

use flatfell::fuzzing;
use flatfell::netlink::{Request, netfilter};

/// NFULNL_MSG_PACKET, and the attributes of linux/netfilter/nfnetlink_log.h.
const PACKET: u16 = 0x0400;
const PAYLOAD: u16 = 9;
const PREFIX: u16 = 10;
const SEQUENCE: u16 = 12;

/// Runs the target.
pub fn run(bytes: &[u8]) {
    let Some((what, rest)) = bytes.split_first() else { return };
    if what & 1 == 0 {
        let mut next = 0;
        let batch = fuzzing::logged(rest, &mut next);
        assert!(u64::try_from(batch.packets.len()).is_ok_and(|readable| readable <= batch.heard), "{batch:?}");
    } else {
        payload(rest);
    }
}

fn payload(packet: &[u8]) {
    let message = Request::new(PACKET, 0, &netfilter(2)).attr(SEQUENCE, &[0; 4]).text(PREFIX, "denied egress");
    let Ok(datagram) = message.attr(PAYLOAD, packet).finish(0) else { return };
    let mut next = 0;
    let batch = fuzzing::logged(&datagram, &mut next);
    assert_eq!((batch.heard, batch.gaps, next), (1, 0, 1));
    let Some(heard) = batch.packets.first() else {
        let reaches = |length| packet.len() >= length;
        assert!(
            !matches!(packet, [0x40..=0x4f, ..] if reaches(20)) && !matches!(packet, [0x60..=0x6f, ..] if reaches(40))
        );
        return;
    };
    let at = if heard.packet.source.is_ipv4() { 12..16 } else { 8..24 };
    let source = match heard.packet.source {
        std::net::IpAddr::V4(four) => four.octets().to_vec(),
        std::net::IpAddr::V6(six) => six.octets().to_vec(),
    };
    assert_eq!(packet.get(at), Some(&source[..]));
}
