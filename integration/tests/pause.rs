//! Break-glass with real packets: while paused nothing is forbidden, at its end everything forbidden stops within 100 ms.
//!
//! In: a node with policy, `flatfell pause`. Out: what passed before, meanwhile and behind. `FLATFELL_CUT_MS` gives a busy
//! machine more than 100 ms.
#![allow(clippy::expect_used)]

mod world;

use std::thread;
use std::time::{Duration, Instant};

use flatfell_integration::node::FlatfellNode;
use flatfell_integration::{Flow, Lab, LabConfig, Place, Stream, Traffic};
use flatfell_rules::sim::random::Random;
use serde_json::json;
use world::{app, namespace, peer, policy};

const B: Place = Place::pod(1, 1);
const A: Place = Place::pod(1, 0);
const C: Place = Place::pod(1, 2);
const SENDS: Duration = Duration::from_millis(1);

fn limit() -> Duration {
    Duration::from_millis(std::env::var("FLATFELL_CUT_MS").map_or(100, |text| text.parse().expect("milliseconds")))
}

/// `b` may reach `a` at port 80, and nobody else may.
fn start(lab: &Lab) -> FlatfellNode {
    let files = [
        ("ns.yaml", namespace()),
        ("a.yaml", app("a", 0, "a")),
        ("b.yaml", app("b", 1, "b")),
        ("c.yaml", app("c", 2, "c")),
        (
            "p.yaml",
            policy("a", "a", "ingress", json!([{"from": [peer("b")], "ports": [{"protocol": "UDP", "port": 80}]}])),
        ),
    ]
    .map(|(name, object)| (name, object.to_string()));
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    FlatfellNode::start(lab, 1, &files).expect("a daemon")
}

fn lab() -> Lab {
    Lab::new(LabConfig { nodes: 1, pods: 3, ..LabConfig::default() }).expect("a lab")
}

/// Streams to `a`, both families: steady ones, pushed ones (the server speaks) and new flows all the time.
fn to_a(from: Place, port: u16) -> Vec<Stream> {
    let each = |flow| A.addresses().map(|address| Stream::new(from, A, address, port, flow));
    [Flow::Steady, Flow::Pushed, Flow::Fresh].into_iter().flat_map(each).collect()
}

/// How long after `end` the last packet of each stream came; at most one limit more is waited.
fn late(traffic: &Traffic, streams: usize, end: Instant) -> Vec<Duration> {
    thread::sleep(4 * limit());
    (0..streams).map(|stream| traffic.last_arrival(stream).expect("it ran").saturating_duration_since(end)).collect()
}

fn metric(node: &FlatfellNode, name: &str) -> Option<u64> {
    let metrics = node.metrics().expect("metrics");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&format!("{name} ")).map(str::to_owned));
    line.map(|value| value.parse().expect("a number"))
}

/// A stolen processor is not the daemon's delay: what was late is played again, twice at most.
fn plays(lab: &Lab, node: &FlatfellNode, length: &str, end: impl Fn(&FlatfellNode, Instant) -> Instant) {
    let mut latencies = Vec::new();
    for _ in 0..3 {
        latencies = play(lab, node, length, &end);
        println!("cut after {latencies:.1?}");
        if latencies.iter().all(|latency| *latency <= limit()) {
            return;
        }
    }
    panic!("{latencies:.1?}");
}

/// Everything forbidden flows while paused, and is cut when `end` (given when the pause was there) ends the pause; what is
/// allowed loses nothing. How long after the end each forbidden stream was heard.
fn play(
    lab: &Lab,
    node: &FlatfellNode,
    length: &str,
    end: impl Fn(&FlatfellNode, Instant) -> Instant,
) -> Vec<Duration> {
    let said = node.command(&["pause", "--for", length]).expect("paused");
    let begun = Instant::now();
    assert!(said.starts_with("paused until 20"), "{said}");
    node.wait_for("open", |report| report.synced && report.paused_until.is_some()).expect("open");
    let forbidden = [to_a(C, 80), to_a(C, 81), to_a(B, 81)].concat();
    let all = [forbidden.clone(), to_a(B, 80)].concat();
    let traffic = Traffic::start(lab, &all, SENDS).expect("traffic");
    thread::sleep(Duration::from_millis(300));
    let meanwhile: Vec<usize> = (0..all.len()).map(|stream| traffic.received(stream)).collect();
    assert!(meanwhile.iter().all(|received| *received > 10), "all of it passes while paused: {meanwhile:?}");
    let ready = node.get("/readyz").expect("an answer");
    assert!(ready.starts_with("ready\nnotes:\n- paused until 20"), "{ready}");
    assert_eq!(metric(node, "flatfell_paused"), Some(1));
    assert!(metric(node, "flatfell_paused_until_timestamp_seconds").is_some_and(|until| until > 1_700_000_000));
    let over = end(node, begun);
    let latencies = late(&traffic, forbidden.len(), over);
    assert_eq!(metric(node, "flatfell_paused"), Some(0));
    let reports = traffic.stop(Duration::from_millis(200)).expect("traffic");
    for (report, stream) in reports.iter().zip(&all).skip(forbidden.len()) {
        assert!(report.lost() == 0, "{stream:?} is allowed and lost {} of {}", report.lost(), report.sent);
    }
    latencies
}

#[test]
fn a_pause_opens_the_node_and_resume_cuts_what_ran() {
    let lab = lab();
    let node = start(&lab);
    plays(&lab, &node, "10m", |node, _| {
        let said = node.command(&["resume"]).expect("resumed");
        assert!(said.starts_with("the pause is over"), "{said}");
        Instant::now()
    });
    let log = node.log();
    assert!(log.contains("WARN") && log.contains("paused: from now on") && log.contains("the pause is over"), "{log}");
}

#[test]
fn a_pause_ends_by_itself() {
    let lab = lab();
    let node = start(&lab);
    plays(&lab, &node, "2s", |_, begun| {
        let end = begun + Duration::from_secs(2);
        thread::sleep(end.saturating_duration_since(Instant::now()));
        end
    });
}

/// A daemon that is killed or stopped while paused is back with policy; stopped, policy is in force before it ends.
#[test]
fn a_restart_ends_a_pause() {
    let lab = lab();
    let mut node = start(&lab);
    let forbidden = || {
        // A steady or pushed flow wants an answer to begin with.
        let fresh = A.addresses().map(|address| Stream::new(C, A, address, 80, Flow::Fresh));
        let traffic = Traffic::start(&lab, &fresh, SENDS).expect("traffic");
        thread::sleep(Duration::from_millis(100));
        traffic.stop(Duration::from_millis(100)).expect("traffic").iter().map(|report| report.received()).sum::<usize>()
    };
    let open = |node: &FlatfellNode| {
        node.command(&["pause", "--for", "1h"]).expect("paused");
        node.wait_for("open", |report| report.synced && report.paused_until.is_some()).expect("open");
    };
    open(&node);
    assert!(forbidden() > 0);
    node.kill9().expect("killed");
    node.restart().expect("restarted");
    assert_eq!((forbidden(), metric(&node, "flatfell_paused")), (0, Some(0)));
    open(&node);
    assert!(forbidden() > 0);
    node.stop().expect("stopped");
    assert_eq!(forbidden(), 0, "nobody is there to end the pause");
    assert!(!node.run_dir().join("flatfell.sock").exists());
}

#[test]
fn nonsense_is_refused_and_a_daemon_that_is_not_there_is_named() {
    let lab = lab();
    let mut node = start(&lab);
    for length in ["0s", "25h", "ten minutes", "-1m"] {
        node.command(&["pause", &format!("--for={length}")]).expect_err(length);
    }
    assert!(node.command(&["resume"]).expect("asked").starts_with("there was no pause"));
    node.stop().expect("stopped");
    let refused = node.command(&["pause", "--for", "1m"]).expect_err("nobody there").to_string();
    assert!(refused.contains("no daemon answers on") && refused.contains("--run-dir"), "{refused}");
}

/// Others than the daemon's own user are refused, even where the socket was opened to them.
#[test]
fn another_user_cannot_open_the_node() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    let lab = lab();
    let node = start(&lab);
    // The daemon's binary where everybody reaches it.
    let copied = tempfile::tempdir().expect("a directory");
    let binary = copied.path().join("flatfell");
    let own = std::env::current_exe().expect("the test's own path");
    let built = own.parent().and_then(std::path::Path::parent).expect("a directory").join("flatfell");
    std::fs::copy(built, &binary).expect("copied");
    let socket = node.run_dir().join("flatfell.sock");
    let ask = || {
        let mut command = std::process::Command::new(&binary);
        command.args(["pause", "--for", "1m", "--run-dir"]).arg(node.run_dir()).uid(65534);
        let output = command.output().expect("it runs");
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let open = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("opened");
    };
    open(copied.path(), 0o755);
    let closed = ask();
    assert!(closed.contains("Permission denied"), "{closed}");
    open(node.run_dir().parent().expect("a directory"), 0o755);
    open(&node.run_dir(), 0o755);
    open(&socket, 0o666);
    let refused = ask();
    assert!(refused.contains("only the daemon's own user"), "{refused}");
    assert_eq!(metric(&node, "flatfell_paused"), Some(0));
}

/// Pauses that begin and end quickly, with policy that changes meanwhile: the last word counts.
#[test]
fn the_last_word_counts() {
    let lab = lab();
    let mut node = start(&lab);
    let mut random = Random::new(3);
    for turn in 0..20 {
        let words: &[&str] = if random.once_in(2) { &["pause", "--for", "1h"] } else { &["resume"] };
        node.command(words).expect("asked");
        if random.once_in(3) {
            node.settle().expect("settled");
        }
        let paused = words[0] == "pause";
        let isolated =
            |report: &flatfell::status::Report| report.pods.iter().any(|pod| pod.ingress.isolation == "isolated");
        let right = node.wait_for("right", |report| report.synced && isolated(report) != paused);
        assert!(right.is_ok(), "turn {turn}: {right:?}");
    }
}
