//! When to look at a directory again.
//!
//! In: inotify's events below a root. Out: [`Scope`]s, a few milliseconds behind the last event of a burst. What always
//! holds: a file that a writer has open is not looked at before it is closed (or was left alone for a while); the whole
//! directory is looked at every few seconds, for what inotify does not show (targets of links, a root that was replaced).

use std::collections::HashMap;
use std::fs;
use std::mem;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::scan::{self, Scope};

/// A burst of events is over after this much quiet.
const QUIET: Duration = Duration::from_millis(4);

/// A burst is cut after this long.
const BURST_MAX: Duration = Duration::from_millis(30);

/// A file that is open for writing is taken as it is when nothing was written for this long.
const BUSY_MAX: Duration = Duration::from_secs(1);

/// How often everything is looked at.
const SWEEP: Duration = Duration::from_secs(5);

/// Why a directory cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// inotify refused.
    #[error("{root} cannot be watched", root = root.display())]
    Watch {
        /// The directory.
        root: PathBuf,
        /// Why.
        source: notify::Error,
    },
}

/// A watched directory.
#[derive(Debug)]
pub struct Watch {
    root: PathBuf,
    watcher: RecommendedWatcher,
    events: mpsc::UnboundedReceiver<notify::Result<notify::Event>>,
    /// Device and inode of the root as it is watched.
    watched: Option<(u64, u64)>,
    /// Files with a writer, and when it last wrote.
    busy: HashMap<PathBuf, Instant>,
    next_sweep: Instant,
    /// What was noted and not handed out yet.
    pending: Scope,
    /// When the first of what was handed out last was noted.
    noted: Option<Instant>,
}

impl Watch {
    /// Watches `root` and all below it.
    pub fn new(root: &Path) -> Result<Self, WatchError> {
        let failed = |source| WatchError::Watch { root: root.to_path_buf(), source };
        let (sender, events) = mpsc::unbounded_channel();
        // A receiver that is gone is a daemon that stops.
        let handler = move |event| drop(sender.send(event));
        let mut watcher = notify::recommended_watcher(handler).map_err(failed)?;
        watcher.watch(root, RecursiveMode::Recursive).map_err(failed)?;
        Ok(Self {
            root: root.to_path_buf(),
            watcher,
            events,
            watched: identity(root),
            busy: HashMap::new(),
            next_sweep: Instant::now() + SWEEP,
            pending: Scope::default(),
            noted: None,
        })
    }

    /// Waits until something has to be looked at. Safe to be dropped and called again: what was seen is kept.
    pub async fn changed(&mut self) -> Scope {
        while !self.pending.all && self.pending.files.is_empty() {
            tokio::select! {
                event = self.events.recv() => match event {
                    Some(event) => self.note(event),
                    // Without a watcher the sweep is all that is left.
                    None => sleep_until(self.next_sweep).await,
                },
                () = sleep_until(self.next_sweep) => self.sweep(),
            }
        }
        self.noted = Some(Instant::now());
        self.rest_of_burst().await;
        let mut scope = mem::take(&mut self.pending);
        scope.busy = self.busy.keys().cloned().collect();
        scope
    }

    /// When the first of what was handed out last was noted.
    pub fn noted(&self) -> Option<std::time::Instant> {
        self.noted.map(Instant::into_std)
    }

    async fn rest_of_burst(&mut self) {
        let end = Instant::now() + BURST_MAX;
        while let Ok(Some(event)) = timeout_at(end.min(Instant::now() + QUIET), self.events.recv()).await {
            self.note(event);
        }
    }

    fn sweep(&mut self) {
        self.next_sweep = Instant::now() + SWEEP;
        self.pending.all = true;
        self.busy.retain(|_, wrote| wrote.elapsed() < BUSY_MAX);
        if identity(&self.root) != self.watched {
            // The old root may be gone already, and with it its watch.
            drop(self.watcher.unwatch(&self.root));
            self.watched = match self.watcher.watch(&self.root, RecursiveMode::Recursive) {
                Ok(()) => identity(&self.root),
                Err(error) => {
                    tracing::warn!(%error, "the directory cannot be watched; it is looked at every few seconds");
                    None
                }
            };
        }
    }

    fn note(&mut self, event: notify::Result<notify::Event>) {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                tracing::warn!(%error, "inotify failed; looking at the whole directory");
                self.pending.all = true;
                return;
            }
        };
        if event.need_rescan() {
            self.pending.all = true;
        }
        for path in event.paths {
            self.note_path(event.kind, path);
        }
    }

    fn note_path(&mut self, kind: EventKind, path: PathBuf) {
        let is_file = scan::is_manifest(&path) && !self.is_below_hidden(&path);
        match kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => {
                self.busy.remove(&path);
            }
            // Reading, this daemon's too, changes nothing.
            EventKind::Access(_) => return,
            EventKind::Modify(ModifyKind::Data(_)) if is_file => {
                self.busy.insert(path, Instant::now());
                return;
            }
            EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)) => {
                self.busy.remove(&path);
            }
            _ => {}
        }
        if is_file {
            self.pending.files.insert(path);
        } else {
            self.pending.all = true;
        }
    }

    /// Whether a path leads through a hidden directory: seen only through links, if at all.
    fn is_below_hidden(&self, path: &Path) -> bool {
        path.strip_prefix(&self.root).is_ok_and(|below| below.ancestors().any(scan::is_hidden))
    }
}

/// What tells a directory from its successor under the same name.
fn identity(root: &Path) -> Option<(u64, u64)> {
    fs::metadata(root).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};
    use std::io::Write;

    use tokio::time::timeout;

    use super::*;

    /// Long before the sweep, and long enough for a busy machine.
    const SOON: Duration = Duration::from_secs(2);

    /// Long behind the end of a burst.
    const QUIET_LONG: Duration = Duration::from_millis(100);

    async fn next(watch: &mut Watch) -> Scope {
        timeout(SOON, watch.changed()).await.expect("seen by inotify")
    }

    async fn nothing(watch: &mut Watch) {
        assert!(timeout(QUIET_LONG, watch.changed()).await.is_err(), "nothing to look at");
    }

    #[tokio::test]
    async fn a_file_is_looked_at_when_its_writer_closes_it() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("a.yaml");
        let mut watch = Watch::new(dir.path()).expect("watch");
        fs::write(&path, "x").expect("file");
        assert!(next(&mut watch).await.files.contains(&path));
        let mut file = OpenOptions::new().append(true).open(&path).expect("open");
        file.write_all(b"half").expect("half");
        nothing(&mut watch).await;
        fs::write(dir.path().join("b.yaml"), "x").expect("file");
        assert!(next(&mut watch).await.busy.contains(&path), "still open");
        drop(file);
        let scope = next(&mut watch).await;
        assert!(scope.files.contains(&path) && scope.busy.is_empty(), "{scope:?}");
    }

    #[tokio::test]
    async fn what_was_seen_is_kept_when_the_wait_is_given_up() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("a.yaml");
        let mut watch = Watch::new(dir.path()).expect("watch");
        let event = notify::Event::new(EventKind::Create(notify::event::CreateKind::File)).add_path(path.clone());
        watch.note(Ok(event));
        let scope = match timeout(Duration::ZERO, watch.changed()).await {
            // A machine so busy that the burst was over at once.
            Ok(scope) => scope,
            Err(_) => next(&mut watch).await,
        };
        assert!(scope.files.contains(&path), "{scope:?}");
    }

    #[tokio::test]
    async fn reading_is_no_change() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("a.yaml");
        fs::write(&path, "x").expect("file");
        let mut watch = Watch::new(dir.path()).expect("watch");
        drop(File::open(&path).expect("open"));
        nothing(&mut watch).await;
    }

    #[tokio::test]
    async fn renames_deletions_and_links_are_seen() {
        let dir = tempfile::tempdir().expect("directory");
        let mut watch = Watch::new(dir.path()).expect("watch");
        fs::write(dir.path().join("a.tmp"), "x").expect("file");
        next(&mut watch).await;
        fs::rename(dir.path().join("a.tmp"), dir.path().join("a.yaml")).expect("renamed");
        let scope = next(&mut watch).await;
        assert!(scope.all || scope.files.contains(&dir.path().join("a.yaml")), "{scope:?}");
        fs::remove_file(dir.path().join("a.yaml")).expect("removed");
        assert!(next(&mut watch).await.files.contains(&dir.path().join("a.yaml")));
        std::os::unix::fs::symlink("..1", dir.path().join("..data")).expect("link");
        assert!(next(&mut watch).await.all);
    }

    #[tokio::test]
    async fn new_subdirectories_are_watched() {
        let dir = tempfile::tempdir().expect("directory");
        let mut watch = Watch::new(dir.path()).expect("watch");
        fs::create_dir(dir.path().join("sub")).expect("subdirectory");
        assert!(next(&mut watch).await.all);
        let path = dir.path().join("sub/a.yaml");
        fs::write(&path, "x").expect("file");
        assert!(next(&mut watch).await.files.contains(&path));
    }

    #[tokio::test]
    async fn a_root_that_is_replaced_is_watched_again() {
        let dir = tempfile::tempdir().expect("directory");
        let root = dir.path().join("root");
        fs::create_dir(&root).expect("root");
        let mut watch = Watch::new(&root).expect("watch");
        fs::rename(&root, dir.path().join("old")).expect("moved");
        fs::create_dir(&root).expect("new root");
        watch.sweep();
        assert!(next(&mut watch).await.all);
        while timeout(QUIET_LONG, watch.changed()).await.is_ok() {}
        fs::write(root.join("a.yaml"), "x").expect("file");
        assert!(next(&mut watch).await.files.contains(&root.join("a.yaml")));
    }
}
