//! Whether the kernel takes a table in which elements that will go still are.
//!
//! In: both tables and the elements that go late. Out: yes or no. What always holds: a chain that leads back to itself nests without end.

use std::collections::BTreeSet;

use super::element::BySet;
use crate::ruleset::{Datum, Expr, Table, Verdict};

/// Chains a packet can be in at once, the base chain included (NFT_JUMP_STACK_SIZE); jumps and gotos count alike.
const DEEPEST: usize = 16;

/// Whether the wanted table, with these elements of the current one, nests no deeper than the kernel takes.
pub fn fits(have: &Table, want: &Table, late: &BySet<'_>) -> bool {
    if late.values().flat_map(|elements| elements.values()).all(|datum| !matches!(datum, Datum::Verdict(_))) {
        return true;
    }
    let leads = |name| {
        let chain = want.chains.get(name).or_else(|| have.chains.get(name));
        chain.into_iter().flat_map(|chain| &chain.rules).flat_map(|rule| &rule.exprs).flat_map(|expr| match expr {
            Expr::Verdict(verdict) => target(verdict).into_iter().collect(),
            Expr::Vmap { map, .. } => targets(have, want, late, map),
            _ => BTreeSet::new(),
        })
    };
    let mut level: BTreeSet<&str> =
        want.chains.iter().filter(|(_, chain)| chain.hook.is_some()).map(|(name, _)| name.as_str()).collect();
    for _ in 0..DEEPEST {
        level = level.into_iter().flat_map(leads).collect();
    }
    level.is_empty()
}

/// The chains that the elements of a map lead to.
fn targets<'a>(have: &'a Table, want: &'a Table, late: &'a BySet<'_>, map: &'a String) -> BTreeSet<&'a str> {
    let current = want.sets.get(map).or_else(|| have.sets.get(map)).map(|set| &set.elements);
    current
        .into_iter()
        .chain(late.get(map))
        .flat_map(|elements| elements.values())
        .filter_map(|datum| match datum {
            Datum::Verdict(verdict) => target(verdict),
            Datum::None | Datum::Counter(_) => None,
        })
        .collect()
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

    use super::*;
    use crate::ruleset::{BaseHook, Chain, Element, Hook, Rule, Value};

    /// A base chain that jumps to the first of a row of chains, each of which jumps to the next.
    fn row(length: usize) -> Table {
        let jump = |to: usize| Expr::Verdict(Verdict::Jump(format!("c{to}")));
        let chain = |number: usize| Chain {
            hook: (number == 0).then_some(BaseHook { hook: Hook::Forward, priority: 0 }),
            comment: String::new(),
            rules: vec![Rule { exprs: vec![jump(number + 1)], comment: String::new() }],
        };
        let chains = (0..length).map(|number| (format!("c{number}"), chain(number)));
        let last = (format!("c{length}"), Chain::default());
        Table { chains: chains.chain([last]).collect(), ..Table::default() }
    }

    #[test]
    fn jumps_of_rules_count() {
        let (name, key) = ("map".to_owned(), Element::key([Value::Mark(1)]));
        let late = |datum| BTreeMap::from([(&name, BTreeMap::from([(key.clone(), datum)]))]);
        let verdict = late(Datum::Verdict(Verdict::Accept));
        assert!(fits(&Table::default(), &row(DEEPEST - 1), &verdict));
        assert!(!fits(&Table::default(), &row(DEEPEST), &verdict));
        let nothing = late(Datum::None);
        assert!(fits(&Table::default(), &row(DEEPEST), &nothing), "the kernel has taken these jumps before");
    }
}
