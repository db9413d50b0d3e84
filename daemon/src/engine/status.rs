//! What the engine says of itself.
//!
//! In: what the engine's thread sees. Out: a value that readiness, metrics and `flatfell status` read.

use std::sync::Arc;
use std::time::Duration;

use flatfell_rules::compile::Slot;
use flatfell_rules::effective::Effective;

/// A snapshot of the engine.
#[derive(Clone, Debug)]
pub struct EngineStatus {
    /// Why the node is not ready; empty when it is.
    pub not_ready: Vec<String>,
    /// What an operator should look at, though policy holds.
    pub warnings: Vec<String>,
    /// The number of the current generation; 0 before the first commit.
    pub generation: u8,
    /// The name of the daemon's tables.
    pub table: &'static str,
    /// What the kernel enforces; `None` before the first commit.
    pub enforced: Option<Arc<Effective>>,
    /// Transactions so far.
    pub transactions: TransactionStats,
}

impl EngineStatus {
    /// Before anything was submitted.
    pub(super) fn starting() -> Self {
        Self {
            not_ready: vec!["no policy has been enforced yet".to_owned()],
            warnings: Vec::new(),
            generation: 0,
            table: Slot::A.table_name(),
            enforced: None,
            transactions: TransactionStats::default(),
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
    /// Times the other table took over.
    pub takeovers: u64,
    /// What the kernel said last when it refused; empty again after a commit.
    pub last_error: Option<String>,
    /// Seconds from send to acknowledgement.
    pub seconds: Histogram,
    /// Operations in each.
    pub operations: Histogram,
    /// Flows cut because policy no longer allows them.
    pub flows_cut: u64,
}

impl Default for TransactionStats {
    fn default() -> Self {
        Self {
            committed: 0,
            failed: 0,
            takeovers: 0,
            last_error: None,
            seconds: Histogram::new(&[0.000_1, 0.000_3, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0]),
            operations: Histogram::new(&[1.0, 10.0, 100.0, 1_000.0, 10_000.0, 100_000.0]),
            flows_cut: 0,
        }
    }
}

impl TransactionStats {
    /// Notes a transaction that was committed.
    pub(super) fn commit(&mut self, operations: usize, duration: Duration) {
        self.committed += 1;
        self.seconds.observe(duration.as_secs_f64());
        self.operations.observe(u32::try_from(operations).map_or(f64::from(u32::MAX), f64::from));
    }
}

/// Observations by upper bound, as Prometheus counts them.
#[derive(Clone, Debug)]
pub struct Histogram {
    /// Upper bounds with the observations at or below each and above the one before.
    pub buckets: Vec<(f64, u64)>,
    /// All observations.
    pub count: u64,
    /// Their sum.
    pub sum: f64,
}

impl Histogram {
    fn new(bounds: &[f64]) -> Self {
        Self { buckets: bounds.iter().map(|bound| (*bound, 0)).collect(), count: 0, sum: 0.0 }
    }

    fn observe(&mut self, value: f64) {
        self.count += 1;
        self.sum += value;
        if let Some((_, count)) = self.buckets.iter_mut().find(|(bound, _)| value <= *bound) {
            *count += 1;
        }
    }
}
