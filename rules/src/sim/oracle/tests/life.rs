//! Which pod an address stands for, nodes, NAT, replies.

use serde_json::json;

use super::*;
use crate::sim::cluster::{Half, Translated};

/// `a/web` lets in pods with `app: db`; `a/db` looks as the fields say.
fn source_is(fields: &[(&str, Value)]) -> Cluster {
    let mut cluster = shop([policy(json!({
        "podSelector": {"matchLabels": {"app": "web"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "db"}}}]}],
    }))]);
    cluster.objects[3] = with(cluster.objects[3].clone(), fields);
    cluster
}

#[test]
fn a_terminal_pod_is_no_peer_any_other_counts() {
    for phase in ["Pending", "Running", "Unknown"] {
        assert!(tcp(&source_is(&[("status.phase", json!(phase))]), DB, WEB, 80), "{phase}");
    }
    for phase in ["Succeeded", "Failed"] {
        assert!(!tcp(&source_is(&[("status.phase", json!(phase))]), DB, WEB, 80), "{phase}");
    }
    assert!(tcp(&source_is(&[("metadata.deletionTimestamp", json!("2026-01-02T00:00:00Z"))]), DB, WEB, 80));
    assert!(tcp(&source_is(&[("status.conditions", json!([{"type": "Ready", "status": "False"}]))]), DB, WEB, 80));
}

#[test]
fn a_terminal_pod_stays_isolated_on_its_node() {
    let mut cluster = shop([policy(json!({"policyTypes": ["Ingress", "Egress"]}))]);
    cluster.objects[2]["status"]["phase"] = json!("Failed");
    assert!(!tcp(&cluster, WEB, OTHER, 80) && !tcp(&cluster, OTHER, WEB, 80));
    // Else it would be closed all the same, as one that is not known.
    cluster.unknown_open = true;
    assert!(why(&cluster, WEB, OTHER).contains(&Row::TerminalSubject));
}

#[test]
fn a_new_pod_is_isolated_before_it_starts() {
    let mut cluster = shop([policy(json!({}))]);
    cluster.objects[2]["status"]["phase"] = json!("Pending");
    assert!(!tcp(&cluster, OTHER, WEB, 80));
    assert!(why(&cluster, OTHER, WEB).contains(&Row::NewPod));
}

#[test]
fn an_address_is_closed_until_its_pod_is_known() {
    let new = (1, 7);
    let mut cluster = shop([]);
    assert!(tcp(&cluster, WEB, OTHER, 80) && tcp(&cluster, FAR, WEB, 80));
    for known in [WEB, FAR] {
        assert!(!tcp(&cluster, new, known, 80) && !tcp(&cluster, known, new, 80), "{known:?}");
        assert!(why(&cluster, new, known).contains(&Row::UnknownPod));
    }
    assert!(!tcp(&cluster, new, (1, 6), 80), "between two of them");
    assert!(!reaches(&cluster, "10.244.1.17", "203.0.113.10") && !reaches(&cluster, "203.0.113.10", "10.244.1.17"));
    assert!(!reaches(&cluster, "10.244.1.17", "10.244.1.1"), "its node is a destination like any other");
    assert!(reaches(&cluster, "10.244.1.1", "10.244.1.17"), "its node reaches it");
    assert!(tcp(&cluster, WEB, (2, 7), 80), "what another node's pods are is that node's business");
    assert!(reaches(&cluster, "10.244.1.10", "10.244.1.1") && reaches(&cluster, "10.244.1.10", "10.244.1.0"));
    cluster.unknown_open = true;
    assert!(tcp(&cluster, new, WEB, 80) && tcp(&cluster, WEB, new, 80), "switched off");
}

#[test]
fn an_address_belongs_to_one_pod() {
    let second = |fields: &[(&str, Value)]| {
        let mut cluster = source_is(&[("metadata.uid", json!("m"))]);
        cluster.objects.push(with(pod("a/second", DB, json!({"app": "second"})), fields));
        tcp(&cluster, DB, WEB, 80)
    };
    assert!(!second(&[("metadata.creationTimestamp", json!("2026-01-02T00:00:00Z"))]), "the newest has it");
    assert!(second(&[("metadata.creationTimestamp", json!("2025-12-31T00:00:00Z"))]), "the older has not");
    assert!(second(&[
        ("metadata.creationTimestamp", json!("2026-01-02T00:00:00Z")),
        ("status.phase", json!("Failed"))
    ]));
    assert!(second(&[("metadata.uid", json!("z"))]) && !second(&[("metadata.uid", json!("b"))]), "then the UID");
}

#[test]
fn addresses_are_pod_ips_else_pod_ip() {
    assert!(tcp(&source_is(&[("metadata.annotations", json!({"kubernetes.io/config.mirror": "x"}))]), DB, WEB, 80));
    for none in [json!(null), json!([])] {
        let cluster = source_is(&[("status.podIPs", none)]);
        assert!(reaches(&cluster, "10.244.1.11", "10.244.1.10"));
        assert!(!reaches(&cluster, "fd00:10:244:1::11", "fd00:10:244:1::10"), "it has none of that family");
    }
    let elsewhere = source_is(&[("status.podIPs", json!([{"ip": "10.244.1.17"}]))]);
    assert!(!reaches(&elsewhere, "10.244.1.11", "10.244.1.10") && reaches(&elsewhere, "10.244.1.17", "10.244.1.10"));
}

#[test]
fn either_family_alone() {
    let six = source_is(&[("status.podIPs", json!([{"ip": "fd00:10:244:1::11"}]))]);
    assert!(reaches(&six, "fd00:10:244:1::11", "fd00:10:244:1::10"));
    assert!(!reaches(&six, "10.244.1.11", "10.244.1.10"));
}

#[test]
fn host_network_pods_are_no_subjects_and_no_peers() {
    let host = [
        ("spec.hostNetwork", json!(true)),
        ("status.podIPs", json!([{"ip": "192.168.50.2"}])),
        ("spec.nodeName", json!("node-2")),
    ];
    let cluster = source_is(&host);
    assert!(!reaches(&cluster, "192.168.50.2", "10.244.1.10"), "its labels match, but it is no pod to policy");
    let by_block = shop([policy(json!({"ingress": [{"from": [{"ipBlock": {"cidr": "192.168.50.2/32"}}]}]}))]);
    assert!(reaches(&by_block, "192.168.50.2", "10.244.1.10"));
    let mut subject = shop([policy(json!({}))]);
    subject.objects[3] = with(subject.objects[3].clone(), &[("spec.hostNetwork", json!(true))]);
    subject.unknown_open = true;
    assert!(tcp(&subject, OTHER, DB, 80), "never isolated");
}

#[test]
fn a_node_always_reaches_its_pods_but_other_nodes_do_not() {
    let cluster = shop([policy(json!({}))]);
    assert!(reaches(&cluster, "10.244.1.1", "10.244.1.10") && reaches(&cluster, "192.168.50.1", "10.244.1.10"));
    assert!(!reaches(&cluster, "192.168.50.2", "10.244.1.10") && !reaches(&cluster, "10.244.2.0", "10.244.1.10"));
}

#[test]
fn a_pods_own_node_is_a_destination_like_any_other() {
    let mut closed = shop([policy(json!({"policyTypes": ["Egress"]}))]);
    for own in ["10.244.1.1", "192.168.50.1", "10.244.1.0"] {
        assert!(!reaches(&closed, "10.244.1.10", own), "{own}");
    }
    assert!(reaches(&closed, "10.244.1.12", "10.244.1.1"), "not isolated");
    closed.own_node_open = true;
    assert!(reaches(&closed, "10.244.1.10", "10.244.1.1"), "switched off");
    let to = |cidr: &str| shop([policy(json!({"egress": [{"to": [{"ipBlock": {"cidr": cidr}}]}]}))]);
    assert!(reaches(&to("192.168.50.1/32"), "10.244.1.10", "192.168.50.1"));
    assert!(!reaches(&to("192.168.50.1/32"), "10.244.1.10", "10.244.1.1"));
}

#[test]
fn a_pod_always_reaches_itself() {
    let cluster = shop([policy(json!({"policyTypes": ["Ingress", "Egress"]}))]);
    assert!(tcp(&cluster, WEB, WEB, 80) && !tcp(&cluster, WEB, DB, 80));
    assert!(why(&cluster, WEB, WEB).contains(&Row::ItSelf));
}

#[test]
fn what_is_seen_behind_nat_decides() {
    let cluster = shop([policy(json!({"ingress": [{"from": [{"ipBlock": {"cidr": "203.0.113.0/24"}}]}]}))]);
    let mut probe = packet(&cluster, address("10.244.2.0"), address("10.244.1.10"), Packet::Tcp, 80);
    let was = Translated { source: address("203.0.113.10"), destination: probe.destination, port: 80 };
    probe.translated = Some(was);
    let verdict = Oracle::new(&cluster).verdict(&probe);
    assert!(!verdict.allowed && verdict.reasons.contains(&Row::SourceSeen));
    assert!(reaches(&cluster, "203.0.113.10", "10.244.1.10"), "the client itself");
}

#[test]
fn policy_applies_behind_a_service() {
    let egress = |rule: Value| shop([policy(json!({"policyTypes": ["Egress"], "egress": [rule]}))]);
    let ask = |cluster: &Cluster| {
        let mut probe = packet(cluster, pod_v4(1, 0), pod_v4(1, 2), Packet::Tcp, 8080);
        probe.translated = Some(Translated { source: probe.source, destination: address("10.96.0.10"), port: 80 });
        Oracle::new(cluster).verdict(&probe)
    };
    let to_pod = ask(&egress(json!({"to": [{"namespaceSelector": {}}], "ports": [{"port": 8080}]})));
    assert!(to_pod.allowed && to_pod.reasons.contains(&Row::ServiceAddress));
    assert!(!ask(&egress(json!({"to": [{"ipBlock": {"cidr": "10.96.0.0/12"}}]}))).allowed);
}

#[test]
fn replies_go_with_their_connection() {
    let cluster = shop([policy(json!({"policyTypes": ["Egress"]}))]);
    let ask = |from: (u8, u8), to: (u8, u8)| {
        let mut probe = packet(&cluster, pod_v4(from.0, from.1), pod_v4(to.0, to.1), Packet::Tcp, 80);
        probe.half = Half::Reply;
        Oracle::new(&cluster).verdict(&probe)
    };
    let answer = ask(OTHER, WEB);
    assert!(answer.allowed && answer.reasons.contains(&Row::Replies), "web may send nothing of its own accord");
    assert!(!ask(WEB, OTHER).allowed, "of a connection that was denied");
}
