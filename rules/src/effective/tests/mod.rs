//! One test for each row of the semantics, as verdicts of flows between `x/a` (10.0.0.1), `x/b` (10.0.0.2) and `y/c`
//! (10.0.1.1), all on this node, and addresses that are no pods.

mod sets;
mod shape;
mod sharing;

use serde_json::{Value, json};

use crate::index::Change;
use crate::judge::Flow;
use crate::policy::Direction;
use crate::testing::*;

const A: &str = "10.0.0.1";
const B: &str = "10.0.0.2";
const C: &str = "10.0.1.1";
const OUTSIDE: &str = "192.0.2.9";

fn cluster() -> Cluster {
    Cluster::new()
        .with(pod("x/a", A, json!({"app": "a"})))
        .with(pod("x/b", B, json!({"app": "b", "tier": "db"})))
        .with(pod("y/c", C, json!({"app": "c"})))
}

/// The cluster with one policy for `x/a`.
fn with_spec(spec: Value) -> Cluster {
    let mut spec = spec;
    spec["podSelector"] = json!({"matchLabels": {"app": "a"}});
    cluster().with(policy("x/p", spec))
}

fn ingress_from(peers: Value) -> Cluster {
    with_spec(json!({"ingress": [{"from": peers}]}))
}

/// Which of b, c and the outside reach a on a port.
fn reach(cluster: &Cluster, service: &str) -> String {
    [("b", B), ("c", C), ("o", OUTSIDE)]
        .iter()
        .filter(|(_, source)| cluster.allows(source, A, service))
        .map(|(name, _)| *name)
        .collect()
}

/// Which of b, c and the outside a reaches on a port.
fn reached(cluster: &Cluster, service: &str) -> String {
    [("b", B), ("c", C), ("o", OUTSIDE)]
        .iter()
        .filter(|(_, destination)| cluster.allows(A, destination, service))
        .map(|(name, _)| *name)
        .collect()
}

#[test]
fn isolation_only_once_a_policy_of_the_direction_selects_the_pod() {
    assert_eq!(reach(&cluster(), "tcp/80"), "bco");
    let ingress = with_spec(json!({"policyTypes": ["Ingress"]}));
    assert_eq!((reach(&ingress, "tcp/80").as_str(), reached(&ingress, "tcp/80").as_str()), ("", "bco"));
    let egress = with_spec(json!({"policyTypes": ["Egress"]}));
    assert_eq!((reach(&egress, "tcp/80").as_str(), reached(&egress, "tcp/80").as_str()), ("bco", ""));
    assert!(ingress.allows(C, B, "tcp/80"), "b is not selected");
}

#[test]
fn policy_types_unset_mean_ingress_and_egress_only_with_rules() {
    for (spec, ingress, egress) in [
        (json!({}), "", "bco"),
        (json!({"egress": []}), "", "bco"),
        (json!({"policyTypes": [], "egress": [{}]}), "", "bco"),
        (json!({"egress": [{"ports": [{"port": 80}]}]}), "", ""),
        (json!({"policyTypes": null, "ingress": [{}]}), "bco", "bco"),
    ] {
        let cluster = with_spec(spec.clone());
        assert_eq!(
            (reach(&cluster, "udp/9").as_str(), reached(&cluster, "udp/9").as_str()),
            (ingress, egress),
            "{spec}"
        );
    }
}

#[test]
fn policy_types_set_switch_off_rules_of_the_other_direction_and_may_repeat() {
    let cluster = with_spec(
        json!({"policyTypes": ["Ingress", "Ingress"], "ingress": [{}], "egress": [{"to": [{"podSelector": {}}]}]}),
    );
    assert_eq!((reach(&cluster, "tcp/80").as_str(), reached(&cluster, "tcp/80").as_str()), ("bco", "bco"));
}

#[test]
fn policies_add_up_and_both_ends_must_agree() {
    let both = ingress_from(json!([{"podSelector": {}}])).with(policy(
        "x/q",
        json!({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": "y"}}}]}]}),
    ));
    assert_eq!(reach(&both, "tcp/80"), "bc");
    let egress = both.with(policy("y/none", json!({"podSelector": {}, "policyTypes": ["Egress"]})));
    assert_eq!(reach(&egress, "tcp/80"), "b");
    let denied = egress.denied(&flow(C, A, "tcp/80"));
    assert_eq!(denied, Some((object_name("y/c"), Direction::Egress)));
}

#[test]
fn peers_select_by_namespace_and_labels() {
    for (peers, who) in [
        (json!([{"podSelector": {}}]), "b"),
        (json!([{"podSelector": {"matchLabels": {"app": "c"}}}]), ""),
        (json!([{"namespaceSelector": {}}]), "bc"),
        (json!([{"podSelector": null, "namespaceSelector": {"matchLabels": {"team": "y"}}}]), "c"),
        (
            json!([{"podSelector": {"matchLabels": {"app": "b"}}, "namespaceSelector": {"matchLabels": {"team": "y"}}}]),
            "",
        ),
        (
            json!([{"podSelector": {"matchLabels": {"app": "b"}}}, {"namespaceSelector": {"matchLabels": {"team": "y"}}}]),
            "bc",
        ),
        (json!([{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "y"}}}]), "c"),
        (json!([{"podSelector": {"matchLabels": {"app": "nobody"}}}]), ""),
        (json!([{"podSelector": null}]), ""),
        (json!([{}]), ""),
        (json!([null]), ""),
        (json!([{"newSelector": {}}]), ""),
        (json!([{"podSelector": {}, "newSelector": {}}]), ""),
        (json!([{"newSelector": {}}, {"podSelector": {}}]), "b"),
        (json!([]), "bco"),
        (json!(null), "bco"),
    ] {
        assert_eq!(reach(&ingress_from(peers.clone()), "tcp/80"), who, "{peers}");
    }
}

#[test]
fn no_rules_and_rules_with_unknown_fields_allow_nothing() {
    for (rules, who) in [
        (json!([]), ""),
        (json!(null), ""),
        (json!([{}]), "bco"),
        (json!([null]), ""),
        (json!([{"to": [{"podSelector": {}}]}]), ""),
        (json!([{"form": [{"podSelector": {}}]}]), ""),
        (json!([{"fresh": true}, {"from": [{"podSelector": {}}]}]), "b"),
    ] {
        assert_eq!(reach(&with_spec(json!({"ingress": rules})), "tcp/80"), who, "{rules}");
    }
}

#[test]
fn match_expressions() {
    for (key, operator, values, who) in [
        ("app", "In", json!(["b", "z"]), "b"),
        ("tier", "NotIn", json!(["db"]), "c"),
        ("app", "NotIn", json!(["b", "c"]), ""),
        ("tier", "Exists", json!([]), "b"),
        ("tier", "DoesNotExist", json!(null), "c"),
    ] {
        let selector = json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        let cluster = ingress_from(json!([{"podSelector": selector, "namespaceSelector": {}}]));
        assert_eq!(reach(&cluster, "tcp/80"), who, "{operator}");
    }
    let both = json!({"matchLabels": {"app": "b"}, "matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]});
    assert_eq!(reach(&ingress_from(json!([{"podSelector": both}])), "tcp/80"), "");
}

#[test]
fn pods_of_an_unknown_namespace_match_no_namespace_selector() {
    let forget_y = Change::DeleteNamespace("y".into());
    let not_in =
        json!([{"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["x"]}]}}]);
    for peers in [json!([{"namespaceSelector": {}}]), not_in] {
        let known = ingress_from(peers);
        assert!(known.allows(C, A, "tcp/80"));
        assert!(!known.without(forget_y.clone()).allows(C, A, "tcp/80"));
    }
    let own = ingress_from(json!([{"podSelector": {}}])).without(Change::DeleteNamespace("x".into()));
    assert_eq!(reach(&own, "tcp/80"), "b", "policies of its own namespace still apply by name");
}

#[test]
fn ports_and_protocols() {
    for (ports, allowed, denied) in [
        (json!(null), vec!["tcp/1", "udp/1", "sctp/1", "icmp"], vec![]),
        (json!([]), vec!["tcp/1", "udp/1", "sctp/1", "icmp"], vec![]),
        (json!([{}]), vec!["tcp/1", "tcp/65535"], vec!["udp/1", "icmp"]),
        (json!([null]), vec![], vec!["tcp/1", "icmp"]),
        (json!([{"port": 80}]), vec!["tcp/80"], vec!["tcp/79", "tcp/81", "udp/80", "icmp"]),
        (json!([{"protocol": "UDP", "port": 53}]), vec!["udp/53"], vec!["tcp/53"]),
        (json!([{"protocol": "SCTP", "port": 9}]), vec!["sctp/9"], vec!["tcp/9", "udp/9"]),
        (json!([{"protocol": "UDP"}]), vec!["udp/1"], vec!["tcp/1"]),
        (json!([{"port": 80, "endPort": 82}]), vec!["tcp/80", "tcp/81", "tcp/82"], vec!["tcp/79", "tcp/83"]),
        (json!([{"port": 80, "endPort": 80}]), vec!["tcp/80"], vec!["tcp/81"]),
        (json!([{"port": 80, "fresh": 1}]), vec![], vec!["tcp/80", "tcp/1"]),
        (json!([{"fresh": 1}, {"port": 80}]), vec!["tcp/80"], vec!["tcp/81"]),
        (json!([{"port": 80}, {"protocol": "UDP", "port": 53}]), vec!["tcp/80", "udp/53"], vec!["udp/80", "tcp/53"]),
    ] {
        let ingress = with_spec(json!({"ingress": [{"ports": ports}]}));
        let egress = with_spec(json!({"policyTypes": ["Egress"], "egress": [{"ports": ports}]}));
        for (services, verdict) in [(allowed, "bco"), (denied, "")] {
            for service in services {
                assert_eq!(reach(&ingress, service), verdict, "from {ports} {service}");
                assert_eq!(reached(&egress, service), verdict, "to {ports} {service}");
            }
        }
    }
}

fn with_port(object: Value, name: &str, protocol: &str, number: u16) -> Value {
    let container = json!({"ports": [{"name": name, "protocol": protocol, "containerPort": number}]});
    let mut containers = object["spec"]["containers"].as_array().cloned().unwrap_or_default();
    containers.push(container);
    set(object, "/spec/containers", Value::Array(containers))
}

#[test]
fn ingress_by_port_name_means_the_subjects_own_numbers() {
    let spec = json!({"podSelector": {}, "ingress": [{"ports": [{"port": "web"}, {"port": 9}]}]});
    let base = cluster().with(policy("x/p", spec));
    assert!(base.allows(C, A, "tcp/9") && !base.allows(C, A, "tcp/80"), "a has no such port");
    let a = with_port(with_port(pod("x/a", A, json!({})), "web", "TCP", 80), "web", "TCP", 81);
    let named = base.with(with_port(a, "web", "UDP", 82)).with(with_port(pod("x/b", B, json!({})), "web", "TCP", 8080));
    for (destination, service, verdict) in [
        (A, "tcp/80", true),
        (A, "tcp/81", true),
        (A, "tcp/9", true),
        (A, "tcp/8080", false),
        (A, "tcp/82", false),
        (A, "udp/82", false),
        (B, "tcp/8080", true),
        (B, "tcp/80", false),
    ] {
        assert_eq!(named.allows(C, destination, service), verdict, "{destination} {service}");
    }
}

#[test]
fn egress_by_port_name_means_the_destinations_numbers() {
    let named = |to: Value| {
        with_spec(json!({"policyTypes": ["Egress"], "egress": [{"to": to, "ports": [{"port": "web"}, {"port": 9}]}]}))
            .with(with_port(pod("x/b", B, json!({"app": "b"})), "web", "TCP", 8080))
            .with(with_port(pod("y/c", C, json!({"app": "c"})), "web", "TCP", 80))
    };
    for (to, service, who) in [
        (json!([]), "tcp/8080", "b"),
        (json!([]), "tcp/80", "c"),
        (json!([]), "udp/80", ""),
        (json!([]), "tcp/9", "bco"),
        (json!([{"podSelector": {}}]), "tcp/8080", "b"),
        (json!([{"podSelector": {}}]), "tcp/80", ""),
        (json!([{"podSelector": {}}]), "tcp/9", "b"),
        (json!([{"ipBlock": {"cidr": "10.0.1.0/24"}}]), "tcp/80", "c"),
        (json!([{"ipBlock": {"cidr": "10.0.1.0/24"}}]), "tcp/8080", ""),
        (json!([{"ipBlock": {"cidr": "0.0.0.0/0"}}]), "tcp/8080", "b"),
        (json!([{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/24"]}}]), "tcp/8080", ""),
    ] {
        assert_eq!(reached(&named(to.clone()), service), who, "{to} {service}");
    }
}

#[test]
fn ip_blocks() {
    for (peers, who) in [
        (json!([{"ipBlock": {"cidr": "10.0.0.0/8"}}]), "bc"),
        (json!([{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.1.0/24"]}}]), "b"),
        (
            json!([{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.1.0/24"]}}, {"ipBlock": {"cidr": "10.0.1.1/32"}}]),
            "bc",
        ),
        (json!([{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/24"]}}, {"podSelector": {}}]), "bc"),
        (json!([{"ipBlock": {"cidr": "10.0.0.0/31", "except": ["10.0.0.0/32", "10.0.0.1/32"]}}]), ""),
        (json!([{"ipBlock": {"cidr": "0.0.0.0/0"}}]), "bco"),
        (json!([{"ipBlock": {"cidr": "::/0"}}]), ""),
        (json!([{"ipBlock": {"cidr": "::ffff:10.0.1.0/120"}}]), "c"),
        (json!([{"ipBlock": {"cidr": "010.000.001.077/024"}}]), "c"),
        (json!([{"ipBlock": {"cidr": "10.0.0.0/8", "fresh": 1}}]), ""),
    ] {
        assert_eq!(reach(&ingress_from(peers.clone()), "icmp"), who, "{peers}");
    }
}

#[test]
fn the_node_itself_and_a_pod_itself() {
    let closed = cluster().with(policy("x/p", json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})));
    assert!(closed.allows(A, A, "tcp/80"));
    assert!(!closed.allows(B, A, "tcp/80"));
    let node = Flow { from_node: true, ..flow(OUTSIDE, A, "tcp/80") };
    assert_eq!(closed.denied(&node), None);
    let own_node = Flow { to_node: true, ..flow(A, OUTSIDE, "tcp/80") };
    assert_eq!(closed.denied(&own_node), Some((object_name("x/a"), Direction::Egress)));
    let effective = closed.effective();
    let judge = |flow: &Flow| crate::judge::Judge::new(&effective, false).judge(flow).is_allowed();
    assert!(judge(&own_node) && !judge(&flow(A, OUTSIDE, "tcp/80")));
}

#[test]
fn host_network_pods_are_no_subjects_and_no_peers_but_addresses() {
    let host = set(pod("x/host", OUTSIDE, json!({"app": "a"})), "/spec/hostNetwork", json!(true));
    let host = with_port(host, "web", "TCP", 80);
    let selected = ingress_from(json!([{"podSelector": {}}])).with(host.clone());
    assert_eq!(reach(&selected, "tcp/80"), "b");
    assert!(selected.allows(C, OUTSIDE, "tcp/80"), "no subject");
    assert_eq!(selected.pod("x/host"), None);
    let block = ingress_from(json!([{"ipBlock": {"cidr": "192.0.2.0/24"}}])).with(host.clone());
    assert_eq!(reach(&block, "tcp/80"), "o");
    let named = with_spec(json!({"policyTypes": ["Egress"], "egress": [{"ports": [{"port": "web"}]}]})).with(host);
    assert_eq!(reached(&named, "tcp/80"), "");
}

#[test]
fn every_address_of_a_pod_counts() {
    let both = json!([{"ip": B}, {"ip": "fd00::2"}]);
    let spec = json!({"policyTypes": ["Ingress", "Egress"], "ingress": [{"from": [{"podSelector": {}}]}]});
    let cluster = with_spec(spec).with(set(pod("x/b", B, json!({})), "/status/podIPs", both)).with(set(
        pod("x/a", A, json!({"app": "a"})),
        "/status/podIPs",
        json!([{"ip": "fd00::1"}, {"ip": A}]),
    ));
    assert!(cluster.allows("fd00::2", "fd00::1", "tcp/80") && cluster.allows(B, A, "tcp/80"));
    assert!(!cluster.allows("fd00::9", "fd00::1", "tcp/80"));
    assert!(!cluster.allows("fd00::1", "fd00::9", "tcp/80"));
    assert!(cluster.allows(A, "fd00::1", "tcp/80"), "both are a");
}

fn annotated(object: Value, mode: &str) -> Value {
    set(object, "/metadata/annotations/flatfell.io~1mode", json!(mode))
}

#[test]
fn audited_policies_isolate_nothing_and_allow_nothing() {
    let deny = policy("x/deny", json!({"podSelector": {}}));
    let allow = policy("x/allow", json!({"podSelector": {}, "ingress": [{}]}));
    for (objects, who) in [
        (vec![annotated(deny.clone(), "audit")], "bco"),
        (vec![annotated(deny.clone(), "enforce")], ""),
        (vec![annotated(deny.clone(), "nonsense")], ""),
        (vec![deny.clone(), annotated(allow.clone(), "audit")], ""),
        (vec![allow.clone(), annotated(deny.clone(), "audit")], "bco"),
        (vec![annotated(namespace("x", json!({})), "audit"), deny.clone()], "bco"),
        (vec![annotated(namespace("x", json!({})), "audit"), annotated(deny.clone(), "enforce")], "bco"),
        (vec![annotated(namespace("y", json!({})), "audit"), deny.clone()], ""),
        (vec![annotated(namespace("x", json!({})), "nonsense"), deny.clone()], ""),
    ] {
        let cluster = objects.iter().cloned().fold(cluster(), Cluster::with);
        assert_eq!(reach(&cluster, "tcp/80"), who, "{objects:?}");
    }
}

#[test]
fn a_refused_policy_isolates_what_it_selects_and_allows_nothing() {
    let bad = json!([{"from": [{"ipBlock": {"cidr": "10.0.0.0/33"}}]}, {}]);
    let selector = json!({"matchLabels": {"app": "a"}});
    for (spec, a_in, a_out, b_in) in [
        (json!({"podSelector": selector, "ingress": bad}), "", "bco", true),
        (json!({"podSelector": selector, "egress": [{"to": 1}], "ingress": [{}]}), "", "", true),
        (json!({"podSelector": selector, "egress": 1}), "", "", true),
        (json!({"podSelector": selector, "policyTypes": ["Egress"], "ingress": bad, "egress": [{}]}), "bco", "", true),
        (json!({"podSelector": selector, "policyTypes": "Egress", "ingress": [{}]}), "", "", true),
        (json!({"podSelector": selector, "policyTypes": ["Egress", "Sideways"]}), "", "", true),
        (json!({"podSelector": selector, "policyTypes": [1]}), "", "", true),
        (json!({"podSelector": selector, "ingress": [{}], "fresh": 1}), "", "", true),
        (json!({"podSelector": selector, "ingress": [{}], "fresh": 1, "policyTypes": ["Egress"]}), "bco", "", true),
        (json!({"podSelector": {"matchLabels": 1}, "ingress": [{}]}), "", "bco", false),
        (json!({"podSelector": {"fresh": 1}, "ingress": [{}]}), "", "bco", false),
        (json!("nonsense"), "", "", false),
    ] {
        let cluster = cluster().with(policy("x/p", spec.clone()));
        assert_eq!(reach(&cluster, "tcp/80"), a_in, "to a: {spec}");
        // What b accepts is not asked here, only what a may send.
        let out = if b_in { reached(&cluster, "tcp/80") } else { reached(&cluster, "tcp/80").replace('b', "") };
        let wanted = if b_in { a_out.to_owned() } else { a_out.replace('b', "") };
        assert_eq!(out, wanted, "from a: {spec}");
        assert_eq!(cluster.allows(C, B, "tcp/80"), b_in, "to b: {spec}");
        assert!(cluster.allows(OUTSIDE, C, "tcp/80"));
    }
}
