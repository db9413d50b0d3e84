//! Which pod is behind which port of a pod bridge.
//!
//! In: what the CNI plugin told, what the kernel says of the other ends of veth pairs, the local pods and their addresses. Out:
//! [`PodPorts`]. What always holds: a pod that is bound to a port stays there until the port or the pod is gone, whatever it makes of its
//! own interface; the plugin's word comes before the kernel's; nobody is bound with a link-layer address or an address that is
//! another's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use flatfell_rules::compile::{Mac, PodPort, PodPorts};
use flatfell_rules::effective::Effective;
use flatfell_rules::object::ObjectName;
use flatfell_rules::ranges::PodRanges;
use ipnetwork::IpNetwork;

use crate::links::{LinkError, Links, PeerFacts, Peers, PodBridge, Veth};

/// How pods are held to sending as themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AntiSpoofing {
    /// Whether they are.
    pub is_on: bool,
    /// Namespaces whose pods are not.
    pub exempt: BTreeSet<String>,
}

/// What the CNI plugin told of a pod's interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToldPort {
    /// The node's side of the link.
    pub port: String,
    /// The pod.
    pub pod: ObjectName,
    /// The pod's side's link-layer address, where the plugin knows it.
    pub mac: Option<Mac>,
    /// The pod's addresses.
    pub addresses: BTreeSet<IpAddr>,
}

/// What a port's other end is asked for.
trait Ends {
    fn facts(&mut self, veth: &Veth) -> Result<Option<PeerFacts>, LinkError>;
}

impl Ends for Option<Peers> {
    fn facts(&mut self, veth: &Veth) -> Result<Option<PeerFacts>, LinkError> {
        let peers = match self {
            Some(peers) => peers,
            None => self.insert(Peers::open()?),
        };
        let facts = peers.ask(veth.peer);
        if facts.is_err() {
            // Answers to what failed may still be on their way.
            *self = None;
        }
        facts
    }
}

/// What is known of the node.
pub(super) struct Node<'a> {
    pub(super) wanted: &'a Effective,
    /// Where a port of these bridges may have its addresses.
    pub(super) prefixes: Vec<IpNetwork>,
    /// The node's own addresses, and broadcast ones.
    pub(super) others: BTreeSet<IpAddr>,
    pub(super) bridges: BTreeSet<Mac>,
    pub(super) veths: Vec<Veth>,
}

impl<'a> Node<'a> {
    pub(super) fn new(wanted: &'a Effective, ranges: &PodRanges, bridges: &[PodBridge], links: &Links) -> Self {
        // Beside pods there may be containers that the API does not know, in the bridge's range or a part of it.
        let prefixes = ranges.prefixes().iter().copied().chain(links.prefixes_of(bridges)).collect();
        let mut others = links.node_addresses();
        others.extend(links.broadcasts());
        Self { wanted, prefixes, others, bridges: links.macs(bridges), veths: links.veths(bridges).collect() }
    }

    fn local(&self, address: &IpAddr) -> Option<&ObjectName> {
        self.wanted.local().get(address)
    }

    /// Whether it is of this node's bridges, and no known pod's.
    fn is_new(&self, address: &IpAddr) -> bool {
        self.local(address).is_none()
            && self.prefixes.iter().any(|prefix| prefix.contains(*address))
            && !self.others.contains(address)
    }
}

/// Who was found where.
pub(super) struct Finder {
    config: AntiSpoofing,
    /// Whether ports without a pod are closed.
    is_closing: bool,
    told: Vec<ToldPort>,
    peers: Option<Peers>,
    bound: BTreeMap<u32, (String, PodPort)>,
    last: PodPorts,
    fault: Option<String>,
}

impl Finder {
    pub(super) fn new(config: AntiSpoofing, is_closing: bool) -> Self {
        let (bound, last) = (BTreeMap::new(), PodPorts::default());
        Self { config, is_closing, told: Vec::new(), peers: None, bound, last, fault: None }
    }

    /// Takes in what the plugin told: all of it.
    pub(super) fn tell(&mut self, told: Vec<ToldPort>) {
        self.told = told;
    }

    /// Takes over what the tables remember, where nobody was found yet.
    pub(super) fn restore(&mut self, remembered: BTreeMap<String, PodPort>) {
        for (name, port) in remembered {
            self.bound.entry(port.index).or_insert((name, port));
        }
    }

    /// Who is where now; none where nobody is held to anything.
    pub(super) fn find(&mut self, node: &Node<'_>) -> Option<PodPorts> {
        if !self.config.is_on {
            return None;
        }
        let mut peers = self.peers.take();
        self.settle(node, &mut peers);
        self.peers = peers;
        self.last = self.picture(node);
        Some(self.last.clone())
    }

    /// Whether a port without a pod, or a pod without a port, is there that another look could bring together.
    pub(super) fn is_searching(&self) -> bool {
        !self.last.unbound.is_empty()
    }

    /// Whether another look finds what the last one did not.
    pub(super) fn finds_more(&mut self, node: &Node<'_>) -> bool {
        let before = self.last.clone();
        self.find(node).is_some_and(|now| now != before)
    }

    /// What an operator should look at.
    pub(super) fn warnings(&self) -> Vec<String> {
        let (ports, addresses) = (self.last.unbound.len(), self.last.unplaced.len());
        let lost = (ports > 0 && addresses > 0).then(|| {
            format!(
                "anti-spoofing: {addresses} addresses of pods were found behind no port of a pod bridge, and {ports} ports have no pod: \
                 such ports may send as any such pod"
            )
        });
        lost.into_iter().chain(self.fault.clone()).collect()
    }

    fn picture(&self, node: &Node<'_>) -> PodPorts {
        let is_exempt = |pod: &ObjectName| self.config.exempt.contains(&*pod.namespace);
        let port = |port: &PodPort| PodPort { is_free: port.pod.as_ref().is_some_and(is_exempt), ..port.clone() };
        let bound: BTreeMap<_, _> = self.bound.values().map(|(name, it)| (name.clone(), port(it))).collect();
        let placed: BTreeSet<&IpAddr> = bound.values().flat_map(|port| &port.addresses).collect();
        let unplaced = node.wanted.local().keys().filter(|address| !placed.contains(address)).copied().collect();
        let unbound = node.veths.iter().filter(|veth| self.is_closing && !self.bound.contains_key(&veth.index));
        PodPorts {
            unbound: unbound.map(|veth| veth.name.clone()).collect(),
            unplaced,
            bound,
            bridges: node.bridges.clone(),
        }
    }

    fn settle(&mut self, node: &Node<'_>, ends: &mut impl Ends) {
        self.fault = None;
        self.let_go(node);
        for veth in &node.veths {
            if let Some(told) = self.told.iter().find(|told| told.port == veth.name).cloned() {
                self.bind_told(node, veth, told, ends);
            }
        }
        let mut found: Vec<(&Veth, PeerFacts)> = Vec::new();
        for veth in &node.veths {
            if !self.bound.contains_key(&veth.index) {
                found.extend(self.ask(veth, ends).map(|facts| (veth, facts)));
            }
        }
        // Who had its address first is right: another one can only have taken it later.
        found.sort_by_key(|(veth, facts)| (facts.addresses.first().map(|(since, _)| *since), veth.index));
        for (veth, facts) in found {
            self.bind_found(node, veth, &facts);
        }
    }

    fn ask(&mut self, veth: &Veth, ends: &mut impl Ends) -> Option<PeerFacts> {
        ends.facts(veth).unwrap_or_else(|error| {
            self.fault = Some(format!("anti-spoofing: who is behind port {} cannot be asked: {error}", veth.name));
            None
        })
    }

    /// Ports that are gone, and pods that are not what they were.
    fn let_go(&mut self, node: &Node<'_>) {
        let told = &self.told;
        self.bound.retain(|index, (name, port)| {
            let Some(veth) = node.veths.iter().find(|veth| veth.index == *index) else { return false };
            name.clone_from(&veth.name);
            if port.pod.is_none() {
                port.pod = port.addresses.iter().find_map(|address| node.local(address)).cloned();
            }
            let shown = port.pod.as_ref().and_then(|pod| node.wanted.pods().get(pod));
            let is_told =
                |address: &IpAddr| told.iter().any(|told| told.port == *name && told.addresses.contains(address));
            let is_own = |address: &IpAddr| node.local(address).is_none_or(|owner| Some(owner) == port.pod.as_ref());
            let shows = |address: &IpAddr| shown.is_none_or(|pod| pod.addresses.contains(address));
            port.addresses.retain(|address| is_own(address) && (shows(address) || is_told(address)));
            !port.addresses.is_empty()
        });
        self.complete(node);
    }

    /// The API may show one of a pod's addresses after the other. A new sandbox of a pod has none of the one before.
    fn complete(&mut self, node: &Node<'_>) {
        let held: BTreeSet<IpAddr> = self.bound.values().flat_map(|(_, port)| port.addresses.iter().copied()).collect();
        for (_, port) in self.bound.values_mut() {
            let shown = port.pod.as_ref().and_then(|pod| node.wanted.pods().get(pod));
            let more = shown.into_iter().flat_map(|pod| pod.addresses.iter()).filter(|address| !held.contains(address));
            port.addresses.extend(more.copied().collect::<Vec<_>>());
        }
    }

    fn bind_told(&mut self, node: &Node<'_>, veth: &Veth, told: ToldPort, ends: &mut impl Ends) {
        let is_same = |port: &PodPort| {
            port.pod.as_ref() == Some(&told.pod)
                && told.mac.is_none_or(|mac| mac == port.mac)
                && told.addresses.is_subset(&port.addresses)
        };
        if self.bound.get(&veth.index).is_some_and(|(_, port)| is_same(port)) {
            return;
        }
        let Some(mac) = told.mac.or_else(|| self.ask(veth, ends).map(|facts| facts.mac)) else { return };
        // Whoever stood there on the kernel's word alone was not it.
        self.bound.retain(|index, (_, port)| *index == veth.index || port.addresses.is_disjoint(&told.addresses));
        let port = PodPort { index: veth.index, mac, addresses: told.addresses, pod: Some(told.pod), is_free: false };
        self.bind(node, &veth.name, port);
    }

    /// On the kernel's word: the pod whose address it has, or whoever has an address that a pod of this node would have.
    fn bind_found(&mut self, node: &Node<'_>, veth: &Veth, facts: &PeerFacts) {
        let is_bound = |pod: &ObjectName| self.bound.values().any(|(_, port)| port.pod.as_ref() == Some(pod));
        let own = facts.addresses.iter().find_map(|(_, address)| node.local(address)).filter(|pod| !is_bound(pod));
        let is_held = |address: &IpAddr| self.bound.values().any(|(_, port)| port.addresses.contains(address));
        let addresses: BTreeSet<IpAddr> = match own.and_then(|pod| node.wanted.pods().get(pod)) {
            Some(pod) => pod.addresses.iter().filter(|address| !is_held(address)).copied().collect(),
            None => {
                let mut new = facts.addresses.iter().map(|(_, address)| *address);
                // One of each family: a pod could have more to keep them from those that come.
                let four = new.clone().find(IpAddr::is_ipv4).filter(|it| node.is_new(it) && !is_held(it));
                let six = new.find(IpAddr::is_ipv6).filter(|it| node.is_new(it) && !is_held(it));
                four.into_iter().chain(six).collect()
            }
        };
        if !addresses.is_empty() {
            let port = PodPort { index: veth.index, mac: facts.mac, addresses, pod: own.cloned(), is_free: false };
            self.bind(node, &veth.name, port);
        }
    }

    fn bind(&mut self, node: &Node<'_>, name: &str, port: PodPort) {
        let is_anothers = node.bridges.contains(&port.mac)
            || self.bound.iter().any(|(index, (_, other))| *index != port.index && other.mac == port.mac);
        // A group's address is nobody's.
        if is_anothers || port.mac[0] & 1 == 1 || port.mac == Mac::default() {
            let shown = port.mac.map(|byte| format!("{byte:02x}")).join(":");
            self.fault = Some(format!("anti-spoofing: port {name} is not bound: {shown} is another's address"));
            return;
        }
        self.bound.insert(port.index, (name.to_owned(), port));
    }
}

#[cfg(test)]
#[path = "pod_ports_tests.rs"]
mod tests;
