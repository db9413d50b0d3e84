//! kill -9, SIGTERM and restart under traffic: nothing forbidden passes, nothing allowed is lost, no counter goes back.
//!
//! In: `FLATFELL_KILLS`, how often (30 without it). Out: what passed, what was lost.
#![allow(clippy::expect_used)]

mod world;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use flatfell_integration::node::FlatfellNode;
use flatfell_integration::{Flow, Lab, LabConfig, Place, Traffic};
use flatfell_rules::sim::random::Random;
use serde_json::{Value, json};
use world::{app, namespace, peer, policy, streams};

const PAUSE: Duration = Duration::from_millis(1);

fn kills() -> usize {
    std::env::var("FLATFELL_KILLS").map_or(30, |count| count.parse().expect("a number"))
}

fn text(object: &Value) -> String {
    object.to_string()
}

/// The rules of `a`: `b` may come, by one of several rules.
fn rules(turn: usize) -> Value {
    let udp = |port: u16| json!({"protocol": "UDP", "port": port});
    let stable = json!({"from": [peer("b")], "ports": [udp(80)]});
    match turn % 3 {
        0 => json!([stable]),
        1 => json!([stable, {"from": [peer("d")], "ports": [udp(80)]}]),
        _ => json!([stable, {"from": [peer("b")], "ports": [udp(90)]}, {"from": [peer("z")]}]),
    }
}

/// The packets of each rule that the daemon tells.
fn counters(node: &FlatfellNode) -> BTreeMap<String, u64> {
    let metrics = node.metrics().expect("metrics");
    let rules = metrics.lines().filter(|line| line.starts_with("flatfell_rule_packets_total"));
    let values = rules.map(|line| line.rsplit_once(' ').expect("a value"));
    values.map(|(name, value)| (name.to_owned(), value.parse().expect("a number"))).collect()
}

fn start(lab: &Lab) -> FlatfellNode {
    let files = [
        ("ns.yaml", text(&namespace())),
        ("a.yaml", text(&app("a", 0, "a"))),
        ("b.yaml", text(&app("b", 1, "b"))),
        ("c.yaml", text(&app("c", 2, "c"))),
        ("p.yaml", text(&policy("a", "a", "ingress", rules(0)))),
    ];
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    FlatfellNode::start(lab, 1, &files).expect("a daemon")
}

#[test]
fn it_dies_and_comes_back() {
    let lab = Lab::new(LabConfig { nodes: 1, pods: 3, ..LabConfig::default() }).expect("a lab");
    let mut node = start(&lab);
    let kinds = [
        streams(1, 0, 80, Flow::Turns(64)),
        streams(1, 0, 80, Flow::Steady),
        streams(1, 0, 80, Flow::Pushed),
        streams(2, 0, 80, Flow::Fresh),
    ];
    let all = kinds.concat();
    let traffic = Traffic::start(&lab, &all, PAUSE).expect("traffic");
    let mut random = Random::new(7);
    let mut before = counters(&node);
    assert!(!before.is_empty(), "no counter: {}", node.metrics().expect("metrics"));
    for turn in 1..=kills() {
        node.write("p.yaml", &text(&policy("a", "a", "ingress", rules(turn)))).expect("writing");
        let wait = random.below(30_000);
        thread::sleep(Duration::from_micros(wait));
        if turn % 5 == 0 {
            node.stop().expect("stopped")
        } else {
            node.kill9().expect("killed")
        }
        thread::sleep(Duration::from_millis(20));
        node.restart().expect("restarted");
        let now = counters(&node);
        for (name, value) in &now {
            let then = before.get(name).copied().unwrap_or(0);
            assert!(*value >= then, "{name} went from {then} to {value} at kill {turn}");
        }
        before = now;
    }
    let reports = traffic.stop(Duration::from_millis(300)).expect("traffic");
    let (allowed, forbidden) = reports.split_at(6);
    let sum =
        |reports: &[flatfell_integration::Report]| reports.iter().map(|report| u64::from(report.sent)).sum::<u64>();
    let passed: usize = forbidden.iter().map(|report| report.received()).sum();
    let lost: usize = allowed.iter().map(|report| report.lost()).sum();
    println!(
        "{} kills: of {} forbidden packets {passed} passed, of {} allowed {lost} were lost",
        kills(),
        sum(forbidden),
        sum(allowed)
    );
    assert_eq!((passed, lost), (0, 0));
}

#[test]
fn an_unchanged_restart_commits_nothing() {
    let lab = Lab::new(LabConfig { nodes: 1, pods: 3, ..LabConfig::default() }).expect("a lab");
    let mut node = start(&lab);
    node.stop().expect("stopped");
    // Not by `restart`, which changes a pod of its own to see when all is settled.
    let own = std::env::current_exe().expect("the test's own path");
    let binary = own.parent().and_then(Path::parent).expect("a directory").join("flatfell");
    let mut command = lab.netns(Place::Node(1)).expect("the node").command(&binary.to_string_lossy());
    command
        .args(["run", "--node", "node1", "--manifests"])
        .arg(node.root())
        .arg("--run-dir")
        .arg(node.run_dir())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut process = command.spawn().expect("a daemon");
    let ready = node.wait_for("ready", |report| report.ready && report.synced);
    let metrics = node.metrics();
    process.kill().expect("killed");
    process.wait().expect("killed");
    ready.expect("ready");
    let metrics = metrics.expect("metrics");
    let committed: Vec<&str> = metrics
        .lines()
        .filter(|line| line.starts_with("flatfell_transactions_total") && !line.ends_with(" 0"))
        .collect();
    assert!(committed.is_empty(), "{committed:?}");
    assert!(metrics.contains("flatfell_transactions_total"), "{metrics}");
}
