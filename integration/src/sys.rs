//! The two socket calls that `nix` does not offer.
//!
//! In: numbers of families and protocols, an interface. Out: an owned socket, a link-layer address. What always holds: a
//! socket is non-blocking and closed on exec.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use nix::libc;
use nix::sys::socket::{LinkAddr, SockaddrLike};

use crate::place::Mac;

/// A raw socket: of a protocol of IP, or, in the packet family, of all frames.
pub(crate) fn raw_socket(family: i32, protocol: i32) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: takes numbers only.
    let socket = unsafe { libc::socket(family, kind, protocol) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned it and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

/// A packet socket that hears every frame of its namespace.
pub(crate) fn packet_socket() -> io::Result<OwnedFd> {
    let all = u16::try_from(libc::ETH_P_ALL).map_err(io::Error::other)?;
    raw_socket(libc::AF_PACKET, i32::from(all.to_be()))
}

/// Where a packet socket sends a whole frame to: out of an interface.
pub(crate) fn link_address(interface: u32, mac: Mac) -> Option<LinkAddr> {
    let mut address = [0; 8];
    address[..6].copy_from_slice(&mac);
    let raw = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).ok()?,
        sll_protocol: 0,
        sll_ifindex: i32::try_from(interface).ok()?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: address,
    };
    // SAFETY: points to a whole sockaddr_ll that lives through the call, and its family says so.
    unsafe { LinkAddr::from_raw((&raw const raw).cast(), None) }
}
