//! Packets and frames as bytes.
//!
//! In: addresses, a protocol, ports, a marker. Out: whole IP packets with correct checksums. What always holds: the last
//! [`MARKER`] bytes of a packet's last fragment are its marker, whatever address translation did to its head.

use std::net::IpAddr;

use crate::place::Mac;

/// How many bytes a marker takes.
pub(crate) const MARKER: usize = 12;
const MAGIC: &[u8; 7] = b"ffprobe";
/// Room that two fragments need: more than the first one's length.
const FRAGMENT: usize = 1208;

/// What a probe speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// A SYN.
    Tcp,
    /// A datagram.
    Udp,
    /// An INIT; answered by an INIT ACK.
    Sctp,
    /// An echo request of the address's family.
    Icmp,
    /// An IP protocol by number, without ports.
    Other(u8),
    /// An ICMPv6 router advertisement (of no lifetime).
    RouterAdvertisement,
    /// An ICMPv6 redirect.
    Redirect,
}

impl Protocol {
    /// Its number in the IP header.
    pub const fn number(self, v4: bool) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
            Self::Icmp if v4 => 1,
            Self::Icmp | Self::RouterAdvertisement | Self::Redirect => 58,
            Self::Other(number) => number,
        }
    }
}

/// The mark of a probe in its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Marker {
    /// Which probe.
    pub(crate) id: u32,
    /// Its answer.
    pub(crate) reply: bool,
}

impl Marker {
    pub(crate) fn bytes(self) -> [u8; MARKER] {
        let mut bytes = [0; MARKER];
        bytes[..7].copy_from_slice(MAGIC);
        bytes[7] = if self.reply { b'!' } else { b'?' };
        bytes[8..].copy_from_slice(&self.id.to_be_bytes());
        bytes
    }

    /// The marker at the end of a packet.
    pub(crate) fn read(packet: &[u8]) -> Option<Self> {
        let bytes: &[u8; MARKER] = packet.last_chunk()?;
        let id = u32::from_be_bytes(*bytes.last_chunk()?);
        match (bytes.starts_with(MAGIC), bytes[7]) {
            (true, b'?') => Some(Self { id, reply: false }),
            (true, b'!') => Some(Self { id, reply: true }),
            _ => None,
        }
    }
}

/// The sequence number of a probe's SYN: an answer that acknowledges the SYN, with or without its data, tells the probe.
pub(crate) const fn sequence(id: u32) -> u32 {
    id << 6
}

/// The probe that this acknowledgement number answers.
pub(crate) const fn acknowledged(number: u32) -> u32 {
    number.wrapping_sub(1) >> 6
}

/// The two ends of a packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
}

/// What IP carries for a probe; `padding` bytes go before the marker.
pub(crate) fn payload(protocol: Protocol, ends: Ends, marker: Marker, padding: usize) -> Vec<u8> {
    let mut data = vec![0; padding];
    data.extend(marker.bytes());
    match protocol {
        Protocol::Tcp => tcp(ends, marker, &data),
        Protocol::Udp => udp(ends, &data),
        Protocol::Sctp => sctp(ends, marker, &data),
        Protocol::Icmp => echo(ends, marker, &data),
        Protocol::Other(_) => data,
        Protocol::RouterAdvertisement => discovery(ends, 134, &[64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &data),
        Protocol::Redirect => discovery(ends, 137, &[0; 36], &data),
    }
}

fn ports(ends: Ends) -> Vec<u8> {
    [ends.source_port.to_be_bytes(), ends.destination_port.to_be_bytes()].concat()
}

/// SYN, or RST ACK for a reply.
fn tcp(ends: Ends, marker: Marker, data: &[u8]) -> Vec<u8> {
    let sequence = sequence(marker.id);
    let (sequence, acknowledges, flags) =
        if marker.reply { (0, sequence.wrapping_add(1), 0x14) } else { (sequence, 0, 2) };
    let mut bytes = ports(ends);
    bytes.extend(sequence.to_be_bytes());
    bytes.extend(acknowledges.to_be_bytes());
    bytes.extend([5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    bytes.extend(data);
    with_checksum(bytes, 16, 6, ends)
}

/// A datagram.
pub(crate) fn udp(ends: Ends, data: &[u8]) -> Vec<u8> {
    let mut bytes = ports(ends);
    bytes.extend(length(data.len() + 8));
    bytes.extend([0, 0]);
    bytes.extend(data);
    with_checksum(bytes, 6, 17, ends)
}

/// INIT, or INIT ACK for a reply, with the data in a parameter that a receiver skips silently.
fn sctp(ends: Ends, marker: Marker, data: &[u8]) -> Vec<u8> {
    let tag = (marker.id | 1).to_be_bytes();
    let (kind, verification) = if marker.reply { (2, tag) } else { (1, [0; 4]) };
    let mut bytes = ports(ends);
    bytes.extend(verification);
    bytes.extend([0; 4]);
    bytes.extend([kind, 0]);
    bytes.extend(length(data.len() + 24));
    bytes.extend(tag);
    bytes.extend([0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0x8f, 0xff]);
    bytes.extend(length(data.len() + 4));
    bytes.extend(data);
    let sum = crc32c(&bytes);
    bytes[8..12].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// An echo request, or reply; the sender's port (of a reply: the receiver's) is its id.
fn echo(ends: Ends, marker: Marker, data: &[u8]) -> Vec<u8> {
    let (kind, id) = match (ends.source.is_ipv4(), marker.reply) {
        (true, false) => (8, ends.source_port),
        (true, true) => (0, ends.destination_port),
        (false, false) => (128, ends.source_port),
        (false, true) => (129, ends.destination_port),
    };
    let mut bytes = vec![kind, 0, 0, 0];
    bytes.extend(id.to_be_bytes());
    bytes.extend([0, 1]);
    bytes.extend(data);
    with_checksum(bytes, 2, if ends.source.is_ipv4() { 1 } else { 58 }, ends)
}

/// A message of neighbour discovery with the data in an option that nobody knows.
fn discovery(ends: Ends, kind: u8, body: &[u8], data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, 0, 0, 0];
    bytes.extend(body);
    bytes.extend([253, 2, 0, 0]);
    bytes.extend(data);
    with_checksum(bytes, 2, 58, ends)
}

fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes()
}

pub(crate) fn with_checksum(mut bytes: Vec<u8>, at: usize, protocol: u8, ends: Ends) -> Vec<u8> {
    let mut pseudo = Vec::new();
    if protocol != 1 {
        match (ends.source, ends.destination) {
            (IpAddr::V4(a), IpAddr::V4(b)) => pseudo.extend([a.octets(), b.octets()].concat()),
            (a, b) => pseudo.extend([six(a), six(b)].concat()),
        }
        pseudo.extend([0, protocol]);
        pseudo.extend(length(bytes.len()));
    }
    let sum = match checksum(&[&pseudo, &bytes]) {
        // A UDP checksum of zero would say that there is none.
        0 if protocol == 17 => 0xffff,
        sum => sum,
    };
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    bytes
}

fn six(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The Internet checksum of parts, each of even length but the last.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let sum: u64 = words.map(|word| u64::from(word[0]) << 8 | word.get(1).copied().map_or(0, u64::from)).sum();
    let folded = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let folded = (folded & 0xffff) + (folded >> 16);
    !u16::try_from(folded & 0xffff).unwrap_or_default()
}

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    })
}

/// A piece of a packet's payload: where it begins and whether more follow.
#[derive(Clone, Copy)]
struct Piece {
    offset: usize,
    more: bool,
}

/// One IP packet.
pub(crate) fn ip(ends: Ends, protocol: u8, payload: &[u8]) -> Vec<u8> {
    head(ends, protocol, payload, None)
}

/// The same as two fragments.
pub(crate) fn fragments(ends: Ends, protocol: u8, payload: &[u8]) -> [Vec<u8>; 2] {
    let (first, last) = payload.split_at(FRAGMENT.min(payload.len()));
    [
        head(ends, protocol, first, Some(Piece { offset: 0, more: true })),
        head(ends, protocol, last, Some(Piece { offset: FRAGMENT, more: false })),
    ]
}

/// Padding that makes a payload long enough for [`fragments`].
pub(crate) const FRAGMENT_PADDING: usize = FRAGMENT;

fn head(ends: Ends, protocol: u8, payload: &[u8], piece: Option<Piece>) -> Vec<u8> {
    match (ends.source, ends.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut bytes = vec![0x45, 0];
            bytes.extend(length(payload.len() + 20));
            bytes.extend(ends.source_port.to_be_bytes());
            bytes.extend(piece.map_or([0, 0], |piece| length(piece.offset / 8 + if piece.more { 0x2000 } else { 0 })));
            bytes.extend([64, protocol, 0, 0]);
            bytes.extend([source.octets(), destination.octets()].concat());
            let sum = checksum(&[&bytes]);
            bytes[10..12].copy_from_slice(&sum.to_be_bytes());
            bytes.extend(payload);
            bytes
        }
        (source, destination) => {
            let extension = piece.map(|piece| extension(ends, protocol, piece)).unwrap_or_default();
            let mut bytes = vec![0x60, 0, 0, 0];
            bytes.extend(length(extension.len() + payload.len()));
            // Neighbour discovery is believed at hop limit 255 only.
            bytes.extend([if piece.is_some() { 44 } else { protocol }, 255]);
            bytes.extend([six(source), six(destination)].concat());
            bytes.extend(extension);
            bytes.extend(payload);
            bytes
        }
    }
}

/// The IPv6 fragment header.
fn extension(ends: Ends, protocol: u8, piece: Piece) -> Vec<u8> {
    let mut bytes = vec![protocol, 0];
    bytes.extend(length(piece.offset | usize::from(piece.more)));
    bytes.extend([0, 0]);
    bytes.extend(ends.source_port.to_be_bytes());
    bytes
}

/// An Ethernet frame around an IP packet, behind VLAN tags with these ids.
pub fn frame(to: Mac, from: Mac, tags: &[u16], packet: &[u8]) -> Vec<u8> {
    let mut bytes = [to, from].concat();
    for tag in tags {
        bytes.extend([0x81, 0]);
        bytes.extend(tag.to_be_bytes());
    }
    let v4 = packet.first().is_some_and(|byte| byte >> 4 == 4);
    bytes.extend(if v4 { [8, 0] } else { [0x86, 0xdd] });
    bytes.extend(packet);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_agree_with_published_values() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(checksum(&[&[0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7]]), !0xddf2);
    }

    #[test]
    fn an_acknowledgement_tells_the_probe() {
        for id in [0, 1, 77, (1 << 26) - 1] {
            assert_eq!(acknowledged(sequence(id).wrapping_add(1)), id);
            assert_eq!(acknowledged(sequence(id).wrapping_add(13)), id);
        }
    }
}
