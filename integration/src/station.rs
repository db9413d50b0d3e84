//! The sockets by which a place sends probes and hears what arrives.
//!
//! In: packets and frames. Out: sights. What always holds: a socket is opened inside its namespace and used from outside;
//! a pod hears at its `eth0`, a node only what its input hook has let through.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{LinkAddr, MsgFlags, SockaddrStorage, recvfrom, sendto, setsockopt, sockopt};

use crate::lab::{Lab, LabError};
use crate::place::Place;
use crate::sight::{Sight, of_frame, of_packet, of_payload};
use crate::sys;

/// Room for what arrives between two looks.
const BUFFER: usize = 4 << 20;
/// Frames with a higher type are another host's, or the place's own.
const FOR_US: u8 = libc::PACKET_MULTICAST;

/// Where probes come to light.
enum Ear {
    /// All frames of the namespace.
    Frames(OwnedFd),
    /// What the kernel delivers of one protocol, after its input hook.
    Delivered { socket: OwnedFd, protocol: u8, v4: bool },
}

impl Ear {
    fn socket(&self) -> &OwnedFd {
        match self {
            Self::Frames(socket) | Self::Delivered { socket, .. } => socket,
        }
    }
}

/// A place's sockets.
pub(crate) struct Station {
    place: Place,
    interface: u32,
    send4: OwnedFd,
    send6: OwnedFd,
    ears: Vec<Ear>,
}

/// A mutex whose owner may have panicked in a test: what it guards is sockets, which stay sound.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Station {
    pub(crate) fn open(lab: &Lab, place: Place) -> Result<Self, LabError> {
        let opened = lab.netns(place)?.run(|| Self::open_here(place))?;
        opened.map_err(|source| LabError::Socket { what: "opening sockets for probes", place, source })
    }

    fn open_here(place: Place) -> io::Result<Self> {
        let mut ears = Vec::new();
        if matches!(place, Place::Node(_)) {
            for protocol in [6, 17, 132] {
                ears.extend([delivered(protocol, true)?, delivered(protocol, false)?]);
            }
            ears.extend([delivered(1, true)?, delivered(58, false)?]);
        } else {
            let socket = sys::packet_socket()?;
            setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
            ears.push(Ear::Frames(socket));
        }
        let send4 = sys::raw_socket(libc::AF_INET, libc::IPPROTO_RAW)?;
        let send6 = sys::raw_socket(libc::AF_INET6, libc::IPPROTO_RAW)?;
        Ok(Self { place, interface: if_nametoindex("eth0")?, send4, send6, ears })
    }

    /// Makes sure that a protocol without an ear of its own is heard at a node.
    pub(crate) fn listen(&mut self, lab: &Lab, protocol: u8) -> Result<(), LabError> {
        let place = self.place;
        let known = |ear: &Ear| match ear {
            Ear::Frames(_) => true,
            Ear::Delivered { protocol: heard, .. } => *heard == protocol,
        };
        if self.ears.iter().any(known) {
            return Ok(());
        }
        let opened = lab.netns(place)?.run(|| Ok([delivered(protocol, true)?, delivered(protocol, false)?]))?;
        self.ears.extend(opened.map_err(|source| LabError::Socket { what: "listening", place, source })?);
        Ok(())
    }

    pub(crate) fn place(&self) -> Place {
        self.place
    }

    pub(crate) fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.ears.iter().map(|ear| ear.socket().as_fd())
    }

    /// Sends an IP packet the way the place's kernel routes it. A packet that a rule here drops counts as sent.
    pub(crate) fn send(&self, to: IpAddr, packet: &[u8]) -> io::Result<()> {
        let socket = if to.is_ipv4() { &self.send4 } else { &self.send6 };
        let to = SockaddrStorage::from(SocketAddr::new(to, 0));
        match sendto(socket.as_raw_fd(), packet, &to, MsgFlags::empty()) {
            Ok(_) | Err(Errno::EPERM) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends a frame out of `eth0`.
    pub(crate) fn send_frame(&self, frame: &[u8]) -> io::Result<()> {
        let Some(Ear::Frames(socket)) = self.ears.first() else { return Err(io::ErrorKind::Unsupported.into()) };
        let to = frame.first_chunk::<6>().and_then(|&mac| sys::link_address(self.interface, mac));
        let to = to.ok_or(io::ErrorKind::InvalidInput)?;
        sendto(socket.as_raw_fd(), frame, &to, MsgFlags::empty())?;
        Ok(())
    }

    /// Everything heard since the last call.
    pub(crate) fn hear(&self, found: &mut dyn FnMut(Place, Sight)) -> io::Result<()> {
        let mut buffer = vec![0; 1 << 16];
        for ear in &self.ears {
            while let Some(sight) = ear.next(&mut buffer)? {
                if let Some(sight) = sight {
                    found(self.place, sight);
                }
            }
        }
        Ok(())
    }
}

impl Ear {
    /// The next packet: nothing left, nothing of ours, or a sight.
    fn next(&self, buffer: &mut [u8]) -> io::Result<Option<Option<Sight>>> {
        let socket = self.socket().as_raw_fd();
        let sight = match self {
            Self::Frames(_) => recvfrom::<LinkAddr>(socket, buffer).map(|(length, from)| {
                from.filter(|from| from.pkttype() <= FOR_US).and_then(|_| of_frame(&buffer[..length]))
            }),
            Self::Delivered { protocol, v4, .. } => {
                recvfrom::<SockaddrStorage>(socket, buffer).map(|(length, from)| {
                    let bytes = &buffer[..length];
                    let source = from.and_then(|from| from.as_sockaddr_in6().map(|from| from.ip()));
                    if *v4 { of_packet(bytes) } else { of_payload(*protocol, source?.into(), bytes, false) }
                })
            }
        };
        match sight {
            Ok(sight) => Ok(Some(sight)),
            Err(Errno::EAGAIN) => Ok(None),
            // A device that went away says so once on each socket that used it.
            Err(Errno::ENETDOWN | Errno::EINTR) => Ok(Some(None)),
            Err(error) => Err(error.into()),
        }
    }
}

fn delivered(protocol: u8, v4: bool) -> io::Result<Ear> {
    let family = if v4 { libc::AF_INET } else { libc::AF_INET6 };
    let socket = sys::raw_socket(family, i32::from(protocol))?;
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
    Ok(Ear::Delivered { socket, protocol, v4 })
}
