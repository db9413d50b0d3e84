//! Which rules a packet of one protocol and port can match at all.
//!
//! In: the rules of a chain, each with the ports it is about. Out: where many name single ports, lists by protocol and port, and the
//! rest. What always holds: a list has every rule that can match its protocol and port, in the order of the chain, so that the first that
//! matches is the same one; the rest is what a packet can match that has no list. Ranges stay in the rest: elements that are
//! intervals of a concatenation cost milliseconds to delete.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use crate::effective::PortMatch;
use crate::object::Protocol;
use crate::ruleset::{Expr, Rule};

/// So many rules are walked as fast as a map is asked.
const HANDFUL: usize = 8;
/// A rule of more ports than this is not spelt out port by port.
const SINGLE_PORTS: usize = 16;

/// A protocol and a port of it.
pub(super) type Key = (Protocol, u16);

/// A rule in two parts.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// The ports it is about.
    pub(super) ports: Ports,
    /// How it asks for them; empty where it need not.
    pub(super) asks: Vec<Expr>,
    /// Its other matches and its decision.
    pub(super) rest: Vec<Expr>,
}

/// The ports a rule is about.
#[derive(Clone, Debug)]
pub(super) enum Ports {
    /// Those that its own part matches.
    Of(PortMatch),
    /// Of this protocol, whichever its other matches name.
    Named(Protocol),
}

/// Lists by protocol and port.
#[derive(Clone, Debug)]
pub(super) struct Split {
    /// Protocols and ports with equal lists, sorted, and the list.
    pub(super) lists: Vec<(Vec<Key>, Vec<Rule>)>,
    /// For packets of no list.
    pub(super) others: Vec<Rule>,
}

impl Entry {
    /// The whole rule: ports first, they are the cheaper question.
    pub(super) fn whole(&self) -> Rule {
        rule(self.asks.iter().chain(&self.rest))
    }

    /// The single ports it is about, if it is about few.
    fn singles(&self) -> Vec<Key> {
        let Ports::Of(PortMatch::Ranges(protocol, ranges)) = &self.ports else { return Vec::new() };
        let count: usize = ranges.iter().map(ExactSizeIterator::len).sum();
        if count > SINGLE_PORTS {
            return Vec::new();
        }
        ranges.iter().cloned().flatten().map(|port| (*protocol, port)).collect()
    }

    fn can_match(&self, (protocol, port): Key) -> bool {
        match &self.ports {
            Ports::Of(PortMatch::Any) => true,
            Ports::Of(PortMatch::All(own)) | Ports::Named(own) => *own == protocol,
            Ports::Of(PortMatch::Ranges(own, ranges)) => *own == protocol && contains(ranges, port),
        }
    }
}

/// The rules by protocol and port; `None` where they are few.
pub(super) fn split(entries: &[Entry]) -> Option<Split> {
    let singles: Vec<Vec<Key>> = entries.iter().map(Entry::singles).collect();
    if singles.iter().filter(|keys| !keys.is_empty()).count() <= HANDFUL {
        return None;
    }
    let keys: BTreeSet<Key> = singles.iter().flatten().copied().collect();
    let mut lists: BTreeMap<Vec<usize>, Vec<Key>> = BTreeMap::new();
    for key in keys {
        let places = (0..entries.len()).filter(|place| entries[*place].can_match(key)).collect();
        lists.entry(places).or_default().push(key);
    }
    // What asks for ports by itself has been answered by the list, but for names: those are addresses' too.
    let list = |places: Vec<usize>| places.into_iter().map(|place| rule(&entries[place].rest)).collect();
    let others = entries.iter().zip(&singles).filter(|(_, keys)| keys.is_empty());
    Some(Split {
        lists: lists.into_iter().map(|(places, keys)| (keys, list(places))).collect(),
        others: others.map(|(entry, _)| entry.whole()).collect(),
    })
}

fn contains(ranges: &[RangeInclusive<u16>], port: u16) -> bool {
    ranges.iter().any(|range| range.contains(&port))
}

fn rule<'a>(exprs: impl IntoIterator<Item = &'a Expr>) -> Rule {
    Rule { exprs: exprs.into_iter().cloned().collect(), comment: String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::Verdict;

    fn entry(ports: Ports, name: &str) -> Entry {
        let asks = vec![Expr::Verdict(Verdict::Return)];
        Entry { ports, asks, rest: vec![Expr::Verdict(Verdict::Goto(name.into()))] }
    }

    fn single(port: u16) -> Entry {
        entry(Ports::Of(PortMatch::Ranges(Protocol::Tcp, vec![port..=port])), &format!("p{port}"))
    }

    /// The names of a list, those that still ask for ports with a mark.
    fn names(rules: &[Rule]) -> Vec<String> {
        let name = |rule: &Rule| match rule.exprs.as_slice() {
            [Expr::Verdict(Verdict::Goto(name))] => name.to_string(),
            [_, Expr::Verdict(Verdict::Goto(name))] => format!("{name}?"),
            other => format!("{other:?}"),
        };
        rules.iter().map(name).collect()
    }

    #[test]
    fn a_handful_is_walked() {
        let entries: Vec<Entry> = (1..=8).map(single).collect();
        assert!(split(&entries).is_none());
        assert!(split(&[entries, vec![single(9)]].concat()).is_some());
    }

    #[test]
    fn a_list_has_all_that_can_match_in_their_order() {
        let ranges = |protocol, ranges: &[RangeInclusive<u16>]| Ports::Of(PortMatch::Ranges(protocol, ranges.to_vec()));
        let mut entries = vec![
            entry(ranges(Protocol::Tcp, &[1..=100]), "range"),
            single(7),
            entry(Ports::Of(PortMatch::All(Protocol::Udp)), "udp"),
            entry(Ports::Named(Protocol::Tcp), "named"),
            entry(Ports::Of(PortMatch::Any), "any"),
            entry(ranges(Protocol::Tcp, &[7..=8, 200..=200]), "few"),
        ];
        entries.extend((300..310).map(single));
        let split = split(&entries).expect("many");
        assert_eq!(names(&split.others), ["range?", "udp?", "named?", "any?"]);
        let list = |port: u16| {
            let of_port = |(keys, _): &&(Vec<Key>, Vec<Rule>)| keys.contains(&(Protocol::Tcp, port));
            split.lists.iter().find(of_port).map(|(_, rules)| names(rules))
        };
        assert_eq!(list(7).expect("7"), ["range", "p7", "named", "any", "few"]);
        assert_eq!(list(8).expect("8"), ["range", "named", "any", "few"]);
        assert_eq!(list(200).expect("200"), ["named", "any", "few"]);
        assert_eq!(list(305).expect("305"), ["named", "any", "p305"]);
        assert_eq!(list(50), None, "a range has no lists of its own");
        assert!(split.lists.iter().all(|(keys, _)| keys.iter().all(|(protocol, _)| *protocol == Protocol::Tcp)));
    }

    #[test]
    fn ports_with_equal_lists_share_one() {
        let mut entries: Vec<Entry> = (1..=9).map(single).collect();
        entries.push(entry(Ports::Of(PortMatch::Ranges(Protocol::Sctp, vec![5..=5, 20..=30])), "sctp"));
        let split = split(&entries).expect("many");
        let sctp = split.lists.iter().find(|(_, rules)| names(rules) == ["sctp"]).expect("a list");
        assert_eq!(sctp.0.len(), 12);
    }
}
