//! Flatfell on a node of the lab: started, asked, stopped.
//!
//! In: a directory of manifests. Out: what the daemon serves. What always holds: it ends with its owner, also when the owner is
//! killed.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use flatfell_integration::{Lab, Netns, Place};

use super::interrupt;

/// Where the daemon serves by default; each node has a loopback of its own.
const LISTEN: &str = "127.0.0.1:9469";
const PATIENCE: Duration = Duration::from_secs(10);

/// A running daemon.
pub struct Daemon<'a> {
    space: &'a Netns,
    binary: PathBuf,
    child: Child,
}

impl<'a> Daemon<'a> {
    /// Starts it on a node named `node` and its number. Its log goes to a file beside the manifests.
    pub fn start(lab: &'a Lab, node: u8, manifests: &Path, log: &Path) -> anyhow::Result<Self> {
        let space = lab.netns(Place::Node(node))?;
        let binary = std::env::current_exe()?.with_file_name("flatfell");
        if !binary.exists() {
            bail!("{} is missing: build it with `cargo build --workspace --bins`", binary.display());
        }
        // If the demo is killed, nobody else would end the daemon.
        let child = space
            .command("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(&binary)
            .args(["run", "--node", &format!("node{node}"), "--manifests"])
            .arg(manifests)
            .arg("--run-dir")
            .arg(log.with_extension("run"))
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(log)?)
            .stderr(std::fs::File::options().append(true).open(log)?)
            .spawn()
            .context("flatfell cannot be started")?;
        Ok(Self { space, binary, child })
    }

    /// Waits until `/readyz` says so.
    pub fn wait_until_ready(&self) -> anyhow::Result<()> {
        let mut last = String::new();
        self.wait_until(|daemon| {
            daemon.get("/readyz").map(|(code, body)| {
                last = body;
                code == 200
            })
        })
        .with_context(|| format!("the daemon does not become ready: {last}"))
    }

    /// Waits until a rule of this policy is in the kernel.
    pub fn wait_for_policy(&self, policy: &str) -> anyhow::Result<()> {
        let label = format!("policy=\"{policy}\"");
        self.wait_until(|daemon| Ok(daemon.metrics()?.contains(&label)))
            .with_context(|| format!("policy {policy} does not get into force"))
    }

    fn wait_until(&self, mut done: impl FnMut(&Self) -> anyhow::Result<bool>) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            interrupt::check()?;
            match done(self) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                // It does not listen yet, or has ended.
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => {}
            }
            if Instant::now() > deadline {
                bail!("waited for {PATIENCE:?}");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The text of `/metrics`.
    pub fn metrics(&self) -> anyhow::Result<String> {
        Ok(self.get("/metrics")?.1)
    }

    fn get(&self, path: &str) -> anyhow::Result<(u16, String)> {
        let mut stream = self.space.run(|| TcpStream::connect(LISTEN))??;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {LISTEN}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
        let code = head.split(' ').nth(1).context("an answer without a code")?.parse()?;
        Ok((code, body.to_owned()))
    }

    /// Lets `flatfell status` write to standard output.
    pub fn print_status(&self) -> anyhow::Result<()> {
        let binary = self.binary.to_str().context("the binary's path is no text")?;
        if !self.space.command(binary).arg("status").status()?.success() {
            bail!("flatfell status failed");
        }
        Ok(())
    }

    /// The daemon's tables as nft lists them.
    pub fn listing(&self) -> anyhow::Result<String> {
        Ok(self.space.feed("nft", &["-s", "list", "ruleset"], "")?)
    }

    /// Asks it to end and waits; the rules stay.
    fn stop(&mut self) {
        let asked = i32::try_from(self.child.id()).is_ok_and(|id| {
            let id = nix::unistd::Pid::from_raw(id);
            nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM).is_ok()
        });
        let deadline = Instant::now() + Duration::from_secs(2);
        while asked && Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        // It ended, or cannot be asked.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The lines of a metric that hold all these texts, and the sum of their values.
pub fn series<'a>(metrics: &'a str, name: &str, labels: &[&str]) -> (Vec<&'a str>, u64) {
    let lines: Vec<&str> = metrics
        .lines()
        .filter(|line| line.starts_with(&format!("{name}{{")) && labels.iter().all(|label| line.contains(label)))
        .collect();
    let sum = lines.iter().filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum();
    (lines, sum)
}
