//! Selectors, namespaces and blocks.

use serde_json::json;

use super::*;

/// Whether `a/web`, which lets in what `from` says, lets a pod in.
fn lets_in(from: Value, source: (u8, u8)) -> bool {
    tcp(
        &shop([policy(json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"from": from}]}))]),
        source,
        WEB,
        80,
    )
}

fn block_lets_in(block: Value, source: &str) -> bool {
    let cluster = shop([policy(json!({"ingress": [{"from": [{"ipBlock": block}]}]}))]);
    let target = if source.contains(':') { "fd00:10:244:1::10" } else { "10.244.1.10" };
    reaches(&cluster, source, target)
}

#[test]
fn an_empty_selector_is_every_pod_a_missing_one_is_none_of_its_own() {
    assert!(lets_in(json!([{"podSelector": {}}]), DB));
    assert!(!lets_in(json!([{"podSelector": {}}]), OTHER), "of the policy's namespace");
    assert!(lets_in(json!([{"namespaceSelector": {}}]), OTHER));
    assert!(lets_in(json!([{"namespaceSelector": {}, "podSelector": null}]), OTHER));
    assert!(!lets_in(json!([{"namespaceSelector": null, "podSelector": {}}]), OTHER), "null is not empty");
    assert!(!lets_in(json!([{"podSelector": null}]), DB), "no field at all");
}

#[test]
fn selectors_of_one_peer_are_anded_peers_are_ored() {
    let dev = json!({"matchLabels": {"env": "dev"}});
    let db = json!({"matchLabels": {"app": "db"}});
    let one = json!([{"namespaceSelector": dev, "podSelector": db}]);
    assert!(!lets_in(one.clone(), OTHER) && !lets_in(one, DB));
    let two = json!([{"namespaceSelector": dev}, {"podSelector": db}]);
    assert!(lets_in(two.clone(), OTHER) && lets_in(two.clone(), DB) && !lets_in(two, FAR));
    assert!(lets_in(json!([{"namespaceSelector": dev, "podSelector": {"matchLabels": {"app": "web"}}}]), OTHER));
}

#[test]
fn no_peers_are_all_no_rules_are_none() {
    for from in [json!(null), json!([])] {
        let cluster = shop([policy(json!({"ingress": [{"from": from}]}))]);
        assert!(tcp(&cluster, OTHER, WEB, 80));
        assert!(reaches(&cluster, "203.0.113.10", "10.244.1.10"), "outsiders too");
    }
    for rules in [json!(null), json!([])] {
        assert!(!tcp(&shop([policy(json!({"ingress": rules}))]), OTHER, WEB, 80));
    }
}

#[test]
fn a_selector_that_matches_nothing_allows_nothing() {
    assert!(!lets_in(json!([{"podSelector": {"matchLabels": {"app": "nobody"}}}]), DB));
    assert!(lets_in(json!([{"podSelector": {"matchLabels": {"app": "db"}}}]), DB));
    let cluster = shop([policy(json!({"ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "x"}}}]}]}))]);
    assert!(why(&cluster, DB, WEB).contains(&Row::MatchesNothing));
}

#[test]
fn operators_of_match_expressions() {
    let lets = |operator: &str, key: &str, values: Value| {
        lets_in(
            json!([{"podSelector": {"matchExpressions": [{"key": key, "operator": operator, "values": values}]}}]),
            DB,
        )
    };
    assert!(
        lets("In", "app", json!(["x", "db"])) && !lets("In", "app", json!(["x"])) && !lets("In", "none", json!(["x"]))
    );
    assert!(lets("NotIn", "app", json!(["x"])) && !lets("NotIn", "app", json!(["db"])));
    assert!(lets("NotIn", "none", json!(["x"])), "a missing key satisfies NotIn");
    assert!(lets("Exists", "app", json!(null)) && !lets("Exists", "none", json!([])));
    assert!(lets("DoesNotExist", "none", json!([])) && !lets("DoesNotExist", "app", json!(null)));
}

#[test]
fn a_namespace_that_is_not_known_matches_no_selector() {
    let unknown = |from: Value| {
        let mut cluster = shop([policy(json!({"ingress": [{"from": from}]}))]);
        cluster.objects.retain(|object| object["kind"] != "Namespace");
        cluster
    };
    let not_in = json!({"matchExpressions": [{"key": "env", "operator": "NotIn", "values": ["x"]}]});
    for selector in [json!({}), not_in] {
        assert!(!tcp(&unknown(json!([{"namespaceSelector": selector}])), OTHER, WEB, 80));
    }
    assert!(tcp(&unknown(json!([{"podSelector": {}}])), DB, WEB, 80), "its own, by name");
    assert!(!tcp(&unknown(json!([{"podSelector": {}}])), OTHER, WEB, 80), "and isolated by name");
}

#[test]
fn a_namespace_is_labelled_with_its_name() {
    assert!(lets_in(json!([{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "b"}}}]), OTHER));
    assert!(!lets_in(json!([{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "b"}}}]), DB));
}

#[test]
fn a_block_is_its_cidr_minus_except_pods_included() {
    let block = json!({"cidr": "203.0.113.0/24", "except": ["203.0.113.128/25"]});
    assert!(block_lets_in(block.clone(), "203.0.113.10") && !block_lets_in(block.clone(), "203.0.113.200"));
    assert!(!block_lets_in(block, "198.51.100.1"));
    assert!(block_lets_in(json!({"cidr": "10.244.1.0/24"}), "10.244.1.12"), "pods too");
    let six = json!({"cidr": "2001:db8::/32", "except": ["2001:db8:203::/48"]});
    assert!(block_lets_in(six.clone(), "2001:db8:1::1") && !block_lets_in(six.clone(), "2001:db8:203::10"));
    assert!(!block_lets_in(six, "203.0.113.10"));
    assert!(!block_lets_in(json!({"cidr": "0.0.0.0/0"}), "2001:db8::1"), "one family only");
}

#[test]
fn an_except_takes_nothing_from_other_peers_and_rules() {
    let block = json!({"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.244.0.0/16"]}});
    let other_peer = shop([policy(json!({"ingress": [{"from": [block, {"namespaceSelector": {}}]}]}))]);
    assert!(reaches(&other_peer, "10.244.1.12", "10.244.1.10"));
    assert!(why(&other_peer, OTHER, WEB).contains(&Row::ExceptScope));
    let other_rule = shop([policy(json!({"ingress": [{"from": [block]}, {"from": [{"namespaceSelector": {}}]}]}))]);
    assert!(reaches(&other_rule, "10.244.1.12", "10.244.1.10"));
}

#[test]
fn the_text_of_a_block_is_read_as_the_api_server_reads_it() {
    for cidr in ["203.000.113.000/24", "203.0.113.77/24", "::ffff:203.0.113.0/120"] {
        assert!(block_lets_in(json!({"cidr": cidr}), "203.0.113.10"), "{cidr}");
        assert!(!block_lets_in(json!({"cidr": cidr}), "203.0.114.10"), "{cidr}");
    }
    assert!(block_lets_in(json!({"cidr": "010.0.0.0/8"}), "10.244.1.12"), "decimal, not octal");
}
