//! What the parts of the daemon show each other.
//!
//! In: what the [`crate::controller`] publishes about the source, and the engine's own snapshots. Out: a [`State`] that
//! HTTP and metrics read at the moment they are asked. What always holds: readers change nothing.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use flatfell_rules::effective::RuleIdentity;
use flatfell_rules::index::PolicyCounts;
use flatfell_rules::object::ObjectName;
use tokio::sync::watch;

use crate::cluster::{OwnNode, WatchState};
use crate::controller::HOLD;
use crate::engine::{CounterSnapshot, Engine, EngineError, EngineStatus};
use crate::flows::Flows;
use crate::manifests::Severity;
use crate::metrics::Metrics;
use crate::pause::Paused;
use crate::totals::Total;

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

/// One thing that is wrong with what a source says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// How bad.
    pub severity: Severity,
    /// Place, object, field and what is wrong, on one line.
    pub text: String,
}

/// What is known of the source of objects: a directory, or the API server.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SourceState {
    /// The directory, or the server's address.
    pub origin: String,
    /// Whether everything was read once.
    pub read: bool,
    /// Manifest files; none with an API server.
    pub files: usize,
    /// Objects that policy uses.
    pub objects: usize,
    /// Everything that is wrong.
    pub problems: Vec<Complaint>,
    /// What could never be read.
    pub unknown: Vec<String>,
    /// Policies that were refused, each once.
    pub refused: Vec<ObjectName>,
    /// How many policies there are.
    pub policies: PolicyCounts,
    /// Addresses that several live pods name: each with the pod that has it and another one.
    pub contested: Vec<(IpAddr, ObjectName, ObjectName)>,
    /// Whether the rules of an earlier run stay in force until what is unknown can be read.
    pub held: bool,
    /// How the watches of an API server stand; none with a directory.
    pub watches: Vec<WatchState>,
    /// The name of the own node, where the API server has no such node.
    pub missing_node: Option<String>,
    /// The own node, where the API server has it.
    pub own_node: Option<OwnNode>,
    /// When the oldest pod of this node was created, as of the first complete list of an API server.
    pub first_pod: Option<String>,
}

impl SourceState {
    /// The same, and whether an earlier run's rules are held for it.
    pub fn held(self, held: bool) -> Self {
        Self { held, ..self }
    }

    /// What an operator should read of addresses that are no single pod's.
    pub fn contested(&self) -> Option<String> {
        let (address, has, other) = self.contested.first()?;
        let more = match self.contested.len() - 1 {
            0 => String::new(),
            more => format!(", and so it is with {more} more"),
        };
        Some(format!(
            "two live pods name the address {address}, {has} and {other}: the policies of {has} hold for it, the newer one{more}"
        ))
    }

    /// Why what is known may not be what the source says.
    fn not_ready(&self) -> Vec<String> {
        let now = Instant::now();
        let mut reasons: Vec<String> = self.watches.iter().filter_map(|watch| watch.reason(now)).collect();
        if !self.read && self.watches.is_empty() {
            reasons.push("the manifests are not read yet".to_owned());
        }
        if let Some(node) = &self.missing_node {
            reasons.push(format!(
                "the API server has no node {node}, so no pod is taken for one of this node: is --node (FLATFELL_NODE) the \
                 name that `kubectl get nodes` shows?"
            ));
        }
        reasons.extend(self.unknown.iter().map(|what| format!("{what}: correct it")));
        if self.held {
            let seconds = HOLD.as_secs();
            reasons.push(format!(
                "the rules of an earlier run stay in force until these can be read, or {seconds} s have passed"
            ));
        }
        reasons
    }
}

/// Complaints that are logged one by one at a time; the rest is counted.
const LOGGED_MAX: usize = 50;

/// Each complaint is logged when it appears and when it is gone, not while it stands.
pub fn log_complaints(appeared: &[Complaint], solved: &[Complaint]) {
    let is_note = |complaint: &&Complaint| complaint.severity == Severity::Note;
    let mut logged = 0;
    for complaint in appeared.iter().filter(|complaint| !is_note(complaint)).take(LOGGED_MAX) {
        match complaint.severity {
            Severity::Error => tracing::error!("{}", complaint.text),
            Severity::Warning | Severity::Note => tracing::warn!("{}", complaint.text),
        }
        logged += 1;
    }
    let passed_over = appeared.iter().filter(is_note).count();
    if passed_over > 0 {
        tracing::info!(objects = passed_over, "objects passed over that policy has no use for");
    }
    let left = appeared.len().saturating_sub(passed_over).saturating_sub(logged);
    if left > 0 {
        tracing::error!(problems = left, "more problems; `flatfell status` lists them");
    }
    for complaint in solved.iter().filter(|complaint| !is_note(complaint)).take(LOGGED_MAX) {
        tracing::info!("solved: {}", complaint.text);
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
    /// What is kept between scrapes.
    pub metrics: Arc<Metrics>,
    /// How long pods of this node may have run before policy was first in force; known from then on, with an API server.
    pub unprotected: Arc<OnceLock<Duration>>,
    /// What was denied.
    pub flows: Arc<Flows>,
    /// What the CNI plugin did.
    pub cni: Arc<crate::cni::Counts>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("node", &self.node).finish_non_exhaustive()
    }
}

impl State {
    /// What the counters say. Asks the kernel: may block for a moment.
    pub fn totals(&self) -> Result<Vec<Total>, EngineError> {
        let snapshot = self.engine.counters()?;
        Ok(snapshot.iter().map(|(_, meaning, value)| Total { meaning: meaning.clone(), value }).collect())
    }

    /// What an operator should read though it does not make the daemon unready: a pause, what may bypass policy.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = self.paused.borrow().notes();
        notes.extend(self.engine.status().warnings.iter().cloned());
        notes.extend(self.flows.fault());
        notes.extend(self.source.borrow().contested());
        notes
    }

    /// Why the daemon is not ready; empty when it is.
    pub fn not_ready(&self) -> Vec<String> {
        let source = self.source.borrow().clone();
        let mut reasons = source.not_ready();
        let status = self.engine.status();
        reasons.extend(status.not_ready.iter().cloned());
        if source.read && !status.synced {
            reasons.push("the kernel does not have the newest policy yet: it is on its way".to_owned());
        }
        reasons
    }
}

/// The short name of a rule in metrics and tables, the same for as long as the rule says the same.
pub fn rule_id(identity: &RuleIdentity) -> String {
    identity.label()
}
