//! The kernel's nf_tables as a value: takes what the kernel takes, refuses what it refuses.
//!
//! In: transactions. Out: the tables behind them, or the operation that was refused. What always holds: a transaction
//! happens whole or not at all. Where the kernel answers yes and does nothing (a changed comment), so does this.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use thiserror::Error;

use super::types::{self, Kind};
use crate::ruleset::{
    BaseHook, Chain, Counter, Datum, Element, Expr, Family, Field, Op, OpKind, Rule, Ruleset, Set, SetKind, Table,
    Verdict,
};

/// Longest name (NFT_NAME_MAXLEN less its NUL).
const NAME_MAX: usize = 255;
/// Longest comment nft takes.
const COMMENT_MAX: usize = 128;
/// Longest log prefix (NF_LOG_PREFIXLEN less its NUL).
const LOG_PREFIX_MAX: usize = 127;
/// Elements whose list surely fits a netlink attribute.
const ELEMENTS_MAX: usize = 256;
/// Jumps and gotos in one way of a packet (one less than NFT_JUMP_STACK_SIZE).
const JUMPS_MAX: usize = 15;

/// A kernel with tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FakeKernel {
    /// What it has.
    pub ruleset: Ruleset,
}

/// A transaction that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("operation {index}: {reason}")]
pub struct CommitError {
    /// Which operation; the number of operations where the whole was refused.
    pub index: usize,
    /// Why.
    pub reason: Reason,
}

/// Why the kernel refuses something.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Reason {
    /// ENOENT.
    #[error("{0} does not exist")]
    Missing(String),
    /// EEXIST.
    #[error("{0} exists and is another")]
    Exists(String),
    /// EBUSY.
    #[error("{0} is in use")]
    Busy(String),
    /// A name that is empty, too long or begins with a digit.
    #[error("name {0:?}")]
    Name(String),
    /// A comment or log prefix that is too long.
    #[error("text is too long: {0:?}")]
    TooLong(String),
    /// EINVAL: types that do not fit, values that cannot be.
    #[error("invalid: {0}")]
    Invalid(String),
    /// EOPNOTSUPP.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// ENFILE.
    #[error("{0} is full")]
    Full(String),
    /// EMLINK.
    #[error("chains nest too deep below {0}")]
    TooDeep(String),
}

impl FakeKernel {
    /// Applies a transaction, or changes nothing.
    pub fn commit(&mut self, ops: &[Op]) -> Result<(), CommitError> {
        let mut next = self.ruleset.clone();
        for (index, op) in ops.iter().enumerate() {
            apply(&mut next, op).map_err(|reason| CommitError { index, reason })?;
        }
        for table in next.tables.values() {
            validate(table).map_err(|reason| CommitError { index: ops.len(), reason })?;
        }
        self.ruleset = next;
        Ok(())
    }
}

/// One operation.
fn apply(ruleset: &mut Ruleset, op: &Op) -> Result<(), Reason> {
    match &op.kind {
        OpKind::AddTable => {
            check_name(&op.table.name)?;
            ruleset.tables.entry(op.table.clone()).or_default();
            return Ok(());
        }
        OpKind::DeleteTable => return ruleset.tables.remove(&op.table).map(|_| ()).ok_or_else(|| missing("table")),
        _ => {}
    }
    let table = ruleset.tables.get_mut(&op.table).ok_or_else(|| missing("table"))?;
    match &op.kind {
        OpKind::AddTable | OpKind::DeleteTable => Ok(()),
        OpKind::AddChain { name, hook, comment } => add_chain(table, name, *hook, comment),
        OpKind::DeleteChain(name) => delete_chain(table, name),
        OpKind::FlushChain(name) => {
            table.chains.get_mut(name).map(|chain| Arc::make_mut(chain).rules.clear()).ok_or_else(|| missing(name))
        }
        OpKind::AddRule { chain, rule } => add_rule(table, op.table.family, chain, rule),
        OpKind::AddSet { name, set } => add_set(table, name, set),
        OpKind::DeleteSet(name) => delete_set(table, name),
        OpKind::AddElements { set, elements, starts: _ } => add_elements(table, set, elements),
        OpKind::DeleteElements { set, elements } => delete_elements(table, set, elements),
        OpKind::AddCounter { name, comment, start: _ } => add_counter(table, name, comment),
        OpKind::DeleteCounter(name) => delete_counter(table, name),
    }
}

/// What is not there.
fn missing(name: &str) -> Reason {
    Reason::Missing(name.to_string())
}

/// What cannot be.
fn invalid(what: impl std::fmt::Debug) -> Reason {
    Reason::Invalid(format!("{what:?}"))
}

/// A condition that must hold.
fn ensure(holds: bool, reason: impl FnOnce() -> Reason) -> Result<(), Reason> {
    if holds { Ok(()) } else { Err(reason()) }
}

/// A name the kernel and nft's scanner take.
fn check_name(name: &str) -> Result<(), Reason> {
    let starts = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
    ensure(starts && name.len() <= NAME_MAX, || Reason::Name(name.to_string()))
}

/// A comment that fits.
fn check_comment(comment: &str) -> Result<(), Reason> {
    ensure(comment.len() <= COMMENT_MAX, || Reason::TooLong(comment.to_string()))
}

fn add_chain(table: &mut Table, name: &str, hook: Option<BaseHook>, comment: &str) -> Result<(), Reason> {
    check_name(name)?;
    check_comment(comment)?;
    match table.chains.get(name) {
        Some(chain) => ensure(chain.hook == hook, || Reason::Exists(name.to_string())),
        None => {
            let chain = Chain { hook, comment: comment.to_string(), rules: Vec::new() };
            table.chains.insert(name.into(), Arc::new(chain));
            Ok(())
        }
    }
}

/// The rules of a chain go with it (without NLM_F_NONREC, as nft asks for it), unless one leads back to it.
fn delete_chain(table: &mut Table, name: &str) -> Result<(), Reason> {
    let leads_here = |verdict: &Verdict| target(verdict) == Some(name);
    let by_rule = exprs(table).any(|expr| matches!(expr, Expr::Verdict(verdict) if leads_here(verdict)));
    let by_element = data(table).any(|datum| matches!(datum, Datum::Verdict(verdict) if leads_here(verdict)));
    ensure(!by_rule && !by_element, || Reason::Busy(name.to_string()))?;
    table.chains.remove(name).map(|_| ()).ok_or_else(|| missing(name))
}

fn add_set(table: &mut Table, name: &str, set: &Set) -> Result<(), Reason> {
    check_name(name)?;
    check_comment(&set.comment)?;
    ensure(!set.key.is_empty() && (!set.interval || set.key.len() == 1), || invalid(&set.key))?;
    ensure(!set.interval || set.kind != SetKind::Counters, || invalid(set.kind))?;
    match table.sets.get(name) {
        Some(current) => {
            let properties = |set: &Set| (set.kind, set.key.clone(), set.interval, set.size);
            let same = properties(current) == properties(set);
            ensure(same, || Reason::Exists(name.to_string()))
        }
        None => {
            table.sets.insert(name.into(), Arc::new(set.emptied()));
            Ok(())
        }
    }
}

fn delete_set(table: &mut Table, name: &str) -> Result<(), Reason> {
    let used = exprs(table).any(|expr| match expr {
        Expr::Lookup { set, .. } | Expr::CountMark { set, .. } => set.as_ref() == name,
        Expr::Vmap { map, .. } => map.as_ref() == name,
        _ => false,
    });
    ensure(!used, || Reason::Busy(name.to_string()))?;
    table.sets.remove(name).map(|_| ()).ok_or_else(|| missing(name))
}

fn add_counter(table: &mut Table, name: &str, comment: &str) -> Result<(), Reason> {
    check_name(name)?;
    check_comment(comment)?;
    table.counters.entry(name.into()).or_insert_with(|| Counter { comment: comment.into() });
    Ok(())
}

fn delete_counter(table: &mut Table, name: &str) -> Result<(), Reason> {
    let by_rule = exprs(table).any(|expr| matches!(expr, Expr::Counter(counter) if counter.as_ref() == name));
    ensure(!by_rule, || Reason::Busy(name.to_string()))?;
    table.counters.remove(name).map(|_| ()).ok_or_else(|| missing(name))
}

fn add_elements(table: &mut Table, name: &str, elements: &BTreeMap<Element, Datum>) -> Result<(), Reason> {
    let set = table.sets.get(name).ok_or_else(|| missing(name))?;
    ensure(elements.len() <= ELEMENTS_MAX, || Reason::TooLong(name.to_string()))?;
    let mut merged = set.elements.clone();
    for (element, datum) in elements {
        check_element(set, element)?;
        check_datum(table, set, datum)?;
        let clash = merged.iter().any(|(other, lead)| match other == *element {
            true => lead != *datum,
            false => overlap(&other, element),
        });
        ensure(!clash, || Reason::Exists(format!("{element:?}")))?;
        merged.insert(element.clone(), datum.clone());
    }
    let room = set.size.is_none_or(|size| u32::try_from(merged.len()).is_ok_and(|elements| elements <= size));
    ensure(room, || Reason::Full(name.to_string()))?;
    if let Some(set) = table.sets.get_mut(name) {
        Arc::make_mut(set).elements = merged;
    }
    Ok(())
}

fn delete_elements(table: &mut Table, name: &str, elements: &BTreeMap<Element, Datum>) -> Result<(), Reason> {
    let set = table.sets.get_mut(name).ok_or_else(|| missing(name))?;
    ensure(elements.len() <= ELEMENTS_MAX, || Reason::TooLong(name.to_string()))?;
    let set = Arc::make_mut(set);
    elements.keys().try_for_each(|element| {
        set.elements.remove(element).map(|_| ()).ok_or_else(|| missing(&format!("{element:?}")))
    })
}

/// An element whose values have the set's types.
fn check_element(set: &Set, element: &Element) -> Result<(), Reason> {
    let fits = match element {
        Element::Key(values) => {
            !set.interval
                && values.len() == set.key.len()
                && values.iter().zip(&set.key).all(|(value, key)| Kind::of_value(value) == Kind::of_key(*key))
        }
        Element::Range(first, last) => {
            let kinds = [first, last].map(Kind::of_value);
            set.interval && set.key.iter().all(|key| kinds == [Kind::of_key(*key); 2]) && first <= last
        }
    };
    ensure(fits, || invalid(element))
}

/// A datum that the set's kind takes and that leads to something.
fn check_datum(table: &Table, set: &Set, datum: &Datum) -> Result<(), Reason> {
    match (set.kind, datum) {
        (SetKind::Set, Datum::None) => Ok(()),
        (SetKind::VerdictMap, Datum::Verdict(verdict)) => check_verdict(table, verdict),
        (SetKind::Counters, Datum::Counter(comment)) => check_comment(comment),
        _ => Err(invalid(datum)),
    }
}

/// Whether two different intervals have a value in common.
fn overlap(one: &Element, other: &Element) -> bool {
    match (one, other) {
        (Element::Range(a, b), Element::Range(c, d)) => a <= d && c <= b,
        _ => false,
    }
}

/// A verdict that leads to a chain packets can be sent to.
fn check_verdict(table: &Table, verdict: &Verdict) -> Result<(), Reason> {
    let Some(name) = target(verdict) else { return Ok(()) };
    let chain = table.chains.get(name).ok_or_else(|| missing(name))?;
    ensure(chain.hook.is_none(), || Reason::Unsupported(format!("jump to base chain {name}")))
}

fn add_rule(table: &mut Table, family: Family, chain: &str, rule: &Rule) -> Result<(), Reason> {
    ensure(table.chains.contains_key(chain), || missing(chain))?;
    check_comment(&rule.comment)?;
    rule.exprs.iter().try_for_each(|expr| check_expr(table, family, expr))?;
    if let Some(chain) = table.chains.get_mut(chain) {
        Arc::make_mut(chain).rules.push(rule.clone());
    }
    Ok(())
}

/// An expression that fits its table.
fn check_expr(table: &Table, family: Family, expr: &Expr) -> Result<(), Reason> {
    let fits = match expr {
        Expr::CtMark { .. } | Expr::CtDirection(_) | Expr::CtStateRelated | Expr::SetCtMark { .. } => {
            return ensure(family == Family::Inet, || Reason::Unsupported("ct in a bridge table".to_string()));
        }
        Expr::Compare { field, value, .. } => Kind::of_field(*field) == Kind::of_value(value),
        Expr::Range { field, first, last } => {
            [first, last].iter().all(|value| Kind::of_value(value) == Kind::of_field(*field)) && first < last
        }
        Expr::Prefix { field, prefix } => {
            Kind::of_field(*field) == if prefix.is_ipv4() { Kind::Ipv4 } else { Kind::Ipv6 }
        }
        Expr::Lookup { key, set } => return check_key(table, set, SetKind::Set, key),
        Expr::Vmap { key, map } => return check_key(table, map, SetKind::VerdictMap, key),
        Expr::Counter(name) => return ensure(table.counters.contains_key(name), || missing(name)),
        Expr::CountMark { set, .. } => {
            let set = table.sets.get(set).ok_or_else(|| missing(set))?;
            family == Family::Inet && set.kind == SetKind::Counters && types::kinds(&set.key) == [Kind::Mark]
        }
        Expr::Limit { rate, burst } => *rate > 0 && *burst > 0,
        Expr::Log { prefix, .. } => return ensure(prefix.len() <= LOG_PREFIX_MAX, || Reason::TooLong(prefix.clone())),
        Expr::Verdict(verdict) => return check_verdict(table, verdict),
        Expr::Foreign(_) => false,
    };
    ensure(fits, || invalid(expr))
}

/// A key that fits the set it is looked up in.
fn check_key(table: &Table, name: &str, kind: SetKind, key: &[Field]) -> Result<(), Reason> {
    let set = table.sets.get(name).ok_or_else(|| missing(name))?;
    let fields: Vec<Kind> = key.iter().map(|field| Kind::of_field(*field)).collect();
    ensure(set.kind == kind && types::kinds(&set.key) == fields, || invalid(key))
}

/// What the kernel looks at before it commits: how deep the chains below each base chain nest.
fn validate(table: &Table) -> Result<(), Reason> {
    let bases = table.chains.iter().filter(|(_, chain)| chain.hook.is_some());
    for (base, _) in bases {
        let mut level = BTreeSet::from([base.as_ref()]);
        for _ in 0..=JUMPS_MAX {
            level = level.into_iter().flat_map(|name| successors(table, name)).collect();
        }
        ensure(level.is_empty(), || Reason::TooDeep(base.to_string()))?;
    }
    Ok(())
}

/// The chains that a chain's rules lead to.
fn successors<'a>(table: &'a Table, name: &str) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    for expr in table.chains.get(name).into_iter().flat_map(|chain| &chain.rules).flat_map(|rule| &rule.exprs) {
        match expr {
            Expr::Verdict(verdict) => found.extend(target(verdict)),
            Expr::Vmap { map, .. } => {
                let elements = table.sets.get(map).into_iter().flat_map(|set| set.elements.data());
                found.extend(elements.filter_map(|datum| match datum {
                    Datum::Verdict(verdict) => target(verdict),
                    Datum::None | Datum::Counter(_) => None,
                }));
            }
            _ => {}
        }
    }
    found
}

/// The chain a verdict leads to.
fn target(verdict: &Verdict) -> Option<&str> {
    match verdict {
        Verdict::Jump(chain) | Verdict::Goto(chain) => Some(chain),
        Verdict::Accept | Verdict::Drop | Verdict::Return => None,
    }
}

/// All expressions of a table.
fn exprs(table: &Table) -> impl Iterator<Item = &Expr> {
    table.chains.values().flat_map(|chain| &chain.rules).flat_map(|rule| &rule.exprs)
}

/// All that elements of a table lead to.
fn data(table: &Table) -> impl Iterator<Item = &Datum> {
    table.sets.values().flat_map(|set| set.elements.data())
}
