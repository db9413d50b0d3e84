//! The chains of one pod: what its egress and its ingress allow, and for whom that counts.
//!
//! In: [`EffectivePod`] and [`Ids`]. Out: for each direction a chain, and the elements of the verdict maps that lead to it;
//! for whatever allows, a chain that writes its id into ct mark. What always holds: what allows ends in such a chain, which leads back
//! to the base chain that dispatched, so an egress allow goes on to the destination's ingress and never ends the
//! evaluation; the last rule of an isolated pod drops. A tier is a chain; Pass and the end of a tier go to the next tier's
//! chain. Where many rules name single ports, a map leads from protocol and port to a chain with those that can match ([`ports`]), in their
//! order and with the same end. The id stands in a chain of its own because a packet that conntrack does not know ends the rule that writes a mark, and must still be
//! allowed.

use std::net::IpAddr;
use std::sync::Arc;

use super::CounterMeaning;
use super::allow::Allowed;
use super::log;
use super::ports::{self, Entry, Ports, Split};
use super::sets::{Builder, Ip, address};
use crate::effective::{
    Effective, EffectivePod, EffectiveRule, EndpointKey, Fallback, Isolation, PeerMatch, PortMatch, RuleMatch,
};
use crate::ids::Ids;
use crate::names;
use crate::object::Protocol;
use crate::policy::{Action, Direction, Tier};
use crate::ruleset::{Chain, Datum, Element, Expr, Field, KeyType, Rule, SetKind, Value, Verdict};

/// Adds both directions of a pod.
pub(super) fn add<'a>(table: &mut Builder<'a>, effective: &'a Effective, ids: &'a Ids, pod: &'a EffectivePod) {
    for address in &pod.addresses {
        table.local_pod(*address);
    }
    for direction in Direction::BOTH {
        PodChains { table, effective, ids, pod, direction }.add();
    }
}

/// The verdict map that leads to the chains of a direction, for one family.
pub(super) fn dispatch_map(direction: Direction, ip: Ip) -> String {
    format!("{}{}", direction.word(), ip.digit())
}

/// One direction of one pod.
struct PodChains<'a, 'b> {
    table: &'b mut Builder<'a>,
    effective: &'a Effective,
    ids: &'a Ids,
    pod: &'a EffectivePod,
    direction: Direction,
}

impl<'a> PodChains<'a, '_> {
    fn add(mut self) {
        let isolation = self.pod.isolation(self.direction);
        let default = self.table.allow(self.ids, self.direction, &Allowed::Default(self.pod));
        let tiers = tiers(isolation);
        for (position, tier) in tiers.iter().enumerate() {
            let next = tiers.get(position + 1).map_or_else(|| default.clone(), |tier| self.chain_name(*tier, &tiers));
            let rules = self.tier(*tier, isolation, (self.chain_kind(*tier, &tiers), &next), &default);
            self.chain(&self.chain_name(*tier, &tiers), rules);
        }
        let first = tiers.first().copied().unwrap_or(Tier::NetworkPolicy);
        let entry = self.chain_name(first, &[first]);
        if tiers.is_empty() {
            self.chain(&entry, vec![goto(default)]);
        }
        for ip in &self.pod.addresses {
            let map = dispatch_map(self.direction, Ip::of(*ip));
            self.table.element(&map, address(*ip), Datum::Verdict(Verdict::Jump(entry.clone())));
        }
    }

    fn chain(&mut self, name: &str, rules: Vec<Rule>) {
        let comment = names::comment(&format!("{} of pod {}", self.direction, self.pod.name));
        self.table.chain(name, Chain { hook: None, comment, rules });
    }

    fn chain_name(&self, tier: Tier, tiers: &[Tier]) -> String {
        self.name(&self.chain_kind(tier, tiers))
    }

    fn name(&self, kind: &str) -> String {
        let pod = self.pod.name.to_string();
        names::name(kind, &pod, &pod)
    }

    /// What the chain of a tier is: the first one has the pod's stable name.
    fn chain_kind(&self, tier: Tier, tiers: &[Tier]) -> String {
        match tier {
            _ if tiers.first() == Some(&tier) => self.direction.word().to_owned(),
            Tier::Admin => format!("{}-admin", self.direction),
            Tier::NetworkPolicy => format!("{}-policy", self.direction),
            Tier::Baseline => format!("{}-baseline", self.direction),
        }
    }

    /// The rules of a tier's chain, which is of this kind and leads to the next one.
    fn tier(&mut self, tier: Tier, isolation: &'a Isolation, (kind, next): (String, &str), default: &str) -> Vec<Rule> {
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
        let map = self.name(&format!("{kind}-ports"));
        let comment = names::comment(&format!("chains by port, {} of pod {}", self.direction, self.pod.name));
        self.table.fixed(&map, SetKind::VerdictMap, vec![KeyType::InetProto, KeyType::InetService], &comment);
        for (keys, mut rules) in split.lists {
            let first = keys.first().map_or_else(String::new, |(protocol, port)| format!("{}-{port}", protocol.name()));
            let chain = self.name(&format!("{kind}-{first}"));
            rules.extend(end.iter().cloned());
            self.chain(&chain, rules);
            for (protocol, port) in keys {
                let key = Element::key([Value::Proto(protocol.number()), Value::Port(port)]);
                self.table.keyed(&map, key, Datum::Verdict(Verdict::Goto(chain.clone())));
            }
        }
        let ask = Expr::Vmap { key: vec![Field::L4Proto, Field::ThDport], map };
        let ask = Rule { exprs: vec![ask], ..Rule::default() };
        std::iter::once(ask).chain(split.others).collect()
    }

    /// A pod can always reach itself, by each of its addresses and through its own Service.
    fn reaches_itself(&self, own: IpAddr, default: &str) -> Rule {
        let field = peer_field(self.direction, Ip::of(own));
        let own = Expr::Compare { field, value: address(own), negated: false };
        Rule { exprs: vec![own, Expr::Verdict(Verdict::Goto(default.to_owned()))], comment: "itself".to_owned() }
    }

    /// What happens where no rule decided.
    fn end(&mut self, default: Fallback, next: &str) -> Vec<Rule> {
        match default {
            Fallback::Open => vec![goto(next.to_owned())],
            Fallback::Deny => vec![Rule { exprs: self.deny().into(), comment: "isolated".to_owned() }],
            Fallback::Audit => vec![self.would_drop(), goto(next.to_owned())],
        }
    }

    fn would_drop(&mut self) -> Rule {
        let meaning = CounterMeaning::WouldDrop { pod: self.pod.name.clone(), direction: self.direction };
        let counter = self.pod_counter("would-drop", meaning);
        let logged = Expr::Verdict(Verdict::Jump(log::audited(self.direction)));
        Rule { exprs: vec![Expr::Counter(counter), logged], comment: "audit: would drop".to_owned() }
    }

    /// What counts a drop of this pod and makes it.
    fn deny(&mut self) -> [Expr; 2] {
        let meaning = CounterMeaning::Dropped { pod: self.pod.name.clone(), direction: self.direction };
        [Expr::Counter(self.pod_counter("drop", meaning)), Expr::Verdict(Verdict::Goto(log::denied(self.direction)))]
    }

    fn pod_counter(&mut self, kind: &str, meaning: CounterMeaning) -> String {
        let pod = self.pod.name.to_string();
        let kind = format!("{kind}-{}", self.direction);
        self.table.counter((&kind, &pod, &pod), &format!("{kind} of pod {pod}"), meaning)
    }

    /// One rule of policy: as many rules of the chain as it has alternatives and families.
    fn rule(&mut self, rule: &'a EffectiveRule, next: &str, entries: &mut Vec<Entry>) {
        let goto = |chain: &str| Expr::Verdict(Verdict::Goto(chain.to_owned()));
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
        let meaning =
            CounterMeaning::Rule { identity: Arc::clone(&rule.identity), index: rule.index, action: rule.action };
        let policy = rule.identity.policy.to_string();
        let text = format!("{} {}", rule.identity.direction, rule.identity.content());
        Expr::Counter(self.table.counter(("rule", &rule.identity.text(), &policy), &text, meaning))
    }

    fn allow_rule(&mut self, rule: &'a EffectiveRule) -> String {
        self.table.allow(self.ids, self.direction, &Allowed::Rule(rule))
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
        let mut lookups = Vec::new();
        for ip in self.families() {
            let set = match peer {
                PeerMatch::Any => None,
                PeerMatch::Pods(pods) => self
                    .effective
                    .peers
                    .get(pods)
                    .map(|addresses| self.table.addresses(ip, &pods.to_string(), addresses)),
                PeerMatch::Blocks(blocks) => self.table.blocks(ip, blocks),
            };
            lookups.extend(set.map(|set| vec![Expr::Lookup { key: vec![peer_field(self.direction, ip)], set }]));
        }
        lookups
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
                    several => Expr::Lookup { key: vec![field], set: self.table.ports(several) },
                }]
            }
        }
    }

    fn endpoint(&mut self, endpoint: &EndpointKey) -> Vec<Vec<Expr>> {
        let Some(endpoints) = self.effective.endpoints.get(endpoint) else { return Vec::new() };
        let mut lookups = Vec::new();
        for ip in self.families() {
            let set = self.table.endpoints(ip, &endpoint.to_string(), endpoints);
            let key = vec![peer_field(self.direction, ip), Field::L4Proto, Field::ThDport];
            lookups.push(vec![Expr::Lookup { key, set }]);
        }
        lookups
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

fn goto(chain: String) -> Rule {
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
