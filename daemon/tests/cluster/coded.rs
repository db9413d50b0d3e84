//! A server that writes protobuf: everything is as with one that writes JSON.

use super::daemon::{Daemon, deny, namespace, pod, server};
use super::fake_api::{FakeApi, Fault, Streams};

async fn writing_protobuf() -> FakeApi {
    let api = server().await;
    api.edit(|world| world.protobuf = true);
    api
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_bookmarks_and_changes_are_understood() {
    let api = writing_protobuf().await;
    let daemon = Daemon::start(&api).await;
    daemon.agrees(&api).await;
    assert_eq!(daemon.count(), 1, "one state, when all lists are complete");
    api.delete("Pod", "a", "p6");
    api.apply(pod("new", 20, "other"));
    api.apply(deny("more"));
    let mut going = namespace("a");
    going["metadata"]["deletionTimestamp"] = "2026-01-02T03:04:05Z".into();
    going["metadata"]["annotations"] = serde_json::json!({"flatfell.io/mode": "audit", "other": "x"});
    api.apply(going);
    daemon.agrees(&api).await;
    daemon.healthy().await;
    let state = daemon.state(|state| state.read).await;
    assert!(state.problems.is_empty() && state.watches.iter().all(|watch| watch.lists == 1), "{state:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_and_refusals_are_understood() {
    for streams in [Streams::RefusedInEvent, Streams::RefusedInStatus] {
        let api = writing_protobuf().await;
        api.edit(|world| {
            world.streams = streams;
            world.page_max = 3;
        });
        let daemon = Daemon::start(&api).await;
        daemon.agrees(&api).await;
        api.apply(pod("new", 20, "other"));
        daemon.agrees(&api).await;
        let asked =
            api.requests().iter().filter(|request| request.contains("/pods") && request.contains("continue=")).count();
        assert_eq!(asked, 3, "{streams:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_understood() {
    let mut api = writing_protobuf().await;
    let daemon = Daemon::start(&api).await;
    daemon.agrees(&api).await;
    for (fault, word) in [
        (Fault::GoneInEvent, "gone"),
        (Fault::Status(401, String::new()), "unauthorized"),
        (Fault::Status(403, "pods".to_owned()), "forbidden"),
    ] {
        api.fault(fault);
        api.restart().await;
        let failure = daemon.fails("pods", word).await;
        assert!(
            ["too old resource version", "the fake refuses"].iter().any(|words| failure.contains(words)),
            "{failure}"
        );
    }
    api.apply(deny("meanwhile"));
    api.fault(Fault::None);
    daemon.agrees(&api).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_no_list_and_no_event() {
    // The first says that it is a gigabyte long; the others are as long as they say, and no event.
    for frame in ["<html>", "\0\0\0\u{0}", "\0\0\0\u{3}abc", "\0\0\0\u{8}\u{12}\u{6}\u{a}\u{4}k8s\0"] {
        for in_list in [Fault::Garbage, Fault::GarbageInList] {
            let mut api = writing_protobuf().await;
            api.fault(in_list(frame.to_owned()));
            let daemon = Daemon::start(&api).await;
            daemon.fails("pods", "garbage").await;
            assert_eq!(daemon.count(), 0, "{frame:?}");
            api.fault(Fault::None);
            let effective = daemon.agrees(&api).await;
            api.fault(Fault::GarbageInWatch(frame.to_owned()));
            api.restart().await;
            daemon.fails("pods", "garbage").await;
            assert_eq!(daemon.last(), Some(effective), "{frame:?}");
            api.apply(pod("new", 30, "other"));
            api.fault(Fault::None);
            daemon.agrees(&api).await;
        }
    }
}
