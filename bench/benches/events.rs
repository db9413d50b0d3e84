//! What one event costs in the pure part: from a decoded object to what holds on the node.
//!
//! In: clusters of [`flatfell_bench`]. Out: criterion's times, for each kind of event at three sizes of a cluster. Each
//! event is taken back untimed, and the value before it is kept as the engine keeps it, so that what is shared is copied.
#![allow(clippy::unwrap_used, missing_docs)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use flatfell_bench::{NODE, Size};
use flatfell_rules::effective::{Evaluator, evaluate};
use flatfell_rules::index::{Change, Index};
use flatfell_rules::object::Labels;
use flatfell_rules::parse;
use serde_json::{Value, json};

/// A kind of event, and what takes it back.
struct Event {
    name: &'static str,
    change: Change,
    back: Change,
}

fn pod(object: &Value) -> Change {
    Change::UpsertPod(parse::pod(object).unwrap().value)
}

fn policy(object: &Value) -> Change {
    Change::UpsertPolicy(parse::policy(object).unwrap().value)
}

fn namespace(object: &Value) -> Change {
    Change::UpsertNamespace(parse::namespace(object).unwrap().value)
}

/// The same object with another value at a JSON pointer.
fn with(object: &Value, pointer: &str, value: Value) -> Value {
    let mut object = object.clone();
    *object.pointer_mut(pointer).unwrap() = value;
    object
}

fn delete(change: &Change) -> Change {
    match change {
        Change::UpsertPod(pod) => Change::DeletePod(pod.name.clone()),
        Change::UpsertPolicy(policy) => Change::DeletePolicy(policy.name.clone()),
        _ => unreachable!("only pods and policies are deleted here"),
    }
}

/// The pod with a label that selects it and a peer elsewhere.
fn relabelled(object: &Value) -> Change {
    pod(&with(object, "/metadata/labels/app", json!("app7")))
}

/// The pod with labels nobody had.
fn renamed(object: &Value) -> Change {
    let Change::UpsertPod(mut pod) = pod(object) else { unreachable!("a pod") };
    let labels = pod.labels.iter().chain([("build", "new")]);
    pod.labels = Labels::from_iter(labels.map(|(key, value)| (key.to_owned(), value.to_owned())));
    Change::UpsertPod(pod)
}

fn events(size: Size, pods: &[Value]) -> Vec<Event> {
    let (local, remote) = (&pods[0], &pods[1]);
    let joins = pod(&size.joining_pod());
    let here = pod(&with(&size.joining_pod(), "/spec/nodeName", json!(NODE)));
    let policies = size.network_policies();
    let edited = policy(&with(&policies[0], "/spec/ingress/0/ports/0/port", json!(8081)));
    let team = &size.namespaces()[0];
    let another = policy(&with(&policies[0], "/metadata/name", json!("another")));
    let event = |name, change, back| Event { name, change, back };
    vec![
        event("a remote pod joins", joins.clone(), delete(&joins)),
        event("a remote pod goes", delete(&pod(remote)), pod(remote)),
        event("a remote pod is relabelled", relabelled(remote), pod(remote)),
        event("a remote pod has labels nobody had", renamed(remote), pod(remote)),
        event("a local pod joins", here.clone(), delete(&here)),
        event("a local pod is relabelled", relabelled(local), pod(local)),
        event(
            "a namespace is relabelled",
            namespace(&with(team, "/metadata/labels/team", json!("team1"))),
            namespace(team),
        ),
        event("a policy is added", another.clone(), delete(&another)),
        event("a policy is edited", edited, policy(&policies[0])),
        event("a policy is deleted", delete(&policy(&policies[0])), policy(&policies[0])),
    ]
}

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
        evaluator.apply(event.back.clone());
        if let Change::DeletePod(_) = event.back {
            // Its interface goes too, or a ghost would stay.
            if let Change::UpsertPod(pod) = &event.change {
                for address in &pod.addresses {
                    evaluator.apply(Change::InterfaceGone(*address));
                }
            }
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
    let objects = size.pods();
    let mut changes: Vec<Change> = size.namespaces().iter().map(namespace).collect();
    changes.extend(objects.iter().map(pod));
    changes.extend(size.network_policies().iter().map(policy));
    // One of this node and one elsewhere.
    let events = events(size, &[objects[0].clone(), objects[size.local].clone()]);
    drop(objects);
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
