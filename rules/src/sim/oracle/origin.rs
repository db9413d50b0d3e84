//! For whom a connection may count: which rules allow it, read from the specification.
//!
//! In: a probe and one of its ends. Out: [`Origins`]. What always holds: rules are those of the policies that hold the pod, or, where
//! none does, of those that would (audit); nothing is said of an end that no policy of this node is asked about.

use std::collections::BTreeSet;

use super::policies::rules;
use super::{Connection, Direction, Oracle, Reading};
use crate::sim::cluster::{Path, Probe};

/// What may have let one half of a connection through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origins {
    /// The local pod of this half, as `namespace/name`.
    pub pod: String,
    /// The rules that match: `namespace/name` of the policy, and the rule's place in it. Nothing where the pod reaches itself: no
    /// rule is asked.
    pub rules: BTreeSet<(String, usize)>,
}

impl Oracle<'_> {
    /// What may have let a connection out of a local pod (egress) or into one.
    pub fn origins(&self, probe: &Probe, egress: bool) -> Option<Origins> {
        Reading::new(self, &self.cluster.node, None).origins(probe, egress)
    }
}

impl Reading<'_> {
    fn origins(&self, probe: &Probe, egress: bool) -> Option<Origins> {
        let asked = match (probe.path(self.node), egress) {
            (Path::Forward { from_pods, .. }, true) => from_pods,
            (Path::Forward { to_pods, .. }, false) => to_pods,
            (Path::Input, true) => !self.cluster.own_node_open,
            _ => false,
        };
        let (direction, subject, other) = match egress {
            true => (Direction::Egress, probe.source, probe.destination),
            false => (Direction::Ingress, probe.destination, probe.source),
        };
        let subject = self.local_pod(subject).filter(|_| asked)?;
        let connection = Connection { subject, direction, other, packet: probe.packet, port: probe.port };
        let rules = if self.reaches_itself(probe) { BTreeSet::new() } else { self.allowing(&connection) };
        let name = subject.raw["metadata"]["name"].as_str().unwrap_or_default();
        Some(Origins { pod: format!("{}/{name}", subject.namespace), rules })
    }

    fn allowing(&self, connection: &Connection<'_>) -> BTreeSet<(String, usize)> {
        let isolating = self.isolating(connection.subject, connection.direction);
        let policies =
            if isolating.is_empty() { self.auditing(connection.subject, connection.direction) } else { isolating };
        let namespace = connection.subject.namespace;
        let sound = policies.into_iter().filter(|policy| policy.faults.is_empty());
        sound
            .flat_map(|policy| {
                let matching = rules(policy, connection.direction).iter().enumerate();
                let matching = matching.filter(|(_, rule)| self.rule_matches(rule, namespace, connection));
                let name = policy.raw["metadata"]["name"].as_str().unwrap_or_default();
                matching.map(move |(index, _)| (format!("{namespace}/{name}"), index)).collect::<Vec<_>>()
            })
            .collect()
    }
}
