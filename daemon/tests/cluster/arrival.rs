//! What happens once, when policy is first in force.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use flatfell::engine::{CounterSnapshot, EngineError, EngineStatus, RuleIds, TransactionStats, Upkeep};
use flatfell::pause::Paused;
use flatfell::state::{EngineView, SourceState, State};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::daemon::{Daemon, SOON, node, server};
use super::fake_api::Fault;

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
            locked: true,
            synced: true,
            swept: true,
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
        flows: Arc::default(),
        cni: Arc::default(),
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
