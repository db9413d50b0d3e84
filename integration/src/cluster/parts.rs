//! The real parts: where `integration/fixture.sh` left their binaries, and how one of them runs.
//!
//! In: a part's name, a namespace. Out: its path, a [`Process`]. What always holds: a part that is missing is an error
//! that names the command which builds it, never a skipped test; a process goes with its handle, also when a test panics
//! (what a killed test leaves goes with its namespace, see [`Netns::clean_leftovers`]).

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::{ClusterError, failed};
use crate::netns::Netns;

/// Between two looks at what is waited for.
const PAUSE: Duration = Duration::from_millis(20);

/// What envtest users keep in `KUBEBUILDER_ASSETS`.
const ASSETS: [&str; 3] = ["etcd", "kube-apiserver", "kubectl"];

/// The directory of the CNI plugins, and of all other parts that are not in `KUBEBUILDER_ASSETS`.
pub fn directory() -> PathBuf {
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/fixture");
    std::env::var_os("FLATFELL_FIXTURE").map_or_else(own, PathBuf::from).join("bin")
}

/// The binary of a part.
pub fn path(part: &str) -> Result<PathBuf, ClusterError> {
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").filter(|_| ASSETS.contains(&part));
    let path = assets.map_or_else(directory, PathBuf::from).join(part);
    if path.is_file() { Ok(path) } else { Err(ClusterError::NoPart(path)) }
}

/// A part that runs.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    child: Child,
}

impl Process {
    /// Starts a part inside a namespace; what it says goes to the end of `log`.
    pub fn start(
        space: &Netns,
        part: &str,
        arguments: &[String],
        environment: &[(&str, String)],
        log: &Path,
    ) -> Result<Self, ClusterError> {
        let file = File::options().create(true).append(true).open(log).map_err(failed("a log"))?;
        let errors = file.try_clone().map_err(failed("a log"))?;
        let mut command = Command::new(path(part)?);
        command.args(arguments).envs(environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(file).stderr(errors);
        // A child is born in the namespace of the thread that starts it.
        let child = space.run(|| command.spawn())?.map_err(failed(format!("starting {part}")))?;
        Ok(Self { name: part.to_owned(), log: log.to_owned(), child })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it said, all lives together.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until `ready` says so; an end of the process before that is an error.
    pub fn wait(
        &mut self,
        state: &'static str,
        patience: Duration,
        mut ready: impl FnMut() -> bool,
    ) -> Result<(), ClusterError> {
        let deadline = Instant::now() + patience;
        while !ready() {
            let ended = self.child.try_wait().map_err(failed("waiting for a part"))?;
            if ended.is_some() || Instant::now() > deadline {
                return Err(ClusterError::Late { part: self.name.clone(), state, log: tail(&self.log(), 40) });
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Kills it at once.
    pub fn kill9(mut self) -> Result<(), ClusterError> {
        self.child.kill().and_then(|()| self.child.wait()).map(|_| ()).map_err(failed("killing a part"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().and_then(|()| self.child.wait()).ok();
        if thread::panicking() {
            eprintln!("the end of the log of {}:\n{}", self.name, tail(&self.log(), 5));
        }
    }
}

/// Enough of a log to see why.
fn tail(log: &str, last: usize) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(last)..].join("\n")
}
