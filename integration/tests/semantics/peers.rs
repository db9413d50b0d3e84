//! Whom a rule names: selectors, their combinations, and what they do not match.

use flatfell_integration::Scene;
use flatfell_integration::scene::{Expected, namespace, no, pod, pod_with, policy, tcp, yes};

use crate::{B_DB, B_FAR, B_WEB, DB, FAR, OTHER, WEB, cluster, namespaces};

/// Ingress of db from these peers.
fn from(peers: &str) -> String {
    policy("a/p", &format!("podSelector: {{matchLabels: {{app: db}}}}, ingress: [{{from: {peers}}}]"))
}

/// Who of the usual cluster reaches db: web, other, far, b/web, b/db, b/far.
fn reach(passes: [bool; 6]) -> Vec<Vec<Expected>> {
    let clients = [WEB, OTHER, FAR, B_WEB, B_DB, B_FAR];
    let expect = |(from, passes)| if passes { yes(tcp(from, DB, 80)) } else { no(tcp(from, DB, 80)) };
    clients.into_iter().zip(passes).map(expect).collect()
}

fn each(scene: &mut Scene, cases: &[(&str, &str, [u8; 6])]) {
    for (what, peers, passes) in cases {
        scene.policies(&[from(peers)]);
        scene.expect(&format!("{what}: {peers}"), &reach(passes.map(|passes| passes == 1)));
    }
}

/// Rows "podSelector {}" (a null peer selector is not an empty one), "one peer with podSelector and
/// namespaceSelector: AND; two list items: OR", "from / to empty or missing", "selector that matches nothing".
#[test]
fn selectors_and_or_null_empty_nothing() {
    let mut scene = Scene::new(5, &cluster());
    each(
        &mut scene,
        &[
            ("empty podSelector: own namespace", "[{podSelector: {}}]", [1, 1, 1, 0, 0, 0]),
            (
                "null beside a namespaceSelector",
                "[{podSelector: null, namespaceSelector: {matchLabels: {team: b}}}]",
                [0, 0, 0, 1, 1, 1],
            ),
            (
                "null beside a podSelector",
                "[{namespaceSelector: null, podSelector: {matchLabels: {app: web}}}]",
                [1, 0, 0, 0, 0, 0],
            ),
            ("both empty", "[{namespaceSelector: {}, podSelector: {}}]", [1, 1, 1, 1, 1, 1]),
            (
                "one item: AND",
                "[{namespaceSelector: {matchLabels: {team: b}}, podSelector: {matchLabels: {app: web}}}]",
                [0, 0, 0, 1, 0, 0],
            ),
            (
                "two items: OR",
                "[{namespaceSelector: {matchLabels: {team: b}}}, {podSelector: {matchLabels: {app: web}}}]",
                [1, 0, 0, 1, 1, 1],
            ),
            ("a selector that matches nothing", "[{podSelector: {matchLabels: {app: nobody}}}]", [0; 6]),
            (
                "a namespaceSelector that matches nothing",
                "[{namespaceSelector: {matchLabels: {team: nobody}}}]",
                [0; 6],
            ),
            (
                "beside one that does",
                "[{podSelector: {matchLabels: {app: nobody}}}, {podSelector: {matchLabels: {app: web}}}]",
                [1, 0, 0, 0, 0, 0],
            ),
            ("from empty: every source", "[]", [1; 6]),
            ("from null: every source", "null", [1; 6]),
        ],
    );
    rules_empty_or_missing(&mut scene);
    egress_peers(&mut scene);
}

/// Row "from / to empty or missing": every source / destination; `ingress: []` or missing: nothing.
fn rules_empty_or_missing(scene: &mut Scene) {
    let db = "podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress, Egress]";
    let outside = flatfell_integration::Place::Outside;
    for (rules, ingress, egress) in [
        ("ingress: [{}], egress: []", true, false),
        ("ingress: [], egress: [{}]", false, true),
        ("ingress: null, egress: [{to: []}]", false, true),
        ("egress: [{ports: []}]", false, true),
    ] {
        scene.policies(&[policy("a/p", &format!("{db}, {rules}"))]);
        let say = |passes: bool, probes| if passes { yes(probes) } else { no(probes) };
        let at_db = [tcp(WEB, DB, 80), tcp(outside, DB, 80)].concat();
        let of_db = [tcp(DB, B_FAR, 80), tcp(DB, outside, 80)].concat();
        scene.expect(rules, &[say(ingress, at_db), say(egress, of_db)]);
    }
}

/// The same peers in `to`.
fn egress_peers(scene: &mut Scene) {
    let spec = "podSelector: {matchLabels: {app: db}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: \
                {app: web}}}, {namespaceSelector: {matchLabels: {team: b}}, podSelector: {matchLabels: {app: far}}}]}]";
    scene.policies(&[policy("a/p", spec)]);
    scene.expect(
        "egress: OR of two, one with AND",
        &[yes(tcp(DB, WEB, 80)), yes(tcp(DB, B_FAR, 80)), no(tcp(DB, B_WEB, 80)), no(tcp(DB, FAR, 80))],
    );
}

/// Row "matchExpressions": In, NotIn, Exists, DoesNotExist; a missing key satisfies NotIn and DoesNotExist.
#[test]
fn match_expressions() {
    let mut scene = Scene::new(5, &cluster());
    let of_pods = |expression: &str| {
        format!("[{{namespaceSelector: {{}}, podSelector: {{matchExpressions: [{{{expression}}}]}}}}]")
    };
    let of_namespaces = |expression: &str| format!("[{{namespaceSelector: {{matchExpressions: [{{{expression}}}]}}}}]");
    let cases = [
        ("In", of_pods("key: app, operator: In, values: [web, far]"), [1, 0, 1, 1, 0, 1]),
        ("NotIn", of_pods("key: app, operator: NotIn, values: [web, far]"), [0, 1, 0, 0, 1, 0]),
        ("NotIn, key missing", of_pods("key: tier, operator: NotIn, values: [back]"), [1, 1, 1, 1, 0, 1]),
        ("Exists", of_pods("key: tier, operator: Exists"), [0, 0, 0, 0, 1, 0]),
        ("DoesNotExist", of_pods("key: tier, operator: DoesNotExist"), [1, 1, 1, 1, 0, 1]),
        ("In of namespaces", of_namespaces("key: team, operator: In, values: [b, c]"), [0, 0, 0, 1, 1, 1]),
        (
            "NotIn, missing in a namespace",
            of_namespaces("key: old, operator: NotIn, values: [\"yes\"]"),
            [1, 1, 1, 0, 0, 0],
        ),
        ("Exists in a namespace", of_namespaces("key: old, operator: Exists"), [0, 0, 0, 1, 1, 1]),
        ("DoesNotExist in a namespace", of_namespaces("key: old, operator: DoesNotExist"), [1, 1, 1, 0, 0, 0]),
        (
            "the name's own label",
            of_namespaces("key: kubernetes.io/metadata.name, operator: In, values: [b]"),
            [0, 0, 0, 1, 1, 1],
        ),
    ];
    let cases = cases.each_ref().map(|(what, peers, passes)| (*what, peers.as_str(), *passes));
    each(&mut scene, &cases);
    let spec =
        "podSelector: {matchExpressions: [{key: tier, operator: Exists}, {key: app, operator: NotIn, values: [x]}]}";
    scene.policies(&[policy("a/p", spec)]);
    scene.expect("both requirements, of the subject", &[no(tcp(WEB, DB, 80)), yes(tcp(DB, WEB, 80))]);
}

/// Row "a namespace that is not known": its pods match no namespaceSelector, not even {} (NotIn would match a missing
/// label); policies of their own namespace still apply by name.
#[test]
fn a_namespace_that_is_not_known() {
    let unknown = [
        namespace("a", "team: a"),
        pod("a/db", DB, "app: db"),
        pod("a/web", WEB, "app: web"),
        pod("b/web", B_WEB, "app: web"),
        pod("b/db", B_DB, "app: db"),
    ];
    let mut scene = Scene::new(5, &unknown.concat());
    for selector in ["{}", "{matchExpressions: [{key: team, operator: NotIn, values: [a]}]}"] {
        scene.policies(&[from(&format!("[{{namespaceSelector: {selector}}}]"))]);
        let of_a = tcp(WEB, DB, 80);
        scene.expect(selector, &[no(tcp(B_WEB, DB, 80)), if selector == "{}" { yes(of_a) } else { no(of_a) }]);
    }
    let own = "podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]";
    scene.policies(&[policy("b/p", own)]);
    scene.expect("policies of their own namespace", &[yes(tcp(B_WEB, B_DB, 80)), no(tcp(WEB, B_DB, 80))]);
    scene.policies(&[from("[{namespaceSelector: {}}]")]);
    scene.cluster(&[unknown.concat(), namespace("b", "")].concat());
    scene.expect("known now", &[yes(tcp(B_WEB, DB, 80))]);
}

/// Row "hostNetwork pods": never subjects; not matched by selectors; their addresses match ipBlock.
#[test]
fn host_network_pods() {
    use flatfell_integration::Place;
    let (near, far) = (Place::Node(1), Place::Node(2));
    // To a pod, node 2 is seen as its flannel.1 address; a hostNetwork pod has its node's addresses in the API.
    let tunnel = far.addresses().map(|like| flatfell_integration::place::tunnel_address_like(2, like));
    let all = [far.addresses(), tunnel].concat();
    let host = "hostNetwork: true";
    let pods = [
        namespaces(),
        pod("a/db", DB, "app: db"),
        pod("a/web", WEB, "app: web"),
        pod_with("a/host", far, "app: host", host, &all),
        pod_with("a/agent", near, "app: agent", host, &near.addresses()),
    ];
    let mut scene = Scene::new(5, &pods.concat());
    scene.policies(&[policy(
        "a/p",
        "podSelector: {matchExpressions: [{key: app, operator: In, values: [host, agent]}]}",
    )]);
    scene.expect(
        "never subjects",
        &[yes(tcp(FAR, near, 80)), yes(tcp(near, FAR, 80)), yes(tcp(Place::Outside, near, 80))],
    );
    scene.policies(&[from("[{podSelector: {}}]")]);
    scene.expect("not matched by selectors", &[no(tcp(far, DB, 80)), yes(tcp(WEB, DB, 80))]);
    scene.policies(&[from("[{ipBlock: {cidr: 10.244.2.0/32}}, {ipBlock: {cidr: \"fd00:10:244:2::/128\"}}]")]);
    scene.expect("their addresses match ipBlock", &[yes(tcp(far, DB, 80)), no(tcp(WEB, DB, 80))]);
    let egress = "podSelector: {matchLabels: {app: db}}, policyTypes: [Egress], egress: ";
    scene.policies(&[policy("a/p", &format!("{egress} [{{to: [{{podSelector: {{}}}}]}}]"))]);
    scene.expect("nor as a destination", &[no(tcp(DB, far, 80)), no(tcp(DB, near, 80)), yes(tcp(DB, WEB, 80))]);
    let blocks = "[{to: [{ipBlock: {cidr: 192.168.50.2/32}}, {ipBlock: {cidr: \"fd00:192:168:50::2/128\"}}]}]";
    scene.policies(&[policy("a/p", &format!("{egress} {blocks}"))]);
    scene.expect("but by its block", &[yes(tcp(DB, far, 80)), no(tcp(DB, near, 80))]);
}
