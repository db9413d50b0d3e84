//! What packets could pass by policy with: seen, said, and put right where it is ours to put right.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use flatfell_integration::inprocess::{InProcess, defaults, deny_all, pod, pod_with};
use flatfell_integration::patience::patient;
use flatfell_integration::{FlatfellNode, Lab, LabConfig, Place, Probe};
use serde_json::Value;

const A: Place = Place::pod(1, 0);
const B: Place = Place::pod(1, 1);
const NODE: Place = Place::Node(1);

fn lab() -> Lab {
    Lab::new(LabConfig { nodes: 1, pods: 3, ..LabConfig::default() }).unwrap()
}

fn start(lab: &Lab, pods: &[Value]) -> InProcess {
    InProcess::start(lab, 1, defaults(), &[pods, &[deny_all("p1")]].concat()).unwrap()
}

/// A bridge's own switches, IPv4 and IPv6.
fn flags(lab: &Lab, bridge: &str) -> [bool; 2] {
    let shown = lab.netns(NODE).unwrap().feed("ip", &["-d", "link", "show", bridge], "").unwrap();
    ["nf_call_iptables 1", "nf_call_ip6tables 1"].map(|flag| shown.contains(flag))
}

fn ip(lab: &Lab, words: &str) {
    lab.batch(NODE, "ip", &format!("{words}\n")).unwrap();
}

fn passes(lab: &Lab) -> Vec<bool> {
    let probes = B.addresses().map(|ip| Probe::tcp(A, ip, 80));
    lab.probes(&probes).unwrap().iter().map(|outcome| outcome.delivered).collect()
}

/// How long it takes until it holds; at most a second.
fn until(what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < patient(Duration::from_secs(1)), "not within a second: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
    start.elapsed()
}

/// The filter of a pod bridge is switched on, and of no other; IPv4 only where pods have it, IPv6 always, since every pod
/// speaks link-local.
#[test]
fn the_filter_is_switched_on_for_pod_bridges_only() {
    let lab = lab();
    ip(&lab, "link add br9 type bridge");
    ip(&lab, "address add 172.31.9.1/24 dev br9");
    ip(&lab, "link set br9 up");
    let six = |place: Place| pod_with(place, &[place.v6().into()]);
    let mut daemon = start(&lab, &[]);
    assert_eq!((flags(&lab, "cni0"), flags(&lab, "br9")), ([false; 2], [false; 2]), "no pods");
    daemon.enforce(&[six(A), six(B)]).unwrap();
    assert_eq!(flags(&lab, "cni0"), [false, true], "IPv6 only");
    daemon.enforce(&[pod(A)]).unwrap();
    assert_eq!((flags(&lab, "cni0"), flags(&lab, "br9")), ([true; 2], [false; 2]));
    drop(daemon);
}

/// cni0 is born with a node's first pod, after the daemon: it gets its switches then, and its ports their guard.
#[test]
fn a_bridge_that_is_born_later_is_switched_on() {
    let lab = lab();
    let ports = ["veth0", "veth1", "veth2"];
    ip(&lab, "link delete cni0");
    let daemon = start(&lab, &[pod(A), pod(B), pod(Place::pod(1, 2))]);
    let rebuilt = "link add cni0 address 02:ff:00:01:00:01 type bridge\naddress add 10.244.1.1/24 dev cni0\naddress add \
                   fd00:10:244:1::1/64 dev cni0 nodad\nlink set cni0 up\n";
    lab.batch(NODE, "ip", rebuilt).unwrap();
    for port in ports {
        ip(&lab, &format!("link set {port} master cni0 up"));
    }
    until("switched on", || flags(&lab, "cni0") == [true; 2]);
    until("guarded", || {
        let listing = lab.netns(NODE).unwrap().feed("nft", &["list", "table", "bridge", "flatfell-3a"], "").unwrap();
        ports.iter().all(|port| listing.contains(&format!("\"{port}\"")))
    });
    daemon.until("ready", |status| status.not_ready.is_empty()).unwrap();
    until("the bridge forwards", || passes_to_open_pod(&lab));
    assert_eq!(passes(&lab), [false; 2]);
}

fn passes_to_open_pod(lab: &Lab) -> bool {
    lab.probe(&Probe::tcp(A, Place::pod(1, 2).v4(), 80)).unwrap().delivered
}

/// Somebody switches the filter off: it is on again within a second (in fact at once), and policy holds.
#[test]
fn a_filter_that_is_switched_off_is_switched_on_again() {
    let lab = lab();
    let daemon = start(&lab, &[pod(A), pod(B)]);
    for flag in ["nf_call_iptables", "nf_call_ip6tables"] {
        for _ in 0..5 {
            ip(&lab, &format!("link set cni0 type bridge {flag} 0"));
            let took = until("switched on again", || flags(&lab, "cni0") == [true; 2]);
            println!("{flag} healed in {took:?}");
            assert_eq!(passes(&lab), [false; 2]);
        }
    }
    daemon.until("ready", |status| status.not_ready.is_empty()).unwrap();
}

/// These rules of somebody else are warned of, in these words; policy holds beside them.
fn warned_of(rules: &str, words: &str) {
    let lab = lab();
    lab.nft(NODE, rules).unwrap();
    let daemon = start(&lab, &[pod(A), pod(B)]);
    daemon.until(words, |status| status.warnings.iter().any(|line| line.contains(words))).unwrap();
    daemon.until("ready", |status| status.not_ready.is_empty()).unwrap();
    assert_eq!(passes(&lab), [false; 2]);
}

/// kube-proxy in IPVS mode: Service traffic does not pass forward. The node is not ready while its interface is there.
#[test]
fn ipvs_is_seen_while_the_daemon_runs() {
    let lab = lab();
    let daemon = start(&lab, &[pod(A), pod(B)]);
    let seen = || daemon.engine.status().not_ready.iter().any(|line| line.contains("IPVS"));
    // The interface's name is what tells; kernels of tests have no dummy devices.
    ip(&lab, "link add kube-ipvs0 type bridge");
    until("seen", seen);
    ip(&lab, "link delete kube-ipvs0");
    until("gone", || !seen());
}

/// Chains and tables that other policy engines left behind keep deciding: warned of, each by name.
#[test]
fn leftovers_of_other_engines_are_warned_of() {
    for (words, rules) in [
        (
            "chains of Calico in table ip filter (one is cali-FORWARD)",
            "table ip filter { chain cali-FORWARD { accept; }; }",
        ),
        (
            "chains of kube-router in table inet x (one is KUBE-POD-FW-X)",
            "table inet x { chain KUBE-POD-FW-X { drop; }; }",
        ),
        ("chains of Weave Net", "table ip filter { chain WEAVE-NPC { accept; }; }"),
        ("table inet kube-network-policies is of kube-network-policies", "table inet kube-network-policies { }"),
        ("of ct mark", "table inet y { chain c { type filter hook output priority 0; ct mark set 0x01000000; }; }"),
    ] {
        warned_of(rules, words);
    }
}

/// What another engine left is a metric and a note of a node that is ready, and is logged once.
#[test]
fn leftovers_are_noted_on_a_ready_node() {
    let lab = lab();
    lab.nft(NODE, "table ip filter { chain KUBE-ROUTER-FORWARD { accept; }; chain cali-FORWARD { accept; }; }")
        .unwrap();
    lab.nft(NODE, "table inet kube-network-policies { }").unwrap();
    let node = FlatfellNode::start(&lab, 1, &[]).unwrap();
    let command = "iptables-save | grep -v -E 'KUBE-(ROUTER|POD-FW|NWPLCY)' | iptables-restore";
    until("noted", || {
        let body = node.get("/readyz").unwrap();
        body.starts_with("ready\nnotes:\n") && body.contains(command)
    });
    let metrics = node.metrics().unwrap();
    for engine in ["kube-router", "calico", "kube-network-policies"] {
        let series = format!("flatfell_foreign_engine_info{{engine=\"{engine}\"}} 1\n");
        assert!(metrics.contains(&series), "{series}{metrics}");
    }
    // Some looks later.
    std::thread::sleep(Duration::from_millis(2500));
    let log = node.log();
    assert_eq!(log.matches("chains of kube-router in table ip filter").count(), 1, "{log}");
    ip(&lab, "link add kube-ipvs0 type bridge");
    until("not ready", || node.get("/readyz").unwrap().starts_with("not ready:\n- kube-proxy runs in IPVS mode"));
    assert!(node.metrics().unwrap().contains("flatfell_foreign_engine_info{engine=\"ipvs\"} 1\n"));
}

/// A foreign flowtable: flows it takes up skip forward. Warned of.
#[test]
fn a_foreign_flowtable_is_warned_of() {
    let flowtable = "table inet fast { flowtable ft { hook ingress priority 0; devices = { cni0 }; }; }";
    if let Err(error) = lab().nft(NODE, flowtable) {
        println!("skipped: this kernel has no flowtables ({error})");
        return;
    }
    warned_of(flowtable, "flowtable ft of table inet fast");
}

/// One daemon a network namespace; the lock goes with its holder.
#[test]
fn a_second_daemon_refuses_to_start() {
    let lab = lab();
    let binary = std::env::current_exe().unwrap().parent().unwrap().with_file_name("flatfell");
    assert!(binary.exists(), "{} is missing: cargo build --workspace --bins", binary.display());
    let manifests = tempfile::tempdir().unwrap();
    let daemon = start(&lab, &[pod(A), pod(B)]);
    let run = |words: &[&str]| {
        let mut command = lab.netns(NODE).unwrap().command(binary.to_str().unwrap());
        command.args(words).output().unwrap()
    };
    let second = run(&["run", "--node", "node1", "--manifests", manifests.path().to_str().unwrap()]);
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && said.contains("another flatfell already runs"), "{said}");
    let cleanup = run(&["cleanup"]);
    let said = String::from_utf8_lossy(&cleanup.stderr).into_owned();
    assert!(!cleanup.status.success() && said.contains("another flatfell already runs"), "{said}");
    assert_eq!(passes(&lab), [false; 2]);
    drop(daemon);
}
