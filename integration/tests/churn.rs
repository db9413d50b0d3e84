//! Edits, restarts and kills under traffic: no counter that is exported ever falls, and in the end the kernel has counted each packet
//! that was sent once for each half.
//!
//! In: `FLATFELL_CHURN`, the number of changes (40 without it; `make churn` makes 200), `FLATFELL_SEED`. Out: numbers of the run.
//! What always holds: the traffic is between two pods of the node and allowed by every policy there ever is.
#![allow(clippy::expect_used)]

mod world;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use flatfell::config::DEFAULT_LISTEN;
use flatfell_integration::node::FlatfellNode;
use flatfell_integration::{Flow, Lab, LabConfig, Place, Probe, Traffic};
use flatfell_rules::sim::random::Random;
use serde_json::{Value, json};
use world::{app, namespace, peer, policy, streams};

const PAUSE: Duration = Duration::from_millis(1);
const A: u8 = 0;
const B: u8 = 1;

fn from_environment(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

/// The families that count packets, bytes and connections of policy.
const FAMILIES: [&str; 6] = [
    "flatfell_rule_",
    "flatfell_default_allowed_",
    "flatfell_dropped_",
    "flatfell_would_drop_",
    "flatfell_guard_",
    "flatfell_unattributed_",
];

/// Asks the daemon for its metrics; nothing while there is none.
fn metrics(lab: &Lab) -> Option<String> {
    let ask = || {
        let mut stream = TcpStream::connect(DEFAULT_LISTEN).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: flatfell\r\nAccept: application/openmetrics-text\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        // Cut short by a kill: the last line may be half a number.
        (answer.starts_with("HTTP/1.1 200") && answer.ends_with("# EOF\n")).then_some(answer)
    };
    lab.netns(Place::Node(1)).expect("the node").run(ask).expect("the node")
}

fn series(metrics: &str) -> BTreeMap<String, u64> {
    let lines = metrics.lines().filter(|line| FAMILIES.iter().any(|family| line.starts_with(family)));
    let totals = lines.filter(|line| line.contains("_total{") || line.contains("_total "));
    totals
        .map(|line| line.rsplit_once(' ').expect("a value"))
        .map(|(name, value)| (name.to_owned(), value.parse().expect("a number")))
        .collect()
}

/// Samples without end; what fell.
fn sample(lab: &Lab, stop: &AtomicBool, samples: &AtomicU64) -> Vec<String> {
    let (mut highest, mut fallen) = (BTreeMap::<String, u64>::new(), Vec::new());
    while !stop.load(Ordering::SeqCst) {
        for (name, value) in metrics(lab).as_deref().map(series).unwrap_or_default() {
            let before = highest.entry(name.clone()).or_default();
            if value < *before {
                fallen.push(format!("{name} fell from {before} to {value}"));
            }
            *before = value;
            samples.fetch_add(1, Ordering::SeqCst);
        }
        thread::sleep(Duration::from_millis(10));
    }
    fallen
}

/// A datagram there, one back, without end; how many packets that were.
fn echo(lab: &Lab, stop: &AtomicBool) -> u64 {
    let bind = |slot| {
        let bind = || UdpSocket::bind((Place::pod(1, slot).v4(), 7000)).expect("a port");
        let socket = lab.netns(Place::pod(1, slot)).expect("a pod").run(bind).expect("a pod");
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a socket");
        socket
    };
    let (server, client) = (bind(A), bind(B));
    let (mut packets, mut buffer) = (0, [0; 64]);
    while !stop.load(Ordering::SeqCst) {
        client.send_to(b"there", (Place::pod(1, A).v4(), 7000)).expect("sent");
        let (length, peer) = server.recv_from(&mut buffer).expect("allowed");
        server.send_to(&buffer[..length], peer).expect("sent");
        client.recv(&mut buffer).expect("allowed");
        packets += 2;
    }
    packets
}

/// Packets that the kernel has counted as passed.
fn counted(lab: &Lab) -> u64 {
    let node = lab.netns(Place::Node(1)).expect("the node");
    let listed = node.feed("nft", &["-j", "list", "ruleset", "inet"], "").expect("nft");
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    let entries = || listed["nftables"].as_array().into_iter().flatten();
    let named = entries().map(|entry| &entry["counter"]).filter(|counter| {
        let name = counter["name"].as_str().unwrap_or_default();
        ["rule-", "default-", "unattributed"].iter().any(|kind| name.starts_with(kind))
    });
    let sets = entries().map(|entry| &entry["set"]).filter(|set| set["name"] == "traffic");
    let elements = sets.flat_map(|set| set["elem"].as_array().into_iter().flatten());
    let by_id = elements.map(|element| &element["elem"]["counter"]);
    named.chain(by_id).map(|counter| counter["packets"].as_u64().expect("a number")).sum()
}

/// Rules that let `b` come (or `a` be reached), among others, in any order.
fn rules(random: &mut Random, way: &str, always: &str) -> Value {
    let port = |number: u64| json!({"protocol": "UDP", "port": number});
    let mut rules = vec![json!({way: [peer(always)]})];
    for other in ["c", "d", "z"] {
        if random.once_in(2) {
            rules.push(json!({way: [peer(other)], "ports": [port(1 + random.below(3))]}));
        }
    }
    if random.once_in(3) {
        rules.push(json!({way: [peer(always)], "ports": [port(7000), port(80)]}));
    }
    let turn = usize::try_from(random.below(4)).expect("small") % rules.len();
    rules.rotate_left(turn);
    Value::Array(rules)
}

fn text(object: &Value) -> String {
    serde_json::to_string_pretty(object).expect("JSON")
}

/// Some change of policy, or of the daemon's life.
fn change(node: &mut FlatfellNode, random: &mut Random) {
    match random.below(10) {
        0..=2 => {
            node.write("a.yaml", &text(&policy("a", "a", "ingress", rules(random, "from", "b")))).expect("written")
        }
        3..=5 => node.write("b.yaml", &text(&policy("b", "b", "egress", rules(random, "to", "a")))).expect("written"),
        // What is not there is not removed.
        6 => node.remove("a.yaml").unwrap_or_default(),
        7 => node.remove("b.yaml").unwrap_or_default(),
        8 => {
            node.restart().expect("restarted");
        }
        _ => {
            thread::sleep(Duration::from_micros(random.below(20_000)));
            node.kill9().expect("killed");
            node.restart().expect("restarted");
        }
    }
    if !random.once_in(3) {
        node.settle().expect("settled");
    }
}

/// A daemon that knows the pods of the lab, with these policies.
fn start(lab: &Lab, policies: &[Value]) -> FlatfellNode {
    let pods = [("a", 0), ("b", 1), ("c", 2), ("d", 3)].map(|(name, slot)| app(name, slot, name));
    let objects: Vec<Value> = pods.into_iter().chain([namespace()]).chain(policies.iter().cloned()).collect();
    let files: Vec<(String, String)> =
        objects.iter().enumerate().map(|(number, object)| (format!("{number}.yaml"), text(object))).collect();
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    FlatfellNode::start(lab, 1, &files).expect("a daemon")
}

fn lab() -> Lab {
    Lab::new(LabConfig { nodes: 1, pods: 4, ..LabConfig::default() }).expect("a lab")
}

#[test]
fn nothing_falls_and_nothing_is_missing() {
    let lab = lab();
    let mut node = start(&lab, &[]);
    let seed = from_environment("FLATFELL_SEED", 1);
    let (mut random, count) = (Random::new(seed), from_environment("FLATFELL_CHURN", 40));
    let (stop, samples, before) = (AtomicBool::new(false), AtomicU64::new(0), counted(&lab));
    let all = [streams(B, A, 80, Flow::Steady), streams(B, A, 81, Flow::Turns(16))].concat();
    let traffic = Traffic::start(&lab, &all, PAUSE).expect("traffic");
    let (fallen, echoed) = thread::scope(|threads| {
        let sampler = threads.spawn(|| sample(&lab, &stop, &samples));
        let echo = threads.spawn(|| echo(&lab, &stop));
        for _ in 0..count {
            change(&mut node, &mut random);
        }
        node.settle().expect("settled");
        stop.store(true, Ordering::SeqCst);
        (sampler.join().expect("sampled"), echo.join().expect("echoed"))
    });
    let reports = traffic.stop(Duration::from_millis(300)).expect("traffic");
    let sent: u64 = reports.iter().map(|report| u64::from(report.sent)).sum();
    let lost: usize = reports.iter().map(|report| report.lost()).sum();
    let counted = counted(&lab) - before;
    let samples = samples.into_inner();
    println!(
        "seed {seed}: {count} changes, {samples} samples, {sent} + {echoed} packets, counted {counted}, lost {lost}"
    );
    assert!(fallen.is_empty(), "{fallen:#?}");
    assert!(samples > count, "too few samples");
    assert_eq!(lost, 0, "all of it is allowed");
    assert_eq!(counted, 2 * (sent + echoed), "each packet counts for both halves");
}

/// Somebody resets the counters, or flushes everything; then the daemon dies, too.
#[test]
fn what_the_kernel_loses_is_carried() {
    let lab = lab();
    let mut node = start(&lab, &[policy("a", "a", "ingress", json!([{"from": [peer("b")]}]))]);
    let space = lab.netns(Place::Node(1)).expect("the node");
    let probes = [B, 2].map(|from| Probe::udp(Place::pod(1, from), Place::pod(1, A).v4(), 80));
    let read = || series(&metrics(&lab).expect("metrics"));
    let mut before = read();
    for event in ["reset counters", "kill", "flush ruleset", "kill", "reset counters", "reset counters", "kill"] {
        for _ in 0..10 {
            lab.probes(&probes).expect("probes");
        }
        let grown = read();
        let sum = |series: &BTreeMap<String, u64>| series.values().sum::<u64>();
        assert!(sum(&grown) > sum(&before), "before {event}: {grown:?}");
        if event == "kill" {
            node.kill9().expect("killed");
            node.restart().expect("restarted");
        } else {
            space.feed("nft", &event.split(' ').collect::<Vec<_>>(), "").expect("nft");
            node.settle().expect("settled");
        }
        let after = read();
        for (name, then) in &grown {
            let now = after.get(name).copied();
            assert!(now.is_some_and(|now| now >= *then), "{event}: {name} went from {then} to {now:?}");
        }
        before = after;
    }
}
