//! What nix does not know of netlink sockets: some of their options, and the descriptor of `mnl`'s.
//!
//! In: a socket of `mnl`. Out: its descriptor, and types for [`nix::sys::socket::setsockopt`]. What always holds: the one
//! place of unsafe code in this crate, and each option is an int, as netlink(7) says.
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
