//! `flatfell cleanup`: takes away what Flatfell put into the network namespace.
//!
//! In: flags. Out: what was taken away. What always holds: refused while a daemon runs in this network namespace, since
//! it would put everything back; with `--stay` none starts before this ends.

use std::path::Path;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use super::terminal::print;
use crate::cni::{install, sandboxes};
use crate::config::{CleanupArgs, CniArgs};
use crate::control::{self, Request};
use crate::engine::{Cleaned, Cleanup, EngineError};
use crate::http::Server;
use crate::lock::LockError;

/// How long a daemon may take to stop.
const STOPPED_WITHIN: Duration = Duration::from_secs(15);

/// Runs the command.
pub fn execute(args: &CleanupArgs) -> anyhow::Result<ExitCode> {
    let cleanup = if args.stop { begin_by_force(&args.control.run_dir)? } else { begin()? };
    if args.stay {
        return stay(args, &cleanup);
    }
    clean(&cleanup, args)?;
    Ok(ExitCode::SUCCESS)
}

fn begin() -> anyhow::Result<Cleanup> {
    match Cleanup::begin() {
        Err(error @ EngineError::Lock(LockError::Held)) => Err(error).context(
            "a running daemon would put everything back: remove its DaemonSet or service, or add --stop to this command",
        ),
        begun => Ok(begun?),
    }
}

/// Stops a daemon that runs, and waits until it holds nothing any more.
fn begin_by_force(run_dir: &Path) -> anyhow::Result<Cleanup> {
    let held = |begun: &Result<Cleanup, EngineError>| matches!(begun, Err(EngineError::Lock(LockError::Held)));
    let begun = Cleanup::begin();
    if !held(&begun) {
        return Ok(begun?);
    }
    control::ask(run_dir, Request::Stop).context("the running daemon cannot be stopped")?;
    let deadline = Instant::now() + STOPPED_WITHIN;
    loop {
        match Cleanup::begin() {
            begun if held(&begun) && Instant::now() < deadline => sleep(Duration::from_millis(20)),
            begun => {
                return begun.with_context(|| {
                    format!("a daemon still runs {STOPPED_WITHIN:?} after it was told to stop: does something start it again?")
                });
            }
        }
    }
}

fn clean(cleanup: &Cleanup, args: &CleanupArgs) -> anyhow::Result<()> {
    unplug(&args.cni)?;
    let Cleaned { tables, flags } = cleanup.run()?;
    control::remove_leftovers(&args.control.run_dir);
    if tables.is_empty() {
        print("nothing to remove: this network namespace has no table of flatfell\n")?;
    }
    for flag in flags {
        print(&format!("switched off again: bridge {flag}\n"))?;
    }
    for table in tables {
        print(&format!("removed table {table}\n"))?;
    }
    Ok(())
}

/// Takes the CNI plugin out of its chain, then its binary away: a chain that names what is not there starts no pod.
fn unplug(places: &CniArgs) -> anyhow::Result<()> {
    if let Some(conflist) = &places.cni_conflist {
        if install::remove(conflist)? {
            print(&format!("taken out of {}\n", conflist.display()))?;
        }
        if install::remove_binary(&places.cni_bin_dir)? {
            print(&format!("removed the CNI plugin from {}\n", places.cni_bin_dir.display()))?;
        }
    }
    sandboxes::remove_leftovers(&places.cni_run_dir);
    Ok(())
}

/// The DaemonSet's uninstall mode: each node is ready once it is clean.
fn stay(args: &CleanupArgs, cleanup: &Cleanup) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let server = Server::bind(args.listen).await?;
        clean(cleanup, args)?;
        tracing::info!("cleaned up; waiting for SIGTERM, /readyz on http://{} says so", server.address);
        tokio::select! {
            () = server.serve_cleaned() => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(ExitCode::SUCCESS)
    })
}
