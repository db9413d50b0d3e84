//! From the text of one file to the objects in it.
//!
//! In: the text. Out: [`Content`]: every object that policy has a use for, with its line, and what is wrong with it. What
//! always holds: lists are opened, the defaults of an API server are applied, a kind without use is noted, and an object
//! that cannot be understood is never left out in silence.

use std::path::Path;
use std::sync::Arc;

use flatfell_rules::parse::{self, Fault};
use serde_json::{Value, json};

use super::object::{Key, Kind, Object};
use super::problem::{Problem, Severity};
use super::yaml::{self, Data, Node, SyntaxError};

/// What one file says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Content {
    /// Its objects, in order.
    pub objects: Vec<Found>,
    /// What is wrong with them.
    pub problems: Vec<Problem>,
}

/// An object of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// What names it.
    pub key: Key,
    /// The line it begins in.
    pub line: usize,
    /// What it means; `None` when it was refused and nothing can stand in for it.
    pub object: Option<Arc<Object>>,
}

/// What an object takes from the list it stands in.
#[derive(Clone, Copy, Default)]
struct Inherited<'a> {
    kind: Option<&'a str>,
    api_version: Option<&'a str>,
}

/// Reads the text of `file`; its name decides between YAML and JSON.
pub fn read(file: &Path, text: &str) -> Result<Content, SyntaxError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let is_json = file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
    let documents = if is_json { yaml::json(text)? } else { yaml::documents(text)? };
    let mut reader = Reader { file, content: Content::default() };
    for document in &documents {
        reader.document(document, Inherited::default());
    }
    Ok(reader.content)
}

struct Reader<'a> {
    file: &'a Path,
    content: Content,
}

impl Reader<'_> {
    fn report(&mut self, severity: Severity, line: usize, text: impl Into<String>) -> &mut Problem {
        self.content.problems.push(Problem::new(severity, self.file.to_path_buf(), line, text));
        let last = self.content.problems.len() - 1;
        &mut self.content.problems[last]
    }

    /// One document or one item of a list. Nesting is bounded by the reader of YAML.
    fn document(&mut self, node: &Node, inherited: Inherited<'_>) {
        if !matches!(node.data, Data::Map(_)) {
            let text = format!("expected a Kubernetes object (apiVersion, kind, metadata), found {}", node.describe());
            self.report(Severity::Error, node.line, text);
            return;
        }
        let Some(kind) = node.get("kind").and_then(Node::as_str).or(inherited.kind) else {
            let line = node.line_of("kind");
            self.report(Severity::Error, line, "no kind: this is no Kubernetes object").field = "kind".to_owned();
            return;
        };
        let api_version = node.get("apiVersion").and_then(Node::as_str).or(inherited.api_version);
        match (kind.strip_suffix("List"), node.get("items")) {
            (Some(item_kind), Some(items)) => self.list(items, item_kind, api_version),
            _ => self.object(node, kind, api_version),
        }
    }

    fn list(&mut self, items: &Node, item_kind: &str, api_version: Option<&str>) {
        let inherited = if item_kind.is_empty() {
            Inherited::default()
        } else {
            Inherited { kind: Some(item_kind), api_version }
        };
        match &items.data {
            Data::List(items) => items.iter().for_each(|item| self.document(item, inherited)),
            _ if items.is_null() => {}
            _ => {
                let text = format!("expected a list, found {}", items.describe());
                self.report(Severity::Error, items.line, text).field = "items".to_owned();
            }
        }
    }

    fn object(&mut self, node: &Node, word: &str, api_version: Option<&str>) {
        let group = api_version.and_then(|version| version.split_once('/')).map_or("", |(group, _)| group);
        let is_policy = word.ends_with("NetworkPolicy") || group == "policy.networking.k8s.io";
        match (Kind::of(word), api_version) {
            (Some(kind), Some(version)) if version == kind.api_version() => self.understand(node, kind),
            (Some(kind), None) => {
                let text = format!("no apiVersion: taken for {}", kind.api_version());
                self.report(Severity::Warning, node.line, text).object = title(node);
                self.understand(node, kind);
            }
            (_, version) => {
                let version = version.unwrap_or("no apiVersion");
                let (severity, text) = if is_policy {
                    (Severity::Warning, format!("{word} ({version}) is not enforced: networking.k8s.io/v1 is"))
                } else {
                    (Severity::Note, format!("{word} ({version}) is passed over: policy has no use for it"))
                };
                self.report(severity, node.line, text).object = title(node);
            }
        }
    }

    fn understand(&mut self, node: &Node, kind: Kind) {
        let mut value = node.to_json();
        apply_defaults(&mut value, kind);
        let (object, faults) = parse_object(kind, &value);
        let name = object.as_ref().map(|object| object.key().to_string()).unwrap_or_else(|| title(node));
        for fault in faults {
            let line = node.line_of(&fault.field);
            let problem = self.report(Severity::Error, line, fault.problem);
            problem.object.clone_from(&name);
            problem.field = fault.field;
        }
        let key = match &object {
            Some(object) => Some(object.key()),
            None => key_of(&value, kind),
        };
        if let Some(key) = key {
            self.content.objects.push(Found { key, line: node.line, object: object.map(Arc::new) });
        }
    }
}

/// `namespace/name` as far as it can be told, for messages.
fn title(node: &Node) -> String {
    let field = |field| node.get("metadata").and_then(|metadata| metadata.get(field)).and_then(Node::as_str);
    match (field("namespace"), field("name")) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        (None, Some(name)) => name.to_owned(),
        _ => "(no name)".to_owned(),
    }
}

/// What names an object that was refused, if anything does.
fn key_of(value: &Value, kind: Kind) -> Option<Key> {
    let field = |field: &str| value.get("metadata")?.get(field)?.as_str().map(str::to_owned);
    let namespace = if kind == Kind::Namespace { String::new() } else { field("namespace")? };
    Some(Key { kind, namespace, name: field("name")? })
}

/// What an API server writes into an object that leaves it out: the namespace, and a namespace's own label.
fn apply_defaults(value: &mut Value, kind: Kind) {
    let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) else {
        return;
    };
    match kind {
        Kind::Namespace => {
            let Some(name) = metadata.get("name").and_then(Value::as_str).map(str::to_owned) else {
                return;
            };
            let labels = metadata.entry("labels").or_insert(Value::Null);
            if labels.is_null() {
                *labels = json!({});
            }
            if let Some(labels) = labels.as_object_mut() {
                labels.insert("kubernetes.io/metadata.name".to_owned(), Value::String(name));
            }
        }
        Kind::Pod | Kind::NetworkPolicy => {
            let namespace = metadata.entry("namespace").or_insert(Value::Null);
            if namespace.is_null() || namespace == "" {
                *namespace = json!("default");
            }
        }
    }
}

/// The object, when it has a meaning (a refused policy has one), and what is wrong with it.
fn parse_object(kind: Kind, value: &Value) -> (Option<Object>, Vec<Fault>) {
    match kind {
        Kind::Namespace => split(parse::namespace(value).map(Object::Namespace)),
        Kind::Pod => split(parse::pod(value).map(Object::Pod)),
        Kind::NetworkPolicy => split(parse::policy(value).map(Object::Policy)),
    }
}

fn split(parsed: Result<Object, parse::Refusal>) -> (Option<Object>, Vec<Fault>) {
    match parsed {
        Ok(Object::Policy(policy)) => {
            let faults = policy.refusal.as_ref().map(|refusal| refusal.faults.clone()).unwrap_or_default();
            (Some(Object::Policy(policy)), faults)
        }
        Ok(object) => (Some(object), Vec::new()),
        Err(refusal) => (None, refusal.faults),
    }
}
