//! The elements of a set or map.
//!
//! In: elements with what they lead to. Out: the same in order, and how two differ. What always holds: equal elements are equal values,
//! whatever was put in first; addresses without a datum, of which there are as many as a cluster has, are kept as nothing but addresses.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use imbl::{OrdMap, OrdSet, ordmap, ordset};

use super::{Datum, Element, Value};

/// Elements by key, in the order of their keys.
#[derive(Clone, Debug, Default)]
pub struct Elements(Kept);

/// How they are kept. What fits [`Kept::V4`] or [`Kept::V6`] is never in [`Kept::Any`], and none are in [`Kept::Any`].
#[derive(Clone, Debug)]
enum Kept {
    V4(OrdSet<Ipv4Addr>),
    V6(OrdSet<Ipv6Addr>),
    Any(OrdMap<Element, Datum>),
}

impl Default for Kept {
    fn default() -> Self {
        Self::Any(OrdMap::new())
    }
}

/// What one has and the other has not, or leads elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ElementsDiff {
    /// Only in the first, with what they lead to there.
    pub gone: BTreeMap<Element, Datum>,
    /// Only in the second, with what they lead to there.
    pub come: BTreeMap<Element, Datum>,
}

impl Elements {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Exactly these addresses, shared with whoever has them.
    pub fn v4(addresses: OrdSet<Ipv4Addr>) -> Self {
        Self(Kept::V4(addresses))
    }

    /// Exactly these addresses, shared with whoever has them.
    pub fn v6(addresses: OrdSet<Ipv6Addr>) -> Self {
        Self(Kept::V6(addresses))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match &self.0 {
            Kept::V4(addresses) => addresses.len(),
            Kept::V6(addresses) => addresses.len(),
            Kept::Any(elements) => elements.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them, in order.
    pub fn iter(&self) -> Box<dyn Iterator<Item = (Element, Datum)> + '_> {
        match &self.0 {
            Kept::V4(addresses) => Box::new(addresses.iter().map(|address| (v4(*address), Datum::None))),
            Kept::V6(addresses) => Box::new(addresses.iter().map(|address| (v6(*address), Datum::None))),
            Kept::Any(elements) => Box::new(elements.iter().map(|(element, datum)| (element.clone(), datum.clone()))),
        }
    }

    /// What those lead to that may lead somewhere.
    pub fn data(&self) -> impl Iterator<Item = &Datum> {
        let elements = match &self.0 {
            Kept::V4(_) | Kept::V6(_) => None,
            Kept::Any(elements) => Some(elements.values()),
        };
        elements.into_iter().flatten()
    }

    /// What an element leads to, if it is there.
    pub fn get(&self, element: &Element) -> Option<&Datum> {
        match (&self.0, address(element)) {
            (Kept::V4(addresses), Some(Value::V4(own))) => addresses.contains(own).then_some(&Datum::None),
            (Kept::V6(addresses), Some(Value::V6(own))) => addresses.contains(own).then_some(&Datum::None),
            (Kept::V4(_) | Kept::V6(_), _) => None,
            (Kept::Any(elements), _) => elements.get(element),
        }
    }

    /// Adds one, or has it lead elsewhere.
    pub fn insert(&mut self, element: Element, datum: Datum) {
        if self.is_empty() {
            self.0 = match address(&element).filter(|_| datum == Datum::None) {
                Some(Value::V4(own)) => Kept::V4(OrdSet::unit(*own)),
                Some(Value::V6(own)) => Kept::V6(OrdSet::unit(*own)),
                _ => Kept::Any(OrdMap::unit(element, datum)),
            };
            return;
        }
        match (&mut self.0, address(&element), &datum) {
            (Kept::V4(addresses), Some(Value::V4(own)), Datum::None) => {
                addresses.insert(*own);
            }
            (Kept::V6(addresses), Some(Value::V6(own)), Datum::None) => {
                addresses.insert(*own);
            }
            (Kept::Any(elements), ..) => {
                elements.insert(element, datum);
            }
            _ => self.0 = Kept::Any(self.iter().chain([(element, datum)]).collect()),
        }
    }

    /// Takes one away, if it is there.
    pub fn remove(&mut self, element: &Element) -> Option<Datum> {
        match (&mut self.0, address(element)) {
            (Kept::V4(addresses), Some(Value::V4(own))) => addresses.remove(own).map(|_| Datum::None),
            (Kept::V6(addresses), Some(Value::V6(own))) => addresses.remove(own).map(|_| Datum::None),
            (Kept::V4(_) | Kept::V6(_), _) => None,
            (Kept::Any(elements), _) => elements.remove(element),
        }
    }

    /// Takes away those that are not to stay.
    pub fn retain(&mut self, mut stays: impl FnMut(&Element, &Datum) -> bool) {
        *self = self.iter().filter(|(element, datum)| stays(element, datum)).collect();
    }

    /// What leads from these to others; it costs what they do not share.
    pub fn diff(&self, other: &Self) -> ElementsDiff {
        let mut diff = ElementsDiff::default();
        match (&self.0, &other.0) {
            (Kept::V4(own), Kept::V4(others)) => diff.addresses(own, others, v4),
            (Kept::V6(own), Kept::V6(others)) => diff.addresses(own, others, v6),
            (Kept::Any(own), Kept::Any(others)) => diff.elements(own, others),
            _ => {
                let missing = |one: &Self, other: &Self| {
                    one.iter().filter(|(element, datum)| other.get(element) != Some(datum)).collect()
                };
                diff = ElementsDiff { gone: missing(self, other), come: missing(other, self) };
            }
        }
        diff
    }
}

impl ElementsDiff {
    fn addresses<T: Ord + Copy>(&mut self, own: &OrdSet<T>, others: &OrdSet<T>, element: fn(T) -> Element) {
        for item in own.diff(others) {
            match item {
                ordset::DiffItem::Add(address) => self.come.insert(element(*address), Datum::None),
                ordset::DiffItem::Remove(address) => self.gone.insert(element(*address), Datum::None),
            };
        }
    }

    fn elements(&mut self, own: &OrdMap<Element, Datum>, others: &OrdMap<Element, Datum>) {
        for item in own.diff(others) {
            let (gone, come) = match item {
                ordmap::DiffItem::Add(element, datum) => (None, Some((element, datum))),
                ordmap::DiffItem::Update { old, new } => (Some(old), Some(new)),
                ordmap::DiffItem::Remove(element, datum) => (Some((element, datum)), None),
            };
            self.gone.extend(gone.map(|(element, datum)| (element.clone(), datum.clone())));
            self.come.extend(come.map(|(element, datum)| (element.clone(), datum.clone())));
        }
    }
}

/// The one value of a key that has one.
fn address(element: &Element) -> Option<&Value> {
    match element {
        Element::Key(key) if key.len() == 1 => key.first(),
        _ => None,
    }
}

fn v4(address: Ipv4Addr) -> Element {
    Element::key([Value::V4(address)])
}

fn v6(address: Ipv6Addr) -> Element {
    Element::key([Value::V6(address)])
}

impl PartialEq for Elements {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len()
            && match (&self.0, &other.0) {
                (Kept::V4(own), Kept::V4(others)) => own.ptr_eq(others) || own == others,
                (Kept::V6(own), Kept::V6(others)) => own.ptr_eq(others) || own == others,
                (Kept::Any(own), Kept::Any(others)) => own.ptr_eq(others) || own == others,
                _ => self.iter().eq(other.iter()),
            }
    }
}

impl Eq for Elements {}

impl FromIterator<(Element, Datum)> for Elements {
    fn from_iter<I: IntoIterator<Item = (Element, Datum)>>(elements: I) -> Self {
        let mut all = Self::new();
        elements.into_iter().for_each(|(element, datum)| all.insert(element, datum));
        all
    }
}

impl<const N: usize> From<[(Element, Datum); N]> for Elements {
    fn from(elements: [(Element, Datum); N]) -> Self {
        elements.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn four(last: u8) -> Element {
        v4([10, 0, 0, last].into())
    }

    fn mark(mark: u32) -> Element {
        Element::key([Value::Mark(mark)])
    }

    #[test]
    fn whatever_came_first_equal_elements_are_equal() {
        let mut mixed: Elements = [(four(1), Datum::None), (mark(7), Datum::None)].into();
        assert_eq!(mixed, [(mark(7), Datum::None), (four(1), Datum::None)].into());
        assert_eq!(mixed.remove(&mark(7)), Some(Datum::None));
        let plain = Elements::v4(OrdSet::unit([10, 0, 0, 1].into()));
        assert_eq!(mixed, plain);
        assert_eq!(mixed.diff(&plain), ElementsDiff::default());
        assert_eq!(plain.get(&four(1)), Some(&Datum::None));
        assert_eq!((plain.get(&four(2)), plain.get(&mark(1))), (None, None));
    }

    #[test]
    fn a_difference_names_both_sides() {
        let counter = |name: &str| Datum::Counter(name.into());
        let (one, other): (Elements, Elements) = (
            [(mark(1), counter("a")), (mark(2), counter("b")), (mark(3), counter("c"))].into(),
            [(mark(2), counter("b")), (mark(3), counter("d")), (mark(4), counter("e"))].into(),
        );
        let diff = one.diff(&other);
        assert_eq!(diff.gone, [(mark(1), counter("a")), (mark(3), counter("c"))].into());
        assert_eq!(diff.come, [(mark(3), counter("d")), (mark(4), counter("e"))].into());
        let (one, other): (Elements, Elements) =
            ((1..4).map(|n| (four(n), Datum::None)).collect(), (2..5).map(|n| (four(n), Datum::None)).collect());
        let diff = one.diff(&other);
        assert!(diff.gone.keys().eq([&four(1)]) && diff.come.keys().eq([&four(4)]), "{diff:?}");
        let diff = one.diff(&[(mark(1), counter("a"))].into());
        assert_eq!((diff.gone.len(), diff.come.len()), (3, 1), "kept in another way");
    }
}
