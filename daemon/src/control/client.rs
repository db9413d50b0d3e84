//! The commands' end of the control socket.
//!
//! In: a [`Request`]. Out: what the daemon says. What always holds: a daemon that hangs is not waited for long.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::{Answer, ControlError, LINE_BYTES, Request};

/// How long the daemon may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks the daemon of a run directory.
pub fn ask(dir: &Path, request: Request) -> Result<String, ControlError> {
    let path = super::path(dir);
    let stream = UnixStream::connect(&path).map_err(|source| ControlError::Connect { path: path.clone(), source })?;
    match exchange(&stream, request).map_err(|source| ControlError::Exchange { path, source })? {
        Answer::Done(said) => Ok(said),
        Answer::Refused(why) => Err(ControlError::Refused(why)),
    }
}

fn exchange(mut stream: &UnixStream, request: Request) -> io::Result<Answer> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_string(&request)?;
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream.take(LINE_BYTES)).read_line(&mut answer)?;
    if answer.is_empty() {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
    }
    Ok(serde_json::from_str(&answer)?)
}
