//! The bytes of an answer.
//!
//! In: a response of the API server. Out: its events one by one, or all of it. What always holds: a server cannot make
//! this daemon keep more than a limit, nor wait longer than it was told to.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::Response;
use hyper::body::Bytes;
use kube::client::Body;
use tokio::time::error::Elapsed;
use tokio::time::timeout;

use super::coding::Coding;
use super::failure::{Failure, chain};

/// Longest event of a watch; etcd holds no object half as large.
const LINE_MAX: usize = 8 * 1024 * 1024;

/// Longest page of a list.
const PAGE_MAX: usize = 256 * 1024 * 1024;

/// Bytes of the length before an event in protobuf.
const HEADER: usize = 4;

/// An answer that is being read.
pub struct Lines {
    server: String,
    coding: Coding,
    body: Body,
    buffer: Vec<u8>,
    /// Where the next event begins.
    start: usize,
    /// Up to here the buffer was searched for an end of line.
    searched: usize,
}

impl Lines {
    /// The body of an answer of the server at this address.
    pub fn new(server: &str, response: Response<Body>) -> Self {
        let coding = Coding::of(response.headers());
        let server = server.to_owned();
        Self { server, coding, body: response.into_body(), buffer: Vec::new(), start: 0, searched: 0 }
    }

    /// What it is written in.
    pub fn coding(&self) -> Coding {
        self.coding
    }

    /// The next event; `None` at the end. One that the end cuts off is none. Safe to be dropped and called again. The
    /// server has this long; what is here already costs no timer.
    pub async fn next_within(&mut self, patience: Duration) -> Result<Result<Option<Vec<u8>>, Failure>, Elapsed> {
        match self.take_event() {
            Ok(None) => timeout(patience, self.next()).await,
            taken => Ok(taken),
        }
    }

    async fn next(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        loop {
            match self.more().await? {
                Some(bytes) => self.buffer.extend_from_slice(&bytes),
                None => return Ok(None),
            }
            if let Some(event) = self.take_event()? {
                return Ok(Some(event));
            }
        }
    }

    /// A whole event of the buffer. Without one, what is left is moved to its front: once for each piece that comes.
    fn take_event(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        let found = match self.coding {
            Coding::Json => self.line(),
            Coding::Protobuf => self.frame(),
        };
        let Some((begin, end, next)) = found.filter(|(_, end, _)| *end <= self.buffer.len()) else {
            let length = found.map_or(self.buffer.len(), |(_, end, _)| end) - self.start;
            if length > LINE_MAX {
                return Err(Failure::Garbage(format!("an event of more than {LINE_MAX} bytes")));
            }
            self.buffer.drain(..self.start);
            self.start = 0;
            self.searched = self.buffer.len();
            return Ok(None);
        };
        let event = self.buffer[begin..end].to_vec();
        self.start = next;
        self.searched = next;
        Ok(Some(event))
    }

    /// Begin and end of the next line, if it is here, and where the one after it begins.
    fn line(&self) -> Option<(usize, usize, usize)> {
        let length = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n')?;
        let end = self.searched + length;
        Some((self.start, end, end + 1))
    }

    /// The same for what has its length before it; its end may be still to come.
    fn frame(&self) -> Option<(usize, usize, usize)> {
        let header = self.buffer[self.start..].first_chunk::<HEADER>()?;
        let begin = self.start + HEADER;
        let end = begin.saturating_add(usize::try_from(u32::from_be_bytes(*header)).unwrap_or(usize::MAX));
        Some((begin, end, end))
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
