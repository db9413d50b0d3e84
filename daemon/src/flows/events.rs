//! Denials as Kubernetes Events of the pods they happen to.
//!
//! In: drafts, over a bounded queue. Out: Events (events.k8s.io/v1) on the API server. What always holds: each is tried once;
//! nobody waits for it; a denial is told once in ten minutes ([`super::denials`]) and all of them at a bounded rate.

use std::sync::Arc;
use std::time::{Duration, Instant};

use flatfell_rules::object::Pod;
use http_body_util::{BodyExt, Limited};
use hyper::{Request, StatusCode};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::timeout;

use super::bucket::Bucket;
use super::counts::{Counts, EventResult};
use super::record::{Peer, Record, Verdict};
use crate::cluster::Access;

/// Events that may wait for the API server.
const WAITING: usize = 64;

/// Events a second, and at once.
const RATE: (u32, u32) = (1, 25);

/// An answer must come within this time.
const ANSWER: Duration = Duration::from_secs(10);

/// Between two lines about Events that are not taken.
const TELL_EVERY: Duration = Duration::from_secs(600);

/// Bytes of a note (the API's limit is 1024).
const NOTE_MAX: usize = 1000;

/// Bytes of an answer that are read.
const ANSWER_BYTES: usize = 64 * 1024;

/// An Event to be.
#[derive(Clone, Debug)]
pub struct Draft {
    /// What happened.
    pub record: Arc<Record>,
    /// The pod it happened to.
    pub pod: Arc<Pod>,
}

/// The queue that Events go through.
pub fn queue() -> (Sender<Draft>, Receiver<Draft>) {
    channel(WAITING)
}

/// Creates Events until the queue is closed.
pub async fn post(access: Access, node: String, mut drafts: Receiver<Draft>, counts: Arc<Counts>) {
    let mut bucket = Bucket::new(RATE.0, RATE.1, Instant::now());
    let mut client: Option<Client> = None;
    let mut told: Option<Instant> = None;
    while let Some(draft) = drafts.recv().await {
        if !bucket.take(Instant::now()) {
            counts.event(EventResult::Limited);
            continue;
        }
        match create(&access, &mut client, &event(&draft, &node, Timestamp::now())).await {
            Ok(()) => counts.event(EventResult::Created),
            Err(why) => {
                counts.event(EventResult::Failed);
                // Credentials are read again with a new one.
                client = None;
                if told.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
                    tracing::warn!("Events of denials cannot be created: {why}");
                    told = Some(Instant::now());
                }
            }
        }
    }
}

async fn create(access: &Access, client: &mut Option<Client>, event: &Value) -> Result<(), String> {
    let client = match client {
        Some(client) => client,
        None => client.insert(access.client().await.map_err(|error| error.to_string())?.0),
    };
    let namespace = event["metadata"]["namespace"].as_str().unwrap_or_default();
    let request = Request::post(format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events"))
        .header("content-type", "application/json")
        .body(Body::from(event.to_string().into_bytes()))
        .map_err(|error| error.to_string())?;
    let answer = timeout(ANSWER, client.send(request)).await;
    let response = answer.map_err(|_| "no answer".to_owned())?.map_err(|error| error.to_string())?;
    let status = response.status();
    let body = timeout(ANSWER, Limited::new(response.into_body(), ANSWER_BYTES).collect()).await;
    if status.is_success() {
        return Ok(());
    }
    let text = body.ok().and_then(Result::ok).map(|body| body.to_bytes()).unwrap_or_default();
    let said: Value = serde_json::from_slice(&text).unwrap_or_default();
    let message = said["message"].as_str().unwrap_or_default();
    let advice = if status == StatusCode::FORBIDDEN {
        " (the ClusterRole needs the verb create of events in events.k8s.io)"
    } else {
        ""
    };
    Err(format!("{status}: {message}{advice}"))
}

/// The Event of a denial.
fn event(draft: &Draft, node: &str, now: Timestamp) -> Value {
    let Draft { record, pod } = draft;
    let (reason, action, kind) = match record.verdict {
        Verdict::Denied => ("PolicyDenied", "Denied", "Warning"),
        Verdict::Audited => ("PolicyAudited", "Audited", "Normal"),
    };
    let (namespace, name) = (&*pod.name.namespace, &*pod.name.name);
    let mut event = json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"generateName": format!("{name}-"), "namespace": namespace},
        "eventTime": format!("{now:.6}"),
        "reportingController": "flatfell.io/flatfell",
        "reportingInstance": node,
        "action": action,
        "reason": reason,
        "type": kind,
        "regarding": {"apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": name, "uid": pod.uid},
        "note": note(record),
    });
    if let Peer::Pod { namespace, name, .. } = &record.peer {
        event["related"] = json!({"apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": name});
    }
    event
}

fn note(record: &Record) -> String {
    let mut note = record.sentence();
    if note.len() > NOTE_MAX {
        let end = (0..=NOTE_MAX).rev().find(|end| note.is_char_boundary(*end)).unwrap_or(0);
        note.truncate(end);
        note.push_str("...");
    }
    note
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::record;
    use super::*;

    #[test]
    fn a_note_fits_however_many_policies_there_are() {
        let policies = (0..100).map(|number| format!("namespace-ä/policy-{number}")).collect();
        let long = note(&Record { policies, ..record() });
        assert!(long.len() <= 1024 && long.ends_with("..."), "{}", long.len());
        assert_eq!(note(&record()), record().sentence());
    }
}
