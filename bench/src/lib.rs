//! A cluster of a given size, for benches, and the packet bench ([`packets`]).
//!
//! In: a [`Size`]. Out: its objects as an API server shows them, and a pod that joins. What always holds: the same size
//! gives the same objects; every policy selects pods and every peer selector matches some.

pub mod events;
pub mod packets;

use serde_json::{Value, json};

/// The node that is looked at.
pub const NODE: &str = "node1";

const NAMESPACES: usize = 50;
const APPS: usize = 20;
/// Pods of a namespace are spread over the apps, so this many policies of one namespace each have subjects of their own.
const POLICIES_OF_NAMESPACE: usize = APPS;

/// How large a cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Pods in the cluster.
    pub pods: usize,
    /// How many of them are on [`NODE`].
    pub local: usize,
    /// Policies in the cluster, at most 1,000.
    pub policies: usize,
}

impl Size {
    /// 1,000 policies and 250 local pods in a cluster of this many pods.
    pub const fn with_pods(pods: usize) -> Self {
        Self { pods, local: 250, policies: NAMESPACES * POLICIES_OF_NAMESPACE }
    }

    /// The namespaces.
    pub fn namespaces(&self) -> Vec<Value> {
        let namespace = |number: usize| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace_name(number), "labels": {"team": format!("team{}", number % 10)}}});
        (0..NAMESPACES).map(namespace).collect()
    }

    /// The pods; the local ones are spread over all namespaces and apps.
    pub fn pods(&self) -> Vec<Value> {
        (0..self.pods).map(|number| self.pod(number)).collect()
    }

    /// One of them.
    pub fn pod(&self, number: usize) -> Value {
        pod(number, &self.node_of(number))
    }

    /// One more pod on another node, which policies name as a peer.
    pub fn joining_pod(&self) -> Value {
        pod(self.pods, "node2")
    }

    /// The policies.
    pub fn network_policies(&self) -> Vec<Value> {
        (0..self.policies).map(policy).collect()
    }

    fn node_of(&self, number: usize) -> String {
        if number < self.local { NODE.to_owned() } else { format!("node{}", 2 + number % 40) }
    }
}

fn namespace_name(number: usize) -> String {
    format!("namespace{}", number % NAMESPACES)
}

fn app_name(number: usize) -> String {
    format!("app{}", number % APPS)
}

fn pod(number: usize, node: &str) -> Value {
    let (high, low) = (number / 250, 1 + number % 250);
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": format!("pod{number}"),
            "namespace": namespace_name(number),
            "uid": format!("uid{number}"),
            "creationTimestamp": "2025-01-01T00:00:00Z",
            "labels": {"app": app_name(number / NAMESPACES), "track": if number.is_multiple_of(3) { "canary" } else { "stable" }},
        },
        "spec": {
            "nodeName": node,
            "containers": [{"name": "main", "image": "bench", "ports": [{"name": "http", "containerPort": 8080}]}],
        },
        "status": {
            "phase": "Running",
            "podIP": format!("10.{}.{}.{low}", 64 + high / 250, high % 250),
            "podIPs": [{"ip": format!("10.{}.{}.{low}", 64 + high / 250, high % 250)}, {"ip": format!("fd00:64::{high:x}:{low:x}")}],
        },
    })
}

/// Both directions isolated; peers by app, by team and by address, ports by number, range and name.
fn policy(number: usize) -> Value {
    let app = number / NAMESPACES;
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": format!("policy{number}"), "namespace": namespace_name(number), "uid": format!("uid-policy{number}")},
        "spec": {
            "podSelector": {"matchLabels": {"app": app_name(app)}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {
                    "from": [{"podSelector": {"matchLabels": {"app": app_name(app + 1)}}}],
                    "ports": [{"port": 8080}, {"port": 9000, "endPort": 9010}],
                },
                {"from": [{"namespaceSelector": {"matchLabels": {"team": format!("team{}", number % 10)}}}], "ports": [{"port": 9090}]},
            ],
            "egress": [
                {"to": [{"podSelector": {"matchLabels": {"app": app_name(app + 2)}}}], "ports": [{"port": "http"}]},
                {
                    "to": [{"ipBlock": {"cidr": format!("192.168.{}.0/24", number % 250), "except": [format!("192.168.{}.64/26", number % 250)]}}],
                    "ports": [{"port": 443}],
                },
                {"ports": [{"protocol": "UDP", "port": 53}]},
            ],
        },
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use flatfell_rules::parse;

    use super::*;

    #[test]
    fn every_object_is_understood_and_every_policy_has_subjects() {
        let size = Size::with_pods(1_000);
        assert!(size.namespaces().iter().all(|object| parse::namespace(object).is_ok()));
        let policies: Vec<_> =
            size.network_policies().iter().map(|object| parse::policy(object).map(|parsed| parsed.value)).collect();
        let pods: Vec<_> = size.pods().iter().map(|object| parse::pod(object).map(|parsed| parsed.value)).collect();
        assert_eq!((policies.len(), pods.len()), (1_000, 1_000));
        for policy in policies.into_iter().map(Result::unwrap) {
            let selects = |pod: &flatfell_rules::object::Pod| {
                pod.name.namespace == policy.name.namespace && policy.subject.matches(&pod.labels)
            };
            assert!(policy.refusal.is_none() && pods.iter().flatten().any(selects), "{}", policy.name);
        }
    }

    #[test]
    fn no_address_comes_twice() {
        let pods = Size::with_pods(10_000).pods();
        let addresses: std::collections::BTreeSet<String> =
            pods.iter().map(|pod| pod["status"]["podIPs"].to_string()).collect();
        assert_eq!(addresses.len(), pods.len());
    }
}
