//! What a received packet says about a probe.
//!
//! In: an IP packet or frame as a socket gave it. Out: which probe it belongs to, and who it says it is from. What always
//! holds: an error message that quotes a probe, and a tunnel packet that carries one, are no sight of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::packet::{Marker, acknowledged};

const VXLAN: u16 = 8472;

/// A probe's packet, or its answer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sight {
    pub(crate) marker: Marker,
    pub(crate) source: IpAddr,
    /// Unknown where the kernel keeps the header to itself.
    pub(crate) destination: Option<IpAddr>,
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
}

/// Reads an Ethernet frame, tagged or not.
pub(crate) fn of_frame(frame: &[u8]) -> Option<Sight> {
    let mut rest = frame.get(12..)?;
    while let [0x81, 0, _, _, inner @ ..] | [0x88, 0xa8, _, _, inner @ ..] = rest {
        rest = inner;
    }
    match rest {
        [8, 0, packet @ ..] | [0x86, 0xdd, packet @ ..] => of_packet(packet),
        _ => None,
    }
}

/// Reads an IP packet.
pub(crate) fn of_packet(packet: &[u8]) -> Option<Sight> {
    if packet.first()? >> 4 == 4 { of_v4(packet) } else { of_v6(packet) }
}

fn of_v4(packet: &[u8]) -> Option<Sight> {
    let header = usize::from(packet.first()? & 15) * 4;
    let payload = packet.get(header..usize::from(u16_at(packet, 2)?))?;
    let source = Ipv4Addr::from(*packet.get(12..16)?.first_chunk::<4>()?);
    let destination = Ipv4Addr::from(*packet.get(16..20)?.first_chunk::<4>()?);
    let later = u16_at(packet, 6)? & 0x1fff != 0;
    let sight = of_payload(*packet.get(9)?, source.into(), payload, later)?;
    Some(Sight { destination: Some(destination.into()), ..sight })
}

fn of_v6(packet: &[u8]) -> Option<Sight> {
    let mut payload = packet.get(40..40 + usize::from(u16_at(packet, 4)?))?;
    let source = Ipv6Addr::from(*packet.get(8..24)?.first_chunk::<16>()?);
    let destination = Ipv6Addr::from(*packet.get(24..40)?.first_chunk::<16>()?);
    let (mut protocol, mut later) = (*packet.get(6)?, false);
    if protocol == 44 {
        (protocol, later) = (*payload.first()?, u16_at(payload, 2)? & 0xfff8 != 0);
        payload = payload.get(8..)?;
    }
    let sight = of_payload(protocol, source.into(), payload, later)?;
    Some(Sight { destination: Some(destination.into()), ..sight })
}

/// Reads what IP carried; of a later fragment only the end is looked at.
pub(crate) fn of_payload(protocol: u8, source: IpAddr, payload: &[u8], later: bool) -> Option<Sight> {
    let bare = |marker| Sight { marker, source, destination: None, source_port: 0, destination_port: 0 };
    if later {
        return Marker::read(payload).map(bare);
    }
    match protocol {
        1 | 58 => of_icmp(payload).map(|(marker, id)| Sight { source_port: id, ..bare(marker) }),
        6 | 17 | 132 => {
            let (source_port, destination_port) = (u16_at(payload, 0)?, u16_at(payload, 2)?);
            let marker = Marker::read(payload).or_else(|| (protocol == 6).then(|| of_answer(payload)).flatten())?;
            let tunnel = protocol == 17 && destination_port == VXLAN;
            (!tunnel).then(|| Sight { source_port, destination_port, ..bare(marker) })
        }
        _ => Marker::read(payload).map(bare),
    }
}

/// The marker and, for an echo, its id.
fn of_icmp(payload: &[u8]) -> Option<(Marker, u16)> {
    let marker = Marker::read(payload)?;
    let reply = match payload.first()? {
        8 | 128 | 134 | 137 => false,
        0 | 129 => true,
        _ => return None,
    };
    Some((Marker { reply, ..marker }, u16_at(payload, 4)?))
}

/// A kernel's answer to a SYN: SYN ACK, or RST ACK where nobody listens.
fn of_answer(segment: &[u8]) -> Option<Marker> {
    let flags = segment.get(13)?;
    let number = u32::from_be_bytes(*segment.get(8..12)?.first_chunk::<4>()?);
    let answers = flags & 0x10 != 0 && flags & 0x06 != 0;
    answers.then_some(Marker { id: acknowledged(number), reply: true })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk::<2>().map(|pair| u16::from_be_bytes(*pair))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Ends, FRAGMENT_PADDING, Protocol, fragments, frame, ip, payload};
    use crate::place::Place;

    fn ends(v4: bool) -> Ends {
        let (from, to) = (Place::pod(1, 0).addresses(), Place::pod(2, 0).addresses());
        let family = usize::from(!v4);
        Ends { source: from[family], destination: to[family], source_port: 20_001, destination_port: 80 }
    }

    #[test]
    fn every_protocol_is_read_back() {
        let marker = Marker { id: 4711, reply: false };
        for v4 in [true, false] {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp, Protocol::Icmp, Protocol::Other(200)] {
                let packet = ip(ends(v4), protocol.number(v4), &payload(protocol, ends(v4), marker, 0));
                let sight = of_frame(&frame([2; 6], [4; 6], &[0, 5], &packet)).expect("a sight");
                assert_eq!((sight.marker, sight.source), (marker, ends(v4).source), "{protocol:?}");
            }
        }
    }

    #[test]
    fn only_the_last_fragment_is_a_sight() {
        let marker = Marker { id: 5, reply: false };
        for v4 in [true, false] {
            let parts = fragments(ends(v4), 17, &payload(Protocol::Udp, ends(v4), marker, FRAGMENT_PADDING));
            assert_eq!(of_packet(&parts[0]), None);
            assert_eq!(of_packet(&parts[1]).map(|sight| sight.marker), Some(marker));
        }
    }

    #[test]
    fn quotes_and_tunnels_are_no_sight() {
        let marker = Marker { id: 5, reply: false };
        let quoted = [&[3, 3, 0, 0, 0, 0, 0, 0][..], &marker.bytes()].concat();
        assert_eq!(of_payload(1, ends(true).source, &quoted, false), None);
        let tunnel = Ends { destination_port: VXLAN, ..ends(true) };
        let outer = payload(Protocol::Udp, tunnel, marker, 0);
        assert_eq!(of_payload(17, tunnel.source, &outer, false), None);
    }
}
