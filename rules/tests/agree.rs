//! Random clusters: the product's answer is the oracle's.
//!
//! In: seeds (`FLATFELL_SEED`, `FLATFELL_CLUSTERS`). Out: nothing, or the smallest cluster and packet on which the two
//! differ. What always holds: the oracle sees raw objects only, so that parsing is judged too.

use std::env;
use std::net::IpAddr;

use flatfell_rules::compile::{Generation, Layout, compile};
use flatfell_rules::effective::{Effective, evaluate};
use flatfell_rules::index::{Change, Index};
use flatfell_rules::judge::{Flow, Judge, Judgement};
use flatfell_rules::object::Protocol;
use flatfell_rules::parse;
use flatfell_rules::ruleset::{CtDirection, Family, Hook, Ruleset};
use flatfell_rules::sim::cluster::{Cluster, Half, Packet, Path, Place, Probe};
use flatfell_rules::sim::generate::{Random, change, cluster, probes};
use flatfell_rules::sim::oracle::Oracle;
use flatfell_rules::sim::shrink::{show, shrink};
use flatfell_rules::sim::tracer;
use serde_json::Value;

/// Packets asked about in each cluster.
const PROBES: usize = 20;

/// Asks somebody whether packets pass on the cluster's node.
type Answer<'a> = dyn Fn(&Cluster, &[Probe]) -> Vec<bool> + 'a;

fn from_environment(name: &str, otherwise: u64) -> u64 {
    env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

/// Compares somebody's answers with the oracle's, on the packets that `asked` leaves.
fn agree(asked: impl Fn(&Probe) -> bool, answer: &Answer<'_>) {
    let seed = from_environment("FLATFELL_SEED", 1);
    for number in 0..from_environment("FLATFELL_CLUSTERS", 2000) {
        let mut random = Random::new(seed + number);
        let cluster = cluster(&mut random);
        let probes: Vec<Probe> = probes(&mut random, &cluster, PROBES).into_iter().filter(&asked).collect();
        compare(seed + number, &cluster, &probes, answer);
        let changed = change(&mut random, &cluster);
        compare(seed + number, &changed, &probes, answer);
    }
}

fn compare(seed: u64, cluster: &Cluster, probes: &[Probe], answer: &Answer<'_>) {
    let oracle = Oracle::new(cluster);
    for (probe, answered) in probes.iter().zip(answer(cluster, probes)) {
        if oracle.allowed(probe) == answered {
            continue;
        }
        let differ = |cluster: &Cluster, probe: &Probe| {
            Oracle::new(cluster).allowed(probe) != answer(cluster, std::slice::from_ref(probe))[0]
        };
        let (cluster, probe) = shrink(cluster, probe, differ);
        let verdict = Oracle::new(&cluster).verdict(&probe);
        panic!("seed {seed}: the oracle says {verdict:?}, the product the opposite\n{}", show(&cluster, &probe));
    }
}

/// One object as the index takes it; `None` where nothing of it can be used.
fn understood(object: &Value) -> Option<Change> {
    match object["kind"].as_str()? {
        "Pod" => parse::pod(object).ok().map(|pod| Change::UpsertPod(pod.value)),
        "Namespace" => parse::namespace(object).ok().map(|namespace| Change::UpsertNamespace(namespace.value)),
        "NetworkPolicy" => parse::policy(object).ok().map(|policy| Change::UpsertPolicy(policy.value)),
        _ => None,
    }
}

/// What holds on the cluster's node, by parse, index and effective.
fn effective(cluster: &Cluster) -> Effective {
    let mut index = Index::new(cluster.node.clone());
    for object in &cluster.objects {
        if let Some(change) = understood(object) {
            index.apply(change);
        }
    }
    evaluate(&index)
}

/// A probe as the judge takes it.
fn flow(probe: &Probe, path: Path) -> Flow {
    let protocol = match (probe.packet, probe.source.is_ipv4()) {
        (Packet::Tcp, _) => Protocol::Tcp.number(),
        (Packet::Udp, _) => Protocol::Udp.number(),
        (Packet::Sctp, _) => Protocol::Sctp.number(),
        (_, true) => 1,
        (_, false) => 58,
    };
    Flow {
        source: probe.source,
        destination: probe.destination,
        protocol,
        port: probe.packet.protocol().map(|_| probe.port),
        from_node: path == Path::Output,
        to_node: path == Path::Input,
    }
}

/// The judge's answers.
fn judged(cluster: &Cluster, probes: &[Probe]) -> Vec<bool> {
    let effective = effective(cluster);
    let judge = Judge::new(&effective, !cluster.own_node_open);
    let passes = |probe: &Probe| match probe.path(&cluster.node) {
        Path::Elsewhere => true,
        path => judge.judge(&flow(probe, path)) == Judgement::Allowed,
    };
    probes.iter().map(passes).collect()
}

/// The judge speaks of connections between addresses; discovery, link-local and group addresses are the ruleset's.
fn between_addresses(probe: &Probe) -> bool {
    let global = |address: std::net::IpAddr| match address {
        std::net::IpAddr::V4(four) => !four.is_multicast() && four.octets()[3] != 255,
        std::net::IpAddr::V6(six) => !six.is_multicast() && !six.is_unicast_link_local(),
    };
    let discovery = probe.packet.protocol().is_none() && probe.packet != Packet::Echo;
    !discovery && global(probe.source) && global(probe.destination)
}

#[test]
fn the_judge_agrees_with_the_oracle() {
    agree(between_addresses, &judged);
}

/// A packet as the tracer takes it: at the probe's hook, with what conntrack knows of it.
fn traced_packet(probe: &Probe, hook: Hook, from_pods: bool, flow: Option<tracer::Flow>) -> tracer::Packet {
    let (icmpv6_type, protocol) = match (probe.packet, probe.source.is_ipv4()) {
        (Packet::RouterAdvertisement, _) => (Some(134), 58),
        (Packet::Redirect, _) => (Some(137), 58),
        (Packet::NeighbourSolicitation, _) => (Some(135), 58),
        (Packet::MldReport, _) => (Some(143), 58),
        (Packet::Echo, false) => (Some(128), 58),
        _ => (None, self::flow(probe, Path::Elsewhere).protocol),
    };
    tracer::Packet {
        family: Family::Inet,
        hook,
        iif: Some(if from_pods { "cni0" } else { "flannel.1" }.to_owned()),
        ether_type: if probe.source.is_ipv4() { 0x0800 } else { 0x86dd },
        addresses: Some((probe.source, probe.destination)),
        protocol,
        dport: probe.packet.protocol().map(|_| probe.port),
        icmpv6_type,
        address_type: address_type(probe.destination),
        flow,
    }
}

/// What the lab's routes say of a destination: RTN_UNICAST, RTN_BROADCAST or RTN_MULTICAST.
fn address_type(destination: IpAddr) -> u32 {
    match destination {
        IpAddr::V4(four) if four.is_broadcast() || four.octets()[3] == 255 => 3,
        address if address.is_multicast() => 5,
        _ => 1,
    }
}

/// The way back of a packet.
fn answer_to(packet: &tracer::Packet, probe: &Probe, hook: Hook, mark: u32) -> tracer::Packet {
    tracer::Packet {
        hook,
        iif: Some(if matches!(probe.to, Place::Pods(_)) { "cni0" } else { "flannel.1" }.to_owned()),
        addresses: packet.addresses.map(|(from, to)| (to, from)),
        dport: packet.dport.map(|_| 40_000),
        address_type: 1,
        flow: Some(tracer::Flow { direction: CtDirection::Reply, related: false, mark }),
        ..packet.clone()
    }
}

/// Whether the rules let a probe (or the answer to it) through.
fn passes(ruleset: &Ruleset, cluster: &Cluster, probe: &Probe) -> bool {
    let (there, back, from_pods) = match probe.path(&cluster.node) {
        Path::Forward { from_pods, .. } => (Hook::Forward, Hook::Forward, from_pods),
        Path::Input => (Hook::Input, Hook::Output, true),
        Path::Output => (Hook::Output, Hook::Input, false),
        Path::Elsewhere => return true,
    };
    // Neighbour discovery and multicast listening are not tracked (net/netfilter/nf_conntrack_proto_icmpv6.c).
    let tracked = probe.packet.protocol().is_some() || probe.packet == Packet::Echo;
    let new = tracer::Flow { direction: CtDirection::Original, related: false, mark: 0x0000_0abc };
    let packet = traced_packet(probe, there, from_pods, tracked.then_some(new));
    let first = tracer::trace(ruleset, &packet);
    if !first.passed || probe.half == Half::Opening {
        return first.passed;
    }
    let answer = answer_to(&packet, probe, back, first.mark.unwrap_or_default());
    tracer::trace(ruleset, &answer).passed
}

/// The answers of the compiled rules.
fn traced(cluster: &Cluster, probes: &[Probe]) -> Vec<bool> {
    let ruleset = compile(&effective(cluster), &layout(cluster)).ruleset;
    probes.iter().map(|probe| passes(&ruleset, cluster, probe)).collect()
}

fn layout(cluster: &Cluster) -> Layout {
    Layout {
        bridges: ["cni0".to_owned()].into(),
        own_node_egress: !cluster.own_node_open,
        generation: Generation::new(7).expect("a generation"),
        ..Layout::default()
    }
}

#[test]
fn the_compiled_rules_agree_with_the_oracle() {
    agree(|_| true, &traced);
}

/// A packet that conntrack does not know is judged as a first one: no rule that needs a flow opens the way.
#[test]
fn untracked_packets_are_judged_like_new_ones() {
    let untracked = |cluster: &Cluster, probes: &[Probe]| {
        let ruleset = compile(&effective(cluster), &layout(cluster)).ruleset;
        let pass = |probe: &Probe| match probe.path(&cluster.node) {
            Path::Forward { from_pods, .. } => {
                tracer::trace(&ruleset, &traced_packet(probe, Hook::Forward, from_pods, None)).passed
            }
            Path::Input => tracer::trace(&ruleset, &traced_packet(probe, Hook::Input, true, None)).passed,
            Path::Output | Path::Elsewhere => true,
        };
        probes.iter().map(pass).collect::<Vec<_>>()
    };
    agree(|_| true, &untracked);
}

/// What an object is known by.
fn identity(object: &Value) -> (Value, Value, Value) {
    let metadata = &object["metadata"];
    (object["kind"].clone(), metadata.get("namespace").cloned().unwrap_or("default".into()), metadata["name"].clone())
}

/// What the index is told when an object leaves the API.
fn gone(object: &Value) -> Option<Change> {
    Some(match understood(object)? {
        Change::UpsertPod(pod) => Change::DeletePod(pod.name),
        Change::UpsertNamespace(namespace) => Change::DeleteNamespace(namespace.name),
        Change::UpsertPolicy(policy) => Change::DeletePolicy(policy.name),
        _ => return None,
    })
}

/// What must still hold of an object that left the API: a pod of this node stays isolated as a terminal one does; a policy
/// keeps its effect while its namespace is going and has pods.
fn afterlife(object: &Value, after: &Cluster) -> Option<Value> {
    let namespace = identity(object).1;
    let going = |it: &Value| it["metadata"]["name"] == namespace && !it["metadata"]["deletionTimestamp"].is_null();
    let stays = match object["kind"].as_str()? {
        "Pod" => object["spec"]["nodeName"] == after.node.as_str(),
        "NetworkPolicy" => {
            after.kind("Namespace").any(going) && after.kind("Pod").any(|pod| identity(pod).1 == namespace)
        }
        _ => false,
    };
    let mut object = object.clone();
    if object["kind"] == "Pod" {
        object["status"]["phase"] = "Failed".into();
    }
    stays.then_some(object)
}

/// Whether a pod left whose address another pod names too: the semantics do not say which of two ended pods it stays with.
fn leaves_a_shared_address(before: &Cluster, after: &Cluster) -> bool {
    let mut left = before.kind("Pod").filter(|pod| !after.objects.iter().any(|it| identity(it) == identity(pod)));
    let named = |status: &Value| {
        let many = status["podIPs"].as_array().into_iter().flatten().map(|entry| &entry["ip"]);
        many.chain([&status["podIP"]]).filter(|address| !address.is_null()).cloned().collect::<Vec<_>>()
    };
    let still: Vec<Value> = after.kind("Pod").flat_map(|pod| named(&pod["status"])).collect();
    let shares = |pod: &Value| named(&pod["status"]).iter().any(|address| still.contains(address));
    left.any(shares)
}

/// The index of one cluster, told what became another, and that other cluster with what must still hold of the first.
fn told(before: &Cluster, after: &Cluster) -> (Index, Cluster) {
    let mut index = Index::new(before.node.clone());
    for object in &before.objects {
        index.apply(understood(object).expect("an object"));
    }
    let mut expected = after.clone();
    let stays = |object: &Value| after.objects.iter().any(|it| identity(it) == identity(object));
    for object in before.objects.iter().filter(|object| !stays(object)) {
        index.apply(gone(object).expect("an object"));
        expected.objects.extend(afterlife(object, after));
    }
    for object in after.objects.iter().filter(|object| !before.objects.contains(object)) {
        index.apply(understood(object).expect("an object"));
    }
    (index, expected)
}

#[test]
fn an_index_that_was_told_of_a_change_agrees() {
    let seed = from_environment("FLATFELL_SEED", 1);
    for number in 0..from_environment("FLATFELL_CLUSTERS", 2000) {
        let mut random = Random::new(seed + number);
        let before = cluster(&mut random);
        let after = change(&mut random, &before);
        if leaves_a_shared_address(&before, &after) {
            continue;
        }
        let (index, expected) = told(&before, &after);
        let effective = evaluate(&index);
        let (oracle, judge) = (Oracle::new(&expected), Judge::new(&effective, true));
        for probe in probes(&mut random, &before, PROBES).iter().filter(|probe| between_addresses(probe)) {
            let path = probe.path(&before.node);
            let passes = path == Path::Elsewhere || judge.judge(&flow(probe, path)) == Judgement::Allowed;
            if oracle.allowed(probe) != passes {
                let verdict = oracle.verdict(probe);
                panic!("seed {}: the oracle says {verdict:?}\n{}", seed + number, show(&expected, probe));
            }
        }
    }
}
