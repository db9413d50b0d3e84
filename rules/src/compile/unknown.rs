//! Closed until known: an address of the node's pod ranges that is no known pod's.
//!
//! In: [`PodRanges`]. Out: rules that lead from the base chains to a chain for each half, which drops and counts what is at no known
//! pod. What always holds: the known are those that the verdict maps lead from, and they are asked before the maps: a pod that
//! becomes known between two look-ups of a packet is closed or judged, never neither. Without ranges there is nothing of this.

use super::Guard;
use super::base::{DENIED, ends, guard, pods, rule};
use super::part::Part;
use super::sets::{Ip, address};
use crate::policy::Direction;
use crate::ranges::PodRanges;
use crate::ruleset::{Chain, Datum, Element, Elements, Expr, Rule, Set, SetKind, Verdict};

/// The addresses within that are no pod's, and the chains that ask.
pub(super) fn add(table: &mut Part, ranges: &PodRanges) {
    if ranges.is_empty() {
        return;
    }
    for ip in Ip::BOTH {
        table.set(others(ip).into(), own(ranges, ip));
    }
    for half in Direction::BOTH {
        let known = [pods, others].into_iter().flat_map(|set| {
            ends(half).map(|(field, ip)| {
                let known = Expr::Lookup { key: vec![field], set: set(ip).into() };
                rule(vec![known, Expr::Verdict(Verdict::Return)], "")
            })
        });
        let counter = Expr::Counter(guard(table, Guard::UnknownPod));
        // The way back of a flow stops too: it may be an earlier pod's.
        let closed = rule(vec![counter, Expr::Verdict(Verdict::Goto(DENIED.into()))], "closed until it is known");
        let rules = known.chain([closed]).collect();
        let comment = format!("{half}: an address of the pod ranges, known or not");
        table.chain(chain(half), Chain { hook: None, comment, rules });
    }
}

/// From a base chain: what has an end in the ranges is asked whether it is known.
pub(super) fn asks(ranges: &PodRanges, half: Direction) -> Vec<Rule> {
    let asked = |prefix: &ipnetwork::IpNetwork| {
        let of_family = ends(half).into_iter().filter(|(_, ip)| *ip == Ip::of(prefix.ip()));
        let jump = Expr::Verdict(Verdict::Jump(chain(half).into()));
        let rules = of_family.map(|(field, _)| rule(vec![Expr::Prefix { field, prefix: *prefix }, jump.clone()], ""));
        rules.collect::<Vec<_>>()
    };
    ranges.prefixes().iter().flat_map(asked).collect()
}

fn own(ranges: &PodRanges, ip: Ip) -> Set {
    let mut elements = Elements::new();
    for own in ranges.others().iter().filter(|own| Ip::of(**own) == ip) {
        elements.insert(Element::key([address(*own)]), Datum::None);
    }
    Set {
        kind: SetKind::Set,
        key: vec![ip.key_type()],
        interval: false,
        size: None,
        comment: "addresses of the pod ranges that are no pod's".to_owned(),
        elements,
    }
}

fn others(ip: Ip) -> &'static str {
    match ip {
        Ip::V4 => "own4",
        Ip::V6 => "own6",
    }
}

fn chain(half: Direction) -> String {
    format!("known-{half}")
}
