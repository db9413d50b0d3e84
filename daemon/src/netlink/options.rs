//! The options of netlink sockets that nix does not know.
//!
//! In: nothing. Out: types for [`nix::sys::socket::setsockopt`]. What always holds: the one place of unsafe code in this
//! crate, and each option is an int, as netlink(7) says.
#![allow(unsafe_code)]

use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::SetSockOpt;

/// An option of a netlink socket that is on or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetlinkOption {
    /// Refusals come with the kernel's own words.
    ExtendedAck,
    /// Refusals do not repeat the request.
    CapAck,
}

impl SetSockOpt for NetlinkOption {
    type Val = bool;

    fn set<F: AsFd>(&self, fd: &F, val: &bool) -> nix::Result<()> {
        let name = match self {
            Self::ExtendedAck => libc::NETLINK_EXT_ACK,
            Self::CapAck => libc::NETLINK_CAP_ACK,
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
