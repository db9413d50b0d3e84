//! The bars a packet has to stay under, and whether it does.
//!
//! In: what was measured. Out: each bar with its number. What always holds: a bar whose rows are missing is not met and says so; nothing is rounded
//! in a bar's favour.

use serde::Serialize;

use super::column::Column;
use super::plan::Axis;
use super::rounds::Outcome;
use super::row::{Kind, Row};
use super::run::Measured;

/// A bar.
#[derive(Clone, Debug, Serialize)]
pub struct Bar {
    /// What is held.
    pub what: &'static str,
    /// At most this.
    pub limit: f64,
    /// What came out, and the middle half of its rounds.
    pub measured: Option<(f64, Option<[f64; 2]>)>,
}

impl Bar {
    /// Whether it is met.
    pub fn is_met(&self) -> bool {
        self.measured.is_some_and(|(value, _)| value <= self.limit)
    }
}

/// All bars that this program measures; `churn` is what changes of policy add to a packet of an established flow.
pub fn all(cells: &[Measured], churn: Option<&Outcome>) -> Vec<Bar> {
    let one = |what, limit, axis, value, column, kind| {
        let outcome = find(cells, axis, value, column, kind).and_then(|cell| cell.result.as_ref().ok());
        let measured = outcome.map(|outcome| (outcome.ratio.median, Some([outcome.ratio.low, outcome.ratio.high])));
        Bar { what, limit, measured }
    };
    let flat = |what, axis, few, many| Bar {
        what,
        limit: 1.05,
        measured: growth(cells, axis, few, many).map(|value| (value, None)),
    };
    let quiet = find(cells, Axis::None, 0, Column::Flatfell, Kind::Exchange).and_then(|cell| cell.result.as_ref().ok());
    let under_changes = churn.zip(quiet).map(|(churn, quiet)| {
        let [low, high] = [churn.ratio.low, churn.ratio.high].map(|ratio| ratio * quiet.ratio.median);
        (churn.ratio.median * quiet.ratio.median, Some([low, high]))
    });
    vec![
        one("packet of an established flow, counted", 1.045, Axis::None, 0, Column::Flatfell, Kind::Exchange),
        one("the same, not counted", 1.03, Axis::None, 0, Column::FlatfellUncounted, Kind::Exchange),
        Bar {
            what: "the same, counted, with 5 changes a second and 10,000 flows",
            limit: 1.06,
            measured: under_changes,
        },
        one("TCP connect, 3 rules a pod", 1.05, Axis::None, 0, Column::Flatfell, Kind::Connect),
        one("TCP connect, 100 rules a pod", 1.07, Axis::Rules, 100, Column::Flatfell, Kind::Connect),
        one("new flow, full walk, 100 rules a pod", 1.6, Axis::Rules, 100, Column::Flatfell, Kind::NewFlow),
        flat("from 10 to 10,000 policies, the worst of three rows", Axis::Policies, 10, 10_000),
        flat("from 10 to 1,000 local pods, the worst of three rows", Axis::LocalPods, 10, 1_000),
        one("TCP stream, against what rounds differ by", 1.02, Axis::None, 0, Column::Flatfell, Kind::Stream),
    ]
}

fn find(cells: &[Measured], axis: Axis, value: usize, column: Column, kind: Kind) -> Option<&Measured> {
    let fits =
        |cell: &&Measured| (cell.axis, cell.value, cell.column, cell.row) == (axis, value, column, Row::near(kind));
    cells.iter().find(fits)
}

/// How much dearer the far end of an axis is than the near one: the largest ratio of its ratios.
fn growth(cells: &[Measured], axis: Axis, few: usize, many: usize) -> Option<f64> {
    let mut worst: Option<f64> = None;
    for kind in [Kind::Exchange, Kind::Connect, Kind::NewFlow] {
        let at = |value| Some(find(cells, axis, value, Column::Flatfell, kind)?.result.as_ref().ok()?.ratio.median);
        let ratio = at(many)? / at(few)?;
        worst = Some(worst.map_or(ratio, |worst| worst.max(ratio)));
    }
    worst
}

/// As Markdown.
pub fn table(bars: &[Bar]) -> String {
    let mut text = "| bar | at most | measured | middle half of the rounds | |\n|---|---|---|---|---|\n".to_owned();
    for bar in bars {
        let (value, spread) = match bar.measured {
            None => ("not measured".to_owned(), String::new()),
            Some((value, None)) => (format!("{value:.3}"), String::new()),
            Some((value, Some([low, high]))) => (format!("{value:.3}"), format!("{low:.3} to {high:.3}")),
        };
        let met = match bar.measured {
            None => "",
            Some(_) if bar.is_met() => "met",
            Some(_) => "**not met**",
        };
        text.push_str(&format!("| {} | {:.3} | {value} | {spread} | {met} |\n", bar.what, bar.limit));
    }
    text
}
