//! A lab: nodes, their pods, the underlay between them and a host outside.
//!
//! In: a [`LabConfig`], then changes while it runs. Out: namespaces by [`Place`], addresses by the plan of
//! [`crate::place`]. What always holds: a lab that could not be completed leaves nothing behind.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use flatfell::bypass::BRIDGE_SYSCTL;
use thiserror::Error;

use crate::netns::{self, Netns, NetnsError};
use crate::patience::patient;
use crate::place::{Place, bridge_address_like};
use crate::probe::Probe;
use crate::service::{self, Service};
use crate::station::Station;
use crate::wiring;

/// More than the kernel's own delay.
const LINKS: Duration = Duration::from_secs(5);

static LABS: AtomicU32 = AtomicU32::new(0);

/// What a lab shall look like.
#[derive(Clone, Debug)]
pub struct LabConfig {
    /// How many nodes, numbered from 1.
    pub nodes: u8,
    /// How many pods each starts with, in slots from 0.
    pub pods: u8,
    /// The namespaces' `bridge-nf-call-*` sysctls; off, so that only a bridge's own flag brings its traffic to forward.
    pub bridge_nf_call: bool,
    /// Flannel's masquerading of what leaves the pod ranges.
    pub masquerade: bool,
    /// The lab's own tunnels, bridges and pod links; without them real parts wire the nodes ([`crate::cluster`]).
    pub wired: bool,
    /// How long a batch of probes waits after its last send or arrival before the rest counts as not delivered.
    pub grace: Duration,
}

impl Default for LabConfig {
    fn default() -> Self {
        let grace = Duration::from_millis(60);
        Self { nodes: 2, pods: 4, bridge_nf_call: false, masquerade: false, wired: true, grace }
    }
}

/// What can go wrong in a lab.
#[derive(Debug, Error)]
pub enum LabError {
    /// A namespace, or a program in it.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The lab has no such place.
    #[error("the lab has no {0}")]
    NoSuchPlace(Place),
    /// The place is taken, or its number is not in the plan.
    #[error("{0} cannot be added")]
    NotFree(Place),
    /// Links that do not come up.
    #[error("links of {0} do not come up")]
    NotReady(Place),
    /// A kernel setting was refused.
    #[error("{setting} cannot be set")]
    Sysctl {
        /// The file under /proc/sys.
        setting: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A socket of a probe or stream.
    #[error("{what} at {place}")]
    Socket {
        /// What was tried.
        what: &'static str,
        /// Where.
        place: Place,
        /// What the kernel said.
        source: io::Error,
    },
    /// A probe makes no sense.
    #[error("{0}")]
    Probe(&'static str),
}

struct Node {
    space: Netns,
    pods: BTreeMap<u8, Netns>,
}

/// A running lab.
pub struct Lab {
    number: u32,
    config: LabConfig,
    nodes: Vec<Node>,
    outside: Netns,
    switch: Netns,
    pub(crate) stations: Mutex<BTreeMap<Place, Station>>,
}

impl Lab {
    /// Builds it; also clears away what killed processes left.
    pub fn new(config: LabConfig) -> Result<Self, LabError> {
        Netns::clean_leftovers();
        let lab = Self::bare(config)?;
        for node in lab.node_numbers() {
            lab.batch(Place::Node(node), "ip", &lab.node_wiring(node))?;
        }
        lab.batch(Place::Outside, "ip", &wiring::outside(lab.config.nodes, lab.switch.name()))?;
        lab.switch.feed("ip", &["-batch", "-"], &wiring::switch(lab.config.nodes))?;
        if lab.config.wired {
            together(lab.node_numbers(), |node| lab.finish_node(node))?;
            together(lab.places().into_iter().filter(|place| matches!(place, Place::Pod { .. })), |pod| {
                lab.start_pod(pod)
            })?;
        }
        lab.raise_underlay()?;
        if lab.config.wired {
            lab.raise_bridges()?;
            lab.greet()?;
        }
        Ok(lab)
    }

    fn node_wiring(&self, node: u8) -> String {
        let underlay = wiring::node(node, self.switch.name());
        if self.config.wired { underlay + &wiring::overlay(node, self.config.nodes) } else { underlay }
    }

    /// All namespaces and their settings, without a link.
    fn bare(config: LabConfig) -> Result<Self, LabError> {
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let pods = (1..=config.nodes).flat_map(|node| (0..config.pods).map(move |slot| Place::pod(node, slot)));
        let parts = ["sw".to_owned(), Place::Outside.to_string()].into_iter();
        let parts = parts.chain((1..=config.nodes).map(|node| Place::Node(node).to_string()));
        let names: Vec<String> =
            parts.chain(pods.map(|pod| pod.to_string())).map(|part| netns::name(number, &part)).collect();
        let mut spaces = Netns::create(&names)?.into_iter();
        let mut next = || spaces.next().ok_or(LabError::NoSuchPlace(Place::Outside));
        let (switch, outside) = (next()?, next()?);
        let mut nodes: Vec<Node> = Vec::new();
        for _ in 0..config.nodes {
            nodes.push(Node { space: next()?, pods: BTreeMap::new() });
        }
        for node in &mut nodes {
            for slot in 0..config.pods {
                node.pods.insert(slot, next()?);
            }
        }
        let lab = Self { number, config, nodes, outside, switch, stations: Mutex::default() };
        together(lab.places(), |place| lab.set_up(place))?;
        Ok(lab)
    }

    /// Kernel settings; they must stand before the first link exists, which copies them.
    fn set_up(&self, place: Place) -> Result<(), LabError> {
        let call = if self.config.bridge_nf_call { "1" } else { "0" };
        // Hairpin returns a pod's own duplicate-address probe: the bridge plugin switches detection off too.
        let common = [
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/all/accept_dad", "0"),
            // Or the loss of a first address takes its fellows with it.
            ("net/ipv4/conf/all/promote_secondaries", "1"),
        ];
        let node = [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
        ];
        let bridge = [
            ("net/bridge/bridge-nf-call-iptables", call),
            ("net/bridge/bridge-nf-call-ip6tables", call),
            ("net/bridge/bridge-nf-call-arptables", "0"),
        ];
        let is_node = matches!(place, Place::Node(_));
        let node: &[_] = if is_node { &node } else { &[] };
        // They come with br_netfilter; there are tests of a node that has not loaded it.
        let bridge: &[_] = if is_node && Path::new(BRIDGE_SYSCTL).exists() { &bridge } else { &[] };
        let all = common.iter().chain(node).chain(bridge);
        self.netns(place)?.run(|| all.into_iter().try_for_each(|(setting, value)| sysctl(setting, value)))?
    }

    fn finish_node(&self, node: u8) -> Result<(), LabError> {
        let place = Place::Node(node);
        self.batch(place, "bridge", &wiring::forwarding(node, self.config.nodes))?;
        let mut text = String::new();
        for (&slot, pod) in &self.node(node)?.pods {
            text.push_str(&wiring::first_plug(Place::pod(node, slot), slot, pod.name()));
        }
        self.batch(place, "ip", &text)?;
        if self.config.masquerade {
            self.nft(place, &service::flannel_masquerade(node))?;
        }
        Ok(())
    }

    fn start_pod(&self, pod: Place) -> Result<(), LabError> {
        let node = pod.node().ok_or(LabError::NoSuchPlace(pod))?;
        self.batch(pod, "ip", &wiring::pod(pod, node))
    }

    fn raise_underlay(&self) -> Result<(), LabError> {
        self.wait_for_links(&self.switch, Place::Outside)?;
        self.switch.feed("ip", &["-batch", "-"], "link set br0 up\n")?;
        self.wait_for_ports(&self.switch, Place::Outside)
    }

    fn raise_bridges(&self) -> Result<(), LabError> {
        together(self.node_numbers(), |node| {
            let (place, space) = (Place::Node(node), self.netns(Place::Node(node))?);
            self.wait_for_links(space, place)?;
            self.batch(place, "ip", &wiring::raise(node))?;
            // The tunnel's IPv6 address is the pods' anycast router too, for which a node answers late by default.
            space.run(|| sysctl("net/ipv6/neigh/cni0/proxy_delay", "0"))??;
            self.wait_for_ports(space, place)
        })
    }

    /// The kernel begins to use a link some time after it is up; until then it swallows packets.
    fn wait_for_links(&self, space: &Netns, place: Place) -> Result<(), LabError> {
        self.wait_until(place, || Ok(links_are_used(&space.feed("ip", &["-o", "link", "show", "up"], "")?)))
    }

    /// A bridge begins to use a port later still.
    fn wait_for_ports(&self, space: &Netns, place: Place) -> Result<(), LabError> {
        let forwards = |listing: &str| listing.lines().all(|port| port.contains(" state forwarding "));
        self.wait_until(place, || Ok(forwards(&space.feed("bridge", &["link", "show"], "")?)))?;
        self.wait_for_links(space, place)
    }

    /// An IPv6 address is there before the place hears who asks for it.
    fn wait_for_solicitations(&self, place: Place, address: Ipv6Addr) -> Result<(), LabError> {
        let [.., a, b, c] = address.octets();
        let group = format!("ff0200000000000000000001ff{a:02x}{b:02x}{c:02x}");
        let joined = || fs::read_to_string("/proc/thread-self/net/igmp6").is_ok_and(|groups| groups.contains(&group));
        self.wait_until(place, || Ok(self.netns(place)?.run(joined)?))
    }

    fn wait_until(&self, place: Place, mut ready: impl FnMut() -> Result<bool, LabError>) -> Result<(), LabError> {
        let deadline = Instant::now() + patient(LINKS);
        while !ready()? {
            if Instant::now() > deadline {
                return Err(LabError::NotReady(place));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Lets neighbours find each other, so that no probe pays for it (a lost solicitation costs a second).
    fn greet(&self) -> Result<(), LabError> {
        let any = Place::Outside.addresses();
        let mut greetings: Vec<Probe> = Vec::new();
        for place in self.places() {
            match place {
                Place::Pod { node, .. } => {
                    greetings.extend(any.map(|like| Probe::icmp(place, bridge_address_like(node, like))));
                }
                Place::Node(_) | Place::Outside => {
                    let hosts = self.node_numbers().map(Place::Node).chain([Place::Outside]);
                    let others = hosts.filter(|&host| host != place);
                    greetings.extend(others.flat_map(Place::addresses).map(|to| Probe::icmp(place, to)));
                }
            }
        }
        self.wait_until(Place::Outside, || Ok(self.probes(&greetings)?.iter().all(|outcome| outcome.answered)))
    }

    /// The namespace of a place.
    pub fn netns(&self, place: Place) -> Result<&Netns, LabError> {
        match place {
            Place::Outside => Ok(&self.outside),
            Place::Node(node) => Ok(&self.node(node)?.space),
            Place::Pod { node, slot } => self.node(node)?.pods.get(&slot).ok_or(LabError::NoSuchPlace(place)),
        }
    }

    /// Every place there is, in order.
    pub fn places(&self) -> Vec<Place> {
        let nodes = || self.node_numbers().zip(&self.nodes);
        let pods = nodes().flat_map(|(number, node)| node.pods.keys().map(move |&slot| Place::pod(number, slot)));
        pods.chain(self.node_numbers().map(Place::Node)).chain([Place::Outside]).collect()
    }

    /// Adds a pod's namespace, without a link.
    pub(crate) fn add_space(&mut self, node: u8, slot: u8) -> Result<Place, LabError> {
        let place = Place::pod(node, slot);
        if slot > 244 || self.node(node)?.pods.contains_key(&slot) {
            return Err(LabError::NotFree(place));
        }
        let made = Netns::create(&[netns::name(self.number, &place.to_string())])?.pop();
        self.node_mut(node)?.pods.insert(slot, made.ok_or(LabError::NotFree(place))?);
        self.set_up(place)?;
        Ok(place)
    }

    /// Removes a pod's namespace.
    pub(crate) fn remove_space(&mut self, pod: Place) -> Result<(), LabError> {
        let Place::Pod { node, slot } = pod else { return Err(LabError::NoSuchPlace(pod)) };
        self.node_mut(node)?.pods.remove(&slot).ok_or(LabError::NoSuchPlace(pod))?;
        crate::station::locked(&self.stations).remove(&pod);
        Ok(())
    }

    /// Adds a pod, ready when this returns.
    pub fn add_pod(&mut self, node: u8, slot: u8) -> Result<Place, LabError> {
        self.add_pod_around(node, slot, |_| ())
    }

    /// The same; `before` runs when there is a namespace and no interface in it yet.
    pub fn add_pod_around(&mut self, node: u8, slot: u8, before: impl FnOnce(&Netns)) -> Result<Place, LabError> {
        let place = self.add_space(node, slot)?;
        before(self.netns(place)?);
        let plug = wiring::plug(place, slot, self.netns(place)?.name());
        self.batch(Place::Node(node), "ip", &plug)?;
        self.start_pod(place)?;
        self.wait_for_links(self.netns(place)?, place)?;
        self.wait_for_ports(self.netns(Place::Node(node))?, place)?;
        self.wait_for_solicitations(place, place.v6())?;
        Ok(place)
    }

    /// Removes a pod; its port is gone when this returns.
    pub fn remove_pod(&mut self, pod: Place) -> Result<(), LabError> {
        let Place::Pod { node, slot } = pod else { return Err(LabError::NoSuchPlace(pod)) };
        self.netns(pod)?;
        self.batch(Place::Node(node), "ip", &format!("link delete {}\n", wiring::port_name(slot)))?;
        self.remove_space(pod)
    }

    /// Gives a pod (or host) another address beside those it has, of the length its family has in the plan.
    pub fn add_address(&self, place: Place, address: IpAddr) -> Result<(), LabError> {
        let rest = if address.is_ipv4() { "24 dev eth0" } else { "64 dev eth0 nodad" };
        self.batch(place, "ip", &format!("address add {address}/{rest}\n"))?;
        match address {
            IpAddr::V4(_) => Ok(()),
            IpAddr::V6(v6) => self.wait_for_solicitations(place, v6),
        }
    }

    /// Takes an address away. A pod that loses its last one of a family loses its default route as well:
    /// [`Self::renumber`] keeps it.
    pub fn remove_address(&self, place: Place, address: IpAddr) -> Result<(), LabError> {
        let length = if address.is_ipv4() { 24 } else { 64 };
        self.batch(place, "ip", &format!("address delete {address}/{length} dev eth0\n"))
    }

    /// Replaces one address of a pod by another of the same family.
    pub fn renumber(&self, pod: Place, old: IpAddr, new: IpAddr) -> Result<(), LabError> {
        let node = pod.node().ok_or(LabError::NoSuchPlace(pod))?;
        self.add_address(pod, new)?;
        self.remove_address(pod, old)?;
        let mut text = String::new();
        for like in pod.addresses() {
            let _ = writeln!(text, "route replace default via {}", bridge_address_like(node, like));
        }
        self.batch(pod, "ip", &text)
    }

    /// Programs these Services, and no others, on every node.
    pub fn set_services(&self, services: &[Service]) -> Result<(), LabError> {
        together(self.node_numbers(), |node| self.nft(Place::Node(node), &service::table(services, node)))
    }

    /// Feeds rules to `nft` at a place.
    pub fn nft(&self, place: Place, rules: &str) -> Result<(), LabError> {
        self.netns(place)?.feed("nft", &["-f", "-"], rules)?;
        Ok(())
    }

    /// Switches a node's bridge itself (not the sysctl) to show its traffic to forward, as the daemon does.
    pub fn call_from_bridge(&self, node: u8, on: bool) -> Result<(), LabError> {
        let on = u8::from(on);
        let text = format!("link set cni0 type bridge nf_call_iptables {on} nf_call_ip6tables {on}\n");
        self.batch(Place::Node(node), "ip", &text)
    }

    /// Forgets every flow of a node.
    pub fn flush_conntrack(&self, node: u8) -> Result<(), LabError> {
        self.netns(Place::Node(node))?.feed("conntrack", &["-F"], "")?;
        Ok(())
    }

    /// Closes what listens for probes, until the next one: a packet socket copies every packet of its place.
    pub fn stop_listening(&self) {
        crate::station::locked(&self.stations).clear();
    }

    /// The configuration it was built with.
    pub fn config(&self) -> &LabConfig {
        &self.config
    }

    /// Feeds lines to `ip` (or `bridge`) at a place.
    pub fn batch(&self, place: Place, program: &str, lines: &str) -> Result<(), LabError> {
        self.netns(place)?.feed(program, &["-batch", "-"], lines)?;
        Ok(())
    }

    fn node_numbers(&self) -> impl Iterator<Item = u8> + use<> {
        1..=self.config.nodes
    }

    fn node(&self, node: u8) -> Result<&Node, LabError> {
        self.nodes.get(usize::from(node).wrapping_sub(1)).ok_or(LabError::NoSuchPlace(Place::Node(node)))
    }

    fn node_mut(&mut self, node: u8) -> Result<&mut Node, LabError> {
        self.nodes.get_mut(usize::from(node).wrapping_sub(1)).ok_or(LabError::NoSuchPlace(Place::Node(node)))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // One process for all names; what is left to drop afterwards finds nothing to do.
        let nodes = self.nodes.iter().flat_map(|node| node.pods.values().chain([&node.space]));
        Netns::remove(nodes.chain([&self.outside, &self.switch]));
    }
}

/// Whether each cable in this listing is in use, and no bridge with a port in it waits for its ports.
fn links_are_used(listing: &str) -> bool {
    let cables = || listing.lines().filter(|line| line.contains("@if"));
    let waits = |line: &str| {
        let bridge = ["cni0", "br0"].into_iter().find(|bridge| line.contains(&format!(": {bridge}: ")));
        let has_ports = |bridge: &str| cables().any(|cable| cable.contains(&format!(" master {bridge} ")));
        let idle = !line.contains("LOWER_UP") || line.contains(" qdisc noop ");
        idle && bridge.is_some_and(has_ports)
    };
    cables().all(|line| line.contains(" state UP ")) && !listing.lines().any(waits)
}

fn sysctl(setting: &str, value: &str) -> Result<(), LabError> {
    fs::write(format!("/proc/sys/{setting}"), value)
        .map_err(|source| LabError::Sysctl { setting: setting.to_owned(), source })
}

/// Does the same for all, two at a time; the first error is the result.
fn together<T: Copy + Send + Sync>(
    items: impl IntoIterator<Item = T>,
    work: impl Fn(T) -> Result<(), LabError> + Sync,
) -> Result<(), LabError> {
    let items: Vec<T> = items.into_iter().collect();
    let half = items.len().div_ceil(2).max(1);
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> =
            items.chunks(half).map(|part| scope.spawn(move || part.iter().copied().try_for_each(work))).collect();
        let mut results = threads.into_iter().map(|thread| thread.join());
        results.try_for_each(|result| result.unwrap_or_else(|cause| std::panic::resume_unwind(cause)))
    })
}
