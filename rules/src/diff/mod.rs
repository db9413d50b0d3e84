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

mod difference;
mod element;
mod held;
mod nesting;
mod tighten;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ruleset::{Chain, CounterValue, Name, Op, OpKind, Ruleset, Set, SetKind, Table, TableId};
use difference::Differences;
pub use held::Held;

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
    pub result: Held,
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

/// The change from what the kernel has to what it shall have, without a new generation.
pub fn diff(have: &Held, want: Ruleset) -> Change {
    let mut change = Change { result: have.clone(), ..Change::default() };
    let nothing = Table::default();
    for (id, wanted) in &want.tables {
        let current = have.ruleset().tables.get(id);
        let differences = Differences::between(current.unwrap_or(&nothing), wanted);
        change.result.follow(id, wanted, &differences);
        let Some(current) = current else {
            change.tightens |= tighten::new_table(id, wanted);
            Planner { id, change: &mut change }.whole(wanted);
            continue;
        };
        if !differences.keep_properties() {
            change.tightens = true;
            Planner { id, change: &mut change }.anew(wanted);
        } else if !differences.is_empty() {
            change.tightens |= tighten::Tables { id, have, want: &change.result }.tighten(&differences);
            Planner { id, change: &mut change }.contents(current, wanted, &differences);
        }
    }
    for id in have.ruleset().tables.keys().filter(|id| !want.tables.contains_key(*id)) {
        Planner { id, change: &mut change }.push(Step::Clean, [OpKind::DeleteTable]);
        change.result.forget(id);
    }
    change
}

/// The change from what the kernel has to what it shall have; where it tightens, its last step goes on to the `bumped` rules: those of
/// the next generation, which differ from the wanted ones in rules and elements only.
pub fn plan(have: &Held, want: Ruleset, bumped: impl FnOnce() -> Ruleset) -> Change {
    let mut change = diff(have, want);
    if change.tightens {
        bump(&mut change, &bumped());
    }
    change
}

/// Brings the rules and elements of the next generation where they differ, at the end of the last step.
fn bump(change: &mut Change, bumped: &Ruleset) {
    let wanted = change.result.ruleset().clone();
    for (id, table) in &wanted.tables {
        let Some(next) = bumped.tables.get(id) else { continue };
        let differences = Differences::between(table, next);
        let elements = element::Changes::between(table, next, &differences, |_| false);
        change.result.follow(id, next, &differences);
        let mut planner = Planner { id, change };
        for gone in [&elements.early, &elements.late] {
            planner.push(Step::Clean, element::deleted(gone));
        }
        planner.push(Step::Clean, element::added(&elements.added));
        for (name, _, chain) in &differences.chains.changed {
            planner.push(Step::Clean, replaced_rules(name, chain));
        }
    }
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
    /// Another table in the place of one.
    fn anew(&mut self, want: &Table) {
        self.push(Step::Switch, [OpKind::DeleteTable]);
        self.whole(want);
    }

    /// A new table with all that is in it.
    fn whole(&mut self, want: &Table) {
        self.push(Step::Switch, [OpKind::AddTable]);
        let nothing = Table::default();
        self.objects(Step::Switch, &Differences::between(&nothing, want));
        let base = want.chains.iter().filter(|(_, chain)| chain.hook.is_some());
        self.push(Step::Switch, base.flat_map(|(name, chain)| new_chain(name, chain)));
    }

    /// A table that stays.
    fn contents(&mut self, have: &Table, want: &Table, differences: &Differences<'_, '_>) {
        self.objects(Step::Make, differences);
        let (result, id) = (&self.change.result, self.id);
        let elements =
            element::Changes::between(have, want, differences, |set| held::spares(result.asking(id, set), set));
        self.rules(differences);
        self.push(Step::Switch, element::deleted(&elements.early));
        self.push(Step::Switch, element::added(&elements.added));
        self.remove(differences, &elements.late);
    }

    /// What comes: counters, sets and chains, then what refers to them; base chains come with the rules.
    fn objects(&mut self, step: Step, differences: &Differences<'_, '_>) {
        let Differences { chains, sets, counters } = differences;
        let chains: Vec<_> = chains.come.iter().filter(|(_, chain)| chain.hook.is_none()).collect();
        let counters = counters.come.iter().map(|(name, counter)| OpKind::AddCounter {
            name: Name::clone(name),
            comment: counter.comment.clone(),
            start: CounterValue::default(),
        });
        self.push(step, counters);
        let mut by_use: Vec<_> = sets.come.iter().collect();
        // The kernel looks for a set in the order they were made, once for each rule that asks one.
        by_use.sort_by_cached_key(|(name, _)| Reverse(self.change.result.asking(self.id, name).count()));
        self.push(step, by_use.into_iter().map(|(name, set)| new_set(name, set)));
        self.push(step, chains.iter().map(|(name, chain)| add_chain(name, chain)));
        self.push(step, chains.iter().flat_map(|(name, chain)| rules_of(name, chain)));
        self.push(step, sets.come.iter().flat_map(|(name, set)| element::all(name, set)));
    }

    /// The rules of chains that packets may be in: changed ones, new base chains, base chains that go.
    fn rules(&mut self, differences: &Differences<'_, '_>) {
        let chains = &differences.chains;
        for (name, current, chain) in &chains.changed {
            if current.rules != chain.rules {
                self.push(Step::Switch, replaced_rules(name, chain));
            }
        }
        let is_base = |chain: &Arc<Chain>| chain.hook.is_some();
        for (name, chain) in chains.come.iter().filter(|(_, chain)| is_base(chain)) {
            self.push(Step::Switch, new_chain(name, chain));
        }
        let gone = chains.gone.iter().filter(|(_, chain)| is_base(chain));
        self.push(Step::Switch, gone.map(|(name, _)| OpKind::FlushChain(Name::clone(name))));
    }

    /// What goes: first all that refers to something, then what was referred to.
    fn remove(&mut self, differences: &Differences<'_, '_>, elements: &element::BySet<'_>) {
        let Differences { chains, sets, counters } = differences;
        self.push(Step::Clean, element::deleted(elements));
        self.push(Step::Clean, chains.gone.iter().map(|(name, _)| OpKind::FlushChain(Name::clone(name))));
        // Older kernels let go of what a map's elements lead to only after the commit that deletes the map.
        let maps: BTreeMap<&Name, _> = sets
            .gone
            .iter()
            .filter(|(_, set)| set.kind == SetKind::VerdictMap)
            .map(|(name, set)| (*name, set.elements.iter().collect()))
            .collect();
        self.push(Step::Clean, element::deleted(&maps));
        self.push(Step::Clean, chains.gone.iter().map(|(name, _)| OpKind::DeleteChain(Name::clone(name))));
        self.push(Step::Clean, sets.gone.iter().map(|(name, _)| OpKind::DeleteSet(Name::clone(name))));
        self.push(Step::Clean, counters.gone.iter().map(|(name, _)| OpKind::DeleteCounter(Name::clone(name))));
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

/// The addition of a chain without rules.
fn add_chain(name: &Name, chain: &Chain) -> OpKind {
    OpKind::AddChain { name: name.clone(), hook: chain.hook, comment: chain.comment.clone() }
}

/// The addition of a set without elements.
fn new_set(name: &Name, set: &Set) -> OpKind {
    OpKind::AddSet { name: name.clone(), set: set.emptied() }
}

/// The rules of a chain, in order.
fn rules_of<'a>(name: &'a Name, chain: &'a Chain) -> impl Iterator<Item = OpKind> + 'a {
    chain.rules.iter().map(move |rule| OpKind::AddRule { chain: name.clone(), rule: rule.clone() })
}

/// A chain with its rules.
fn new_chain<'a>(name: &'a Name, chain: &'a Chain) -> impl Iterator<Item = OpKind> + 'a {
    std::iter::once(add_chain(name, chain)).chain(rules_of(name, chain))
}

/// Other rules for a chain that exists.
fn replaced_rules<'a>(name: &'a Name, chain: &'a Chain) -> impl Iterator<Item = OpKind> + 'a {
    std::iter::once(OpKind::FlushChain(name.clone())).chain(rules_of(name, chain))
}
