//! A thread that looks for ways round policy: a dump of somebody's 20,000 chains takes longer than a commit may wait.
//!
//! In: what the engine's thread knows, latest wins. Out: what was found last. What always holds: it reads, and writes nothing.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::eventfd::EventFd;

use crate::bypass::{BRIDGE_SYSCTL, Bypass, BypassError, Facts, Kind, Lookout, PROC_NET};
use crate::links::PodBridge;

/// What the engine's thread knows of the node.
pub(super) struct Known {
    pub(super) pod_bridges: Vec<PodBridge>,
    pub(super) ipvs: bool,
    pub(super) v4: bool,
    pub(super) v6: bool,
}

/// What was found last.
#[derive(Clone, Default)]
pub(super) struct Found {
    pub(super) bypasses: Vec<Bypass>,
    pub(super) fault: Option<String>,
}

/// What the log was told of: each thing once when it appears, and once when it is gone. A bridge's flag is left out: it
/// is off for a moment at every start and with every new bridge, and when it stays off the status says so.
#[derive(Default)]
pub(super) struct Told(BTreeMap<(Kind, Option<&'static str>, String), String>);

impl Told {
    /// Tells what is new, and what is gone.
    pub(super) fn tell(&mut self, bypasses: &[Bypass]) {
        let key = |bypass: &Bypass| (bypass.kind, bypass.engine, bypass.place.clone());
        let lasting = bypasses.iter().filter(|bypass| bypass.kind != Kind::NfCall);
        let now: BTreeMap<_, _> = lasting.map(|bypass| (key(bypass), bypass.message.clone())).collect();
        for (_, message) in now.iter().filter(|(key, _)| !self.0.contains_key(*key)) {
            tracing::warn!("{message}");
        }
        for (_, message) in self.0.iter().filter(|(key, _)| !now.contains_key(*key)) {
            tracing::info!("gone: {message}");
        }
        self.0 = now;
    }
}

/// The thread's other end; it stops when this is dropped.
pub(super) struct LookoutThread {
    known: SyncSender<Known>,
    found: Arc<Mutex<Found>>,
}

impl LookoutThread {
    /// Starts the thread in the caller's network namespace; it wakes the engine's thread when it has looked.
    pub(super) fn start(wake: Arc<EventFd>) -> std::io::Result<Self> {
        let (known, inbox) = sync_channel(1);
        let found = Arc::new(Mutex::new(Found::default()));
        let outbox = Arc::clone(&found);
        std::thread::Builder::new().name("lookout".to_owned()).spawn(move || run(&inbox, &outbox, &wake))?;
        Ok(Self { known, found })
    }

    /// Asks for another look. False while one of older knowledge is waiting: ask again then.
    pub(super) fn look(&self, known: Known) -> bool {
        match self.known.try_send(known) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => false,
            Err(TrySendError::Disconnected(_)) => {
                self.found.lock().unwrap_or_else(PoisonError::into_inner).fault =
                    Some("the lookout has ended".to_owned());
                true
            }
        }
    }

    /// What was found last.
    pub(super) fn found(&self) -> Found {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One look for each message. A lookout that failed is opened anew.
fn run(inbox: &Receiver<Known>, outbox: &Mutex<Found>, wake: &EventFd) {
    let mut lookout = None;
    while let Ok(known) = inbox.recv() {
        let result = look(&mut lookout, &known);
        let mut found = outbox.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(bypasses) => *found = Found { bypasses, fault: None },
            Err(error) => {
                lookout = None;
                found.fault = Some(format!("ways round policy cannot be looked for: {error}"));
            }
        }
        drop(found);
        // At worst the engine's thread shows it at its next turn, within a second.
        let _ = wake.write(1);
    }
}

fn look(lookout: &mut Option<Lookout>, known: &Known) -> Result<Vec<Bypass>, BypassError> {
    let lookout = match lookout {
        Some(lookout) => lookout,
        None => lookout.insert(Lookout::open()?),
    };
    lookout.look(&Facts {
        bridge_sysctl: Path::new(BRIDGE_SYSCTL),
        proc_net: Path::new(PROC_NET),
        pod_bridges: &known.pod_bridges,
        ipvs: known.ipvs,
        v4: known.v4,
        v6: known.v6,
        mark_mask: u32::MAX,
    })
}
