//! The flow log with real packets: each denied and audited packet has its record, with names, or is counted as lost.
//!
//! In: a node with policy, probes, floods. Out: what `flatfell flows`, the file, `flatfell status` and the metrics say. What
//! always holds: what policy dropped is taken from the counters of pods, which know nothing of the log.
#![allow(clippy::expect_used)]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use flatfell::flows::nflog::Nflog;
use flatfell::flows::{Peer, Record, Verdict, Way};
use flatfell_integration::scene::{namespace, pod, pod_with, policy};
use flatfell_integration::{FlatfellNode, Lab, LabConfig, Place, Probe, Protocol};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Isolated for ingress by two policies.
const DB: Place = Place::pod(1, 0);
const WEB: Place = Place::pod(1, 1);
/// Isolated for egress.
const LOCKED: Place = Place::pod(1, 2);
/// Audited for ingress.
const TRIED: Place = Place::pod(1, 3);
const REMOTE: Place = Place::pod(2, 0);

const WITHIN: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(50);

fn start(flags: &[&str]) -> (Lab, FlatfellNode) {
    let lab = Lab::new(LabConfig { nodes: 2, pods: 4, ..LabConfig::default() }).expect("a lab");
    let objects = [
        namespace("x", ""),
        namespace("y", ""),
        pod("x/db", DB, "app: db"),
        pod("x/web", WEB, "app: web"),
        pod("x/locked", LOCKED, "app: locked"),
        pod("x/tried", TRIED, "app: tried"),
        pod("y/remote", REMOTE, "app: remote"),
        pod_with("y/agent", Place::Node(2), "app: agent", "hostNetwork: true", &Place::Node(2).addresses()),
        policy("x/db-1", "podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]"),
        policy("x/db-2", "podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]"),
        policy("x/locked", "podSelector: {matchLabels: {app: locked}}, policyTypes: [Egress]"),
        policy("x/trial", "podSelector: {matchLabels: {app: tried}}, policyTypes: [Ingress]")
            .replace("{name: trial,", "{name: trial, annotations: {flatfell.io/mode: audit},"),
    ];
    let node = FlatfellNode::start_with(&lab, 1, &[("all.yaml", &objects.concat())], flags).expect("a daemon");
    (lab, node)
}

fn parsed(text: &str) -> Vec<Record> {
    text.lines().map(|line| serde_json::from_str(line).expect("a record")).collect()
}

fn flows(node: &FlatfellNode, flags: &[&str]) -> Vec<Record> {
    parsed(&node.command(&[&["flows", "--output", "json"], flags].concat()).expect("flows"))
}

/// Waits for a record that fits.
fn find(node: &FlatfellNode, what: &str, fits: impl Fn(&Record) -> bool) -> Record {
    let end = Instant::now() + WITHIN;
    loop {
        let all = flows(node, &[]);
        if let Some(found) = all.iter().find(|record| fits(record)) {
            return found.clone();
        }
        assert!(Instant::now() < end, "no record: {what}; there are {all:#?}\n{}", node.log());
        thread::sleep(PAUSE);
    }
}

/// The sum of a metric's series that have all these words.
fn metric(metrics: &str, name: &str, words: &[&str]) -> u64 {
    let series = metrics.lines().filter(|line| line.starts_with(&format!("{name}{{")));
    let fitting = series.filter(|line| words.iter().all(|word| line.contains(word)));
    fitting.map(|line| line.rsplit(' ').next().and_then(|value| value.parse::<u64>().ok()).expect("a number")).sum()
}

/// What policy dropped or would have dropped, and what the log says became of it.
fn sums(node: &FlatfellNode) -> (u64, u64, String) {
    let metrics = node.metrics().expect("metrics");
    let of = |name| metric(&metrics, name, &[]);
    let decided = of("flatfell_dropped_packets_total") + of("flatfell_would_drop_packets_total");
    let logged = of("flatfell_flow_log_records_total") + of("flatfell_flow_log_lost_total");
    let lines: Vec<&str> = metrics.lines().filter(|line| line.starts_with("flatfell_flow_log")).collect();
    (decided, logged, lines.join("\n"))
}

/// Waits until records and losses add up to at least this many denied packets, exactly.
fn adds_up(node: &FlatfellNode, at_least: u64) -> String {
    let end = Instant::now() + WITHIN;
    loop {
        let (decided, logged, lines) = sums(node);
        assert!(logged <= decided, "more than there was: {logged} of {decided}\n{lines}");
        if decided >= at_least && decided == logged {
            println!("{decided} denied:\n{lines}");
            return lines;
        }
        assert!(Instant::now() < end, "{logged} of {decided} (at least {at_least})\n{lines}\n{}", node.log());
        thread::sleep(Duration::from_millis(500));
    }
}

/// Sends so many datagrams as fast as it goes.
fn flood(lab: &Lab, from: Place, to: Place, packets: u32) {
    let send = || {
        let socket = UdpSocket::bind((from.v4(), 0)).expect("a socket");
        (0..packets).for_each(|_| {
            // A queue may be full.
            let _ = socket.send_to(b"flood", (to.v4(), 9));
        });
    };
    lab.netns(from).expect("a place").run(send).expect("sent");
}

fn check(
    node: &FlatfellNode,
    probe: &Probe,
    (verdict, way): (Verdict, Way),
    (pod, policies): (&str, &[&str]),
) -> Record {
    let word = match probe.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
        Protocol::Icmp if probe.to.is_ipv4() => "icmp",
        _ => "icmpv6",
    };
    let port = (probe.port > 0).then_some(probe.port);
    let fits = |record: &Record| {
        record.protocol == word && record.destination.ip == probe.to && record.destination.port == port
    };
    let record = find(node, &format!("{probe:?}"), fits);
    assert_eq!((record.verdict, record.direction, record.node.as_str()), (verdict, way, "node1"), "{record:?}");
    assert_eq!(record.pod.as_ref().map(ToString::to_string).as_deref(), Some(pod), "{record:?}");
    assert_eq!(record.policies, policies, "{record:?}");
    assert_eq!(record.source.ip, probe.from.source_towards(probe.to), "{record:?}");
    assert_eq!(record.source.port.is_some(), port.is_some(), "{record:?}");
    assert_eq!(record.icmp.is_some(), probe.protocol == Protocol::Icmp, "{record:?}");
    assert!(record.bytes >= 28 && record.time.ends_with('Z'), "{record:?}");
    record
}

#[test]
fn each_kind_of_packet_has_its_record() {
    let (lab, node) = start(&[]);
    let mut sent = 0;
    for to in DB.addresses() {
        for probe in
            [Probe::tcp(WEB, to, 5432), Probe::udp(WEB, to, 53), Probe::sctp(WEB, to, 99), Probe::icmp(WEB, to)]
        {
            assert!(!lab.probe(&probe).expect("sent").delivered, "{probe:?}");
            sent += 1;
            let record = check(&node, &probe, (Verdict::Denied, Way::Ingress), ("x/db", &["x/db-1", "x/db-2"]));
            let own = WEB.source_towards(to);
            assert_eq!(record.peer, Peer::Pod { namespace: "x".into(), name: "web".into(), ip: own }, "{record:?}");
        }
        let probe = Probe::tcp(REMOTE, to, 7);
        assert!(!lab.probe(&probe).expect("sent").delivered);
        sent += 1;
        let record = check(&node, &probe, (Verdict::Denied, Way::Ingress), ("x/db", &["x/db-1", "x/db-2"]));
        assert!(matches!(&record.peer, Peer::Pod { namespace, name, .. } if namespace == "y" && name == "remote"));
    }
    for to in TRIED.addresses() {
        let probe = Probe::udp(WEB, to, 80);
        assert!(lab.probe(&probe).expect("sent").delivered, "an audited policy drops nothing");
        sent += 1;
        check(&node, &probe, (Verdict::Audited, Way::Ingress), ("x/tried", &["x/trial"]));
    }
    adds_up(&node, sent);
}

#[test]
fn the_other_end_has_its_name() {
    let (lab, node) = start(&[]);
    let own_bridge: [IpAddr; 2] =
        ["10.244.1.1", "fd00:10:244:1::1"].map(|address| address.parse().expect("an address"));
    let node_named = |name: &str, ip| Peer::Node { name: name.to_owned(), ip };
    for (family, to) in REMOTE.addresses().into_iter().enumerate() {
        let (far, outside) = (Place::Node(2).addresses()[family], Place::Outside.addresses()[family]);
        let expected = [
            (to, Peer::Pod { namespace: "y".into(), name: "remote".into(), ip: to }),
            (far, node_named("node2", far)),
            (own_bridge[family], node_named("node1", own_bridge[family])),
            (outside, Peer::Address { ip: outside }),
        ];
        for (to, peer) in expected {
            let probe = Probe::tcp(LOCKED, to, 443);
            assert!(!lab.probe(&probe).expect("sent").delivered, "{probe:?}");
            let record = check(&node, &probe, (Verdict::Denied, Way::Egress), ("x/locked", &["x/locked"]));
            assert_eq!(record.peer, peer);
        }
    }
    let report = node.status().expect("a status");
    let outside = Place::Outside.v4().to_string();
    let denial = report.denials.iter().find(|denial| denial.peer == outside).expect("a denial in the status");
    assert_eq!((denial.pod.as_str(), denial.service.as_str()), ("x/locked", "tcp/443"));
    assert_eq!((denial.direction, denial.packets), (Way::Egress, 1));
    let table = node.command(&["status"]).expect("a table");
    assert!(table.contains("Denied most") && table.contains(&outside), "{table}");
    let said = "egress of pod x/locked to node node2 tcp/443 denied (policy x/locked)";
    assert!(node.log().contains(said), "{}", node.log());
}

#[test]
fn filters_take_what_fits() {
    let (lab, node) = start(&[]);
    lab.probe(&Probe::udp(WEB, DB.v4(), 1)).expect("sent");
    lab.probe(&Probe::udp(LOCKED, REMOTE.v4(), 2)).expect("sent");
    lab.probe(&Probe::udp(WEB, TRIED.v4(), 3)).expect("sent");
    find(&node, "the last one", |record| record.destination.port == Some(3));
    let ports = |flags: &[&str]| -> BTreeSet<u16> {
        flows(&node, flags).iter().filter_map(|record| record.destination.port).collect()
    };
    assert_eq!(ports(&[]), [1, 2, 3].into());
    assert_eq!(ports(&["--namespace", "x"]), [1, 2, 3].into());
    assert_eq!(ports(&["--namespace", "y"]), [].into());
    assert_eq!(ports(&["--pod", "db"]), [1].into());
    assert_eq!(ports(&["--pod", "x/locked"]), [2].into());
    assert_eq!(ports(&["--policy", "db-2"]), [1].into());
    assert_eq!(ports(&["--verdict", "audited"]), [3].into());
    assert_eq!(ports(&["--verdict", "denied", "--pod", "tried"]), [].into());
    let table = node.command(&["flows", "--pod", "db"]).expect("a table");
    assert!(table.starts_with("TIME") && table.contains("x/db") && table.lines().count() == 2, "{table}");
}

/// A command that goes on until it is killed.
struct Following(Child);

impl Drop for Following {
    fn drop(&mut self) {
        self.0.kill().and_then(|()| self.0.wait()).ok();
    }
}

#[test]
fn following_shows_what_was_and_what_comes() {
    let (lab, node) = start(&[]);
    lab.probe(&Probe::udp(WEB, DB.v4(), 1)).expect("sent");
    find(&node, "the first one", |record| record.destination.port == Some(1));
    let own = std::env::current_exe().expect("the test's own path");
    let binary = own.ancestors().nth(2).expect("a directory").join("flatfell");
    let mut command = Command::new(binary);
    command.args(["flows", "--follow", "--output", "json", "--pod", "x/db"]).env("FLATFELL_RUN_DIR", node.run_dir());
    let mut following = Following(command.stdout(Stdio::piped()).spawn().expect("a command"));
    let mut lines = BufReader::new(following.0.stdout.take().expect("piped")).lines();
    let mut next = || parsed(&lines.next().expect("a line").expect("text")).remove(0).destination.port;
    assert_eq!(next(), Some(1));
    lab.probe(&Probe::udp(LOCKED, REMOTE.v4(), 2)).expect("sent");
    lab.probe(&Probe::udp(WEB, DB.v4(), 3)).expect("sent");
    assert_eq!(next(), Some(3), "and nothing of another pod");
}

#[test]
fn a_file_is_rotated_and_closed_to_others() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("flows.json");
    let log = path.to_string_lossy().into_owned();
    let flags = ["--flow-log", &log, "--flow-log-max-bytes", "65536", "--flow-log-files", "3"];
    let more = ["--flow-log-rate", "2000", "--flow-log-pod-rate", "2000"];
    let (lab, mut node) = start(&[&flags[..], &more].concat());
    flood(&lab, WEB, DB, 4_000);
    let lines = adds_up(&node, 4_000);
    let records = metric(&lines, "flatfell_flow_log_records_total", &["denied"]);
    assert!(records >= 1_000, "{lines}");
    node.stop().expect("stopped");
    let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).map(|text| parsed(&text).len());
    let counts = ["flows.json.2", "flows.json.1", "flows.json"].map(|name| read(name).expect("a file"));
    assert!(counts[0] > 50 && counts[1] > 50 && read("flows.json.3").is_err(), "{counts:?}");
    let metadata = std::fs::metadata(&path).expect("a file");
    assert!(metadata.mode() & 0o777 == 0o600 && metadata.len() <= 65_536, "{metadata:?}");
}

#[test]
fn records_and_losses_add_up_in_a_flood() {
    let (lab, node) = start(&["--flow-log", "/dev/full"]);
    flood(&lab, WEB, DB, 50_000);
    flood(&lab, LOCKED, REMOTE, 50_000);
    flood(&lab, WEB, TRIED, 10);
    // What a queue had no room for policy did not see.
    let lines = adds_up(&node, 90_000);
    let lost = |reason: &str| metric(&lines, "flatfell_flow_log_lost_total", &[reason]);
    assert!(lost("\"rate\"") > 50_000 && lost("\"pod\"") > 100 && lost("\"writer\"") > 100, "{lines}");
    assert_eq!((lost("\"socket\""), lost("\"unreadable\"")), (0, 0), "{lines}");
    assert!(node.log().contains("the flow log cannot be written"), "{}", node.log());
}

/// A reader that has no processor loses packets; the last ones too, behind which nothing comes.
#[test]
fn what_the_socket_loses_is_counted() {
    let (lab, node) = start(&["--flow-log-rate", "1000000", "--flow-log-pod-rate", "1000000"]);
    flood(&lab, WEB, DB, 1_000);
    adds_up(&node, 900);
    let process = Pid::from_raw(i32::try_from(node.process_id().expect("it runs")).expect("an id"));
    kill(process, Signal::SIGSTOP).expect("stopped");
    flood(&lab, WEB, DB, 200_000);
    kill(process, Signal::SIGCONT).expect("goes on");
    let lines = adds_up(&node, 150_000);
    assert!(metric(&lines, "flatfell_flow_log_lost_total", &["\"socket\""]) > 10_000, "{lines}");
    flood(&lab, WEB, DB, 1_000);
    adds_up(&node, 151_000);
}

/// While no daemon runs nothing is logged, and what was before does not count for the next one.
#[test]
fn a_restart_begins_anew() {
    let (lab, mut node) = start(&[]);
    flood(&lab, WEB, DB, 100);
    adds_up(&node, 100);
    node.stop().expect("stopped");
    flood(&lab, WEB, DB, 100);
    node.restart().expect("started");
    thread::sleep(Duration::from_secs(5));
    let (before, _, lines) = sums(&node);
    let lost = metric(&lines, "flatfell_flow_log_lost_total", &["\"socket\""]);
    assert!((100..=200).contains(&before) && lost == 0, "{before}\n{lines}");
    lab.probe(&Probe::udp(WEB, DB.v4(), 1)).expect("sent");
    find(&node, "one of the new life", |record| record.destination.port == Some(1));
}

/// Another program has the group: policy holds, and the status says why nothing is logged.
#[test]
fn a_group_that_is_taken_is_told() {
    let lab = Lab::new(LabConfig { nodes: 1, pods: 2, ..LabConfig::default() }).expect("a lab");
    let space = lab.netns(Place::Node(1)).expect("a node");
    let (bound, is_bound) = channel();
    let (release, released) = channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            let hold = move || {
                let taken = Nflog::open(9469);
                bound.send(taken.is_ok()).expect("the test waits");
                let _ = released.recv();
            };
            space.run(hold).expect("a node");
        });
        assert!(is_bound.recv().expect("tried"));
        group_is_taken(&lab, release);
    });
}

/// `release` is dropped to free the group.
fn group_is_taken(lab: &Lab, release: Sender<()>) {
    let objects = [
        namespace("x", ""),
        pod("x/db", DB, "app: db"),
        pod("x/web", WEB, "app: web"),
        policy("x/db", "podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]"),
    ];
    let node = FlatfellNode::start(lab, 1, &[("all.yaml", &objects.concat())]).expect("a daemon");
    let ready = node.get("/readyz").expect("an answer");
    assert!(ready.starts_with("ready\n") && ready.contains("NFLOG group 9469"), "{ready}");
    assert!(!lab.probe(&Probe::udp(WEB, DB.v4(), 1)).expect("sent").delivered);
    drop(release);
    let end = Instant::now() + WITHIN;
    while node.get("/readyz").expect("an answer").contains("NFLOG") {
        assert!(Instant::now() < end, "{}", node.log());
        thread::sleep(PAUSE);
    }
    lab.probe(&Probe::udp(WEB, DB.v4(), 2)).expect("sent");
    find(&node, "once it is free", |record| record.destination.port == Some(2));
}

/// Without rules that log there is no log, and policy is the same.
#[test]
fn no_rate_means_no_log() {
    let (lab, node) = start(&["--flow-log-rate", "0"]);
    flood(&lab, WEB, DB, 100);
    let rules = lab.netns(Place::Node(1)).expect("a node").feed("nft", &["list", "ruleset"], "").expect("nft");
    assert!(!rules.contains(" log ") && rules.contains("denied-ingress"), "{rules}");
    let (decided, logged, _) = sums(&node);
    assert!(decided >= 90 && logged == 0, "{decided} {logged}");
    assert_eq!(flows(&node, &[]), []);
}
