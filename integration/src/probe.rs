//! Probes: one packet each, and where it arrived.
//!
//! In: who sends what to which address. Out: whether, where and from whom it arrived, and whether the answer came back.
//! What always holds: all probes of a batch are in flight together and a missing one costs one common wait; arrival is
//! seen at the destination, behind every rule on the way.
//!
//! Nothing needs to listen: a pod is observed at its `eth0` (whatever comes there, has the pod the address or not), a node behind its input hook; TCP and ICMP are answered by
//! the destination's kernel, everything else by the lab. The outside host stands for every address that is nobody's.
//! Flows of earlier batches live on in conntrack; source ports are new each time, but protocols without ports need
//! [`Lab::flush_conntrack`] between two batches that expect different verdicts.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::lab::{Lab, LabError};
use crate::packet::{self, Ends, FRAGMENT_PADDING, Marker, Protocol};
use crate::patience::patient;
use crate::place::{Mac, Place, bridge_mac, range_of};
use crate::sight::Sight;
use crate::station::{Station, locked};

static PROBES: AtomicU32 = AtomicU32::new(1);
/// Probe ids fit into a sequence number's upper bits.
const IDS: u32 = 1 << 26;
/// Sends between two looks, so that no buffer overflows.
const BURST: usize = 64;

/// How a probe leaves its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Framing {
    /// As an IP packet that the sender's kernel routes.
    Routed,
    /// The same, in two fragments.
    Fragments,
    /// As an Ethernet frame past the sender's kernel, with these VLAN tags.
    Frame {
        /// VLAN ids, outermost first; empty for none.
        tags: Vec<u16>,
        /// The frame's destination; by itself the pod's on the same node, the group's, or the bridge.
        to: Option<Mac>,
    },
}

/// One packet to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Who sends.
    pub from: Place,
    /// The address it is sent to: a pod's, a node's, a Service's, anything.
    pub to: IpAddr,
    /// What it speaks.
    pub protocol: Protocol,
    /// The destination port, where the protocol has any.
    pub port: u16,
    /// Another source address than the first of the family: a second one of the place, or a forged one.
    pub source: Option<IpAddr>,
    /// A source port (for ICMP: the echo id) instead of a new one.
    pub source_port: Option<u16>,
    /// How it leaves.
    pub framing: Framing,
}

impl Probe {
    /// A probe of any protocol.
    pub fn new(from: Place, to: impl Into<IpAddr>, protocol: Protocol, port: u16) -> Self {
        let to = to.into();
        Self { from, to, protocol, port, source: None, source_port: None, framing: Framing::Routed }
    }

    /// A TCP SYN.
    pub fn tcp(from: Place, to: impl Into<IpAddr>, port: u16) -> Self {
        Self::new(from, to, Protocol::Tcp, port)
    }

    /// A UDP datagram.
    pub fn udp(from: Place, to: impl Into<IpAddr>, port: u16) -> Self {
        Self::new(from, to, Protocol::Udp, port)
    }

    /// An SCTP INIT.
    pub fn sctp(from: Place, to: impl Into<IpAddr>, port: u16) -> Self {
        Self::new(from, to, Protocol::Sctp, port)
    }

    /// An echo request.
    pub fn icmp(from: Place, to: impl Into<IpAddr>) -> Self {
        Self::new(from, to, Protocol::Icmp, 0)
    }

    /// The same from another address.
    pub fn from_address(mut self, source: impl Into<IpAddr>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same in two fragments.
    pub fn in_fragments(mut self) -> Self {
        self.framing = Framing::Fragments;
        self
    }

    /// The same as a frame with these VLAN tags (none: `&[]`); link-local, multicast and broadcast addresses need it.
    pub fn in_frame(mut self, tags: &[u16]) -> Self {
        self.framing = Framing::Frame { tags: tags.to_vec(), to: None };
        self
    }

    fn ends(&self, id: u32) -> Ends {
        let own_port = u16::try_from(20_000 + id % 40_000).unwrap_or(20_000);
        Ends {
            source: self.source.unwrap_or_else(|| self.own_source()),
            destination: self.to,
            source_port: self.source_port.unwrap_or(own_port),
            destination_port: self.port,
        }
    }

    fn own_source(&self) -> IpAddr {
        let local = matches!(self.protocol, Protocol::RouterAdvertisement | Protocol::Redirect)
            || matches!(self.to, IpAddr::V6(to) if link_scope(to));
        if local { self.from.link_local().into() } else { self.from.source_towards(self.to) }
    }

    /// Whether somebody answers it.
    fn is_answered(&self) -> bool {
        self.framing == Framing::Routed && !matches!(self.protocol, Protocol::RouterAdvertisement | Protocol::Redirect)
    }

    fn send(&self, id: u32, station: &Station) -> io::Result<()> {
        let (ends, marker) = (self.ends(id), Marker { id, reply: false });
        let number = self.protocol.number(self.to.is_ipv4());
        let payload = |padding| packet::payload(self.protocol, ends, marker, padding);
        match &self.framing {
            Framing::Routed => station.send(self.to, &packet::ip(ends, number, &payload(0))),
            Framing::Fragments => packet::fragments(ends, number, &payload(FRAGMENT_PADDING))
                .iter()
                .try_for_each(|fragment| station.send(self.to, fragment)),
            Framing::Frame { tags, to } => {
                let to = to.unwrap_or_else(|| self.frame_destination());
                let packet = packet::ip(ends, number, &payload(0));
                station.send_frame(&packet::frame(to, self.from.mac(), tags, &packet))
            }
        }
    }

    fn frame_destination(&self) -> Mac {
        let node = self.from.node().unwrap_or_default();
        let [.., last] = match self.to {
            IpAddr::V4(v4) if v4.is_broadcast() || v4.octets()[3] == 255 => return [0xff; 6],
            IpAddr::V4(v4) if v4.is_multicast() => {
                let [_, b, c, d] = v4.octets();
                return [1, 0, 0x5e, b & 0x7f, c, d];
            }
            IpAddr::V4(v4) => v4.octets(),
            IpAddr::V6(v6) if v6.is_multicast() => {
                let [.., a, b, c, d] = v6.octets();
                return [0x33, 0x33, a, b, c, d];
            }
            IpAddr::V6(v6) => {
                let pods = (0..=244).map(|slot| Place::pod(node, slot));
                let mut named = pods.filter(|pod| pod.v6() == v6 || pod.link_local() == v6);
                return named.next().map_or(bridge_mac(node), Place::mac);
            }
        };
        match last.checked_sub(10) {
            Some(slot) if range_of(self.to) == Some(node) => Place::pod(node, slot).mac(),
            _ => bridge_mac(node),
        }
    }
}

fn link_scope(address: Ipv6Addr) -> bool {
    let [first, ..] = address.segments();
    first & 0xffc0 == 0xfe80 || first & 0xff0f == 0xff02
}

/// A probe's packet at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Where.
    pub place: Place,
    /// The source address seen there.
    pub source: IpAddr,
    /// The destination port seen there; 0 where there is none.
    pub port: u16,
}

/// What became of a probe.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// It arrived somewhere.
    pub delivered: bool,
    /// It arrived and its answer came back to the sender.
    pub answered: bool,
    /// Where it arrived; several places for multicast only.
    pub arrivals: Vec<Arrival>,
}

impl Lab {
    /// Sends one probe.
    pub fn probe(&self, probe: &Probe) -> Result<Outcome, LabError> {
        Ok(self.probes(std::slice::from_ref(probe))?.pop().unwrap_or_default())
    }

    /// Sends all probes and says what became of each. Takes one grace if any is missing, else only as long as it takes.
    pub fn probes(&self, probes: &[Probe]) -> Result<Vec<Outcome>, LabError> {
        let mut stations = locked(&self.stations);
        self.open_stations(&mut stations, probes)?;
        for station in stations.values() {
            listen(station, &mut |_, _| ())?;
        }
        let mut batch = Batch::new(probes, &stations);
        batch.send()?;
        batch.wait(patient(self.config().grace))?;
        // A rule that refuses (RST) looks like an answer.
        batch.outcomes.iter_mut().for_each(|outcome| outcome.answered &= outcome.delivered);
        Ok(batch.outcomes)
    }

    /// Sends bytes as a frame out of a pod's `eth0`.
    pub fn send_frame(&self, from: Place, frame: &[u8]) -> Result<(), LabError> {
        let mut stations = locked(&self.stations);
        self.open_stations(&mut stations, &[])?;
        let station = stations.get(&from).ok_or(LabError::NoSuchPlace(from))?;
        station.send_frame(frame).map_err(|source| LabError::Socket { what: "sending a frame", place: from, source })
    }

    fn open_stations(&self, stations: &mut Stations, probes: &[Probe]) -> Result<(), LabError> {
        for place in self.places() {
            if let Entry::Vacant(vacant) = stations.entry(place) {
                vacant.insert(Station::open(self, place)?);
            }
        }
        for probe in probes {
            if !stations.contains_key(&probe.from) {
                return Err(LabError::NoSuchPlace(probe.from));
            }
            if let Protocol::Other(number) = probe.protocol {
                stations.values_mut().try_for_each(|station| station.listen(self, number))?;
            }
        }
        Ok(())
    }
}

type Stations = BTreeMap<Place, Station>;

fn listen(station: &Station, found: &mut dyn FnMut(Place, Sight)) -> Result<(), LabError> {
    station.hear(found).map_err(|source| LabError::Socket { what: "hearing", place: station.place(), source })
}

/// Probes in flight.
struct Batch<'a> {
    probes: &'a [Probe],
    stations: &'a Stations,
    ids: Vec<u32>,
    index: HashMap<u32, usize>,
    outcomes: Vec<Outcome>,
}

impl<'a> Batch<'a> {
    fn new(probes: &'a [Probe], stations: &'a Stations) -> Self {
        let ids: Vec<u32> = probes.iter().map(|_| PROBES.fetch_add(1, Ordering::Relaxed) % IDS).collect();
        let index = ids.iter().enumerate().map(|(at, &id)| (id, at)).collect();
        Self { probes, stations, ids, index, outcomes: vec![Outcome::default(); probes.len()] }
    }

    fn send(&mut self) -> Result<(), LabError> {
        for at in 0..self.probes.len() {
            let probe = &self.probes[at];
            let place = probe.from;
            let station = self.stations.get(&place).ok_or(LabError::NoSuchPlace(place))?;
            probe.send(self.ids[at], station).map_err(|source| LabError::Socket {
                what: "sending a probe",
                place,
                source,
            })?;
            if at % BURST == BURST - 1 {
                self.collect()?;
            }
        }
        Ok(())
    }

    /// Until all that can come has come, or nothing came for the grace.
    fn wait(&mut self, grace: Duration) -> Result<(), LabError> {
        let mut deadline = Instant::now() + grace;
        loop {
            if self.collect()? {
                deadline = Instant::now() + grace;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if self.is_complete() || left.is_zero() {
                return Ok(());
            }
            let sockets = self.stations.values().flat_map(Station::sockets);
            wait_for(sockets, left).map_err(|source| LabError::Socket {
                what: "waiting",
                place: Place::Outside,
                source,
            })?;
        }
    }

    fn is_complete(&self) -> bool {
        self.probes.iter().zip(&self.outcomes).all(|(probe, outcome)| {
            let single = probe.framing == Framing::Routed;
            outcome.delivered && single && (outcome.answered || !probe.is_answered())
        })
    }

    /// Takes in what has arrived; says whether anything of this batch had.
    fn collect(&mut self) -> Result<bool, LabError> {
        let mut heard = Vec::new();
        for station in self.stations.values() {
            listen(station, &mut |place, sight| heard.push((place, sight)))?;
        }
        let mut any = false;
        for (place, sight) in heard {
            any |= self.take(place, sight)?;
        }
        Ok(any)
    }

    fn take(&mut self, place: Place, sight: Sight) -> Result<bool, LabError> {
        let Some(&at) = self.index.get(&sight.marker.id) else { return Ok(false) };
        let (probe, outcome) = (&self.probes[at], &mut self.outcomes[at]);
        if sight.marker.reply {
            outcome.answered |= place == probe.from;
            return Ok(true);
        }
        outcome.delivered = true;
        outcome.arrivals.push(Arrival { place, source: sight.source, port: sight.destination_port });
        let own = sight.destination.is_none_or(|to| place != Place::Outside || place.addresses().contains(&to));
        let by_kernel = own && matches!(probe.protocol, Protocol::Tcp | Protocol::Icmp);
        if probe.is_answered() && !by_kernel {
            self.answer(at, place, sight)?;
        }
        Ok(true)
    }

    /// Answers in place of a server.
    fn answer(&self, at: usize, place: Place, sight: Sight) -> Result<(), LabError> {
        let probe = &self.probes[at];
        let ends = Ends {
            source: sight.destination.unwrap_or(probe.to),
            destination: sight.source,
            source_port: sight.destination_port,
            destination_port: sight.source_port,
        };
        let payload = packet::payload(probe.protocol, ends, Marker { id: self.ids[at], reply: true }, 0);
        let packet = packet::ip(ends, probe.protocol.number(ends.source.is_ipv4()), &payload);
        let station = self.stations.get(&place).ok_or(LabError::NoSuchPlace(place))?;
        let sent = station.send(ends.destination, &packet);
        sent.map_err(|source| LabError::Socket { what: "answering a probe", place, source })
    }
}

fn wait_for<'a>(sockets: impl Iterator<Item = BorrowedFd<'a>>, left: Duration) -> io::Result<()> {
    let mut waiting: Vec<PollFd<'a>> = sockets.map(|socket| PollFd::new(socket, PollFlags::POLLIN)).collect();
    // Rounded up, or the last fraction of a millisecond would spin.
    let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
    match poll(&mut waiting, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
