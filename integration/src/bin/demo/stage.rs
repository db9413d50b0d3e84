//! The stage: a lab, a directory of manifests that both nodes' daemons follow.
//!
//! In: files. Out: the directory and what becomes of it. What always holds: the directory goes with its owner.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use flatfell_integration::{Lab, LabConfig};

use super::daemon::Daemon;
use super::{interrupt, shop};

/// The lab of the shop: two nodes of two pods, Flannel's NAT, a Service.
pub fn lab() -> anyhow::Result<Lab> {
    let config = LabConfig { nodes: 2, pods: 2, grace: Duration::from_millis(150), ..LabConfig::default() };
    let lab = Lab::new(config).context("the lab cannot be built")?;
    lab.set_services(&[shop::service()])?;
    Ok(lab)
}

/// A directory for manifests and one for logs, both new.
pub struct Files {
    root: PathBuf,
}

impl Files {
    /// Makes them.
    pub fn new() -> anyhow::Result<Self> {
        let root = std::env::temp_dir().join(format!("flatfell-demo-{}", std::process::id()));
        std::fs::create_dir(&root).with_context(|| format!("{} cannot be made", root.display()))?;
        let files = Self { root };
        std::fs::create_dir(files.manifests())?;
        Ok(files)
    }

    /// The directory that the daemons follow.
    pub fn manifests(&self) -> PathBuf {
        self.root.join("manifests")
    }

    /// The log of a node's daemon.
    pub fn log(&self, node: u8) -> PathBuf {
        self.root.join(format!("node{node}.log"))
    }

    /// Writes a manifest, as an editor does: beside it, then renamed.
    pub fn write(&self, name: &str, text: &str) -> anyhow::Result<Instant> {
        let beside = self.root.join(name);
        std::fs::write(&beside, text)?;
        std::fs::rename(beside, self.manifests().join(name))?;
        Ok(Instant::now())
    }

    /// Writes all policies.
    pub fn write_policies(&self) -> anyhow::Result<Instant> {
        shop::POLICIES.iter().try_fold(Instant::now(), |_, (name, text)| self.write(name, text))
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.root).ok();
    }
}

/// Flatfell on both nodes, ready.
pub fn daemons<'a>(lab: &'a Lab, files: &Files) -> anyhow::Result<[Daemon<'a>; 2]> {
    let start = |node| Daemon::start(lab, node, Path::new(&files.manifests()), &files.log(node));
    let daemons = [start(1)?, start(2)?];
    for (number, daemon) in (1..).zip(&daemons) {
        daemon.wait_until_ready().with_context(|| log_of(files, number))?;
    }
    Ok(daemons)
}

fn log_of(files: &Files, node: u8) -> String {
    let log = std::fs::read_to_string(files.log(node)).unwrap_or_default();
    format!("flatfell on node {node}; its log:\n{log}")
}

/// Waits, but not through a Ctrl-C.
pub fn pause(time: Duration) -> anyhow::Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        interrupt::check()?;
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
