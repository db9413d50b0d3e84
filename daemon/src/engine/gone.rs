//! Counters whose rule, pod or policy is gone, kept for a while: whoever comes back goes on counting, and what was counted last
//! is still read.
//!
//! In: the counters that policy wants, one turn after the other, and those found in the kernel. Out: the same with the others beside them.
//! What always holds: a counter is kept for the time that is configured and no longer, and no more than [`GONE_MAX`] are; no rule leads
//! to one, but flows that carry its id still count at it; an element whose id goes to another becomes a named counter, so that no name
//! is at two places; a turn costs what differs from the one before.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use flatfell_rules::compile::Meanings;
use flatfell_rules::ids::COUNTING;
use flatfell_rules::ruleset::{Counter, Datum, Element, Elements, Family, Name, Ruleset, Table};
use imbl::OrdMap;
use imbl::ordmap::DiffItem;

/// Counters that are kept at most; the oldest go first.
const GONE_MAX: usize = 10_000;

/// Counters, and what they mean as far as this process knew them.
#[derive(Clone, Default)]
pub(super) struct Counters {
    /// Named ones.
    objects: OrdMap<Name, Counter>,
    /// Those of elements, by the sets of [`COUNTING`].
    elements: [Elements; COUNTING.len()],
    pub(super) meanings: Meanings,
}

impl Counters {
    /// Those of a table.
    pub(super) fn of(table: &Table, meanings: Meanings) -> Self {
        let elements = COUNTING.map(|set| table.sets.get(set).map(|set| set.elements.clone()).unwrap_or_default());
        Self { objects: table.counters.clone(), elements, meanings }
    }

    /// Has a table have these and no others.
    pub(super) fn put_into(&self, table: &mut Table) {
        table.counters = self.objects.clone();
        for (set, elements) in COUNTING.iter().zip(&self.elements) {
            if let Some(set) = table.sets.get_mut(*set) {
                std::sync::Arc::make_mut(set).elements = elements.clone();
            }
        }
    }
}

/// Where a counter is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Object,
    /// An element of a set of [`COUNTING`].
    Element(usize, Element),
}

/// All of them.
pub(super) struct GoneCounters {
    keep: Duration,
    /// What policy wanted last.
    wanted: Counters,
    /// That, and what is kept beside it.
    kept: Counters,
    /// When nothing wanted them any more, and where they are.
    gone: BTreeMap<Name, (Instant, Place)>,
    /// In that order; one that came back may still be here.
    by_age: VecDeque<(Instant, Name)>,
}

impl GoneCounters {
    /// None yet; each is kept for this time.
    pub(super) fn new(keep: Duration) -> Self {
        let (wanted, kept) = Default::default();
        Self { keep, wanted, kept, gone: BTreeMap::new(), by_age: VecDeque::new() }
    }

    /// Takes in what the kernel was found to have: what nobody wants of it is kept from now on.
    pub(super) fn find(&mut self, have: &Ruleset, now: Instant) {
        if self.keep.is_zero() {
            return;
        }
        for (_, table) in have.tables.iter().filter(|(id, _)| id.family == Family::Inet) {
            for (at, set) in COUNTING.iter().enumerate() {
                for (element, datum) in table.sets.get(*set).into_iter().flat_map(|set| set.elements.iter()) {
                    if let Datum::Counter(name) = &datum
                        && !self.is_known(name)
                        && self.kept.elements[at].get(&element).is_none()
                    {
                        self.is_gone(name.clone(), Place::Element(at, element.clone()), now);
                        self.kept.elements[at].insert(element, datum);
                    }
                }
            }
            for (name, counter) in &table.counters {
                // Who died while a counter moved left it at two places: that of an element went on.
                if !self.is_known(name) {
                    self.kept.objects.insert(name.clone(), counter.clone());
                    self.is_gone(name.clone(), Place::Object, now);
                }
            }
        }
    }

    fn is_known(&self, name: &Name) -> bool {
        self.gone.contains_key(name) || self.wanted.meanings.contains_key(name)
    }

    /// What is wanted now, and what is kept beside it.
    pub(super) fn beside(&mut self, wanted: Counters, now: Instant) -> Counters {
        let before = std::mem::replace(&mut self.wanted, wanted.clone());
        for item in before.objects.diff(&wanted.objects) {
            match item {
                DiffItem::Add(name, counter) | DiffItem::Update { new: (name, counter), .. } => {
                    self.take_away(name);
                    self.kept.objects.insert(name.clone(), counter.clone());
                }
                DiffItem::Remove(name, _) => self.is_gone(name.clone(), Place::Object, now),
            }
        }
        for (at, (before, wanted)) in before.elements.iter().zip(&wanted.elements).enumerate() {
            self.elements(at, before, wanted, now);
        }
        for item in before.meanings.diff(&wanted.meanings) {
            if let DiffItem::Add(name, meaning) | DiffItem::Update { new: (name, meaning), .. } = item {
                self.kept.meanings.insert(name.clone(), meaning.clone());
            }
        }
        self.drop_the_oldest(now);
        self.kept.clone()
    }

    /// One set that counts.
    fn elements(&mut self, at: usize, before: &Elements, wanted: &Elements, now: Instant) {
        let diff = before.diff(wanted);
        for (element, datum) in diff.gone {
            if let Datum::Counter(name) = datum {
                self.is_gone(name, Place::Element(at, element), now);
            }
        }
        for (element, datum) in diff.come {
            let Datum::Counter(name) = &datum else { continue };
            self.take_away(name);
            if let Some(Datum::Counter(other)) = self.kept.elements[at].get(&element).cloned() {
                self.name(other);
            }
            self.kept.elements[at].insert(element, datum);
        }
    }

    /// The element of one that is gone is another's: a named counter keeps what it counted.
    fn name(&mut self, gone: Name) {
        if let Some((_, place)) = self.gone.get_mut(&gone) {
            *place = Place::Object;
            self.kept.objects.insert(gone, Counter::default());
        }
    }

    fn is_gone(&mut self, name: Name, place: Place, now: Instant) {
        self.by_age.push_back((now, name.clone()));
        self.gone.insert(name, (now, place));
    }

    /// One that was kept is not kept there any more.
    fn take_away(&mut self, name: &Name) {
        match self.gone.remove(name) {
            Some((_, Place::Object)) => drop(self.kept.objects.remove(name)),
            Some((_, Place::Element(at, element))) => drop(self.kept.elements[at].remove(&element)),
            None => {}
        }
    }

    fn drop_the_oldest(&mut self, now: Instant) {
        while let Some((since, name)) =
            self.by_age.pop_front_if(|(since, _)| *since + self.keep <= now || self.gone.len() > GONE_MAX)
        {
            if self.gone.get(&name).is_some_and(|(last, _)| *last == since) {
                self.take_away(&name);
                self.kept.meanings.remove(&name);
            }
        }
    }

    /// Whether the time of one is over.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        let is_gone = |(since, name): &(Instant, Name)| self.gone.get(name).is_some_and(|(last, _)| last == since);
        self.by_age.iter().take_while(|(since, _)| *since + self.keep <= now).any(is_gone)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use flatfell_rules::compile::{CounterMeaning, Guard, Slot};
    use flatfell_rules::ruleset::{KeyType, Set, SetKind, Table, Value};

    use super::*;

    const KEEP: Duration = Duration::from_secs(60);

    fn counters(names: &[&str]) -> Counters {
        let meaning = || Arc::new(CounterMeaning::Guard(Guard::Frame));
        Counters {
            objects: names.iter().map(|name| (Name::from(*name), Counter::default())).collect(),
            meanings: names.iter().map(|name| (Name::from(*name), meaning())).collect(),
            ..Counters::default()
        }
    }

    /// What is there after a turn that wants these, and what is known of it.
    fn turn(gone: &mut GoneCounters, want: &[&str], now: Instant) -> (Vec<String>, Vec<String>) {
        let Counters { objects, meanings, .. } = gone.beside(counters(want), now);
        (objects.keys().map(ToString::to_string).collect(), meanings.keys().map(ToString::to_string).collect())
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_counter_that_nothing_wants_stays_for_its_time_with_what_it_meant() {
        let (mut gone, start) = (GoneCounters::new(KEEP), Instant::now());
        turn(&mut gone, &["a", "b"], start);
        assert_eq!(turn(&mut gone, &["b"], start), (names(&["a", "b"]), names(&["a", "b"])));
        assert!(!gone.is_due(start + KEEP / 2));
        assert_eq!(turn(&mut gone, &["b"], start + KEEP / 2).0, names(&["a", "b"]));
        assert!(gone.is_due(start + KEEP));
        assert_eq!(turn(&mut gone, &["b"], start + KEEP), (names(&["b"]), names(&["b"])));
        assert!(!gone.is_due(start + KEEP));
    }

    #[test]
    fn what_another_run_left_stays_for_its_time_too() {
        let (mut gone, start) = (GoneCounters::new(KEEP), Instant::now());
        let table = Table { counters: counters(&["a", "b"]).objects, ..Table::default() };
        gone.find(&Ruleset { tables: [(Slot::A.inet(), table)].into() }, start);
        assert_eq!(turn(&mut gone, &["b"], start), (names(&["a", "b"]), names(&["b"])), "nobody knows what a was");
        assert_eq!(turn(&mut gone, &["b"], start + KEEP).0, names(&["b"]));
    }

    #[test]
    fn who_comes_back_is_no_longer_gone() {
        let (mut gone, start) = (GoneCounters::new(KEEP), Instant::now());
        turn(&mut gone, &["a"], start);
        turn(&mut gone, &[], start);
        assert_eq!(turn(&mut gone, &["a"], start + KEEP / 2), (names(&["a"]), names(&["a"])));
        assert!(!gone.is_due(start + KEEP), "its time begins anew when it goes again");
        assert_eq!(turn(&mut gone, &["a"], start + KEEP).0, names(&["a"]));
        turn(&mut gone, &[], start + KEEP);
        assert_eq!(turn(&mut gone, &[], start + KEEP + KEEP / 2).0, names(&["a"]));
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many() {
        let (mut gone, start) = (GoneCounters::new(KEEP), Instant::now());
        turn(&mut gone, &["z"], start);
        let many: Vec<String> = (0..GONE_MAX).map(|number| format!("c{number:05}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        turn(&mut gone, &many, start);
        let (kept, _) = turn(&mut gone, &[], start + KEEP / 2);
        assert!(kept.len() == GONE_MAX && !kept.contains(&"z".to_owned()));
    }

    /// Counters of elements in the first set, by mark.
    fn by_id(ids: &[(u32, &str)]) -> Counters {
        let names: Vec<&str> = ids.iter().map(|(_, name)| *name).collect();
        let element =
            |(mark, name): &(u32, &str)| (Element::key([Value::Mark(*mark)]), Datum::Counter(Name::from(*name)));
        let elements = [ids.iter().map(element).collect(), Elements::new()];
        Counters { elements, meanings: counters(&names).meanings, ..Counters::default() }
    }

    /// Elements and named counters after a turn that wants these ids.
    fn ids_turn(gone: &mut GoneCounters, want: &[(u32, &str)], now: Instant) -> (Vec<String>, Vec<String>) {
        let Counters { objects, elements, meanings } = gone.beside(by_id(want), now);
        let shown = |(element, datum): (Element, Datum)| match (element, datum) {
            (Element::Key(key), Datum::Counter(name)) => format!("{:?} {name}", key[0]),
            other => format!("{other:?}"),
        };
        let elements: Vec<String> = elements[0].iter().map(shown).collect();
        assert_eq!(elements.len() + objects.len(), meanings.len(), "each is at one place");
        (elements, objects.keys().map(ToString::to_string).collect())
    }

    #[test]
    fn an_element_stays_until_its_id_is_anothers_and_then_its_count_has_a_name() {
        let (mut gone, start) = (GoneCounters::new(KEEP), Instant::now());
        ids_turn(&mut gone, &[(1, "a"), (2, "b")], start);
        let kept = ids_turn(&mut gone, &[(2, "b")], start);
        assert_eq!(kept, (names(&["Mark(1) a", "Mark(2) b"]), names(&[])), "flows still carry it");
        let given = ids_turn(&mut gone, &[(1, "c"), (2, "b")], start);
        assert_eq!(given, (names(&["Mark(1) c", "Mark(2) b"]), names(&["a"])));
        let back = ids_turn(&mut gone, &[(1, "c"), (2, "b"), (3, "a")], start);
        assert_eq!(back, (names(&["Mark(1) c", "Mark(2) b", "Mark(3) a"]), names(&[])));
        let moved = ids_turn(&mut gone, &[(1, "a"), (2, "b"), (3, "c")], start);
        assert_eq!(moved, (names(&["Mark(1) a", "Mark(2) b", "Mark(3) c"]), names(&[])));
        ids_turn(&mut gone, &[(3, "d")], start);
        assert_eq!(ids_turn(&mut gone, &[(3, "d")], start + KEEP), (names(&["Mark(3) d"]), names(&[])));
    }

    #[test]
    fn elements_that_another_run_left_stay_where_they_are_and_go_on() {
        let (mut gone, start) = (GoneCounters::new(KEEP), Instant::now());
        let sets = by_id(&[(1, "a"), (2, "b")]).elements;
        let set = |elements: Elements| {
            std::sync::Arc::new(Set { elements, ..Set::of(SetKind::Counters, vec![KeyType::Mark]) })
        };
        let sets = COUNTING.iter().zip(sets).map(|(name, elements)| (Name::from(*name), set(elements))).collect();
        // Who died while `a` got an id left it at two places.
        let table = Table { sets, counters: counters(&["a", "z"]).objects, ..Table::default() };
        gone.find(&Ruleset { tables: [(Slot::A.inet(), table)].into() }, start);
        let Counters { objects, elements, .. } = gone.beside(by_id(&[(2, "b")]), start);
        assert_eq!((elements[0].len(), objects.keys().map(ToString::to_string).collect()), (2, names(&["z"])));
        let Counters { objects, elements, .. } = gone.beside(by_id(&[(2, "b")]), start + KEEP);
        assert_eq!((elements[0].len(), objects.len()), (1, 0));
    }

    #[test]
    fn nothing_is_kept_for_no_time() {
        let mut gone = GoneCounters::new(Duration::ZERO);
        turn(&mut gone, &["a"], Instant::now());
        assert_eq!(turn(&mut gone, &[], Instant::now()).0, names(&[]));
    }
}
