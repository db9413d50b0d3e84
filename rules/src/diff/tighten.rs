//! Whether a change can deny what was allowed.
//!
//! In: a table as it is and as it shall be. Out: yes, or surely not. What always holds: a change is tightening unless it is
//! one of those proved here to allow no less; a wrong yes costs a new generation, a wrong no leaves a forbidden flow running.

use std::collections::BTreeSet;

use super::difference::Differences;
use super::held::Held;
use crate::mark::GENERATION_MASK;
use crate::ruleset::{Chain, Datum, ElementsDiff, Expr, Family, Rule, Set, SetKind, Table, TableId, Verdict};

/// Whether a table that was not there can deny something. Frames are no flows: bridge tables never do.
pub fn new_table(id: &TableId, want: &Table) -> bool {
    id.family == Family::Inet && want.chains.values().any(|chain| chain.hook.is_some())
}

/// A table as it is and as it shall be.
pub struct Tables<'a> {
    pub id: &'a TableId,
    pub have: &'a Held,
    pub want: &'a Held,
}

impl Tables<'_> {
    /// Whether these differences can deny what was allowed.
    pub fn tighten(&self, differences: &Differences<'_, '_>) -> bool {
        if self.id.family == Family::Bridge {
            return false;
        }
        let chains = &differences.chains;
        let base = |chain: &Chain| chain.hook.is_some();
        !chains.changed.is_empty()
            || chains.gone.iter().any(|(_, chain)| base(chain))
            || chains.come.iter().any(|(_, chain)| base(chain))
            || differences.sets.changed.iter().any(|(name, current, wanted)| self.set_tightens(name, current, wanted))
    }

    /// Whether the changed elements of a set can deny something; rules are the same in both tables.
    fn set_tightens(&self, name: &str, current: &Set, wanted: &Set) -> bool {
        let ElementsDiff { gone, come } = current.elements.diff(&wanted.elements);
        match wanted.kind {
            SetKind::Set if !asks(self.have, self.id, name) && !asks(self.want, self.id, name) => false,
            SetKind::Set => !gone.is_empty() || !only_allows(self.want, self.id, name),
            SetKind::VerdictMap => {
                let have = self.have.table(self.id);
                !come.is_empty() || !gone.values().all(|datum| have.is_some_and(|have| only_denied(have, datum)))
            }
            SetKind::Counters => decides_behind(self.want, self.id, name),
        }
    }
}

/// Whether any rule asks a set.
fn asks(held: &Held, id: &TableId, set: &str) -> bool {
    held.asking(id, set).next().is_some()
}

/// Whether a packet that begins to match the set is allowed no less: every rule that asks it accepts, or leaves a chain
/// that could not have accepted any more, at most over one that decides nothing.
fn only_allows(held: &Held, id: &TableId, set: &str) -> bool {
    let Some(table) = held.table(id) else { return false };
    let asks = |rule: &Rule| {
        rule.exprs.iter().any(|expr| matches!(expr, Expr::Lookup { set: asked, .. } if asked.as_ref() == set))
    };
    held.asking(id, set).all(|chain| {
        chain.rules.iter().enumerate().filter(|(_, rule)| asks(rule)).all(|(place, rule)| {
            let (before, last) = match rule.exprs.split_last() {
                Some((last, before)) => (before, last),
                None => return true,
            };
            let plain = before.iter().all(|expr| !decides(expr));
            let leaves = || denies_only(table, &chain.rules[place..], &mut BTreeSet::new());
            match last {
                Expr::Verdict(Verdict::Accept) => plain,
                Expr::Verdict(Verdict::Return) => plain && leaves(),
                Expr::Verdict(Verdict::Goto(next)) => plain && comes_back(table, next) && leaves(),
                other => plain && !decides(other),
            }
        })
    })
}

/// Whether every packet comes out behind a chain, whatever it did to ids.
fn comes_back(table: &Table, chain: &str) -> bool {
    let rules = table.chains.get(chain).map(|chain| &chain.rules);
    rules.is_some_and(|rules| rules.iter().flat_map(|rule| &rule.exprs).all(|expr| !decides(expr)))
}

/// Whether an element did nothing but deny, so that its removal only allows: a drop, or a jump to a chain that
/// drops or comes back.
fn only_denied(table: &Table, datum: &Datum) -> bool {
    match datum {
        Datum::Verdict(Verdict::Drop) => true,
        Datum::Verdict(Verdict::Jump(chain)) => chain_denies_only(table, chain, &mut BTreeSet::new()),
        _ => false,
    }
}

/// Whether a packet that enters a chain is dropped or comes out behind it as it was.
fn chain_denies_only<'a>(table: &'a Table, name: &'a str, seen: &mut BTreeSet<&'a str>) -> bool {
    !seen.insert(name) || table.chains.get(name).is_some_and(|chain| denies_only(table, &chain.rules, seen))
}

/// Whether these rules drop a packet or let it come out behind the chain as it was.
fn denies_only<'a>(table: &'a Table, rules: &'a [Rule], seen: &mut BTreeSet<&'a str>) -> bool {
    rules.iter().enumerate().all(|(place, rule)| {
        let drops = drops(rule) || rules.get(place + 1).is_some_and(drops_all);
        rule.exprs.iter().all(|expr| match expr {
            Expr::SetCtMark { .. } => drops || !decides(expr),
            Expr::Verdict(verdict) => verdict_denies_only(table, verdict, seen),
            Expr::Vmap { map, .. } => table.sets.get(map).is_some_and(|map| {
                map.elements.data().all(|datum| match datum {
                    Datum::Verdict(verdict) => verdict_denies_only(table, verdict, seen),
                    Datum::None | Datum::Counter(_) => false,
                })
            }),
            Expr::Foreign(_) => false,
            _ => true,
        })
    })
}

/// Whether a rule drops what it matches.
fn drops(rule: &Rule) -> bool {
    rule.exprs.last() == Some(&Expr::Verdict(Verdict::Drop))
}

/// Whether a rule drops every packet.
fn drops_all(rule: &Rule) -> bool {
    drops(rule) && rule.exprs.iter().all(|expr| matches!(expr, Expr::Counter(_) | Expr::Verdict(_)))
}

/// The same for what a verdict leads to.
fn verdict_denies_only<'a>(table: &'a Table, verdict: &'a Verdict, seen: &mut BTreeSet<&'a str>) -> bool {
    match verdict {
        Verdict::Accept => false,
        Verdict::Drop | Verdict::Return => true,
        Verdict::Jump(chain) | Verdict::Goto(chain) => chain_denies_only(table, chain, seen),
    }
}

/// Whether any rule does something behind counting at a set: it is skipped where there is no element.
fn decides_behind(held: &Held, id: &TableId, set: &str) -> bool {
    held.asking(id, set).flat_map(|chain| &chain.rules).any(|rule| {
        rule.exprs
            .iter()
            .skip_while(|expr| !matches!(expr, Expr::CountMark { set: used, .. } if used.as_ref() == set))
            .any(decides)
    })
}

/// Whether an expression changes what becomes of a packet or a flow, beside matching.
fn decides(expr: &Expr) -> bool {
    match expr {
        // Ids say who counts.
        Expr::SetCtMark { keep, .. } => keep & GENERATION_MASK != GENERATION_MASK,
        _ => matches!(expr, Expr::Verdict(_) | Expr::Vmap { .. } | Expr::Foreign(_)),
    }
}
