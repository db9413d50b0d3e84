//! Netlink: sockets to the kernel, the messages on them, and what can go wrong.
//!
//! In: requests. Out: the kernel's answers, dumps and events, or a [`NetlinkError`]. What always holds: interfaces
//! ([`crate::links`]), rules and conntrack ([`crate::kernel`]) and the lookout ([`crate::bypass`]) all go through here;
//! only the kernel is listened to; what does not parse is an error, never left out.

mod options;
mod socket;
mod wire;

use nix::errno::Errno;

pub use socket::Socket;
pub use wire::{
    ACKED, Answer, Attr, Attrs, DUMP, Malformed, Message, Messages, NETFILTER_HEADER, REQUEST, Request, field,
    netfilter,
};

/// What can go wrong on a netlink socket.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// A system call on the socket failed; which one, and why.
    #[error("netlink {step}: {errno}{}", advice(*errno))]
    Call {
        /// The call.
        step: &'static str,
        /// Its error.
        errno: Errno,
    },
    /// The kernel refused the request.
    #[error("netlink request refused: {errno}{}{}", words(message.as_deref()), advice(*errno))]
    Refused {
        /// Its error.
        errno: Errno,
        /// Its words.
        message: Option<String>,
    },
    /// The kernel had more to say than the socket could hold; what was said is lost in part.
    #[error("netlink socket overrun: messages were lost")]
    Overrun,
    /// The data changed while it was dumped: the dump is no consistent picture.
    #[error("netlink dump interrupted by a change")]
    Interrupted,
    /// One datagram was longer than the receive buffer.
    #[error("netlink datagram of {0} bytes truncated")]
    Truncated(usize),
    /// The kernel took a part of what was sent.
    #[error("netlink took {0} bytes of a longer message")]
    Partial(usize),
    /// The kernel sent what does not parse.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

impl NetlinkError {
    /// Whether answers may still be on their way: another request on the same socket could take them for its own.
    pub fn leaves_answers(&self) -> bool {
        !matches!(self, Self::Refused { .. } | Self::Interrupted)
    }
}

/// What to do about an error, where the errno says it.
fn advice(errno: Errno) -> &'static str {
    match errno {
        Errno::EPERM | Errno::EACCES => " (CAP_NET_ADMIN is needed: run it as root)",
        Errno::EPROTONOSUPPORT => " (this kernel lacks nfnetlink: load it with modprobe nf_tables)",
        _ => "",
    }
}

/// The kernel's words behind its error, where it said any.
pub fn words(message: Option<&str>) -> String {
    message.map(|message| format!(" ({message})")).unwrap_or_default()
}
