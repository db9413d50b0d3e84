//! The real API server as the daemon's source: both ways of listing, its absence, its return, its refusals.
//!
//! In: `FLATFELL_AWAY`, how many seconds the server stays away (20 without it; `make away` takes 120). Out: what passed,
//! what was lost, how long a change took. What always holds: policy is seen with real packets, not in the daemon's words.
#![allow(clippy::expect_used)]

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use flatfell_integration::cluster::credentials::NOBODY;
use flatfell_integration::cluster::objects::{self, policy};
use flatfell_integration::cluster::{Cluster, ClusterConfig, Etcd};
use flatfell_integration::scene::{no, tcp, yes};
use flatfell_integration::{FlatfellNode, Flow, Place, Report, Stream, Traffic};
use serde_json::{Value, json};

const DB: Place = Place::pod(1, 0);
const WEB: Place = Place::pod(1, 1);
const OTHER: Place = Place::pod(1, 2);
/// Between two rounds of packets.
const PAUSE: Duration = Duration::from_millis(1);
/// What is on its way arrives within this.
const FLIGHT: Duration = Duration::from_millis(300);
/// An absence as long as this is told.
const TOLD: Duration = Duration::from_secs(18);
/// How soon a change is enforced once the server is back.
const SOON: Duration = Duration::from_secs(2);

fn small(etcd: Etcd) -> Cluster {
    let mut cluster = Cluster::new(ClusterConfig { nodes: 1, etcd, ..ClusterConfig::default() }).expect("a cluster");
    for (slot, app) in [(0, "db"), (1, "web"), (2, "other")] {
        cluster.add_pod("a", app, json!({"app": app}), 1, slot).expect("a pod");
    }
    cluster
}

/// Only this `app` may come to the database.
fn only(app: &str) -> Value {
    policy(
        "a",
        "p",
        json!({"podSelector": {"matchLabels": {"app": "db"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": app}}}]}]}),
    )
}

fn streams(from: Place, flow: Flow) -> Vec<Stream> {
    DB.addresses().map(|address| Stream::new(from, DB, address, 80, flow)).into()
}

fn lost(reports: &[Report]) -> usize {
    reports.iter().map(Report::lost).sum()
}

fn passed(reports: &[Report]) -> usize {
    reports.iter().map(Report::received).sum()
}

/// Whether the server streams a list, or refuses with an error inside its answer.
fn streams_lists(cluster: &Cluster) -> bool {
    let question = "/api/v1/pods?watch=1&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan&timeoutSeconds=2";
    let answer = cluster.api().get(question).expect("an answer").to_string();
    assert!(answer.contains("BOOKMARK") != answer.contains("RequestWatchProgress"), "{answer}");
    answer.contains("BOOKMARK")
}

fn reaches_enforcement(etcd: Etcd) {
    let mut cluster = small(etcd);
    assert_eq!(streams_lists(&cluster), etcd == Etcd::Current);
    cluster.api().put(&only("web")).expect("a policy");
    let daemon = cluster.daemon(1, &[]).expect("a daemon");
    cluster.expect("what was there before", &[yes(tcp(WEB, DB, 80)), no(tcp(OTHER, DB, 80))]);
    cluster.api().put(&only("other")).expect("a policy");
    cluster.settle(1, &daemon).expect("settled");
    cluster.expect("what came by watch", &[no(tcp(WEB, DB, 80)), yes(tcp(OTHER, DB, 80))]);
}

#[test]
fn a_server_that_streams_lists() {
    reaches_enforcement(Etcd::Current);
}

#[test]
fn a_server_that_refuses_to() {
    reaches_enforcement(Etcd::Old);
}

fn away() -> Duration {
    Duration::from_secs(std::env::var("FLATFELL_AWAY").map_or(20, |seconds| seconds.parse().expect("seconds")))
}

#[test]
fn the_server_goes_away_and_returns() {
    let mut cluster = small(Etcd::Current);
    cluster.api().put(&only("web")).expect("a policy");
    let daemon = cluster.daemon(1, &[]).expect("a daemon");
    let other_server = cluster.server.beside().expect("a second server");
    let allowed = [Flow::Fresh, Flow::Steady, Flow::Turns(64)].map(|flow| streams(WEB, flow)).concat();
    let traffic = Traffic::start(&cluster.lab, &[allowed.clone(), streams(OTHER, Flow::Fresh)].concat(), PAUSE);
    let traffic = traffic.expect("traffic");
    cluster.server.kill9().expect("killed");
    thread::sleep(away());
    let readiness = daemon.get("/readyz").expect("an answer");
    let health = daemon.get("/healthz").expect("an answer");
    let reports = traffic.stop(FLIGHT).expect("traffic");
    let (kept, forbidden) = reports.split_at(allowed.len());
    println!("{:?} without the server: /readyz says {readiness:?}, /healthz {health:?}", away());
    assert_eq!(health, "ok\n", "that is no reason to restart it");
    assert!(
        away() < TOLD || ["pods: not watched for", "stays in force"].iter().all(|words| readiness.contains(words)),
        "{readiness}"
    );
    assert_eq!((passed(forbidden), lost(kept)), (0, 0), "passed, lost");
    other_server.api().put(&only("other")).expect("a policy, written meanwhile");
    let took = time_to_enforce(&mut cluster);
    println!("what was changed meanwhile is enforced {took:?} after the server is ready");
    assert!(took < SOON, "{took:?}; {}", daemon.log());
    cluster.expect("the new policy", &[no(tcp(WEB, DB, 80)), yes(tcp(OTHER, DB, 80))]);
}

/// Starts the server again; from when it is ready until the last packet that the old policy lets through.
fn time_to_enforce(cluster: &mut Cluster) -> Duration {
    let traffic = Traffic::start(&cluster.lab, &streams(WEB, Flow::Fresh), PAUSE).expect("traffic");
    cluster.server.restart().expect("restarted");
    let ready = Instant::now();
    thread::sleep(SOON + Duration::from_secs(1));
    let last = (0..2).filter_map(|stream| traffic.last_arrival(stream)).max().expect("the old policy was in force");
    traffic.stop(FLIGHT).expect("traffic");
    last.saturating_duration_since(ready)
}

/// A server that was away hands out its objects anew: what is not among them is gone.
#[test]
fn half_of_the_pods_are_gone_when_it_returns() {
    let mut cluster = small(Etcd::Current);
    for slot in 3..7 {
        cluster.add_pod("a", &format!("web{slot}"), json!({"app": "web"}), 1, slot).expect("a pod");
    }
    cluster.api().put(&only("web")).expect("a policy");
    let daemon = cluster.daemon(1, &[]).expect("a daemon");
    let webs: Vec<Place> = (3..7).map(|slot| Place::pod(1, slot)).collect();
    let all: Vec<_> = webs.iter().map(|web| yes(tcp(*web, DB, 80))).collect();
    cluster.expect("all of them", &all);
    let other_server = cluster.server.beside().expect("a second server");
    cluster.server.kill9().expect("killed");
    for slot in [3, 4] {
        let pod = objects::pod("a", &format!("web{slot}"), Value::Null, 1, &[]);
        other_server.api().delete(&pod).expect("deleted");
    }
    cluster.server.restart().expect("restarted");
    cluster.settle(1, &daemon).expect("settled");
    let half: Vec<_> = webs
        .iter()
        .enumerate()
        .map(|(at, web)| if at < 2 { no(tcp(*web, DB, 80)) } else { yes(tcp(*web, DB, 80)) })
        .collect();
    cluster.expect("their addresses match nothing", &half);
}

/// Break-glass by kubectl: an annotation of the Node opens it, and without it everything is as before.
#[test]
fn an_annotation_of_the_node_opens_it() {
    let mut cluster = small(Etcd::Current);
    cluster.api().put(&only("web")).expect("a policy");
    let daemon = cluster.daemon(1, &[]).expect("a daemon");
    let closed = [yes(tcp(WEB, DB, 80)), no(tcp(OTHER, DB, 80))];
    cluster.expect("policy", &closed);
    let node = objects::node(1, cluster.config().families);
    let annotate = |cluster: &Cluster, until: Value| {
        let patch = json!({"metadata": {"annotations": {"flatfell.io/paused-until": until}}});
        cluster.api().patch(&node, &patch).expect("annotated");
    };
    let date = Command::new("date").args(["--utc", "--date=+1 hour", "+%FT%TZ"]).output().expect("date");
    annotate(&cluster, json!(String::from_utf8(date.stdout).expect("text").trim()));
    daemon.wait_for("open", |report| report.synced && report.paused_until.is_some()).expect("open");
    cluster.expect("no policy", &[yes(tcp(WEB, DB, 80)), yes(tcp(OTHER, DB, 80))]);
    annotate(&cluster, Value::Null);
    daemon.wait_for("closed", |report| report.synced && report.paused_until.is_none()).expect("closed");
    cluster.settle(1, &daemon).expect("settled");
    cluster.expect("policy again", &closed);
}

/// No rule is there, all pods send, and the daemon starts last.
#[test]
fn from_its_first_commit_on_nothing_forbidden_passes() {
    let cluster = small(Etcd::Current);
    cluster.api().put(&only("web")).expect("a policy");
    let forbidden = [Flow::Fresh, Flow::Turns(64), Flow::Steady].map(|flow| streams(OTHER, flow)).concat();
    let all = [forbidden.clone(), streams(WEB, Flow::Fresh)].concat();
    let traffic = Traffic::start(&cluster.lab, &all, PAUSE).expect("traffic");
    thread::sleep(Duration::from_millis(500));
    let stop = AtomicBool::new(false);
    let (sent, daemon) = thread::scope(|scope| {
        let watcher = scope.spawn(|| next_at_first_commit(&cluster, &traffic, forbidden.len(), &stop));
        let daemon = cluster.daemon(1, &[]);
        stop.store(true, Ordering::SeqCst);
        (watcher.join().expect("the watcher"), daemon)
    });
    let _daemon = daemon.expect("a daemon");
    thread::sleep(Duration::from_millis(500));
    let reports = traffic.stop(FLIGHT).expect("traffic");
    let late: Vec<usize> =
        sent.iter().zip(&reports).map(|(&first, report)| report.received_between(first, u32::MAX)).collect();
    let before: usize = passed(&reports[..forbidden.len()]);
    println!("before the first commit {before} packets passed, after it {late:?} by stream");
    assert!(before > 0 && late.iter().all(|late| *late == 0), "{late:?}");
    for report in &reports[..forbidden.len()] {
        let after_a_drop = report.arrived.iter().skip_while(|arrived| **arrived).filter(|arrived| **arrived).count();
        assert_eq!(after_a_drop, 0, "passed after the first dropped packet of its stream");
    }
    assert_eq!(lost(&reports[forbidden.len()..]), 0, "allowed packets were lost");
}

/// The number of each stream's next packet when the node's first base chain is seen. A table alone decides nothing: one
/// that only remembers the bridges' flags comes before.
fn next_at_first_commit(cluster: &Cluster, traffic: &Traffic, streams: usize, stop: &AtomicBool) -> Vec<u32> {
    let node = cluster.lab.netns(Place::Node(1)).expect("the node");
    while !stop.load(Ordering::SeqCst) {
        if node.feed("nft", &["list", "chains"], "").expect("nft").contains("hook") {
            break;
        }
    }
    (0..streams).map(|stream| traffic.next(stream)).collect()
}

/// Waits until the daemon's log has all these words; until then it must not be ready.
fn says(daemon: &FlatfellNode, words: &[&str]) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !words.iter().all(|word| daemon.log().contains(word)) {
        assert!(Instant::now() < deadline, "no {words:?} in:\n{}", daemon.log());
        assert!(!daemon.status().is_ok_and(|report| report.ready), "it says that it is ready");
        thread::sleep(Duration::from_millis(50));
    }
    let tables = daemon.get("/readyz").unwrap_or_default();
    println!("/readyz: {tables}");
}

#[test]
fn a_refusal_names_what_is_missing() {
    let cluster = small(Etcd::Current);
    let wrong = cluster.server.kubeconfig_with("wrong", "not-a-token").expect("a kubeconfig");
    let mut daemon = FlatfellNode::launch(&cluster.lab, 1, &wrong, &[]).expect("a daemon");
    says(&daemon, &["401"]);
    daemon.stop().expect("stopped");
    let nobody = cluster.server.kubeconfig(NOBODY).expect("a kubeconfig");
    let daemon = FlatfellNode::launch(&cluster.lab, 1, &nobody, &[]).expect("a daemon");
    says(&daemon, &["list", "pods", "namespaces", "networkpolicies", "nodes"]);
    let tables = cluster.lab.netns(Place::Node(1)).expect("the node").feed("nft", &["list", "ruleset"], "");
    assert_eq!(tables.expect("nft"), "", "nothing is written before all lists are complete");
}
