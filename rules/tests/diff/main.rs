//! Changes, case by case: which step, which order, and whether they tighten.

mod intervals;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use flatfell_rules::diff::{self, Change};
use flatfell_rules::ruleset::{
    BaseHook, Chain, Counter, Datum, Element, Expr, Family, Field, Hook, KeyType, Op, OpKind, Rule, Ruleset, Set,
    SetKind, Table, TableId, Value, Verdict, text,
};
use flatfell_rules::sim::kernel::FakeKernel;

fn id(family: Family) -> TableId {
    TableId { family, name: "t".into() }
}

fn one(table: Table) -> Ruleset {
    Ruleset { tables: BTreeMap::from([(id(Family::Inet), table)]) }
}

fn rule(exprs: impl IntoIterator<Item = Expr>) -> Rule {
    Rule { exprs: exprs.into_iter().collect(), comment: String::new() }
}

fn verdict(verdict: Verdict) -> Rule {
    rule([Expr::Verdict(verdict)])
}

fn asks(set: &str, then: Option<Expr>) -> Rule {
    rule([Expr::Lookup { key: vec![Field::IpSaddr], set: set.into() }].into_iter().chain(then))
}

fn vmap(map: &str) -> Expr {
    Expr::Vmap { key: vec![Field::IpSaddr], map: map.into() }
}

fn jump(chain: &str) -> Verdict {
    Verdict::Jump(chain.into())
}

fn chain(rules: impl IntoIterator<Item = Rule>) -> Chain {
    Chain { rules: rules.into_iter().collect(), ..Chain::default() }
}

fn base(rules: impl IntoIterator<Item = Rule>) -> Chain {
    Chain { hook: Some(BaseHook { hook: Hook::Forward, priority: -10 }), ..chain(rules) }
}

fn v4(last: u8) -> Value {
    Value::V4(Ipv4Addr::new(10, 0, 0, last))
}

fn key(last: u8) -> Element {
    Element::key([v4(last)])
}

fn set(kind: SetKind, elements: impl IntoIterator<Item = (Element, Datum)>) -> Set {
    Set {
        kind,
        key: vec![KeyType::Ipv4Addr],
        interval: false,
        size: None,
        comment: String::new(),
        elements: elements.into_iter().collect(),
    }
}

fn plain(elements: impl IntoIterator<Item = u8>) -> Set {
    set(SetKind::Set, elements.into_iter().map(|last| (key(last), Datum::None)))
}

fn map(elements: impl IntoIterator<Item = (u8, Verdict)>) -> Set {
    set(SetKind::VerdictMap, elements.into_iter().map(|(last, verdict)| (key(last), Datum::Verdict(verdict))))
}

fn table<'a>(
    chains: impl IntoIterator<Item = (&'a str, Chain)>,
    sets: impl IntoIterator<Item = (&'a str, Set)>,
) -> Table {
    Table {
        chains: chains.into_iter().map(|(name, chain)| (name.to_string(), chain)).collect(),
        sets: sets.into_iter().map(|(name, set)| (name.to_string(), set)).collect(),
        counters: [(flatfell_rules::ruleset::Name::from("n"), Counter::default())].into_iter().collect(),
    }
}

/// The change, which does something unless both are equal, after the fake kernel took it and ended where it says.
fn change(have: &Ruleset, want: &Ruleset) -> Change {
    let change = diff::diff(&have.clone().into(), want.clone());
    let mut kernel = FakeKernel { ruleset: have.clone() };
    for step in [&change.make, &change.switch, &change.clean] {
        kernel.commit(step).expect("the kernel takes it");
    }
    assert_eq!(&kernel.ruleset, want);
    assert_eq!(change.result.ruleset(), want);
    assert_eq!(change.is_empty(), have == want);
    change
}

fn tightens(have: Table, want: Table) -> bool {
    change(&one(have), &one(want)).tightens
}

fn lines(ops: &[Op]) -> Vec<String> {
    ops.iter().map(|op| text::op(op).replace(" inet t", "")).collect()
}

#[test]
fn a_new_pod_is_made_before_it_is_reached() {
    let have = table([("base", base([rule([vmap("pods")])]))], [("pods", map([]))]);
    let mut want = have.clone();
    want.chains.insert(
        "pod".into(),
        Arc::new(chain([asks("peers", Some(Expr::Verdict(Verdict::Return))), verdict(Verdict::Drop)])),
    );
    want.sets.insert("peers".into(), Arc::new(plain([1])));
    want.sets.insert("pods".into(), Arc::new(map([(2, jump("pod"))])));
    want.counters.insert("new".into(), Counter { comment: "of the pod".into() });
    let change = change(&one(have), &one(want));
    assert_eq!(
        lines(&change.make),
        [
            "add counter new { packets 0 bytes 0; comment \"of the pod\"; }",
            "add set peers { type ipv4_addr; }",
            "add chain pod { }",
            "add rule pod ip saddr @peers return",
            "add rule pod drop",
            "add element peers { 10.0.0.1 }",
        ]
    );
    assert_eq!(lines(&change.switch), ["add element pods { 10.0.0.2 : jump pod }"]);
    assert!(matches!(&change.make[1].kind, OpKind::AddSet { set, .. } if set.elements.is_empty()));
    assert!(change.clean.is_empty());
    assert!(change.tightens);
}

#[test]
fn a_pod_that_goes_is_left_before_it_is_removed() {
    let want = table([("base", base([rule([vmap("pods")])]))], [("pods", map([]))]);
    let mut have = want.clone();
    have.chains.insert(
        "pod".into(),
        Arc::new(chain([rule([vmap("ports")]), rule([Expr::Counter("old".into()), Expr::Verdict(Verdict::Drop)])])),
    );
    have.chains.insert("sub".into(), Arc::new(chain([])));
    have.sets.insert("ports".into(), Arc::new(map([(7, jump("sub"))])));
    have.sets.insert("peers".into(), Arc::new(plain([1])));
    have.sets.insert("pods".into(), Arc::new(map([(2, jump("pod"))])));
    have.counters.insert("old".into(), Counter::default());
    let change = change(&one(have), &one(want));
    assert!(change.make.is_empty() && change.switch.is_empty());
    assert_eq!(
        lines(&change.clean),
        [
            "delete element pods { 10.0.0.2 : jump pod }",
            "flush chain pod",
            "flush chain sub",
            "delete element ports { 10.0.0.7 : jump sub }",
            "delete chain pod",
            "delete chain sub",
            "delete set peers",
            "delete set ports",
            "delete counter old",
        ]
    );
    assert!(!change.tightens, "a pod that is isolated no more");
}

#[test]
fn a_changed_rule_replaces_its_chain_in_the_switch() {
    let have = table([("base", base([verdict(Verdict::Drop)])), ("same", chain([verdict(Verdict::Drop)]))], []);
    let mut want = have.clone();
    want.chains.insert("base".into(), Arc::new(base([verdict(Verdict::Accept), verdict(Verdict::Drop)])));
    let change = change(&one(have), &one(want));
    assert_eq!(lines(&change.switch), ["flush chain base", "add rule base accept", "add rule base drop"]);
    assert!(change.make.is_empty() && change.clean.is_empty() && change.tightens);
}

#[test]
fn an_element_that_leads_elsewhere_moves_in_the_switch() {
    let chains = || [("base", base([rule([vmap("pods")])])), ("a", chain([])), ("b", chain([]))];
    let have = table(chains(), [("pods", map([(1, jump("a")), (2, jump("a")), (3, Verdict::Drop)]))]);
    let want = table(chains(), [("pods", map([(1, jump("b")), (2, jump("a"))]))]);
    let change = change(&one(have), &one(want));
    assert_eq!(
        lines(&change.switch),
        ["delete element pods { 10.0.0.1 : jump a }", "add element pods { 10.0.0.1 : jump b }"]
    );
    assert_eq!(lines(&change.clean), ["delete element pods { 10.0.0.3 : drop }"]);
    assert!(change.tightens);
}

#[test]
fn base_chains_come_and_go_in_the_switch() {
    let plain_chain = table([], []);
    let with_base = table([("base", base([verdict(Verdict::Drop)]))], []);
    let coming = change(&one(plain_chain.clone()), &one(with_base.clone()));
    assert!(coming.make.is_empty() && coming.clean.is_empty() && coming.tightens);
    assert_eq!(lines(&coming.switch)[1], "add rule base drop");
    let going = change(&one(with_base), &one(plain_chain));
    assert_eq!(lines(&going.switch), ["flush chain base"]);
    assert_eq!(lines(&going.clean), ["flush chain base", "delete chain base"]);
    assert!(going.tightens);
}

#[test]
fn a_table_comes_in_the_switch_and_goes_at_the_end() {
    let full = one(table([("base", base([asks("peers", None)])), ("c", chain([]))], [("peers", plain([1]))]));
    let coming = change(&Ruleset::default(), &full);
    assert!(coming.make.is_empty() && coming.clean.is_empty() && coming.tightens);
    assert_eq!(lines(&coming.switch)[0], "add table");
    let going = change(&full, &Ruleset::default());
    assert_eq!(lines(&going.clean), ["delete table"]);
    assert!(going.make.is_empty() && going.switch.is_empty() && !going.tightens);
    assert!(change(&full, &full).is_empty());
}

#[test]
fn a_table_that_sees_no_packets_does_not_tighten() {
    assert!(!change(&Ruleset::default(), &one(table([("c", chain([verdict(Verdict::Drop)]))], []))).tightens);
    let frames = |rules: Vec<Rule>| Ruleset {
        tables: BTreeMap::from([(id(Family::Bridge), table([("base", base(rules))], []))]),
    };
    assert!(!change(&Ruleset::default(), &frames(vec![verdict(Verdict::Drop)])).tightens, "frames are no flows");
    assert!(!change(&frames(vec![]), &frames(vec![verdict(Verdict::Drop)])).tightens, "frames are no flows");
}

#[test]
fn what_is_fixed_at_creation_makes_the_table_anew() {
    let have = table([("base", base([asks("peers", None)])), ("c", chain([]))], [("peers", plain([1]))]);
    let changes: [fn(&mut Table); 8] = [
        |table| {
            Arc::make_mut(table.chains.get_mut("base").expect("is there")).hook =
                Some(BaseHook { hook: Hook::Forward, priority: 0 })
        },
        |table| Arc::make_mut(table.chains.get_mut("c").expect("is there")).comment = "other".into(),
        |table| {
            Arc::make_mut(table.chains.get_mut("c").expect("is there")).hook =
                Some(BaseHook { hook: Hook::Input, priority: 0 })
        },
        |table| table.counters.get_mut("n").expect("is there").comment = "other".into(),
        |table| Arc::make_mut(table.sets.get_mut("peers").expect("is there")).comment = "other".into(),
        |table| {
            table.chains.insert("base".into(), Arc::new(base([])));
            table.sets.insert("peers".into(), Arc::new(map([(1, Verdict::Drop)])));
        },
        |table| {
            table.chains.insert("base".into(), Arc::new(base([])));
            table.sets.insert("peers".into(), Arc::new(intervals::intervals(KeyType::InetService, &[])));
        },
        |table| {
            table
                .sets
                .insert("peers".into(), Arc::new(intervals::intervals(KeyType::Ipv4Addr, &[(v4(1), v4(2))])))
                .map_or((), |_| ())
        },
    ];
    for (number, alter) in changes.into_iter().enumerate() {
        let mut want = have.clone();
        alter(&mut want);
        let change = change(&one(have.clone()), &one(want));
        assert_eq!(lines(&change.switch)[..2], ["delete table", "add table"], "change {number}");
        assert!(change.make.is_empty() && change.clean.is_empty() && change.tightens);
    }
    let mut other_key = have.clone();
    other_key.chains.insert("base".into(), Arc::new(base([])));
    let mut want = other_key.clone();
    want.sets.insert("peers".into(), Arc::new(Set { key: vec![KeyType::Ipv6Addr], ..plain([]) }));
    assert_eq!(lines(&change(&one(other_key), &one(want)).switch)[0], "delete table");
}

#[test]
fn an_operation_holds_no_more_elements_than_its_message() {
    let chains = || [("base", base([asks("peers", Some(Expr::Verdict(Verdict::Accept)))]))];
    let many = |count: u16| {
        let elements = (0..count).map(|n| {
            let [high, low] = n.to_be_bytes();
            (Element::key([Value::V4(Ipv4Addr::new(10, 1, high, low))]), Datum::None)
        });
        one(table(chains(), [("peers", set(SetKind::Set, elements))]))
    };
    let sizes = |ops: &[Op]| -> Vec<usize> {
        ops.iter()
            .map(|op| match &op.kind {
                OpKind::AddElements { elements, .. } | OpKind::DeleteElements { elements, .. } => elements.len(),
                _ => 0,
            })
            .collect()
    };
    assert_eq!(sizes(&change(&many(0), &many(600)).switch), [256, 256, 88]);
    assert_eq!(sizes(&change(&many(256), &many(0)).clean), [256]);
}

/// A base chain, and so many chains below it, each leading to the next by an element of a map of its own.
fn ladder(steps: usize) -> Table {
    let mut ladder = table([("base", base([rule([vmap("m0")])]))], []);
    for step in 0..steps {
        ladder.sets.insert(format!("m{step}").into(), Arc::new(map([(1, Verdict::Goto(format!("c{step}").into()))])));
        ladder.chains.insert(format!("c{step}").into(), Arc::new(chain([])));
        if step > 0 {
            ladder.chains.insert(format!("c{}", step - 1).into(), Arc::new(chain([rule([vmap(&format!("m{step}"))])])));
        }
    }
    ladder
}

#[test]
fn map_elements_go_first_where_the_kernel_would_find_a_loop() {
    let chains = |a, b| [("base", base([rule([vmap("m")])])), ("a", chain(a)), ("b", chain(b))];
    let have = table(chains(vec![], vec![]), [("m", map([(1, jump("a"))])), ("o", plain([1]))]);
    let want = table(
        chains(vec![rule([vmap("m")])], vec![]),
        [("m", map([(1, Verdict::Drop), (2, jump("b"))])), ("o", plain([]))],
    );
    change(&one(have.clone()), &one(want));
    let want = table(chains(vec![rule([vmap("m")])], vec![]), [("m", map([(2, jump("b"))])), ("o", plain([]))]);
    let looped = change(&one(have), &one(want));
    assert!(lines(&looped.switch).contains(&"delete element m { 10.0.0.1 : jump a }".to_string()));
    assert_eq!(lines(&looped.clean), ["delete element o { 10.0.0.1 }"]);
}

#[test]
fn a_loop_may_lead_through_rules_too() {
    let chains = |a, b| [("base", base([rule([vmap("m")])])), ("a", chain(a)), ("b", chain(b))];
    let have = table(chains(vec![], vec![]), [("m", map([(1, jump("a"))]))]);
    let want = table(chains(vec![verdict(Verdict::Goto("b".into()))], vec![rule([vmap("m")])]), [("m", map([]))]);
    assert!(change(&one(have), &one(want)).clean.is_empty());
}

#[test]
fn map_elements_stay_till_the_end_as_long_as_the_kernel_takes_the_depth() {
    for (steps, first) in [(14, false), (15, true)] {
        // The element that goes leads from base to `top`, below which the switch hangs the ladder.
        let mut have = ladder(steps);
        have.chains.insert("top".into(), Arc::new(chain([])));
        have.chains.insert("side".into(), Arc::new(base([rule([vmap("s")])])));
        have.sets.insert("s".into(), Arc::new(map([(9, jump("top"))])));
        let mut want = have.clone();
        want.chains.insert("base".into(), Arc::new(base([])));
        want.chains.insert("top".into(), Arc::new(chain([rule([vmap("m0")])])));
        want.sets.insert("s".into(), Arc::new(map([])));
        let change = change(&one(have), &one(want));
        let gone = "delete element s { 10.0.0.9 : jump top }".to_string();
        assert_eq!(lines(&change.switch).contains(&gone), first, "{steps}");
        assert_eq!(lines(&change.clean).contains(&gone), !first, "{steps}");
    }
}

#[test]
fn a_change_with_any_step_is_not_empty() {
    let ops = vec![Op { table: id(Family::Inet), kind: OpKind::AddTable }];
    assert!(Change::default().is_empty());
    assert!(!Change { make: ops.clone(), ..Change::default() }.is_empty());
    assert!(!Change { switch: ops.clone(), ..Change::default() }.is_empty());
    assert!(!Change { clean: ops, ..Change::default() }.is_empty());
}

#[test]
fn what_nothing_asks_for_does_not_tighten() {
    let have = table([("base", base([verdict(Verdict::Accept)]))], [("peers", plain([1]))]);
    let mut want = have.clone();
    want.counters.insert("other".into(), Counter::default());
    want.chains.insert("other".into(), Arc::new(chain([verdict(Verdict::Drop)])));
    want.sets.insert("other".into(), Arc::new(plain([1])));
    want.sets.insert("peers".into(), Arc::new(plain([1, 2])));
    assert!(!tightens(have.clone(), want));
    let fewer = table([("base", base([verdict(Verdict::Accept)]))], [("peers", plain([]))]);
    assert!(!tightens(have.clone(), fewer), "an element that goes");
    let asking = |elements: [u8; 1]| {
        let rules = [asks("peers", Some(Expr::Verdict(Verdict::Accept)))];
        table([("base", base(rules))], [("peers", plain(elements))])
    };
    assert!(tightens(asking([1]), asking([2])), "an element that goes from a set that is asked");
}

/// Whether one more peer tightens, with these rules in a chain that base jumps to.
fn one_more_peer_tightens(rules: Vec<Rule>) -> bool {
    let with = |peers: Set| {
        let chains = [
            ("base", base([verdict(jump("pod"))])),
            ("pod", chain(rules.clone())),
            ("deny", chain([verdict(Verdict::Drop)])),
            ("deeper", chain([verdict(jump("deny"))])),
            ("allow", chain([verdict(Verdict::Accept)])),
            ("attribute", chain([rule([Expr::SetCtMark { keep: !0xfff, value: 5 }])])),
            ("stamp", chain([rule([Expr::SetCtMark { keep: 0xfff, value: 0x0200_0000 }])])),
        ];
        let maps = [
            ("denies", map([(1, jump("deny")), (2, Verdict::Drop), (3, Verdict::Return)])),
            ("allows", map([(1, jump("deny")), (2, Verdict::Goto("allow".into()))])),
        ];
        table(chains, [("peers", peers), ("others", plain([1]))].into_iter().chain(maps))
    };
    tightens(with(plain([1])), with(plain([1, 2])))
}

#[test]
fn one_more_peer_loosens_only_where_the_rule_can_only_allow() {
    let peer = |then| asks("peers", then);
    let end = |decision| Some(Expr::Verdict(decision));
    let mark = Expr::SetCtMark { keep: 0, value: 1 };
    let denied = rule([mark.clone(), Expr::Verdict(Verdict::Drop)]);
    let drop = || verdict(Verdict::Drop);
    let count = rule([Expr::Counter("n".into())]);
    let back = || peer(end(Verdict::Return));
    let attributed = || peer(end(Verdict::Goto("attribute".into())));
    let loosening = [
        vec![peer(end(Verdict::Accept)), verdict(Verdict::Accept)],
        vec![peer(None)],
        vec![peer(Some(Expr::Counter("n".into())))],
        vec![back()],
        vec![back(), drop()],
        vec![verdict(jump("allow")), back(), count, asks("others", end(Verdict::Return)), denied],
        vec![back(), verdict(jump("deny")), verdict(jump("deeper")), rule([vmap("denies")]), drop()],
        vec![asks("others", end(Verdict::Drop)), back(), verdict(Verdict::Goto("deny".into()))],
        vec![attributed(), asks("others", end(Verdict::Goto("attribute".into()))), drop()],
    ];
    for rules in loosening {
        assert!(!one_more_peer_tightens(rules.clone()), "{rules:?}");
    }
    let mixed = |first: Expr| {
        rule([Expr::Lookup { key: vec![Field::IpSaddr], set: "peers".into() }, first, Expr::Verdict(Verdict::Accept)])
    };
    let tightening = [
        vec![peer(end(Verdict::Drop))],
        vec![peer(end(jump("deny")))],
        vec![peer(end(Verdict::Goto("allow".into())))],
        vec![peer(Some(vmap("denies")))],
        vec![peer(Some(mark.clone()))],
        vec![mixed(mark.clone())],
        vec![rule([
            Expr::Lookup { key: vec![Field::IpSaddr], set: "peers".into() },
            Expr::Verdict(Verdict::Drop),
            Expr::Counter("n".into()),
        ])],
        vec![back(), verdict(Verdict::Accept)],
        vec![back(), rule([mark])],
        vec![back(), verdict(jump("allow"))],
        vec![back(), rule([Expr::Foreign("unknown".into())])],
        vec![back(), verdict(Verdict::Goto("allow".into()))],
        vec![back(), rule([vmap("allows")]), drop()],
        vec![back(), drop(), asks("peers", end(Verdict::Drop))],
        vec![attributed(), verdict(Verdict::Accept)],
        vec![attributed(), verdict(jump("stamp")), drop()],
        vec![peer(end(Verdict::Goto("stamp".into()))), drop()],
    ];
    for rules in tightening {
        assert!(one_more_peer_tightens(rules.clone()), "{rules:?}");
    }
}

#[test]
fn an_element_that_only_denied_goes_without_tightening() {
    let stamp = Expr::SetCtMark { keep: 0, value: 1 };
    let with = |elements: &[(u8, Verdict)]| {
        let chains = [
            ("base", base([rule([vmap("m")])])),
            ("deny", chain([asks("peers", Some(Expr::Verdict(Verdict::Return))), verdict(Verdict::Drop)])),
            ("stamp", chain([rule([stamp.clone()]), verdict(Verdict::Drop)])),
            ("stamp-some", chain([rule([stamp.clone()]), asks("peers", Some(Expr::Verdict(Verdict::Drop)))])),
            ("allow", chain([verdict(Verdict::Accept)])),
        ];
        table(chains, [("m", map(elements.iter().cloned())), ("peers", plain([1]))])
    };
    let gone = |verdict: Verdict| tightens(with(&[(1, verdict), (2, Verdict::Drop)]), with(&[(2, Verdict::Drop)]));
    assert!(!gone(jump("deny")));
    assert!(!gone(Verdict::Drop));
    assert!(!gone(jump("stamp")), "no packet of a stamped flow comes out");
    assert!(gone(jump("stamp-some")));
    assert!(gone(jump("allow")));
    assert!(gone(Verdict::Accept));
    assert!(gone(Verdict::Return));
    assert!(gone(Verdict::Goto("deny".into())));
    assert!(tightens(with(&[]), with(&[(1, Verdict::Drop)])), "an element that comes");
}

#[test]
fn counters_by_mark_tighten_only_where_something_hangs_on_them() {
    let with = |then: Option<Expr>, first: Option<Expr>, marks: &[u32]| {
        let by_mark = Expr::CountMark { mask: u32::MAX, set: "m".into() };
        let elements = marks.iter().map(|mark| (Element::key([Value::Mark(*mark)]), Datum::Counter("n".into())));
        let marks = Set { key: vec![KeyType::Mark], ..set(SetKind::Counters, elements) };
        table(
            [("base", base([rule(first.into_iter().chain([by_mark]).chain(then)), verdict(Verdict::Drop)]))],
            [("m", marks)],
        )
    };
    let changed = |then: Option<Expr>, first: Option<Expr>| {
        tightens(with(then.clone(), first.clone(), &[1]), with(then, first, &[1, 2]))
    };
    assert!(!changed(None, None));
    assert!(!changed(Some(Expr::Counter("n".into())), None));
    assert!(!changed(None, Some(Expr::SetCtMark { keep: 0, value: 1 })));
    assert!(changed(Some(Expr::Verdict(Verdict::Accept)), None));
    assert!(changed(Some(Expr::SetCtMark { keep: 0, value: 1 }), None));
}

#[test]
fn the_bumped_rules_come_last_and_only_if_the_change_tightens() {
    let stamp = |generation: u32| base([rule([Expr::SetCtMark { keep: 0x00ff_ffff, value: generation << 24 }])]);
    let have = one(table([("base", stamp(1)), ("pod", chain([verdict(Verdict::Accept)]))], [("old", plain([]))]));
    let pod = |generation, end| one(table([("base", stamp(generation)), ("pod", chain([verdict(end)]))], []));
    let change = diff::plan(&have.clone().into(), pod(1, Verdict::Drop), || pod(2, Verdict::Drop));
    assert_eq!(lines(&change.switch), ["flush chain pod", "add rule pod drop"]);
    assert_eq!(
        lines(&change.clean),
        ["delete set old", "flush chain base", "add rule base ct mark set ct mark & 0x02ffffff | 0x02000000"]
    );
    assert_eq!(*change.result.ruleset(), pod(2, Verdict::Drop));
    let same = diff::plan(&have.clone().into(), pod(1, Verdict::Accept), || panic!("no new generation is needed"));
    assert_eq!(*same.result.ruleset(), pod(1, Verdict::Accept));
    assert_eq!(lines(&same.clean), ["delete set old"]);
}
