//! The base chains: where packets enter, in which order they are asked what, and where the ways round policy end.
//!
//! ```text
//!  priority   forward                              input                    output
//!  -200       conntrack
//!  -100       DNAT (kube-proxy)
//!   -10       flatfell: pod to pod, in and out     pod to its own node      replies of denied flows
//!     0       iptables FORWARD (Flannel, kube-proxy)
//!   100       masquerade
//! ```
//!
//! In: [`Effective`] and [`Layout`]. Out: the base chains, their fixed sets and the guards of a [`Builder`]. What always holds: a flow
//! that the current generation judged is accepted by the first rule; every other packet of a flow's own direction is
//! judged.

use super::count::{self, COUNT};
use super::log;
use super::pod::dispatch_map;
use super::sets::{Builder, Ip};
use super::{CounterMeaning, GENERATION_SET, Guard, Layout, unknown};
use crate::effective::{Effective, Fallback};
use crate::mark::{DENIED_MARK, GENERATION_MASK, HALVES, IDS_MASK, TWO_IDS, id_mask};
use crate::policy::Direction;
use crate::ranges::PodRanges;
use crate::ruleset::{BaseHook, Chain, CtDirection, Datum, Expr, Field, Hook, KeyType, Rule, SetKind, Value, Verdict};

/// Behind conntrack and DNAT, before iptables' FORWARD: `filter - 10`.
const PRIORITY: i32 = -10;

/// `filter` of the bridge family.
const BRIDGE_PRIORITY: i32 = -200;

/// The chain that judges what comes from a pod bridge before any policy.
const BRIDGED: &str = "bridged";

/// The chain where every denial of policy ends.
pub(super) const DENIED: &str = "denied";

const ETHER_TYPES: [u16; 3] = [0x0800, 0x86dd, 0x0806];

/// ICMPv6 types of neighbour discovery (RFC 4861): router and neighbour solicitations, neighbour advertisements.
const DISCOVERY: [u8; 3] = [133, 135, 136];
/// ICMPv6 types of multicast listeners (RFC 2710, RFC 3810).
const LISTENERS: [u8; 4] = [130, 131, 132, 143];
/// Discovery is believed with this hop limit only (RFC 4861, section 7.1): what was routed has a smaller one.
const ON_LINK: u8 = 255;
const ROUTER_ADVERTISEMENT: u8 = 134;
const REDIRECT: u8 = 137;

/// Routing types of linux/rtnetlink.h that reach more than one interface: RTN_BROADCAST, RTN_ANYCAST, RTN_MULTICAST.
const MULTIPLE: [u32; 3] = [3, 4, 5];

impl Builder<'_> {
    /// Says that an address is a local pod's.
    pub(super) fn local_pod(&mut self, address: std::net::IpAddr) {
        self.element(&pods(Ip::of(address)), super::sets::address(address), Datum::None);
    }
}

pub(super) fn pods(ip: Ip) -> String {
    format!("pods{}", ip.digit())
}

/// The fixed sets and maps, which the pods' elements go into.
pub(super) fn add_sets(table: &mut Builder<'_>, layout: &Layout) {
    for ip in Ip::BOTH {
        let key = || vec![ip.key_type()];
        table.fixed(&pods(ip), SetKind::Set, key(), "addresses of local pods");
        for direction in Direction::BOTH {
            let comment = format!("chains of local pods for {direction}");
            table.fixed(&dispatch_map(direction, ip), SetKind::VerdictMap, key(), &comment);
        }
    }
    table.fixed(GENERATION_SET, SetKind::Set, vec![KeyType::Mark], "the current generation of ct mark");
    table.element(GENERATION_SET, Value::Mark(layout.generation.mark()), Datum::None);
    count::add_sets(table, &layout.ids);
    table.fixed("bridges", SetKind::Set, vec![KeyType::Ifname], "bridges that carry pods");
    for bridge in &layout.bridges {
        table.element("bridges", Value::Ifname(bridge.clone()), Datum::None);
    }
    for (name, kinds, comment) in
        [("discovery", &DISCOVERY[..], "neighbour discovery"), ("listeners", &LISTENERS[..], "multicast listeners")]
    {
        table.fixed(name, SetKind::Set, vec![KeyType::Icmpv6Type], comment);
        for kind in kinds {
            table.element(name, Value::Icmpv6Type(*kind), Datum::None);
        }
    }
}

/// The base chains and the guards.
pub(super) fn add_chains(table: &mut Builder<'_>, effective: &Effective, layout: &Layout) {
    let closed = effective
        .pods
        .iter()
        .any(|pod| Direction::BOTH.into_iter().any(|direction| pod.isolation(direction).default == Fallback::Deny));
    let bridged = bridged(table, closed);
    table.chain(BRIDGED, Chain { hook: None, comment: "from a bridge that carries pods".to_owned(), rules: bridged });
    table.chain(DENIED, Chain { hook: None, comment: "every denial of policy".to_owned(), rules: denied() });
    log::add_chains(table, layout.flow_log);
    let ranges = unknown::ranges(effective, layout);
    ranges.iter().for_each(|ranges| unknown::add(table, ranges));
    let forward = forward(table, layout, ranges, closed);
    let input = input(table, layout, ranges);
    let output = output(table);
    count::add_chains(table);
    for (hook, name, rules, comment) in [
        (Hook::Forward, "forward", forward, "between pods, and between pods and the world"),
        (Hook::Input, "input", input, "from pods to their own node"),
        (Hook::Output, "output", output, "from the node to its pods: never judged"),
    ] {
        let hook = Some(BaseHook { hook, priority: PRIORITY });
        table.chain(name, Chain { hook, comment: comment.to_owned(), rules });
    }
}

/// The chain at the bridges' ports: only IP and ARP, without tags (a tagged frame passes by every inet hook).
pub(super) fn add_frame_guard(table: &mut Builder<'_>, layout: &Layout) {
    table.fixed("ports", SetKind::Set, vec![KeyType::Ifname], "ports of bridges that carry pods");
    for port in &layout.ports {
        table.element("ports", Value::Ifname(port.clone()), Datum::None);
    }
    let counter = guard(table, Guard::Frame);
    let mut exprs: Vec<Expr> = ETHER_TYPES
        .iter()
        .map(|kind| Expr::Compare { field: Field::EtherType, value: Value::EtherType(*kind), negated: true })
        .collect();
    exprs.push(Expr::Lookup { key: vec![Field::Iifname], set: "ports".to_owned() });
    exprs.extend([Expr::Counter(counter), Expr::Verdict(Verdict::Drop)]);
    let rules = vec![rule(exprs, "tagged or neither IP nor ARP")];
    let hook = Some(BaseHook { hook: Hook::Prerouting, priority: BRIDGE_PRIORITY });
    table.chain("frames", Chain { hook, comment: "frames from pods".to_owned(), rules });
}

pub(super) fn rule(exprs: Vec<Expr>, comment: &str) -> Rule {
    Rule { exprs, comment: comment.to_owned() }
}

fn verdict(verdict: Verdict) -> Expr {
    Expr::Verdict(verdict)
}

/// The counter of a guard.
pub(super) fn guard(table: &mut Builder<'_>, guard: Guard) -> String {
    let word = guard.word();
    table.counter(("guard", word, word), &format!("guard: {word}"), CounterMeaning::Guard(guard))
}

/// What every hook asks first.
fn head(table: &mut Builder<'_>, layout: &Layout) -> Vec<Rule> {
    let current = layout.generation.mark();
    let of_current = |bit| Expr::CtMark { mask: GENERATION_MASK | TWO_IDS, value: current | bit, negated: false };
    let [egress, ingress] = HALVES.map(|half| count::by_mark(id_mask(half)));
    let any = Expr::CtMark { mask: GENERATION_MASK, value: current, negated: false };
    let nobody = Expr::Counter(count::unattributed(table));
    let mut rules = vec![
        rule(vec![of_current(0), count::by_mark(IDS_MASK), verdict(Verdict::Accept)], "judged by the current policy"),
        rule(vec![of_current(TWO_IDS), egress, ingress, verdict(Verdict::Accept)], "the same, between local pods"),
        rule(vec![any, nobody, verdict(Verdict::Accept)], "the same, by an id of nobody any more"),
        denied_reply(table),
    ];
    rules.extend(replies());
    // Only ICMP: an expectation of a helper is related as well, and its master's mark would carry it past policy.
    for protocol in [1, 58] {
        let l4proto = Expr::Compare { field: Field::L4Proto, value: Value::Proto(protocol), negated: false };
        rules.push(rule(vec![Expr::CtStateRelated, l4proto, verdict(Verdict::Accept)], "errors about a flow"));
    }
    rules.push(rule(
        vec![
            Expr::Lookup { key: vec![Field::Iifname], set: "bridges".to_owned() },
            verdict(Verdict::Jump(BRIDGED.to_owned())),
        ],
        "",
    ));
    rules
}

/// The way back of a flow that no current judgement let through at once.
fn replies() -> [Rule; 2] {
    let reply = Expr::CtDirection(CtDirection::Reply);
    [
        rule(vec![reply.clone(), count::any_of(GENERATION_MASK), verdict(Verdict::Jump(COUNT.to_owned()))], ""),
        rule(vec![reply, verdict(Verdict::Accept)], "replies"),
    ]
}

fn denied_reply(table: &mut Builder<'_>) -> Rule {
    let exprs = vec![
        Expr::CtMark { mask: GENERATION_MASK, value: DENIED_MARK, negated: false },
        Expr::CtDirection(CtDirection::Reply),
        Expr::Counter(guard(table, Guard::DeniedReply)),
        verdict(Verdict::Drop),
    ];
    rule(exprs, "replies of denied flows")
}

/// Stamps the flow, so that the way back of a running connection stops too, then drops. Two rules: a packet that
/// conntrack does not know ends the one that reads its mark.
fn denied() -> Vec<Rule> {
    let stamp = Expr::SetCtMark { keep: !GENERATION_MASK, value: DENIED_MARK };
    vec![rule(vec![stamp], "replies stop too"), rule(vec![verdict(Verdict::Drop)], "")]
}

fn forward(table: &mut Builder<'_>, layout: &Layout, ranges: Option<&PodRanges>, closed: bool) -> Vec<Rule> {
    let mut rules = head(table, layout);
    if closed {
        rules.extend(MULTIPLE.iter().map(|kind| {
            let exprs = vec![
                Expr::Lookup { key: vec![Field::Iifname], set: "bridges".to_owned() },
                Expr::Compare { field: Field::FibDaddrIifType, value: Value::AddrType(*kind), negated: false },
                Expr::Counter(guard(table, Guard::Multicast)),
                verdict(Verdict::Drop),
            ];
            rule(exprs, "reaches pods without naming them")
        }));
    }
    rules.extend(HALVES.into_iter().flat_map(|half| unknown::asks(ranges, half)));
    rules.extend(HALVES.map(forget));
    rules.extend(dispatch(Direction::Egress));
    rules.extend(dispatch(Direction::Ingress));
    rules.extend(judged(table, layout));
    rules
}

fn input(table: &mut Builder<'_>, layout: &Layout, ranges: Option<&PodRanges>) -> Vec<Rule> {
    let mut rules = head(table, layout);
    if layout.own_node_egress {
        rules.extend(unknown::asks(ranges, Direction::Egress));
        rules.extend(HALVES.map(forget));
        rules.extend(dispatch(Direction::Egress));
    } else {
        let nobody = Expr::SetCtMark { keep: !IDS_MASK, value: 0 };
        rules.push(rule(vec![count::any_of(IDS_MASK), nobody], "not judged here"));
    }
    rules.extend(judged(table, layout));
    rules
}

fn output(table: &mut Builder<'_>) -> Vec<Rule> {
    let reply = Expr::CtDirection(CtDirection::Reply);
    let count = verdict(Verdict::Jump(COUNT.to_owned()));
    vec![
        denied_reply(table),
        rule(vec![count::any_of(GENERATION_MASK), reply, count], "replies of the node to its pods"),
    ]
}

/// Ids that an earlier policy wrote stand until another is written over them; where a half has no local pod any more, none
/// is.
fn forget(half: Direction) -> Rule {
    rule(vec![count::any_of(id_mask(half)), verdict(Verdict::Jump(count::forget_half(half)))], "")
}

/// The addresses of the end of a connection that a half is about.
pub(super) fn ends(half: Direction) -> [(Field, Ip); 2] {
    match half {
        Direction::Egress => [(Field::IpSaddr, Ip::V4), (Field::Ip6Saddr, Ip::V6)],
        Direction::Ingress => [(Field::IpDaddr, Ip::V4), (Field::Ip6Daddr, Ip::V6)],
    }
}

/// Into the chain of the pod whose address it is; an allow returns to behind this.
fn dispatch(half: Direction) -> [Rule; 2] {
    ends(half).map(|(field, ip)| rule(vec![Expr::Vmap { key: vec![field], map: dispatch_map(half, ip) }], ""))
}

/// Counts and stamps what policy let through, if it has an end in this node's pods: others use ct mark too. The stamp
/// stands in the base chain, which a packet in flight keeps: a decision of rules that are gone is stamped as theirs.
fn judged(table: &mut Builder<'_>, layout: &Layout) -> [Rule; 6] {
    let jump = |chain: &str| verdict(Verdict::Jump(chain.to_owned()));
    let stamp = |bit| Expr::SetCtMark { keep: IDS_MASK, value: layout.generation.mark() | bit };
    let [egress, ingress] = HALVES.map(|half| count::any_of(id_mask(half)));
    let nobody = Expr::Counter(count::unattributed(table));
    [
        rule(vec![jump(count::OTHERS)], ""),
        rule(vec![count::never_judged(), jump(count::BEGIN)], ""),
        rule(vec![jump(COUNT)], ""),
        rule(vec![egress, ingress, stamp(TWO_IDS), verdict(Verdict::Accept)], "judged, between local pods"),
        rule(vec![stamp(0), verdict(Verdict::Accept)], "judged"),
        rule(vec![nobody, verdict(Verdict::Accept)], "conntrack does not know it"),
    ]
}

/// What a pod bridge may carry beside policy: discovery, and nothing that names no pod.
fn bridged(table: &mut Builder<'_>, closed: bool) -> Vec<Rule> {
    let icmpv6 = |kind| Expr::Compare { field: Field::Icmpv6Type, value: Value::Icmpv6Type(kind), negated: false };
    let drop = |table: &mut Builder<'_>, guarded| [Expr::Counter(guard(table, guarded)), verdict(Verdict::Drop)];
    let mut rules = Vec::new();
    for kind in [ROUTER_ADVERTISEMENT, REDIRECT] {
        let mut exprs = vec![icmpv6(kind)];
        exprs.extend(drop(table, Guard::RouterAdvertisement));
        rules.push(rule(exprs, "no pod is a router"));
    }
    let on_link = Expr::Compare { field: Field::Ip6HopLimit, value: Value::HopLimit(ON_LINK), negated: false };
    let to_group = Expr::Prefix { field: Field::Ip6Daddr, prefix: six([0xff00, 0, 0, 0, 0, 0, 0, 0], 8) };
    // Only where it stays on the bridge: else an isolated pod could send anything as discovery.
    for (set, stays) in [("discovery", on_link), ("listeners", to_group)] {
        let kinds = Expr::Lookup { key: vec![Field::Icmpv6Type], set: set.to_owned() };
        rules.push(rule(vec![kinds, stays, verdict(Verdict::Accept)], "IPv6 lives on it"));
    }
    if closed {
        for field in [Field::Ip6Saddr, Field::Ip6Daddr] {
            let mut exprs = vec![Expr::Prefix { field, prefix: six([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10) }];
            exprs.extend(drop(table, Guard::LinkLocal));
            rules.push(rule(exprs, "passes by every address of a pod"));
        }
    }
    rules
}

/// A prefix of IPv6: multicast is ff00::/8, link-local fe80::/10 (RFC 4291, section 2.4).
fn six(groups: [u16; 8], length: u8) -> ipnetwork::IpNetwork {
    let network = std::net::Ipv6Addr::from(groups);
    ipnetwork::IpNetwork::V6(ipnetwork::Ipv6Network::new_checked(network, length).unwrap_or_else(|| network.into()))
}
