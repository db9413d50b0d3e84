//! The API server as a source, against a server that misbehaves in every way that is known of.
#![allow(missing_docs)]

mod arrival;
mod coded;
mod daemon;
mod fake_api;
mod history;

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flatfell::cluster::{Access, Cluster};
use flatfell::state::SourceState;
use serde_json::json;
use tempfile::NamedTempFile;
use tokio::time::sleep;

use daemon::{Daemon, deny, isolated, node, patience, pod, server};
use fake_api::{FakeApi, Fault, Streams};

#[tokio::test(flavor = "multi_thread")]
async fn lists_come_as_streams_and_changes_follow() {
    let api = server().await;
    let daemon = Daemon::start(&api).await;
    let effective = daemon.agrees(&api).await;
    assert_eq!(isolated(&effective).values().filter(|isolated| **isolated).count(), 5);
    assert_eq!(daemon.count(), 1, "one state, when all lists are complete");
    api.delete("NetworkPolicy", "a", "deny");
    daemon.agrees(&api).await;
    api.apply(deny("again"));
    api.delete("Pod", "a", "p6");
    api.apply(pod("new", 20, "other"));
    daemon.agrees(&api).await;
    daemon.healthy().await;
    let requests = api.requests();
    assert!(requests.iter().all(|request| request.contains("sendInitialEvents=true")), "{requests:#?}");
    let own = |request: &&String| request.contains("/nodes");
    assert!(requests.iter().filter(own).all(|request| request.contains("fieldSelector=metadata.name%3Dn")));
    let state = daemon.state(|state| state.read).await;
    assert!(state.problems.is_empty() && state.missing_node.is_none(), "{state:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_streams_no_lists_gives_pages() {
    for streams in [Streams::RefusedInEvent, Streams::RefusedInStatus, Streams::Ignored] {
        let api = server().await;
        api.edit(|world| {
            world.streams = streams;
            world.page_max = 3;
            // One that ignores what was asked for is known by its silence.
            world.bookmarks = Duration::from_secs(60);
        });
        let daemon = Daemon::start(&api).await;
        daemon.agrees(&api).await;
        api.delete("Pod", "a", "p6");
        daemon.agrees(&api).await;
        let requests = api.requests();
        let count =
            |words: &[&str]| requests.iter().filter(|request| words.iter().all(|word| request.contains(word))).count();
        assert_eq!(count(&["/pods", "sendInitialEvents"]), 1, "asked once: {streams:?} {requests:#?}");
        assert_eq!(count(&["/pods", "limit=100"]), 4, "pages: {streams:?} {requests:#?}");
        assert_eq!(count(&["/pods", "continue="]), 3, "pages: {streams:?} {requests:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_handed_on_before_every_list_is_complete() {
    for resource in ["pods", "namespaces", "networkpolicies"] {
        let api = server().await;
        api.fault(Fault::Status(403, resource.to_owned()));
        let daemon = Daemon::start(&api).await;
        let failure = daemon.fails(resource, "forbidden").await;
        assert!(failure.contains(&format!("watch of {resource}")) && failure.contains("ClusterRole"), "{failure}");
        sleep(Duration::from_millis(300)).await;
        assert_eq!(daemon.count(), 0, "{resource}");
        assert!(!daemon.state.borrow().read);
        api.fault(Fault::None);
        daemon.agrees(&api).await;
        assert_eq!(daemon.count(), 1, "{resource}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn policy_does_not_wait_for_the_node() {
    let api = server().await;
    api.fault(Fault::Status(403, "nodes".to_owned()));
    let daemon = Daemon::start(&api).await;
    daemon.agrees(&api).await;
    daemon.fails("nodes", "forbidden").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_keeps_the_state_and_its_end_is_seen_soon() {
    for compacted in [false, true] {
        let mut api = server().await;
        let daemon = Daemon::start(&api).await;
        daemon.agrees(&api).await;
        daemon.healthy().await;
        let before = daemon.count();
        api.kill().await;
        daemon.fails("pods", "unreachable").await;
        for address in 1..=5 {
            api.delete("Pod", "a", &format!("p{}", address * 2));
        }
        api.apply(deny("meanwhile"));
        if compacted {
            api.edit(fake_api::World::compact);
        }
        // Long enough for the pauses to have grown to their longest.
        sleep(Duration::from_secs(4)).await;
        assert_eq!(daemon.count(), before, "nothing changes while the server is away");
        api.revive().await;
        let back = Instant::now();
        // Pods that left stay isolated while their interface lives; their addresses are no peers any more.
        let seen = daemon.state(|state| state.objects == 8).await;
        assert!(back.elapsed() < Duration::from_secs(2), "{:?}", back.elapsed());
        daemon.healthy().await;
        let lists: u64 = daemon.state.borrow().watches.iter().map(|watch| watch.lists).sum();
        assert_eq!(lists, if compacted { 8 } else { 4 }, "listed again only where changes are gone: {seen:#?}");
        let last = daemon.last().expect("a state");
        let peers = format!("{:?}", last.pods());
        assert!(!peers.contains("10.0.0.6/"), "{peers}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_counts_as_one() {
    let mut api = server().await;
    let daemon = Daemon::start(&api).await;
    daemon.agrees(&api).await;
    api.kill().await;
    for address in 6..=10 {
        api.delete("Pod", "a", &format!("p{address}"));
        api.apply(pod(&format!("q{address}"), address + 100, "other"));
    }
    api.edit(fake_api::World::compact);
    let before = daemon.count();
    api.revive().await;
    daemon.agrees(&api).await;
    assert_eq!(daemon.count(), before + 1, "no state in between");
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_no_list_and_no_event() {
    let lines = [
        "<html>",
        "{\"type\":\"ADDED\"",
        "[]",
        "{}",
        r#"{"type":"ADDED","object":{"kind":"Secret","metadata":{"name":"x"}}}"#,
        r#"{"type":"ADDED","object":{"kind":"Pod","metadata":{}}}"#,
        r#"{"type":"WHAT","object":{"kind":"Pod"}}"#,
    ];
    for line in lines {
        let mut api = server().await;
        api.fault(Fault::GarbageInList(line.to_owned()));
        let daemon = Daemon::start(&api).await;
        daemon.fails("pods", "garbage").await;
        assert_eq!(daemon.count(), 0, "{line}");
        api.fault(Fault::None);
        daemon.agrees(&api).await;
        api.fault(Fault::GarbageInWatch(line.to_owned()));
        api.restart().await;
        daemon.fails("pods", "garbage").await;
        api.apply(pod("new", 30, "n"));
        api.fault(Fault::None);
        daemon.agrees(&api).await;
        // What the line would have said is not known.
        let is_listed_again = |state: &Arc<SourceState>| {
            state.watches.iter().any(|watch| watch.resource.name() == "pods" && watch.lists >= 2)
        };
        daemon.state(is_listed_again).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_no_lists_are_not_taken_for_empty_ones() {
    let texts = [
        "",
        "null",
        "{}",
        "[]",
        "<html>no</html>",
        r#"{"kind":"PodList","metadata":{"resourceVersion":"99999"}}"#,
        r#"{"kind":"SecretList","metadata":{"resourceVersion":"99999"},"items":[]}"#,
        r#"{"kind":"PodList","items":[]}"#,
        r#"{"kind":"PodList","metadata":{"resourceVersion":"99999"},"items":[{"metadata":{}}]}"#,
    ];
    for text in texts {
        let mut api = server().await;
        api.edit(|world| world.streams = Streams::RefusedInStatus);
        let daemon = Daemon::start(&api).await;
        let effective = daemon.agrees(&api).await;
        api.kill().await;
        api.edit(fake_api::World::compact);
        api.fault(Fault::Garbage(text.to_owned()));
        api.apply(pod("new", 30, "n"));
        api.revive().await;
        daemon
            .state(|state| {
                state.watches.iter().any(|watch| watch.failures.keys().any(|word| ["garbage", "ended"].contains(word)))
            })
            .await;
        sleep(Duration::from_millis(300)).await;
        assert_eq!(daemon.last(), Some(effective), "{text}");
        api.fault(Fault::None);
        daemon.agrees(&api).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_is_left_and_tried_again() {
    for fault in [Fault::Hang, Fault::HangInBody] {
        let mut api = server().await;
        let daemon = Daemon::start(&api).await;
        let effective = daemon.agrees(&api).await;
        // No bookmarks: as if the connections were dead.
        api.fault(fault.clone());
        api.restart().await;
        let failure = daemon.fails("pods", "silent").await;
        assert!(failure.contains("has said nothing"), "{failure}");
        assert_eq!(daemon.last(), Some(effective), "{fault:?}");
        api.fault(Fault::None);
        api.apply(pod("new", 30, "n"));
        daemon.agrees(&api).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_dies_without_a_word_is_noticed() {
    let api = server().await;
    let daemon = Daemon::start(&api).await;
    daemon.agrees(&api).await;
    daemon.healthy().await;
    api.edit(|world| world.bookmarks = Duration::from_secs(3600));
    let failure = daemon.fails("namespaces", "silent").await;
    assert!(failure.contains("has said nothing"), "{failure}");
    daemon.healthy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_refuses_every_watch_is_not_asked_without_a_pause() {
    for fault in [Fault::EndAtOnce, Fault::GoneInEvent, Fault::GarbageInWatch("x".to_owned())] {
        let mut api = server().await;
        let daemon = Daemon::start(&api).await;
        daemon.agrees(&api).await;
        api.fault(fault.clone());
        api.restart().await;
        sleep(Duration::from_millis(500)).await;
        let before = api.requests().len();
        sleep(Duration::from_secs(3)).await;
        let requests = api.requests().len() - before;
        assert!((4..=80).contains(&requests), "{requests} requests of four watches in 3 s: {fault:?}");
        api.fault(Fault::None);
        api.apply(pod("new", 30, "n"));
        daemon.agrees(&api).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_known_keeps_the_state_and_asks_again() {
    let mut api = server().await;
    let daemon = Daemon::start(&api).await;
    let effective = daemon.agrees(&api).await;
    api.fault(Fault::Status(401, String::new()));
    api.restart().await;
    let failure = daemon.fails("pods", "unauthorized").await;
    assert!(failure.contains("expired"), "{failure}");
    assert_eq!(daemon.last(), Some(effective));
    api.apply(deny("meanwhile"));
    api.fault(Fault::None);
    daemon.agrees(&api).await;
}

/// A service account's token is another one every hour, in the same file.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_replaced_in_its_file_is_read_again() {
    let mut api = server().await;
    let mut token = NamedTempFile::new().expect("a file");
    token.write_all(b"first").expect("written");
    api.edit(|world| world.token = Some("first".to_owned()));
    let daemon = Daemon::start_as(&api, &format!("{{tokenFile: {}}}", token.path().display())).await;
    let effective = daemon.agrees(&api).await;
    api.edit(|world| world.token = Some("second".to_owned()));
    api.restart().await;
    daemon.fails("pods", "unauthorized").await;
    assert_eq!(daemon.last(), Some(effective));
    api.apply(deny("meanwhile"));
    std::fs::write(token.path(), "second").expect("written");
    daemon.agrees(&api).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_no_schema_checked_is_a_problem_with_its_name() {
    let api = server().await;
    let daemon = Daemon::start(&api).await;
    let effective = daemon.agrees(&api).await;
    let mut bad = pod("p1", 1, "n");
    bad["status"]["podIPs"] = json!([{"ip": "10.0.0.300"}]);
    bad["metadata"]["labels"] = json!({"app": 5});
    api.apply(bad.clone());
    let problems =
        |state: &Arc<SourceState>| state.problems.iter().map(|problem| problem.text.clone()).collect::<Vec<_>>();
    let state = daemon.state(|state| state.problems.len() == 2).await;
    let texts = problems(&state);
    assert!(texts.iter().any(|text| text.starts_with("Pod a/p1: metadata.labels.app: ")), "{texts:?}");
    assert!(texts.iter().all(|text| text.ends_with("; its last good state stays in force")), "{texts:?}");
    assert!(state.unknown.is_empty());
    // The stream goes on.
    api.apply(deny("more"));
    daemon.state(|state| state.objects == 13).await;
    assert_eq!(isolated(&daemon.last().expect("a state")), isolated(&effective));

    bad["metadata"]["name"] = json!("unheard-of");
    bad["metadata"].as_object_mut().expect("metadata").remove("uid");
    api.apply(bad.clone());
    let state = daemon.state(|state| !state.unknown.is_empty()).await;
    assert_eq!(state.unknown, ["Pod a/unheard-of was never understood"]);
    // Another pod of the name is not the one that was good.
    let mut other = bad.clone();
    other["metadata"]["name"] = json!("p2");
    other["metadata"]["uid"] = json!("another");
    api.apply(other);
    let state = daemon.state(|state| state.unknown.len() == 2).await;
    assert!(state.unknown.contains(&"Pod a/p2 was never understood".to_owned()), "{:?}", state.unknown);

    let mut policy = deny("deny");
    policy["spec"]["ingress"] = json!(5);
    api.apply(policy);
    let state = daemon.state(|state| !state.refused.is_empty()).await;
    assert!(problems(&state).iter().any(|text| text.starts_with("NetworkPolicy a/deny: spec.ingress: ")));
    api.apply(deny("deny"));
    api.apply(pod("p1", 1, "n"));
    api.delete("Pod", "a", "unheard-of");
    api.delete("Pod", "a", "p2");
    daemon.state(|state| state.problems.is_empty() && state.unknown.is_empty() && state.refused.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_older_than_what_is_known_changes_nothing() {
    let api = server().await;
    let daemon = Daemon::start(&api).await;
    daemon.agrees(&api).await;
    let old = api.edit(|world| world.objects[&("Pod".to_owned(), "a".to_owned(), "p6".to_owned())].clone());
    let mut new = pod("p6", 66, "other");
    new["metadata"]["uid"] = json!("successor");
    api.apply(new);
    daemon.agrees(&api).await;
    // The predecessor once more, and its end, as a server with a fault might send them.
    for word in ["MODIFIED", "DELETED"] {
        api.edit(|world| {
            world.version += 1;
            let event = fake_api::Event { version: world.version, word, object: old.clone() };
            world.events.push(event);
        });
    }
    api.apply(pod("last", 77, "n"));
    let effective = daemon.agrees(&api).await;
    assert!(format!("{effective:?}").contains("10.0.0.66"), "the successor is a peer");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_list_is_not_believed_at_once() {
    let mut api = server().await;
    let daemon = Daemon::start(&api).await;
    let effective = daemon.agrees(&api).await;
    api.kill().await;
    // As a server whose state is behind, or that was restored: less objects, an earlier version.
    let stale = Instant::now();
    api.edit(|world| {
        world.objects.retain(|(kind, _, _), _| kind != "NetworkPolicy");
        world.restore(5);
    });
    api.revive().await;
    daemon.fails("networkpolicies", "stale").await;
    assert_eq!(daemon.last(), Some(effective));
    daemon.agrees(&api).await;
    assert!(stale.elapsed() >= patience().stale, "a server that was restored is believed, later");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_own_node_is_looked_for_and_its_annotation_handed_on() {
    let api = server().await;
    api.delete("Node", "", "n");
    let daemon = Daemon::start(&api).await;
    let state = daemon.state(|state| state.missing_node.is_some()).await;
    assert_eq!(state.missing_node.as_deref(), Some("n"));
    let mut own = node("n");
    own["metadata"]["annotations"] = json!({"flatfell.io/paused-until": "2030-01-01T00:00:00Z", "other": "x"});
    own["spec"]["taints"] = json!([{"key": "k", "effect": "NoSchedule"}]);
    api.apply(own);
    let state = daemon.state(|state| state.own_node.is_some()).await;
    let own = state.own_node.clone().expect("a node");
    assert_eq!((own.paused_until.as_deref(), own.taints), (Some("2030-01-01T00:00:00Z"), vec!["k".to_owned()]));
    assert!(state.missing_node.is_none());
    api.apply(node("n"));
    daemon.state(|state| state.own_node.as_ref().is_some_and(|node| node.paused_until.is_none())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubeconfig_that_cannot_be_used_ends_the_start() {
    let access = Access { kubeconfig: Some("/nowhere/config".into()), ..Access::default() };
    let error = Cluster::follow(&access, "n", patience()).await.err().expect("no file");
    assert!(error.to_string().contains("--kubeconfig /nowhere/config"), "{error}");
    let mut file = NamedTempFile::new().expect("a file");
    let api = FakeApi::start().await;
    let text = api.kubeconfig("{exec: {command: aws, apiVersion: client.authentication.k8s.io/v1}}");
    file.write_all(text.as_bytes()).expect("written");
    let access = Access { kubeconfig: Some(file.path().to_owned()), ..Access::default() };
    let error = Cluster::follow(&access, "n", patience()).await.err().expect("no programs");
    assert!(error.to_string().contains("tokenFile"), "{error}");
    let access = Access { context: Some("another".to_owned()), ..access };
    assert!(Cluster::follow(&access, "n", patience()).await.is_err());
}
