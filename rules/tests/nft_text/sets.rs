//! Sets and maps of every kind of key, element and value.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use flatfell_rules::ruleset::{
    Counter, Datum, Element, Expr, Family, Field, KeyType, Name, Set, SetKind, Table, Value, Verdict,
};

use super::{Namespace, assert_round_trip, chain, rule, v4, v6, with_chains};

pub fn set(
    kind: SetKind,
    key: &[KeyType],
    interval: bool,
    elements: impl IntoIterator<Item = (Element, Datum)>,
) -> Set {
    Set {
        kind,
        key: key.to_vec(),
        interval,
        size: None,
        comment: "what it holds".into(),
        elements: elements.into_iter().collect(),
    }
}

fn keys(values: impl IntoIterator<Item = Value>) -> Vec<(Element, Datum)> {
    values.into_iter().map(|value| (Element::key([value]), Datum::None)).collect()
}

fn ranges(values: impl IntoIterator<Item = (Value, Value)>) -> Vec<(Element, Datum)> {
    values.into_iter().map(|(first, last)| (Element::Range(first, last), Datum::None)).collect()
}

/// One set for each way elements are printed, with enough of them to fill lines.
fn plain_sets() -> Vec<(&'static str, Set)> {
    use KeyType::{Icmpv6Type, Ifname, InetProto, InetService, Ipv4Addr as V4, Ipv6Addr as V6, Mark};
    let plain = |key, elements| set(SetKind::Set, &[key], false, keys(elements));
    let spread = |key, elements| set(SetKind::Set, &[key], true, ranges(elements));
    let names = ["b", "ab", "cni0", "eth0", "veth0123456789a", "a"];
    vec![
        ("v4", plain(V4, (0..7).map(|n| Value::V4(Ipv4Addr::new(10, n, 255 - n, 1))).collect::<Vec<_>>())),
        ("v6", plain(V6, ["::1:0", "::5", "fe80::1", "::1.2.3.4", "2001:db8::"].map(v6).to_vec())),
        ("port", plain(InetService, (0..17).map(|n| Value::Port(n * 300)).collect())),
        ("proto", plain(InetProto, (0..17).map(|n| Value::Proto(n * 11)).collect())),
        ("names", plain(Ifname, names.map(|name| Value::Ifname(name.into())).to_vec())),
        ("mark", plain(Mark, (0..12).map(|n| Value::Mark(n << 22)).collect())),
        ("icmp", plain(Icmpv6Type, (0..=255).map(Value::Icmpv6Type).collect())),
        ("empty", plain(V4, vec![])),
        (
            "v4r",
            spread(
                V4,
                vec![
                    (v4("0.0.0.0"), v4("0.255.255.255")),
                    (v4("1.0.0.1"), v4("1.0.0.1")),
                    (v4("2.0.0.1"), v4("2.0.0.2")),
                    (v4("3.0.0.2"), v4("3.0.0.3")),
                    (v4("255.0.0.0"), v4("255.255.255.255")),
                ],
            ),
        ),
        ("v4all", spread(V4, vec![(v4("0.0.0.0"), v4("255.255.255.255"))])),
        (
            "v6r",
            spread(
                V6,
                vec![
                    (v6("::"), v6("::")),
                    (v6("::2"), v6("::3")),
                    (v6("fe80::"), v6("febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff")),
                    (v6("ff00::1"), v6("ff00::4")),
                ],
            ),
        ),
        ("v6all", spread(V6, vec![(v6("::"), Value::V6(Ipv6Addr::from_bits(u128::MAX)))])),
        (
            "portr",
            spread(
                InetService,
                vec![
                    (Value::Port(0), Value::Port(7)),
                    (Value::Port(80), Value::Port(80)),
                    (Value::Port(60000), Value::Port(65535)),
                ],
            ),
        ),
        (
            "protor",
            spread(
                InetProto,
                vec![
                    (Value::Proto(6), Value::Proto(6)),
                    (Value::Proto(17), Value::Proto(20)),
                    (Value::Proto(250), Value::Proto(255)),
                ],
            ),
        ),
        (
            "icmpr",
            spread(
                Icmpv6Type,
                vec![(Value::Icmpv6Type(1), Value::Icmpv6Type(4)), (Value::Icmpv6Type(128), Value::Icmpv6Type(128))],
            ),
        ),
        (
            "markr",
            spread(
                Mark,
                vec![
                    (Value::Mark(0x10), Value::Mark(0x1f)),
                    (Value::Mark(0x100), Value::Mark(0x1fe)),
                    (Value::Mark(u32::MAX), Value::Mark(u32::MAX)),
                ],
            ),
        ),
    ]
}

/// Concatenations and maps.
fn wide_sets() -> Vec<(&'static str, Set)> {
    use KeyType::{Icmpv6Type, Ifname, InetProto, InetService, Ipv4Addr as V4, Ipv6Addr as V6, Mark};
    let end = |address: Value, protocol, port| {
        (Element::key([address, Value::Proto(protocol), Value::Port(port)]), Datum::None)
    };
    let targets =
        [Verdict::Accept, Verdict::Drop, Verdict::Return, Verdict::Jump("end".into()), Verdict::Goto("end".into())];
    let to = |verdict: &Verdict| Datum::Verdict(verdict.clone());
    let numbered = || (1_u8..).zip(&targets);
    vec![
        (
            "ends4",
            set(
                SetKind::Set,
                &[V4, InetProto, InetService],
                false,
                [
                    end(v4("10.0.0.2"), 6, 80),
                    end(v4("10.0.0.1"), 6, 443),
                    end(v4("10.0.0.3"), 17, 53),
                    end(v4("1.0.0.3"), 253, 8),
                ],
            ),
        ),
        (
            "ends6",
            set(
                SetKind::Set,
                &[V6, InetProto, InetService],
                false,
                [end(v6("fe80::2"), 6, 80), end(v6("::1"), 132, 443), end(v6("::2"), 58, 65535)],
            ),
        ),
        (
            "odd",
            set(
                SetKind::Set,
                &[Ifname, Mark, Icmpv6Type],
                false,
                [("eth0", 5, 1), ("a", 0x500, 135), ("veth", 5, 200)].map(|(name, mark, kind)| {
                    (
                        Element::key([Value::Ifname(name.into()), Value::Mark(mark), Value::Icmpv6Type(kind)]),
                        Datum::None,
                    )
                }),
            ),
        ),
        (
            "v4map",
            set(
                SetKind::VerdictMap,
                &[V4],
                false,
                numbered().map(|(n, verdict)| (Element::key([Value::V4(Ipv4Addr::new(10, 0, 0, n))]), to(verdict))),
            ),
        ),
        (
            "v6map",
            set(
                SetKind::VerdictMap,
                &[V6],
                false,
                numbered().map(|(n, verdict)| {
                    (Element::key([Value::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, n.into()))]), to(verdict))
                }),
            ),
        ),
        (
            "v4rmap",
            set(
                SetKind::VerdictMap,
                &[V4],
                true,
                numbered().map(|(n, verdict)| {
                    (
                        Element::Range(
                            Value::V4(Ipv4Addr::new(n, 0, 0, 0)),
                            Value::V4(Ipv4Addr::new(n, 255, 255, 255)),
                        ),
                        to(verdict),
                    )
                }),
            ),
        ),
        (
            "ports",
            set(
                SetKind::VerdictMap,
                &[InetProto, InetService],
                false,
                numbered().map(|(n, verdict)| {
                    (Element::key([Value::Proto(n), Value::Port(u16::from(n) * 200)]), to(verdict))
                }),
            ),
        ),
        (
            "portmap",
            set(
                SetKind::VerdictMap,
                &[InetService],
                false,
                numbered().map(|(n, verdict)| (Element::key([Value::Port(n.into())]), to(verdict))),
            ),
        ),
        (
            "ifmap",
            set(
                SetKind::VerdictMap,
                &[Ifname],
                false,
                [(Element::key([Value::Ifname("eth0".into())]), Datum::Verdict(Verdict::Drop))],
            ),
        ),
        (
            "marks",
            set(
                SetKind::Counters,
                &[Mark],
                false,
                (0..7).map(|n| (Element::key([Value::Mark(n)]), Datum::Counter(format!("hits-{n}").into()))),
            ),
        ),
    ]
}

#[test]
fn sets_and_maps_are_printed_as_nft_prints_them() {
    let namespace = Namespace::new("sets");
    let asks = |key: &[Field], name: &str| rule([Expr::Lookup { key: key.to_vec(), set: name.into() }]);
    let maps = |key: &[Field], name: &str| rule([Expr::Vmap { key: key.to_vec(), map: name.into() }]);
    use Field::{
        Icmpv6Type, Iifname, Ip6Daddr, Ip6Saddr, IpDaddr, IpSaddr, L4Proto, SctpDport, TcpDport, ThDport, UdpDport,
    };
    let rules = vec![
        asks(&[IpSaddr], "v4"),
        asks(&[IpDaddr], "v4r"),
        asks(&[Ip6Saddr], "v6"),
        asks(&[Ip6Daddr], "v6r"),
        asks(&[TcpDport], "port"),
        asks(&[UdpDport], "portr"),
        asks(&[SctpDport], "port"),
        asks(&[ThDport], "port"),
        asks(&[L4Proto], "proto"),
        asks(&[L4Proto], "protor"),
        asks(&[Icmpv6Type], "icmp"),
        asks(&[Iifname], "names"),
        asks(&[IpDaddr, L4Proto, ThDport], "ends4"),
        asks(&[Ip6Saddr, L4Proto, ThDport], "ends6"),
        maps(&[IpSaddr], "v4map"),
        maps(&[IpDaddr], "v4rmap"),
        maps(&[Ip6Saddr], "v6map"),
        maps(&[L4Proto, ThDport], "ports"),
        maps(&[TcpDport], "portmap"),
        maps(&[Iifname], "ifmap"),
    ];
    let table = Table {
        counters: [(Name::from("hits"), Counter::default())].into_iter().collect(),
        sets: plain_sets().into_iter().chain(wide_sets()).map(|(name, set)| (format!("s-{name}"), set)).collect(),
        chains: [(Name::from("end"), Arc::default())].into_iter().collect(),
    };
    let rules = rules
        .into_iter()
        .map(|mut rule| {
            for expr in &mut rule.exprs {
                if let Expr::Lookup { set: name, .. } | Expr::Vmap { map: name, .. } = expr {
                    *name = format!("s-{name}").into();
                }
            }
            rule
        })
        .collect();
    assert_round_trip(&namespace, &with_chains(Family::Inet, chain(rules), table));
}
