//! The bytes of an answer.
//!
//! In: a response of the API server. Out: its lines one by one, or all of it. What always holds: a server cannot make
//! this daemon keep more than a limit, nor wait longer than it was told to.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::Response;
use hyper::body::Bytes;
use kube::client::Body;
use tokio::time::error::Elapsed;
use tokio::time::timeout;

use super::failure::{Failure, chain};

/// Longest event of a watch; etcd holds no object half as large.
const LINE_MAX: usize = 8 * 1024 * 1024;

/// Longest page of a list.
const PAGE_MAX: usize = 256 * 1024 * 1024;

/// An answer that is being read.
pub struct Lines {
    server: String,
    body: Body,
    buffer: Vec<u8>,
    /// Where the next line begins.
    start: usize,
    /// Up to here the buffer was searched for an end of line.
    searched: usize,
}

impl Lines {
    /// The body of an answer of the server at this address.
    pub fn new(server: &str, response: Response<Body>) -> Self {
        Self { server: server.to_owned(), body: response.into_body(), buffer: Vec::new(), start: 0, searched: 0 }
    }

    /// The next line; `None` at the end. A line that the end cuts off is none. Safe to be dropped and called again. The
    /// server has this long; a line that is here already costs no timer.
    pub async fn next_within(&mut self, patience: Duration) -> Result<Result<Option<Vec<u8>>, Failure>, Elapsed> {
        match self.take_line() {
            Some(line) => Ok(Ok(Some(line))),
            None => timeout(patience, self.next()).await,
        }
    }

    async fn next(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        loop {
            if self.searched > LINE_MAX {
                return Err(Failure::Garbage(format!("an event of more than {LINE_MAX} bytes")));
            }
            match self.more().await? {
                Some(bytes) => self.buffer.extend_from_slice(&bytes),
                None => return Ok(None),
            }
            if let Some(line) = self.take_line() {
                return Ok(Some(line));
            }
        }
    }

    /// A whole line of the buffer. Without one, what is left is moved to its front: once for each piece that comes.
    fn take_line(&mut self) -> Option<Vec<u8>> {
        let Some(length) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') else {
            self.buffer.drain(..self.start);
            self.start = 0;
            self.searched = self.buffer.len();
            return None;
        };
        let end = self.searched + length;
        let line = self.buffer[self.start..end].to_vec();
        self.start = end + 1;
        self.searched = self.start;
        Some(line)
    }

    /// Everything, if no pause is longer than this.
    pub async fn all(&mut self, patience: Duration) -> Result<Vec<u8>, Failure> {
        let mut all = Vec::new();
        while let Some(bytes) = timeout(patience, self.more()).await.map_err(|_| Failure::Silent(patience))?? {
            all.extend_from_slice(&bytes);
            if all.len() > PAGE_MAX {
                return Err(Failure::Garbage(format!("a list of more than {PAGE_MAX} bytes")));
            }
        }
        Ok(all)
    }

    async fn more(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
                Some(Err(error)) => {
                    return Err(Failure::Unreachable { server: self.server.clone(), why: chain(&error) });
                }
            }
        }
    }
}
