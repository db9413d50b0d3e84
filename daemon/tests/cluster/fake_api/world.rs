//! What the fake API server has, and what it does wrong.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

/// What a server does with a request for a list as a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Streams {
    /// What it was asked for.
    #[default]
    Yes,
    /// An event in an answer that is a success, as with an etcd that has no progress requests.
    RefusedInEvent,
    /// An error over HTTP, as servers before 1.27.
    RefusedInStatus,
    /// It takes it for a plain watch.
    Ignored,
}

/// What goes wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// It answers with this HTTP status to requests for this resource; for all if it is empty.
    Status(u16, String),
    /// It takes requests and never answers.
    Hang,
    /// Its answers begin and never go on.
    HangInBody,
    /// It answers with this text in place of lists and events.
    Garbage(String),
    /// It sends this line behind each list that is a stream, before its end.
    GarbageInList(String),
    /// It sends this line into each watch, once it follows.
    GarbageInWatch(String),
    /// It ends each watch at once.
    EndAtOnce,
    /// Each watch ends with 410, as an event.
    GoneInEvent,
}

/// One thing that happened to an object.
#[derive(Clone, Debug)]
pub struct Event {
    /// The version.
    pub version: u64,
    /// ADDED, MODIFIED or DELETED.
    pub word: &'static str,
    /// The object behind it.
    pub object: Value,
}

/// What the server has, and what it does wrong.
#[derive(Debug)]
pub struct World {
    /// The objects, by kind, namespace and name.
    pub objects: BTreeMap<(String, String, String), Value>,
    /// What happened.
    pub events: Vec<Event>,
    /// The newest version.
    pub version: u64,
    /// Watches from an earlier version get 410.
    pub oldest: u64,
    /// How it lists as a stream.
    pub streams: Streams,
    /// Whether it can write protobuf.
    pub protobuf: bool,
    /// What goes wrong.
    pub fault: Fault,
    /// The one token that it believes; it believes everybody without.
    pub token: Option<String>,
    /// How often a watch gets a bookmark.
    pub bookmarks: Duration,
    /// The largest page it gives.
    pub page_max: usize,
    /// The requests so far.
    pub requests: Vec<String>,
    /// The bodies of patches so far.
    pub patches: Vec<Value>,
}

impl Default for World {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            events: Vec::new(),
            version: 100,
            oldest: 0,
            streams: Streams::Yes,
            protobuf: false,
            fault: Fault::None,
            token: None,
            bookmarks: Duration::from_millis(100),
            page_max: 500,
            requests: Vec::new(),
            patches: Vec::new(),
        }
    }
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

impl World {
    /// Creates or changes an object. Without a UID it keeps the old one's, or gets one.
    pub fn apply(&mut self, mut object: Value) {
        self.version += 1;
        let key =
            ["/kind", "/metadata/namespace", "/metadata/name"].map(|pointer| text(&object, pointer).to_owned()).into();
        let old = self.objects.get(&key);
        if object.pointer("/metadata/uid").is_none() {
            let uid = old.map(|old| old["metadata"]["uid"].clone());
            object["metadata"]["uid"] = uid.unwrap_or_else(|| json!(format!("uid-{}", self.version)));
        }
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let word = if old.is_some() { "MODIFIED" } else { "ADDED" };
        self.events.push(Event { version: self.version, word, object: object.clone() });
        self.objects.insert(key, object);
    }

    /// Deletes an object, if it is there.
    pub fn delete(&mut self, kind: &str, namespace: &str, name: &str) {
        if let Some(mut object) = self.objects.remove(&(kind.to_owned(), namespace.to_owned(), name.to_owned())) {
            self.version += 1;
            object["metadata"]["resourceVersion"] = json!(self.version.to_string());
            self.events.push(Event { version: self.version, word: "DELETED", object });
        }
    }

    /// Forgets what happened so far: watches from before now get 410.
    pub fn compact(&mut self) {
        self.events.clear();
        self.oldest = self.version;
    }

    /// Everything as it was this many versions ago, as far as versions go.
    pub fn restore(&mut self, back: u64) {
        self.events.clear();
        self.version -= back;
    }

    /// The objects of a kind.
    pub fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.objects.iter().filter(move |((of, _, _), _)| of == kind).map(|(_, object)| object)
    }
}

/// The kind and the resource of a path.
pub fn kind_of(path: &str) -> Option<(&'static str, &'static str)> {
    let last = path.rsplit('/').find(|part| ["pods", "namespaces", "networkpolicies", "nodes"].contains(part))?;
    Some(match last {
        "pods" => ("Pod", "pods"),
        "namespaces" => ("Namespace", "namespaces"),
        "networkpolicies" => ("NetworkPolicy", "networkpolicies"),
        _ => ("Node", "nodes"),
    })
}
