//! Traffic: streams of UDP packets that run while something else changes, and which packets of each arrived.
//!
//! In: streams by [`Stream`]. Out: how many packets were sent at any moment, when the last one arrived, and in the end
//! a [`Report`] for each. What always holds: packets of a stream are numbered from 0 in the order they were sent; a number
//! is counted as sent only after the kernel took it; sockets live in their places' namespaces, threads in the caller's.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, SockaddrStorage, sendto, setsockopt, sockopt};

use crate::lab::{Lab, LabError};
use crate::packet::{self, Ends};
use crate::place::Place;
use crate::station::locked;
use crate::sys;

/// Room for what arrives while the receiver waits for a processor.
const BUFFER: usize = 64 << 20;
/// Source ports of new flows are taken in turn from here on.
const FIRST_PORT: u16 = 10_000;
const PORTS: u16 = 50_000;
/// How long the receiver waits between two looks at the end.
const LOOK: Duration = Duration::from_millis(5);

/// Which flow a packet belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Each packet begins a new one.
    Fresh,
    /// So many flows in turn: enough of them are new to each policy, and conntrack stays small.
    Turns(u16),
    /// All packets are one flow, from the client.
    Steady,
    /// The client sends one packet, then the server pushes and the client stays silent.
    Pushed,
}

/// One stream of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// The client.
    pub from: Place,
    /// The server.
    pub to: Place,
    /// The address the client sends to: the server's, or a Service's.
    pub address: IpAddr,
    /// The destination port.
    pub port: u16,
    /// The port the server listens on; another one than `port` for a Service, whose address is not the server's.
    pub server_port: u16,
    /// The kind of flow.
    pub flow: Flow,
}

impl Stream {
    /// A stream to a place's own address.
    pub fn new(from: Place, to: Place, address: IpAddr, port: u16, flow: Flow) -> Self {
        Self { from, to, address, port, server_port: port, flow }
    }
}

/// What became of a stream.
#[derive(Clone, Debug)]
pub struct Report {
    /// Packets sent.
    pub sent: u32,
    /// For each packet sent, whether it arrived.
    pub arrived: Vec<bool>,
}

impl Report {
    /// How many arrived.
    pub fn received(&self) -> usize {
        self.arrived.iter().filter(|arrived| **arrived).count()
    }

    /// How many did not.
    pub fn lost(&self) -> usize {
        self.arrived.len() - self.received()
    }

    /// How many of the packets `first..end` arrived.
    pub fn received_between(&self, first: u32, end: u32) -> usize {
        let index = |number: u32| usize::try_from(number).unwrap_or(usize::MAX).min(self.arrived.len());
        self.arrived[index(first)..index(end.max(first))].iter().filter(|arrived| **arrived).count()
    }
}

/// What both threads and the owner see of a stream.
#[derive(Default)]
struct Progress {
    /// Packets whose sending has begun.
    begun: AtomicU32,
    /// Packets whose sending has ended.
    ended: AtomicU32,
    arrivals: Mutex<Arrivals>,
}

#[derive(Default)]
struct Arrivals {
    arrived: Vec<bool>,
    last: Option<Instant>,
}

/// How a stream's next packet leaves.
enum Exit {
    /// As a packet made by hand, each with another source port.
    Raw { socket: OwnedFd, ends: Ends, ports: u16 },
    /// Out of a socket.
    Socket { socket: Arc<UdpSocket>, to: SocketAddr },
}

impl Exit {
    /// A packet that a rule of the sender's own namespace drops counts as sent.
    fn send(&self, stream: usize, number: u32) -> io::Result<()> {
        let data = encode(stream, number);
        let sent = match self {
            Self::Raw { socket, ends, ports } => {
                let turn = u16::try_from(number % u32::from(*ports)).unwrap_or_default();
                let ends = Ends { source_port: FIRST_PORT + turn, ..*ends };
                let bytes = packet::ip(ends, 17, &packet::udp(ends, &data));
                let to = SockaddrStorage::from(SocketAddr::new(ends.destination, 0));
                sendto(socket.as_raw_fd(), &bytes, &to, MsgFlags::empty()).map_err(io::Error::from)
            }
            Self::Socket { socket, to } => socket.send_to(&data, to),
        };
        match sent {
            Err(error) if error.raw_os_error() != Some(libc::EPERM) => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

/// What is in a packet: the stream and the packet's number.
fn encode(stream: usize, number: u32) -> [u8; 8] {
    let [.., a, b, c, d] = stream.to_be_bytes();
    let [e, f, g, h] = number.to_be_bytes();
    [a, b, c, d, e, f, g, h]
}

fn decode(data: &[u8]) -> Option<(usize, u32)> {
    let (stream, number) = (data.first_chunk::<4>()?, data.last_chunk::<4>()?);
    Some((usize::try_from(u32::from_be_bytes(*stream)).ok()?, u32::from_be_bytes(*number)))
}

/// The number of a packet that opens a flow and is none of the stream's.
const OPENING: u32 = u32::MAX;

/// Streams that run.
pub struct Traffic {
    progress: Arc<Vec<Progress>>,
    stop_sending: Arc<AtomicBool>,
    stop_hearing: Arc<AtomicBool>,
    sender: Option<JoinHandle<io::Result<()>>>,
    receiver: Option<JoinHandle<io::Result<()>>>,
}

impl Traffic {
    /// Starts all streams, one packet of each in turn with `pause` behind each round. Pushed flows are open when this
    /// returns: policy must let their first packet through.
    pub fn start(lab: &Lab, streams: &[Stream], pause: Duration) -> Result<Self, LabError> {
        let mut sockets = Sockets { lab, listening: BTreeMap::new(), hearing: Vec::new() };
        let exits = streams.iter().enumerate().map(|(index, stream)| sockets.exit(index, stream));
        let exits = exits.collect::<Result<Vec<Exit>, LabError>>()?;
        let progress: Arc<Vec<Progress>> = Arc::new(streams.iter().map(|_| Progress::default()).collect());
        let (stop_sending, stop_hearing) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let (seen, stop) = (Arc::clone(&progress), Arc::clone(&stop_hearing));
        let hearing = sockets.hearing;
        let receiver = thread::spawn(move || hear(&hearing, &seen, &stop));
        let (counted, stop) = (Arc::clone(&progress), Arc::clone(&stop_sending));
        let sender = thread::spawn(move || send(&exits, &counted, &stop, pause));
        Ok(Self { progress, stop_sending, stop_hearing, sender: Some(sender), receiver: Some(receiver) })
    }

    /// The number of the first packet of a stream whose sending has not begun.
    pub fn next(&self, stream: usize) -> u32 {
        self.progress[stream].begun.load(Ordering::SeqCst)
    }

    /// The number of packets of a stream that the kernel has taken.
    pub fn sent(&self, stream: usize) -> u32 {
        self.progress[stream].ended.load(Ordering::SeqCst)
    }

    /// How many packets of a stream have arrived.
    pub fn received(&self, stream: usize) -> usize {
        locked(&self.progress[stream].arrivals).arrived.iter().filter(|arrived| **arrived).count()
    }

    /// When the last packet of a stream arrived.
    pub fn last_arrival(&self, stream: usize) -> Option<Instant> {
        locked(&self.progress[stream].arrivals).last
    }

    /// Stops sending, waits `grace` for what is on its way, and says what became of each stream.
    pub fn stop(mut self, grace: Duration) -> io::Result<Vec<Report>> {
        self.stop_sending.store(true, Ordering::SeqCst);
        join(self.sender.take())?;
        thread::sleep(grace);
        self.stop_hearing.store(true, Ordering::SeqCst);
        join(self.receiver.take())?;
        Ok(self.progress.iter().map(Progress::report).collect())
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop_sending.store(true, Ordering::SeqCst);
        self.stop_hearing.store(true, Ordering::SeqCst);
        // Whoever drops it without stop has failed already and wants no second panic.
        for thread in [self.sender.take(), self.receiver.take()].into_iter().flatten() {
            thread.join().ok();
        }
    }
}

impl Progress {
    fn report(&self) -> Report {
        let sent = self.ended.load(Ordering::SeqCst);
        let mut arrived = std::mem::take(&mut locked(&self.arrivals).arrived);
        arrived.resize(usize::try_from(sent).unwrap_or(usize::MAX), false);
        Report { sent, arrived }
    }

    fn arrive(&self, number: u32) {
        let Ok(index) = usize::try_from(number) else { return };
        let mut arrivals = locked(&self.arrivals);
        if arrivals.arrived.len() <= index {
            arrivals.arrived.resize(index + 1, false);
        }
        arrivals.arrived[index] = true;
        arrivals.last = Some(Instant::now());
    }
}

fn join(thread: Option<JoinHandle<io::Result<()>>>) -> io::Result<()> {
    thread.map_or(Ok(()), |thread| thread.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause)))
}

fn send(exits: &[Exit], progress: &[Progress], stop: &AtomicBool, pause: Duration) -> io::Result<()> {
    while !stop.load(Ordering::SeqCst) {
        for (stream, (exit, progress)) in exits.iter().zip(progress).enumerate() {
            let number = progress.begun.fetch_add(1, Ordering::SeqCst);
            exit.send(stream, number)?;
            progress.ended.store(number + 1, Ordering::SeqCst);
        }
        thread::sleep(pause);
    }
    Ok(())
}

fn hear(sockets: &[Arc<UdpSocket>], progress: &[Progress], stop: &AtomicBool) -> io::Result<()> {
    while !stop.load(Ordering::SeqCst) {
        let mut fds: Vec<PollFd<'_>> =
            sockets.iter().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)).collect();
        match poll(&mut fds, PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::ZERO)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        for socket in sockets {
            drain(socket, progress)?;
        }
    }
    Ok(())
}

fn drain(socket: &UdpSocket, progress: &[Progress]) -> io::Result<()> {
    let mut buffer = [0; 64];
    loop {
        match socket.recv(&mut buffer) {
            Ok(length) => {
                if let Some((stream, number)) = decode(&buffer[..length])
                    && number != OPENING
                    && let Some(progress) = progress.get(stream)
                {
                    progress.arrive(number);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            // What an ICMP error says about an earlier packet.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error),
        }
    }
}

/// The sockets of all streams.
struct Sockets<'a> {
    lab: &'a Lab,
    listening: BTreeMap<(Place, SocketAddr), Arc<UdpSocket>>,
    hearing: Vec<Arc<UdpSocket>>,
}

impl Sockets<'_> {
    fn exit(&mut self, index: usize, stream: &Stream) -> Result<Exit, LabError> {
        let server = self.listen(stream)?;
        let to = SocketAddr::new(stream.address, stream.port);
        let source = stream.from.source_towards(stream.address);
        match stream.flow {
            Flow::Fresh | Flow::Turns(_) => {
                let ports = if let Flow::Turns(flows) = stream.flow { flows.clamp(1, PORTS) } else { PORTS };
                let family = if source.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
                let socket = self.inside(stream.from, || sys::raw_socket(family, libc::IPPROTO_RAW))?;
                let ends = Ends { source, destination: to.ip(), source_port: 0, destination_port: to.port() };
                Ok(Exit::Raw { socket, ends, ports })
            }
            Flow::Steady => Ok(Exit::Socket { socket: self.socket(stream.from, SocketAddr::new(source, 0))?, to }),
            Flow::Pushed => {
                let client = self.socket(stream.from, SocketAddr::new(source, 0))?;
                let peer = open(&client, to, &server, encode(index, OPENING));
                let peer =
                    peer.map_err(|source| LabError::Socket { what: "opening a flow", place: stream.from, source })?;
                self.hearing.push(client);
                Ok(Exit::Socket { socket: server, to: peer })
            }
        }
    }

    /// The server's socket, which several streams may share.
    fn listen(&mut self, stream: &Stream) -> Result<Arc<UdpSocket>, LabError> {
        let translated = stream.port != stream.server_port;
        let own = if translated { stream.to.address_like(stream.address) } else { stream.address };
        let at = SocketAddr::new(own, stream.server_port);
        if let Some(socket) = self.listening.get(&(stream.to, at)) {
            return Ok(Arc::clone(socket));
        }
        let socket = self.socket(stream.to, at)?;
        self.listening.insert((stream.to, at), Arc::clone(&socket));
        self.hearing.push(Arc::clone(&socket));
        Ok(socket)
    }

    fn socket(&self, place: Place, at: SocketAddr) -> Result<Arc<UdpSocket>, LabError> {
        self.inside(place, || {
            let socket = UdpSocket::bind(at)?;
            setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
            socket.set_nonblocking(true)?;
            Ok(Arc::new(socket))
        })
    }

    fn inside<T: Send>(&self, place: Place, work: impl FnOnce() -> io::Result<T> + Send) -> Result<T, LabError> {
        let made = self.lab.netns(place)?.run(work)?;
        made.map_err(|source| LabError::Socket { what: "a socket for traffic", place, source })
    }
}

/// Sends a flow's first packet until the server has it, and says from whom it came.
fn open(client: &UdpSocket, to: SocketAddr, server: &UdpSocket, data: [u8; 8]) -> io::Result<SocketAddr> {
    let mut buffer = [0; 64];
    for _ in 0..200 {
        client.send_to(&data, to)?;
        thread::sleep(LOOK);
        while let Ok((length, peer)) = server.recv_from(&mut buffer) {
            if buffer[..length] == data {
                return Ok(peer);
            }
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}
