//! What compiled rules count: each packet that passes once for each half, whatever state its flow is in.

use std::net::IpAddr;

use super::*;
use crate::effective::{EffectivePod, EffectiveRule, Fallback, Isolation, PeerMatch, PortMatch, RuleMatch};
use crate::ids::{Allocator, Claims};
use crate::mark::{DENIED_MARK, GENERATION_MASK, IDS_MASK, TWO_IDS, id_bits, id_mask};
use crate::policy::Tier;
use crate::ruleset::{CtDirection, Hook};
use crate::sim::tracer::{Flow, Frame, Packet, Trace, trace};

const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 244, 1, 10));
const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 244, 1, 11));
const REMOTE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 244, 2, 10));
const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 244, 3, 10));
const NODE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 244, 1, 1));

fn rule(direction: Direction) -> EffectiveRule {
    let identity = RuleIdentity {
        policy: ObjectName::new("x", "p"),
        direction,
        action: Action::Accept,
        peers: "any".to_owned(),
        ports: "any".to_owned(),
        occurrence: 0,
    };
    let matches = vec![RuleMatch::Peer(PeerMatch::Any, PortMatch::Any)];
    EffectiveRule { identity: Arc::new(identity), index: 0, tier: Tier::NetworkPolicy, action: Action::Accept, matches }
}

/// `a` has a rule for each direction, `b` none and no isolation.
fn node() -> Effective {
    let ruled =
        |direction| Isolation { default: Fallback::Deny, policies: Vec::new(), rules: vec![Arc::new(rule(direction))] };
    let open = Isolation::default;
    let pod = |name: &str, address, ingress, egress| EffectivePod {
        name: ObjectName::new("x", name),
        addresses: vec![address],
        ingress,
        egress,
    };
    let pods = [pod("a", A, ruled(Direction::Ingress), ruled(Direction::Egress)), pod("b", B, open(), open())];
    Effective::from_iter(pods)
}

struct Node {
    compiled: Compiled,
    generation: Generation,
}

impl Node {
    fn with(ids: Ids, own_node_egress: bool) -> Self {
        let generation = Generation::new(9).expect("a generation");
        let layout = Layout { generation, ids, own_node_egress, ..Layout::default() };
        Self { compiled: compile(&node(), &layout), generation }
    }

    fn new() -> Self {
        Self::with(Ids::fresh(&node()), true)
    }

    fn send(&self, hook: Hook, (from, to): (IpAddr, IpAddr), flow: Option<Flow>) -> Trace {
        let packet = Packet {
            family: Family::Inet,
            hook,
            iif: Some("flannel.1".to_owned()),
            ether_type: 0x0800,
            addresses: Some((from, to)),
            protocol: 6,
            dport: Some(80),
            hop_limit: 0,
            icmpv6_type: None,
            address_type: 1,
            flow,
            frame: Frame::default(),
        };
        let trace = trace(&self.compiled.ruleset, &packet);
        assert!(trace.passed, "{trace:?}");
        trace
    }

    /// What the counters that were hit count, short.
    fn counted(&self, trace: &Trace) -> Vec<String> {
        let mut counted: Vec<String> =
            trace.counters.iter().map(|name| word(&self.compiled.counters[name.as_str()])).collect();
        counted.sort();
        counted
    }
}

fn word(meaning: &CounterMeaning) -> String {
    match meaning {
        CounterMeaning::Rule { identity, .. } => format!("rule {}", identity.direction),
        CounterMeaning::RuleConnections { identity, .. } => format!("new rule {}", identity.direction),
        CounterMeaning::DefaultAllowed { pod, direction } => format!("{} {direction}", pod.name),
        CounterMeaning::DefaultAllowedConnections { pod, direction } => format!("new {} {direction}", pod.name),
        CounterMeaning::Unattributed => "nobody".to_owned(),
        other => format!("{other:?}"),
    }
}

fn there(mark: u32) -> Option<Flow> {
    Some(Flow { direction: CtDirection::Original, related: false, mark })
}

fn back(mark: u32) -> Option<Flow> {
    Some(Flow { direction: CtDirection::Reply, related: false, mark })
}

/// Marks of a flow in every state that its packets may find it in, by what the first packet left.
fn states(mark: u32) -> [u32; 3] {
    let older = Generation::new(8).expect("a generation").mark();
    [mark, mark & (IDS_MASK | TWO_IDS) | older, mark & IDS_MASK | DENIED_MARK]
}

#[test]
fn a_connection_counts_once_and_each_packet_of_it_once_for_each_half() {
    let cases = [
        ((A, B), vec!["b ingress", "rule egress"]),
        ((B, A), vec!["b egress", "rule ingress"]),
        ((A, REMOTE), vec!["rule egress"]),
        ((REMOTE, A), vec!["rule ingress"]),
        ((REMOTE, B), vec!["b ingress"]),
        ((A, A), vec!["a egress", "a ingress"]),
    ];
    let node = Node::new();
    for ((from, to), expected) in cases {
        let first = node.send(Hook::Forward, (from, to), there(0));
        let mut opening: Vec<String> =
            expected.iter().flat_map(|word| [format!("new {word}"), word.to_string()]).collect();
        opening.sort();
        assert_eq!(node.counted(&first), opening, "{from} {to}");
        let mark = first.mark.expect("a mark");
        for state in states(mark) {
            let next = node.send(Hook::Forward, (from, to), there(state));
            assert_eq!(node.counted(&next), expected, "{from} {to} {state:#x}");
            assert_eq!(next.mark, Some(mark), "{from} {to} {state:#x}");
        }
        for state in &states(mark)[..2] {
            let reply = node.send(Hook::Forward, (to, from), back(*state));
            assert_eq!(
                (node.counted(&reply), reply.mark),
                (expected.iter().map(ToString::to_string).collect(), Some(*state))
            );
        }
    }
}

#[test]
fn a_pod_and_its_own_node_count_for_the_egress_half() {
    let node = Node::new();
    let first = node.send(Hook::Input, (A, NODE), there(0));
    assert_eq!(node.counted(&first), ["new rule egress", "rule egress"]);
    let mark = first.mark.expect("a mark");
    for state in &states(mark)[..2] {
        assert_eq!(node.counted(&node.send(Hook::Input, (A, NODE), there(*state))), ["rule egress"]);
        assert_eq!(node.counted(&node.send(Hook::Output, (NODE, A), back(*state))), ["rule egress"]);
    }
    let probe = node.send(Hook::Output, (NODE, A), there(0));
    let answer = node.send(Hook::Input, (A, NODE), back(0));
    assert!(node.counted(&probe).is_empty() && node.counted(&answer).is_empty() && probe.mark == Some(0));
}

#[test]
fn what_is_not_judged_on_its_way_to_the_own_node_counts_for_nobody() {
    let node = Node::with(Ids::fresh(&self::node()), false);
    let first = node.send(Hook::Input, (A, NODE), there(0x0012_3456));
    assert_eq!((node.counted(&first), first.mark), (vec!["nobody".to_owned()], Some(node.generation.mark())));
    assert_eq!(node.counted(&node.send(Hook::Input, (A, NODE), there(node.generation.mark()))), ["nobody"]);
}

/// Ids of a half that has no local pod any more are of whoever had the address.
#[test]
fn ids_of_an_earlier_life_are_written_over_or_cleared() {
    let node = Node::new();
    for (ends, halves) in [((REMOTE, A), Direction::Ingress), ((A, REMOTE), Direction::Egress)] {
        let clean = node.send(Hook::Forward, ends, there(0));
        let dirty = node.send(Hook::Forward, ends, there(Generation::FIRST.mark() | TWO_IDS | IDS_MASK));
        assert_eq!(clean.mark, dirty.mark);
        assert_eq!(clean.mark.map(|mark| mark & (IDS_MASK | TWO_IDS) & !id_mask(halves)), Some(0));
    }
}

#[test]
fn an_id_of_nobody_counts_as_such_and_keeps_the_short_way() {
    let node = Node::new();
    let lost = |half| id_bits(half, 77);
    let known = node.send(Hook::Forward, (A, B), there(0)).mark.expect("a mark") & IDS_MASK;
    let marks = [
        lost(Direction::Egress),
        lost(Direction::Ingress),
        0,
        TWO_IDS | lost(Direction::Egress) | known & id_mask(Direction::Ingress),
    ];
    for mark in marks.map(|bits| node.generation.mark() | bits) {
        let packet = node.send(Hook::Forward, (A, B), there(mark));
        assert_eq!((node.counted(&packet), packet.mark), (vec!["nobody".to_owned()], Some(mark)), "{mark:#x}");
        let (_, place) = packet.decisions[0].rule.clone().expect("a rule");
        assert!(place < 3, "{packet:?}");
    }
    let half_lost = TWO_IDS | known & id_mask(Direction::Egress) | lost(Direction::Ingress);
    let older = Generation::FIRST.mark();
    for mark in [node.generation.mark(), older].map(|generation| generation | half_lost) {
        assert_eq!(node.counted(&node.send(Hook::Forward, (B, A), back(mark))), ["nobody", "rule egress"]);
    }
}

#[test]
fn without_counting_the_same_passes_is_stamped_and_nothing_counts() {
    let ids = Allocator::new(0).assign(&Claims::of(&node()));
    let generation = Generation::new(9).expect("a generation");
    let layout = Layout { generation, ids, counts: false, ..Layout::default() };
    let node = Node { compiled: compile(&node(), &layout), generation };
    for ends in [(A, B), (A, REMOTE), (REMOTE, A)] {
        let first = node.send(Hook::Forward, ends, there(0));
        let mark = first.mark.expect("a mark");
        assert!(first.counters.is_empty() && mark & GENERATION_MASK == generation.mark(), "{first:?}");
        let next = node.send(Hook::Forward, ends, there(mark));
        assert!(next.counters.is_empty() && next.mark == Some(mark), "{next:?}");
        let (_, place) = next.decisions[0].rule.clone().expect("a rule");
        assert_eq!(place, 0, "{next:?}");
    }
    assert_eq!(node.send(Hook::Forward, (REMOTE, OTHER), there(0x0300_0000)).mark, Some(0x0300_0000));
    assert!(node.send(Hook::Forward, (A, B), None).counters.is_empty());
}

#[test]
fn rules_without_an_id_count_as_nobody_and_decide_like_any_other() {
    let ids = Allocator::new(1).assign(&Claims::of(&node()));
    let node = Node::with(ids, true);
    let mut counted: Vec<String> = [(A, REMOTE), (B, REMOTE), (REMOTE, A), (REMOTE, B)]
        .into_iter()
        .flat_map(|ends| {
            let mark = node.send(Hook::Forward, ends, there(0)).mark.expect("a mark");
            node.counted(&node.send(Hook::Forward, ends, there(mark)))
        })
        .collect();
    counted.sort();
    assert_eq!(counted.iter().filter(|word| *word == "nobody").count(), 4, "the ids went to itself: {counted:?}");
}

#[test]
fn what_conntrack_does_not_know_passes_and_counts_for_nobody() {
    let node = Node::new();
    for ends in [(A, B), (A, REMOTE), (REMOTE, B)] {
        assert_eq!(node.counted(&node.send(Hook::Forward, ends, None)), ["nobody"]);
    }
}

#[test]
fn what_has_no_local_end_is_left_alone() {
    let node = Node::new();
    for flow in [there(0x1234), back(0), None] {
        let packet = node.send(Hook::Forward, (REMOTE, OTHER), flow);
        assert!(packet.counters.is_empty(), "{packet:?}");
    }
    assert_eq!(node.send(Hook::Forward, (REMOTE, OTHER), there(0x0300_0000)).mark, Some(0x0300_0000));
}
