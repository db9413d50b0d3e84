//! Traffic that runs while rules change, counted packet by packet.
//!
//! In: pairs of places, each allowed or forbidden. Out: what was sent, received and lost, live and at the end. What always
//! holds: a message is counted once it has left the sender, and lost only if it has not come long after the last one was
//! sent; a sender that was late skips its turn, so that no burst overflows a queue and looks like a loss of policy.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
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

/// Room for seconds of traffic, should the receiver not get a processor.
const BUFFER: usize = 8 << 20;
/// Source ports of a fresh flow: few enough that conntrack holds all of many pairs.
const PORTS: u64 = 16_384;
/// How long a silence must last before what is missing counts as lost, and the longest wait for one.
const SILENCE: Duration = Duration::from_millis(100);
const DRAIN: Duration = Duration::from_secs(2);
const MAGIC: &[u8; 6] = b"fftraf";
/// Magic, pair, number.
const MESSAGE: usize = 16;

/// The shape of a pair's traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// UDP, each datagram from another port: every one is judged afresh.
    Fresh,
    /// UDP on one flow, request and response; a message counts as received when its response is back
    /// (of a forbidden pair: when the request arrived).
    Steady,
    /// UDP on one flow, where the client speaks once and then only the server sends.
    Push,
    /// One TCP connection with numbered messages.
    Stream,
}

/// Who talks to whom.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The client.
    pub from: Place,
    /// The server.
    pub to: Place,
    /// The address the client uses: one of the server's, or a Service's.
    pub address: IpAddr,
    /// The port the client uses.
    pub port: u16,
    /// The port the server listens on, where a Service changes it.
    pub server_port: u16,
    /// The shape.
    pub flow: Flow,
    /// Whether it should pass: then losses count, else arrivals.
    pub allowed: bool,
}

impl Pair {
    /// A pair to one of the server's own addresses.
    pub fn new(from: Place, to: Place, address: impl Into<IpAddr>, port: u16, flow: Flow) -> Self {
        Self { from, to, address: address.into(), port, server_port: port, flow, allowed: true }
    }

    /// The same, not to pass.
    pub fn forbidden(mut self) -> Self {
        self.allowed = false;
        self
    }
}

/// How far a pair is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Messages that left the sender.
    pub sent: u64,
    /// Messages that came to their end.
    pub received: u64,
    /// When the last one came.
    pub last_received: Option<Instant>,
    /// The longest time between two.
    pub longest_gap: Duration,
}

/// What traffic came to.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Messages of allowed pairs that were sent.
    pub sent: u64,
    /// Those that came.
    pub received: u64,
    /// Those that did not.
    pub lost: u64,
    /// Messages of forbidden pairs that were sent.
    pub forbidden_sent: u64,
    /// Messages of forbidden pairs that came.
    pub forbidden_received: u64,
    /// Each pair, in the order given.
    pub pairs: Vec<Progress>,
}

#[derive(Default)]
struct Count {
    sent: AtomicU64,
    received: AtomicU64,
    /// Nanoseconds since the start; 0 for never.
    last: AtomicU64,
    gap: AtomicU64,
}

impl Count {
    fn receive(&self, start: Instant) {
        let now = nanoseconds(start.elapsed());
        let last = self.last.swap(now, Ordering::Relaxed);
        if last != 0 {
            self.gap.fetch_max(now.saturating_sub(last), Ordering::Relaxed);
        }
        self.received.fetch_add(1, Ordering::Release);
    }

    fn progress(&self, start: Instant) -> Progress {
        let last = self.last.load(Ordering::Relaxed);
        Progress {
            received: self.received.load(Ordering::Acquire),
            sent: self.sent.load(Ordering::Acquire),
            last_received: (last != 0).then(|| start + Duration::from_nanos(last)),
            longest_gap: Duration::from_nanos(self.gap.load(Ordering::Relaxed)),
        }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// What sender, receiver and owner share.
struct Shared {
    start: Instant,
    counts: Vec<Count>,
    sending: AtomicBool,
    receiving: AtomicBool,
}

/// Running traffic; stops when dropped.
pub struct Traffic {
    shared: Arc<Shared>,
    pairs: Vec<Pair>,
    threads: Vec<JoinHandle<()>>,
}

impl Traffic {
    /// Starts all pairs; each sends a message every `interval`, or as often as the machine can.
    pub fn start(lab: &Lab, pairs: &[Pair], interval: Duration) -> Result<Self, LabError> {
        let wires = Wires::open(lab, pairs)?;
        let shared = Arc::new(Shared {
            start: Instant::now(),
            counts: pairs.iter().map(|_| Count::default()).collect(),
            sending: AtomicBool::new(true),
            receiving: AtomicBool::new(true),
        });
        let wires = Arc::new(wires);
        let (own, with) = (Arc::clone(&shared), Arc::clone(&wires));
        let receiver = thread::spawn(move || with.receive(&own));
        let (own, with) = (Arc::clone(&shared), wires);
        let sender = thread::spawn(move || with.send(&own, interval));
        Ok(Self { shared, pairs: pairs.to_vec(), threads: vec![sender, receiver] })
    }

    /// How far each pair is, in the order given.
    pub fn progress(&self) -> Vec<Progress> {
        self.shared.counts.iter().map(|count| count.progress(self.shared.start)).collect()
    }

    /// Stops sending, waits for what is on its way, and counts.
    pub fn stop(mut self) -> Report {
        self.end();
        let mut report = Report { pairs: self.progress(), ..Report::default() };
        for (pair, progress) in self.pairs.iter().zip(&report.pairs) {
            if pair.allowed {
                report.sent += progress.sent;
                report.received += progress.received;
                report.lost += progress.sent.saturating_sub(progress.received);
            } else {
                report.forbidden_sent += progress.sent;
                report.forbidden_received += progress.received;
            }
        }
        report
    }

    fn end(&mut self) {
        self.shared.sending.store(false, Ordering::Release);
        let threads = std::mem::take(&mut self.threads);
        if threads.is_empty() {
            return;
        }
        let total = || self.shared.counts.iter().map(|count| count.received.load(Ordering::Acquire)).sum::<u64>();
        let (deadline, mut before) = (Instant::now() + DRAIN, None);
        while before != Some(total()) && Instant::now() < deadline {
            before = Some(total());
            thread::sleep(SILENCE);
        }
        self.shared.receiving.store(false, Ordering::Release);
        for thread in threads {
            if let Err(cause) = thread.join()
                && !thread::panicking()
            {
                std::panic::resume_unwind(cause);
            }
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.end();
    }
}

/// A client's end.
enum Client {
    /// A raw socket, and the address it sends from.
    Fresh {
        socket: OwnedFd,
        ends: Ends,
    },
    Datagram(UdpSocket),
    /// A connection, and what is left of a message that it took a part of.
    Stream {
        socket: TcpStream,
        rest: Mutex<Vec<u8>>,
    },
    /// A connection that could not be made.
    Refused,
}

/// All sockets.
struct Wires {
    flows: Vec<Flow>,
    allowed: Vec<bool>,
    clients: Vec<Client>,
    servers: Vec<UdpSocket>,
    listeners: Vec<TcpListener>,
    /// Which server a pair uses.
    server_of: Vec<Option<usize>>,
    /// Where a pushing server sends to, once the client has spoken.
    peers: Vec<OnceLock<SocketAddr>>,
}

impl Wires {
    fn open(lab: &Lab, pairs: &[Pair]) -> Result<Self, LabError> {
        let mut wires = Self {
            flows: pairs.iter().map(|pair| pair.flow).collect(),
            allowed: pairs.iter().map(|pair| pair.allowed).collect(),
            clients: Vec::new(),
            servers: Vec::new(),
            listeners: Vec::new(),
            server_of: Vec::new(),
            peers: pairs.iter().map(|_| OnceLock::new()).collect(),
        };
        wires.open_servers(lab, pairs)?;
        for pair in pairs {
            let opened = lab.netns(pair.from)?.run(|| client(pair))?;
            let client =
                opened.map_err(|source| LabError::Socket { what: "opening a client", place: pair.from, source });
            wires.clients.push(client?);
        }
        Ok(wires)
    }

    /// Pairs to one address and port share a socket.
    fn open_servers(&mut self, lab: &Lab, pairs: &[Pair]) -> Result<(), LabError> {
        let mut known: BTreeMap<(Place, SocketAddr, bool), Option<usize>> = BTreeMap::new();
        for pair in pairs {
            let space = lab.netns(pair.to)?;
            let stream = pair.flow == Flow::Stream;
            let at = SocketAddr::new(space.run(|| served_at(pair))?, pair.server_port);
            if let Some(&index) = known.get(&(pair.to, at, stream)) {
                self.server_of.push(index);
                continue;
            }
            let failed = |source| LabError::Socket { what: "opening a server", place: pair.to, source };
            let index = if stream {
                self.listeners.push(space.run(|| listener(at))?.map_err(failed)?);
                None
            } else {
                self.servers.push(space.run(|| datagrams(at))?.map_err(failed)?);
                Some(self.servers.len() - 1)
            };
            known.insert((pair.to, at, stream), index);
            self.server_of.push(index);
        }
        Ok(())
    }

    fn send(&self, shared: &Shared, interval: Duration) {
        let mut next = Instant::now();
        let mut number = 0;
        while shared.sending.load(Ordering::Acquire) {
            for (pair, count) in shared.counts.iter().enumerate() {
                if self.send_one(pair, number) {
                    count.sent.fetch_add(1, Ordering::Release);
                }
            }
            number += 1;
            next += interval;
            let now = Instant::now();
            if next > now {
                thread::sleep(next - now);
            } else {
                next = now;
            }
        }
    }

    /// Whether the message left (a rule of the sender's own namespace that drops it counts as leaving).
    fn send_one(&self, pair: usize, number: u64) -> bool {
        let bytes = message(pair, number);
        let sent = match (&self.clients[pair], self.flows[pair]) {
            (Client::Fresh { socket, ends }, _) => send_fresh(socket, *ends, number, &bytes),
            (Client::Datagram(client), Flow::Push) => match (self.peers[pair].get(), self.server_of[pair]) {
                (Some(peer), Some(server)) => self.servers[server].send_to(&bytes, peer),
                // The client goes on asking until it was heard once; that is no message.
                _ => {
                    client.send(&bytes).ok();
                    return false;
                }
            },
            (Client::Datagram(client), _) => client.send(&bytes),
            (Client::Stream { socket, rest }, _) => send_stream(socket, &mut locked(rest), &bytes),
            (Client::Refused, _) => return false,
        };
        match sent {
            Ok(length) => length > 0,
            Err(error) => error.raw_os_error() == Some(libc::EPERM),
        }
    }

    fn receive(&self, shared: &Shared) {
        let mut streams: Vec<Accepted> = Vec::new();
        while shared.receiving.load(Ordering::Acquire) {
            let clients = self.clients.iter().filter_map(|client| match client {
                Client::Datagram(socket) => Some(socket.as_fd()),
                _ => None,
            });
            let others = self.servers.iter().map(AsFd::as_fd).chain(self.listeners.iter().map(AsFd::as_fd));
            wait(clients.chain(others).chain(streams.iter().map(|stream| stream.socket.as_fd())));
            for listener in &self.listeners {
                while let Ok((socket, _)) = listener.accept() {
                    socket.set_nonblocking(true).ok();
                    streams.push(Accepted { socket, rest: Vec::new() });
                }
            }
            streams.retain_mut(|stream| stream.read(shared));
            self.servers.iter().for_each(|server| self.serve(server, shared));
            self.clients.iter().for_each(|client| self.take(client, shared));
        }
    }

    /// Reads all requests of a server.
    fn serve(&self, server: &UdpSocket, shared: &Shared) {
        let mut buffer = [0; 64];
        while let Some((length, from)) = next(server, &mut buffer) {
            let Some(pair) = pair_of(&buffer[..length]) else { continue };
            match self.flows.get(pair) {
                Some(Flow::Steady) if self.allowed[pair] => drop(server.send_to(&buffer[..length], from)),
                Some(Flow::Fresh | Flow::Steady) => shared.counts[pair].receive(shared.start),
                Some(Flow::Push) => drop(self.peers[pair].set(from)),
                Some(Flow::Stream) | None => (),
            }
        }
    }

    /// Reads all that came to a client.
    fn take(&self, client: &Client, shared: &Shared) {
        let Client::Datagram(socket) = client else { return };
        let mut buffer = [0; 64];
        while let Some((length, _)) = next(socket, &mut buffer) {
            if let Some(count) = pair_of(&buffer[..length]).and_then(|pair| shared.counts.get(pair)) {
                count.receive(shared.start);
            }
        }
    }
}

/// The server's end of a connection.
struct Accepted {
    socket: TcpStream,
    rest: Vec<u8>,
}

impl Accepted {
    /// Reads what is there; false when the connection is over.
    fn read(&mut self, shared: &Shared) -> bool {
        let mut buffer = [0; 4096];
        loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => return false,
                Ok(length) => self.rest.extend(&buffer[..length]),
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
            let whole = self.rest.len() / MESSAGE * MESSAGE;
            for message in self.rest.drain(..whole).as_slice().chunks(MESSAGE) {
                if let Some(count) = pair_of(message).and_then(|pair| shared.counts.get(pair)) {
                    count.receive(shared.start);
                }
            }
        }
    }
}

/// The address a server binds: the one that is used, or, behind a Service, its first. Never all: an answer must leave
/// from where it was asked.
fn served_at(pair: &Pair) -> IpAddr {
    let own = UdpSocket::bind((pair.address, 0)).is_ok();
    if own { pair.address } else { pair.to.address_like(pair.address) }
}

fn client(pair: &Pair) -> io::Result<Client> {
    let to = SocketAddr::new(pair.address, pair.port);
    match pair.flow {
        Flow::Fresh => {
            let family = if pair.address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
            let ends = Ends {
                source: pair.from.source_towards(pair.address),
                destination: pair.address,
                source_port: 0,
                destination_port: pair.port,
            };
            Ok(Client::Fresh { socket: sys::raw_socket(family, libc::IPPROTO_RAW)?, ends })
        }
        Flow::Steady | Flow::Push => {
            let socket = datagrams(SocketAddr::new(pair.from.source_towards(pair.address), 0))?;
            socket.connect(to)?;
            Ok(Client::Datagram(socket))
        }
        Flow::Stream => match TcpStream::connect_timeout(&to, Duration::from_millis(500)) {
            Ok(socket) => {
                socket.set_nonblocking(true)?;
                socket.set_nodelay(true)?;
                Ok(Client::Stream { socket, rest: Mutex::default() })
            }
            Err(_) => Ok(Client::Refused),
        },
    }
}

fn datagrams(at: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(at)?;
    socket.set_nonblocking(true)?;
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
    Ok(socket)
}

fn listener(at: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(at)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn send_fresh(socket: &OwnedFd, ends: Ends, number: u64, bytes: &[u8]) -> io::Result<usize> {
    let source_port = u16::try_from(1024 + number % PORTS).map_err(io::Error::other)?;
    let ends = Ends { source_port, ..ends };
    let packet = packet::ip(ends, 17, &packet::udp(ends, bytes));
    let to = SockaddrStorage::from(SocketAddr::new(ends.destination, 0));
    Ok(sendto(socket.as_raw_fd(), &packet, &to, MsgFlags::empty())?)
}

/// Takes a message whole or not at all.
fn send_stream(mut socket: &TcpStream, rest: &mut Vec<u8>, bytes: &[u8]) -> io::Result<usize> {
    if !rest.is_empty() {
        let length = socket.write(rest)?;
        rest.drain(..length);
    }
    if !rest.is_empty() {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    let length = socket.write(bytes)?;
    rest.extend(&bytes[length..]);
    Ok(bytes.len())
}

fn message(pair: usize, number: u64) -> [u8; MESSAGE] {
    let mut bytes = [0; MESSAGE];
    bytes[..6].copy_from_slice(MAGIC);
    bytes[6..8].copy_from_slice(&u16::try_from(pair).unwrap_or(u16::MAX).to_be_bytes());
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    bytes
}

fn pair_of(message: &[u8]) -> Option<usize> {
    let rest = message.strip_prefix(MAGIC)?;
    Some(usize::from(u16::from_be_bytes(*rest.first_chunk()?)))
}

/// The next datagram. An error that an ICMP message left on the socket is taken off and passed over.
fn next(socket: &UdpSocket, buffer: &mut [u8]) -> Option<(usize, SocketAddr)> {
    loop {
        match socket.recv_from(buffer) {
            Ok(received) => return Some(received),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Err(_) => (),
        }
    }
}

fn wait<'a>(sockets: impl Iterator<Item = BorrowedFd<'a>>) {
    let mut sockets: Vec<PollFd<'a>> = sockets.map(|socket| PollFd::new(socket, PollFlags::POLLIN)).collect();
    if let Err(error) = poll(&mut sockets, PollTimeout::from(20_u8)) {
        assert_eq!(error, Errno::EINTR, "poll of open sockets");
    }
}
