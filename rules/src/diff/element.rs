//! Which elements go and come, and in which step.
//!
//! In: a table as it is and as it shall be. Out: elements by set. What always holds: elements are added in the
//! switch and removed behind it, so that no packet misses both the old and the new place of an address; those that
//! stand in the way of the switch (another datum for the same key, an interval that overlaps or touches a new one, a map whose
//! union would nest too deep), that a new rule would still find, or that alone keep a packet from being dropped (who is known) go at
//! its beginning.

use std::collections::{BTreeMap, BTreeSet};

use super::{Elements, nesting};
use crate::ruleset::{Datum, Element, Expr, OpKind, Rule, Set, SetKind, Table, Value, Verdict};

/// Elements of one operation at most: an element list is one netlink attribute of 64 KiB.
const IN_ONE_OPERATION: usize = 256;

/// Elements by the set they belong to.
pub type BySet<'a> = BTreeMap<&'a String, Elements>;

/// How the elements of the sets differ that a table has and keeps.
#[derive(Debug, Default)]
pub struct Changes<'a> {
    /// Removed at the beginning of the switch.
    pub early: BySet<'a>,
    /// Added in the switch.
    pub added: BySet<'a>,
    /// Removed behind it.
    pub late: BySet<'a>,
}

impl<'a> Changes<'a> {
    /// From one table to the other.
    pub fn between(have: &Table, want: &'a Table) -> Self {
        let mut changes = Self::default();
        let mut early = asked_anew(have, want);
        early.extend(spared_by(want));
        for (name, wanted) in &want.sets {
            if let Some(current) = have.sets.get(name) {
                changes.set(name, current, wanted, early.contains(name.as_str()));
            }
        }
        if !nesting::fits(have, want, &changes.late) {
            changes.remove_map_elements_early(want);
        }
        changes
    }

    /// The elements of one set. Where a new rule asks it, all that leaves it goes with the switch (`at_once`): neither the
    /// old policy nor the new one lets that rule see them. So does what is known no more: its maps' elements stay until it
    /// is closed.
    fn set(&mut self, name: &'a String, have: &Set, want: &Set, at_once: bool) {
        let added = missing(&want.elements, &have.elements);
        let (early, late): (Elements, Elements) = missing(&have.elements, &want.elements)
            .into_iter()
            .partition(|(element, _)| at_once || in_the_way(element, &added));
        self.early.insert(name, early);
        self.added.insert(name, added);
        self.late.insert(name, late);
    }

    /// Gives up the order that spares packets in flight, for one the kernel takes.
    fn remove_map_elements_early(&mut self, table: &Table) {
        for (name, elements) in &mut self.late {
            if table.sets.get(*name).is_some_and(|set| set.kind == SetKind::VerdictMap) {
                self.early.entry(name).or_default().append(elements);
            }
        }
    }
}

/// The sets that a rule asks which was not in its chain before.
fn asked_anew<'a>(have: &Table, want: &'a Table) -> BTreeSet<&'a str> {
    let mut asked = BTreeSet::new();
    for (name, chain) in &want.chains {
        let before = have.chains.get(name).map_or(&[][..], |chain| &chain.rules);
        for rule in chain.rules.iter().filter(|rule| !before.contains(rule)) {
            asked.extend(rule.exprs.iter().filter_map(|expr| match expr {
                Expr::Lookup { set, .. } | Expr::Vmap { map: set, .. } | Expr::CounterMap { map: set, .. } => {
                    Some(set.as_str())
                }
                _ => None,
            }));
        }
    }
    asked
}

/// The sets that spare a packet a drop, and do nothing else: their rules leave a chain whose end drops.
fn spared_by(want: &Table) -> BTreeSet<&str> {
    let drops = |rule: &Rule| match rule.exprs.as_slice() {
        [Expr::Counter(_), Expr::Verdict(verdict)] | [Expr::Verdict(verdict)] => {
            matches!(verdict, Verdict::Drop | Verdict::Goto(_))
        }
        _ => false,
    };
    let closing = want.chains.values().filter(|chain| chain.rules.last().is_some_and(drops));
    let spared = closing.flat_map(|chain| &chain.rules).filter_map(|rule| match rule.exprs.as_slice() {
        [Expr::Lookup { set, .. }, Expr::Verdict(Verdict::Return)] => Some(set.as_str()),
        _ => None,
    });
    spared.collect()
}

/// The elements that the other set has not, or leads elsewhere.
fn missing(elements: &Elements, other: &Elements) -> Elements {
    elements
        .iter()
        .filter(|(element, datum)| other.get(*element) != Some(datum))
        .map(|(element, datum)| (element.clone(), datum.clone()))
        .collect()
}

/// Whether an element cannot stand beside those that are added.
fn in_the_way(element: &Element, added: &Elements) -> bool {
    match element {
        Element::Key(_) => added.contains_key(element),
        Element::Range(first, last) => {
            // Intervals of one set are apart, so the last that begins at or before the end behind this one decides.
            let behind = Element::Range(next(last).unwrap_or_else(|| last.clone()), greatest(last));
            added.range(..=behind).next_back().is_some_and(|(other, _)| match other {
                Element::Range(_, end) => next(end).is_none_or(|end| end >= *first),
                Element::Key(_) => false,
            })
        }
    }
}

/// The value behind one; none behind the greatest.
fn next(value: &Value) -> Option<Value> {
    Some(match value {
        Value::V4(address) => Value::V4(address.to_bits().checked_add(1)?.into()),
        Value::V6(address) => Value::V6(address.to_bits().checked_add(1)?.into()),
        Value::Proto(number) => Value::Proto(number.checked_add(1)?),
        Value::Port(number) => Value::Port(number.checked_add(1)?),
        Value::Mark(number) => Value::Mark(number.checked_add(1)?),
        Value::Icmpv6Type(number) => Value::Icmpv6Type(number.checked_add(1)?),
        Value::HopLimit(number) => Value::HopLimit(number.checked_add(1)?),
        Value::EtherType(number) => Value::EtherType(number.checked_add(1)?),
        Value::AddrType(number) => Value::AddrType(number.checked_add(1)?),
        Value::Ifname(_) => return None,
    })
}

/// The greatest value of a value's type that has numbers.
fn greatest(value: &Value) -> Value {
    match value {
        Value::V4(_) => Value::V4(std::net::Ipv4Addr::BROADCAST),
        Value::V6(_) => Value::V6(u128::MAX.into()),
        Value::Proto(_) => Value::Proto(u8::MAX),
        Value::Port(_) => Value::Port(u16::MAX),
        Value::Mark(_) => Value::Mark(u32::MAX),
        Value::Icmpv6Type(_) => Value::Icmpv6Type(u8::MAX),
        Value::HopLimit(_) => Value::HopLimit(u8::MAX),
        Value::EtherType(_) => Value::EtherType(u16::MAX),
        Value::AddrType(_) => Value::AddrType(u32::MAX),
        Value::Ifname(name) => Value::Ifname(name.clone()),
    }
}

/// Additions of elements.
pub fn added<'a>(elements: &'a BySet<'_>) -> impl Iterator<Item = OpKind> + 'a {
    chunks(elements).map(|(set, elements)| OpKind::AddElements { set, elements })
}

/// Deletions of elements.
pub fn deleted<'a>(elements: &'a BySet<'_>) -> impl Iterator<Item = OpKind> + 'a {
    chunks(elements).map(|(set, elements)| OpKind::DeleteElements { set, elements })
}

/// Elements in portions that fit one operation.
fn chunks<'a>(elements: &'a BySet<'_>) -> impl Iterator<Item = (String, BTreeMap<Element, Datum>)> + 'a {
    elements.iter().flat_map(|(set, elements)| {
        let pairs: Vec<_> = elements.iter().collect();
        let portions: Vec<_> = pairs
            .chunks(IN_ONE_OPERATION)
            .map(|portion| {
                let portion = portion.iter().map(|(element, datum)| ((*element).clone(), (*datum).clone()));
                ((*set).clone(), portion.collect())
            })
            .collect();
        portions
    })
}
