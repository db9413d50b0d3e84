//! Walking through an object with the path of each field at hand.
//!
//! In: a JSON value. Out: its parts as [`Node`]s, and a [`Report`] of what is wrong. What always holds: a wrong type is
//! reported where it is found and read as missing; `null` is missing.

use std::fmt;
use std::rc::Rc;

use serde_json::{Map, Value};

use super::{Fault, Refusal};

/// What was found wrong in one object.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) faults: Vec<Fault>,
    pub(super) warnings: Vec<Fault>,
}

impl Report {
    pub(super) fn fault(&mut self, node: &Node<'_>, problem: impl Into<String>) {
        self.faults.push(Fault { field: node.path.to_string(), problem: problem.into() });
    }

    pub(super) fn warn(&mut self, node: &Node<'_>, problem: impl Into<String>) {
        self.warnings.push(Fault { field: node.path.to_string(), problem: problem.into() });
    }

    /// The faults as a refusal, if there are any.
    pub(super) fn refusal(&mut self) -> Option<Refusal> {
        (!self.faults.is_empty()).then(|| Refusal { faults: std::mem::take(&mut self.faults) })
    }
}

/// Where a value stands: the way to what it is part of, and the last step. It becomes text only where something is wrong.
#[derive(Clone, Debug, Default)]
struct Path<'a>(Option<Rc<(Path<'a>, Step<'a>)>>);

/// One step into a value.
#[derive(Clone, Copy, Debug)]
enum Step<'a> {
    Field(&'a str),
    Item(usize),
}

impl<'a> Path<'a> {
    fn then(&self, step: Step<'a>) -> Self {
        Self(Some(Rc::new((self.clone(), step))))
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((above, step)) = self.0.as_deref() else { return Ok(()) };
        above.fmt(f)?;
        match step {
            Step::Field(name) if above.0.is_none() => f.write_str(name),
            Step::Field(name) => write!(f, ".{name}"),
            Step::Item(position) => write!(f, "[{position}]"),
        }
    }
}

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Node<'a> {
    path: Path<'a>,
    value: &'a Value,
}

/// An object, its fields by name.
#[derive(Clone, Debug)]
pub(super) struct Fields<'a> {
    path: Path<'a>,
    map: &'a Map<String, Value>,
}

impl<'a> Node<'a> {
    pub(super) fn root(value: &'a Value) -> Self {
        Self { path: Path::default(), value }
    }

    pub(super) fn value(&self) -> &'a Value {
        self.value
    }

    pub(super) fn object(&self, report: &mut Report) -> Option<Fields<'a>> {
        let map = self.expect(report, "an object", self.value.as_object())?;
        Some(Fields { path: self.path.clone(), map })
    }

    pub(super) fn text(&self, report: &mut Report) -> Option<&'a str> {
        self.expect(report, "a string", self.value.as_str())
    }

    pub(super) fn boolean(&self, report: &mut Report) -> Option<bool> {
        self.expect(report, "true or false", self.value.as_bool())
    }

    pub(super) fn list(&self, report: &mut Report) -> Option<Vec<Node<'a>>> {
        let list = self.expect(report, "a list", self.value.as_array())?;
        let item = |(position, value)| Node { path: self.path.then(Step::Item(position)), value };
        Some(list.iter().enumerate().map(item).collect())
    }

    /// A port number, 1 to 65535.
    pub(super) fn port(&self, report: &mut Report) -> Option<u16> {
        let number = self.value.as_u64().and_then(|number| u16::try_from(number).ok()).filter(|number| *number > 0);
        self.expect(report, "a port from 1 to 65535", number)
    }

    fn expect<T>(&self, report: &mut Report, wanted: &str, found: Option<T>) -> Option<T> {
        if found.is_none() {
            report.fault(self, format!("must be {wanted}, not {}", shown(self.value)));
        }
        found
    }
}

impl<'a> Fields<'a> {
    /// A field that is there and not null.
    pub(super) fn get(&self, name: &str) -> Option<Node<'a>> {
        let (name, value) = self.map.get_key_value(name).filter(|(_, value)| !value.is_null())?;
        Some(self.node(name, value))
    }

    /// The items of a list; none where the list is missing or is no list.
    pub(super) fn items(&self, name: &str, report: &mut Report) -> Vec<Node<'a>> {
        self.get(name).and_then(|node| node.list(report)).unwrap_or_default()
    }

    /// A text that is there, or the default for one that is missing; `None` for what is no text.
    pub(super) fn text_or(&self, name: &str, default: &'a str, report: &mut Report) -> Option<&'a str> {
        self.get(name).map_or(Some(default), |node| node.text(report))
    }

    /// The fields that are set and not in the list.
    pub(super) fn unknown(&self, known: &[&str]) -> Vec<Node<'a>> {
        let is_unknown = |(name, value): &(&String, &Value)| !known.contains(&name.as_str()) && !value.is_null();
        self.map.iter().filter(is_unknown).map(|(name, value)| self.node(name, value)).collect()
    }

    /// Every field, nulls included.
    pub(super) fn all(&self) -> impl Iterator<Item = (&'a str, Node<'a>)> {
        self.map.iter().map(|(name, value)| (name.as_str(), self.node(name, value)))
    }

    fn node(&self, name: &'a str, value: &'a Value) -> Node<'a> {
        Node { path: self.path.then(Step::Field(name)), value }
    }
}

/// A value as it is shown in an error: short, on one line.
fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::Null => "nothing".to_owned(),
        Value::String(text) if text.len() > 64 => "a long string".to_owned(),
        Value::String(_) | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}
