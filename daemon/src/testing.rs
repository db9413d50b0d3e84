//! What the tests of this crate share: a network namespace of their own and the programs that fill it; an engine that
//! only remembers.

use std::{
    io::Write,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use flatfell_rules::effective::Effective;
use nix::sched::{CloneFlags, unshare};

use crate::batch::Batch;
use crate::controller::Enforce;

/// Remembers what it shall enforce.
#[derive(Debug, Default)]
pub struct Memory(Mutex<Vec<Arc<Effective>>>);

impl Enforce for Memory {
    fn enforce(&self, effective: Arc<Effective>, _: Batch) {
        self.0.lock().expect("memory").push(effective);
    }
}

impl Memory {
    /// How often it was told something.
    pub fn count(&self) -> usize {
        self.0.lock().expect("memory").len()
    }

    /// What it was told last.
    pub fn last(&self) -> Option<Arc<Effective>> {
        self.0.lock().expect("memory").last().cloned()
    }
}

/// Runs `work` in a thread with a new network namespace, which goes when the thread and what it opened there are gone.
pub fn in_namespace<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("tests of the kernel's side run as root");
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs `ip` with these words in the calling thread's network namespace.
pub fn ip(words: &str) {
    let status = Command::new("ip").args(words.split_whitespace()).status().expect("iproute2 is installed");
    assert!(status.success(), "ip {words}");
}

/// Loads a ruleset with `nft` in the calling thread's network namespace.
pub fn nft(ruleset: &str) {
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nftables is installed");
    nft.stdin.take().expect("piped").write_all(ruleset.as_bytes()).expect("nft reads");
    assert!(nft.wait().expect("nft ends").success(), "{ruleset}");
}
