//! The plugin's end of the daemon's socket.
//!
//! In: a [`Request`], how long to wait. Out: the daemon's [`Answer`]. What always holds: it is waited for no longer than is
//! said; nothing is told to, and nothing believed of, a socket that is not this user's own.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::message::{Answer, LINE_BYTES, Request};
use crate::trust;

/// Between two tries at a daemon that is not there.
const PAUSE: Duration = Duration::from_millis(50);

/// How long an answer may be on its way once the daemon gave it.
const SLACK: Duration = Duration::from_millis(500);

/// Asks, and tries again until `within` is over: a daemon that is replaced is away for a moment. `request` is made anew for the time
/// that is left.
pub fn ask(socket: &Path, within: Duration, request: impl Fn(Duration) -> Request) -> io::Result<Answer> {
    let deadline = Instant::now() + within;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match once(socket, left + SLACK, &request(left)) {
            Err(error) if error.kind() != io::ErrorKind::PermissionDenied && Instant::now() + PAUSE < deadline => {
                sleep(PAUSE);
            }
            outcome => return outcome,
        }
    }
}

fn once(socket: &Path, within: Duration, request: &Request) -> io::Result<Answer> {
    trust::directory(socket.parent().unwrap_or(Path::new("/")))?;
    let mut stream = UnixStream::connect(socket)?;
    trust::peer(&stream)?;
    stream.set_read_timeout(Some(within))?;
    stream.set_write_timeout(Some(within))?;
    let mut line = serde_json::to_string(request)?;
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream.take(LINE_BYTES)).read_line(&mut answer)?;
    if answer.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_str(&answer)?)
}
