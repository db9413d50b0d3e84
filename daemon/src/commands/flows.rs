//! `flatfell flows`: what was denied, and, with `--follow`, what is being denied.
//!
//! In: filters. Out: records of the running daemon's flow log, as a table for people or one JSON object a line. What always
//! holds: what this reader was too slow for is told on standard error, with its number.

use std::io;
use std::ops::ControlFlow;
use std::process::ExitCode;

use super::terminal::{Cell, Colour, Style, print, row, table};
use crate::config::{FlowsArgs, FlowsOutput};
use crate::control::{FlowLine, follow};
use crate::flows::{Record, Verdict};

const HEADING: [&str; 7] = ["TIME", "VERDICT", "DIRECTION", "POD", "PEER", "SERVICE", "POLICIES"];

/// Columns of a table whose rows are not known yet.
const WIDTHS: [usize; 7] = [24, 7, 9, 32, 32, 12, 0];

/// Runs the command.
pub fn execute(args: &FlowsArgs) -> anyhow::Result<ExitCode> {
    let (style, filter) = (Style::detect(), args.filter());
    let as_table = args.output == FlowsOutput::Table;
    let mut records = Vec::new();
    if as_table && args.follow {
        print(&row(style, &heading(), &WIDTHS))?;
    }
    follow(&args.control.run_dir, args.follow, |line| {
        match line {
            FlowLine::Lost(lost) => eprintln!("{lost} records lost: this reader is too slow"),
            FlowLine::Record(record) if !filter.takes(&record) => {}
            FlowLine::Record(record) if as_table && args.follow => return put(&row(style, &cells(&record), &WIDTHS)),
            FlowLine::Record(record) if as_table => records.push(cells(&record)),
            FlowLine::Record(record) => return put(&format!("{}\n", serde_json::to_string(&record)?)),
            FlowLine::Refused(why) => return Err(io::Error::other(why)),
        }
        Ok(ControlFlow::Continue(()))
    })?;
    if as_table && !args.follow {
        print(&table(style, &HEADING, &records))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints a line; a reader that went away (`| head`) ends it.
fn put(line: &str) -> io::Result<ControlFlow<()>> {
    use std::io::Write;
    let mut out = io::stdout().lock();
    match out.write_all(line.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(ControlFlow::Continue(())),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
        Err(error) => Err(error),
    }
}

fn heading() -> Vec<Cell> {
    HEADING.iter().map(|text| Cell::text(*text).in_colour(Colour::Bold)).collect()
}

fn cells(record: &Record) -> Vec<Cell> {
    let colour = match record.verdict {
        Verdict::Denied => Colour::Red,
        Verdict::Audited => Colour::Yellow,
    };
    vec![
        Cell::text(record.time.clone()),
        Cell::text(record.verdict.word()).in_colour(colour),
        Cell::text(record.direction.word()),
        Cell::text(record.pod_text()),
        Cell::text(record.peer.to_string()),
        Cell::text(record.service()),
        Cell::text(record.policies.join(" ")),
    ]
}
