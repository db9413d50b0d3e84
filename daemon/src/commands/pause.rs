//! `flatfell pause` and `flatfell resume`: break-glass for one node.
//!
//! In: how long. Out: what the daemon says. What always holds: the daemon decides; nothing is touched here.

use std::process::ExitCode;

use super::terminal::print;
use crate::config::{ControlArgs, PauseArgs};
use crate::control::{Request, ask};

/// Asks the daemon to enforce nothing for a while.
pub fn pause(args: &PauseArgs) -> anyhow::Result<ExitCode> {
    say(&args.control, Request::Pause { seconds: args.length.as_secs() })
}

/// Asks it to enforce again.
pub fn resume(args: &ControlArgs) -> anyhow::Result<ExitCode> {
    say(args, Request::Resume)
}

fn say(control: &ControlArgs, request: Request) -> anyhow::Result<ExitCode> {
    let said = ask(&control.run_dir, request)?;
    print(&format!("{said}\n"))?;
    Ok(ExitCode::SUCCESS)
}
