//! A transaction is all or nothing, large ones too, and a refusal names its operation.

mod kernel_common;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use flatfell::kernel::{CommitError, Kernel};
use flatfell_rules::ruleset::*;
use kernel_common::*;
use nix::errno::Errno;

const RULES: u16 = 20_000;
const ELEMENTS: u32 = 100_000;

fn id() -> TableId {
    table_id(Family::Inet, "flatfell-1a")
}

fn op(kind: OpKind) -> Op {
    Op { table: id(), kind }
}

/// 200 chains with the rules, one set with the elements.
fn large() -> Ruleset {
    let rules = |chain: u16| -> Vec<Rule> {
        let port = |rule: u16| Value::Port(chain * 100 + rule);
        let compare = |rule| Expr::Compare { field: Field::TcpDport, value: port(rule), negated: false };
        let end = Expr::Verdict(Verdict::Accept);
        (0..100).map(|one| rule(&format!("rule {one}"), vec![compare(one), end.clone()])).collect()
    };
    let chains = (0..RULES / 100).map(|n| (format!("c{n}"), Chain { rules: rules(n), ..Chain::default() }));
    let elements = (0..ELEMENTS).map(|n| (vec![Value::V4(Ipv4Addr::from(0x0a00_0000 + n))], Datum::None)).collect();
    let sets = shared([("s", set(SetKind::Set, &[KeyType::Ipv4Addr], "", elements))]);
    let table = Table { chains: shared(chains), sets, ..Table::default() };
    Ruleset { tables: BTreeMap::from([(id(), table)]) }
}

fn bad_rule() -> Op {
    let rule = rule("the bad one", vec![Expr::Lookup { key: vec![Field::IpSaddr], set: "nowhere".into() }]);
    op(OpKind::AddRule { chain: "c7".into(), rule })
}

#[test]
fn a_large_transaction_is_committed_and_reads_back() {
    in_namespace(|| {
        let ruleset = large();
        let mut kernel = Kernel::open().expect("socket");
        let stats = kernel.commit(&make(&ruleset)).expect("commit");
        println!("{stats:?}");
        assert!(kernel.read(&[id()], &ruleset).expect("read") == ruleset);
    });
}

#[test]
fn one_bad_operation_of_a_large_transaction_is_named_and_nothing_changes() {
    in_namespace(|| {
        let mut ops = make(&large());
        let bad = ops.len() / 2;
        ops.insert(bad, bad_rule());
        let mut kernel = Kernel::open().expect("socket");
        let error = kernel.commit(&ops).expect_err("refused");
        match &error {
            CommitError::Refused { index, op, errno, .. } => {
                assert_eq!((*index, *errno), (bad, Errno::ENOENT));
                assert!(op.contains("c7") && op.contains("the bad one"), "{op}");
            }
            other => panic!("{other}"),
        }
        assert_eq!(kernel.tables().expect("tables"), vec![]);
        ops.remove(bad);
        kernel.commit(&ops).expect("without it");
    });
}

#[test]
fn thousands_of_bad_operations_are_answered_and_the_first_is_named() {
    in_namespace(|| {
        let mut kernel = Kernel::open().expect("socket");
        kernel.commit(&[op(OpKind::AddTable)]).expect("table");
        let ops: Vec<_> = (0..RULES).map(|n| op(OpKind::DeleteChain(format!("none{n}").into()))).collect();
        match kernel.commit(&ops).expect_err("refused") {
            CommitError::Refused { index: 0, errno: Errno::ENOENT, .. } => {}
            other => panic!("{other}"),
        }
        kernel.commit(&[op(OpKind::DeleteTable)]).expect("the next one is answered for itself");
    });
}

#[test]
fn each_place_of_a_bad_operation_is_found() {
    in_namespace(|| {
        let mut kernel = Kernel::open().expect("socket");
        let good = make(&everything());
        let missing = op(OpKind::DeleteSet("nowhere".into()));
        for place in 1..=good.len() {
            let mut ops = good.clone();
            ops.insert(place, missing.clone());
            match kernel.commit(&ops).expect_err("refused") {
                CommitError::Refused { index, .. } => assert_eq!(index, place),
                other => panic!("{other}"),
            }
        }
        assert_eq!(kernel.tables().expect("tables"), vec![]);
    });
}

#[test]
fn an_element_with_another_datum_is_refused() {
    in_namespace(|| {
        let elements = |verdict| BTreeMap::from([(Element::key([v4("10.0.0.1")]), Datum::Verdict(verdict))]);
        let add =
            |verdict| op(OpKind::AddElements { set: "m".into(), elements: elements(verdict), starts: BTreeMap::new() });
        let map = set(SetKind::VerdictMap, &[KeyType::Ipv4Addr], "", vec![]);
        let mut kernel = Kernel::open().expect("socket");
        let add_map = op(OpKind::AddSet { name: "m".into(), set: map });
        kernel.commit(&[op(OpKind::AddTable), add_map, add(Verdict::Drop)]).expect("commit");
        kernel.commit(&[add(Verdict::Drop)]).expect("the same again");
        let error = kernel.commit(&[add(Verdict::Accept)]).expect_err("another");
        assert!(matches!(error, CommitError::Refused { index: 0, errno: Errno::EEXIST, .. }), "{error}");
    });
}

#[test]
fn the_longest_names_fit_in_lists_of_elements() {
    in_namespace(|| {
        let chain = "c".repeat(255);
        let jump = Datum::Verdict(Verdict::Jump(chain.clone().into()));
        let jumps = (0..2000).map(|mark| (vec![Value::Mark(mark)], jump.clone())).collect();
        let count = Datum::Counter("c".repeat(127).into());
        let counts = (0..2000).map(|mark| (vec![Value::Mark(mark)], count.clone())).collect();
        let sets = shared([
            ("m", set(SetKind::VerdictMap, &[KeyType::Mark], "", jumps)),
            ("s", set(SetKind::Counters, &[KeyType::Mark], "", counts)),
        ]);
        let table = Table { sets, chains: shared([(chain.as_str(), Chain::default())]), ..Table::default() };
        let ruleset = Ruleset { tables: BTreeMap::from([(id(), table)]) };
        let mut kernel = Kernel::open().expect("socket");
        kernel.commit(&make(&ruleset)).expect("commit");
        assert_eq!(kernel.read(&[id()], &ruleset).expect("read"), ruleset);
    });
}

#[test]
fn what_cannot_be_encoded_is_named_and_nothing_is_sent() {
    in_namespace(|| {
        let mut kernel = Kernel::open().expect("socket");
        let foreign = rule("", vec![Expr::Foreign("[ dup ]".to_owned())]);
        let ops = [op(OpKind::AddTable), op(OpKind::AddRule { chain: "c".into(), rule: foreign })];
        match kernel.commit(&ops).expect_err("refused") {
            CommitError::Encode(error) => assert_eq!(error.index, 1),
            other => panic!("{other}"),
        }
        assert_eq!(kernel.tables().expect("tables"), vec![]);
    });
}

#[test]
fn nothing_to_do_is_done() {
    in_namespace(|| {
        let mut kernel = Kernel::open().expect("socket");
        assert_eq!(kernel.commit(&[]).expect("nothing").bytes, 0);
        let none = op(OpKind::AddElements { set: "s".into(), elements: BTreeMap::new(), starts: BTreeMap::new() });
        assert_eq!(kernel.commit(std::slice::from_ref(&none)).expect("no elements").bytes, 0);
        kernel.commit(&[op(OpKind::AddTable), none]).expect("no elements at the end");
        assert_eq!(kernel.tables().expect("tables"), vec![id()]);
    });
}
