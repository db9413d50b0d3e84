//! What a packet pays: Flatfell and others against conntrack and NAT, in turns, in one lab.
//!
//! In: flags. Out: progress on standard error, the bars on standard output, a report where `--out` says. What always holds: the daemon is the one
//! built beside this program (release, by `make bench`); the exit code says whether it could measure, not whether bars are met.

use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use flatfell_bench::packets::report::Report;
use flatfell_bench::packets::run::{self, Measured};
use flatfell_bench::packets::{bars, churn, plan};

/// Measures what a packet pays.
#[derive(Debug, Parser)]
struct Arguments {
    /// What the bars are about only, in less than three minutes
    #[arg(long)]
    quick: bool,
    /// Rounds of each cell
    #[arg(long, default_value_t = 31)]
    rounds: usize,
    /// Only cells whose line has this text in it
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Where the report goes
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let begin = Instant::now();
    let mut cases = plan::cases(arguments.quick);
    if let Some(text) = &arguments.only {
        for case in &mut cases {
            let title = format!("{}, {} {}", case.column.name(), case.axis.name(), case.value);
            case.rows.retain(|row| format!("{title}, {row}").contains(text));
        }
        cases.retain(|case| !case.rows.is_empty());
    }
    let cells = run::run(&cases, arguments.rounds, say)?;
    let churn = if arguments.only.is_none() { Some(churn::measure(arguments.rounds / 3)?) } else { None };
    if let Some(outcome) = &churn {
        let ratio = outcome.ratio;
        eprintln!(
            "request/response with 5 changes a second to without: {:.3} ({:.3} to {:.3})",
            ratio.median, ratio.low, ratio.high
        );
    }
    let report = Report::new(cells, churn, arguments.rounds, begin.elapsed().as_secs())?;
    println!("{}\n\n{}", report.machine, bars::table(&report.bars));
    if let Some(directory) = &arguments.out {
        report.write(directory)?;
        println!("report: {}", directory.join("packets.md").display());
    }
    Ok(())
}

fn say(cell: &Measured) {
    let (axis, value) = (cell.axis.name(), cell.value);
    let result = match &cell.result {
        Ok(outcome) => {
            let ratio = outcome.ratio;
            format!("{:.3} ({:.3} to {:.3}) of {:.0} ns", ratio.median, ratio.low, ratio.high, outcome.baseline)
        }
        Err(reason) => reason.clone(),
    };
    eprintln!("{}, {axis} {value}, {}: {result}, load {:.1}", cell.column.name(), cell.row, cell.load);
}
