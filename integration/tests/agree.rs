//! Random clusters, real packets: what arrives is what the oracle says.
//!
//! In: seeds (`FLATFELL_SEED`, `FLATFELL_CLUSTERS`). Out: nothing, or the smallest cluster and packet on which the kernel
//! and the oracle differ. What always holds: the engine enforces on node 1 only, so that a packet between nodes is judged
//! once; a packet that should have arrived is sent again before it counts as dropped (a busy machine loses some), one
//! that should not have arrived counts at once.
//!
//! Left to the tracer (`rules/tests/agree.rs`), because the lab cannot send or see them: neighbour solicitations, MLD
//! reports, answers within a pod's connection to itself, and answers from a tunnel's IPv6 address (an anycast one). Packets before address translation are sent as they are
//! after it; Services have tests of their own.
#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::env;
use std::io::Write;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flatfell::engine::{Engine, EngineConfig};
use flatfell_integration::{Lab, LabConfig, Outcome, Place, Probe as Sent, Protocol};
use flatfell_rules::compile::{Layout, compile};
use flatfell_rules::effective::{Effective, evaluate};
use flatfell_rules::index::{Change, Index};
use flatfell_rules::parse;
use flatfell_rules::sim::cluster::packet::{passed, traces};
use flatfell_rules::sim::cluster::{self, Cluster, Half, Packet, Probe, SLOTS, node_name, slot_of};
use flatfell_rules::sim::generate::{self, Random};
use flatfell_rules::sim::oracle::Oracle;
use flatfell_rules::sim::shrink::{show, shrink};

/// Packets sent for each cluster.
const PROBES: usize = 20;
/// How often a packet that should arrive is sent before it counts as dropped.
const TRIES: usize = 3;
/// Longer than any turn of the engine.
const ENFORCED_WITHIN: Duration = Duration::from_secs(10);
/// Each step of a shrink takes real packets.
const SHRINK_WITHIN: Duration = Duration::from_secs(90);

fn from_environment(name: &str, otherwise: u64) -> u64 {
    env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

/// What holds on the cluster's node, by parse, index and effective.
fn effective(cluster: &Cluster) -> Effective {
    let mut index = Index::new(cluster.node.clone());
    for object in &cluster.objects {
        let change = match object["kind"].as_str() {
            Some("Pod") => parse::pod(object).ok().map(|pod| Change::UpsertPod(pod.value)),
            Some("Namespace") => parse::namespace(object).ok().map(|it| Change::UpsertNamespace(it.value)),
            Some("NetworkPolicy") => parse::policy(object).ok().map(|policy| Change::UpsertPolicy(policy.value)),
            _ => None,
        };
        if let Some(change) = change {
            index.apply(change);
        }
    }
    evaluate(&index)
}

/// A lab whose first node enforces.
struct Kernel {
    lab: Lab,
    /// The bridge's own link-local address.
    bridge: IpAddr,
    /// With what it was configured to: own node egress, closing the unknown.
    engine: Option<(Engine, (bool, bool))>,
}

impl Kernel {
    fn new() -> Self {
        let lab = Lab::new(LabConfig { nodes: 3, pods: SLOTS, ..LabConfig::default() }).unwrap();
        let show = ["-o", "-6", "address", "show", "dev", "cni0", "scope", "link"];
        let listing = lab.netns(Place::Node(1)).unwrap().feed("ip", &show, "").unwrap();
        let bridge = listing.split_whitespace().find_map(|word| word.strip_suffix("/64")).unwrap().parse().unwrap();
        Self { lab, bridge, engine: None }
    }

    /// An engine of this configuration; another one's rules stay and are taken over.
    fn engine(&mut self, (own_node_egress, close_unknown): (bool, bool)) -> &Engine {
        let wanted = (own_node_egress, close_unknown);
        if self.engine.as_ref().is_none_or(|(_, runs)| *runs != wanted) {
            self.engine = None;
            let config = EngineConfig {
                own_node_egress,
                close_unknown,
                pod_bridges: vec!["cni0".to_owned()],
                ..EngineConfig::default()
            };
            let engine = self.lab.netns(Place::Node(1)).unwrap().run(|| Engine::start(config)).unwrap().unwrap();
            self.engine = Some((engine, wanted));
        }
        &self.engine.as_ref().unwrap().0
    }

    /// Returns when the cluster's policy is in the kernel and no flow of an earlier one is known.
    fn enforce(&mut self, cluster: &Cluster) {
        let wanted = Arc::new(effective(cluster));
        let engine = self.engine((!cluster.own_node_open, !cluster.unknown_open));
        engine.submit(Arc::clone(&wanted));
        let deadline = Instant::now() + ENFORCED_WITHIN;
        loop {
            let status = engine.status();
            let enforced = status.enforced.as_ref().is_some_and(|enforced| Arc::ptr_eq(enforced, &wanted));
            if enforced && status.synced && status.not_ready.is_empty() {
                break;
            }
            assert!(Instant::now() < deadline, "not enforced: {:?}", status.not_ready);
            std::thread::sleep(Duration::from_micros(200));
        }
        self.lab.flush_conntrack(1).unwrap();
    }

    /// Whether each packet arrives where it goes to (or its answer comes back, where that is asked), with the policy in
    /// force; `None` where the lab cannot send it. What is expected to arrive is sent up to [`TRIES`] times.
    fn answers(&self, cluster: &Cluster, probes: &[Probe], expected: &[bool]) -> Vec<Option<bool>> {
        let sent: Vec<Option<Sent>> = probes.iter().map(|probe| self.sent(cluster, probe)).collect();
        let mut answers: Vec<Option<bool>> = sent.iter().map(|sent| sent.as_ref().map(|_| false)).collect();
        for _ in 0..TRIES {
            let open = |at: &usize| answers[*at] == Some(false);
            let asked: Vec<usize> = (0..probes.len()).filter(open).collect();
            let batch: Vec<Sent> = asked.iter().filter_map(|at| sent[*at].clone()).collect();
            for (at, outcome) in asked.iter().zip(self.lab.probes(&batch).unwrap()) {
                answers[*at] = Some(arrived(cluster, &probes[*at], &sent[*at], &outcome));
            }
            if asked.iter().all(|at| answers[*at] == Some(true) || !expected[*at]) {
                break;
            }
        }
        answers
    }

    /// The packet of the lab for a probe.
    fn sent(&self, cluster: &Cluster, probe: &Probe) -> Option<Sent> {
        let protocol = match probe.packet {
            Packet::Tcp => Protocol::Tcp,
            Packet::Udp => Protocol::Udp,
            Packet::Sctp => Protocol::Sctp,
            Packet::Echo => Protocol::Icmp,
            Packet::RouterAdvertisement => Protocol::RouterAdvertisement,
            Packet::Redirect => Protocol::Redirect,
            Packet::NeighbourSolicitation | Packet::MldReport => return None,
        };
        let sent = Sent::new(sender(cluster, probe), self.destination(probe), protocol, probe.port);
        let sent = sent.from_address(probe.source);
        // The sender's own kernel would deliver, refuse or readdress these.
        let framed = link_local(probe.destination) || group(probe.destination) || probe.source == probe.destination;
        match (framed, probe.half) {
            (true, Half::Opening) => Some(sent.in_frame(&[])),
            (true, Half::Reply) => None,
            (false, Half::Reply) if anycast(probe.destination) => None,
            (false, _) => Some(sent),
        }
    }

    /// Link-local addresses are those that the lab's kernels gave themselves.
    fn destination(&self, probe: &Probe) -> IpAddr {
        match &probe.to {
            cluster::Place::Pods(_) if link_local(probe.destination) => Place::pod(1, 1).link_local().into(),
            cluster::Place::Node(_) if link_local(probe.destination) => self.bridge,
            _ => probe.destination,
        }
    }
}

fn number(cluster: &Cluster, node: &str) -> u8 {
    let at = cluster.nodes.iter().position(|it| it.name == node).expect("a node of the cluster");
    u8::try_from(at + 1).unwrap()
}

/// Who sends a probe: pods that share an address are one in the lab.
fn sender(cluster: &Cluster, probe: &Probe) -> Place {
    match &probe.from {
        cluster::Place::Pods(_) => {
            slot_of(probe.source).map_or(Place::pod(1, 0), |(node, slot)| Place::pod(node, slot))
        }
        cluster::Place::Node(node) => Place::Node(number(cluster, node)),
        cluster::Place::Outside => Place::Outside,
    }
}

/// Whether what was asked about came to where it goes.
fn arrived(cluster: &Cluster, probe: &Probe, sent: &Option<Sent>, outcome: &Outcome) -> bool {
    if probe.half == Half::Reply {
        return outcome.answered;
    }
    let from = sent.as_ref().map(|sent| sent.from);
    let there = |place: Place| match &probe.to {
        cluster::Place::Pods(_) if group(probe.destination) => {
            matches!(place, Place::Pod { node: 1, .. }) && Some(place) != from
        }
        cluster::Place::Pods(_) if link_local(probe.destination) => place == Place::pod(1, 1),
        cluster::Place::Pods(_) => {
            slot_of(probe.destination).is_some_and(|(node, slot)| place == Place::pod(node, slot))
        }
        cluster::Place::Node(node) => place == Place::Node(number(cluster, node)),
        cluster::Place::Outside => place == Place::Outside,
    };
    outcome.arrivals.iter().any(|arrival| there(arrival.place))
}

fn link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(six) if six.is_unicast_link_local())
}

/// The subnet-router address of a range (RFC 4291, section 2.6.1): TCP and echo do not answer from it.
fn anycast(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(six) if six.octets()[8..] == [0; 8])
}

/// Multicast and broadcast addresses of the lab.
fn group(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(four) => four.is_multicast() || four.is_broadcast() || four.octets()[3] == 255,
        IpAddr::V6(six) => six.is_multicast(),
    }
}

/// What was sent, and what became of it.
#[derive(Default)]
struct Tally {
    allowed: usize,
    denied: usize,
    left_to_the_tracer: usize,
}

/// Sends a cluster's probes; the first whose answer is not the oracle's.
fn difference<'a>(kernel: &mut Kernel, cluster: &Cluster, probes: &'a [Probe], tally: &mut Tally) -> Option<&'a Probe> {
    let oracle = Oracle::new(cluster);
    let expected: Vec<bool> = probes.iter().map(|probe| oracle.allowed(probe)).collect();
    kernel.enforce(cluster);
    let answers = kernel.answers(cluster, probes, &expected);
    for (answer, expected) in answers.iter().zip(&expected) {
        match (answer, expected) {
            (None, _) => tally.left_to_the_tracer += 1,
            (_, true) => tally.allowed += 1,
            (_, false) => tally.denied += 1,
        }
    }
    let differs = |at: &usize| answers[*at].is_some_and(|answer| answer != expected[*at]);
    (0..probes.len()).find(differs).map(|at| &probes[at])
}

/// Everything a person needs to see why.
fn explain(kernel: &RefCell<Kernel>, seed: u64, cluster: &Cluster, probe: &Probe) -> String {
    let deadline = Instant::now() + SHRINK_WITHIN;
    let differs = |cluster: &Cluster, probe: &Probe| {
        let probes = std::slice::from_ref(probe);
        Instant::now() < deadline
            && difference(&mut kernel.borrow_mut(), cluster, probes, &mut Tally::default()).is_some()
    };
    let (cluster, probe) = shrink(cluster, probe, differs);
    let kernel = &mut kernel.borrow_mut();
    kernel.enforce(&cluster);
    let verdict = Oracle::new(&cluster).verdict(&probe);
    let layout =
        Layout { bridges: ["cni0".to_owned()].into(), own_node_egress: !cluster.own_node_open, ..Layout::default() };
    let traces = traces(&compile(&effective(&cluster), &layout).ruleset, &cluster, &probe);
    let listing = kernel.lab.netns(Place::Node(1)).unwrap().feed("nft", &["list", "ruleset"], "").unwrap();
    format!(
        "seed {seed}: the oracle says {verdict:?}, the kernel the opposite, the tracer {}\n{}\n{traces:#?}\n{listing}",
        if passed(&traces) { "that it passes" } else { "that it is dropped" },
        show(&cluster, &probe),
    )
}

#[test]
fn the_lab_and_the_clusters_have_one_plan_of_addresses() {
    let cluster = Cluster::empty();
    for (number, node) in (1..).zip(&cluster.nodes) {
        assert_eq!(node.underlay, Place::Node(number).addresses());
        let bridge = |like: &IpAddr| flatfell_integration::place::bridge_address_like(number, *like);
        let tunnel = |like: &IpAddr| flatfell_integration::place::tunnel_address_like(number, *like);
        assert_eq!(node.gateway, node.underlay.iter().map(bridge).collect::<Vec<_>>());
        assert_eq!(node.tunnel, node.underlay.iter().map(tunnel).collect::<Vec<_>>());
        assert_eq!(node.name, node_name(number));
        for slot in 0..SLOTS {
            let plan = [cluster::pod_v4(number, slot), cluster::pod_v6(number, slot)];
            assert_eq!(plan, Place::pod(number, slot).addresses());
        }
    }
}

#[test]
fn the_kernel_agrees_with_the_oracle() {
    let (seed, clusters) = (from_environment("FLATFELL_SEED", 1), from_environment("FLATFELL_CLUSTERS", 300));
    let start = Instant::now();
    let (kernel, mut tally) = (RefCell::new(Kernel::new()), Tally::default());
    for seed in seed..seed + clusters {
        let mut random = Random::new(seed);
        let cluster = generate::cluster(&mut random);
        let probes = generate::probes(&mut random, &cluster, PROBES);
        let found = difference(&mut kernel.borrow_mut(), &cluster, &probes, &mut tally);
        if let Some(probe) = found {
            panic!("{}", explain(&kernel, seed, &cluster, probe));
        }
    }
    let Tally { allowed, denied, left_to_the_tracer } = tally;
    // Written past the test harness, which hides what passing tests print.
    writeln!(
        std::io::stderr(),
        "kernel = oracle: seeds {seed} to {}, {allowed} packets allowed, {denied} denied, {left_to_the_tracer} left to \
         the tracer, {:.1?}",
        seed + clusters - 1,
        start.elapsed()
    )
    .unwrap();
    assert!(allowed.min(denied) * 10 >= (allowed + denied) * 3 || clusters < 20, "30 % of each verdict");
}
