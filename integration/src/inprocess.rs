//! The engine of a node in the test's own process, fed with objects.
//!
//! In: Kubernetes objects as JSON. Out: the kernel of a lab's node as the daemon would keep it; counters. What always holds:
//! [`InProcess::sync`] returns only when the kernel has what was applied before it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use flatfell::engine::{Engine, EngineConfig, EngineError, EngineStatus};
use flatfell_rules::compile::{CounterMeaning, Guard};
use flatfell_rules::effective::{Effective, evaluate};
use flatfell_rules::index::{Change, Index};
use flatfell_rules::parse;
use serde_json::{Value, json};

use crate::lab::Lab;
use crate::patience::patient;
use crate::place::Place;

/// How long the engine may take to enforce something.
const SOON: Duration = Duration::from_secs(5);

/// What the daemon starts with when no flag is given, but that pods may send as anybody: many tests have them forge.
pub fn defaults() -> EngineConfig {
    EngineConfig::default()
}

/// The engine and what it was told.
pub struct InProcess {
    /// The engine itself.
    pub engine: Engine,
    index: Index,
    gone: Box<dyn FnMut() -> Option<IpAddr> + Send>,
}

impl InProcess {
    /// An engine in the namespace of a node, which knows the namespace `default` and these objects.
    pub fn start(lab: &Lab, node: u8, config: EngineConfig, objects: &[Value]) -> Result<Self> {
        let engine = engine(lab, node, &config)?;
        let mut receiver = engine.interface_gone();
        let gone = Box::new(move || receiver.try_recv().ok());
        let mut started = Self { engine, index: Index::new(format!("node{node}")), gone };
        started.put(&json!({"kind": "Namespace", "metadata": {"name": "default"}}))?;
        objects.iter().try_for_each(|object| started.put(object))?;
        started.sync()?;
        Ok(started)
    }

    /// Adds or replaces an object; enforced by the next [`Self::sync`].
    pub fn put(&mut self, object: &Value) -> Result<()> {
        let change = match object["kind"].as_str() {
            Some("Pod") => Change::UpsertPod(parse::pod(object).map_err(|refusal| anyhow!("{refusal:?}"))?.value),
            Some("Namespace") => {
                Change::UpsertNamespace(parse::namespace(object).map_err(|refusal| anyhow!("{refusal:?}"))?.value)
            }
            Some("NetworkPolicy") => {
                Change::UpsertPolicy(parse::policy(object).map_err(|refusal| anyhow!("{refusal:?}"))?.value)
            }
            other => bail!("no use for kind {other:?}"),
        };
        self.change(change);
        Ok(())
    }

    /// Any change; enforced by the next [`Self::sync`].
    pub fn change(&mut self, change: Change) {
        self.index.apply(change);
    }

    /// Hands on what is known.
    pub fn submit(&mut self) -> Arc<Effective> {
        while let Some(address) = (self.gone)() {
            self.index.apply(Change::InterfaceGone(address));
        }
        let wanted = Arc::new(evaluate(&self.index));
        self.engine.submit(Arc::clone(&wanted));
        wanted
    }

    /// Hands on what is known and waits until the kernel has it.
    pub fn sync(&mut self) -> Result<()> {
        let wanted = self.submit();
        self.until("enforced", |status| {
            status.synced
                && status.swept
                && status.enforced.as_ref().is_some_and(|enforced| Arc::ptr_eq(enforced, &wanted))
        })
    }

    /// Applies and enforces these.
    pub fn enforce(&mut self, objects: &[Value]) -> Result<()> {
        objects.iter().try_for_each(|object| self.put(object))?;
        self.sync()
    }

    /// Waits until the status is as wanted.
    pub fn until(&self, what: &str, wanted: impl Fn(&EngineStatus) -> bool) -> Result<()> {
        let deadline = Instant::now() + patient(SOON);
        loop {
            let status = self.engine.status();
            if wanted(&status) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("not {what}: {:?} {:?} {:?}", status.not_ready, status.warnings, status.transactions);
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Packets by counter.
    pub fn packets(&self) -> Result<BTreeMap<String, u64>> {
        let snapshot = self.engine.counters()?;
        Ok(snapshot.iter().map(|(name, _, value)| (name.to_string(), value.packets)).collect())
    }

    /// Packets that a guard has dropped.
    pub fn guarded(&self, guard: Guard) -> Result<u64> {
        let snapshot = self.engine.counters()?;
        let is_of_guard = |meaning: &CounterMeaning| *meaning == CounterMeaning::Guard(guard);
        let Some((name, _)) = snapshot.meanings.iter().find(|(_, meaning)| is_of_guard(meaning)) else { return Ok(0) };
        let found = snapshot.iter().find(|(_, meaning, _)| is_of_guard(meaning));
        Ok(found.with_context(|| format!("no value of {name}"))?.2.packets)
    }
}

/// Starts it. A process that another test is just starting may still share the lock of an engine that has ended.
fn engine(lab: &Lab, node: u8, config: &EngineConfig) -> Result<Engine> {
    let mut tries = 40;
    loop {
        tries -= 1;
        match lab.netns(Place::Node(node))?.run(|| Engine::start(config.clone()))? {
            Err(EngineError::Lock(_)) if tries > 0 => thread::sleep(Duration::from_millis(5)),
            started => return Ok(started?),
        }
    }
}

/// The pod `default/pN` (N: its slot) with both addresses and the label `app` of the same value.
pub fn pod(place: Place) -> Value {
    pod_with(place, &place.addresses())
}

/// The same with these addresses only.
pub fn pod_with(place: Place, addresses: &[IpAddr]) -> Value {
    let (Place::Pod { node, slot }, addresses) =
        (place, addresses.iter().map(|ip| json!({"ip": ip.to_string()})).collect::<Vec<_>>())
    else {
        return Value::Null;
    };
    let name = if node == 1 { format!("p{slot}") } else { format!("n{node}p{slot}") };
    json!({
        "kind": "Pod",
        "metadata": {"namespace": "default", "name": name, "uid": name, "labels": {"app": name},
                     "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"nodeName": format!("node{node}"), "containers": []},
        "status": {"phase": "Running", "podIPs": addresses},
    })
}

/// A policy of the namespace `default` for the pods of this `app`.
pub fn policy(name: &str, app: &str, rest: Value) -> Value {
    let mut spec = json!({"podSelector": {"matchLabels": {"app": app}}});
    if let (Value::Object(spec), Value::Object(rest)) = (&mut spec, rest) {
        spec.extend(rest);
    }
    json!({"kind": "NetworkPolicy", "metadata": {"namespace": "default", "name": name}, "spec": spec})
}

/// A policy that isolates the pods of this `app` in both directions and allows nothing.
pub fn deny_all(app: &str) -> Value {
    policy(&format!("deny-{app}"), app, json!({"policyTypes": ["Ingress", "Egress"]}))
}
