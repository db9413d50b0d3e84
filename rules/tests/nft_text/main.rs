//! The text form against nft itself: what is loaded from it is listed as it.
//!
//! Needs root and nft 1.0.6: each test works in a network namespace of its own.

mod sets;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::{Command, Stdio};
use std::sync::Arc;

use flatfell_rules::compile::{Layout, PodPort, PodPorts, compile};
use flatfell_rules::diff;
use flatfell_rules::effective::Effective;
use flatfell_rules::object::ObjectName;
use flatfell_rules::ruleset::{
    BaseHook, Chain, Counter, CtDirection, Datum, Element, Expr, Family, Field, Hook, KeyType, Name, Op, OpKind, Rule,
    Ruleset, SetKind, Table, TableId, Value, Verdict, text,
};
use flatfell_rules::sim::kernel::FakeKernel;
use flatfell_rules::sim::random;
use proptest::prelude::*;

/// A network namespace that goes with this value.
struct Namespace(String);

impl Namespace {
    fn new(name: &str) -> Self {
        let name = format!("ruleset-{name}-{}", std::process::id());
        let made = Command::new("ip").args(["netns", "add", &name]).status().expect("ip runs");
        assert!(made.success(), "namespace {name}");
        Self(name)
    }

    /// Runs `nft -f -`; the error's text where it refuses.
    fn load(&self, script: &str) -> Result<(), String> {
        let mut child = self.nft(&["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("nft runs");
        child.stdin.take().expect("piped").write_all(script.as_bytes()).expect("nft reads");
        let output = child.wait_with_output().expect("nft ends");
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    }

    fn list(&self) -> String {
        let output = self.nft(&["-s", "list", "ruleset"]).output().expect("nft runs");
        String::from_utf8(output.stdout).expect("text")
    }

    fn nft(&self, args: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0, "nft"]).args(args);
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// A listing with the blocks of each table in the order of kind and name, and the tables too.
fn sorted(listing: &str) -> String {
    let mut tables: Vec<String> = listing
        .split_inclusive("\n}\n")
        .map(|table| {
            let (head, rest) = table.split_once('\n').expect("a table begins with a line");
            let mut blocks: Vec<&str> = rest
                .strip_suffix("}\n")
                .expect("a table ends with a brace")
                .split_inclusive("\n\t}\n")
                .map(|block| block.trim_start_matches('\n'))
                .collect();
            blocks.sort_by_key(|block| {
                let mut words = block.split_whitespace();
                let kind = match words.next() {
                    Some("counter") => 0,
                    Some("set" | "map") => 1,
                    _ => 2,
                };
                (kind, words.next())
            });
            format!("{head}\n{}}}\n", blocks.join("\n"))
        })
        .collect();
    tables.sort();
    tables.concat()
}

/// Compares two listings whatever their order, and shows the first line that differs.
fn assert_same(listed: &str, wanted: &str) {
    let (listed, wanted) = (sorted(listed), sorted(wanted));
    let first = listed.lines().zip(wanted.lines()).find(|(a, b)| a != b);
    assert!(listed == wanted, "nft has, we have: {first:#?}\nlisted\n{listed}\nwanted\n{wanted}");
}

/// Loads, lists, and compares.
fn assert_round_trip(namespace: &Namespace, ruleset: &Ruleset) {
    let wanted = text::ruleset(ruleset);
    let script = format!("flush ruleset\n{wanted}");
    namespace.load(&script).unwrap_or_else(|error| panic!("{error}\nin\n{wanted}"));
    let listed = namespace.list();
    assert_same(&listed, &wanted);
}

fn rule(exprs: impl IntoIterator<Item = Expr>) -> Rule {
    Rule { exprs: exprs.into_iter().collect(), comment: String::new() }
}

fn compare(field: Field, value: Value) -> [Rule; 2] {
    [false, true]
        .map(|negated| rule([Expr::Compare { field, value: value.clone(), negated }, Expr::Verdict(Verdict::Accept)]))
}

fn v4(text: &str) -> Value {
    Value::V4(text.parse().expect("an address"))
}

fn v6(text: &str) -> Value {
    Value::V6(text.parse().expect("an address"))
}

fn prefix(field: Field, text: &str) -> Rule {
    rule([Expr::Prefix { field, prefix: text.parse().expect("a prefix") }])
}

fn range(field: Field, first: Value, last: Value) -> Rule {
    rule([Expr::Range { field, first, last }])
}

fn with_chains(family: Family, chains: BTreeMap<String, Chain>, mut table: Table) -> Ruleset {
    table.chains.extend(chains);
    Ruleset { tables: BTreeMap::from([(TableId { family, name: "flatfell-1a".into() }, table)]) }
}

fn chain(rules: Vec<Rule>) -> BTreeMap<String, Chain> {
    BTreeMap::from([("rules".to_string(), Chain { rules, ..Chain::default() })])
}

#[test]
fn values_of_every_type_are_printed_as_nft_prints_them() {
    let namespace = Namespace::new("values");
    let mut rules = Vec::new();
    for protocol in 0..=255 {
        rules.extend(compare(Field::L4Proto, Value::Proto(protocol)));
        rules.extend(compare(Field::Icmpv6Type, Value::Icmpv6Type(protocol)));
    }
    for number in 0..=12 {
        rules.extend(compare(Field::FibDaddrIifType, Value::AddrType(number)));
    }
    for port in [0, 1, 80, 65535] {
        for field in [Field::TcpDport, Field::UdpDport, Field::SctpDport, Field::ThDport] {
            rules.extend(compare(field, Value::Port(port)));
        }
    }
    for address in ["0.0.0.0", "10.0.0.1", "255.255.255.255"] {
        rules.extend(compare(Field::IpSaddr, v4(address)));
        rules.extend(compare(Field::IpDaddr, v4(address)));
    }
    for address in [
        "::",
        "::1",
        "::ffff",
        "::1:0",
        "::0.1.0.1",
        "::ffff:1.2.3.4",
        "fe80::1",
        "1:0:0:2::",
        "1:0:2:3:4:5:6:7",
        "64:ff9b::1.2.3.4",
    ] {
        rules.extend(compare(Field::Ip6Saddr, v6(address)));
        rules.extend(compare(Field::Ip6Daddr, v6(address)));
    }
    rules.extend([0, 1, 255].into_iter().flat_map(|limit| compare(Field::Ip6HopLimit, Value::HopLimit(limit))));
    rules.extend(compare(Field::Iifname, Value::Ifname("flannel.1".into())));
    let base = Chain { hook: Some(BaseHook { hook: Hook::Forward, priority: -10 }), comment: "values".into(), rules };
    assert_round_trip(
        &namespace,
        &with_chains(Family::Inet, BTreeMap::from([("values".into(), base)]), Table::default()),
    );

    let frames = [0, 1, 0x0800, 0x0806, 0x8035, 0x8100, 0x86dd, 0x8847, 0x8863, 0x8864, 0x88a8, 0x88cc, 0x9100, 0xffff];
    let rules = frames.into_iter().flat_map(|number| compare(Field::EtherType, Value::EtherType(number)));
    let mut rules: Vec<_> = rules.collect();
    rules.push(range(Field::EtherType, Value::EtherType(0x0800), Value::EtherType(0x86dd)));
    rules.extend(compare(Field::Iifname, Value::Ifname("veth0".into())));
    assert_round_trip(&namespace, &with_chains(Family::Bridge, chain(rules), Table::default()));
}

/// What pods may send, whole: fields that nft 1.0.6 has no words for, and what it leaves out beside others.
#[test]
fn the_chains_of_ports_are_printed_as_nft_prints_them() {
    let namespace = Namespace::new("ports");
    let port = |index: u32, pod: Option<&str>| PodPort {
        index,
        mac: [0x0a, 0, 0, 0, 1, 9],
        addresses: ["10.244.1.9", "fd00:10:244:1::9", "::9"].map(|text| text.parse().expect("an address")).into(),
        pod: pod.map(|pod| ObjectName::new("shop", pod)),
        is_free: false,
    };
    let pod_ports = PodPorts {
        bound: [("veth1".to_owned(), port(7, Some("a"))), ("veth2".to_owned(), port(300, None))].into(),
        unbound: ["veth3".to_owned()].into(),
        unplaced: ["10.244.1.10", "fd00:10:244:1::10"].map(|text| text.parse().expect("an address")).into(),
        bridges: [[0x0a, 0, 0, 0, 0, 1]].into(),
    };
    let layout = Layout { pod_ports: Some(pod_ports), ..Layout::default() };
    let mut ruleset = compile(&Effective::default(), &layout).ruleset;
    ruleset.tables.retain(|id, _| id.family == Family::Bridge);
    assert_round_trip(&namespace, &ruleset);
}

#[test]
fn matches_and_statements_are_printed_as_nft_prints_them() {
    let namespace = Namespace::new("exprs");
    let mut rules = vec![
        rule([Expr::CtDirection(CtDirection::Original), Expr::CtStateRelated, Expr::Verdict(Verdict::Accept)]),
        rule([Expr::CtDirection(CtDirection::Reply), Expr::Counter("hits".into()), Expr::Verdict(Verdict::Drop)]),
        rule([Expr::Verdict(Verdict::Return)]),
        rule([Expr::Verdict(Verdict::Jump("end".into()))]),
        rule([Expr::Verdict(Verdict::Goto("end".into()))]),
        Rule { exprs: vec![Expr::Verdict(Verdict::Accept)], comment: "serves ns/name: a, b = [1]".into() },
        range(Field::IpSaddr, v4("10.0.0.0"), v4("10.0.0.255")),
        range(Field::Ip6Daddr, v6("fe80::1"), v6("fe80::5")),
        range(Field::L4Proto, Value::Proto(6), Value::Proto(17)),
        range(Field::TcpDport, Value::Port(8192), Value::Port(16383)),
        range(Field::UdpDport, Value::Port(0), Value::Port(65534)),
        range(Field::SctpDport, Value::Port(1), Value::Port(2)),
        range(Field::ThDport, Value::Port(1), Value::Port(2)),
        range(Field::Icmpv6Type, Value::Icmpv6Type(133), Value::Icmpv6Type(137)),
    ];
    for length in 0..=32 {
        let address = Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - length).unwrap_or(0) & 0x0aff_ffff);
        rules.push(prefix(Field::IpSaddr, &format!("{address}/{length}")));
    }
    for length in 0..=128 {
        let address = Ipv6Addr::from_bits(u128::MAX.checked_shl(128 - length).unwrap_or(0));
        rules.push(prefix(Field::Ip6Saddr, &format!("{address}/{length}")));
    }
    for mask in [u32::MAX, 0xff00_0000, 0x8000_0000, 0xffff_fffe, 1, 6, 0x00ff_0000, 0x0fff, 0xf0f0, 0] {
        for value in [0, mask, 0x0101_0101 & mask] {
            for negated in [false, true] {
                rules.push(rule([Expr::CtMark { mask, value, negated }, Expr::Verdict(Verdict::Accept)]));
            }
            rules.push(rule([Expr::SetCtMark { keep: !mask, value }, Expr::Verdict(Verdict::Accept)]));
        }
    }
    for (rate, burst) in [(1, 1), (10, 5), (60, 4), (3600, 6), (1_000_000, u32::MAX)] {
        rules.push(rule([Expr::Limit { rate, burst }, Expr::Counter("hits".into())]));
    }
    for prefix in ["", "flatfell drop: "] {
        for (group, snaplen) in [(0, 0), (1, 128), (u16::MAX, u32::MAX)] {
            rules.push(rule([Expr::Log { prefix: prefix.into(), group, snaplen }]));
        }
    }
    for mask in [u32::MAX, 0xff00_0000, 0x0fff, 1, 0x00ff_f000] {
        rules.push(rule([Expr::CountMark { mask, set: "by-mark".into() }, Expr::Verdict(Verdict::Accept)]));
    }
    let by_mark = [(Element::key([Value::Mark(1)]), Datum::Counter("hits".into()))];
    let table = Table {
        counters: [(Name::from("hits"), Counter { comment: "a b".into() }), ("a/b.c_d-e".into(), Counter::default())]
            .into_iter()
            .collect(),
        sets: [(Name::from("by-mark"), Arc::new(sets::set(SetKind::Counters, &[KeyType::Mark], false, by_mark)))]
            .into_iter()
            .collect(),
        chains: [(Name::from("end"), Arc::default())].into_iter().collect(),
    };
    assert_round_trip(&namespace, &with_chains(Family::Inet, chain(rules), table));
}

#[test]
fn priorities_are_printed_as_nft_prints_them() {
    let namespace = Namespace::new("priorities");
    for family in [Family::Inet, Family::Bridge] {
        let mut chains = BTreeMap::new();
        for (hook, name) in
            [(Hook::Prerouting, "pre"), (Hook::Input, "in"), (Hook::Forward, "fwd"), (Hook::Output, "out")]
        {
            for around in [-400, -300, -200, -150, -100, 0, 50, 100, 300] {
                for away in [-11, -10, -1, 0, 1, 10, 11] {
                    let priority: i32 = around + away;
                    let side = if priority < 0 { "m" } else { "p" };
                    let chain = Chain { hook: Some(BaseHook { hook, priority }), ..Chain::default() };
                    chains.insert(format!("{name}-{side}{}", priority.abs()), chain);
                }
            }
        }
        assert_round_trip(&namespace, &with_chains(family, chains, Table::default()));
    }
}

/// nft 1.0.6 puts intervals for a map of the same script into the map's creation, before the chains they lead to: they
/// need a script of their own.
fn adds_elements(op: &Op) -> bool {
    matches!(op.kind, OpKind::AddElements { .. })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn random_rulesets_come_back_as_they_are(seeds in proptest::array::uniform5(any::<u64>())) {
        let namespace = Namespace::new("random");
        for seed in seeds {
            assert_round_trip(&namespace, &random::ruleset(seed));
        }
    }

    #[test]
    fn the_kernel_takes_what_the_fake_takes_and_ends_where_it_ends(seeds in proptest::array::uniform4(any::<u64>())) {
        let namespace = Namespace::new("steps");
        let mut fake = FakeKernel::default();
        for seed in seeds {
            let change = diff::diff(&fake.ruleset.clone().into(), random::varied(seeds[0], seed, 3));
            for step in [&change.make, &change.switch, &change.clean] {
                fake.commit(step).expect("the fake kernel takes it");
                for part in step.chunk_by(|before, after| adds_elements(before) == adds_elements(after)) {
                    let script = text::script(part);
                    namespace.load(&script).unwrap_or_else(|error| panic!("{error}\nin\n{script}"));
                }
                let wanted = text::ruleset(&fake.ruleset);
                assert_same(&namespace.list(), &wanted);
            }
        }
    }
}
