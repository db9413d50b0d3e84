//! What an evaluation looks like: identities, order, merged alternatives.

use serde_json::{Value, json};

use super::{A, cluster, with_port, with_spec};
use crate::effective::{EffectivePod, Fallback, Isolation, PeerMatch, PortMatch, RuleMatch};
use crate::object::Protocol;
use crate::policy::{Action, Direction, Tier};
use crate::testing::*;

fn ingress(rules: Value) -> Isolation {
    with_spec(json!({"ingress": rules})).pod("x/a").expect("a").ingress
}

fn contents(rules: Value) -> Vec<(String, usize)> {
    ingress(rules).rules.into_iter().map(|rule| (rule.identity.content(), rule.identity.occurrence)).collect()
}

fn first_matches(rules: Value) -> Vec<RuleMatch> {
    ingress(rules).rules[0].matches.clone()
}

fn blocks(texts: &[&str]) -> PeerMatch {
    PeerMatch::Blocks(texts.iter().map(|text| text.parse().expect("a network")).collect())
}

#[test]
fn a_pod_that_no_policy_selects_is_open() {
    let a = cluster().pod("x/a").expect("a");
    let open = Isolation::default();
    assert_eq!(open.default, Fallback::Open);
    assert_eq!(
        a,
        EffectivePod { name: object_name("x/a"), addresses: vec![ip(A)], ingress: open.clone(), egress: open }
    );
}

#[test]
fn a_rule_says_what_it_is() {
    let rule = ingress(json!([{}])).rules.remove(0);
    assert_eq!((rule.tier, rule.action, rule.index), (Tier::NetworkPolicy, Action::Accept, 0));
    assert_eq!((&rule.identity.policy, rule.identity.direction), (&object_name("x/p"), Direction::Ingress));
    assert_eq!(rule.matches, [RuleMatch::Peer(PeerMatch::Any, PortMatch::Any)]);
}

#[test]
fn policies_stand_in_the_order_of_their_names_and_rules_in_their_place() {
    let two = json!([{"ports": [{"port": 2}]}, {"ports": [{"port": 1}]}]);
    let spec = |rules: &Value| json!({"podSelector": {}, "ingress": rules});
    let cluster =
        cluster().with(policy("x/q", spec(&two))).with(policy("x/p", spec(&two))).with(policy("x/r", spec(&json!([]))));
    let ingress = cluster.pod("x/a").expect("a").ingress;
    assert_eq!(ingress.default, Fallback::Deny);
    assert_eq!(ingress.policies, [object_name("x/p"), object_name("x/q"), object_name("x/r")]);
    let order: Vec<_> = ingress
        .rules
        .iter()
        .map(|rule| (&*rule.identity.policy.name, rule.index, rule.identity.ports.as_str()))
        .collect();
    let (one, two) = ("tcp 1", "tcp 2");
    assert_eq!(order, [("p", 0, two), ("p", 1, one), ("q", 0, two), ("q", 1, one)]);
}

#[test]
fn the_same_content_in_another_order_is_the_same_rule() {
    let written = json!({"from": [{"podSelector": {"matchLabels": {"a": "1", "b": "2"}}}, {"ipBlock": {"cidr": "10.0.0.0/9"}},
                                  {"ipBlock": {"cidr": "10.128.0.0/9"}}, {"namespaceSelector": {}}],
                         "ports": [{"port": 80}, {"port": 81, "endPort": 90}, {"protocol": "UDP"}, {"port": "web"}]});
    let again = json!({"ports": [{"protocol": "UDP"}, {"port": "web"}, {"protocol": "UDP", "port": 53},
                                 {"port": 80, "endPort": 90, "protocol": "TCP"}],
                       "from": [{"namespaceSelector": {}, "podSelector": {}}, {"ipBlock": {"cidr": "10.0.0.0/8"}},
                                {"podSelector": {"matchExpressions": [{"key": "b", "operator": "In", "values": ["2", "2"]},
                                                                      {"key": "a", "operator": "In", "values": ["1"]}]}}]});
    let text = "accept peers pods a in (1), b in (2) in namespace x; pods all in namespaces all; blocks 10.0.0.0/8 \
                ports tcp 80-90 web; udp all";
    assert_eq!(
        contents(json!([written, {}, again])),
        [(text.to_owned(), 0), ("accept peers any ports any".to_owned(), 0), (text.to_owned(), 1)]
    );
}

#[test]
fn all_ports_of_a_protocol_swallow_its_numbers_and_names() {
    let ports = json!([{"port": 80}, {}, {"port": "web"}]);
    assert_eq!(contents(json!([{"ports": ports}])), [("accept peers any ports tcp all".to_owned(), 0)]);
    assert_eq!(
        first_matches(json!([{"ports": ports}])),
        [RuleMatch::Peer(PeerMatch::Any, PortMatch::All(Protocol::Tcp))]
    );
    let egress = with_spec(json!({"egress": [{"ports": ports}]}));
    assert!(egress.effective().endpoints.is_empty());
}

#[test]
fn blocks_of_one_rule_are_one_alternative_and_ports_are_merged() {
    let rule = json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/9"]}}, {"ipBlock": {"cidr": "fd00::/8"}}],
                      "ports": [{"port": 81}, {"port": 80}, {"protocol": "SCTP", "port": 7}]});
    let peer = blocks(&["10.128.0.0/9", "fd00::/8"]);
    assert_eq!(
        first_matches(json!([rule])),
        [
            RuleMatch::Peer(peer.clone(), PortMatch::Ranges(Protocol::Tcp, vec![80..=81])),
            RuleMatch::Peer(peer, PortMatch::Ranges(Protocol::Sctp, vec![7..=7])),
        ]
    );
}

#[test]
fn what_matches_nothing_is_no_alternative() {
    for rule in [
        json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/31", "except": ["10.0.0.0/32", "10.0.0.1/32"]}}]}),
        json!({"from": [{}]}),
        json!({"ports": [{"port": "missing"}]}),
        json!({"ports": [{"fresh": 1}]}),
    ] {
        assert_eq!(first_matches(json!([rule])), [], "{rule}");
    }
}

#[test]
fn names_of_ports_join_numbers_that_touch() {
    let spec = json!({"ingress": [{"ports": [{"port": 80}, {"port": "web"}]}]});
    let a = with_port(pod("x/a", A, json!({"app": "a"})), "web", "TCP", 81);
    let ingress = with_spec(spec).with(a).pod("x/a").expect("a").ingress;
    assert_eq!(
        ingress.rules[0].matches,
        [RuleMatch::Peer(PeerMatch::Any, PortMatch::Ranges(Protocol::Tcp, vec![80..=81]))]
    );
}

#[test]
fn audited_policies_show_what_they_would_do() {
    let audited = |name: &str| {
        let audited = policy(name, json!({"podSelector": {}, "ingress": [{}]}));
        set(audited, "/metadata/annotations/flatfell.io~1mode", json!("audit"))
    };
    let only_audited = cluster().with(audited("x/q")).with(audited("x/p"));
    let ingress = only_audited.pod("x/a").expect("a").ingress;
    assert_eq!((ingress.default, ingress.rules.len()), (Fallback::Audit, 2));
    assert_eq!(ingress.policies, [object_name("x/p"), object_name("x/q")]);
    let enforced = only_audited.with(policy("x/z", json!({"podSelector": {}})));
    let ingress = enforced.pod("x/a").expect("a").ingress;
    assert_eq!((ingress.default, ingress.policies, ingress.rules), (Fallback::Deny, vec![object_name("x/z")], vec![]));
    let a = enforced.pod("x/a").expect("a");
    assert_eq!(a.isolation(Direction::Ingress).default, Fallback::Deny);
    assert_eq!(a.isolation(Direction::Egress).default, Fallback::Open);
}

#[test]
fn only_local_pods_are_subjects_sorted_by_name() {
    let cluster = cluster()
        .with(set(pod("x/remote", "10.0.0.9", json!({})), "/spec/nodeName", json!("n2")))
        .with(set(pod("x/unscheduled", "10.0.0.8", json!({})), "/spec/nodeName", json!(null)))
        .with(set(pod("x/pending", "10.0.0.7", json!({})), "/status/podIPs", json!([])))
        .with(set(
            pod("x/0", "10.0.0.6", json!({})),
            "/status/podIPs",
            json!([{"ip": "10.0.0.6"}, {"ip": "10.0.0.5"}]),
        ));
    let effective = cluster.effective();
    let names: Vec<_> = effective.pods().keys().map(ToString::to_string).collect();
    assert_eq!(names, ["x/0", "x/a", "x/b", "y/c"]);
    assert_eq!(effective.pods()[&object_name("x/0")].addresses, [ip("10.0.0.5"), ip("10.0.0.6")]);
}

#[test]
fn ports_are_ordered_from_the_widest() {
    use PortMatch::{All, Any, Ranges};
    let sorted = [
        Any,
        All(Protocol::Tcp),
        All(Protocol::Udp),
        Ranges(Protocol::Tcp, vec![1..=2]),
        Ranges(Protocol::Tcp, vec![1..=3]),
        Ranges(Protocol::Tcp, vec![2..=2]),
        Ranges(Protocol::Udp, vec![1..=1]),
    ];
    for pair in sorted.windows(2) {
        assert!(pair[0] < pair[1], "{pair:?}");
    }
}
