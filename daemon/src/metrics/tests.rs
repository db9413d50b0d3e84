//! What is exported, what the catalogue says, and what the documentation says are the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flatfell_rules::compile::{CounterMeaning, Guard};
use flatfell_rules::effective::{Effective, EffectivePod, Fallback, Isolation, RuleIdentity};
use flatfell_rules::object::ObjectName;
use flatfell_rules::policy::{Action, Direction};
use flatfell_rules::ruleset::{CounterValue, Name};
use prometheus_client::encoding::text;

use super::catalogue::{ALL, Kind};
use super::*;
use crate::cluster::{Resource, WatchState};
use crate::cni::Counts;
use crate::engine::EngineStatus;
use crate::flows::FlowNumbers;
use crate::manifests::Severity;
use crate::pause::Paused;
use crate::state::{Complaint, SourceState};

/// Name, type and labels of each metric.
type Described = BTreeMap<String, (String, Vec<String>)>;

fn of_catalogue() -> Described {
    let words = |labels: &[&str]| labels.iter().map(|&label| label.to_owned()).collect();
    let name = |family: &catalogue::Family| format!("{}{}", family.name, family.suffix());
    ALL.iter().map(|family| (name(family), (family.kind.word().to_owned(), words(family.labels)))).collect()
}

fn of_documentation() -> Described {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let page = fs::read_to_string(page).expect("docs/metrics.md");
    let mut described = Described::new();
    for row in page.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [name, kind, labels, unit, meaning, example] = cells[..] else { panic!("six cells: {row}") };
        let name = name.trim_matches('`');
        assert!(!unit.is_empty() && !meaning.is_empty() && example.len() > 2, "{row}");
        let base = name.trim_end_matches("_total");
        assert!(example.contains(base), "the example of {name} asks for something else");
        let labels = labels.split(", ").filter(|label| !label.is_empty()).map(str::to_owned).collect();
        assert!(described.insert(name.to_owned(), (kind.to_owned(), labels)).is_none(), "{name} stands twice");
    }
    described
}

fn status() -> EngineStatus {
    let policies = vec![ObjectName::new("shop", "allow")];
    let isolated = Isolation { default: Fallback::Deny, policies, rules: Vec::new() };
    let name = ObjectName::new("shop", "fe");
    let pod = EffectivePod { name, addresses: Vec::new(), ingress: isolated, egress: Isolation::default() };
    let mut status = EngineStatus::starting();
    status.enforced = Some(Arc::new(Effective::from_iter([pod])));
    status.foreign_engines = ["calico"].into();
    status.upkeep.bridges = [(("cni0".to_owned(), "ipv4"), true)].into();
    status
}

/// A daemon that has something to say about everything.
fn own(size: Size) -> Own {
    let mut watch = WatchState::new(Resource::Pods);
    watch.heard = Some(Instant::now());
    watch.failures.insert("gone", 1);
    let problem = |severity| Complaint { severity, text: String::new() };
    let source = SourceState {
        refused: vec![ObjectName::new("shop", "broken")],
        problems: vec![problem(Severity::Error), problem(Severity::Warning)],
        watches: vec![watch],
        ..SourceState::default()
    };
    Own {
        status: Arc::new(status()),
        source: Arc::new(source),
        paused: Paused { until: "2096-10-02T07:06:40Z".parse().ok(), problem: None },
        is_ready: true,
        unprotected: Some(Duration::from_secs(1)),
        programmed: Programmed::default(),
        flows: FlowNumbers { records: vec![("denied", 1)], lost: vec![("rate", 2)], events: vec![("created", 3)] },
        cni: Counts::default().read(),
        reading: Reading { failures: 0, age: Duration::ZERO },
        size,
        series_max: SERIES_MAX,
        process: Process::read(),
        conntrack: Conntrack { entries: Some(1), limit: Some(2) },
    }
}

fn series() -> Series {
    let pod = || ObjectName::new("shop", "fe");
    let (direction, action) = (Direction::Ingress, Action::Accept);
    let identity = || RuleIdentity {
        policy: ObjectName::new("shop", "allow"),
        direction,
        action,
        peers: "any".to_owned(),
        ports: "tcp 80".to_owned(),
        occurrence: 0,
    };
    let all = [
        CounterMeaning::Rule { identity: Arc::new(identity()), index: 0, action },
        CounterMeaning::RuleConnections { identity: Arc::new(identity()), index: 0, action },
        CounterMeaning::DefaultAllowed { pod: pod(), direction },
        CounterMeaning::DefaultAllowedConnections { pod: pod(), direction },
        CounterMeaning::Dropped { pod: pod(), direction },
        CounterMeaning::WouldDrop { pod: pod(), direction },
        CounterMeaning::Spoofed { pod: pod() },
        CounterMeaning::Guard(Guard::Frame),
        CounterMeaning::Unattributed,
    ];
    let totals = all.each_ref().map(|_| Some(CounterValue { packets: 1, bytes: 60 }));
    let meanings =
        (0_u8..).zip(all).map(|(number, meaning)| (Name::from(number.to_string()), Arc::new(meaning))).collect();
    let mut series = Series::default();
    series.update(&meanings, &totals);
    series.isolate(status().enforced.as_ref());
    series
}

fn exposition(format: Format) -> String {
    let mut out = String::new();
    let size = series().write(&mut out, format, SERIES_MAX);
    let mut registry = Registry::default();
    registry.register_collector(Box::new(own(size)));
    let mut rest = String::new();
    text::encode(&mut rest, &registry).expect("a string takes everything");
    out + &if format == Format::Text { format::to_text(&rest, ALL) } else { rest }
}

/// What an exposition in the text format says of itself; each family must have a series.
fn of_exposition(text: &str) -> Described {
    let mut described = Described::new();
    let mut series = BTreeSet::new();
    for line in text.lines() {
        if let Some(line) = line.strip_prefix("# TYPE ") {
            let (name, kind) = line.split_once(' ').expect("a type");
            let before = described.insert(name.to_owned(), (kind.to_owned(), Vec::new()));
            assert!(before.is_none(), "{name} is described twice");
        } else if !line.starts_with('#') {
            let (name, labels) = read(line);
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            let name = base.filter(|base| described.contains_key(*base)).unwrap_or(&name).to_owned();
            let labels: Vec<String> = labels.into_iter().filter(|label| label != "le").collect();
            assert!(series.insert(line.rsplit_once(' ').expect("a value").0.to_owned()), "twice: {line}");
            described.get_mut(&name).unwrap_or_else(|| panic!("no type: {line}")).1 = labels;
        }
    }
    for name in described.keys() {
        assert!(series.iter().any(|line| line.starts_with(name.as_str())), "{name} has no series:\n{text}");
    }
    described
}

/// The name and the names of the labels of a line. No value in the test has a comma or a brace.
fn read(line: &str) -> (String, Vec<String>) {
    let (series, _) = line.rsplit_once(' ').expect("a value");
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    let labels = labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty());
    (name.to_owned(), labels.map(|label| label.split_once('=').expect("a label").0.to_owned()).collect())
}

#[test]
fn the_documentation_lists_each_metric() {
    assert_eq!(of_documentation(), of_catalogue());
}

#[test]
fn each_metric_of_the_catalogue_is_exported_and_no_other() {
    assert_eq!(of_exposition(&exposition(Format::Text)), of_catalogue());
}

#[test]
fn both_formats_say_the_same() {
    let series = |text: &str| -> BTreeSet<String> {
        let moving =
            |line: &&str| !line.starts_with('#') && !line.contains("_seconds ") && !line.starts_with("process_");
        text.lines().filter(moving).filter(|line| !line.contains("silence")).map(str::to_owned).collect()
    };
    let (text, open) = (exposition(Format::Text), exposition(Format::OpenMetrics));
    assert_eq!(series(&text), series(&open));
    assert!(open.ends_with("# EOF\n") && !text.contains("# EOF") && !text.contains("# UNIT"));
    for family in ALL {
        let described = format!("# TYPE {} {}\n", family.name, family.kind.word());
        assert!(open.contains(&described), "{described}");
        let unit = family.unit().map(|unit| format!("# UNIT {} {unit}\n", family.name));
        assert!(unit.is_none_or(|unit| open.contains(&unit)), "{}", family.name);
        assert!(text.contains(&format!("# HELP {}{} {}\n", family.name, family.suffix(), family.help)));
    }
    assert!(ALL.iter().any(|family| family.kind == Kind::Histogram));
}
