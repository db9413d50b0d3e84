//! Measures cases.
//!
//! In: cases, numbers of rounds. Out: a [`Measured`] for each row of each. What always holds: a case that cannot be measured gives rows that say why;
//! a column with policy is seen to deny before its numbers count.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde::Serialize;

use super::bed::Bed;
use super::column::Column;
use super::cpu;
use super::plan::{Axis, Case};
use super::rounds::{self, Outcome, Side};
use super::row::{Kind, Path, Row};
use super::size::Size;
use super::traffic::{self, Traffic};

/// Half a round.
const SLICE: Duration = Duration::from_millis(30);
/// A stream needs longer to find its pace.
const STREAM: Duration = Duration::from_millis(120);
/// What is not timed behind a switch.
const WARM_UP: Duration = Duration::from_millis(4);

/// One cell.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// What grows.
    pub axis: Axis,
    /// How far.
    pub value: usize,
    /// The cluster.
    pub size: Size,
    /// Compared with the baseline.
    pub column: Column,
    /// The traffic.
    pub row: Row,
    /// What came out, or why nothing did.
    pub result: Result<Outcome, String>,
    /// Load average then.
    pub load: f64,
}

/// Measures; `say` hears of each row.
pub fn run(cases: &[Case], rounds: usize, mut say: impl FnMut(&Measured)) -> anyhow::Result<Vec<Measured>> {
    let (mut bed, mut bare) = (Bed::new()?, None);
    let mut measured = Vec::new();
    for case in cases {
        if case.column == Column::NoRules && bare.is_none() {
            bare = Some(Bed::bare()?);
        }
        let results = match case.column.missing() {
            Some(reason) => Err(reason),
            None => one(case, &mut bed, bare.as_ref(), rounds).map_err(|error| format!("{error:#}")),
        };
        for (place, row) in case.rows.iter().enumerate() {
            let result = match &results {
                Ok(outcomes) => outcomes[place].clone(),
                Err(reason) => Err(reason.clone()),
            };
            let Case { axis, value, size, column, .. } = case.clone();
            let cell = Measured { axis, value, size, column, row: *row, result, load: cpu::load()? };
            say(&cell);
            measured.push(cell);
        }
    }
    Ok(measured)
}

/// All rows of a case.
fn one(case: &Case, bed: &mut Bed, bare: Option<&Bed>, rounds: usize) -> anyhow::Result<Vec<Result<Outcome, String>>> {
    let begin = Instant::now();
    // The other node's tables only where packets pass by them: loading takes longer than measuring.
    let nodes = if case.rows.iter().any(|row| row.path == Path::Vxlan) { &[1, 2][..] } else { &[1] };
    let loaded = bed.load(case.column, &case.size, nodes);
    if case.column.has_policy() {
        eprintln!("{}, {}: loaded in {:.1} s", case.column.name(), case.size, begin.elapsed().as_secs_f64());
    }
    let column = bare.filter(|_| case.column == Column::NoRules).unwrap_or(bed);
    let results = loaded.map(|()| {
        let rows = case.rows.iter();
        rows.map(|row| self::row(bed, column, case, *row, rounds).map_err(|error| format!("{error:#}"))).collect()
    });
    bed.unload()?;
    results
}

fn row(bed: &Bed, other: &Bed, case: &Case, row: Row, rounds: usize) -> anyhow::Result<Outcome> {
    bed.switch(Side::Column)?;
    let watched = Row { kind: Kind::Connect, ..row };
    ensure!(!case.column.has_policy() || traffic::is_denied(bed.lab(), watched)?, "it denies nothing");
    let mut traffic = Traffic::new(bed.lab(), row)?;
    // A lab of its own for what cannot be had beside the baseline.
    let mut elsewhere = if case.column == Column::NoRules { Some(Traffic::new(other.lab(), row)?) } else { None };
    let length = if row.kind == Kind::Stream { STREAM } else { SLICE };
    rounds::paired(rounds, |side| {
        bed.switch(side)?;
        if matches!(row.kind, Kind::NewFlow | Kind::Connect) {
            bed.forget_flows()?;
        }
        let traffic = match (&mut elsewhere, side) {
            (Some(elsewhere), Side::Column) => elsewhere,
            _ => &mut traffic,
        };
        traffic.slice(WARM_UP)?;
        traffic.slice(length)
    })
}
