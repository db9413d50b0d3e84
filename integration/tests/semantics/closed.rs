//! What cannot be read fails closed, and one bad policy stops nobody else's.

use flatfell_integration::Scene;
use flatfell_integration::scene::{no, policy, tcp, udp, yes};

use crate::{B_DB, B_WEB, DB, FAR, OTHER, WEB, cluster};

/// "What cannot be read fails closed": a peer with no known field matches nothing; ipBlock beside another peer field
/// refuses the policy; a ports entry with an unknown field matches nothing (not "all TCP").
#[test]
fn peers_and_ports_that_cannot_be_read() {
    let mut scene = Scene::new(5, &cluster());
    let db = |rule: &str| policy("a/p", &format!("podSelector: {{matchLabels: {{app: db}}}}, ingress: [{rule}]"));
    for peer in ["{}", "{nodeSelector: {}}", "{podSelector: null}", "null"] {
        scene.policies(&[db(&format!("{{from: [{peer}]}}"))]);
        scene.expect(
            &format!("no known field: {peer}"),
            &[no(tcp(WEB, DB, 80)), no(tcp(FAR, DB, 80)), yes(tcp(DB, WEB, 80))],
        );
        scene.policies(&[db(&format!("{{from: [{peer}, {{podSelector: {{matchLabels: {{app: web}}}}}}]}}"))]);
        scene.expect(&format!("beside one that is known: {peer}"), &[no(tcp(FAR, DB, 80)), no(tcp(OTHER, DB, 80))]);
    }
    scene.policies(&[db("{from: [{ipBlock: {cidr: 0.0.0.0/0}, podSelector: {}}]}")]);
    scene.expect("ipBlock beside another field", &[no(tcp(WEB, DB, 80)), yes(tcp(WEB, OTHER, 80))]);
    let errors = scene.node.status().unwrap().source.errors;
    assert!(errors.iter().any(|error| error.contains("a/p")), "{errors:?}");
    for ports in ["{portRange: 80-90}", "{serviceName: x, protocol: TCP}"] {
        scene.policies(&[db(&format!("{{ports: [{ports}]}}"))]);
        scene.expect(
            &format!("a ports entry with an unknown field: {ports}"),
            &[no(tcp(WEB, DB, 80)), no(udp(WEB, DB, 80))],
        );
        scene.policies(&[db(&format!("{{ports: [{ports}, {{port: 443}}]}}"))]);
        scene.expect(&format!("beside one without: {ports}"), &[no(tcp(WEB, DB, 80)), no(udp(WEB, DB, 443))]);
    }
}

/// "A refused policy isolates what its podSelector selects, the whole namespace if that cannot be read, both directions if
/// policyTypes cannot be read." One invalid policy stops none of the others.
#[test]
fn a_refused_policy_isolates_what_it_selects() {
    let mut scene = Scene::new(5, &cluster());
    let good = policy("b/good", "podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {}}]}]");
    let others = [yes(tcp(B_WEB, B_DB, 80)), no(tcp(FAR, B_DB, 80)), yes(tcp(FAR, B_WEB, 80))];
    let selected = "podSelector: {matchLabels: {app: db}}";
    let bad = [
        "ingress: 5",
        "ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/33}}]}]",
        "ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/8]}}]}]",
        "ingress: [{}, {ports: [{port: 90, endPort: 80}]}]",
        "ingress: [{}, {ports: [{port: web, endPort: 80}]}]",
        "ingress: [{}, {ports: [{port: 70000}]}]",
        "ingress: [{}, {ports: [{port: 80, protocol: ICMP}]}]",
        "ingress: [{}, {from: [{podSelector: {matchExpressions: [{key: a, operator: Like, values: [b]}]}}]}]",
        "ingress: [{}, {from: [{podSelector: {matchExpressions: [{key: a, operator: In}]}}]}]",
    ];
    for spec in bad {
        scene.policies(&[good.clone(), policy("a/bad", &format!("{selected}, {spec}"))]);
        let held = [no(tcp(WEB, DB, 80)), no(tcp(FAR, DB, 80)), yes(tcp(DB, WEB, 80)), yes(tcp(FAR, WEB, 80))];
        scene.expect(spec, &[&held[..], &others].concat());
        let report = scene.node.status().unwrap();
        assert!(
            report.source.errors.iter().any(|error| error.contains("a/bad") && error.contains("spec")),
            "{report:?}"
        );
    }
    for unreadable in [
        "podSelector: 5",
        "podSelector: {matchLabels: [x]}",
        "podSelector: {matchExpressions: [{key: a, operator: Like}]}",
    ] {
        scene.policies(&[
            good.clone(),
            policy("a/bad", &format!("{unreadable}, policyTypes: [Ingress], ingress: [{{}}]")),
        ]);
        let held = [no(tcp(WEB, DB, 80)), no(tcp(FAR, OTHER, 80)), yes(tcp(WEB, FAR, 80)), no(tcp(DB, WEB, 80))];
        scene.expect(&format!("the whole namespace: {unreadable}"), &[&held[..], &others].concat());
    }
    for types in ["policyTypes: 5", "policyTypes: [Sideways]", "policyTypes: [Ingress, 5]"] {
        scene.policies(&[
            good.clone(),
            policy("a/bad", &format!("{selected}, {types}, ingress: [{{}}], egress: [{{}}]")),
        ]);
        let held = [no(tcp(WEB, DB, 80)), no(tcp(DB, WEB, 80)), no(tcp(DB, FAR, 80)), yes(tcp(WEB, FAR, 80))];
        scene.expect(&format!("both directions: {types}"), &[&held[..], &others].concat());
    }
}

/// A file that cannot be parsed keeps what it last said; the others are followed.
#[test]
fn a_broken_file_keeps_its_last_good_state() {
    let mut scene = Scene::new(5, &cluster());
    scene.policies(&[policy("a/p", "podSelector: {matchLabels: {app: db}}")]);
    scene.node.write("policies.yaml", "{apiVersion: networking.k8s.io/v1, kind: ]\n").unwrap();
    scene.node.apply("more.yaml", &policy("b/p", "podSelector: {}")).unwrap();
    scene.expect("both hold", &[no(tcp(WEB, DB, 80)), no(tcp(WEB, B_WEB, 80)), yes(tcp(FAR, WEB, 80))]);
    let errors = scene.node.status().unwrap().source.errors;
    assert!(errors.iter().any(|error| error.contains("policies.yaml:1: not YAML")), "{errors:?}");
    scene.node.apply("more.yaml", "").unwrap();
    scene.expect("no bytes: half written", &[no(tcp(WEB, DB, 80)), no(tcp(WEB, B_WEB, 80))]);
    scene.node.remove("policies.yaml").unwrap();
    scene.node.settle().unwrap();
    scene.expect("removed", &[yes(tcp(WEB, DB, 80)), no(tcp(WEB, B_WEB, 80))]);
}
