//! Isolation, policyTypes, the union, audit, Terminating namespaces.

use serde_json::json;

use super::*;

#[test]
fn a_pod_is_open_until_a_policy_selects_it() {
    assert!(tcp(&shop([]), DB, WEB, 80));
    let isolated = shop([policy(json!({"podSelector": {"matchLabels": {"app": "web"}}}))]);
    assert!(!tcp(&isolated, DB, WEB, 80), "selected");
    assert!(tcp(&isolated, WEB, DB, 80), "not selected, and not isolated for egress");
    assert!(tcp(&isolated, DB, OTHER, 80), "another namespace");
    assert!(why(&isolated, DB, WEB).contains(&Row::Isolation));
    assert!(why(&isolated, DB, OTHER).contains(&Row::Open));
}

#[test]
fn unset_types_are_ingress_and_egress_only_with_egress_rules() {
    let ingress_only = [json!({}), json!({"egress": []}), json!({"policyTypes": [], "egress": null})];
    for spec in ingress_only {
        let cluster = shop([policy(spec.clone())]);
        assert!(!tcp(&cluster, OTHER, WEB, 80), "{spec}");
        assert!(tcp(&cluster, WEB, OTHER, 80), "{spec}");
    }
    let both = shop([policy(json!({"egress": [{"to": [{"podSelector": {}}]}]}))]);
    assert!(!tcp(&both, WEB, OTHER, 80));
    assert!(!tcp(&both, OTHER, WEB, 80), "ingress always");
}

#[test]
fn set_types_decide_alone() {
    let egress_twice = shop([policy(json!({"policyTypes": ["Egress", "Egress"], "ingress": [{}]}))]);
    assert!(tcp(&egress_twice, OTHER, WEB, 80), "no ingress isolation");
    assert!(!tcp(&egress_twice, WEB, OTHER, 80));
    let ignored = shop([policy(json!({"policyTypes": ["Ingress"], "egress": [{}]}))]);
    assert!(tcp(&ignored, WEB, OTHER, 80) && !tcp(&ignored, OTHER, WEB, 80));
}

#[test]
fn policies_only_add() {
    let closed = policy(json!({"podSelector": {}}));
    let open = policy(json!({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [{"ports": [{"port": 80}]}]}));
    let cluster = shop([closed, open]);
    assert!(tcp(&cluster, OTHER, DB, 80) && !tcp(&cluster, OTHER, DB, 81) && !tcp(&cluster, OTHER, WEB, 80));
    assert!(why(&cluster, OTHER, DB).contains(&Row::Union));
}

#[test]
fn a_connection_needs_both_ends() {
    let from_a = policy(json!({"policyTypes": ["Egress"], "egress": [{"ports": [{"port": 80}]}]}));
    let to_b = policy_of("b", json!({"ingress": [{"ports": [{"port": 81}, {"port": 82}]}]}));
    let cluster = shop([from_a, to_b]);
    assert!(!tcp(&cluster, WEB, OTHER, 80), "no ingress");
    assert!(!tcp(&cluster, WEB, OTHER, 81), "no egress");
    assert!(why(&cluster, WEB, OTHER).contains(&Row::BothEnds));
    let both =
        shop([policy(json!({"policyTypes": ["Egress"], "egress": [{}]})), policy_of("b", json!({"ingress": [{}]}))]);
    assert!(tcp(&both, WEB, OTHER, 80));
}

#[test]
fn each_node_holds_its_own_pods_only() {
    let mut cluster = shop([policy(json!({"podSelector": {}}))]);
    let probe = packet(&cluster, pod_v4(1, 2), pod_v4(2, 0), Packet::Tcp, 80);
    assert!(Oracle::new(&cluster).allowed(&probe), "the other node's ingress");
    assert!(!Oracle::new(&cluster).cluster_wide(&probe).allowed);
    cluster.node = node_name(2);
    assert!(!Oracle::new(&cluster).allowed(&probe));
}

#[test]
fn an_audited_policy_isolates_nothing_and_allows_nothing() {
    let audited = |spec| with(policy(spec), &[("metadata.annotations", json!({"flatfell.io/mode": "audit"}))]);
    assert!(tcp(&shop([audited(json!({}))]), OTHER, WEB, 80));
    let beside = shop([policy(json!({})), audited(json!({"ingress": [{}]}))]);
    assert!(!tcp(&beside, OTHER, WEB, 80), "its rules allow nothing");
    let mut by_namespace = shop([policy(json!({}))]);
    by_namespace.objects[0]["metadata"]["annotations"] = json!({"flatfell.io/mode": "audit"});
    assert!(tcp(&by_namespace, OTHER, WEB, 80));
    assert!(why(&by_namespace, OTHER, WEB).contains(&Row::Audit));
    let mut enforced = shop([policy(json!({}))]);
    enforced.objects[0]["metadata"]["annotations"] = json!({"flatfell.io/mode": "enforce"});
    assert!(!tcp(&enforced, OTHER, WEB, 80));
}

#[test]
fn policies_hold_while_their_namespace_terminates() {
    let mut cluster = shop([policy(json!({}))]);
    cluster.objects[0]["metadata"]["deletionTimestamp"] = json!("2026-01-02T00:00:00Z");
    assert!(!tcp(&cluster, OTHER, WEB, 80));
    assert!(why(&cluster, OTHER, WEB).contains(&Row::Terminating));
}

#[test]
fn a_manifest_without_a_namespace_is_of_the_default_one() {
    let mut cluster = shop([json!({"kind": "NetworkPolicy", "metadata": {"name": "p"}, "spec": {}})]);
    assert!(tcp(&cluster, OTHER, WEB, 80));
    cluster.objects.push(pod("default/pod", (1, 5), json!({})));
    assert!(!tcp(&cluster, OTHER, (1, 5), 80));
}
