//! A real cluster in the lab: the API server on etcd, flanneld, the CNI plugins, kube-proxy.
//!
//! In: a [`ClusterConfig`], then pods, Services and policies. Out: a lab whose nodes real parts have wired, every object in
//! the API server. What always holds: addresses follow the lab's plan, so probes and traffic work as in any lab; the API
//! server runs at [`Place::Outside`]; all processes and namespaces go with the cluster.
//!
//! ```no_run
//! use flatfell_integration::cluster::{Cluster, ClusterConfig};
//! let mut cluster = Cluster::new(ClusterConfig::default())?;
//! let web = cluster.add_pod("default", "web", serde_json::json!({"app": "web"}), 1, 0)?;
//! # Ok::<(), flatfell_integration::cluster::ClusterError>(())
//! ```

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use flatfell::status::PodReport;
use serde_json::Value;
use tempfile::TempDir;
use thiserror::Error;

pub mod api;
pub mod credentials;
pub mod network;
pub mod objects;
pub mod parts;
pub mod proxy;
pub mod server;

pub use api::Api;
pub use network::{Backend, Flannel, HostPort, Runtime};
pub use parts::Process;
pub use proxy::ProxyMode;
pub use server::{ApiServer, Etcd};

use crate::lab::{Lab, LabConfig, LabError};
use crate::netns::NetnsError;
use crate::node::{FlatfellNode, NodeError};
use crate::place::Place;
use crate::scene::{self, Expected};
use credentials::{ADMIN, FLATFELL};
use objects::ServiceSpec;

/// What can go wrong with a cluster.
#[derive(Debug, Error)]
pub enum ClusterError {
    /// The lab under it.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// A namespace, or a program in it.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// A daemon.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// A part is not built.
    #[error("{} is missing: run `make fixture` first", .0.display())]
    NoPart(PathBuf),
    /// A file, a process or a connection.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A part or the API server refused.
    #[error("{what}: {message}")]
    Refused {
        /// What was asked for.
        what: String,
        /// The answer.
        message: String,
    },
    /// A part ended, or did not get there in time.
    #[error("{part} is not {state}; the end of its log:\n{log}")]
    Late {
        /// The part.
        part: String,
        /// What was waited for.
        state: &'static str,
        /// What it said.
        log: String,
    },
    /// An object of a kind that has no path here.
    #[error("no path is known for objects of kind {0:?}")]
    Kind(String),
}

pub(crate) fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> ClusterError {
    |source| ClusterError::Io { what: what.into(), source }
}

/// As long as for other tests of semantics: a probe that is late would count as dropped.
const GRACE: Duration = Duration::from_millis(150);
/// How long routes and Services may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);

/// The families of the pod network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Families {
    /// Both.
    #[default]
    Dual,
    /// No IPv4.
    V6,
}

impl Families {
    /// Whether pods have IPv4 addresses.
    pub fn v4(self) -> bool {
        self == Self::Dual
    }

    /// Whether pods have IPv6 addresses.
    pub fn v6(self) -> bool {
        true
    }

    /// A place's first addresses of these families.
    pub fn of(self, place: Place) -> Vec<IpAddr> {
        self.among(&place.addresses())
    }

    /// The addresses that are of these families.
    pub fn among(self, addresses: &[IpAddr]) -> Vec<IpAddr> {
        addresses.iter().copied().filter(|address| address.is_ipv6() || self.v4()).collect()
    }
}

/// What a cluster shall look like.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// How many nodes, numbered from 1.
    pub nodes: u8,
    /// The families of pods.
    pub families: Families,
    /// Flannel's configuration; none for the lab's own wiring.
    pub flannel: Option<Flannel>,
    /// kube-proxy on every node, in this mode.
    pub proxy: Option<ProxyMode>,
    /// What the API server stands on.
    pub etcd: Etcd,
    /// See [`LabConfig::bridge_nf_call`]; kubeadm asks for it.
    pub bridge_nf_call: bool,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            nodes: 2,
            families: Families::Dual,
            flannel: None,
            proxy: None,
            etcd: Etcd::Current,
            bridge_nf_call: true,
        }
    }
}

/// A running cluster.
pub struct Cluster {
    // Processes before the namespaces they live in, and before the files they use.
    proxies: Vec<Process>,
    flannels: Vec<Process>,
    /// The control plane.
    pub server: ApiServer,
    /// The lab under it.
    pub lab: Lab,
    directory: TempDir,
    config: ClusterConfig,
    turns: u8,
}

impl Cluster {
    /// Builds it, without a pod.
    pub fn new(config: ClusterConfig) -> Result<Self, ClusterError> {
        let wired = config.flannel.is_none();
        let empty = LabConfig { pods: 0, wired, grace: GRACE, ..LabConfig::default() };
        let lab = Lab::new(LabConfig { nodes: config.nodes, bridge_nf_call: config.bridge_nf_call, ..empty })?;
        let server = ApiServer::start(lab.netns(Place::Outside)?, &Place::Outside.addresses(), config.etcd)?;
        let directory = TempDir::new().map_err(failed("a directory for nodes"))?;
        let mut this = Self { proxies: Vec::new(), flannels: Vec::new(), server, lab, directory, config, turns: 0 };
        for node in 1..=this.config.nodes {
            this.api().put(&objects::node(node, this.config.families))?;
        }
        for node in 1..=this.config.nodes {
            this.start_node(node)?;
        }
        Ok(this)
    }

    fn start_node(&mut self, node: u8) -> Result<(), ClusterError> {
        let kubeconfig = self.server.kubeconfig(ADMIN)?;
        let directory = self.node_directory(node);
        std::fs::create_dir(&directory).map_err(failed("a directory for a node"))?;
        let space = self.lab.netns(Place::Node(node))?;
        let families = self.config.families;
        if let Some(flannel) = self.config.flannel {
            self.flannels.push(flannel.start(space, node, families, &kubeconfig, &directory)?);
        }
        if let Some(mode) = self.config.proxy {
            self.proxies.push(mode.start(space, node, families, &kubeconfig, &directory)?);
        }
        Ok(())
    }

    fn node_directory(&self, node: u8) -> PathBuf {
        self.directory.path().join(objects::node_name(node))
    }

    /// The way to its objects.
    pub fn api(&self) -> &Api {
        self.server.api()
    }

    /// The configuration it was built with.
    pub fn config(&self) -> &ClusterConfig {
        &self.config
    }

    /// Wires a pod and writes it, and its namespace, as a kubelet would.
    pub fn add_pod(
        &mut self,
        namespace: &str,
        name: &str,
        labels: Value,
        node: u8,
        slot: u8,
    ) -> Result<Place, ClusterError> {
        self.add_pod_with(namespace, name, labels, Place::pod(node, slot), &[])
    }

    /// The same with ports of its node.
    pub fn add_pod_with(
        &mut self,
        namespace: &str,
        name: &str,
        labels: Value,
        pod: Place,
        ports: &[HostPort],
    ) -> Result<Place, ClusterError> {
        let Place::Pod { node, slot } = pod else { return Err(LabError::NoSuchPlace(pod).into()) };
        if self.config.flannel.is_some() {
            self.lab.add_space(node, slot)?;
            network::attach(&self.lab, pod, &self.node_directory(node), ports)?;
        } else {
            self.lab.add_pod(node, slot)?;
        }
        self.api().put(&objects::namespace(namespace))?;
        self.api().put(&objects::pod(namespace, name, labels, node, &self.config.families.of(pod)))?;
        Ok(pod)
    }

    /// Starts a pod as a kubelet does: its object first, without an address, then the plugins of its node's conflist. The API shows
    /// its addresses after [`Self::show_pod`].
    pub fn start_pod(
        &mut self,
        (namespace, name): (&str, &str),
        labels: Value,
        pod: Place,
        runtime: Runtime<'_>,
    ) -> Result<(), ClusterError> {
        let Place::Pod { node, slot } = pod else { return Err(LabError::NoSuchPlace(pod).into()) };
        self.api().put(&objects::namespace(namespace))?;
        let mut object = objects::pod(namespace, name, labels, node, &[]);
        object["status"] = serde_json::json!({"phase": "Pending"});
        let written = self.api().put(&object)?;
        let uid = written["metadata"]["uid"].as_str().unwrap_or_default();
        let arguments = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_UID={uid}");
        self.lab.add_space(node, slot)?;
        network::run(&self.lab, pod, &self.node_directory(node), runtime, ("ADD", &arguments))
    }

    /// Writes a started pod's addresses.
    pub fn show_pod(&self, (namespace, name): (&str, &str), labels: Value, pod: Place) -> Result<(), ClusterError> {
        let node = pod.node().ok_or(LabError::NoSuchPlace(pod))?;
        let addresses = self.config.families.of(pod);
        self.api().put(&objects::pod(namespace, name, labels, node, &addresses)).map(|_| ())
    }

    /// Ends a started pod: its plugins, its object, its namespace.
    pub fn end_pod(
        &mut self,
        (namespace, name): (&str, &str),
        pod: Place,
        runtime: Runtime<'_>,
    ) -> Result<(), ClusterError> {
        let node = pod.node().ok_or(LabError::NoSuchPlace(pod))?;
        network::run(&self.lab, pod, &self.node_directory(node), runtime, ("DEL", ""))?;
        self.api().delete(&objects::pod(namespace, name, Value::Null, node, &[]))?;
        Ok(self.lab.remove_space(pod)?)
    }

    /// Deletes a pod's object, then its link and namespace.
    pub fn remove_pod(&mut self, namespace: &str, name: &str, pod: Place) -> Result<(), ClusterError> {
        let node = pod.node().ok_or(LabError::NoSuchPlace(pod))?;
        self.api().delete(&objects::pod(namespace, name, Value::Null, node, &[]))?;
        if self.config.flannel.is_none() {
            return Ok(self.lab.remove_pod(pod)?);
        }
        network::detach(&self.lab, pod, &self.node_directory(node))?;
        Ok(self.lab.remove_space(pod)?)
    }

    /// Writes a Service at these ClusterIPs (of the pods' families) and its endpoints.
    pub fn put_service(
        &self,
        spec: ServiceSpec<'_>,
        addresses: &[IpAddr],
        backends: &[Place],
    ) -> Result<(), ClusterError> {
        let addresses = self.config.families.among(addresses);
        self.api().put(&objects::service(spec, &addresses))?;
        for address in addresses {
            self.api().put(&objects::slice(spec, address.is_ipv4(), backends))?;
        }
        Ok(())
    }

    /// Sends all that is of the pods' families at once, on fresh conntrack tables, and panics with each that went another
    /// way than expected.
    #[track_caller]
    pub fn expect(&self, what: &str, expected: &[Vec<Expected>]) {
        scene::expect(&self.lab, what, &[self.of_families(expected)]);
    }

    /// The same as often as it takes: routes and Services come some time after their objects.
    pub fn await_all(&self, what: &'static str, expected: &[Vec<Expected>]) -> Result<(), ClusterError> {
        let expected = self.of_families(expected);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let wrong = scene::complaints(&self.lab, &expected);
            if wrong.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(ClusterError::Late { part: "the lab".to_owned(), state: what, log: wrong.join("\n") });
            }
            thread::sleep(PAUSE);
        }
    }

    fn of_families(&self, expected: &[Vec<Expected>]) -> Vec<Expected> {
        let mut all = expected.concat();
        all.retain(|expected| expected.probe.to.is_ipv6() || self.config.families.v4());
        all
    }

    /// Starts the daemon on a node with the API server as its source and the permissions it is given, and waits until it
    /// is ready.
    pub fn daemon(&self, node: u8, flags: &[&str]) -> Result<FlatfellNode, ClusterError> {
        Ok(FlatfellNode::join(&self.lab, node, &self.server.kubeconfig(FLATFELL)?, flags)?)
    }

    /// Waits until a node's daemon enforces all that was written before to pods and policies.
    pub fn settle(&mut self, node: u8, daemon: &FlatfellNode) -> Result<(), ClusterError> {
        self.turns = self.turns % 250 + 1;
        for object in objects::marks(node, self.turns) {
            self.api().put(&object)?;
        }
        let address = objects::mark_address(node, self.turns).to_string();
        let seen = |pod: &PodReport| pod.addresses.contains(&address) && !pod.ingress.policies.is_empty();
        daemon.wait_for("settled", |report| report.synced && report.swept && report.pods.iter().any(seen))?;
        Ok(())
    }
}
