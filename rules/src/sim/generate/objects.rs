//! Random namespaces and pods.
//!
//! In: random numbers. Out: whole objects as JSON. What always holds: an object is one an API server would hold; names are
//! unique.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{Families, Random};
use crate::sim::cluster::{Node, SLOTS, node_name, pod_v4, pod_v6};

/// Numbers that ports of pods, policies and probes have in common.
pub(super) const NUMBERS: [u16; 7] = [53, 80, 81, 443, 8080, 8081, 9090];
/// Names of ports likewise.
pub(super) const NAMES: [&str; 3] = ["http", "dns", "9-metrics"];
/// Protocols, TCP by far the most frequent.
pub(super) const PROTOCOLS: [(usize, &str); 3] = [(70, "TCP"), (20, "UDP"), (10, "SCTP")];

/// 2 to 6 names, the longest, and such as begin with a digit, among them.
pub(super) fn namespace_names(random: &mut Random) -> Vec<String> {
    let longest = format!("1{}", "n".repeat(62));
    let all = ["default", "shop", "7-seas", "prod", &longest, "k"];
    let first = random.below(all.len());
    (0..random.between(2, 6)).map(|index| all[(first + index) % all.len()].to_owned()).collect()
}

/// Labels that selectors of namespaces often match.
pub(super) fn namespace_labels(random: &mut Random) -> Value {
    let mut labels = json!({});
    for (key, values) in [("env", ["prod", "dev"]), ("team", ["red", "blue"])] {
        if random.percent(65) {
            labels[key] = json!(random.pick(&values));
        }
    }
    labels
}

pub(super) fn namespace(random: &mut Random, name: &str) -> Value {
    let mut labels = namespace_labels(random);
    labels["kubernetes.io/metadata.name"] = json!(name);
    let mut object = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "uid": format!("ns-{name}"), "labels": labels},
        "status": {"phase": "Active"},
    });
    if random.percent(12) {
        object["metadata"]["deletionTimestamp"] = json!("2026-01-05T00:00:00Z");
        object["status"]["phase"] = json!("Terminating");
    }
    if random.percent(8) {
        let mode = *random.weighted(&[(85, "audit"), (15, "enforce")]);
        object["metadata"]["annotations"] = json!({"flatfell.io/mode": mode});
    }
    object
}

/// Labels that selectors of pods often match.
pub(super) fn pod_labels(random: &mut Random) -> Value {
    let mut labels = json!({});
    for (key, values) in [("app", ["web", "db"]), ("tier", ["front", "back"]), ("example.com/role", ["a", "b"])] {
        if random.percent(60) {
            labels[key] = json!(random.pick(&values));
        }
    }
    labels
}

/// 3 to 20 pods, half of them on the node under test.
pub(super) fn pods(random: &mut Random, namespaces: &[String], families: Families, nodes: &[Node]) -> Vec<Value> {
    let mut taken = [0_u8; 3];
    let mut pods = Vec::new();
    for index in 0..random.between(3, 20) {
        let node = *random.weighted(&[(55, 1_u8), (30, 2), (15, 3)]);
        let used = &mut taken[usize::from(node - 1)];
        if *used == SLOTS {
            continue;
        }
        let shared = *used > 0 && random.percent(18);
        let slot = if shared { u8::try_from(random.below(usize::from(*used))).unwrap_or_default() } else { *used };
        *used += u8::from(!shared);
        let namespace = random.pick(namespaces);
        let mut pod = pod(random, index, namespace, node);
        life(random, &mut pod);
        if random.percent(18) {
            host_network(&mut pod, &nodes[usize::from(node - 1)].underlay);
        } else {
            addresses(random, &mut pod, families, node, slot);
        }
        pods.push(pod);
    }
    pods
}

/// A name that no other pod has: short, with dots and a leading digit, or the longest there is.
fn pod_name(random: &mut Random, index: usize) -> String {
    match random.below(10) {
        0 => format!("{index}.first.digit"),
        1 => {
            let head = format!("{index}-{}.{}.{}.", "p".repeat(60), "q".repeat(63), "r".repeat(63));
            let tail = 253 - head.len();
            format!("{head}{}", "s".repeat(tail))
        }
        _ => format!("pod-{index}"),
    }
}

fn pod(random: &mut Random, index: usize, namespace: &str, node: u8) -> Value {
    let name = pod_name(random, index);
    let created = format!("2026-01-0{}T00:00:00Z", random.between(1, 3));
    let uid = format!("{:08x}", random.bits() >> 32);
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "uid": uid, "creationTimestamp": created,
            "labels": pod_labels(random)},
        "spec": {"nodeName": node_name(node)},
    });
    let count = random.between(1, 2);
    pod["spec"]["containers"] = (0..count).map(|number| container(random, &format!("c{number}"))).collect();
    if random.percent(45) {
        let mut init = container(random, "init");
        if random.percent(55) {
            init["restartPolicy"] = json!("Always");
        }
        pod["spec"]["initContainers"] = json!([init]);
    }
    if random.percent(10) {
        pod["spec"]["ephemeralContainers"] = json!([container(random, "debug")]);
    }
    if random.percent(8) {
        pod["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "0123456789abcdef"});
    }
    pod
}

/// A container whose port names are unique in it, though not in the pod.
fn container(random: &mut Random, name: &str) -> Value {
    let mut ports = Vec::new();
    for port in NAMES {
        if random.percent(75) {
            let mut entry = json!({"name": port, "containerPort": random.pick(&NUMBERS)});
            if random.percent(45) {
                entry["protocol"] = json!(random.weighted(&PROTOCOLS));
            }
            ports.push(entry);
        }
    }
    json!({"name": name, "image": "example.com/app", "ports": ports})
}

/// Where the pod is in its life.
fn life(random: &mut Random, pod: &mut Value) {
    let phase = *random.weighted(&[(64, "Running"), (13, "Pending"), (9, "Succeeded"), (6, "Failed"), (8, "Unknown")]);
    pod["status"] = json!({"phase": phase});
    if random.percent(15) {
        pod["status"]["conditions"] = json!([{"type": "Ready", "status": "False"}]);
    }
    if random.percent(8) {
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-06T00:00:00Z");
    }
}

/// A host-network pod has the addresses of its node.
fn host_network(pod: &mut Value, underlay: &[IpAddr]) {
    pod["spec"]["hostNetwork"] = json!(true);
    pod["status"]["podIP"] = json!(underlay[0]);
    pod["status"]["podIPs"] = underlay.iter().map(|address| json!({"ip": address})).collect();
}

/// The addresses of the pod's slot, in `podIPs` and `podIP` or only in the latter.
fn addresses(random: &mut Random, pod: &mut Value, families: Families, node: u8, slot: u8) {
    let (four, six) = (pod_v4(node, slot), pod_v6(node, slot));
    let mut addresses = match families {
        Families::Four => vec![four],
        Families::Six => vec![six],
        Families::Both => random.weighted(&[(80, vec![four, six]), (10, vec![four]), (10, vec![six])]).clone(),
    };
    if random.percent(30) {
        addresses.reverse();
    }
    if pod["status"]["phase"] == "Pending" && random.percent(25) {
        return;
    }
    pod["status"]["podIP"] = json!(addresses[0]);
    match random.below(20) {
        0 => {}
        1 => pod["status"]["podIPs"] = json!([]),
        2 => pod["status"]["podIPs"] = Value::Null,
        _ => pod["status"]["podIPs"] = addresses.iter().map(|address| json!({"ip": address})).collect(),
    }
}
