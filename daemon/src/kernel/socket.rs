//! A netlink socket to netfilter.
//!
//! In: the bytes of requests. Out: the bytes of answers. What always holds: one `send` is one sendmsg; waiting ends after
//! [`TIMEOUT`]; refusals come with the kernel's own words (NETLINK_EXT_ACK) and without the request (NETLINK_CAP_ACK).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;

use super::wire::{Answer, Message, Request, messages};

/// How long an answer is waited for.
pub const TIMEOUT: Duration = Duration::from_secs(20);

/// What may wait unread. Taken only while it waits; a refused batch of 20,000 operations is answered with 20,000 messages.
const RECEIVE_BUFFER: libc::c_int = 64 << 20;

/// What is read at once: the kernel makes no piece of a dump larger than 32 KiB.
const READ: usize = 64 << 10;

/// NLM_F_DUMP.
const NLM_F_DUMP: u16 = 0x300;

/// Why the kernel did not answer a dump.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The socket failed.
    #[error("netlink socket: {0}")]
    Socket(#[from] io::Error),
    /// The kernel refused.
    #[error("dump refused: {errno} {message:?}")]
    Refused {
        /// Its error.
        errno: Errno,
        /// Its words.
        message: Option<String>,
    },
    /// What is dumped changed again each time it was tried.
    #[error("dump interrupted each time it was tried")]
    Interrupted,
    /// A message that lacks what it must have.
    #[error("dump with a message that lacks {0}")]
    Malformed(&'static str),
}

/// A socket of the netfilter bus.
pub struct Socket {
    inner: mnl::Socket,
    buffer: Vec<u8>,
    send_buffer: usize,
    seq: u32,
}

impl Socket {
    /// Opens and binds one.
    pub fn open() -> io::Result<Self> {
        let inner = mnl::Socket::new(mnl::Bus::Netfilter)?;
        let wait = libc::timeval { tv_sec: i64::try_from(TIMEOUT.as_secs()).unwrap_or(i64::MAX), tv_usec: 0 };
        let socket = Self { inner, buffer: vec![0; READ], send_buffer: 0, seq: 0 };
        socket.set(libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, 1)?;
        socket.set(libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, 1)?;
        socket.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER)?;
        socket.set(libc::SOL_SOCKET, libc::SO_RCVTIMEO, wait)?;
        Ok(socket)
    }

    /// The socket's address, which events about its transactions carry.
    pub fn port_id(&self) -> u32 {
        self.inner.portid()
    }

    fn set<T>(&self, level: libc::c_int, name: libc::c_int, value: T) -> io::Result<()> {
        let size = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
        // SAFETY: the descriptor is open as long as `self`; `value` is readable for its size.
        let answer = unsafe { libc::setsockopt(self.inner.as_raw_fd(), level, name, (&raw const value).cast(), size) };
        if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Sends all in one piece; the send buffer grows with what is sent.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        // The kernel keeps some of the buffer for itself.
        let need = bytes.len() + (64 << 10);
        if need > self.send_buffer {
            let size = libc::c_int::try_from(need).map_err(|_| io::Error::from_raw_os_error(libc::EMSGSIZE))?;
            self.set(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, size)?;
            self.send_buffer = need;
        }
        let sent = self.inner.send(bytes)?;
        if sent == bytes.len() { Ok(()) } else { Err(io::Error::other("netlink took a part of a message")) }
    }

    /// The next piece of answers.
    pub fn receive(&mut self) -> io::Result<&[u8]> {
        let received = self.inner.recv_raw(&mut self.buffer)?;
        Ok(&self.buffer[..received])
    }

    /// Sequence number for the next request.
    pub fn next_seq(&mut self) -> u32 {
        self.seq = self.seq.wrapping_add(1);
        self.seq
    }

    /// Asks for a dump and gives each message of it to `each`. True when it is complete, false when what was dumped
    /// changed meanwhile.
    pub fn dump(
        &mut self,
        kind: u16,
        family: u8,
        fill: impl FnOnce(Request) -> Request,
        mut each: impl FnMut(Message<'_>) -> Result<(), DumpError>,
    ) -> Result<bool, DumpError> {
        let seq = self.next_seq();
        self.send(&fill(Request::new(kind, NLM_F_DUMP, seq, family)).finish())?;
        let mut complete = true;
        // What is wrong with one message must not leave the others unread: they would answer the next request.
        let mut failure = None;
        loop {
            for message in messages(self.receive()?).filter(|message| message.seq == seq) {
                complete &= !message.interrupted();
                match message.answer() {
                    None if failure.is_none() => failure = each(message).err(),
                    None => {}
                    Some(Answer { error: None, .. }) => return failure.map_or(Ok(complete), Err),
                    Some(Answer { error: Some(errno), message }) => {
                        return Err(failure.unwrap_or(DumpError::Refused { errno, message }));
                    }
                }
            }
        }
    }
}
