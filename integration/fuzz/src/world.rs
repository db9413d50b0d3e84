//! The cluster that fuzzed objects are put beside, and what must stay denied in it.
//!
//! In: changes of the index that came out of fuzzed bytes. Out: nothing, or a panic where they opened what they may not open. What always holds:
//! pod `a/shut` is isolated both ways by a policy that allows nothing, so that only what names it can open it: a policy of its
//! namespace that was understood, or another object in its place.

use std::net::IpAddr;

use flatfell_rules::compile::{Layout, compile};
use flatfell_rules::diff::plan;
use flatfell_rules::effective::{Effective, evaluate};
use flatfell_rules::encode::{Ownership, encode};
use flatfell_rules::ids::Ids;
use flatfell_rules::index::{Change, Index};
use flatfell_rules::object::ObjectName;
use flatfell_rules::parse;
use flatfell_rules::ranges::PodRanges;
use flatfell_rules::ruleset::{Ruleset, text};
use flatfell_rules::sim::cluster::packet::{passed, traces};
use flatfell_rules::sim::cluster::{Cluster, Packet, Place, Probe, node_name, pod_v4, pod_v6};
use flatfell_rules::sim::kernel::FakeKernel;
use ipnetwork::IpNetwork;
use serde_json::{Value, json};

/// The namespace of the pod that is shut.
pub const NAMESPACE: &str = "a";
/// Its name, and that of the policy that shuts it.
pub const SHUT: &str = "shut";

const SHUT_SLOT: (u8, u8) = (1, 0);
const OPEN_SLOT: (u8, u8) = (1, 1);
const FAR_SLOT: (u8, u8) = (2, 0);

fn pod(namespace: &str, name: &str, (node, slot): (u8, u8)) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "uid": name, "labels": {"app": name},
            "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"nodeName": node_name(node), "containers": [{"ports": [{"name": "web", "containerPort": 80}]}]},
        "status": {"phase": "Running", "podIP": pod_v4(node, slot),
            "podIPs": [{"ip": pod_v4(node, slot)}, {"ip": pod_v6(node, slot)}]},
    })
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name, "env": name}}})
}

/// The cluster without anything fuzzed: `a/shut`, `a/open` and `b/open` on the node under test, `b/far` on another.
pub fn cluster() -> Cluster {
    let shut = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": SHUT, "namespace": NAMESPACE},
        "spec": {"podSelector": {"matchLabels": {"app": SHUT}}, "policyTypes": ["Ingress", "Egress"]},
    });
    let mut cluster = Cluster::empty();
    let (same, other) = (pod("a", "open", OPEN_SLOT), pod("b", "open", (1, 2)));
    cluster.objects =
        vec![namespace("a"), namespace("b"), pod("a", SHUT, SHUT_SLOT), same, other, pod("b", "far", FAR_SLOT), shut];
    cluster
}

/// The addresses of the pod that is shut.
pub fn shut_addresses() -> [IpAddr; 2] {
    [pod_v4(SHUT_SLOT.0, SHUT_SLOT.1), pod_v6(SHUT_SLOT.0, SHUT_SLOT.1)]
}

/// Packets from and to the pod that is shut: near, far, outside, both families.
pub fn probes(cluster: &Cluster) -> Vec<Probe> {
    let here = || Place::Pods(node_name(1));
    let mut probes = Vec::new();
    for (family, shut) in shut_addresses().into_iter().enumerate() {
        let address = |(node, slot)| if family == 0 { pod_v4(node, slot) } else { pod_v6(node, slot) };
        let others = [
            (here(), address(OPEN_SLOT)),
            (Place::Pods(node_name(2)), address(FAR_SLOT)),
            (Place::Outside, cluster.outside[family]),
        ];
        for other in others {
            for (packet, port) in [(Packet::Tcp, 80), (Packet::Udp, 53), (Packet::Echo, 0)] {
                probes.push(Probe::new(other.clone(), (here(), shut), packet, port));
                probes.push(Probe::new((here(), shut), other.clone(), packet, port));
            }
        }
    }
    probes
}

/// An object as the index takes it.
fn understood(object: &Value) -> Change {
    match object["kind"].as_str() {
        Some("Pod") => Change::UpsertPod(parse::pod(object).expect("a pod").value),
        Some("Namespace") => Change::UpsertNamespace(parse::namespace(object).expect("a namespace").value),
        _ => Change::UpsertPolicy(parse::policy(object).expect("a policy").value),
    }
}

/// The index of the cluster.
pub fn index(cluster: &Cluster) -> Index {
    let mut index = Index::new(cluster.node.clone());
    for change in cluster.objects.iter().map(understood) {
        index.apply(change);
    }
    index
}

/// The rules of what an index says; also that they can be printed, and that a kernel takes them.
pub fn ruleset(index: &Index) -> Ruleset {
    let effective = evaluate(index);
    let ruleset = compile(&effective, &layout(&effective)).ruleset;
    let listing = text::ruleset(&ruleset);
    assert!(!listing.contains('\u{1}'), "a control character in a listing");
    let have = Ruleset::default();
    let change = plan(&have.clone().into(), ruleset.clone(), || ruleset.clone());
    let mut kernel = FakeKernel { ruleset: have };
    for step in change.steps() {
        encode(step, Ownership::Shared).unwrap_or_else(|error| panic!("cannot be encoded: {error:?}"));
        kernel.commit(step).unwrap_or_else(|error| panic!("a kernel refuses it: {error}: {:?}", step.get(error.index)));
    }
    ruleset
}

fn layout(effective: &Effective) -> Layout {
    let ranges: Vec<IpNetwork> =
        ["10.244.1.0/24", "fd00:10:244:1::/64"].map(|text| text.parse().expect("a range")).into();
    Layout {
        bridges: ["cni0".to_owned()].into(),
        pod_ranges: PodRanges::new(&ranges, []),
        ids: Ids::fresh(effective),
        ..Layout::default()
    }
}

/// Whether this may open the pod that is shut: it says something of it that was understood.
pub fn concerns_the_shut(change: &Change) -> bool {
    let is_shut = |name: &ObjectName| name.namespace.as_ref() == NAMESPACE && name.name.as_ref() == SHUT;
    match change {
        Change::UpsertPod(pod) => is_shut(&pod.name) || pod.addresses.iter().any(|it| shut_addresses().contains(it)),
        Change::DeletePod(name) | Change::DeletePolicy(name) => is_shut(name),
        Change::UpsertNamespace(namespace) => namespace.name == NAMESPACE,
        Change::DeleteNamespace(name) => name == NAMESPACE,
        // A refused policy opens nothing; in the place of the one that shuts the pod it may select another.
        Change::UpsertPolicy(policy) => {
            is_shut(&policy.name) || (policy.name.namespace.as_ref() == NAMESPACE && policy.refusal.is_none())
        }
        Change::InterfaceGone(address) => shut_addresses().contains(address),
        Change::Claim(claim) => claim.addresses.iter().any(|it| shut_addresses().contains(it)),
        Change::Release(_) => false,
    }
}

/// The probes that these rules let through.
pub fn passing<'a>(cluster: &Cluster, ruleset: &Ruleset, probes: &'a [Probe]) -> Vec<&'a Probe> {
    probes.iter().filter(|probe| passed(&traces(ruleset, cluster, probe))).collect()
}

/// Puts changes beside the cluster. What does not concern the pod that is shut leaves it shut.
pub fn beside(changes: Vec<Change>) {
    let cluster = cluster();
    let may_open = changes.iter().any(concerns_the_shut);
    let mut index = index(&cluster);
    for change in changes {
        index.apply(change);
    }
    let ruleset = ruleset(&index);
    if !may_open {
        let probes = probes(&cluster);
        let passing = passing(&cluster, &ruleset, &probes);
        assert!(passing.is_empty(), "opened: {}", passing[0]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(without: &str, more: Option<Value>) -> usize {
        let mut cluster = cluster();
        cluster.objects.retain(|object| object["kind"] != without);
        cluster.objects.extend(more);
        let ruleset = ruleset(&index(&cluster));
        passing(&cluster, &ruleset, &probes(&cluster)).len()
    }

    /// The assertion can fail: what is shut would be open.
    #[test]
    fn the_policy_alone_keeps_every_probe_out() {
        let all = probes(&cluster()).len();
        assert_eq!((count("", None), count("NetworkPolicy", None)), (0, all));
        let opens = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "p", "namespace": "a"},
            "spec": {"podSelector": {}, "ingress": [{}]}});
        assert!((1..all).contains(&count("", Some(opens.clone()))));
        let change = understood(&opens);
        assert!(concerns_the_shut(&change));
        beside(vec![change]);
    }

    #[test]
    #[should_panic(expected = "opened")]
    fn what_opens_without_a_word_is_a_finding() {
        beside(vec![Change::Release("x".to_owned()), Change::DeletePolicy(ObjectName::new("b", "p"))]);
        let cluster = cluster();
        let mut open = cluster.clone();
        open.objects.retain(|object| object["kind"] != "NetworkPolicy");
        let ruleset = ruleset(&index(&open));
        assert!(passing(&cluster, &ruleset, &probes(&cluster)).is_empty(), "opened");
    }
}
