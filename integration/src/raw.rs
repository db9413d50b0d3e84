//! Packets that no probe sends, and an observer that needs no marker in them.
//!
//! In: a packet's fields; an nft match. Out: bytes for [`crate::Lab::send_frame`]; how many packets arrived that match. What
//! always holds: the observer stands in the pod's own namespace, behind everything the node decides.

use std::net::IpAddr;

use crate::lab::{Lab, LabError};
use crate::packet::{self, Ends};
use crate::place::Place;

/// Ends of a packet: addresses and ports.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// Source address and port.
    pub from: (IpAddr, u16),
    /// Destination address and port.
    pub to: (IpAddr, u16),
}

impl Flow {
    fn ends(self) -> Ends {
        Ends { source: self.from.0, destination: self.to.0, source_port: self.from.1, destination_port: self.to.1 }
    }
}

/// A TCP segment without data and with these flags, as an IP packet.
pub fn tcp(flow: Flow, flags: u8, sequence: u32) -> Vec<u8> {
    let mut bytes = [flow.from.1.to_be_bytes(), flow.to.1.to_be_bytes()].concat();
    bytes.extend(sequence.to_be_bytes());
    bytes.extend([0, 0, 0, 1, 5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    packet::ip(flow.ends(), 6, &packet::with_checksum(bytes, 16, 6, flow.ends()))
}

/// A datagram as an IP packet.
pub fn udp(flow: Flow, data: &[u8]) -> Vec<u8> {
    packet::ip(flow.ends(), 17, &packet::udp(flow.ends(), data))
}

/// An ICMP or ICMPv6 message as an IP packet.
pub fn icmp(flow: Flow, kind: u8, code: u8, body: &[u8]) -> Vec<u8> {
    let bytes = [&[kind, code, 0, 0], body].concat();
    let number = if flow.from.0.is_ipv4() { 1 } else { 58 };
    packet::ip(flow.ends(), number, &packet::with_checksum(bytes, 2, number, flow.ends()))
}

/// Counts the packets that arrive at a pod and match.
pub struct Watch<'a> {
    lab: &'a Lab,
    place: Place,
}

impl<'a> Watch<'a> {
    /// From now on, of packets that match this in nft's words. One at a place at a time.
    pub fn new(lab: &'a Lab, place: Place, matches: &str) -> Result<Self, LabError> {
        let table = format!(
            "table netdev watch
delete table netdev watch
table netdev watch {{
  counter seen {{ }}
  chain ingress {{
    type filter hook ingress device eth0 priority -500;
    {matches} counter name seen
  }}
}}
"
        );
        lab.nft(place, &table)?;
        Ok(Self { lab, place })
    }

    /// How many so far.
    pub fn count(&self) -> Result<u64, LabError> {
        let listing = self.lab.netns(self.place)?.feed("nft", &["list", "counter", "netdev", "watch", "seen"], "")?;
        let mut words = listing.split_whitespace().skip_while(|word| *word != "packets").skip(1);
        words.next().and_then(|count| count.parse().ok()).ok_or(LabError::Probe("nft lists no counter"))
    }
}
