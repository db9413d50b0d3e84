//! Selectors, found by the labels they may match.
//!
//! In: selectors, each with what it is for. Out: what is for given labels, perhaps. What always holds: whatever matches is
//! found; what cannot match for the value of one label is not looked at.

use std::collections::HashMap;

use crate::object::Labels;
use crate::policy::{Operator, Selector};

/// Items by their selectors.
#[derive(Debug)]
pub(super) struct Selectors<T> {
    /// By a key that must be there, and the values it may have.
    by_label: HashMap<String, HashMap<String, Vec<T>>>,
    /// Those without such a key.
    rest: Vec<T>,
}

impl<T> Default for Selectors<T> {
    fn default() -> Self {
        Self { by_label: HashMap::new(), rest: Vec::new() }
    }
}

impl<T: Clone + PartialEq> Selectors<T> {
    /// Adds an item.
    pub(super) fn insert(&mut self, selector: &Selector, item: &T) {
        let Some((key, values)) = narrowest(selector) else {
            self.rest.push(item.clone());
            return;
        };
        let by_value = self.by_label.entry(key.to_owned()).or_default();
        for value in values {
            by_value.entry(value.clone()).or_default().push(item.clone());
        }
    }

    /// Takes an item out that was added with this selector.
    pub(super) fn remove(&mut self, selector: &Selector, item: &T) {
        let Some((key, values)) = narrowest(selector) else {
            take(&mut self.rest, item);
            return;
        };
        let Some(by_value) = self.by_label.get_mut(key) else { return };
        for value in values {
            if let Some(items) = by_value.get_mut(value) {
                take(items, item);
                if items.is_empty() {
                    by_value.remove(value);
                }
            }
        }
        if by_value.is_empty() {
            self.by_label.remove(key);
        }
    }

    /// The items whose selectors may match, each once.
    pub(super) fn candidates<'a>(&'a self, labels: &'a Labels) -> impl Iterator<Item = &'a T> {
        let having = |(key, value)| self.by_label.get(key).and_then(|by_value| by_value.get(value));
        labels.iter().filter_map(having).flatten().chain(&self.rest)
    }

    /// Whether there is nothing in it.
    pub(super) fn is_empty(&self) -> bool {
        self.by_label.is_empty() && self.rest.is_empty()
    }
}

fn take<T: PartialEq>(items: &mut Vec<T>, item: &T) {
    if let Some(place) = items.iter().position(|other| other == item) {
        items.swap_remove(place);
    }
}

/// The `In` requirement with the fewest values.
fn narrowest(selector: &Selector) -> Option<(&str, &[String])> {
    let values = |requirement: &'_ crate::policy::Requirement| match &requirement.operator {
        Operator::In(values) => Some(values.len()),
        Operator::NotIn(_) | Operator::Exists | Operator::DoesNotExist => None,
    };
    let fewest = selector.requirements.iter().filter(|it| values(it).is_some()).min_by_key(|it| values(it))?;
    match &fewest.operator {
        Operator::In(values) => Some((&fewest.key, values)),
        Operator::NotIn(_) | Operator::Exists | Operator::DoesNotExist => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Requirement;

    fn selector(requirements: &[(&str, &[&str])]) -> Selector {
        let values = |values: &[&str]| Operator::In(values.iter().map(|value| (*value).to_owned()).collect());
        let requirement = |(key, of): &(&str, &[&str])| Requirement { key: (*key).to_owned(), operator: values(of) };
        Selector::new(requirements.iter().map(requirement).collect())
    }

    #[test]
    fn only_what_the_narrowest_requirement_lets_through_is_looked_at() {
        let all = [
            selector(&[]),
            selector(&[("app", &["a"])]),
            selector(&[("app", &["a", "b"]), ("tier", &["x"])]),
            selector(&[("app", &["a", "b"])]),
        ];
        let mut selectors = Selectors::default();
        for (number, selector) in (0..).zip(&all) {
            selectors.insert(selector, &number);
        }
        let found = |selectors: &Selectors<i32>, labels: &[(&str, &str)]| {
            let labels = Labels::from_iter(labels.iter().copied());
            let mut found: Vec<i32> = selectors.candidates(&labels).copied().collect();
            found.sort_unstable();
            found
        };
        assert_eq!(found(&selectors, &[]), [0]);
        assert_eq!(found(&selectors, &[("app", "a")]), [0, 1, 3]);
        assert_eq!(found(&selectors, &[("app", "b"), ("tier", "x")]), [0, 2, 3]);
        assert_eq!(found(&selectors, &[("app", "c"), ("tier", "x")]), [0, 2], "it may, though it does not");
        for (number, selector) in (0..).zip(&all) {
            assert!(!selectors.is_empty());
            selectors.remove(selector, &number);
        }
        assert!(selectors.is_empty());
    }
}
