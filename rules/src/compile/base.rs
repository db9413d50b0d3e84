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
//! In: the [`Layout`]. Out: the base chains, their fixed sets and the guards of a [`Part`]. What always holds: a flow
//! that the current generation judged is accepted by the first rule; every other packet of a flow's own direction is
//! judged.

use super::count::{self, COUNT};
use super::log;
use super::part::Part;
use super::pod::dispatch_map;
use super::sets::Ip;
use super::{CounterMeaning, GENERATION_SET, Guard, Layout, PodPorts, unknown};
use crate::mark::{DENIED_MARK, GENERATION_MASK, HALVES, IDS_MASK, TWO_IDS, id_mask};
use crate::policy::Direction;
use crate::ruleset::{
    BaseHook, Chain, CtDirection, Datum, Expr, Field, Hook, KeyType, Name, Rule, SetKind, Value, Verdict,
};

/// Behind conntrack and DNAT, before iptables' FORWARD: `filter - 10`.
const PRIORITY: i32 = -10;

/// `filter` of the bridge family.
const BRIDGE_PRIORITY: i32 = -200;

/// The chain that judges what comes from a pod bridge before any policy.
const BRIDGED: &str = "bridged";

/// The chain of packets from a pod bridge to elsewhere on a node with an isolated pod.
const BRIDGED_FORWARD: &str = "bridged-forward";

/// The chain of packets whose destination is no single interface's.
const MULTICAST: &str = "multicast";

/// The chain of the way back of a flow that no current judgement let through at once.
const REPLIES: &str = "replies";

/// The chain of what conntrack relates to another flow.
const RELATED: &str = "related";

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
/// RTN_UNICAST, that of nearly every packet.
const UNICAST: u32 = 1;

/// The set of the addresses of local pods.
pub(super) fn pods(ip: Ip) -> &'static str {
    match ip {
        Ip::V4 => "pods4",
        Ip::V6 => "pods6",
    }
}

/// The fixed sets and maps, which the pods' elements go into.
pub(super) fn add_sets(table: &mut Part, layout: &Layout) {
    for ip in Ip::BOTH {
        let key = || vec![ip.key_type()];
        table.fixed(pods(ip), SetKind::Set, key(), "addresses of local pods");
        for direction in Direction::BOTH {
            let comment = format!("chains of local pods for {direction}");
            table.fixed(dispatch_map(direction, ip), SetKind::VerdictMap, key(), &comment);
        }
    }
    table.fixed(GENERATION_SET, SetKind::Set, vec![KeyType::Mark], "the current generation of ct mark");
    table.element(GENERATION_SET, Value::Mark(layout.generation.mark()), Datum::None);
    count::add_sets(table);
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

/// The base chains and the guards; `closed`: a local pod is isolated.
pub(super) fn add_chains(table: &mut Part, layout: &Layout, closed: bool) {
    let bridged = bridged(table, closed);
    table.chain(BRIDGED, Chain { hook: None, comment: "from a bridge that carries pods".to_owned(), rules: bridged });
    let replies = replies(table);
    for (name, comment, rules) in [
        (DENIED, "every denial of policy", denied()),
        (REPLIES, "the way back of flows that are not judged by the current policy", replies),
        (RELATED, "what belongs to another flow", related()),
    ] {
        table.chain(name, Chain { hook: None, comment: comment.to_owned(), rules });
    }
    if closed {
        add_multicast(table);
    }
    log::add_chains(table, layout.flow_log);
    unknown::add(table, &layout.pod_ranges);
    let forward = forward(table, layout, closed);
    let input = input(table, layout);
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
pub(super) fn add_frame_guard(table: &mut Part, layout: &Layout) {
    table.fixed("ports", SetKind::Set, vec![KeyType::Ifname], "ports of bridges that carry pods");
    for port in &layout.ports {
        table.element("ports", Value::Ifname(port.clone()), Datum::None);
    }
    let counter = guard(table, Guard::Frame);
    let mut exprs: Vec<Expr> = ETHER_TYPES
        .iter()
        .map(|kind| Expr::Compare { field: Field::EtherType, value: Value::EtherType(*kind), negated: true })
        .collect();
    exprs.push(Expr::Lookup { key: vec![Field::Iifname], set: "ports".into() });
    exprs.extend([Expr::Counter(counter), Expr::Verdict(Verdict::Drop)]);
    let mut rules = vec![rule(exprs, "tagged or neither IP nor ARP")];
    if let Some(pod_ports) = &layout.pod_ports {
        pod_ports.add_to(table);
        rules.splice(..0, PodPorts::ask_first());
        rules.push(PodPorts::ask());
    }
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
pub(super) fn guard(table: &mut Part, guard: Guard) -> Name {
    let word = guard.word();
    table.counter(("guard", word, word), &format!("guard: {word}"), CounterMeaning::Guard(guard))
}

/// What every hook asks first.
fn head(table: &mut Part, layout: &Layout) -> Vec<Rule> {
    let current = layout.generation.mark();
    let of_current = |bit| Expr::CtMark { mask: GENERATION_MASK | TWO_IDS, value: current | bit, negated: false };
    let [egress, ingress] = HALVES.map(|half| count::by_mark(id_mask(half)));
    let any = Expr::CtMark { mask: GENERATION_MASK, value: current, negated: false };
    let nobody = Expr::Counter(count::unattributed(table));
    let accept = verdict(Verdict::Accept);
    if layout.counts {
        vec![
            // First what asks most: the packets of these flows stay on the node, and this is most of what they pay.
            rule(vec![of_current(TWO_IDS), egress, ingress, accept.clone()], "judged, between local pods"),
            rule(vec![of_current(0), count::by_mark(IDS_MASK), accept.clone()], "judged by the current policy"),
            rule(vec![any, nobody, accept], "the same, by an id of nobody any more"),
        ]
    } else {
        vec![rule(vec![any, accept], "judged by the current policy")]
    }
}

/// What no packet that began a flow is.
fn not_first() -> [Rule; 2] {
    [
        rule(vec![Expr::CtDirection(CtDirection::Reply), jump(REPLIES)], ""),
        rule(vec![Expr::CtStateRelated, jump(RELATED)], ""),
    ]
}

fn jump(chain: &str) -> Expr {
    verdict(Verdict::Jump(chain.into()))
}

/// The way back of a flow that no current judgement let through at once.
fn replies(table: &mut Part) -> Vec<Rule> {
    vec![
        denied_reply(table, None),
        rule(vec![count::any_of(GENERATION_MASK), jump(COUNT)], ""),
        rule(vec![verdict(Verdict::Accept)], "judged by the packet that began the flow"),
    ]
}

/// Only ICMP: an expectation of a helper is related as well, and its master's mark would carry it past policy.
fn related() -> Vec<Rule> {
    let accept = |protocol| {
        let l4proto = Expr::Compare { field: Field::L4Proto, value: Value::Proto(protocol), negated: false };
        rule(vec![l4proto, verdict(Verdict::Accept)], "errors about a flow")
    };
    [1, 58].map(accept).into()
}

fn denied_reply(table: &mut Part, direction: Option<CtDirection>) -> Rule {
    let denied = Expr::CtMark { mask: GENERATION_MASK, value: DENIED_MARK, negated: false };
    let mut exprs = vec![denied];
    exprs.extend(direction.map(Expr::CtDirection));
    exprs.extend([Expr::Counter(guard(table, Guard::DeniedReply)), verdict(Verdict::Drop)]);
    rule(exprs, "replies of denied flows")
}

/// What comes from a bridge that carries pods goes here first.
fn from_bridges(chain: &str) -> Rule {
    rule(vec![Expr::Lookup { key: vec![Field::Iifname], set: "bridges".into() }, jump(chain)], "")
}

/// What reaches pods without naming them.
fn add_multicast(table: &mut Part) {
    let of_kind =
        |value, negated| Expr::Compare { field: Field::FibDaddrIifType, value: Value::AddrType(value), negated };
    let counter = guard(table, Guard::Multicast);
    let drop = |kind: u32| {
        let exprs = vec![of_kind(kind, false), Expr::Counter(counter.clone()), verdict(Verdict::Drop)];
        rule(exprs, "reaches pods without naming them")
    };
    for (name, comment, rules) in [
        (
            MULTICAST,
            "destinations on more than one interface, and others that are no single one",
            MULTIPLE.map(drop).into(),
        ),
        (
            BRIDGED_FORWARD,
            "from a bridge that carries pods, to elsewhere",
            vec![rule(vec![jump(BRIDGED)], ""), rule(vec![of_kind(UNICAST, true), jump(MULTICAST)], "")],
        ),
    ] {
        table.chain(name, Chain { hook: None, comment: comment.to_owned(), rules });
    }
}

/// Stamps the flow, so that the way back of a running connection stops too, then drops. Two rules: a packet that
/// conntrack does not know ends the one that reads its mark.
fn denied() -> Vec<Rule> {
    let stamp = Expr::SetCtMark { keep: !GENERATION_MASK, value: DENIED_MARK };
    vec![rule(vec![stamp], "replies stop too"), rule(vec![verdict(Verdict::Drop)], "")]
}

fn forward(table: &mut Part, layout: &Layout, closed: bool) -> Vec<Rule> {
    let mut rules = head(table, layout);
    rules.extend(not_first());
    rules.push(from_bridges(if closed { BRIDGED_FORWARD } else { BRIDGED }));
    rules.extend(HALVES.into_iter().flat_map(|half| unknown::asks(&layout.pod_ranges, half)));
    rules.push(forget());
    rules.extend(dispatch(Direction::Egress));
    rules.extend(dispatch(Direction::Ingress));
    rules.extend(judged(table, layout));
    rules
}

fn input(table: &mut Part, layout: &Layout) -> Vec<Rule> {
    let mut rules = head(table, layout);
    rules.push(from_bridges(BRIDGED));
    rules.extend(not_first());
    if layout.own_node_egress {
        rules.extend(unknown::asks(&layout.pod_ranges, Direction::Egress));
    }
    // Most of what comes here is the node's own, tunnels of other nodes included: each of their packets is a flow's that nobody judges.
    // What is at no known pod has no end in a local one either, so that is asked before.
    rules.push(rule(vec![jump(count::OTHERS)], ""));
    if layout.own_node_egress {
        rules.push(forget());
        rules.extend(dispatch(Direction::Egress));
    } else {
        let nobody = Expr::SetCtMark { keep: !IDS_MASK, value: 0 };
        rules.push(rule(vec![count::any_of(IDS_MASK), nobody], "not judged here"));
    }
    rules.extend(judged(table, layout));
    rules
}

fn output(table: &mut Part) -> Vec<Rule> {
    let reply = Expr::CtDirection(CtDirection::Reply);
    vec![
        denied_reply(table, Some(CtDirection::Reply)),
        rule(vec![count::any_of(GENERATION_MASK), reply, jump(COUNT)], "replies of the node to its pods"),
    ]
}

/// Ids that an earlier policy wrote stand until another is written over them; where a half has no local pod any more, none
/// is.
fn forget() -> Rule {
    rule(vec![count::any_of(IDS_MASK), jump(count::FORGET)], "")
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
    ends(half).map(|(field, ip)| rule(vec![Expr::Vmap { key: vec![field], map: dispatch_map(half, ip).into() }], ""))
}

/// Counts and stamps what policy let through, if it has an end in this node's pods: others use ct mark too. What has an id has
/// one. The stamp stands in the base chain, which a packet in flight keeps: a decision of rules that are gone is stamped as theirs.
fn judged(table: &mut Part, layout: &Layout) -> Vec<Rule> {
    let stamp = |bit| Expr::SetCtMark { keep: IDS_MASK, value: layout.generation.mark() | bit };
    let both = || HALVES.map(|half| count::any_of(id_mask(half))).into_iter();
    let without = Expr::CtMark { mask: IDS_MASK, value: 0, negated: false };
    let nobody = [Expr::Counter(count::unattributed(table)), verdict(Verdict::Accept)];
    let accept = verdict(Verdict::Accept);
    if !layout.counts {
        return vec![
            rule(vec![without, jump(count::OTHERS)], ""),
            rule(vec![stamp(0), accept.clone()], "judged"),
            rule(vec![accept], "conntrack does not know it"),
        ];
    }
    let counted = HALVES.map(|half| count::by_mark(id_mask(half)));
    vec![
        rule(vec![without, jump(count::OTHERS)], ""),
        rule(vec![count::never_judged(), jump(count::BEGIN)], ""),
        rule(both().chain([stamp(TWO_IDS)]).chain(counted).chain([accept.clone()]).collect(), "between local pods"),
        rule(both().chain(nobody.clone()).collect(), "the same, by an id of nobody any more"),
        rule(vec![stamp(0), count::by_mark(IDS_MASK), accept], "judged"),
        rule(vec![jump(count::OTHERS)], ""),
        rule(nobody.into(), "an id of nobody any more, or conntrack does not know it"),
    ]
}

/// What a pod bridge may carry beside policy: discovery, and nothing that names no pod.
fn bridged(table: &mut Part, closed: bool) -> Vec<Rule> {
    let icmpv6 = |kind| Expr::Compare { field: Field::Icmpv6Type, value: Value::Icmpv6Type(kind), negated: false };
    let drop = |table: &mut Part, guarded| [Expr::Counter(guard(table, guarded)), verdict(Verdict::Drop)];
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
        let kinds = Expr::Lookup { key: vec![Field::Icmpv6Type], set: set.into() };
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
