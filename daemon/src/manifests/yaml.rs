//! YAML and JSON text to values that know their lines.
//!
//! In: the text of a file. Out: one [`Node`] for each document. What always holds: depth and the growth by aliases are
//! bounded, a key stands once in a mapping, nothing is guessed: what the core schema does not know is an error. The
//! parser is driven event by event because that needs no stack for nested input.

use std::collections::{HashMap, HashSet};

use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput, Tag};
use serde_json::{Map, Number, Value};

/// Deepest nesting; a NetworkPolicy needs eleven.
const DEPTH_MAX: usize = 100;

/// Most nodes that aliases and anchors may add to a file.
const ALIAS_NODES_MAX: usize = 100_000;

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The line it begins in, from 1.
    pub line: usize,
    /// What it is.
    pub data: Data,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// Null, a boolean, a number or a string.
    Scalar(Value),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping: key, the key's line, value; no key twice.
    Map(Vec<Entry>),
}

/// A key of a mapping and its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The line the key stands in.
    pub line: usize,
    /// Its value.
    pub value: Node,
}

/// Why a text is no YAML (or no JSON).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct SyntaxError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong there.
    pub problem: String,
}

impl SyntaxError {
    fn new(line: usize, problem: impl Into<String>) -> Self {
        Self { line, problem: problem.into() }
    }
}

impl Node {
    /// The value without lines.
    pub fn to_json(&self) -> Value {
        match &self.data {
            Data::Scalar(value) => value.clone(),
            Data::List(items) => Value::Array(items.iter().map(Self::to_json).collect()),
            Data::Map(entries) => Value::Object(
                entries.iter().map(|entry| (entry.key.clone(), entry.value.to_json())).collect::<Map<_, _>>(),
            ),
        }
    }

    /// A value without lines of its own: all of it stands in `line`.
    pub fn from_json(value: Value, line: usize) -> Self {
        let data = match value {
            Value::Array(items) => Data::List(items.into_iter().map(|item| Self::from_json(item, line)).collect()),
            Value::Object(map) => Data::Map(
                map.into_iter().map(|(key, value)| Entry { key, line, value: Self::from_json(value, line) }).collect(),
            ),
            scalar => Data::Scalar(scalar),
        };
        Self { line, data }
    }

    /// The value of a key, when this is a mapping that has it.
    pub fn get(&self, key: &str) -> Option<&Self> {
        match &self.data {
            Data::Map(entries) => entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value),
            _ => None,
        }
    }

    /// The text, when this is a string.
    pub fn as_str(&self) -> Option<&str> {
        match &self.data {
            Data::Scalar(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    /// Whether there is nothing here: an empty document.
    pub fn is_null(&self) -> bool {
        self.data == Data::Scalar(Value::Null)
    }

    /// What kind of value this is, for people.
    pub fn describe(&self) -> &'static str {
        match &self.data {
            Data::Scalar(Value::Null) => "nothing",
            Data::Scalar(Value::Bool(_)) => "a boolean",
            Data::Scalar(Value::Number(_)) => "a number",
            Data::Scalar(_) => "a string",
            Data::List(_) => "a list",
            Data::Map(_) => "an object",
        }
    }

    /// The line of a field as `spec.ingress[0].from[1].ipBlock.cidr`; of its nearest known parent where it is missing.
    pub fn line_of(&self, path: &str) -> usize {
        let (mut node, mut line, mut rest) = (self, self.line, path);
        while let Some((next, next_line, behind)) = node.step(rest) {
            (node, line, rest) = (next, next_line, behind);
        }
        line
    }

    /// One step down a path: the child, its line, what is left of the path.
    fn step<'a, 'p>(&'a self, path: &'p str) -> Option<(&'a Self, usize, &'p str)> {
        let path = path.strip_prefix('.').unwrap_or(path);
        match &self.data {
            Data::Scalar(_) => None,
            Data::List(items) => {
                let (index, behind) = path.strip_prefix('[')?.split_once(']')?;
                let item = items.get(index.parse::<usize>().ok()?)?;
                Some((item, item.line, behind))
            }
            Data::Map(entries) => entries
                .iter()
                .filter_map(|entry| Some((entry, behind_key(path, &entry.key)?)))
                // Keys may hold dots themselves: the longest one that fits is meant.
                .max_by_key(|(entry, _)| entry.key.len())
                .map(|(entry, behind)| (&entry.value, entry.line, behind)),
        }
    }
}

/// What is left of a path behind a key, when the path begins with the whole key, bare or as `[key]` or `["key"]`.
fn behind_key<'p>(path: &'p str, key: &str) -> Option<&'p str> {
    if let Some(bracket) = path.strip_prefix('[') {
        let quote = if bracket.starts_with('"') { "\"" } else { "" };
        return bracket.strip_prefix(quote)?.strip_prefix(key)?.strip_prefix(quote)?.strip_prefix(']');
    }
    let behind = path.strip_prefix(key)?;
    (behind.is_empty() || behind.starts_with(['.', '['])).then_some(behind)
}

/// The documents of a YAML text, without the empty ones.
pub fn documents(text: &str) -> Result<Vec<Node>, SyntaxError> {
    let mut builder = Builder::default();
    for event in Parser::new(StrInput::new(text)) {
        let (event, span) = event.map_err(|error| {
            SyntaxError::new(error.marker().line(), explain(error.info(), text, error.marker().line()))
        })?;
        builder.event(event, span)?;
    }
    Ok(builder.documents)
}

/// The one document of a JSON text.
///
/// Read as YAML, of which it is a subset, for the lines; what YAML's reader does not take (escaped surrogate pairs) is
/// read as JSON, and what is no JSON either is explained as JSON.
pub fn json(text: &str) -> Result<Vec<Node>, SyntaxError> {
    let strict = serde_json::from_str::<Value>(text);
    match (strict, documents(text)) {
        (Ok(_), Ok(documents)) => Ok(documents),
        (Ok(_), Err(error)) if error.problem.starts_with(DUPLICATE_KEY) => Err(error),
        (Ok(value), Err(_)) => Ok(vec![Node::from_json(value, 1)]),
        (Err(_), Ok(documents)) if documents.is_empty() => Ok(documents),
        (Err(error), _) => Err(SyntaxError::new(error.line(), format!("not JSON: {error}"))),
    }
}

/// How the message about a key that stands twice begins.
const DUPLICATE_KEY: &str = "the key ";

/// The parser's message, with the cause that people meet most.
fn explain(info: &str, text: &str, line: usize) -> String {
    let is_tabbed = |line: usize| {
        let content = line.checked_sub(1).and_then(|index| text.lines().nth(index)).unwrap_or_default();
        content.trim_start_matches(' ').starts_with('\t')
    };
    if is_tabbed(line) || is_tabbed(line.saturating_sub(1)) {
        return format!("not YAML: {info} (a tab indents here; YAML takes spaces only)");
    }
    format!("not YAML: {info}")
}

/// A collection that is not complete yet.
struct Open {
    line: usize,
    anchor: usize,
    items: Items,
}

enum Items {
    List(Vec<Node>),
    Map { entries: Vec<Entry>, seen: HashSet<String>, key: Option<(String, usize)> },
}

/// Builds documents from the parser's events.
#[derive(Default)]
struct Builder {
    documents: Vec<Node>,
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    alias_nodes: usize,
}

impl Builder {
    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), SyntaxError> {
        let line = span.start.line();
        match event {
            Event::SequenceStart(anchor, tag) => {
                self.open(line, anchor, tag.as_deref(), "seq", Items::List(Vec::new()))
            }
            Event::MappingStart(anchor, tag) => {
                let items = Items::Map { entries: Vec::new(), seen: HashSet::new(), key: None };
                self.open(line, anchor, tag.as_deref(), "map", items)
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Scalar(text, style, anchor, tag) => {
                let value = scalar(&text, style, tag.as_deref()).map_err(|problem| SyntaxError::new(line, problem))?;
                // An empty document is a null without a place in the text.
                self.add(Node { line, data: Data::Scalar(value) }, anchor, Some(&text))
            }
            Event::Alias(anchor) => self.alias(line, anchor),
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::DocumentEnd => {
                Ok(())
            }
        }
    }

    fn open(
        &mut self,
        line: usize,
        anchor: usize,
        tag: Option<&Tag>,
        core: &str,
        items: Items,
    ) -> Result<(), SyntaxError> {
        if self.open.len() >= DEPTH_MAX {
            return Err(SyntaxError::new(line, format!("nested deeper than {DEPTH_MAX}")));
        }
        if let Some(tag) = tag.filter(|tag| !(tag.is_yaml_core_schema() && tag.suffix == core)) {
            return Err(SyntaxError::new(line, format!("the tag {tag} is not supported")));
        }
        if let Some(Open { items: Items::Map { key: None, .. }, .. }) = self.open.last() {
            return Err(SyntaxError::new(line, "a key is a list or an object; keys are text"));
        }
        self.open.push(Open { line, anchor, items });
        Ok(())
    }

    fn close(&mut self) -> Result<(), SyntaxError> {
        let Some(Open { line, anchor, items }) = self.open.pop() else {
            return Err(SyntaxError::new(0, "a collection ends that never began"));
        };
        let data = match items {
            Items::List(items) => Data::List(items),
            Items::Map { entries, .. } => Data::Map(entries),
        };
        self.add(Node { line, data }, anchor, None)
    }

    fn alias(&mut self, line: usize, anchor: usize) -> Result<(), SyntaxError> {
        let Some(mut node) = self.anchors.get(&anchor).cloned() else {
            return Err(SyntaxError::new(line, "an alias inside of what it stands for"));
        };
        let (nodes, depth) = extent(&node);
        self.spend(line, nodes)?;
        if self.open.len() + depth > DEPTH_MAX {
            return Err(SyntaxError::new(line, format!("nested deeper than {DEPTH_MAX} through an alias")));
        }
        node.line = line;
        let text = node.as_str().map(str::to_owned);
        self.add(node, 0, text.as_deref())
    }

    fn spend(&mut self, line: usize, nodes: usize) -> Result<(), SyntaxError> {
        self.alias_nodes = self.alias_nodes.saturating_add(nodes);
        if self.alias_nodes > ALIAS_NODES_MAX {
            let problem = format!("anchors and aliases grow this file by more than {ALIAS_NODES_MAX} values");
            return Err(SyntaxError::new(line, problem));
        }
        Ok(())
    }

    /// Puts a complete node where it belongs; `text` is what it says when it is a scalar, for keys.
    fn add(&mut self, node: Node, anchor: usize, text: Option<&str>) -> Result<(), SyntaxError> {
        if anchor > 0 {
            self.spend(node.line, extent(&node).0)?;
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut().map(|open| &mut open.items) {
            None if node.is_null() => {}
            None => self.documents.push(node),
            Some(Items::List(items)) => items.push(node),
            Some(Items::Map { entries, seen, key }) => match key.take() {
                Some((key, line)) => entries.push(Entry { key, line, value: node }),
                None => *key = Some((check_key(seen, node.line, text)?, node.line)),
            },
        }
        Ok(())
    }
}

/// A key as text, when it can stand in this mapping.
fn check_key(seen: &mut HashSet<String>, line: usize, text: Option<&str>) -> Result<String, SyntaxError> {
    let key = text.ok_or_else(|| SyntaxError::new(line, "a key is a list or an object; keys are text"))?;
    if key == "<<" {
        return Err(SyntaxError::new(line, "merge keys (<<) are not supported: write the fields out"));
    }
    if !seen.insert(key.to_owned()) {
        return Err(SyntaxError::new(line, format!("{DUPLICATE_KEY}{key:?} stands twice in one object")));
    }
    Ok(key.to_owned())
}

/// How many nodes a node is made of, and how deep it is. Its depth is bounded, so recursion is.
fn extent(node: &Node) -> (usize, usize) {
    let children: Vec<(usize, usize)> = match &node.data {
        Data::Scalar(_) => return (1, 0),
        Data::List(items) => items.iter().map(extent).collect(),
        Data::Map(entries) => entries.iter().map(|entry| extent(&entry.value)).collect(),
    };
    let nodes = children.iter().map(|(nodes, _)| nodes).sum::<usize>();
    (nodes + 1, children.iter().map(|(_, depth)| *depth).max().unwrap_or(0) + 1)
}

/// A scalar's value by YAML 1.2's core schema.
fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<Value, String> {
    match tag {
        None if style == ScalarStyle::Plain => Ok(plain(text)),
        None => Ok(Value::String(text.to_owned())),
        Some(tag) if tag.is_yaml_core_schema() && tag.suffix == "str" => Ok(Value::String(text.to_owned())),
        Some(tag) => {
            let value = plain(text);
            let fits = tag.is_yaml_core_schema()
                && match tag.suffix.as_str() {
                    "bool" => value.is_boolean(),
                    "int" => value.is_i64() || value.is_u64(),
                    "float" => value.is_number(),
                    "null" => value.is_null(),
                    _ => return Err(format!("the tag {tag} is not supported")),
                };
            if fits { Ok(value) } else { Err(format!("{text:?} does not fit its tag {tag}")) }
        }
    }
}

/// The value of a scalar without quotes.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    integer(text).or_else(|| float(text)).unwrap_or_else(|| Value::String(text.to_owned()))
}

fn integer(text: &str) -> Option<Value> {
    let radix = |prefix: &str, radix: u32| {
        text.strip_prefix(prefix).and_then(|digits| u64::from_str_radix(digits, radix).ok()).map(Value::from)
    };
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    radix("0x", 16)
        .or_else(|| radix("0o", 8))
        .or_else(|| unsigned.parse::<u64>().ok().map(Value::from))
        .or_else(|| text.parse::<i64>().ok().map(Value::from))
}

fn float(text: &str) -> Option<Value> {
    let looks_like_one = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'))
        && text.bytes().any(|byte| byte.is_ascii_digit());
    if !looks_like_one {
        return None;
    }
    text.parse::<f64>().ok().and_then(Number::from_f64).map(Value::Number)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn one(text: &str) -> Node {
        documents(text).expect("valid").into_iter().next().expect("one document")
    }

    fn problem(text: &str) -> SyntaxError {
        documents(text).expect_err("refused")
    }

    #[test]
    fn scalars_have_the_types_of_the_core_schema() {
        let text = "[1, -2, +3, 0x10, 1.5, yes, true, ~, '1', \"x\", !!str 5, 10.0.0.1, 1e, 18446744073709551615]";
        let expected =
            json!([1, -2, 3, 16, 1.5, "yes", true, null, "1", "x", "5", "10.0.0.1", "1e", 18446744073709551615_u64]);
        assert_eq!(one(text).to_json(), expected);
    }

    #[test]
    fn every_field_knows_its_line() {
        let node = one("# c\nspec:\n  ingress:\n  - from:\n    - ipBlock: {cidr: x}\n  labels:\n    a.b/c: d\n");
        assert_eq!(node.line_of("spec.ingress[0].from[0].ipBlock.cidr"), 5);
        assert_eq!(node.line_of("spec.labels.a.b/c"), 7);
        assert_eq!(node.line_of("spec.labels[a.b/c]"), 7);
        assert_eq!(node.line_of("spec.labels[\"a.b/c\"]"), 7);
        assert_eq!(node.line_of("spec.ingress[0].ports"), 4, "the nearest parent that is there");
        assert_eq!(node.line_of("metadata.name"), 2);
    }

    #[test]
    fn documents_are_split_and_empty_ones_left_out() {
        let nodes = documents("---\n---\na: 1\n---\n# nothing\n---\nb: 2\n...\n").expect("valid");
        assert_eq!(nodes.iter().map(Node::to_json).collect::<Vec<_>>(), [json!({"a": 1}), json!({"b": 2})]);
        assert_eq!(nodes[1].line, 7);
        assert_eq!(documents("").expect("empty"), []);
    }

    #[test]
    fn a_key_twice_is_an_error_with_the_line_of_the_second() {
        let error = problem("a: 1\nb:\n  c: 1\n  c: 2\n");
        assert_eq!((error.line, error.problem.as_str()), (4, "the key \"c\" stands twice in one object"));
    }

    #[test]
    fn aliases_work_and_bombs_do_not() {
        assert_eq!(one("a: &x [1, 2]\nb: *x\n").to_json(), json!({"a": [1, 2], "b": [1, 2]}));
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let previous = level - 1;
            let items = vec![format!("*a{previous}"); 10].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{items}]\n"));
        }
        assert!(problem(&bomb).problem.contains("anchors and aliases grow"));
        assert!(problem("a: &x [*x]\n").problem.contains("alias"));
    }

    #[test]
    fn deep_nesting_is_refused_without_a_deep_stack() {
        assert!(problem(&"- ".repeat(100_000)).problem.contains("nested deeper"));
        assert!(problem(&"[".repeat(200)).problem.contains("nested deeper"));
    }

    #[test]
    fn what_could_be_misread_is_refused() {
        assert!(problem("a: !!binary aGk=\n").problem.contains("tag"));
        assert!(problem("a: !!int x\n").problem.contains("does not fit"));
        assert!(problem("? [a]\n: b\n").problem.contains("keys are text"));
        assert!(problem("b: {<<: {a: 1}}\n").problem.contains("merge keys"));
    }

    #[test]
    fn a_tab_is_named() {
        let error = problem("spec:\n\tpodSelector: {}\n");
        assert!(error.problem.contains("tab"), "{error}");
        assert_eq!(error.line, 2);
    }

    #[test]
    fn json_has_lines_escapes_and_its_own_errors() {
        let node = json("{\n\t\"a\": 1,\n\t\"b\": [true]}").expect("valid").remove(0);
        assert_eq!((node.to_json(), node.line_of("b")), (json!({"a": 1, "b": [true]}), 3));
        let smile = json(r#"{"a": "\ud83d\ude00"}"#).expect("valid").remove(0);
        assert_eq!(smile.to_json(), json!({"a": "😀"}));
        let error = json("{\"a\": 1,\n \"b\" 2}").expect_err("refused");
        assert_eq!(error.line, 2);
        assert!(error.problem.starts_with("not JSON"), "{error}");
        assert!(json(r#"{"a": 1, "a": 2}"#).expect_err("refused").problem.contains("twice"));
    }
}
