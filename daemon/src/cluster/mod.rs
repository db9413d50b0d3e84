//! The API server as a source of objects.
//!
//! In: the way to it ([`Access`]) and this node's name. Out: changes of pods, namespaces and network policies, and how the
//! watches stand. What always holds:
//!
//! - Nothing is complete before the three lists were complete once.
//! - While the server is away, hangs or talks nonsense, what was known stays; it is tried again, with a pause.
//! - An object that no schema checked is a problem with its name and field, never the end of a watch.
//!
//! The protocol is spoken here, on the client of kube-rs: its own watcher ends a broken or a garbled watch without a
//! word, begins again without a pause, and shows no bookmarks.

mod access;
mod arrival;
mod coding;
mod failure;
mod follow;
pub(crate) mod fuzzing;
mod ledger;
mod lines;
mod node;
mod protobuf;
mod prune;
mod resource;
mod session;
mod source;
mod watch_state;

pub use access::{Access, AccessError};
pub use arrival::arrive;
pub use failure::Failure;
pub use follow::Patience;
pub use node::OwnNode;
pub use resource::{PAUSED_UNTIL, Resource};
pub use source::Cluster;
pub use watch_state::{Broken, GRACE, WatchState};
