//! What nix does not know of netlink sockets: some of their options, and the descriptor of `mnl`'s.
//!
//! In: a socket of `mnl`. Out: its descriptor, and types for [`nix::sys::socket::setsockopt`]. What always holds: the one
//! place of unsafe code in this crate, and each option of netlink is an int, as netlink(7) says.
#![allow(unsafe_code)]

use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::SetSockOpt;

/// The descriptor of a socket, for the calls that `mnl` does not have.
pub fn descriptor(socket: &mnl::Socket) -> BorrowedFd<'_> {
    // SAFETY: the socket owns the descriptor, closes it when it is dropped, and is borrowed as long.
    unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) }
}

/// An option of a netlink socket that is on or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetlinkOption {
    /// Refusals come with the kernel's own words.
    ExtendedAck,
    /// Refusals do not repeat the request.
    CapAck,
    /// What a dump is to be about is refused or kept to, never left out.
    StrictCheck,
}

impl SetSockOpt for NetlinkOption {
    type Val = bool;

    fn set<F: AsFd>(&self, fd: &F, val: &bool) -> nix::Result<()> {
        let name = match self {
            Self::ExtendedAck => libc::NETLINK_EXT_ACK,
            Self::CapAck => libc::NETLINK_CAP_ACK,
            Self::StrictCheck => libc::NETLINK_GET_STRICT_CHK,
        };
        let value = libc::c_int::from(*val);
        let size = libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(|_| Errno::EINVAL)?;
        // SAFETY: the descriptor is open as long as `fd` is borrowed; `value` is readable for its size.
        let answer = unsafe {
            libc::setsockopt(fd.as_fd().as_raw_fd(), libc::SOL_NETLINK, name, (&raw const value).cast(), size)
        };
        Errno::result(answer).map(drop)
    }
}

/// Leaves out what requests from one port cause, before it takes room in the receive buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WithoutPort;

impl SetSockOpt for WithoutPort {
    type Val = u32;

    fn set<F: AsFd>(&self, fd: &F, port: &u32) -> nix::Result<()> {
        let mut program = without_port(*port);
        let length = libc::c_ushort::try_from(program.len()).map_err(|_| Errno::EINVAL)?;
        let filter = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
        let size = libc::socklen_t::try_from(size_of::<libc::sock_fprog>()).map_err(|_| Errno::EINVAL)?;
        // SAFETY: the descriptor is open as long as `fd` is borrowed; `filter` is readable for its size, and `program`, which
        // the kernel copies, for the length it says.
        let answer = unsafe {
            libc::setsockopt(
                fd.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const filter).cast(),
                size,
            )
        };
        Errno::result(answer).map(drop)
    }
}

/// A classic BPF program: a datagram passes unless its first message has this port. One datagram has the events of one transaction.
fn without_port(port: u32) -> [libc::sock_filter; 4] {
    // Of nlmsghdr; the program reads the machine's own order as the network's.
    const PORT_AT: u32 = 12;
    const LOAD: u16 = 0x20;
    const IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let op = |code, jt, k| libc::sock_filter { code, jt, jf: 0, k };
    [op(LOAD, 0, PORT_AT), op(IF_EQUAL, 1, port.to_be()), op(RETURN, 0, u32::MAX), op(RETURN, 0, 0)]
}
