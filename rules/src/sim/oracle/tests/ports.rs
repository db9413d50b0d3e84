//! Ports, protocols, names of ports.

use serde_json::json;

use super::*;

/// Whether `a/web` takes a packet with these ports in its rule.
fn takes(ports: Value, kind: Packet, port: u16) -> bool {
    send(&shop([policy(json!({"ingress": [{"ports": ports}]}))]), OTHER, WEB, kind, port)
}

#[test]
fn no_ports_are_all_ports_one_empty_entry_is_all_of_tcp() {
    for ports in [json!(null), json!([])] {
        assert!(
            takes(ports.clone(), Packet::Tcp, 1)
                && takes(ports.clone(), Packet::Sctp, 65535)
                && takes(ports, Packet::Echo, 0)
        );
    }
    assert!(takes(json!([{}]), Packet::Tcp, 1234));
    assert!(!takes(json!([{}]), Packet::Udp, 1234) && !takes(json!([{}]), Packet::Echo, 0));
}

#[test]
fn the_protocol_is_tcp_unless_it_is_said() {
    assert!(takes(json!([{"port": 53}]), Packet::Tcp, 53) && !takes(json!([{"port": 53}]), Packet::Udp, 53));
    assert!(takes(json!([{"port": 53, "protocol": null}]), Packet::Tcp, 53));
    for (word, kind) in [("UDP", Packet::Udp), ("SCTP", Packet::Sctp)] {
        assert!(takes(json!([{"port": 53, "protocol": word}]), kind, 53), "{word}");
        assert!(!takes(json!([{"port": 53, "protocol": word}]), Packet::Tcp, 53), "{word}");
        assert!(takes(json!([{"protocol": word}]), kind, 9), "all of {word}");
    }
}

#[test]
fn end_port_is_a_range_with_both_ends() {
    let range = json!([{"port": 80, "endPort": 90}]);
    for (port, passes) in [(79, false), (80, true), (85, true), (90, true), (91, false)] {
        assert_eq!(takes(range.clone(), Packet::Tcp, port), passes, "{port}");
    }
    assert!(takes(json!([{"port": 80, "endPort": 80}]), Packet::Tcp, 80));
    assert!(!takes(range, Packet::Udp, 85));
}

#[test]
fn icmp_needs_a_rule_without_ports() {
    assert!(takes(json!([]), Packet::Echo, 0));
    assert!(!takes(json!([{"port": 80}]), Packet::Echo, 0));
    assert!(send(&shop([]), OTHER, WEB, Packet::Echo, 0), "not isolated");
    assert!(!send(&shop([policy(json!({}))]), OTHER, WEB, Packet::Echo, 0));
}

/// `a/web` and `b/other` declare ports by name; a rule of one direction names one.
fn named(direction: &str, rule: Value) -> Cluster {
    let types = if direction == "ingress" { "Ingress" } else { "Egress" };
    let mut cluster = shop([policy(json!({"policyTypes": [types], direction: [rule]}))]);
    for object in &mut cluster.objects {
        let number = match object["metadata"]["name"].as_str() {
            Some("web") => 8080,
            Some("other") => 8081,
            _ => continue,
        };
        object["spec"] = json!({
            "nodeName": "node-1",
            "containers": [
                {"ports": [{"name": "http", "containerPort": number}, {"name": "dns", "protocol": "UDP", "containerPort": 53}]},
                {"ports": [{"name": "http", "protocol": "TCP", "containerPort": 9090}]},
            ],
            "initContainers": [
                {"restartPolicy": "Always", "ports": [{"name": "http", "containerPort": 81}]},
                {"ports": [{"name": "http", "containerPort": 82}]},
            ],
            "ephemeralContainers": [{"ports": [{"name": "http", "containerPort": 83}]}],
        });
    }
    cluster
}

#[test]
fn a_named_port_is_resolved_on_the_destination_pod() {
    let ingress = named("ingress", json!({"ports": [{"port": "http"}]}));
    assert!(tcp(&ingress, OTHER, WEB, 8080) && !tcp(&ingress, OTHER, WEB, 8081), "on the subject");
    let egress = named("egress", json!({"ports": [{"port": "http"}]}));
    assert!(tcp(&egress, WEB, OTHER, 8081) && !tcp(&egress, WEB, OTHER, 8080), "on the other side");
    assert!(!tcp(&egress, DB, FAR, 8080), "a pod that declares nothing");
}

#[test]
fn a_named_port_may_be_several_numbers() {
    let cluster = named("ingress", json!({"ports": [{"port": "http"}]}));
    assert!(tcp(&cluster, OTHER, WEB, 9090), "of another container");
    assert!(tcp(&cluster, OTHER, WEB, 81), "of an init container that is restarted");
    assert!(!tcp(&cluster, OTHER, WEB, 82), "not of a plain one");
    assert!(!tcp(&cluster, OTHER, WEB, 83), "not of an ephemeral one");
}

#[test]
fn name_and_protocol_must_be_equal() {
    let tcp_dns = named("ingress", json!({"ports": [{"port": "dns"}]}));
    assert!(!tcp(&tcp_dns, OTHER, WEB, 53) && !send(&tcp_dns, OTHER, WEB, Packet::Udp, 53));
    let udp_dns = named("ingress", json!({"ports": [{"port": "dns", "protocol": "UDP"}]}));
    assert!(send(&udp_dns, OTHER, WEB, Packet::Udp, 53) && !tcp(&udp_dns, OTHER, WEB, 53));
}

#[test]
fn a_destination_that_is_no_pod_has_no_named_ports() {
    let ask = |cluster: &Cluster, to: &str| {
        let probe = packet(cluster, address("10.244.1.10"), address(to), Packet::Tcp, 8081);
        Oracle::new(cluster).allowed(&probe)
    };
    let rule = json!({"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}], "ports": [{"port": "http"}]});
    let cluster = named("egress", rule);
    assert!(!ask(&cluster, "203.0.113.10") && !ask(&cluster, "192.168.50.1"));
    assert!(ask(&cluster, "10.244.1.12"), "a pod's address in the block");
}
