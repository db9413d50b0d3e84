//! One daemon a network namespace.
//!
//! In: nothing. Out: a [`Lock`] held until it is dropped, or the reason why not. What always holds: the lock is a
//! listening address whose name belongs to the network namespace, so two namespaces each have their own, no file system
//! is needed, and the kernel frees it however the process ends.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, socket},
};

/// The name in the abstract namespace of unix sockets.
const NAME: &[u8] = b"flatfell";

/// Why the lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody holds it.
    #[error(
        "another flatfell already runs in this network namespace (it holds the unix socket @flatfell): stop it first"
    )]
    Held,
    /// The kernel refused for another reason.
    #[error("cannot bind the unix socket @flatfell that keeps a second daemon away: {0}")]
    Refused(#[source] Errno),
}

/// Held for as long as this process may write to the tables of this network namespace.
#[derive(Debug)]
pub struct Lock {
    _socket: OwnedFd,
}

impl Lock {
    /// Takes the lock of the calling thread's network namespace.
    pub fn take() -> Result<Self, LockError> {
        let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None);
        let socket = socket.map_err(LockError::Refused)?;
        let address = UnixAddr::new_abstract(NAME).map_err(LockError::Refused)?;
        match bind(socket.as_raw_fd(), &address) {
            Ok(()) => Ok(Self { _socket: socket }),
            Err(Errno::EADDRINUSE) => Err(LockError::Held),
            Err(errno) => Err(LockError::Refused(errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        thread,
        time::{Duration, Instant},
    };

    use super::*;
    use crate::testing::in_namespace;

    #[test]
    fn one_daemon_a_namespace() {
        in_namespace(|| {
            let held = Lock::take().expect("free");
            let elsewhere = in_namespace(Lock::take).expect("another namespace has its own");
            let second = Lock::take().expect_err("taken");
            assert!(matches!(second, LockError::Held) && second.to_string().contains("already runs"), "{second}");
            drop(held);
            drop(elsewhere);
            // A program that another test starts at this moment holds a copy until its exec.
            let start = Instant::now();
            while Lock::take().is_err() {
                assert!(start.elapsed() < Duration::from_secs(5), "free again once it is dropped");
                thread::yield_now();
            }
        });
    }
}
