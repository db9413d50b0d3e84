//! What one origin contributes to a table, and the table that all contributions make.
//!
//! In: contributions that come and go. Out: the table and what its counters mean. What always holds: a name is one origin's; a set that
//! takes elements of many origins is there before them and stays.

use std::sync::Arc;

use imbl::OrdMap;

use super::{CounterMeaning, Meanings};
use crate::names;
use crate::ruleset::{Chain, Counter, Datum, Element, Elements, KeyType, Name, Set, SetKind, Table, Value};

/// What one origin contributes.
#[derive(Clone, Debug, Default)]
pub(super) struct Part {
    /// Sets with all their elements.
    sets: Vec<(Name, Arc<Set>)>,
    /// Sets whose elements are contributed one by one.
    common: Vec<(Name, Arc<Set>)>,
    chains: Vec<(Name, Arc<Chain>)>,
    counters: Vec<(Name, Counter)>,
    meanings: Vec<(Name, Arc<CounterMeaning>)>,
    elements: Vec<(Name, Element, Datum)>,
}

impl Part {
    /// Adds a chain.
    pub(super) fn chain(&mut self, name: impl Into<Name>, chain: Chain) {
        self.chains.push((name.into(), Arc::new(chain)));
    }

    /// The counter with this identity; `human` goes into its name, `text` into its comment.
    pub(super) fn counter(
        &mut self,
        (kind, identity, human): (&str, &str, &str),
        text: &str,
        meaning: CounterMeaning,
    ) -> Name {
        let name = names::name(kind, identity, human);
        self.named_counter(name.clone(), text, meaning);
        name
    }

    /// The counter of this name, made once however often it is asked for.
    pub(super) fn named_counter(&mut self, name: Name, text: &str, meaning: CounterMeaning) {
        if !self.counters.iter().any(|(other, ..)| *other == name) {
            self.counters.push((name.clone(), Counter { comment: names::comment(text).into() }));
            self.meanings.push((name, Arc::new(meaning)));
        }
    }

    /// Adds an element that counts, under this name, to a fixed set.
    pub(super) fn counting(&mut self, set: &str, mark: u32, name: Name, meaning: CounterMeaning) {
        self.element(set, Value::Mark(mark), Datum::Counter(name.clone()));
        self.meanings.push((name, Arc::new(meaning)));
    }

    /// A set with all its elements.
    pub(super) fn set(&mut self, name: Name, set: Set) {
        self.sets.push((name, Arc::new(set)));
    }

    /// A set or map that is there under a fixed name, empty or not.
    pub(super) fn fixed(&mut self, name: &str, kind: SetKind, key: Vec<KeyType>, comment: &str) {
        self.common(name, kind, key, None, comment);
    }

    /// The same for one that never has more elements than this.
    pub(super) fn sized(&mut self, name: &str, kind: SetKind, key: Vec<KeyType>, size: u32, comment: &str) {
        self.common(name, kind, key, Some(size), comment);
    }

    fn common(&mut self, name: &str, kind: SetKind, key: Vec<KeyType>, size: Option<u32>, comment: &str) {
        let set = Set { kind, key, interval: false, size, comment: comment.to_owned(), elements: Elements::new() };
        self.common.push((name.into(), Arc::new(set)));
    }

    /// Adds an element to a fixed set.
    pub(super) fn element(&mut self, set: impl Into<Name>, value: Value, datum: Datum) {
        self.elements.push((set.into(), Element::key([value]), datum));
    }
}

/// All contributions to a table.
#[derive(Clone, Debug, Default)]
pub(super) struct Whole {
    /// The table.
    pub(super) table: Table,
    /// What its counters mean.
    pub(super) meanings: Meanings,
}

impl Whole {
    /// A contribution goes. Those that come in its place come behind all that go.
    pub(super) fn take_out(&mut self, part: &Part) {
        for (name, _) in &part.sets {
            self.table.sets.remove(name);
        }
        for (name, _) in &part.chains {
            self.table.chains.remove(name);
        }
        for (name, _) in &part.counters {
            self.table.counters.remove(name);
        }
        for (name, _) in &part.meanings {
            self.meanings.remove(name);
        }
        for (set, element, _) in &part.elements {
            self.with(set, |elements| drop(elements.remove(element)));
        }
    }

    /// A contribution comes.
    pub(super) fn put_in(&mut self, part: &Part) {
        for (name, set) in &part.sets {
            self.table.sets.insert(name.clone(), Arc::clone(set));
        }
        for (name, set) in &part.common {
            self.table.sets.entry(name.clone()).or_insert_with(|| Arc::clone(set));
        }
        for (name, chain) in &part.chains {
            self.table.chains.insert(name.clone(), Arc::clone(chain));
        }
        for (name, counter) in &part.counters {
            self.table.counters.insert(name.clone(), counter.clone());
        }
        for (name, meaning) in &part.meanings {
            self.meanings.insert(name.clone(), Arc::clone(meaning));
        }
        for (set, element, datum) in &part.elements {
            self.with(set, |elements| elements.insert(element.clone(), datum.clone()));
        }
    }

    /// Changes the elements of a fixed set.
    pub(super) fn with(&mut self, set: &str, change: impl FnOnce(&mut Elements)) {
        let sets: &mut OrdMap<Name, Arc<Set>> = &mut self.table.sets;
        if let Some(set) = sets.get_mut(set) {
            change(&mut Arc::make_mut(set).elements);
        }
    }
}
