//! What one event costs in the pure part: from a decoded object to what holds on the node.
//!
//! In: clusters of [`flatfell_bench`]. Out: criterion's times, for each kind of event at three sizes of a cluster. Each
//! event is taken back untimed, and the value before it is kept as the engine keeps it, so that what is shared is copied.
#![allow(clippy::unwrap_used, missing_docs)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use flatfell_bench::events::{Event, changes, events};
use flatfell_bench::{NODE, Size};
use flatfell_rules::effective::{Evaluator, evaluate};
use flatfell_rules::index::{Change, Index};

/// The time of the event alone.
fn timed(evaluator: &mut Evaluator, event: &Event, times: u64) -> Duration {
    let mut taken = Duration::ZERO;
    for _ in 0..times {
        let before = evaluator.effective();
        let change = event.change.clone();
        let start = Instant::now();
        evaluator.apply(change);
        let after = evaluator.effective();
        taken += start.elapsed();
        black_box((before, after));
        for change in event.back.clone() {
            evaluator.apply(change);
        }
    }
    taken
}

fn cold(changes: Vec<Change>) -> Evaluator {
    let mut evaluator = Evaluator::new(Index::new(NODE));
    for change in changes {
        evaluator.apply(change);
    }
    evaluator.effective();
    evaluator
}

fn all(criterion: &mut Criterion) {
    for pods in [1_000, 10_000, 150_000] {
        at_size(criterion, Size::with_pods(pods));
    }
}

fn at_size(criterion: &mut Criterion, size: Size) {
    let (changes, events) = (changes(size), events(size));
    let mut evaluator = cold(changes.clone());

    let mut group = criterion.benchmark_group("events");
    group.sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
    for event in &events {
        let id = BenchmarkId::new(event.name, size.pods);
        group.bench_function(id, |b| b.iter_custom(|times| timed(&mut evaluator, event, times)));
    }
    assert_eq!(evaluator.effective(), evaluate(evaluator.index()), "every event was taken back");
    drop(evaluator);
    group.sample_size(10);
    group.bench_function(BenchmarkId::new("cold: apply everything, evaluate", size.pods), |b| {
        b.iter_batched(|| changes.clone(), cold, BatchSize::PerIteration)
    });
    group.finish();
}

criterion_group!(benches, all);
criterion_main!(benches);
