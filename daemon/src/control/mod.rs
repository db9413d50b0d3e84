//! The control socket: how a command on the node tells the running daemon to do something.
//!
//! In: one [`Request`] a connection, as one line of JSON, over a unix socket in the run directory. Out: one [`Answer`],
//! likewise, or records of the flow log, one [`FlowLine`] each. What always holds: only a process of the daemon's own user is listened to, whatever the permissions of the
//! file have become; it is never on the network.

mod client;
mod server;

use std::path::{Path, PathBuf};

use nix::unistd::Uid;
use serde::{Deserialize, Serialize};

pub use client::{ask, follow};
pub(crate) use server::{Bound, prepare};
pub use server::{Handler, Reply, Socket, remove_leftovers};

use crate::flows::Record;

/// The socket's name in the run directory.
const NAME: &str = "flatfell.sock";

/// Bytes of a request or an answer at most.
const LINE_BYTES: u64 = 4096;

/// What the daemon is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// To enforce nothing for a while.
    Pause {
        /// How long.
        seconds: u64,
    },
    /// To end a pause by command.
    Resume,
    /// To stop; the rules stay.
    Stop,
    /// For records of the flow log.
    Flows {
        /// Those to come too, until the connection ends.
        follow: bool,
    },
}

/// What it says to that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It does so; a sentence for people.
    Done(String),
    /// It does not; why.
    Refused(String),
}

/// What is sent for [`Request::Flows`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlowLine {
    /// A record.
    Record(Box<Record>),
    /// So many were lost here: the reader is too slow.
    Lost(u64),
    /// There are none to be had; why.
    Refused(String),
}

/// Why the control socket is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The run directory cannot be made ours.
    #[error("--run-dir {}: {what}: {source}", dir.display())]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The run directory is somebody else's.
    #[error("--run-dir {} belongs to user {owner}, and this is user {own}: choose another", dir.display())]
    Owner {
        /// The directory.
        dir: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Whose this process is.
        own: Uid,
    },
    /// A daemon answers there, of another network namespace.
    #[error("{} is the socket of a running daemon: choose another --run-dir", .0.display())]
    Taken(PathBuf),
    /// The socket cannot be made.
    #[error("cannot listen on {}: {source}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Nobody listens.
    #[error("no daemon answers on {}: does it run, and with this --run-dir? {source}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The connection broke.
    #[error("the daemon at {} did not answer: {source}", path.display())]
    Exchange {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// It does not do what it was asked.
    #[error("{0}")]
    Refused(String),
}

/// The socket of a run directory.
fn path(dir: &Path) -> PathBuf {
    dir.join(NAME)
}
