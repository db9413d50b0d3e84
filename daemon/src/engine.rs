//! The owner of the kernel: what it takes and what it shows.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use flatfell_rules::compile::CounterMeaning;
use flatfell_rules::effective::Effective;
use flatfell_rules::ruleset::CounterValue;

use crate::histogram::Histogram;

/// What the engine is told at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// Whether pods are held to their egress rules towards their own node.
    pub own_node_egress: bool,
    /// Whether established flows are cut when policy tightens.
    pub cut_established: bool,
    /// The bridges that carry pods.
    pub pod_bridges: Vec<String>,
}

/// Why the engine cannot work.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// There is none in this build.
    #[error("this build has no engine")]
    Missing,
}

/// A handle on the engine; the work happens on its own thread.
#[derive(Debug)]
pub struct Engine {
    status: Arc<EngineStatus>,
}

/// What the engine shows.
#[derive(Clone, Debug)]
pub struct EngineStatus {
    /// Why it is not ready; empty when it is.
    pub not_ready: Vec<String>,
    /// What may bypass it.
    pub warnings: Vec<String>,
    /// The number of the current generation.
    pub generation: u8,
    /// The tables in use.
    pub slot: &'static str,
    /// What the kernel enforces.
    pub enforced: Option<Arc<Effective>>,
    /// Whether the kernel has what was submitted last.
    pub synced: bool,
    /// Transactions so far.
    pub transactions: TransactionStats,
}

/// Transactions so far.
#[derive(Clone, Debug)]
pub struct TransactionStats {
    /// Committed.
    pub committed: u64,
    /// Refused by the kernel.
    pub failed: u64,
    /// Times a second table took over.
    pub takeovers: u64,
    /// Operations in all of them.
    pub operations: u64,
    /// Why the last refused one was refused.
    pub last_error: Option<String>,
    /// Seconds from sending to the last answer.
    pub latency: Histogram,
    /// Operations in each.
    pub sizes: Histogram,
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
        }
    }
}

/// Counters as the kernel has them.
#[derive(Clone, Debug, Default)]
pub struct CounterSnapshot {
    /// Values by counter name.
    pub values: BTreeMap<String, CounterValue>,
    /// What each of them counts.
    pub meanings: Arc<BTreeMap<String, CounterMeaning>>,
}

impl Engine {
    /// Opens the sockets and takes the lock of this network namespace.
    pub fn start(_config: EngineConfig) -> Result<Self, EngineError> {
        Err(EngineError::Missing)
    }

    /// What shall hold from now on; the latest wins.
    pub fn submit(&self, _effective: Arc<Effective>) {}

    /// Addresses whose interface went.
    pub fn interface_gone(&self) -> tokio::sync::mpsc::UnboundedReceiver<IpAddr> {
        tokio::sync::mpsc::unbounded_channel().1
    }

    /// A snapshot, cheap.
    pub fn status(&self) -> Arc<EngineStatus> {
        Arc::clone(&self.status)
    }

    /// Asks the kernel's thread for the counters.
    pub fn counters(&self) -> Result<CounterSnapshot, EngineError> {
        Err(EngineError::Missing)
    }

    /// Stops; the rules stay.
    pub fn stop(self) {}
}

/// Removes the tables; refused while a daemon runs.
pub fn cleanup() -> Result<Vec<String>, EngineError> {
    Err(EngineError::Missing)
}
