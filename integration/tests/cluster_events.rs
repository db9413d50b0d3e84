//! Kubernetes Events of denials, on the real API server.
//!
//! In: denied and audited packets. Out: the Events the server has. What always holds: policy holds whether the server takes
//! Events or not.
#![allow(clippy::expect_used)]

use std::thread;
use std::time::{Duration, Instant};

use flatfell_integration::cluster::objects::policy;
use flatfell_integration::cluster::{Cluster, ClusterConfig};
use flatfell_integration::{FlatfellNode, Place, Probe};
use serde_json::{Value, json};

const DB: Place = Place::pod(1, 0);
const WEB: Place = Place::pod(1, 1);
const TRIED: Place = Place::pod(1, 2);

const WITHIN: Duration = Duration::from_secs(20);

fn cluster() -> Cluster {
    let mut cluster = Cluster::new(ClusterConfig { nodes: 1, ..ClusterConfig::default() }).expect("a cluster");
    for (slot, app) in [(0, "db"), (1, "web"), (2, "tried")] {
        cluster.add_pod("a", app, json!({"app": app}), 1, slot).expect("a pod");
    }
    let selects = |app: &str| json!({"podSelector": {"matchLabels": {"app": app}}, "policyTypes": ["Ingress"]});
    cluster.api().put(&policy("a", "closed", selects("db"))).expect("a policy");
    let mut trial = policy("a", "trial", selects("tried"));
    trial["metadata"]["annotations"] = json!({"flatfell.io/mode": "audit"});
    cluster.api().put(&trial).expect("a policy");
    cluster
}

/// That the daemon may create Events.
fn permit(cluster: &Cluster) {
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": "flatfell-events"},
        "rules": [{"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"]}]});
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "flatfell-events"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "flatfell-events"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "flatfell"}]});
    cluster.api().put(&role).expect("a role");
    cluster.api().put(&binding).expect("a binding");
}

fn events(cluster: &Cluster) -> Vec<Value> {
    let list = cluster.api().get("/apis/events.k8s.io/v1/namespaces/a/events").expect("events");
    let all = list["items"].as_array().cloned().unwrap_or_default();
    all.into_iter().filter(|event| event["reportingController"] == "flatfell.io/flatfell").collect()
}

fn results(daemon: &FlatfellNode) -> Vec<String> {
    let metrics = daemon.metrics().expect("metrics");
    metrics.lines().filter(|line| line.starts_with("flatfell_flow_events_total{")).map(str::to_owned).collect()
}

/// Waits until a line of the results is this one.
fn await_result(daemon: &FlatfellNode, line: &str) {
    let end = Instant::now() + WITHIN;
    while !results(daemon).iter().any(|result| result == line) {
        assert!(Instant::now() < end, "no {line}: {:?}\n{}", results(daemon), daemon.log());
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_denial_is_an_event_of_the_pod_once() {
    let cluster = cluster();
    permit(&cluster);
    let daemon = cluster.daemon(1, &["--events"]).expect("a daemon");
    for _ in 0..3 {
        cluster.lab.probe(&Probe::tcp(WEB, DB.v4(), 5432)).expect("sent");
    }
    cluster.lab.probe(&Probe::udp(WEB, TRIED.v4(), 53)).expect("sent");
    await_result(&daemon, "flatfell_flow_events_total{result=\"created\"} 2");
    thread::sleep(Duration::from_secs(1));
    let all = events(&cluster);
    assert_eq!(all.len(), 2, "{all:#?}");
    let find = |reason: &str| all.iter().find(|event| event["reason"] == reason).expect("an event");
    let denied = find("PolicyDenied");
    let uid = &cluster.api().get("/api/v1/namespaces/a/pods/db").expect("the pod")["metadata"]["uid"];
    assert_eq!(
        denied["regarding"],
        json!({"apiVersion": "v1", "kind": "Pod", "namespace": "a", "name": "db", "uid": uid})
    );
    assert_eq!(denied["note"], "ingress of pod a/db from pod a/web tcp/5432 denied (policy a/closed)");
    assert_eq!((&denied["type"], &denied["reportingInstance"]), (&json!("Warning"), &json!("node1")));
    assert_eq!(denied["related"]["name"], "web");
    let audited = find("PolicyAudited");
    assert_eq!(audited["note"], "ingress of pod a/tried from pod a/web udp/53 would be denied (policy a/trial)");
    assert_eq!(audited["type"], "Normal");
}

#[test]
fn many_denials_are_few_events() {
    let cluster = cluster();
    permit(&cluster);
    let daemon = cluster.daemon(1, &["--events"]).expect("a daemon");
    let probes: Vec<Probe> = (1..=60).map(|port| Probe::udp(WEB, DB.v4(), port)).collect();
    let outcomes = cluster.lab.probes(&probes).expect("sent");
    assert!(outcomes.iter().all(|outcome| !outcome.delivered));
    let end = Instant::now() + WITHIN;
    let sum =
        || -> u64 { results(&daemon).iter().filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum() };
    while sum() < 60 {
        assert!(Instant::now() < end, "{:?}", results(&daemon));
        thread::sleep(Duration::from_millis(100));
    }
    let created = events(&cluster).len();
    assert!((25..=45).contains(&created), "{created}: {:?}", results(&daemon));
}

#[test]
fn a_server_that_refuses_events_changes_nothing() {
    let cluster = cluster();
    let daemon = cluster.daemon(1, &["--events"]).expect("a daemon");
    assert!(!cluster.lab.probe(&Probe::tcp(WEB, DB.v4(), 5432)).expect("sent").delivered);
    await_result(&daemon, "flatfell_flow_events_total{result=\"failed\"} 1");
    assert!(daemon.log().contains("the verb create of events"), "{}", daemon.log());
    assert!(daemon.get("/readyz").expect("an answer").starts_with("ready"));
    assert!(events(&cluster).is_empty());
}
