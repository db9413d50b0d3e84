//! The chains of one pod: what its egress and its ingress allow, and for whom that counts.
//!
//! In: [`EffectivePod`]. Out: for each direction a chain, and the elements of the verdict maps that lead to it; what it names of what pods
//! share. What always holds: what allows ends in a chain that writes its id into ct mark, which leads back
//! to the base chain that dispatched, so an egress allow goes on to the destination's ingress and never ends the
//! evaluation; the last rule of an isolated pod drops. A tier is a chain; Pass and the end of a tier go to the next tier's
//! chain. Where many rules name single ports, a map leads from protocol and port to a chain with those that can match ([`ports`]), in their
//! order and with the same end. The id stands in a chain of its own because a packet that conntrack does not know ends the rule that writes a mark, and must still be
//! allowed.

use std::net::IpAddr;
use std::sync::Arc;

use super::part::Part;
use super::ports::{self, Entry, Ports, Split};
use super::sets::{self, Ip, address};
use super::shared::Shared;
use super::{CounterMeaning, Pending, allow, base, log};
use crate::effective::{
    Effective, EffectivePod, EffectiveRule, EndpointKey, Fallback, Isolation, PeerMatch, PortMatch, RuleIdentity,
    RuleMatch,
};
use crate::names;
use crate::object::Protocol;
use crate::policy::{Action, Direction, Tier};
use crate::ruleset::{Chain, Datum, Element, Elements, Expr, Field, KeyType, Name, Rule, Set, SetKind, Value, Verdict};

/// What a pod contributes, and what it names of what pods share.
#[derive(Clone, Debug, Default)]
pub(super) struct Built {
    pub(super) part: Part,
    pub(super) named: Named,
    /// Whether it is isolated in a direction.
    pub(super) is_closed: bool,
}

/// What is named of what pods share, once for each time.
#[derive(Clone, Debug, Default)]
pub(super) struct Named {
    pub(super) sets: Vec<sets::Key>,
    pub(super) decided: Vec<Arc<RuleIdentity>>,
    pub(super) allows: Vec<allow::Key>,
}

/// Both directions of a pod.
pub(super) fn build(pod: &EffectivePod, effective: &Effective, shared: &mut Shared, pending: &mut Pending) -> Built {
    let mut built = Built::default();
    for ip in &pod.addresses {
        built.part.element(base::pods(Ip::of(*ip)), address(*ip), Datum::None);
    }
    let text = pod.name.to_string();
    let hash = names::hash(&text);
    for direction in Direction::BOTH {
        built.is_closed |= pod.isolation(direction).default == Fallback::Deny;
        let (text, hash) = (text.as_str(), hash.as_str());
        PodChains { built: &mut built, shared, pending, effective, pod, text, hash, direction }.add();
    }
    built
}

/// The verdict map that leads to the chains of a direction, for one family.
pub(super) fn dispatch_map(direction: Direction, ip: Ip) -> &'static str {
    match (direction, ip) {
        (Direction::Ingress, Ip::V4) => "ingress4",
        (Direction::Ingress, Ip::V6) => "ingress6",
        (Direction::Egress, Ip::V4) => "egress4",
        (Direction::Egress, Ip::V6) => "egress6",
    }
}

/// One direction of one pod.
struct PodChains<'a> {
    built: &'a mut Built,
    shared: &'a mut Shared,
    pending: &'a mut Pending,
    effective: &'a Effective,
    pod: &'a EffectivePod,
    /// The pod's name, and the hash of it.
    text: &'a str,
    hash: &'a str,
    direction: Direction,
}

impl PodChains<'_> {
    fn add(mut self) {
        let isolation = self.pod.isolation(self.direction);
        let (default, key) = self.shared.allows.default(self.direction, &self.pod.name);
        self.built.named.allows.push(key);
        let tiers = tiers(isolation);
        for (position, tier) in tiers.iter().enumerate() {
            let next = tiers.get(position + 1).map_or_else(|| default.clone(), |tier| self.chain_name(*tier, &tiers));
            let rules = self.tier(*tier, isolation, (chain_kind(self.direction, *tier, &tiers), &next), &default);
            self.chain(self.chain_name(*tier, &tiers), rules);
        }
        let first = tiers.first().copied().unwrap_or(Tier::NetworkPolicy);
        let entry = self.chain_name(first, &[first]);
        if tiers.is_empty() {
            self.chain(entry.clone(), vec![goto(default)]);
        }
        for ip in &self.pod.addresses {
            let map = dispatch_map(self.direction, Ip::of(*ip));
            self.built.part.element(map, address(*ip), Datum::Verdict(Verdict::Jump(entry.clone())));
        }
    }

    fn chain(&mut self, name: Name, rules: Vec<Rule>) {
        let comment = names::comment(&format!("{} of pod {}", self.direction, self.text));
        self.built.part.chain(name, Chain { hook: None, comment, rules });
    }

    fn chain_name(&self, tier: Tier, tiers: &[Tier]) -> Name {
        self.name(&chain_kind(self.direction, tier, tiers))
    }

    fn name(&self, kind: &str) -> Name {
        names::hashed(kind, self.hash, self.text)
    }

    /// The rules of a tier's chain, which is of this kind and leads to the next one.
    fn tier(&mut self, tier: Tier, isolation: &Isolation, (kind, next): (String, &Name), default: &Name) -> Vec<Rule> {
        let mut rules = Vec::new();
        let network_policy = tier == Tier::NetworkPolicy && isolation.default != Fallback::Open;
        if network_policy {
            rules.extend(self.pod.addresses.iter().map(|address| self.reaches_itself(*address, default)));
        }
        let mut entries = Vec::new();
        for rule in isolation.rules.iter().filter(|rule| rule.tier == tier) {
            self.rule(rule, next, &mut entries);
        }
        let end = self.end(if network_policy { isolation.default } else { Fallback::Open }, next);
        match ports::split(&entries) {
            Some(split) => rules.extend(self.by_port(&kind, split, &end)),
            None => rules.extend(entries.iter().map(Entry::whole)),
        }
        rules.extend(end);
        rules
    }

    /// Makes the map and the chains of a split; what stays in the tier's own chain is the result.
    fn by_port(&mut self, kind: &str, split: Split, end: &[Rule]) -> Vec<Rule> {
        let mut elements = Elements::new();
        for (keys, mut rules) in split.lists {
            let first = keys.first().map_or_else(String::new, |(protocol, port)| format!("{}-{port}", protocol.name()));
            let chain = self.name(&format!("{kind}-{first}"));
            rules.extend(end.iter().cloned());
            self.chain(chain.clone(), rules);
            for (protocol, port) in keys {
                let key = Element::key([Value::Proto(protocol.number()), Value::Port(port)]);
                elements.insert(key, Datum::Verdict(Verdict::Goto(chain.clone())));
            }
        }
        let map = self.name(&format!("{kind}-ports"));
        let comment = names::comment(&format!("chains by port, {} of pod {}", self.direction, self.text));
        let key = vec![KeyType::InetProto, KeyType::InetService];
        self.built.part.set(map.clone(), Set { comment, elements, ..Set::of(SetKind::VerdictMap, key) });
        let ask = Expr::Vmap { key: vec![Field::L4Proto, Field::ThDport], map };
        let ask = Rule { exprs: vec![ask], ..Rule::default() };
        std::iter::once(ask).chain(split.others).collect()
    }

    /// A pod can always reach itself, by each of its addresses and through its own Service.
    fn reaches_itself(&self, own: IpAddr, default: &Name) -> Rule {
        let field = peer_field(self.direction, Ip::of(own));
        let own = Expr::Compare { field, value: address(own), negated: false };
        Rule { exprs: vec![own, Expr::Verdict(Verdict::Goto(default.clone()))], comment: "itself".to_owned() }
    }

    /// What happens where no rule decided.
    fn end(&mut self, default: Fallback, next: &Name) -> Vec<Rule> {
        match default {
            Fallback::Open => vec![goto(next.clone())],
            Fallback::Deny => vec![Rule { exprs: self.deny().into(), comment: "isolated".to_owned() }],
            Fallback::Audit => vec![self.would_drop(), goto(next.clone())],
        }
    }

    fn would_drop(&mut self) -> Rule {
        let meaning = CounterMeaning::WouldDrop { pod: self.pod.name.clone(), direction: self.direction };
        let counter = self.pod_counter("would-drop", meaning);
        let logged = Expr::Verdict(Verdict::Jump(log::audited(self.direction).into()));
        Rule { exprs: vec![Expr::Counter(counter), logged], comment: "audit: would drop".to_owned() }
    }

    /// What counts a drop of this pod and makes it.
    fn deny(&mut self) -> [Expr; 2] {
        let meaning = CounterMeaning::Dropped { pod: self.pod.name.clone(), direction: self.direction };
        [
            Expr::Counter(self.pod_counter("drop", meaning)),
            Expr::Verdict(Verdict::Goto(log::denied(self.direction).into())),
        ]
    }

    fn pod_counter(&mut self, kind: &str, meaning: CounterMeaning) -> Name {
        let kind = format!("{kind}-{}", self.direction);
        let name = names::hashed(&kind, self.hash, self.text);
        self.built.part.named_counter(name.clone(), &format!("{kind} of pod {}", self.text), meaning);
        name
    }

    /// One rule of policy: as many rules of the chain as it has alternatives and families.
    fn rule(&mut self, rule: &EffectiveRule, next: &Name, entries: &mut Vec<Entry>) {
        let goto = |chain: &Name| Expr::Verdict(Verdict::Goto(chain.clone()));
        let decision = match rule.action {
            Action::Accept => vec![goto(&self.allow_rule(rule))],
            Action::Deny => std::iter::once(self.rule_counter(rule)).chain(self.deny()).collect(),
            Action::Pass => vec![self.rule_counter(rule), goto(next)],
        };
        for mut entry in rule.matches.iter().flat_map(|alternative| self.alternative(alternative)).collect::<Vec<_>>() {
            entry.rest.extend(decision.iter().cloned());
            entries.push(entry);
        }
    }

    fn rule_counter(&mut self, rule: &EffectiveRule) -> Expr {
        let (name, key) = self.shared.decided(rule, self.pending);
        self.built.named.decided.push(key);
        Expr::Counter(name)
    }

    fn allow_rule(&mut self, rule: &EffectiveRule) -> Name {
        let (name, key) = self.shared.allows.rule(self.direction, rule);
        self.built.named.allows.push(key);
        name
    }

    fn set(&mut self, key: sets::Key) -> Name {
        let name = self.shared.set(&key, self.effective, self.pending);
        self.built.named.sets.push(key);
        name
    }

    /// The matches of one alternative: one for each rule of the chain it takes.
    fn alternative(&mut self, alternative: &RuleMatch) -> Vec<Entry> {
        let (ports, asks, peers) = match alternative {
            RuleMatch::Peer(peer, port) => (Ports::Of(port.clone()), self.port(port), self.peer(peer)),
            RuleMatch::Endpoint(endpoint) => (Ports::Named(endpoint.protocol), Vec::new(), self.endpoint(endpoint)),
        };
        peers.into_iter().map(|rest| Entry { ports: ports.clone(), asks: asks.clone(), rest }).collect()
    }

    /// The families the pod has addresses of: it has no packets of another.
    fn families(&self) -> Vec<Ip> {
        Ip::BOTH.into_iter().filter(|ip| self.pod.addresses.iter().any(|address| Ip::of(*address) == *ip)).collect()
    }

    fn peer(&mut self, peer: &PeerMatch) -> Vec<Vec<Expr>> {
        if *peer == PeerMatch::Any {
            return vec![Vec::new()];
        }
        let families = self.families().into_iter();
        families.filter_map(|ip| self.peer_of(ip, peer)).map(|expr| vec![expr]).collect()
    }

    /// What asks for a peer of one family; `None` for one that has no address of it.
    fn peer_of(&mut self, ip: Ip, peer: &PeerMatch) -> Option<Expr> {
        let field = peer_field(self.direction, ip);
        let key = match peer {
            PeerMatch::Any => return None,
            PeerMatch::Pods(pods) => sets::Key::Peer(ip, Arc::clone(pods)),
            PeerMatch::Blocks(blocks) => match sets::blocks(ip, blocks).as_slice() {
                [] => return None,
                // A comparison costs a packet less than a set, and the kernel finds a set by walking all of them.
                [prefix] if prefix.prefix() > 0 => return Some(Expr::Prefix { field, prefix: *prefix }),
                blocks => sets::Key::Blocks(ip, blocks.to_vec()),
            },
        };
        Some(Expr::Lookup { key: vec![field], set: self.set(key) })
    }

    fn port(&mut self, port: &PortMatch) -> Vec<Expr> {
        match port {
            PortMatch::Any => Vec::new(),
            PortMatch::All(protocol) => {
                let value = Value::Proto(protocol.number());
                vec![Expr::Compare { field: Field::L4Proto, value, negated: false }]
            }
            PortMatch::Ranges(protocol, ranges) => {
                let field = port_field(*protocol);
                vec![match ranges.as_slice() {
                    [one] if one.start() == one.end() => {
                        Expr::Compare { field, value: Value::Port(*one.start()), negated: false }
                    }
                    [one] => Expr::Range { field, first: Value::Port(*one.start()), last: Value::Port(*one.end()) },
                    several => Expr::Lookup { key: vec![field], set: self.set(sets::Key::Ports(several.to_vec())) },
                }]
            }
        }
    }

    fn endpoint(&mut self, endpoint: &Arc<EndpointKey>) -> Vec<Vec<Expr>> {
        let mut lookups = Vec::new();
        for ip in self.families() {
            let set = self.set(sets::Key::Endpoints(ip, Arc::clone(endpoint)));
            let key = vec![peer_field(self.direction, ip), Field::L4Proto, Field::ThDport];
            lookups.push(vec![Expr::Lookup { key, set }]);
        }
        lookups
    }
}

/// What the chain of a tier is: the first one has the pod's stable name.
fn chain_kind(direction: Direction, tier: Tier, tiers: &[Tier]) -> String {
    match tier {
        _ if tiers.first() == Some(&tier) => direction.word().to_owned(),
        Tier::Admin => format!("{direction}-admin"),
        Tier::NetworkPolicy => format!("{direction}-policy"),
        Tier::Baseline => format!("{direction}-baseline"),
    }
}

/// The tiers that have something to say, in order.
fn tiers(isolation: &Isolation) -> Vec<Tier> {
    [Tier::Admin, Tier::NetworkPolicy, Tier::Baseline]
        .into_iter()
        .filter(|tier| {
            *tier == Tier::NetworkPolicy && isolation.default != Fallback::Open
                || isolation.rules.iter().any(|rule| rule.tier == *tier)
        })
        .collect()
}

fn goto(chain: Name) -> Rule {
    Rule { exprs: vec![Expr::Verdict(Verdict::Goto(chain))], ..Rule::default() }
}

/// The address of the other side.
fn peer_field(direction: Direction, ip: Ip) -> Field {
    match (direction, ip) {
        (Direction::Ingress, Ip::V4) => Field::IpSaddr,
        (Direction::Ingress, Ip::V6) => Field::Ip6Saddr,
        (Direction::Egress, Ip::V4) => Field::IpDaddr,
        (Direction::Egress, Ip::V6) => Field::Ip6Daddr,
    }
}

fn port_field(protocol: Protocol) -> Field {
    match protocol {
        Protocol::Tcp => Field::TcpDport,
        Protocol::Udp => Field::UdpDport,
        Protocol::Sctp => Field::SctpDport,
    }
}
