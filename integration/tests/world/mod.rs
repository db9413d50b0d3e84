//! A cluster of one node's pods for tests that change policy quickly: objects in, an engine of this process, traffic.
//!
//! In: objects as JSON. Out: what the engine enforces. What always holds: an object that is not understood fails the test.
#![allow(dead_code, clippy::expect_used)]

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use flatfell::engine::{Engine, EngineConfig};
use flatfell_integration::{Flow, Lab, LabConfig, Place, Stream};
use flatfell_rules::effective::{Effective, evaluate};
use flatfell_rules::index::{Change, Index};
use flatfell_rules::object::ObjectName;
use flatfell_rules::parse;
use serde_json::{Value, json};

pub const NODE: &str = "node1";
const WITHIN: Duration = Duration::from_secs(20);

/// A pod of the lab's first node, in namespace `x`.
pub fn pod(name: &str, slot: u8, labels: Value) -> Value {
    let place = Place::pod(1, slot);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "x", "labels": labels},
        "spec": {"nodeName": NODE},
        "status": {"phase": "Running", "podIPs": [{"ip": place.v4().to_string()}, {"ip": place.v6().to_string()}]}})
}

/// A pod whose only label is `app`.
pub fn app(name: &str, slot: u8, app: &str) -> Value {
    pod(name, slot, json!({"app": app}))
}

/// The namespace `x`.
pub fn namespace() -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x", "labels": {"team": "x"}}})
}

/// A policy of namespace `x` for the pods with this `app`.
pub fn policy(name: &str, app: &str, direction: &str, rules: Value) -> Value {
    let kind = if direction == "ingress" { "Ingress" } else { "Egress" };
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "x"},
        "spec": {"podSelector": {"matchLabels": {"app": app}}, "policyTypes": [kind], direction: rules}})
}

/// The pods with this `app`, as a peer.
pub fn peer(app: &str) -> Value {
    json!({"podSelector": {"matchLabels": {"app": app}}})
}

/// The change that brings an object.
pub fn put(object: &Value) -> Change {
    match object["kind"].as_str().expect("a kind") {
        "Pod" => Change::UpsertPod(parse::pod(object).expect("a pod").value),
        "Namespace" => Change::UpsertNamespace(parse::namespace(object).expect("a namespace").value),
        _ => Change::UpsertPolicy(parse::policy(object).expect("a policy").value),
    }
}

pub fn without_policy(name: &str) -> Change {
    Change::DeletePolicy(ObjectName::new("x", name))
}

/// The changes by which a pod leaves: from the API, then with its interface.
pub fn without_pod(name: &str, slot: u8) -> Vec<Change> {
    let gone = Place::pod(1, slot).addresses().map(Change::InterfaceGone);
    std::iter::once(Change::DeletePod(ObjectName::new("x", name))).chain(gone).collect()
}

/// One node, its pods, and an engine in it.
pub struct World {
    // Before the lab: its sockets live in the lab's namespaces.
    pub engine: Engine,
    pub lab: Lab,
    pub index: Index,
}

impl World {
    /// A node with so many pods, these objects enforced.
    pub fn new(pods: u8, objects: &[Value]) -> Self {
        let lab = Lab::new(LabConfig { nodes: 1, pods, ..LabConfig::default() }).expect("a lab");
        let node = lab.netns(Place::Node(1)).expect("the node");
        // Else conntrack remembers every packet of the test.
        let timeouts = [("udp_timeout", "2"), ("udp_timeout_stream", "60")];
        node.run(|| {
            for (file, seconds) in timeouts {
                std::fs::write(format!("/proc/sys/net/netfilter/nf_conntrack_{file}"), seconds).expect("sysctl");
            }
        })
        .expect("the node");
        let engine = start(&lab);
        let mut world = Self { engine, lab, index: Index::new(NODE) };
        let mut changes = vec![put(&namespace())];
        changes.extend(objects.iter().map(put));
        world.change(changes);
        world
    }

    /// Stops the engine, does something, and starts another one that is told the same.
    pub fn restarted(self, meanwhile: impl FnOnce(&Lab)) -> Self {
        let Self { engine, lab, index } = self;
        engine.stop();
        meanwhile(&lab);
        let mut world = Self { engine: start(&lab), lab, index };
        world.change([]);
        world.swept();
        world
    }

    /// Makes the changes at once, and returns when the kernel enforces them.
    pub fn change(&mut self, changes: impl IntoIterator<Item = Change>) {
        let effective = self.submit(changes);
        self.settled(&effective);
    }

    /// Makes the changes at once.
    pub fn submit(&mut self, changes: impl IntoIterator<Item = Change>) -> Arc<Effective> {
        for change in changes {
            self.index.apply(change);
        }
        let effective = Arc::new(evaluate(&self.index));
        self.engine.submit(Arc::clone(&effective));
        effective
    }

    /// Returns when the kernel enforces this.
    pub fn settled(&self, effective: &Arc<Effective>) {
        assert!(self.engine.wait_enforced(effective, WITHIN), "{:?}", self.engine.status());
    }

    /// Returns when no running connection is left that is forbidden.
    pub fn swept(&self) {
        assert!(self.engine.wait(WITHIN, |status| status.swept), "{:?}", self.engine.status());
    }

    /// Moves to the other tables.
    pub fn take_over(&self, effective: &Arc<Effective>) {
        let takeovers = self.engine.status().transactions.takeovers;
        self.engine.take_over();
        let reached = self.engine.wait(WITHIN, |status| status.transactions.takeovers > takeovers && status.synced);
        assert!(reached, "{:?}", self.engine.status());
        self.settled(effective);
    }
}

/// A stream between pods of the node, to the first address of each family.
pub fn streams(from: u8, to: u8, port: u16, flow: Flow) -> [Stream; 2] {
    let (from, to) = (Place::pod(1, from), Place::pod(1, to));
    to.addresses().map(|address: IpAddr| Stream::new(from, to, address, port, flow))
}

fn start(lab: &Lab) -> Engine {
    let config = EngineConfig::default();
    let node = lab.netns(Place::Node(1)).expect("the node");
    node.run(|| Engine::start(config).expect("an engine")).expect("the node")
}
