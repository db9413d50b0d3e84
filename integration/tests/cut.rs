//! Connections that run when policy begins to forbid them: they stop within 100 ms of the write of the file, those that
//! stay allowed lose nothing, and new ones come through when policy allows them again.
//!
//! In: a daemon that follows a directory, flows of all kinds, one file that changes. Out: the time from the write to the last
//! packet delivered, of each flow. `FLATFELL_CUT_MS` gives a busy machine more than 100 ms.
#![allow(clippy::expect_used)]

mod world;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use flatfell::kernel::conntrack::{Conntrack, FlowEntry};
use flatfell_integration::node::FlatfellNode;
use flatfell_integration::{Flow, Lab, LabConfig, Place, Service, Stream, Traffic};
use flatfell_rules::mark::{DENIED_MARK, GENERATION_MASK, Generation};
use serde_json::{Value, json};
use world::{World, app, namespace, peer, pod, policy, put, without_pod, without_policy};

const PAUSE: Duration = Duration::from_millis(1);
const BEFORE: Duration = Duration::from_millis(100);
const BEHIND: Duration = Duration::from_millis(400);
const GRACE: Duration = Duration::from_millis(200);

fn limit() -> Duration {
    Duration::from_millis(std::env::var("FLATFELL_CUT_MS").map_or(100, |text| text.parse().expect("milliseconds")))
}

/// A TCP connection in which one side writes and the other reads.
struct Talk {
    heard: Arc<Mutex<Instant>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Talk {
    fn start(lab: &Lab, from: Place, to: Place, port: u16, server_speaks: bool) -> Self {
        let listener =
            lab.netns(to).expect("a place").run(|| TcpListener::bind((to.v4(), port))).expect("a place").expect("bind");
        let client = lab
            .netns(from)
            .expect("a place")
            .run(|| TcpStream::connect((to.v4(), port)))
            .expect("a place")
            .expect("connect");
        let (server, _) = listener.accept().expect("accept");
        let (mut speaker, mut hearer) = if server_speaks { (server, client) } else { (client, server) };
        speaker.set_nonblocking(true).expect("a socket");
        hearer.set_read_timeout(Some(Duration::from_millis(20))).expect("a socket");
        let (heard, stop) = (Arc::new(Mutex::new(Instant::now())), Arc::<AtomicBool>::default());
        let (until, also) = (Arc::clone(&stop), Arc::clone(&stop));
        let speaking = thread::spawn(move || {
            while !until.load(Ordering::SeqCst) {
                speaker.write_all(&[1]).ok();
                thread::sleep(PAUSE);
            }
        });
        let last = Arc::clone(&heard);
        let hearing = thread::spawn(move || {
            let mut buffer = [0; 4096];
            while !also.load(Ordering::SeqCst) {
                if matches!(hearer.read(&mut buffer), Ok(1..)) {
                    *last.lock().expect("a time") = Instant::now();
                }
            }
        });
        Self { heard, stop, threads: vec![speaking, hearing] }
    }

    fn last(&self) -> Instant {
        *self.heard.lock().expect("a time")
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.threads.drain(..).for_each(|thread| thread.join().expect("a thread"));
    }
}

const A: Place = Place::pod(1, 0);
const B: Place = Place::pod(1, 1);
const C: Place = Place::pod(1, 2);
const FAR: Place = Place::pod(2, 0);

fn remote() -> Value {
    let mut far = app("far", 0, "b");
    far["spec"]["nodeName"] = json!("node2");
    far["status"]["podIPs"] = json!([{"ip": FAR.v4().to_string()}, {"ip": FAR.v6().to_string()}]);
    far
}

fn elsewhere(team: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "y", "labels": {"team": team}}})
}

fn with_port(port: u16) -> Value {
    let mut a = app("a", 0, "a");
    a["spec"]["containers"] =
        json!([{"name": "a", "ports": [{"name": "web", "containerPort": port, "protocol": "UDP"}]}]);
    a
}

/// UDP of both kinds to both families.
fn udp(from: Place, to: Place, port: u16) -> Vec<Stream> {
    let each = |flow| to.addresses().map(|address| Stream::new(from, to, address, port, flow));
    [Flow::Steady, Flow::Pushed].into_iter().flat_map(each).collect()
}

/// A file as it is and as it becomes, and what that cuts and spares.
struct Case {
    title: &'static str,
    before: Vec<(&'static str, Value)>,
    /// The file that changes; `Null` removes it.
    change: (&'static str, Value),
    cut: Vec<Stream>,
    talks: Vec<(Place, Place)>,
    spared: Vec<Stream>,
}

fn cases() -> Vec<Case> {
    let from = |peers: Value| policy("a", "a", "ingress", json!([{"from": peers}]));
    let block = |place: Place| json!([{"ipBlock": {"cidr": format!("{}/32", place.v4())}}, {"ipBlock": {"cidr": format!("{}/128", place.v6())}}]);
    let team = json!({"namespaceSelector": {"matchLabels": {"team": "y"}}});
    let mut b_elsewhere = app("b", 1, "b");
    b_elsewhere["metadata"]["namespace"] = json!("y");
    let web = policy("a", "a", "ingress", json!([{"ports": [{"port": "web", "protocol": "UDP"}]}]));
    let case = |title, before, change, cut, spared| Case { title, before, change, cut, talks: Vec::new(), spared };
    vec![
        Case {
            title: "rule edit",
            before: vec![("a", from(json!([peer("b"), peer("c")])))],
            change: ("a", from(json!([peer("c")]))),
            cut: [udp(B, A, 80), udp(FAR, A, 80)].concat(),
            talks: vec![(B, A), (FAR, A)],
            spared: udp(C, A, 80),
        },
        case("first isolation", vec![], ("a", from(json!([peer("c")]))), udp(B, A, 80), udp(C, A, 80)),
        case(
            "peer relabelled",
            vec![("a", from(json!([peer("b"), peer("c")])))],
            ("b", app("b", 1, "z")),
            udp(B, A, 80),
            udp(C, A, 80),
        ),
        case(
            "namespace relabelled",
            vec![("b", b_elsewhere), ("y", elsewhere("y")), ("a", from(json!([team, peer("c")])))],
            ("y", elsewhere("z")),
            udp(B, A, 80),
            udp(C, A, 80),
        ),
        case(
            "policy deleted",
            vec![
                ("a", from(json!([peer("c")]))),
                ("more", policy("more", "a", "ingress", json!([{"from": [peer("b")]}]))),
            ],
            ("more", Value::Null),
            udp(B, A, 80),
            udp(C, A, 80),
        ),
        case(
            "ipBlock changed",
            vec![("a", from(block(B)))],
            ("a", from(block(C))),
            [udp(B, A, 80), udp(FAR, A, 80)].concat()[..4].to_vec(),
            vec![],
        ),
        case(
            "named port moved",
            vec![("pod-a", with_port(80)), ("a", web)],
            ("pod-a", with_port(81)),
            udp(C, A, 80),
            vec![],
        ),
        case(
            "pod to its own node",
            vec![],
            ("a", policy("a", "a", "egress", json!([]))),
            udp(A, Place::Node(1), 7000),
            udp(B, A, 80),
        ),
        case(
            "to another node",
            vec![],
            ("a", policy("a", "a", "egress", json!([{"to": [peer("c")]}]))),
            udp(A, FAR, 80),
            udp(A, C, 80),
        ),
    ]
}

fn write(node: &FlatfellNode, name: &str, object: &Value) {
    let file = format!("{name}.yaml");
    match object {
        Value::Null => node.remove(&file).expect("removing"),
        object => node.write(&file, &object.to_string()).expect("writing"),
    }
}

/// The cluster without any policy.
fn reset(node: &mut FlatfellNode) {
    let base = [
        ("ns", namespace()),
        ("y", elsewhere("y")),
        ("pod-a", app("a", 0, "a")),
        ("b", app("b", 1, "b")),
        ("c", app("c", 2, "c")),
        ("far", remote()),
    ];
    base.iter().for_each(|(name, object)| write(node, name, object));
    for policy in ["a", "more"] {
        node.remove(&format!("{policy}.yaml")).ok();
    }
    node.settle().expect("settled");
}

/// Plays a case; the latency of each flow that was to be cut.
fn play(lab: &Lab, node: &mut FlatfellNode, case: &Case) -> Vec<Duration> {
    reset(node);
    case.before.iter().for_each(|(name, object)| write(node, name, object));
    node.settle().expect("settled");
    let all = [case.cut.clone(), case.spared.clone()].concat();
    let traffic = Traffic::start(lab, &all, PAUSE).expect("traffic");
    let talks: Vec<Talk> = case
        .talks
        .iter()
        .flat_map(|&(from, to)| [(from, to, 8001, false), (from, to, 8002, true)])
        .map(|(from, to, port, push)| Talk::start(lab, from, to, port, push))
        .collect();
    thread::sleep(BEFORE);
    let written = Instant::now();
    write(node, case.change.0, &case.change.1);
    thread::sleep(BEHIND);
    let late = |last: Instant| last.saturating_duration_since(written);
    let mut latencies: Vec<Duration> =
        (0..case.cut.len()).map(|stream| late(traffic.last_arrival(stream).expect("it ran"))).collect();
    latencies.extend(talks.iter().map(|talk| late(talk.last())));
    drop(talks);
    let reports = traffic.stop(GRACE).expect("traffic");
    println!("{}: cut after {latencies:.1?}", case.title);
    for (report, stream) in reports.iter().zip(&all).skip(case.cut.len()) {
        assert!(
            report.sent > 0 && report.lost() == 0,
            "{}: {stream:?} lost {} of {}",
            case.title,
            report.lost(),
            report.sent
        );
    }
    // Permission that comes back lets new flows through.
    reset(node);
    case.before.iter().for_each(|(name, object)| write(node, name, object));
    node.settle().expect("settled");
    let again = Traffic::start(lab, &case.cut, PAUSE).expect("traffic");
    thread::sleep(BEFORE);
    for (report, stream) in again.stop(GRACE).expect("traffic").iter().zip(&case.cut) {
        assert!(
            report.sent > 0 && report.lost() == 0,
            "{}: {stream:?} again: lost {} of {}",
            case.title,
            report.lost(),
            report.sent
        );
    }
    latencies
}

/// A stolen processor is not the daemon's delay: what was late is played again, twice at most.
fn best(mut play: impl FnMut() -> Vec<Duration>) -> Vec<Duration> {
    let mut latencies = play();
    for _ in 0..2 {
        if latencies.iter().all(|latency| *latency <= limit()) {
            break;
        }
        latencies = play();
    }
    latencies
}

fn verdict(title: &str, mut latencies: Vec<Duration>) {
    latencies.sort();
    let (median, last) = (latencies[latencies.len() / 2], latencies[latencies.len() - 1]);
    println!("{title}: {} flows cut, p50 {median:.1?}, max {last:.1?}", latencies.len());
    assert!(last <= limit(), "{title}: {latencies:.1?}");
}

fn lab() -> Lab {
    Lab::new(LabConfig { nodes: 2, pods: 3, ..LabConfig::default() }).expect("a lab")
}

#[test]
fn what_policy_forbids_stops() {
    let lab = lab();
    let mut node = FlatfellNode::start(&lab, 1, &[]).expect("a daemon");
    let latencies = cases().iter().flat_map(|case| best(|| play(&lab, &mut node, case))).collect();
    verdict("all cases", latencies);
}

#[test]
fn through_a_service_too() {
    let lab = lab();
    let mut node = FlatfellNode::start(&lab, 1, &[]).expect("a daemon");
    let addresses = ["10.96.0.10", "fd00:10:96::10"].map(|text| text.parse().expect("an address"));
    let backends = A.addresses().map(|address| (address, 80).into()).to_vec();
    lab.set_services(&[Service {
        addresses: addresses.to_vec(),
        port: 53,
        protocol: "udp",
        node_port: None,
        backends,
    }])
    .expect("services");
    let each = |flow| addresses.map(|address| Stream { server_port: 80, ..Stream::new(B, A, address, 53, flow) });
    let cut = [Flow::Steady, Flow::Pushed].into_iter().flat_map(each).collect();
    let change = ("a", policy("a", "a", "ingress", json!([])));
    let case = Case { title: "through a Service", before: vec![], change, cut, talks: vec![], spared: vec![] };
    verdict(case.title, best(|| play(&lab, &mut node, &case)));
}

#[test]
fn what_ran_before_the_daemon_stops() {
    let lab = lab();
    lab.call_from_bridge(1, true).expect("a bridge");
    // Conntrack works once some rule asks it.
    lab.nft(
        Place::Node(1),
        "table inet other { chain f { type filter hook forward priority 0; ct state new accept; }; }",
    )
    .expect("nft");
    let (cut, spared) = (udp(B, A, 80), udp(C, A, 80));
    let all = [cut.clone(), spared].concat();
    let traffic = Traffic::start(&lab, &all, PAUSE).expect("traffic");
    thread::sleep(BEFORE);
    let objects = [
        ("ns.yaml", namespace()),
        ("a.yaml", app("a", 0, "a")),
        ("b.yaml", app("b", 1, "b")),
        ("c.yaml", app("c", 2, "c")),
        ("p.yaml", policy("a", "a", "ingress", json!([{"from": [peer("c")]}]))),
    ];
    let texts: Vec<(&str, String)> = objects.iter().map(|(name, object)| (*name, object.to_string())).collect();
    let files: Vec<(&str, &str)> = texts.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let _node = FlatfellNode::start(&lab, 1, &files).expect("a daemon");
    let ready: Vec<u32> = (0..cut.len()).map(|stream| traffic.next(stream)).collect();
    thread::sleep(BEHIND);
    let reports = traffic.stop(GRACE).expect("traffic");
    for ((first, report), stream) in ready.into_iter().zip(&reports).zip(&cut) {
        assert!(first > 0 && report.sent > first && report.received() > 0, "{stream:?} did not run");
        assert_eq!(report.received_between(first, report.sent), 0, "{stream:?} behind readiness");
    }
    assert!(reports[cut.len()..].iter().all(|report| report.sent > 0 && report.lost() == 0));
}

/// A socket of a pod that speaks only when told to.
fn silent(world: &World, slot: u8, port: u16) -> UdpSocket {
    let pod = Place::pod(1, slot);
    let bound = world.lab.netns(pod).expect("a pod").run(|| UdpSocket::bind((pod.v4(), port)));
    let socket = bound.expect("a pod").expect("bind");
    socket.set_read_timeout(Some(Duration::from_millis(150))).expect("a socket");
    socket
}

/// Killed between the switch and the new generation, a daemon leaves flows behind that the rules forbid and whose stamp is
/// current.
#[test]
fn a_current_stamp_proves_nothing_to_the_next_daemon() {
    let mut world = World::new(2, &[app("a", 0, "a"), app("b", 1, "b")]);
    let (client, server) = (silent(&world, 1, 4000), silent(&world, 0, 4001));
    let mut buffer = [0; 8];
    client.send_to(b"hello", server.local_addr().expect("an address")).expect("sent");
    server.recv_from(&mut buffer).expect("an open pod is reached");
    world.change([put(&policy("a", "a", "ingress", json!([])))]);
    let current = Generation::new(world.engine.status().generation).expect("a generation").mark();
    let world = world.restarted(|lab| {
        let stamp = || {
            let mut conntrack = Conntrack::open().expect("conntrack");
            let flows = conntrack.flows(DENIED_MARK, GENERATION_MASK).expect("flows");
            let keys: Vec<_> = flows.iter().map(FlowEntry::key).collect();
            conntrack.set_mark(&keys, current, GENERATION_MASK).expect("marks").set
        };
        let stamped = lab.netns(Place::Node(1)).expect("the node").run(stamp).expect("the node");
        assert_eq!(stamped, 1, "the flow was denied");
    });
    server.send_to(b"push", client.local_addr().expect("an address")).expect("sent");
    assert!(client.recv_from(&mut buffer).is_err(), "a push passes");
    client.send_to(b"more", server.local_addr().expect("an address")).expect("sent");
    assert!(server.recv_from(&mut buffer).is_err(), "a packet passes");
    assert_eq!(world.engine.status().transactions.committed, 0);
}

/// A number that comes round again finds no flow of a pod that is gone, and none that was forbidden.
#[test]
fn generations_come_round() {
    let mut world = World::new(4, &[app("a", 0, "a"), app("b", 1, "b"), app("c", 2, "c"), app("n", 3, "n")]);
    let node = world.lab.netns(Place::Node(1)).expect("the node");
    node.run(|| std::fs::write("/proc/sys/net/netfilter/nf_conntrack_udp_timeout", "600").expect("sysctl"))
        .expect("the node");
    let (client, server) = (silent(&world, 2, 4000), silent(&world, 3, 4001));
    let mut buffer = [0; 8];
    client.send_to(b"hello", server.local_addr().expect("an address")).expect("sent");
    server.recv_from(&mut buffer).expect("an open pod is reached");
    let stamped = world.engine.status().generation;
    world.change(without_pod("n", 3));
    let edits =
        |turn: u16| put(&policy("a", "a", "ingress", json!([{"ports": [{"protocol": "UDP", "port": 1000 + turn}]}])));
    let before = Generation::new(stamped).expect("a generation");
    let mut turns = 0;
    loop {
        turns += 1;
        assert!(turns <= 300, "the number does not come round");
        world.change([edits(turns)]);
        if Generation::new(world.engine.status().generation).expect("a generation").next() == before {
            break;
        }
    }
    world.change([put(&app("n", 3, "n")), put(&policy("n", "n", "ingress", json!([])))]);
    world.swept();
    println!("{turns} generations; {} again", world.engine.status().generation);
    assert_eq!(world.engine.status().generation, stamped);
    server.send_to(b"push", client.local_addr().expect("an address")).expect("sent");
    assert!(client.recv_from(&mut buffer).is_err(), "a stale flow's push passes");
    client.send_to(b"more", server.local_addr().expect("an address")).expect("sent");
    assert!(server.recv_from(&mut buffer).is_err(), "a stale flow passes");
    // Allowed again: the flow goes on.
    world.change([without_policy("n"), put(&pod("n", 3, json!({"app": "n"})))]);
    client.send_to(b"more", server.local_addr().expect("an address")).expect("sent");
    assert!(server.recv_from(&mut buffer).is_ok(), "permission that came back");
}
