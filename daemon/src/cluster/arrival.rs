//! What happens once, when policy is first in force on the node, and to its start-up taint.
//!
//! In: [`State`] of the daemon. Out: how long pods of this node may have run without policy, and a Node without its
//! start-up taint. What always holds: the taint is taken away only while the daemon is ready, and only the one with its
//! key.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::Request;
use k8s_openapi::jiff::Timestamp;
use kube::client::Body;
use serde_json::json;
use tokio::time::sleep;

use super::access::Access;
use super::failure::{Failure, chain};
use super::resource::Resource;
use super::session::Session;
use crate::state::State;

/// How often it is looked whether policy is in force: fine enough for the measure, and it costs nothing.
const LOOK: Duration = Duration::from_millis(50);

/// Between attempts to take the taint away.
const AGAIN: Duration = Duration::from_secs(2);

/// A request for a change must be answered within this time.
const ANSWER: Duration = Duration::from_secs(10);

/// Waits for policy to be in force, says since when pods may have run without it, and takes the taint away.
pub async fn arrive(state: State, has_earlier_rules: bool, access: Access, taint: Option<String>) {
    while state.engine.status().enforced.is_none() {
        sleep(LOOK).await;
    }
    let first_pod = state.source.borrow().first_pod.clone();
    let exposed =
        if has_earlier_rules { Duration::ZERO } else { exposure(first_pod.as_deref(), SystemTime::now(), uptime()) };
    state.unprotected.get_or_init(|| exposed);
    tracing::info!(seconds = exposed.as_secs(), "policy is in force; pods of this node may have run without it before");
    if let Some(key) = taint {
        keep_taint_away(&state, &access, &key).await;
    }
}

/// A time as the API server writes it.
pub fn timestamp(text: &str) -> Option<SystemTime> {
    let seconds = text.parse::<Timestamp>().ok()?.as_second();
    UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(seconds).ok()?))
}

/// From the creation of the oldest pod, or the boot of the node if that was later, to now.
fn exposure(first_pod: Option<&str>, now: SystemTime, uptime: Option<Duration>) -> Duration {
    let Some(created) = first_pod.and_then(timestamp) else { return Duration::ZERO };
    let age = now.duration_since(created).unwrap_or_default();
    uptime.map_or(age, |uptime| age.min(uptime))
}

fn uptime() -> Option<Duration> {
    let text = fs::read_to_string("/proc/uptime").ok()?;
    Duration::try_from_secs_f64(text.split_whitespace().next()?.parse().ok()?).ok()
}

/// A node that joins again gets its taint again.
async fn keep_taint_away(state: &State, access: &Access, key: &str) {
    let mut source = state.source.clone();
    let mut session = Session::new(access.clone(), ANSWER);
    let mut told = None;
    loop {
        let place = source.borrow_and_update().own_node.as_ref().and_then(|node| place_of(&node.taints, key));
        let Some(place) = place else {
            if source.changed().await.is_err() {
                return;
            }
            continue;
        };
        if state.not_ready().is_empty() {
            match remove(&mut session, &state.node, place, key).await {
                Ok(()) => tracing::info!(taint = key, "policy is in force: the node's start-up taint is taken away"),
                Err(failure) if told.as_ref() != Some(&failure) => {
                    tracing::warn!(taint = key, "the start-up taint cannot be taken away: {failure}");
                    session.renew();
                    told = Some(failure);
                }
                Err(_) => session.renew(),
            }
        }
        sleep(AGAIN).await;
    }
}

fn place_of(taints: &[String], key: &str) -> Option<usize> {
    taints.iter().position(|taint| taint == key)
}

/// Takes away the taint at this place, if it still has this key.
async fn remove(session: &mut Session, node: &str, place: usize, key: &str) -> Result<(), Failure> {
    let patch = json!([
        {"op": "test", "path": format!("/spec/taints/{place}/key"), "value": key},
        {"op": "remove", "path": format!("/spec/taints/{place}")},
    ]);
    let request = Request::patch(format!("{}/{node}", Resource::Node.path()))
        .header("content-type", "application/json-patch+json")
        .body(Body::from(patch.to_string().into_bytes()))
        .map_err(|error| Failure::Garbage(chain(&error)))?;
    session.send(Resource::Node, "patch", false, request).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_exposed_since_they_were_made_or_the_node_was_booted() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let created = Some("2001-09-09T01:45:40Z");
        assert_eq!(exposure(created, now, None), Duration::from_secs(60));
        assert_eq!(exposure(created, now, Some(Duration::from_secs(20))), Duration::from_secs(20));
        assert_eq!(exposure(None, now, None), Duration::ZERO, "no pod");
        assert_eq!(exposure(Some("2030-01-01T00:00:00Z"), now, None), Duration::ZERO, "clocks differ");
        assert!(uptime().is_some());
    }
}
