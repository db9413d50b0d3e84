//! An answer of the API server.
//!
//! In: a byte (resource, coding, list or watch), the body. Out: nothing. What always holds: what it changes is put beside the cluster of
//! [`crate::world`].

use flatfell::cluster::Resource;
use flatfell::fuzzing::{Answered, status};
use tokio::runtime::{Builder, Runtime};

use crate::world;

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
}

/// Runs the target.
pub fn run(bytes: &[u8]) {
    let Some((what, body)) = bytes.split_first() else { return };
    let resource = Resource::ALL[usize::from(what & 3)];
    let answered = Answered { resource, is_protobuf: what & 4 != 0, is_list: what & 8 != 0 };
    if what & 16 != 0 {
        return status(answered.is_protobuf, body);
    }
    let changes = RUNTIME.with(|runtime| runtime.block_on(answered.changes(body)));
    if !changes.is_empty() {
        world::beside(changes);
    }
}
