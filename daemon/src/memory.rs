//! Memory that is no longer used, given back to the kernel.
//!
//! In: the source's state. Out: a process that is small again after a list. What always holds: nothing depends on it; both
//! do nothing with another C library than GNU's.

#![allow(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::state::SourceState;

/// What follows a list (evaluation, the first transaction) is over after this time.
const SETTLED: Duration = Duration::from_secs(2);

/// Gives back after each list of an API server what reading and evaluating it took.
pub async fn give_back_after_lists(mut source: watch::Receiver<Arc<SourceState>>) {
    let lists = |state: &SourceState| state.watches.iter().map(|watch| watch.lists).sum::<u64>();
    let mut known = 0;
    loop {
        let now = lists(&source.borrow_and_update());
        if now != known {
            known = now;
            sleep(SETTLED).await;
            // Walks the heap: not on a thread that has others to serve.
            drop(spawn_blocking(give_back).await);
        }
        if source.changed().await.is_err() {
            return;
        }
    }
}

/// One heap for all threads: with one for each, what one thread frees is of no use to the others. To be called before any
/// thread is started.
pub fn use_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two numbers, and no other thread allocates yet.
    unsafe {
        nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1);
    }
}

/// Gives the kernel what is free, wherever it lies in the heap. Walks all of it: some milliseconds.
#[cfg(target_env = "gnu")]
pub fn give_back() {
    // SAFETY: malloc_trim takes a number and no pointer, may be called by any thread at any time, and touches free memory
    // alone.
    unsafe { nix::libc::malloc_trim(0) };
}

/// Another C library has its own ways.
#[cfg(not(target_env = "gnu"))]
pub fn give_back() {}
