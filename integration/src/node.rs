//! A running Flatfell on a node of the lab.
//!
//! In: manifests as files, changed while it runs. Out: the daemon's own status and metrics, asked over HTTP inside the
//! node's namespace. What always holds: after [`FlatfellNode::settle`] the kernel enforces every file written before;
//! the process goes with its handle, also when a test panics.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use flatfell::config::DEFAULT_LISTEN;
use flatfell::status::Report;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use thiserror::Error;

use crate::lab::{Lab, LabError};
use crate::netns::{Netns, NetnsError};
use crate::patience::patient;
use crate::place::Place;

/// How long the daemon may take to start, to settle or to stop, on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(2);
/// The file that tells when everything written before it is enforced.
const MARKER: &str = "zz-settle.yaml";

/// What can go wrong with a daemon.
#[derive(Debug, Error)]
pub enum NodeError {
    /// The lab has no such node.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// Its namespace.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The binary is not built.
    #[error("{} is missing: run `cargo build --workspace --bins` first", .0.display())]
    NoBinary(PathBuf),
    /// A file, a process or a connection.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// An answer that is none.
    #[error("the daemon's answer to {path} cannot be read: {answer}")]
    Answer {
        /// What was asked for.
        path: String,
        /// What came back.
        answer: String,
    },
    /// It did not get there in time.
    #[error("the daemon is not {state}; it says: {last}\nits log:\n{log}")]
    Late {
        /// What was waited for.
        state: &'static str,
        /// Its last status.
        last: String,
        /// What it logged.
        log: String,
    },
}

/// Where a daemon learns what to enforce.
#[derive(Debug)]
enum Source {
    /// From a directory of its own.
    Manifests,
    /// From the API server of this kubeconfig.
    Server(PathBuf),
}

/// A daemon in a node's namespace, with a directory of manifests of its own or an API server.
#[derive(Debug)]
pub struct FlatfellNode {
    space: Netns,
    /// In place of the one next to this program.
    binary: Option<PathBuf>,
    name: String,
    flags: Vec<String>,
    directory: TempDir,
    source: Source,
    process: Option<Child>,
    marks: u8,
    patience: Duration,
}

impl FlatfellNode {
    /// Starts the daemon on a node (its name is `node1` for 1) with these files, and waits until it is ready.
    pub fn start(lab: &Lab, node: u8, manifests: &[(&str, &str)]) -> Result<Self, NodeError> {
        Self::start_with(lab, node, manifests, &[])
    }

    /// The same with more flags for `flatfell run`.
    pub fn start_with(lab: &Lab, node: u8, manifests: &[(&str, &str)], flags: &[&str]) -> Result<Self, NodeError> {
        Self::start_within(lab, node, manifests, flags, PATIENCE)
    }

    /// The same for a daemon that may take so long for everything.
    pub fn start_within(
        lab: &Lab,
        node: u8,
        manifests: &[(&str, &str)],
        flags: &[&str],
        patience: Duration,
    ) -> Result<Self, NodeError> {
        let mut this = Self::new(lab, node, Source::Manifests, flags)?;
        this.patience = patience;
        this.begin_with(manifests)?;
        Ok(this)
    }

    /// The same with another program in the daemon's place: another build of it, or one that starts it in some way.
    pub fn start_binary(
        binary: &Path,
        lab: &Lab,
        node: u8,
        manifests: &[(&str, &str)],
        flags: &[&str],
    ) -> Result<Self, NodeError> {
        let mut this = Self::new(lab, node, Source::Manifests, flags)?;
        this.binary = Some(binary.to_owned());
        this.begin_with(manifests)?;
        Ok(this)
    }

    fn begin_with(&mut self, manifests: &[(&str, &str)]) -> Result<(), NodeError> {
        manifests.iter().try_for_each(|(file, text)| self.write(file, text))?;
        self.restart().map(drop)
    }

    /// Starts it after it was killed, and waits for nothing.
    pub fn spawn_again(&mut self) -> Result<(), NodeError> {
        self.begin()
    }

    /// Another build of the daemon takes its place at the next start.
    pub fn replace_binary(&mut self, binary: &Path) {
        self.binary = Some(binary.to_owned());
    }

    /// Starts the daemon on a node with the API server of a kubeconfig, and waits until it is ready.
    pub fn join(lab: &Lab, node: u8, kubeconfig: &Path, flags: &[&str]) -> Result<Self, NodeError> {
        let this = Self::launch(lab, node, kubeconfig, flags)?;
        this.wait_for("ready", |report| report.ready && report.synced)?;
        Ok(this)
    }

    /// The same without waiting.
    pub fn launch(lab: &Lab, node: u8, kubeconfig: &Path, flags: &[&str]) -> Result<Self, NodeError> {
        Self::launch_binary(None, lab, node, kubeconfig, flags)
    }

    /// The same with another build of the daemon, if one is given.
    pub fn launch_binary(
        binary: Option<&Path>,
        lab: &Lab,
        node: u8,
        kubeconfig: &Path,
        flags: &[&str],
    ) -> Result<Self, NodeError> {
        let mut this = Self::new(lab, node, Source::Server(kubeconfig.to_owned()), flags)?;
        this.binary = binary.map(Path::to_owned);
        this.begin()?;
        Ok(this)
    }

    fn new(lab: &Lab, node: u8, source: Source, flags: &[&str]) -> Result<Self, NodeError> {
        let this = Self {
            space: lab.netns(Place::Node(node))?.again()?,
            binary: None,
            name: format!("node{node}"),
            flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
            directory: TempDir::new().map_err(failed("a directory for manifests"))?,
            source,
            process: None,
            marks: 0,
            patience: PATIENCE,
        };
        fs::create_dir(this.root()).map_err(failed("a directory for manifests"))?;
        Ok(this)
    }

    /// Its node's name in the cluster.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory it follows, if it follows one.
    pub fn root(&self) -> PathBuf {
        self.directory.path().join("manifests")
    }

    /// The run directory of the daemon on this node.
    pub fn run_dir(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    /// Writes (or replaces) a file at once.
    pub fn write(&self, file: &str, text: &str) -> Result<(), NodeError> {
        let draft = self.directory.path().join("draft");
        fs::write(&draft, text)
            .and_then(|()| fs::rename(&draft, self.root().join(file)))
            .map_err(failed(format!("writing {file}")))
    }

    /// Removes a file.
    pub fn remove(&self, file: &str) -> Result<(), NodeError> {
        fs::remove_file(self.root().join(file)).map_err(failed(format!("removing {file}")))
    }

    /// Waits until the kernel enforces all that was written before.
    ///
    /// A pod that does not exist is renumbered last, in an address range for documentation: once the daemon reports the
    /// new address as enforced, whatever was written earlier is too.
    pub fn settle(&mut self) -> Result<Report, NodeError> {
        self.enforced()?;
        self.wait_for("settled", |report| report.synced && report.swept)
    }

    /// The same without waiting until running connections are checked.
    pub fn enforced(&mut self) -> Result<Report, NodeError> {
        self.marks = self.marks.wrapping_add(1);
        let address = format!("192.0.2.{}", self.marks);
        self.write(MARKER, &marker(&self.name, &address))?;
        self.wait_for("enforced", |report| {
            report.synced && report.pods.iter().any(|pod| pod.addresses.contains(&address))
        })
    }

    /// Writes a file and waits until it is enforced.
    pub fn apply(&mut self, file: &str, text: &str) -> Result<Report, NodeError> {
        self.write(file, text)?;
        self.settle()
    }

    /// Waits until its status is as `wanted` says.
    pub fn wait_for(&self, state: &'static str, mut wanted: impl FnMut(&Report) -> bool) -> Result<Report, NodeError> {
        let deadline = Instant::now() + patient(self.patience);
        loop {
            let status = self.status();
            match status {
                Ok(report) if wanted(&report) => return Ok(report),
                status if Instant::now() > deadline => {
                    return Err(NodeError::Late { state, last: format!("{status:?}"), log: self.log() });
                }
                _ => thread::sleep(PAUSE),
            }
        }
    }

    /// What it says about itself.
    pub fn status(&self) -> Result<Report, NodeError> {
        let answer = self.get("/status")?;
        serde_json::from_str(&answer).map_err(|_| NodeError::Answer { path: "/status".to_owned(), answer })
    }

    /// Its metrics.
    pub fn metrics(&self) -> Result<String, NodeError> {
        self.get("/metrics")
    }

    /// The body of an answer, whatever its code.
    pub fn get(&self, path: &str) -> Result<String, NodeError> {
        let answer = self.space.run(|| ask(path))?.map_err(failed(format!("asking for {path}")))?;
        match answer.split_once("\r\n\r\n") {
            Some((_, body)) => Ok(body.to_owned()),
            None => Err(NodeError::Answer { path: path.to_owned(), answer }),
        }
    }

    /// Its process id, while it runs.
    pub fn process_id(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// What it logged, all lives together.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Starts it (again) and waits until it is ready and settled.
    pub fn restart(&mut self) -> Result<Report, NodeError> {
        self.end(Signal::SIGTERM)?;
        self.begin()?;
        match self.source {
            Source::Manifests => {
                self.settle()?;
                self.wait_for("ready", |report| report.ready)
            }
            Source::Server(_) => self.wait_for("ready", |report| report.ready && report.synced),
        }
    }

    fn begin(&mut self) -> Result<(), NodeError> {
        let binary = self.binary.clone().map_or_else(binary, Ok)?;
        let log = File::options().create(true).append(true).open(self.log_file()).map_err(failed("the log"))?;
        let mut command = Command::new(binary);
        command.args(["run", "--node", &self.name]);
        match &self.source {
            Source::Manifests => command.arg("--manifests").arg(self.root()),
            Source::Server(kubeconfig) => command.arg("--kubeconfig").arg(kubeconfig),
        };
        command.args(&self.flags);
        command.arg("--run-dir").arg(self.run_dir());
        let errors = log.try_clone().map_err(failed("the log"))?;
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        // A child is born in the namespace of the thread that starts it.
        let child = self.space.run(|| command.spawn())?.map_err(failed("starting flatfell"))?;
        self.process = Some(child);
        Ok(())
    }

    /// Kills it without a chance to clean up.
    pub fn kill9(&mut self) -> Result<(), NodeError> {
        self.end(Signal::SIGKILL)
    }

    /// Asks it to stop and waits until it has.
    pub fn stop(&mut self) -> Result<(), NodeError> {
        self.end(Signal::SIGTERM)
    }

    /// Starts another of its commands in the node's namespace, to run beside.
    pub fn spawn(&self, arguments: &[&str]) -> Result<Child, NodeError> {
        let mut command = Command::new(binary()?);
        command.args(arguments).env("FLATFELL_RUN_DIR", self.run_dir()).stdin(Stdio::null()).stdout(Stdio::null());
        self.space.run(|| command.spawn())?.map_err(failed("starting a command"))
    }

    /// Runs another of its commands in the node's namespace, and gives what it printed.
    pub fn command(&self, arguments: &[&str]) -> Result<String, NodeError> {
        let binary = binary()?;
        // Not every command has the flag; every command that has it reads the variable.
        let run_dir = format!("FLATFELL_RUN_DIR={}", self.run_dir().display());
        let binary = binary.to_string_lossy();
        let words = [&[run_dir.as_str(), &binary], arguments].concat();
        Ok(self.space.feed("env", &words, "")?)
    }

    /// Waits until it has stopped for another reason than this handle.
    pub fn wait_until_stopped(&mut self) -> Result<(), NodeError> {
        self.process.take().map_or(Ok(()), |child| self.wait_for_end(child))
    }

    fn end(&mut self, signal: Signal) -> Result<(), NodeError> {
        let Some(child) = self.process.take() else { return Ok(()) };
        let process = i32::try_from(child.id()).map_err(|error| failed("a process id")(io::Error::other(error)))?;
        kill(Pid::from_raw(process), signal).map_err(|error| failed("a signal")(error.into()))?;
        self.wait_for_end(child)
    }

    fn wait_for_end(&mut self, mut child: Child) -> Result<(), NodeError> {
        let deadline = Instant::now() + patient(self.patience);
        while child.try_wait().map_err(failed("waiting for flatfell"))?.is_none() {
            if Instant::now() > deadline {
                self.process = Some(child);
                return Err(NodeError::Late { state: "stopped", last: String::new(), log: self.log() });
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn log_file(&self) -> PathBuf {
        self.directory.path().join("log")
    }
}

impl Drop for FlatfellNode {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the log of flatfell on {}:\n{}", self.name, self.log());
        }
        if let Some(mut child) = self.process.take() {
            child.kill().and_then(|()| child.wait()).ok();
        }
    }
}

/// The daemon's binary: cargo puts it beside the directory of the tests.
pub fn binary() -> Result<PathBuf, NodeError> {
    let own = std::env::current_exe().map_err(failed("the test's own path"))?;
    let places = own.ancestors().skip(1).take(2).map(|directory| directory.join("flatfell"));
    let missing = || NodeError::NoBinary(own.with_file_name("flatfell"));
    places.into_iter().find(|path| Path::is_file(path)).ok_or_else(missing)
}

fn marker(node: &str, address: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: settle, namespace: lab-settle, uid: lab-settle}}, \
         spec: {{nodeName: {node}}}, status: {{podIP: {address}}}}}\n"
    )
}

/// Runs inside the node's namespace.
fn ask(path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(DEFAULT_LISTEN)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: flatfell\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> NodeError {
    |source| NodeError::Io { what: what.into(), source }
}
