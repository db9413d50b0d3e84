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
            eprintln!("flatfell: {}", told_once(&error));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes; a cause that was told with the error before it is not told again.
fn told_once(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}
