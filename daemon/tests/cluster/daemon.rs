//! A daemon without a kernel, the objects it is shown, and what they mean to one that sees them for the first time.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flatfell::batch::Batch;
use flatfell::cluster::{Access, Cluster, Patience};
use flatfell::controller::{Controller, Enforce};
use flatfell::state::SourceState;
use flatfell_rules::effective::{Effective, Fallback, evaluate};
use flatfell_rules::index::Index;
use flatfell_rules::parse;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::fake_api::FakeApi;

/// Long, because the machine may be busy; what must be fast is measured where it is asked for.
pub const SOON: Duration = Duration::from_secs(20);

/// Remembers what it shall enforce.
#[derive(Debug, Default)]
pub struct Memory(Mutex<Vec<Arc<Effective>>>);

impl Enforce for Memory {
    fn enforce(&self, effective: Arc<Effective>, _: Batch) {
        self.0.lock().expect("memory").push(effective);
    }
}

/// A daemon without a kernel.
pub struct Daemon {
    pub engine: Arc<Memory>,
    pub state: watch::Receiver<Arc<SourceState>>,
    task: JoinHandle<()>,
    pub access: Access,
    _kubeconfig: NamedTempFile,
    _gone: mpsc::UnboundedSender<std::net::IpAddr>,
}

pub fn patience() -> Patience {
    Patience {
        silence: Duration::from_secs(2),
        answer: Duration::from_secs(2),
        refused_pause: Duration::from_millis(300),
        stale: Duration::from_secs(3),
        ..Patience::default()
    }
}

impl Daemon {
    pub async fn start(api: &FakeApi) -> Self {
        Self::start_as(api, "{}").await
    }

    pub async fn start_as(api: &FakeApi, user: &str) -> Self {
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

    pub fn count(&self) -> usize {
        self.engine.0.lock().expect("memory").len()
    }

    pub fn last(&self) -> Option<Arc<Effective>> {
        self.engine.0.lock().expect("memory").last().cloned()
    }

    /// Waits until it enforces what the server has.
    pub async fn agrees(&self, api: &FakeApi) -> Arc<Effective> {
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

    pub async fn state(&self, wanted: impl FnMut(&Arc<SourceState>) -> bool) -> Arc<SourceState> {
        let mut state = self.state.clone();
        let found = timeout(SOON, state.wait_for(wanted)).await;
        let found = found.unwrap_or_else(|_| panic!("{:#?}", self.state.borrow())).expect("a daemon");
        Arc::clone(&found)
    }

    /// Waits until a watch fails with this word.
    pub async fn fails(&self, resource: &str, word: &str) -> String {
        let failure = |state: &Arc<SourceState>| {
            let watch = state.watches.iter().find(|watch| watch.resource.name() == resource)?;
            let failure = &watch.broken.as_ref()?.failure;
            (failure.word() == word).then(|| failure.to_string())
        };
        let state = self.state(|state| failure(state).is_some()).await;
        failure(&state).expect("just seen")
    }

    pub async fn healthy(&self) {
        self.state(|state| state.watches.len() == 4 && state.watches.iter().all(|watch| watch.is_healthy())).await;
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the objects of the server mean to a daemon that sees them for the first time.
pub fn expected(api: &FakeApi) -> Effective {
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

pub fn pod(name: &str, address: u8, node: &str) -> Value {
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

pub fn namespace(name: &str) -> Value {
    json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name, "labels": {"env": name}}})
}

pub fn deny(name: &str) -> Value {
    json!({
        "kind": "NetworkPolicy", "apiVersion": "networking.k8s.io/v1", "metadata": {"name": name, "namespace": "a"},
        "spec": {"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"tier": "t"}}}]}]},
    })
}

pub fn node(name: &str) -> Value {
    json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": name}, "spec": {}})
}

/// A server with some objects; the node of the daemon is n.
pub async fn server() -> FakeApi {
    let api = FakeApi::start().await;
    for object in [namespace("a"), node("n"), node("other"), deny("deny")] {
        api.apply(object);
    }
    for address in 1..=10 {
        api.apply(pod(&format!("p{address}"), address, if address <= 5 { "n" } else { "other" }));
    }
    api
}

pub fn isolated(effective: &Effective) -> BTreeMap<String, bool> {
    effective.pods().values().map(|pod| (pod.name.name.to_string(), pod.ingress.default == Fallback::Deny)).collect()
}
