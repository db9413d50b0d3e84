//! The sandboxes that the plugin told of.
//!
//! In: begins and ends of sandboxes. Out: changes for the [`crate::controller`]: a claim, a release. What always holds: a claim is in
//! the file before its answer, so a restart of the daemon takes nothing away from a pod that has started; a sandbox whose
//! interface on the node is gone is forgotten; there are no more than [`SANDBOXES_MAX`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use flatfell_cni::message::{Attachment, Sandbox};
use flatfell_rules::compile::Mac;
use flatfell_rules::index::{Change, Claim};
use flatfell_rules::object::ObjectName;
use nix::net::if_::if_nametoindex;
use tokio::sync::mpsc;

use crate::engine::ToldPort;

/// The file's name in the socket's directory.
const FILE: &str = "sandboxes.json";

/// Far more than a node has room for.
pub const SANDBOXES_MAX: usize = 10_000;

/// Addresses of one sandbox at most.
const ADDRESSES_MAX: usize = 16;

/// Why a sandbox is not taken in.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Nothing was said of it.
    #[error("a sandbox has from 1 to {ADDRESSES_MAX} addresses, and this one {0}")]
    Addresses(usize),
    /// There are too many.
    #[error("{SANDBOXES_MAX} sandboxes are known already")]
    TooMany,
    /// It cannot be remembered.
    #[error("{FILE}: {0}")]
    File(#[from] io::Error),
}

/// Who hears which pods are behind which ports: all of it, each time.
pub type PortsSink = Box<dyn Fn(Vec<ToldPort>) + Send + Sync>;

/// What is known of sandboxes.
pub struct Sandboxes {
    file: PathBuf,
    known: Mutex<BTreeMap<Attachment, Sandbox>>,
    changes: mpsc::UnboundedSender<Change>,
    ports: PortsSink,
}

impl Sandboxes {
    /// Those of an earlier run in this directory, claimed anew.
    pub fn open(directory: &std::path::Path, changes: mpsc::UnboundedSender<Change>, ports: PortsSink) -> Self {
        let file = directory.join(FILE);
        let read = fs::read(&file).ok().and_then(|bytes| serde_json::from_slice::<Vec<Sandbox>>(&bytes).ok());
        let known: BTreeMap<_, _> = read
            .into_iter()
            .flatten()
            .filter(is_plugged)
            .take(SANDBOXES_MAX)
            .map(|sandbox| (sandbox.attachment.clone(), sandbox))
            .collect();
        let this = Self { file, known: Mutex::new(known), changes, ports };
        this.tell(&this.lock());
        this.lock().values().for_each(|sandbox| this.send(claim(sandbox)));
        this
    }

    /// A sandbox begins.
    pub fn add(&self, sandbox: &Sandbox) -> Result<(), SandboxError> {
        if !(1..=ADDRESSES_MAX).contains(&sandbox.addresses.len()) {
            return Err(SandboxError::Addresses(sandbox.addresses.len()));
        }
        let mut known = self.lock();
        if known.len() >= SANDBOXES_MAX && !known.contains_key(&sandbox.attachment) {
            return Err(SandboxError::TooMany);
        }
        known.insert(sandbox.attachment.clone(), sandbox.clone());
        // An address has one sandbox: whose end was missed has it no more.
        let ended = |(key, other): &(&Attachment, &Sandbox)| {
            **key != sandbox.attachment && other.addresses.iter().any(|address| sandbox.addresses.contains(address))
        };
        let ended: Vec<Attachment> = known.iter().filter(ended).map(|(key, _)| key.clone()).collect();
        ended.iter().for_each(|attachment| self.forget(&mut known, attachment));
        self.remember(&known)?;
        // Before the claim: when the pod's policy is in force, so is what it may send.
        self.tell(&known);
        self.send(claim(sandbox));
        Ok(())
    }

    /// A sandbox ends.
    pub fn delete(&self, attachment: &Attachment) -> Result<(), SandboxError> {
        let mut known = self.lock();
        if known.contains_key(attachment) {
            self.forget(&mut known, attachment);
            self.tell(&known);
            self.remember(&known)?;
        }
        Ok(())
    }

    /// These sandboxes are all there are.
    pub fn keep(&self, attachments: &[Attachment]) -> Result<(), SandboxError> {
        let live: BTreeSet<&Attachment> = attachments.iter().collect();
        let mut known = self.lock();
        let gone: Vec<Attachment> = known.keys().filter(|key| !live.contains(key)).cloned().collect();
        gone.iter().for_each(|attachment| self.forget(&mut known, attachment));
        if gone.is_empty() {
            return Ok(());
        }
        self.tell(&known);
        self.remember(&known)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    fn forget(&self, known: &mut BTreeMap<Attachment, Sandbox>, attachment: &Attachment) {
        known.remove(attachment);
        self.send(Change::Release(name(attachment)));
    }

    fn tell(&self, known: &BTreeMap<Attachment, Sandbox>) {
        (self.ports)(known.values().filter_map(told).collect());
    }

    fn remember(&self, known: &BTreeMap<Attachment, Sandbox>) -> Result<(), SandboxError> {
        let all: Vec<&Sandbox> = known.values().collect();
        let temporary = self.file.with_extension("new");
        fs::write(&temporary, serde_json::to_vec(&all).map_err(io::Error::from)?)?;
        Ok(fs::rename(&temporary, &self.file)?)
    }

    /// A controller that has ended takes nothing, and the daemon with it.
    fn send(&self, change: Change) {
        let _ = self.changes.send(change);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Attachment, Sandbox>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes what a daemon left in the socket's directory.
pub fn remove_leftovers(directory: &std::path::Path) {
    let _ = fs::remove_file(directory.join(FILE));
    let _ = fs::remove_file(directory.join(flatfell_cni::message::SOCKET));
    let _ = fs::remove_dir(directory);
}

/// Whether the node's side of its link is there; where none was named, it is not known.
fn is_plugged(sandbox: &Sandbox) -> bool {
    sandbox.host_interface.as_deref().is_none_or(|interface| if_nametoindex(interface).is_ok())
}

/// Who is behind the node's side of its link, where that was named.
fn told(sandbox: &Sandbox) -> Option<ToldPort> {
    Some(ToldPort {
        port: sandbox.host_interface.clone()?,
        pod: ObjectName::new(sandbox.namespace.clone(), sandbox.name.clone()),
        mac: sandbox.mac.as_deref().and_then(mac),
        addresses: sandbox.addresses.iter().copied().collect(),
    })
}

/// A link-layer address as CNI results have it; what is none, the kernel is asked for.
fn mac(text: &str) -> Option<Mac> {
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>().ok()?;
    bytes.try_into().ok()
}

fn name(attachment: &Attachment) -> String {
    format!("{}/{}", attachment.container, attachment.interface)
}

fn claim(sandbox: &Sandbox) -> Change {
    Change::Claim(Claim {
        sandbox: name(&sandbox.attachment),
        pod: ObjectName::new(sandbox.namespace.clone(), sandbox.name.clone()),
        uid: sandbox.uid.clone(),
        addresses: sandbox.addresses.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(container: &str, address: &str) -> Sandbox {
        Sandbox {
            attachment: Attachment { container: container.to_owned(), interface: "eth0".to_owned() },
            netns: "/run/netns/x".to_owned(),
            namespace: "x".to_owned(),
            name: "a".to_owned(),
            uid: "u".to_owned(),
            addresses: vec![address.parse().expect("an address")],
            mac: None,
            host_interface: None,
        }
    }

    fn nobody() -> PortsSink {
        Box::new(|_| {})
    }

    fn released(changes: &mut mpsc::UnboundedReceiver<Change>) -> Vec<String> {
        let all = std::iter::from_fn(|| changes.try_recv().ok());
        all.filter_map(|change| if let Change::Release(name) = change { Some(name) } else { None }).collect()
    }

    #[test]
    fn a_restart_claims_again_what_is_plugged_in() {
        let dir = tempfile::tempdir().expect("a directory");
        let (sender, mut changes) = mpsc::unbounded_channel();
        let sandboxes = Sandboxes::open(dir.path(), sender.clone(), nobody());
        let gone = Sandbox { host_interface: Some("no-such-link".to_owned()), ..sandbox("gone", "10.0.0.9") };
        for one in [&sandbox("s", "10.0.0.1"), &gone] {
            sandboxes.add(one).expect("taken in");
        }
        while changes.try_recv().is_ok() {}
        let again = Sandboxes::open(dir.path(), sender, nobody());
        assert_eq!(again.count(), 1);
        assert_eq!(changes.try_recv().ok(), Some(claim(&sandbox("s", "10.0.0.1"))));
        fs::write(dir.path().join(FILE), "half").expect("written");
        assert_eq!(Sandboxes::open(dir.path(), again.changes.clone(), nobody()).count(), 0);
    }

    #[test]
    fn ends_are_idempotent_and_a_missed_one_is_made_up_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let (sender, mut changes) = mpsc::unbounded_channel();
        let sandboxes = Sandboxes::open(dir.path(), sender, nobody());
        sandboxes.add(&sandbox("s", "10.0.0.1")).expect("taken in");
        sandboxes.add(&sandbox("t", "10.0.0.1")).expect("taken in");
        assert_eq!(released(&mut changes), ["s/eth0"], "its address is another's");
        let t = sandbox("t", "10.0.0.1").attachment;
        sandboxes.keep(std::slice::from_ref(&t)).expect("kept");
        assert!(released(&mut changes).is_empty());
        for _ in 0..2 {
            sandboxes.delete(&t).expect("deleted");
            sandboxes.keep(&[]).expect("kept");
        }
        assert_eq!(released(&mut changes), ["t/eth0"]);
        let none = Sandbox { addresses: Vec::new(), ..sandbox("s", "10.0.0.1") };
        assert!(matches!(sandboxes.add(&none), Err(SandboxError::Addresses(0))));
    }
}
