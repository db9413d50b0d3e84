//! The daemon's end of the plugin's socket.
//!
//! In: connections. Out: an [`Answer`] for each request. What always holds: only processes of the daemon's own user are listened to; the
//! directory is the daemon's alone (0700); ADD is answered when the kernel enforces a policy that knows the pod with all its
//! addresses, or when its time is over.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flatfell_cni::message::{Answer, LINE_BYTES, Request, SOCKET, Sandbox};
use flatfell_cni::trust;
use flatfell_rules::object::ObjectName;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::Counts;
use super::sandboxes::{SandboxError, Sandboxes};
use crate::control::{Bound, ControlError, prepare};
use crate::engine::{Engine, EngineStatus};

/// A request must be complete within this time.
const PATIENCE: Duration = Duration::from_secs(5);

/// No answer takes longer, whatever the plugin asks for.
const LONGEST: Duration = Duration::from_secs(120);

/// Requests at a time; more wait.
const AT_ONCE: usize = 512;

/// The listening socket; its file goes when this is dropped.
#[derive(Debug)]
pub struct Socket(Bound);

impl Socket {
    /// Listens in a directory of its own. The caller holds this network namespace's [`crate::lock::Lock`]: what lies there
    /// is of a daemon that is gone.
    pub fn bind(dir: &Path) -> Result<Self, ControlError> {
        prepare(dir)?;
        let path = dir.join(SOCKET);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(ControlError::Listen { path, source });
            }
            Ok(()) | Err(_) => {}
        }
        Ok(Self(Bound::new(path)?))
    }

    /// Serves until it is dropped.
    pub async fn serve(self, daemon: Arc<Daemon>) {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        loop {
            // Nobody closes it.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            match self.0.listener.accept().await {
                Ok((stream, _)) => {
                    let daemon = Arc::clone(&daemon);
                    tokio::spawn(async move {
                        if let Err(error) = daemon.connection(stream).await {
                            tracing::debug!(%error, "a connection of the CNI plugin failed");
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection of the CNI plugin cannot be accepted");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// What requests are about.
pub struct Daemon {
    /// Who enforces.
    pub engine: Arc<Engine>,
    /// What is known.
    pub sandboxes: Sandboxes,
    /// What was asked.
    pub counts: Arc<Counts>,
}

impl Daemon {
    async fn connection(&self, mut stream: UnixStream) -> io::Result<()> {
        let line = timeout(PATIENCE, read(&mut stream)).await??;
        let (command, answer) = match (trust::peer(&stream), serde_json::from_str::<Request>(&line)) {
            (Err(error), _) => {
                tracing::warn!(%error, "somebody else's process knocked at the CNI plugin's socket");
                ("status", Answer::Refused("only the daemon's own user may do that".to_owned()))
            }
            (Ok(()), Err(error)) => ("status", Answer::Refused(format!("not understood: {error}"))),
            (Ok(()), Ok(request)) => self.answer(request).await,
        };
        let outcome = match &answer {
            Answer::Done => "done",
            Answer::NotYet(_) => "not-yet",
            Answer::Refused(_) => "refused",
        };
        self.counts.answered(command, outcome);
        let mut line = serde_json::to_string(&answer)?;
        line.push('\n');
        timeout(PATIENCE, stream.write_all(line.as_bytes())).await?
    }

    async fn answer(&self, request: Request) -> (&'static str, Answer) {
        match request {
            Request::Add(sandbox, milliseconds) => {
                ("add", self.add(&sandbox, Duration::from_millis(milliseconds).min(LONGEST)).await)
            }
            Request::Check(sandbox) => ("check", self.check(&sandbox)),
            Request::Delete(attachment) => ("delete", done(self.sandboxes.delete(&attachment))),
            Request::Keep(attachments) => ("gc", done(self.sandboxes.keep(&attachments))),
            Request::Status => ("status", self.status()),
        }
    }

    async fn add(&self, sandbox: &Sandbox, within: Duration) -> Answer {
        let deadline = Instant::now() + within;
        let mut changes = self.engine.changes();
        if let Err(error) = self.sandboxes.add(sandbox) {
            tracing::error!(%error, pod = %sandbox.name, "a sandbox is not taken in");
            return Answer::Refused(error.to_string());
        }
        loop {
            if is_enforced(&self.engine.status(), sandbox) {
                return Answer::Done;
            }
            if !matches!(timeout_at(deadline, changes.changed()).await, Ok(Ok(()))) {
                return not_yet(sandbox);
            }
        }
    }

    fn check(&self, sandbox: &Sandbox) -> Answer {
        if is_enforced(&self.engine.status(), sandbox) { Answer::Done } else { not_yet(sandbox) }
    }

    fn status(&self) -> Answer {
        match self.engine.status().enforced {
            Some(_) => Answer::Done,
            None => Answer::NotYet("nothing is enforced yet: `flatfell status` says why".to_owned()),
        }
    }
}

async fn read(stream: &mut UnixStream) -> io::Result<String> {
    let mut line = String::new();
    BufReader::new((&mut *stream).take(LINE_BYTES)).read_line(&mut line).await?;
    Ok(line)
}

fn done(outcome: Result<(), SandboxError>) -> Answer {
    outcome.map_or_else(|error| Answer::Refused(error.to_string()), |()| Answer::Done)
}

fn not_yet(sandbox: &Sandbox) -> Answer {
    let pod = format!("{}/{}", sandbox.namespace, sandbox.name);
    Answer::NotYet(format!("the kernel does not have pod {pod} with its addresses: is it in the API server?"))
}

/// Whether the kernel has the pod's policy at all its addresses.
fn is_enforced(status: &EngineStatus, sandbox: &Sandbox) -> bool {
    let Some(effective) = &status.enforced else { return false };
    let name = ObjectName::new(sandbox.namespace.clone(), sandbox.name.clone());
    let pod = effective.pods().get(&name);
    pod.is_some_and(|pod| sandbox.addresses.iter().all(|address| pod.addresses.contains(address)))
}
