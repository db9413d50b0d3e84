//! Protobuf of which only the wanted fields are kept.
//!
//! In: bytes as an API server writes them, and the [`Keep`] that JSON is pruned by, with the numbers of its fields. Out:
//! the [`Value`] that the same object gives as JSON. What always holds: what is cut off, of another type, or twice where
//! it belongs once is an error, never a field that is missing; a text that is no UTF-8 is read as Go writes it in JSON.

use k8s_openapi::jiff::Timestamp;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use serde_json::{Map, Value, json};

use super::prune::{Field, Keep};
use super::resource::STATUS;

/// What stands before each object, and before each page of a list.
const MAGIC: &[u8] = b"k8s\0";

/// Why bytes are no object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    /// Something else.
    #[error("no object in protobuf: it does not begin with {MAGIC:?}")]
    NoMagic,
    /// Cut off, or no protobuf at all.
    #[error("no protobuf: {0}")]
    Wire(#[from] prost::DecodeError),
    /// A field is not what it is known to be.
    #[error("no protobuf that is known: {0} has another type")]
    Type(&'static str),
    /// A field that belongs once.
    #[error("no protobuf that is known: {0} comes twice")]
    Twice(&'static str),
    /// What makes an object.
    #[error("no object in protobuf: {0} is missing")]
    Missing(&'static str),
    /// An object that is encoded once more.
    #[error("an object within an object, as {0:?}")]
    Encoded(String),
}

/// An event of a watch (`WatchEvent`), its object pruned.
pub fn event(bytes: &[u8], object: Keep) -> Result<Value, ProtobufError> {
    let kind = lossy(part(bytes, 1, "type")?.unwrap_or_default());
    let raw = part(part(bytes, 2, "object")?.unwrap_or_default(), 1, "raw")?.unwrap_or_default();
    Ok(json!({"type": kind, "object": self::object(raw, object)?}))
}

/// A page of a list. One without items is a list without items: what is cut off is found by its length.
pub fn page(bytes: &[u8], page: Keep) -> Result<Value, ProtobufError> {
    let mut value = object(bytes, page)?;
    if let Some(fields) = value.as_object_mut() {
        fields.entry("items").or_insert_with(|| json!([]));
    }
    Ok(value)
}

/// An object with what says its kind (`runtime.Unknown`): one of the kind that is pruned like this, or a Status.
pub fn object(bytes: &[u8], object: Keep) -> Result<Value, ProtobufError> {
    let unknown = bytes.strip_prefix(MAGIC).ok_or(ProtobufError::NoMagic)?;
    let kind = part(part(unknown, 1, "typeMeta")?.unwrap_or_default(), 2, "kind")?;
    let kind = lossy(kind.unwrap_or_default());
    for (number, name) in [(3, "contentEncoding"), (4, "contentType")] {
        let encoded = part(unknown, number, name)?.unwrap_or_default();
        if !encoded.is_empty() {
            return Err(ProtobufError::Encoded(lossy(encoded)));
        }
    }
    let keep = if kind == "Status" { STATUS } else { object };
    let raw = part(unknown, 2, "raw")?.ok_or(ProtobufError::Missing("raw"))?;
    let mut value = value("raw", keep, Wire::Bytes(raw))?.unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        fields.insert("kind".to_owned(), Value::String(kind));
    }
    Ok(value)
}

/// What a field holds.
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// Nothing that is ever kept.
    Other,
}

/// The next field of a message: its number, and what it holds.
fn next<'a>(message: &mut &'a [u8]) -> Result<(u32, Wire<'a>), ProtobufError> {
    let (number, wire) = decode_key(message)?;
    let held = match wire {
        WireType::Varint => Wire::Number(decode_varint(message)?),
        WireType::LengthDelimited => {
            let before = *message;
            skip_field(wire, number, message, DecodeContext::default())?;
            let mut field = &before[..before.len() - message.len()];
            decode_varint(&mut field)?;
            Wire::Bytes(field)
        }
        _ => {
            skip_field(wire, number, message, DecodeContext::default())?;
            Wire::Other
        }
    };
    Ok((number, held))
}

/// The bytes of one field.
fn part<'a>(mut message: &'a [u8], wanted: u32, name: &'static str) -> Result<Option<&'a [u8]>, ProtobufError> {
    let mut part = None;
    while !message.is_empty() {
        match next(&mut message)? {
            (number, _) if number != wanted => {}
            (_, Wire::Bytes(_)) if part.is_some() => return Err(ProtobufError::Twice(name)),
            (_, Wire::Bytes(bytes)) => part = Some(bytes),
            _ => return Err(ProtobufError::Type(name)),
        }
    }
    Ok(part)
}

fn message(mut bytes: &[u8], fields: &[Field]) -> Result<Map<String, Value>, ProtobufError> {
    let mut object = Map::new();
    while !bytes.is_empty() {
        let (number, held) = next(&mut bytes)?;
        if let Some((name, _, keep)) = fields.iter().find(|(_, field, _)| *field == number) {
            add(&mut object, name, *keep, held)?;
        }
    }
    Ok(object)
}

/// Lists and maps come as one field for each item.
fn add(object: &mut Map<String, Value>, name: &'static str, keep: Keep, held: Wire<'_>) -> Result<(), ProtobufError> {
    match (keep, held) {
        (Keep::Items(keep), held) => {
            if let (Some(item), Value::Array(items)) = (value(name, *keep, held)?, entry(object, name, json!([]))) {
                items.push(item);
            }
        }
        (Keep::Texts | Keep::TextsOf(_), Wire::Bytes(pair)) => {
            let Value::Object(texts) = entry(object, name, json!({})) else { return Ok(()) };
            let key = lossy(part(pair, 1, name)?.unwrap_or_default());
            if !matches!(keep, Keep::TextsOf(names) if !names.contains(&key.as_str())) {
                texts.insert(key, Value::String(lossy(part(pair, 2, name)?.unwrap_or_default())));
            }
        }
        (keep, held) => {
            if let Some(value) = value(name, keep, held)?
                && object.insert(name.to_owned(), value).is_some()
            {
                return Err(ProtobufError::Twice(name));
            }
        }
    }
    Ok(())
}

fn entry<'a>(object: &'a mut Map<String, Value>, name: &str, empty: Value) -> &'a mut Value {
    object.entry(name).or_insert(empty)
}

/// What a field holds, as JSON has it; nothing where JSON leaves it out.
fn value(name: &'static str, keep: Keep, held: Wire<'_>) -> Result<Option<Value>, ProtobufError> {
    Ok(match (keep, held) {
        (Keep::Text, Wire::Bytes(text)) => (!text.is_empty()).then(|| Value::String(lossy(text))),
        (Keep::Flag, Wire::Number(number)) => (number != 0).then_some(Value::Bool(true)),
        (Keep::Number, Wire::Number(number)) => Some(Value::from(number.cast_signed())),
        (Keep::Time, Wire::Bytes(time)) => self::time(name, time)?,
        (Keep::Fields(fields), Wire::Bytes(bytes)) => Some(Value::Object(message(bytes, fields)?)),
        _ => return Err(ProtobufError::Type(name)),
    })
}

/// A time that no text can be made of stays a number: whoever reads it can say what is wrong.
fn time(name: &'static str, bytes: &[u8]) -> Result<Option<Value>, ProtobufError> {
    const SECONDS: &[Field] = &[("seconds", 1, Keep::Number)];
    if bytes.is_empty() {
        return Ok(None);
    }
    let fields = message(bytes, SECONDS)?;
    let seconds = fields.get("seconds").map_or(Some(0), Value::as_i64).ok_or(ProtobufError::Type(name))?;
    Ok(Some(Timestamp::from_second(seconds).map_or(Value::from(seconds), |time| Value::String(time.to_string()))))
}

fn lossy(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}

// The writer of the fake API server.
#[cfg(test)]
#[allow(clippy::expect_used, dead_code)]
#[path = "../../tests/cluster/fake_api/protobuf.rs"]
mod writer;

#[cfg(test)]
mod tests {
    use flatfell_rules::parse::MODE_ANNOTATION;
    use proptest::collection::{btree_map, vec};
    use proptest::option;
    use proptest::prelude::*;

    use super::super::prune;
    use super::super::resource::{INITIAL_EVENTS_END, Resource};
    use super::writer::{self, Message};
    use super::*;

    /// As Go leaves out what is empty.
    fn without_empty(value: Value) -> Value {
        match value {
            Value::Object(fields) => {
                let left = fields.into_iter().map(|(name, value)| (name, without_empty(value)));
                let is_empty = |value: &Value| {
                    matches!(value, Value::Null | Value::Bool(false)) || value == "" || *value == json!([])
                };
                Value::Object(left.filter(|(_, value)| !is_empty(value)).collect())
            }
            Value::Array(items) => Value::Array(items.into_iter().map(without_empty).collect()),
            other => other,
        }
    }

    fn metadata() -> impl Strategy<Value = Value> {
        let text = || "[a-z\u{e4}]{0,6}";
        let key = prop_oneof![Just(INITIAL_EVENTS_END.to_owned()), Just(MODE_ANNOTATION.to_owned()), "[a-z]{1,4}"];
        let texts = (btree_map("[a-z/.]{0,5}", "[a-z]{1,5}", 0..4), btree_map(key, "[a-z]{1,5}", 0..4));
        let times = (option::of(0..4_000_000_000_i64), option::of(0..4_000_000_000_i64));
        (text(), text(), text(), 0..1_000_000_u64, texts, times).prop_map(
            |(name, namespace, uid, version, (labels, annotations), (created, deleted))| {
                let time = |seconds: Option<i64>| seconds.map(|at| Timestamp::from_second(at).expect("a time").to_string());
                let mut metadata = json!({
                    "name": name, "namespace": namespace, "uid": uid, "resourceVersion": version.to_string(),
                    "creationTimestamp": time(created), "deletionTimestamp": time(deleted), "managedFields": [{"manager": uid}],
                });
                for (field, texts) in [("labels", json!(labels)), ("annotations", json!(annotations))] {
                    if texts != json!({}) {
                        metadata[field] = texts;
                    }
                }
                metadata
            },
        )
    }

    fn containers() -> impl Strategy<Value = Value> {
        let protocol = prop_oneof![Just(""), Just("TCP"), Just("SCTP")];
        let port = ("[a-z]{0,4}", any::<i32>(), protocol)
            .prop_map(|(name, number, protocol)| json!({"name": name, "containerPort": number, "protocol": protocol}));
        let restart = option::of(prop_oneof![Just("Always"), Just("Never")]);
        let container = (vec(port, 0..3), restart)
            .prop_map(|(ports, restart)| json!({"name": "c", "ports": ports, "restartPolicy": restart}));
        vec(container, 0..3).prop_map(Value::Array)
    }

    fn pod() -> impl Strategy<Value = Value> {
        let phase = prop_oneof![Just(""), Just("Running"), Just("Failed")];
        let status = (phase, vec("[0-9a-f:.]{1,9}", 0..3));
        (metadata(), containers(), containers(), "[a-z]{0,4}", any::<bool>(), status).prop_map(
            |(metadata, containers, init, node, host, (phase, addresses))| {
                let all: Vec<Value> = addresses.iter().map(|address| json!({"ip": address})).collect();
                let spec = json!({
                    "nodeName": node, "hostNetwork": host, "containers": containers, "initContainers": init,
                    "volumes": [{"name": "v"}],
                });
                let status = json!({"phase": phase, "podIP": addresses.first(), "podIPs": all});
                json!({"kind": "Pod", "apiVersion": "v1", "metadata": metadata, "spec": spec, "status": status})
            },
        )
    }

    fn namespace() -> impl Strategy<Value = Value> {
        metadata().prop_map(|metadata| json!({"kind": "Namespace", "apiVersion": "v1", "metadata": metadata}))
    }

    fn any_object() -> impl Strategy<Value = (Resource, Value)> {
        prop_oneof![
            pod().prop_map(|pod| (Resource::Pods, pod)),
            namespace().prop_map(|namespace| (Resource::Namespaces, namespace)),
        ]
    }

    fn json_of(value: &Value, keep: Keep) -> Value {
        without_empty(prune::decode(without_empty(value.clone()).to_string().as_bytes(), keep).expect("JSON"))
    }

    proptest! {
        #[test]
        fn both_codings_give_the_same_event((resource, object) in any_object(), word in "ADDED|DELETED|BOOKMARK") {
            let event = json!({"type": word, "object": object});
            let read = super::event(&writer::event(&event), resource.object());
            prop_assert_eq!(read, Ok(json_of(&event, resource.event())));
        }

        #[test]
        fn both_codings_give_the_same_page((resource, object) in any_object(), items in 0..3_usize, next in "[a-z]{0,3}") {
            let kind = format!("{}List", resource.kind());
            let mut items = vec![object; items];
            items.iter_mut().for_each(|item| drop(item.as_object_mut().expect("an object").remove("kind")));
            let list = json!({
                "kind": kind, "metadata": {"resourceVersion": "7", "continue": next}, "items": items,
            });
            let mut expected = json_of(&list, resource.page());
            if items.is_empty() {
                expected["items"] = json!([]);
            }
            prop_assert_eq!(page(&writer::object(&list), resource.page()), Ok(expected));
        }

        #[test]
        fn what_is_cut_off_is_no_event((resource, object) in any_object(), less: prop::sample::Index) {
            let bytes = writer::event(&json!({"type": "ADDED", "object": object}));
            let end = less.index(bytes.len());
            prop_assert!(super::event(&bytes[..end], resource.object()).is_err());
        }

        #[test]
        fn any_bytes_are_an_answer(bytes in vec(any::<u8>(), 0..200)) {
            // An error or not: it ends, without a panic.
            drop(super::event(&bytes, Resource::Pods.object()));
            drop(page(&[MAGIC, &bytes].concat(), Resource::Pods.page()));
            let raw = Message::default().field(2, &bytes).0;
            drop(page(&[MAGIC, &raw].concat(), Resource::Pods.page()));
        }
    }
}
