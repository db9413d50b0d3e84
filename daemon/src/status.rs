//! What the daemon says about itself, as `/status` serves it and `flatfell status` shows it.
//!
//! In: [`State`]. Out: [`Report`], which is also what is read back from JSON. What always holds: a pod, a rule and a guard
//! stand once each, sorted by name.

use std::collections::BTreeMap;

use flatfell_rules::compile::CounterMeaning;
use flatfell_rules::effective::{Effective, EffectivePod, Fallback};
use flatfell_rules::object::ObjectName;
use flatfell_rules::policy::Direction;
use flatfell_rules::ruleset::CounterValue;
use serde::{Deserialize, Serialize};

use crate::flows::DenialReport;
use crate::manifests::Severity;

use crate::state::{State, rule_id};
use crate::totals::Total;

/// Everything the daemon says about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The daemon's version.
    pub version: String,
    /// The node it works for.
    pub node: String,
    /// Whether it is ready.
    pub ready: bool,
    /// Why it is not.
    pub not_ready: Vec<String>,
    /// What may bypass it.
    pub warnings: Vec<String>,
    /// When the pause of policy ends (RFC 3339), if there is one.
    pub paused_until: Option<String>,
    /// What is to be said of the pause.
    pub notes: Vec<String>,
    /// The number of the current generation.
    pub generation: u8,
    /// Which of the tables is in use.
    pub slot: String,
    /// Whether nobody else can change the tables.
    pub locked: bool,
    /// Whether the kernel has the newest policy.
    pub synced: bool,
    /// Whether no running connection is left that it forbids.
    pub swept: bool,
    /// Where objects come from.
    pub source: Source,
    /// The local pods as they are enforced.
    pub pods: Vec<PodReport>,
    /// The rules with a counter.
    pub rules: Vec<RuleReport>,
    /// What was dropped on ways round policy.
    pub guards: BTreeMap<String, Traffic>,
    /// What is denied most, of the last minutes.
    pub denials: Vec<DenialReport>,
    /// Transactions with the kernel.
    pub transactions: Transactions,
    /// Why the counters are missing, if they are.
    pub counters_error: Option<String>,
}

/// Where objects come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// The directory of manifests, or the address of the API server.
    pub origin: String,
    /// Manifest files in it; none with an API server.
    pub files: usize,
    /// Objects that policy uses.
    pub objects: usize,
    /// Errors, each with its place, object and field.
    pub errors: Vec<String>,
    /// Warnings, likewise.
    pub warnings: Vec<String>,
}

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Traffic {
    fn add(&mut self, value: CounterValue) {
        self.packets = self.packets.saturating_add(value.packets);
        self.bytes = self.bytes.saturating_add(value.bytes);
    }
}

/// A local pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PodReport {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The addresses it owns.
    pub addresses: Vec<String>,
    /// What it sent as somebody else.
    pub spoofed: Traffic,
    /// Connections to it.
    pub ingress: DirectionReport,
    /// Connections from it.
    pub egress: DirectionReport,
}

/// One direction of a pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DirectionReport {
    /// `open`, `isolated` or `audited`.
    pub isolation: String,
    /// The policies that make it so.
    pub policies: Vec<String>,
    /// What isolation dropped.
    pub dropped: Traffic,
    /// What audited policies would have dropped.
    pub would_drop: Traffic,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RuleReport {
    /// Its policy's namespace.
    pub namespace: String,
    /// Its policy.
    pub policy: String,
    /// Its direction.
    pub direction: String,
    /// Its place in the policy.
    pub index: usize,
    /// Its short name, as in metrics.
    pub rule: String,
    /// What it does.
    pub action: String,
    /// What it says.
    pub content: String,
    /// What it decided.
    #[serde(flatten)]
    pub traffic: Traffic,
}

/// Transactions with the kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Transactions {
    /// Committed.
    pub committed: u64,
    /// Refused.
    pub failed: u64,
    /// Times a second table took over.
    pub takeovers: u64,
    /// Operations in all of them.
    pub operations: u64,
    /// Why the last refused one was refused.
    pub last_error: Option<String>,
}

/// The report now. Asks the kernel: may block for a moment.
pub fn report(state: &State) -> Report {
    let (totals, counters_error) = match state.totals() {
        Ok(totals) => (totals, None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    let status = state.engine.status();
    let not_ready = state.not_ready();
    let paused = state.paused.borrow().clone();
    let mut warnings = status.warnings.clone();
    warnings.extend(state.flows.fault().into_iter().chain(state.source.borrow().contested()));
    Report {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node: state.node.to_string(),
        ready: not_ready.is_empty(),
        not_ready,
        warnings,
        paused_until: paused.until.map(|until| until.to_string()),
        notes: paused.notes(),
        generation: status.generation,
        slot: status.slot.to_owned(),
        locked: status.locked,
        synced: status.synced,
        swept: status.swept,
        source: source(state),
        pods: status.enforced.as_deref().map(|effective| pods(effective, &totals)).unwrap_or_default(),
        rules: rules(&totals),
        guards: guards(&totals),
        denials: state.flows.denials(),
        transactions: Transactions {
            committed: status.transactions.committed,
            failed: status.transactions.failed,
            takeovers: status.transactions.takeovers,
            operations: status.transactions.operations,
            last_error: status.transactions.last_error.clone(),
        },
        counters_error,
    }
}

fn source(state: &State) -> Source {
    let source = state.source.borrow().clone();
    let of = |severity| {
        source
            .problems
            .iter()
            .filter(|problem| problem.severity == severity)
            .map(|problem| problem.text.clone())
            .collect()
    };
    Source {
        origin: source.origin.clone(),
        files: source.files,
        objects: source.objects,
        errors: of(Severity::Error),
        warnings: of(Severity::Warning),
    }
}

fn pods(effective: &Effective, totals: &[Total]) -> Vec<PodReport> {
    let mut dropped: BTreeMap<(&ObjectName, Direction), Traffic> = BTreeMap::new();
    let mut would_drop = dropped.clone();
    let mut spoofed: BTreeMap<&ObjectName, Traffic> = BTreeMap::new();
    for total in totals {
        match &*total.meaning {
            CounterMeaning::Dropped { pod, direction } => {
                dropped.entry((pod, *direction)).or_default().add(total.value);
            }
            CounterMeaning::WouldDrop { pod, direction } => {
                would_drop.entry((pod, *direction)).or_default().add(total.value);
            }
            CounterMeaning::Spoofed { pod } => spoofed.entry(pod).or_default().add(total.value),
            _ => {}
        }
    }
    let direction = |pod: &EffectivePod, direction| {
        let isolation = pod.isolation(direction);
        DirectionReport {
            isolation: fallback_word(isolation.default).to_owned(),
            policies: isolation.policies.iter().map(ToString::to_string).collect(),
            dropped: dropped.get(&(&pod.name, direction)).copied().unwrap_or_default(),
            would_drop: would_drop.get(&(&pod.name, direction)).copied().unwrap_or_default(),
        }
    };
    let report = |pod: &EffectivePod| PodReport {
        namespace: pod.name.namespace.to_string(),
        name: pod.name.name.to_string(),
        addresses: pod.addresses.iter().map(ToString::to_string).collect(),
        spoofed: spoofed.get(&pod.name).copied().unwrap_or_default(),
        ingress: direction(pod, Direction::Ingress),
        egress: direction(pod, Direction::Egress),
    };
    effective.pods().values().map(|pod| report(pod)).collect()
}

fn fallback_word(fallback: Fallback) -> &'static str {
    match fallback {
        Fallback::Open => "open",
        Fallback::Deny => "isolated",
        Fallback::Audit => "audited",
    }
}

fn rules(totals: &[Total]) -> Vec<RuleReport> {
    let mut rules: Vec<RuleReport> = totals
        .iter()
        .filter_map(|total| match &*total.meaning {
            CounterMeaning::Rule { identity, index, action } => Some(RuleReport {
                namespace: identity.policy.namespace.to_string(),
                policy: identity.policy.name.to_string(),
                direction: identity.direction.to_string(),
                index: *index,
                rule: rule_id(identity),
                action: action.word().to_owned(),
                content: identity.content(),
                traffic: Traffic { packets: total.value.packets, bytes: total.value.bytes },
            }),
            _ => None,
        })
        .collect();
    rules.sort_by(|a, b| {
        let key = |rule: &RuleReport| (rule.namespace.clone(), rule.policy.clone(), rule.direction.clone(), rule.index);
        key(a).cmp(&key(b))
    });
    rules
}

fn guards(totals: &[Total]) -> BTreeMap<String, Traffic> {
    let mut guards: BTreeMap<String, Traffic> = BTreeMap::new();
    for total in totals {
        if let CounterMeaning::Guard(guard) = &*total.meaning {
            guards.entry(guard.word().to_owned()).or_default().add(total.value);
        }
    }
    guards
}
