//! What the fake API server answers.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::world::{Event, Fault, Streams, World, kind_of};
use super::{Shared, protobuf};

/// A body that is sent piece by piece.
pub struct Pieces(mpsc::Receiver<Bytes>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(cx).map(|piece| piece.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// What an answer is written in.
#[derive(Clone, Copy, PartialEq)]
enum Coding {
    Json,
    Protobuf,
}

impl Coding {
    /// What the client likes best of what the server can.
    fn of(request: &Request<Incoming>, world: &World) -> Self {
        let liked = request.headers().get(ACCEPT).and_then(|liked| liked.to_str().ok()).unwrap_or_default();
        if world.protobuf && liked.starts_with(PROTOBUF) { Self::Protobuf } else { Self::Json }
    }

    fn whole(self, status: u16, value: &Value) -> Response<Pieces> {
        self.marked(match self {
            Self::Json => whole(status, value.to_string()),
            Self::Protobuf => whole(status, protobuf::object(value)),
        })
    }

    fn refused(self, code: u16, message: &str) -> Response<Pieces> {
        self.whole(code, &status(code, message))
    }

    fn event(self, event: &Value) -> Bytes {
        match self {
            Self::Json => Bytes::from(format!("{event}\n")),
            Self::Protobuf => Bytes::from(protobuf::framed(&protobuf::event(event))),
        }
    }

    fn marked(self, mut response: Response<Pieces>) -> Response<Pieces> {
        if self == Self::Protobuf {
            response
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static("application/vnd.kubernetes.protobuf;stream=watch"));
        }
        response
    }
}

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

fn whole(status: u16, text: impl Into<Bytes>) -> Response<Pieces> {
    let (sender, receiver) = mpsc::channel(1);
    drop(sender.try_send(text.into()));
    let mut response = Response::new(Pieces(receiver));
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    response
}

fn status(code: u16, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code, "message": message})
}

/// The parameters of a query, decoded as far as tests need it.
fn parameters(query: &str) -> BTreeMap<String, String> {
    let decode = |text: &str| text.replace("%3D", "=").replace("%2C", ",").replace("%2F", "/");
    query.split('&').filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.to_owned(), decode(v))).collect()
}

pub async fn answer(request: Request<Incoming>, shared: Arc<Shared>) -> Response<Pieces> {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    shared.world().requests.push(format!("{} {path}?{query}", request.method()));
    let coding = Coding::of(&request, &shared.world());
    if !is_known(&request, &shared.world()) {
        return coding.refused(401, "Unauthorized");
    }
    let fault = shared.world().fault.clone();
    let Some((kind, resource)) = kind_of(&path) else { return coding.refused(404, "no such resource") };
    match fault {
        Fault::Hang => return std::future::pending().await,
        Fault::Status(code, of) if of.is_empty() || of == resource => return coding.refused(code, "the fake refuses"),
        Fault::Garbage(text) => return coding.marked(whole(200, format!("{text}\n"))),
        Fault::HangInBody => {
            let (sender, receiver) = mpsc::channel(1);
            tokio::spawn(async move { sender.closed().await });
            return coding.marked(Response::new(Pieces(receiver)));
        }
        _ => {}
    }
    if request.method() == Method::PATCH {
        return patch(request, &shared, &path).await;
    }
    let parameters = parameters(&query);
    if parameters.contains_key("watch") {
        watch(kind, parameters, shared, coding)
    } else {
        list(kind, &parameters, &shared, coding)
    }
}

fn is_known(request: &Request<Incoming>, world: &World) -> bool {
    let shown = request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes);
    world.token.as_ref().is_none_or(|token| shown == Some(format!("Bearer {token}").as_bytes()))
}

async fn patch(request: Request<Incoming>, shared: &Shared, path: &str) -> Response<Pieces> {
    let name = path.rsplit('/').next().unwrap_or_default().to_owned();
    let body = request.into_body().collect().await.expect("a body").to_bytes();
    let patch: Value = serde_json::from_slice(&body).expect("a patch");
    let outcome = {
        let mut world = shared.world();
        world.patches.push(patch.clone());
        patch_node(&mut world, &name, &patch)
    };
    shared.changed.notify_waiters();
    match outcome {
        Ok(node) => whole(200, node.to_string()),
        Err(message) => Coding::Json.refused(422, &message),
    }
}

/// JSON patch, as far as the daemon uses it: test and remove.
fn patch_node(world: &mut World, name: &str, patch: &Value) -> Result<Value, String> {
    let key = ("Node".to_owned(), String::new(), name.to_owned());
    let mut node = world.objects.get(&key).cloned().ok_or("no such node")?;
    for operation in patch.as_array().into_iter().flatten() {
        let path = operation["path"].as_str().unwrap_or_default();
        match operation["op"].as_str() {
            Some("test") if node.pointer(path) == Some(&operation["value"]) => {}
            Some("remove") => {
                let (list, position) = path.rsplit_once('/').ok_or("a path")?;
                let position: usize = position.parse().map_err(|_| "a position")?;
                node.pointer_mut(list).and_then(Value::as_array_mut).ok_or("a list")?.remove(position);
            }
            _ => return Err(format!("the operation {operation} fails")),
        }
    }
    world.apply(node.clone());
    Ok(node)
}

fn selected<'a>(world: &'a World, kind: &'a str, parameters: &BTreeMap<String, String>) -> Vec<&'a Value> {
    let name = parameters.get("fieldSelector").and_then(|selector| selector.strip_prefix("metadata.name="));
    let fits = |object: &&Value| name.is_none_or(|name| object["metadata"]["name"] == name);
    world.of_kind(kind).filter(fits).collect()
}

fn list(kind: &str, parameters: &BTreeMap<String, String>, shared: &Shared, coding: Coding) -> Response<Pieces> {
    let world = shared.world();
    let all = selected(&world, kind, parameters);
    let begin: usize = parameters.get("continue").and_then(|token| token.parse().ok()).unwrap_or(0);
    let limit = parameters.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX).min(world.page_max);
    let page: Vec<&Value> = all.iter().skip(begin).take(limit).copied().collect();
    let end = begin + page.len();
    let next = if end < all.len() { end.to_string() } else { String::new() };
    let version = (world.version).to_string();
    let metadata = json!({"resourceVersion": version, "continue": next});
    let page = json!({"kind": format!("{kind}List"), "apiVersion": "v1", "metadata": metadata, "items": page});
    coding.whole(200, &page)
}

fn watch(
    kind: &'static str,
    parameters: BTreeMap<String, String>,
    shared: Arc<Shared>,
    coding: Coding,
) -> Response<Pieces> {
    let streams = shared.world().streams;
    let with_list = parameters.contains_key("sendInitialEvents");
    if with_list && streams == Streams::RefusedInStatus {
        return coding.refused(422, "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch");
    }
    let (sender, receiver) = mpsc::channel(64);
    tokio::spawn(async move {
        if with_list && streams == Streams::RefusedInEvent {
            let message = "RequestWatchProgress feature is disabled";
            let error = json!({"type": "ERROR", "object": status(500, message)});
            drop(sender.send(coding.event(&error)).await);
        } else {
            // A client that is gone ends it.
            drop(Watch { kind, parameters, shared, sender, coding }.run(with_list && streams == Streams::Yes).await);
        }
    });
    coding.marked(Response::new(Pieces(receiver)))
}

struct Gone;

struct Watch {
    kind: &'static str,
    parameters: BTreeMap<String, String>,
    shared: Arc<Shared>,
    sender: mpsc::Sender<Bytes>,
    coding: Coding,
}

impl Watch {
    async fn send(&self, event: &Value) -> Result<(), Gone> {
        self.sender.send(self.coding.event(event)).await.map_err(|_| Gone)
    }

    async fn run(&self, with_list: bool) -> Result<(), Gone> {
        let (mut version, fault) = if with_list { self.list().await? } else { self.begin() };
        match fault {
            Fault::EndAtOnce => return Ok(()),
            Fault::GoneInEvent => return self.error(410, "too old resource version").await,
            Fault::GarbageInWatch(line) => self.line(line).await?,
            _ => {}
        }
        loop {
            let changed = self.shared.changed.notified();
            let (events, newest, oldest, bookmarks) = {
                let world = self.shared.world();
                (self.events_behind(&world, version), world.version, world.oldest, world.bookmarks)
            };
            if version > newest {
                return self.error(504, "Too large resource version").await;
            }
            if version < oldest && version > 0 {
                return self.error(410, "too old resource version").await;
            }
            for event in events {
                version = event.version;
                self.send(&json!({"type": event.word, "object": event.object})).await?;
            }
            tokio::select! {
                () = changed => {}
                () = self.sender.closed() => return Err(Gone),
                () = sleep_until(Instant::now() + bookmarks) => {
                    // Not the version of now: an event that came since would be skipped.
                    version = version.max(newest);
                    self.bookmark(version, json!({})).await?;
                }
            }
        }
    }

    fn begin(&self) -> (u64, Fault) {
        let version = self.parameters.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
        (version, self.shared.world().fault.clone())
    }

    async fn list(&self) -> Result<(u64, Fault), Gone> {
        let (objects, version, fault) = {
            let world = self.shared.world();
            let objects: Vec<Value> = selected(&world, self.kind, &self.parameters).into_iter().cloned().collect();
            (objects, world.version, world.fault.clone())
        };
        for object in objects {
            self.send(&json!({"type": "ADDED", "object": object})).await?;
        }
        if let Fault::GarbageInList(line) = &fault {
            self.line(line.clone()).await?;
        }
        self.bookmark(version, json!({"k8s.io/initial-events-end": "true"})).await?;
        Ok((version, fault))
    }

    fn events_behind(&self, world: &World, version: u64) -> Vec<Event> {
        let name = self.parameters.get("fieldSelector").and_then(|selector| selector.strip_prefix("metadata.name="));
        let fits = |event: &&Event| {
            event.version > version
                && event.object["kind"] == self.kind
                && name.is_none_or(|name| event.object["metadata"]["name"] == name)
        };
        world.events.iter().filter(fits).cloned().collect()
    }

    async fn bookmark(&self, version: u64, annotations: Value) -> Result<(), Gone> {
        let metadata = json!({"resourceVersion": version.to_string(), "annotations": annotations});
        self.send(&json!({"type": "BOOKMARK", "object": {"kind": self.kind, "metadata": metadata}})).await
    }

    async fn error(&self, code: u16, message: &str) -> Result<(), Gone> {
        self.send(&json!({"type": "ERROR", "object": status(code, message)})).await
    }

    async fn line(&self, line: String) -> Result<(), Gone> {
        self.sender.send(Bytes::from(format!("{line}\n"))).await.map_err(|_| Gone)
    }
}
