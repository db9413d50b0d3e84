//! From a rule as it was written to what it matches.
//!
//! In: the rules of one policy and direction. Out: [`PreparedRule`]s that give each pod's [`EffectiveRule`]s. What
//! always holds: the content of a rule is one text for everything that means the same, in whatever order and overlap it
//! was written; an alternative that can match nothing is absent.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::ops::RangeInclusive;
use std::sync::{Arc, Weak};

use super::{EffectiveRule, EndpointKey, PeerMatch, PortMatch, RuleIdentity, RuleMatch};
use crate::cidr;
use crate::object::{ObjectName, Pod, Protocol};
use crate::policy::{Action, Direction, Match, Peer, Port, PortSpec, Rule, Tier};

/// A rule in canonical form.
#[derive(Debug)]
pub(super) struct PreparedRule {
    /// What it says where its names are nobody's.
    common: Arc<EffectiveRule>,
    /// Of ingress rules that name ports: what else it says, by pod.
    named: Option<Named>,
}

/// An ingress rule that names ports.
#[derive(Debug)]
struct Named {
    peers: Vec<PeerMatch>,
    ports: Ports,
    /// What it says for pods that have such ports; once for all that say the same.
    said: Vec<Weak<EffectiveRule>>,
}

/// The destination ports of a rule.
#[derive(Debug)]
enum Ports {
    Any,
    Only(BTreeMap<Protocol, ProtocolPorts>),
}

/// The destination ports of one protocol.
#[derive(Debug, Default)]
struct ProtocolPorts {
    /// All of them; then nothing else is kept.
    all: bool,
    ranges: Vec<RangeInclusive<u16>>,
    names: BTreeSet<String>,
}

/// The rules of one policy and direction, in canonical form. Those that were there before are those of before.
pub(super) fn prepare(
    policy: &ObjectName,
    direction: Direction,
    rules: &[Rule],
    mut before: Vec<PreparedRule>,
) -> Vec<PreparedRule> {
    let mut seen: BTreeMap<(Action, String, String), usize> = BTreeMap::new();
    let mut prepared = Vec::with_capacity(rules.len());
    for (index, rule) in rules.iter().enumerate() {
        let (peers, ports, action) = (peers(&rule.peers), Ports::new(&rule.ports), rule.action);
        let (peers_text, ports_text) = (text_of_peers(&peers), text_of_ports(&ports));
        let count = seen.entry((action, peers_text.clone(), ports_text.clone())).or_default();
        let identity = RuleIdentity {
            policy: policy.clone(),
            direction,
            action,
            peers: peers_text,
            ports: ports_text,
            occurrence: *count,
        };
        *count += 1;
        let rule = PreparedRule::new(Arc::new(identity), index, peers, ports);
        // The identity says what the peers and ports are.
        let same = before.iter().position(|before| before.common == rule.common);
        prepared.push(same.map_or(rule, |place| before.swap_remove(place)));
    }
    prepared
}

impl PreparedRule {
    fn new(identity: Arc<RuleIdentity>, index: usize, peers: Vec<PeerMatch>, ports: Ports) -> Self {
        let mut matches = by_port(&peers, &ports.numeric());
        let has_names = !ports.names().is_empty();
        let is_ingress = identity.direction == Direction::Ingress;
        if has_names && !is_ingress {
            matches.extend(to_endpoints(&peers, &ports));
        }
        let (tier, action) = (Tier::NetworkPolicy, identity.action);
        Self {
            common: Arc::new(EffectiveRule { identity, index, tier, action, matches }),
            named: (has_names && is_ingress).then(|| Named { peers, ports, said: Vec::new() }),
        }
    }

    /// What the rule is for one pod: port names of ingress are the pod's own.
    pub(super) fn for_pod(&mut self, pod: &Pod) -> Arc<EffectiveRule> {
        match &mut self.named {
            Some(named) => named.for_pod(&self.common, pod),
            None => Arc::clone(&self.common),
        }
    }
}

impl Named {
    fn for_pod(&mut self, common: &Arc<EffectiveRule>, pod: &Pod) -> Arc<EffectiveRule> {
        let matches = by_port(&self.peers, &self.ports.of_destination(pod));
        if matches == common.matches {
            return Arc::clone(common);
        }
        self.said.retain(|rule| rule.strong_count() > 0);
        if let Some(said) = self.said.iter().filter_map(Weak::upgrade).find(|rule| rule.matches == matches) {
            return said;
        }
        let rule = Arc::new(EffectiveRule { matches, ..EffectiveRule::clone(common) });
        self.said.push(Arc::downgrade(&rule));
        rule
    }
}

fn by_port(peers: &[PeerMatch], ports: &[PortMatch]) -> Vec<RuleMatch> {
    let of_peer = |peer: &PeerMatch| ports.iter().map(|port| RuleMatch::Peer(peer.clone(), port.clone())).collect();
    peers.iter().flat_map::<Vec<RuleMatch>, _>(of_peer).collect()
}

/// The names of an egress rule, peer by peer.
fn to_endpoints(peers: &[PeerMatch], ports: &Ports) -> Vec<RuleMatch> {
    let names = ports.names();
    let endpoint = |peer: &PeerMatch, (protocol, name): (Protocol, &str)| {
        RuleMatch::Endpoint(Arc::new(EndpointKey { peer: peer.clone(), protocol, port: name.to_owned() }))
    };
    peers.iter().flat_map(|peer| names.iter().map(|name| endpoint(peer, *name)).collect::<Vec<_>>()).collect()
}

/// Pods sorted, without duplicates; then the union of the blocks.
fn peers(peers: &Match<Peer>) -> Vec<PeerMatch> {
    let Match::Only(peers) = peers else { return vec![PeerMatch::Any] };
    let mut pods = BTreeSet::new();
    let mut blocks = Vec::new();
    for peer in peers {
        match peer {
            Peer::Pods(peer) => {
                pods.insert(peer.clone());
            }
            Peer::Block(block) => blocks.extend_from_slice(block),
        }
    }
    let blocks = cidr::merge(&blocks);
    let blocks = (!blocks.is_empty()).then_some(PeerMatch::Blocks(blocks));
    pods.into_iter().map(|peer| PeerMatch::Pods(Arc::new(peer))).chain(blocks).collect()
}

impl Ports {
    fn new(ports: &Match<Port>) -> Self {
        let Match::Only(ports) = ports else { return Self::Any };
        let mut protocols: BTreeMap<Protocol, ProtocolPorts> = BTreeMap::new();
        for port in ports {
            let entry = protocols.entry(port.protocol).or_default();
            match &port.port {
                PortSpec::All => entry.all = true,
                PortSpec::Range(range) => entry.ranges.push(range.clone()),
                PortSpec::Named(name) => {
                    entry.names.insert(name.clone());
                }
            }
        }
        for entry in protocols.values_mut() {
            let ranges = cidr::merge_ports(std::mem::take(&mut entry.ranges));
            if entry.all {
                entry.names.clear();
            } else {
                entry.ranges = ranges;
            }
        }
        Self::Only(protocols)
    }

    /// What the ports are where the pod is the destination: its names are all its numbers of that name.
    fn of_destination(&self, pod: &Pod) -> Vec<PortMatch> {
        self.matches(|protocol, names| {
            names.iter().flat_map(|name| pod.port_numbers(protocol, name)).map(|number| number..=number).collect()
        })
    }

    /// What the ports are without their names.
    fn numeric(&self) -> Vec<PortMatch> {
        self.matches(|_, _| Vec::new())
    }

    fn matches(&self, resolve: impl Fn(Protocol, &BTreeSet<String>) -> Vec<RangeInclusive<u16>>) -> Vec<PortMatch> {
        let Self::Only(protocols) = self else { return vec![PortMatch::Any] };
        let of_protocol = |(protocol, ports): (&Protocol, &ProtocolPorts)| {
            if ports.all {
                return Some(PortMatch::All(*protocol));
            }
            let named = resolve(*protocol, &ports.names);
            let ranges = cidr::merge_ports(ports.ranges.iter().cloned().chain(named));
            (!ranges.is_empty()).then_some(PortMatch::Ranges(*protocol, ranges))
        };
        protocols.iter().filter_map(of_protocol).collect()
    }

    fn names(&self) -> Vec<(Protocol, &str)> {
        match self {
            Self::Any => Vec::new(),
            Self::Only(protocols) => protocols
                .iter()
                .flat_map(|(protocol, ports)| ports.names.iter().map(|name| (*protocol, name.as_str())))
                .collect(),
        }
    }
}

/// The canonical text: `any`, or one peer behind the other.
fn text_of_peers(peers: &[PeerMatch]) -> String {
    let mut text = String::new();
    for (position, peer) in peers.iter().enumerate() {
        text.push_str(if position == 0 { "" } else { "; " });
        push_peer(&mut text, peer);
    }
    text
}

/// The canonical text: `any`, or `tcp 80 443 http; udp all`.
fn text_of_ports(ports: &Ports) -> String {
    let Ports::Only(protocols) = ports else { return "any".to_owned() };
    let mut text = String::new();
    for (position, (protocol, ports)) in protocols.iter().enumerate() {
        text.push_str(if position == 0 { "" } else { "; " });
        push_ports(&mut text, *protocol, ports);
    }
    text
}

fn push_peer(text: &mut String, peer: &PeerMatch) {
    // Writing to a String cannot fail.
    let _ = match peer {
        PeerMatch::Any => write!(text, "any"),
        PeerMatch::Pods(peer) => write!(text, "{peer}"),
        PeerMatch::Blocks(blocks) => {
            let blocks: Vec<String> = blocks.iter().map(ToString::to_string).collect();
            write!(text, "blocks {}", blocks.join(" "))
        }
    };
}

fn push_ports(text: &mut String, protocol: Protocol, ports: &ProtocolPorts) {
    text.push_str(protocol.name());
    if ports.all {
        text.push_str(" all");
    }
    for range in &ports.ranges {
        // Writing to a String cannot fail.
        let _ = match (range.start(), range.end()) {
            (first, last) if first == last => write!(text, " {first}"),
            (first, last) => write!(text, " {first}-{last}"),
        };
    }
    for name in &ports.names {
        text.push(' ');
        text.push_str(name);
    }
}
