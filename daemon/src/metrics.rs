//! Metrics for Prometheus.
//!
//! In: [`State`] at the moment of a scrape. Out: OpenMetrics text. What always holds: labels come from closed sets or are
//! names of objects, and go when the object goes; no series stands twice; counters never fall (see [`crate::totals`]).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use flatfell_rules::compile::CounterMeaning;
use flatfell_rules::policy::Action;
use flatfell_rules::ruleset::CounterValue;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::cluster::WatchState;
use crate::engine::EngineStatus;
use crate::flows::FlowNumbers;
use crate::histogram::Histogram;
use crate::pause::Paused;
use crate::state::{SourceState, State, rule_id};
use crate::totals::Total;

/// What is served.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Names and values of a series' labels.
type Labels = Vec<(&'static str, String)>;

/// Everything that is exported, read at one moment.
#[derive(Debug)]
struct Scrape {
    status: Arc<EngineStatus>,
    source: Arc<SourceState>,
    paused: Paused,
    is_ready: bool,
    unprotected: Option<Duration>,
    totals: Vec<Total>,
    flows: FlowNumbers,
}

/// The metrics now. Asks the kernel: may block for a moment.
pub fn render(state: &State) -> Result<String, fmt::Error> {
    let totals = state.totals().unwrap_or_else(|error| {
        tracing::warn!(%error, "the counters cannot be read");
        Vec::new()
    });
    let scrape = Scrape {
        status: state.engine.status(),
        source: state.source.borrow().clone(),
        paused: state.paused.borrow().clone(),
        is_ready: state.not_ready().is_empty(),
        unprotected: state.unprotected.get().copied(),
        flows: state.flows.numbers(&totals),
        totals,
    };
    let mut registry = Registry::default();
    registry.register_collector(Box::new(scrape));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.rules(&mut encoder)?;
        self.drops(&mut encoder)?;
        self.flow_log(&mut encoder)?;
        self.transactions(&mut encoder)?;
        self.state(&mut encoder)?;
        self.watches(&mut encoder)
    }
}

impl Scrape {
    fn rules(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let rule = |meaning: &CounterMeaning| match meaning {
            CounterMeaning::Rule { identity, action, .. } => Some(vec![
                ("namespace", identity.policy.namespace.clone()),
                ("policy", identity.policy.name.clone()),
                ("direction", identity.direction.to_string()),
                ("rule", rule_id(identity)),
                ("action", action_word(*action).to_owned()),
            ]),
            _ => None,
        };
        let help = "that a rule decided (first packets of connections, and each again after a change of policy)";
        self.traffic(encoder, "flatfell_rule", help, rule)?;
        let info = self.totals.iter().filter_map(|total| match &total.meaning {
            CounterMeaning::Rule { identity, index, .. } => {
                let mut labels = rule(&total.meaning)?;
                labels.truncate(4);
                labels.push(("index", index.to_string()));
                labels.push(("content", identity.content.clone()));
                Some((labels, 1))
            }
            _ => None,
        });
        gauges(encoder, "flatfell_rule_info", "What a rule says, and its place in its policy", info.collect())
    }

    fn drops(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let pod = |pod: &flatfell_rules::object::ObjectName, direction: flatfell_rules::policy::Direction| {
            vec![("namespace", pod.namespace.clone()), ("pod", pod.name.clone()), ("direction", direction.to_string())]
        };
        self.traffic(encoder, "flatfell_dropped", "that a pod's isolation dropped", |meaning| match meaning {
            CounterMeaning::Dropped { pod: name, direction } => Some(pod(name, *direction)),
            _ => None,
        })?;
        let help = "that audited policies would have dropped";
        self.traffic(encoder, "flatfell_would_drop", help, |meaning| match meaning {
            CounterMeaning::WouldDrop { pod: name, direction } => Some(pod(name, *direction)),
            _ => None,
        })?;
        let help = "that go a way round every policy and were dropped";
        self.traffic(encoder, "flatfell_guard", help, |meaning| match meaning {
            CounterMeaning::Guard(guard) => Some(vec![("guard", guard.word().to_owned())]),
            _ => None,
        })
    }

    fn flow_log(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let series = |label: &'static str, numbers: &[(&str, u64)]| {
            numbers.iter().map(|(word, count)| (vec![(label, (*word).to_owned())], *count)).collect()
        };
        let help = "Denied and audited packets in the flow log";
        counters(encoder, "flatfell_flow_log_records", help, series("verdict", &self.flows.records))?;
        let help = "Denied and audited packets that are not in the flow log";
        counters(encoder, "flatfell_flow_log_lost", help, series("reason", &self.flows.lost))?;
        let help = "Kubernetes Events of denials";
        counters(encoder, "flatfell_flow_events", help, series("result", &self.flows.events))
    }

    fn transactions(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let stats = &self.status.transactions;
        let result = |word: &str, count| (vec![("result", word.to_owned())], count);
        let results = [result("committed", stats.committed), result("failed", stats.failed)];
        counters(encoder, "flatfell_transactions", "Transactions with the kernel", results.into())?;
        let help = "Times a second table took over because the first refused changes";
        counters(encoder, "flatfell_takeovers", help, [(Vec::new(), stats.takeovers)].into())?;
        let help = "Running connections that were cut because policy no longer allows them";
        counters(encoder, "flatfell_flows_cut", help, [(Vec::new(), stats.flows_cut)].into())?;
        let help = "Seconds from sending a transaction to its last answer";
        histogram(encoder, "flatfell_transaction_duration_seconds", help, &stats.latency)?;
        histogram(encoder, "flatfell_transaction_operations", "Operations in a transaction", &stats.sizes)
    }

    fn state(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let one = |value: u64| BTreeMap::from([(Labels::new(), value)]);
        let generation = u64::from(self.status.generation);
        gauges(encoder, "flatfell_generation", "Number of the current policy in ct marks", one(generation))?;
        gauges(encoder, "flatfell_ready", "Whether /readyz says so", one(u64::from(self.is_ready)))?;
        let synced = u64::from(self.status.synced);
        gauges(encoder, "flatfell_synced", "Whether the kernel has the newest policy", one(synced))?;
        self.node(encoder)?;
        let refused = self
            .source
            .refused
            .iter()
            .map(|policy| (vec![("namespace", policy.namespace.clone()), ("policy", policy.name.clone())], 1));
        let help = "A policy that is refused: it isolates what it selects and allows nothing";
        gauges(encoder, "flatfell_policy_invalid", help, refused.collect())?;
        let problems = [crate::manifests::Severity::Error, crate::manifests::Severity::Warning].map(|severity| {
            let count = self.source.problems.iter().filter(|problem| problem.severity == severity).count();
            (vec![("severity", severity.word().to_owned())], u64::try_from(count).unwrap_or(u64::MAX))
        });
        gauges(
            encoder,
            "flatfell_source_problems",
            "What is wrong with objects, as the source has them",
            problems.into(),
        )?;
        let build = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        gauges(encoder, "flatfell_build_info", "The version that runs", [(build, 1)].into())
    }

    /// What an operator or another program did to this node.
    fn node(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let paused = u64::from(self.paused.until.is_some());
        let help = "Whether a pause is in effect: this node enforces no policy";
        gauges(encoder, "flatfell_paused", help, [(Labels::new(), paused)].into())?;
        let until = self.paused.until.and_then(|until| u64::try_from(until.as_second()).ok());
        let help = "When the pause ends; no series without one";
        let series = until.map(|until| (Labels::new(), until)).into_iter().collect();
        gauges(encoder, "flatfell_paused_until_timestamp_seconds", help, series)?;
        let engines = self.status.foreign_engines.iter().map(|engine| (vec![("engine", (*engine).to_owned())], 1));
        let help = "Another policy engine's rules, or kube-proxy in IPVS mode, on this node; /readyz says what to do";
        gauges(encoder, "flatfell_foreign_engine_info", help, engines.collect())
    }

    /// How the API server is followed; nothing with a directory.
    fn watches(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let watches = &self.source.watches;
        let of = |watch: &WatchState| vec![("resource", watch.resource.name().to_owned())];
        let each = |value: fn(&WatchState) -> u64| watches.iter().map(|watch| (of(watch), value(watch))).collect();
        let help = "Whether the API server's list is complete and its changes are heard";
        gauges(encoder, "flatfell_watch_healthy", help, each(|watch| u64::from(watch.is_healthy())))?;
        let help = "Seconds since the API server last said anything about the resource";
        let silence = |watch: &WatchState| Some((of(watch), watch.heard?.elapsed().as_secs()));
        gauges(encoder, "flatfell_watch_silence_seconds", help, watches.iter().filter_map(silence).collect())?;
        counters(encoder, "flatfell_watch_lists", "Complete lists", each(|watch| watch.lists))?;
        let failures = watches.iter().flat_map(|watch| {
            let of_reason = move |(reason, count): (&&str, &u64)| {
                ([of(watch), vec![("reason", (*reason).to_owned())]].concat(), *count)
            };
            watch.failures.iter().map(of_reason)
        });
        let help = "What went wrong between this daemon and the API server";
        counters(encoder, "flatfell_watch_failures", help, failures.collect())?;
        let objects = |watch: &WatchState| u64::try_from(watch.objects).unwrap_or(u64::MAX);
        let series = watches.iter().map(|watch| (of(watch), objects(watch))).collect();
        gauges(encoder, "flatfell_objects", "Objects that are known", series)?;
        let help = "Seconds that pods of this node may have run before policy was first in force";
        let unprotected = self.unprotected.map(|time| (Labels::new(), time.as_secs()));
        gauges(encoder, "flatfell_node_unprotected_seconds", help, unprotected.into_iter().collect())
    }

    /// Packets and bytes of the counters that `labels` has labels for.
    fn traffic(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        labels: impl Fn(&CounterMeaning) -> Option<Labels>,
    ) -> fmt::Result {
        let mut series: BTreeMap<Labels, CounterValue> = BTreeMap::new();
        for total in &self.totals {
            if let Some(labels) = labels(&total.meaning) {
                let sum = series.entry(labels).or_default();
                sum.packets = sum.packets.saturating_add(total.value.packets);
                sum.bytes = sum.bytes.saturating_add(total.value.bytes);
            }
        }
        let packets = series.iter().map(|(labels, value)| (labels.clone(), value.packets)).collect();
        counters(encoder, &format!("{name}_packets"), &format!("Packets {help}"), packets)?;
        let bytes = series.into_iter().map(|(labels, value)| (labels, value.bytes)).collect();
        counters(encoder, &format!("{name}_bytes"), &format!("Bytes of packets {help}"), bytes)
    }
}

/// The word of an action in labels and tables.
pub fn action_word(action: Action) -> &'static str {
    match action {
        Action::Accept => "accept",
        Action::Deny => "deny",
        Action::Pass => "pass",
    }
}

fn counters(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, series: BTreeMap<Labels, u64>) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in &series {
        if labels.is_empty() {
            family.encode_counter::<NoLabelSet, _, u64>(value, None)?;
        } else {
            family.encode_family(labels)?.encode_counter::<NoLabelSet, _, u64>(value, None)?;
        }
    }
    Ok(())
}

fn gauges(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, series: BTreeMap<Labels, u64>) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in &series {
        if labels.is_empty() {
            family.encode_gauge(value)?;
        } else {
            family.encode_family(labels)?.encode_gauge(value)?;
        }
    }
    Ok(())
}

fn histogram(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, values: &Histogram) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    family.encode_histogram::<NoLabelSet>(values.sum(), values.count(), &values.buckets(), None)
}
