//! One module for each command.
//!
//! In: the command's arguments. Out: what it prints, and an exit code. What always holds: what a command was asked for
//! goes to standard output, everything else to standard error.

mod check;
mod cleanup;
mod flows;
mod pause;
mod render;
mod run;
mod status;
mod terminal;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;

use crate::config::Command;
use crate::manifests::{Directory, Scope};

/// Runs a command.
pub fn execute(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(args) => run::execute(&args),
        Command::Render(args) => render::execute(&args),
        Command::Check(args) => check::execute(&args),
        Command::Status(args) => status::execute(&args),
        Command::Flows(args) => flows::execute(&args),
        Command::Pause(args) => pause::pause(&args),
        Command::Resume(args) => pause::resume(&args),
        Command::Cleanup(args) => cleanup::execute(&args),
    }
}

/// Reads a directory (or one file) once.
fn read(root: &Path) -> anyhow::Result<Directory> {
    std::fs::metadata(root).with_context(|| format!("{} cannot be read", root.display()))?;
    let mut directory = Directory::new(root);
    directory.refresh(&Scope::everything());
    Ok(directory)
}
