//! The series of single rules and pods.
//!
//! In: what each counter means and its total, and what holds for each pod. Out: text. What always holds: a series stands once; its labels are
//! rendered when meanings change, not at each scrape; a series goes with the meaning of its counter, which the engine keeps for a while
//! after the rule or pod is gone; over the limit the same series are left out each time, rules last in order first.

use std::collections::BTreeMap;
use std::sync::Arc;

use flatfell_rules::compile::{CounterMeaning, Logged, Meanings};
use flatfell_rules::effective::{Effective, Fallback};
use flatfell_rules::policy::Direction;
use flatfell_rules::ruleset::CounterValue;

use super::catalogue::{self, Family};
use super::format::{self, Format};
use crate::flows::LoggedPackets;

/// What a row of series speaks of; in the order in which they are kept where there are too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Guard,
    Unattributed,
    Spoofed,
    Dropped,
    WouldDrop,
    DefaultAllowed,
    Rule,
}

impl Subject {
    const ALL: [Self; 7] = [
        Self::Guard,
        Self::Unattributed,
        Self::Spoofed,
        Self::Dropped,
        Self::WouldDrop,
        Self::DefaultAllowed,
        Self::Rule,
    ];

    /// Its families: packets, bytes, and connections where it has them.
    const fn families(self) -> &'static [Family] {
        match self {
            Self::Guard => &[catalogue::GUARD_PACKETS, catalogue::GUARD_BYTES],
            Self::Unattributed => &[catalogue::UNATTRIBUTED_PACKETS, catalogue::UNATTRIBUTED_BYTES],
            Self::Spoofed => &[catalogue::SPOOFED_PACKETS, catalogue::SPOOFED_BYTES],
            Self::Dropped => &[catalogue::DROPPED_PACKETS, catalogue::DROPPED_BYTES],
            Self::WouldDrop => &[catalogue::WOULD_DROP_PACKETS, catalogue::WOULD_DROP_BYTES],
            Self::DefaultAllowed => &[
                catalogue::DEFAULT_ALLOWED_PACKETS,
                catalogue::DEFAULT_ALLOWED_BYTES,
                catalogue::DEFAULT_ALLOWED_CONNECTIONS,
            ],
            Self::Rule => &[catalogue::RULE_PACKETS, catalogue::RULE_BYTES, catalogue::RULE_CONNECTIONS],
        }
    }

    /// Whether there are as many as a cluster's users make.
    const fn is_bounded_by_code(self) -> bool {
        matches!(self, Self::Guard | Self::Unattributed)
    }
}

/// What a counter adds to its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Adds {
    Traffic,
    Connections,
}

/// Texts one behind the other: a scrape reads them all, in their order.
#[derive(Debug, Default)]
struct Texts {
    all: String,
    ends: Vec<usize>,
}

impl Texts {
    fn push(&mut self, text: &str) {
        self.all.push_str(text);
        self.ends.push(self.all.len());
    }

    fn iter(&self) -> impl Iterator<Item = &str> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| self.all.get(start..*end).unwrap_or_default())
    }
}

/// The rows of one subject, in the order of their labels.
#[derive(Debug, Default)]
struct Rows {
    rows: Vec<Row>,
    /// The labels of each, as they stand in its lines.
    labels: Texts,
    /// Of rules, the labels of the info of each.
    infos: Texts,
}

impl Rows {
    fn push(&mut self, labels: &str, info: Option<&str>) {
        self.rows.push(Row { has_info: info.is_some(), values: [None; 3] });
        self.labels.push(labels);
        if let Some(info) = info {
            self.infos.push(info);
        }
    }
}

/// The series of one rule, pod and direction, or guard.
#[derive(Clone, Debug, Default)]
struct Row {
    /// Whether it is a rule's.
    has_info: bool,
    /// Packets, bytes, connections; `None` where no counter counts it.
    values: [Option<u64>; 3],
}

impl Row {
    fn series(&self) -> usize {
        self.values.iter().flatten().count() + usize::from(self.has_info)
    }

    fn add(&mut self, adds: Adds, value: CounterValue) {
        let add = |slot: &mut Option<u64>, value| *slot = Some(slot.unwrap_or_default().saturating_add(value));
        match adds {
            Adds::Traffic => {
                add(&mut self.values[0], value.packets);
                add(&mut self.values[1], value.bytes);
            }
            Adds::Connections => add(&mut self.values[2], value.packets),
        }
    }
}

/// How many series there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Exported.
    pub exported: usize,
    /// Left out.
    pub left_out: usize,
}

/// The rows, as of the last scrape.
#[derive(Debug, Default)]
pub struct Series {
    meanings: Meanings,
    /// By subject and place in [`Subject::ALL`].
    rows: [Rows; Subject::ALL.len()],
    /// For each meaning in its order: its row, and what it adds.
    places: Vec<Option<(Subject, usize, Adds)>>,
    /// The places of the flow log's counters among the meanings.
    logged: Vec<(usize, Logged)>,
    isolation: Isolation,
}

impl Series {
    /// Takes in the totals of all counters, in the order of their meanings; `None` for one that was never read.
    pub fn update(&mut self, meanings: &Meanings, totals: &[Option<CounterValue>]) {
        if !self.meanings.ptr_eq(meanings) {
            self.rebuild(meanings);
        }
        for row in self.rows.iter_mut().flat_map(|rows| &mut rows.rows) {
            row.values = [None; 3];
        }
        for (place, total) in self.places.iter().zip(totals) {
            if let (Some((subject, row, adds)), Some(total)) = (*place, *total) {
                self.rows[index(subject)].rows[row].add(adds, total);
            }
        }
    }

    /// What the kernel counted for the flow log, out of the totals that were taken in.
    pub fn logged(&self, totals: &[Option<CounterValue>]) -> LoggedPackets {
        let packets = |kind| {
            let places = self.logged.iter().filter(|(_, logged)| *logged == kind);
            places.filter_map(|(place, _)| *totals.get(*place)?).map(|total| total.packets).sum()
        };
        LoggedPackets { sent: packets(Logged::Sent), beyond_rate: packets(Logged::BeyondRate) }
    }

    /// Takes in what isolates each pod.
    pub fn isolate(&mut self, effective: Option<&Arc<Effective>>) {
        self.isolation.update(effective);
    }

    fn rebuild(&mut self, meanings: &Meanings) {
        let mut infos: [BTreeMap<&str, Option<&str>>; Subject::ALL.len()] = Default::default();
        let described: Vec<_> = meanings.values().map(|meaning| describe(meaning)).collect();
        for described in described.iter().flatten() {
            let info = infos[index(described.subject)].entry(&described.labels).or_default();
            *info = info.or(described.info.as_deref());
        }
        let places: [BTreeMap<&str, usize>; Subject::ALL.len()] =
            infos.each_ref().map(|rows| rows.keys().zip(0..).map(|(labels, at)| (*labels, at)).collect());
        self.places = described
            .iter()
            .map(|described| {
                let described = described.as_ref()?;
                let row = *places[index(described.subject)].get(described.labels.as_str())?;
                Some((described.subject, row, described.adds))
            })
            .collect();
        self.rows = infos.map(|infos| {
            let mut rows = Rows::default();
            infos.into_iter().for_each(|(labels, info)| rows.push(labels, info));
            rows
        });
        let logged = meanings.values().enumerate().filter_map(|(place, meaning)| match **meaning {
            CounterMeaning::FlowLog(logged) => Some((place, logged)),
            _ => None,
        });
        self.logged = logged.collect();
        self.meanings = meanings.clone();
    }

    /// Writes them, at most `max` of those whose number users decide.
    pub fn write(&self, out: &mut String, format: Format, max: usize) -> Size {
        let mut size = Size::default();
        let mut room = Room { left: max, size: &mut size };
        let isolated = room.take(self.isolation.lines.iter().map(|_| 1));
        let shown = Subject::ALL.map(|subject| {
            let rows = &self.rows[index(subject)].rows;
            if subject.is_bounded_by_code() { rows.len() } else { room.take(rows.iter().map(Row::series)) }
        });
        for subject in Subject::ALL {
            for (field, family) in subject.families().iter().enumerate() {
                let (rows, shown) = (&self.rows[index(subject)], shown[index(subject)]);
                format::header(out, family, format);
                write_values(out, family, rows, shown, field);
            }
        }
        let (rules, shown) = (&self.rows[index(Subject::Rule)], shown[index(Subject::Rule)]);
        let shown = rules.rows[..shown].iter().filter(|row| row.has_info).count();
        write_infos(out, format, &catalogue::RULE_INFO, rules.infos.iter().take(shown));
        let isolation = self.isolation.lines[..isolated].iter().map(String::as_str);
        write_infos(out, format, &catalogue::POD_ISOLATED_BY_INFO, isolation);
        size
    }
}

/// What is left of the series that may be exported.
struct Room<'a> {
    left: usize,
    size: &'a mut Size,
}

impl Room<'_> {
    /// How many of the first rows fit, each with so many series. Once one does not fit, none behind it does.
    fn take(&mut self, rows: impl Iterator<Item = usize>) -> usize {
        let mut taken = 0;
        let mut fits = true;
        for series in rows {
            fits &= series <= self.left;
            if fits {
                self.left -= series;
                self.size.exported += series;
                taken += 1;
            } else {
                self.left = 0;
                self.size.left_out += series;
            }
        }
        taken
    }
}

/// Writes one value of the first rows.
fn write_values(out: &mut String, family: &Family, rows: &Rows, shown: usize, field: usize) {
    let name = format!("{}{}", family.name, family.suffix());
    for (row, labels) in rows.rows[..shown].iter().zip(rows.labels.iter()) {
        if let Some(value) = row.values[field] {
            out.push_str(&name);
            out.push_str(labels);
            format::value(out, value);
        }
    }
}

fn write_infos<'a>(out: &mut String, format: Format, family: &Family, infos: impl Iterator<Item = &'a str>) {
    format::header(out, family, format);
    infos.for_each(|labels| out.extend([family.name, labels, " 1\n"]));
}

/// A subject's place in [`Subject::ALL`].
fn index(subject: Subject) -> usize {
    Subject::ALL.iter().position(|other| *other == subject).unwrap_or_default()
}

/// The row of a counter.
struct Described {
    subject: Subject,
    labels: String,
    info: Option<String>,
    adds: Adds,
}

fn describe(meaning: &CounterMeaning) -> Option<Described> {
    let of = |subject: Subject, adds, values: &[&str]| {
        Some(Described { subject, labels: rendered(&subject.families()[0], values), info: None, adds })
    };
    let of_pod = |subject, adds, pod: &flatfell_rules::object::ObjectName, direction: Direction| {
        of(subject, adds, &[&pod.namespace, &pod.name, &direction.to_string()])
    };
    match meaning {
        CounterMeaning::Rule { identity, index, action } => {
            let (policy, rule) = (&identity.policy, identity.label());
            let direction = identity.direction.to_string();
            let labels = [&*policy.namespace, &policy.name, &direction, &rule];
            let place = index.to_string();
            let info = [&labels[..], &[&place, &identity.peers, &identity.ports]].concat();
            let described = of(Subject::Rule, Adds::Traffic, &[&labels[..], &[action.word()]].concat())?;
            Some(Described { info: Some(rendered(&catalogue::RULE_INFO, &info)), ..described })
        }
        CounterMeaning::RuleConnections { identity, action, .. } => {
            let policy = &identity.policy;
            let direction = identity.direction.to_string();
            let labels = [&*policy.namespace, &policy.name, &direction, &identity.label(), action.word()];
            of(Subject::Rule, Adds::Connections, &labels)
        }
        CounterMeaning::DefaultAllowed { pod, direction } => {
            of_pod(Subject::DefaultAllowed, Adds::Traffic, pod, *direction)
        }
        CounterMeaning::DefaultAllowedConnections { pod, direction } => {
            of_pod(Subject::DefaultAllowed, Adds::Connections, pod, *direction)
        }
        CounterMeaning::Dropped { pod, direction } => of_pod(Subject::Dropped, Adds::Traffic, pod, *direction),
        CounterMeaning::WouldDrop { pod, direction } => of_pod(Subject::WouldDrop, Adds::Traffic, pod, *direction),
        CounterMeaning::Spoofed { pod } => of(Subject::Spoofed, Adds::Traffic, &[&pod.namespace, &pod.name]),
        CounterMeaning::Guard(guard) => of(Subject::Guard, Adds::Traffic, &[guard.word()]),
        CounterMeaning::Unattributed => of(Subject::Unattributed, Adds::Traffic, &[]),
        // Part of what the flow log says of itself.
        CounterMeaning::FlowLog(_) => None,
    }
}

fn rendered(family: &Family, values: &[&str]) -> String {
    let mut out = String::new();
    format::labels(&mut out, family.labels, values);
    out
}

/// Which policies isolate which pod.
#[derive(Debug, Default)]
struct Isolation {
    effective: Option<Arc<Effective>>,
    /// The labels of each series.
    lines: Vec<String>,
}

impl Isolation {
    fn update(&mut self, effective: Option<&Arc<Effective>>) {
        let is_same = match (&self.effective, effective) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (old, new) => old.is_none() && new.is_none(),
        };
        if !is_same {
            self.effective = effective.cloned();
            self.lines = effective.map(|effective| isolated(effective)).unwrap_or_default();
        }
    }
}

fn isolated(effective: &Effective) -> Vec<String> {
    let mut lines = Vec::new();
    for pod in effective.pods().values() {
        for direction in [Direction::Ingress, Direction::Egress] {
            let isolation = pod.isolation(direction);
            // Audited policies isolate nobody.
            for policy in isolation.policies.iter().filter(|_| isolation.default == Fallback::Deny) {
                let values = [&*pod.name.namespace, &pod.name.name, &direction.to_string(), &policy.name];
                lines.push(rendered(&catalogue::POD_ISOLATED_BY_INFO, &values));
            }
        }
    }
    lines
}

#[cfg(test)]
#[path = "series_tests.rs"]
mod tests;
