//! The bridges whose filter the daemon switched on, remembered where its rules are: `flatfell cleanup` switches them off.
//!
//! In: bridges, by family. Out: two sets that no rule asks, and what such sets say. What always holds: a bridge is
//! remembered with its interface index, so a later bridge of the same name is another one.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::part::Part;
use super::sets::Ip;
use crate::ruleset::{Datum, Element, KeyType, Set, SetKind, Table, Value};

/// A bridge as one interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BridgeId {
    /// Its name.
    pub name: String,
    /// Its interface index.
    pub index: u32,
}

/// Bridges whose filter was off before the daemon switched it on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Switched {
    /// Those whose `nf_call_iptables` was off.
    pub v4: BTreeSet<BridgeId>,
    /// Those whose `nf_call_ip6tables` was off.
    pub v6: BTreeSet<BridgeId>,
}

impl Switched {
    /// What a table remembers. Elements of another shape are nobody's bridges.
    pub fn of(table: &Table) -> Self {
        let read = |ip| {
            let elements = table.sets.get(name(ip)).into_iter().flat_map(|set| set.elements.iter());
            elements.filter_map(|(element, _)| bridge(&element)).collect()
        };
        Self { v4: read(Ip::V4), v6: read(Ip::V6) }
    }

    /// Whether there is nothing to remember.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// Remembers what another does, too.
    pub fn extend(&mut self, other: Self) {
        self.v4.extend(other.v4);
        self.v6.extend(other.v6);
    }

    /// Forgets the bridges that do not live.
    pub fn retain(&mut self, lives: impl Fn(&BridgeId) -> bool) {
        self.v4.retain(&lives);
        self.v6.retain(&lives);
    }

    /// The same as a contribution.
    pub(super) fn add_to(&self, part: &mut Part) {
        for (ip, bridges) in [(Ip::V4, &self.v4), (Ip::V6, &self.v6)] {
            part.set(name(ip).into(), set(ip, bridges));
        }
    }

    /// Makes a table remember exactly this.
    pub fn write_to(&self, table: &mut Table) {
        for (ip, bridges) in [(Ip::V4, &self.v4), (Ip::V6, &self.v6)] {
            table.sets.insert(name(ip).into(), Arc::new(set(ip, bridges)));
        }
    }
}

fn name(ip: Ip) -> &'static str {
    match ip {
        Ip::V4 => "switched4",
        Ip::V6 => "switched6",
    }
}

fn set(ip: Ip, bridges: &BTreeSet<BridgeId>) -> Set {
    let flag = match ip {
        Ip::V4 => "nf_call_iptables",
        Ip::V6 => "nf_call_ip6tables",
    };
    let element = |bridge: &BridgeId| {
        let key = vec![Value::Ifname(bridge.name.clone()), Value::Mark(bridge.index)];
        (Element::key(key), Datum::None)
    };
    Set {
        kind: SetKind::Set,
        // nft has no plain number as a type; its type for an index would list the name of whoever has it now.
        key: vec![KeyType::Ifname, KeyType::Mark],
        interval: false,
        size: None,
        comment: format!("bridges (name, index) whose {flag} was off"),
        elements: bridges.iter().map(element).collect(),
    }
}

fn bridge(element: &Element) -> Option<BridgeId> {
    let Element::Key(key) = element else { return None };
    let [Value::Ifname(name), Value::Mark(index)] = key.as_slice() else { return None };
    Some(BridgeId { name: name.clone(), index: *index })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::{Layout, Slot, compile};
    use crate::diff::diff;
    use crate::effective::Effective;
    use crate::ruleset::{OpKind, Ruleset};

    fn some() -> Switched {
        let bridge = |name: &str, index| BridgeId { name: name.to_owned(), index };
        Switched { v4: [bridge("cni0", 7)].into(), v6: [bridge("cni0", 7), bridge("br1", 300)].into() }
    }

    #[test]
    fn a_compiled_table_remembers_what_the_layout_says_in_either_slot() {
        for slot in Slot::BOTH {
            let layout = Layout { slot, switched: some(), ..Layout::default() };
            let ruleset = compile(&Effective::default(), &layout).ruleset;
            assert_eq!(Switched::of(&ruleset.tables[&slot.inet()]), some());
        }
    }

    #[test]
    fn remembering_in_a_table_touches_nothing_else_of_it() {
        let have = compile(&Effective::default(), &Layout::default()).ruleset;
        let mut want = have.clone();
        some().write_to(want.tables.get_mut(&Slot::A.inet()).expect("a table"));
        let change = diff(&have.into(), want.clone());
        assert!(!change.tightens, "no packet asks these sets");
        let ops: Vec<_> = change.steps().flatten().map(|op| &op.kind).collect();
        assert!(ops.len() == 2 && ops.iter().all(|op| matches!(op, OpKind::AddElements { .. })), "{ops:?}");
    }

    #[test]
    fn a_table_made_to_remember_becomes_whole_without_going_again() {
        let mut first = Table::default();
        some().write_to(&mut first);
        let have = Ruleset { tables: [(Slot::A.inet(), first)].into() };
        let want = compile(&Effective::default(), &Layout { switched: some(), ..Layout::default() }).ruleset;
        let change = diff(&have.into(), want.clone());
        assert!(change.tightens, "its base chains are new");
        assert!(!change.steps().flatten().any(|op| matches!(op.kind, OpKind::DeleteTable)));
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let mut switched = some();
        switched.retain(|bridge| bridge.index == 300);
        assert!(switched.v4.is_empty() && switched.v6.len() == 1 && !switched.is_empty());
    }
}
