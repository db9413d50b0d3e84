//! Traffic of one row: what it costs now.
//!
//! In: a lab and a row. Out: nanoseconds of an operation, batch by batch, for a slice of time. What always holds: every operation
//! is seen to arrive, or the slice fails: a layout that drops is no result.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use flatfell_integration::Lab;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, send, setsockopt, socket,
    sockopt,
};

use super::row::{Family, Kind, Row};
use super::{cpu, datagram, stats};

/// How long an answer may take; one that takes longer is a layout that drops.
const PATIENCE: Duration = Duration::from_secs(2);
/// Round trips of a batch.
const EXCHANGES: u32 = 50;
const CONNECTS: u32 = 10;
/// Datagrams of a batch: what a socket's buffer holds in any case.
const DATAGRAMS: u16 = 100;
/// Bytes of a write of the stream.
const CHUNK: usize = 1 << 20;

/// What sends and what answers.
pub struct Traffic<'a> {
    lab: &'a Lab,
    row: Row,
    ends: Ends,
}

enum Ends {
    /// A connection whose other end echoes.
    Exchange(TcpStream),
    /// A server that accepts and closes.
    Connect,
    /// A raw sender, the receiver, the next source port.
    NewFlow(OwnedFd, UdpSocket, u16),
    Datagram(UdpSocket, UdpSocket),
    /// A connection whose other end reads.
    Stream(TcpStream),
}

impl<'a> Traffic<'a> {
    /// Both ends of a row, ready.
    pub fn new(lab: &'a Lab, row: Row) -> anyhow::Result<Self> {
        let ends = match row.kind {
            Kind::Exchange => Ends::Exchange(connection(lab, row, echo)?),
            Kind::Stream => Ends::Stream(connection(lab, row, swallow)?),
            Kind::Connect => {
                let server = listener(lab, row)?;
                thread::spawn(move || cpu::take().map(|()| accept_all(&server)));
                Ends::Connect
            }
            Kind::NewFlow => Ends::NewFlow(raw(lab, row)?, receiver(lab, row)?, 1024),
            Kind::Datagram => Ends::Datagram(sender(lab, row)?, receiver(lab, row)?),
        };
        Ok(Self { lab, row, ends })
    }

    /// Nanoseconds of an operation, for a slice of time: the median over its batches. A stream has no batch that is like the next one: the mean.
    pub fn slice(&mut self, length: Duration) -> anyhow::Result<f64> {
        let batches = self.batches(length)?;
        Ok(if self.row.kind == Kind::Stream { stats::mean(&batches) } else { stats::median(&batches) })
    }

    /// Nanoseconds of an operation, batch by batch.
    pub fn batches(&mut self, length: Duration) -> anyhow::Result<Vec<f64>> {
        let (row, ends) = (self.row, &mut self.ends);
        let inside = || {
            cpu::take()?;
            match ends {
                Ends::Exchange(client) => batches(length, EXCHANGES, || exchange(client)),
                Ends::Stream(client) => batches(length, 1, || Ok(client.write_all(&[0; CHUNK])?)),
                Ends::Connect => batches(length, CONNECTS, || connect_once(row.target())),
                Ends::NewFlow(from, to, port) => new_flows(length, row, from, to, port),
                Ends::Datagram(from, to) => datagrams(length, from, to),
            }
        };
        // A thread of its own: sockets are made in the namespace of the thread that asks for them.
        let batches = self.lab.netns(row.client())?.run(inside)?;
        batches.with_context(|| row.to_string())
    }
}

/// Nanoseconds of an operation, batch by batch.
fn batches(length: Duration, count: u32, mut work: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Vec<f64>> {
    let (begin, mut times) = (Instant::now(), Vec::new());
    while begin.elapsed() < length {
        let batch = Instant::now();
        for _ in 0..count {
            work()?;
        }
        times.push(batch.elapsed().as_secs_f64() * 1e9 / f64::from(count));
    }
    Ok(times)
}

fn exchange(client: &mut TcpStream) -> anyhow::Result<()> {
    let mut word = [7; 64];
    client.write_all(&word)?;
    Ok(client.read_exact(&mut word)?)
}

/// Connects and hears the server close. Its own end goes with a reset, which leaves no port in TIME_WAIT: there are not enough.
fn connect_once(target: SocketAddr) -> anyhow::Result<()> {
    let mut client = TcpStream::connect_timeout(&target, PATIENCE)?;
    client.set_read_timeout(Some(PATIENCE))?;
    ensure!(client.read(&mut [0])? == 0, "a server that speaks");
    Ok(setsockopt(&client, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 })?)
}

/// Sends a batch, then takes it: only sending is timed, which is all of a packet's way but the last read.
fn datagrams(length: Duration, from: &UdpSocket, to: &UdpSocket) -> anyhow::Result<Vec<f64>> {
    let (begin, mut times) = (Instant::now(), Vec::new());
    while begin.elapsed() < length {
        let batch = Instant::now();
        for _ in 0..DATAGRAMS {
            from.send(&[7; 64])?;
        }
        times.push(batch.elapsed().as_secs_f64() * 1e9 / f64::from(DATAGRAMS));
        take(to)?;
    }
    Ok(times)
}

/// The same with another source port for each datagram.
fn new_flows(length: Duration, row: Row, from: &OwnedFd, to: &UdpSocket, port: &mut u16) -> anyhow::Result<Vec<f64>> {
    let (source, target) = (row.address(row.client()), row.target());
    let (begin, mut times) = (Instant::now(), Vec::new());
    while begin.elapsed() < length {
        let mut packets = Vec::new();
        for _ in 0..DATAGRAMS {
            *port = port.checked_add(1).unwrap_or(1024);
            packets.push(datagram::from_port(source, *port, target));
        }
        let batch = Instant::now();
        for packet in &packets {
            send(from.as_raw_fd(), packet, MsgFlags::empty())?;
        }
        times.push(batch.elapsed().as_secs_f64() * 1e9 / f64::from(DATAGRAMS));
        take(to)?;
    }
    Ok(times)
}

fn take(to: &UdpSocket) -> anyhow::Result<()> {
    let mut buffer = [0; 128];
    for number in 0..DATAGRAMS {
        to.recv(&mut buffer).with_context(|| format!("{number} of {DATAGRAMS} datagrams arrived"))?;
    }
    Ok(())
}

fn listener(lab: &Lab, row: Row) -> anyhow::Result<TcpListener> {
    Ok(lab.netns(row.server())?.run(|| TcpListener::bind(row.target()))??)
}

fn receiver(lab: &Lab, row: Row) -> anyhow::Result<UdpSocket> {
    let receiver = lab.netns(row.server())?.run(|| UdpSocket::bind(row.target()))??;
    receiver.set_read_timeout(Some(PATIENCE))?;
    Ok(receiver)
}

fn sender(lab: &Lab, row: Row) -> anyhow::Result<UdpSocket> {
    let sender = lab.netns(row.client())?.run(|| UdpSocket::bind((row.address(row.client()), 0)))??;
    sender.connect(row.target())?;
    Ok(sender)
}

fn raw(lab: &Lab, row: Row) -> anyhow::Result<OwnedFd> {
    let family = match row.family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    let open = || socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Udp);
    let raw = lab.netns(row.client())?.run(open)??;
    // The port of a raw socket's peer is that of its packets; IPv6 wants none here.
    connect(raw.as_raw_fd(), &SockaddrStorage::from(SocketAddr::from((row.target().ip(), 0))))?;
    Ok(raw)
}

/// A connection; the server's end lives on a thread that ends with the client's.
fn connection(lab: &Lab, row: Row, serve: fn(TcpStream)) -> anyhow::Result<TcpStream> {
    let listener = listener(lab, row)?;
    let client = lab.netns(row.client())?.run(|| TcpStream::connect_timeout(&row.target(), PATIENCE))??;
    let (server, _) = listener.accept()?;
    for end in [&client, &server] {
        end.set_nodelay(true)?;
    }
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_write_timeout(Some(PATIENCE))?;
    thread::spawn(move || cpu::take().map(|()| serve(server)));
    Ok(client)
}

fn echo(mut server: TcpStream) {
    let mut word = [0; 64];
    while server.read_exact(&mut word).is_ok() && server.write_all(&word).is_ok() {}
}

/// Until a connection comes from the server's own pod.
fn accept_all(server: &TcpListener) {
    while let Ok((_, client)) = server.accept() {
        if server.local_addr().is_ok_and(|own| own.ip() == client.ip()) {
            return;
        }
    }
}

fn swallow(mut server: TcpStream) {
    let mut chunk = vec![0; CHUNK];
    while server.read(&mut chunk).is_ok_and(|length| length > 0) {}
}

impl Drop for Traffic<'_> {
    fn drop(&mut self) {
        // Ends the server's thread; one that has ended needs no word.
        match &self.ends {
            Ends::Exchange(client) | Ends::Stream(client) => client.shutdown(Shutdown::Both).ok(),
            Ends::Connect => {
                let server = self.lab.netns(self.row.server()).ok();
                server.and_then(|server| server.run(|| TcpStream::connect(self.row.target())).ok()).map(drop)
            }
            Ends::NewFlow(..) | Ends::Datagram(..) => None,
        };
    }
}

/// Whether policy is in force: a port that no rule allows does not even refuse.
pub fn is_denied(lab: &Lab, row: Row) -> anyhow::Result<bool> {
    let closed = SocketAddr::from((row.target().ip(), 9));
    let tried = lab.netns(row.client())?.run(|| TcpStream::connect_timeout(&closed, Duration::from_millis(300)))?;
    ensure!(tried.is_err(), "{closed} is open");
    Ok(tried.is_err_and(|error| error.kind() == std::io::ErrorKind::TimedOut))
}
