//! The commands' end of the control socket.
//!
//! In: a [`Request`]. Out: what the daemon says. What always holds: a daemon that hangs is not waited for long.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Answer, ControlError, FlowLine, LINE_BYTES, Request};

/// How long the daemon may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks the daemon of a run directory.
pub fn ask(dir: &Path, request: Request) -> Result<String, ControlError> {
    let (path, stream) = connect(dir)?;
    match exchange(&stream, request).map_err(|source| ControlError::Exchange { path, source })? {
        Answer::Done(said) => Ok(said),
        Answer::Refused(why) => Err(ControlError::Refused(why)),
    }
}

/// Gives each line about flows to `each`, until there are no more or it has enough. Those to come are waited for without
/// an end.
pub fn follow(
    dir: &Path,
    follow: bool,
    mut each: impl FnMut(FlowLine) -> io::Result<ControlFlow<()>>,
) -> Result<(), ControlError> {
    let (path, stream) = connect(dir)?;
    let mut read = || {
        send(&stream, Request::Flows { follow })?;
        if follow {
            stream.set_read_timeout(None)?;
        }
        for line in BufReader::new(&stream).lines() {
            if each(serde_json::from_str(&line?)?)?.is_break() {
                break;
            }
        }
        Ok(())
    };
    read().map_err(|source| ControlError::Exchange { path, source })
}

fn connect(dir: &Path) -> Result<(PathBuf, UnixStream), ControlError> {
    let path = super::path(dir);
    match UnixStream::connect(&path) {
        Ok(stream) => Ok((path, stream)),
        Err(source) => Err(ControlError::Connect { path, source }),
    }
}

fn send(mut stream: &UnixStream, request: Request) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_string(&request)?;
    line.push('\n');
    stream.write_all(line.as_bytes())
}

fn exchange(stream: &UnixStream, request: Request) -> io::Result<Answer> {
    send(stream, request)?;
    let mut answer = String::new();
    BufReader::new(stream.take(LINE_BYTES)).read_line(&mut answer)?;
    if answer.is_empty() {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
    }
    Ok(serde_json::from_str(&answer)?)
}
