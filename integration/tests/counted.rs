//! What is counted is what was sent: bytes and packets of whole connections, connections, and what is counted for nobody.
//!
//! In: an engine in a lab's node, TCP and UDP between places. Out: the counters against what the pods' interfaces counted and what
//! the test sent. What always holds: a connection between two pods of the node counts for both its halves.
#![allow(clippy::expect_used)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use flatfell::engine::EngineConfig;
use flatfell_integration::inprocess::{InProcess, pod, policy};
use flatfell_integration::patience::patient;
use flatfell_integration::{Lab, LabConfig, Place, Probe};
use flatfell_rules::compile::CounterMeaning;
use flatfell_rules::index::Change;
use flatfell_rules::object::ObjectName;
use flatfell_rules::ruleset::CounterValue;
use serde_json::{Value, json};

/// Isolated in both directions, with a rule for each.
const A: Place = Place::pod(1, 0);
const B: Place = Place::pod(1, 1);
/// Not isolated.
const C: Place = Place::pod(1, 2);
const REMOTE: Place = Place::pod(2, 0);
const NODE: Place = Place::Node(1);
const PLACES: [Place; 4] = [A, B, C, REMOTE];

/// Bytes of an Ethernet header, which an interface counts and a rule of the inet family does not see.
const HEADER: u64 = 14;
const UP: usize = 8 << 20;
const DOWN: usize = 2 << 20;

fn lab() -> Lab {
    Lab::new(LabConfig { nodes: 2, pods: 3, ..LabConfig::default() }).expect("a lab")
}

/// Anything may come to and leave the pods of this `app`, by a rule of each direction.
fn ruled(app: &str) -> Value {
    policy(app, app, json!({"policyTypes": ["Ingress", "Egress"], "ingress": [{}], "egress": [{}]}))
}

fn start(lab: &Lab, config: EngineConfig, policies: &[Value]) -> InProcess {
    let started = InProcess::start(lab, 1, config, &[&PLACES.map(pod), policies].concat()).expect("an engine");
    started.until("ready", |status| status.synced && status.not_ready.is_empty()).expect("ready");
    started
}

/// What a counter is about, short: `rule p0 egress`, `new rule p0 egress`, `pod p2 ingress`, `nobody`.
fn word(meaning: &CounterMeaning) -> Option<String> {
    Some(match meaning {
        CounterMeaning::Rule { identity, .. } => format!("rule {} {}", identity.policy.name, identity.direction),
        CounterMeaning::RuleConnections { identity, .. } => {
            format!("new rule {} {}", identity.policy.name, identity.direction)
        }
        CounterMeaning::DefaultAllowed { pod, direction } => format!("pod {} {direction}", pod.name),
        CounterMeaning::DefaultAllowedConnections { pod, direction } => format!("new pod {} {direction}", pod.name),
        CounterMeaning::Unattributed => "nobody".to_owned(),
        _ => return None,
    })
}

fn counters(engine: &InProcess) -> BTreeMap<String, CounterValue> {
    let snapshot = engine.engine.counters().expect("counters");
    let all = snapshot.meanings.values().zip(&snapshot.totals);
    let mut counted: BTreeMap<String, CounterValue> = BTreeMap::new();
    for (meaning, total) in all {
        let (Some(word), Some(total)) = (word(meaning), total) else { continue };
        let sum = counted.entry(word).or_default();
        (sum.packets, sum.bytes) = (sum.packets + total.packets, sum.bytes + total.bytes);
    }
    counted
}

/// What counted meanwhile; what did not is absent.
fn counted(engine: &InProcess, meanwhile: impl FnOnce()) -> BTreeMap<String, CounterValue> {
    let before = counters(engine);
    meanwhile();
    let change = |(name, now): (String, CounterValue)| {
        let then = before.get(&name).copied().unwrap_or_default();
        let change = CounterValue { packets: now.packets - then.packets, bytes: now.bytes - then.bytes };
        (change != CounterValue::default()).then_some((name, change))
    };
    counters(engine).into_iter().filter_map(change).collect()
}

/// Packets that a pod's interface has seen, and their bytes without the frames' headers.
fn interface(lab: &Lab, pod: Place) -> CounterValue {
    let shown = lab.netns(pod).expect("a pod").feed("ip", &["-s", "-j", "link", "show", "dev", "eth0"], "");
    let shown: Value = serde_json::from_str(&shown.expect("ip")).expect("JSON");
    let sum = |field: &str| {
        let way = |way: &str| shown[0]["stats64"][way][field].as_u64().expect("a number");
        way("rx") + way("tx")
    };
    CounterValue { packets: sum("packets"), bytes: sum("bytes") - HEADER * sum("packets") }
}

fn within_one_percent(counted: u64, seen: u64) -> bool {
    counted.abs_diff(seen) * 100 <= seen
}

/// A TCP connection that carries so many bytes up, then so many down, and is closed.
fn transfer(lab: &Lab, from: Place, to: Place, ip: IpAddr, (up, down): (usize, usize)) {
    let bind = || TcpListener::bind((ip, 0)).expect("a port");
    let listener = lab.netns(to).expect("a place").run(bind).expect("a place");
    let address = listener.local_addr().expect("an address");
    let connect = || TcpStream::connect(address).expect("a connection");
    thread::scope(|threads| {
        threads.spawn(|| {
            let (mut server, _) = listener.accept().expect("a connection");
            let mut bytes = vec![0; up];
            server.read_exact(&mut bytes).expect("bytes");
            server.write_all(&vec![7; down]).expect("bytes");
            assert_eq!(server.read(&mut [0]).expect("the end"), 0);
        });
        let mut client = lab.netns(from).expect("a place").run(connect).expect("a place");
        client.write_all(&vec![7; up]).expect("bytes");
        client.read_exact(&mut vec![0; down]).expect("bytes");
    });
}

/// So many datagrams of this size, each answered by one.
fn echo(lab: &Lab, from: Place, to: Place, ip: IpAddr, (count, size): (usize, usize)) {
    let any = from.address_like(ip);
    let bind = |place: Place, ip: IpAddr| {
        let socket = lab.netns(place).expect("a place").run(|| UdpSocket::bind((ip, 0)).expect("a port"));
        let socket = socket.expect("a place");
        socket.set_read_timeout(Some(patient(Duration::from_secs(5)))).expect("a socket");
        socket
    };
    let (server, client) = (bind(to, ip), bind(from, any));
    let address: SocketAddr = server.local_addr().expect("an address");
    let mut buffer = vec![0; 65536];
    for _ in 0..count {
        client.send_to(&vec![7; size], address).expect("sent");
        let (length, peer) = server.recv_from(&mut buffer).expect("received");
        server.send_to(&buffer[..length], peer).expect("sent");
        assert_eq!(client.recv(&mut buffer).expect("received"), size);
    }
}

/// Who counts for traffic from one place to another, and the pods whose interfaces see it.
type Case = (Place, Place, &'static [&'static str], &'static [Place]);

const CASES: [Case; 7] = [
    (A, B, &["rule p0 egress", "rule p1 ingress"], &[A, B]),
    (A, C, &["pod p2 ingress", "rule p0 egress"], &[A, C]),
    (C, A, &["pod p2 egress", "rule p0 ingress"], &[A, C]),
    (A, REMOTE, &["rule p0 egress"], &[A]),
    (REMOTE, A, &["rule p0 ingress"], &[A]),
    (REMOTE, C, &["pod p2 ingress"], &[C]),
    (A, NODE, &["rule p0 egress"], &[A]),
];

/// Compares the counters of each case with the interfaces, and with the connections that were made.
fn compare(lab: &Lab, engine: &InProcess, traffic: impl Fn(Place, Place, IpAddr)) {
    for ((from, to, names, pods), family) in CASES.into_iter().flat_map(|case| [(case, 0), (case, 1)]) {
        let ip = to.addresses()[family];
        let title = format!("{from} to {ip}");
        // Neighbours ask for each other first: that is no traffic.
        echo(lab, from, to, ip, (1, 1));
        let seen: Vec<CounterValue> = pods.iter().map(|pod| interface(lab, *pod)).collect();
        let counted = counted(engine, || traffic(from, to, ip));
        let connections: Vec<String> = names.iter().map(|name| format!("new {name}")).collect();
        let mut expected: Vec<&str> = names.iter().copied().chain(connections.iter().map(String::as_str)).collect();
        expected.sort_unstable();
        assert_eq!(counted.keys().collect::<Vec<_>>(), expected, "{title}");
        for (pod, before) in pods.iter().zip(seen) {
            let seen = interface(lab, *pod).bytes - before.bytes;
            for name in names {
                let counted = counted[*name].bytes;
                println!("{title}: {name}: {counted} bytes, {seen} at the interface of {pod}");
                assert!(within_one_percent(counted, seen), "{title}: {name}: {counted} bytes, {seen} seen by {pod}");
            }
        }
        assert!(connections.iter().all(|name| counted[name].packets == 1), "{title}: {counted:?}");
    }
}

#[test]
fn bytes_of_tcp_are_those_of_the_interfaces() {
    let lab = lab();
    let engine = start(&lab, EngineConfig::default(), &[ruled("p0"), ruled("p1")]);
    compare(&lab, &engine, |from, to, ip| transfer(&lab, from, to, ip, (UP, DOWN)));
}

#[test]
fn bytes_of_udp_are_those_of_the_interfaces() {
    let lab = lab();
    let engine = start(&lab, EngineConfig::default(), &[ruled("p0"), ruled("p1")]);
    compare(&lab, &engine, |from, to, ip| echo(&lab, from, to, ip, (1000, 1200)));
}

#[test]
fn a_thousand_connections_are_a_thousand() {
    const COUNT: u64 = 1000;
    let lab = lab();
    let engine = start(&lab, EngineConfig::default(), &[ruled("p0"), ruled("p1")]);
    for (from, to, names, _) in [CASES[0], CASES[1], CASES[4], CASES[6]] {
        let counted = counted(&engine, || {
            for _ in 0..COUNT {
                transfer(&lab, from, to, to.addresses()[0], (1, 1));
            }
        });
        for name in names {
            assert_eq!(counted[&format!("new {name}")].packets, COUNT, "{from} to {to}: {counted:?}");
        }
    }
}

/// Packets that conntrack does not know (node-local DNS is often untracked) are judged each by itself, and count for nobody.
#[test]
fn untracked_packets_obey_policy() {
    let lab = lab();
    let from_a =
        json!({"policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "p0"}}}]}]});
    let engine = start(&lab, EngineConfig::default(), &[policy("p1", "p1", from_a)]);
    let untracked = "table inet untracked { chain raw { type filter hook prerouting priority raw; udp dport 80 notrack; udp sport 80 notrack; }; }";
    lab.nft(NODE, untracked).expect("rules");
    let probe = |from: Place| B.addresses().map(|ip| Probe::udp(from, ip, 80)).to_vec();
    let delivered = |probes: &[Probe]| -> Vec<bool> {
        lab.probes(probes).expect("probes").iter().map(|outcome| outcome.delivered).collect()
    };
    let counted = counted(&engine, || {
        assert_eq!((delivered(&probe(A)), delivered(&probe(C))), (vec![true; 2], vec![false; 2]));
    });
    // The answers are as untracked as the questions.
    assert_eq!(counted.keys().collect::<Vec<_>>(), ["nobody"], "{counted:?}");
    assert!(counted["nobody"].packets >= 2, "{counted:?}");
}

/// Where all ids are given out, the next rules allow what they say and count for nobody; it is said so, and an id that is free again
/// goes to one of them.
#[test]
fn what_gets_no_id_counts_for_nobody() {
    let lab = lab();
    let config = EngineConfig { rule_ids: 4, ..EngineConfig::default() };
    let mut engine = start(&lab, config, &[ruled("p0"), ruled("p1")]);
    let ids = engine.engine.status().rule_ids;
    // Three pods and two rules of each direction, for four ids.
    assert_eq!((ids.ingress, ids.egress, ids.limit, ids.without), (4, 4, 4, 2));
    assert!(engine.engine.status().warnings.iter().any(|warning| warning.contains("not attributed")));
    const COUNT: usize = 100;
    let all = || -> u64 {
        let counted = counted(&engine, || echo(&lab, A, B, B.addresses()[0], (COUNT, 100)));
        println!("{counted:?}");
        let packets = counted.iter().filter(|(name, _)| !name.starts_with("new ")).map(|(_, value)| value.packets);
        packets.sum()
    };
    assert_eq!(all(), 4 * u64::try_from(COUNT).expect("a number"), "each packet once for each half");
    engine.change(Change::DeletePolicy(ObjectName::new("default", "p1")));
    engine.sync().expect("enforced");
    engine.until("all have ids", |status| status.rule_ids.without == 0).expect("an id for each");
}
