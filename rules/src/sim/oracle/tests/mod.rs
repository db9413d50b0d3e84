//! A hand-written example for each row of the semantics, both verdicts.
//!
//! In: small clusters. Out: nothing. What always holds: what is expected here was read in the specification.

mod documented;
mod fail_closed;
mod guards;
mod life;
mod peers;
mod policies;
mod ports;

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{Oracle, Row};
use crate::sim::cluster::{Cluster, Packet, Place, Probe, node_name, pod_v4, pod_v6, slot_of};

/// A running pod `namespace/name` in a slot of a node, with both families.
fn pod(name: &str, (node, slot): (u8, u8), labels: Value) -> Value {
    let (namespace, name) = name.split_once('/').expect("namespace/name");
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "uid": name, "labels": labels,
            "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"nodeName": node_name(node), "containers": []},
        "status": {"phase": "Running", "podIP": pod_v4(node, slot),
            "podIPs": [{"ip": pod_v4(node, slot)}, {"ip": pod_v6(node, slot)}]},
    })
}

/// The same with other fields: each is a JSON pointer and its value.
fn with(mut object: Value, fields: &[(&str, Value)]) -> Value {
    for (path, value) in fields {
        let mut inner = &mut object;
        for step in path.split('.') {
            inner = &mut inner[step];
        }
        *inner = value.clone();
    }
    object
}

fn namespace(name: &str, labels: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

/// A policy of namespace `a`.
fn policy(spec: Value) -> Value {
    policy_of("a", spec)
}

fn policy_of(namespace: &str, spec: Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "p", "namespace": namespace}, "spec": spec})
}

/// Slots of the pods that [`shop`] has.
const WEB: (u8, u8) = (1, 0);
const DB: (u8, u8) = (1, 1);
const FAR: (u8, u8) = (2, 0);
const OTHER: (u8, u8) = (1, 2);

/// `a/web` and `a/db` on the node under test, `a/far` on another, `b/other` in another namespace; and policies.
fn shop(policies: impl IntoIterator<Item = Value>) -> Cluster {
    let mut cluster = Cluster::empty();
    cluster.objects = vec![
        namespace("a", json!({"env": "prod"})),
        namespace("b", json!({"env": "dev"})),
        pod("a/web", WEB, json!({"app": "web"})),
        pod("a/db", DB, json!({"app": "db"})),
        pod("a/far", FAR, json!({"app": "web"})),
        pod("b/other", OTHER, json!({"app": "web"})),
    ];
    cluster.objects.extend(policies);
    cluster
}

/// Where an address of the lab stands.
fn place(cluster: &Cluster, address: IpAddr) -> Place {
    if let Some((node, _)) = slot_of(address) {
        return Place::Pods(node_name(node));
    }
    let node = cluster.nodes.iter().find(|node| node.addresses().any(|it| it == address));
    node.map_or(Place::Outside, |node| Place::Node(node.name.clone()))
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A packet between two addresses.
fn packet(cluster: &Cluster, from: IpAddr, to: IpAddr, packet: Packet, port: u16) -> Probe {
    Probe::new((place(cluster, from), from), (place(cluster, to), to), packet, port)
}

/// Both families: TCP from a slot to another.
fn tcp(cluster: &Cluster, from: (u8, u8), to: (u8, u8), port: u16) -> bool {
    send(cluster, from, to, Packet::Tcp, port)
}

fn send(cluster: &Cluster, from: (u8, u8), to: (u8, u8), kind: Packet, port: u16) -> bool {
    let four = packet(cluster, pod_v4(from.0, from.1), pod_v4(to.0, to.1), kind, port);
    let six = packet(cluster, pod_v6(from.0, from.1), pod_v6(to.0, to.1), kind, port);
    let oracle = Oracle::new(cluster);
    assert_eq!(oracle.allowed(&four), oracle.allowed(&six), "both families alike");
    oracle.allowed(&four)
}

/// TCP to port 80 between two addresses.
fn reaches(cluster: &Cluster, from: &str, to: &str) -> bool {
    Oracle::new(cluster).allowed(&packet(cluster, address(from), address(to), Packet::Tcp, 80))
}

/// What decided a TCP packet to port 80.
fn why(cluster: &Cluster, from: (u8, u8), to: (u8, u8)) -> Vec<Row> {
    let probe = packet(cluster, pod_v4(from.0, from.1), pod_v4(to.0, to.1), Packet::Tcp, 80);
    Oracle::new(cluster).verdict(&probe).reasons
}
