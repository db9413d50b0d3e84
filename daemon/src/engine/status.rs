//! What the engine says of itself.
//!
//! In: what the engine's thread sees. Out: a value that readiness, metrics and `flatfell status` read.

use std::collections::BTreeSet;
use std::sync::Arc;

use flatfell_rules::compile::Slot;
use flatfell_rules::effective::Effective;

use super::upkeep::Upkeep;
use crate::histogram::Histogram;
use crate::kernel::CommitStats;

/// A snapshot of the engine.
#[derive(Clone, Debug)]
pub struct EngineStatus {
    /// Why the node is not ready; empty when it is.
    pub not_ready: Vec<String>,
    /// What an operator should look at, though policy holds.
    pub warnings: Vec<String>,
    /// Other policy engines that left rules here, by their metric label.
    pub foreign_engines: BTreeSet<&'static str>,
    /// The number of the current generation; 0 before the first commit.
    pub generation: u8,
    /// The name of the daemon's tables.
    pub slot: &'static str,
    /// What the kernel enforces; `None` before the first commit.
    pub enforced: Option<Arc<Effective>>,
    /// Whether nobody else can change the tables.
    pub locked: bool,
    /// Whether the kernel has what was submitted last.
    pub synced: bool,
    /// Whether all running connections were judged by what the kernel enforces.
    pub swept: bool,
    /// Transactions so far.
    pub transactions: TransactionStats,
    /// What the work costs and how late it is.
    pub upkeep: Upkeep,
    /// The ids that count whole connections.
    pub rule_ids: RuleIds,
}

/// How far the ids are used that rules and pods are counted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleIds {
    /// Ingress ids that are given out or not free yet.
    pub ingress: usize,
    /// Egress ids that are given out or not free yet.
    pub egress: usize,
    /// How many there are, for each direction.
    pub limit: usize,
    /// Rules and pods, of both directions, for which none was left: their traffic counts as not attributed.
    pub without: usize,
}

impl EngineStatus {
    /// Before anything was submitted.
    pub(crate) fn starting() -> Self {
        Self {
            not_ready: vec!["no policy has been enforced yet: the first transaction is still to come".to_owned()],
            warnings: Vec::new(),
            foreign_engines: BTreeSet::new(),
            generation: 0,
            slot: Slot::A.table_name(),
            enforced: None,
            locked: false,
            synced: false,
            swept: false,
            transactions: TransactionStats::default(),
            upkeep: Upkeep::default(),
            rule_ids: RuleIds::default(),
        }
    }
}

/// Transactions since the start.
#[derive(Clone, Debug)]
pub struct TransactionStats {
    /// Committed.
    pub committed: u64,
    /// Refused or of unknown outcome.
    pub failed: u64,
    /// Times the other tables took over.
    pub takeovers: u64,
    /// Operations in all that were committed.
    pub operations: u64,
    /// What the kernel said last when it refused; `None` again after a commit.
    pub last_error: Option<String>,
    /// Seconds from sending to the last answer.
    pub latency: Histogram,
    /// Operations in each.
    pub sizes: Histogram,
    /// Running connections cut because policy no longer allows them and their client was silent.
    pub flows_cut: u64,
}

impl Default for TransactionStats {
    fn default() -> Self {
        Self {
            committed: 0,
            failed: 0,
            takeovers: 0,
            operations: 0,
            last_error: None,
            latency: Histogram::new(Histogram::SECONDS),
            sizes: Histogram::new(Histogram::OPERATIONS),
            flows_cut: 0,
        }
    }
}

impl TransactionStats {
    /// Notes a transaction that was committed.
    pub(super) fn commit(&mut self, stats: &CommitStats) {
        self.committed += 1;
        self.operations += u64::try_from(stats.ops).unwrap_or(u64::MAX);
        self.latency.observe(stats.duration.as_secs_f64());
        self.sizes.observe(u32::try_from(stats.ops).map_or(f64::INFINITY, f64::from));
    }
}
