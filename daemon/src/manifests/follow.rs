//! A directory of manifests as a source.
//!
//! In: a [`Directory`] and its [`Watch`]. Out: changes for the index, and a [`SourceState`]. What always holds: the first
//! take reads everything; later ones read what the watch has named.

use std::mem;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use flatfell_rules::index::Change;
use flatfell_rules::object::ObjectName;

use super::{Directory, Key, Kind, Object, Problem, Scope, Update, Watch, WatchError};
use crate::batch::Batch;
use crate::controller::Source;
use crate::state::{Complaint, SourceState, log_complaints};

/// A directory that is followed.
#[derive(Debug)]
pub struct Manifests {
    directory: Directory,
    watch: Watch,
    /// What has to be looked at.
    scope: Option<Scope>,
    is_read: bool,
    /// When the oldest change that was not taken was seen.
    seen: Option<Instant>,
    /// The same of what was taken last.
    taken: Option<Instant>,
}

impl Manifests {
    /// Begins to follow a directory.
    pub fn follow(root: &Path) -> Result<Self, WatchError> {
        let watch = Watch::new(root)?;
        Ok(Self {
            directory: Directory::new(root),
            watch,
            scope: Some(Scope::everything()),
            is_read: false,
            seen: Some(Instant::now()),
            taken: None,
        })
    }
}

impl Source for Manifests {
    async fn changed(&mut self) {
        if self.scope.is_none() {
            self.scope = Some(self.watch.changed().await);
            self.seen = self.watch.noted();
        }
    }

    fn take(&mut self) -> Vec<Change> {
        self.taken = self.seen.take();
        let scope = self.scope.take().unwrap_or_else(Scope::everything);
        let refresh = self.directory.refresh(&scope);
        log_complaints(&complaints(&refresh.appeared), &complaints(&refresh.solved));
        if !mem::replace(&mut self.is_read, true) {
            let (files, objects) = (self.directory.file_count(), self.directory.objects().count());
            tracing::info!(files, objects, "the manifests are read");
        }
        refresh.updates.into_iter().map(change).collect()
    }

    fn arrived(&mut self) -> Batch {
        Batch { oldest: self.taken.take(), ..Batch::default() }
    }

    fn state(&self) -> SourceState {
        let directory = &self.directory;
        let mut refused: Vec<ObjectName> = directory
            .objects()
            .filter_map(|object| match object.as_ref() {
                Object::Policy(policy) => policy.refusal.as_ref().map(|_| policy.name.clone()),
                Object::Pod(_) | Object::Namespace(_) => None,
            })
            .collect();
        refused.sort();
        SourceState {
            origin: directory.root().display().to_string(),
            read: self.is_read,
            files: directory.file_count(),
            objects: directory.objects().count(),
            problems: complaints(directory.problems()),
            unknown: directory.unknown(),
            refused,
            ..SourceState::default()
        }
    }
}

fn complaints<'a>(problems: impl IntoIterator<Item = &'a Problem>) -> Vec<Complaint> {
    problems.into_iter().map(|problem| Complaint { severity: problem.severity, text: problem.to_string() }).collect()
}

/// The index's word for what changed in the directory.
pub fn change(update: Update) -> Change {
    match update {
        Update::Put(object) => match Arc::unwrap_or_clone(object) {
            Object::Namespace(namespace) => Change::UpsertNamespace(namespace),
            Object::Pod(pod) => Change::UpsertPod(pod),
            Object::Policy(policy) => Change::UpsertPolicy(policy),
        },
        Update::Remove(Key { kind, namespace, name }) => match kind {
            Kind::Namespace => Change::DeleteNamespace(name),
            Kind::Pod => Change::DeletePod(ObjectName::new(namespace, name)),
            Kind::NetworkPolicy => Change::DeletePolicy(ObjectName::new(namespace, name)),
        },
    }
}
