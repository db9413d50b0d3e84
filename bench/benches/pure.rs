//! What the pure parts cost: from JSON to the bytes of a transaction, at two sizes of a cluster.
//!
//! In: clusters of [`flatfell_bench`]. Out: criterion's times. No kernel is asked; docs/benchmarks.md says what that leaves out.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use flatfell_bench::{NODE, Size};
use flatfell_rules::compile::{Compiler, Layout, compile};
use flatfell_rules::diff::{Change as RulesetChange, Held, plan};
use flatfell_rules::effective::{Effective, evaluate};
use flatfell_rules::encode::{Ownership, encode};
use flatfell_rules::index::{Change, Index};
use flatfell_rules::parse;
use flatfell_rules::ruleset::Ruleset;
use serde_json::Value;

/// Objects as the API server shows them.
struct Objects {
    namespaces: Vec<Value>,
    pods: Vec<Value>,
    policies: Vec<Value>,
}

impl Objects {
    fn new(size: Size) -> Self {
        Self { namespaces: size.namespaces(), pods: size.pods(), policies: size.network_policies() }
    }

    fn changes(&self) -> Vec<Change> {
        let namespaces =
            self.namespaces.iter().map(|object| Change::UpsertNamespace(parse::namespace(object).unwrap().value));
        let pods = self.pods.iter().map(pod);
        let policies = self.policies.iter().map(|object| Change::UpsertPolicy(parse::policy(object).unwrap().value));
        namespaces.chain(pods).chain(policies).collect()
    }
}

fn pod(object: &Value) -> Change {
    Change::UpsertPod(parse::pod(object).unwrap().value)
}

fn index(changes: Vec<Change>) -> Index {
    let mut index = Index::new(NODE);
    for change in changes {
        index.apply(change);
    }
    index
}

fn layout() -> Layout {
    let ports = (0..250).map(|number| format!("veth{number}")).collect();
    Layout { bridges: BTreeSet::from(["cni0".to_owned()]), ports, ..Layout::default() }
}

fn ruleset(effective: &Effective, layout: &Layout) -> Ruleset {
    compile(effective, layout).ruleset
}

/// As the engine does it: the next generation is compiled only if the change tightens.
fn planned(have: &Held, compiler: &mut Compiler, effective: &Effective, layout: &Layout) -> RulesetChange {
    compiler.follow(effective);
    let want = compiler.compile(layout).ruleset;
    let next = Layout { generation: layout.generation.next(), ..layout.clone() };
    plan(have, want, || compiler.compile(&next).ruleset)
}

fn encoded(change: &RulesetChange) -> usize {
    change.steps().map(|step| encode(step, Ownership::Shared).unwrap().bytes().len()).sum()
}

fn pure(criterion: &mut Criterion) {
    for pods in [1_000, 10_000] {
        at_size(criterion, Size::with_pods(pods));
    }
}

fn at_size(criterion: &mut Criterion, size: Size) {
    let objects = Objects::new(size);
    let changes = objects.changes();
    let before = index(changes.clone());
    let joins = pod(&size.joining_pod());
    let mut after = before.clone();
    after.apply(joins.clone());
    let layout = layout();
    let (had, has) = (evaluate(&before), evaluate(&after));
    let (have, want) = (ruleset(&had, &layout), ruleset(&has, &layout));
    let held = Held::from(have.clone());
    let mut compiler = Compiler::default();
    planned(&Held::default(), &mut compiler, &had, &layout);
    let whole = plan(&Held::default(), have.clone(), || have.clone());
    assert!(!plan(&held, want.clone(), || want.clone()).is_empty(), "the pod that joins changes nothing here");
    println!("{} pods: the whole ruleset is {} operations, {} bytes", size.pods, whole.switch.len(), encoded(&whole));

    let mut group = criterion.benchmark_group("pure");
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(5));
    let id = |what| BenchmarkId::new(what, size.pods);
    group.bench_function(id("parse everything"), |b| b.iter(|| black_box(objects.changes())));
    group.bench_function(id("index everything"), |b| b.iter_batched(|| changes.clone(), index, BatchSize::LargeInput));
    group.bench_function(id("evaluate"), |b| b.iter(|| black_box(evaluate(&before))));
    group.bench_function(id("compile"), |b| b.iter(|| black_box(ruleset(&had, &layout))));
    group.bench_function(id("encode everything"), |b| b.iter(|| black_box(encoded(&whole))));
    group.bench_function(id("plan of a pod that joins"), |b| {
        b.iter(|| black_box(plan(&held, want.clone(), || want.clone())))
    });
    group.bench_function(id("a pod joins, to bytes"), |b| {
        b.iter_batched(
            || (before.clone(), joins.clone(), compiler.clone()),
            |(mut index, joins, mut compiler)| {
                index.apply(joins);
                let bytes = encoded(&planned(&held, &mut compiler, &evaluate(&index), &layout));
                // What the event does not pay is dropped behind the clock.
                (bytes, index, compiler)
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

criterion_group!(benches, pure);
criterion_main!(benches);
