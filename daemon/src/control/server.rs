//! The daemon's end of the control socket.
//!
//! In: connections. Out: calls of a [`Handler`], one for each understood [`Request`]. What always holds: the run directory
//! is the daemon's alone (0700), the socket too (0600); the file goes with the [`Socket`]; a client that says nothing
//! holds nobody up.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::Uid;
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Semaphore, broadcast};
use tokio::time::{sleep, timeout};

use super::{Answer, ControlError, FlowLine, LINE_BYTES, Request};
use crate::flows::{Feed, Record};

/// A request must be complete, and its answer taken, within this time.
const PATIENCE: Duration = Duration::from_secs(5);

/// Clients that follow flows at a time.
const FOLLOWERS: usize = 16;

/// What comes of a request.
#[derive(Debug)]
pub enum Reply {
    /// An answer.
    Answer(Answer),
    /// Records of the flow log, and perhaps those to come.
    Flows(Feed, Follow),
}

/// Whether those to come are sent too.
pub type Follow = bool;

/// What does what is asked for.
pub trait Handler: Send + Sync + 'static {
    /// Does it, and says so.
    fn handle(&self, request: Request) -> Reply;
    /// The answer was sent.
    fn answered(&self, request: Request);
}

/// A listening socket that only its owner may use; its file goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) listener: UnixListener,
    path: PathBuf,
}

impl Bound {
    /// Listens at a path where nothing is.
    pub(crate) fn new(path: PathBuf) -> Result<Self, ControlError> {
        let failed = |source| ControlError::Listen { path: path.clone(), source };
        let listener = UnixListener::bind(&path).map_err(failed)?;
        let bound = Self { listener, path: path.clone() };
        fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(bound)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "a socket's file stays");
        }
    }
}

/// The listening socket; its file goes when this is dropped.
#[derive(Debug)]
pub struct Socket(Bound);

impl Socket {
    /// Listens in a run directory, which is made if it is not there. The caller holds this network namespace's
    /// [`crate::lock::Lock`]: what lies there is of a daemon that is gone, or of another namespace.
    pub fn bind(dir: &Path) -> Result<Self, ControlError> {
        prepare(dir)?;
        let path = super::path(dir);
        match std::os::unix::net::UnixStream::connect(&path) {
            Ok(_) => return Err(ControlError::Taken(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => fs::remove_file(&path).map_err(directory(dir, "a stale socket cannot be removed"))?,
        }
        Ok(Self(Bound::new(path)?))
    }

    /// Serves until it is dropped.
    pub async fn serve(self, handler: Arc<dyn Handler>) {
        let followers = Arc::new(Semaphore::new(FOLLOWERS));
        loop {
            match self.0.listener.accept().await {
                Ok((stream, _)) => {
                    let (handler, followers) = (Arc::clone(&handler), Arc::clone(&followers));
                    tokio::spawn(async move {
                        if let Err(error) = connection(stream, handler.as_ref(), &followers).await {
                            tracing::debug!(%error, "a connection to the control socket failed");
                        }
                    });
                }
                Err(error) => {
                    // Out of file descriptors, mostly: it would fail again at once.
                    tracing::warn!(%error, "a connection to the control socket cannot be accepted");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// Removes what a killed daemon left in its run directory, and the directory where nothing else is in it. The caller
/// holds this network namespace's [`crate::lock::Lock`].
pub fn remove_leftovers(dir: &Path) {
    let path = super::path(dir);
    if std::os::unix::net::UnixStream::connect(&path).is_ok() {
        return;
    }
    // Neither need be there, and the directory may be a mount.
    let _ = fs::remove_file(path);
    let _ = fs::remove_file(dir.join(crate::totals::FILE));
    let _ = fs::remove_dir(dir);
}

fn directory(dir: &Path, what: &'static str) -> impl FnOnce(io::Error) -> ControlError {
    move |source| ControlError::Directory { dir: dir.to_owned(), what, source }
}

/// A directory, ours alone.
pub(crate) fn prepare(dir: &Path) -> Result<(), ControlError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(directory(dir, "cannot be made"))?;
    let metadata = fs::metadata(dir).map_err(directory(dir, "cannot be read"))?;
    let own = Uid::effective();
    if metadata.uid() != own.as_raw() {
        return Err(ControlError::Owner { dir: dir.to_owned(), owner: metadata.uid(), own });
    }
    fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(directory(dir, "cannot be closed to others"))
}

/// One request and what comes of it. Only who follows flows may take longer than [`PATIENCE`].
async fn connection(mut stream: UnixStream, handler: &dyn Handler, followers: &Semaphore) -> io::Result<()> {
    let Some((feed, follow)) = timeout(PATIENCE, exchange(&mut stream, handler)).await?? else { return Ok(()) };
    let Ok(_place) = followers.try_acquire() else {
        return put(&mut stream, &FlowLine::Refused(format!("{FOLLOWERS} others follow already"))).await;
    };
    timeout(PATIENCE, recent(&mut stream, feed.recent)).await??;
    if follow { live(&mut stream, feed.live).await } else { stream.shutdown().await }
}

async fn recent(stream: &mut UnixStream, records: Vec<Arc<Record>>) -> io::Result<()> {
    for record in records {
        put(stream, &FlowLine::Record(Box::new(Record::clone(&record)))).await?;
    }
    Ok(())
}

/// Sends each record as it comes, until the client goes.
async fn live(stream: &mut UnixStream, mut records: broadcast::Receiver<Arc<Record>>) -> io::Result<()> {
    let mut nothing = [0];
    loop {
        let line = tokio::select! {
            read = stream.read(&mut nothing) => match read? {
                0 => return Ok(()),
                _ => continue,
            },
            record = records.recv() => match record {
                Ok(record) => FlowLine::Record(Box::new(Record::clone(&record))),
                Err(RecvError::Lagged(lost)) => FlowLine::Lost(lost),
                Err(RecvError::Closed) => return stream.shutdown().await,
            },
        };
        put(stream, &line).await?;
    }
}

/// Reads a request and answers it, unless it asks for flows.
async fn exchange(stream: &mut UnixStream, handler: &dyn Handler) -> io::Result<Option<(Feed, Follow)>> {
    // Read before it is refused: an answer to a client that still writes would be lost.
    let mut line = String::new();
    BufReader::new((&mut *stream).take(LINE_BYTES)).read_line(&mut line).await?;
    let peer = stream.peer_cred()?.uid();
    if peer != Uid::effective().as_raw() {
        tracing::warn!(user = peer, "somebody else's process knocked at the control socket");
        reply(stream, &Answer::Refused("only the daemon's own user may do that".to_owned())).await?;
        return Ok(None);
    }
    let request = match serde_json::from_str::<Request>(&line) {
        Ok(request) => request,
        Err(error) => {
            reply(stream, &Answer::Refused(format!("not understood: {error}"))).await?;
            return Ok(None);
        }
    };
    match handler.handle(request) {
        Reply::Flows(feed, follow) => Ok(Some((feed, follow))),
        Reply::Answer(answer) => {
            let sent = reply(stream, &answer).await;
            handler.answered(request);
            sent.map(|()| None)
        }
    }
}

async fn reply(stream: &mut UnixStream, answer: &Answer) -> io::Result<()> {
    put(stream, answer).await?;
    stream.shutdown().await
}

async fn put(stream: &mut UnixStream, line: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_string(line)?;
    line.push('\n');
    stream.write_all(line.as_bytes()).await
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::control::{NAME, ask};

    /// Remembers what it was asked.
    #[derive(Default)]
    struct Memory(Mutex<Vec<Request>>);

    impl Handler for Memory {
        fn handle(&self, request: Request) -> Reply {
            self.0.lock().expect("memory").push(request);
            Reply::Answer(match request {
                Request::Stop => Answer::Refused("no".to_owned()),
                _ => Answer::Done("yes".to_owned()),
            })
        }

        fn answered(&self, _: Request) {}
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("it is there").mode() & 0o777
    }

    async fn asked(dir: &Path, request: Request) -> Result<String, ControlError> {
        let dir = dir.to_owned();
        tokio::task::spawn_blocking(move || ask(&dir, request)).await.expect("asked")
    }

    #[tokio::test]
    async fn it_answers_its_own_user_and_goes() {
        let parent = tempfile::tempdir().expect("a directory");
        let dir = parent.path().join("run/flatfell");
        let none = asked(&dir, Request::Resume).await.expect_err("nobody listens");
        assert!(none.to_string().contains("does it run"), "{none}");
        let socket = Socket::bind(&dir).expect("bound");
        assert_eq!((mode(&dir), mode(&dir.join(NAME))), (0o700, 0o600));
        let memory = Arc::new(Memory::default());
        let server = tokio::spawn(socket.serve(memory.clone()));
        assert_eq!(asked(&dir, Request::Pause { seconds: 5 }).await.expect("done"), "yes");
        assert!(matches!(asked(&dir, Request::Stop).await, Err(ControlError::Refused(why)) if why == "no"));
        assert_eq!(*memory.0.lock().expect("memory"), [Request::Pause { seconds: 5 }, Request::Stop]);
        let taken = Socket::bind(&dir).expect_err("a daemon answers there");
        assert!(matches!(taken, ControlError::Taken(_)), "{taken}");
        server.abort();
        assert!(server.await.is_err());
        assert!(!dir.join(NAME).exists(), "it goes with the daemon");
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_an_open_directory_closed() {
        let dir = tempfile::tempdir().expect("a directory");
        drop(std::os::unix::net::UnixListener::bind(dir.path().join(NAME)).expect("a stale one"));
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).expect("opened");
        let socket = Socket::bind(dir.path()).expect("bound");
        assert_eq!(mode(dir.path()), 0o700);
        drop(socket);
    }

    #[tokio::test]
    async fn what_is_no_request_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let memory = Arc::new(Memory::default());
        let server = tokio::spawn(Socket::bind(dir.path()).expect("bound").serve(memory.clone()));
        for text in ["{\"pause\":{}}\n".to_owned(), "x".repeat(10_000), "\"reboot\"\n".to_owned()] {
            let mut stream = UnixStream::connect(dir.path().join(NAME)).await.expect("connected");
            // A server that has read enough may close before all of it is written.
            let _ = stream.write_all(text.as_bytes()).await;
            let _ = stream.shutdown().await;
            let mut answer = String::new();
            let _ = stream.read_to_string(&mut answer).await;
            assert!(answer.is_empty() || answer.contains("not understood"), "{answer}");
        }
        assert!(memory.0.lock().expect("memory").is_empty());
        server.abort();
    }

    #[test]
    fn a_directory_of_somebody_else_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        std::os::unix::fs::chown(dir.path(), Some(65534), None).expect("tests run as root");
        assert!(matches!(prepare(dir.path()), Err(ControlError::Owner { owner: 65534, .. })));
    }
}
