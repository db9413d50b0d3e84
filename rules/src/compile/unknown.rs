//! Closed until known: an address of the node's pod ranges that is no known pod's.
//!
//! In: [`PodRanges`]. Out: rules that lead from the base chains to a chain for each half, which drops and counts what is at no known
//! pod. What always holds: the known are those that the verdict maps lead from, and they are asked before the maps: a pod that
//! becomes known between two look-ups of a packet is closed or judged, never neither. Without ranges there is nothing of this.

use super::base::{DENIED, ends, guard, pods, rule};
use super::sets::{self, Builder, Ip};
use super::{Guard, Layout};
use crate::effective::Effective;
use crate::policy::Direction;
use crate::ranges::PodRanges;
use crate::ruleset::{Chain, Datum, Expr, Rule, SetKind, Verdict};

/// The ranges in force: none while everything passes.
pub(super) fn ranges<'a>(effective: &Effective, layout: &'a Layout) -> Option<&'a PodRanges> {
    Some(&layout.pod_ranges).filter(|ranges| !ranges.is_empty() && !effective.lifted)
}

/// The addresses within that are no pod's, and the chains that ask.
pub(super) fn add(table: &mut Builder<'_>, ranges: &PodRanges) {
    for ip in Ip::BOTH {
        table.fixed(&others(ip), SetKind::Set, vec![ip.key_type()], "addresses of the pod ranges that are no pod's");
    }
    for address in ranges.others() {
        table.element(&others(Ip::of(*address)), sets::address(*address), Datum::None);
    }
    for half in Direction::BOTH {
        let known = [pods, others].into_iter().flat_map(|set| {
            ends(half).map(|(field, ip)| {
                rule(vec![Expr::Lookup { key: vec![field], set: set(ip) }, Expr::Verdict(Verdict::Return)], "")
            })
        });
        let counter = Expr::Counter(guard(table, Guard::UnknownPod));
        // The way back of a flow stops too: it may be an earlier pod's.
        let closed = rule(vec![counter, Expr::Verdict(Verdict::Goto(DENIED.to_owned()))], "closed until it is known");
        let rules = known.chain([closed]).collect();
        let comment = format!("{half}: an address of the pod ranges, known or not");
        table.chain(&chain(half), Chain { hook: None, comment, rules });
    }
}

/// From a base chain: what has an end in the ranges is asked whether it is known.
pub(super) fn asks(ranges: Option<&PodRanges>, half: Direction) -> Vec<Rule> {
    let prefixes = ranges.into_iter().flat_map(PodRanges::prefixes);
    let asked = |prefix: &ipnetwork::IpNetwork| {
        let of_family = ends(half).into_iter().filter(|(_, ip)| *ip == Ip::of(prefix.ip()));
        let jump = Expr::Verdict(Verdict::Jump(chain(half)));
        of_family
            .map(|(field, _)| rule(vec![Expr::Prefix { field, prefix: *prefix }, jump.clone()], ""))
            .collect::<Vec<_>>()
    };
    prefixes.flat_map(asked).collect()
}

fn others(ip: Ip) -> String {
    format!("own{}", ip.digit())
}

fn chain(half: Direction) -> String {
    format!("known-{half}")
}
