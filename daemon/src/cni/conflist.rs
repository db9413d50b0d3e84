//! The plugin's place in a list of chained plugins.
//!
//! In: the text of a conflist, the plugin's entry. Out: the text with the entry behind the main plugin, or without it. What always
//! holds: every other byte stays as it was; a text that is not understood is not touched.

use std::ops::Range;
use std::path::Path;

use serde_json::{Value, json};

use super::scan;
use crate::config::CniRunArgs;

/// The plugin's type: the name of its binary.
pub const TYPE: &str = "flatfell-cni";

/// Why a conflist is not touched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConflistError {
    /// It is half written, or something else.
    #[error("it is no JSON: {0}")]
    Json(String),
    /// It has no plugin to stand behind.
    #[error("it has no list of plugins")]
    NoPlugins,
}

/// The entry that these settings make.
pub fn entry(args: &CniRunArgs) -> Value {
    json!({
        "type": TYPE,
        "socket": socket(&args.places.cni_run_dir),
        "onUnavailable": args.cni_on_unavailable.word(),
        "timeoutSeconds": args.cni_timeout.as_secs(),
    })
}

fn socket(run_dir: &Path) -> String {
    run_dir.join(flatfell_cni::message::SOCKET).to_string_lossy().into_owned()
}

/// The text with the entry behind the first plugin; `None` where it stands there already.
pub fn insert(text: &str, entry: &Value) -> Result<Option<String>, ConflistError> {
    let (plugins, elements) = plugins(text)?;
    let ours = places(&plugins);
    if ours == [1] && plugins.get(1) == Some(entry) {
        return Ok(None);
    }
    if ours.len() == plugins.len() {
        return Err(ConflistError::NoPlugins);
    }
    if !ours.is_empty() {
        let without = remove(text)?.unwrap_or_else(|| text.to_owned());
        return insert(&without, entry).map(|text| Some(text.unwrap_or(without)));
    }
    let main = elements.first().ok_or(ConflistError::NoPlugins)?;
    let (before, behind) = text.split_at(main.end);
    Ok(Some(format!("{before},{}{entry}{behind}", indentation(text, main.start))))
}

/// The text without the entry; `None` where it has none. One that is all there is stays: an empty list is none.
pub fn remove(text: &str) -> Result<Option<String>, ConflistError> {
    let (plugins, elements) = plugins(text)?;
    let ours = places(&plugins);
    if ours.is_empty() || ours.len() == plugins.len() {
        return Ok(None);
    }
    let mut left = text.to_owned();
    for range in with_commas(&elements, &ours).into_iter().rev() {
        left.replace_range(range, "");
    }
    Ok(Some(left))
}

/// Whether a conflist has the entry.
pub fn has_entry(text: &str) -> bool {
    plugins(text).is_ok_and(|(plugins, _)| !places(&plugins).is_empty())
}

/// The list of plugins, and where each stands.
fn plugins(text: &str) -> Result<(Vec<Value>, Vec<Range<usize>>), ConflistError> {
    let conflist: Value = serde_json::from_str(text).map_err(|error| ConflistError::Json(error.to_string()))?;
    let plugins = conflist.get("plugins").and_then(Value::as_array).filter(|plugins| !plugins.is_empty());
    let elements = scan::elements(text, "plugins");
    match (plugins, elements) {
        (Some(plugins), Some(elements)) if plugins.len() == elements.len() => Ok((plugins.clone(), elements)),
        _ => Err(ConflistError::NoPlugins),
    }
}

/// Where our entries stand.
fn places(plugins: &[Value]) -> Vec<usize> {
    let is_ours = |(_, plugin): &(usize, &Value)| plugin.get("type").and_then(Value::as_str) == Some(TYPE);
    plugins.iter().enumerate().filter(is_ours).map(|(place, _)| place).collect()
}

/// The elements at these places, each with the comma before it; those that the list begins with up to the first that stays.
fn with_commas(elements: &[Range<usize>], places: &[usize]) -> Vec<Range<usize>> {
    let leading = places.iter().enumerate().take_while(|(at, place)| at == *place).count();
    let begin = (leading > 0).then(|| elements[0].start..elements[leading].start);
    let others = places[leading..].iter().map(|place| elements[place - 1].end..elements[*place].end);
    begin.into_iter().chain(others).collect()
}

/// The line break and blanks before an element, to begin the next with.
fn indentation(text: &str, start: usize) -> &str {
    let before = &text[..start];
    let blanks = before.len() - before.trim_end().len();
    &before[before.len() - blanks..]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As Flannel's manifest has it.
    const FLANNEL: &str = include_str!("flannel.conflist");

    fn ours() -> Value {
        json!({"type": TYPE, "socket": "/run/x/cni.sock", "onUnavailable": "closed", "timeoutSeconds": 5})
    }

    fn types(text: &str) -> Vec<String> {
        let conflist: Value = serde_json::from_str(text).expect("JSON");
        let plugins = conflist["plugins"].as_array().expect("plugins");
        plugins.iter().map(|plugin| plugin["type"].as_str().unwrap_or_default().to_owned()).collect()
    }

    #[test]
    fn it_goes_behind_the_main_plugin_and_comes_out_without_a_trace() {
        let inserted = insert(FLANNEL, &ours()).expect("understood").expect("changed");
        assert_eq!(types(&inserted), ["flannel", TYPE, "portmap"]);
        assert_eq!(insert(&inserted, &ours()), Ok(None), "once");
        assert!(has_entry(&inserted) && !has_entry(FLANNEL));
        assert_eq!(remove(&inserted), Ok(Some(FLANNEL.to_owned())));
        assert_eq!(remove(FLANNEL), Ok(None));
        let moved =
            insert(&inserted, &json!({"type": TYPE, "timeoutSeconds": 9})).expect("understood").expect("changed");
        assert_eq!(types(&moved), ["flannel", TYPE, "portmap"]);
        assert!(moved.contains("\"timeoutSeconds\":9") && !moved.contains("cni.sock"));
    }

    #[test]
    fn what_is_not_understood_is_not_touched() {
        for text in ["", "{", "[]", "{}", r#"{"plugins": []}"#, r#"{"plugins": {}}"#, &FLANNEL[..FLANNEL.len() / 2]] {
            assert!(insert(text, &ours()).is_err() && remove(text).is_err() && !has_entry(text), "{text}");
        }
        let alone = json!({"plugins": [ours()]}).to_string();
        assert_eq!(remove(&alone), Ok(None), "an empty list would be no conflist");
        let last = json!({"plugins": [ours(), {"type": "bridge"}]}).to_string();
        assert_eq!(types(&remove(&last).expect("understood").expect("changed")), ["bridge"]);
    }

    #[test]
    fn a_list_of_nothing_but_entries_has_nothing_to_stand_behind() {
        let alone = json!({"plugins": [{"type": TYPE}, {"type": TYPE}]}).to_string();
        assert_eq!(insert(&alone, &ours()), Err(ConflistError::NoPlugins));
    }

    #[test]
    fn several_entries_come_out_wherever_they_stand() {
        let entry = format!(r#"{{"type":"{TYPE}"}}"#);
        let text =
            format!(r#"{{"plugins":[{entry}  ,  {entry},{{"type":"a"}},{entry} , {entry}, {{"type":"b"}} ,{entry}]}}"#);
        let left = remove(&text).expect("understood").expect("changed");
        assert_eq!(left, r#"{"plugins":[{"type":"a"}, {"type":"b"}]}"#);
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(".{0,6}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_else_stands_there_stays(
            others in prop::collection::vec(json_value(), 1..4),
            more in prop::collection::btree_map(".{0,6}", json_value(), 0..3),
            pretty in any::<bool>(),
        ) {
            let mut conflist: serde_json::Map<String, Value> = more.into_iter().collect();
            conflist.insert("plugins".to_owned(), Value::from(others.clone()));
            let text = if pretty { serde_json::to_string_pretty(&conflist) } else { serde_json::to_string(&conflist) };
            let text = text.expect("JSON");
            let inserted = insert(&text, &ours()).expect("understood").expect("changed");
            let read: Value = serde_json::from_str(&inserted).expect("JSON");
            prop_assert_eq!(&read["plugins"][1], &ours());
            prop_assert_eq!(remove(&inserted).expect("understood"), Some(text));
        }

        #[test]
        fn no_text_is_too_odd(text in ".{0,64}|[\\[\\]{}\":,\\\\a1 ]{0,64}") {
            let _ = (insert(&text, &ours()), remove(&text), scan::elements(&text, "plugins"));
        }
    }
}
