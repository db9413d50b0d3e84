//! Netlink messages about tables, chains, rules, sets, elements and counters, back to the model.
//!
//! In: one received message at a time. Out: what it says, in the model's terms. What always holds: what the model has no
//! word for becomes something that no wanted ruleset holds ([`FOREIGN`] in a comment, an empty key), never an error and
//! never something near it.

use nftnl::nftnl_sys::*;

use super::expr::bare_rule;
use super::objects::{hook_of, set_flags};
use super::raw::RawElement;
use super::sys;
use super::types::{
    INTERVAL_END, SET_COMMENT, comment_of, family_of, key_types, key_values, largest, last_of_range, width,
};
use super::{EncodeError, verdict_of};
use crate::ruleset::{
    BaseHook, Chain, Counter, CounterValue, Datum, Element, Elements, Family, KeyType, Name, Rule, Set, SetKind,
    TableId, Value,
};

/// What the comment of something begins with that the model cannot hold. No comment made here has a control character.
pub const FOREIGN: &str = "\u{1}foreign";

/// A rule as the kernel has it: comparable with a wanted one, not readable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawRule {
    /// libnftnl's text of its expressions.
    pub print: Vec<String>,
    /// Its comment.
    pub comment: String,
}

fn place(family: Option<u32>, name: Option<String>) -> Option<TableId> {
    Some(TableId { family: family_of(family?)?, name: name? })
}

/// The comment in user data, or that it is none that was made here.
fn comment(kind: u8, user_data: Option<Vec<u8>>) -> String {
    comment_of(kind, &user_data.unwrap_or_default()).unwrap_or_else(|| format!("{FOREIGN} user data"))
}

/// The table a message is about; `None` for other families.
pub fn table(message: &[u8]) -> Option<TableId> {
    let table = sys::Table::parse(message)?;
    place(table.get_u32(NFTNL_TABLE_FAMILY), table.get_str(NFTNL_TABLE_NAME))
}

/// A chain without its rules.
pub fn chain(message: &[u8]) -> Option<(TableId, Name, Chain)> {
    let chain = sys::Chain::parse(message)?;
    let table = place(chain.get_u32(NFTNL_CHAIN_FAMILY), chain.get_str(NFTNL_CHAIN_TABLE))?;
    let mut read = Chain { comment: comment(0, chain.get_data(NFTNL_CHAIN_USERDATA)), ..Chain::default() };
    if let Some(number) = chain.get_u32(NFTNL_CHAIN_HOOKNUM) {
        read.hook = base_hook(&chain, number);
        if read.hook.is_none() {
            read.comment = format!("{FOREIGN} hook, type or policy: {}", read.comment);
        }
    }
    Some((table, chain.get_str(NFTNL_CHAIN_NAME)?.into(), read))
}

/// The hook of a base chain of type filter and policy accept, without devices.
fn base_hook(chain: &sys::Chain, number: u32) -> Option<BaseHook> {
    const ACCEPT: u32 = 1;
    let priority = i32::from_ne_bytes(chain.get_u32(NFTNL_CHAIN_PRIO)?.to_ne_bytes());
    let plain = chain.get_u32(NFTNL_CHAIN_POLICY) == Some(ACCEPT)
        && chain.get_str(NFTNL_CHAIN_TYPE).as_deref() == Some("filter")
        && !chain.has(NFTNL_CHAIN_DEV)
        && !chain.has(NFTNL_CHAIN_DEVICES);
    Some(BaseHook { hook: hook_of(number).filter(|_| plain)?, priority })
}

/// A set without its elements.
pub fn set(message: &[u8]) -> Option<(TableId, Name, Set)> {
    let set = sys::Set::parse(message)?;
    let table = place(set.get_u32(NFTNL_SET_FAMILY), set.get_str(NFTNL_SET_TABLE))?;
    let name = set.get_str(NFTNL_SET_NAME)?.into();
    let text = comment(SET_COMMENT, set.get_data(NFTNL_SET_USERDATA));
    let key = key_types(set.get_u32(NFTNL_SET_KEY_TYPE).unwrap_or(0));
    let kind = set_kind(&set);
    let foreign = key.is_none() || kind.is_none();
    let (kind, interval) = kind.unwrap_or((SetKind::Set, false));
    let comment = if foreign { format!("{FOREIGN} type or flags: {text}") } else { text };
    // A limit that somebody gave another set shows when it is full: a table in force is not made anew for it.
    let size = set.get_u32(NFTNL_SET_DESC_SIZE).filter(|_| kind == SetKind::Counters);
    Some((table, name, Set { kind, key: key.unwrap_or_default(), interval, size, comment, elements: Elements::new() }))
}

/// Kind and whether it is of intervals; `None` for flags and data that are not in use here.
fn set_kind(set: &sys::Set) -> Option<(SetKind, bool)> {
    const VERDICT: u32 = 0xffff_ff00;
    let flags = set.get_u32(NFTNL_SET_FLAGS).unwrap_or(0);
    let counts = set.counts()?;
    let kinds = [SetKind::Set, SetKind::VerdictMap, SetKind::Counters];
    let all = kinds.into_iter().flat_map(|kind| [(kind, false), (kind, true)]);
    let fits = |kind| match kind {
        SetKind::Set => !counts,
        SetKind::VerdictMap => !counts && set.get_u32(NFTNL_SET_DATA_TYPE) == Some(VERDICT),
        SetKind::Counters => counts,
    };
    all.into_iter().find(|(kind, interval)| set_flags(*kind, *interval) == flags && fits(*kind))
}

/// The elements of one message of a dump.
pub fn elements(message: &[u8]) -> Option<Vec<RawElement>> {
    sys::Elements::parse(message)?.all().ok()
}

/// All elements of a set in the model's terms. An element that has none has the empty key.
pub fn collect(set: &Set, raw: Vec<RawElement>) -> Elements {
    match set.key.as_slice() {
        [key] if set.interval => ranges(*key, raw),
        key => raw
            .into_iter()
            .map(|one| (Element::key(key_values(key, &one.key).unwrap_or_default()), one))
            .map(|(key, one)| datum(one).map_or_else(foreign_element, |datum| (key, datum)))
            .collect(),
    }
}

fn foreign_element() -> (Element, Datum) {
    (Element::key([]), Datum::None)
}

fn datum(element: RawElement) -> Option<Datum> {
    if element.more {
        return None;
    }
    match (element.verdict, element.object, element.counter) {
        (None, None, None) => Some(Datum::None),
        (Some(number), None, None) => verdict_of(number, element.chain).map(Datum::Verdict),
        (None, Some(object), None) => Some(Datum::Counter(object.into())),
        (None, None, Some(_)) => comment_of(0, &element.user_data).map(|name| Datum::Counter(name.into())),
        _ => None,
    }
}

/// Each start reaches to the next end, or to the type's largest value.
fn ranges(key: KeyType, mut raw: Vec<RawElement>) -> Elements {
    // Where one range ends another may begin: the end comes first.
    raw.sort_by(|a, b| a.key.cmp(&b.key).then(is_end(b).cmp(&is_end(a))));
    let mut found = Elements::new();
    let mut open: Option<RawElement> = None;
    for element in raw {
        let last = last_of_range(key, &element.key);
        let started = if is_end(&element) { open.take() } else { open.replace(element) };
        if let Some(started) = started {
            let (range, datum) = range(key, started, last);
            found.insert(range, datum);
        }
    }
    if let Some(started) = open {
        let (range, datum) = range(key, started, largest(key));
        found.insert(range, datum);
    }
    found
}

fn is_end(element: &RawElement) -> bool {
    element.flags & INTERVAL_END != 0
}

fn range(key: KeyType, start: RawElement, last: Option<Value>) -> (Element, Datum) {
    let first = if start.key.len() == width(key) { key_values(&[key], &start.key) } else { None };
    let first = first.and_then(|values| values.into_iter().next());
    match (first, last, datum(start)) {
        (Some(first), Some(last), Some(datum)) => (Element::Range(first, last), datum),
        _ => foreign_element(),
    }
}

/// A counter and its values; `None` for other objects.
pub fn counter(message: &[u8]) -> Option<(TableId, Name, Counter, CounterValue)> {
    const COUNTER: u32 = 1;
    let object = sys::Object::parse(message)?;
    if object.get_u32(NFTNL_OBJ_TYPE) != Some(COUNTER) {
        return None;
    }
    let table = place(object.get_u32(NFTNL_OBJ_FAMILY), object.get_str(NFTNL_OBJ_TABLE))?;
    let value = CounterValue {
        packets: object.get_u64(NFTNL_OBJ_CTR_PKTS).unwrap_or(0),
        bytes: object.get_u64(NFTNL_OBJ_CTR_BYTES).unwrap_or(0),
    };
    let counter = Counter { comment: comment(0, object.get_data(NFTNL_OBJ_USERDATA)).into() };
    Some((table, object.get_str(NFTNL_OBJ_NAME)?.into(), counter, value))
}

/// A rule and the chain it stands in.
pub fn rule(message: &[u8]) -> Option<(TableId, Name, RawRule)> {
    let rule = sys::Rule::parse(message)?;
    let table = place(rule.get_u32(NFTNL_RULE_FAMILY), rule.get_str(NFTNL_RULE_TABLE))?;
    let raw = RawRule { print: rule.print().ok()?, comment: comment(0, rule.get_data(NFTNL_RULE_USERDATA)) };
    Some((table, rule.get_str(NFTNL_RULE_CHAIN)?.into(), raw))
}

/// A wanted rule as [`rule`] would read it.
pub fn printed(family: Family, rule: &Rule) -> Result<RawRule, EncodeError> {
    Ok(RawRule { print: bare_rule(family, rule)?.print()?, comment: rule.comment.clone() })
}
