//! What the daemon says of itself: few series, encoded by `prometheus-client`.
//!
//! In: the daemon's states at the moment of a scrape. Out: a [`Collector`]. What always holds: no series stands twice.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flatfell_rules::effective::Fallback;
use flatfell_rules::policy::Direction;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use super::catalogue::{self as all, Family, Kind};
use super::process::{Conntrack, Process};
use super::series::Size;
use crate::cluster::WatchState;
use crate::cni::Numbers;
use crate::engine::{EngineStatus, Programmed, RuleIds};
use crate::flows::FlowNumbers;
use crate::histogram::Histogram;
use crate::manifests::Severity;
use crate::pause::Paused;
use crate::state::SourceState;

/// How the counters were read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading {
    /// Reads that failed so far.
    pub failures: u64,
    /// How old the values are; before the first, how long there have been none.
    pub age: Duration,
}

/// Everything that is exported beside rules and pods, read at one moment.
#[derive(Debug)]
pub struct Own {
    /// The engine.
    pub status: Arc<EngineStatus>,
    /// The source of objects.
    pub source: Arc<SourceState>,
    /// A pause.
    pub paused: Paused,
    /// What /readyz says.
    pub is_ready: bool,
    /// How long pods may have run without policy.
    pub unprotected: Option<Duration>,
    /// The flow log.
    pub flows: FlowNumbers,
    /// What the kernel holds.
    pub programmed: Programmed,
    /// The CNI plugin.
    pub cni: Numbers,
    /// The counters.
    pub reading: Reading,
    /// The series of rules and pods.
    pub size: Size,
    /// How many of them there may be.
    pub series_max: usize,
    /// The process.
    pub process: Process,
    /// The node's connections.
    pub conntrack: Conntrack,
}

/// A value of a series.
enum Value<'a> {
    Integer(u64),
    Real(f64),
    Distribution(&'a Histogram),
}

impl From<u64> for Value<'_> {
    fn from(value: u64) -> Self {
        Self::Integer(value)
    }
}

impl From<bool> for Value<'_> {
    fn from(value: bool) -> Self {
        Self::Integer(u64::from(value))
    }
}

impl From<usize> for Value<'_> {
    fn from(value: usize) -> Self {
        Self::Integer(u64::try_from(value).unwrap_or(u64::MAX))
    }
}

impl From<Duration> for Value<'_> {
    fn from(value: Duration) -> Self {
        Self::Real(value.as_secs_f64())
    }
}

impl<'a> From<&'a Histogram> for Value<'a> {
    fn from(value: &'a Histogram) -> Self {
        Self::Distribution(value)
    }
}

/// The encoder of one scrape.
struct Out<'a, 'b>(&'a mut DescriptorEncoder<'b>);

impl Out<'_, '_> {
    /// A family with labels.
    fn many<'v, L: Into<Vec<String>>, V: Into<Value<'v>>>(
        &mut self,
        family: &Family,
        series: impl IntoIterator<Item = (L, V)>,
    ) -> fmt::Result {
        let (name, unit) = match family.unit() {
            Some(unit) => (family.name.trim_end_matches(unit).trim_end_matches('_'), Some(unit_of(unit))),
            None => (family.name, None),
        };
        let kind = match family.kind {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
            Kind::Histogram => MetricType::Histogram,
        };
        let mut encoder = self.0.encode_descriptor(name, family.help, unit.as_ref(), kind)?;
        for (values, value) in series {
            let values: Vec<String> = values.into();
            let labels: Vec<(&'static str, String)> = family.labels.iter().copied().zip(values).collect();
            if labels.is_empty() {
                encode(&mut encoder, family.kind, &value.into())?;
            } else {
                encode(&mut encoder.encode_family(&labels)?, family.kind, &value.into())?;
            }
        }
        Ok(())
    }

    /// A family without labels.
    fn one<'v>(&mut self, family: &Family, value: impl Into<Value<'v>>) -> fmt::Result {
        self.many(family, [([], value)])
    }

    /// The same; no series where there is no value.
    fn some<'v, V: Into<Value<'v>>>(&mut self, family: &Family, value: Option<V>) -> fmt::Result {
        self.many(family, value.map(|value| ([], value)))
    }
}

fn unit_of(word: &str) -> Unit {
    if word == "bytes" { Unit::Bytes } else { Unit::Seconds }
}

fn encode(encoder: &mut MetricEncoder<'_>, kind: Kind, value: &Value<'_>) -> fmt::Result {
    match (value, kind) {
        (Value::Integer(value), Kind::Counter) => encoder.encode_counter::<NoLabelSet, _, u64>(value, None),
        (Value::Real(value), Kind::Counter) => encoder.encode_counter::<NoLabelSet, _, u64>(value, None),
        (Value::Integer(value), _) => encoder.encode_gauge(value),
        (Value::Real(value), _) => encoder.encode_gauge(value),
        (Value::Distribution(value), _) => {
            encoder.encode_histogram::<NoLabelSet>(value.sum(), value.count(), &value.buckets(), None)
        }
    }
}

impl Collector for Own {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out(&mut encoder);
        self.counting(&mut out)?;
        self.standing(&mut out)?;
        self.policy(&mut out)?;
        self.changes(&mut out)?;
        self.kernel(&mut out)?;
        self.watches(&mut out)?;
        self.flows(&mut out)?;
        self.cni(&mut out)?;
        self.process(&mut out)
    }
}

/// The word of a label.
fn word(word: impl ToString) -> [String; 1] {
    [word.to_string()]
}

impl Own {
    fn counting(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let RuleIds { ingress, egress, limit, without } = self.status.rule_ids;
        out.many(&all::RULE_IDS, [(word("ingress"), ingress), (word("egress"), egress)])?;
        out.many(&all::RULE_IDS_LIMIT, [(word("ingress"), limit), (word("egress"), limit)])?;
        out.one(&all::WITHOUT_RULE_ID, without)?;
        out.one(&all::SERIES, self.size.exported)?;
        out.one(&all::SERIES_LIMIT, self.series_max)?;
        out.one(&all::SERIES_LEFT_OUT, self.size.left_out)?;
        out.one(&all::COUNTERS_READ_FAILURES, self.reading.failures)?;
        out.one(&all::COUNTERS_AGE, self.reading.age)
    }

    fn standing(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        out.one(&all::READY, self.is_ready)?;
        out.one(&all::SYNCED, self.status.synced)?;
        out.one(&all::GENERATION, u64::from(self.status.generation))?;
        out.one(&all::PAUSED, self.paused.until.is_some())?;
        out.some(&all::PAUSED_UNTIL, self.paused.until.and_then(|until| u64::try_from(until.as_second()).ok()))?;
        let bridges = self.status.upkeep.bridges.iter();
        out.many(
            &all::BRIDGE_FILTER,
            bridges.map(|((bridge, family), is_on)| ([bridge.clone(), (*family).to_owned()], *is_on)),
        )?;
        out.many(&all::FOREIGN_ENGINE_INFO, self.status.foreign_engines.iter().map(|engine| (word(engine), true)))?;
        out.many(&all::BUILD_INFO, [(word(env!("CARGO_PKG_VERSION")), true)])
    }

    fn policy(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        out.many(
            &all::PODS,
            self.pods()
                .into_iter()
                .map(|((direction, isolation), count)| ([direction.to_string(), isolation.to_owned()], count)),
        )?;
        let modes = self.source.policies.modes();
        out.many(&all::POLICIES, modes.map(|(mode, count)| (["networkpolicy".to_owned(), mode.to_owned()], count)))?;
        let refused = self.source.refused.iter();
        out.many(
            &all::POLICY_INVALID,
            refused.map(|policy| ([policy.namespace.to_string(), policy.name.to_string()], true)),
        )?;
        let problems = [Severity::Error, Severity::Warning].map(|severity| {
            let count = self.source.problems.iter().filter(|problem| problem.severity == severity).count();
            (word(severity.word()), count)
        });
        out.many(&all::SOURCE_PROBLEMS, problems)?;
        out.some(&all::NODE_UNPROTECTED, self.unprotected)
    }

    /// Every combination, so that none is missing where it is zero.
    fn pods(&self) -> BTreeMap<(Direction, &'static str), u64> {
        let mut pods = BTreeMap::new();
        for direction in [Direction::Ingress, Direction::Egress] {
            for isolation in ["open", "isolated", "audited"] {
                pods.insert((direction, isolation), 0);
            }
            for pod in self.status.enforced.iter().flat_map(|effective| effective.pods().values()) {
                let isolation = match pod.isolation(direction).default {
                    Fallback::Open => "open",
                    Fallback::Deny => "isolated",
                    Fallback::Audit => "audited",
                };
                *pods.entry((direction, isolation)).or_default() += 1;
            }
        }
        pods
    }

    fn changes(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let upkeep = &self.status.upkeep;
        out.one(&all::EVENT_TO_KERNEL, &upkeep.event_to_kernel)?;
        let created = upkeep.creations.iter();
        out.many(&all::CREATION_TO_KERNEL, created.clone().map(|(kind, seen)| (word(kind.word()), &seen.times)))?;
        out.many(&all::CREATION_AHEAD, created.map(|(kind, seen)| (word(kind.word()), seen.ahead)))?;
        out.one(&all::CHANGES_WAITING, upkeep.waiting)?;
        let waited = upkeep.oldest_waiting.map(|since| since.elapsed());
        out.one(&all::OLDEST_CHANGE_WAITING, waited.unwrap_or_default())
    }

    fn kernel(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let (stats, upkeep) = (&self.status.transactions, &self.status.upkeep);
        out.many(&all::TRANSACTIONS, [(word("committed"), stats.committed), (word("failed"), stats.failed)])?;
        out.one(&all::TRANSACTION_DURATION, &stats.latency)?;
        out.one(&all::TRANSACTION_OPERATIONS, &stats.sizes)?;
        out.one(&all::RETRIES, upkeep.retries)?;
        out.many(&all::REPAIRS, upkeep.repairs.iter().map(|(kind, count)| (word(kind.word()), *count)))?;
        out.one(&all::TAKEOVERS, stats.takeovers)?;
        out.one(&all::FLOWS_CUT, stats.flows_cut)?;
        out.many(&all::PROGRAMMED_OBJECTS, self.programmed.by_kind().map(|(kind, count)| (word(kind), count)))?;
        out.some(&all::CONNTRACK_ENTRIES, self.conntrack.entries)?;
        out.some(&all::CONNTRACK_ENTRIES_LIMIT, self.conntrack.limit)
    }

    /// How the API server is followed; nothing with a directory.
    fn watches(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let watches = || self.source.watches.iter();
        let of = |watch: &WatchState| word(watch.resource.name());
        out.many(&all::WATCH_HEALTHY, watches().map(|watch| (of(watch), watch.is_healthy())))?;
        let silence = |watch: &WatchState| watch.heard.map(|heard: Instant| (of(watch), heard.elapsed()));
        out.many(&all::WATCH_SILENCE, watches().filter_map(silence))?;
        out.many(&all::WATCH_LISTS, watches().map(|watch| (of(watch), watch.lists)))?;
        let failures = watches().flat_map(|watch| {
            let resource = watch.resource.name();
            watch.failures.iter().map(move |(reason, count)| ([resource.to_owned(), (*reason).to_owned()], *count))
        });
        out.many(&all::WATCH_FAILURES, failures)?;
        out.many(&all::OBJECTS, watches().map(|watch| (of(watch), watch.objects)))
    }

    fn flows(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let series = |numbers: &[(&'static str, u64)]| -> Vec<([String; 1], u64)> {
            numbers.iter().map(|(label, count)| (word(label), *count)).collect()
        };
        out.many(&all::FLOW_LOG_RECORDS, series(&self.flows.records))?;
        out.many(&all::FLOW_LOG_LOST, series(&self.flows.lost))?;
        out.many(&all::FLOW_EVENTS, series(&self.flows.events))
    }

    fn cni(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let requests = self.cni.requests.iter();
        let series = requests.map(|((command, outcome), count)| ([command.to_string(), outcome.to_string()], *count));
        out.many(&all::CNI_REQUESTS, series)?;
        out.one(&all::CNI_CONFLIST_INSERTIONS, self.cni.insertions)
    }

    fn process(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let process = &self.process;
        out.some(&all::PROCESS_CPU, process.cpu)?;
        out.some(&all::PROCESS_RESIDENT_MEMORY, process.resident)?;
        out.some(&all::PROCESS_VIRTUAL_MEMORY, process.virtual_memory)?;
        out.some(&all::PROCESS_OPEN_FDS, process.open_fds)?;
        out.some(&all::PROCESS_MAX_FDS, process.max_fds)?;
        out.some(&all::PROCESS_START_TIME, process.started)
    }
}
