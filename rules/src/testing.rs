//! Clusters for tests, written as the objects a person would write.
//!
//! In: pods, namespaces and policies as JSON. Out: an index, what is effective on node `n1`, and verdicts of flows.
//! What always holds: an object that does not parse fails the test.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::effective::{Effective, EffectivePod, evaluate};
use crate::index::{Change, Index};
use crate::judge::{Flow, Judge, Judgement};
use crate::object::ObjectName;
use crate::parse;
use crate::policy::Direction;

/// The node that tests look at.
pub const NODE: &str = "n1";

/// A cluster seen from [`NODE`].
#[derive(Clone, Debug)]
pub struct Cluster {
    pub index: Index,
}

impl Cluster {
    /// The namespaces `x` (label `team: x`) and `y` (label `team: y`), nothing else.
    pub fn new() -> Self {
        let empty = Self { index: Index::new(NODE) };
        empty.with(namespace("x", json!({"team": "x"}))).with(namespace("y", json!({"team": "y"})))
    }

    pub fn with(mut self, object: Value) -> Self {
        self.apply(upsert(&object));
        self
    }

    pub fn without(mut self, change: Change) -> Self {
        self.apply(change);
        self
    }

    pub fn apply(&mut self, change: Change) -> bool {
        self.index.apply(change)
    }

    pub fn effective(&self) -> Effective {
        evaluate(&self.index)
    }

    pub fn pod(&self, name: &str) -> Option<EffectivePod> {
        self.effective().pods().get(&object_name(name)).map(|pod| EffectivePod::clone(pod))
    }

    /// Whether a flow may run: `tcp/80`, `udp/53`, `sctp/9`, `icmp`.
    pub fn allows(&self, source: &str, destination: &str, service: &str) -> bool {
        self.denied(&flow(source, destination, service)).is_none()
    }

    /// Whose policy forbids a flow, and in which direction.
    pub fn denied(&self, flow: &Flow) -> Option<(ObjectName, Direction)> {
        match Judge::new(&self.effective(), true).judge(flow) {
            Judgement::Allowed { .. } => None,
            Judgement::Denied { pod, direction } => Some((pod, direction)),
            Judgement::Unknown => unreachable!("no ranges are given"),
        }
    }
}

pub fn flow(source: &str, destination: &str, service: &str) -> Flow {
    let (protocol, port) = service.split_once('/').unwrap_or((service, ""));
    let protocol = match protocol {
        "tcp" => 6,
        "udp" => 17,
        "sctp" => 132,
        "icmp" => 1,
        other => panic!("no protocol {other}"),
    };
    let (source, destination) = (ip(source), ip(destination));
    Flow { source, destination, protocol, port: port.parse().ok(), from_node: false, to_node: false }
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub fn object_name(text: &str) -> ObjectName {
    let (namespace, name) = text.split_once('/').expect("namespace/name");
    ObjectName::new(namespace, name)
}

pub fn upsert(object: &Value) -> Change {
    let kind = object["kind"].as_str().expect("a kind");
    match kind {
        "Pod" => Change::UpsertPod(parse::pod(object).expect("a pod").value),
        "Namespace" => Change::UpsertNamespace(parse::namespace(object).expect("a namespace").value),
        "NetworkPolicy" => Change::UpsertPolicy(parse::policy(object).expect("a policy").value),
        other => panic!("no kind {other}"),
    }
}

pub fn namespace(name: &str, labels: Value) -> Value {
    json!({"kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

/// A running pod on [`NODE`]; its UID is its name.
pub fn pod(name: &str, address: &str, labels: Value) -> Value {
    let ObjectName { namespace, name } = object_name(name);
    json!({
        "kind": "Pod",
        "metadata": {"namespace": *namespace, "name": *name, "uid": *name, "labels": labels,
                     "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"nodeName": NODE, "containers": []},
        "status": {"phase": "Running", "podIPs": [{"ip": address}]},
    })
}

pub fn policy(name: &str, spec: Value) -> Value {
    let ObjectName { namespace, name } = object_name(name);
    json!({"kind": "NetworkPolicy", "metadata": {"namespace": *namespace, "name": *name}, "spec": spec})
}

/// The object with the value at a JSON pointer changed (parents are made where they are missing).
pub fn set(mut object: Value, pointer: &str, value: Value) -> Value {
    let mut target = &mut object;
    for part in pointer.trim_start_matches('/').split('/') {
        let part = part.replace("~1", "/");
        target = match target {
            Value::Array(items) => &mut items[part.parse::<usize>().expect("a position")],
            other => &mut other[part],
        };
    }
    *target = value;
    object
}
