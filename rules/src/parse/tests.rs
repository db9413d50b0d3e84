//! What is read, what is refused, and where the fault is said to be.

use serde_json::{Value, json};

use super::*;
use crate::object::{Lifetime, Mode, NamedPort, Protocol};
use crate::policy::Selector;
use crate::testing::set;

fn a_pod() -> Value {
    json!({"metadata": {"name": "a"}, "status": {"podIP": "10.0.0.1"}})
}

fn shown(faults: &[Fault]) -> Vec<String> {
    faults.iter().map(ToString::to_string).collect()
}

/// The fields that refuse a pod.
fn pod_faults(object: &Value) -> Vec<String> {
    pod(object).map_or_else(|refusal| refusal.faults.into_iter().map(|fault| fault.field).collect(), |_| Vec::new())
}

fn read(spec: Value) -> Parsed<Policy> {
    policy(&json!({"metadata": {"name": "p", "namespace": "x"}, "spec": spec})).expect("a policy")
}

fn faults(spec: Value) -> Vec<String> {
    read(spec).value.refusal.map(|refusal| shown(&refusal.faults)).unwrap_or_default()
}

fn fault_fields(spec: Value) -> Vec<String> {
    let refusal = read(spec).value.refusal;
    refusal.map(|refusal| refusal.faults.into_iter().map(|fault| fault.field).collect()).unwrap_or_default()
}

fn warnings(spec: Value) -> Vec<String> {
    let parsed = read(spec);
    assert_eq!(parsed.value.refusal, None);
    shown(&parsed.warnings)
}

fn from(peer: Value) -> Value {
    json!({"ingress": [{"from": [peer]}]})
}

fn port_entry(port: Value) -> Value {
    json!({"ingress": [{"ports": [port]}]})
}

#[test]
fn the_least_of_a_pod_gets_the_defaults() {
    let pod = pod(&json!({"metadata": {"name": "a"}})).expect("a pod");
    assert_eq!(pod.warnings, []);
    let pod = pod.value;
    assert_eq!(pod.name, ObjectName::new("default", "a"));
    assert_eq!((&*pod.uid, &*pod.created, pod.node, pod.host_network), ("", "", None, false));
    assert_eq!(
        (pod.addresses, pod.lifetime, pod.ports, pod.labels.iter().count()),
        ([].as_slice().into(), Lifetime::Live, [].into(), 0)
    );
}

#[test]
fn a_whole_pod() {
    let port = |name: Value, number: u16, protocol: Value| json!({"name": name, "containerPort": number, "protocol": protocol});
    let pod = pod(&json!({
        "metadata": {"name": "a", "namespace": "x", "uid": "u", "labels": {"app": "a"}, "creationTimestamp": "2026-01-02T03:04:05Z"},
        "spec": {
            "nodeName": "n1",
            "hostNetwork": true,
            "containers": [{"ports": [port(json!("web"), 80, json!(null)), port(json!(null), 81, json!(null))]}, {}],
            "initContainers": [
                {"restartPolicy": "Always", "ports": [port(json!("dns"), 53, json!("UDP"))]},
                {"ports": [port(json!("once"), 1, json!("SCTP"))]},
            ],
            "ephemeralContainers": [{"ports": [port(json!("debug"), 2, json!("TCP"))]}],
        },
        "status": {"phase": "Succeeded", "podIP": "10.0.0.9", "podIPs": [{"ip": "fd00::1"}, {"ip": "10.0.0.1"}]},
    }));
    let pod = pod.expect("a pod").value;
    assert_eq!((pod.name.to_string().as_str(), &*pod.uid, pod.node.as_deref()), ("x/a", "u", Some("n1")));
    assert_eq!(&*pod.created, "2026-01-02T03:04:05Z");
    assert!(pod.host_network && pod.lifetime == Lifetime::Terminal);
    assert_eq!(pod.labels.get("app"), Some("a"));
    let named = |name: &str, protocol, number| NamedPort { name: name.into(), protocol, number };
    assert_eq!(*pod.ports, [named("dns", Protocol::Udp, 53), named("web", Protocol::Tcp, 80)]);
    let addresses: Vec<String> = pod.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.0.0.1", "fd00::1"]);
}

#[test]
fn addresses_fall_back_and_are_canonical() {
    for (status, wanted, warned) in [
        (json!({"podIP": "10.0.0.1", "podIPs": []}), vec!["10.0.0.1"], 0),
        (json!({"podIP": "10.0.0.1", "podIPs": null}), vec!["10.0.0.1"], 0),
        (json!({"podIP": ""}), vec![], 0),
        (json!({"podIP": "010.0.0.1"}), vec!["10.0.0.1"], 1),
        (json!({"podIP": "::ffff:10.0.0.1"}), vec!["10.0.0.1"], 1),
        (json!({"podIPs": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.1"}]}), vec!["10.0.0.1"], 0),
    ] {
        let parsed = pod(&set(a_pod(), "/status", status)).expect("a pod");
        let addresses: Vec<String> = parsed.value.addresses.iter().map(ToString::to_string).collect();
        assert_eq!((addresses, parsed.warnings.len()), (wanted.into_iter().map(str::to_owned).collect(), warned));
    }
}

#[test]
fn what_refuses_a_pod() {
    for (pointer, value, field) in [
        ("/status/podIP", json!("10.0.0.256"), "status.podIP"),
        ("/status/podIP", json!(7), "status.podIP"),
        ("/status/podIPs", json!([{"ip": "10.0.0.1"}, {"ip": "fe80::1%eth0"}]), "status.podIPs[1].ip"),
        ("/status/podIPs", json!([{}]), "status.podIPs[0]"),
        ("/status/podIPs", json!("10.0.0.1"), "status.podIPs"),
        ("/status/phase", json!(1), "status.phase"),
        ("/status", json!([]), "status"),
        ("/spec", json!(1), "spec"),
        ("/spec/nodeName", json!({}), "spec.nodeName"),
        ("/spec/hostNetwork", json!("true"), "spec.hostNetwork"),
        ("/spec/containers", json!([1]), "spec.containers[0]"),
        (
            "/spec/containers",
            json!([{"ports": [{"name": "web", "containerPort": 0}]}]),
            "spec.containers[0].ports[0].containerPort",
        ),
        ("/spec/containers", json!([{"ports": [{"name": "web"}]}]), "spec.containers[0].ports[0]"),
        (
            "/spec/containers",
            json!([{"ports": [{"name": "web", "containerPort": 80, "protocol": "tcp"}]}]),
            "spec.containers[0].ports[0].protocol",
        ),
        ("/spec/initContainers", json!([{"restartPolicy": "Always", "ports": 1}]), "spec.initContainers[0].ports"),
        ("/metadata/uid", json!(1), "metadata.uid"),
        ("/metadata/labels", json!({"app": 1}), "metadata.labels.app"),
        ("/metadata/labels", json!("app"), "metadata.labels"),
        ("/metadata/creationTimestamp", json!("2026-01-02T03:04:05+01:00"), "metadata.creationTimestamp"),
        ("/metadata/creationTimestamp", json!("2026-01-02 03:04:05Z"), "metadata.creationTimestamp"),
        ("/metadata/name", json!("a/b"), "metadata.name"),
        ("/metadata/name", json!(null), ""),
        ("/metadata/namespace", json!("a.b"), "metadata.namespace"),
        ("/metadata", json!(null), ""),
    ] {
        assert_eq!(pod_faults(&set(a_pod(), pointer, value.clone())), [field], "{pointer} {value}");
    }
    assert_eq!(pod_faults(&json!("pod")), [""]);
    let three = json!({"metadata": {"name": "A"}, "spec": {"hostNetwork": 1}, "status": {"podIP": "x"}});
    let refusal = pod(&three).expect_err("three faults");
    assert_eq!(
        refusal.to_string(),
        "metadata.name: \"A\" is no legal name; spec.hostNetwork: must be true or false, not 1; \
         status.podIP: \"x\" is no IP address"
    );
}

#[test]
fn names_are_those_the_api_takes() {
    let long = "a".repeat(253);
    for (name, legal) in [
        ("0", true),
        ("a.b-c.9", true),
        (long.as_str(), true),
        ("-a", false),
        ("a-", false),
        ("a..b", false),
        ("", false),
    ] {
        assert_eq!(pod_faults(&set(a_pod(), "/metadata/name", json!(name))).is_empty(), legal, "{name}");
    }
    assert!(!pod_faults(&set(a_pod(), "/metadata/name", json!(format!("{long}a")))).is_empty());
    assert!(!pod_faults(&set(a_pod(), "/metadata/namespace", json!("n".repeat(64)))).is_empty());
    assert!(pod_faults(&set(a_pod(), "/metadata/namespace", json!("n".repeat(63)))).is_empty());
}

#[test]
fn namespaces() {
    let object = json!({"metadata": {"name": "x", "labels": {"kubernetes.io/metadata.name": "lie", "team": "x"}}});
    let read = |object: &Value| namespace(object).expect("a namespace");
    let plain = read(&object).value;
    assert_eq!((plain.name.as_str(), plain.mode, plain.terminating), ("x", Mode::Enforce, false));
    assert_eq!((plain.labels.get("kubernetes.io/metadata.name"), plain.labels.iter().count()), (Some("x"), 2));
    assert!(read(&set(object.clone(), "/metadata/deletionTimestamp", json!("2026-01-01T00:00:00Z"))).value.terminating);
    for (mode, wanted, warned) in [
        (json!("audit"), Mode::Audit, 0),
        (json!("enforce"), Mode::Enforce, 0),
        (json!(null), Mode::Enforce, 0),
        (json!("Audit"), Mode::Enforce, 1),
        (json!(1), Mode::Enforce, 1),
    ] {
        let parsed = read(&set(object.clone(), "/metadata/annotations/flatfell.io~1mode", mode.clone()));
        assert_eq!((parsed.value.mode, parsed.warnings.len()), (wanted, warned), "{mode}");
    }
    for wrong in [json!({}), json!({"metadata": {"name": "a.b"}}), json!({"metadata": {"name": "x", "labels": [1]}})] {
        assert!(namespace(&wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_policy_without_a_name_is_refused_whole() {
    for metadata in [json!(null), json!({}), json!({"name": "P"}), json!({"name": "p", "namespace": 1})] {
        assert!(policy(&json!({"metadata": metadata, "spec": {}})).is_err(), "{metadata}");
    }
}

#[test]
fn a_policy_gets_the_defaults() {
    let policy = policy(&json!({"metadata": {"name": "p", "uid": "u"}})).expect("a policy").value;
    assert_eq!((policy.name.to_string().as_str(), policy.uid.as_str(), policy.mode), ("default/p", "u", Mode::Enforce));
    assert_eq!((policy.ingress, policy.egress, policy.refusal), (Some(vec![]), None, None));
    assert_eq!(policy.subject, Selector::default());
    assert_eq!(read(json!({"podSelector": null})).value.subject, Selector::default());
}

#[test]
fn every_fault_of_a_policy_is_named() {
    let spec = json!({
        "podSelector": {"matchExpressions": [{"key": "a", "operator": "Like"}]},
        "policyTypes": ["Sideways"],
        "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8", "11.0.0.0/9"]}}], "ports": [{"port": 0}]}],
        "egress": [1],
        "fresh": {},
    });
    assert_eq!(
        faults(spec),
        [
            "spec.fresh: is not known in the spec of a NetworkPolicy",
            "spec.podSelector.matchExpressions[0].operator: must be In, NotIn, Exists or DoesNotExist, not \"Like\"",
            "spec.ingress[0].from[0].ipBlock.except[0]: 10.0.0.0/8 is not strictly inside 10.0.0.0/8",
            "spec.ingress[0].from[0].ipBlock.except[1]: 11.0.0.0/9 is not strictly inside 10.0.0.0/8",
            "spec.ingress[0].ports[0].port: must be a port from 1 to 65535, not 0",
            "spec.egress[0]: must be an object, not 1",
            "spec.policyTypes[0]: must be Ingress or Egress, not \"Sideways\"",
        ]
    );
}

#[test]
fn a_refused_policy_has_no_rules() {
    let policy = read(json!({"ingress": [{}, {"ports": 1}], "egress": [{}]})).value;
    assert_eq!((policy.ingress, policy.egress), (Some(vec![]), Some(vec![])));
    assert!(policy.refusal.is_some());
}

#[test]
fn selectors() {
    let long = "v".repeat(63);
    for (selector, field) in [
        (json!({"matchLabels": {"a": ""}}), None),
        (json!({"matchLabels": {"example.com/a_b.C": long}}), None),
        (json!({"matchLabels": {"a": format!("{long}v")}}), Some(".matchLabels.a")),
        (json!({"matchLabels": {"a": "b c"}}), Some(".matchLabels.a")),
        (json!({"matchLabels": {"a": "-b"}}), Some(".matchLabels.a")),
        (json!({"matchLabels": {"a": "b-"}}), Some(".matchLabels.a")),
        (json!({"matchLabels": {"a": 1}}), Some(".matchLabels.a")),
        (json!({"matchLabels": {"a": null}}), Some(".matchLabels.a")),
        (json!({"matchLabels": {"": "b"}}), Some(".matchLabels.")),
        (json!({"matchLabels": {"a,b": "b"}}), Some(".matchLabels.a,b")),
        (json!({"matchLabels": {"A/b": "b"}}), Some(".matchLabels.A/b")),
        (json!({"matchLabels": {"a/": "b"}}), Some(".matchLabels.a/")),
        (json!({"matchLabels": []}), Some(".matchLabels")),
        (json!({"matchlabels": {}}), Some(".matchlabels")),
        (json!([]), Some("")),
        (json!({"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}), None),
        (json!({"matchExpressions": [{"key": "a", "operator": "In"}]}), Some(".matchExpressions[0].operator")),
        (
            json!({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": []}]}),
            Some(".matchExpressions[0].operator"),
        ),
        (
            json!({"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}),
            Some(".matchExpressions[0].operator"),
        ),
        (
            json!({"matchExpressions": [{"key": "a", "operator": "DoesNotExist", "values": ["b"]}]}),
            Some(".matchExpressions[0].operator"),
        ),
        (json!({"matchExpressions": [{"key": "a"}]}), Some(".matchExpressions[0]")),
        (json!({"matchExpressions": [{"operator": "Exists"}]}), Some(".matchExpressions[0]")),
        (json!({"matchExpressions": [{"key": "a b", "operator": "Exists"}]}), Some(".matchExpressions[0].key")),
        (
            json!({"matchExpressions": [{"key": "a", "operator": "Exists", "value": 1}]}),
            Some(".matchExpressions[0].value"),
        ),
        (
            json!({"matchExpressions": [{"key": "a", "operator": "In", "values": [1, "b"]}]}),
            Some(".matchExpressions[0].values[0]"),
        ),
        (json!({"matchExpressions": [null]}), Some(".matchExpressions[0]")),
    ] {
        let expected = |base: &str| field.map(|field| format!("{base}{field}")).into_iter().collect::<Vec<_>>();
        assert_eq!(fault_fields(json!({"podSelector": selector})), expected("spec.podSelector"), "{selector}");
        let peer = from(json!({"namespaceSelector": selector}));
        assert_eq!(fault_fields(peer), expected("spec.ingress[0].from[0].namespaceSelector"), "{selector}");
    }
}

#[test]
fn peers_that_refuse_and_peers_that_match_nothing() {
    let block = json!({"cidr": "10.0.0.0/8"});
    for (peer, field) in [
        (json!({"ipBlock": block, "podSelector": {}}), ""),
        (json!({"ipBlock": block, "namespaceSelector": {}}), ""),
        (json!({"ipBlock": {}}), ".ipBlock"),
        (json!({"ipBlock": 1}), ".ipBlock"),
        (json!({"ipBlock": {"cidr": 1}}), ".ipBlock.cidr"),
        (json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": [1]}}), ".ipBlock.except[0]"),
        (json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["fd00::/16"]}}), ".ipBlock.except[0]"),
        (json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["0.0.0.0/0"]}}), ".ipBlock.except[0]"),
        (json!(1), ""),
    ] {
        assert_eq!(fault_fields(from(peer.clone())), [format!("spec.ingress[0].from[0]{field}")], "{peer}");
    }
    assert_eq!(warnings(from(json!({}))), ["spec.ingress[0].from[0]: has no known field: matches nothing"]);
    assert_eq!(warnings(from(json!(null))), ["spec.ingress[0].from[0]: is empty: matches nothing"]);
    assert_eq!(
        warnings(from(json!({"fresh": 1}))),
        ["spec.ingress[0].from[0].fresh: is not known: what it stands in matches nothing"]
    );
    assert_eq!(warnings(from(json!({"ipBlock": {"cidr": "10.0.0.0/8", "fresh": 1}}))).len(), 1);
    assert_eq!(warnings(json!({"ingress": [{"ports": [{"fresh": 1}], "fresh": 1}]})).len(), 2);
    assert!(warnings(from(json!({"ipBlock": block, "podSelector": null}))).is_empty());
}

#[test]
fn ports() {
    for (port, field) in [
        (json!({"port": 1}), None),
        (json!({"port": 65535, "endPort": 65535}), None),
        (json!({"port": "web-2"}), None),
        (json!({"port": 0}), Some(".port")),
        (json!({"port": 65536}), Some(".port")),
        (json!({"port": -1}), Some(".port")),
        (json!({"port": 80.5}), Some(".port")),
        (json!({"port": true}), Some(".port")),
        (json!({"port": "80"}), Some(".port")),
        (json!({"port": ""}), Some(".port")),
        (json!({"port": "Web"}), Some(".port")),
        (json!({"port": "-web"}), Some(".port")),
        (json!({"port": "web-"}), Some(".port")),
        (json!({"port": "we--b"}), Some(".port")),
        (json!({"port": "a234567890123456"}), Some(".port")),
        (json!({"port": "a23456789012345"}), None),
        (json!({"endPort": 80}), Some(".endPort")),
        (json!({"port": "web", "endPort": 80}), Some(".endPort")),
        (json!({"port": 80, "endPort": 79}), Some(".endPort")),
        (json!({"port": 80, "endPort": 65536}), Some(".endPort")),
        (json!({"protocol": "tcp"}), Some(".protocol")),
        (json!({"protocol": "ICMP"}), Some(".protocol")),
        (json!({"protocol": 6}), Some(".protocol")),
        (json!({"protocol": null, "port": null, "endPort": null}), None),
        (json!([]), Some("")),
    ] {
        let expected: Vec<_> = field.map(|field| format!("spec.ingress[0].ports[0]{field}")).into_iter().collect();
        assert_eq!(fault_fields(port_entry(port.clone())), expected, "{port}");
    }
}

#[test]
fn prefixes_are_read_as_the_api_server_reads_them() {
    for (text, wanted) in [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("010.08.00.00/08", "10.0.0.0/8"),
        ("010.09.00.00/016", "10.9.0.0/16"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("FD00:0000::1/8", "fd00::/8"),
        ("fd00:00001::/32", "fd00:1::/32"),
        ("::/0", "::/0"),
        ("::ffff:10.1.2.3/104", "10.0.0.0/8"),
        ("::ffff:0a01:0203/128", "10.1.2.3/32"),
        ("::ffff:0.0.0.0/96", "0.0.0.0/0"),
        ("::ffff:10.0.0.0/95", "::fffe:0:0/95"),
        ("64:ff9b::010.0.0.1/128", "64:ff9b::a00:1/128"),
    ] {
        assert_eq!(cidr(text).map(|network| network.to_string()).as_deref(), Some(wanted), "{text}");
    }
    for text in [
        "",
        "10.0.0.0",
        "10.0.0.0/",
        "10.0.0.0/33",
        "10.0.0.0/-1",
        "10.0.0.0/+8",
        "10.0.0/8",
        "10.0.0.0.0/8",
        "10.0.0.256/32",
        "10..0.0/8",
        " 10.0.0.0/8",
        "10.0.0.0/8 ",
        "0x0a.0.0.0/8",
        "10.0.0.0/8/8",
        "::/129",
        ":::/8",
        "1::2::3/8",
        "::1%lo/128",
        "12345::/16",
        "fd00::/g",
        "::10.0.0/128",
        "1:2:3:4:5:6:7:8:9/64",
        "10.0.0.0/300",
    ] {
        assert_eq!(cidr(text), None, "{text}");
    }
}

#[test]
fn sloppy_prefixes_are_reported() {
    for (text, said) in [
        ("10.0.0.0/8", vec![]),
        ("FD00::/8", vec![]),
        ("10.1.0.0/8", vec!["ignored"]),
        ("010.0.0.0/8", vec!["decimal"]),
        ("10.0.0.0/08", vec!["decimal"]),
        ("010.0.0.0/08", vec!["decimal"]),
        ("::ffff:10.0.0.0/104", vec!["IPv4"]),
        ("010.0.0.1/8", vec!["decimal", "ignored"]),
    ] {
        let warnings = warnings(from(json!({"ipBlock": {"cidr": text}})));
        assert_eq!(warnings.len(), said.len(), "{text}: {warnings:?}");
        for (warning, word) in warnings.iter().zip(said) {
            assert!(
                warning.starts_with("spec.ingress[0].from[0].ipBlock.cidr: ") && warning.contains(word),
                "{warning}"
            );
        }
    }
}

#[test]
fn an_object_that_was_refused_can_be_named() {
    assert_eq!(name_of(&json!({"metadata": {"name": "A", "namespace": "x"}})), Some(ObjectName::new("x", "A")));
    assert_eq!(name_of(&json!({"metadata": {"name": "a"}})), Some(ObjectName::new("default", "a")));
    assert_eq!(name_of(&json!({"metadata": {"name": 1}})), None);
    assert_eq!(name_of(&json!([])), None);
}
