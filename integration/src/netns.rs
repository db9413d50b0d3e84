//! Named network namespaces: made, entered, removed.
//!
//! In: names. Out: [`Netns`], in which closures run on a thread of their own and processes are started. What always
//! holds: no thread of the caller ever changes its namespace; a namespace goes with its owner, also when a test panics;
//! what a killed process left behind goes when the next lab starts.

use std::fs::File;
use std::io::{self, Write};
use std::panic;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use thiserror::Error;

/// Where iproute2 keeps its names.
const DIRECTORY: &str = "/run/netns";
/// What every name of a lab starts with, before the process id.
const PREFIX: &str = "ff";

/// What can go wrong with a namespace.
#[derive(Debug, Error)]
pub enum NetnsError {
    /// The name has no namespace behind it.
    #[error("network namespace {name} cannot be opened")]
    Open {
        /// The namespace.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The thread could not enter it.
    #[error("network namespace {name} cannot be entered")]
    Enter {
        /// The namespace.
        name: String,
        /// What the kernel said.
        source: nix::Error,
    },
    /// A program could not be run.
    #[error("{program} cannot be run")]
    Run {
        /// The program.
        program: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A program refused its input.
    #[error("{program} failed: {message}\n{input}")]
    Refused {
        /// The program and where it ran.
        program: String,
        /// Its standard error.
        message: String,
        /// What it was fed.
        input: String,
    },
}

/// A network namespace with a name that `ip netns exec` knows; removed on drop.
#[derive(Debug)]
pub struct Netns {
    name: String,
    handle: File,
    /// Whether the name goes with this handle.
    owned: bool,
}

impl Netns {
    /// Makes several at once, with one process. Either all exist afterwards or none.
    pub fn create(names: &[String]) -> Result<Vec<Self>, NetnsError> {
        let batch: String = names.iter().map(|name| format!("netns add {name}\n")).collect();
        let made = feed(Command::new("ip").args(["-batch", "-"]), "ip", &batch)
            .and_then(|_| names.iter().map(|name| Self::open(name)).collect());
        if made.is_err() {
            delete(names.iter().map(String::as_str));
        }
        made
    }

    fn open(name: &str) -> Result<Self, NetnsError> {
        let handle = File::open(Path::new(DIRECTORY).join(name))
            .map_err(|source| NetnsError::Open { name: name.to_owned(), source })?;
        Ok(Self { name: name.to_owned(), handle, owned: true })
    }

    /// A second way in, which leaves the namespace to this one.
    pub(crate) fn again(&self) -> Result<Self, NetnsError> {
        let handle = self.handle.try_clone().map_err(|source| NetnsError::Open { name: self.name.clone(), source })?;
        Ok(Self { name: self.name.clone(), handle, owned: false })
    }

    /// Its name, for `ip netns exec NAME`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` inside, on a thread that ends with it. A panic of `work` is the caller's.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        let inside = || {
            setns(&self.handle, CloneFlags::CLONE_NEWNET)
                .map_err(|source| NetnsError::Enter { name: self.name.clone(), source })?;
            Ok(work())
        };
        thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(|cause| panic::resume_unwind(cause))
    }

    /// A command that will run inside; its process id is the program's own.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={DIRECTORY}/{}", self.name)).arg("--").arg(program);
        command
    }

    /// Runs a program inside on this input and returns what it wrote.
    pub fn feed(&self, program: &str, arguments: &[&str], input: &str) -> Result<String, NetnsError> {
        let title = format!("{program} in {}", self.name);
        // A child is born in the namespace of the thread that starts it: one exec less than by `command`.
        self.run(|| feed(Command::new(program).args(arguments), &title, input))?
    }

    /// Removes the namespaces of labs whose process is gone, and what still runs in them.
    pub fn clean_leftovers() {
        let Ok(entries) = std::fs::read_dir(DIRECTORY) else { return };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let left: Vec<String> = names.filter(|name| owner(name).is_some_and(|process| !alive(process))).collect();
        left.iter().for_each(|name| end_processes(name));
        delete(left.iter().map(String::as_str));
    }

    /// Removes the names of several at once, with one process.
    pub(crate) fn remove<'a>(spaces: impl Iterator<Item = &'a Self>) {
        delete(spaces.map(Self::name));
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if self.owned && Path::new(DIRECTORY).join(&self.name).exists() {
            delete([self.name.as_str()].into_iter());
        }
    }
}

/// The name of part `part` of this process's lab `number`.
pub(crate) fn name(number: u32, part: &str) -> String {
    format!("{PREFIX}{}-{number}-{part}", std::process::id())
}

/// The process that a name of ours belongs to.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split_once('-')?.0.parse().ok()
}

fn alive(process: u32) -> bool {
    Path::new("/proc").join(process.to_string()).exists()
}

/// Kills what runs in a namespace: a test that was killed could not. Best effort, like [`delete`].
fn end_processes(name: &str) {
    let Ok(listing) = feed(Command::new("ip").args(["netns", "pids", name]), "ip", "") else { return };
    for process in listing.lines().filter_map(|line| line.trim().parse().ok()) {
        kill(Pid::from_raw(process), Signal::SIGKILL).ok();
    }
}

/// Best effort: a name that is gone already is as good as removed.
fn delete<'a>(names: impl Iterator<Item = &'a str>) {
    let batch: String = names.map(|name| format!("netns delete {name}\n")).collect();
    if !batch.is_empty() {
        feed(Command::new("ip").args(["-force", "-batch", "-"]), "ip", &batch).ok();
    }
}

fn feed(command: &mut Command, title: &str, input: &str) -> Result<String, NetnsError> {
    let failed = |source| NetnsError::Run { program: title.to_owned(), source };
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    if let Some(mut pipe) = child.stdin.take() {
        // A program that refuses early closes its input: its exit status says more than this error.
        pipe.write_all(input.as_bytes()).ok();
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(NetnsError::Refused { program: title.to_owned(), message, input: input.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::owner;

    #[test]
    fn only_our_names_have_an_owner() {
        assert_eq!(owner("ff123-0-n1"), Some(123));
        for foreign in ["ffx-1", "ff12", "flatfell-1", "cni-123", ""] {
            assert_eq!(owner(foreign), None, "{foreign}");
        }
    }
}
