//! Ctrl-C: asked for between steps, so that everything is cleaned up on the way out.
//!
//! In: SIGINT, SIGTERM, SIGHUP. Out: whether one came. What always holds: programs started from here have the signals'
//! defaults.

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::bail;
use nix::libc::c_int;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_: c_int) {
    STOP.store(true, Ordering::Relaxed);
}

/// From now on signals only leave a note.
pub fn listen() -> nix::Result<()> {
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler stores to an atomic and does nothing else, which is async-signal-safe.
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}

/// Whether a signal came.
pub fn came() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// An error once a signal came.
pub fn check() -> anyhow::Result<()> {
    if came() {
        bail!("interrupted");
    }
    Ok(())
}
