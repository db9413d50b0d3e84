//! Thousands of changes of each kind under traffic: nothing forbidden passes, nothing allowed is lost.
//!
//! In: `FLATFELL_FLIPS`, the number of changes of each kind (500 without it). Out: numbers of each run. What always
//! holds: each kind has pairs that are forbidden before and after each change, pairs that are allowed before and after, and
//! pairs whose verdict changes with it, which are judged between the end of one change and the beginning of the next.
#![allow(clippy::expect_used)]

mod world;

use std::time::{Duration, Instant};

use flatfell_integration::{Flow, Report, Stream, Traffic};
use flatfell_rules::compile::CounterMeaning;
use flatfell_rules::index::Change;
use serde_json::json;
use world::{World, app, peer, pod, policy, put, streams, without_pod, without_policy};

/// Between rounds of packets.
const PAUSE: Duration = Duration::from_micros(200);
/// How long a state is looked at, then left.
const DWELL: Duration = Duration::from_micros(800);
/// Changes between two lines of output.
const PROGRESS: usize = 1000;
const GRACE: Duration = Duration::from_millis(500);

fn count() -> usize {
    std::env::var("FLATFELL_FLIPS").map_or(500, |count| count.parse().expect("a number"))
}

/// What shall become of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Allowed,
    Forbidden,
    /// What the last change says.
    Changing,
}

/// Packets of a stream that were sent while one state held.
struct Window {
    stream: usize,
    open: bool,
    first: u32,
    end: u32,
}

/// Streams, what shall become of them, and what did.
struct Watch {
    fates: Vec<Fate>,
    streams: Vec<Stream>,
    windows: Vec<Window>,
}

impl Watch {
    fn new(fates: &[(Fate, [Stream; 2])]) -> Self {
        let streams = fates.iter().flat_map(|(_, streams)| *streams).collect();
        Self { fates: fates.iter().flat_map(|(fate, _)| [*fate; 2]).collect(), streams, windows: Vec::new() }
    }

    /// Notes what is sent now of the streams that change.
    fn look(&mut self, traffic: &Traffic, open: bool) {
        let changing: Vec<usize> = (0..self.fates.len()).filter(|&at| self.fates[at] == Fate::Changing).collect();
        let first: Vec<u32> = changing.iter().map(|&stream| traffic.next(stream)).collect();
        std::thread::sleep(DWELL);
        for (&stream, first) in changing.iter().zip(first) {
            self.windows.push(Window { stream, open, first, end: traffic.sent(stream) });
        }
        std::thread::sleep(DWELL);
    }

    /// Packets of streams that are forbidden all the time.
    fn passed(&self, traffic: &Traffic) -> usize {
        let forbidden = (0..self.fates.len()).filter(|&at| self.fates[at] == Fate::Forbidden);
        forbidden.map(|stream| traffic.received(stream)).sum()
    }

    fn judge(&self, title: &str, reports: &[Report]) {
        let (mut forbidden, mut passed, mut allowed, mut lost) = (0, 0, 0, 0);
        for ((fate, report), stream) in self.fates.iter().zip(reports).zip(&self.streams) {
            let (sent, received) = (u64::from(report.sent), report.received());
            match fate {
                Fate::Allowed => (allowed, lost) = (allowed + sent, lost + report.lost()),
                Fate::Forbidden => (forbidden, passed) = (forbidden + sent, passed + received),
                Fate::Changing => {}
            }
            println!(
                "{title}: {fate:?} {:?} {} -> {}: {sent} sent, {received} received",
                stream.flow, stream.from, stream.address
            );
        }
        for window in &self.windows {
            let report = &reports[window.stream];
            let (sent, received) =
                (window.end.saturating_sub(window.first), report.received_between(window.first, window.end));
            let missing = usize::try_from(sent).expect("a number").saturating_sub(received);
            match window.open {
                true => (allowed, lost) = (allowed + u64::from(sent), lost + missing),
                false => (forbidden, passed) = (forbidden + u64::from(sent), passed + received),
            }
        }
        println!("{title}: of {forbidden} forbidden packets {passed} passed, of {allowed} allowed {lost} were lost");
        assert!(forbidden > 1000 && allowed > 1000, "too little traffic");
        assert_eq!((passed, lost), (0, 0), "{title}: forbidden that passed, allowed that were lost");
    }
}

/// Makes the changes of each turn and watches. A change says whether the changing streams are open behind it.
fn run(title: &str, mut world: World, mut watch: Watch, mut change: impl FnMut(&mut World, usize) -> bool) {
    let traffic = Traffic::start(&world.lab, &watch.streams, PAUSE).expect("traffic");
    let (start, mut changing) = (Instant::now(), Duration::ZERO);
    let before = world.engine.status().transactions.clone();
    for turn in 0..count() {
        let begin = Instant::now();
        let open = change(&mut world, turn);
        changing += begin.elapsed();
        watch.look(&traffic, open);
        if turn % PROGRESS == PROGRESS - 1 {
            println!("{title}: {} changes, {} forbidden packets passed so far", turn + 1, watch.passed(&traffic));
        }
    }
    let (took, after) = (start.elapsed(), world.engine.status().transactions.clone());
    println!(
        "{title}: {} changes in {took:.1?}, {:.2?} each until enforced; {} transactions, {} failed, {} takeovers",
        count(),
        changing / u32::try_from(count()).expect("a number"),
        after.committed - before.committed,
        after.failed - before.failed,
        after.takeovers - before.takeovers,
    );
    let reports = traffic.stop(GRACE).expect("traffic");
    watch.judge(title, &reports);
    assert_eq!(after.failed, before.failed, "{:?}", after.last_error);
}

const A: u8 = 0;
const B: u8 = 1;
const C: u8 = 2;
const D: u8 = 3;
const E: u8 = 4;
const N: u8 = 5;

/// A server, whom it knows, a stranger, one that changes, one held to its egress.
fn pods() -> Vec<serde_json::Value> {
    vec![app("a", A, "a"), app("b", B, "b"), app("c", C, "c"), app("d", D, "d"), app("e", E, "e")]
}

fn world(policies: &[serde_json::Value]) -> World {
    World::new(6, &[pods(), policies.to_vec()].concat())
}

/// All kinds of flow.
fn flows(fate: Fate, from: u8, to: u8) -> Vec<(Fate, [Stream; 2])> {
    let kinds: &[Flow] = match fate {
        Fate::Allowed => &[Flow::Turns(64), Flow::Steady, Flow::Pushed],
        Fate::Forbidden => &[Flow::Fresh],
        Fate::Changing => &[Flow::Turns(64)],
    };
    kinds.iter().map(|&flow| (fate, streams(from, to, 80, flow))).collect()
}

fn out_of_e() -> serde_json::Value {
    policy("e", "e", "egress", json!([{"to": [peer("b")]}]))
}

#[test]
fn rules_are_edited() {
    let block = |place: flatfell_integration::Place| json!([{"ipBlock": {"cidr": format!("{}/32", place.v4())}}, {"ipBlock": {"cidr": format!("{}/128", place.v6())}}]);
    let udp = |port: u16| json!({"protocol": "UDP", "port": port});
    let either = json!({"podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["b", "z"]}]}});
    let b = block(flatfell_integration::Place::pod(1, B));
    // The last word says whether port 90 is open.
    let of_a = [
        (json!([{"from": [peer("b")], "ports": [udp(80)]}]), false),
        (json!([{"from": [peer("b")], "ports": [udp(80), udp(90)]}]), true),
        (json!([{"from": [either], "ports": [udp(80)]}]), false),
        (json!([{"from": b}]), true),
        (json!([{"from": [peer("d")]}, {"from": [peer("b")], "ports": [udp(80)]}]), false),
        (json!([{"from": [peer("b")], "ports": [{"protocol": "UDP", "port": 70, "endPort": 95}]}]), true),
    ];
    let of_e = [json!([{"to": [peer("b")]}]), json!([{"to": [peer("b")], "ports": [udp(80)]}, {"to": [peer("z")]}])];
    let world = world(&[policy("a", "a", "ingress", of_a[1].0.clone()), out_of_e()]);
    let fates = [
        flows(Fate::Allowed, B, A),
        flows(Fate::Allowed, E, B),
        flows(Fate::Forbidden, C, A),
        flows(Fate::Forbidden, E, D),
        vec![(Fate::Changing, streams(B, A, 90, Flow::Turns(64)))],
    ];
    run("rule edit", world, Watch::new(&fates.concat()), |world, turn| {
        let (rules, open) = &of_a[turn % of_a.len()];
        let a = put(&policy("a", "a", "ingress", rules.clone()));
        let e = put(&policy("e", "e", "egress", of_e[turn % 2].clone()));
        world.change([a, e]);
        *open
    });
}

#[test]
fn pods_are_isolated_and_freed() {
    let world = world(&[out_of_e()]);
    let fates = [
        flows(Fate::Allowed, B, A),
        flows(Fate::Allowed, D, C),
        flows(Fate::Forbidden, E, A),
        flows(Fate::Changing, C, A),
        flows(Fate::Changing, D, B),
    ];
    run("first isolation", world, Watch::new(&fates.concat()), |world, turn| {
        let open = turn % 2 == 1;
        world.change(match open {
            true => [without_policy("a"), without_policy("d")],
            false => [
                put(&policy("a", "a", "ingress", json!([{"from": [peer("b")]}]))),
                put(&policy("d", "d", "egress", json!([{"to": [peer("c")]}]))),
            ],
        });
        open
    });
}

#[test]
fn pods_come_and_go() {
    let both = json!([{"from": [peer("b"), peer("n")]}]);
    let of_n = policy("n", "n", "ingress", json!([{"from": [peer("b")]}]));
    let world = world(&[policy("a", "a", "ingress", both), of_n, out_of_e()]);
    let fates = [
        flows(Fate::Allowed, B, A),
        flows(Fate::Forbidden, C, A),
        flows(Fate::Forbidden, C, N),
        flows(Fate::Forbidden, E, N),
        flows(Fate::Changing, B, N),
    ];
    run("new pod", world, Watch::new(&fates.concat()), |world, turn| {
        let known = turn % 2 == 0;
        let mut new = app("n", N, "n");
        new["metadata"]["uid"] = json!(turn.to_string());
        world.change(if known { vec![put(&new)] } else { without_pod("n", N) });
        known
    });
}

#[test]
fn peers_are_relabelled() {
    let of_a = json!([{"from": [peer("b")]}, {"from": [peer("b2")]}]);
    let of_e = json!([{"to": [peer("d")]}, {"to": [peer("d2")]}]);
    let world = world(&[policy("a", "a", "ingress", of_a), policy("e", "e", "egress", of_e), app("n", N, "n")]);
    let fates = [
        flows(Fate::Allowed, B, A),
        flows(Fate::Allowed, E, D),
        flows(Fate::Forbidden, C, A),
        flows(Fate::Forbidden, E, C),
        flows(Fate::Changing, N, A),
        flows(Fate::Changing, E, N),
    ];
    run("peer relabelled", world, Watch::new(&fates.concat()), |world, turn| {
        let odd = turn % 2 == 1;
        let label = |first: &'static str, second: &'static str| if odd { second } else { first };
        let changes: [Change; 4] = [
            put(&app("b", B, label("b2", "b"))),
            put(&app("d", D, label("d2", "d"))),
            put(&app("c", C, label("c2", "c"))),
            put(&pod("n", N, json!({"app": label("n", "b")}))),
        ];
        world.change(changes.into_iter().chain([put(&policy(
            "e",
            "e",
            "egress",
            json!([{"to": [peer("d")]}, {"to": [peer("d2")]}, {"to": [peer("b")], "ports": [{"protocol": "UDP", "port": 80}]}]),
        ))]));
        odd
    });
}

/// Packets that rules of policy have decided.
fn counted(world: &World) -> u64 {
    let snapshot = world.engine.counters().expect("counters");
    let decided = snapshot.iter().filter(|(_, meaning, _)| matches!(***meaning, CounterMeaning::Rule { .. }));
    decided.map(|(_, _, value)| value.packets).sum()
}

#[test]
fn tables_are_taken_over() {
    let udp = |port: u16| json!({"protocol": "UDP", "port": port});
    let rules = |turn: usize| match turn % 4 {
        0 | 1 => json!([{"from": [peer("b")]}, {"from": [peer("d")], "ports": [udp(80)]}]),
        _ => json!([{"from": [peer("b")]}]),
    };
    let mut world = world(&[out_of_e()]);
    let mut effective = world.submit([put(&policy("a", "a", "ingress", rules(0)))]);
    world.settled(&effective);
    let fates = [
        flows(Fate::Allowed, B, A),
        flows(Fate::Allowed, E, B),
        flows(Fate::Forbidden, C, A),
        flows(Fate::Forbidden, E, C),
        flows(Fate::Changing, D, A),
    ];
    let mut before = 0;
    run("table taken over", world, Watch::new(&fates.concat()), |world, turn| {
        if turn % 2 == 0 {
            effective = world.submit([put(&policy("a", "a", "ingress", rules(turn)))]);
        }
        world.take_over(&effective);
        let now = counted(world);
        if turn % 4 != 2 {
            assert!(now >= before, "counters went from {before} to {now} in turn {turn}");
        }
        before = now;
        turn % 4 < 2
    });
}
