//! Random clusters: the product's answer is the oracle's.
//!
//! In: seeds (`FLATFELL_SEED`, `FLATFELL_CLUSTERS`). Out: nothing, or the smallest cluster and packet on which the two
//! differ. What always holds: the oracle sees raw objects only, so that parsing is judged too.

use std::env;

use flatfell_rules::effective::{Effective, evaluate};
use flatfell_rules::index::{Change, Index};
use flatfell_rules::judge::{Flow, Judge, Judgement};
use flatfell_rules::object::Protocol;
use flatfell_rules::parse;
use flatfell_rules::sim::cluster::{Cluster, Packet, Path, Probe};
use flatfell_rules::sim::generate::{Random, change, cluster, probes};
use flatfell_rules::sim::oracle::Oracle;
use flatfell_rules::sim::shrink::{show, shrink};
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
        let change = understood(object).unwrap_or_else(|| panic!("not understood: {object:#}"));
        index.apply(change);
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
