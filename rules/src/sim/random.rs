//! Random rulesets and packets.
//!
//! In: a seed. Out: a ruleset the kernel takes and nft prints as it is, out of few names and few values, so that two of them have much in
//! common and packets meet their rules. What always holds: the same seed gives the same value.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use imbl::OrdMap;

use super::tracer::{Flow, Frame, Packet};
use crate::ruleset::{
    BaseHook, Chain, Counter, CtDirection, Datum, Element, Elements, Expr, Family, Field, Hook, KeyType, Name, Rule,
    Ruleset, Set, SetKind, Table, TableId, Value, Verdict,
};

/// Chains that only verdicts lead to.
const CHAINS: u64 = 6;
/// Counters.
const COUNTERS: u64 = 4;

/// A source of numbers (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.any() % end
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// One of these.
    pub fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        let index = usize::try_from(self.any() >> 33).unwrap_or_default() % from.len();
        from[index].clone()
    }

    /// A small number.
    fn small(&mut self, end: u64) -> u8 {
        u8::try_from(self.below(end)).unwrap_or_default()
    }
}

/// A random ruleset.
pub fn ruleset(seed: u64) -> Ruleset {
    varied(seed, seed, 1)
}

/// The ruleset of `seed`, with about one object in `rate` as the ruleset of `other` has it.
pub fn varied(seed: u64, other: u64, rate: u64) -> Ruleset {
    let mut tables = BTreeMap::new();
    for (family, name) in
        [(Family::Inet, "flatfell-1a"), (Family::Inet, "flatfell-1b"), (Family::Bridge, "flatfell-1a")]
    {
        let mut draw = Draw { seed, other, rate, choice: Random::new(seed ^ other.rotate_left(17)), family };
        if draw.object(name).once_in(6) {
            continue;
        }
        tables.insert(TableId { family, name: name.to_string() }, draw.table());
    }
    Ruleset { tables }
}

/// Draws the objects of a table.
struct Draw {
    seed: u64,
    other: u64,
    rate: u64,
    choice: Random,
    family: Family,
}

impl Draw {
    /// The numbers an object is made of.
    fn object(&mut self, name: &str) -> Random {
        let seed = if self.choice.once_in(self.rate) { self.other } else { self.seed };
        let salt = name.bytes().fold(7_u64, |salt, byte| salt.wrapping_mul(131).wrapping_add(byte.into()));
        let mut random = Random::new(seed ^ salt);
        random.any();
        random
    }

    /// A table in which every reference leads somewhere and no chain leads back to itself.
    fn table(&mut self) -> Table {
        let mut table = Table::default();
        for number in 0..COUNTERS {
            let name = Name::from(format!("n{number}"));
            if !self.object(&name).once_in(4) {
                table.counters.insert(name, Counter { comment: comment(number).into() });
            }
        }
        for (name, shape) in shapes(self.family) {
            let mut random = self.object(name);
            if !random.once_in(6) {
                let elements = (0..random.below(9)).map(|_| element(&mut random, &shape)).collect::<Vec<_>>();
                let mut set = shape;
                elements.into_iter().for_each(|(element, datum)| insert_apart(&mut set, element, datum));
                table.sets.insert(name.into(), Arc::new(set));
            }
        }
        for (name, hook) in chains(self.family) {
            let mut random = self.object(&name);
            if !random.once_in(6) {
                let rules = (0..random.below(5)).map(|_| rule(&mut random, self.family)).collect();
                let chain = Chain { hook, comment: comment(random.below(1)), rules };
                table.chains.insert(name.into(), Arc::new(chain));
            }
        }
        let order = self.object("order").any();
        untangle(&mut table, order);
        table
    }
}

/// A comment that depends on the number alone.
fn comment(number: u64) -> String {
    if number.is_multiple_of(2) { String::new() } else { format!("serves {number}, as /any: text") }
}

/// The chains a table may have.
fn chains(family: Family) -> Vec<(String, Option<BaseHook>)> {
    let base = |hook, priority| Some(BaseHook { hook, priority });
    let bases: &[(&str, Option<BaseHook>)] = match family {
        Family::Inet => &[
            ("fwd-early", base(Hook::Forward, -10)),
            ("fwd-late", base(Hook::Forward, 25)),
            ("in", base(Hook::Input, 0)),
            ("out", base(Hook::Output, 50)),
        ],
        Family::Bridge => &[("pre", base(Hook::Prerouting, -200)), ("br-in", base(Hook::Input, 7))],
    };
    let named = bases.iter().map(|(name, hook)| (format!("base-{name}"), *hook));
    named.chain((0..CHAINS).map(|number| (format!("c{number}"), None))).collect()
}

/// The sets a table may have, without elements.
fn shapes(family: Family) -> Vec<(&'static str, Set)> {
    use KeyType::{Icmpv6Type, Ifname, InetProto, InetService, Ipv4Addr, Ipv6Addr, Mark};
    use SetKind::{Counters, Set as Plain, VerdictMap};
    let shape = |kind, key: &[KeyType], interval| Set {
        kind,
        key: key.to_vec(),
        interval,
        size: (kind == SetKind::Counters).then_some(64),
        comment: comment(u64::from(interval)),
        elements: Elements::new(),
    };
    let frames = vec![("s-if", shape(Plain, &[Ifname], false)), ("m-if", shape(VerdictMap, &[Ifname], false))];
    let packets = vec![
        ("s-v4", shape(Plain, &[Ipv4Addr], false)),
        ("s-v6", shape(Plain, &[Ipv6Addr], false)),
        ("s-v4r", shape(Plain, &[Ipv4Addr], true)),
        ("s-v6r", shape(Plain, &[Ipv6Addr], true)),
        ("s-port", shape(Plain, &[InetService], false)),
        ("s-portr", shape(Plain, &[InetService], true)),
        ("s-proto", shape(Plain, &[InetProto], false)),
        ("s-nd", shape(Plain, &[Icmpv6Type], false)),
        ("s-end4", shape(Plain, &[Ipv4Addr, InetProto, InetService], false)),
        ("s-end6", shape(Plain, &[Ipv6Addr, InetProto, InetService], false)),
        ("m-v4", shape(VerdictMap, &[Ipv4Addr], false)),
        ("m-v4r", shape(VerdictMap, &[Ipv4Addr], true)),
        ("m-v6", shape(VerdictMap, &[Ipv6Addr], false)),
        ("m-port", shape(VerdictMap, &[InetProto, InetService], false)),
        ("s-count", shape(Counters, &[Mark], false)),
    ];
    match family {
        Family::Bridge => frames,
        Family::Inet => frames.into_iter().chain(packets).collect(),
    }
}

/// An element for a set.
fn element(random: &mut Random, set: &Set) -> (Element, Datum) {
    let key = if set.interval {
        let (a, b) = (value(random, set.key[0]), value(random, set.key[0]));
        Element::Range(a.clone().min(b.clone()), a.max(b))
    } else {
        Element::Key(set.key.iter().map(|part| value(random, *part)).collect())
    };
    let datum = match set.kind {
        SetKind::Set => Datum::None,
        SetKind::VerdictMap => Datum::Verdict(verdict(random)),
        SetKind::Counters => Datum::Counter(format!("n{}", random.below(COUNTERS)).into()),
    };
    (key, datum)
}

/// Adds an element that does not overlap or touch another.
fn insert_apart(set: &mut Set, element: Element, datum: Datum) {
    let near = |other: &Element| match (other, &element) {
        (Element::Range(a, b), Element::Range(c, d)) => number(a) <= number(d) + 1 && number(c) <= number(b) + 1,
        _ => false,
    };
    if !set.elements.iter().any(|(other, _)| near(&other)) {
        set.elements.insert(element, datum);
    }
}

/// A value of few bits as a number.
fn number(value: &Value) -> u128 {
    match value {
        Value::V4(address) => address.to_bits().into(),
        Value::V6(address) => address.to_bits(),
        Value::Port(number) => (*number).into(),
        _ => 0,
    }
}

/// A value for a key; few of each type.
fn value(random: &mut Random, key: KeyType) -> Value {
    match key {
        KeyType::Ipv4Addr => Value::V4(Ipv4Addr::new(10, 0, 0, random.small(16))),
        KeyType::Ipv6Addr => Value::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, random.small(16).into())),
        KeyType::InetProto => Value::Proto(random.pick(&[6, 17, 132, 58, 253])),
        KeyType::InetService => Value::Port(random.pick(&[80, 81, 82, 83, 84, 443, 444, 8080])),
        KeyType::Ifname => Value::Ifname(random.pick(&["cni0", "eth0", "veth0123456789a", "flannel.1"]).to_string()),
        KeyType::Mark => Value::Mark(random.pick(&[0, 1, 2, 0x0100_0000, 0x0000_1000])),
        KeyType::Icmpv6Type => Value::Icmpv6Type(random.pick(&[128, 133, 134, 135, 136, 137, 200])),
        KeyType::EtherAddr => Value::Ether([2, 0, 0, 0, 0, random.small(4)]),
    }
}

/// Any verdict.
fn verdict(random: &mut Random) -> Verdict {
    let chain = format!("c{}", random.below(CHAINS));
    match random.below(7) {
        0 => Verdict::Accept,
        1 | 2 => Verdict::Drop,
        3 => Verdict::Return,
        4 | 5 => Verdict::Jump(chain.into()),
        _ => Verdict::Goto(chain.into()),
    }
}

/// A rule: some matches, some statements, an end.
fn rule(random: &mut Random, family: Family) -> Rule {
    let mut exprs = Vec::new();
    let slots: &[fn(&mut Random) -> Expr] = match family {
        Family::Inet => &[flow, port_of_entry, address, transport, statement, mark_statement],
        Family::Bridge => &[port_of_entry, frame, statement],
    };
    for slot in slots {
        if random.once_in(3) {
            exprs.push(slot(random));
        }
    }
    let question = match family {
        Family::Inet => vmap(random),
        Family::Bridge => Expr::Vmap { key: vec![Field::Iifname], map: "m-if".into() },
    };
    if random.once_in(4) && !exprs.iter().any(|expr| speak_of_one_layer(expr, &question)) {
        exprs.push(question);
    } else if !random.once_in(5) || exprs.is_empty() {
        exprs.push(Expr::Verdict(verdict(random)));
    }
    Rule { exprs, comment: comment(random.below(4)) }
}

/// Whether both look at addresses, or both at protocols and ports: nft prints or takes such rules only with care.
fn speak_of_one_layer(one: &Expr, other: &Expr) -> bool {
    let layer = |expr: &Expr| match expr {
        Expr::Compare { field, .. } | Expr::Range { field, .. } | Expr::Prefix { field, .. } => layer_of(*field),
        Expr::Lookup { key, .. } | Expr::Vmap { key, .. } => key.first().and_then(|field| layer_of(*field)),
        _ => None,
    };
    layer(one).is_some() && layer(one) == layer(other)
}

/// The layer of a field: 3 for addresses, 4 for what is behind them.
fn layer_of(field: Field) -> Option<u8> {
    match field {
        Field::IpSaddr
        | Field::IpDaddr
        | Field::Ip6Saddr
        | Field::Ip6Daddr
        | Field::Ip6HopLimit
        | Field::Ip6NextHdr
        | Field::Ip6Length
        | Field::ArpSaddrEther
        | Field::ArpSaddrIp => Some(3),
        Field::L4Proto
        | Field::TcpDport
        | Field::UdpDport
        | Field::SctpDport
        | Field::ThDport
        | Field::Icmpv6Type
        | Field::NdTarget
        | Field::NdOption => Some(4),
        Field::Iifname | Field::EtherType | Field::EtherSaddr | Field::FibDaddrIifType => None,
    }
}

/// A match on the flow.
fn flow(random: &mut Random) -> Expr {
    let mask = random.pick(&[u32::MAX, 0xff00_0000, 0x0000_f000, 1]);
    let value = random.pick(&[0, 0x0100_0000, 0x0000_1000, 1]) & mask;
    match random.below(4) {
        0 => Expr::CtDirection(CtDirection::Original),
        1 => Expr::CtDirection(CtDirection::Reply),
        2 => Expr::CtStateRelated,
        _ => Expr::CtMark { mask, value, negated: random.once_in(2) },
    }
}

/// A match on the interface.
fn port_of_entry(random: &mut Random) -> Expr {
    if random.once_in(2) {
        return lookup(&[Field::Iifname], "s-if");
    }
    Expr::Compare { field: Field::Iifname, value: value(random, KeyType::Ifname), negated: random.once_in(3) }
}

/// A match on a frame.
fn frame(random: &mut Random) -> Expr {
    let value = Value::EtherType(random.pick(&[0x0800, 0x0806, 0x86dd, 0x8100, 0x88a8, 0x88cc]));
    Expr::Compare { field: Field::EtherType, value, negated: random.once_in(2) }
}

/// A look-up in a set.
fn lookup(key: &[Field], set: &str) -> Expr {
    Expr::Lookup { key: key.to_vec(), set: set.into() }
}

/// A match on addresses.
fn address(random: &mut Random) -> Expr {
    let (field, key, sets, bits) = random.pick(&[
        (Field::IpSaddr, KeyType::Ipv4Addr, ["s-v4", "s-v4r"], 32),
        (Field::IpDaddr, KeyType::Ipv4Addr, ["s-v4", "s-v4r"], 32),
        (Field::Ip6Saddr, KeyType::Ipv6Addr, ["s-v6", "s-v6r"], 128),
        (Field::Ip6Daddr, KeyType::Ipv6Addr, ["s-v6", "s-v6r"], 128),
    ]);
    let (a, b) = (value(random, key), value(random, key));
    match random.below(5) {
        0 if a != b => Expr::Range { field, first: a.clone().min(b.clone()), last: a.max(b) },
        1 => prefix(field, &a, bits - random.small(9).min(8)),
        2 => Expr::Compare {
            field: Field::FibDaddrIifType,
            value: Value::AddrType(u32::from(random.small(7))),
            negated: random.once_in(3),
        },
        3 => Expr::Compare { field, value: a, negated: random.once_in(3) },
        _ => lookup(&[field], random.pick::<&str>(&sets)),
    }
}

/// A prefix that holds an address.
fn prefix(field: Field, address: &Value, length: u8) -> Expr {
    let address = match address {
        Value::V6(address) => std::net::IpAddr::V6(*address),
        Value::V4(address) => std::net::IpAddr::V4(*address),
        _ => std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    match ipnetwork::IpNetwork::new(address, length).and_then(|net| ipnetwork::IpNetwork::new(net.network(), length)) {
        Ok(prefix) => Expr::Prefix { field, prefix },
        Err(_) => Expr::Compare { field, value: Value::V4(Ipv4Addr::UNSPECIFIED), negated: false },
    }
}

/// A match on what is behind the IP header.
fn transport(random: &mut Random) -> Expr {
    let field = random.pick(&[Field::TcpDport, Field::UdpDport, Field::SctpDport, Field::ThDport]);
    match random.below(6) {
        0 => Expr::Compare { field, value: value(random, KeyType::InetService), negated: random.once_in(3) },
        1 => Expr::Range { field, first: Value::Port(81), last: Value::Port(443) },
        2 => lookup(&[field], random.pick(&["s-port", "s-portr"])),
        3 => Expr::Compare {
            field: Field::L4Proto,
            value: value(random, KeyType::InetProto),
            negated: random.once_in(2),
        },
        4 => lookup(&[Field::L4Proto], "s-proto"),
        _ => lookup(&[Field::ThDport], "s-port"),
    }
}

/// A statement that decides nothing.
fn statement(random: &mut Random) -> Expr {
    match random.below(5) {
        0 => Expr::Log {
            prefix: comment(random.below(2)),
            group: u16::from(random.small(9)),
            snaplen: u32::from(random.small(2)) * 96,
        },
        1 => Expr::Limit { rate: 1 + random.below(90), burst: 1 + u32::from(random.small(9)) },
        _ => Expr::Counter(format!("n{}", random.below(COUNTERS)).into()),
    }
}

/// A statement about the mark.
fn mark_statement(random: &mut Random) -> Expr {
    let keep = random.pick(&[0x00ff_ffff, 0, u32::MAX ^ 1, 0x00ff_00ff]);
    match random.below(3) {
        0 => Expr::CountMark { mask: random.pick(&[u32::MAX, 0xff00_0000, 0x0000_f000]), set: "s-count".into() },
        _ => Expr::SetCtMark { keep, value: random.pick(&[0, 0x0100_0000, 0x0200_0000, 1]) & !keep },
    }
}

/// A verdict map's question.
fn vmap(random: &mut Random) -> Expr {
    let (key, map): (&[Field], &str) = random.pick(&[
        (&[Field::IpSaddr][..], "m-v4"),
        (&[Field::IpDaddr], "m-v4"),
        (&[Field::IpDaddr], "m-v4r"),
        (&[Field::Ip6Saddr], "m-v6"),
        (&[Field::L4Proto, Field::ThDport], "m-port"),
        (&[Field::Iifname], "m-if"),
    ]);
    Expr::Vmap { key: key.to_vec(), map: map.into() }
}

/// Takes out what leads nowhere, back, or would not be printed as it is.
fn untangle(table: &mut Table, order: u64) {
    let names: Vec<Name> = table.chains.keys().chain(table.sets.keys()).cloned().collect();
    let ranks: BTreeMap<Name, u64> =
        names.into_iter().map(|name| (name.clone(), rank(&table.chains, &name, order))).collect();
    let below = |from: &str, to: &Name| ranks.get(to).is_some_and(|rank| Some(rank) > ranks.get(from));
    let leads_down = |from: &str, verdict: &Verdict| match verdict {
        Verdict::Jump(chain) | Verdict::Goto(chain) => below(from, chain),
        Verdict::Accept | Verdict::Drop | Verdict::Return => true,
    };
    let counters = &table.counters;
    for (name, set) in table.sets.clone() {
        let mut set = Set::clone(&set);
        set.elements.retain(|_, datum| match datum {
            Datum::None | Datum::Counter(_) => true,
            Datum::Verdict(verdict) => leads_down(&name, verdict),
        });
        table.sets.insert(name, Arc::new(set));
    }
    let sets = &table.sets;
    for (name, chain) in table.chains.clone() {
        let mut chain = Chain::clone(&chain);
        let output = chain.hook.is_some_and(|base| base.hook == Hook::Output);
        chain.rules.retain(|rule| {
            rule.exprs.iter().all(|expr| match expr {
                Expr::Lookup { set: used, .. } | Expr::CountMark { set: used, .. } => sets.contains_key(used),
                Expr::Vmap { map, .. } => below(&name, map),
                Expr::Counter(counter) => counters.contains_key(counter),
                Expr::Verdict(verdict) => leads_down(&name, verdict),
                Expr::Compare { field: Field::FibDaddrIifType, .. } => !output && name.starts_with("base"),
                _ => true,
            })
        });
        table.chains.insert(name, Arc::new(chain));
    }
}

/// Base chains first, then chains and maps in some order.
fn rank(chains: &OrdMap<Name, Arc<Chain>>, name: &str, order: u64) -> u64 {
    if chains.get(name).is_some_and(|chain| chain.hook.is_some()) {
        return 0;
    }
    let salt = name.bytes().fold(order, |salt, byte| salt.wrapping_mul(31).wrapping_add(byte.into()));
    1 + (Random::new(salt).any() >> 1)
}

/// A packet that these rulesets have rules for.
pub fn packet(random: &mut Random) -> Packet {
    let family = if random.once_in(6) { Family::Bridge } else { Family::Inet };
    let v6 = random.once_in(3);
    let key = if v6 { KeyType::Ipv6Addr } else { KeyType::Ipv4Addr };
    let mut address = || match value(random, key) {
        Value::V6(address) => address.into(),
        Value::V4(address) => std::net::IpAddr::V4(address),
        _ => Ipv4Addr::UNSPECIFIED.into(),
    };
    let addresses = Some((address(), address()));
    let protocol = random.pick(&[6, 6, 17, 132, 58, 253]);
    Packet {
        family,
        hook: match family {
            Family::Inet => random.pick(&[Hook::Forward, Hook::Forward, Hook::Input, Hook::Output]),
            Family::Bridge => random.pick(&[Hook::Prerouting, Hook::Input]),
        },
        iif: Some(random.pick(&["cni0", "eth0", "veth0123456789a"]).to_string()),
        ether_type: random.pick(&[0x0800, 0x86dd, 0x0806, 0x8100]),
        addresses,
        protocol,
        dport: matches!(protocol, 6 | 17 | 132).then(|| random.pick(&[80, 82, 443, 8080])),
        hop_limit: random.pick(&[1, 64, 255]),
        icmpv6_type: (protocol == 58).then(|| random.pick(&[128, 134, 135])),
        address_type: u32::from(random.small(7)),
        flow: (!random.once_in(8)).then(|| Flow {
            direction: random.pick(&[CtDirection::Original, CtDirection::Reply]),
            related: random.once_in(5),
            mark: random.pick(&[0, 1, 0x0100_0000, 0x0200_1000]),
        }),
        frame: Frame::default(),
    }
}
