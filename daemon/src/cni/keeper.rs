//! Keeps the plugin in its chain: whoever else writes the conflist (Flannel copies its own over it at every start) leaves us out.
//!
//! In: a conflist and changes of its directory. Out: the entry in it, and its binary before it. What always holds: it is looked at within
//! [`LOOK_EVERY`], also where inotify says nothing; what is half written is left alone until it is whole.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::block_in_place;
use tokio::time::sleep;

use super::install::{self, InstallError};
use super::{Counts, conflist};
use crate::config::CniRunArgs;

/// How often the conflist is looked at in any case.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How soon again while somebody writes it.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// What is kept where.
#[derive(Debug)]
pub struct Keeper {
    conflist: PathBuf,
    bin_dir: PathBuf,
    plugin: PathBuf,
    entry: Value,
    counts: Arc<Counts>,
    /// What is wrong, as it was told last.
    told: Option<String>,
}

impl Keeper {
    /// A keeper by these settings; none where nothing is to be kept.
    pub fn new(args: &CniRunArgs, counts: Arc<Counts>) -> Result<Option<Self>, InstallError> {
        let Some(conflist) = args.places.cni_conflist.clone() else { return Ok(None) };
        let plugin = install::shipped()?;
        let (bin_dir, entry) = (args.places.cni_bin_dir.clone(), conflist::entry(args));
        Ok(Some(Self { conflist, bin_dir, plugin, entry, counts, told: None }))
    }

    /// Looks, whenever there may be something, until the caller drops this.
    pub async fn keep(mut self) {
        let changed = Arc::new(Notify::new());
        let mut watcher = None;
        loop {
            if watcher.is_none() {
                watcher = watch(&self.conflist, &changed);
            }
            let pause = match block_in_place(|| self.look()) {
                Ok(()) => {
                    self.tell(None);
                    LOOK_EVERY
                }
                // A writer that truncates and writes is seen in between.
                Err(InstallError::Busy(_) | InstallError::Conflist { .. }) if self.told.is_none() => {
                    self.told = Some(String::new());
                    LOOK_AGAIN
                }
                Err(error) => {
                    self.tell(Some(error.to_string()));
                    LOOK_EVERY
                }
            };
            tokio::select! {
                () = changed.notified() => {}
                () = sleep(pause) => {}
            }
        }
    }

    fn look(&self) -> Result<(), InstallError> {
        if !self.conflist.exists() {
            return Ok(());
        }
        if install::binary(&self.plugin, &self.bin_dir)? {
            tracing::info!(directory = %self.bin_dir.display(), "the CNI plugin is installed");
        }
        if install::insert(&self.conflist, &self.entry)? {
            self.counts.inserted();
            tracing::info!(conflist = %self.conflist.display(), "the CNI plugin is put into its chain");
        }
        Ok(())
    }

    /// Says what is wrong once.
    fn tell(&mut self, wrong: Option<String>) {
        if let Some(wrong) = wrong.as_ref().filter(|_| self.told != wrong) {
            tracing::error!(
                "the CNI plugin is not in its chain, new pods are closed until the API shows them: {wrong}"
            );
        }
        self.told = wrong;
    }
}

fn watch(conflist: &Path, changed: &Arc<Notify>) -> Option<RecommendedWatcher> {
    let bell = Arc::clone(changed);
    let mut watcher = notify::recommended_watcher(move |_| bell.notify_one()).ok()?;
    let directory = conflist.parent()?;
    watcher.watch(directory, RecursiveMode::NonRecursive).ok().map(|()| watcher)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Instant;

    use serde_json::json;

    use super::*;

    const THEIRS: &str = "{\"plugins\": [{\"type\": \"flannel\"}, {\"type\": \"portmap\"}]}\n";

    /// Flannel's init container copies its own over it, as `cp -f` does or by renaming; each time we are back at once.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn whoever_writes_the_conflist_it_is_put_right_within_a_second() {
        let dir = tempfile::tempdir().expect("a directory");
        let (conflist, plugin) = (dir.path().join("10-flannel.conflist"), dir.path().join("shipped"));
        fs::write(&plugin, "a program").expect("written");
        let counts = Arc::new(Counts::default());
        let keeper = Keeper {
            conflist: conflist.clone(),
            bin_dir: dir.path().to_owned(),
            plugin,
            entry: json!({"type": conflist::TYPE}),
            counts: Arc::clone(&counts),
            told: None,
        };
        let kept = tokio::spawn(keeper.keep());
        for turn in 1..=6 {
            let other = dir.path().join("theirs");
            match turn % 3 {
                0 => fs::write(&other, THEIRS).and_then(|()| fs::rename(&other, &conflist)).expect("renamed"),
                1 => fs::write(&conflist, THEIRS).expect("written"),
                _ => {
                    fs::write(&conflist, &THEIRS[..20]).expect("half of it");
                    sleep(Duration::from_millis(100)).await;
                    fs::write(&conflist, THEIRS).expect("all of it");
                }
            }
            let begun = Instant::now();
            while !conflist::has_entry(&fs::read_to_string(&conflist).expect("it is there")) {
                assert!(begun.elapsed() < Duration::from_secs(1), "turn {turn}");
                sleep(Duration::from_millis(2)).await;
            }
        }
        assert!(dir.path().join(conflist::TYPE).is_file(), "its binary is there");
        let end = Instant::now();
        while counts.read().insertions < 6 && end.elapsed() < Duration::from_secs(1) {
            sleep(Duration::from_millis(2)).await;
        }
        assert_eq!(counts.read().insertions, 6);
        kept.abort();
    }
}
