//! The binary `flatfell`: reads its arguments, runs one command, turns its outcome into an exit code.

use std::process::ExitCode;

use clap::Parser;
use flatfell::{commands, config::Cli, logging};

fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::start(&cli.log);
    match commands::execute(cli.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("flatfell: {error:#}");
            ExitCode::FAILURE
        }
    }
}
