//! The packet tracer, and the JSON of a ruleset.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use flatfell_rules::ruleset::{
    BaseHook, Chain, Counter, CtDirection, Datum, Element, Expr, Family, Field, Hook, KeyType, Name, Rule, Ruleset,
    Set, SetKind, Table, TableId, Value, Verdict,
};
use flatfell_rules::sim::tracer::{Flow, Frame, Packet, trace};

fn rule(exprs: impl IntoIterator<Item = Expr>) -> Rule {
    Rule { exprs: exprs.into_iter().collect(), comment: String::new() }
}

fn verdict(verdict: Verdict) -> Rule {
    rule([Expr::Verdict(verdict)])
}

fn counted(name: &str, verdict: Verdict) -> Rule {
    rule([Expr::Counter(name.into()), Expr::Verdict(verdict)])
}

fn base(priority: i32, rules: impl IntoIterator<Item = Rule>) -> Chain {
    Chain { hook: Some(BaseHook { hook: Hook::Forward, priority }), ..chain(rules) }
}

fn chain(rules: impl IntoIterator<Item = Rule>) -> Chain {
    Chain { rules: rules.into_iter().collect(), ..Chain::default() }
}

fn v4(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, last)
}

fn set(kind: SetKind, key: KeyType, interval: bool, elements: impl IntoIterator<Item = (Element, Datum)>) -> Set {
    Set { kind, key: vec![key], interval, size: None, comment: String::new(), elements: elements.into_iter().collect() }
}

fn ruleset<'a>(chains: impl IntoIterator<Item = (&'a str, Chain)>, sets: Vec<(&str, Set)>) -> Ruleset {
    let table = Table {
        chains: chains.into_iter().map(|(name, chain)| (name.to_string(), chain)).collect(),
        sets: sets.into_iter().map(|(name, set)| (name.to_string(), set)).collect(),
        counters: [(Name::from("n"), Counter { comment: "all".into() })].into_iter().collect(),
    };
    Ruleset { tables: BTreeMap::from([(TableId { family: Family::Inet, name: "t".into() }, table)]) }
}

fn packet() -> Packet {
    Packet {
        family: Family::Inet,
        hook: Hook::Forward,
        iif: Some("cni0".into()),
        ether_type: 0x0800,
        addresses: Some((v4(1).into(), v4(2).into())),
        protocol: 6,
        dport: Some(80),
        hop_limit: 64,
        icmpv6_type: None,
        address_type: 1,
        flow: Some(Flow { direction: CtDirection::Original, related: false, mark: 0x0100_0001 }),
        frame: Frame::default(),
    }
}

/// Whether a packet that one expression matches is what was asked for.
fn matches(expr: Expr, sets: Vec<(&str, Set)>, packet: &Packet) -> bool {
    let rules = ruleset([("base", base(0, [rule([expr, Expr::Verdict(Verdict::Drop)])]))], sets);
    !trace(&rules, packet).passed
}

#[test]
fn accept_ends_a_base_chain_and_drop_the_packet() {
    let late = base(5, [counted("late", Verdict::Drop)]);
    let accepting = ruleset(
        [("z", base(-5, [counted("early", Verdict::Accept), counted("n", Verdict::Drop)])), ("a", late.clone())],
        vec![],
    );
    let seen = trace(&accepting, &packet());
    assert!(!seen.passed);
    assert_eq!(seen.counters, ["early", "late"]);
    assert_eq!(seen.decisions[1].rule, Some(("a".to_string(), 0)));
    let dropping = ruleset([("z", base(-5, [counted("early", Verdict::Drop)])), ("a", late)], vec![]);
    let seen = trace(&dropping, &packet());
    assert_eq!((seen.passed, seen.counters), (false, vec!["early".to_string()]));
    let elsewhere = Packet { hook: Hook::Input, ..packet() };
    assert!(trace(&dropping, &elsewhere).decisions.is_empty());
    assert!(trace(&dropping, &Packet { family: Family::Bridge, ..packet() }).passed);
}

#[test]
fn a_jump_comes_back_and_a_goto_does_not() {
    let sub = || ("sub", chain([verdict(Verdict::Return), counted("never", Verdict::Drop)]));
    for (lead, hits) in [(Verdict::Jump("sub".into()), 1), (Verdict::Goto("sub".into()), 0)] {
        let rules = ruleset([("base", base(0, [verdict(lead), counted("n", Verdict::Drop)])), sub()], vec![]);
        let seen = trace(&rules, &packet());
        assert_eq!((seen.counters.len(), seen.passed), (hits, hits == 0));
    }
    let through = ("through", chain([verdict(Verdict::Goto("sub".into())), counted("never", Verdict::Drop)]));
    let rules = ruleset(
        [("base", base(0, [verdict(Verdict::Jump("through".into())), counted("n", Verdict::Accept)])), through, sub()],
        vec![],
    );
    let seen = trace(&rules, &packet());
    assert_eq!((seen.counters, seen.passed), (vec!["n".to_string()], true));
}

#[test]
fn marks_are_compared_and_set_as_the_kernel_does() {
    let mark = |mask, value, negated| Expr::CtMark { mask, value, negated };
    assert!(matches(mark(0xff00_0000, 0x0100_0000, false), vec![], &packet()));
    assert!(!matches(mark(0xff00_0000, 0x0100_0000, true), vec![], &packet()));
    assert!(matches(mark(u32::MAX, 0x0100_0000, true), vec![], &packet()));
    let untracked = Packet { flow: None, ..packet() };
    assert!(!matches(mark(0, 0, false), vec![], &untracked));
    assert!(!matches(mark(u32::MAX, 0, true), vec![], &untracked));
    let rules =
        ruleset([("base", base(0, [rule([Expr::SetCtMark { keep: 0x00ff_ffff, value: 0x0200_0000 }])]))], vec![]);
    assert_eq!(trace(&rules, &packet()).mark, Some(0x0200_0001));
    assert_eq!(trace(&rules, &untracked).mark, None);
    let reply = Packet { flow: Some(Flow { direction: CtDirection::Reply, related: true, mark: 0 }), ..packet() };
    assert!(
        matches(Expr::CtDirection(CtDirection::Reply), vec![], &reply) && matches(Expr::CtStateRelated, vec![], &reply)
    );
    assert!(
        !matches(Expr::CtDirection(CtDirection::Reply), vec![], &packet())
            && !matches(Expr::CtStateRelated, vec![], &packet())
    );
}

#[test]
fn fields_a_packet_lacks_match_nothing() {
    let compare = |field, value, negated| Expr::Compare { field, value, negated };
    let v6 = Value::V6("fe80::1".parse().expect("an address"));
    assert!(!matches(compare(Field::Ip6Saddr, v6.clone(), false), vec![], &packet()));
    assert!(!matches(compare(Field::Ip6Saddr, v6, true), vec![], &packet()));
    assert!(matches(compare(Field::TcpDport, Value::Port(80), false), vec![], &packet()));
    assert!(!matches(compare(Field::UdpDport, Value::Port(80), false), vec![], &packet()));
    assert!(!matches(compare(Field::UdpDport, Value::Port(81), true), vec![], &packet()));
    assert!(matches(compare(Field::ThDport, Value::Port(80), false), vec![], &Packet { protocol: 132, ..packet() }));
    assert!(!matches(compare(Field::ThDport, Value::Port(80), true), vec![], &Packet { dport: None, ..packet() }));
    assert!(matches(compare(Field::Iifname, Value::Ifname("cni0".into()), false), vec![], &packet()));
    assert!(matches(compare(Field::FibDaddrIifType, Value::AddrType(1), false), vec![], &packet()));
    let range = Expr::Range { field: Field::TcpDport, first: Value::Port(79), last: Value::Port(80) };
    assert!(matches(range.clone(), vec![], &packet()));
    assert!(!matches(range, vec![], &Packet { dport: Some(81), ..packet() }));
    let prefix = |text: &str| Expr::Prefix { field: Field::IpSaddr, prefix: text.parse().expect("a prefix") };
    assert!(matches(prefix("10.0.0.0/31"), vec![], &packet()));
    assert!(!matches(prefix("10.0.0.2/31"), vec![], &packet()));
}

#[test]
fn sets_and_maps_answer_for_what_is_in_them() {
    let lookup = |set: &str| Expr::Lookup { key: vec![Field::IpSaddr], set: set.into() };
    let key = |last| (Element::key([Value::V4(v4(last))]), Datum::None);
    let range = |first, last| (Element::Range(Value::V4(v4(first)), Value::V4(v4(last))), Datum::None);
    let plain = |elements| vec![("s", set(SetKind::Set, KeyType::Ipv4Addr, false, elements))];
    assert!(matches(lookup("s"), plain(vec![key(1)]), &packet()));
    assert!(!matches(lookup("s"), plain(vec![key(2)]), &packet()));
    let spread = |elements| vec![("s", set(SetKind::Set, KeyType::Ipv4Addr, true, elements))];
    assert!(matches(lookup("s"), spread(vec![range(0, 1)]), &packet()));
    assert!(!matches(lookup("s"), spread(vec![range(2, 9)]), &packet()));
    let element = (Element::key([Value::V4(v4(1))]), Datum::Verdict(Verdict::Drop));
    let vmap = || rule([Expr::Vmap { key: vec![Field::IpSaddr], map: "m".into() }]);
    let map = |elements: Vec<_>| vec![("m", set(SetKind::VerdictMap, KeyType::Ipv4Addr, false, elements))];
    assert!(!trace(&ruleset([("base", base(0, [vmap()]))], map(vec![element])), &packet()).passed);
    assert!(trace(&ruleset([("base", base(0, [vmap()]))], map(vec![])), &packet()).passed);
}

#[test]
fn a_set_of_marks_counts_or_ends_the_rule() {
    let marks = |mark| {
        let element = (Element::key([Value::Mark(mark)]), Datum::Counter("n".into()));
        vec![("m", set(SetKind::Counters, KeyType::Mark, false, [element]))]
    };
    let drop = rule([Expr::CountMark { mask: 0xff00_0000, set: "m".into() }, Expr::Verdict(Verdict::Drop)]);
    let hit = trace(&ruleset([("base", base(0, [drop.clone()]))], marks(0x0100_0000)), &packet());
    assert_eq!((hit.passed, hit.counters), (false, vec!["n".to_string()]));
    let missed = trace(&ruleset([("base", base(0, [drop]))], marks(1)), &packet());
    assert_eq!((missed.passed, missed.counters.len()), (true, 0));
}

#[test]
fn json_has_every_part() {
    let element = (Element::key([Value::V4(v4(1))]), Datum::Verdict(Verdict::Jump("c".into())));
    let map = vec![("m", set(SetKind::VerdictMap, KeyType::Ipv4Addr, false, [element]))];
    let rules = ruleset([("base", base(-10, [counted("n", Verdict::Drop)])), ("c", chain([]))], map);
    let json = serde_json::to_value(&rules).expect("plain data");
    let wanted = serde_json::json!({ "tables": [{
        "family": "inet",
        "name": "t",
        "counters": [{ "name": "n", "comment": "all" }],
        "sets": [{
            "name": "m", "kind": "verdict map", "key": ["ipv4_addr"], "interval": false, "size": null, "comment": "",
            "elements": [{ "key": "10.0.0.1", "verdict": "jump c" }],
        }],
        "chains": [
            {
                "name": "base", "hook": "forward", "priority": -10, "comment": "",
                "rules": [{ "exprs": ["counter name \"n\"", "drop"], "comment": "" }],
            },
            { "name": "c", "hook": null, "priority": null, "comment": "", "rules": [] },
        ],
    }] });
    assert_eq!(json, wanted);
}
