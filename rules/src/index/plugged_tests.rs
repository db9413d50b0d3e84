//! What the network plugin says before the API does.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::effective::{Evaluator, evaluate};
use crate::testing::*;

const A: &str = "10.0.0.1";
const OTHER: &str = "10.0.0.7";

fn claim(sandbox: &str, uid: &str, addresses: &[&str]) -> Change {
    Change::Claim(Claim {
        sandbox: sandbox.to_owned(),
        pod: object_name("x/a"),
        uid: uid.to_owned(),
        addresses: addresses.iter().map(|text| ip(text)).collect(),
    })
}

fn release(sandbox: &str) -> Change {
    Change::Release(sandbox.to_owned())
}

/// The pod before its status has an address.
fn new() -> Value {
    set(pod("x/a", A, json!({"app": "a"})), "/status", json!({"phase": "Pending"}))
}

fn owned(cluster: &Cluster) -> Vec<String> {
    let pod = cluster.pod("x/a");
    pod.map(|pod| pod.addresses.iter().map(ToString::to_string).collect()).unwrap_or_default()
}

#[test]
fn a_pod_has_what_is_claimed_for_it_whichever_comes_first() {
    let after = Cluster::new().with(new()).without(claim("s", "a", &[A]));
    assert_eq!(owned(&after), [A]);
    let before = Cluster::new().without(claim("s", "a", &[A])).with(new());
    assert_eq!(owned(&before), [A]);
    assert!(owned(&after.without(release("s"))).is_empty() && owned(&before.without(release("t"))) == [A]);
}

#[test]
fn the_api_ends_a_claim_by_saying_the_same() {
    let known = Cluster::new().with(new()).without(claim("s", "a", &[A])).with(pod("x/a", A, json!({})));
    assert_eq!(owned(&known.clone().without(release("s"))), [A], "it is the API's now");
    assert!(owned(&known.without(claim("t", "a", &[A])).with(new())).is_empty(), "of both sandboxes");
    let two = Cluster::new().with(pod("x/a", A, json!({}))).without(claim("s", "a", &[OTHER]));
    assert_eq!(owned(&two), [A, OTHER], "a sandbox that was made anew");
    assert_eq!(owned(&two.without(release("s"))), [A]);
}

#[test]
fn a_claim_is_for_one_pod_of_this_node() {
    let with = |object: Value, uid: &str| owned(&Cluster::new().with(object).without(claim("s", uid, &[A])));
    assert!(with(new(), "another").is_empty(), "its predecessor under the name");
    assert_eq!(with(new(), "0123456789abcdef0123456789abcdef"), [A], "a static pod");
    assert!(with(set(new(), "/spec/nodeName", json!("n2")), "a").is_empty());
    assert!(with(set(new(), "/spec/hostNetwork", json!(true)), "a").is_empty());
}

#[test]
fn a_pod_that_is_gone_keeps_its_isolation_until_its_interface_is() {
    let closed = policy("x/closed", json!({"podSelector": {"matchLabels": {"app": "a"}}}));
    let cluster = Cluster::new().with(closed).with(new()).without(claim("s", "a", &[A]));
    let cluster = cluster.without(Change::DeletePod(object_name("x/a"))).without(release("s"));
    assert!(!cluster.allows(OTHER, A, "tcp/80"), "it may still run");
    assert!(owned(&cluster.without(Change::InterfaceGone(ip(A)))).is_empty());
}

proptest! {
    /// Whatever came before: what is patched is what is made anew; and once the API says all, or nothing is claimed any more, claims
    /// make no difference.
    #[test]
    fn claims_leave_nothing_behind(
        steps in prop::collection::vec((0..7_usize, 0..3_usize), 0..20),
        known in any::<bool>(),
    ) {
        let mut evaluator = Evaluator::new(Index::new(NODE));
        let another = |uid: usize| set(new(), "/metadata/uid", json!(["a", "b", "c"][uid]));
        for (step, number) in steps {
            let sandbox = format!("s{number}");
            let addresses = [&[A][..], &[OTHER], &[A, OTHER]][number];
            evaluator.apply(match step {
                0 => upsert(&new()),
                1 => upsert(&pod("x/a", A, json!({}))),
                2 => Change::DeletePod(object_name("x/a")),
                3 => release(&sandbox),
                4 => Change::InterfaceGone(ip(A)),
                5 => upsert(&another(number)),
                _ => claim(&sandbox, ["a", "b"][number % 2], addresses),
            });
            let anew = evaluate(evaluator.index());
            prop_assert_eq!(evaluator.effective(), anew);
        }
        for sandbox in 0..3 {
            evaluator.apply(release(&format!("s{sandbox}")));
        }
        for address in [A, OTHER] {
            evaluator.apply(Change::DeletePod(object_name("x/a")));
            evaluator.apply(Change::InterfaceGone(ip(address)));
        }
        let last = if known { pod("x/a", A, json!({})) } else { new() };
        evaluator.apply(upsert(&last));
        let alone = Cluster { index: Index::new(NODE) }.with(last).effective();
        prop_assert_eq!(evaluator.effective(), alone);
    }
}
