//! The API server as a source, against a server that misbehaves in every way that is known of.
#![allow(missing_docs)]

mod fake_api;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use flatfell::batch::Batch;
use flatfell::cluster::{Access, Cluster, Patience};
use flatfell::controller::{Controller, Enforce};
use flatfell::engine::{CounterSnapshot, EngineError, EngineStatus, RuleIds, TransactionStats, Upkeep};
use flatfell::pause::Paused;
use flatfell::state::{EngineView, SourceState, State};
use flatfell_rules::effective::{Effective, Fallback, evaluate};
use flatfell_rules::index::Index;
use flatfell_rules::parse;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use fake_api::{FakeApi, Fault, Streams};

/// Long, because the machine may be busy; what must be fast is measured where it is asked for.
const SOON: Duration = Duration::from_secs(20);

/// Remembers what it shall enforce.
#[derive(Debug, Default)]
struct Memory(Mutex<Vec<Arc<Effective>>>);

impl Enforce for Memory {
    fn enforce(&self, effective: Arc<Effective>, _: Batch) {
        self.0.lock().expect("memory").push(effective);
    }
}

/// A daemon without a kernel.
struct Daemon {
    engine: Arc<Memory>,
    state: watch::Receiver<Arc<SourceState>>,
    task: JoinHandle<()>,
    access: Access,
    _kubeconfig: NamedTempFile,
    _gone: mpsc::UnboundedSender<std::net::IpAddr>,
}

fn patience() -> Patience {
    Patience {
        silence: Duration::from_secs(2),
        answer: Duration::from_secs(2),
        refused_pause: Duration::from_millis(300),
        stale: Duration::from_secs(3),
        ..Patience::default()
    }
}

impl Daemon {
    async fn start(api: &FakeApi) -> Self {
        Self::start_as(api, "{}").await
    }

    async fn start_as(api: &FakeApi, user: &str) -> Self {
        let mut kubeconfig = NamedTempFile::new().expect("a file");
        kubeconfig.write_all(api.kubeconfig(user).as_bytes()).expect("written");
        let access = Access { kubeconfig: Some(kubeconfig.path().to_owned()), ..Access::default() };
        let cluster = Cluster::follow(&access, "n", patience()).await.expect("a kubeconfig");
        let engine = Arc::new(Memory::default());
        let (sender, state) = watch::channel(Arc::default());
        let (gone, mut interfaces) = mpsc::unbounded_channel();
        let mut controller = Controller::new(cluster, Index::new("n"), Arc::clone(&engine), sender);
        let task = tokio::spawn(async move { controller.run(&mut interfaces).await });
        Self { engine, state, task, access, _kubeconfig: kubeconfig, _gone: gone }
    }

    fn count(&self) -> usize {
        self.engine.0.lock().expect("memory").len()
    }

    fn last(&self) -> Option<Arc<Effective>> {
        self.engine.0.lock().expect("memory").last().cloned()
    }

    /// Waits until it enforces what the server has.
    async fn agrees(&self, api: &FakeApi) -> Arc<Effective> {
        let expected = expected(api);
        let agreed = async {
            while self.last().as_deref() != Some(&expected) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        if timeout(SOON, agreed).await.is_err() {
            panic!("{:#?}\nis not\n{expected:#?}\n{:#?}", self.last(), self.state.borrow());
        }
        self.last().expect("enforced")
    }

    async fn state(&self, wanted: impl FnMut(&Arc<SourceState>) -> bool) -> Arc<SourceState> {
        let mut state = self.state.clone();
        let found = timeout(SOON, state.wait_for(wanted)).await;
        let found = found.unwrap_or_else(|_| panic!("{:#?}", self.state.borrow())).expect("a daemon");
        Arc::clone(&found)
    }

    /// Waits until a watch fails with this word.
    async fn fails(&self, resource: &str, word: &str) -> String {
        let failure = |state: &Arc<SourceState>| {
            let watch = state.watches.iter().find(|watch| watch.resource.name() == resource)?;
            let failure = &watch.broken.as_ref()?.failure;
            (failure.word() == word).then(|| failure.to_string())
        };
        let state = self.state(|state| failure(state).is_some()).await;
        failure(&state).expect("just seen")
    }

    async fn healthy(&self) {
        self.state(|state| state.watches.len() == 4 && state.watches.iter().all(|watch| watch.is_healthy())).await;
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the objects of the server mean to a daemon that sees them for the first time.
fn expected(api: &FakeApi) -> Effective {
    api.edit(|world| {
        let mut index = Index::new("n");
        index.replace(
            world.of_kind("Namespace").filter_map(|object| parse::namespace(object).ok()).map(|parsed| parsed.value),
            world.of_kind("NetworkPolicy").filter_map(|object| parse::policy(object).ok()).map(|parsed| parsed.value),
            world.of_kind("Pod").filter_map(|object| parse::pod(object).ok()).map(|parsed| parsed.value),
        );
        evaluate(&index)
    })
}

fn pod(name: &str, address: u8, node: &str) -> Value {
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {
            "name": name, "namespace": "a", "labels": {"app": name, "tier": "t"},
            "creationTimestamp": "2026-01-02T03:04:05Z", "managedFields": [{"manager": "kubelet"}],
        },
        "spec": {"nodeName": node, "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 80}]}]},
        "status": {"phase": "Running", "podIP": format!("10.0.0.{address}"), "podIPs": [{"ip": format!("10.0.0.{address}")}]},
    })
}

fn namespace(name: &str) -> Value {
    json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name, "labels": {"env": name}}})
}

fn deny(name: &str) -> Value {
    json!({
        "kind": "NetworkPolicy", "apiVersion": "networking.k8s.io/v1", "metadata": {"name": name, "namespace": "a"},
        "spec": {"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"tier": "t"}}}]}]},
    })
}

fn node(name: &str) -> Value {
    json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": name}, "spec": {}})
}

/// A server with some objects; the node of the daemon is n.
async fn server() -> FakeApi {
    let api = FakeApi::start().await;
    for object in [namespace("a"), node("n"), node("other"), deny("deny")] {
        api.apply(object);
    }
    for address in 1..=10 {
        api.apply(pod(&format!("p{address}"), address, if address <= 5 { "n" } else { "other" }));
    }
    api
}

fn isolated(effective: &Effective) -> BTreeMap<String, bool> {
    effective.pods.iter().map(|pod| (pod.name.name.clone(), pod.ingress.default == Fallback::Deny)).collect()
}

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
        let peers = format!("{:?}", last.pods);
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

/// An engine that has done what it shall.
struct Ready;

impl EngineView for Ready {
    fn status(&self) -> Arc<EngineStatus> {
        Arc::new(EngineStatus {
            not_ready: Vec::new(),
            warnings: Vec::new(),
            foreign_engines: BTreeSet::new(),
            generation: 1,
            slot: "flatfell-1a",
            enforced: Some(Arc::default()),
            synced: true,
            transactions: TransactionStats::default(),
            upkeep: Upkeep::default(),
            rule_ids: RuleIds::default(),
        })
    }

    fn counters(&self) -> Result<CounterSnapshot, EngineError> {
        Ok(CounterSnapshot::default())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_start_up_taint_goes_when_policy_is_in_force_and_no_other() {
    let api = server().await;
    let mut own = node("n");
    let other = json!({"key": "other", "effect": "NoExecute"});
    own["spec"]["taints"] = json!([other, {"key": "flatfell.io/not-ready", "effect": "NoSchedule"}]);
    api.apply(own);
    api.fault(Fault::Status(403, "networkpolicies".to_owned()));
    let daemon = Daemon::start(&api).await;
    let state = State {
        node: "n".into(),
        source: daemon.state.clone(),
        paused: watch::channel(Paused::default()).1,
        engine: Arc::new(Ready),
        metrics: Arc::default(),
        unprotected: Arc::default(),
    };
    let key = Some("flatfell.io/not-ready".to_owned());
    let task = tokio::spawn(flatfell::cluster::arrive(state.clone(), false, daemon.access.clone(), key));
    sleep(Duration::from_millis(500)).await;
    let patches = || api.requests().iter().filter(|request| request.starts_with("PATCH")).count();
    assert_eq!(patches(), 0, "not ready");
    api.fault(Fault::None);
    let taints = |state: &Arc<SourceState>| state.own_node.as_ref().map(|node| node.taints.clone());
    let gone = async {
        while taints(&daemon.state.borrow().clone()) != Some(vec!["other".to_owned()]) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    if timeout(SOON, gone).await.is_err() {
        panic!("not ready: {:?}, requests: {:#?}", state.not_ready(), api.requests());
    }
    let node = api.edit(|world| world.objects[&("Node".to_owned(), String::new(), "n".to_owned())].clone());
    assert_eq!(node["spec"]["taints"], json!([other]));
    assert_eq!(patches(), 1);
    assert!(state.unprotected.get().is_some(), "pods of this node ran before");
    task.abort();
}

/// A small generator: the history need not be good, only the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_history_ends_as_if_only_the_end_had_been() {
    for seed in 1..=6_u64 {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mut api = server().await;
        // Pods of this node that leave stay isolated until their interface goes: only others come and go here.
        if seed % 2 == 0 {
            api.edit(|world| {
                world.streams = Streams::RefusedInStatus;
                world.page_max = 2;
            });
        }
        let daemon = Daemon::start(&api).await;
        for _ in 0..60 {
            let name = random.below(8);
            match random.below(12) {
                0..=3 => {
                    let address = u8::try_from(20 + random.below(12)).expect("small");
                    let mut pod = pod(&format!("q{name}"), address, "other");
                    pod["metadata"]["labels"]["tier"] =
                        json!(["t", "u"][usize::try_from(random.below(2)).expect("small")]);
                    if random.below(4) == 0 {
                        pod["status"]["phase"] = json!("Succeeded");
                    }
                    if random.below(3) == 0 {
                        pod["metadata"]["uid"] = json!(format!("again-{}", random.below(1000)));
                    }
                    api.apply(pod);
                }
                4..=5 => api.delete("Pod", "a", &format!("q{name}")),
                6 => api.apply(deny(&format!("d{}", name % 3))),
                7 => api.delete("NetworkPolicy", "a", &format!("d{}", name % 3)),
                8 => api.restart().await,
                9 => {
                    api.kill().await;
                    api.edit(fake_api::World::compact);
                    api.delete("Pod", "a", &format!("q{name}"));
                    api.revive().await;
                }
                10 => api.edit(|world| {
                    // Sent twice.
                    if let Some(event) = world.events.last().cloned() {
                        world.version += 1;
                        world.events.push(fake_api::Event { version: world.version, ..event });
                    }
                }),
                _ => sleep(Duration::from_millis(random.below(60))).await,
            }
        }
        daemon.agrees(&api).await;
    }
}
