//! Which elements go and come, and in which step.
//!
//! In: a table as it is and as it shall be. Out: elements by set. What always holds: elements are added in the
//! switch and removed behind it, so that no packet misses both the old and the new place of an address; those that
//! stand in the way of the switch (another datum for the same key, an interval that overlaps or touches a new one, a map whose
//! union would nest too deep) that a new rule would still find, or that alone keep packets from being dropped (who is known) go at its beginning.

use std::collections::{BTreeMap, BTreeSet};

use super::difference::Differences;
use super::{held, nesting};
use crate::ruleset::{Datum, Element, Name, OpKind, Set, SetKind, Table, Value};

/// Elements of one operation at most: an element list is one netlink attribute of 64 KiB.
const IN_ONE_OPERATION: usize = 256;

/// Elements with what they lead to.
type Elements = BTreeMap<Element, Datum>;

/// Elements by the set they belong to.
pub type BySet<'a> = BTreeMap<&'a Name, Elements>;

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
    /// From one table to the other; `spares`: whether a set does nothing but spare packets a drop.
    pub fn between(
        have: &Table,
        want: &'a Table,
        differences: &Differences<'_, 'a>,
        spares: impl Fn(&Name) -> bool,
    ) -> Self {
        let mut changes = Self::default();
        let asked = asked_anew(differences);
        for (name, current, wanted) in &differences.sets.changed {
            let at_once = asked.contains(*name) || (wanted.kind == SetKind::Set && spares(name));
            changes.set(name, current, wanted, at_once);
        }
        if !nesting::fits(have, want, &changes.late, differences) {
            changes.remove_map_elements_early(want);
        }
        changes
    }

    /// The elements of one set. Where a new rule asks it, all that leaves it goes with the switch (`at_once`): neither the
    /// old policy nor the new one lets that rule see them. So does who is known no more: its maps' elements stay until it
    /// is closed.
    fn set(&mut self, name: &'a Name, have: &Set, want: &Set, at_once: bool) {
        let diff = have.elements.diff(&want.elements);
        let (early, late): (Elements, Elements) =
            diff.gone.into_iter().partition(|(element, _)| at_once || in_the_way(element, &diff.come));
        self.early.insert(name, early);
        self.added.insert(name, diff.come);
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
fn asked_anew<'a>(differences: &Differences<'_, 'a>) -> BTreeSet<&'a Name> {
    let chains = &differences.chains;
    let come = chains.come.iter().flat_map(|(_, chain)| held::asked(chain));
    let changed = chains.changed.iter().flat_map(|(_, before, chain)| {
        let new = chain.rules.iter().filter(|rule| !before.rules.contains(rule));
        new.flat_map(|rule| &rule.exprs).filter_map(held::asks)
    });
    come.chain(changed).collect()
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
        Value::Length(number) => Value::Length(number.checked_add(1)?),
        Value::Ifname(_) | Value::Ether(_) | Value::NdOption(_) => return None,
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
        Value::Length(_) => Value::Length(u16::MAX),
        Value::Ifname(_) | Value::Ether(_) | Value::NdOption(_) => value.clone(),
    }
}

/// Additions of elements.
pub fn added<'a>(elements: &'a BySet<'_>) -> impl Iterator<Item = OpKind> + 'a {
    let of_set = |(set, elements): (&&'a Name, &'a Elements)| portions(set, elements.iter().map(cloned));
    elements.iter().flat_map(of_set).map(added_elements)
}

/// Deletions of elements.
pub fn deleted<'a>(elements: &'a BySet<'_>) -> impl Iterator<Item = OpKind> + 'a {
    let of_set = |(set, elements): (&&'a Name, &'a Elements)| portions(set, elements.iter().map(cloned));
    elements.iter().flat_map(of_set).map(|(set, elements)| OpKind::DeleteElements { set, elements })
}

/// Additions of all elements of a set.
pub fn all<'a>(name: &'a Name, set: &'a Set) -> impl Iterator<Item = OpKind> + 'a {
    portions(name, set.elements.iter()).map(added_elements)
}

fn added_elements((set, elements): (Name, Elements)) -> OpKind {
    OpKind::AddElements { set, elements, starts: BTreeMap::new() }
}

fn cloned((element, datum): (&Element, &Datum)) -> (Element, Datum) {
    (element.clone(), datum.clone())
}

/// Elements in portions that fit one operation.
fn portions<'a>(
    set: &'a Name,
    mut elements: impl Iterator<Item = (Element, Datum)> + 'a,
) -> impl Iterator<Item = (Name, Elements)> + 'a {
    std::iter::from_fn(move || {
        let portion: Elements = elements.by_ref().take(IN_ONE_OPERATION).collect();
        (!portion.is_empty()).then(|| (set.clone(), portion))
    })
}
