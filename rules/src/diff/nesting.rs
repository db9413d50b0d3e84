//! Whether the kernel takes a table in which elements that will go still are.
//!
//! In: both tables and the elements that go late. Out: yes or no. What always holds: a chain that leads back to itself nests without end.

use std::collections::BTreeSet;

use super::difference::Differences;
use super::element::BySet;
use crate::ruleset::{Datum, Expr, Name, Table, Verdict};

/// Chains a packet can be in at once, the base chain included (NFT_JUMP_STACK_SIZE); jumps and gotos count alike.
const DEEPEST: usize = 16;

/// Whether the wanted table, with these elements of the current one, nests no deeper than the kernel takes.
pub fn fits(have: &Table, want: &Table, late: &BySet<'_>, differences: &Differences<'_, '_>) -> bool {
    let union = Union { have, want, late };
    union.late_targets().next().is_none() || union.is_as_before(differences) || union.depth_fits()
}

/// The wanted table, with elements of the current one that go late.
struct Union<'a> {
    have: &'a Table,
    want: &'a Table,
    late: &'a BySet<'a>,
}

impl<'a> Union<'a> {
    fn late_targets(&self) -> impl Iterator<Item = &'a str> {
        self.late.values().flat_map(|elements| elements.values()).filter_map(datum_target)
    }

    /// Whether the kernel has taken every way over a late element before: what changes neither leads to such a map nor comes
    /// behind such an element.
    fn is_as_before(&self, differences: &Differences<'_, '_>) -> bool {
        let chains = &differences.chains;
        let come = chains.come.iter().map(|(name, _)| name.as_ref());
        let new: BTreeSet<&str> = come.chain(chains.changed.iter().map(|(name, ..)| name.as_ref())).collect();
        let behind = self.reachable(self.late_targets().collect());
        let asks_late = |chain: &str| {
            let late = |map: &Name| self.late.get(map).is_some_and(|elements| elements.values().any(leads));
            self.exprs(chain).any(|expr| matches!(expr, Expr::Vmap { map, .. } if late(map)))
        };
        behind.is_disjoint(&new) && !self.reachable(new).into_iter().any(asks_late)
    }

    /// These chains and all they lead to.
    fn reachable<'b>(&self, from: BTreeSet<&'b str>) -> BTreeSet<&'b str>
    where
        'a: 'b,
    {
        let (mut found, mut open) = (from.clone(), Vec::from_iter(from));
        while let Some(chain) = open.pop() {
            open.extend(self.leads(chain).into_iter().filter(|next| found.insert(next)));
        }
        found
    }

    fn depth_fits(&self) -> bool {
        let bases = self.want.chains.iter().filter(|(_, chain)| chain.hook.is_some());
        let mut level: BTreeSet<&str> = bases.map(|(name, _)| name.as_ref()).collect();
        for _ in 0..DEEPEST {
            level = level.into_iter().flat_map(|chain| self.leads(chain)).collect();
        }
        level.is_empty()
    }

    fn exprs(&self, chain: &str) -> impl Iterator<Item = &'a Expr> {
        let chain = self.want.chains.get(chain).or_else(|| self.have.chains.get(chain));
        chain.into_iter().flat_map(|chain| &chain.rules).flat_map(|rule| &rule.exprs)
    }

    /// The chains that a chain leads to.
    fn leads(&self, chain: &str) -> BTreeSet<&'a str> {
        let mut found = BTreeSet::new();
        for expr in self.exprs(chain) {
            match expr {
                Expr::Verdict(verdict) => found.extend(target(verdict)),
                Expr::Vmap { map, .. } => found.extend(self.targets(map)),
                _ => {}
            }
        }
        found
    }

    /// The chains that the elements of a map lead to.
    fn targets(&self, map: &Name) -> impl Iterator<Item = &'a str> {
        let current = self.want.sets.get(map).or_else(|| self.have.sets.get(map));
        let current = current.into_iter().flat_map(|set| set.elements.data());
        let late = self.late.get(map).into_iter().flat_map(|elements| elements.values());
        current.chain(late).filter_map(datum_target)
    }
}

fn leads(datum: &Datum) -> bool {
    datum_target(datum).is_some()
}

fn datum_target(datum: &Datum) -> Option<&str> {
    match datum {
        Datum::Verdict(verdict) => target(verdict),
        Datum::None | Datum::Counter(_) => None,
    }
}

/// The chain a verdict leads to.
fn target(verdict: &Verdict) -> Option<&str> {
    match verdict {
        Verdict::Jump(chain) | Verdict::Goto(chain) => Some(chain),
        Verdict::Accept | Verdict::Drop | Verdict::Return => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::ruleset::{BaseHook, Chain, Element, Hook, Rule, Value};

    /// A base chain that jumps to the first of a row of chains, each of which jumps to the next.
    fn row(length: usize) -> Table {
        let jump = |to: usize| Expr::Verdict(Verdict::Jump(format!("c{to}").into()));
        let chain = |number: usize| Chain {
            hook: (number == 0).then_some(BaseHook { hook: Hook::Forward, priority: 0 }),
            comment: String::new(),
            rules: vec![Rule { exprs: vec![jump(number + 1)], comment: String::new() }],
        };
        let chains = (0..length).map(|number| (Name::from(format!("c{number}")), Arc::new(chain(number))));
        let last = (Name::from(format!("c{length}")), Arc::default());
        Table { chains: chains.chain([last]).collect(), ..Table::default() }
    }

    #[test]
    fn jumps_of_rules_count() {
        let (name, key) = (Name::from("map"), Element::key([Value::Mark(1)]));
        let late = |datum| BTreeMap::from([(&name, BTreeMap::from([(key.clone(), datum)]))]);
        let verdict = late(Datum::Verdict(Verdict::Jump("c1".into())));
        let fits = |want: &Table, late: &BySet<'_>| {
            let have = Table::default();
            super::fits(&have, want, late, &Differences::between(&have, want))
        };
        assert!(fits(&row(DEEPEST - 1), &verdict));
        assert!(!fits(&row(DEEPEST), &verdict));
        let nothing = late(Datum::None);
        assert!(fits(&row(DEEPEST), &nothing), "the kernel has taken these jumps before");
    }
}
