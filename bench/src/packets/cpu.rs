//! Which processor a thread runs on, and how busy the machine is.
//!
//! In: nothing. Out: a thread that has a processor for itself; the load as the kernel says it. What always holds: client and server share
//! one processor, so that they take turns and each nanosecond of a packet's way is seen (on two, the wake-up of a sleeping one is most
//! of what is measured); what else the machine does runs on it when they do not.

use std::fs;
use std::process::Command;

use anyhow::{Context, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::{Pid, gettid};

/// Gives the calling thread the processor of traffic, before everything that has no real-time priority.
pub fn take() -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(of_traffic())?;
    sched_setaffinity(Pid::from_raw(0), &set)?;
    let thread = gettid().to_string();
    let done = Command::new("chrt").args(["--fifo", "--pid", "1", &thread]).status().context("chrt")?;
    ensure!(done.success(), "chrt: {done}");
    Ok(())
}

/// The last one: others' interrupts are mostly on the first.
fn of_traffic() -> usize {
    std::thread::available_parallelism().map_or(0, |count| count.get() - 1)
}

/// The load of the last minute.
pub fn load() -> anyhow::Result<f64> {
    let text = fs::read_to_string("/proc/loadavg")?;
    Ok(text.split_whitespace().next().context("/proc/loadavg")?.parse()?)
}
