//! The watches of all resources as one source.
//!
//! In: messages of the watches. Out: changes in one order, namespaces first, and a [`SourceState`]. What always holds: the
//! state says for each watch whether it works, and for all of them whether everything was listed once.

use std::collections::BTreeMap;
use std::mem;
use std::time::Instant;

use flatfell_rules::index::Change;
use flatfell_rules::object::{Lifetime, ObjectName, Pod};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::access::{Access, AccessError};
use super::arrival::timestamp;
use super::follow::{Follow, Message, Patience};
use super::ledger::{Findings, News};
use super::node::OwnNode;
use super::resource::Resource;
use super::watch_state::WatchState;
use crate::batch::{Batch, CreatedKind};
use crate::controller::Source;
use crate::state::{Complaint, SourceState, log_complaints};

/// Messages that may wait; then the watches wait.
const WAITING: usize = 1024;

/// The API server as a source.
pub struct Cluster {
    server: String,
    node: String,
    messages: mpsc::Receiver<Message>,
    watches: BTreeMap<Resource, WatchState>,
    findings: BTreeMap<Resource, Findings>,
    own_node: Option<OwnNode>,
    /// The creation of the oldest pod of this node in the first complete list.
    first_pod: Option<String>,
    /// Changes that were received and not handed out yet.
    pending: Vec<(Resource, Change)>,
    /// When the oldest of them was read, and what of them was created.
    arrived: Batch,
    /// The UIDs of the pods of this node that had an address.
    addressed: BTreeMap<ObjectName, Box<str>>,
    /// What shall be logged with the next step.
    appeared: Vec<Complaint>,
    solved: Vec<Complaint>,
    was_read: bool,
    _tasks: JoinSet<()>,
}

impl Cluster {
    /// Starts to follow the API server for the node of this name.
    pub async fn follow(access: &Access, node: &str, patience: Patience) -> Result<Self, AccessError> {
        // What cannot heal is found here.
        let (_, server) = access.client().await?;
        let (sender, messages) = mpsc::channel(WAITING);
        let mut tasks = JoinSet::new();
        for resource in Resource::ALL {
            tasks.spawn(Follow::new(resource, node, access.clone(), patience, sender.clone()).run());
        }
        Ok(Self {
            server,
            node: node.to_owned(),
            messages,
            watches: Resource::ALL.into_iter().map(|resource| (resource, WatchState::new(resource))).collect(),
            findings: BTreeMap::new(),
            own_node: None,
            first_pod: None,
            pending: Vec::new(),
            arrived: Batch::default(),
            addressed: BTreeMap::new(),
            appeared: Vec::new(),
            solved: Vec::new(),
            was_read: false,
            _tasks: tasks,
        })
    }

    fn is_read(&self) -> bool {
        self.watches.values().filter(|watch| watch.resource.is_needed()).all(|watch| watch.listed)
    }

    fn take_message(&mut self, message: Message) {
        let resource = message.watch.resource;
        if !message.news.is_empty() {
            let oldest = Some(message.watch.heard.unwrap_or_else(Instant::now));
            let policies = message.created.iter().filter(|_| resource == Resource::Policies);
            let created = policies.map(|created| (CreatedKind::NetworkPolicy, *created)).collect();
            self.arrived.add(Batch { oldest, created, changes: 0 });
        }
        for news in message.news {
            match news {
                News::Change(change) => {
                    self.note_first_pod(&change);
                    self.note_address(&change);
                    self.pending.push((resource, change));
                }
                News::Node(node) => self.own_node = node,
            }
        }
        if let Some(findings) = message.findings {
            let old = self.findings.insert(resource, findings).unwrap_or_default();
            let new = &self.findings[&resource].problems;
            self.appeared.extend(new.iter().filter(|problem| !old.problems.contains(problem)).cloned());
            self.solved.extend(old.problems.into_iter().filter(|problem| !new.contains(problem)));
        }
        self.watches.insert(resource, message.watch);
    }

    fn is_local(&self, pod: &Pod) -> bool {
        !pod.host_network
            && pod.node.as_deref() == Some(self.node.as_str())
            && pod.lifetime == Lifetime::Live
            && !pod.addresses.is_empty()
    }

    /// A pod counts as created when it has its first address: before, there is nothing to enforce.
    fn note_address(&mut self, change: &Change) {
        match change {
            Change::UpsertPod(pod) if self.is_local(pod) => {
                let before = self.addressed.insert(pod.name.clone(), pod.uid.clone());
                if self.was_read && before.as_ref() != Some(&pod.uid) {
                    let created = timestamp(&pod.created).map(|created| (CreatedKind::Pod, created));
                    self.arrived.add(Batch { created: created.into_iter().collect(), ..Batch::default() });
                }
            }
            Change::DeletePod(name) => drop(self.addressed.remove(name)),
            _ => {}
        }
    }

    fn note_first_pod(&mut self, change: &Change) {
        if let Change::UpsertPod(pod) = change
            && !self.was_read
            && self.is_local(pod)
            && self.first_pod.as_ref().is_none_or(|first| *pod.created < **first)
        {
            self.first_pod = Some(pod.created.to_string());
        }
    }
}

impl Source for Cluster {
    async fn changed(&mut self) {
        match self.messages.recv().await {
            Some(message) => self.take_message(message),
            // The watches end with this source, not before.
            None => std::future::pending().await,
        }
    }

    fn take(&mut self) -> Vec<Change> {
        while let Ok(message) = self.messages.try_recv() {
            self.take_message(message);
        }
        log_complaints(&mem::take(&mut self.appeared), &mem::take(&mut self.solved));
        if self.is_read() && !self.was_read {
            self.was_read = true;
            let count = |resource| self.watches[&resource].objects;
            tracing::info!(
                pods = count(Resource::Pods),
                namespaces = count(Resource::Namespaces),
                networkpolicies = count(Resource::Policies),
                "all lists are complete"
            );
        }
        // Whether a policy that is deleted keeps its effect depends on its namespace.
        let mut pending = mem::take(&mut self.pending);
        pending.sort_by_key(|(resource, _)| match resource {
            Resource::Namespaces => 0,
            Resource::Policies => 1,
            Resource::Pods | Resource::Node => 2,
        });
        pending.into_iter().map(|(_, change)| change).collect()
    }

    fn arrived(&mut self) -> Batch {
        mem::take(&mut self.arrived)
    }

    fn state(&self) -> SourceState {
        let findings = || self.findings.values();
        let node_is_missing = self.watches[&Resource::Node].listed && self.own_node.is_none();
        SourceState {
            origin: self.server.clone(),
            read: self.is_read(),
            objects: self.watches.values().filter(|watch| watch.resource.is_needed()).map(|watch| watch.objects).sum(),
            problems: findings().flat_map(|findings| findings.problems.iter().cloned()).collect(),
            unknown: findings().flat_map(|findings| findings.unknown.iter().cloned()).collect(),
            refused: findings().flat_map(|findings| findings.refused.iter().cloned()).collect(),
            watches: self.watches.values().cloned().collect(),
            missing_node: node_is_missing.then(|| self.node.clone()),
            own_node: self.own_node.clone(),
            first_pod: self.first_pod.clone(),
            ..SourceState::default()
        }
    }
}
