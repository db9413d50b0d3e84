//! What cannot be read.

use serde_json::json;

use super::*;

/// A policy on `app: web` with one ingress rule that is wrong and one that would allow everything.
fn refused(rule: Value) -> bool {
    let cluster = shop([policy(json!({
        "podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"], "ingress": [rule, {}],
    }))]);
    let (selected, other, outgoing) =
        (tcp(&cluster, DB, WEB, 80), tcp(&cluster, WEB, DB, 80), tcp(&cluster, WEB, OTHER, 80));
    assert!(other && outgoing, "what it does not select, and the direction it does not name, stay open");
    !selected
}

#[test]
fn a_refused_policy_isolates_what_it_selects() {
    let blocks = [
        json!({"cidr": "10.0.0.0"}),
        json!({"cidr": "10.0.0.0/33"}),
        json!({}),
        json!({"cidr": "fd00::/129"}),
        json!({"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}),
        json!({"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}),
        json!({"cidr": "10.0.0.0/8", "except": "10.1.0.0/16"}),
    ];
    for block in blocks {
        assert!(refused(json!({"from": [{"ipBlock": block}]})), "{block}");
    }
    let ports = [
        json!({"port": 443, "endPort": 80}),
        json!({"port": "http", "endPort": 90}),
        json!({"endPort": 90}),
        json!({"port": 0}),
        json!({"port": 65536}),
        json!({"protocol": "ICMP"}),
        json!({"port": 80.5}),
        json!({"port": "80"}),
    ];
    for port in ports {
        assert!(refused(json!({"ports": [port]})), "{port}");
    }
    for (operator, values) in [("Like", json!(["x"])), ("In", json!([])), ("Exists", json!(["x"]))] {
        let selector = json!({"matchExpressions": [{"key": "app", "operator": operator, "values": values}]});
        assert!(refused(json!({"from": [{"podSelector": selector}]})), "{operator}");
    }
    assert!(refused(json!({"from": {}})) && refused(json!({"ports": "http"})));
    assert!(!refused(json!({})), "nothing wrong: its second rule allows");
}

#[test]
fn a_block_beside_a_selector_refuses_the_policy() {
    assert!(refused(json!({"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}, "podSelector": {}}]})));
    assert!(!refused(json!({"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}, "podSelector": null}]})));
}

#[test]
fn a_peer_with_no_known_field_matches_nothing() {
    for peer in [json!({}), json!({"serviceSelector": {}})] {
        assert!(!tcp(&shop([policy(json!({"ingress": [{"from": [peer]}]}))]), DB, WEB, 80));
        let beside = shop([policy(json!({"ingress": [{"from": [peer, {"podSelector": {}}]}]}))]);
        assert!(tcp(&beside, DB, WEB, 80), "other peers hold");
    }
}

#[test]
fn a_ports_entry_with_an_unknown_field_matches_nothing() {
    let takes = |ports: Value| tcp(&shop([policy(json!({"ingress": [{"ports": ports}]}))]), DB, WEB, 80);
    assert!(!takes(json!([{"portRange": "80-90"}])) && !takes(json!([{"port": 80, "appProtocol": "http"}])));
    assert!(takes(json!([{"portRange": "80-90"}, {"port": 80}])), "other entries hold");
}

#[test]
fn a_selector_that_cannot_be_read_isolates_the_namespace() {
    for selector in [
        json!("web"),
        json!({"matchLabels": ["web"]}),
        json!({"matchExpressions": [{"key": "app", "operator": "Like"}]}),
    ] {
        let cluster = shop([policy(json!({"podSelector": selector, "ingress": [{}]}))]);
        assert!(!tcp(&cluster, DB, WEB, 80) && !tcp(&cluster, WEB, DB, 80) && tcp(&cluster, WEB, OTHER, 80));
    }
}

#[test]
fn types_that_cannot_be_read_isolate_both_directions() {
    for types in [json!(["Ingress", "Sideways"]), json!("Ingress"), json!([1])] {
        let cluster = shop([policy(json!({"policyTypes": types, "ingress": [{}], "egress": [{}]}))]);
        assert!(!tcp(&cluster, OTHER, WEB, 80) && !tcp(&cluster, WEB, OTHER, 80), "{types}");
    }
}

#[test]
fn one_refused_policy_leaves_the_others_alone() {
    let sound = policy(json!({"ingress": [{"ports": [{"port": 80}]}]}));
    let broken = policy(json!({"ingress": [{"from": [{"ipBlock": {"cidr": "x"}}]}]}));
    let cluster = shop([broken, sound]);
    assert!(tcp(&cluster, OTHER, WEB, 80) && !tcp(&cluster, OTHER, WEB, 81));
}
