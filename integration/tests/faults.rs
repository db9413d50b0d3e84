//! Faults between the daemon and its kernel: old or new state, never a mix, and in step within a second of their end.
//!
//! In: `FLATFELL_FAULTS`, how many rounds (16 without it), `FLATFELL_SEED`. Out: how long getting in step took. What always holds: the true
//! binary runs, a shim before its libc (`preload/shim.c`) makes the faults; each fault of a round was seen to bite.
#![allow(clippy::expect_used)]

mod restless;
mod world;

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use restless::{IN_STEP, Restless, Shim, judge};

/// Of transactions: each is met by every change.
const OF_TRANSACTIONS: [&str; 9] = [
    "enobufs-send",
    "eintr-send",
    "enomem",
    "ebusy",
    "erestart",
    "lost-request",
    "lost-answer",
    "overrun-answer",
    "torn-answer",
];

/// Of dumps: each is met when a transaction's fault makes the daemon read back what there is.
const OF_DUMPS: [&str; 7] =
    ["dump-interrupted", "dump-eintr", "dump-enomem", "dump-overrun", "dump-truncated", "dump-torn", "dump-silent"];

/// How long a fault may wait for its chance.
const CHANCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(5);
/// How long faults go on, at most.
const LONGEST: u64 = 800;

fn rounds() -> usize {
    std::env::var("FLATFELL_FAULTS").map_or(16, |count| count.parse().expect("a number"))
}

fn seed() -> u64 {
    std::env::var("FLATFELL_SEED").map_or(1, |text| text.parse().expect("a number"))
}

/// The faults of a round: one of transactions, and with every other one of dumps.
fn faults(round: usize) -> Vec<&'static str> {
    let mut faults = vec![OF_TRANSACTIONS[round % OF_TRANSACTIONS.len()]];
    if !round.is_multiple_of(3) {
        faults.push(OF_DUMPS[round % OF_DUMPS.len()]);
    }
    faults
}

/// Waits until each of them bit, and a while longer.
fn wait_for_bites(shim: &Shim, faults: &[&str], longer: Duration) {
    let wanted: BTreeSet<String> = faults.iter().map(|&fault| fault.to_owned()).collect();
    let begun = Instant::now();
    while !wanted.is_subset(&shim.bites()) {
        assert!(begun.elapsed() < CHANCE, "{faults:?} had no chance: {:?}", shim.bites());
        thread::sleep(LOOK);
    }
    thread::sleep(longer);
}

fn rounds_of(flags: &[&str], more: &[&'static str]) {
    let shim = Shim::build();
    let mut restless = Restless::start(Some(&shim.binary()), flags, seed());
    let traffic = restless.traffic();
    let process = restless.node.process_id();
    let mut times = Vec::new();
    for round in 0..rounds() {
        let mut faults = faults(round);
        if round % 4 == 1 && !more.is_empty() {
            // Lost events have the tables read back first: a fault of dumps would leave those of transactions no chance.
            faults.truncate(1);
            faults.extend(more);
        }
        let words = faults.join(" ");
        shim.forget();
        shim.order(&words);
        restless.change();
        let longer = restless.random.below(LONGEST);
        wait_for_bites(&shim, &faults, Duration::from_millis(longer));
        restless.assert_whole(&words);
        shim.order("");
        let time = restless.becomes_newest(&words);
        assert!(time <= IN_STEP, "{words}: in step after {time:?}: {}", restless.node.log());
        times.push(time);
    }
    let report = restless.node.status().expect("a status");
    assert_eq!(report.locked, more.is_empty());
    assert_eq!(restless.node.process_id(), process);
    times.sort();
    let (p50, last) = (times[times.len() / 2], times[times.len() - 1]);
    println!("{} rounds of faults: in step after {p50:.0?} p50, {last:.0?} at most; {}", times.len(), judge(traffic));
}

/// Random changes and faults, one after another, in one life of a daemon whose tables are locked.
#[test]
fn faults_leave_one_state_whole() {
    rounds_of(&[], &[]);
}

/// The same where others may change the tables, with events that are lost.
#[test]
fn faults_leave_one_state_whole_in_shared_tables() {
    rounds_of(&["--tables", "shared"], &["event-overrun"]);
}

/// A daemon that meets faults from its first moment on, with tables of the one before in force: these hold, and when the
/// faults end its own are in force, and locked.
#[test]
fn faults_at_the_start_end_with_locked_tables() {
    let shim = Shim::build();
    let mut restless = Restless::start(Some(&shim.binary()), &[], seed());
    let traffic = restless.traffic();
    for fault in OF_TRANSACTIONS.iter().chain(&OF_DUMPS) {
        restless.node.kill9().expect("killed");
        shim.forget();
        shim.order(fault);
        restless.change();
        restless.node.spawn_again().expect("started");
        wait_for_bites(&shim, &[fault], Duration::from_millis(50));
        restless.assert_whole(fault);
        shim.order("");
        let time = restless.becomes_newest(fault);
        assert!(time <= IN_STEP, "{fault}: in step after {time:?}: {}", restless.node.log());
        assert!(restless.node.status().expect("a status").locked, "{fault}");
    }
    println!("{}", judge(traffic));
}

/// The wall clock jumps by hours: what is enforced is in step as ever, a pause by command ends at its time.
#[test]
fn a_clock_that_jumps_changes_nothing() {
    let shim = Shim::build();
    let mut restless = Restless::start(Some(&shim.binary()), &[], seed());
    let traffic = restless.traffic();
    for jump in ["clock=21600", "clock=-21600", "clock=900000000", ""] {
        shim.order(jump);
        restless.change();
        let time = restless.in_step();
        assert!(time <= IN_STEP, "{jump}: in step after {time:?}");
        restless.assert_newest(jump);
    }
    println!("{}", judge(traffic));
    for (before, after) in [("", "clock=-21600"), ("clock=-21600", "")] {
        shim.order(before);
        restless.node.command(&["pause", "--for", "1s"]).expect("paused");
        let begun = Instant::now();
        assert!(restless.node.status().expect("a status").paused_until.is_some());
        shim.order(after);
        restless.node.wait_for("over", |report| report.paused_until.is_none()).expect("over");
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?} from {before:?} to {after:?}", begun.elapsed());
        restless.in_step();
        restless.assert_newest("after a pause");
    }
}
