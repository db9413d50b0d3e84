//! A netlink socket that sends, asks, dumps and hears events.
//!
//! In: requests to send. Out: the kernel's messages. What always holds: one `send` is one sendmsg, and the send buffer
//! grows with it; waiting ends after [`TIMEOUT`]; only the kernel (port 0) is listened to; a dump that the kernel marked
//! as interrupted is said to be so; refusals come with the kernel's own words.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use mnl::Bus;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sys::socket::{MsgFlags, NetlinkAddr, recvmsg, setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::options::{NetlinkOption, WithoutPort, descriptor};
use super::{Answer, Message, Messages, NetlinkError, Request};

/// How long an answer is waited for. The kernel has queued it before the request's sendmsg returns, and each part of a dump
/// before the one before it is read: what is not there then was lost.
pub const TIMEOUT: Duration = Duration::from_millis(200);

/// What the kernel puts into one datagram of a dump at most (netlink_recvmsg: a buffer of 32 KiB, less its own head).
const RECEIVE: usize = 32 * 1024;

/// What the kernel keeps of a send buffer for itself.
const SEND_OVERHEAD: usize = 64 * 1024;

/// A netlink socket with its receive buffer.
pub struct Socket {
    socket: mnl::Socket,
    buffer: Vec<u8>,
    send_buffer: usize,
    sequence: u32,
}

fn call<T>(step: &'static str, result: Result<T, Errno>) -> Result<T, NetlinkError> {
    result.map_err(|errno| NetlinkError::Call { step, errno })
}

/// What `mnl` answers, whose errors are all of a system call.
fn answer<T>(step: &'static str, result: io::Result<T>) -> Result<T, NetlinkError> {
    call(step, result.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or_default())))
}

impl Socket {
    /// A socket of this protocol that hears the multicast groups of `groups` (a mask, group 1 is bit 0), in the calling
    /// thread's network namespace.
    pub fn open(bus: Bus, groups: u32) -> Result<Self, NetlinkError> {
        const AUTOMATIC_PORT: libc::pid_t = 0;
        let socket = answer("socket", mnl::Socket::open(bus))?;
        let fd = descriptor(&socket);
        // libmnl's way to open has no SOCK_CLOEXEC.
        call("FD_CLOEXEC", fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)))?;
        answer("bind", socket.bind(groups, AUTOMATIC_PORT))?;
        let patience = TimeVal::new(0, TIMEOUT.subsec_micros().into());
        call("SO_RCVTIMEO", setsockopt(&fd, sockopt::ReceiveTimeout, &patience))?;
        call("NETLINK_EXT_ACK", setsockopt(&fd, NetlinkOption::ExtendedAck, &true))?;
        call("NETLINK_CAP_ACK", setsockopt(&fd, NetlinkOption::CapAck, &true))?;
        Ok(Self { socket, buffer: vec![0; RECEIVE], send_buffer: 0, sequence: 0 })
    }

    /// Its port: what others see as the author of its requests.
    pub fn port(&self) -> u32 {
        self.socket.portid()
    }

    /// Makes room for this much that waits unread, whatever the system's limit is. Memory is taken only while it waits.
    pub fn widen(&self, bytes: usize) -> Result<(), NetlinkError> {
        call("SO_RCVBUFFORCE", setsockopt(self, sockopt::RcvBufForce, &bytes))
    }

    /// Hears no more events of requests from this port. What waits unread stays.
    pub fn pass_over(&self, port: u32) -> Result<(), NetlinkError> {
        call("SO_ATTACH_FILTER", setsockopt(self, WithoutPort, &port))
    }

    /// Has the kernel keep to what a dump is to be about, or refuse it.
    pub fn strict(&self) -> Result<(), NetlinkError> {
        call("NETLINK_GET_STRICT_CHK", setsockopt(self, NetlinkOption::StrictCheck, &true))
    }

    /// The next datagram, waited for until [`TIMEOUT`].
    pub fn receive(&mut self) -> Result<Messages<'_>, NetlinkError> {
        let length = self.read(MsgFlags::empty())?;
        self.datagram(length)
    }

    /// The next datagram if one is there.
    pub fn poll(&mut self) -> Result<Option<Messages<'_>>, NetlinkError> {
        match self.read(MsgFlags::MSG_DONTWAIT) {
            Ok(length) => self.datagram(length).map(Some),
            Err(NetlinkError::Call { errno: Errno::EAGAIN, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn datagram(&self, length: usize) -> Result<Messages<'_>, NetlinkError> {
        self.buffer.get(..length).map(Messages::new).ok_or(NetlinkError::Truncated(length))
    }

    /// Reads the next datagram of the kernel into the buffer; its true length, which may be more than the buffer's.
    fn read(&mut self, flags: MsgFlags) -> Result<usize, NetlinkError> {
        loop {
            let mut vectors = [IoSliceMut::new(&mut self.buffer)];
            let flags = flags | MsgFlags::MSG_TRUNC;
            match recvmsg::<NetlinkAddr>(self.socket.as_raw_fd(), &mut vectors, None, flags) {
                // Only the kernel has port 0; what another process sent is not an answer.
                Ok(datagram) if datagram.address.is_some_and(|from| from.pid() == 0) => return Ok(datagram.bytes),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS) => return Err(NetlinkError::Overrun),
                Err(errno) => return Err(NetlinkError::Call { step: "recvmsg", errno }),
            }
        }
    }

    /// Sends all in one piece.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), NetlinkError> {
        let need = bytes.len().saturating_add(SEND_OVERHEAD);
        if need > self.send_buffer {
            let fits = libc::c_int::try_from(need).map_err(|_| Errno::EMSGSIZE);
            let set = fits.and_then(|_| setsockopt(self, sockopt::SndBufForce, &need));
            call("SO_SNDBUFFORCE", set)?;
            self.send_buffer = need;
        }
        let sent = answer("sendmsg", self.socket.send(bytes))?;
        if sent == bytes.len() { Ok(()) } else { Err(NetlinkError::Partial(sent)) }
    }

    /// The sequence number for the next request.
    pub fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Sends a request that asks for an acknowledgement (see [`super::ACKED`]) and waits for it; answers before it go to
    /// `each`.
    pub fn ask<E: From<NetlinkError>>(
        &mut self,
        request: Request,
        each: impl FnMut(Message<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.exchange(request, each).map(drop)
    }

    /// Dumps (see [`super::DUMP`]); each message goes to `each`. An interrupted dump is read to its end and then
    /// reported.
    pub fn dump<E: From<NetlinkError>>(
        &mut self,
        request: Request,
        each: impl FnMut(Message<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        match self.exchange(request, each)? {
            Whole::Yes => Ok(()),
            Whole::Interrupted => Err(NetlinkError::Interrupted.into()),
        }
    }

    /// Sends a request and reads to the end of its answers.
    fn exchange<E: From<NetlinkError>>(
        &mut self,
        request: Request,
        mut each: impl FnMut(Message<'_>) -> Result<(), E>,
    ) -> Result<Whole, E> {
        let sequence = self.next_sequence();
        self.send(&request.finish(sequence).map_err(NetlinkError::from)?)?;
        let mut whole = Whole::Yes;
        // What is wrong with one message must not leave the others unread: they would answer the next request.
        let mut failure = None;
        loop {
            for message in self.receive()? {
                let message = message.map_err(NetlinkError::from)?;
                if message.sequence != sequence {
                    continue;
                }
                if message.overrun() {
                    return Err(NetlinkError::Overrun.into());
                }
                if message.interrupted() {
                    whole = Whole::Interrupted;
                }
                match message.answer().map_err(NetlinkError::from)? {
                    Some(answer) => return end(answer, failure).map(|()| whole),
                    None if failure.is_none() => failure = each(message).err(),
                    None => {}
                }
            }
        }
    }
}

/// Whether a dump is one picture.
#[derive(Clone, Copy)]
enum Whole {
    Yes,
    Interrupted,
}

/// What comes of the last answer and of what was wrong before it.
fn end<E: From<NetlinkError>>(Answer { error, message }: Answer, failure: Option<E>) -> Result<(), E> {
    match (failure, error) {
        (Some(failure), _) => Err(failure),
        (None, Some(errno)) => Err(NetlinkError::Refused { errno, message }.into()),
        (None, None) => Ok(()),
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        descriptor(&self.socket)
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("fd", &self.as_fd()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ACKED, DUMP, Malformed};
    use super::*;

    const GETLINK: u16 = 18;

    fn route() -> Socket {
        Socket::open(Bus::Route, 0).expect("socket")
    }

    #[test]
    fn a_refusal_names_the_errno_and_a_dump_ends() {
        let mut socket = route();
        let nowhere = [0, 0, 0, 0, 255, 255, 255, 127, 0, 0, 0, 0, 0, 0, 0, 0];
        let asked = socket.ask::<NetlinkError>(Request::new(GETLINK, ACKED, &nowhere), |_| Ok(()));
        assert!(matches!(asked, Err(NetlinkError::Refused { errno: Errno::ENODEV, .. })), "{asked:?}");
        let mut seen = 0;
        let dumped = socket.dump::<NetlinkError>(Request::new(GETLINK, DUMP, &[0; 16]), |_| {
            seen += 1;
            Ok(())
        });
        assert!(dumped.is_ok() && seen > 0, "{dumped:?} {seen}");
    }

    #[test]
    fn what_cannot_be_read_leaves_nothing_for_the_next_request() {
        let mut socket = route();
        let dump = || Request::new(GETLINK, DUMP, &[0; 16]);
        let broken = socket.dump::<NetlinkError>(dump(), |_| Err(Malformed("test").into()));
        assert!(matches!(broken, Err(NetlinkError::Malformed(Malformed("test")))), "{broken:?}");
        assert!(socket.poll().expect("poll").is_none(), "something was left unread");
        assert!(socket.dump::<NetlinkError>(dump(), |_| Ok(())).is_ok());
    }

    #[test]
    fn a_program_that_is_started_does_not_get_the_socket() {
        let flags = fcntl(route().as_fd(), FcntlArg::F_GETFD).expect("flags");
        assert_eq!(FdFlag::from_bits(flags), Some(FdFlag::FD_CLOEXEC));
    }

    #[test]
    fn what_another_process_sends_is_not_heard() {
        let mut socket = route();
        let own = nix::sys::socket::getsockname::<NetlinkAddr>(socket.as_fd().as_raw_fd()).expect("address");
        let forger = route();
        let forged = Request::new(3, 0, &[0; 4]).finish(1).expect("short");
        nix::sys::socket::sendto(forger.as_fd().as_raw_fd(), &forged, &own, MsgFlags::empty()).expect("sent");
        assert!(socket.poll().expect("poll").is_none());
    }
}
