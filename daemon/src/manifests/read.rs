//! From the text of one file to the objects in it.
//!
//! In: the text. Out: [`Content`]: every object that policy has a use for, with its line, and what is wrong with it. What
//! always holds: lists are opened, a kind without use is noted, and an object
//! that cannot be understood is never left out in silence.

use std::path::Path;
use std::sync::Arc;

use flatfell_rules::parse::{self, Fault, Parsed, Refusal};
use serde_json::Value;

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
        let inherited =
            if item_kind.is_empty() { Inherited::default() } else { Inherited { kind: Some(item_kind), api_version } };
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
        let value = node.to_json();
        let Understood { object, faults, warnings } = parse_object(kind, &value);
        let key = match &object {
            Some(object) => object.key(),
            None => key_of(&value, kind, node.line),
        };
        self.report_faults(node, &key, Severity::Error, faults);
        self.report_faults(node, &key, Severity::Warning, warnings);
        self.content.objects.push(Found { key, line: node.line, object: object.map(Arc::new) });
    }

    fn report_faults(&mut self, node: &Node, key: &Key, severity: Severity, faults: Vec<Fault>) {
        for fault in faults {
            let problem = self.report(severity, node.line_of(&fault.field), fault.problem);
            problem.object = key.to_string();
            problem.field = fault.field;
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

/// What names an object that was refused; its line where nothing does.
fn key_of(value: &Value, kind: Kind, line: usize) -> Key {
    let named = match kind {
        Kind::Namespace => {
            let name = value.get("metadata").and_then(|metadata| metadata.get("name")).and_then(Value::as_str);
            name.map(|name| (String::new(), name.to_owned()))
        }
        Kind::Pod | Kind::NetworkPolicy => {
            parse::name_of(value).map(|name| (name.namespace.to_string(), name.name.to_string()))
        }
    };
    let (namespace, name) = named.unwrap_or_else(|| (String::new(), format!("(no name, line {line})")));
    Key { kind, namespace, name }
}

/// An object that may have a meaning, and what is wrong and what is sloppy about it.
struct Understood {
    object: Option<Object>,
    faults: Vec<Fault>,
    warnings: Vec<Fault>,
}

impl Understood {
    fn of<T>(parsed: Result<Parsed<T>, Refusal>, object: impl FnOnce(T) -> Object) -> Self {
        match parsed {
            Ok(Parsed { value, warnings }) => {
                let object = object(value);
                let faults = match &object {
                    Object::Policy(policy) => {
                        policy.refusal.as_ref().map_or(Vec::new(), |refusal| refusal.faults.clone())
                    }
                    Object::Pod(_) | Object::Namespace(_) => Vec::new(),
                };
                Self { object: Some(object), faults, warnings }
            }
            Err(refusal) => Self { object: None, faults: refusal.faults, warnings: Vec::new() },
        }
    }
}

fn parse_object(kind: Kind, value: &Value) -> Understood {
    match kind {
        Kind::Namespace => Understood::of(parse::namespace(value), Object::Namespace),
        Kind::Pod => Understood::of(parse::pod(value), Object::Pod),
        Kind::NetworkPolicy => Understood::of(parse::policy(value), Object::Policy),
    }
}
