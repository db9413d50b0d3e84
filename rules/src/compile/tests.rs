//! What compiled rules do to packets where no cluster of the simulator leads: tiers that no source feeds yet, replies of
//! denied flows; and the numbers and words that others read.

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::effective::{EffectivePod, EffectiveRule, Fallback, Isolation, PeerMatch, PortMatch, RuleMatch};
use crate::mark::{DENIED_MARK, GENERATION_MASK};
use crate::object::Protocol;
use crate::policy::Tier;
use crate::ruleset::{BaseHook, Chain, CtDirection, Datum, Expr, Hook, Verdict};
use crate::sim::tracer::{Flow, Frame, Packet, Trace, trace};

const POD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 244, 1, 10));
const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 244, 2, 10));
const LOG: FlowLog = FlowLog { group: 7, rate: 100 };
const OTHERS_BITS: u32 = 0x0000_0abc;
const TIERS: [Tier; 3] = [Tier::Admin, Tier::NetworkPolicy, Tier::Baseline];
const ACTIONS: [Action; 3] = [Action::Accept, Action::Deny, Action::Pass];

fn isolated(default: Fallback, rules: Vec<EffectiveRule>) -> Effective {
    let rules = rules.into_iter().map(Arc::new).collect();
    let ingress = Isolation { default, policies: Vec::new(), rules };
    let pod =
        EffectivePod { name: ObjectName::new("x", "a"), addresses: vec![POD], ingress, egress: Isolation::default() };
    Effective::from_iter([pod])
}

/// A rule for one port from anywhere.
fn rule(index: usize, tier: Tier, action: Action, port: u16) -> EffectiveRule {
    let identity = RuleIdentity {
        policy: ObjectName::new("x", "p"),
        direction: Direction::Ingress,
        action,
        peers: format!("{tier:?}"),
        ports: port.to_string(),
        occurrence: index,
    };
    let matches = vec![RuleMatch::Peer(PeerMatch::Any, PortMatch::Ranges(Protocol::Tcp, vec![port..=port]))];
    EffectiveRule { identity: Arc::new(identity), index, tier, action, matches }
}

fn sent(effective: &Effective, port: u16, flow: Flow) -> Trace {
    let packet = Packet { flow: Some(flow), ..packet(port) };
    trace(&compile(effective, &Layout { flow_log: Some(LOG), ..Layout::default() }).ruleset, &packet)
}

/// From the peer to the pod.
fn packet(port: u16) -> Packet {
    Packet {
        family: Family::Inet,
        hook: Hook::Forward,
        iif: Some("flannel.1".to_owned()),
        ether_type: 0x0800,
        addresses: Some((PEER, POD)),
        protocol: 6,
        dport: Some(port),
        hop_limit: 0,
        icmpv6_type: None,
        address_type: 1,
        flow: None,
        frame: Frame::default(),
    }
}

fn opening(mark: u32) -> Flow {
    Flow { direction: CtDirection::Original, related: false, mark }
}

/// Tier by tier, as ClusterNetworkPolicy words it: the first rule that matches decides, Pass leaves the tier, and a pod
/// that NetworkPolicy isolates is closed to what its tier does not accept.
fn decided(default: Fallback, rules: &[EffectiveRule], port: u16) -> bool {
    for tier in TIERS {
        let asked = RuleMatch::Peer(PeerMatch::Any, PortMatch::Ranges(Protocol::Tcp, vec![port..=port]));
        let first = rules.iter().find(|rule| rule.tier == tier && rule.matches.contains(&asked));
        match first.map(|rule| rule.action) {
            Some(Action::Accept) => return true,
            Some(Action::Deny) => return false,
            Some(Action::Pass) => {}
            None if tier == Tier::NetworkPolicy && default == Fallback::Deny => return false,
            None => {}
        }
    }
    true
}

proptest! {
    #[test]
    fn tiers_decide_in_their_order(
        default in prop::sample::select(vec![Fallback::Open, Fallback::Deny, Fallback::Audit]),
        rules in prop::collection::vec((0..3_usize, 0..3_usize, 1..4_u16), 0..8),
    ) {
        let rules = rules.into_iter().enumerate();
        let mut rules: Vec<_> =
            rules.map(|(index, (tier, action, port))| rule(index, TIERS[tier], ACTIONS[action], port)).collect();
        rules.sort_by_key(|rule| rule.tier);
        let effective = isolated(default, rules.clone());
        for port in 1..=4 {
            prop_assert_eq!(sent(&effective, port, opening(0)).passed, decided(default, &rules, port), "port {}", port);
        }
    }
}

#[test]
fn a_pod_enters_by_one_name_whatever_its_first_tier() {
    for tier in TIERS {
        let effective = isolated(Fallback::Open, vec![rule(0, tier, Action::Deny, 1)]);
        let ruleset = compile(&effective, &Layout::default()).ruleset;
        let entries: Vec<_> = ruleset.tables[&Slot::A.inet()].sets["ingress4"].elements.data().collect();
        let name = crate::names::name("ingress", "x/a", "x/a");
        assert_eq!(entries, [&Datum::Verdict(Verdict::Jump(name))], "{tier:?}");
    }
}

#[test]
fn what_is_denied_stops_both_ways() {
    let effective = isolated(Fallback::Deny, Vec::new());
    let denied = sent(&effective, 1, opening(OTHERS_BITS));
    assert!(!denied.passed);
    let mark = denied.mark.expect("a flow");
    assert_eq!(mark & GENERATION_MASK, DENIED_MARK);
    let reply = Flow { direction: CtDirection::Reply, related: false, mark };
    let stopped = sent(&effective, 1, reply);
    assert!(!stopped.passed && stopped.counters.iter().any(|name| name.contains("denied-reply")), "{stopped:?}");
    assert!(sent(&effective, 1, Flow { mark: OTHERS_BITS, ..reply }).passed, "a reply of a flow that nobody denied");
}

/// Each packet that is denied or audited is given to the log once, and no other is.
#[test]
fn the_log_changes_no_verdict_and_sees_each_denial_once() {
    let sent_to_log = |trace: &Trace| trace.counters.iter().filter(|name| **name == *Logged::Sent.counter()).count();
    let allow = || vec![rule(0, Tier::NetworkPolicy, Action::Accept, 1)];
    for (default, passes) in [(Fallback::Deny, false), (Fallback::Audit, true)] {
        let effective = isolated(default, allow());
        let undecided = sent(&effective, 2, opening(0));
        assert_eq!((undecided.passed, sent_to_log(&undecided)), (passes, 1), "{default:?}: {undecided:?}");
        let allowed = sent(&effective, 1, opening(0));
        assert_eq!((allowed.passed, sent_to_log(&allowed)), (true, 0), "{default:?}: {allowed:?}");
    }
    let open = sent(&isolated(Fallback::Open, Vec::new()), 1, opening(0));
    assert_eq!((open.passed, sent_to_log(&open)), (true, 0));
}

#[test]
fn a_packet_is_sent_to_the_log_or_counted_as_beyond_its_rate() {
    let compiled = compile(&isolated(Fallback::Deny, Vec::new()), &Layout { flow_log: Some(LOG), ..Layout::default() });
    let table = &compiled.ruleset.tables[&Slot::A.inet()];
    for (chain, end) in [
        ("denied-ingress", Verdict::Goto("denied".into())),
        ("denied-egress", Verdict::Goto("denied".into())),
        ("audited-ingress", Verdict::Return),
        ("audited-egress", Verdict::Return),
    ] {
        let exprs: Vec<&[Expr]> = table.chains[chain].rules.iter().map(|rule| rule.exprs.as_slice()).collect();
        let end = Expr::Verdict(end);
        let sent = [
            Expr::Limit { rate: 100, burst: 100 },
            Expr::Counter(Logged::Sent.counter()),
            Expr::Log { prefix: chain.replace('-', " "), group: 7, snaplen: 128 },
            end.clone(),
        ];
        assert_eq!(exprs, [&sent[..], &[Expr::Counter(Logged::BeyondRate.counter()), end]], "{chain}");
    }
    let plain = compile(&isolated(Fallback::Deny, Vec::new()), &Layout::default());
    let table = &plain.ruleset.tables[&Slot::A.inet()];
    let logs = |chain: &Arc<Chain>| {
        chain.rules.iter().flat_map(|rule| &rule.exprs).any(|expr| matches!(expr, Expr::Log { .. }))
    };
    assert!(!table.chains.values().any(logs) && !plain.counters.contains_key(&Logged::Sent.counter()));
}

/// A flow that was let through while its pod was known is no way in for whoever has the address next.
#[test]
fn what_is_not_known_stops_both_ways_and_a_pause_lets_it_pass() {
    let ranges = PodRanges::new(&["10.244.1.0/24".parse().expect("a prefix")], []);
    let layout = Layout { pod_ranges: ranges, ..Layout::default() };
    let at = |effective: &Effective, flow: Flow| {
        let ruleset = compile(effective, &layout).ruleset;
        let packet = Packet { flow: Some(flow), ..packet(1) };
        trace(&ruleset, &packet)
    };
    let nobody = Effective::default();
    let closed = at(&nobody, opening(OTHERS_BITS));
    assert!(!closed.passed && closed.counters.iter().any(|name| name.contains("unknown-pod")), "{closed:?}");
    let mark = closed.mark.expect("a flow");
    assert_eq!(mark & GENERATION_MASK, DENIED_MARK);
    assert!(!at(&nobody, Flow { direction: CtDirection::Reply, related: false, mark }).passed);
    assert!(at(&isolated(Fallback::Open, Vec::new()), opening(0)).passed, "known");
    let mut paused = nobody;
    paused.lifted = true;
    assert!(at(&paused, opening(0)).passed);
}

#[test]
fn base_chains_stand_between_conntrack_and_iptables() {
    let ruleset = compile(&Effective::default(), &Layout::default()).ruleset;
    let hooks = |id: TableId| -> Vec<BaseHook> { ruleset.tables[&id].chains.values().filter_map(|c| c.hook).collect() };
    let of = |priority, hooks: [Hook; 3]| hooks.map(|hook| BaseHook { hook, priority }).to_vec();
    assert_eq!(hooks(Slot::A.inet()), of(-10, [Hook::Forward, Hook::Input, Hook::Output]));
    assert_eq!(hooks(Slot::A.bridge()), [BaseHook { hook: Hook::Prerouting, priority: -200 }]);
}

#[test]
fn an_identity_reads_as_all_that_it_is() {
    let identity = rule(2, Tier::Baseline, Action::Deny, 80).identity;
    assert_eq!(identity.text(), "x/p ingress deny peers Baseline ports 80 #2");
    let open = isolated(Fallback::Open, Vec::new());
    assert_eq!(open.local().iter().collect::<Vec<_>>(), [(&POD, &ObjectName::new("x", "a"))]);
}

#[test]
fn names_that_others_read_stay() {
    assert_eq!(Slot::BOTH.map(Slot::table_name), ["flatfell-3a", "flatfell-3b"]);
    for ours in ["flatfell-1a", "flatfell-3b", "flatfell-4a", "flatfell-65535b"] {
        assert!(Slot::is_of_any_layout(ours), "{ours}");
    }
    for other in
        ["flatfell-a", "flatfell-0a", "flatfell-03a", "flatfell-+3a", "flatfell-3c", "flatfell-3ab", "x-flatfell-3a"]
    {
        assert!(!Slot::is_of_any_layout(other), "{other}");
    }
    assert_eq!(Slot::BOTH.map(Slot::other), [Slot::B, Slot::A]);
    let guards = [
        Guard::RouterAdvertisement,
        Guard::LinkLocal,
        Guard::Multicast,
        Guard::Frame,
        Guard::DeniedReply,
        Guard::UnknownPod,
    ];
    let words = ["router-advertisement", "link-local", "multicast", "frame", "denied-reply", "unknown-pod"];
    assert_eq!(guards.map(Guard::word), words);
    assert_eq!([80..=80, 8000..=9000].map(|range| sets::port_range(&range)), ["80", "8000-9000"]);
}
