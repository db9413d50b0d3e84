//! What only a kernel shows whose parts are modules that nobody has loaded yet: run by `make kernel61`, in a guest.
//!
//! In: a kernel before 6.9 with modules, as Debian 12 has it. Out: what the daemon sees and says there. What always holds:
//! nothing is passed over; where the kernel is another one, the test fails.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use flatfell::engine::Repair;
use flatfell_integration::inprocess::{InProcess, defaults, deny_all, pod};
use flatfell_integration::patience::patient;
use flatfell_integration::{FlatfellNode, Lab, LabConfig, Place, Probe};

const A: Place = Place::pod(1, 0);
const B: Place = Place::pod(1, 1);
const NODE: Place = Place::Node(1);
const SOON: Duration = Duration::from_secs(2);

fn lab() -> Lab {
    Lab::new(LabConfig { nodes: 1, pods: 2, ..LabConfig::default() }).unwrap()
}

/// An engine that isolates B.
fn start(lab: &Lab) -> InProcess {
    InProcess::start(lab, 1, defaults(), &[pod(A), pod(B), deny_all("p1")]).unwrap()
}

fn run(lab: &Lab, program: &str, words: &str) {
    let words: Vec<&str> = words.split(' ').collect();
    lab.netns(NODE).unwrap().feed(program, &words, "").unwrap();
}

fn passes(lab: &Lab) -> Vec<bool> {
    let probes = B.addresses().map(|ip| Probe::tcp(A, ip, 80));
    lab.probes(&probes).unwrap().iter().map(|outcome| outcome.delivered).collect()
}

fn until(what: &str, limit: Duration, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < patient(limit), "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn not_ready_for(daemon: &InProcess, words: &str) -> bool {
    daemon.engine.status().not_ready.iter().any(|line| line.contains(words))
}

fn warned_of(daemon: &InProcess, words: &str) -> bool {
    daemon.engine.status().warnings.iter().any(|line| line.contains(words))
}

/// Without br_netfilter no policy holds within a bridge, and that is what the node says; once somebody loads it, policy
/// holds without a restart, and the node is ready.
#[test]
#[ignore = "loads modules: make kernel61"]
fn br_netfilter_is_missed_until_it_is_loaded() {
    assert!(!Path::new("/proc/sys/net/bridge").exists(), "br_netfilter is there already");
    let lab = lab();
    let daemon = start(&lab);
    until("missed", SOON, || not_ready_for(&daemon, "br_netfilter is not loaded"));
    assert_eq!(passes(&lab), [true; 2], "it is said because it is so");
    assert!(Command::new("modprobe").arg("br_netfilter").status().unwrap().success());
    until("ready", SOON, || daemon.engine.status().not_ready.is_empty());
    assert_eq!(passes(&lab), [false; 2]);
}

/// kube-proxy's interface, and virtual services of whomever, each for as long as they are there.
#[test]
#[ignore = "needs IPVS: make kernel61"]
fn ipvs_in_use_is_seen() {
    let lab = lab();
    let daemon = start(&lab);
    until("ready", SOON, || daemon.engine.status().not_ready.is_empty());
    run(&lab, "ip", "link add kube-ipvs0 type dummy");
    until("the interface", SOON, || not_ready_for(&daemon, "kube-proxy runs in IPVS mode (kube-ipvs0 exists)"));
    run(&lab, "ip", "link delete kube-ipvs0");
    until("no interface", SOON, || daemon.engine.status().not_ready.is_empty());
    run(&lab, "ipvsadm", "--add-service --tcp-service 10.96.0.1:80 --scheduler rr");
    run(
        &lab,
        "ipvsadm",
        &format!("--add-server --tcp-service 10.96.0.1:80 --real-server {}:80 --masquerading", B.v4()),
    );
    until("a service", SOON, || not_ready_for(&daemon, "IPVS has 1 virtual services"));
    run(&lab, "ipvsadm", "--clear");
    until("no service", SOON, || daemon.engine.status().not_ready.is_empty());
    assert_eq!(passes(&lab), [false; 2]);
}

/// A foreign flowtable is warned of beside policy that holds, and no longer once it is gone.
#[test]
#[ignore = "needs flowtables: make kernel61"]
fn a_foreign_flowtable_is_seen() {
    let lab = lab();
    let daemon = start(&lab);
    let table = "table inet fast { flowtable ft { hook ingress priority 0; devices = { cni0 }; }; chain c { type filter \
                 hook forward priority 0; ip protocol tcp flow add @ft; }; }";
    lab.nft(NODE, table).unwrap();
    let words = "flowtable ft of table inet fast";
    until("the flowtable", 10 * SOON, || warned_of(&daemon, words));
    assert!(daemon.engine.status().not_ready.is_empty());
    assert_eq!(passes(&lab), [false; 2]);
    lab.nft(NODE, "delete table inet fast").unwrap();
    until("no flowtable", 10 * SOON, || !warned_of(&daemon, words));
}

/// Tables of legacy iptables cannot be looked into, which is said.
#[test]
#[ignore = "needs legacy iptables: make kernel61"]
fn tables_of_legacy_iptables_are_seen() {
    let lab = lab();
    let daemon = start(&lab);
    run(&lab, "iptables-legacy", "-A FORWARD -j ACCEPT");
    run(&lab, "ip6tables-legacy", "-A FORWARD -j ACCEPT");
    until("IPv4", SOON, || warned_of(&daemon, "tables of legacy iptables exist (filter)"));
    until("IPv6", SOON, || warned_of(&daemon, "tables of legacy ip6tables exist (filter)"));
    assert_eq!(passes(&lab), [false; 2]);
}

/// Tables cannot be locked before Linux 6.9: asked to lock them, the daemon watches them, and nobody's flush lasts.
#[test]
#[ignore = "needs a kernel before 6.9: make kernel61"]
fn tables_that_cannot_be_locked_are_watched() {
    let lab = lab();
    let node = FlatfellNode::start(&lab, 1, &[]).unwrap();
    let listing = || lab.netns(NODE).unwrap().feed("nft", &["list", "ruleset"], "").unwrap();
    assert!(node.status().unwrap().ready && !listing().contains("flags owner"));
    drop(node);
    let daemon = start(&lab);
    assert!(!daemon.engine.status().locked, "this kernel locks tables");
    for _ in 0..5 {
        let before = repairs(&daemon);
        lab.nft(NODE, "flush ruleset").unwrap();
        until("counted", SOON, || repairs(&daemon) > before);
        daemon.until("back", |status| status.synced && status.swept).unwrap();
        assert_eq!(passes(&lab), [false; 2]);
    }
}

fn repairs(daemon: &InProcess) -> u64 {
    daemon.engine.status().upkeep.repairs[&Repair::Tables]
}
