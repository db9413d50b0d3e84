//! A door for the fuzzers: dumps and events without a socket.
//!
//! In: datagrams. Out: nothing, or what a reader made of them. What always holds: each message goes to every reader that could get it.

use std::collections::BTreeSet;

use flatfell_rules::encode::decode;
use flatfell_rules::ruleset::{Chain, Element, Elements, Family, Rule};

use super::conntrack::{self, FlowEntry};
use super::counts::Known;
use super::dump;
use super::watch::{self, Foreign};
use crate::netlink::{Malformed, Messages, REQUEST};

/// NFT_MSG_NEWSET and NFT_MSG_NEWSETELEM of linux/netfilter/nf_tables.h.
const NEWSET: u16 = 0x0a09;
const NEWSETELEM: u16 = 0x0a0c;

/// What dumps of tables read as.
#[derive(Debug, Default)]
pub struct Dumped {
    /// The rules, recognised among the wanted ones.
    pub rules: Vec<Rule>,
    /// The elements, of the set before them.
    pub elements: Elements,
}

/// What is read of our own tables, among which this chain is wanted.
pub fn tables(datagram: &[u8], wanted: &Chain) -> Result<Dumped, Malformed> {
    let (mut rules, mut elements, mut set) = (Vec::new(), Vec::new(), None);
    let mut known = Known::default();
    for message in Messages::new(datagram) {
        let message = message?;
        message.answer()?;
        decode::table(message.bytes);
        let _ = dump::read_chain(message);
        dump::read_counter(message);
        // All readers stand any message; what is put together is what dumps of sets and of elements would be.
        let (of_list, of_set) = (dump::read_list(message), dump::read_set(message).ok().flatten());
        match message.kind {
            NEWSET => set = of_set.or(set),
            NEWSETELEM => elements.extend(of_list),
            _ => {}
        }
        rules.extend(dump::read_rule(message).ok().flatten().map(|(.., rule)| rule));
        let _ = known.take_in(message, "flatfell-3a");
    }
    let elements = set.map(|(.., set)| decode::collect(&set, elements)).unwrap_or_default();
    Ok(Dumped { rules: dump::recognise(Family::Inet, rules, Some(wanted)), elements })
}

/// Whether an element is one that nobody wants.
pub fn is_foreign(element: &Element) -> bool {
    *element == Element::key([])
}

/// What others did, as events tell.
pub fn events(datagram: &[u8], is_ours: impl Fn(&str) -> bool) -> Result<Foreign, Malformed> {
    let (mut parts, mut foreign) = (BTreeSet::new(), Foreign::default());
    for message in Messages::new(datagram) {
        watch::take(message?, 1, &is_ours, &mut parts, &mut foreign)?;
    }
    Ok(foreign)
}

/// Tracked flows, each with the request that would set its mark.
pub fn flows(datagram: &[u8]) -> Result<Vec<(FlowEntry, Vec<u8>)>, Malformed> {
    let flow = |message| {
        let flow = conntrack::parse(message)?;
        Ok((flow, conntrack::change(&flow.key(), 0, u32::MAX, REQUEST).finish(1)?))
    };
    Messages::new(datagram).map(|message| flow(message?)).collect()
}
