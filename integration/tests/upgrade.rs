//! Two builds of the daemon with different table layouts replace each other, up and down, under traffic.
//!
//! In: `FLATFELL_UPGRADES`, how many times (9 without it). Out: what passed, what was lost. What always holds: both are true binaries; the
//! other one is this tree's with its tables' names written over, so that each finds tables of a layout that it was not built for.
#![allow(clippy::expect_used)]

mod restless;
mod world;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use flatfell_integration::Place;
use flatfell_integration::node;
use flatfell_rules::compile::Slot;
use restless::{IN_STEP, Restless, assert_none_fell, counters, judge};

/// The letters of the slots.
const SLOTS: [char; 2] = ['a', 'b'];

fn upgrades() -> usize {
    // An odd number: the other layout's is the last.
    std::env::var("FLATFELL_UPGRADES").map_or(9, |count| count.parse().expect("a number")) | 1
}

/// The number of this tree's layout.
fn layout() -> u8 {
    let name = Slot::A.table_name();
    name.trim_start_matches("flatfell-").trim_end_matches('a').parse().expect("a number of one digit")
}

/// The daemon with another layout's number in the names of its tables.
fn of_layout(number: u8, directory: &Path) -> PathBuf {
    let mut bytes = fs::read(node::binary().expect("a binary")).expect("a binary");
    for slot in SLOTS {
        let (own, other) = (format!("flatfell-{}{slot}", layout()), format!("flatfell-{number}{slot}"));
        let places: Vec<usize> =
            bytes.windows(own.len()).enumerate().filter(|(_, at)| *at == own.as_bytes()).map(|(at, _)| at).collect();
        assert!(!places.is_empty() && own.len() == other.len(), "{own}");
        for at in places {
            bytes[at..at + own.len()].copy_from_slice(other.as_bytes());
        }
    }
    let path = directory.join(format!("flatfell-{number}"));
    fs::write(&path, bytes).expect("a binary");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a binary");
    path
}

fn tables(restless: &Restless) -> Vec<String> {
    let space = restless.lab.netns(Place::Node(1)).expect("the node");
    let listed = space.feed("nft", &["list", "tables"], "").expect("a listing");
    let mut tables: Vec<String> = listed.lines().map(|line| line.trim_start_matches("table ").to_owned()).collect();
    tables.sort();
    tables
}

/// Up and down, orderly and by kill -9, with a change of policy in between or none: the tables that are left are the newest daemon's, no
/// forbidden packet passes, no allowed one is lost, no counter falls.
#[test]
fn two_layouts_replace_each_other() {
    let directory = tempfile::tempdir().expect("a directory");
    let numbers = [layout(), layout() + 1];
    let builds = numbers.map(|number| of_layout(number, directory.path()));
    let mut restless = Restless::start(Some(&builds[0]), &[], 3);
    let traffic = restless.traffic();
    let mut before = counters(&restless.node);
    for turn in 1..=upgrades() {
        let (number, build) = (numbers[turn % 2], &builds[turn % 2]);
        if turn % 3 == 0 {
            restless.change();
        }
        if turn % 4 < 2 {
            restless.node.stop().expect("stopped");
        } else {
            restless.node.kill9().expect("killed");
        }
        restless.assert_whole("between two");
        restless.node.replace_binary(build);
        restless.node.spawn_again().expect("started");
        let time = restless.in_step();
        assert!(time <= 2 * IN_STEP, "turn {turn}: {time:?}");
        restless.node.wait_for("ready", |report| report.ready).expect("ready");
        assert_eq!(tables(&restless), [format!("bridge flatfell-{number}a"), format!("inet flatfell-{number}a")]);
        restless.assert_newest("replaced");
        assert!(restless.node.status().expect("a status").locked);
        thread::sleep(Duration::from_millis(50));
        let now = counters(&restless.node);
        assert_none_fell(&before, &now, &format!("turn {turn}"));
        before = now;
    }
    println!("{} times: {}", upgrades(), judge(traffic));
    // The clean-up of one takes the other's tables away too.
    restless.node.stop().expect("stopped");
    restless.node.command(&["cleanup"]).expect("cleaned up");
    assert_eq!(tables(&restless), Vec::<String>::new());
}
