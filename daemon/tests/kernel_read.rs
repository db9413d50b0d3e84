//! What was committed reads back as it was, and what others changed does not.

mod kernel_common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use flatfell::kernel::Kernel;
use flatfell_rules::ids::{CONNECTIONS, COUNTERS};
use flatfell_rules::ruleset::*;
use kernel_common::*;

fn names(ruleset: &Ruleset) -> Vec<TableId> {
    ruleset.tables.keys().cloned().collect()
}

#[test]
fn everything_reads_back() {
    in_namespace(|| {
        let ruleset = everything();
        let mut kernel = Kernel::open().expect("socket");
        assert_eq!(kernel.read(&names(&ruleset), &ruleset).expect("read"), Ruleset::default());
        kernel.commit(&make(&ruleset)).expect("commit");
        assert_eq!(kernel.tables().expect("tables"), names(&ruleset));
        assert_eq!(kernel.read(&names(&ruleset), &ruleset).expect("read"), ruleset);
    });
}

#[test]
fn what_exists_is_added_again_without_a_change() {
    in_namespace(|| {
        let mut ruleset = everything();
        for table in ruleset.tables.values_mut() {
            let emptied = |chain: Arc<Chain>| Chain { rules: Vec::new(), ..Chain::clone(&chain) };
            table.chains = shared(table.chains.clone().into_iter().map(|(name, chain)| (name, emptied(chain))));
        }
        let mut kernel = Kernel::open().expect("socket");
        kernel.commit(&make(&ruleset)).expect("commit");
        kernel.commit(&make(&ruleset)).expect("again");
        assert_eq!(kernel.read(&names(&ruleset), &ruleset).expect("read"), ruleset);
    });
}

#[test]
fn everything_can_be_deleted_one_by_one() {
    in_namespace(|| {
        let ruleset = everything();
        let mut kernel = Kernel::open().expect("socket");
        kernel.commit(&make(&ruleset)).expect("commit");
        let mut ops = Vec::new();
        for (id, table) in &ruleset.tables {
            let mut op = |kind| ops.push(Op { table: id.clone(), kind });
            table.chains.keys().for_each(|name| op(OpKind::FlushChain(name.clone())));
            for (name, set) in &table.sets {
                op(OpKind::DeleteElements { set: name.clone(), elements: set.elements.iter().collect() });
                op(OpKind::DeleteSet(name.clone()));
            }
            table.chains.keys().for_each(|name| op(OpKind::DeleteChain(name.clone())));
            table.counters.keys().for_each(|name| op(OpKind::DeleteCounter(name.clone())));
        }
        kernel.commit(&ops).expect("delete");
        let empty = kernel.read(&names(&ruleset), &ruleset).expect("read");
        assert_eq!(empty.tables.len(), 2);
        assert!(empty.tables.values().all(|table| *table == Table::default()));
        let tables = names(&ruleset).into_iter().map(|table| Op { table, kind: OpKind::DeleteTable });
        kernel.commit(&tables.collect::<Vec<_>>()).expect("delete tables");
        assert_eq!(kernel.tables().expect("tables"), vec![]);
    });
}

/// Each of these edits must be seen: the ruleset that is read differs from the wanted one.
#[test]
fn what_others_changed_is_seen() {
    let edits = [
        "add rule inet flatfell-1a pod-1 accept",
        "insert rule inet flatfell-1a forward tcp dport 22 accept",
        "add rule inet flatfell-1a forward accept comment \"open\"",
        "flush chain inet flatfell-1a forward",
        "add element inet flatfell-1a a4 { 1.2.3.4 }",
        "delete element inet flatfell-1a egress4 { 10.0.0.1 }",
        "add element inet flatfell-1a cidr4 { 10.0.0.0/8 }",
        "add set inet flatfell-1a other { type ether_addr; }",
        "add set inet flatfell-1a other { type ipv4_addr; flags timeout; }",
        "add map inet flatfell-1a other { type ipv4_addr : ipv4_addr; }",
        "add map inet flatfell-1a other { type ipv4_addr : ipv4_addr; elements = { 1.2.3.4 : 5.6.7.8 }; }",
        "add chain inet flatfell-1a other { type nat hook prerouting priority 0; }",
        "add chain inet flatfell-1a forward { policy drop; }",
        "add counter inet flatfell-1a other",
        "reset counters; add chain inet flatfell-1a other",
        "delete table bridge flatfell-1a",
    ];
    for edit in edits {
        in_namespace(|| {
            let ruleset = everything();
            let mut kernel = Kernel::open().expect("socket");
            kernel.commit(&make(&ruleset)).expect("commit");
            run("nft", &[edit]);
            let read = kernel.read(&names(&ruleset), &ruleset).expect("read");
            assert_ne!(read, ruleset, "{edit}");
        });
    }
}

#[test]
fn a_rule_is_recognised_at_another_place_and_with_another_comment() {
    in_namespace(|| {
        let id = table_id(Family::Inet, "flatfell-1b");
        let drop = rule("one", vec![Expr::Verdict(Verdict::Drop)]);
        let accept = rule("two", vec![Expr::Verdict(Verdict::Accept)]);
        let with = |rules: Vec<Rule>| {
            let chain = Chain { rules, ..Chain::default() };
            let table = Table { chains: shared([("c", chain)]), ..Table::default() };
            Ruleset { tables: BTreeMap::from([(id.clone(), table)]) }
        };
        let mut kernel = Kernel::open().expect("socket");
        let other = Rule { comment: "else".to_owned(), ..drop.clone() };
        let made = with(vec![other, accept.clone()]);
        kernel.commit(&make(&made)).expect("commit");
        let want = with(vec![accept.clone(), drop]);
        assert_eq!(kernel.read(std::slice::from_ref(&id), &want).expect("read"), made);
        let unknown = kernel.read(std::slice::from_ref(&id), &with(vec![accept])).expect("read");
        let first = &unknown.tables[&id].chains["c"].rules[0].exprs;
        assert!(matches!(first.as_slice(), [Expr::Foreign(_)]), "{first:?}");
    });
}

#[test]
fn counters_start_where_they_are_told_and_an_absent_table_has_none() {
    in_namespace(|| {
        let id = table_id(Family::Bridge, "flatfell-1b");
        let start = CounterValue { packets: 1 << 40, bytes: u64::MAX - 1 };
        let op = |kind| Op { table: id.clone(), kind };
        let add = |name: &str, start| op(OpKind::AddCounter { name: name.into(), comment: "".into(), start });
        let mut kernel = Kernel::open().expect("socket");
        assert_eq!(kernel.counters(&id).expect("none").values(), []);
        kernel.commit(&[op(OpKind::AddTable), add("a", start), add("b", CounterValue::default())]).expect("commit");
        let read = kernel.counters(&id).expect("two");
        let expected = [(&"a".into(), start), (&"b".into(), CounterValue::default())];
        assert_eq!(read.iter().collect::<Vec<_>>(), expected);
        let again = kernel.counters(&id).expect("two");
        assert!(Arc::ptr_eq(read.names(), again.names()), "the same names");
    });
}

/// The counters of two sets, by id; `nft` is somebody who changes them.
#[test]
fn elements_count_from_where_they_are_told_and_those_that_moved_are_read_again() {
    in_namespace(|| {
        let id = table_id(Family::Inet, "flatfell-1b");
        let op = |kind| Op { table: id.clone(), kind };
        let value = |packets| CounterValue { packets, bytes: packets * 100 };
        let add = |set: &str, names: &[(u32, String)]| {
            let element = |(mark, name): &(u32, String)| {
                (Element::key([Value::Mark(*mark)]), Datum::Counter(name.as_str().into()))
            };
            let starts = names.iter().map(|(mark, name)| (name.as_str().into(), value(u64::from(*mark)))).collect();
            let elements = names.iter().map(element).collect();
            let shape = Set { size: Some(8192), ..Set::of(SetKind::Counters, vec![KeyType::Mark]) };
            [OpKind::AddSet { name: set.into(), set: shape }, OpKind::AddElements { set: set.into(), elements, starts }]
        };
        let names = |prefix: &str, marks: &[u32]| -> Vec<(u32, String)> {
            marks.iter().map(|mark| (*mark, format!("{prefix}{mark}"))).collect()
        };
        let mut kernel = Kernel::open().expect("socket");
        let sets = [add(COUNTERS, &names("p", &[0, 1, 2, 0x1000])), add(CONNECTIONS, &names("c", &[1, 2, 0x1000]))];
        let ops: Vec<Op> = std::iter::once(OpKind::AddTable).chain(sets.into_iter().flatten()).map(op).collect();
        kernel.commit(&ops).expect("commit");
        let mut read = || -> BTreeMap<String, CounterValue> {
            let counters = kernel.counters(&id).expect("counters");
            counters.iter().map(|(name, value)| (name.to_string(), value)).collect()
        };
        let mut expected: BTreeMap<String, CounterValue> = [("p0".to_owned(), value(0))].into();
        for (mark, name) in names("p", &[1, 2, 0x1000]).into_iter().chain(names("c", &[1, 2, 0x1000])) {
            expected.insert(name, value(mark.into()));
        }
        assert_eq!(read(), expected);
        assert_eq!(read(), expected, "nothing moved");
        let change = |set: &str, mark: u32, name: &str, packets: u64| {
            let element = format!("counter packets {packets} bytes {} comment \"{name}\"", packets * 100);
            run(
                "nft",
                &[&format!(
                    "delete element inet flatfell-1b {set} {{ {mark} }}; add element inet flatfell-1b {set} {{ {mark} {element} }}"
                )],
            );
        };
        change(COUNTERS, 2, "p2", 30);
        change(CONNECTIONS, 2, "c2", 3);
        change(COUNTERS, 0, "p0", 7);
        expected.extend([("p2".to_owned(), value(30)), ("c2".to_owned(), value(3)), ("p0".to_owned(), value(7))]);
        assert_eq!(read(), expected);
        // An id goes from one to another.
        change(COUNTERS, 1, "other", 1);
        change(CONNECTIONS, 1, "c-other", 5);
        expected.retain(|name, _| !["p1", "c1"].contains(&name.as_str()));
        expected.extend([("other".to_owned(), value(1)), ("c-other".to_owned(), value(5))]);
        assert_eq!(read(), expected);
        // Connections that are not there do not keep others from being read.
        run("nft", &["delete element inet flatfell-1b connections { 1 }"]);
        change(COUNTERS, 1, "other", 2);
        change(COUNTERS, 0x1000, "p4096", 5000);
        change(CONNECTIONS, 0x1000, "c4096", 5000);
        expected.extend([
            ("other".to_owned(), value(2)),
            ("p4096".to_owned(), value(5000)),
            ("c4096".to_owned(), value(5000)),
        ]);
        assert_eq!(read(), expected);
    });
}

/// Ranges that touch, made one after the other, stay two; each can be deleted, and replaced by a longer one.
#[test]
fn ranges_come_and_go_beside_each_other() {
    in_namespace(|| {
        let id = table_id(Family::Inet, "flatfell-1a");
        let port = Value::Port;
        let with = |pairs: Vec<(u16, u16)>| {
            let pairs = pairs.into_iter().map(|(first, last)| (port(first), port(last))).collect();
            let sets = shared([("s", ranges(KeyType::InetService, pairs))]);
            Ruleset { tables: BTreeMap::from([(id.clone(), Table { sets, ..Table::default() })]) }
        };
        let list = |first, last| BTreeMap::from([(Element::Range(port(first), port(last)), Datum::None)]);
        let op = |kind| Op { table: id.clone(), kind };
        let add = |first, last| {
            op(OpKind::AddElements { set: "s".into(), elements: list(first, last), starts: BTreeMap::new() })
        };
        let delete = |first, last| op(OpKind::DeleteElements { set: "s".into(), elements: list(first, last) });
        let mut kernel = Kernel::open().expect("socket");
        kernel.commit(&make(&with(vec![(10, 20)]))).expect("make");
        let steps = [
            (vec![add(21, 30)], vec![(10, 20), (21, 30)]),
            (vec![add(5, 9)], vec![(5, 9), (10, 20), (21, 30)]),
            (vec![add(21, 30)], vec![(5, 9), (10, 20), (21, 30)]),
            (vec![delete(10, 20)], vec![(5, 9), (21, 30)]),
            (vec![delete(21, 30), add(21, 65535)], vec![(5, 9), (21, 65535)]),
            (vec![delete(21, 65535), add(15, 40)], vec![(5, 9), (15, 40)]),
            (vec![delete(5, 9), add(0, 9), add(11, 11)], vec![(0, 9), (11, 11), (15, 40)]),
        ];
        for (ops, expected) in steps {
            kernel.commit(&ops).unwrap_or_else(|error| panic!("{expected:?}: {error}"));
            let expected = with(expected);
            assert_eq!(kernel.read(std::slice::from_ref(&id), &expected).expect("read"), expected);
        }
    });
}

/// With one rule wanted, only that one is recognised among all that are there.
#[test]
fn a_rule_that_is_nearly_the_wanted_one_is_not_taken_for_it() {
    in_namespace(|| {
        let id = table_id(Family::Inet, "flatfell-1a");
        let singles = singles();
        let with = |exprs: &[Expr]| {
            let mut ruleset = everything();
            ruleset.tables.retain(|table, _| *table == id);
            let forward = ruleset.tables.get_mut(&id).and_then(|table| table.chains.get_mut("forward"));
            Arc::make_mut(forward.expect("chain")).rules =
                exprs.iter().map(|expr| rule("", vec![expr.clone()])).collect();
            ruleset
        };
        let mut kernel = Kernel::open().expect("socket");
        kernel.commit(&make(&with(&singles))).expect("commit");
        for (place, wanted) in singles.iter().enumerate() {
            let read = kernel.read(std::slice::from_ref(&id), &with(std::slice::from_ref(wanted))).expect("read");
            let rules = &read.tables[&id].chains["forward"].rules;
            let known = |rule: &Rule| !matches!(rule.exprs.as_slice(), [Expr::Foreign(_)]);
            let recognised: Vec<_> = (0..rules.len()).filter(|at| known(&rules[*at])).collect();
            assert_eq!(
                recognised,
                vec![place],
                "{wanted:?}: {:?}",
                recognised.iter().map(|at| &singles[*at]).collect::<Vec<_>>()
            );
        }
    });
}

/// Dumps that transactions interrupt are tried again or merged: nothing that is there all the time is missing.
#[test]
fn counters_and_sets_are_whole_while_others_commit() {
    const COUNTERS: usize = 2000;
    in_namespace(|| {
        let id = table_id(Family::Inet, "flatfell-1a");
        let counters = counters((0..COUNTERS).map(|n| (format!("c{n}"), Counter::default())));
        let elements = (0..5000).map(|n| (vec![Value::Mark(n)], Datum::None)).collect();
        let sets = shared([("s", set(SetKind::Set, &[KeyType::Mark], "", elements))]);
        let table = Table { counters, sets, ..Table::default() };
        let ruleset = Ruleset { tables: BTreeMap::from([(id.clone(), table)]) };
        let mut kernel = Kernel::open().expect("socket");
        kernel.commit(&make(&ruleset)).expect("commit");
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut other = Kernel::open().expect("socket");
                let name = "other".to_owned();
                let op = |kind| Op { table: table_id(Family::Inet, "other"), kind };
                let add = OpKind::AddChain { name: name.clone().into(), hook: None, comment: String::new() };
                while !done.load(Ordering::Relaxed) {
                    other.commit(&[op(OpKind::AddTable), op(add.clone())]).expect("add");
                    other.commit(&[op(OpKind::DeleteChain(name.clone().into()))]).expect("delete");
                    thread::sleep(Duration::from_millis(1));
                }
            });
            for _ in 0..20 {
                let counted = kernel.counters(&id).map(|all| all.iter().collect::<BTreeMap<_, _>>().len());
                let read = kernel.read(std::slice::from_ref(&id), &ruleset).map(|read| read == ruleset);
                if !matches!((&counted, &read), (Ok(COUNTERS), Ok(true))) {
                    done.store(true, Ordering::Relaxed);
                    panic!("{counted:?} {read:?}");
                }
            }
            done.store(true, Ordering::Relaxed);
        });
    });
}
