//! Metrics, health and status over HTTP.
//!
//! In: GET and HEAD requests. Out: `/metrics`, `/healthz`, `/readyz`, `/status`. What always holds: nothing can be changed
//! over HTTP, and no client holds the daemon: headers, connections and their lifetime are limited.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, VARY};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::metrics::Format;
use crate::state::State;
use crate::status;

/// A request's headers must be complete within this time.
const HEADER_TIME: Duration = Duration::from_secs(5);

/// A connection ends after this time, whatever it does.
const CONNECTION_TIME: Duration = Duration::from_secs(60);

/// Connections at a time; more wait.
const CONNECTIONS: usize = 64;

/// Bytes of a request's headers.
const HEADER_BYTES: usize = 16 * 1024;

/// Why nothing can be served.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The address is taken, or is none of this node's.
    #[error("cannot listen on {address}{hint}", hint = hint(source))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

fn hint(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => " (is another flatfell running? --listen chooses another address)",
        std::io::ErrorKind::AddrNotAvailable => " (no interface of this node has it)",
        _ => "",
    }
}

/// A socket that listens.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    /// Where it listens, with the port that was chosen for port 0.
    pub address: SocketAddr,
}

impl Server {
    /// Listens on an address.
    pub async fn bind(address: SocketAddr) -> Result<Self, HttpError> {
        let failed = |source| HttpError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address })
    }

    /// Serves the daemon's pages until it is dropped.
    pub async fn serve(self, state: State) {
        self.answer_with(Arc::new(move |page, format| show(page, format, &state))).await;
    }

    /// Serves, until it is dropped, that the node is cleaned up.
    pub async fn serve_cleaned(self) {
        self.answer_with(Arc::new(|page, _| show_cleaned(page))).await;
    }

    async fn answer_with(self, pages: Pages) {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            // The semaphore is never closed.
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
                return;
            };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let pages = Arc::clone(&pages);
                    tokio::spawn(async move {
                        connection(stream, pages).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    // Out of file descriptors, mostly: it would fail again at once.
                    tracing::warn!(%error, "a connection cannot be accepted");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn connection(stream: TcpStream, pages: Pages) {
    let service = service_fn(move |request: Request<Incoming>| {
        let pages = Arc::clone(&pages);
        async move { Ok::<_, Infallible>(answer(&request, pages).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    // What a client does wrong is its own affair.
    match timeout(CONNECTION_TIME, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection ended early"),
        Err(_) => tracing::debug!("a connection took too long"),
    }
}

/// The paths that are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    Metrics,
    Health,
    Ready,
    Status,
}

/// What answers for each page, metrics in this format; may block.
type Pages = Arc<dyn Fn(Page, Format) -> Response<Full<Bytes>> + Send + Sync>;

fn page(path: &str) -> Option<Page> {
    match path {
        "/metrics" => Some(Page::Metrics),
        "/healthz" => Some(Page::Health),
        "/readyz" => Some(Page::Ready),
        "/status" => Some(Page::Status),
        _ => None,
    }
}

async fn answer<B>(request: &Request<B>, pages: Pages) -> Response<Full<Bytes>> {
    let Some(page) = page(request.uri().path()) else {
        return text(
            StatusCode::NOT_FOUND,
            "not found; there are /metrics, /healthz, /readyz and /status\n".to_owned(),
        );
    };
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n".to_owned());
        response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    // The kernel is asked for counters, which may take a moment.
    let format = format(request);
    spawn_blocking(move || pages(page, format))
        .await
        .unwrap_or_else(|error| text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")))
}

/// The format that a request's Accept headers ask for.
fn format<B>(request: &Request<B>) -> Format {
    let all = request.headers().get_all(ACCEPT).iter().filter_map(|header| header.to_str().ok());
    let all: Vec<&str> = all.collect();
    Format::accepted((!all.is_empty()).then(|| all.join(",")).as_deref())
}

fn show(page: Page, format: Format, state: &State) -> Response<Full<Bytes>> {
    match page {
        Page::Health => text(StatusCode::OK, "ok\n".to_owned()),
        Page::Ready => {
            let list = |lines: &[String]| lines.iter().map(|line| format!("- {line}\n")).collect::<String>();
            let (reasons, notes) = (state.not_ready(), state.notes());
            let notes = if notes.is_empty() { String::new() } else { format!("notes:\n{}", list(&notes)) };
            if reasons.is_empty() {
                text(StatusCode::OK, format!("ready\n{notes}"))
            } else {
                text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready:\n{}{notes}", list(&reasons)))
            }
        }
        Page::Metrics => match state.metrics.render(state, format) {
            Ok(body) => {
                let mut response = respond(StatusCode::OK, format.content_type(), body);
                response.headers_mut().insert(VARY, hyper::header::HeaderValue::from_static("accept"));
                response
            }
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        Page::Status => match serde_json::to_string(&status::report(state)) {
            Ok(body) => respond(StatusCode::OK, "application/json", body),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
    }
}

/// The pages of a node that `flatfell cleanup --stay` has cleaned up.
fn show_cleaned(page: Page) -> Response<Full<Bytes>> {
    match page {
        Page::Health => text(StatusCode::OK, "ok\n".to_owned()),
        Page::Ready => text(StatusCode::OK, "cleaned up\n".to_owned()),
        Page::Metrics | Page::Status => {
            text(StatusCode::NOT_FOUND, "cleaned up: no daemon runs here any more\n".to_owned())
        }
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", body)
}

fn respond(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, hyper::header::HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
