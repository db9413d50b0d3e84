//! Counting whole connections: what is done with the ids in ct mark.
//!
//! In: nothing. Out: the sets that count by id, and the chains that ask them. What always holds: a packet that passes and has an
//! end in a local pod is counted once for each half that has an id, or once as not attributed; no rule here says what
//! passes; nothing here depends on the generation, so that no chain that is jumped to writes one (a packet in flight keeps
//! the base chain it entered, not what that leads to).

use super::part::Part;
use super::sets::Ip;
use super::{CounterMeaning, base};
use crate::ids::{CONNECTIONS, COUNTERS, RETIRED};
use crate::mark::{GENERATION_MASK, HALVES, IDS_MASK, NO_ID, id_bits, id_mask};
use crate::policy::Direction;
use crate::ruleset::{Chain, Expr, Field, KeyType, Name, Rule, SetKind, Verdict};

/// The chain that counts a packet by the ids of its flow.
pub(super) const COUNT: &str = "count-packet";

/// The chain that counts a connection by the ids of its flow.
pub(super) const BEGIN: &str = "begin";

/// The chain that accepts what has no end in a local pod.
pub(super) const OTHERS: &str = "others";

/// The chain that clears the ids of halves that have no local pod.
pub(super) const FORGET: &str = "forget";

/// Counts for nobody, and begins the names of those that do so by a mark.
const UNATTRIBUTED: &str = "unattributed";

/// Elements of a set that counts: every id of both halves, and none. The kernel picks its fastest set for a size that is known, at 32
/// bytes for each element.
const SIZE: u32 = 8192;

/// The sets that count, and the set of ids that wait.
pub(super) fn add_sets(table: &mut Part) {
    let key = || vec![KeyType::Mark];
    table.sized(COUNTERS, SetKind::Counters, key(), SIZE, "packets, by the ids in ct mark");
    table.sized(CONNECTIONS, SetKind::Counters, key(), SIZE, "connections, by the ids in ct mark");
    table.fixed(RETIRED, SetKind::Set, key(), "ids that running flows may still carry");
    let none = |half: Direction| (id_bits(half, NO_ID), format!("{UNATTRIBUTED}-{half}"));
    let halves = HALVES.map(none);
    for (bits, name) in [(0, format!("{UNATTRIBUTED}-mark"))].into_iter().chain(halves) {
        table.counting(COUNTERS, bits, name.into(), CounterMeaning::Unattributed);
    }
}

/// The counter of what is counted for nobody.
pub(super) fn unattributed(table: &mut Part) -> Name {
    let name = Name::from(UNATTRIBUTED);
    table.named_counter(name.clone(), "packets that passed and count for no rule", CounterMeaning::Unattributed);
    name
}

/// Counts by the ids under this mask.
pub(super) fn by_mark(mask: u32) -> Expr {
    Expr::CountMark { mask, set: COUNTERS.into() }
}

/// Matches marks with a bit under this mask.
pub(super) fn any_of(mask: u32) -> Expr {
    Expr::CtMark { mask, value: 0, negated: true }
}

/// The chains that count.
pub(super) fn add_chains(table: &mut Part) {
    let nobody = Expr::Counter(unattributed(table));
    for half in Direction::BOTH {
        let rules = vec![
            base::rule(vec![by_mark(id_mask(half)), Expr::Verdict(Verdict::Return)], ""),
            base::rule(vec![nobody.clone()], "an id of nobody any more"),
        ];
        add(table, &count_half(half), &format!("one packet, for its {half} half"), rules);
        let pods = base::ends(half).map(|(field, ip)| pod_end(field, ip, Verdict::Return));
        let forget = Expr::SetCtMark { keep: !id_mask(half), value: 0 };
        let rules = pods.into_iter().chain([base::rule(vec![forget], "of an earlier pod")]).collect();
        add(table, &forget_half(half), &format!("the {half} id of a flow that has no local pod there"), rules);
    }
    let rules = HALVES.map(|half| {
        base::rule(vec![any_of(id_mask(half)), Expr::Verdict(Verdict::Jump(forget_half(half).into()))], "")
    });
    add(table, FORGET, "ids of an earlier judgement", rules.into());
    let jump = |half| vec![any_of(id_mask(half)), Expr::Verdict(Verdict::Jump(count_half(half).into()))];
    let without = Expr::CtMark { mask: IDS_MASK, value: 0, negated: false };
    let rules = vec![
        base::rule(jump(Direction::Egress), ""),
        base::rule(jump(Direction::Ingress), ""),
        base::rule(vec![without, nobody], ""),
    ];
    add(table, COUNT, "one packet, for each half of its flow", rules);
    let connection = |half| Expr::CountMark { mask: id_mask(half), set: CONNECTIONS.into() };
    let rules = HALVES.map(|half| base::rule(vec![connection(half)], "")).into();
    add(table, BEGIN, "one connection, for each half", rules);
    let ends = HALVES.into_iter().flat_map(base::ends);
    let pods = ends.map(|(field, ip)| pod_end(field, ip, Verdict::Return));
    let rules = pods.chain([base::rule(vec![Expr::Verdict(Verdict::Accept)], "none of our business")]).collect();
    add(table, OTHERS, "what has no end in a local pod", rules);
}

fn add(table: &mut Part, name: &str, comment: &str, rules: Vec<Rule>) {
    table.chain(name, Chain { hook: None, comment: comment.to_owned(), rules });
}

fn count_half(half: Direction) -> String {
    format!("{COUNT}-{half}")
}

/// The chain that clears the id of a half that has no local pod.
fn forget_half(half: Direction) -> String {
    format!("forget-{half}")
}

fn pod_end(field: Field, ip: Ip, verdict: Verdict) -> Rule {
    base::rule(vec![Expr::Lookup { key: vec![field], set: base::pods(ip).into() }, Expr::Verdict(verdict)], "")
}

/// Matches flows that nobody judged.
pub(super) fn never_judged() -> Expr {
    Expr::CtMark { mask: GENERATION_MASK, value: 0, negated: false }
}
