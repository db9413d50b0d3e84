//! What leads from the tables the kernel has to those it shall have.
//!
//! In: two rulesets, and the second one with its generation bumped. Out: [`Change`]: three transactions. What always holds:
//! - make adds only what nothing leads to: no packet's verdict changes;
//! - switch changes what packets see, in one transaction; no chain becomes reachable in the transaction that fills
//!   it, except in a table that packets did not enter before (a packet in flight would find the chain empty);
//! - clean takes away what nothing needs any more, and brings the bumped rules;
//! - each transaction can be applied by the kernel after those before it, and the last one ends at [`Change::result`].
//!
//! What can be said only when an object is created (comments, hooks, types of sets) and differs under one name makes the
//! whole table go and come again inside the switch: it is complete, but packets in flight may pass unjudged. The compiler
//! gives such objects new names instead.

mod element;
mod nesting;
mod tighten;

use std::collections::BTreeMap;

use crate::ruleset::{Chain, CounterValue, Datum, Element, Op, OpKind, Ruleset, Set, SetKind, Table, TableId};

/// A change of the kernel's tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Adds chains, sets and counters that nothing leads to yet.
    pub make: Vec<Op>,
    /// One transaction: rules, added elements, moved elements; new tables.
    pub switch: Vec<Op>,
    /// Removes elements and what nothing leads to any more; brings the bumped rules.
    pub clean: Vec<Op>,
    /// Whether a flow that was allowed might be denied now, so that it has to be judged again.
    pub tightens: bool,
    /// What the kernel has after all three.
    pub result: Ruleset,
}

impl Change {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.steps().next().is_none()
    }

    /// The transactions that have something to do, in order.
    pub fn steps(&self) -> impl Iterator<Item = &[Op]> {
        [&self.make, &self.switch, &self.clean].into_iter().map(Vec::as_slice).filter(|step| !step.is_empty())
    }
}

/// The change from one ruleset to another, without a new generation.
pub fn diff(have: &Ruleset, want: &Ruleset) -> Change {
    plan(have, want, || want.clone())
}

/// The change from one ruleset to another; where it tightens, its last step goes on to the `bumped` rules: those of
/// the next generation, which differ from the wanted ones in rules and elements only.
pub fn plan(have: &Ruleset, want: &Ruleset, bumped: impl FnOnce() -> Ruleset) -> Change {
    let mut change = Change { result: want.clone(), ..Change::default() };
    for (id, wanted) in &want.tables {
        change.tightens |= have.tables.get(id).map_or_else(
            || tighten::new_table(id, wanted),
            |current| current != wanted && (!same_properties(current, wanted) || tighten::table(id, current, wanted)),
        );
        Planner { id, change: &mut change }.table(have.tables.get(id), wanted);
    }
    for id in have.tables.keys().filter(|id| !want.tables.contains_key(*id)) {
        Planner { id, change: &mut change }.clean(OpKind::DeleteTable);
    }
    if change.tightens {
        bump(&mut change, &bumped());
    }
    change
}

/// Brings the rules and elements of the next generation where they differ, at the end of the last step.
fn bump(change: &mut Change, bumped: &Ruleset) {
    let mut result = std::mem::take(&mut change.result);
    for (id, table) in &mut result.tables {
        let Some(next) = bumped.tables.get(id) else { continue };
        let elements = element::Changes::between(table, next);
        let mut planner = Planner { id, change };
        for gone in [&elements.early, &elements.late] {
            planner.push(Step::Clean, element::deleted(gone));
        }
        planner.push(Step::Clean, element::added(&elements.added));
        for (name, set) in &mut table.sets {
            if let Some(next) = next.sets.get(name) {
                set.elements.clone_from(&next.elements);
            }
        }
        for (name, chain) in &mut table.chains {
            let Some(rules) = next.chains.get(name).map(|chain| &chain.rules) else { continue };
            if chain.rules != *rules {
                chain.rules.clone_from(rules);
                Planner { id, change }.push(Step::Clean, replaced_rules(name, chain));
            }
        }
    }
    change.result = result;
}

/// The three transactions.
#[derive(Clone, Copy)]
enum Step {
    /// Adds what nothing leads to.
    Make,
    /// Changes what packets see.
    Switch,
    /// Removes what is left over.
    Clean,
}

/// Puts operations on one table into a change.
struct Planner<'a> {
    /// The table.
    id: &'a TableId,
    /// Where they go.
    change: &'a mut Change,
}

impl Planner<'_> {
    /// A wanted table and what stands in its place.
    fn table(&mut self, have: Option<&Table>, want: &Table) {
        match have {
            None => self.whole(want),
            Some(have) if same_properties(have, want) => self.contents(have, want),
            Some(_) => {
                self.switch(OpKind::DeleteTable);
                self.whole(want);
            }
        }
    }

    /// A new table with all that is in it.
    fn whole(&mut self, want: &Table) {
        self.switch(OpKind::AddTable);
        self.objects(Step::Switch, &Table::default(), want);
        let base = want.chains.iter().filter(|(_, chain)| chain.hook.is_some());
        self.push(Step::Switch, base.flat_map(|(name, chain)| new_chain(name, chain)));
    }

    /// A table that stays.
    fn contents(&mut self, have: &Table, want: &Table) {
        self.objects(Step::Make, have, want);
        let elements = element::Changes::between(have, want);
        self.rules(have, want);
        self.push(Step::Switch, element::deleted(&elements.early));
        self.push(Step::Switch, element::added(&elements.added));
        self.remove(have, want, &elements.late);
    }

    /// What only `want` has: counters, sets and chains, then what refers to them; base chains come with the rules.
    fn objects(&mut self, step: Step, have: &Table, want: &Table) {
        let chains: Vec<_> = only_in(&want.chains, &have.chains).filter(|(_, chain)| chain.hook.is_none()).collect();
        let counters = only_in(&want.counters, &have.counters).map(|(name, counter)| OpKind::AddCounter {
            name: name.clone(),
            comment: counter.comment.clone(),
            start: CounterValue::default(),
        });
        self.push(step, counters);
        self.push(step, only_in(&want.sets, &have.sets).map(|(name, set)| new_set(name, set)));
        self.push(step, chains.iter().map(|(name, chain)| add_chain(name, chain)));
        self.push(step, chains.iter().flat_map(|(name, chain)| rules_of(name, chain)));
        let elements = only_in(&want.sets, &have.sets).map(|(name, set)| (name, set.elements.clone())).collect();
        self.push(step, element::added(&elements));
    }

    /// The rules of chains that packets may be in: changed ones, new base chains, base chains that go.
    fn rules(&mut self, have: &Table, want: &Table) {
        for (name, chain) in &want.chains {
            match have.chains.get(name) {
                Some(current) if current.rules != chain.rules => self.push(Step::Switch, replaced_rules(name, chain)),
                None if chain.hook.is_some() => self.push(Step::Switch, new_chain(name, chain)),
                Some(_) | None => {}
            }
        }
        let gone = only_in(&have.chains, &want.chains).filter(|(_, chain)| chain.hook.is_some());
        self.push(Step::Switch, gone.map(|(name, _)| OpKind::FlushChain(name.clone())));
    }

    /// What only `have` has: first all that refers to something, then what was referred to.
    fn remove(&mut self, have: &Table, want: &Table, elements: &element::BySet<'_>) {
        let chains: Vec<&String> = only_in(&have.chains, &want.chains).map(|(name, _)| name).collect();
        // Older kernels let go of what a map's elements lead to only after the commit that deletes the map.
        let maps = only_in(&have.sets, &want.sets)
            .filter(|(_, set)| set.kind != SetKind::Set)
            .map(|(name, set)| (name, set.elements.clone()))
            .collect();
        self.push(Step::Clean, element::deleted(elements));
        self.push(Step::Clean, chains.iter().map(|name| OpKind::FlushChain((*name).clone())));
        self.push(Step::Clean, element::deleted(&maps));
        self.push(Step::Clean, chains.iter().map(|name| OpKind::DeleteChain((*name).clone())));
        self.push(Step::Clean, only_in(&have.sets, &want.sets).map(|(name, _)| OpKind::DeleteSet(name.clone())));
        let counters = only_in(&have.counters, &want.counters);
        self.push(Step::Clean, counters.map(|(name, _)| OpKind::DeleteCounter(name.clone())));
    }

    /// One operation of the switch.
    fn switch(&mut self, kind: OpKind) {
        self.push(Step::Switch, [kind]);
    }

    /// One operation of the last step.
    fn clean(&mut self, kind: OpKind) {
        self.push(Step::Clean, [kind]);
    }

    /// Operations at the end of a step.
    fn push(&mut self, step: Step, kinds: impl IntoIterator<Item = OpKind>) {
        let ops = match step {
            Step::Make => &mut self.change.make,
            Step::Switch => &mut self.change.switch,
            Step::Clean => &mut self.change.clean,
        };
        ops.extend(kinds.into_iter().map(|kind| Op { table: self.id.clone(), kind }));
    }
}

/// Whether what both have agrees in all that can be said only at creation.
fn same_properties(have: &Table, want: &Table) -> bool {
    let chains = in_both(&have.chains, &want.chains).all(|(a, b)| a.hook == b.hook && a.comment == b.comment);
    let sets = in_both(&have.sets, &want.sets).all(|(a, b)| {
        let set = |set: &Set| (set.kind, set.key.clone(), set.interval, set.size, set.comment.clone());
        set(a) == set(b)
    });
    chains && sets && in_both(&have.counters, &want.counters).all(|(a, b)| a == b)
}

/// The entries whose key the other map does not have.
fn only_in<'a, V>(
    map: &'a BTreeMap<String, V>,
    other: &'a BTreeMap<String, V>,
) -> impl Iterator<Item = (&'a String, &'a V)> {
    map.iter().filter(|(name, _)| !other.contains_key(*name))
}

/// Both values of the keys both maps have.
fn in_both<'a, V>(
    map: &'a BTreeMap<String, V>,
    other: &'a BTreeMap<String, V>,
) -> impl Iterator<Item = (&'a V, &'a V)> {
    map.iter().filter_map(|(name, value)| other.get(name).map(|other| (value, other)))
}

/// The addition of a chain without rules.
fn add_chain(name: &str, chain: &Chain) -> OpKind {
    OpKind::AddChain { name: name.to_string(), hook: chain.hook, comment: chain.comment.clone() }
}

/// The addition of a set without elements.
fn new_set(name: &str, set: &Set) -> OpKind {
    OpKind::AddSet { name: name.to_string(), set: Set { elements: BTreeMap::new(), ..set.clone() } }
}

/// The rules of a chain, in order.
fn rules_of<'a>(name: &'a str, chain: &'a Chain) -> impl Iterator<Item = OpKind> + 'a {
    chain.rules.iter().map(move |rule| OpKind::AddRule { chain: name.to_string(), rule: rule.clone() })
}

/// A chain with its rules.
fn new_chain<'a>(name: &'a str, chain: &'a Chain) -> impl Iterator<Item = OpKind> + 'a {
    std::iter::once(add_chain(name, chain)).chain(rules_of(name, chain))
}

/// Other rules for a chain that exists.
fn replaced_rules<'a>(name: &'a str, chain: &'a Chain) -> impl Iterator<Item = OpKind> + 'a {
    std::iter::once(OpKind::FlushChain(name.to_string())).chain(rules_of(name, chain))
}

/// Elements with what they lead to.
type Elements = BTreeMap<Element, Datum>;
