//! A network namespace for each test, and a ruleset with everything a ruleset can have.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::thread;

use flatfell_rules::ruleset::*;
use imbl::OrdMap;
use nix::sched::{CloneFlags, unshare};

/// Runs a test in a network namespace of its own, which ends with it.
pub fn in_namespace(test: impl FnOnce() + Send) {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a namespace needs root");
            test();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Runs a program in the calling thread's namespace; its output.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().expect(program);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {error}");
    String::from_utf8(output.stdout).expect("text")
}

/// A listing of one table.
pub fn list(table: &TableId) -> String {
    run("nft", &["-s", "list", "table", family(table), &table.name])
}

pub fn family(table: &TableId) -> &'static str {
    match table.family {
        Family::Inet => "inet",
        Family::Bridge => "bridge",
    }
}

pub fn table_id(family: Family, name: &str) -> TableId {
    TableId { family, name: name.to_owned() }
}

/// A map of a table.
pub fn shared<T>(all: impl IntoIterator<Item = (impl Into<Name>, T)>) -> OrdMap<Name, Arc<T>> {
    all.into_iter().map(|(name, one)| (name.into(), Arc::new(one))).collect()
}

/// The counters of a table.
pub fn counters(all: impl IntoIterator<Item = (impl Into<Name>, Counter)>) -> OrdMap<Name, Counter> {
    all.into_iter().map(|(name, one)| (name.into(), one)).collect()
}

/// The operations that make a ruleset where nothing is.
pub fn make(ruleset: &Ruleset) -> Vec<Op> {
    let mut ops = Vec::new();
    for (id, table) in &ruleset.tables {
        let mut op = |kind| ops.push(Op { table: id.clone(), kind });
        op(OpKind::AddTable);
        for (name, counter) in &table.counters {
            let start = CounterValue::default();
            op(OpKind::AddCounter { name: name.clone(), comment: counter.comment.clone(), start });
        }
        for (name, chain) in &table.chains {
            op(OpKind::AddChain { name: name.clone(), hook: chain.hook, comment: chain.comment.clone() });
        }
        for (name, set) in &table.sets {
            op(OpKind::AddSet { name: name.clone(), set: set.emptied() });
            let elements: Vec<_> = set.elements.iter().collect();
            for part in elements.chunks(256) {
                let elements = part.iter().cloned().collect();
                op(OpKind::AddElements { set: name.clone(), elements, starts: BTreeMap::new() });
            }
        }
        for (name, chain) in &table.chains {
            for rule in &chain.rules {
                op(OpKind::AddRule { chain: name.clone(), rule: rule.clone() });
            }
        }
    }
    ops
}

pub fn v4(text: &str) -> Value {
    Value::V4(text.parse().expect("address"))
}

pub fn v6(text: &str) -> Value {
    Value::V6(text.parse().expect("address"))
}

pub fn set(kind: SetKind, key: &[KeyType], comment: &str, elements: Vec<(Vec<Value>, Datum)>) -> Set {
    let elements = elements.into_iter().map(|(key, datum)| (Element::key(key), datum)).collect();
    Set { kind, key: key.to_vec(), interval: false, size: None, comment: comment.to_owned(), elements }
}

pub fn ranges(key: KeyType, elements: Vec<(Value, Value)>) -> Set {
    let elements = elements.into_iter().map(|(first, last)| (Element::Range(first, last), Datum::None)).collect();
    Set { kind: SetKind::Set, key: vec![key], interval: true, size: None, comment: "ranges".to_owned(), elements }
}

pub fn rule(comment: &str, exprs: Vec<Expr>) -> Rule {
    Rule { exprs, comment: comment.to_owned() }
}

fn is(field: Field, value: Value) -> Expr {
    Expr::Compare { field, value, negated: false }
}

fn is_not(field: Field, value: Value) -> Expr {
    Expr::Compare { field, value, negated: true }
}

fn lookup(key: &[Field], set: &str) -> Expr {
    Expr::Lookup { key: key.to_vec(), set: set.into() }
}

fn vmap(key: &[Field], map: &str) -> Expr {
    Expr::Vmap { key: key.to_vec(), map: map.into() }
}

fn prefix(field: Field, text: &str) -> Expr {
    Expr::Prefix { field, prefix: text.parse().expect("prefix") }
}

/// All sets and maps of the inet table.
fn sets() -> BTreeMap<String, Set> {
    let all = [plain_sets(), interval_sets(), maps()].into_iter().flatten();
    all.map(|(name, set)| (name.to_owned(), set)).collect()
}

fn plain_sets() -> Vec<(&'static str, Set)> {
    use KeyType::*;
    let none = |values: Vec<Value>| (values, Datum::None);
    let flow = vec![v4("10.0.0.1"), Value::Proto(6), Value::Port(80)];
    let flow6 = vec![v6("fd00::1"), Value::Proto(17), Value::Port(53)];
    vec![
        ("a4", set(SetKind::Set, &[Ipv4Addr], "peers", vec![none(vec![v4("10.0.0.1")]), none(vec![v4("0.0.0.0")])])),
        ("a6", set(SetKind::Set, &[Ipv6Addr], "", vec![none(vec![v6("fd00::1")])])),
        ("flow4", set(SetKind::Set, &[Ipv4Addr, InetProto, InetService], "", vec![none(flow)])),
        ("flow6", set(SetKind::Set, &[Ipv6Addr, InetProto, InetService], "", vec![none(flow6)])),
        ("self4", set(SetKind::Set, &[Ipv4Addr, Ipv4Addr], "", vec![none(vec![v4("10.0.0.1"), v4("10.0.0.1")])])),
        ("self6", set(SetKind::Set, &[Ipv6Addr, Ipv6Addr], "", vec![none(vec![v6("fd00::1"), v6("fd00::1")])])),
        ("ports", set(SetKind::Set, &[Ifname], "", vec![none(vec![Value::Ifname("veth0".to_owned())])])),
        ("nd", set(SetKind::Set, &[Icmpv6Type], "", vec![none(vec![Value::Icmpv6Type(135)])])),
        ("protos", set(SetKind::Set, &[InetProto], "", vec![none(vec![Value::Proto(6)])])),
        ("marks", set(SetKind::Set, &[Mark], "", vec![none(vec![Value::Mark(0x0102_0304)])])),
    ]
}

fn interval_sets() -> Vec<(&'static str, Set)> {
    use KeyType::*;
    vec![
        (
            "cidr4",
            ranges(
                Ipv4Addr,
                vec![
                    (v4("0.0.0.0"), v4("9.255.255.255")),
                    (v4("11.0.0.0"), v4("11.0.0.0")),
                    (v4("12.0.0.3"), v4("12.0.0.9")),
                    (v4("224.0.0.0"), v4("255.255.255.255")),
                ],
            ),
        ),
        ("cidr6", ranges(Ipv6Addr, vec![(v6("fd00::"), v6("fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"))])),
        ("all6", ranges(Ipv6Addr, vec![(v6("::"), v6("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"))])),
        (
            "dports",
            ranges(InetService, vec![(Value::Port(80), Value::Port(90)), (Value::Port(60000), Value::Port(65535))]),
        ),
    ]
}

fn maps() -> Vec<(&'static str, Set)> {
    use KeyType::*;
    let to = |values: Vec<Value>, verdict| (values, Datum::Verdict(verdict));
    let counts = |mark, name: &str| (vec![Value::Mark(mark)], Datum::Counter(name.into()));
    let jump = Verdict::Jump("pod-1".into());
    let goto = Verdict::Goto("pod-1".into());
    vec![
        (
            "egress4",
            set(
                SetKind::VerdictMap,
                &[Ipv4Addr],
                "pods",
                vec![
                    to(vec![v4("10.0.0.1")], jump),
                    to(vec![v4("10.0.0.2")], goto),
                    to(vec![v4("10.0.0.3")], Verdict::Accept),
                    to(vec![v4("10.0.0.4")], Verdict::Drop),
                    to(vec![v4("10.0.0.5")], Verdict::Return),
                ],
            ),
        ),
        (
            "by-port",
            set(
                SetKind::VerdictMap,
                &[InetProto, InetService],
                "",
                vec![to(vec![Value::Proto(6), Value::Port(80)], Verdict::Return)],
            ),
        ),
        ("by-id", set(SetKind::Counters, &[Mark], "ids", vec![counts(0, "c-zero"), counts(0x1000, "c-rule")])),
    ]
}

fn matches() -> Vec<Expr> {
    use Field::*;
    vec![
        Expr::CtMark { mask: 0xff00_0000, value: 0x0100_0000, negated: false },
        Expr::CtMark { mask: 0xff00_0000, value: 0xff00_0000, negated: true },
        Expr::CtMark { mask: u32::MAX, value: 5, negated: false },
        Expr::CtMark { mask: 0x00ff_f000, value: 0x5000, negated: false },
        Expr::CtDirection(CtDirection::Original),
        Expr::CtDirection(CtDirection::Reply),
        Expr::CtStateRelated,
        is(IpSaddr, v4("10.0.0.1")),
        is_not(IpDaddr, v4("10.0.0.1")),
        is(Ip6Saddr, v6("fd00::1")),
        is_not(Ip6Daddr, v6("ff02::1")),
        is(L4Proto, Value::Proto(6)),
        is_not(L4Proto, Value::Proto(58)),
        is(TcpDport, Value::Port(80)),
        is_not(UdpDport, Value::Port(53)),
        is(SctpDport, Value::Port(7)),
        is(ThDport, Value::Port(80)),
        is(Icmpv6Type, Value::Icmpv6Type(134)),
        is(Iifname, Value::Ifname("cni0".to_owned())),
        is_not(Iifname, Value::Ifname("a23456789012345".to_owned())),
        is(FibDaddrIifType, Value::AddrType(5)),
        is_not(EtherType, Value::EtherType(0x0800)),
        Expr::Range { field: TcpDport, first: Value::Port(8000), last: Value::Port(9000) },
        Expr::Range { field: UdpDport, first: Value::Port(0), last: Value::Port(9) },
        Expr::Range { field: L4Proto, first: Value::Proto(6), last: Value::Proto(17) },
        Expr::Range { field: IpSaddr, first: v4("10.0.0.1"), last: v4("10.0.0.9") },
        Expr::Range { field: Ip6Daddr, first: v6("ff02::1"), last: v6("ff02::9") },
        prefix(IpSaddr, "10.0.0.0/8"),
        prefix(IpDaddr, "10.0.0.0/9"),
        prefix(IpDaddr, "0.0.0.0/0"),
        prefix(IpDaddr, "10.0.0.1/32"),
        prefix(Ip6Saddr, "fe80::/10"),
        prefix(Ip6Daddr, "ff00::/8"),
        prefix(Ip6Daddr, "fd00:1::/64"),
        lookup(&[IpSaddr], "a4"),
        lookup(&[Ip6Saddr], "a6"),
        lookup(&[IpSaddr, L4Proto, ThDport], "flow4"),
        lookup(&[Ip6Daddr, L4Proto, ThDport], "flow6"),
        lookup(&[IpSaddr, IpDaddr], "self4"),
        lookup(&[Ip6Saddr, Ip6Daddr], "self6"),
        lookup(&[Iifname], "ports"),
        lookup(&[Icmpv6Type], "nd"),
        lookup(&[L4Proto], "protos"),
        lookup(&[IpDaddr], "cidr4"),
        lookup(&[Ip6Daddr], "cidr6"),
        lookup(&[TcpDport], "dports"),
        lookup(&[ThDport], "dports"),
        vmap(&[IpSaddr], "egress4"),
        vmap(&[L4Proto, ThDport], "by-port"),
        Expr::Limit { rate: 10, burst: 5 },
        Expr::Limit { rate: 100_000, burst: 7 },
    ]
}

fn statements() -> Vec<Expr> {
    let log = |prefix: &str, snaplen| Expr::Log { prefix: prefix.to_owned(), group: 5, snaplen };
    vec![
        Expr::Counter("c-rule".into()),
        Expr::CountMark { mask: 0x00ff_f000, set: "by-id".into() },
        Expr::CountMark { mask: u32::MAX, set: "by-id".into() },
        Expr::SetCtMark { keep: 0x00ff_ffff, value: 0x0100_0000 },
        Expr::SetCtMark { keep: 0x00ff_ffff, value: 0 },
        Expr::SetCtMark { keep: 0, value: 7 },
        log("denied: ", 64),
        log("", 0),
    ]
}

/// One of each match, statement and verdict, and for each something that is nearly the same.
pub fn singles() -> Vec<Expr> {
    use Field::*;
    let jump = |to: &str| Expr::Verdict(Verdict::Jump(to.into()));
    let near = vec![
        Expr::CtMark { mask: 0xff00_0000, value: 0x0200_0000, negated: false },
        Expr::CtMark { mask: 0xfe00_0000, value: 0x0200_0000, negated: false },
        Expr::CtMark { mask: 0xff00_0000, value: 0x0100_0000, negated: true },
        is(TcpDport, Value::Port(81)),
        is_not(TcpDport, Value::Port(80)),
        is(UdpDport, Value::Port(80)),
        is(IpDaddr, v4("10.0.0.7")),
        is(L4Proto, Value::Proto(58)),
        is(FibDaddrIifType, Value::AddrType(3)),
        is(EtherType, Value::EtherType(0x0800)),
        Expr::Range { field: TcpDport, first: Value::Port(8000), last: Value::Port(9001) },
        prefix(IpSaddr, "11.0.0.0/8"),
        prefix(IpDaddr, "10.0.0.0/10"),
        lookup(&[IpDaddr], "a4"),
        lookup(&[IpSaddr], "cidr4"),
        lookup(&[IpDaddr, IpSaddr], "self4"),
        Expr::Limit { rate: 10, burst: 6 },
        Expr::Limit { rate: 11, burst: 5 },
        Expr::Counter("c-zero".into()),
        Expr::CountMark { mask: 0xfff, set: "by-id".into() },
        Expr::SetCtMark { keep: 0x00ff_ffff, value: 0x0200_0000 },
        Expr::SetCtMark { keep: 0x00ff_fff0, value: 0x0100_0000 },
        Expr::SetCtMark { keep: 0, value: 8 },
        Expr::Log { prefix: "denied:".to_owned(), group: 5, snaplen: 64 },
        Expr::Log { prefix: "denied: ".to_owned(), group: 6, snaplen: 64 },
        Expr::Log { prefix: "denied: ".to_owned(), group: 5, snaplen: 65 },
        jump("pod-1"),
        jump("pod-2"),
        Expr::Verdict(Verdict::Goto("pod-1".into())),
        Expr::Verdict(Verdict::Accept),
        Expr::Verdict(Verdict::Drop),
        Expr::Verdict(Verdict::Return),
    ];
    [matches(), statements(), near].concat()
}

fn combined() -> Vec<Rule> {
    use Field::*;
    let check = Expr::CtMark { mask: 0xff00_0000, value: 0x0100_0000, negated: false };
    let count = Expr::CountMark { mask: 0x00ff_f000, set: "by-id".into() };
    let accept = Expr::Verdict(Verdict::Accept);
    vec![
        rule("checked, counted", vec![check, count, accept.clone()]),
        rule(&"x".repeat(127), vec![lookup(&[IpSaddr], "a4"), lookup(&[IpDaddr], "a4"), is(TcpDport, Value::Port(80))]),
        rule("", vec![is(L4Proto, Value::Proto(6)), lookup(&[IpSaddr], "a4")]),
        rule("", vec![lookup(&[Ip6Saddr], "a6"), is(Icmpv6Type, Value::Icmpv6Type(135)), accept]),
        rule("", vec![Expr::Verdict(Verdict::Jump("pod-1".into()))]),
        rule("", vec![Expr::Verdict(Verdict::Goto("pod-1".into()))]),
        rule("", vec![Expr::Verdict(Verdict::Return)]),
        rule("", vec![Expr::Verdict(Verdict::Drop)]),
    ]
}

fn base(hook: Hook, priority: i32, rules: Vec<Rule>) -> Chain {
    Chain { hook: Some(BaseHook { hook, priority }), comment: "base".to_owned(), rules }
}

/// Two tables with every kind of match, statement, set, chain and counter.
pub fn everything() -> Ruleset {
    let counter = |text: &str| Counter { comment: text.into() };
    let mut rules: Vec<Rule> = matches().into_iter().map(|one| rule("", vec![one])).collect();
    rules.extend(statements().into_iter().map(|one| rule("", vec![one])));
    rules.extend(combined());
    let inet = Table {
        chains: shared([
            ("forward", base(Hook::Forward, -10, rules)),
            ("input", base(Hook::Input, 0, vec![])),
            ("output", base(Hook::Output, 5, vec![])),
            ("pod-1", Chain { comment: "default/web".to_owned(), ..Chain::default() }),
            ("pod-2", Chain::default()),
        ]),
        sets: shared(sets()),
        counters: counters([("c-rule", counter("default/allow-web ingress 0")), ("c-zero", counter(""))]),
    };
    let guard = vec![
        lookup(&[Field::Iifname], "ports"),
        is_not(Field::EtherType, Value::EtherType(0x0800)),
        is_not(Field::EtherType, Value::EtherType(0x86dd)),
        is_not(Field::EtherType, Value::EtherType(0x0806)),
        Expr::Counter("c-tagged".into()),
        Expr::Verdict(Verdict::Drop),
    ];
    let own = vec![is(Field::IpSaddr, v4("10.0.0.1")), is(Field::TcpDport, Value::Port(80))];
    let icmp = vec![is(Field::Icmpv6Type, Value::Icmpv6Type(134))];
    let bridge = Table {
        chains: shared([(
            "prerouting",
            base(Hook::Prerouting, -200, vec![rule("tagged frames", guard), rule("", own), rule("", icmp)]),
        )]),
        sets: shared([("ports", sets()["ports"].clone())]),
        counters: counters([("c-tagged", counter("frames with a tag"))]),
    };
    let tables = [(table_id(Family::Inet, "flatfell-1a"), inet), (table_id(Family::Bridge, "flatfell-1a"), bridge)];
    Ruleset { tables: BTreeMap::from(tables) }
}
