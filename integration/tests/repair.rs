//! Others at our tables: kept out where the kernel can, put right where it cannot.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use flatfell::engine::{EngineConfig, Repair};
use flatfell_integration::inprocess::{InProcess, defaults, deny_all, pod, policy};

use flatfell_integration::patience::patient;
use flatfell_integration::{Flow, Lab, LabConfig, Place, Stream, Traffic};
use serde_json::{Value, json};

const A: Place = Place::pod(1, 0);
const B: Place = Place::pod(1, 1);
const C: Place = Place::pod(1, 2);
const NODE: Place = Place::Node(1);

/// How long a table may be missing.
const LIMIT: Duration = Duration::from_millis(100);

const PAUSE: Duration = Duration::from_millis(2);
const GRACE: Duration = Duration::from_millis(100);

fn lab() -> Lab {
    Lab::new(LabConfig { nodes: 1, pods: 3, ..LabConfig::default() }).unwrap()
}

/// A is allowed to reach B, C is not.
fn start(lab: &Lab, config: EngineConfig) -> InProcess {
    InProcess::start(lab, 1, config, &[pod(A), pod(B), pod(C), from("p0")]).unwrap()
}

/// One whose tables anybody may change.
fn shared() -> EngineConfig {
    EngineConfig { lock_tables: false, ..defaults() }
}

fn from(app: &str) -> Value {
    let from = json!([{"podSelector": {"matchLabels": {"app": app}}}]);
    policy("in", "p1", json!({"policyTypes": ["Ingress"], "ingress": [{"from": from}]}))
}

fn list(lab: &Lab) -> String {
    lab.netns(NODE).unwrap().feed("nft", &["-s", "list", "ruleset"], "").unwrap()
}

fn repairs(daemon: &InProcess) -> BTreeMap<Repair, u64> {
    daemon.engine.status().upkeep.repairs.clone()
}

fn stream(from: Place, port: u16) -> Stream {
    Stream::new(from, B, B.v4().into(), port, Flow::Turns(50))
}

/// Nobody's flush opens the node, nor does anybody's edit, and the next daemon takes the tables over.
#[test]
fn nobody_else_changes_locked_tables() {
    let lab = lab();
    let daemon = start(&lab, defaults());
    let status = daemon.engine.status();
    assert!(status.locked, "this kernel has no tables with owners");
    let (slot, before) = (status.slot, list(&lab));
    let traffic = Traffic::start(&lab, &[stream(A, 7000), stream(C, 7001)], PAUSE).unwrap();
    for _ in 0..100 {
        lab.nft(NODE, "flush ruleset").unwrap();
    }
    let edits = [
        format!("delete table inet {slot}"),
        format!("flush chain inet {slot} forward"),
        format!("insert rule inet {slot} forward accept"),
        format!("flush set inet {slot} pods4"),
        format!("add table inet {slot} {{ flags dormant; }}"),
    ];
    for edit in &edits {
        assert!(lab.nft(NODE, edit).is_err(), "{edit}");
    }
    let reports = traffic.stop(patient(GRACE)).unwrap();
    assert!(reports[0].sent > 0 && reports[0].lost() == 0, "what is allowed passes");
    assert!(reports[1].sent > 0 && reports[1].received() == 0, "what is forbidden does not");
    assert!(list(&lab) == before);
    drop(daemon);
    lab.nft(NODE, &edits[2]).unwrap();
    let daemon = start(&lab, defaults());
    assert!(daemon.engine.status().locked && daemon.engine.status().slot == slot);
    assert!(lab.nft(NODE, &edits[1]).is_err(), "taken over");
}

/// Tables from before they had owners cannot get one: others take their place.
#[test]
fn tables_without_an_owner_are_replaced_by_locked_ones() {
    let lab = lab();
    let slot = start(&lab, shared()).engine.status().slot;
    let traffic = Traffic::start(&lab, &[stream(A, 7000), stream(C, 7001)], PAUSE).unwrap();
    let daemon = start(&lab, defaults());
    let status = daemon.engine.status();
    assert!(status.locked && status.slot != slot, "{}", status.slot);
    assert!(!list(&lab).contains(&format!("{slot} ")), "the old ones are gone");
    assert!(lab.nft(NODE, &format!("flush chain inet {} forward", status.slot)).is_err());
    let reports = traffic.stop(patient(GRACE)).unwrap();
    assert!(reports[0].sent > 0 && reports[0].lost() == 0 && reports[1].received() == 0);
}

/// Each kind of edit is put right and counted as what it is.
#[test]
fn edits_are_put_right_and_counted_by_kind() {
    let lab = lab();
    let daemon = start(&lab, shared());
    let slot = daemon.engine.status().slot;
    assert!(!daemon.engine.status().locked);
    let inet = format!("inet {slot}");
    let edits = [
        (format!("insert rule {inet} forward accept"), Repair::Rules),
        (format!("flush chain {inet} forward"), Repair::Rules),
        (format!("add chain {inet} mine {{ type filter hook forward priority -50; policy accept; }}"), Repair::Chains),
        (format!("flush set {inet} pods4"), Repair::Elements),
        (format!("add element {inet} pods4 {{ 192.0.2.1 }}"), Repair::Elements),
        (format!("add set {inet} mine {{ type ipv4_addr; }}"), Repair::Sets),
        (format!("delete table bridge {slot}"), Repair::Tables),
        (format!("delete table {inet}"), Repair::Tables),
    ];
    for (edit, kind) in edits {
        let (wanted, before) = (generation_free(&list(&lab)), repairs(&daemon));
        lab.nft(NODE, &edit).unwrap();
        let counted = |repairs: &BTreeMap<Repair, u64>| repairs[&kind] == before[&kind] + 1;
        daemon.until(&edit, |status| counted(&status.upkeep.repairs) && status.synced && status.swept).unwrap();
        let others = |repairs: &BTreeMap<Repair, u64>| {
            repairs.iter().filter(|(other, _)| **other != kind).map(|(_, count)| *count).sum::<u64>()
        };
        assert_eq!(others(&repairs(&daemon)), others(&before), "{edit}: {:?}", repairs(&daemon));
        assert!(generation_free(&list(&lab)) == wanted, "{edit}");
    }
}

/// The lines of a listing that no generation changes, whatever was made last.
fn generation_free(listing: &str) -> Vec<String> {
    let lines = listing.lines().filter(|line| !line.contains("ct mark") && !line.contains("elements = { 0x"));
    let mut lines: Vec<String> = lines.map(str::to_owned).collect();
    lines.sort();
    lines
}

/// A hundred times, under traffic: back within the limit, and no counter falls. A stolen processor is not the daemon's
/// delay: the hundred are played again, twice at most.
#[test]
fn flushed_tables_come_back_at_once() {
    let lab = lab();
    let daemon = start(&lab, shared());
    let traffic = Traffic::start(&lab, &[stream(A, 7000), stream(C, 7001)], PAUSE).unwrap();
    let in_time = (0..3).any(|_| {
        let mut latencies = flushes(&lab, &daemon);
        latencies.sort();
        println!("100 flushes: p50 {:.1?}, p99 {:.1?}, last {:.1?}", latencies[49], latencies[98], latencies[99]);
        latencies[98] <= patient(LIMIT)
    });
    assert!(in_time);
    let reports = traffic.stop(patient(GRACE)).unwrap();
    assert!(reports[0].sent > 0 && reports[0].lost() == 0, "what is allowed passes");
}

/// How long each of a hundred flushes was seen.
fn flushes(lab: &Lab, daemon: &InProcess) -> Vec<Duration> {
    let mut before = daemon.packets().unwrap();
    let flush = |_| {
        let repaired = repairs(daemon)[&Repair::Tables];
        let begun = Instant::now();
        lab.nft(NODE, "flush ruleset").unwrap();
        daemon.until("back", |status| status.upkeep.repairs[&Repair::Tables] > repaired && status.synced).unwrap();
        let latency = begun.elapsed();
        let after = daemon.packets().unwrap();
        let fallen = before.iter().find(|(name, count)| after.get(*name).is_none_or(|now| now < count));
        assert!(fallen.is_none(), "{fallen:?} of {after:?}");
        before = after;
        thread::sleep(Duration::from_millis(20));
        latency
    };
    (0..100).map(flush).collect()
}

/// Own commits are no edits, nor is what others do to their own tables.
#[test]
fn own_changes_and_other_tables_are_no_edits() {
    let lab = lab();
    let mut daemon = start(&lab, shared());
    let before = repairs(&daemon);
    for turn in 0..20 {
        lab.nft(NODE, "table inet other { chain c { ip saddr 192.0.2.1 accept; }; }\ndelete table inet other").unwrap();
        let app = if turn % 2 == 0 { "p2" } else { "p0" };
        daemon.enforce(&[from(app), deny_all("p0")]).unwrap();
    }
    assert_eq!(repairs(&daemon), before);
}

/// Somebody who writes back at once is waited for, but never long, and the operator reads who it is.
#[test]
fn a_fight_is_told_and_kept_at_a_distance() {
    let lab = lab();
    let daemon = start(&lab, shared());
    let slot = daemon.engine.status().slot;
    let (begun, before) = (Instant::now(), repairs(&daemon)[&Repair::Rules]);
    while begun.elapsed() < Duration::from_secs(4) {
        lab.nft(NODE, &format!("insert rule inet {slot} forward accept")).unwrap();
        thread::sleep(Duration::from_millis(50));
    }
    let status = daemon.engine.status();
    let repaired = status.upkeep.repairs[&Repair::Rules] - before;
    assert!((10..80).contains(&repaired), "{repaired} repairs");
    assert!(status.warnings.iter().any(|warning| warning.starts_with("nft (")), "{:?}", status.warnings);
    daemon.until("put right in the end", |status| status.synced).unwrap();
    thread::sleep(2 * LIMIT);
    assert!(!list(&lab).contains("\t\taccept\n"));
}
