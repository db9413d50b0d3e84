//! A directory for targets whose readers want files.
//!
//! In: nothing. Out: a directory for each thread. What always holds: it lies in memory where the system has such a place, and goes with its thread.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

thread_local! {
    static DIRECTORY: TempDir = make();
}

fn make() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() };
    made.expect("a temporary directory")
}

/// A subdirectory of this thread's, empty at first.
pub fn directory(name: &str) -> PathBuf {
    DIRECTORY.with(|directory| {
        let path = directory.path().join(name);
        std::fs::create_dir_all(&path).expect("a directory");
        path
    })
}
