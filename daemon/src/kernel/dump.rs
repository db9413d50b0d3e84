//! What the kernel has, in the model's terms.
//!
//! In: names of tables, and the ruleset that is wanted. Out: the ruleset that is there, counters' values, names of tables.
//! What always holds: a dump that was interrupted is never taken for the whole; a rule reads as a wanted one only if the
//! kernel's bytecode of it is the wanted rule's; what cannot be read as the model's reads as something nobody wants.

use std::collections::{BTreeMap, HashMap};

use flatfell_rules::encode::RawElement;
use flatfell_rules::encode::decode::{self, RawRule};
use flatfell_rules::ruleset::{Chain, CounterValue, Expr, Family, Rule, Ruleset, Table, TableId};
use nix::errno::Errno;

use super::socket::{DumpError, Socket};
use super::wire::{Message, Request};

/// How often a dump is tried that is interrupted by transactions.
const ATTEMPTS: usize = 50;

// NFNL_SUBSYS_NFTABLES and NFT_MSG_GET*.
const GETTABLE: u16 = 0x0a01;
const GETCHAIN: u16 = 0x0a04;
const GETRULE: u16 = 0x0a07;
const GETSET: u16 = 0x0a0a;
const GETSETELEM: u16 = 0x0a0d;
const GETOBJ: u16 = 0x0a13;

/// The table's name, in requests of all kinds.
const ATTR_TABLE: u16 = 1;
/// NFTA_SET_ELEM_LIST_SET.
const ATTR_SET: u16 = 2;
/// NFTA_OBJ_TYPE.
const ATTR_OBJECT_TYPE: u16 = 3;
const OBJECT_COUNTER: u32 = 1;

fn family(family: Family) -> u8 {
    match family {
        Family::Inet => 1,
        Family::Bridge => 7,
    }
}

fn name(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

/// A dump without what it held, so that it can be asked for again.
struct Question<'a> {
    kind: u16,
    family: Family,
    table: Option<&'a str>,
    set: Option<&'a str>,
}

impl<'a> Question<'a> {
    fn of_family(kind: u16, family: Family) -> Self {
        Self { kind, family, table: None, set: None }
    }

    fn of_table(kind: u16, table: &'a TableId) -> Self {
        Self { kind, family: table.family, table: Some(&table.name), set: None }
    }

    fn fill(&self, mut request: Request) -> Request {
        if let Some(table) = self.table {
            request = request.attribute(ATTR_TABLE, &name(table));
        }
        if let Some(set) = self.set {
            request = request.attribute(ATTR_SET, &name(set));
        }
        if self.kind == GETOBJ {
            request = request.attribute(ATTR_OBJECT_TYPE, &OBJECT_COUNTER.to_be_bytes());
        }
        request
    }

    /// Everything `read` makes of the dump's messages, of a dump that was not interrupted. What the question is about
    /// not being there is the empty answer.
    fn ask<T>(&self, socket: &mut Socket, mut read: impl FnMut(Message<'_>) -> Option<T>) -> Result<Vec<T>, DumpError> {
        for _ in 0..ATTEMPTS {
            let mut found = Vec::new();
            let each = |message: Message<'_>| {
                found.extend(read(message));
                Ok(())
            };
            match socket.dump(self.kind, family(self.family), |request| self.fill(request), each) {
                Ok(true) => return Ok(found),
                Ok(false) => {}
                Err(DumpError::Refused { errno: Errno::EINTR, .. }) => {}
                Err(DumpError::Refused { errno: Errno::ENOENT, .. }) => return Ok(Vec::new()),
                Err(error) => return Err(error),
            }
        }
        Err(DumpError::Interrupted)
    }
}

/// All tables of the families in use.
pub(super) fn tables(socket: &mut Socket) -> Result<Vec<TableId>, DumpError> {
    let mut all = Vec::new();
    for family in [Family::Inet, Family::Bridge] {
        all.extend(Question::of_family(GETTABLE, family).ask(socket, |message| decode::table(message.bytes))?);
    }
    Ok(all)
}

/// The values of a table's counters. Interrupted dumps are merged by name: counters only come and go between them, and
/// each one that is there all the time is in one of them.
pub(super) fn counters(socket: &mut Socket, table: &TableId) -> Result<BTreeMap<String, CounterValue>, DumpError> {
    let question = Question::of_table(GETOBJ, table);
    let mut all = BTreeMap::new();
    for _ in 0..ATTEMPTS {
        let each = |message: Message<'_>| {
            all.extend(
                decode::counter(message.bytes)
                    .filter(|(place, ..)| place == table)
                    .map(|(_, name, _, value)| (name, value)),
            );
            Ok(())
        };
        match socket.dump(GETOBJ, family(table.family), |request| question.fill(request), each) {
            Ok(true) => return Ok(all),
            Ok(false) | Err(DumpError::Refused { errno: Errno::EINTR, .. }) => {}
            Err(DumpError::Refused { errno: Errno::ENOENT, .. }) => return Ok(all),
            Err(error) => return Err(error),
        }
    }
    Err(DumpError::Interrupted)
}

/// The tables of these names as far as they are there.
pub(super) fn read(socket: &mut Socket, names: &[TableId], want: &Ruleset) -> Result<Ruleset, DumpError> {
    let mut ruleset = Ruleset::default();
    let present = tables(socket)?;
    for id in names.iter().filter(|id| present.contains(id)) {
        let table = read_table(socket, id, want.tables.get(id))?;
        ruleset.tables.insert(id.clone(), table);
    }
    Ok(ruleset)
}

fn read_table(socket: &mut Socket, id: &TableId, want: Option<&Table>) -> Result<Table, DumpError> {
    let here = |place: &TableId| place == id;
    let chains = Question::of_family(GETCHAIN, id.family).ask(socket, |message| decode::chain(message.bytes))?;
    let sets = Question::of_table(GETSET, id).ask(socket, |message| decode::set(message.bytes))?;
    let counters = Question::of_table(GETOBJ, id).ask(socket, |message| decode::counter(message.bytes))?;
    let rules = Question::of_table(GETRULE, id).ask(socket, |message| decode::rule(message.bytes))?;
    let mut table = Table {
        chains: chains.into_iter().filter(|(place, ..)| here(place)).map(|(_, name, chain)| (name, chain)).collect(),
        sets: sets.into_iter().filter(|(place, ..)| here(place)).map(|(_, name, set)| (name, set)).collect(),
        counters: counters
            .into_iter()
            .filter(|(place, ..)| here(place))
            .map(|(_, name, counter, _)| (name, counter))
            .collect(),
    };
    for (name, set) in &mut table.sets {
        let raw = read_elements(socket, id, name)?;
        set.elements = decode::collect(set, raw);
    }
    let mut by_chain: BTreeMap<String, Vec<RawRule>> = BTreeMap::new();
    for (_, chain, rule) in rules.into_iter().filter(|(place, ..)| here(place)) {
        by_chain.entry(chain).or_default().push(rule);
    }
    for (name, raw) in by_chain {
        let wanted = want.and_then(|table| table.chains.get(&name));
        table.chains.entry(name).or_default().rules = recognise(id.family, raw, wanted);
    }
    Ok(table)
}

fn read_elements(socket: &mut Socket, id: &TableId, set: &str) -> Result<Vec<RawElement>, DumpError> {
    let question = Question { set: Some(set), ..Question::of_table(GETSETELEM, id) };
    let parts = question.ask(socket, |message| decode::elements(message.bytes))?;
    Ok(parts.into_iter().flatten().collect())
}

/// Each rule that was read as the wanted rule it is. Of several wanted ones with the same bytecode, the one at the same
/// place comes first, then one with the same comment.
fn recognise(family: Family, raw: Vec<RawRule>, wanted: Option<&Chain>) -> Vec<Rule> {
    let wanted = wanted.map(|chain| chain.rules.as_slice()).unwrap_or_default();
    let mut known: HashMap<Vec<String>, Vec<usize>> = HashMap::new();
    for (place, rule) in wanted.iter().enumerate() {
        // A wanted rule that cannot be encoded cannot be in the kernel either.
        if let Ok(printed) = decode::printed(family, rule) {
            known.entry(printed.print).or_default().push(place);
        }
    }
    let exprs = |place: usize, rule: &RawRule| -> Option<Vec<Expr>> {
        let places = known.get(&rule.print)?;
        let same_comment = || places.iter().copied().find(|at| wanted[*at].comment == rule.comment);
        let found = if places.contains(&place) { place } else { same_comment().or(places.first().copied())? };
        Some(wanted[found].exprs.clone())
    };
    raw.into_iter()
        .enumerate()
        .map(|(place, rule)| match exprs(place, &rule) {
            Some(exprs) => Rule { exprs, comment: rule.comment },
            None => Rule { exprs: vec![Expr::Foreign(rule.print.join(" "))], comment: rule.comment },
        })
        .collect()
}
