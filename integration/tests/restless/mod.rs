//! A node whose policy goes from one of a few states to another at random, under traffic that all of them judge alike.
//!
//! In: a daemon's binary, seeds. Out: what the kernel has, and whether that is one of the states, whole. What always holds: each change
//! is one file put in place at once; packets from `b` to `a` are allowed in every state, those from `c` to `a` in none.
#![allow(dead_code, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flatfell_integration::node::{self, FlatfellNode};
use flatfell_integration::{Flow, Lab, LabConfig, Place, Report, Traffic};
use flatfell_rules::sim::random::Random;
use serde_json::{Value, json};

use crate::world::{app, namespace, peer, policy, streams};

/// The file that changes.
pub const FILE: &str = "p.yaml";

const PAUSE: Duration = Duration::from_millis(1);
const GRACE: Duration = Duration::from_millis(300);
const STATES: usize = 6;

/// How long the kernel may be out of step once nothing is in the way.
pub const IN_STEP: Duration = Duration::from_secs(1);

/// The rules for `a`, and whether another pod has some and a third is there: `b` may come in each, by one of several rules; `c` never.
fn policies(state: usize) -> String {
    let udp = |port: u16| json!({"protocol": "UDP", "port": port});
    let stable = json!({"from": [peer("b")], "ports": [udp(80)]});
    let rules = match state % 3 {
        0 => json!([stable]),
        1 => json!([stable, {"from": [peer("d")], "ports": [udp(80)]}]),
        _ => json!([stable, {"from": [peer("b")], "ports": [udp(90)]}, {"from": [peer("z")]}]),
    };
    let mut all = vec![policy("a", "a", "ingress", rules)];
    if state >= 3 {
        all.push(policy("b", "b", "egress", json!([{"to": [peer("a")], "ports": [udp(80)]}])));
        // Of another node: one of this node without an interface would be kept when it is gone.
        let mut far = app("d", 9, "d");
        far["spec"]["nodeName"] = json!("node2");
        all.push(far);
    }
    all.iter().map(Value::to_string).collect::<Vec<_>>().join("\n---\n")
}

/// The manifests in their first state.
pub fn manifests() -> Vec<(&'static str, String)> {
    let pods = [("a", 0), ("b", 1), ("c", 2)].map(|(name, slot)| app(name, slot, name).to_string());
    vec![("ns.yaml", namespace().to_string()), ("pods.yaml", pods.join("\n---\n")), (FILE, policies(0))]
}

/// What a table has: chains as they are listed, the words of sets and maps.
pub type Parts = BTreeMap<String, Part>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    Chain(String),
    Elements(BTreeSet<String>),
}

/// The restless node.
pub struct Restless {
    pub node: FlatfellNode,
    pub lab: Lab,
    states: Vec<Parts>,
    now: usize,
    /// The states that may be in force: the last that was waited for, and all behind it.
    possible: BTreeSet<usize>,
    pub random: Random,
}

impl Restless {
    /// Starts and goes through all states once, undisturbed.
    pub fn start(binary: Option<&Path>, flags: &[&str], seed: u64) -> Self {
        let lab = Lab::new(LabConfig { nodes: 1, pods: 3, ..LabConfig::default() }).expect("a lab");
        let files = manifests();
        let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
        let own = node::binary().expect("a binary");
        let node = FlatfellNode::start_binary(binary.unwrap_or(&own), &lab, 1, &files, flags).expect("a daemon");
        let mut this =
            Self { node, lab, states: Vec::new(), now: 0, possible: BTreeSet::from([0]), random: Random::new(seed) };
        for state in 0..STATES {
            this.node.apply(FILE, &policies(state)).expect("applied");
            let mut tables = this.tables();
            assert_eq!(tables.len(), 1, "{tables:?}");
            this.states.extend(tables.pop());
        }
        this.node.apply(FILE, &policies(0)).expect("applied");
        this
    }

    /// Goes to another state, without waiting.
    pub fn change(&mut self) {
        let steps = self.random.below(u64::try_from(STATES - 1).expect("few"));
        let next = (self.now + 1 + usize::try_from(steps).expect("few")) % STATES;
        self.now = next;
        self.possible.insert(next);
        self.node.write(FILE, &policies(next)).expect("writing");
    }

    /// Fails unless a table of the kernel's has all of the state that was in force, or all of one that was asked for since.
    pub fn assert_whole(&self, when: &str) {
        let tables = self.tables();
        let whole = tables.iter().any(|parts| self.possible.iter().any(|state| has(parts, &self.states[*state])));
        assert!(whole, "{when}: none of {:?}: {:#?}", self.possible, self.missing(&tables));
    }

    /// Fails unless there is one table, with the newest state and nothing of another.
    pub fn assert_newest(&self, when: &str) {
        let tables = self.tables();
        assert!(self.is_newest(&tables), "{when}: not state {}: {:#?}", self.now, self.missing(&tables));
    }

    /// Waits until that is so, without a change that would tell the daemon anything, and says how long it took.
    pub fn becomes_newest(&mut self, when: &str) -> Duration {
        let begun = Instant::now();
        while !self.is_newest(&self.tables()) && begun.elapsed() < 2 * IN_STEP {
            std::thread::sleep(Duration::from_millis(10));
        }
        let time = begun.elapsed();
        self.assert_newest(when);
        self.possible = BTreeSet::from([self.now]);
        self.node.wait_for("in step", |report| report.synced).expect("in step");
        time
    }

    fn is_newest(&self, tables: &[Parts]) -> bool {
        tables.len() == 1 && tables[0] == self.states[self.now]
    }

    /// Waits until the newest state is in force, and says how long that took.
    pub fn in_step(&mut self) -> Duration {
        let begun = Instant::now();
        self.node.enforced().expect("in step");
        self.possible = BTreeSet::from([self.now]);
        begun.elapsed()
    }

    /// Two allowed kinds of each family, and their forbidden sisters.
    pub fn traffic(&self) -> Traffic {
        let kinds = [
            streams(1, 0, 80, Flow::Turns(64)),
            streams(1, 0, 80, Flow::Steady),
            streams(1, 0, 80, Flow::Pushed),
            streams(2, 0, 80, Flow::Fresh),
        ];
        Traffic::start(&self.lab, &kinds.concat(), PAUSE).expect("traffic")
    }

    fn missing(&self, tables: &[Parts]) -> Vec<(String, Option<Part>, Part)> {
        let parts = tables.first().cloned().unwrap_or_default();
        let wanted = self.states[self.now].clone();
        let gone = parts.iter().filter(|(head, _)| !wanted.contains_key(*head));
        let gone = gone.map(|(head, part)| (format!("not wanted: {head}"), None, part.clone()));
        let differ = wanted.iter().filter(|(head, part)| parts.get(*head) != Some(*part));
        let differ = differ.map(|(head, part)| (head.clone(), parts.get(head).cloned(), part.clone()));
        gone.chain(differ).collect()
    }

    /// What the kernel has, by slot.
    pub fn tables(&self) -> Vec<Parts> {
        let space = self.lab.netns(Place::Node(1)).expect("the node");
        parts(&space.feed("nft", &["-s", "list", "ruleset"], "").expect("a listing"))
    }
}

/// The packets of each rule that the daemon tells.
pub fn counters(node: &FlatfellNode) -> BTreeMap<String, u64> {
    let metrics = node.metrics().expect("metrics");
    let rules = metrics.lines().filter(|line| line.starts_with("flatfell_rule_packets_total"));
    let values = rules.map(|line| line.rsplit_once(' ').expect("a value"));
    let values: BTreeMap<String, u64> =
        values.map(|(name, value)| (name.to_owned(), value.parse().expect("a number"))).collect();
    assert!(!values.is_empty(), "no counter: {metrics}");
    values
}

/// Fails if a counter is less than it was.
pub fn assert_none_fell(before: &BTreeMap<String, u64>, now: &BTreeMap<String, u64>, when: &str) {
    for (name, value) in now {
        let then = before.get(name).copied().unwrap_or(0);
        assert!(*value >= then, "{when}: {name} went from {then} to {value}");
    }
}

/// Fails if a forbidden packet passed or an allowed one did not; says what there was.
pub fn judge(traffic: Traffic) -> String {
    let reports = traffic.stop(GRACE).expect("traffic");
    let (allowed, forbidden) = reports.split_at(6);
    let sent = |reports: &[Report]| reports.iter().map(|report| u64::from(report.sent)).sum::<u64>();
    let passed: usize = forbidden.iter().map(Report::received).sum();
    let lost: usize = allowed.iter().map(Report::lost).sum();
    let said = format!(
        "of {} forbidden packets {passed} passed, of {} allowed {lost} were lost",
        sent(forbidden),
        sent(allowed)
    );
    assert_eq!((passed, lost), (0, 0), "{said}");
    said
}

/// Whether a table has all of a state: its chains as they are, its elements among others.
fn has(parts: &Parts, state: &Parts) -> bool {
    state.iter().all(|(head, wanted)| match (parts.get(head), wanted) {
        (Some(Part::Elements(found)), Part::Elements(wanted)) => wanted.is_subset(found),
        (found, wanted) => found == Some(wanted),
    })
}

/// The tables of a listing by slot, without what differs from time to time: numbers of the generation, of ids and of the marker's
/// address, and what only counts.
fn parts(listing: &str) -> Vec<Parts> {
    let mut tables = BTreeMap::<String, Parts>::new();
    let (mut family, mut slot, mut head, mut body) =
        (String::new(), String::new(), String::new(), Vec::<String>::new());
    for line in listing.lines() {
        let line = steady(line);
        let mut words = line.split_whitespace();
        match (line.starts_with('\t'), words.next()) {
            (false, Some("table")) => {
                family = words.next().unwrap_or_default().to_owned();
                slot = words.next().unwrap_or_default().to_owned();
            }
            (true, _) if !line.starts_with("\t\t") && line.ends_with('{') => {
                (head, body) = (format!("{family} {}", line.trim()), Vec::new());
            }
            (true, Some("}")) if !line.starts_with("\t\t") && !head.is_empty() => {
                if let Some(part) = part(&head, &body) {
                    tables.entry(slot.clone()).or_default().insert(head.clone(), part);
                }
                head.clear();
            }
            _ => body.push(line),
        }
    }
    tables.into_values().collect()
}

fn part(head: &str, body: &[String]) -> Option<Part> {
    let words: Vec<&str> = head.split_whitespace().collect();
    match words.as_slice() {
        [_, "chain", ..] => Some(Part::Chain(body.join("\n"))),
        [_, "set" | "map", "traffic" | "connections" | "retired", ..] => None,
        [_, "set" | "map", ..] => {
            let text = body.join(" ");
            let elements = text.split_once("elements = {").map(|(_, elements)| elements).unwrap_or_default();
            let elements = elements.trim_end().trim_end_matches('}');
            let words = elements.split(',').map(|element| element.split_whitespace().collect::<Vec<_>>().join(" "));
            Some(Part::Elements(words.filter(|word| !word.is_empty()).collect()))
        }
        _ => None,
    }
}

/// A line without the numbers that differ from time to time.
fn steady(line: &str) -> String {
    let words = line.split_inclusive([' ', ',', '\t']).map(|word| {
        let (text, end) = word.split_at(word.trim_end_matches([' ', ',', '\t']).len());
        let is_number = text.starts_with("0x");
        let is_marker = text.starts_with("192.0.2.");
        let text = if is_number {
            "NUMBER"
        } else if is_marker {
            "MARKER"
        } else {
            text
        };
        format!("{text}{end}")
    });
    words.collect()
}

/// Starts the daemon's binary with the shim that puts faults between it and the kernel, and gives it orders.
pub struct Shim {
    directory: tempfile::TempDir,
}

impl Shim {
    /// Builds it.
    pub fn build() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/preload/shim.c");
        let built = std::process::Command::new("gcc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
            .arg(directory.path().join("shim.so"))
            .arg(source)
            .arg("-ldl")
            .status();
        assert!(built.expect("gcc").success());
        let this = Self { directory };
        this.order("");
        this
    }

    /// A program that is the daemon with the shim before its libc.
    pub fn binary(&self) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let (path, at) = (self.directory.path().join("flatfell"), self.directory.path().display());
        let daemon = node::binary().expect("a binary");
        let script = format!(
            "#!/bin/sh\nexport LD_PRELOAD={at}/shim.so FAULTS_ORDER={at}/order FAULTS_BITES={at}/bites\nexec {} \"$@\"\n",
            daemon.display()
        );
        std::fs::write(&path, script).expect("a script");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("a script");
        path
    }

    /// These faults from now on, no others.
    pub fn order(&self, words: &str) {
        let draft = self.directory.path().join("draft");
        std::fs::write(&draft, words).expect("an order");
        std::fs::rename(&draft, self.directory.path().join("order")).expect("an order");
    }

    /// Forgets which faults bit.
    pub fn forget(&self) {
        std::fs::remove_file(self.directory.path().join("bites")).ok();
    }

    /// Which faults bit since.
    pub fn bites(&self) -> BTreeSet<String> {
        let bites = std::fs::read_to_string(self.directory.path().join("bites")).unwrap_or_default();
        bites.lines().map(str::to_owned).collect()
    }
}
