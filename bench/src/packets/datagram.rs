//! UDP datagrams with a source port of one's own, for a raw socket.
//!
//! In: addresses and ports. Out: the UDP header with its checksum, and some data. What always holds: the kernel adds the IP header.

use std::net::{IpAddr, SocketAddr};

const UDP: u16 = 17;
/// Header and data.
const LENGTH: u16 = 72;

/// A datagram as a raw socket of UDP takes it.
pub fn from_port(source: IpAddr, port: u16, target: SocketAddr) -> Vec<u8> {
    let mut words = vec![port, target.port(), LENGTH, 0];
    words.resize(usize::from(LENGTH) / 2, 0x0707);
    let sum = [groups(source), groups(target.ip()), vec![UDP, LENGTH], words.clone()].concat();
    words[3] = checksum(&sum);
    words.into_iter().flat_map(u16::to_be_bytes).collect()
}

fn groups(address: IpAddr) -> Vec<u16> {
    match address {
        IpAddr::V4(address) => address.octets().chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect(),
        IpAddr::V6(address) => address.segments().to_vec(),
    }
}

/// Of the pseudo header and the datagram (RFC 1071); 0 is written as its other form (RFC 768).
fn checksum(words: &[u16]) -> u16 {
    let mut sum: u32 = words.iter().copied().map(u32::from).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let sum = !u16::try_from(sum).unwrap_or(u16::MAX);
    if sum == 0 { u16::MAX } else { sum }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_a_datagram_with_its_checksum_is_none() {
        let (source, target) = (IpAddr::from([10, 244, 1, 10]), SocketAddr::from(([10, 244, 1, 11], 5001)));
        let bytes = from_port(source, 40_000, target);
        let words = bytes.chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
        let sum = [groups(source), groups(target.ip()), vec![UDP, LENGTH], words].concat();
        assert_eq!(checksum(&sum), u16::MAX);
        assert_eq!(bytes.len(), usize::from(LENGTH));
    }
}
