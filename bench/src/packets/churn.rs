//! A packet of an established flow while policy changes under it.
//!
//! In: a lab, numbers of rounds. Out: the ratio of its cost with five changes a second to that without, the daemon running in both. What always
//! holds: so many other flows are open that each change that tightens has them to look at; a second holds five changes: a peer
//! loses its label, gets it back, or is deleted and comes again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use flatfell_integration::FlatfellNode;

use super::bed::Bed;
use super::rounds::{self, Outcome, Side};
use super::row::{Kind, Row};
use super::size::{Size, passing_peer};
use super::stats;
use super::traffic::Traffic;

/// Flows that are open beside the one that is measured.
const FLOWS: usize = 10_000;
/// Half a round: ten changes.
const SLICE: Duration = Duration::from_secs(2);
/// Between two changes.
const EVERY: Duration = Duration::from_millis(200);
/// What the daemon still does when changes end.
const CALM: Duration = Duration::from_millis(300);

/// So many rounds of a round trip, the baseline without changes.
pub fn measure(rounds: usize) -> anyhow::Result<Outcome> {
    let bed = Bed::new()?;
    let node = bed.run_flatfell(&Size::default())?;
    let mut flows = Traffic::new(bed.lab(), Row::near(Kind::NewFlow))?;
    let mut open = 0;
    while open < FLOWS {
        open += 100 * flows.batches(Duration::from_millis(1))?.len();
    }
    let mut exchange = Traffic::new(bed.lab(), Row::near(Kind::Exchange))?;
    rounds::paired(rounds, |side| {
        let stop = AtomicBool::new(side == Side::Baseline);
        thread::scope(|scope| {
            let changes = scope.spawn(|| change(&node, &stop));
            // The mean: what a change costs falls on few round trips.
            let cost = exchange.batches(SLICE).map(|batches| stats::mean(&batches));
            stop.store(true, Ordering::Relaxed);
            let changed = changes.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause));
            thread::sleep(CALM);
            changed.and(cost)
        })
    })
}

/// Changes until it is told to stop.
fn change(node: &FlatfellNode, stop: &AtomicBool) -> anyhow::Result<()> {
    for number in (0..).take_while(|_| !stop.load(Ordering::Relaxed)) {
        match number % 4 {
            0 => node.write("passing.json", &passing_peer(0, true))?,
            1 => node.write("passing.json", &passing_peer(0, false))?,
            2 => node.write("passing.json", &passing_peer(0, true))?,
            _ => node.remove("passing.json")?,
        }
        thread::sleep(EVERY);
    }
    Ok(())
}
