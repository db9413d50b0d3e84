//! What each pod may send: at the port it is behind, only as itself.
//!
//! In: [`PodPorts`], which pod is behind which port of a bridge. Out: sets of what is plainly a pod's own, a chain for all else of each of
//! these ports, the map that leads to them, and two sets that no rule asks: for whoever takes the table over. What always holds: a
//! port's chain ends in a drop, so what is not named is not sent; nearly every frame asks one set, however many pods there are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv6Network};

use super::base::{guard, rule};
use super::part::Part;
use super::sets::{self, Ip};
use super::{CounterMeaning, Guard};
use crate::names;
use crate::object::ObjectName;
use crate::ruleset::{
    Chain, Datum, Element, Elements, Expr, Field, KeyType, Name, Rule, Set, SetKind, Table, Value, Verdict,
};

/// A link-layer address.
pub type Mac = [u8; 6];

/// The map from ports to what their frames are asked.
const SENDERS: &str = "senders";

/// The chain of ports that no pod was found behind.
const UNBOUND: &str = "unbound";

/// The same for its neighbour advertisements.
const UNBOUND_NEIGHBOUR: &str = "unbound-neighbour";

/// The set of the link-layer addresses that are somebody's.
const MACS: &str = "macs";

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const ICMPV6: u8 = 58;

/// Bytes of a neighbour advertisement without an option, and with one of 8 bytes.
const ADVERTISEMENT: [u16; 2] = [24, 32];

/// Who is behind a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPort {
    /// The port's interface index.
    pub index: u32,
    /// The pod's own link-layer address.
    pub mac: Mac,
    /// The pod's own addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// The pod; none while the API does not show it.
    pub pod: Option<ObjectName>,
    /// Whether it may send as whoever it likes. Nobody else may send as it.
    pub is_free: bool,
}

/// Which pods are behind the ports of pod bridges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodPorts {
    /// Ports with their pod, by name.
    pub bound: BTreeMap<String, PodPort>,
    /// Ports that no pod was found behind.
    pub unbound: BTreeSet<String>,
    /// Addresses of pods that were found behind no port.
    pub unplaced: BTreeSet<IpAddr>,
    /// Link-layer addresses of the bridges: no pod's.
    pub bridges: BTreeSet<Mac>,
}

impl PodPorts {
    /// What a table remembers, without the pods' names.
    pub fn of(table: &Table) -> BTreeMap<String, PodPort> {
        let mut all: BTreeMap<String, PodPort> = BTreeMap::new();
        let sets = Ip::BOTH.map(|ip| table.sets.get(remembered(ip)));
        for (element, _) in sets.into_iter().flatten().flat_map(|set| set.elements.iter()) {
            let Element::Key(key) = element else { continue };
            let [Value::Ifname(name), Value::Mark(index), Value::Ether(mac), address] = key.as_slice() else {
                continue;
            };
            let address = match address {
                Value::V4(address) => IpAddr::V4(*address),
                Value::V6(address) => IpAddr::V6(*address),
                _ => continue,
            };
            let port = PodPort { index: *index, mac: *mac, addresses: BTreeSet::new(), pod: None, is_free: false };
            all.entry(name.clone()).or_insert(port).addresses.insert(address);
        }
        all
    }

    /// The same with nobody held to it.
    pub(super) fn lifted(mut self) -> Self {
        self.bound.values_mut().for_each(|port| port.is_free = true);
        self.unbound.clear();
        self
    }

    /// All of it as a contribution to the table of frames.
    pub(super) fn add_to(&self, table: &mut Part) {
        table.fixed(SENDERS, SetKind::VerdictMap, vec![KeyType::Ifname], "what each port may send");
        table.fixed(MACS, SetKind::Set, vec![KeyType::EtherAddr], "link-layer addresses of pods and bridges");
        for ip in Ip::BOTH {
            table.set(remembered(ip).into(), self.memory(ip));
            table.set(unplaced(ip).into(), self.without_port(ip));
        }
        let macs: BTreeSet<Mac> =
            self.bound.values().map(|port| port.mac).chain(self.bridges.iter().copied()).collect();
        macs.into_iter().for_each(|mac| table.element(MACS, Value::Ether(mac), Datum::None));
        for ip in Ip::BOTH {
            table.set(sources(ip).into(), self.sources(ip));
        }
        for (name, port) in self.bound.iter().filter(|(_, port)| !port.is_free) {
            let chain = add_port(table, name, port);
            table.element(SENDERS, Value::Ifname(name.clone()), Datum::Verdict(Verdict::Goto(chain)));
        }
        if !self.unbound.is_empty() {
            self.add_unbound(table);
        }
        for name in &self.unbound {
            let chain = Datum::Verdict(Verdict::Goto(UNBOUND.into()));
            table.element(SENDERS, Value::Ifname(name.clone()), chain);
        }
    }

    /// What every frame is asked first. A tag would be the type of its frame. Neighbour advertisements are looked at closely.
    pub(super) fn ask_first() -> [Rule; 2] {
        let ask = |ether_type, but: Option<Expr>, field, ip| {
            let is_ip = compare(Field::EtherType, Value::EtherType(ether_type), false);
            let key = vec![Field::Iifname, Field::EtherSaddr, field];
            let is_own = Expr::Lookup { key, set: sources(ip).into() };
            let exprs = std::iter::once(is_ip).chain(but).chain([is_own, verdict(Verdict::Accept)]);
            rule(exprs.collect(), "a pod as itself")
        };
        let is_other = compare(Field::L4Proto, Value::Proto(ICMPV6), true);
        [ask(IPV4, None, Field::IpSaddr, Ip::V4), ask(IPV6, Some(is_other), Field::Ip6Saddr, Ip::V6)]
    }

    /// What a frame is asked behind the guard against foreign ones.
    pub(super) fn ask() -> Rule {
        rule(vec![Expr::Vmap { key: vec![Field::Iifname], map: SENDERS.into() }], "")
    }

    /// Until its pod is found, a port may send as a pod that was found behind no other one.
    fn add_unbound(&self, table: &mut Part) {
        let counter = guard(table, Guard::UnboundPort);
        let lookup = |field, set: &str| Expr::Lookup { key: vec![field], set: set.into() };
        let drop = |expr, comment| rule(vec![expr, Expr::Counter(counter.clone()), verdict(Verdict::Drop)], comment);
        let accept = |expr| rule(vec![expr, verdict(Verdict::Accept)], "");
        let [four, six] = Ip::BOTH.map(unplaced);
        let mut rules = vec![
            drop(lookup(Field::EtherSaddr, MACS), "somebody's"),
            accept(lookup(Field::IpSaddr, four)),
            drop(lookup(Field::ArpSaddrEther, MACS), "somebody's"),
            accept(lookup(Field::ArpSaddrIp, four)),
            probe(),
            is_advertisement(UNBOUND_NEIGHBOUR),
            accept(lookup(Field::Ip6Saddr, six)),
        ];
        rules.extend(link_local());
        rules.push(all_else(&counter, "nobody was found here yet"));
        table.chain(UNBOUND, chain("ports that no pod was found behind", rules));
        let targets = self.unplaced.iter().filter_map(|address| match address {
            IpAddr::V6(address) => Some(is_target(*address)),
            IpAddr::V4(_) => None,
        });
        let back = |expr| rule(vec![expr, verdict(Verdict::Return)], "");
        let mut rules: Vec<Rule> = targets.chain([is_link_local_target()]).map(back).collect();
        rules.push(all_else(&counter, "somebody else's address"));
        table.chain(UNBOUND_NEIGHBOUR, chain("their neighbour advertisements", rules));
    }

    fn memory(&self, ip: Ip) -> Set {
        let element = |name: &str, port: &PodPort, address| {
            let name = Value::Ifname(name.to_owned());
            (Element::key([name, Value::Mark(port.index), Value::Ether(port.mac), sets::address(address)]), Datum::None)
        };
        let of_port = |(name, port): (&String, &PodPort)| {
            let elements = of_family(&port.addresses, ip).map(|address| element(name, port, address));
            elements.collect::<Vec<_>>()
        };
        let elements = self.bound.iter().flat_map(of_port).collect();
        let key = vec![KeyType::Ifname, KeyType::Mark, KeyType::EtherAddr, ip.key_type()];
        set(key, "ports (name, index) with the addresses of their pods: for the next daemon", elements)
    }

    fn sources(&self, ip: Ip) -> Set {
        let element = |name: &str, port: &PodPort, address| {
            let name = Value::Ifname(name.to_owned());
            (Element::key([name, Value::Ether(port.mac), sets::address(address)]), Datum::None)
        };
        let held = self.bound.iter().filter(|(_, port)| !port.is_free);
        let elements = held
            .flat_map(|(name, port)| of_family(&port.addresses, ip).map(move |address| element(name, port, address)));
        let key = vec![KeyType::Ifname, KeyType::EtherAddr, ip.key_type()];
        set(key, "ports with the addresses of their pods", elements.collect())
    }

    fn without_port(&self, ip: Ip) -> Set {
        let elements =
            of_family(&self.unplaced, ip).map(|address| (Element::key([sets::address(address)]), Datum::None));
        set(vec![ip.key_type()], "addresses of pods that were found behind no port", elements.collect())
    }
}

fn of_family(addresses: &BTreeSet<IpAddr>, ip: Ip) -> impl Iterator<Item = IpAddr> {
    addresses.iter().copied().filter(move |address| Ip::of(*address) == ip)
}

fn set(key: Vec<KeyType>, comment: &str, elements: Elements) -> Set {
    Set { elements, comment: comment.to_owned(), ..Set::of(SetKind::Set, key) }
}

fn remembered(ip: Ip) -> &'static str {
    match ip {
        Ip::V4 => "bound4",
        Ip::V6 => "bound6",
    }
}

fn sources(ip: Ip) -> &'static str {
    match ip {
        Ip::V4 => "sources4",
        Ip::V6 => "sources6",
    }
}

fn unplaced(ip: Ip) -> &'static str {
    match ip {
        Ip::V4 => "unplaced4",
        Ip::V6 => "unplaced6",
    }
}

fn verdict(verdict: Verdict) -> Expr {
    Expr::Verdict(verdict)
}

fn chain(comment: &str, rules: Vec<Rule>) -> Chain {
    Chain { hook: None, comment: names::comment(comment), rules }
}

fn compare(field: Field, value: Value, negated: bool) -> Expr {
    Expr::Compare { field, value, negated }
}

/// The chain of a port: its name.
fn add_port(table: &mut Part, name: &str, port: &PodPort) -> Name {
    let (identity, human) = match &port.pod {
        Some(pod) => (format!("{name} {pod}"), pod.to_string()),
        None => (name.to_owned(), name.to_owned()),
    };
    let counter = match &port.pod {
        Some(pod) => {
            let meaning = CounterMeaning::Spoofed { pod: pod.clone() };
            table.counter(("spoofed", &human, &human), &format!("what pod {pod} sent as somebody else"), meaning)
        }
        None => guard(table, Guard::UnboundPort),
    };
    let speaks_six = of_family(&port.addresses, Ip::V6).next().is_some();
    let neighbour = names::name("neighbour", &identity, &human);
    let drop = |expr, comment| rule(vec![expr, Expr::Counter(counter.clone()), verdict(Verdict::Drop)], comment);
    let accept =
        |field, address| rule(vec![compare(field, sets::address(address), false), verdict(Verdict::Accept)], "");
    let own = Value::Ether(port.mac);
    let mut rules =
        vec![drop(compare(Field::EtherSaddr, own.clone(), true), "another's frame"), is_advertisement(&neighbour)];
    rules.extend(of_family(&port.addresses, Ip::V6).map(|address| accept(Field::Ip6Saddr, address)));
    rules.push(drop(compare(Field::ArpSaddrEther, own, true), "another's ARP"));
    rules.extend(of_family(&port.addresses, Ip::V4).map(|address| accept(Field::ArpSaddrIp, address)));
    rules.push(probe());
    rules.extend(link_local());
    rules.push(all_else(&counter, "another's address"));
    let from = names::name("port", &identity, &human);
    let who = if port.pod.is_some() { format!("pod {human}") } else { "whoever".to_owned() };
    table.chain(Name::clone(&from), chain(&format!("what {who} behind {name} may send"), rules));
    let mut rules: Vec<Rule> = if speaks_six { advertisements(port) } else { Vec::new() };
    rules.extend(advertisement(is_link_local_target(), port.mac));
    rules.push(all_else(&counter, "another's address, or where it is"));
    table.chain(neighbour, chain(&format!("what {who} behind {name} may advertise"), rules));
    from
}

/// Its own addresses are where it is, or it does not say where.
fn advertisements(port: &PodPort) -> Vec<Rule> {
    let targets = port.addresses.iter().filter_map(|address| match address {
        IpAddr::V6(address) => Some(is_target(*address)),
        IpAddr::V4(_) => None,
    });
    targets.flat_map(|target| advertisement(target, port.mac)).collect()
}

/// An advertisement of this target, by its shape: no header between, and no option that could hide another.
fn advertisement(target: Expr, [a, b, c, d, e, f]: Mac) -> [Rule; 2] {
    let own =
        Expr::Compare { field: Field::NdOption, value: Value::NdOption([2, 1, a, b, c, d, e, f]), negated: false };
    let shaped = |length, option: Option<Expr>| {
        let mut exprs = vec![
            compare(Field::Ip6Length, Value::Length(length), false),
            compare(Field::Ip6NextHdr, Value::Proto(ICMPV6), false),
        ];
        exprs.extend(option);
        exprs.extend([target.clone(), verdict(Verdict::Return)]);
        rule(exprs, "")
    };
    let [plain, with_option] = ADVERTISEMENT;
    [shaped(with_option, Some(own)), shaped(plain, None)]
}

fn is_target(address: Ipv6Addr) -> Expr {
    compare(Field::NdTarget, Value::V6(address), false)
}

/// Link-local addresses are made by the pod: nobody can say which is whose. Those in use are fe80::/64.
fn is_link_local_target() -> Expr {
    Expr::Prefix { field: Field::NdTarget, prefix: link_local_prefix(16) }
}

fn is_advertisement(to: &str) -> Rule {
    let kind = compare(Field::Icmpv6Type, Value::Icmpv6Type(NEIGHBOUR_ADVERTISEMENT), false);
    rule(vec![kind, verdict(Verdict::Jump(to.into()))], "")
}

/// Whether anybody has an address already is asked without one (RFC 5227).
fn probe() -> Rule {
    let nobody = compare(Field::ArpSaddrIp, Value::V4(Ipv4Addr::UNSPECIFIED), false);
    rule(vec![nobody, verdict(Verdict::Accept)], "an ARP probe")
}

/// What IPv6 needs before there is an address, and beside it.
fn link_local() -> [Rule; 2] {
    let local = Expr::Prefix { field: Field::Ip6Saddr, prefix: link_local_prefix(10) };
    let nobody = compare(Field::Ip6Saddr, Value::V6(Ipv6Addr::UNSPECIFIED), false);
    let icmpv6 = compare(Field::L4Proto, Value::Proto(ICMPV6), false);
    [
        rule(vec![local, verdict(Verdict::Accept)], "discovery lives on it"),
        rule(vec![nobody, icmpv6, verdict(Verdict::Accept)], "duplicate address detection"),
    ]
}

fn link_local_prefix(length: u8) -> IpNetwork {
    let network = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);
    IpNetwork::V6(Ipv6Network::new_checked(network, length).unwrap_or_else(|| network.into()))
}

fn all_else(counter: &Name, comment: &str) -> Rule {
    rule(vec![Expr::Counter(counter.clone()), verdict(Verdict::Drop)], comment)
}
