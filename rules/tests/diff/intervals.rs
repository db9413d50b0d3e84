//! Intervals: an old one goes first where it would meet a new one.

use std::net::{Ipv4Addr, Ipv6Addr};

use flatfell_rules::ruleset::{Datum, Element, KeyType, Op, OpKind, Set, SetKind, Value};

use super::{change, one, set, table, v4};

pub fn intervals(kind: KeyType, ranges: &[(Value, Value)]) -> Set {
    let elements = ranges.iter().map(|(first, last)| (Element::Range(first.clone(), last.clone()), Datum::None));
    Set { key: vec![kind], interval: true, ..set(SetKind::Set, elements) }
}

/// Ranges that are there, ranges that are wanted, and whether the old ones must go first.
fn assert_interval(kind: KeyType, have: (Value, Value), want: (Value, Value), first: bool) {
    let with = |range: &(Value, Value)| one(table([], [("s", intervals(kind, std::slice::from_ref(range)))]));
    let change = change(&with(&have), &with(&want));
    let deletes = |ops: &[Op]| ops.iter().filter(|op| matches!(op.kind, OpKind::DeleteElements { .. })).count();
    let expected = if first { (1, 0) } else { (0, 1) };
    assert_eq!((deletes(&change.switch), deletes(&change.clean)), expected, "{have:?} {want:?}");
    if first {
        assert!(matches!(change.switch[0].kind, OpKind::DeleteElements { .. }));
    }
}

#[test]
fn an_interval_goes_first_where_it_meets_a_new_one() {
    let v4s = |first, last| (v4(first), v4(last));
    assert_interval(KeyType::Ipv4Addr, v4s(10, 20), v4s(15, 25), true);
    assert_interval(KeyType::Ipv4Addr, v4s(10, 20), v4s(5, 10), true);
    assert_interval(KeyType::Ipv4Addr, v4s(10, 20), v4s(12, 13), true);
    assert_interval(KeyType::Ipv4Addr, v4s(10, 20), v4s(1, 255), true);
    assert_interval(KeyType::Ipv4Addr, v4s(10, 20), v4s(21, 25), true);
    assert_interval(KeyType::Ipv4Addr, v4s(10, 20), v4s(5, 9), true);
    assert_interval(KeyType::Ipv4Addr, v4s(10, 20), v4s(22, 25), false);
    assert_interval(KeyType::Ipv4Addr, v4s(10, 20), v4s(5, 8), false);
    let top = |first| (Value::V4(Ipv4Addr::from_bits(first)), Value::V4(Ipv4Addr::BROADCAST));
    assert_interval(KeyType::Ipv4Addr, top(u32::MAX - 9), top(u32::MAX - 5), true);
    assert_interval(KeyType::Ipv4Addr, top(u32::MAX), v4s(1, 2), false);
    assert_interval(KeyType::Ipv4Addr, v4s(1, 2), top(u32::MAX), false);
}

/// The value of a type that stands for a number.
type OfNumber<'a> = &'a dyn Fn(u64) -> Value;

#[test]
fn intervals_of_every_type_meet_where_their_numbers_do() {
    let v6 = |last: u128| Value::V6(Ipv6Addr::from_bits(last));
    let port = |number: u64| Value::Port(u16::try_from(number).expect("small"));
    let proto = |number: u64| Value::Proto(u8::try_from(number).expect("small"));
    let icmp = |number: u64| Value::Icmpv6Type(u8::try_from(number).expect("small"));
    let mark = |number: u64| Value::Mark(u32::try_from(number).expect("small"));
    let kinds: [(KeyType, OfNumber<'_>, Value); 5] = [
        (KeyType::Ipv6Addr, &|number| v6(number.into()), v6(u128::MAX)),
        (KeyType::InetService, &port, Value::Port(u16::MAX)),
        (KeyType::InetProto, &proto, Value::Proto(u8::MAX)),
        (KeyType::Icmpv6Type, &icmp, Value::Icmpv6Type(u8::MAX)),
        (KeyType::Mark, &mark, Value::Mark(u32::MAX)),
    ];
    for (kind, value, greatest) in kinds {
        let range = |first, last| (value(first), value(last));
        assert_interval(kind, range(10, 20), range(20, 30), true);
        assert_interval(kind, range(10, 20), range(21, 30), true);
        assert_interval(kind, range(10, 20), range(5, 9), true);
        assert_interval(kind, range(10, 20), range(22, 30), false);
        assert_interval(kind, range(10, 20), range(5, 8), false);
        assert_interval(kind, (value(10), greatest.clone()), (value(11), greatest.clone()), true);
        assert_interval(kind, (value(11), greatest.clone()), (value(10), greatest.clone()), true);
        assert_interval(kind, (value(11), greatest.clone()), (value(10), value(10)), true);
        assert_interval(kind, (value(11), greatest.clone()), (value(8), value(9)), false);
        assert_interval(kind, (value(8), value(9)), (value(11), greatest), false);
    }
}
