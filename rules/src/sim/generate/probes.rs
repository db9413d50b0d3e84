//! Random packets of a cluster.
//!
//! In: random numbers and a cluster. Out: [`Probe`]s. What always holds: one end at least is an address of a pod of the node
//! under test (or of one of its free slots); both ends have one family.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::Value;

use super::Random;
use super::objects::NUMBERS;
use crate::sim::cluster::{Cluster, Half, Packet, Place, Probe, Translated, node_name, pod_v4, pod_v6, slot_of};

/// What stands at an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Local,
    Remote,
    Outside,
    ThisNode,
    OtherNode,
}

/// A random probe.
pub fn probe(random: &mut Random, cluster: &Cluster) -> Probe {
    use End::{Local, OtherNode, Outside, Remote, ThisNode};
    if random.percent(9) {
        return group_or_link_local(random, cluster);
    }
    let ends = *random.weighted(&[
        (32, (Local, Local)),
        (12, (Local, Remote)),
        (16, (Remote, Local)),
        (7, (Local, Outside)),
        (7, (Outside, Local)),
        (10, (OtherNode, Local)),
        (3, (Local, OtherNode)),
        (7, (Local, ThisNode)),
        (4, (ThisNode, Local)),
    ]);
    let (source, mut destination) = (end(random, cluster, ends.0), end(random, cluster, ends.1));
    if ends == (Local, Local) && random.percent(10) {
        destination = source.clone();
    }
    let Some((source, destination)) = one_family(random, source, destination) else { return probe(random, cluster) };
    let packet = *random.weighted(&[(62, Packet::Tcp), (18, Packet::Udp), (10, Packet::Sctp), (10, Packet::Echo)]);
    let port = if packet == Packet::Echo { 0 } else { port(random, cluster, destination.1) };
    let mut probe = Probe::new(source, destination, packet, port);
    if random.percent(8) {
        probe.half = Half::Reply;
    }
    translate(random, cluster, &mut probe, ends);
    probe
}

/// The place of an end, and the addresses it has there.
fn end(random: &mut Random, cluster: &Cluster, end: End) -> (Place, Vec<IpAddr>) {
    let other = *random.weighted(&[(65, 2_u8), (35, 3)]);
    let node = |number: u8| &cluster.nodes[usize::from(number - 1)];
    match end {
        End::Local => (Place::Pods(node_name(1)), slot(random, cluster, 1)),
        End::Remote => (Place::Pods(node_name(other)), slot(random, cluster, other)),
        End::Outside => (Place::Outside, cluster.outside.clone()),
        End::ThisNode => (Place::Node(node_name(1)), node(1).addresses().collect()),
        End::OtherNode => {
            let node = node(other);
            let addresses = if random.percent(50) { &node.tunnel } else { &node.underlay };
            (Place::Node(node.name.clone()), addresses.clone())
        }
    }
}

/// The addresses of a slot of a node: mostly one where a pod is.
fn slot(random: &mut Random, cluster: &Cluster, node: u8) -> Vec<IpAddr> {
    let addresses = |pod: &Value| {
        let many = pod["status"]["podIPs"].as_array().into_iter().flatten().map(|entry| &entry["ip"]);
        many.chain([&pod["status"]["podIP"]]).filter_map(|text| text.as_str()?.parse().ok()).collect::<Vec<IpAddr>>()
    };
    let here = |addresses: &Vec<IpAddr>| addresses.first().and_then(|it| slot_of(*it)).is_some_and(|it| it.0 == node);
    let pods: Vec<Vec<IpAddr>> = cluster.kind("Pod").map(addresses).filter(here).collect();
    // A free slot of the node under test is an address of its pod range that is no known pod's.
    if pods.is_empty() || random.percent(if node == 1 { 4 } else { 2 }) {
        let free = u8::try_from(random.below(8)).unwrap_or_default();
        return vec![pod_v4(node, free), pod_v6(node, free)];
    }
    random.pick(&pods).clone()
}

/// One address for each end, of one family.
fn one_family(
    random: &mut Random,
    (from, sources): (Place, Vec<IpAddr>),
    (to, destinations): (Place, Vec<IpAddr>),
) -> Option<((Place, IpAddr), (Place, IpAddr))> {
    let pairs: Vec<(IpAddr, IpAddr)> = sources
        .iter()
        .flat_map(|source| destinations.iter().map(move |destination| (*source, *destination)))
        .filter(|(source, destination)| source.is_ipv4() == destination.is_ipv4())
        .collect();
    if pairs.is_empty() {
        return None;
    }
    let (source, destination) = *random.pick(&pairs);
    Some(((from, source), (to, destination)))
}

/// A port that policies or the destination speak of, or a neighbour of one.
fn port(random: &mut Random, cluster: &Cluster, destination: IpAddr) -> u16 {
    let text = destination.to_string();
    let mut known: Vec<u64> = Vec::new();
    for policy in cluster.kind("NetworkPolicy") {
        numbers_under(&policy["spec"], &["port", "endPort"], &mut known);
    }
    for pod in cluster.kind("Pod").filter(|pod| pod["status"].to_string().contains(&text)) {
        let count = known.len() + 1;
        let mut own = Vec::new();
        numbers_under(&pod["spec"], &["containerPort"], &mut own);
        known.extend(own.iter().cycle().take(count * own.len().min(1)));
    }
    if known.is_empty() || random.percent(25) {
        return *random.pick(&NUMBERS);
    }
    let near = random.pick(&known).saturating_add(*random.weighted(&[(75, 1), (12, 0), (13, 2)])).saturating_sub(1);
    u16::try_from(near).unwrap_or(u16::MAX).max(1)
}

/// Every number in a field of one of these names, however deep.
fn numbers_under(value: &Value, names: &[&str], found: &mut Vec<u64>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| numbers_under(item, names, found)),
        Value::Object(fields) => {
            for (field, inner) in fields {
                let number = inner.as_u64().filter(|_| names.contains(&field.as_str()));
                found.extend(number);
                numbers_under(inner, names, found);
            }
        }
        _ => {}
    }
}

/// What the packet was before NAT: to a Service, or masqueraded by the node it entered.
fn translate(random: &mut Random, cluster: &Cluster, probe: &mut Probe, ends: (End, End)) {
    let service: IpAddr = if probe.source.is_ipv4() {
        IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10))
    } else {
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x10))
    };
    let direct = Translated { source: probe.source, destination: probe.destination, port: probe.port };
    if ends.0 == End::OtherNode && random.percent(70) {
        let client = cluster.outside.iter().find(|it| it.is_ipv4() == service.is_ipv4());
        probe.translated = client.map(|client| Translated { source: *client, ..direct });
    } else if probe.source == probe.destination || (ends.1 != End::ThisNode && random.percent(12)) {
        let port = if probe.port == 0 { 0 } else { 80 };
        probe.translated = Some(Translated { destination: service, port, ..direct });
    }
}

/// A packet of a pod that no address of a pod can catch: multicast, broadcast, link-local, discovery.
fn group_or_link_local(random: &mut Random, cluster: &Cluster) -> Probe {
    let six = |tail: u16| IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, tail));
    let all_nodes = IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1));
    let bridge = Place::Pods(cluster.node.clone());
    let far = random.percent(30);
    let (source, other) = (slot(random, cluster, 1), slot(random, cluster, if far { 2 } else { 1 }));
    let four = source.iter().copied().find(IpAddr::is_ipv4);
    let from = six(0x10);
    let (source, destination, packet) = match (random.below(10), four) {
        (0, _) => (from, all_nodes, Packet::RouterAdvertisement),
        (1, _) => (from, six(0x11), Packet::Redirect),
        (2, _) => (from, six(0x11), Packet::NeighbourSolicitation),
        (3, _) => (from, IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16)), Packet::MldReport),
        (4, _) => (from, six(0x11), Packet::Tcp),
        (5, _) => (from, all_nodes, Packet::Udp),
        (6, Some(four)) => (four, IpAddr::V4(Ipv4Addr::new(10, 244, 1, 255)), Packet::Udp),
        (7, Some(four)) => (four, IpAddr::V4(Ipv4Addr::BROADCAST), Packet::Udp),
        (8, Some(four)) => (four, IpAddr::V4(Ipv4Addr::new(224, 0, 0, 251)), Packet::Udp),
        _ => match neighbour(random, &source, &other) {
            Some((source, destination, packet)) => {
                let to = if far { Place::Pods(node_name(2)) } else { bridge.clone() };
                return Probe::new((bridge, source), (to, destination), packet, 0);
            }
            None => (from, six(0x11), Packet::Udp),
        },
    };
    let port = if packet.protocol().is_some() { *random.pick(&NUMBERS) } else { 0 };
    let to = if link_local_unicast(destination) && random.percent(30) {
        Place::Node(cluster.node.clone())
    } else {
        bridge.clone()
    };
    Probe::new((bridge, source), (to, destination), packet, port)
}

/// Discovery between the pods' own addresses, which policy could catch; between nodes it is none.
fn neighbour(random: &mut Random, source: &[IpAddr], other: &[IpAddr]) -> Option<(IpAddr, IpAddr, Packet)> {
    let source = source.iter().find(|it| it.is_ipv6())?;
    let destination = other.iter().find(|it| it.is_ipv6())?;
    let packet = *random.weighted(&[(70, Packet::NeighbourSolicitation), (30, Packet::MldReport)]);
    Some((*source, *destination, packet))
}

fn link_local_unicast(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(six) if six.is_unicast_link_local())
}
