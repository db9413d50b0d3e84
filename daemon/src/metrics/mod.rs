//! Metrics for Prometheus.
//!
//! In: [`State`] at the moment of a scrape. Out: OpenMetrics or Prometheus' text. What always holds: labels come from closed
//! sets or are names of objects, and go some time after the object goes; no series stands twice; counters never fall (see [`crate::totals`]);
//! every metric is one of [`catalogue::ALL`]. `prometheus-client` encodes what the daemon says of itself; the series of rules
//! and pods are written by [`series`], because there may be 100,000 of them (docs/benchmarks.md has both measures).

pub mod catalogue;
pub mod format;
pub mod own;
pub mod process;
pub mod series;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use flatfell_rules::ruleset::Ruleset;
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

pub use format::Format;
use own::{Own, Reading};
use process::{Conntrack, Process};
use series::{Series, Size};

use crate::engine::{EngineStatus, Programmed};
use crate::flows::LoggedPackets;
use crate::state::State;

/// Series of single rules and pods, unless told otherwise.
pub const SERIES_MAX: usize = 200_000;

/// What is kept between scrapes.
#[derive(Debug)]
pub struct Metrics {
    series_max: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    series: Series,
    /// When the counters were read last; before that, the start.
    read: Instant,
    failures: u64,
    /// What the kernel gave to the flow log.
    logged: LoggedPackets,
    /// What was counted of the ruleset that was there last.
    programmed: (Ruleset, Programmed),
    /// The length of the last answer, which the next one will have too.
    length: usize,
}

impl Kept {
    /// How many objects a ruleset has: counted again where it is another.
    fn programmed(&mut self, ruleset: &Ruleset) -> Programmed {
        if !self.programmed.0.is_same(ruleset) {
            self.programmed = (ruleset.clone(), Programmed::of(ruleset));
        }
        self.programmed.1
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new(SERIES_MAX)
    }
}

impl Metrics {
    /// With at most so many series of single rules and pods.
    pub fn new(series_max: usize) -> Self {
        let kept = Kept {
            series: Series::default(),
            read: Instant::now(),
            failures: 0,
            logged: LoggedPackets::default(),
            programmed: Default::default(),
            length: 0,
        };
        Self { series_max, kept: Mutex::new(kept) }
    }

    /// The metrics now. Asks the kernel: may block for a moment.
    pub fn render(&self, state: &State, format: Format) -> Result<String, fmt::Error> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        match state.engine.counters() {
            Ok(snapshot) => {
                kept.series.update(&snapshot.meanings, &snapshot.totals);
                kept.logged = kept.series.logged(&snapshot.totals);
                kept.read = snapshot.read.unwrap_or(kept.read);
            }
            Err(error) => {
                tracing::warn!(%error, "the counters cannot be read");
                kept.failures += 1;
            }
        }
        let status = state.engine.status();
        kept.series.isolate(status.enforced.as_ref());
        let mut out = String::with_capacity(kept.length + kept.length / 8);
        let size = kept.series.write(&mut out, format, self.series_max);
        let reading = Reading { failures: kept.failures, age: now.saturating_duration_since(kept.read) };
        let programmed = kept.programmed(&status.upkeep.programmed);
        let own = self.own(state, status, kept.logged, programmed, reading, size);
        let mut registry = Registry::default();
        registry.register_collector(Box::new(own));
        let mut rest = String::new();
        text::encode(&mut rest, &registry)?;
        match format {
            Format::OpenMetrics => out.push_str(&rest),
            Format::Text => out.push_str(&format::to_text(&rest, catalogue::ALL)),
        }
        kept.length = out.len();
        Ok(out)
    }

    fn own(
        &self,
        state: &State,
        status: Arc<EngineStatus>,
        logged: LoggedPackets,
        programmed: Programmed,
        reading: Reading,
        size: Size,
    ) -> Own {
        Own {
            status,
            source: state.source.borrow().clone(),
            paused: state.paused.borrow().clone(),
            is_ready: state.not_ready().is_empty(),
            unprotected: state.unprotected.get().copied(),
            flows: state.flows.numbers(logged),
            programmed,
            cni: state.cni.read(),
            reading,
            size,
            series_max: self.series_max,
            process: Process::read(),
            conntrack: Conntrack::read(),
        }
    }
}

#[cfg(test)]
mod tests;
