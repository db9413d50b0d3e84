//! The report: JSON for programs, Markdown and plots for people.
//!
//! In: what was measured. Out: files in a directory. What always holds: every cell is in it, those without a number with the reason; the load of the
//! machine stands beside the numbers.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use serde::Serialize;

use super::bars::{self, Bar};
use super::column::Column;
use super::plan::Axis;
use super::plot::{self, Line};
use super::rounds::Outcome;
use super::row::{Kind, Row};
use super::run::Measured;
use super::stats::median;

/// A run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Kernel, processors, load.
    pub machine: String,
    /// Rounds of each cell.
    pub rounds: usize,
    /// Seconds it took.
    pub seconds: u64,
    /// The bars.
    pub bars: Vec<Bar>,
    /// Every cell.
    pub cells: Vec<Measured>,
    /// A packet of an established flow with changes of policy, to that without.
    pub churn: Option<Outcome>,
}

impl Report {
    /// Of what was measured.
    pub fn new(cells: Vec<Measured>, churn: Option<Outcome>, rounds: usize, seconds: u64) -> anyhow::Result<Self> {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        // Only the version: the rest names somebody's build.
        let kernel = kernel.trim().split('-').next().unwrap_or_default().to_owned();
        let processors = std::thread::available_parallelism()?;
        let loads: Vec<f64> = cells.iter().map(|cell| cell.load).collect();
        let (low, high) = loads.iter().fold((f64::MAX, 0.0_f64), |(low, high), load| (low.min(*load), high.max(*load)));
        let machine = format!(
            "Linux {kernel}, {processors} processors, load average {:.1} ({low:.1} to {high:.1})",
            median(&loads)
        );
        Ok(Self { machine, rounds, seconds, bars: bars::all(&cells, churn.as_ref()), cells, churn })
    }

    /// Writes `packets.json`, `packets.md` and the plots.
    pub fn write(&self, directory: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(directory)?;
        fs::write(directory.join("packets.json"), serde_json::to_string(self)? + "\n")?;
        for axis in Axis::ALL {
            let lines = self.lines(axis);
            if !lines.is_empty() {
                let title = format!("Cost against conntrack and NAT, by {}", axis.name());
                fs::write(directory.join(file(axis)), plot::svg(&title, axis.name(), &lines))?;
            }
        }
        Ok(fs::write(directory.join("packets.md"), self.markdown())?)
    }

    /// The report as Markdown.
    pub fn markdown(&self) -> String {
        let mut text = format!("# What a packet pays\n\n{INTRODUCTION}\n\n");
        let _ = writeln!(text, "{}; {} rounds a cell, {} s in all.\n", self.machine, self.rounds, self.seconds);
        let _ = writeln!(text, "## Bars\n\n{}", bars::table(&self.bars));
        let _ = writeln!(text, "## Every row\n\n{}", self.every_row());
        for axis in Axis::ALL {
            let lines = self.lines(axis);
            if !lines.is_empty() {
                let name = axis.name();
                let _ = writeln!(text, "## By {name}\n\n![{name}]({})\n\n{}", file(axis), self.along(axis));
            }
        }
        let _ = writeln!(text, "## What is missing\n\n{}", self.missing());
        text
    }

    fn of(&self, axis: Axis) -> impl Iterator<Item = &Measured> {
        self.cells.iter().filter(move |cell| cell.axis == axis)
    }

    /// Columns with a number on this axis.
    fn columns(&self, axis: Axis) -> Vec<Column> {
        let has = |column: &Column| self.of(axis).any(|cell| cell.column == *column && cell.result.is_ok());
        Column::ALL.into_iter().filter(has).collect()
    }

    fn every_row(&self) -> String {
        let columns = self.columns(Axis::None);
        let mut text = "| row | baseline |".to_owned();
        columns.iter().for_each(|column| text.push_str(&format!(" {} |", column.name())));
        text.push_str(&format!("\n|---|---|{}\n", "---|".repeat(columns.len())));
        for row in Row::all() {
            let cell = |column| self.of(Axis::None).find(|cell| cell.column == column && cell.row == row);
            let known = Column::ALL.into_iter().filter_map(cell).find_map(|cell| cell.result.as_ref().ok());
            let Some(known) = known else { continue };
            let _ = write!(text, "| {row} | {} |", duration(known.baseline));
            for column in &columns {
                let _ = write!(text, " {} |", cell(*column).map_or_else(String::new, ratio));
            }
            text.push('\n');
        }
        text
    }

    fn along(&self, axis: Axis) -> String {
        let mut cells: Vec<&Measured> = self.of(axis).collect();
        cells.sort_by_key(|cell| (cell.column, cell.value, cell.row));
        let mut text = format!("| column | {} |", axis.name());
        KINDS.iter().for_each(|kind| text.push_str(&format!(" {} |", kind.name())));
        text.push_str(&format!("\n|---|---|{}\n", "---|".repeat(KINDS.len())));
        for group in cells.chunk_by(|a, b| (a.column, a.value) == (b.column, b.value)) {
            let _ = write!(text, "| {} | {} |", group[0].column.name(), group[0].value);
            for kind in KINDS {
                let cell = group.iter().find(|cell| cell.row.kind == kind);
                let _ = write!(text, " {} |", cell.map_or_else(String::new, |cell| ratio(cell)));
            }
            text.push('\n');
        }
        text
    }

    fn lines(&self, axis: Axis) -> Vec<Line> {
        let mut lines = Vec::new();
        for column in self.columns(axis) {
            for kind in KINDS {
                let own = self.of(axis).filter(|cell| (cell.column, cell.row.kind) == (column, kind));
                let points = own.filter_map(|cell| {
                    let value = u32::try_from(cell.value).ok()?;
                    Some((f64::from(value), cell.result.as_ref().ok()?.ratio.median))
                });
                lines.push(Line { name: format!("{}, {}", column.name(), kind.name()), points: points.collect() });
            }
        }
        lines
    }

    /// One line for each reason.
    fn missing(&self) -> String {
        let mut reasons: Vec<(String, Vec<String>)> = Vec::new();
        for cell in &self.cells {
            let Err(reason) = &cell.result else { continue };
            let of = format!("{}: {reason}", cell.column.name());
            let row = format!("{} ({} {})", cell.row, cell.axis.name(), cell.value);
            match reasons.iter_mut().find(|(known, _)| *known == of) {
                Some((_, rows)) => rows.push(row),
                None => reasons.push((of, vec![row])),
            }
        }
        if reasons.is_empty() {
            return "Nothing.\n".to_owned();
        }
        let line =
            |(reason, rows): &(String, Vec<String>)| format!("- {reason} ({} cells, first: {})\n", rows.len(), rows[0]);
        reasons.iter().map(line).collect()
    }
}

const KINDS: [Kind; 3] = [Kind::Exchange, Kind::Connect, Kind::NewFlow];

const INTRODUCTION: &str = "Written by `make bench` (`bench/src/bin/packets.rs`); [benchmarks.md](../benchmarks.md) says how to read it. Every number is a ratio to the \
same traffic over conntrack and NAT without policy, measured in turns in one lab: the median over all rounds, and in brackets the range of their middle half. \
1.05 means 5 % more time for an operation.";

fn file(axis: Axis) -> String {
    let word = match axis {
        Axis::None => "rows",
        Axis::Rules => "rules",
        Axis::Policies => "policies",
        Axis::LocalPods => "local-pods",
        Axis::Peers => "peers",
        Axis::Blocks => "cidrs",
    };
    format!("packets-{word}.svg")
}

fn ratio(cell: &Measured) -> String {
    match &cell.result {
        Ok(outcome) => {
            let spread = outcome.ratio;
            format!("{:.3} ({:.3}–{:.3})", spread.median, spread.low, spread.high)
        }
        Err(_) => "none".to_owned(),
    }
}

fn duration(nanoseconds: f64) -> String {
    format!("{:.2} µs", nanoseconds / 1000.0)
}
