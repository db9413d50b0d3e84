//! The headers of a packet that was logged.
//!
//! In: the first bytes of an IP packet, as the kernel copied them. Out: a [`Packet`], or nothing where not even the
//! addresses are there. What always holds: no length in the bytes is believed before it was compared with what is there;
//! what a cut hides is missing in the answer, never guessed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const DCCP: u8 = 33;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;
const UDP_LITE: u8 = 136;

// IPv6 extension headers (IANA, "IPv6 Extension Header Types").
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
const MOBILITY: u8 = 135;
const HIP: u8 = 139;
const SHIM6: u8 = 140;

/// What is behind the addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Ports (TCP, UDP, SCTP and the like).
    Ports {
        /// Source.
        source: u16,
        /// Destination.
        destination: u16,
    },
    /// ICMP or ICMPv6.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
    },
    /// Nothing that is known, or it was cut off, or the packet is a later fragment.
    None,
}

/// A packet's headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// IP protocol; of IPv6 the first one that is no extension header, as far as the bytes reach.
    pub protocol: u8,
    /// Ports, or type and code.
    pub transport: Transport,
    /// The packet's own length, headers included.
    pub bytes: u32,
}

/// Reads the headers.
pub fn decode(bytes: &[u8]) -> Option<Packet> {
    match bytes.first()? >> 4 {
        4 => decode_v4(bytes),
        6 => decode_v6(bytes),
        _ => None,
    }
}

/// The word for an IP protocol, or its number.
pub fn protocol_word(protocol: u8) -> String {
    match protocol {
        ICMP => "icmp".to_owned(),
        TCP => "tcp".to_owned(),
        UDP => "udp".to_owned(),
        DCCP => "dccp".to_owned(),
        ICMPV6 => "icmpv6".to_owned(),
        SCTP => "sctp".to_owned(),
        UDP_LITE => "udplite".to_owned(),
        other => other.to_string(),
    }
}

fn decode_v4(bytes: &[u8]) -> Option<Packet> {
    let header = usize::from(bytes.first()? & 0xf) * 4;
    let fragment = u16::from_be_bytes(part(bytes, 6)?) & 0x1fff;
    let protocol = *bytes.get(9)?;
    let behind = if fragment == 0 && header >= 20 { bytes.get(header..) } else { None };
    Some(Packet {
        source: Ipv4Addr::from(part::<4>(bytes, 12)?).into(),
        destination: Ipv4Addr::from(part::<4>(bytes, 16)?).into(),
        protocol,
        transport: behind.map_or(Transport::None, |rest| transport(protocol, rest)),
        bytes: u32::from(u16::from_be_bytes(part(bytes, 2)?)),
    })
}

fn decode_v6(bytes: &[u8]) -> Option<Packet> {
    let (protocol, behind) = behind_extensions(*bytes.get(6)?, bytes.get(40..)?);
    Some(Packet {
        source: Ipv6Addr::from(part::<16>(bytes, 8)?).into(),
        destination: Ipv6Addr::from(part::<16>(bytes, 24)?).into(),
        protocol,
        transport: behind.map_or(Transport::None, |rest| transport(protocol, rest)),
        bytes: 40 + u32::from(u16::from_be_bytes(part(bytes, 4)?)),
    })
}

/// The first protocol that is no extension header and what it begins with; without the latter where it is cut off or in
/// another fragment. Each header is at least eight bytes long, so this ends.
fn behind_extensions(first: u8, bytes: &[u8]) -> (u8, Option<&[u8]>) {
    let (mut protocol, mut rest) = (first, bytes);
    loop {
        let length = match protocol {
            HOP_BY_HOP | ROUTING | DESTINATION | MOBILITY | HIP | SHIM6 => {
                rest.get(1).map(|length| (usize::from(*length) + 1) * 8)
            }
            AUTHENTICATION => rest.get(1).map(|length| (usize::from(*length) + 2) * 4),
            FRAGMENT => Some(8),
            _ => return (protocol, Some(rest)),
        };
        let is_later_fragment = || part(rest, 2).is_some_and(|offset| u16::from_be_bytes(offset) & 0xfff8 != 0);
        let is_later = protocol == FRAGMENT && is_later_fragment();
        match (rest.first(), length.and_then(|length| rest.get(length..))) {
            (Some(next), Some(_)) if is_later => return (*next, None),
            (Some(next), Some(behind)) => (protocol, rest) = (*next, behind),
            _ => return (protocol, None),
        }
    }
}

fn transport(protocol: u8, bytes: &[u8]) -> Transport {
    match protocol {
        TCP | UDP | DCCP | SCTP | UDP_LITE => match (part(bytes, 0), part(bytes, 2)) {
            (Some(source), Some(destination)) => {
                Transport::Ports { source: u16::from_be_bytes(source), destination: u16::from_be_bytes(destination) }
            }
            _ => Transport::None,
        },
        ICMP | ICMPV6 => match bytes {
            [kind, code, ..] => Transport::Icmp { kind: *kind, code: *code },
            _ => Transport::None,
        },
        _ => Transport::None,
    }
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v4(protocol: u8, fragment: u16, behind: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x46, 0, 0, 99, 0, 0];
        bytes.extend(fragment.to_be_bytes());
        bytes.extend([64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 1, 1, 1, 1]);
        bytes.extend(behind);
        bytes
    }

    fn v6(next: u8, behind: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x60, 0, 0, 0, 0, 60, next, 64];
        bytes.extend("fd00::1".parse::<Ipv6Addr>().expect("an address").octets());
        bytes.extend("fd00::2".parse::<Ipv6Addr>().expect("an address").octets());
        bytes.extend(behind);
        bytes
    }

    const PORTS: [u8; 4] = [0x30, 0x39, 0, 80];
    const TO_80: Transport = Transport::Ports { source: 12345, destination: 80 };

    #[test]
    fn ipv4_with_options() {
        let packet = decode(&v4(6, 0x4000, &PORTS)).expect("a packet");
        assert_eq!((packet.transport, packet.bytes, packet.protocol), (TO_80, 99, 6));
        assert_eq!((packet.source.to_string(), packet.destination.to_string()), ("10.0.0.1".into(), "10.0.0.2".into()));
        assert_eq!(
            decode(&v4(1, 0, &[8, 0])).map(|packet| packet.transport),
            Some(Transport::Icmp { kind: 8, code: 0 })
        );
        assert_eq!(decode(&v4(17, 0x2000, &PORTS)).map(|packet| packet.transport), Some(TO_80), "a first fragment");
        assert_eq!(decode(&v4(17, 185, &PORTS)).map(|packet| packet.transport), Some(Transport::None), "a later one");
        assert_eq!(decode(&v4(47, 0, &PORTS)).map(|packet| packet.transport), Some(Transport::None), "no ports");
    }

    #[test]
    fn ipv6_behind_its_extension_headers() {
        let chain = |fragment: [u8; 2]| {
            let hop = [43, 1].into_iter().chain([0; 14]);
            let routing = [44, 0].into_iter().chain([0; 6]);
            let piece = [51, 0, fragment[0], fragment[1], 0, 0, 0, 1];
            let authentication = [60, 4].into_iter().chain([0; 22]);
            let options = [132, 0].into_iter().chain([0; 6]);
            hop.chain(routing).chain(piece).chain(authentication).chain(options).chain(PORTS).collect::<Vec<u8>>()
        };
        let packet = decode(&v6(HOP_BY_HOP, &chain([0, 1]))).expect("a packet");
        assert_eq!((packet.protocol, packet.transport, packet.bytes), (SCTP, TO_80, 100));
        let later = decode(&v6(HOP_BY_HOP, &chain([5, 0xd0]))).expect("a packet");
        assert_eq!((later.protocol, later.transport), (AUTHENTICATION, Transport::None));
        let echo = decode(&v6(ICMPV6, &[128, 0])).expect("a packet");
        assert_eq!((echo.protocol, echo.transport), (ICMPV6, Transport::Icmp { kind: 128, code: 0 }));
    }

    #[test]
    fn what_a_cut_hides_is_missing() {
        let whole = v6(DESTINATION, &[[6, 0, 0, 0, 0, 0, 0, 0].as_slice(), &PORTS].concat());
        for end in 0..whole.len() {
            let packet = decode(&whole[..end]);
            assert_eq!(packet.is_some(), end >= 40, "{end}");
            assert!(packet.is_none_or(|packet| packet.transport == Transport::None), "{end}");
        }
        assert_eq!(decode(&whole).map(|packet| packet.transport), Some(TO_80));
    }

    proptest! {
        #[test]
        fn garbage_is_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..160), version in any::<bool>()) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = if version { 0x40 } else { 0x60 } | *first & 0xf;
            }
            let _ = decode(&bytes);
        }
    }
}
