//! kill -9, SIGTERM and restart at random moments of random changes under traffic: nothing forbidden passes, nothing allowed is lost, the
//! table is one state, whole, the next daemon is in step within a second, no counter goes back.
//!
//! In: `FLATFELL_KILLS`, how often (30 without it), `FLATFELL_SEED`. Out: what passed, what was lost, how long getting in step took.
#![allow(clippy::expect_used)]

mod restless;
mod world;

use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use flatfell_integration::node::FlatfellNode;
use flatfell_integration::{Lab, LabConfig, Place};
use restless::{IN_STEP, Restless, assert_none_fell, counters, judge, manifests};

/// How many kills in a hundred may be late, for a stolen processor is not the daemon's delay: none of them by much.
const LATE: usize = 1;

fn kills() -> usize {
    std::env::var("FLATFELL_KILLS").map_or(30, |count| count.parse().expect("a number"))
}

fn seed() -> u64 {
    std::env::var("FLATFELL_SEED").map_or(7, |text| text.parse().expect("a number"))
}

/// One life ends in the middle of some changes; how long the next one took from its start to being in step.
fn dies(restless: &mut Restless, turn: usize) -> Duration {
    for _ in 0..=restless.random.below(2) {
        restless.change();
        let wait = restless.random.below(30_000);
        thread::sleep(Duration::from_micros(wait));
    }
    if turn.is_multiple_of(5) {
        restless.node.stop().expect("stopped");
    } else {
        restless.node.kill9().expect("killed");
    }
    restless.assert_whole(&format!("kill {turn}"));
    thread::sleep(Duration::from_millis(20));
    let begun = Instant::now();
    restless.node.spawn_again().expect("started");
    restless.in_step();
    restless.node.wait_for("ready", |report| report.ready).expect("ready");
    let time = begun.elapsed();
    restless.assert_newest(&format!("after kill {turn}"));
    time
}

#[test]
fn it_dies_and_comes_back() {
    let mut restless = Restless::start(None, &[], seed());
    let traffic = restless.traffic();
    let mut before = counters(&restless.node);
    let mut times = Vec::new();
    for turn in 1..=kills() {
        times.push(dies(&mut restless, turn));
        let now = counters(&restless.node);
        assert_none_fell(&before, &now, &format!("kill {turn}"));
        before = now;
        if turn.is_multiple_of(100) {
            println!("{turn} kills");
        }
    }
    times.sort();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
    let late = times.iter().filter(|time| **time > IN_STEP).count();
    println!(
        "{} kills: in step after {:.0?} p50, {:.0?} p99, {:.0?} at most, {late} later than {IN_STEP:?}; {}",
        times.len(),
        at(50),
        at(99),
        at(100),
        judge(traffic)
    );
    assert!(late * 100 <= times.len().max(100) * LATE && at(100) <= 3 * IN_STEP, "{late} late, {:?}", at(100));
}

#[test]
fn an_unchanged_restart_commits_nothing() {
    let lab = Lab::new(LabConfig { nodes: 1, pods: 3, ..LabConfig::default() }).expect("a lab");
    let files = manifests();
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let mut node = FlatfellNode::start(&lab, 1, &files).expect("a daemon");
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
