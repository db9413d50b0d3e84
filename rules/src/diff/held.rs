//! What the kernel holds, with what is asked of it at each change.
//!
//! In: a ruleset, and how it changes. Out: the same, and which chains ask a set. What always holds: both agree.

use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use super::difference::Differences;
use crate::ruleset::{Chain, Expr, Name, Rule, Ruleset, Table, TableId, Verdict};

/// A ruleset that the kernel has, or will have.
#[derive(Clone, Debug, Default)]
pub struct Held {
    ruleset: Ruleset,
    /// The chains with a rule that asks a set or map, by table and set.
    asking: BTreeMap<TableId, OrdMap<Name, OrdSet<Name>>>,
}

impl Held {
    /// The ruleset.
    pub fn ruleset(&self) -> &Ruleset {
        &self.ruleset
    }

    /// A table.
    pub(super) fn table(&self, id: &TableId) -> Option<&Table> {
        self.ruleset.tables.get(id)
    }

    /// The chains of a table with a rule that asks a set or map.
    pub(super) fn asking<'a>(&'a self, id: &TableId, set: &str) -> impl Iterator<Item = &'a Chain> + use<'a> {
        let chains = self.asking.get(id).and_then(|table| table.get(set));
        let table = self.table(id);
        let chain = move |name: &Name| table?.chains.get(name).map(Arc::as_ref);
        chains.into_iter().flatten().filter_map(chain)
    }

    /// A table is this now, which differs from what it was in no more than this.
    pub(super) fn follow(&mut self, id: &TableId, table: &Table, differences: &Differences<'_, '_>) {
        let asking = self.asking.entry(id.clone()).or_default();
        let chains = &differences.chains;
        let before = chains.gone.iter().map(|(name, chain)| (*name, *chain));
        for (name, chain) in before.chain(chains.changed.iter().map(|(name, chain, _)| (*name, *chain))) {
            for set in asked(chain) {
                if let Some(names) = asking.get_mut(set) {
                    names.remove(name);
                }
                if asking.get(set).is_some_and(OrdSet::is_empty) {
                    asking.remove(set);
                }
            }
        }
        let now = chains.come.iter().map(|(name, chain)| (*name, *chain));
        for (name, chain) in now.chain(chains.changed.iter().map(|(name, _, chain)| (*name, *chain))) {
            for set in asked(chain) {
                asking.entry(set.clone()).or_default().insert(name.clone());
            }
        }
        self.ruleset.tables.insert(id.clone(), table.clone());
    }

    /// A table is gone.
    pub(super) fn forget(&mut self, id: &TableId) {
        self.ruleset.tables.remove(id);
        self.asking.remove(id);
    }
}

impl From<Ruleset> for Held {
    fn from(ruleset: Ruleset) -> Self {
        let mut held = Self::default();
        let nothing = Table::default();
        for (id, table) in &ruleset.tables {
            held.follow(id, table, &Differences::between(&nothing, table));
        }
        held
    }
}

/// Equal rulesets are asked alike.
impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.ruleset == other.ruleset
    }
}

impl Eq for Held {}

/// The sets and maps that the rules of a chain ask.
pub(super) fn asked(chain: &Chain) -> impl Iterator<Item = &Name> {
    chain.rules.iter().flat_map(|rule| &rule.exprs).filter_map(asks)
}

/// The set or map that an expression asks.
pub(super) fn asks(expr: &Expr) -> Option<&Name> {
    match expr {
        Expr::Lookup { set, .. } | Expr::Vmap { map: set, .. } | Expr::CountMark { set, .. } => Some(set),
        _ => None,
    }
}

/// Whether a set, which these chains ask, spares packets a drop: its rule leaves a chain whose end drops.
pub(super) fn spares<'a>(mut asking: impl Iterator<Item = &'a Chain>, set: &Name) -> bool {
    let drops = |rule: &Rule| match rule.exprs.as_slice() {
        [Expr::Counter(_), Expr::Verdict(verdict)] | [Expr::Verdict(verdict)] => {
            matches!(verdict, Verdict::Drop | Verdict::Goto(_))
        }
        _ => false,
    };
    let leaves = |rule: &Rule| match rule.exprs.as_slice() {
        [Expr::Lookup { set: asked, .. }, Expr::Verdict(Verdict::Return)] => asked == set,
        _ => false,
    };
    asking.any(|chain| chain.rules.last().is_some_and(drops) && chain.rules.iter().any(leaves))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::diff::diff;
    use crate::sim::random;

    proptest! {
        #[test]
        fn what_was_followed_is_asked_as_if_it_were_read(seed in any::<u64>(), rate in 1_u64..20) {
            let (before, after) = (random::ruleset(seed), random::varied(seed, seed ^ 1, rate));
            let change = diff(&before.into(), after.clone());
            prop_assert_eq!(change.result.asking, Held::from(after).asking);
        }
    }
}
