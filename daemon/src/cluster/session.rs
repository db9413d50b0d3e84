//! Requests to the API server, and what its answers mean.
//!
//! In: an [`Access`] and requests. Out: the bytes of an answer, or a [`Failure`]. What always holds: each question has an
//! end; an answer that is no success is a failure with the server's own words.

use std::time::Duration;

use hyper::header::{ACCEPT, HeaderValue};
use hyper::{Request, Response};
use kube::Client;
use kube::client::Body;
use tokio::time::timeout;

use super::access::Access;
use super::coding::Coding;
use super::failure::{Answer, Failure, chain, shortened};
use super::lines::Lines;
use super::resource::Resource;

/// Bytes of an error's text.
const ERROR_BYTES: usize = 64 * 1024;

/// A client that is made when it is needed.
pub struct Session {
    access: Access,
    patience: Duration,
    client: Option<(Client, String)>,
}

impl Session {
    /// One without a connection.
    pub fn new(access: Access, patience: Duration) -> Self {
        Self { access, patience, client: None }
    }

    /// The next request reads the credentials again and opens another connection.
    pub fn renew(&mut self) {
        self.client = None;
    }

    /// Asks for a list or a watch. `streaming` says that a list is asked for as a stream.
    pub async fn ask(
        &mut self,
        resource: Resource,
        verb: &'static str,
        streaming: bool,
        request: Result<Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<Lines, Failure> {
        let mut request = request.map_err(|error| Failure::of_error("", &error))?;
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static(Coding::accepted(resource)));
        self.send(resource, verb, streaming, request.map(Body::from)).await
    }

    /// Sends a request.
    pub async fn send(
        &mut self,
        resource: Resource,
        verb: &'static str,
        streaming: bool,
        request: Request<Body>,
    ) -> Result<Lines, Failure> {
        let (client, server) = self.client().await?;
        let answer = timeout(self.patience, client.send(request)).await;
        let answer = answer.map_err(|_| Failure::Silent(self.patience))?;
        let response = answer.map_err(|error| Failure::of_error(&server, &error))?;
        if response.status().is_success() {
            return Ok(Lines::new(&server, response));
        }
        let answer = self.answer(&server, response).await;
        Err(Failure::of_status(resource, verb, streaming, &answer))
    }

    async fn client(&mut self) -> Result<(Client, String), Failure> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let made = self.access.client().await;
        let made = made.map_err(|error| Failure::Unreachable { server: String::new(), why: chain(&error) })?;
        self.client = Some(made.clone());
        Ok(made)
    }

    async fn answer(&self, server: &str, response: Response<Body>) -> Answer {
        let code = response.status().as_u16();
        let mut lines = Lines::new(server, response);
        let text = match lines.all(self.patience).await {
            Ok(text) => text,
            Err(failure) => return Answer { code, message: failure.to_string() },
        };
        match lines.coding().status(&text) {
            Ok(status) if status.is_object() => Answer { code, ..Answer::of(&status, code) },
            _ => {
                let text = String::from_utf8_lossy(&text[..text.len().min(ERROR_BYTES)]).into_owned();
                Answer { code, message: shortened(text.trim()) }
            }
        }
    }
}
