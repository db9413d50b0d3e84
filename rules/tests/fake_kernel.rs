//! The fake kernel against the real one: random batches are taken by both or refused by both.
//!
//! Needs root and nft 1.0.6.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use flatfell_rules::ruleset::{
    BaseHook, CounterValue, Datum, Element, Expr, Family, Field, Hook, KeyType, Op, OpKind, Rule, Ruleset, Set,
    SetKind, TableId, Value, Verdict, text,
};
use flatfell_rules::sim::kernel::{FakeKernel, Reason};
use flatfell_rules::sim::random::Random;
use proptest::prelude::*;

/// A network namespace that goes with this value.
struct Namespace(String);

impl Namespace {
    fn new() -> Self {
        let name = format!("ruleset-fake-{}", std::process::id());
        assert!(Command::new("ip").args(["netns", "add", &name]).status().expect("ip runs").success());
        Self(name)
    }

    fn load(&self, script: &str) -> Result<(), String> {
        let mut child = Command::new("ip")
            .args(["netns", "exec", &self.0, "nft", "-f", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("nft runs");
        child.stdin.take().expect("piped").write_all(script.as_bytes()).expect("nft reads");
        let output = child.wait_with_output().expect("nft ends");
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn op(kind: OpKind) -> Op {
    Op { table: TableId { family: Family::Inet, name: "t".into() }, kind }
}

fn chain_name(random: &mut Random) -> String {
    random.pick(&["base", "c1", "c2", "c3"]).to_string()
}

fn shape(name: &str) -> Set {
    let kind = if name.starts_with('m') { SetKind::VerdictMap } else { SetKind::Set };
    let (key, interval) = if name.ends_with('r') { (KeyType::Ipv4Addr, true) } else { (KeyType::Ipv4Addr, false) };
    Set { interval, ..Set::of(kind, vec![key]) }
}

fn verdict(random: &mut Random) -> Verdict {
    match random.below(4) {
        0 => Verdict::Drop,
        1 => Verdict::Goto(chain_name(random).into()),
        _ => Verdict::Jump(chain_name(random).into()),
    }
}

fn elements(random: &mut Random, set: &str) -> BTreeMap<Element, Datum> {
    let address =
        |random: &mut Random| Value::V4(Ipv4Addr::new(10, 0, 0, u8::try_from(random.below(12)).expect("small")));
    let (a, b) = (address(random), address(random));
    let element =
        if shape(set).interval { Element::Range(a.clone().min(b.clone()), a.max(b)) } else { Element::key([a]) };
    let datum = if set.starts_with('m') { Datum::Verdict(verdict(random)) } else { Datum::None };
    BTreeMap::from([(element, datum)])
}

fn rule(random: &mut Random) -> Rule {
    let key = vec![Field::IpSaddr];
    let exprs = match random.below(5) {
        0 => vec![Expr::Counter(random.pick(&["n1", "n2"]).into())],
        1 => vec![Expr::Vmap { key, map: "m1".into() }],
        2 => vec![Expr::Lookup { key, set: random.pick(&["s1", "s2r"]).into() }],
        _ => vec![Expr::Verdict(verdict(random))],
    };
    Rule { exprs, comment: String::new() }
}

fn random_op(random: &mut Random) -> Op {
    let set = random.pick(&["s1", "s2r", "m1"]).to_string();
    let counter = random.pick(&["n1", "n2"]).to_string();
    let hook = |name: &str| (name == "base").then_some(BaseHook { hook: Hook::Forward, priority: 0 });
    op(match random.below(22) {
        0..=2 => {
            let name = chain_name(random);
            OpKind::AddChain { hook: hook(&name), name: name.into(), comment: String::new() }
        }
        3 => OpKind::DeleteChain(chain_name(random).into()),
        4 => OpKind::FlushChain(chain_name(random).into()),
        5..=9 => OpKind::AddRule { chain: chain_name(random).into(), rule: rule(random) },
        10..=11 => OpKind::AddSet { set: shape(&set), name: set.into() },
        12 => OpKind::DeleteSet(set.into()),
        13..=16 => OpKind::AddElements { elements: elements(random, &set), set: set.into(), starts: BTreeMap::new() },
        17..=18 => OpKind::DeleteElements { elements: elements(random, &set), set: set.into() },
        19..=20 => {
            OpKind::AddCounter { name: counter.into(), comment: String::new().into(), start: CounterValue::default() }
        }
        _ => OpKind::DeleteCounter(counter.into()),
    })
}

/// What brings a kernel to a ruleset.
fn load(ruleset: &Ruleset) -> String {
    format!("flush ruleset\n{}", text::ruleset(ruleset))
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 0, ..ProptestConfig::with_cases(6) })]

    #[test]
    fn both_take_or_refuse_the_same(seed: u64) {
        let namespace = Namespace::new();
        let mut random = Random::new(seed);
        let mut fake = FakeKernel::default();
        fake.commit(&[op(OpKind::AddTable)]).expect("a table");
        namespace.load(&load(&fake.ruleset)).expect("a table");
        let (mut taken, mut refused) = (0, 0);
        for _ in 0..80 {
            let batch: Vec<Op> = (0..=random.below(2)).map(|_| random_op(&mut random)).collect();
            let before = fake.clone();
            let ours = fake.commit(&batch);
            let theirs = namespace.load(&text::script(&batch));
            prop_assert_eq!(
                ours.is_ok(), theirs.is_ok(),
                "we say {:?}, nft says {:?}\nto {}in {}", ours, theirs, text::script(&batch), text::ruleset(&before.ruleset)
            );
            *(if ours.is_ok() { &mut taken } else { &mut refused }) += 1;
        }
        prop_assert!(taken > 5 && refused > 5, "{taken} taken, {refused} refused");
    }
}

/// Commits to a table with a base chain, two chains, a set and a counter.
fn refusal(ops: impl IntoIterator<Item = OpKind>) -> Option<Reason> {
    let mut fake = FakeKernel::default();
    let add = |name: &str, hook| OpKind::AddChain { name: name.into(), hook, comment: String::new() };
    let start = [
        OpKind::AddTable,
        add("base", Some(BaseHook { hook: Hook::Forward, priority: 0 })),
        add("c1", None),
        OpKind::AddSet { name: "s1".into(), set: shape("s1") },
        OpKind::AddCounter { name: "n1".into(), comment: String::new().into(), start: CounterValue::default() },
    ];
    fake.commit(&start.map(op)).expect("the start is valid");
    let before = fake.clone();
    let result = fake.commit(&ops.into_iter().map(op).collect::<Vec<_>>());
    if result.is_err() {
        assert_eq!(fake, before, "a refused transaction changes nothing");
    }
    result.err().map(|error| error.reason)
}

fn with_rule(expr: Expr) -> [OpKind; 1] {
    [OpKind::AddRule { chain: "c1".into(), rule: Rule { exprs: vec![expr], comment: String::new() } }]
}

#[test]
fn what_cannot_be_is_refused_with_its_reason() {
    let named = |name: &str, comment: String| [OpKind::AddChain { name: name.into(), hook: None, comment }];
    assert!(refusal(named("fine", "x".repeat(128))).is_none());
    assert!(matches!(refusal(named("fine", "x".repeat(129))), Some(Reason::TooLong(_))));
    assert!(matches!(refusal(named("1st", String::new())), Some(Reason::Name(_))));
    assert!(matches!(refusal(named("", String::new())), Some(Reason::Name(_))));
    assert!(refusal(named(&"x".repeat(255), String::new())).is_none());
    assert!(matches!(refusal(named(&"x".repeat(256), String::new())), Some(Reason::Name(_))));
    assert!(matches!(refusal([OpKind::DeleteChain("no".into())]), Some(Reason::Missing(_))));
    assert!(matches!(refusal(with_rule(Expr::Counter("no".into()))), Some(Reason::Missing(_))));
    let port = Expr::Compare { field: Field::IpSaddr, value: Value::Port(1), negated: false };
    assert!(matches!(refusal(with_rule(port)), Some(Reason::Invalid(_))));
    let lookup = |field| Expr::Lookup { key: vec![field], set: "s1".into() };
    assert!(refusal(with_rule(lookup(Field::IpDaddr))).is_none());
    assert!(matches!(refusal(with_rule(lookup(Field::Ip6Daddr))), Some(Reason::Invalid(_))));
    let vmap = Expr::Vmap { key: vec![Field::IpSaddr], map: "s1".into() };
    assert!(matches!(refusal(with_rule(vmap)), Some(Reason::Invalid(_))));
    let jump = Expr::Verdict(Verdict::Jump("base".into()));
    assert!(matches!(refusal(with_rule(jump)), Some(Reason::Unsupported(_))));
    assert!(matches!(refusal(with_rule(Expr::Foreign("x".into()))), Some(Reason::Invalid(_))));
}

#[test]
fn chains_nest_fifteen_jumps_deep() {
    let ladder = |steps: usize| {
        let add =
            |step: usize| OpKind::AddChain { name: format!("d{step}").into(), hook: None, comment: String::new() };
        let jump = |from: String, step: usize| OpKind::AddRule {
            chain: from.into(),
            rule: Rule { exprs: vec![Expr::Verdict(Verdict::Goto(format!("d{step}").into()))], comment: String::new() },
        };
        let mut ops: Vec<OpKind> = (0..steps).map(add).collect();
        ops.push(jump("base".into(), 0));
        ops.extend((1..steps).map(|step| jump(format!("d{}", step - 1), step)));
        ops
    };
    assert!(refusal(ladder(15)).is_none());
    assert!(matches!(refusal(ladder(16)), Some(Reason::TooDeep(_))));
}
