//! What comes before every policy.

use serde_json::json;

use super::*;

/// A packet of a pod that goes to a port of the bridge.
fn on_bridge(cluster: &Cluster, from: &str, to: &str, kind: Packet) -> bool {
    let bridge = || Place::Pods(cluster.node.clone());
    Oracle::new(cluster).allowed(&Probe::new((bridge(), address(from)), (bridge(), address(to)), kind, 80))
}

fn isolated() -> Cluster {
    shop([policy(json!({"podSelector": {"matchLabels": {"app": "db"}}}))])
}

#[test]
fn link_local_and_group_packets_pass_only_where_nobody_is_isolated() {
    let packets = [
        ("fe80::1", "fe80::2"),
        ("fe80::1", "ff02::1"),
        ("fd00:10:244:1::10", "fe80::2"),
        ("10.244.1.10", "10.244.1.255"),
        ("10.244.1.10", "255.255.255.255"),
        ("10.244.1.10", "224.0.0.251"),
    ];
    let audited = with(policy(json!({})), &[("metadata.annotations", json!({"flatfell.io/mode": "audit"}))]);
    let far_only = json!({"podSelector": {"matchLabels": {"app": "nobody"}}});
    for (from, to) in packets {
        assert!(!on_bridge(&isolated(), from, to, Packet::Udp), "{from} {to}");
        assert!(on_bridge(&shop([]), from, to, Packet::Udp), "{from} {to}");
        assert!(on_bridge(&shop([audited.clone()]), from, to, Packet::Udp), "audit isolates nothing");
        assert!(on_bridge(&shop([policy(far_only.clone())]), from, to, Packet::Udp), "no local pod is selected");
    }
}

#[test]
fn isolation_on_another_node_closes_nothing_here() {
    let mut cluster = isolated();
    cluster.objects[3]["spec"]["nodeName"] = json!("node-3");
    assert!(on_bridge(&cluster, "fe80::1", "fe80::2", Packet::Tcp));
}

#[test]
fn advertisements_never_pass_discovery_on_its_link() {
    for cluster in [shop([]), isolated(), shop([policy(json!({"policyTypes": ["Ingress", "Egress"]}))])] {
        assert!(!on_bridge(&cluster, "fe80::1", "ff02::1", Packet::RouterAdvertisement));
        assert!(!on_bridge(&cluster, "fe80::1", "fe80::2", Packet::Redirect));
        assert!(on_bridge(&cluster, "fd00:10:244:1::10", "fd00:10:244:1::11", Packet::NeighbourSolicitation));
        assert!(on_bridge(&cluster, "fe80::1", "ff02::16", Packet::MldReport));
    }
    let closed = shop([policy(json!({"policyTypes": ["Ingress", "Egress"]}))]);
    let away = |kind, to: &str| {
        let from = (Place::Pods(closed.node.clone()), address("fd00:10:244:1::10"));
        Oracle::new(&closed).allowed(&Probe::new(from, (Place::Pods("node-2".to_owned()), address(to)), kind, 0))
    };
    assert!(!away(Packet::NeighbourSolicitation, "fd00:10:244:2::10") && !away(Packet::MldReport, "fd00:10:244:2::10"));
    assert!(!on_bridge(&closed, "fd00:10:244:1::10", "fd00:10:244:1::11", Packet::MldReport));
}

#[test]
fn link_local_of_ipv4_is_a_destination_like_any_other() {
    let cluster = shop([policy(json!({"egress": [{"to": [{"ipBlock": {"cidr": "169.254.0.0/16"}}]}]}))]);
    assert!(reaches(&cluster, "10.244.1.10", "169.254.169.254"));
    assert!(!reaches(&shop([policy(json!({"policyTypes": ["Egress"]}))]), "10.244.1.10", "169.254.169.254"));
}
