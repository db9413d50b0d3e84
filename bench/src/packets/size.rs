//! The cluster of a case, as manifests.
//!
//! In: a [`Size`]. Out: objects. What always holds: the pods that speak are isolated in both directions, and the rule that allows them
//! is the last of as many as the case says; every other rule of theirs matches the peer too and fails at the port.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flatfell_integration::Place;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::row::PORT;

/// Ports of the rules that do not match: from here on.
const OTHER_PORTS: usize = 7000;
const NAMESPACE: &str = "bench";

/// How large the cluster of a case is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Size {
    /// Policies beside those of the pods that speak; each selects a local pod.
    pub policies: usize,
    /// Pods of the node beside those that speak.
    pub local: usize,
    /// Rules of each direction that select a pod that speaks.
    pub rules: usize,
    /// Pods that the rule which allows names.
    pub peers: usize,
    /// CIDRs that it names in place of pods.
    pub blocks: usize,
}

impl Default for Size {
    fn default() -> Self {
        Self { policies: 100, local: 100, rules: 3, peers: 10, blocks: 0 }
    }
}

impl Size {
    /// Everything, as one file of manifests.
    pub fn manifests(&self) -> String {
        let mut items = vec![json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})];
        items.extend(speakers().map(|place| self.speaker(place)));
        items.extend((0..self.peers).map(peer));
        items.extend((0..self.local).flat_map(|number| [1, 2].map(|node| filler(node, number))));
        items.extend((0..4).map(|slot| self.policy(slot)));
        items.extend((0..self.policies).map(|number| self.other_policy(number)));
        json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
    }

    /// A pod that stands in a slot of the lab: TCP client and server, UDP client and server.
    fn speaker(&self, place: Place) -> Value {
        let Place::Pod { node, slot } = place else { return Value::Null };
        let mut labels =
            Map::from_iter([("slot".to_owned(), json!(slot.to_string())), ("peer".to_owned(), json!("yes"))]);
        labels.extend((0..self.rules).map(|number| (format!("rule{number}"), json!("yes"))));
        pod(&format!("speaker-{place}"), node, &Value::Object(labels), place.addresses())
    }

    /// The port of a rule that does not match.
    pub(super) const fn other_port(number: usize) -> usize {
        OTHER_PORTS + number
    }

    /// What holds for the pods of a slot: clients are isolated in egress by all rules and take nothing, servers the other way.
    fn policy(&self, slot: u8) -> Value {
        let protocol = if slot < 2 { "TCP" } else { "UDP" };
        let (word, ends) = if slot.is_multiple_of(2) { ("egress", "to") } else { ("ingress", "from") };
        let other = |number: usize| {
            let peers = json!([{"podSelector": {"matchLabels": {format!("rule{number}"): "yes"}}}]);
            json!({ends: peers, "ports": [{"protocol": protocol, "port": Self::other_port(number)}]})
        };
        let mut rules: Vec<Value> = (1..self.rules).map(other).collect();
        rules.push(json!({ends: self.allowed(), "ports": [{"protocol": protocol, "port": PORT}]}));
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": format!("speakers-{slot}"), "namespace": NAMESPACE},
            "spec": {"podSelector": {"matchLabels": {"slot": slot.to_string()}}, "policyTypes": ["Ingress", "Egress"], word: rules},
        })
    }

    fn allowed(&self) -> Value {
        if self.blocks == 0 {
            return json!([{"podSelector": {"matchLabels": {"peer": "yes"}}}]);
        }
        // Every second /28, so that none touches another.
        let block = |number: usize| {
            let number = u32::try_from(number).unwrap_or(0) * 32;
            json!({"ipBlock": {"cidr": format!("{}/28", Ipv4Addr::from_bits(0xac10_0000 + number))}})
        };
        let own = ["10.244.0.0/16", "fd00:10:244::/48"].map(|cidr| json!({"ipBlock": {"cidr": cidr}}));
        (0..self.blocks).map(block).chain(own).collect()
    }

    /// A policy of a pod that is there for its address only.
    fn other_policy(&self, number: usize) -> Value {
        let app = |number: usize| json!({"podSelector": {"matchLabels": {"app": format!("app{}", number % self.local.max(1))}}});
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": format!("policy{number}"), "namespace": NAMESPACE},
            "spec": {
                "podSelector": app(number)["podSelector"], "policyTypes": ["Ingress", "Egress"],
                "ingress": [{"from": [app(number + 1)], "ports": [{"port": 1000 + number % 5000}]}],
                "egress": [{"to": [app(number + 2)], "ports": [{"port": 1000 + number % 5000}]}],
            },
        })
    }
}

/// The pods that speak, on each node those of slots 0 to 3.
pub fn speakers() -> impl Iterator<Item = Place> {
    [1, 2].into_iter().flat_map(|node| (0..4).map(move |slot| Place::pod(node, slot)))
}

/// The addresses of a peer elsewhere.
pub fn peer_address(number: usize) -> [IpAddr; 2] {
    addresses(0x0b00_0000, 0xfd00_0077, number)
}

/// The addresses of a pod of a node that is there for them only.
pub fn filler_address(node: u8, number: usize) -> [IpAddr; 2] {
    addresses(0x0c00_0000, 0xfd00_0066, (usize::from(node) << 16) + number)
}

fn addresses(v4: u32, v6: u128, number: usize) -> [IpAddr; 2] {
    let number = u32::try_from(number).unwrap_or(0);
    [Ipv4Addr::from_bits(v4 + number).into(), Ipv6Addr::from_bits((v6 << 96) + u128::from(number)).into()]
}

/// A peer that comes and goes, as a manifest of its own; it is one with the label only.
pub fn passing_peer(number: usize, labelled: bool) -> String {
    let labels = if labelled { json!({"peer": "yes"}) } else { json!({"peer": "no"}) };
    pod(&format!("passing-{number}"), 3, &labels, peer_address(200_000 + number)).to_string()
}

fn peer(number: usize) -> Value {
    pod(&format!("peer-{number}"), 3, &json!({"peer": "yes"}), peer_address(number))
}

fn filler(node: u8, number: usize) -> Value {
    let labels = json!({"app": format!("app{number}")});
    pod(&format!("filler-{node}-{number}"), node, &labels, filler_address(node, number))
}

fn pod(name: &str, node: u8, labels: &Value, [v4, v6]: [IpAddr; 2]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "uid": name, "labels": labels},
        "spec": {"nodeName": format!("node{node}")},
        "status": {"phase": "Running", "podIP": v4.to_string(), "podIPs": [{"ip": v4.to_string()}, {"ip": v6.to_string()}]},
    })
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { policies, local, rules, peers, blocks } = self;
        let mut text = format!("{rules} rules a pod, {policies} policies, {local} local pods, {peers} peers");
        if *blocks > 0 {
            write!(text, ", {blocks} CIDRs")?;
        }
        f.write_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use flatfell_rules::parse;

    use super::*;

    #[test]
    fn every_object_is_understood() {
        let size = Size { policies: 3, local: 2, rules: 4, peers: 5, blocks: 6 };
        let list: Value = serde_json::from_str(&size.manifests()).expect("JSON");
        let items = list["items"].as_array().expect("a list");
        assert_eq!(items.len(), 1 + 8 + 5 + 4 + 4 + 3);
        for item in items {
            let understood = match item["kind"].as_str() {
                Some("Pod") => parse::pod(item).is_ok(),
                Some("NetworkPolicy") => parse::policy(item).is_ok_and(|policy| policy.value.refusal.is_none()),
                _ => parse::namespace(item).is_ok(),
            };
            assert!(understood, "{item}");
        }
    }
}
