//! A flood of denied packets: what the daemon pays for it, what other traffic feels of the flow log, and whether every
//! packet is accounted for.
//!
//! In: packets a second (100,000 without an argument). Out: a row for each kind of round, as Markdown. What always holds: rounds
//! without the flow log and with it take turns, so that what else the machine does falls on both; latency is compared
//! between them as a ratio; the daemon is the one built beside this program (release, by `make flood`).

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use flatfell_integration::scene::{namespace, pod, policy};
use flatfell_integration::{FlatfellNode, Lab, LabConfig, Place};

const DENIED: Place = Place::pod(1, 0);
const FLOODER: Place = Place::pod(1, 1);
const CLIENT: Place = Place::pod(1, 2);
const SERVER: Place = Place::pod(1, 3);

/// Rounds of each kind.
const ROUNDS: usize = 5;
/// One round.
const LENGTH: Duration = Duration::from_secs(5);
/// Between two questions of the client.
const EVERY: Duration = Duration::from_millis(1);
/// The flood is paced in steps of this length.
const STEP: Duration = Duration::from_millis(1);
/// How long the last packets may take into the log.
const SETTLE: Duration = Duration::from_secs(30);

/// What is different between the rounds.
struct Kind {
    name: &'static str,
    flooded: bool,
    flags: &'static [&'static str],
}

const KINDS: [Kind; 3] = [
    Kind { name: "no flood", flooded: false, flags: &[] },
    Kind { name: "flood, no flow log", flooded: true, flags: &["--flow-log-rate", "0"] },
    Kind { name: "flood, flow log to a file", flooded: true, flags: &["--flow-log", "FILE"] },
];

/// What came of one round.
struct Round {
    packets_a_second: f64,
    /// Share of one core.
    daemon: f64,
    /// Round trips, sorted.
    trips: Vec<Duration>,
    denied: u64,
    logged: u64,
    lost: u64,
}

fn main() -> anyhow::Result<()> {
    let rate: u64 = std::env::args().nth(1).map_or(Ok(100_000), |rate| rate.parse()).context("packets a second")?;
    let lab = Lab::new(LabConfig { nodes: 1, pods: 4, ..LabConfig::default() })?;
    let mut rounds: [Vec<Round>; 3] = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (kind, rounds) in KINDS.iter().zip(&mut rounds) {
            rounds.push(round(&lab, kind, rate)?);
        }
    }
    println!("| round | denied packets/s | daemon, share of a core | round trip p50 | p99 | denied = logged + lost |");
    println!("|---|---|---|---|---|---|");
    for (kind, rounds) in KINDS.iter().zip(&rounds) {
        let of = |value: fn(&Round) -> f64| range(rounds.iter().map(value).collect());
        let sum = |value: fn(&Round) -> u64| rounds.iter().map(value).sum::<u64>();
        println!(
            "| {} | {} | {} % | {} µs | {} µs | {} = {} + {} |",
            kind.name,
            of(|round| round.packets_a_second),
            of(|round| round.daemon * 100.0),
            of(|round| micros(&round.trips, 50)),
            of(|round| micros(&round.trips, 99)),
            sum(|round| round.denied),
            sum(|round| round.logged),
            sum(|round| round.lost),
        );
    }
    for percent in [50, 99] {
        let pairs = rounds[1].iter().zip(&rounds[2]);
        let ratios = pairs.map(|(without, with)| micros(&with.trips, percent) / micros(&without.trips, percent));
        println!("\nround trip p{percent}, with the flow log to without it: {}", range(ratios.collect()));
    }
    Ok(())
}

/// The middle one, and the range.
fn range(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    let digits = if values[values.len() / 2] < 100.0 { 2 } else { 0 };
    let (first, last) = (values[0], values[values.len() - 1]);
    format!("{:.digits$} ({first:.digits$} to {last:.digits$})", values[values.len() / 2])
}

fn micros(trips: &[Duration], percent: usize) -> f64 {
    trips[trips.len() * percent / 100].as_secs_f64() * 1e6
}

fn round(lab: &Lab, kind: &Kind, rate: u64) -> anyhow::Result<Round> {
    let objects = [
        namespace("x", ""),
        pod("x/denied", DENIED, "app: denied"),
        pod("x/flooder", FLOODER, "app: flooder"),
        pod("x/client", CLIENT, "app: client"),
        pod("x/server", SERVER, "app: server"),
        policy("x/denied", "podSelector: {matchLabels: {app: denied}}, policyTypes: [Ingress]"),
    ];
    lab.nft(Place::Node(1), "flush ruleset\n")?;
    lab.flush_conntrack(1)?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("flows.json").to_string_lossy().into_owned();
    let flags: Vec<&str> = kind.flags.iter().map(|flag| if *flag == "FILE" { file.as_str() } else { flag }).collect();
    let node = FlatfellNode::start_with(lab, 1, &[("all.yaml", &objects.concat())], &flags)?;
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let (client, server) = (socket(lab, CLIENT)?, socket(lab, SERVER)?);
    let flooders = [socket(lab, FLOODER)?, socket(lab, FLOODER)?];
    thread::scope(|scope| {
        scope.spawn(|| echo(&server, &stop));
        if kind.flooded {
            for flooder in &flooders {
                scope.spawn(|| flood(flooder, rate / 2, &stop, &sent));
            }
        }
        let (begin, busy) = (Instant::now(), processor(&node)?);
        let trips = ask(&client, server.local_addr()?);
        let (length, busy) = (begin.elapsed(), processor(&node)?.saturating_sub(busy));
        let flooded = sent.load(Ordering::Relaxed);
        stop.store(true, Ordering::Relaxed);
        let mut trips = trips?;
        trips.sort_unstable();
        let packets = u32::try_from(flooded).context("packets")?;
        let logs = !kind.flags.contains(&"0");
        let (denied, logged, lost) = settled(&node, flooded, logs)?;
        Ok(Round {
            packets_a_second: f64::from(packets) / length.as_secs_f64(),
            daemon: busy.as_secs_f64() / length.as_secs_f64(),
            trips,
            denied,
            logged,
            lost,
        })
    })
}

fn socket(lab: &Lab, place: Place) -> anyhow::Result<UdpSocket> {
    let socket = lab.netns(place)?.run(|| UdpSocket::bind((place.v4(), 0)))??;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    Ok(socket)
}

/// Sends so many packets a second to the pod that takes none.
fn flood(socket: &UdpSocket, rate: u64, stop: &AtomicBool, sent: &AtomicU64) {
    let (begin, mut count) = (Instant::now(), 0);
    while !stop.load(Ordering::Relaxed) {
        let due = u128::from(rate) * begin.elapsed().as_micros() / 1_000_000;
        let due = u64::try_from(due).unwrap_or(u64::MAX);
        // Not more than one burst behind: what could not be sent in time is not sent later.
        count = count.max(due.saturating_sub(rate / 20));
        while count < due && !stop.load(Ordering::Relaxed) {
            if socket.send_to(b"flood", (DENIED.v4(), 9)).is_ok() {
                sent.fetch_add(1, Ordering::Relaxed);
            }
            count += 1;
        }
        thread::sleep(STEP);
    }
}

fn echo(socket: &UdpSocket, stop: &AtomicBool) {
    let mut buffer = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            // A lost answer is a lost question.
            let _ = socket.send_to(&buffer[..length], from);
        }
    }
}

/// Round trips for the length of a round.
fn ask(socket: &UdpSocket, server: SocketAddr) -> anyhow::Result<Vec<Duration>> {
    let (mut trips, mut buffer, begin) = (Vec::new(), [0; 64], Instant::now());
    let mut number: u64 = 0;
    while begin.elapsed() < LENGTH {
        number += 1;
        let asked = Instant::now();
        socket.send_to(&number.to_be_bytes(), server)?;
        while let Ok((length, _)) = socket.recv_from(&mut buffer) {
            if buffer[..length] == number.to_be_bytes() {
                trips.push(asked.elapsed());
                break;
            }
        }
        thread::sleep(EVERY);
    }
    ensure!(trips.len() > 100, "{} answers", trips.len());
    Ok(trips)
}

/// Time on a processor of all threads (schedstat: nanoseconds first).
fn processor(node: &FlatfellNode) -> anyhow::Result<Duration> {
    let process = node.process_id().context("the daemon is gone")?;
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{process}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        sum += text.split_whitespace().next().context("schedstat")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(sum))
}

/// Denied, logged and lost packets once they add up.
fn settled(node: &FlatfellNode, sent: u64, logs: bool) -> anyhow::Result<(u64, u64, u64)> {
    let end = Instant::now() + SETTLE;
    loop {
        let metrics = node.metrics()?;
        let of = |name: &str| -> u64 {
            let lines = metrics.lines().filter(|line| line.starts_with(name));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
        };
        let denied = of("flatfell_dropped_packets_total{");
        let (logged, lost) = (of("flatfell_flow_log_records_total{"), of("flatfell_flow_log_lost_total{"));
        if denied >= sent * 9 / 10 && (!logs || denied == logged + lost) {
            return Ok((denied, logged, lost));
        }
        ensure!(Instant::now() < end, "{sent} sent, {denied} denied, {logged} logged, {lost} lost");
        thread::sleep(Duration::from_millis(500));
    }
}
