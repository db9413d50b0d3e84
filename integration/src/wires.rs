//! The sockets of traffic, and the loops of its two threads.
//!
//! In: pairs. Out: messages, counted in [`Shared`]. What always holds: sockets do not block; one thread sends and one
//! receives, however many pairs there are.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, OnceLock};
use std::thread;
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
use crate::traffic::{Flow, Pair, Shared};

/// Room for seconds of traffic, should the receiver not get a processor.
const BUFFER: usize = 8 << 20;
/// Source ports of a fresh flow: few enough that conntrack holds all of many pairs.
const PORTS: u64 = 16_384;
const MAGIC: &[u8; 6] = b"fftraf";
/// Magic, pair, number.
const MESSAGE: usize = 16;

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
pub(crate) struct Wires {
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
    pub(crate) fn open(lab: &Lab, pairs: &[Pair]) -> Result<Self, LabError> {
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

    pub(crate) fn send(&self, shared: &Shared, interval: Duration) {
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

    pub(crate) fn receive(&self, shared: &Shared) {
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
