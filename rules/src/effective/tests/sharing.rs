//! What a change did not touch is the same value in the same memory.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::effective::{Addresses, Effective, EffectivePod, Evaluator};
use crate::index::Change;
use crate::testing::*;

const A: &str = "10.0.0.1";
const B: &str = "10.0.0.2";
const C: &str = "10.0.1.1";

fn allow(app: &str) -> Value {
    json!({"from": [{"podSelector": {"matchLabels": {"app": app}}, "namespaceSelector": {}}], "ports": [{"port": 80}]})
}

/// `x/a` lets pods of app `b` in and goes out to the port `web` of any pod; `y/c` lets pods of app `a` in.
fn evaluator() -> Evaluator {
    let web = json!([{"ports": [{"port": "web"}]}]);
    let a = json!({"podSelector": {"matchLabels": {"app": "a"}}, "ingress": [allow("b")], "egress": web});
    let cluster = Cluster::new()
        .with(pod("x/a", A, json!({"app": "a"})))
        .with(pod("x/b", B, json!({"app": "b"})))
        .with(pod("y/c", C, json!({"app": "c"})))
        .with(policy("x/a", a))
        .with(policy("y/c", json!({"podSelector": {}, "ingress": [allow("a")]})));
    Evaluator::new(cluster.index)
}

/// The states before and after a change.
fn changed(change: Change) -> (Effective, Effective) {
    let mut evaluator = evaluator();
    let before = evaluator.effective();
    evaluator.apply(change);
    (before, evaluator.effective())
}

fn same_pod((before, after): (&Effective, &Effective), name: &str) -> bool {
    let pod = |effective: &Effective| Arc::clone(&effective.pods()[&object_name(name)]);
    Arc::ptr_eq(&pod(before), &pod(after))
}

fn same_addresses(one: &Addresses, other: &Addresses) -> bool {
    one.v4.ptr_eq(&other.v4) && one.v6.ptr_eq(&other.v6)
}

/// The words of the peers whose sets are others now.
fn other_sets(before: &Effective, after: &Effective) -> Vec<String> {
    let is_other = |(peer, addresses): &(&Arc<_>, &Addresses)| {
        before.peers.get(*peer).is_none_or(|before| !same_addresses(before, addresses))
    };
    after.peers.iter().filter(is_other).map(|(peer, _)| peer.to_string()).collect()
}

#[test]
fn without_a_change_everything_is_the_same() {
    let mut evaluator = evaluator();
    let (before, after) = (evaluator.effective(), evaluator.effective());
    assert!(before.pods().ptr_eq(after.pods()) && before.local().ptr_eq(after.local()));
    assert!(before.peers.ptr_eq(&after.peers) && before.endpoints.ptr_eq(&after.endpoints));
}

#[test]
fn a_peer_that_joins_touches_the_sets_that_speak_of_it() {
    let joins = set(pod("y/new", "10.0.1.9", json!({"app": "b"})), "/spec/nodeName", json!("n2"));
    let (before, after) = changed(upsert(&joins));
    assert!(before.pods().ptr_eq(after.pods()) && before.local().ptr_eq(after.local()));
    assert!(before.endpoints.ptr_eq(&after.endpoints));
    assert_eq!(other_sets(&before, &after), ["pods app in (b) in namespaces all"]);
}

#[test]
fn a_pod_that_nobody_names_touches_nothing() {
    let (before, after) = changed(upsert(&set(pod("y/new", "10.0.1.9", json!({})), "/spec/nodeName", json!("n2"))));
    assert!(before.pods().ptr_eq(after.pods()) && before.local().ptr_eq(after.local()));
    assert!(before.peers.ptr_eq(&after.peers) && before.endpoints.ptr_eq(&after.endpoints));
}

#[test]
fn a_label_that_no_selector_asks_for_touches_nothing() {
    let (before, after) = changed(upsert(&pod("x/b", B, json!({"app": "b", "version": "2"}))));
    assert!(before.pods().ptr_eq(after.pods()) && before.local().ptr_eq(after.local()));
    assert_eq!(other_sets(&before, &after), [""; 0]);
}

#[test]
fn a_local_pod_that_is_relabelled_keeps_its_addresses_and_the_other_pods() {
    let (before, after) = changed(upsert(&pod("x/b", B, json!({"app": "a"}))));
    assert!(before.local().ptr_eq(after.local()) && before.endpoints.ptr_eq(&after.endpoints));
    assert!(same_pod((&before, &after), "x/a") && same_pod((&before, &after), "y/c"));
    assert!(!same_pod((&before, &after), "x/b"));
    let rules = |pod: &str| Arc::clone(&after.pods()[&object_name(pod)].ingress.rules[0]);
    assert!(Arc::ptr_eq(&rules("x/a"), &rules("x/b")), "one rule of both");
}

#[test]
fn an_edited_policy_keeps_the_rules_that_were_not_edited() {
    let edited = json!({"podSelector": {}, "ingress": [allow("a"), allow("z")]});
    let (before, after) = changed(upsert(&policy("y/c", edited)));
    assert!(same_pod((&before, &after), "x/a") && same_pod((&before, &after), "x/b"));
    assert!(before.local().ptr_eq(after.local()) && before.endpoints.ptr_eq(&after.endpoints));
    assert_eq!(other_sets(&before, &after), ["pods app in (z) in namespaces all"]);
    let first = |effective: &Effective| Arc::clone(&effective.pods()[&object_name("y/c")].ingress.rules[0]);
    assert!(Arc::ptr_eq(&first(&before), &first(&after)));
}

#[test]
fn a_policy_that_says_the_same_in_other_words_touches_nothing() {
    let object = set(policy("y/c", json!({"podSelector": {}, "ingress": [allow("a")]})), "/metadata/uid", json!("new"));
    let (before, after) = changed(upsert(&object));
    assert!(before.pods().ptr_eq(after.pods()) && before.peers.ptr_eq(&after.peers));
}

#[test]
fn a_relabelled_namespace_that_stays_selected_touches_nothing() {
    let (before, after) = changed(upsert(&namespace("y", json!({"team": "z"}))));
    assert!(before.pods().ptr_eq(after.pods()) && before.endpoints.ptr_eq(&after.endpoints));
    assert_eq!(other_sets(&before, &after), [""; 0]);
}

#[test]
fn rules_are_shared_by_the_pods_for_which_they_say_the_same() {
    let web = |name: &str, address: &str, number: u16| {
        let ports = json!([{"ports": [{"name": "web", "containerPort": number}]}]);
        set(pod(name, address, json!({})), "/spec/containers", ports)
    };
    let rule = json!({"podSelector": {}, "ingress": [{"ports": [{"port": "web"}]}]});
    let cluster = Cluster::new()
        .with(web("x/a", A, 80))
        .with(web("x/b", B, 80))
        .with(web("x/c", C, 81))
        .with(pod("x/d", "10.0.1.2", json!({})))
        .with(pod("x/e", "10.0.1.3", json!({})))
        .with(policy("x/p", rule));
    let effective = cluster.effective();
    let rule = |name: &str| Arc::clone(&effective.pods()[&object_name(name)].ingress.rules[0]);
    assert!(Arc::ptr_eq(&rule("x/a"), &rule("x/b")) && Arc::ptr_eq(&rule("x/d"), &rule("x/e")));
    assert!(rule("x/a") != rule("x/c") && rule("x/a") != rule("x/d"));
}

#[test]
fn a_pod_put_in_the_place_of_another_leaves_no_address_behind() {
    let pod = |address: &str| EffectivePod {
        name: object_name("x/a"),
        addresses: vec![ip(address)],
        ingress: Default::default(),
        egress: Default::default(),
    };
    let mut effective = Effective::from_iter([pod(A)]);
    effective.insert(Arc::new(pod(B)));
    assert_eq!(effective.pod_at(ip(A)), None);
    assert_eq!(effective.pod_at(ip(B)).map(|pod| pod.addresses.clone()), Some(vec![ip(B)]));
    assert!(effective.remove(&object_name("x/a")).is_some() && effective.local().is_empty());
}
