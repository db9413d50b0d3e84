//! The raw objects, sorted by kind, with what has to be looked up often taken out once.
//!
//! In: the objects of a [`Cluster`](crate::sim::cluster::Cluster). Out: [`World`]. What always holds: nothing is judged
//! here; every decision is the oracle's.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::Value;

use super::refuse::{Fault, faults};

/// All objects.
#[derive(Debug)]
pub struct World<'a> {
    /// The pods.
    pub pods: Vec<Pod<'a>>,
    /// Labels and raw object of each known namespace.
    pub namespaces: BTreeMap<&'a str, (BTreeMap<&'a str, &'a str>, &'a Value)>,
    /// The policies of each namespace.
    pub policies: BTreeMap<&'a str, Vec<Policy<'a>>>,
}

/// A pod.
#[derive(Debug)]
pub struct Pod<'a> {
    /// The whole object.
    pub raw: &'a Value,
    /// metadata.namespace.
    pub namespace: &'a str,
    /// metadata.labels.
    pub labels: BTreeMap<&'a str, &'a str>,
    /// status.podIPs.
    pub pod_ips: Vec<IpAddr>,
    /// status.podIP.
    pub pod_ip: Option<IpAddr>,
}

/// A policy.
#[derive(Debug)]
pub struct Policy<'a> {
    /// The whole object.
    pub raw: &'a Value,
    /// What is wrong with it.
    pub faults: BTreeSet<Fault>,
}

/// The elements of a list, none of anything else.
pub fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// metadata.namespace, which the API server sets to `default` where a manifest has none.
fn namespace_of(object: &Value) -> &str {
    object["metadata"]["namespace"].as_str().unwrap_or("default")
}

/// metadata.labels.
fn labels_of(object: &Value) -> BTreeMap<&str, &str> {
    let labels = object["metadata"]["labels"].as_object();
    labels.into_iter().flatten().filter_map(|(key, value)| Some((key.as_str(), value.as_str()?))).collect()
}

impl<'a> World<'a> {
    /// Sorts the objects by kind.
    pub fn new(objects: &'a [Value]) -> Self {
        let mut world = Self { pods: Vec::new(), namespaces: BTreeMap::new(), policies: BTreeMap::new() };
        for object in objects {
            match object["kind"].as_str() {
                Some("Pod") => world.pods.push(Pod::new(object)),
                Some("Namespace") => world.add_namespace(object),
                Some("NetworkPolicy") => {
                    let policy = Policy { raw: object, faults: faults(object) };
                    world.policies.entry(namespace_of(object)).or_default().push(policy);
                }
                _ => {}
            }
        }
        world
    }

    /// "The Kubernetes API server sets the label kubernetes.io/metadata.name on all namespaces; the value is the name."
    fn add_namespace(&mut self, object: &'a Value) {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let mut labels = labels_of(object);
        labels.insert("kubernetes.io/metadata.name", name);
        self.namespaces.insert(name, (labels, object));
    }
}

impl<'a> Pod<'a> {
    fn new(raw: &'a Value) -> Self {
        let status = &raw["status"];
        let address = |value: &Value| value.as_str().and_then(|text| text.parse().ok());
        Self {
            raw,
            namespace: namespace_of(raw),
            labels: labels_of(raw),
            pod_ips: items(&status["podIPs"]).iter().filter_map(|entry| address(&entry["ip"])).collect(),
            pod_ip: address(&status["podIP"]),
        }
    }

    /// spec.nodeName.
    pub fn node(&self) -> Option<&str> {
        self.raw["spec"]["nodeName"].as_str()
    }

    /// spec.hostNetwork.
    pub fn host_network(&self) -> bool {
        self.raw["spec"]["hostNetwork"] == true
    }

    /// status.phase is Succeeded or Failed.
    pub fn terminal(&self) -> bool {
        matches!(self.raw["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
    }

    /// Nothing about its life is out of the ordinary: running, ready and not asked to go.
    pub fn healthy(&self) -> bool {
        let not_ready = items(&self.raw["status"]["conditions"])
            .iter()
            .any(|condition| condition["type"] == "Ready" && condition["status"] != "True");
        let running = self.raw["status"]["phase"].as_str().is_none_or(|phase| phase == "Running");
        running && self.raw["metadata"]["deletionTimestamp"].is_null() && !not_ready
    }

    /// The API server's copy of a pod that a kubelet runs from a file.
    pub fn mirror(&self) -> bool {
        !self.raw["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_null()
    }

    /// What decides which of two pods an address belongs to: the greatest has it. The smallest UID comes first.
    pub fn seniority(&self) -> (bool, &str, Reverse<&str>) {
        let text = |field: &'static str| self.raw["metadata"][field].as_str().unwrap_or_default();
        (!self.terminal(), text("creationTimestamp"), Reverse(text("uid")))
    }
}
