//! What of an object is kept, and JSON of which only that is kept.
//!
//! In: text, and a [`Keep`] that says which fields are of use. Out: a [`Value`] with these alone. What always holds: what
//! is not kept is never allocated; whatever the types are, decoding succeeds, and a value of another type than was
//! expected keeps its type, so that whoever reads it can say what is wrong. The types of [`Keep`] are for
//! [`super::protobuf`], whose bytes do not say them.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// What is kept of a value.
#[derive(Clone, Copy, Debug)]
pub enum Keep {
    /// All of it. Only where JSON is asked for.
    All,
    /// All of it, a text; an empty one is as good as none.
    Text,
    /// All of it, true or false; false is as good as none.
    Flag,
    /// All of it, a whole number.
    Number,
    /// All of it, a time.
    Time,
    /// All of it, texts by name.
    Texts,
    /// Of texts by name these.
    TextsOf(&'static [&'static str]),
    /// Of an object these fields.
    Fields(&'static [Field]),
    /// Of a list every item, and of each this.
    Items(&'static Keep),
}

/// A field's name, its number in protobuf (0: it has none), and what is kept of it.
pub type Field = (&'static str, u32, Keep);

/// Decodes a text.
pub fn decode(text: &[u8], keep: Keep) -> Result<Value, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let value = keep.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

impl Keep {
    fn field(self, name: &str) -> Option<Self> {
        match self {
            Self::Fields(fields) => fields.iter().find(|(field, ..)| *field == name).map(|(.., keep)| *keep),
            Self::TextsOf(names) => names.contains(&name).then_some(Self::All),
            Self::Items(_) => None,
            Self::All | Self::Text | Self::Flag | Self::Number | Self::Time | Self::Texts => Some(Self::All),
        }
    }

    fn item(self) -> Option<Self> {
        match self {
            Self::Items(keep) => Some(*keep),
            Self::Fields(_) | Self::TextsOf(_) => None,
            Self::All | Self::Text | Self::Flag | Self::Number | Self::Time | Self::Texts => Some(Self::All),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Keep {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Keep {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        match self.item() {
            Some(keep) => {
                while let Some(item) = list.next_element_seed(keep)? {
                    items.push(item);
                }
            }
            None => while list.next_element::<IgnoredAny>()?.is_some() {},
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(field) = object.next_key_seed(Name(self))? {
            match field {
                Some((name, keep)) => {
                    let value = object.next_value_seed(keep)?;
                    fields.insert(name, value);
                }
                None => {
                    object.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Value::Object(fields))
    }
}

/// The name of a field, if it is kept.
struct Name(Keep);

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Option<(String, Keep)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name {
    type Value = Option<(String, Keep)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.field(name).map(|keep| (name.to_owned(), keep)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const KEEP: Keep = Keep::Fields(&[
        ("name", 0, Keep::All),
        ("ports", 0, Keep::Items(&Keep::Fields(&[("port", 0, Keep::All)]))),
        ("spec", 0, Keep::All),
    ]);

    fn kept(text: &str) -> Value {
        decode(text.as_bytes(), KEEP).expect("JSON")
    }

    #[test]
    fn only_what_is_wanted_is_kept() {
        assert_eq!(
            kept(
                r#"{"x": {"y": [1, {}]}, "name": "a", "ports": [{"port": 1, "z": 2}, {"z": 3}], "spec": {"x": [1.5, -1, null, true]}}"#
            ),
            json!({"name": "a", "ports": [{"port": 1}, {}], "spec": {"x": [1.5, -1, null, true]}})
        );
    }

    #[test]
    fn what_has_another_type_keeps_it() {
        assert_eq!(kept(r#"{"ports": {"port": 1}}"#), json!({"ports": {}}), "an object where a list belongs");
        assert_eq!(kept("[1, {}]"), json!([]), "a list where an object belongs");
        assert_eq!(kept(r#"{"ports": "x", "name": 5}"#), json!({"ports": "x", "name": 5}));
    }

    #[test]
    fn what_is_no_json_is_an_error() {
        for text in ["", "{", "x", "{} {}", "<html>"] {
            assert!(decode(text.as_bytes(), KEEP).is_err(), "{text}");
        }
    }
}
