//! Who counts under which id in ct mark.
//!
//! In: the counters that want an id, for each half of a connection ([`Claims`]); what a table of the kernel remembers. Out:
//! [`Ids`]. What always holds: whoever has an id keeps it for as long as they claim it; an id that nobody claims any more goes
//! to nobody else before [`Allocator::release`], for running flows may still carry it, and comes back to its own as long as nobody else
//! got it; where none is left, a claim gets none and counts as not attributed.

use std::collections::{BTreeMap, BTreeSet};

use imbl::ordset::DiffItem;
use imbl::{OrdMap, OrdSet};

use crate::effective::{Effective, RuleIdentity};
use crate::mark::{ID_MAX, NO_ID, id_bits, id_of};
use crate::names;
use crate::object::ObjectName;
use crate::policy::{Action, Direction};
use crate::ruleset::{Datum, Element, Name, Set, Table, Value};

/// The set of the inet table whose elements count packets, by id.
pub const COUNTERS: &str = "traffic";

/// The map of layout 2 from ids to named counters of packets.
const COUNTERS_BEFORE: &str = "counters";

/// The set of the inet table whose elements count connections, by id.
pub const CONNECTIONS: &str = "connections";

/// The sets whose elements count.
pub const COUNTING: [&str; 2] = [COUNTERS, CONNECTIONS];

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

/// The names of what an origin has in a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginNames {
    /// The counter of its packets, which is what an id is given to.
    pub counter: Name,
    /// The counter of its connections.
    pub connections: Name,
    /// The chain that writes its id.
    pub chain: Name,
}

impl Origin<'_> {
    /// The names of what it has in a table.
    pub fn names(self, half: Direction) -> OriginNames {
        let (kind, identity, human) = match self {
            Self::Rule(identity) => ("rule".to_owned(), identity.text(), identity.policy.to_string()),
            Self::Default(pod) => (format!("default-{half}"), pod.to_string(), pod.to_string()),
        };
        let hash = names::hash(&identity);
        let name = |prefix: &str| names::hashed(&format!("{prefix}{kind}"), &hash, &human);
        OriginNames { counter: name(""), connections: name("connections-"), chain: name("allow-") }
    }
}

/// The counters that want an id, by half.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    ingress: OrdSet<Name>,
    egress: OrdSet<Name>,
}

impl Claims {
    /// Those of a node's policy: every rule that accepts, and every pod.
    pub fn of(effective: &Effective) -> Self {
        Self { ingress: claims(effective, Direction::Ingress), egress: claims(effective, Direction::Egress) }
    }

    /// A counter wants an id.
    pub fn insert(&mut self, half: Direction, counter: Name) {
        self.of_half(half).insert(counter);
    }

    /// A counter wants none any more.
    pub fn remove(&mut self, half: Direction, counter: &Name) {
        self.of_half(half).remove(counter);
    }

    fn of_half(&mut self, half: Direction) -> &mut OrdSet<Name> {
        match half {
            Direction::Ingress => &mut self.ingress,
            Direction::Egress => &mut self.egress,
        }
    }
}

fn claims(effective: &Effective, half: Direction) -> OrdSet<Name> {
    let rules = effective.pods().values().flat_map(|pod| &pod.isolation(half).rules);
    let rules = rules.filter(|rule| rule.action == Action::Accept).map(|rule| Origin::Rule(&rule.identity));
    let origins: BTreeSet<Origin<'_>> =
        rules.chain(effective.pods().values().map(|pod| Origin::Default(&pod.name))).collect();
    origins.into_iter().map(|origin| origin.names(half).counter).collect()
}

/// Ids that are given out, and those that must not be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    ingress: HalfIds,
    egress: HalfIds,
}

/// Those of one half.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HalfIds {
    /// By counter.
    pub given: OrdMap<Name, u16>,
    /// Those that must not be given out yet.
    pub retired: OrdSet<u16>,
}

impl Ids {
    /// Those of a policy that nothing else was counted for before.
    pub fn fresh(effective: &Effective) -> Self {
        Allocator::new(ID_MAX).assign(&Claims::of(effective))
    }

    /// Those of one half.
    pub fn of(&self, half: Direction) -> &HalfIds {
        match half {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }

    /// The id of a counter, in its place in the mark.
    pub fn bits(&self, half: Direction, counter: &Name) -> Option<u32> {
        self.of(half).given.get(counter).map(|id| id_bits(half, *id))
    }

    /// What the rules write for one that let a half through.
    pub fn written(&self, half: Direction, origin: Origin<'_>) -> u32 {
        self.bits(half, &origin.names(half).counter).unwrap_or_else(|| id_bits(half, NO_ID))
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
    /// What was claimed last.
    claims: OrdSet<Name>,
    ids: HalfIds,
    /// Whose the retired ids were, where that is known, and the free ones: nobody else had them since.
    before: BTreeMap<Name, u16>,
    /// The same by id.
    whose: BTreeMap<u16, Name>,
    /// Claims that have none.
    without: BTreeSet<Name>,
    /// Ids that are not free.
    taken: BTreeSet<u16>,
    /// The one that was given out last: the next one is looked for behind it.
    last: u16,
}

impl Allocator {
    /// Gives out the ids from 1 to `limit`, at most [`ID_MAX`], of each half.
    pub fn new(limit: u16) -> Self {
        Self { limit: limit.min(ID_MAX), ingress: Space::default(), egress: Space::default() }
    }

    /// Takes in what the tables of an earlier life of the daemon remember, of layout 2 too.
    pub fn restore(&mut self, table: &Table) {
        let sets = [COUNTERS, COUNTERS_BEFORE].into_iter().filter_map(|name| table.sets.get(name));
        for (mark, datum) in sets.flat_map(|set| marks(set)) {
            let Datum::Counter(name) = datum else { continue };
            if let Some((space, id)) = self.place(mark) {
                space.restore(name, id);
            }
        }
        for (mark, _) in table.sets.get(RETIRED).into_iter().flat_map(|set| marks(set)) {
            // One whose counter is kept waits as its own: it is retired again where nobody claims it.
            if let Some((space, id)) = self.place(mark)
                && space.taken.insert(id)
            {
                space.ids.retired.insert(id);
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
        Ids { ingress: self.ingress.ids.clone(), egress: self.egress.ids.clone() }
    }

    /// Ids that were not claimed in the last [`Self::assign`] may be given out again: rules that do not know them are in
    /// force, and every flow was marked anew since.
    pub fn release(&mut self) {
        self.ingress.release();
        self.egress.release();
    }

    /// How many ids of a half are not free.
    pub fn used(&self, half: Direction) -> usize {
        match half {
            Direction::Ingress => self.ingress.taken.len(),
            Direction::Egress => self.egress.taken.len(),
        }
    }

    /// How many there are of each half.
    pub fn limit(&self) -> usize {
        usize::from(self.limit)
    }

    /// Whether a claim got none and would get one now.
    pub fn could_give(&self) -> bool {
        let spaces = [&self.ingress, &self.egress];
        spaces.into_iter().any(|space| !space.without.is_empty() && space.is_free(self.limit))
    }

    /// How many claims got none.
    pub fn without(&self) -> usize {
        self.ingress.without.len() + self.egress.without.len()
    }
}

impl Space {
    fn assign(&mut self, claims: &OrdSet<Name>, limit: u16) {
        let before = std::mem::replace(&mut self.claims, claims.clone());
        for item in before.diff(claims) {
            match item {
                DiffItem::Add(name) => self.claim(name),
                DiffItem::Remove(name) => self.retire(name),
            }
        }
        self.give(limit);
    }

    /// Takes in whose an id was in an earlier life. Who died while a counter moved left it at two: what flows carry of the other
    /// one is not known.
    fn restore(&mut self, name: Name, id: u16) {
        self.taken.insert(id);
        self.claims.insert(name.clone());
        self.ids.retired.extend(self.ids.given.insert(name, id));
    }

    /// Whoever comes back finds flows that still carry the id, or none: they were counted for nobody else.
    fn claim(&mut self, name: &Name) {
        match self.before.remove(name) {
            Some(id) => {
                self.whose.remove(&id);
                self.taken.insert(id);
                self.ids.retired.remove(&id);
                self.ids.given.insert(name.clone(), id);
            }
            None => {
                self.without.insert(name.clone());
            }
        }
    }

    fn retire(&mut self, name: &Name) {
        self.without.remove(name);
        if let Some(id) = self.ids.given.remove(name) {
            self.ids.retired.insert(id);
            self.before.insert(name.clone(), id);
            self.whose.insert(id, name.clone());
        }
    }

    fn give(&mut self, limit: u16) {
        while self.is_free(limit)
            && let Some(name) = self.without.pop_first()
        {
            let start = self.last.min(limit);
            let free = (start + 1..=limit).chain(1..=start).find(|id| !self.taken.contains(id));
            self.last = free.unwrap_or(self.last);
            if let Some(other) = free.and_then(|id| self.whose.remove(&id)) {
                self.before.remove(&other);
            }
            self.taken.extend(free);
            self.ids.given.extend(free.map(|id| (name, id)));
        }
    }

    fn release(&mut self) {
        for id in std::mem::take(&mut self.ids.retired) {
            self.taken.remove(&id);
        }
    }

    fn is_free(&self, limit: u16) -> bool {
        self.taken.len() < usize::from(limit)
    }
}

/// The elements of a set of marks.
fn marks(set: &Set) -> impl Iterator<Item = (u32, Datum)> {
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
    use std::sync::Arc;

    use super::*;
    use crate::ruleset::{KeyType, SetKind};

    fn claims(names: &[&str]) -> Claims {
        let ingress = names.iter().map(|name| Name::from(*name)).collect();
        Claims { ingress, egress: OrdSet::new() }
    }

    fn ids(ids: &Ids) -> Vec<(&str, u16)> {
        ids.ingress.given.iter().map(|(name, id)| (name.as_ref(), *id)).collect()
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
        assert!(now.ingress.retired.iter().eq([&1]));
        assert_eq!(allocator.used(Direction::Ingress), 2);
        assert!(!allocator.could_give());
        allocator.release();
        assert!(allocator.could_give());
        let now = allocator.assign(&claims(&["b", "c"]));
        assert_eq!((ids(&now), allocator.without()), (vec![("b", 2), ("c", 1)], 0));
        assert!(now.ingress.retired.is_empty());
    }

    #[test]
    fn who_comes_back_in_time_has_the_id_again() {
        let mut allocator = Allocator::new(5);
        allocator.assign(&claims(&["a", "b"]));
        allocator.assign(&claims(&[]));
        assert_eq!(ids(&allocator.assign(&claims(&["b", "c"]))), [("b", 2), ("c", 3)]);
    }

    #[test]
    fn a_free_id_goes_to_its_own_again_until_another_has_it() {
        let mut allocator = Allocator::new(3);
        allocator.assign(&claims(&["a", "b"]));
        allocator.assign(&claims(&["b"]));
        allocator.release();
        assert_eq!(ids(&allocator.assign(&claims(&["a", "b"]))), [("a", 1), ("b", 2)], "nobody had it since");
        allocator.assign(&claims(&["b"]));
        allocator.release();
        assert_eq!(ids(&allocator.assign(&claims(&["b", "c", "d"]))), [("b", 2), ("c", 3), ("d", 1)]);
        let now = allocator.assign(&claims(&["a", "b", "c", "d"]));
        assert_eq!((ids(&now), allocator.without()), (vec![("b", 2), ("c", 3), ("d", 1)], 1));
    }

    /// What waits when the daemon dies has its counter still.
    #[test]
    fn an_id_that_waits_and_is_claimed_again_after_a_restart_is_not_free() {
        let element = |mark| Element::key([Value::Mark(mark)]);
        let set = |kind, elements| Arc::new(Set { elements, ..Set::of(kind, vec![KeyType::Mark]) });
        let counting = set(SetKind::Counters, [(element(1), Datum::Counter("a".into()))].into());
        let waiting = set(SetKind::Set, [(element(1), Datum::None)].into());
        let sets = [(Name::from(COUNTERS), counting), (Name::from(RETIRED), waiting)];
        let mut allocator = Allocator::new(1);
        allocator.restore(&Table { sets: sets.into_iter().collect(), ..Table::default() });
        allocator.assign(&claims(&["a"]));
        allocator.release();
        assert_eq!(ids(&allocator.assign(&claims(&["a", "b"]))), [("a", 1)]);
    }

    #[test]
    fn claims_beyond_the_last_id_get_none_and_are_told_of() {
        let mut allocator = Allocator::new(u16::MAX);
        let names = (0..5000).map(|number| Name::from(format!("r{number:04}")));
        let all = Claims { ingress: names.collect(), egress: OrdSet::new() };
        let given = allocator.assign(&all);
        assert_eq!((given.ingress.given.len(), allocator.without(), allocator.limit()), (4094, 906, 4094));
        assert_eq!(given.bits(Direction::Ingress, &"r4999".into()), None);
        assert_eq!(given.ingress.given.values().max(), Some(&ID_MAX));
    }

    #[test]
    fn a_table_gives_back_what_was_given_out_and_what_must_wait() {
        let element = |mark| Element::key([Value::Mark(mark)]);
        let set = |elements| Arc::new(Set { elements, ..Set::of(SetKind::Counters, vec![KeyType::Mark]) });
        let counter = |name: &str| Datum::Counter(name.into());
        let given = [(element(0), counter("none")), (element(3), counter("in")), (element(0x5000), counter("out"))];
        let wait = [(element(1), Datum::None), (element(0x1000), Datum::None)];
        let sets = [(Name::from(COUNTERS), set(given.into())), (Name::from(RETIRED), set(wait.into()))];
        let mut allocator = Allocator::new(5);
        allocator.restore(&Table { sets: sets.into_iter().collect(), ..Table::default() });
        let both = Claims { egress: claims(&["new", "out"]).ingress, ..claims(&["in", "new"]) };
        let now = allocator.assign(&both);
        assert_eq!(ids(&now), [("in", 3), ("new", 2)]);
        assert_eq!(ids(&Ids { ingress: now.egress.clone(), ..Ids::default() }), [("new", 2), ("out", 5)]);
        assert!(now.ingress.retired.iter().eq([&1]) && now.egress.retired.iter().eq([&1]));
    }
}
