//! A lab with a Flatfell on its first node, and a small cluster as manifests: what a test of semantics starts from.
//!
//! In: objects as YAML, expectations. Out: a panic that names each expectation that did not hold. What always holds:
//! what is expected is seen with real packets, in both families unless one is named; policy is settled before.
#![allow(clippy::expect_used)]

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::lab::{Lab, LabConfig};
use crate::node::FlatfellNode;
use crate::packet::Protocol;
use crate::patience::patient;
use crate::place::Place;
use crate::probe::{Outcome, Probe};

/// How long a batch of probes waits for what is missing: longer than a busy machine delays what is on its way.
const GRACE: Duration = Duration::from_millis(120);
/// How long a word on a running connection may take.
const WORD: Duration = Duration::from_millis(150);

/// A namespace's manifest; labels as in a flow mapping, `team: a`.
pub fn namespace(name: &str, labels: &str) -> String {
    format!("---\n{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}, labels: {{{labels}}}}}}}\n")
}

/// The manifest of the pod (`namespace/name`) that stands at a place, with both addresses.
pub fn pod(name: &str, place: Place, labels: &str) -> String {
    pod_with(name, place, labels, "", &place.addresses())
}

/// The same with more in its spec (`hostNetwork: true`), and with other addresses.
pub fn pod_with(name: &str, place: Place, labels: &str, spec: &str, addresses: &[IpAddr]) -> String {
    pod_in_phase(name, place, labels, spec, addresses, "Running")
}

/// The same in another phase of its life.
pub fn pod_in_phase(name: &str, place: Place, labels: &str, spec: &str, addresses: &[IpAddr], phase: &str) -> String {
    let (namespace, name) = split(name);
    let node = place.node().expect("a pod has a node");
    let list: Vec<String> = addresses.iter().map(|address| format!("{{ip: \"{address}\"}}")).collect();
    format!(
        "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {namespace}, uid: {namespace}-{name}, \
         labels: {{{labels}}}}}, spec: {{nodeName: node{node}, {spec}}}, status: {{phase: {phase}, podIPs: [{}]}}}}\n",
        list.join(", ")
    )
}

/// A policy's manifest; its spec as a flow mapping without the braces.
pub fn policy(name: &str, spec: &str) -> String {
    let (namespace, name) = split(name);
    format!(
        "---\n{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}, namespace: \
         {namespace}}}, spec: {{{spec}}}}}\n"
    )
}

fn split(name: &str) -> (&str, &str) {
    name.split_once('/').unwrap_or(("default", name))
}

/// A probe and what shall become of it.
#[derive(Clone, Debug)]
pub struct Expected {
    /// What is sent.
    pub probe: Probe,
    want: Want,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    Answered,
    Arrived,
    Nowhere,
}

fn want(probes: impl IntoIterator<Item = Probe>, want: Want) -> Vec<Expected> {
    probes.into_iter().map(|probe| Expected { probe, want }).collect()
}

/// These probes arrive and are answered.
pub fn yes(probes: impl IntoIterator<Item = Probe>) -> Vec<Expected> {
    want(probes, Want::Answered)
}

/// These probes arrive, whatever becomes of the answer.
pub fn arrives(probes: impl IntoIterator<Item = Probe>) -> Vec<Expected> {
    want(probes, Want::Arrived)
}

/// These probes arrive nowhere.
pub fn no(probes: impl IntoIterator<Item = Probe>) -> Vec<Expected> {
    want(probes, Want::Nowhere)
}

/// A TCP probe in each family.
pub fn tcp(from: Place, to: Place, port: u16) -> Vec<Probe> {
    both(from, to, Protocol::Tcp, port)
}

/// A UDP probe in each family.
pub fn udp(from: Place, to: Place, port: u16) -> Vec<Probe> {
    both(from, to, Protocol::Udp, port)
}

/// An SCTP probe in each family.
pub fn sctp(from: Place, to: Place, port: u16) -> Vec<Probe> {
    both(from, to, Protocol::Sctp, port)
}

/// An echo request in each family.
pub fn ping(from: Place, to: Place) -> Vec<Probe> {
    both(from, to, Protocol::Icmp, 0)
}

/// A probe in each family.
pub fn both(from: Place, to: Place, protocol: Protocol, port: u16) -> Vec<Probe> {
    to.addresses().map(|address| Probe::new(from, address, protocol, port)).to_vec()
}

/// A lab, the daemon on node 1, and what stands at its places.
pub struct Scene {
    /// The daemon; goes first.
    pub node: FlatfellNode,
    /// The lab.
    pub lab: Lab,
}

impl Scene {
    /// Two nodes with this many pods each; `cluster` holds namespaces and pods.
    pub fn new(pods: u8, cluster: &str) -> Self {
        Self::with(pods, cluster, &[])
    }

    /// The same with flags for the daemon.
    pub fn with(pods: u8, cluster: &str, flags: &[&str]) -> Self {
        Self::on(LabConfig { pods, ..LabConfig::default() }, cluster, flags)
    }

    /// The same on a lab of this kind.
    pub fn on(config: LabConfig, cluster: &str, flags: &[&str]) -> Self {
        let lab = Lab::new(LabConfig { grace: GRACE, ..config }).expect("a lab");
        let node = FlatfellNode::start_with(&lab, 1, &[("cluster.yaml", cluster)], flags).expect("a daemon");
        Self { node, lab }
    }

    /// Replaces all policies and waits until they are enforced.
    pub fn policies(&mut self, policies: &[String]) {
        // A file of no bytes would be taken for a half-written one.
        self.node.apply("policies.yaml", &format!("# policies\n{}", policies.concat())).expect("policies");
    }

    /// Replaces namespaces and pods and waits until they are enforced.
    pub fn cluster(&mut self, cluster: &str) {
        self.node.apply("cluster.yaml", cluster).expect("a cluster");
    }

    /// Sends all at once, on fresh conntrack tables, and panics with each that went another way than expected.
    #[track_caller]
    pub fn expect(&self, what: &str, expected: &[Vec<Expected>]) {
        expect(&self.lab, what, expected);
    }

    /// The same beside flows that are there already.
    #[track_caller]
    pub fn expect_along(&self, what: &str, expected: &[Vec<Expected>]) {
        no_complaint(what, &complaints(&self.lab, &expected.concat()));
    }

    /// A TCP connection from a place to a server at another.
    pub fn connect(&self, from: Place, to: Place, to_address: SocketAddr) -> io::Result<Talk> {
        let listener = self.lab.netns(to).expect("a place").run(|| TcpListener::bind(to_address)).expect("inside")?;
        let connect = || TcpStream::connect_timeout(&to_address, patient(WORD));
        let client = self.lab.netns(from).expect("a place").run(connect).expect("inside")?;
        let (server, _) = listener.accept()?;
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(patient(WORD)))?;
            stream.set_nodelay(true)?;
        }
        Ok(Talk { client, server })
    }
}

/// Sends all at once, on fresh conntrack tables of a lab, and panics with each that went another way than expected.
#[track_caller]
pub fn expect(lab: &Lab, what: &str, expected: &[Vec<Expected>]) {
    for node in 1..=lab.config().nodes {
        lab.flush_conntrack(node).expect("conntrack");
    }
    no_complaint(what, &complaints(lab, &expected.concat()));
}

/// Sends all at once and says of each that went another way than expected.
pub fn complaints(lab: &Lab, expected: &[Expected]) -> Vec<String> {
    let probes: Vec<Probe> = expected.iter().map(|expected| expected.probe.clone()).collect();
    let outcomes = lab.probes(&probes).expect("probes");
    expected.iter().zip(&outcomes).filter_map(|(e, o)| complaint(e, o)).collect()
}

#[track_caller]
fn no_complaint(what: &str, wrong: &[String]) {
    assert!(wrong.is_empty(), "{what}:\n{}", wrong.join("\n"));
}

fn complaint(expected: &Expected, outcome: &Outcome) -> Option<String> {
    let (held, said) = match expected.want {
        Want::Answered => (outcome.answered, "shall be answered"),
        Want::Arrived => (outcome.delivered, "shall arrive"),
        Want::Nowhere => (!outcome.delivered, "shall not arrive"),
    };
    let Probe { from, to, protocol, port, .. } = &expected.probe;
    (!held).then(|| format!("  {from} to {to} {protocol:?} {port} {said}: {outcome:?}"))
}

/// A running connection.
#[derive(Debug)]
pub struct Talk {
    client: TcpStream,
    server: TcpStream,
}

impl Talk {
    /// Whether a word of the client reaches the server and one of the server the client.
    pub fn goes_on(&mut self) -> bool {
        one_word(&mut self.client, &mut self.server) && one_word(&mut self.server, &mut self.client)
    }

    /// Whether a word of the server, who speaks first, reaches the client.
    pub fn server_is_heard(&mut self) -> bool {
        one_word(&mut self.server, &mut self.client)
    }
}

fn one_word(from: &mut TcpStream, to: &mut TcpStream) -> bool {
    let mut word = [0; 4];
    from.write_all(b"word").is_ok() && to.read_exact(&mut word).is_ok()
}
