//! A ruleset as JSON: for people and scripts that want its parts without parsing nft's text.
//!
//! In: a [`Ruleset`]. Out: objects and lists in the order of names; expressions, values and verdicts are nft's words. What
//! always holds: equal rulesets give equal JSON.

use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::{Chain, Datum, Element, Ruleset, Set, SetKind, Table, TableId, text};

impl Serialize for Ruleset {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let tables: Vec<Value> = self.tables.iter().map(|(id, content)| table(id, content)).collect();
        json!({ "tables": tables }).serialize(serializer)
    }
}

/// A table.
fn table(id: &TableId, table: &Table) -> Value {
    json!({
        "family": text::family(id.family),
        "name": id.name,
        "counters": table.counters.iter()
            .map(|(name, counter)| json!({ "name": name.as_ref(), "comment": counter.comment.as_ref() })).collect::<Vec<_>>(),
        "sets": table.sets.iter().map(|(name, content)| set(name, content)).collect::<Vec<_>>(),
        "chains": table.chains.iter().map(|(name, content)| chain(name, content)).collect::<Vec<_>>(),
    })
}

/// A set or map.
fn set(name: &str, set: &Set) -> Value {
    let kind = match set.kind {
        SetKind::Set => "set",
        SetKind::VerdictMap => "verdict map",
        SetKind::Counters => "counting set",
    };
    json!({
        "name": name,
        "kind": kind,
        "key": set.key.iter().map(|part| text::key_type(*part)).collect::<Vec<_>>(),
        "interval": set.interval,
        "size": set.size,
        "comment": set.comment,
        "elements": set.elements.iter().map(|(key, datum)| element(&key, &datum)).collect::<Vec<_>>(),
    })
}

/// An element: its key, and what it leads to if that is something.
fn element(element: &Element, datum: &Datum) -> Value {
    let key = text::element(element, &Datum::None);
    match datum {
        Datum::None => json!({ "key": key }),
        Datum::Verdict(verdict) => json!({ "key": key, "verdict": text::verdict(verdict) }),
        Datum::Counter(counter) => json!({ "key": key, "counter": counter.as_ref() }),
    }
}

/// A chain with its rules.
fn chain(name: &str, chain: &Chain) -> Value {
    json!({
        "name": name,
        "hook": chain.hook.map(|base| text::hook(base.hook)),
        "priority": chain.hook.map(|base| base.priority),
        "comment": chain.comment,
        "rules": chain.rules.iter().map(|rule| json!({
            "exprs": rule.exprs.iter().map(text::expr).collect::<Vec<_>>(),
            "comment": rule.comment,
        })).collect::<Vec<_>>(),
    })
}
