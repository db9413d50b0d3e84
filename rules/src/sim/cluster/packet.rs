//! A probe as the tracer takes it.
//!
//! In: compiled rules, a cluster and a probe. Out: what the rules do to the probe's packets. What always holds: the packet
//! looks as the lab's kernel shows it at the hook; what conntrack does not track has no flow.

use std::net::IpAddr;

use super::{Cluster, Half, Packet, Path, Place, Probe};
use crate::ruleset::{CtDirection, Family, Hook, Ruleset};
use crate::sim::tracer::{self, Flow, Frame, Trace, trace};

/// A mark without a generation, whose other bits are of another life: ids of nobody here.
const FOREIGN_MARK: u32 = 0x01ab_cabc;

/// What the rules do to the packet of a new connection and, where the probe asks about it, to its answer. Nothing where
/// the node under test does not see it.
pub fn traces(ruleset: &Ruleset, cluster: &Cluster, probe: &Probe) -> Vec<Trace> {
    let Some(hooks) = hooks(probe, &cluster.node) else { return Vec::new() };
    let new = Flow { direction: CtDirection::Original, related: false, mark: FOREIGN_MARK };
    let packet = packet(probe, hooks, tracked(probe.packet).then_some(new));
    let first = trace(ruleset, &packet);
    if !first.passed || probe.half == Half::Opening {
        return vec![first];
    }
    let mark = first.mark.unwrap_or_default();
    vec![first, trace(ruleset, &answer_to(&packet, probe, hooks.back, mark))]
}

/// The same for a packet that conntrack does not know.
pub fn untracked(ruleset: &Ruleset, cluster: &Cluster, probe: &Probe) -> Vec<Trace> {
    hooks(probe, &cluster.node).map(|hooks| trace(ruleset, &packet(probe, hooks, None))).into_iter().collect()
}

/// Whether all of them pass.
pub fn passed(traces: &[Trace]) -> bool {
    traces.iter().all(|trace| trace.passed)
}

/// Where the first packet and the answer to it meet the rules.
#[derive(Clone, Copy)]
struct Hooks {
    there: Hook,
    back: Hook,
    from_pods: bool,
    /// Between networks: the node counts a hop before the forward hook.
    routed: bool,
}

fn hooks(probe: &Probe, node: &str) -> Option<Hooks> {
    let (there, back, from_pods, routed) = match probe.path(node) {
        Path::Forward { from_pods, to_pods } => (Hook::Forward, Hook::Forward, from_pods, !(from_pods && to_pods)),
        Path::Input => (Hook::Input, Hook::Output, true, false),
        Path::Output => (Hook::Output, Hook::Input, false, false),
        Path::Elsewhere => return None,
    };
    Some(Hooks { there, back, from_pods, routed })
}

/// Neighbour discovery and multicast listening are not (net/netfilter/nf_conntrack_proto_icmpv6.c).
fn tracked(packet: Packet) -> bool {
    packet.protocol().is_some() || packet == Packet::Echo
}

fn packet(probe: &Probe, hooks: Hooks, flow: Option<Flow>) -> tracer::Packet {
    let four = probe.source.is_ipv4();
    let (protocol, icmpv6_type) = match probe.packet {
        Packet::Tcp => (6, None),
        Packet::Udp => (17, None),
        Packet::Sctp => (132, None),
        Packet::Echo if four => (1, None),
        Packet::Echo => (58, Some(128)),
        Packet::RouterAdvertisement => (58, Some(134)),
        Packet::NeighbourSolicitation => (58, Some(135)),
        Packet::Redirect => (58, Some(137)),
        Packet::MldReport => (58, Some(143)),
    };
    tracer::Packet {
        family: Family::Inet,
        hook: hooks.there,
        iif: interface(hooks.there, hooks.from_pods),
        ether_type: if four { 0x0800 } else { 0x86dd },
        addresses: Some((probe.source, probe.destination)),
        protocol,
        dport: probe.packet.protocol().map(|_| probe.port),
        // The lab sends with 255, and MLD as RFC 2710 asks.
        hop_limit: if probe.packet == Packet::MldReport { 1 } else { 255 - u8::from(hooks.routed) },
        icmpv6_type,
        address_type: address_type(probe.destination),
        flow,
        frame: Frame::default(),
    }
}

/// The way back of a packet.
fn answer_to(packet: &tracer::Packet, probe: &Probe, hook: Hook, mark: u32) -> tracer::Packet {
    tracer::Packet {
        hook,
        iif: interface(hook, matches!(probe.to, Place::Pods(_))),
        addresses: packet.addresses.map(|(from, to)| (to, from)),
        dport: packet.dport.map(|_| 40_000),
        address_type: 1,
        flow: Some(Flow { direction: CtDirection::Reply, related: false, mark }),
        ..packet.clone()
    }
}

/// The interface a packet came in by; what the node itself sends came in by none.
fn interface(hook: Hook, from_pods: bool) -> Option<String> {
    (hook != Hook::Output).then(|| if from_pods { "cni0" } else { "flannel.1" }.to_owned())
}

/// What the lab's routes say of a destination: RTN_UNICAST, RTN_BROADCAST or RTN_MULTICAST.
fn address_type(destination: IpAddr) -> u32 {
    match destination {
        IpAddr::V4(four) if four.is_broadcast() || four.octets()[3] == 255 => 3,
        address if address.is_multicast() => 5,
        _ => 1,
    }
}
