//! The life of pods, addresses, namespaces and policies.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::effective::evaluate;
use crate::testing::*;

const A: &str = "10.0.0.1";
const B: &str = "10.0.0.2";

fn phase(object: Value, phase: &str) -> Value {
    set(object, "/status/phase", json!(phase))
}

fn created(object: Value, year: u16) -> Value {
    set(object, "/metadata/creationTimestamp", json!(format!("{year}-01-01T00:00:00Z")))
}

fn uid(object: Value, uid: &str) -> Value {
    set(object, "/metadata/uid", json!(uid))
}

fn remote(object: Value) -> Value {
    set(object, "/spec/nodeName", json!("n2"))
}

fn delete(name: &str) -> Change {
    Change::DeletePod(object_name(name))
}

fn gone(address: &str) -> Change {
    Change::InterfaceGone(ip(address))
}

/// `x/a`, closed, and `x/b`, open to a only; `names` of the addresses that peers see are asked of b.
fn cluster() -> Cluster {
    let closed = json!({"podSelector": {"matchLabels": {"app": "a"}}});
    let open = json!({"podSelector": {"matchLabels": {"app": "b"}},
                      "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "a"}}}]}]});
    Cluster::new()
        .with(policy("x/closed", closed))
        .with(policy("x/open", open))
        .with(pod("x/a", A, json!({"app": "a"})))
        .with(pod("x/b", B, json!({"app": "b"})))
}

fn a_is_closed(cluster: &Cluster) -> bool {
    !cluster.allows(B, A, "tcp/80")
}

fn a_is_a_peer(cluster: &Cluster) -> bool {
    cluster.allows(A, B, "tcp/80")
}

#[test]
fn addresses_have_names() {
    let on_host = |name: &str| set(remote(pod(name, "10.9.0.2", json!({}))), "/spec/hostNetwork", json!(true));
    let mut cluster = cluster().with(on_host("x/agent")).with(on_host("x/proxy"));
    assert_eq!(cluster.index.shared_owner(ip(A)).map(|pod| &pod.name), Some(&object_name("x/a")));
    assert_eq!((cluster.index.node_at(ip("10.9.0.2")), cluster.index.node_at(ip(A))), (Some("n2"), None));
    assert_eq!(cluster.index.shared_owner(ip("10.9.0.2")), None, "no pod has its node's address for itself");
    cluster.apply(delete("x/agent"));
    assert_eq!(cluster.index.node_at(ip("10.9.0.2")), Some("n2"), "the other one still says so");
    cluster.apply(delete("x/proxy"));
    assert_eq!(cluster.index.node_at(ip("10.9.0.2")), None);
}

#[test]
fn a_pod_that_lives_counts_fully_whatever_its_state() {
    let a = pod("x/a", A, json!({"app": "a"}));
    for a in [
        phase(a.clone(), "Pending"),
        phase(a.clone(), "Unknown"),
        set(a.clone(), "/status/conditions", json!([{"type": "Ready", "status": "False"}])),
        set(a.clone(), "/metadata/deletionTimestamp", json!("2026-01-01T00:00:00Z")),
    ] {
        let cluster = cluster().with(a);
        assert!(a_is_closed(&cluster) && a_is_a_peer(&cluster));
    }
}

#[test]
fn a_pod_that_ended_is_no_peer_and_stays_isolated_until_its_interface_is_gone() {
    for end in ["Succeeded", "Failed"] {
        let mut cluster = cluster().with(phase(pod("x/a", A, json!({"app": "a"})), end));
        assert!(a_is_closed(&cluster) && !a_is_a_peer(&cluster));
        assert!(cluster.apply(gone(A)));
        assert!(!a_is_closed(&cluster) && cluster.pod("x/a").is_none());
        assert!(!cluster.apply(gone(A)), "nothing more to see");
        cluster.apply(delete("x/a"));
        assert!(!a_is_closed(&cluster), "no ghost without an interface");
    }
}

#[test]
fn a_local_pod_that_left_the_api_stays_isolated_until_its_interface_is_gone() {
    let mut cluster = cluster();
    assert!(cluster.apply(delete("x/a")));
    assert!(a_is_closed(&cluster) && !a_is_a_peer(&cluster));
    assert!(!cluster.apply(gone("10.0.0.77")), "an address of nobody");
    assert!(a_is_closed(&cluster));
    assert!(cluster.apply(gone(A)));
    assert!(!a_is_closed(&cluster) && cluster.effective().pods().len() == 1);
    assert!(!cluster.apply(delete("x/a")));
}

#[test]
fn a_remote_or_host_network_pod_leaves_no_ghost() {
    for a in [
        remote(pod("x/a", A, json!({"app": "a"}))),
        set(pod("x/a", A, json!({"app": "a"})), "/spec/hostNetwork", json!(true)),
    ] {
        let cluster = cluster().without(delete("x/a")).without(gone(A)).with(a).without(delete("x/a"));
        assert_eq!(cluster.effective().pods().len(), 1);
    }
}

#[test]
fn an_interface_that_went_before_the_pod_leaves_no_ghost() {
    let mut cluster = cluster();
    assert!(!cluster.apply(gone(A)), "a living pod counts fully");
    assert!(a_is_closed(&cluster) && a_is_a_peer(&cluster));
    cluster.apply(delete("x/a"));
    assert!(!a_is_closed(&cluster));
    let again = cluster.with(pod("x/a", A, json!({"app": "a"}))).without(delete("x/a"));
    assert!(a_is_closed(&again), "the next pod has an interface of its own");
}

#[test]
fn an_interface_lost_and_an_address_changed_is_an_interface_had() {
    let a = |address| pod("x/a", address, json!({"app": "a"}));
    let cluster = cluster().without(gone(A)).with(a("10.0.0.9")).with(a(A)).without(delete("x/a"));
    assert!(a_is_closed(&cluster));
    let kept = Cluster::new()
        .with(a(A))
        .without(gone(A))
        .with(set(a(A), "/metadata/labels", json!({})))
        .without(delete("x/a"));
    assert!(kept.effective().pods().is_empty(), "other changes leave what is known of the interface");
}

#[test]
fn a_ghost_gives_way_to_the_next_owner_for_good() {
    let next = created(pod("x/next", A, json!({"app": "next"})), 2027);
    let mut cluster = cluster().without(delete("x/a")).with(next);
    assert!(!a_is_closed(&cluster));
    assert_eq!(cluster.pod("x/a"), None);
    cluster.apply(delete("x/next"));
    let names: Vec<_> = cluster.effective().pods().keys().map(|pod| pod.name.to_string()).collect();
    assert_eq!(names, ["b", "next"]);
}

#[test]
fn a_ghost_yields_only_to_a_better_claim() {
    let job = |year| created(phase(pod("x/job", A, json!({})), "Succeeded"), year);
    let older = cluster().with(job(2025)).without(delete("x/a"));
    assert!(a_is_closed(&older), "the job had the address before");
    assert_eq!(older.pod("x/job"), None);
    assert!(older.pod("x/a").is_some());
    let newer = cluster().without(delete("x/a")).with(job(2027));
    assert!(!a_is_closed(&newer) && newer.pod("x/job").is_some() && newer.pod("x/a").is_none());
    let living = cluster().without(delete("x/a")).with(created(pod("x/c", A, json!({})), 2025));
    assert!(!a_is_closed(&living) && living.pod("x/c").is_some());
}

#[test]
fn a_ghost_loses_one_address_at_a_time() {
    let both = json!([{"ip": A}, {"ip": "fd00::1"}]);
    let a = set(pod("x/a", A, json!({"app": "a"})), "/status/podIPs", both);
    let mut cluster = cluster().with(a).without(delete("x/a"));
    assert_eq!(cluster.pod("x/a").expect("a ghost").addresses, [ip(A), ip("fd00::1")]);
    assert!(cluster.apply(gone(A)));
    assert_eq!(cluster.pod("x/a").expect("a ghost").addresses, [ip("fd00::1")]);
}

#[test]
fn a_successor_under_the_same_name_leaves_the_first_as_a_ghost() {
    let next = uid(pod("x/a", "10.0.0.9", json!({"app": "other"})), "second");
    let cluster = cluster().with(next);
    assert!(a_is_closed(&cluster) && !a_is_a_peer(&cluster));
    let names: Vec<_> = cluster.effective().pods().keys().map(|pod| pod.name.to_string()).collect();
    assert_eq!(names, ["a", "a~a", "b"]);
    assert!(cluster.allows(B, "10.0.0.9", "tcp/80"));
    let same_address = super::tests::cluster().with(uid(pod("x/a", A, json!({"app": "other"})), "second"));
    assert!(!a_is_closed(&same_address));
}

#[test]
fn an_address_change_under_one_uid_removes_the_old_address() {
    let cluster = cluster().with(pod("x/a", "10.0.0.9", json!({"app": "a"})));
    assert!(!a_is_closed(&cluster) && !a_is_a_peer(&cluster));
    assert!(cluster.allows("10.0.0.9", B, "tcp/80") && !cluster.allows(B, "10.0.0.9", "tcp/80"));
    assert_eq!(cluster.index.owner(ip(A)), None);
}

#[test]
fn a_pod_that_is_listed_again_is_no_ghost() {
    let cluster = cluster().without(delete("x/a")).with(pod("x/a", "10.0.0.9", json!({"app": "a"})));
    assert_eq!(cluster.pod("x/a").expect("a").addresses, [ip("10.0.0.9")]);
    assert_eq!(cluster.effective().pods().len(), 2);
}

#[test]
fn an_address_belongs_to_the_living_then_the_newest_then_the_smallest_uid() {
    let base = || created(pod("x/one", A, json!({})), 2026);
    for (other, owner) in [
        (created(phase(pod("x/two", A, json!({})), "Failed"), 2027), "one"),
        (created(pod("x/two", A, json!({})), 2027), "two"),
        (created(pod("x/two", A, json!({})), 2025), "one"),
        (uid(created(pod("x/two", A, json!({})), 2026), "0"), "two"),
        (uid(created(pod("x/two", A, json!({})), 2026), "z"), "one"),
        (uid(created(pod("x/two", A, json!({})), 2026), "one"), "one"),
        (set(created(pod("x/two", A, json!({})), 2027), "/spec/hostNetwork", json!(true)), "one"),
    ] {
        for pair in [[base(), other.clone()], [other.clone(), base()]] {
            let [first, second] = pair;
            let cluster = Cluster::new().with(first).with(second);
            assert_eq!(cluster.index.owner(ip(A)).map(|pod| &*pod.name.name), Some(owner), "{other}");
            let names: Vec<_> = cluster.effective().pods().keys().map(|pod| pod.name.to_string()).collect();
            assert_eq!(names, [owner]);
        }
    }
}

#[test]
fn an_address_that_two_pods_claim_counts_for_its_owner_only() {
    let c = |year| created(pod("x/c", A, json!({"app": "c"})), year);
    assert!(!a_is_a_peer(&cluster().with(c(2027))));
    assert!(a_is_a_peer(&cluster().with(c(2025))));
    let back = cluster().with(c(2027)).without(delete("x/c")).without(gone(A));
    assert!(a_is_a_peer(&back) && a_is_closed(&back));
}

fn going(name: &str) -> Value {
    set(namespace(name, json!({"team": name})), "/metadata/deletionTimestamp", json!("2026-01-01T00:00:00Z"))
}

fn drop_policy() -> Change {
    Change::DeletePolicy(object_name("x/closed"))
}

#[test]
fn policies_deleted_from_a_namespace_that_is_going_stay_until_its_pods_are_gone() {
    let mut cluster = cluster().with(going("x"));
    assert!(!cluster.apply(drop_policy()), "policy sees no difference");
    assert!(a_is_closed(&cluster));
    cluster.apply(Change::DeleteNamespace("x".into()));
    cluster.apply(delete("x/b"));
    cluster.apply(gone(B));
    cluster.apply(delete("x/a"));
    assert!(a_is_closed(&cluster), "its ghost is a pod too");
    assert_eq!(cluster.index.policies().count(), 2);
    cluster.apply(gone(A));
    assert_eq!(cluster.index.policies().map(|policy| &*policy.name.name).collect::<Vec<_>>(), ["open"]);
}

#[test]
fn a_ghost_that_another_namespaces_pod_overtakes_keeps_no_policies() {
    let mut cluster = cluster()
        .with(going("y"))
        .with(pod("y/last", "10.0.1.1", json!({})))
        .with(policy("y/p", json!({"podSelector": {}})))
        .without(Change::DeletePolicy(object_name("y/p")))
        .without(delete("y/last"));
    assert_eq!(cluster.index.policies().count(), 3, "the ghost is a pod too");
    cluster.apply(upsert(&remote(pod("x/new", "10.0.1.1", json!({})))));
    assert_eq!(cluster.index.policies().count(), 2);
}

#[test]
fn policies_deleted_from_any_other_namespace_are_gone_at_once() {
    let mut staying = cluster();
    assert!(staying.apply(drop_policy()) && !a_is_closed(&staying));
    assert!(!staying.apply(drop_policy()));
    let mut unknown = cluster().without(Change::DeleteNamespace("x".into()));
    assert!(unknown.apply(drop_policy()) && !a_is_closed(&unknown));
    let mut switched_off = cluster().with(going("x"));
    switched_off.index = switched_off.index.keep_policies_of_going_namespaces(false);
    assert!(switched_off.apply(drop_policy()) && !a_is_closed(&switched_off));
    let mut empty = Cluster::new().with(going("y")).with(policy("y/p", json!({"podSelector": {}})));
    assert!(empty.apply(Change::DeletePolicy(object_name("y/p"))));
    assert_eq!(empty.index.policies().count(), 0);
}

#[test]
fn a_policy_or_a_namespace_that_comes_back_replaces_what_was_kept() {
    let kept = cluster().with(going("x")).without(drop_policy());
    let mut again = kept.clone();
    assert!(again.apply(upsert(&policy("x/closed", json!({"podSelector": {"matchLabels": {"app": "0"}}})))));
    assert!(!a_is_closed(&again));
    assert_eq!(again.index.policies().count(), 2);
    assert!(!kept.clone().apply(upsert(&policy("x/closed", json!({"podSelector": {"matchLabels": {"app": "a"}}})))));
    assert!(!a_is_closed(&kept.with(namespace("x", json!({})))));
}

#[test]
fn policies_of_a_namespace_are_sorted_with_those_that_are_kept() {
    let cluster =
        cluster().with(policy("x/b", json!({}))).with(policy("y/z", json!({}))).with(going("x")).without(drop_policy());
    let selecting = cluster.pod("x/a").expect("a").ingress.policies;
    assert_eq!(selecting, ["x/b", "x/closed"].map(object_name));
    assert_eq!(cluster.index.node(), NODE);
}

#[test]
fn a_change_that_policy_cannot_see_is_none() {
    let mut cluster = cluster();
    for object in [
        set(pod("x/a", A, json!({"app": "a"})), "/metadata/annotations", json!({"seen": "now"})),
        set(namespace("x", json!({"team": "x"})), "/metadata/resourceVersion", json!("7")),
        policy("x/closed", json!({"podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Ingress"]})),
    ] {
        assert!(!cluster.apply(upsert(&object)), "{object}");
    }
    assert!(cluster.apply(upsert(&pod("x/a", A, json!({"app": "z"})))));
    assert!(cluster.apply(upsert(&namespace("x", json!({})))));
    assert!(cluster.apply(upsert(&policy("x/closed", json!({})))));
    assert!(cluster.apply(Change::DeleteNamespace("x".into())) && !cluster.apply(Change::DeleteNamespace("x".into())));
}

#[test]
fn a_relist_replaces_everything_and_leaves_ghosts() {
    let mut cluster = cluster();
    let whole = |cluster: &Cluster| {
        let index = &cluster.index;
        let namespaces: Vec<_> = index.namespaces().cloned().collect();
        let policies: Vec<_> = index.policies().map(|policy| Policy::clone(policy)).collect();
        (namespaces, policies, index.pods().cloned().collect::<Vec<_>>())
    };
    let (namespaces, policies, mut pods) = whole(&cluster);
    assert!(!cluster.index.replace(namespaces.clone(), policies.clone(), pods.clone()), "nothing new");
    pods.remove(0);
    assert!(cluster.index.replace(namespaces.clone(), policies.clone(), pods.clone()));
    assert!(a_is_closed(&cluster) && !a_is_a_peer(&cluster) && cluster.index.pods().count() == 1);
    assert!(cluster.index.replace(namespaces, Vec::new(), pods.clone()));
    assert!(!a_is_closed(&cluster));
    assert!(cluster.index.replace(Vec::new(), Vec::new(), pods));
    assert_eq!(cluster.index.namespaces().count() + cluster.index.policies().count(), 0);
}

/// Objects that claim each other's addresses, come in two versions, and a policy for everything.
fn objects() -> Vec<[Value; 2]> {
    let spec = |team: &str| json!({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": team}}}]}]});
    let labelled = |app: &str, year| created(remote(pod("x/r", A, json!({"app": app}))), year);
    vec![
        [namespace("x", json!({"team": "x"})), namespace("x", json!({"team": "z"}))],
        [namespace("y", json!({"team": "x"})), namespace("y", json!({"team": "y"}))],
        [policy("x/p", spec("x")), policy("x/p", spec("y"))],
        [policy("y/p", spec("y")), policy("y/p", spec("z"))],
        [labelled("a", 2027), labelled("b", 2027)],
        [created(pod("x/a", A, json!({})), 2026), created(pod("x/a", B, json!({})), 2026)],
        [created(pod("y/b", B, json!({})), 2025), phase(created(pod("y/b", B, json!({})), 2025), "Failed")],
        [created(pod("y/c", B, json!({})), 2024), created(pod("y/c", A, json!({})), 2024)],
    ]
}

proptest! {
    #[test]
    fn the_order_of_events_changes_nothing(
        order in Just((0..8).collect::<Vec<usize>>()).prop_shuffle(),
        early in prop::collection::vec((0_usize..8, 0_usize..2), 0..12),
    ) {
        let objects = objects();
        let last = objects.iter().fold(Index::new(NODE), |mut index, [_, last]| {
            index.apply(upsert(last));
            index
        });
        let mut shuffled = Index::new(NODE);
        for (object, version) in early {
            shuffled.apply(upsert(&objects[object][version]));
        }
        for object in order {
            shuffled.apply(upsert(&objects[object][1]));
        }
        prop_assert_eq!(evaluate(&shuffled), evaluate(&last));
    }
}
