//! `flatfell cleanup`: removes the tables.
//!
//! In: nothing. Out: what was removed. What always holds: refused while a daemon runs in this network namespace, since
//! it would put them back.

use std::process::ExitCode;

use super::terminal::print;
use crate::engine;

/// Runs the command.
pub fn execute() -> anyhow::Result<ExitCode> {
    let removed = engine::cleanup()?;
    if removed.is_empty() {
        print("nothing to remove: this network namespace has no table of flatfell\n")?;
    }
    for table in removed {
        print(&format!("removed table {table}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}
