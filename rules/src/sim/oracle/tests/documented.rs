//! The documented example policies, one test each, in the order of `integration/cases/documented`.

use serde_json::json;

use super::*;

const PEER: (u8, u8) = (1, 3);

/// A subject with labels in slot 0 of `namespace`, and a peer in slot 3.
fn example(namespace_name: &str, labels: Value, spec: Value, (peer_namespace, peer_labels): (&str, Value)) -> Cluster {
    let mut cluster = Cluster::empty();
    cluster.objects = vec![
        namespace("prod", json!({"environment": "prod"})),
        namespace("dev", json!({"environment": "dev"})),
        namespace("partner", json!({"name": "trusted"})),
        namespace("my-segment", json!({})),
        namespace("default", json!({})),
        pod(&format!("{namespace_name}/subject"), WEB, labels),
        pod(&format!("{peer_namespace}/peer"), PEER, peer_labels),
        policy_of(namespace_name, spec),
    ];
    cluster
}

/// The same policy with another peer.
fn comes_in(namespace: &str, labels: &Value, spec: &Value, peer: (&str, Value), port: u16) -> bool {
    tcp(&example(namespace, labels.clone(), spec.clone(), peer), PEER, WEB, port)
}

#[test]
fn allow_specific_ingress_and_basic_policy() {
    for (role, cidr, inside, outside) in [
        ("frontend", "192.168.1.0/24", "192.168.1.7", "192.168.2.7"),
        ("backend", "10.0.0.0/24", "10.0.0.9", "10.0.1.9"),
    ] {
        let spec = json!({"podSelector": {"matchLabels": {"role": role}}, "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"ipBlock": {"cidr": cidr}}]}]});
        let cluster = example("my-segment", json!({"role": role}), spec, ("my-segment", json!({})));
        assert!(reaches(&cluster, inside, "10.244.1.10") && !reaches(&cluster, outside, "10.244.1.10"));
        assert!(reaches(&cluster, outside, "10.244.1.13"), "who is not selected is open");
        assert!(tcp(&cluster, WEB, PEER, 80), "egress is open");
    }
}

#[test]
fn advanced_policy() {
    let spec = json!({"podSelector": {"matchLabels": {"role": "database"}}, "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "frontend"}}}]}],
        "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/24"}}]}]});
    let labels = json!({"role": "database"});
    assert!(comes_in("my-segment", &labels, &spec, ("my-segment", json!({"role": "frontend"})), 5432));
    assert!(!comes_in("my-segment", &labels, &spec, ("prod", json!({"role": "frontend"})), 5432));
    let cluster = example("my-segment", labels, spec, ("my-segment", json!({})));
    assert!(reaches(&cluster, "10.244.1.10", "10.0.0.5") && !reaches(&cluster, "10.244.1.10", "10.0.1.5"));
    assert!(!tcp(&cluster, PEER, WEB, 5432));
}

#[test]
fn production_policy() {
    let spec = json!({"podSelector": {"matchLabels": {"role": "critical-app"}}, "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"name": "trusted"}}}]}],
        "egress": [{"to": [{"ipBlock": {"cidr": "192.168.2.0/24"}}]}]});
    let labels = json!({"role": "critical-app"});
    assert!(comes_in("my-segment", &labels, &spec, ("partner", json!({})), 80));
    assert!(!comes_in("my-segment", &labels, &spec, ("dev", json!({})), 80));
    let cluster = example("my-segment", labels, spec, ("partner", json!({})));
    assert!(reaches(&cluster, "10.244.1.10", "192.168.2.1") && !tcp(&cluster, WEB, PEER, 80));
}

#[test]
fn default_deny_in_prod_and_in_default() {
    for home in ["prod", "default"] {
        let spec = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]});
        let cluster = example(home, json!({"any": "label"}), spec.clone(), ("dev", json!({})));
        assert!(!tcp(&cluster, PEER, WEB, 80) && !tcp(&cluster, WEB, PEER, 80));
        assert!(!send(&cluster, PEER, WEB, Packet::Echo, 0) && tcp(&cluster, WEB, WEB, 80));
        assert!(reaches(&cluster, "10.244.1.1", "10.244.1.10"), "probes of the kubelet");
        assert!(reaches(&cluster, "203.0.113.10", "10.244.1.13"), "another namespace");
    }
}

#[test]
fn allow_from_dev() {
    let spec = json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"environment": "dev"}}}]}]});
    let labels = json!({"app": "web"});
    assert!(comes_in("prod", &labels, &spec, ("dev", json!({})), 80));
    assert!(!comes_in("prod", &labels, &spec, ("prod", json!({})), 80), "its own namespace is not dev");
}

#[test]
fn allow_api_access_and_frontend_to_backend() {
    for (app, peer) in [("api", json!({"role": "frontend"})), ("backend", json!({"app": "frontend"}))] {
        let spec = json!({"podSelector": {"matchLabels": {"app": app}}, "policyTypes": ["Ingress"],
            "ingress": [{"ports": [{"protocol": "TCP", "port": 8080}], "from": [{"podSelector": {"matchLabels": peer}}]}]});
        let labels = json!({"app": app});
        assert!(comes_in("default", &labels, &spec, ("default", peer.clone()), 8080));
        assert!(!comes_in("default", &labels, &spec, ("default", peer.clone()), 8081));
        assert!(!comes_in("default", &labels, &spec, ("default", json!({})), 8080));
        assert!(!comes_in("default", &labels, &spec, ("dev", peer), 8080));
    }
}

#[test]
fn allow_external_traffic() {
    let spec = json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"ipBlock": {"cidr": "172.17.0.0/16", "except": ["172.17.1.0/24"]}}]}]});
    let cluster = example("default", json!({"app": "web"}), spec, ("default", json!({})));
    assert!(reaches(&cluster, "172.17.0.255", "10.244.1.10") && reaches(&cluster, "172.17.2.0", "10.244.1.10"));
    assert!(!reaches(&cluster, "172.17.1.0", "10.244.1.10") && !reaches(&cluster, "172.17.1.255", "10.244.1.10"));
    assert!(!reaches(&cluster, "172.18.0.1", "10.244.1.10") && !tcp(&cluster, PEER, WEB, 80));
}

#[test]
fn complex_policy() {
    let prod = json!({"namespaceSelector": {"matchLabels": {"environment": "prod"}}});
    let spec = json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [prod, {"podSelector": {"matchLabels": {"role": "frontend"}}}],
            "ports": [{"protocol": "TCP", "port": 80}]}],
        "egress": [{"to": [prod], "ports": [{"protocol": "TCP", "port": 5432}]}]});
    let labels = json!({"app": "web"});
    assert!(comes_in("default", &labels, &spec, ("prod", json!({})), 80));
    assert!(comes_in("default", &labels, &spec, ("default", json!({"role": "frontend"})), 80));
    assert!(!comes_in("default", &labels, &spec, ("dev", json!({"role": "frontend"})), 80));
    assert!(!comes_in("default", &labels, &spec, ("prod", json!({})), 443));
    let cluster = example("default", labels, spec, ("prod", json!({})));
    assert!(tcp(&cluster, WEB, PEER, 5432) && !tcp(&cluster, WEB, PEER, 80));
    assert!(!reaches(&cluster, "10.244.1.10", "203.0.113.10"));
}

#[test]
fn multi_port_policy() {
    let spec = json!({"podSelector": {"matchLabels": {"app": "service"}}, "policyTypes": ["Ingress"],
        "ingress": [{"ports": [{"protocol": "TCP", "port": 80}, {"protocol": "TCP", "port": 443},
            {"protocol": "UDP", "port": 53}]}]});
    let cluster = example("default", json!({"app": "service"}), spec, ("dev", json!({})));
    for (kind, port, passes) in [
        (Packet::Tcp, 80, true),
        (Packet::Tcp, 443, true),
        (Packet::Udp, 53, true),
        (Packet::Tcp, 53, false),
        (Packet::Udp, 80, false),
        (Packet::Echo, 0, false),
    ] {
        assert_eq!(send(&cluster, PEER, WEB, kind, port), passes, "{kind:?} {port}");
    }
}
