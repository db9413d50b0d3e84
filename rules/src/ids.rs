//! Who counts under which id in ct mark.
//!
//! In: the counters that want an id, for each half of a connection ([`Claims`]); what a table of the kernel remembers. Out:
//! [`Ids`]. What always holds: whoever has an id keeps it for as long as they claim it; an id that nobody claims any more goes
//! to nobody else before [`Allocator::release`], for running flows may still carry it; where none is left, a
//! claim gets none and counts as not attributed.

use std::collections::{BTreeMap, BTreeSet};

use crate::effective::{Effective, RuleIdentity};
use crate::mark::{ID_MAX, NO_ID, id_bits, id_of};
use crate::names;
use crate::object::ObjectName;
use crate::policy::{Action, Direction};
use crate::ruleset::{Datum, Element, Set, Table, Value};

/// The map of the inet table from ids to the counters of packets.
pub const COUNTERS: &str = "counters";

/// The map of the inet table from ids to the counters of connections.
pub const CONNECTIONS: &str = "connections";

/// The set of the inet table with the ids that must not be given out yet.
pub const RETIRED: &str = "retired";

/// What let one half of a connection through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin<'a> {
    /// A rule that accepts.
    Rule(&'a RuleIdentity),
    /// No rule was needed: this pod is not isolated, only audited, or reaches itself.
    Default(&'a ObjectName),
}

impl Origin<'_> {
    /// The counter of its packets, which is what an id is given to.
    pub fn counter(self, half: Direction) -> String {
        self.name("", half)
    }

    /// The counter of its connections.
    pub fn connections(self, half: Direction) -> String {
        self.name("connections-", half)
    }

    /// The chain that writes its id.
    pub fn chain(self, half: Direction) -> String {
        self.name("allow-", half)
    }

    fn name(self, kind: &str, half: Direction) -> String {
        match self {
            Self::Rule(identity) => names::name(&format!("{kind}rule"), &identity.text(), &identity.policy.to_string()),
            Self::Default(pod) => {
                let pod = pod.to_string();
                names::name(&format!("{kind}default-{half}"), &pod, &pod)
            }
        }
    }
}

/// The counters that want an id, by half.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    ingress: BTreeSet<String>,
    egress: BTreeSet<String>,
}

impl Claims {
    /// Those of a node's policy: every rule that accepts, and every pod.
    pub fn of(effective: &Effective) -> Self {
        Self { ingress: claims(effective, Direction::Ingress), egress: claims(effective, Direction::Egress) }
    }
}

fn claims(effective: &Effective, half: Direction) -> BTreeSet<String> {
    let rules = effective.pods().values().flat_map(|pod| &pod.isolation(half).rules);
    let rules = rules.filter(|rule| rule.action == Action::Accept).map(|rule| Origin::Rule(&rule.identity));
    let origins: BTreeSet<Origin<'_>> =
        rules.chain(effective.pods().values().map(|pod| Origin::Default(&pod.name))).collect();
    origins.into_iter().map(|origin| origin.counter(half)).collect()
}

/// Ids that are given out, and those that must not be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    ingress: BTreeMap<String, u16>,
    egress: BTreeMap<String, u16>,
    retired: BTreeSet<u32>,
}

impl Ids {
    /// Those of a policy that nothing else was counted for before.
    pub fn fresh(effective: &Effective) -> Self {
        Allocator::new(ID_MAX).assign(&Claims::of(effective))
    }

    /// The id of a counter, in its place in the mark.
    pub fn bits(&self, half: Direction, counter: &str) -> Option<u32> {
        let ids = match half {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        };
        ids.get(counter).map(|id| id_bits(half, *id))
    }

    /// What the rules write for one that let a half through.
    pub fn written(&self, half: Direction, origin: Origin<'_>) -> u32 {
        self.bits(half, &origin.counter(half)).unwrap_or_else(|| id_bits(half, NO_ID))
    }

    /// The ids that must not be given out yet, in their places.
    pub fn retired(&self) -> impl Iterator<Item = u32> {
        self.retired.iter().copied()
    }
}

/// Gives ids out, and takes them back.
#[derive(Clone, Debug)]
pub struct Allocator {
    limit: u16,
    ingress: Space,
    egress: Space,
}

/// The ids of one half.
#[derive(Clone, Debug, Default)]
struct Space {
    given: BTreeMap<String, u16>,
    /// Ids that nobody claims and flows may carry; with whose they were, where that is known.
    retired: BTreeMap<u16, Option<String>>,
    /// The one that was given out last: the next one is looked for behind it.
    last: u16,
    /// Claims that got none.
    without: usize,
}

impl Allocator {
    /// Gives out the ids from 1 to `limit`, at most [`ID_MAX`], of each half.
    pub fn new(limit: u16) -> Self {
        Self { limit: limit.min(ID_MAX), ingress: Space::default(), egress: Space::default() }
    }

    /// Takes in what the tables of an earlier life of the daemon remember.
    pub fn restore(&mut self, table: &Table) {
        for (mark, datum) in table.sets.get(COUNTERS).into_iter().flat_map(marks) {
            let Datum::Counter(name) = datum else { continue };
            if let Some((space, id)) = self.place(mark) {
                space.given.insert(name.clone(), id);
            }
        }
        for (mark, _) in table.sets.get(RETIRED).into_iter().flat_map(marks) {
            if let Some((space, id)) = self.place(mark) {
                space.retired.insert(id, None);
            }
        }
    }

    /// The half and the id of a key; `None` for one that is nobody's.
    fn place(&mut self, mark: u32) -> Option<(&mut Space, u16)> {
        let (space, id) = match (id_of(Direction::Egress, mark), id_of(Direction::Ingress, mark)) {
            (Some(id), None) => (&mut self.egress, id),
            (None, Some(id)) => (&mut self.ingress, id),
            _ => return None,
        };
        (id <= self.limit).then_some((space, id))
    }

    /// The ids of these claims, and no others.
    pub fn assign(&mut self, claims: &Claims) -> Ids {
        self.ingress.assign(&claims.ingress, self.limit);
        self.egress.assign(&claims.egress, self.limit);
        let retired = |half, space: &Space| space.retired.keys().map(|id| id_bits(half, *id)).collect::<Vec<_>>();
        Ids {
            ingress: self.ingress.given.clone(),
            egress: self.egress.given.clone(),
            retired: [retired(Direction::Ingress, &self.ingress), retired(Direction::Egress, &self.egress)]
                .into_iter()
                .flatten()
                .collect(),
        }
    }

    /// Ids that were not claimed in the last [`Self::assign`] may be given out again: rules that do not know them are in
    /// force, and every flow was marked anew since.
    pub fn release(&mut self) {
        self.ingress.retired.clear();
        self.egress.retired.clear();
    }

    /// How many ids of a half are not free.
    pub fn used(&self, half: Direction) -> usize {
        let space = match half {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        };
        space.given.len() + space.retired.len()
    }

    /// How many there are of each half.
    pub fn limit(&self) -> usize {
        usize::from(self.limit)
    }

    /// Whether a claim got none and would get one now.
    pub fn could_give(&self) -> bool {
        let free = |space: &Space| space.given.len() + space.retired.len() < usize::from(self.limit);
        [&self.ingress, &self.egress].into_iter().any(|space| space.without > 0 && free(space))
    }

    /// How many claims got none.
    pub fn without(&self) -> usize {
        self.ingress.without + self.egress.without
    }
}

impl Space {
    fn assign(&mut self, claims: &BTreeSet<String>, limit: u16) {
        let (kept, gone) = std::mem::take(&mut self.given).into_iter().partition(|(name, _)| claims.contains(name));
        self.given = kept;
        let gone: BTreeMap<String, u16> = gone;
        self.retired.extend(gone.into_iter().map(|(name, id)| (id, Some(name))));
        // Whoever comes back finds flows that still carry the id: they were counted for nobody else.
        let given = &mut self.given;
        self.retired.retain(|id, name| match name.take_if(|name| claims.contains(name)) {
            Some(name) => {
                given.insert(name, *id);
                false
            }
            None => true,
        });
        self.give(claims, limit);
    }

    fn give(&mut self, claims: &BTreeSet<String>, limit: u16) {
        let taken: BTreeSet<u16> = self.given.values().chain(self.retired.keys()).copied().collect();
        let start = self.last.min(limit);
        let mut free = (start + 1..=limit).chain(1..=start).filter(|id| !taken.contains(id));
        let new: Vec<&String> = claims.iter().filter(|name| !self.given.contains_key(*name)).collect();
        self.without = 0;
        for name in new {
            match free.next() {
                Some(id) => {
                    self.given.insert(name.clone(), id);
                    self.last = id;
                }
                None => self.without += 1,
            }
        }
    }
}

/// The elements of a set of marks.
fn marks(set: &Set) -> impl Iterator<Item = (u32, &Datum)> {
    set.elements.iter().filter_map(|(element, datum)| match element {
        Element::Key(key) => match key.as_slice() {
            [Value::Mark(mark)] => Some((*mark, datum)),
            _ => None,
        },
        Element::Range(..) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(names: &[&str]) -> Claims {
        let names: BTreeSet<String> = names.iter().map(ToString::to_string).collect();
        Claims { ingress: names, egress: BTreeSet::new() }
    }

    fn ids(ids: &Ids) -> Vec<(&str, u16)> {
        ids.ingress.iter().map(|(name, id)| (name.as_str(), *id)).collect()
    }

    #[test]
    fn who_stays_keeps_the_id_whoever_else_comes_and_goes() {
        let mut allocator = Allocator::new(10);
        assert_eq!(ids(&allocator.assign(&claims(&["b", "d"]))), [("b", 1), ("d", 2)]);
        assert_eq!(ids(&allocator.assign(&claims(&["a", "c", "d"]))), [("a", 3), ("c", 4), ("d", 2)]);
    }

    #[test]
    fn a_freed_id_goes_to_nobody_else_before_it_is_released() {
        let mut allocator = Allocator::new(2);
        allocator.assign(&claims(&["a", "b"]));
        let now = allocator.assign(&claims(&["b", "c"]));
        assert_eq!((ids(&now), allocator.without()), (vec![("b", 2)], 1));
        assert_eq!(now.retired().collect::<Vec<_>>(), [1]);
        assert_eq!(allocator.used(Direction::Ingress), 2);
        assert!(!allocator.could_give());
        allocator.release();
        assert!(allocator.could_give());
        let now = allocator.assign(&claims(&["b", "c"]));
        assert_eq!((ids(&now), allocator.without()), (vec![("b", 2), ("c", 1)], 0));
        assert_eq!(now.retired().count(), 0);
    }

    #[test]
    fn who_comes_back_in_time_has_the_id_again() {
        let mut allocator = Allocator::new(5);
        allocator.assign(&claims(&["a", "b"]));
        allocator.assign(&claims(&[]));
        assert_eq!(ids(&allocator.assign(&claims(&["b", "c"]))), [("b", 2), ("c", 3)]);
    }

    #[test]
    fn claims_beyond_the_last_id_get_none_and_are_told_of() {
        let mut allocator = Allocator::new(u16::MAX);
        let names: Vec<String> = (0..5000).map(|number| format!("r{number:04}")).collect();
        let all = Claims { ingress: names.iter().cloned().collect(), egress: BTreeSet::new() };
        let given = allocator.assign(&all);
        assert_eq!((given.ingress.len(), allocator.without(), allocator.limit()), (4094, 906, 4094));
        assert_eq!(given.bits(Direction::Ingress, "r4999"), None);
        assert_eq!(given.ingress.values().max(), Some(&ID_MAX));
    }

    #[test]
    fn a_table_gives_back_what_was_given_out_and_what_must_wait() {
        let element = |mark| Element::key([Value::Mark(mark)]);
        let set = |elements: BTreeMap<Element, Datum>| Set {
            kind: crate::ruleset::SetKind::CounterMap,
            key: vec![crate::ruleset::KeyType::Mark],
            interval: false,
            size: None,
            comment: String::new(),
            elements,
        };
        let counter = |name: &str| Datum::Counter(name.to_owned());
        let given = [(element(0), counter("none")), (element(3), counter("in")), (element(0x5000), counter("out"))];
        let wait = [(element(1), Datum::None), (element(0x1000), Datum::None)];
        let sets = [(COUNTERS.to_owned(), set(given.into())), (RETIRED.to_owned(), set(wait.into()))];
        let mut allocator = Allocator::new(5);
        allocator.restore(&Table { sets: sets.into(), ..Table::default() });
        let both = Claims { egress: ["new".to_owned(), "out".to_owned()].into(), ..claims(&["in", "new"]) };
        let now = allocator.assign(&both);
        assert_eq!(ids(&now), [("in", 3), ("new", 2)]);
        assert_eq!(now.egress, [("new".to_owned(), 2), ("out".to_owned(), 5)].into());
        assert_eq!(now.retired().collect::<Vec<_>>(), [1, 0x1000]);
    }
}
