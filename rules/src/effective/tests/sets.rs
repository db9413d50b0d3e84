//! Which sets there are and what is in them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use proptest::prelude::*;
use serde_json::json;

use super::{A, B, C, cluster, with_port, with_spec};
use crate::effective::{Addresses, Effective, Endpoint, EndpointKey, PeerMatch, evaluate};
use crate::index::{Change, Index};
use crate::object::{Labels, Lifetime, Mode, NamedPort, Namespace, ObjectName, Pod, Protocol};
use crate::policy::{
    Action, Match, Namespaces, Operator, Peer, PodPeer, Policy, Port, PortSpec, Requirement, Rule, Selector,
};
use crate::testing::*;

fn all_pods() -> PodPeer {
    PodPeer { namespaces: Namespaces::Matching(Selector::default()), pods: Selector::default() }
}

#[test]
fn equal_selectors_share_a_set_and_only_what_rules_name_is_there() {
    let cluster = cluster()
        .with(policy("x/p", json!({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {}}]}]})))
        .with(policy(
            "y/q",
            json!({"podSelector": {}, "egress": [{"to": [{"podSelector": {}, "namespaceSelector": {}}]}]}),
        ))
        .with(policy("z/nobody", json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]})))
        .with(policy(
            "x/none",
            json!({"podSelector": {"matchLabels": {"app": "0"}}, "ingress": [{"from": [{"podSelector": {}}]}]}),
        ));
    let effective = cluster.effective();
    assert_eq!(effective.peers, OrdMap::unit(Arc::new(all_pods()), Addresses::from_iter([A, B, C].map(ip))));
    assert!(effective.endpoints.is_empty());
}

#[test]
fn a_set_that_selects_nothing_is_there_and_empty() {
    let cluster = with_spec(json!({"egress": [{"to": [{"podSelector": {"matchLabels": {"app": "0"}}}]},
                                              {"ports": [{"port": "nothing"}]}]}));
    let effective = cluster.effective();
    assert!(effective.peers.values().all(Addresses::is_empty) && effective.peers.len() == 1);
    let key = EndpointKey { peer: PeerMatch::Any, protocol: Protocol::Tcp, port: "nothing".into() };
    assert_eq!(effective.endpoints, OrdMap::unit(Arc::new(key), OrdSet::new()));
}

#[test]
fn endpoints_hold_every_number_of_every_pod_by_peer() {
    let b = with_port(with_port(pod("x/b", B, json!({})), "web", "TCP", 80), "web", "TCP", 81);
    let b = with_port(with_port(b, "web", "UDP", 82), "other", "TCP", 83);
    let cluster = with_spec(json!({"egress": [{"to": [{"podSelector": {}}, {"ipBlock": {"cidr": "10.0.1.0/24"}}],
                                              "ports": [{"port": "web"}, {"protocol": "UDP", "port": "web"}]}]}))
    .with(b)
    .with(with_port(pod("y/c", C, json!({})), "web", "TCP", 84));
    let effective = cluster.effective();
    let own = PodPeer { namespaces: Namespaces::Named("x".into()), pods: Selector::default() };
    let block = PeerMatch::Blocks(vec!["10.0.1.0/24".parse().expect("a network")]);
    let key = |peer: &PeerMatch, protocol| Arc::new(EndpointKey { peer: peer.clone(), protocol, port: "web".into() });
    let at = |address, protocol, port| Endpoint { address: ip(address), protocol, port };
    let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
    let pods = PeerMatch::Pods(Arc::new(own));
    assert_eq!(
        effective.endpoints,
        OrdMap::from_iter([
            (key(&pods, tcp), OrdSet::from_iter([at(B, tcp, 80), at(B, tcp, 81)])),
            (key(&pods, udp), OrdSet::unit(at(B, udp, 82))),
            (key(&block, tcp), OrdSet::unit(at(C, tcp, 84))),
            (key(&block, udp), OrdSet::new()),
        ])
    );
    assert!(effective.peers.is_empty(), "no rule looks an address up");
}

#[test]
fn pods_that_ended_are_in_no_set() {
    for phase in ["Succeeded", "Failed"] {
        let ended = with_port(pod("x/b", B, json!({})), "web", "TCP", 80);
        let cluster = with_spec(json!({"egress": [{"to": [{"podSelector": {}}]}, {"ports": [{"port": "web"}]}]}))
            .with(set(ended, "/status/phase", json!(phase)));
        let effective = cluster.effective();
        assert_eq!(effective.peers.values().flat_map(Addresses::iter).collect::<Vec<_>>(), [ip(A)]);
        assert_eq!(effective.endpoints.values().flatten().count(), 0);
    }
}

const WORDS: [&str; 3] = ["u", "v", "w"];

fn word() -> impl Strategy<Value = String> {
    prop::sample::select(WORDS.as_slice()).prop_map(str::to_owned)
}

fn labels() -> impl Strategy<Value = Labels> {
    prop::collection::btree_map(word(), word(), 0..3).prop_map(Labels::from_iter)
}

fn selector() -> impl Strategy<Value = Selector> {
    let values = || prop::collection::vec(word(), 1..3);
    let operator = prop_oneof![
        3 => values().prop_map(Operator::In),
        1 => values().prop_map(Operator::NotIn),
        1 => Just(Operator::Exists),
        1 => Just(Operator::DoesNotExist),
    ];
    let requirement = (word(), operator).prop_map(|(key, operator)| Requirement { key, operator });
    prop::collection::vec(requirement, 0..3).prop_map(Selector::new)
}

fn peer() -> impl Strategy<Value = PodPeer> {
    let namespaces = prop_oneof![word().prop_map(Namespaces::Named), selector().prop_map(Namespaces::Matching)];
    (namespaces, selector()).prop_map(|(namespaces, pods)| PodPeer { namespaces, pods })
}

fn index() -> impl Strategy<Value = Index> {
    let namespaces = prop::collection::btree_map(word(), labels(), 0..3);
    let pods = prop::collection::vec((word(), labels(), any::<bool>(), any::<bool>()), 0..12);
    (namespaces, pods).prop_map(|(namespaces, pods)| {
        let mut index = Index::new("n1");
        for (name, labels) in namespaces {
            index.apply(Change::UpsertNamespace(Namespace { name, labels, mode: Mode::Enforce, terminating: false }));
        }
        for (number, (namespace, labels, host_network, ended)) in (0_u8..).zip(pods) {
            index.apply(Change::UpsertPod(Pod {
                name: ObjectName::new(namespace, format!("p{number}")),
                uid: Box::default(),
                labels,
                node: None,
                host_network: host_network && ended,
                addresses: [IpAddr::from([10, 0, 0, number])].as_slice().into(),
                lifetime: if ended { Lifetime::Terminal } else { Lifetime::Live },
                created: Box::default(),
                ports: [NamedPort { name: "web".into(), protocol: Protocol::Tcp, number: u16::from(number) + 1 }]
                    .into(),
            }));
        }
        index
    })
}

/// What a peer selects, asked of each pod.
fn selected(index: &Index, peer: &PodPeer) -> BTreeSet<IpAddr> {
    let in_namespace = |pod: &&Pod| match &peer.namespaces {
        Namespaces::Named(name) => *pod.name.namespace == **name,
        Namespaces::Matching(selector) => index
            .namespaces()
            .any(|namespace| *namespace.name == *pod.name.namespace && selector.matches(&namespace.labels)),
    };
    let live = |pod: &&Pod| !pod.host_network && pod.lifetime == Lifetime::Live;
    let pods = index.pods().filter(live).filter(in_namespace).filter(|pod| peer.pods.matches(&pod.labels));
    pods.flat_map(|pod| pod.addresses.clone()).collect()
}

/// What the sets of a peer hold, asked by a policy of a pod that no peer selects.
fn found(mut index: Index, peer: &PodPeer) -> Effective {
    let rule = |ports| Rule { action: Action::Accept, peers: Match::Only(vec![Peer::Pods(peer.clone())]), ports };
    let web = Port { protocol: Protocol::Tcp, port: PortSpec::Named("web".into()) };
    index.apply(upsert(&pod("asking/pod", "192.0.2.1", json!({}))));
    index.apply(Change::UpsertPolicy(Policy {
        name: object_name("asking/policy"),
        uid: String::new(),
        subject: Selector::default(),
        ingress: Some(vec![rule(Match::Any)]),
        egress: Some(vec![rule(Match::Only(vec![web]))]),
        mode: Mode::Enforce,
        refusal: None,
    }));
    evaluate(&index)
}

proptest! {
    #[test]
    fn the_short_ways_find_what_the_long_way_finds(index in index(), peer in peer()) {
        let expected = selected(&index, &peer);
        let effective = found(index, &peer);
        prop_assert_eq!(&effective.peers[&peer].iter().collect::<BTreeSet<_>>(), &expected);
        let endpoints = effective.endpoints.values().flatten();
        prop_assert_eq!(endpoints.map(|endpoint| endpoint.address).collect::<BTreeSet<_>>(), expected);
    }
}
