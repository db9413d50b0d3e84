//! Install, use, uninstall: afterwards the ruleset, the bridges' flags and the files are as before.
//!
//! In: bridges whose filter was on or off before. Out: what is left. `FLATFELL_KILLS`: how often the daemon is killed at a
//! random moment while a bridge appears (20 without it).
#![allow(clippy::expect_used)]

use std::thread;
use std::time::{Duration, Instant};

use flatfell::engine::Cleanup;
use flatfell_integration::inprocess::{InProcess, defaults, deny_all, pod};
use flatfell_integration::node::FlatfellNode;
use flatfell_integration::{Lab, LabConfig, Place};
use flatfell_rules::sim::random::Random;

const A: Place = Place::pod(1, 0);
const NODE: Place = Place::Node(1);

fn lab() -> Lab {
    Lab::new(LabConfig { nodes: 1, pods: 2, ..LabConfig::default() }).expect("a lab")
}

fn ip(lab: &Lab, words: &str) {
    lab.batch(NODE, "ip", &format!("{words}\n")).expect("ip");
}

/// A bridge's own switches, IPv4 and IPv6.
fn flags(lab: &Lab, bridge: &str) -> [bool; 2] {
    let shown = lab.netns(NODE).expect("a node").feed("ip", &["-d", "link", "show", bridge], "").expect("a bridge");
    ["nf_call_iptables 1", "nf_call_ip6tables 1"].map(|flag| shown.contains(flag))
}

fn ruleset(lab: &Lab) -> String {
    lab.netns(NODE).expect("a node").feed("nft", &["list", "ruleset"], "").expect("nft")
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(5), "{what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Pods by bridge: `10.N.0.2` on the bridge that has `10.N.0.1`.
fn pods(numbers: &[u8]) -> String {
    let one = |number: &u8| {
        format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: p{number}, namespace: x, uid: p{number}, labels: {{app: \
             x}}}}, spec: {{nodeName: node1}}, status: {{phase: Running, podIP: 10.{number}.0.2}}}}\n"
        )
    };
    let policy = "---\n{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: d, namespace: x}, spec: \
                  {podSelector: {}}}\n";
    numbers.iter().map(one).collect::<String>() + policy
}

fn bridge(lab: &Lab, name: &str, number: u8, flags: [u8; 2]) {
    ip(lab, &format!("link add {name} type bridge nf_call_iptables {} nf_call_ip6tables {}", flags[0], flags[1]));
    ip(lab, &format!("address add 10.{number}.0.1/24 dev {name}"));
    // Of a bridge that is down the kernel tells nobody that its flags changed.
    ip(lab, &format!("link set {name} up"));
}

/// Bridges in each state before, then Flatfell and its cleanup, by `clean`.
fn round(clean: impl FnOnce(&mut FlatfellNode)) {
    let lab = lab();
    lab.nft(NODE, "table inet mine { chain c { type filter hook forward priority 0; counter; }; }").expect("nft");
    let before = [("b-off", 11, [0, 0]), ("b-on", 12, [1, 1]), ("b-four", 13, [1, 0]), ("b-six", 14, [0, 1])];
    before.iter().for_each(|(name, number, flags)| bridge(&lab, name, *number, *flags));
    let all = |lab: &Lab| before.map(|(name, ..)| flags(lab, name));
    let (rules, switches) = (ruleset(&lab), all(&lab));
    let mut node = FlatfellNode::start(&lab, 1, &[("all.yaml", &pods(&[11, 12, 13, 14]))]).expect("a daemon");
    assert_eq!(all(&lab), [[true; 2]; 4]);
    // Other names and other words of the table: it is asked again what it remembers.
    node.restart().expect("restarted");
    node.kill9().expect("killed");
    node.restart().expect("restarted");
    clean(&mut node);
    assert_eq!((ruleset(&lab), all(&lab)), (rules, switches));
    assert!(!node.run_dir().exists(), "{:?}", node.run_dir());
}

#[test]
fn everything_is_as_before() {
    round(|node| {
        let refused = node.command(&["cleanup"]).expect_err("a daemon runs").to_string();
        assert!(refused.contains("--stop") && refused.contains("already runs"), "{refused}");
        node.stop().expect("stopped");
        let said = node.command(&["cleanup"]).expect("cleaned up");
        for words in
            ["b-off nf_call_iptables", "b-off nf_call_ip6tables", "b-four nf_call_ip6tables", "b-six nf_call_iptables"]
        {
            assert!(said.contains(words), "{said}");
        }
        assert!(!said.contains("b-on"), "{said}");
    });
}

#[test]
fn cleanup_stops_the_daemon_where_it_may() {
    round(|node| {
        node.command(&["cleanup", "--stop"]).expect("cleaned up");
        node.wait_until_stopped().expect("stopped");
        let again = node.command(&["cleanup", "--stop"]).expect("nothing runs");
        assert!(again.contains("nothing to remove"), "{again}");
    });
}

#[test]
fn cleanup_after_a_kill_leaves_no_file() {
    round(|node| {
        node.kill9().expect("killed");
        assert!(node.run_dir().join("flatfell.sock").exists(), "left by the kill");
        node.command(&["cleanup"]).expect("cleaned up");
    });
}

/// The DaemonSet's uninstall mode: ready once clean, keeps daemons away, ends at SIGTERM.
#[test]
fn cleanup_stays_and_says_that_it_is_done() {
    use nix::sys::signal::{Signal, kill};
    round(|node| {
        node.stop().expect("stopped");
        let mut staying = node.spawn(&["cleanup", "--stay"]).expect("started");
        until("ready", || node.get("/readyz").is_ok_and(|body| body == "cleaned up\n"));
        assert_eq!(node.get("/healthz").expect("an answer"), "ok\n");
        let refused = node.command(&["cleanup"]).expect_err("it stays").to_string();
        assert!(refused.contains("already runs"), "{refused}");
        kill(nix::unistd::Pid::from_raw(i32::try_from(staying.id()).expect("an id")), Signal::SIGTERM).expect("told");
        assert!(staying.wait().expect("it ends").success());
    });
}

/// A bridge that is deleted takes what is remembered of it along: a later one of its name keeps the flags it has.
#[test]
fn a_later_bridge_of_the_same_name_is_another() {
    for running in [true, false] {
        let lab = lab();
        bridge(&lab, "br1", 11, [0, 0]);
        let mut node = FlatfellNode::start(&lab, 1, &[("all.yaml", &pods(&[11]))]).expect("a daemon");
        assert!(ruleset(&lab).contains("\"br1\" . 0x"), "remembered: {}", ruleset(&lab));
        if !running {
            node.stop().expect("stopped");
        }
        ip(&lab, "link delete br1");
        bridge(&lab, "br1", 11, [1, 1]);
        if !running {
            node.restart().expect("restarted");
        }
        until("forgotten", || !ruleset(&lab).contains("\"br1\" . 0x"));
        node.stop().expect("stopped");
        node.command(&["cleanup"]).expect("cleaned up");
        assert_eq!((flags(&lab, "br1"), ruleset(&lab)), ([true; 2], String::new()));
    }
}

/// The same while nobody but cleanup sees the other bridge.
#[test]
fn cleanup_leaves_a_later_bridge_alone() {
    let lab = lab();
    bridge(&lab, "br1", 11, [0, 0]);
    let mut node = FlatfellNode::start(&lab, 1, &[("all.yaml", &pods(&[11]))]).expect("a daemon");
    node.stop().expect("stopped");
    ip(&lab, "link delete br1");
    bridge(&lab, "br1", 11, [1, 1]);
    node.command(&["cleanup"]).expect("cleaned up");
    assert_eq!(flags(&lab, "br1"), [true; 2]);
}

/// The other tables take over, somebody flushes them: what was off is still known.
#[test]
fn what_was_off_outlives_takeover_and_flush() {
    let lab = lab();
    bridge(&lab, "b-on", 11, [1, 1]);
    let mut daemon = InProcess::start(&lab, 1, defaults(), &[pod(A), deny_all("p0")]).expect("an engine");
    let remembers = |table: &str| {
        let listed = ruleset(&lab);
        listed.contains(&format!("table inet {table}")) && listed.matches("\"cni0\" . 0x").count() == 2
    };
    assert!(remembers("flatfell-3a"), "{}", ruleset(&lab));
    daemon.engine.take_over();
    until("taken over", || daemon.engine.status().slot == "flatfell-3b" && remembers("flatfell-3b"));
    lab.nft(NODE, "flush ruleset").expect("nft");
    until("written again", || remembers("flatfell-3b"));
    daemon.sync().expect("synced");
    drop(daemon);
    // A process that another test is just starting still shares the lock's socket.
    let mut begun = None;
    until("the lock is free", || {
        begun = lab.netns(NODE).expect("a node").run(Cleanup::begin).expect("inside").ok();
        begun.is_some()
    });
    let cleanup = begun.expect("begun");
    let cleaned = lab.netns(NODE).expect("a node").run(|| cleanup.run()).expect("inside").expect("cleaned up");
    assert_eq!(cleaned.flags, ["cni0 nf_call_iptables", "cni0 nf_call_ip6tables"]);
    assert_eq!((flags(&lab, "cni0"), flags(&lab, "b-on")), ([false; 2], [true; 2]));
    assert_eq!(ruleset(&lab), "");
}

/// Killed at whatever moment while bridges appear: a flag that was off and is on is remembered.
#[test]
fn no_flag_is_on_that_nobody_remembers() {
    let kills: u64 = std::env::var("FLATFELL_KILLS").map_or(20, |count| count.parse().expect("a number"));
    let lab = lab();
    let mut node = FlatfellNode::start(&lab, 1, &[("all.yaml", &pods(&[11, 12, 13]))]).expect("a daemon");
    let mut random = Random::new(11);
    let mut switched = 0;
    for turn in 0..kills {
        for (number, name) in [(11, "br1"), (12, "br2"), (13, "br3")] {
            bridge(&lab, name, number, [0, 0]);
        }
        thread::sleep(Duration::from_micros(random.below(4_000)));
        node.kill9().expect("killed");
        let rules = ruleset(&lab);
        for name in ["br1", "br2", "br3"] {
            let on = flags(&lab, name);
            let remembered = rules.matches(&format!("\"{name}\" . 0x")).count();
            let count = on.iter().filter(|on| **on).count();
            assert!(count <= remembered, "turn {turn}: {name} {on:?}, remembered {remembered} times:\n{rules}");
            switched += count;
        }
        node.command(&["cleanup"]).expect("cleaned up");
        for name in ["br1", "br2", "br3"] {
            assert_eq!(flags(&lab, name), [false; 2], "turn {turn}");
            ip(&lab, &format!("link delete {name}"));
        }
        node.restart().expect("restarted");
    }
    println!("{kills} kills, {switched} flags were on");
}
