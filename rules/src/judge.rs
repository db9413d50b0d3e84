//! Whether policy allows a connection that runs, and for whom it counts.
//!
//! In: [`Effective`] and a [`Flow`] as conntrack knows it (after destination translation). Out: a [`Judgement`]. What
//! always holds: the same answer as the ruleset of the same policy gives a new connection, down to the rule that allows; the
//! way back is not asked for, replies go with their connection.

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use imbl::OrdSet;
use ipnetwork::IpNetwork;

use crate::effective::{
    Addresses, Effective, EffectivePod, EffectiveRule, Endpoint, Fallback, Isolation, PeerMatch, PortMatch,
    RuleIdentity, RuleMatch,
};
use crate::ids::Origin;
use crate::object::{ObjectName, Protocol};
use crate::policy::{Action, Direction, Tier};
use crate::ranges::PodRanges;

/// A connection, from who began it to where it ended up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Who began it.
    pub source: IpAddr,
    /// Who answers it: the pod behind a Service, not the Service.
    pub destination: IpAddr,
    /// The number of the protocol in the IP header.
    pub protocol: u8,
    /// The destination port, where the protocol has ports.
    pub port: Option<u16>,
    /// This node itself began it.
    pub from_node: bool,
    /// This node itself answers it.
    pub to_node: bool,
}

/// What policy says of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement<'a> {
    /// It may run.
    Allowed {
        /// What let it out of the local pod it is from; `None` where it is from none, or was not asked.
        egress: Option<Origin<'a>>,
        /// What let it into the local pod it is to.
        ingress: Option<Origin<'a>>,
    },
    /// It may not: an end is in this node's pod ranges and is no known pod.
    Unknown,
    /// It may not.
    Denied {
        /// Whose policy forbids it.
        pod: ObjectName,
        /// In which direction.
        direction: Direction,
    },
}

impl Judgement<'_> {
    /// Whether it may run.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allowed { .. })
    }
}

/// Answers for many flows: every look-up is made ready.
pub struct Judge<'a> {
    pods: Vec<Judged<'a>>,
    by_address: HashMap<IpAddr, usize>,
    own_node_egress: bool,
    ranges: Option<&'a PodRanges>,
}

/// A local pod, with both directions ready.
struct Judged<'a> {
    name: &'a ObjectName,
    ingress: Walk<'a>,
    egress: Walk<'a>,
}

/// The rules of a direction, in order.
struct Walk<'a> {
    deny: bool,
    rules: Vec<WalkRule<'a>>,
}

/// A rule with its sets at hand.
struct WalkRule<'a> {
    identity: &'a RuleIdentity,
    tier: Tier,
    action: Action,
    matches: Vec<WalkMatch<'a>>,
}

/// One alternative of a rule.
enum WalkMatch<'a> {
    Peer(WalkPeer<'a>, &'a PortMatch),
    Endpoint(Option<&'a OrdSet<Endpoint>>),
}

/// The other side's address.
enum WalkPeer<'a> {
    Any,
    Pods(Option<&'a Addresses>),
    Blocks(&'a [IpNetwork]),
}

impl<'a> Judge<'a> {
    /// A judge of this policy; `own_node_egress` is [`crate::compile::Layout::own_node_egress`].
    pub fn new(effective: &'a Effective, own_node_egress: bool) -> Self {
        let by_address = effective
            .pods()
            .values()
            .enumerate()
            .flat_map(|(position, pod)| pod.addresses.iter().map(move |address| (*address, position)))
            .collect();
        let pods = effective.pods().values().map(|pod| Judged::new(effective, pod)).collect();
        Self { pods, by_address, own_node_egress, ranges: None }
    }

    /// The same, and what is in these ranges and no known pod is closed ([`crate::compile::Layout::pod_ranges`]).
    #[must_use]
    pub fn within(mut self, ranges: &'a PodRanges) -> Self {
        self.ranges = Some(ranges);
        self
    }

    /// Whether an end of a flow is at no known pod, where it is asked.
    fn is_unknown(&self, flow: &Flow) -> bool {
        let unknown = |address: IpAddr| {
            self.ranges.is_some_and(|ranges| ranges.holds(address)) && !self.by_address.contains_key(&address)
        };
        let from = (self.own_node_egress || !flow.to_node) && unknown(flow.source);
        !flow.from_node && (from || (!flow.to_node && unknown(flow.destination)))
    }

    /// What policy says of a flow.
    pub fn judge(&self, flow: &Flow) -> Judgement<'a> {
        if self.is_unknown(flow) {
            return Judgement::Unknown;
        }
        let source = self.by_address.get(&flow.source).filter(|_| !flow.from_node);
        let destination = self.by_address.get(&flow.destination).filter(|_| !flow.to_node && !flow.from_node);
        let itself = source.is_some() && source == destination;
        let held = self.own_node_egress || !flow.to_node;
        let half = |position: Option<&usize>, direction| {
            let Some(pod) = position.map(|position| &self.pods[*position]) else { return Ok(None) };
            let origin = if itself { Some(Origin::Default(pod.name)) } else { pod.lets(direction, flow) };
            let denied = || Judgement::Denied { pod: pod.name.clone(), direction };
            origin.map(Some).ok_or_else(denied)
        };
        let egress = half(source.filter(|_| held), Direction::Egress);
        let both = egress.and_then(|egress| Ok((egress, half(destination, Direction::Ingress)?)));
        both.map_or_else(|denied| denied, |(egress, ingress)| Judgement::Allowed { egress, ingress })
    }
}

impl<'a> Judged<'a> {
    fn new(effective: &'a Effective, pod: &'a EffectivePod) -> Self {
        Self { name: &pod.name, ingress: Walk::new(effective, &pod.ingress), egress: Walk::new(effective, &pod.egress) }
    }

    /// What lets a flow through; nothing where it is denied.
    fn lets(&self, direction: Direction, flow: &Flow) -> Option<Origin<'a>> {
        let decided = match direction {
            Direction::Ingress => self.ingress.decides(flow.source, flow),
            Direction::Egress => self.egress.decides(flow.destination, flow),
        };
        match decided {
            Decided::Rule(identity) => Some(Origin::Rule(identity)),
            Decided::Nothing => Some(Origin::Default(self.name)),
            Decided::Denied => None,
        }
    }
}

/// How the rules of a direction end.
enum Decided<'a> {
    /// This rule accepts.
    Rule(&'a RuleIdentity),
    /// No rule speaks of it, and it passes.
    Nothing,
    Denied,
}

impl<'a> Walk<'a> {
    fn new(effective: &'a Effective, isolation: &'a Isolation) -> Self {
        // Audited rules forbid nothing; what would be dropped passes.
        let decides = |rule: &&Arc<EffectiveRule>| {
            isolation.default == Fallback::Deny || rule.tier != Tier::NetworkPolicy || rule.action == Action::Accept
        };
        Self {
            deny: isolation.default == Fallback::Deny,
            rules: isolation.rules.iter().filter(decides).map(|rule| WalkRule::new(effective, rule)).collect(),
        }
    }

    /// The first rule of a tier that matches decides; isolation ends the walk behind the NetworkPolicy tier.
    fn decides(&self, other: IpAddr, flow: &Flow) -> Decided<'a> {
        let mut left = None;
        for rule in &self.rules {
            if self.deny && rule.tier > Tier::NetworkPolicy {
                break;
            }
            if left == Some(rule.tier) || !rule.matches(other, flow) {
                continue;
            }
            match rule.action {
                Action::Accept => return Decided::Rule(rule.identity),
                Action::Deny => return Decided::Denied,
                Action::Pass => left = Some(rule.tier),
            }
        }
        if self.deny { Decided::Denied } else { Decided::Nothing }
    }
}

impl<'a> WalkRule<'a> {
    fn new(effective: &'a Effective, rule: &'a EffectiveRule) -> Self {
        let matches = rule.matches.iter().map(|alternative| WalkMatch::new(effective, alternative)).collect();
        Self { identity: &rule.identity, tier: rule.tier, action: rule.action, matches }
    }

    fn matches(&self, other: IpAddr, flow: &Flow) -> bool {
        self.matches.iter().any(|alternative| alternative.matches(other, flow))
    }
}

/// [`Effective`] holds every set that a rule names; nothing matches where it would not.
impl<'a> WalkMatch<'a> {
    fn new(effective: &'a Effective, alternative: &'a RuleMatch) -> Self {
        match alternative {
            RuleMatch::Endpoint(key) => Self::Endpoint(effective.endpoints.get(key)),
            RuleMatch::Peer(PeerMatch::Any, port) => Self::Peer(WalkPeer::Any, port),
            RuleMatch::Peer(PeerMatch::Blocks(blocks), port) => Self::Peer(WalkPeer::Blocks(blocks), port),
            RuleMatch::Peer(PeerMatch::Pods(peer), port) => Self::Peer(WalkPeer::Pods(effective.peers.get(peer)), port),
        }
    }

    fn matches(&self, other: IpAddr, flow: &Flow) -> bool {
        match self {
            Self::Peer(peer, port) => peer.contains(other) && port_matches(port, flow),
            Self::Endpoint(endpoints) => {
                let protocol = Protocol::ALL.into_iter().find(|protocol| protocol.number() == flow.protocol);
                let endpoint = protocol.zip(flow.port);
                let endpoint = endpoint.map(|(protocol, port)| Endpoint { address: other, protocol, port });
                endpoints.zip(endpoint).is_some_and(|(endpoints, endpoint)| endpoints.contains(&endpoint))
            }
        }
    }
}

impl WalkPeer<'_> {
    fn contains(&self, address: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::Pods(addresses) => addresses.is_some_and(|addresses| addresses.contains(address)),
            Self::Blocks(blocks) => blocks.iter().any(|block| block.contains(address)),
        }
    }
}

fn port_matches(port: &PortMatch, flow: &Flow) -> bool {
    let within =
        |ranges: &[RangeInclusive<u16>]| flow.port.is_some_and(|port| ranges.iter().any(|range| range.contains(&port)));
    match port {
        PortMatch::Any => true,
        PortMatch::All(protocol) => protocol.number() == flow.protocol,
        PortMatch::Ranges(protocol, ranges) => protocol.number() == flow.protocol && within(ranges),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effective::EndpointKey;
    use crate::testing::{flow, ip, object_name};

    const SOURCE: &str = "10.0.0.1";
    const POD: &str = "10.0.0.2";

    fn rule(tier: Tier, action: Action, port: u16) -> EffectiveRule {
        let identity = RuleIdentity {
            policy: object_name("x/p"),
            direction: Direction::Ingress,
            action,
            peers: String::new(),
            ports: String::new(),
            occurrence: 0,
        };
        let ports = PortMatch::Ranges(Protocol::Tcp, vec![port..=port]);
        EffectiveRule {
            identity: Arc::new(identity),
            index: 0,
            tier,
            action,
            matches: vec![RuleMatch::Peer(PeerMatch::Any, ports)],
        }
    }

    fn allowed(default: Fallback, rules: &[EffectiveRule], port: u16) -> bool {
        let pod = EffectivePod {
            name: object_name("x/a"),
            addresses: vec![ip(POD)],
            ingress: Isolation { default, policies: Vec::new(), rules: rules.iter().cloned().map(Arc::new).collect() },
            egress: Isolation::default(),
        };
        let effective = Effective::from_iter([pod]);
        Judge::new(&effective, true).judge(&flow(SOURCE, POD, &format!("tcp/{port}"))).is_allowed()
    }

    #[test]
    fn the_first_rule_of_a_tier_that_matches_decides() {
        use {Action::*, Tier::*};
        let rules = [
            rule(Admin, Accept, 1),
            rule(Admin, Pass, 2),
            rule(Admin, Deny, 1),
            rule(Admin, Deny, 2),
            rule(Admin, Deny, 3),
            rule(NetworkPolicy, Accept, 2),
            rule(NetworkPolicy, Accept, 3),
            rule(Baseline, Accept, 4),
            rule(Baseline, Deny, 5),
        ];
        for (default, port, verdict) in [
            (Fallback::Deny, 1, true),
            (Fallback::Deny, 2, true),
            (Fallback::Deny, 3, false),
            (Fallback::Deny, 4, false),
            (Fallback::Deny, 6, false),
            (Fallback::Open, 3, false),
            (Fallback::Open, 4, true),
            (Fallback::Open, 5, false),
            (Fallback::Open, 6, true),
        ] {
            assert_eq!(allowed(default, &rules, port), verdict, "{default:?} {port}");
        }
    }

    #[test]
    fn audited_rules_decide_nothing_but_those_of_other_tiers_do() {
        let rules = [rule(Tier::NetworkPolicy, Action::Deny, 1), rule(Tier::Baseline, Action::Deny, 2)];
        assert!(allowed(Fallback::Audit, &rules, 1) && !allowed(Fallback::Audit, &rules, 2));
        assert!(allowed(Fallback::Audit, &rules, 3));
    }

    #[test]
    fn a_set_that_is_not_there_matches_nothing() {
        let peer = crate::policy::PodPeer {
            namespaces: crate::policy::Namespaces::Named("x".into()),
            pods: crate::policy::Selector::default(),
        };
        let key = EndpointKey { peer: PeerMatch::Any, protocol: Protocol::Tcp, port: "web".into() };
        for alternative in
            [RuleMatch::Peer(PeerMatch::Pods(Arc::new(peer)), PortMatch::Any), RuleMatch::Endpoint(Arc::new(key))]
        {
            let rule = EffectiveRule { matches: vec![alternative], ..rule(Tier::NetworkPolicy, Action::Accept, 1) };
            assert!(!allowed(Fallback::Deny, &[rule], 1));
        }
    }
}
