//! A real API server that swallows packets: connections that cannot be made, and ones that go silent. And parts that
//! somebody else built, in place of the fixture's own.
//!
//! In: rules in the server's namespace that drop what comes to it. Out: what the daemon says and what passes meanwhile.
//! What always holds: what was known stays in force; the daemon finds its way back alone.
#![allow(clippy::expect_used)]

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use flatfell_integration::cluster::objects::policy;
use flatfell_integration::cluster::{Cluster, ClusterConfig, parts};
use flatfell_integration::scene::{no, tcp, yes};
use flatfell_integration::{FlatfellNode, Place};
use serde_json::{Value, json};

const DB: Place = Place::pod(1, 0);
const WEB: Place = Place::pod(1, 1);
const OTHER: Place = Place::pod(1, 2);
/// The daemon waits 90 s for a watch's next word.
const SILENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(200);

/// Only this `app` may come to the database.
fn only(app: &str) -> Value {
    let peer = json!({"podSelector": {"matchLabels": {"app": app}}});
    policy("a", "p", json!({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [{"from": [peer]}]}))
}

fn cluster() -> Cluster {
    let mut cluster = Cluster::new(ClusterConfig { nodes: 1, ..ClusterConfig::default() }).expect("a cluster");
    for (slot, app) in [(0, "db"), (1, "web"), (2, "other")] {
        cluster.add_pod("a", app, json!({"app": app}), 1, slot).expect("a pod");
    }
    cluster.api().put(&only("web")).expect("a policy");
    cluster
}

/// Drops what comes to the server from outside, and what it sends there, where `ports` (of the client) fits.
fn swallow(cluster: &Cluster, ports: &str) {
    let (to, from) =
        (format!("tcp dport 6443 tcp sport {ports} drop"), format!("tcp sport 6443 tcp dport {ports} drop"));
    let rules = format!(
        "table inet hole\ndelete table inet hole\ntable inet hole {{\n\
         chain in {{ type filter hook input priority -300; iif != lo {to}\n}}\n\
         chain out {{ type filter hook output priority -300; oif != lo {from}\n}}\n}}\n"
    );
    cluster.lab.nft(Place::Outside, &rules).expect("a hole");
}

/// The ports of the node's connections to the server.
fn connections(cluster: &Cluster) -> Vec<String> {
    let node = cluster.lab.netns(Place::Node(1)).expect("the node");
    let table = node.feed("ss", &["-Htn", "state", "established", "dport", "=", ":6443"], "").expect("ss");
    let local = |line: &str| Some(line.split_whitespace().nth(2)?.rsplit_once(':')?.1.to_owned());
    table.lines().filter_map(local).collect()
}

/// Waits until the answer to /readyz has all these words.
fn reads(daemon: &FlatfellNode, words: &[&str], patience: Duration) -> String {
    let deadline = Instant::now() + patience;
    loop {
        let answer = daemon.get("/readyz").unwrap_or_default();
        if words.iter().all(|word| answer.contains(word)) {
            return answer;
        }
        assert!(Instant::now() < deadline, "no {words:?} in {answer}\n{}", daemon.log());
        thread::sleep(PAUSE);
    }
}

#[test]
fn a_server_that_swallows_packets() {
    let mut cluster = cluster();
    swallow(&cluster, "0-65535");
    let kubeconfig = cluster.server.kubeconfig("flatfell").expect("a kubeconfig");
    let daemon = FlatfellNode::launch(&cluster.lab, 1, &kubeconfig, &[]).expect("a daemon");
    reads(&daemon, &["pods: not listed yet", "cannot be reached"], SILENCE);
    let rules = cluster.lab.netns(Place::Node(1)).expect("the node").feed("nft", &["list", "ruleset"], "");
    assert_eq!(rules.expect("nft"), "", "nothing is written before all lists are complete");
    cluster.lab.nft(Place::Outside, "delete table inet hole\n").expect("no hole");
    daemon.wait_for("ready", |report| report.ready && report.synced).expect("it asked again");
    let before = [yes(tcp(WEB, DB, 80)), no(tcp(OTHER, DB, 80))];
    cluster.expect("the policy", &before);

    // Connections that stand go silent, and new ones cannot be made.
    let ports = connections(&cluster);
    assert!(ports.len() >= 4, "one for each watch: {ports:?}");
    swallow(&cluster, "0-65535");
    cluster.api().put(&only("other")).expect("a policy, written meanwhile");
    cluster.expect("in silence", &before);
    let readiness = reads(&daemon, &["pods: not watched for", "stays in force"], SILENCE);
    println!("/readyz: {readiness}");
    assert_eq!(daemon.get("/healthz").expect("an answer"), "ok\n", "that is no reason to restart it");
    cluster.expect("after it was noticed", &before);

    // The old connections stay dead: only new ones can help.
    swallow(&cluster, &format!("{{ {} }}", ports.join(", ")));
    let back = Instant::now();
    daemon.wait_for("whole", |report| report.ready && report.synced).expect("it is back");
    println!("whole again after {:?}", back.elapsed());
    cluster.settle(1, &daemon).expect("settled");
    cluster.expect("the new policy", &[no(tcp(WEB, DB, 80)), yes(tcp(OTHER, DB, 80))]);
}

#[test]
#[ignore = "run by the test below, with other parts"]
fn a_cluster_of_these_parts() {
    let cluster = cluster();
    let _daemon = cluster.daemon(1, &[]).expect("a daemon");
    cluster.expect("the policy", &[yes(tcp(WEB, DB, 80)), no(tcp(OTHER, DB, 80))]);
}

/// As envtest users have them.
#[test]
fn parts_that_somebody_else_built_are_used() {
    let (assets, rest) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    fs::create_dir(rest.path().join("bin")).expect("a directory");
    let own = fs::canonicalize(parts::directory()).expect("the fixture");
    for part in ["etcd", "kube-apiserver", "kubectl"] {
        symlink(own.join(part), assets.path().join(part)).expect("a link");
    }
    // A fixture that has none of its own.
    let run = |assets: &std::path::Path| {
        Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "a_cluster_of_these_parts", "--ignored"])
            .envs([("KUBEBUILDER_ASSETS", assets), ("FLATFELL_FIXTURE", rest.path())])
            .output()
            .expect("a run")
    };
    let output = run(assets.path());
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
    fs::remove_file(assets.path().join("kube-apiserver")).expect("removed");
    let output = run(assets.path());
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        !output.status.success() && text.contains(&*assets.path().to_string_lossy()),
        "the missing one is named: {text}"
    );
}
