//! What the parts of the daemon show each other.
//!
//! In: what the [`crate::controller`] publishes about the source, and the engine's own snapshots. Out: a [`State`] that
//! HTTP and metrics read at the moment they are asked. What always holds: readers change nothing.

use std::path::PathBuf;
use std::sync::Arc;

use flatfell_rules::effective::RuleIdentity;
use flatfell_rules::names;
use flatfell_rules::object::ObjectName;
use tokio::sync::watch;

use crate::controller::HOLD;
use crate::engine::{CounterSnapshot, Engine, EngineError, EngineStatus};
use crate::manifests::{Directory, Object, Problem};
use crate::pause::Paused;
use crate::totals::{Total, Totals};

/// What is read of the engine; tests stand in for it.
pub trait EngineView: Send + Sync + 'static {
    /// A snapshot, cheap.
    fn status(&self) -> Arc<EngineStatus>;
    /// The kernel's counters; may take a moment.
    fn counters(&self) -> Result<CounterSnapshot, EngineError>;
}

impl EngineView for Engine {
    fn status(&self) -> Arc<EngineStatus> {
        Engine::status(self)
    }

    fn counters(&self) -> Result<CounterSnapshot, EngineError> {
        Engine::counters(self)
    }
}

/// What is known of the directory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SourceState {
    /// Where it is.
    pub root: PathBuf,
    /// Whether it was read once.
    pub read: bool,
    /// Manifest files in it.
    pub files: usize,
    /// Objects in them that policy uses.
    pub objects: usize,
    /// Everything that is wrong.
    pub problems: Vec<Problem>,
    /// What could never be read.
    pub unknown: Vec<String>,
    /// Policies that were refused, each once.
    pub refused: Vec<ObjectName>,
    /// Whether the rules of an earlier run stay in force until what is unknown can be read.
    pub held: bool,
}

impl SourceState {
    /// What a directory shows.
    pub fn of(directory: &Directory) -> Self {
        let mut refused: Vec<ObjectName> = directory
            .objects()
            .filter_map(|object| match object.as_ref() {
                Object::Policy(policy) => policy.refusal.as_ref().map(|_| policy.name.clone()),
                Object::Pod(_) | Object::Namespace(_) => None,
            })
            .collect();
        refused.sort();
        Self {
            root: directory.root().to_path_buf(),
            read: true,
            files: directory.file_count(),
            objects: directory.objects().count(),
            problems: directory.problems().iter().cloned().collect(),
            unknown: directory.unknown(),
            refused,
            held: false,
        }
    }

    /// The same, and whether an earlier run's rules are held for it.
    pub fn held(self, held: bool) -> Self {
        Self { held, ..self }
    }
}

/// Everything that can be asked for.
#[derive(Clone)]
pub struct State {
    /// This node's name.
    pub node: Arc<str>,
    /// What the controller published last.
    pub source: watch::Receiver<Arc<SourceState>>,
    /// Whether policy is paused.
    pub paused: watch::Receiver<Paused>,
    /// The engine.
    pub engine: Arc<dyn EngineView>,
    /// What its counters add up to.
    pub totals: Arc<Totals>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("node", &self.node).finish_non_exhaustive()
    }
}

impl State {
    /// What the counters say. Asks the kernel: may block for a moment.
    pub fn totals(&self) -> Result<Vec<Total>, EngineError> {
        self.engine.counters().map(|snapshot| self.totals.update(&snapshot))
    }

    /// What an operator should read though it does not make the daemon unready: a pause, what may bypass policy.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = self.paused.borrow().notes();
        notes.extend(self.engine.status().warnings.iter().cloned());
        notes
    }

    /// Why the daemon is not ready; empty when it is.
    pub fn not_ready(&self) -> Vec<String> {
        let source = self.source.borrow().clone();
        let mut reasons = Vec::new();
        if !source.read {
            reasons.push("the manifests are not read yet".to_owned());
        }
        reasons.extend(source.unknown.iter().map(|what| format!("{what}: correct it")));
        if source.held {
            let seconds = HOLD.as_secs();
            reasons.push(format!(
                "the rules of an earlier run stay in force until these files can be read, or {seconds} s have passed"
            ));
        }
        let status = self.engine.status();
        reasons.extend(status.not_ready.iter().cloned());
        if source.read && !status.synced {
            reasons.push("the kernel does not have the newest policy yet: it is on its way".to_owned());
        }
        reasons
    }
}

/// The short name of a rule in metrics and tables: the first digits of its counter's name in nft, the same for as long as
/// the rule says the same.
pub fn rule_id(identity: &RuleIdentity) -> String {
    names::hash(&identity.text()).chars().take(8).collect()
}
