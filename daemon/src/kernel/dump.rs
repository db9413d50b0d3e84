//! What the kernel has, in the model's terms.
//!
//! In: names of tables, and the ruleset that is wanted. Out: the ruleset that is there, names of tables.
//! What always holds: a dump that was interrupted is taken for the whole only if the next one says the same; a rule reads as a wanted one only if the
//! kernel's bytecode of it is the wanted rule's; what cannot be read as the model's reads as something nobody wants.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use flatfell_rules::encode::decode::{self, FOREIGN, RawRule};
use flatfell_rules::encode::{RawElement, family, family_of};
use flatfell_rules::ruleset::{Chain, Counter, Expr, Family, Name, Rule, Ruleset, Set, SetKind, Table, TableId};
use nix::errno::Errno;

use crate::netlink::{DUMP, Malformed, Message, NETFILTER_HEADER, NetlinkError, Request, Socket, field, netfilter};

/// How often a dump is tried that is interrupted by transactions.
const ATTEMPTS: usize = 50;

// NFNL_SUBSYS_NFTABLES and NFT_MSG_GET*.
const GETTABLE: u16 = 0x0a01;
const GETCHAIN: u16 = 0x0a04;
const GETRULE: u16 = 0x0a07;
const GETSET: u16 = 0x0a0a;
pub(super) const GETSETELEM: u16 = 0x0a0d;
const GETOBJ: u16 = 0x0a13;

/// The table's name, in requests of all kinds.
pub(super) const ATTR_TABLE: u16 = 1;
/// NFTA_SET_ELEM_LIST_SET.
pub(super) const ATTR_SET: u16 = 2;
/// NFTA_OBJ_TYPE.
pub(super) const ATTR_OBJECT_TYPE: u16 = 3;
pub(super) const OBJECT_COUNTER: u32 = 1;

/// A dump without what it held, so that it can be asked for again.
pub(super) struct Question<'a> {
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

    pub(super) fn of_set(table: &'a TableId, set: &'a str) -> Self {
        Self { set: Some(set), ..Self::of_table(GETSETELEM, table) }
    }

    /// All named counters of a table.
    pub(super) fn counters(table: &'a TableId) -> Self {
        Self::of_table(GETOBJ, table)
    }

    pub(super) fn request(&self) -> Request {
        let mut request = Request::new(self.kind, DUMP, &netfilter(family(self.family)));
        if let Some(table) = self.table {
            request = request.text(ATTR_TABLE, table);
        }
        if let Some(set) = self.set {
            request = request.text(ATTR_SET, set);
        }
        if self.kind == GETOBJ {
            request = request.attr(ATTR_OBJECT_TYPE, &OBJECT_COUNTER.to_be_bytes());
        }
        request
    }

    /// Everything `read` makes of the dump's messages. What the question is about not being there is the empty answer.
    /// Any transaction interrupts a dump, of whatever table it is: on a busy node none is ever whole by the kernel's
    /// word, but what two in a row say alike was not touched meanwhile.
    fn ask<T: PartialEq>(
        &self,
        socket: &mut Socket,
        mut read: impl FnMut(Message<'_>) -> Result<Option<T>, Malformed>,
    ) -> Result<Vec<T>, NetlinkError> {
        let mut before = None;
        for _ in 0..ATTEMPTS {
            let mut found = Vec::new();
            let dumped = socket.dump::<NetlinkError>(self.request(), |message| {
                found.extend(read(message)?);
                Ok(())
            });
            match dumped {
                Ok(()) => return Ok(found),
                Err(NetlinkError::Interrupted) if before.as_ref() == Some(&found) => return Ok(found),
                Err(NetlinkError::Interrupted) => before = Some(found),
                Err(NetlinkError::Refused { errno: Errno::EINTR, .. }) => {}
                Err(NetlinkError::Refused { errno: Errno::ENOENT, .. }) => return Ok(Vec::new()),
                Err(error) => return Err(error),
            }
        }
        Err(NetlinkError::Interrupted)
    }
}

/// The table and the name in a message that libnftnl cannot read; the name has another attribute for each kind.
fn unreadable(message: Message<'_>, name: u16) -> Result<(TableId, Name), Malformed> {
    let [number] = field(message.payload, 0)?;
    let family = family_of(number.into()).ok_or(Malformed("an object of a family that was not asked for"))?;
    let attrs = message.attrs(NETFILTER_HEADER)?;
    let string = |kind| {
        let attr = attrs.find_kind(kind)?.ok_or(Malformed("an object without its table or name"))?;
        attr.text().map(str::to_owned)
    };
    Ok((TableId { family, name: string(ATTR_TABLE)? }, string(name)?.into()))
}

/// The comment of what cannot be read: nobody wants it.
fn unreadable_comment() -> String {
    format!("{FOREIGN}, unreadable")
}

pub(super) fn read_chain(message: Message<'_>) -> Result<Option<(TableId, Name, Chain)>, Malformed> {
    const NAME: u16 = 3;
    if let Some(chain) = decode::chain(message.bytes) {
        return Ok(Some(chain));
    }
    let (table, name) = unreadable(message, NAME)?;
    Ok(Some((table, name, Chain { comment: unreadable_comment(), ..Chain::default() })))
}

pub(super) fn read_set(message: Message<'_>) -> Result<Option<(TableId, Name, Set)>, Malformed> {
    const NAME: u16 = 2;
    if let Some(set) = decode::set(message.bytes) {
        return Ok(Some(set));
    }
    let (table, name) = unreadable(message, NAME)?;
    Ok(Some((table, name, Set { comment: unreadable_comment(), ..Set::of(SetKind::Set, Vec::new()) })))
}

/// Elements that cannot be read are one element that nobody wants.
pub(super) fn read_list(message: Message<'_>) -> Vec<RawElement> {
    decode::elements(message.bytes).unwrap_or_else(|| vec![RawElement { more: true, ..RawElement::default() }])
}

/// A counter without its values, which are no part of a ruleset and move all the time.
pub(super) fn read_counter(message: Message<'_>) -> Option<(TableId, Name, Counter)> {
    decode::counter(message.bytes).map(|(table, name, counter, _)| (table, name, counter))
}

pub(super) fn read_rule(message: Message<'_>) -> Result<Option<(TableId, Name, RawRule)>, Malformed> {
    const CHAIN: u16 = 2;
    if let Some(rule) = decode::rule(message.bytes) {
        return Ok(Some(rule));
    }
    let (table, chain) = unreadable(message, CHAIN)?;
    let print = vec!["unreadable".to_owned()];
    Ok(Some((table, chain, RawRule { print, comment: unreadable_comment() })))
}

/// All tables of the families in use.
pub(super) fn tables(socket: &mut Socket) -> Result<Vec<TableId>, NetlinkError> {
    let mut all = Vec::new();
    for family in [Family::Inet, Family::Bridge] {
        all.extend(Question::of_family(GETTABLE, family).ask(socket, |message| Ok(decode::table(message.bytes)))?);
    }
    Ok(all)
}

/// The tables of these names as far as they are there.
pub(super) fn read(socket: &mut Socket, names: &[TableId], want: &Ruleset) -> Result<Ruleset, NetlinkError> {
    let mut ruleset = Ruleset::default();
    let present = tables(socket)?;
    for id in names.iter().filter(|id| present.contains(id)) {
        let table = read_table(socket, id, want.tables.get(id))?;
        ruleset.tables.insert(id.clone(), table);
    }
    Ok(ruleset)
}

fn read_table(socket: &mut Socket, id: &TableId, want: Option<&Table>) -> Result<Table, NetlinkError> {
    let here = |place: &TableId| place == id;
    let chains = Question::of_family(GETCHAIN, id.family).ask(socket, read_chain)?;
    let sets = Question::of_table(GETSET, id).ask(socket, read_set)?;
    let counters = Question::of_table(GETOBJ, id).ask(socket, |message| Ok(read_counter(message)))?;
    let rules = Question::of_table(GETRULE, id).ask(socket, read_rule)?;
    let mut by_chain: BTreeMap<Name, Vec<RawRule>> = BTreeMap::new();
    for (_, chain, rule) in rules.into_iter().filter(|(place, ..)| here(place)) {
        by_chain.entry(chain).or_default().push(rule);
    }
    let mut table = Table::default();
    for (_, name, mut chain) in chains.into_iter().filter(|(place, ..)| here(place)) {
        let wanted = want.and_then(|table| table.chains.get(&name));
        let raw = by_chain.remove(&name).unwrap_or_default();
        chain.rules = recognise(id.family, raw, wanted.map(Arc::as_ref));
        table.chains.insert(name, Arc::new(chain));
    }
    for (_, name, mut set) in sets.into_iter().filter(|(place, ..)| here(place)) {
        let raw = read_elements(socket, id, &name)?;
        set.elements = decode::collect(&set, raw);
        table.sets.insert(name, Arc::new(set));
    }
    let counters = counters.into_iter().filter(|(place, ..)| here(place));
    table.counters = counters.map(|(_, name, counter)| (name, counter)).collect();
    Ok(table)
}

fn read_elements(socket: &mut Socket, id: &TableId, set: &str) -> Result<Vec<RawElement>, NetlinkError> {
    let parts = Question::of_set(id, set).ask(socket, |message| Ok(Some(read_list(message))))?;
    Ok(parts.into_iter().flatten().collect())
}

/// Each rule that was read as the wanted rule it is. Of several wanted ones with the same bytecode, the one at the same
/// place comes first, then one with the same comment.
pub(super) fn recognise(family: Family, raw: Vec<RawRule>, wanted: Option<&Chain>) -> Vec<Rule> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Messages;

    fn one(bytes: &[u8]) -> Message<'_> {
        Messages::new(bytes).next().expect("one message").expect("well formed")
    }

    /// A rule with an expression that libnftnl does not know.
    fn unknown_rule() -> Vec<u8> {
        Request::new(0x0a06, 0, &netfilter(1))
            .text(1, "flatfell-1a")
            .text(2, "forward")
            .nest(4, |list| list.nest(1, |expr| expr.text(1, "news")))
            .finish(1)
            .expect("short")
    }

    #[test]
    fn a_rule_that_cannot_be_read_is_not_left_out() {
        let bytes = unknown_rule();
        assert_eq!(decode::rule(&bytes), None, "libnftnl reads it: choose another expression");
        let (table, chain, raw) = read_rule(one(&bytes)).expect("well formed").expect("rule");
        assert_eq!((table.name.as_str(), chain.as_ref()), ("flatfell-1a", "forward"));
        let wanted = Chain { rules: vec![Rule::default()], ..Chain::default() };
        let read = recognise(Family::Inet, vec![raw], Some(&wanted));
        assert!(matches!(read[0].exprs.as_slice(), [Expr::Foreign(_)]), "{read:?}");
    }

    #[test]
    fn elements_that_cannot_be_read_are_not_left_out() {
        let key = |key: Request| key.attr(1, &[10, 0, 0, 1]);
        let element = |element: Request| element.nest(1, key).nest(7, |expr| expr.text(1, "news"));
        let request =
            Request::new(0x0a0c, 0, &netfilter(1)).text(1, "flatfell-1a").nest(3, |list| list.nest(1, element));
        let bytes = request.finish(1).expect("short");
        assert_eq!(decode::elements(&bytes), None, "libnftnl reads it: choose another expression");
        let read = read_list(one(&bytes));
        assert!(read.iter().any(|element| element.more), "{read:?}");
    }
}
