//! Log lines on standard error.
//!
//! In: flags. Out: the program's subscriber. What always holds: standard output is left to what a command prints.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use crate::config::{LogArgs, LogFormat};

/// Starts logging for the whole program.
pub fn start(args: &LogArgs) {
    // The client logs each failed attempt; which of them matter is said by who makes them. The flag was validated when it
    // was read, and wins.
    let filter = EnvFilter::new(format!("kube_client=off,{}", args.log_level));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match args.log_format {
        LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).with_target(false).init(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).with_span_list(false).init(),
    }
}
