//! Who is at the other end of the socket.
//!
//! In: a socket's directory, a connection. Out: whether both are this user's alone. What always holds: what cannot be told is not
//! trusted.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Uid;

/// A directory that only this user can enter: nobody else can have made the socket in it.
pub fn directory(dir: &Path) -> io::Result<()> {
    let found = std::fs::symlink_metadata(dir)?;
    let refused = |why: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    if !found.is_dir() {
        return refused(format!("{} is no directory", dir.display()));
    }
    if found.uid() != Uid::effective().as_raw() || found.mode() & 0o077 != 0 {
        return refused(format!(
            "{} belongs to user {} with mode {:o}: it must be this user's own, 700",
            dir.display(),
            found.uid(),
            found.mode() & 0o777
        ));
    }
    Ok(())
}

/// A process of this user.
pub fn peer(connection: &impl AsFd) -> io::Result<()> {
    let uid = getsockopt(connection, PeerCredentials)?.uid();
    if uid == Uid::effective().as_raw() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("a process of user {uid} is at the other end")))
}
