//! The kinds of events that are measured, and what takes each back.
//!
//! In: a [`Size`]. Out: its objects as changes, and events upon them. What always holds: an event and what takes it back leave the
//! cluster as it was.
#![allow(clippy::unwrap_used, reason = "the objects are this crate's own")]

use flatfell_rules::index::Change;
use flatfell_rules::object::Labels;
use flatfell_rules::parse;
use serde_json::{Value, json};

use crate::{NODE, Size};

/// A kind of event, and what takes it back.
pub struct Event {
    /// What happens.
    pub name: &'static str,
    /// It.
    pub change: Change,
    /// What takes it back.
    pub back: Vec<Change>,
}

/// All objects of a cluster.
pub fn changes(size: Size) -> Vec<Change> {
    let mut changes: Vec<Change> = size.namespaces().iter().map(namespace).collect();
    changes.extend(size.pods().iter().map(pod));
    changes.extend(size.network_policies().iter().map(policy));
    changes
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

/// Remote pods, one after the other, that get a label that selects them elsewhere, and the label that they had.
pub fn relabels(size: Size) -> impl Iterator<Item = Change> + Clone {
    (size.local..size.local + 20).flat_map(move |place| {
        let object = size.pod(place);
        [relabelled(&object), pod(&object)]
    })
}

/// One of each kind.
pub fn events(size: Size) -> Vec<Event> {
    let (local, remote) = (&size.pod(0), &size.pod(size.local));
    let joins = pod(&size.joining_pod());
    let here = pod(&with(&size.joining_pod(), "/spec/nodeName", json!(NODE)));
    let policies = size.network_policies();
    let edited = policy(&with(&policies[0], "/spec/ingress/0/ports/0/port", json!(8081)));
    let team = &size.namespaces()[0];
    let another = policy(&with(&policies[0], "/metadata/name", json!("another")));
    let event = |name, change, back: Change| {
        let mut back = vec![back];
        // Its interface goes too, or a ghost would stay.
        if let (Change::DeletePod(_), Change::UpsertPod(pod)) = (&back[0], &change) {
            back.extend(pod.addresses.iter().map(|address| Change::InterfaceGone(*address)));
        }
        Event { name, change, back }
    };
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

#[cfg(test)]
mod tests {
    use flatfell_rules::effective::Evaluator;
    use flatfell_rules::index::Index;

    use super::*;

    #[test]
    fn every_event_does_something_and_is_taken_back() {
        let size = Size::with_pods(1_000);
        let mut evaluator = Evaluator::new(Index::new(NODE));
        for change in changes(size) {
            evaluator.apply(change);
        }
        let start = evaluator.effective();
        for event in events(size) {
            assert!(evaluator.apply(event.change), "{}", event.name);
            let after = evaluator.effective();
            let are_other_pods = after.pods() != start.pods();
            let is_local = ["a local pod joins", "a local pod is relabelled"].contains(&event.name);
            assert!(are_other_pods || !is_local, "{}", event.name);
            // No selector asks for the label that nobody had.
            assert_eq!(after == start, event.name == "a remote pod has labels nobody had", "{}", event.name);
            for change in event.back {
                evaluator.apply(change);
            }
            assert_eq!(evaluator.effective(), start, "{}", event.name);
        }
    }
}
