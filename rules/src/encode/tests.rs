//! The shape of a batch, and what is refused. That the bytecode is nft's is tested against the kernel and nft.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::ruleset::Family;
use crate::ruleset::{Datum, KeyType, Rule, Set, SetKind, TableId};

fn op(kind: OpKind) -> Op {
    Op { table: TableId { family: Family::Inet, name: "flatfell-1a".to_owned() }, kind }
}

fn port(number: u16) -> Element {
    Element::key([Value::Port(number)])
}

fn add_rule(exprs: Vec<crate::ruleset::Expr>) -> Op {
    op(OpKind::AddRule { chain: "c".into(), rule: Rule { exprs, comment: String::new() } })
}

/// Length, flags and sequence number of each message.
fn messages(batch: &Batch) -> Vec<(usize, u16, u32)> {
    let mut rest = batch.bytes();
    let mut found = Vec::new();
    while !rest.is_empty() {
        let length = u32::from_ne_bytes(rest[..4].try_into().expect("length"));
        let length = usize::try_from(length).expect("length");
        let flags = u16::from_ne_bytes(rest[6..8].try_into().expect("flags"));
        found.push((length, flags, u32::from_ne_bytes(rest[8..12].try_into().expect("sequence number"))));
        rest = &rest[length.next_multiple_of(4)..];
    }
    found
}

fn refused(op: Op) -> EncodeError {
    encode(&[self::op(OpKind::AddTable), op], Ownership::Shared).map_err(|error| error.source).expect_err("refused")
}

#[test]
fn only_the_last_operation_asks_for_an_answer() {
    const ACK: u16 = 4;
    let counter = |name: &str| op(OpKind::DeleteCounter(name.into()));
    let batch = encode(&[op(OpKind::AddTable), counter("a"), counter("b")], Ownership::Shared).expect("batch");
    let all = messages(&batch);
    assert_eq!(all.iter().map(|(_, _, seq)| *seq).collect::<Vec<_>>(), vec![0, 1, 2, 3, 4]);
    assert_eq!(
        all.iter().map(|(_, flags, _)| flags & ACK != 0).collect::<Vec<_>>(),
        [false, false, false, true, false]
    );
    assert_eq!(batch.last(), 3);
}

#[test]
fn long_lists_are_split_below_the_limit_of_an_attribute_and_stay_their_operations() {
    let datum = Datum::Counter("c".repeat(127).into());
    let elements = (0..2000).map(|number| (port(number), datum.clone())).collect();
    let add = op(OpKind::AddElements { set: "s".into(), elements, starts: BTreeMap::new() });
    let batch =
        encode(&[op(OpKind::AddTable), add, op(OpKind::DeleteSet("x".into()))], Ownership::Shared).expect("batch");
    let all = messages(&batch);
    assert!(all.len() > 10, "{all:?}");
    assert!(all.iter().all(|(length, ..)| *length < 1 << 16), "{all:?}");
    let owners: Vec<_> = (1..=batch.last()).map(|seq| batch.op(seq)).collect();
    assert_eq!(owners.first(), Some(&Some(0)));
    assert_eq!(owners.last(), Some(&Some(2)));
    assert!(owners[1..owners.len() - 1].iter().all(|owner| *owner == Some(1)));
    assert_eq!((batch.op(Batch::BEGIN), batch.op(batch.last() + 1)), (None, None));
}

#[test]
fn types_of_keys_come_back_from_their_number() {
    let all = [
        KeyType::Ipv4Addr,
        KeyType::Ipv6Addr,
        KeyType::InetProto,
        KeyType::InetService,
        KeyType::Ifname,
        KeyType::Mark,
        KeyType::Icmpv6Type,
        KeyType::EtherAddr,
    ];
    let mut numbers = BTreeSet::new();
    for first in all {
        for second in all {
            for key in [vec![first], vec![first, second]] {
                let (number, _) = types::key_type(&key).expect("key");
                assert_eq!(types::key_types(number), Some(key));
                numbers.insert(number);
            }
        }
    }
    assert_eq!(numbers.len(), all.len() + all.len() * all.len());
    assert_eq!(types::key_types(10), None, "ether_type is not in use");
}

#[test]
fn what_cannot_be_encoded_exactly_is_refused() {
    use crate::ruleset::Expr;
    let compare = |field, value| add_rule(vec![Expr::Compare { field, value, negated: false }]);
    let elements = |element| {
        let elements = BTreeMap::from([(element, Datum::None)]);
        op(OpKind::AddElements { set: "s".into(), elements, starts: BTreeMap::new() })
    };
    let set = |key: Vec<KeyType>, interval| {
        let set = Set { interval, ..Set::of(SetKind::Set, key) };
        op(OpKind::AddSet { name: "s".into(), set })
    };
    let chain =
        |name: &str, comment: &str| op(OpKind::AddChain { name: name.into(), hook: None, comment: comment.to_owned() });
    let bad = [
        add_rule(vec![Expr::Foreign("[ dup ]".to_owned())]),
        add_rule(vec![Expr::CtStateRelated; 50]),
        add_rule(vec![Expr::Lookup { key: vec![], set: "s".into() }]),
        add_rule(vec![Expr::Lookup { key: vec![Field::IpSaddr], set: "s\0".into() }]),
        compare(Field::TcpDport, Value::Proto(6)),
        compare(Field::Iifname, Value::Ifname("sixteen-letters-".to_owned())),
        compare(Field::Iifname, Value::Ifname("veth*".to_owned())),
        compare(Field::Iifname, Value::Ifname(String::new())),
        elements(Element::key([])),
        elements(Element::key([Value::AddrType(5)])),
        elements(Element::Range(Value::Port(9), Value::Port(8))),
        elements(Element::Range(Value::Port(9), Value::Proto(10))),
        elements(Element::Range(Value::Mark(1), Value::Mark(2))),
        set(vec![], false),
        set(vec![KeyType::Mark; 6], false),
        set(vec![KeyType::Mark; 2], true),
        chain("", ""),
        chain(&"c".repeat(256), ""),
        chain("c", &"x".repeat(128)),
    ];
    for op in bad {
        let text = describe(&op);
        println!("{text}: {}", refused(op));
    }
}

#[test]
fn an_error_names_its_operation() {
    let error = encode(&[op(OpKind::AddTable), op(OpKind::DeleteChain(String::new().into()))], Ownership::Shared)
        .expect_err("refused");
    assert_eq!(error.index, 1);
    assert!(error.to_string().starts_with("delete chain inet flatfell-1a "), "{error}");
}

#[test]
fn user_data_that_is_no_list_of_items_is_no_comment() {
    assert_eq!(types::comment_of(0, &[]), Some(String::new()));
    let comment = types::comment(0, "hello").expect("comment");
    assert_eq!(types::comment_of(0, &comment).as_deref(), Some("hello"));
    for end in 1..comment.len() {
        assert_eq!(types::comment_of(0, &comment[..end]), None, "cut at {end}");
    }
    assert_eq!(types::comment_of(0, &[0, 1, b'x']), None, "without NUL");
}

/// As nft 1.0.6 sends it: the byte order (2 on the wire, 1 as on this machine, 0 for a concatenation), then the comment.
#[test]
fn user_data_of_sets_is_what_nft_sends() {
    let user_data = |key: &[KeyType], comment: &str| {
        let set = Set { comment: comment.to_owned(), ..Set::of(SetKind::Set, key.to_vec()) };
        types::set_user_data(&set).expect("user data")
    };
    let order = |order: u32| [&[0, 4][..], &order.to_ne_bytes()].concat();
    assert_eq!(user_data(&[KeyType::Ipv4Addr], "ab"), [order(2), vec![7, 3, b'a', b'b', 0]].concat());
    assert_eq!(user_data(&[KeyType::Mark], ""), order(1));
    assert_eq!(user_data(&[KeyType::Ipv4Addr, KeyType::Mark], ""), order(0));
}
