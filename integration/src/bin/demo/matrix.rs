//! The reachability matrix: real packets from everybody to everything.
//!
//! In: the lab. Out: a table, and an error where a cell is not as it must be. What always holds: a cell is one verdict for
//! both families only where both agree.

use anyhow::bail;
use flatfell_integration::{Lab, Outcome, Place, Probe};

use super::screen::{Colour, Screen};
use super::shop::{Expected, ROWS, Row, TARGETS, Target};

const FIRST: usize = 15;
const WIDTH: usize = 15;

/// Sends everything, prints the table, compares. Without policies everything must be reached.
pub fn show(lab: &Lab, screen: &Screen, with_policies: bool) -> anyhow::Result<()> {
    let heading: String = TARGETS.iter().map(|target| format!("{:<WIDTH$}", target.title)).collect();
    screen.say(&screen.paint(Colour::Dim, &format!("{:<FIRST$}{}", "from \\ to", heading.trim_end())));
    let mut wrong = Vec::new();
    let outcomes = send(lab)?;
    for (row, cells) in ROWS.iter().zip(outcomes.chunks(TARGETS.len())) {
        let mut line = format!("{:<FIRST$}", row.title);
        for ((target, cell), &must) in TARGETS.iter().zip(cells).zip(&row.expected) {
            let must = if with_policies || must == Expected::Nothing { must } else { Expected::Yes };
            line.push_str(&paint(screen, cell));
            if !cell.is(must) {
                wrong.push(format!("{} to {} must be {must:?} for both families", row.title, target.title));
            }
        }
        screen.say(line.trim_end());
    }
    if !wrong.is_empty() {
        bail!("the matrix is not as it must be: {}", wrong.join("; "));
    }
    Ok(())
}

/// What became of the two packets of a cell, IPv4 and IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cell {
    Nothing,
    Reached([bool; 2]),
}

impl Cell {
    fn is(self, expected: Expected) -> bool {
        self == match expected {
            Expected::Yes => Self::Reached([true, true]),
            Expected::No => Self::Reached([false, false]),
            Expected::Nothing => Self::Nothing,
        }
    }
}

/// All cells, row by row. They are in flight together.
fn send(lab: &Lab) -> anyhow::Result<Vec<Cell>> {
    let cells = || ROWS.iter().flat_map(|row| TARGETS.iter().enumerate().map(move |(at, target)| (row, at, target)));
    let is_sent = |row: &Row, at: usize| row.expected[at] != Expected::Nothing;
    let probes: Vec<Probe> = cells()
        .filter(|(row, at, _)| is_sent(row, *at))
        .flat_map(|(row, _, target)| target.addresses().map(|to| Probe::tcp(row.from, to, target.port)))
        .collect();
    let outcomes = lab.probes(&probes)?;
    let mut pairs = outcomes.chunks(2);
    Ok(cells()
        .map(|(row, at, target)| match is_sent(row, at).then(|| pairs.next()).flatten() {
            Some([v4, v6]) => Cell::Reached([reached(v4, target), reached(v6, target)]),
            _ => Cell::Nothing,
        })
        .collect())
}

/// Reached where it was meant to go, and answered.
fn reached(outcome: &Outcome, target: &Target) -> bool {
    let places: Vec<Place> = outcome.arrivals.iter().map(|arrival| arrival.place).collect();
    outcome.answered && places == [target.place]
}

fn paint(screen: &Screen, cell: &Cell) -> String {
    let (text, colour) = match cell {
        Cell::Nothing => ("", Colour::Dim),
        Cell::Reached([true, true]) => ("yes", Colour::Green),
        Cell::Reached([false, false]) => ("-- no", Colour::Red),
        Cell::Reached([true, false]) => ("IPv4 only", Colour::Red),
        Cell::Reached([false, true]) => ("IPv6 only", Colour::Red),
    };
    let room = " ".repeat(WIDTH.saturating_sub(text.len()));
    if text.is_empty() { room } else { format!("{}{room}", screen.paint(colour, text)) }
}
