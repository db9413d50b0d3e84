//! What the rules of a ruleset do to one packet.
//!
//! In: a [`Packet`] at a hook and a [`Ruleset`]. Out: [`Trace`]: the verdict, who gave it, the counters hit, the mark left
//! on the flow. What always holds: base chains of a hook run by priority, in all tables of the packet's family; accept
//! ends one base chain, drop ends the packet; limits never run out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::ruleset::{
    CtDirection, Datum, Element, Expr, Family, Field, Hook, Rule, Ruleset, Set, Table, TableId, Value, Verdict,
};

/// A packet as it looks at a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Which tables see it: `Inet` for packets, `Bridge` for frames.
    pub family: Family,
    /// The hook it is at.
    pub hook: Hook,
    /// The interface (or bridge port) it came in by; none at output.
    pub iif: Option<String>,
    /// The Ethernet protocol of its frame.
    pub ether_type: u16,
    /// Source and destination; none for what is no IP.
    pub addresses: Option<(IpAddr, IpAddr)>,
    /// IP protocol.
    pub protocol: u8,
    /// The two bytes at offset 2 of its transport header, where there are such.
    pub dport: Option<u16>,
    /// IPv6 hop limit at the hook.
    pub hop_limit: u8,
    /// ICMPv6 type, where it has one.
    pub icmpv6_type: Option<u8>,
    /// What kind of address the destination is on the incoming interface (RTN_*).
    pub address_type: u32,
    /// Its flow; none when it is untracked.
    pub flow: Option<Flow>,
    /// What its frame says beside, where the port it came in by is asked for.
    pub frame: Frame,
}

/// What a frame says of its sender.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// The source of its header.
    pub source: [u8; 6],
    /// The sender of an ARP packet: link layer and IPv4.
    pub arp: Option<([u8; 6], Ipv4Addr)>,
    /// What follows the fixed header of IPv6.
    pub next_header: u8,
    /// Bytes behind the fixed header of IPv6.
    pub length: u16,
    /// The bytes behind the first 8 of an ICMPv6 packet, as many as it has of these: where a neighbour advertisement has its target.
    pub target: Option<Ipv6Addr>,
    /// The 8 bytes behind that.
    pub option: Option<[u8; 8]>,
}

/// What conntrack knows of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Which way the packet goes.
    pub direction: CtDirection,
    /// It opens a flow that belongs to another, or is an ICMP error about one.
    pub related: bool,
    /// The mark.
    pub mark: u32,
}

/// What happened to a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// Whether it may go on.
    pub passed: bool,
    /// Who decided, for each base chain it went through: in the order they ran.
    pub decisions: Vec<Decision>,
    /// The named counters it hit, each time.
    pub counters: Vec<String>,
    /// The mark of its flow afterwards.
    pub mark: Option<u32>,
}

/// The end of a base chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The table.
    pub table: TableId,
    /// The base chain.
    pub base: String,
    /// Chain and place of the rule that decided; none for the chain's policy.
    pub rule: Option<(String, usize)>,
    /// Whether it accepted.
    pub accepted: bool,
}

/// Sends a packet through its hook.
pub fn trace(ruleset: &Ruleset, packet: &Packet) -> Trace {
    let mut bases: Vec<_> = ruleset
        .tables
        .iter()
        .filter(|(id, _)| id.family == packet.family)
        .flat_map(|(id, table)| table.chains.iter().map(move |(name, chain)| (id, table, name, chain.hook)))
        .filter_map(|(id, table, name, hook)| hook.map(|base| (base, id, table, name)))
        .filter(|(base, ..)| base.hook == packet.hook)
        .collect();
    bases.sort_by_key(|(base, ..)| base.priority);
    let mark = packet.flow.map(|flow| flow.mark);
    let mut trace = Trace { passed: true, mark, ..Trace::default() };
    for (_, id, table, name) in bases {
        let mut walk = Walk { packet, table, trace: &mut trace };
        let (accepted, rule) = match walk.chain(name) {
            Outcome::Accept(rule) => (true, Some(rule)),
            Outcome::Drop(rule) => (false, Some(rule)),
            Outcome::Back => (true, None),
        };
        trace.decisions.push(Decision { table: id.clone(), base: name.to_string(), rule, accepted });
        if !accepted {
            trace.passed = false;
            break;
        }
    }
    trace
}

/// How a chain ended.
enum Outcome {
    /// Accepted by this rule.
    Accept((String, usize)),
    /// Dropped by this rule.
    Drop((String, usize)),
    /// Nothing decided.
    Back,
}

/// How an expression went.
enum Step {
    /// On to the next one.
    Next,
    /// The rule ends here.
    Mismatch,
    /// A verdict.
    Verdict(Verdict),
}

/// A packet inside a table.
struct Walk<'a, 'b> {
    packet: &'a Packet,
    table: &'a Table,
    trace: &'b mut Trace,
}

impl Walk<'_, '_> {
    /// Through a chain; a chain that is not there is empty.
    fn chain(&mut self, name: &str) -> Outcome {
        let Some(chain) = self.table.chains.get(name) else { return Outcome::Back };
        for (place, rule) in chain.rules.iter().enumerate() {
            let here = || (name.to_string(), place);
            match self.rule(rule) {
                None => {}
                Some(Verdict::Accept) => return Outcome::Accept(here()),
                Some(Verdict::Drop) => return Outcome::Drop(here()),
                Some(Verdict::Return) => return Outcome::Back,
                Some(Verdict::Goto(next)) => return self.chain(&next),
                Some(Verdict::Jump(next)) => match self.chain(&next) {
                    Outcome::Back => {}
                    decided => return decided,
                },
            }
        }
        Outcome::Back
    }

    /// Through a rule.
    fn rule(&mut self, rule: &Rule) -> Option<Verdict> {
        for expr in &rule.exprs {
            match self.expr(expr) {
                Step::Next => {}
                Step::Mismatch => return None,
                Step::Verdict(verdict) => return Some(verdict),
            }
        }
        None
    }

    /// One match or statement.
    fn expr(&mut self, expr: &Expr) -> Step {
        let flow = self.packet.flow;
        let matches = match expr {
            Expr::CtMark { mask, value, negated } => {
                self.trace.mark.is_some_and(|mark| (mark & mask == *value) != *negated)
            }
            Expr::CtDirection(direction) => flow.is_some_and(|flow| flow.direction == *direction),
            Expr::CtStateRelated => flow.is_some_and(|flow| flow.related),
            Expr::Compare { field, value, negated } => {
                self.field(*field).is_some_and(|found| (found == *value) != *negated)
            }
            Expr::Range { field, first, last } => {
                self.field(*field).is_some_and(|found| (first..=last).contains(&&found))
            }
            Expr::Prefix { field, prefix } => self.field(*field).is_some_and(|found| match found {
                Value::V4(address) => prefix.contains(IpAddr::V4(address)),
                Value::V6(address) => prefix.contains(IpAddr::V6(address)),
                _ => false,
            }),
            Expr::Lookup { key, set } => self.key(key).and_then(|key| self.element(set, &key)).is_some(),
            Expr::Vmap { key, map } => {
                return match self.key(key).and_then(|key| self.element(map, &key)) {
                    Some(Datum::Verdict(verdict)) => Step::Verdict(verdict),
                    // A map without the element ends the rule, as a set does.
                    _ => Step::Mismatch,
                };
            }
            Expr::CountMark { mask, set } => self.count_mark(*mask, set),
            Expr::Counter(name) => {
                self.trace.counters.push(name.to_string());
                true
            }
            Expr::SetCtMark { keep, value } => {
                self.trace.mark = self.trace.mark.map(|mark| mark & keep | value);
                // Bits that stay are read first, and there is nothing to read without a flow.
                *keep == 0 || self.trace.mark.is_some()
            }
            Expr::Limit { .. } | Expr::Log { .. } => true,
            Expr::Verdict(verdict) => return Step::Verdict(verdict.clone()),
            Expr::Foreign(_) => false,
        };
        if matches { Step::Next } else { Step::Mismatch }
    }

    /// Hits the counter of the mark's element.
    fn count_mark(&mut self, mask: u32, set: &str) -> bool {
        let Some(mark) = self.trace.mark else { return false };
        match self.element(set, &[Value::Mark(mark & mask)]) {
            Some(Datum::Counter(name)) => {
                self.trace.counters.push(name.to_string());
                true
            }
            found => found.is_some(),
        }
    }

    /// The values of a concatenated key; none if the packet lacks one.
    fn key(&self, key: &[Field]) -> Option<Vec<Value>> {
        key.iter().map(|field| self.field(*field)).collect()
    }

    /// What a set has for a key.
    fn element(&self, set: &str, key: &[Value]) -> Option<Datum> {
        let set: &Set = self.table.sets.get(set)?;
        if !set.interval {
            return set.elements.get(&Element::key(key.to_vec())).cloned();
        }
        let [value] = key else { return None };
        set.elements.iter().find_map(|(element, datum)| match element {
            Element::Range(first, last) => (first <= *value && *value <= last).then_some(datum),
            Element::Key(_) => None,
        })
    }

    /// What the packet has in a field; none where the field is not there.
    fn field(&self, field: Field) -> Option<Value> {
        let packet = self.packet;
        let (source, destination) = packet.addresses.unzip();
        let v4 = |address: Option<IpAddr>| match address {
            Some(IpAddr::V4(address)) => Some(Value::V4(address)),
            _ => None,
        };
        let v6 = |address: Option<IpAddr>| match address {
            Some(IpAddr::V6(address)) => Some(Value::V6(address)),
            _ => None,
        };
        let port = |protocol: u8| packet.dport.filter(|_| packet.protocol == protocol).map(Value::Port);
        match field {
            Field::IpSaddr => v4(source),
            Field::IpDaddr => v4(destination),
            Field::Ip6Saddr => v6(source),
            Field::Ip6Daddr => v6(destination),
            Field::Ip6HopLimit => v6(source).map(|_| Value::HopLimit(packet.hop_limit)),
            Field::L4Proto => packet.addresses.map(|_| Value::Proto(packet.protocol)),
            Field::TcpDport => port(6),
            Field::UdpDport => port(17),
            Field::SctpDport => port(132),
            Field::ThDport => packet.dport.map(Value::Port),
            Field::Icmpv6Type => packet.icmpv6_type.filter(|_| packet.protocol == 58).map(Value::Icmpv6Type),
            Field::Iifname => Some(Value::Ifname(packet.iif.clone().unwrap_or_default())),
            Field::EtherType => Some(Value::EtherType(packet.ether_type)),
            Field::EtherSaddr => Some(Value::Ether(packet.frame.source)),
            Field::ArpSaddrEther => packet.frame.arp.map(|(sender, _)| Value::Ether(sender)),
            Field::ArpSaddrIp => packet.frame.arp.map(|(_, sender)| Value::V4(sender)),
            Field::Ip6NextHdr => v6(source).map(|_| Value::Proto(packet.frame.next_header)),
            Field::Ip6Length => v6(source).map(|_| Value::Length(packet.frame.length)),
            Field::NdTarget => packet.frame.target.map(Value::V6),
            Field::NdOption => packet.frame.option.map(Value::NdOption),
            Field::FibDaddrIifType => packet.addresses.map(|_| Value::AddrType(packet.address_type)),
        }
    }
}
