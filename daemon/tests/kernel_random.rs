//! Any ruleset that the kernel takes reads back as it was.

mod kernel_common;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use flatfell::kernel::Kernel;
use flatfell_rules::ruleset::*;
use kernel_common::*;

const RULESETS: u64 = 60;
const LEAVES: [&str; 3] = ["leaf-0", "leaf-1", "leaf-2"];

/// A small generator of numbers (splitmix64): a seed says everything about a failure.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(bound).expect("small")).expect("small")
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    fn u32(&mut self) -> u32 {
        let number = u32::try_from(self.next() >> 32).expect("32 bits");
        // The ends of a type are where intervals and masks go wrong.
        self.pick(&[number, number, number % 16, 0, u32::MAX, u32::MAX - 1])
    }

    fn u16(&mut self) -> u16 {
        u16::try_from(self.u32() & 0xffff).expect("16 bits")
    }

    fn u8(&mut self) -> u8 {
        u8::try_from(self.u32() & 0xff).expect("8 bits")
    }

    fn text(&mut self, most: usize) -> String {
        let length = self.below(most + 1);
        (0..length).map(|_| self.pick(&['a', 'Z', '0', ' ', '/', '-', '.', ':', '{', '@'])).collect()
    }

    fn value(&mut self, key: KeyType) -> Value {
        match key {
            KeyType::Ipv4Addr => Value::V4(Ipv4Addr::from(self.u32())),
            KeyType::Ipv6Addr => {
                let halves = [self.u32(), self.u32(), self.u32(), self.u32()];
                Value::V6(Ipv6Addr::from(halves.iter().fold(0_u128, |all, part| all << 32 | u128::from(*part))))
            }
            KeyType::InetProto => Value::Proto(self.u8()),
            KeyType::InetService => Value::Port(self.u16()),
            KeyType::Ifname => Value::Ifname(format!("veth{}", self.u16())),
            KeyType::Mark => Value::Mark(self.u32()),
            KeyType::Icmpv6Type => Value::Icmpv6Type(self.u8()),
            KeyType::EtherAddr => Value::Ether([2, 0, self.u8(), self.u8(), self.u8(), self.u8()]),
        }
    }

    fn verdict(&mut self) -> Verdict {
        let leaf = self.pick(&LEAVES).to_owned();
        self.pick(&[
            Verdict::Accept,
            Verdict::Drop,
            Verdict::Return,
            Verdict::Jump(leaf.clone().into()),
            Verdict::Goto(leaf.into()),
        ])
    }

    fn datum(&mut self, kind: SetKind) -> Datum {
        match kind {
            SetKind::Set => Datum::None,
            SetKind::VerdictMap => Datum::Verdict(self.verdict()),
            SetKind::Counters => Datum::Counter(self.pick(&["k0", "k1"]).into()),
        }
    }

    fn set(&mut self) -> Set {
        use KeyType::*;
        let interval = self.below(3) == 0;
        let kind = if interval {
            self.pick(&[SetKind::Set, SetKind::VerdictMap])
        } else {
            self.pick(&[SetKind::Set, SetKind::VerdictMap, SetKind::Counters])
        };
        let key = if interval {
            vec![self.pick(&[Ipv4Addr, Ipv6Addr, InetService, InetProto])]
        } else {
            let types = [Ipv4Addr, Ipv6Addr, InetProto, InetService, Ifname, Mark, Icmpv6Type];
            (0..=self.below(3)).map(|_| self.pick(&types)).collect()
        };
        let count = self.below(20);
        let elements = if interval { self.ranges(key[0], kind, count) } else { self.keys(&key, kind, count) };
        Set { kind, key, interval, size: None, comment: self.text(100), elements }
    }

    fn keys(&mut self, key: &[KeyType], kind: SetKind, count: usize) -> Elements {
        let element = |random: &mut Self| Element::key(key.iter().map(|one| random.value(*one)));
        (0..count).map(|_| (element(self), self.datum(kind))).collect()
    }

    /// Ranges between every second pair of sorted values: they neither overlap nor touch.
    fn ranges(&mut self, key: KeyType, kind: SetKind, count: usize) -> Elements {
        let mut values: Vec<_> = (0..count * 2).map(|_| self.value(key)).collect();
        values.sort();
        values.dedup();
        let mut found = Elements::new();
        let mut behind: Option<Value> = None;
        for pair in values.chunks_exact(2) {
            let apart = behind.as_ref().is_none_or(|last| number(&pair[0]) > number(last).saturating_add(1));
            if apart {
                let last = self.pick(&[pair[0].clone(), pair[1].clone()]);
                found.insert(Element::Range(pair[0].clone(), last), self.datum(kind));
                behind = Some(pair[1].clone());
            }
        }
        found
    }

    fn compare(&mut self) -> Expr {
        let (field, key) = self.pick(&FIELDS);
        let value = self.value(key);
        match (self.below(3), &value) {
            (0, Value::V4(_) | Value::V6(_) | Value::Port(_)) => {
                let other = self.value(key);
                let (first, last) = if value < other { (value, other) } else { (other, value) };
                Expr::Range { field, first, last }
            }
            (1, Value::V4(address)) => {
                let prefix = ipnetwork::Ipv4Network::new(*address, self.u8() % 33).expect("prefix");
                let prefix = ipnetwork::Ipv4Network::new(prefix.network(), prefix.prefix()).expect("prefix");
                Expr::Prefix { field, prefix: prefix.into() }
            }
            (1, Value::V6(address)) => {
                let prefix = ipnetwork::Ipv6Network::new(*address, self.u8() % 129).expect("prefix");
                let prefix = ipnetwork::Ipv6Network::new(prefix.network(), prefix.prefix()).expect("prefix");
                Expr::Prefix { field, prefix: prefix.into() }
            }
            _ => Expr::Compare { field, value, negated: self.below(2) == 0 },
        }
    }

    /// A look-up in a set or verdict map whose key can be made of fields.
    fn lookup(&mut self, sets: &BTreeMap<String, Set>) -> Option<Expr> {
        let names: Vec<_> = sets.keys().cloned().collect();
        let name = self.pick(&names);
        let set = &sets[&name];
        let mut key = Vec::new();
        for one in &set.key {
            let fitting: Vec<_> = FIELDS.iter().filter(|(_, is)| is == one).map(|(field, _)| *field).collect();
            key.push(if fitting.is_empty() { return None } else { self.pick(&fitting) });
        }
        match set.kind {
            SetKind::Set => Some(Expr::Lookup { key, set: name.into() }),
            SetKind::VerdictMap => Some(Expr::Vmap { key, map: name.into() }),
            SetKind::Counters => None,
        }
    }

    fn expr(&mut self, family: Family, sets: &BTreeMap<String, Set>) -> Expr {
        let counted = sets.iter().find(|(_, set)| set.kind == SetKind::Counters && set.key == [KeyType::Mark]);
        let kinds = if family == Family::Inet { 13 } else { 7 };
        match self.below(kinds) {
            0 | 1 => self.compare(),
            2 | 3 => self.lookup(sets).unwrap_or(Expr::Counter("k1".into())),
            4 => Expr::Limit { rate: u64::from(self.u16()) + 1, burst: u32::from(self.u16()) + 1 },
            5 => Expr::Log { prefix: self.text(60), group: self.u16(), snaplen: self.u32() },
            6 => Expr::Counter("k0".into()),
            7 => Expr::CtMark { mask: self.u32(), value: self.u32(), negated: self.below(2) == 0 },
            8 => Expr::CtDirection(self.pick(&[CtDirection::Original, CtDirection::Reply])),
            9 => Expr::CtStateRelated,
            10 => match counted {
                Some((name, _)) => Expr::CountMark { mask: self.u32(), set: name.clone().into() },
                None => Expr::CtStateRelated,
            },
            11 => {
                let keep = self.u32();
                Expr::SetCtMark { keep, value: self.u32() & !keep }
            }
            _ => Expr::Compare { field: Field::FibDaddrIifType, value: Value::AddrType(5), negated: false },
        }
    }

    fn rules(&mut self, family: Family, sets: &BTreeMap<String, Set>) -> Vec<Rule> {
        let one = |random: &mut Self| {
            let mut exprs: Vec<_> = (0..=random.below(4)).map(|_| random.expr(family, sets)).collect();
            if random.below(2) == 0 {
                exprs.push(Expr::Verdict(random.verdict()));
            }
            Rule { exprs, comment: random.text(127) }
        };
        (0..self.below(30)).map(|_| one(self)).collect()
    }

    fn table(&mut self, family: Family) -> Table {
        let sets: BTreeMap<_, _> = (0..=self.below(8)).map(|n| (format!("set-{n}"), self.set())).collect();
        let counters = counters(["k0", "k1"].map(|name| (name, Counter { comment: self.text(127).into() })));
        let mut chains: BTreeMap<String, Chain> = BTreeMap::new();
        for leaf in LEAVES {
            let rules = vec![Rule { exprs: vec![self.compare()], comment: self.text(20) }];
            chains.insert(leaf.to_owned(), Chain { hook: None, comment: self.text(127), rules });
        }
        let hooks = [None, Some(Hook::Forward), Some(Hook::Input), Some(Hook::Prerouting)];
        for (n, hook) in hooks.into_iter().enumerate() {
            let priority = i32::from(i16::from_ne_bytes(self.u16().to_ne_bytes()));
            let hook = hook.map(|hook| BaseHook { hook, priority });
            let rules = self.rules(family, &sets);
            chains.insert(format!("chain-{n}"), Chain { hook, comment: self.text(30), rules });
        }
        Table { chains: shared(chains), sets: shared(sets), counters }
    }
}

fn number(value: &Value) -> u128 {
    match value {
        Value::V4(address) => address.to_bits().into(),
        Value::V6(address) => address.to_bits(),
        Value::Port(port) => (*port).into(),
        Value::Proto(proto) => (*proto).into(),
        other => panic!("{other:?} has no ranges"),
    }
}

const FIELDS: [(Field, KeyType); 11] = [
    (Field::IpSaddr, KeyType::Ipv4Addr),
    (Field::IpDaddr, KeyType::Ipv4Addr),
    (Field::Ip6Saddr, KeyType::Ipv6Addr),
    (Field::Ip6Daddr, KeyType::Ipv6Addr),
    (Field::L4Proto, KeyType::InetProto),
    (Field::TcpDport, KeyType::InetService),
    (Field::UdpDport, KeyType::InetService),
    (Field::SctpDport, KeyType::InetService),
    (Field::ThDport, KeyType::InetService),
    (Field::Icmpv6Type, KeyType::Icmpv6Type),
    (Field::Iifname, KeyType::Ifname),
];

#[test]
fn any_ruleset_reads_back_as_it_was() {
    for seed in 0..RULESETS {
        let mut random = Random(seed);
        let tables = [(Family::Inet, "flatfell-1a"), (Family::Bridge, "flatfell-1a"), (Family::Inet, "flatfell-1b")]
            .map(|(family, name)| (table_id(family, name), random.table(family)));
        let ruleset = Ruleset { tables: tables.into() };
        in_namespace(|| {
            let mut kernel = Kernel::open().expect("socket");
            if let Err(error) = kernel.commit(&make(&ruleset)) {
                panic!("seed {seed}: {error}");
            }
            let names: Vec<_> = ruleset.tables.keys().cloned().collect();
            let read = kernel.read(&names, &ruleset).expect("read");
            for (id, table) in &ruleset.tables {
                let there = &read.tables[id];
                assert_eq!(there.counters, table.counters, "seed {seed}");
                for (name, set) in &table.sets {
                    assert_eq!(&there.sets[name], set, "seed {seed}, {name}");
                }
                for (name, chain) in &table.chains {
                    assert_eq!(&there.chains[name], chain, "seed {seed}, {name}");
                }
            }
            assert!(read == ruleset, "seed {seed}");
        });
    }
}
