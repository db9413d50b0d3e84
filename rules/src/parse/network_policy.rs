//! NetworkPolicy.
//!
//! In: a whole object. Out: a [`Policy`], refused or not. What always holds: every fault of the object is reported; a
//! refused policy has no rule; nothing that is not known makes a rule match more.

use ipnetwork::IpNetwork;
use serde_json::Value;

use super::address::sloppy_cidr;
use super::objects::{finish, metadata, mode, object_name, protocol};
use super::selector::selector;
use super::walk::{Fields, Node, Report};
use super::{Parsed, Refusal};
use crate::cidr;
use crate::object::{Mode, ObjectName};
use crate::policy::{Action, Direction, Match, Namespaces, Peer, PodPeer, Policy, Port, PortSpec, Rule, Selector};

const MATCHES_NOTHING: &str = "matches nothing";

pub(super) fn policy(object: &Value) -> Result<Parsed<Policy>, Refusal> {
    let mut report = Report::default();
    let root = Node::root(object);
    let Some(identity) = identity(&root, &mut report) else { return finish(None, report) };
    // The name is known: from here on a fault refuses what the policy allows, not what it isolates.
    let spec = Spec::read(&identity, &mut report);
    let refusal = report.refusal();
    let rules = |rules: Option<Vec<Rule>>| if refusal.is_some() { rules.map(|_| Vec::new()) } else { rules };
    let value = Policy {
        name: identity.name,
        uid: identity.uid,
        subject: spec.subject,
        ingress: rules(spec.ingress),
        egress: rules(spec.egress),
        mode: identity.mode,
        refusal,
    };
    finish(Some(value), report)
}

/// What is known of a policy before its spec is read.
struct Identity<'a> {
    name: ObjectName,
    uid: String,
    mode: Mode,
    fields: Fields<'a>,
}

fn identity<'a>(root: &Node<'a>, report: &mut Report) -> Option<Identity<'a>> {
    let (fields, metadata) = metadata(root, report)?;
    let name = object_name(&metadata, root, report)?;
    let uid = metadata.text_or("uid", "", report).unwrap_or_default().to_owned();
    let mode = mode(&metadata, report);
    Some(Identity { name, uid, mode, fields })
}

/// The spec, with what a refused policy isolates where it is not understood.
struct Spec {
    subject: Selector,
    ingress: Option<Vec<Rule>>,
    egress: Option<Vec<Rule>>,
}

impl Spec {
    fn read(identity: &Identity<'_>, report: &mut Report) -> Self {
        let spec = identity.fields.get("spec");
        let fields = match &spec {
            Some(node) => node.object(report),
            // As an API server reads it: the empty podSelector, no rules.
            None => return Self { subject: Selector::default(), ingress: Some(Vec::new()), egress: None },
        };
        let Some(fields) = fields else {
            return Self { subject: Selector::default(), ingress: Some(Vec::new()), egress: Some(Vec::new()) };
        };
        let unknown = fields.unknown(&["podSelector", "policyTypes", "ingress", "egress"]);
        for node in &unknown {
            report.fault(node, "is not known in the spec of a NetworkPolicy");
        }
        let subject = fields.get("podSelector").and_then(|node| selector(&node, report)).unwrap_or_default();
        let namespace = &identity.name.namespace;
        let ingress = rules(&fields, Direction::Ingress, namespace, report);
        let egress = rules(&fields, Direction::Egress, namespace, report);
        let isolated = directions(&fields, !unknown.is_empty(), report);
        let isolates = |direction: Direction| isolated.contains(&direction);
        Self {
            subject,
            ingress: isolates(Direction::Ingress).then_some(ingress),
            egress: isolates(Direction::Egress).then_some(egress),
        }
    }
}

/// The directions a policy isolates: its policyTypes; unset, ingress and, where it has rules for it, egress. Both where
/// that cannot be known.
fn directions(fields: &Fields<'_>, unknown_fields: bool, report: &mut Report) -> Vec<Direction> {
    let Some(node) = fields.get("policyTypes") else { return default_directions(fields, unknown_fields) };
    let Some(items) = node.list(report) else { return Direction::BOTH.to_vec() };
    if items.is_empty() {
        return default_directions(fields, unknown_fields);
    }
    let mut types = Vec::new();
    for item in &items {
        match item.text(report) {
            Some("Ingress") => types.push(Direction::Ingress),
            Some("Egress") => types.push(Direction::Egress),
            Some(other) => {
                report.fault(item, format!("must be Ingress or Egress, not {other:?}"));
                return Direction::BOTH.to_vec();
            }
            None => return Direction::BOTH.to_vec(),
        }
    }
    types
}

fn default_directions(fields: &Fields<'_>, unknown_fields: bool) -> Vec<Direction> {
    let egress = fields.get("egress").is_some_and(|node| node.value().as_array().is_none_or(|list| !list.is_empty()));
    if egress || unknown_fields { Direction::BOTH.to_vec() } else { vec![Direction::Ingress] }
}

fn rules(spec: &Fields<'_>, direction: Direction, namespace: &str, report: &mut Report) -> Vec<Rule> {
    let (list, peers) = match direction {
        Direction::Ingress => ("ingress", "from"),
        Direction::Egress => ("egress", "to"),
    };
    spec.items(list, report).iter().map(|node| rule(node, peers, namespace, report)).collect()
}

/// A rule; one with a field that is not known matches nothing, and so does an empty list item (`- ` in YAML).
fn rule(node: &Node<'_>, peer_list: &str, namespace: &str, report: &mut Report) -> Rule {
    let nothing = Rule { action: Action::Accept, peers: Match::Only(Vec::new()), ports: Match::Any };
    let Some(fields) = known_fields(node, &[peer_list, "ports"], report) else { return nothing };
    let peers = matches(&fields, peer_list, report, |node, report| peer(node, namespace, report));
    let ports = matches(&fields, "ports", report, port);
    match fields.complete {
        true => Rule { action: Action::Accept, peers, ports },
        false => nothing,
    }
}

/// The fields of an object, and whether they are all it has.
struct Known<'a> {
    fields: Fields<'a>,
    complete: bool,
}

impl<'a> std::ops::Deref for Known<'a> {
    type Target = Fields<'a>;

    fn deref(&self) -> &Fields<'a> {
        &self.fields
    }
}

/// The fields of an object, with a warning for each that is not known; `None` for what is no object.
fn known_fields<'a>(node: &Node<'a>, known: &[&str], report: &mut Report) -> Option<Known<'a>> {
    if node.value().is_null() {
        report.warn(node, format!("is empty: {MATCHES_NOTHING}"));
        return None;
    }
    let fields = node.object(report)?;
    let unknown = fields.unknown(known);
    for field in &unknown {
        report.warn(field, format!("is not known: what it stands in {MATCHES_NOTHING}"));
    }
    Some(Known { fields, complete: unknown.is_empty() })
}

/// A list of alternatives: missing or empty is any, and what could not be used is left out.
fn matches<'a, T>(
    fields: &Fields<'a>,
    name: &str,
    report: &mut Report,
    read: impl Fn(&Node<'a>, &mut Report) -> Option<T>,
) -> Match<T> {
    let items = fields.items(name, report);
    if items.is_empty() {
        return Match::Any;
    }
    let mut read: Vec<T> = items.iter().filter_map(|item| read(item, report)).collect();
    // Most lists have one item, and room for four.
    read.shrink_to_fit();
    Match::Only(read)
}

/// A peer; `None` with a fault or a warning for one that matches nothing.
fn peer(node: &Node<'_>, namespace: &str, report: &mut Report) -> Option<Peer> {
    let fields = known_fields(node, &["podSelector", "namespaceSelector", "ipBlock"], report)?;
    let (pods, namespaces, block) = (fields.get("podSelector"), fields.get("namespaceSelector"), fields.get("ipBlock"));
    if block.is_some() && (pods.is_some() || namespaces.is_some()) {
        report.fault(node, "ipBlock stands beside another peer field");
    }
    let mut read = |node: &Option<Node<'_>>| node.as_ref().map(|node| selector(node, report));
    let peer = match (read(&namespaces), read(&pods)) {
        (None, None) => match block {
            Some(block) => ip_block(&block, report),
            None => {
                if fields.complete {
                    report.warn(node, format!("has no known field: {MATCHES_NOTHING}"));
                }
                None
            }
        },
        (None, Some(pods)) => {
            pods.map(|pods| Peer::Pods(PodPeer { namespaces: Namespaces::Named(namespace.to_owned()), pods }))
        }
        (Some(namespaces), pods) => namespaces
            .zip(pods.unwrap_or(Some(Selector::default())))
            .map(|(selector, pods)| Peer::Pods(PodPeer { namespaces: Namespaces::Matching(selector), pods })),
    };
    peer.filter(|_| fields.complete)
}

fn ip_block(node: &Node<'_>, report: &mut Report) -> Option<Peer> {
    let fields = known_fields(node, &["cidr", "except"], report)?;
    let Some(cidr_node) = fields.get("cidr") else {
        report.fault(node, "cidr is missing");
        return None;
    };
    let cidr = network(&cidr_node, report);
    let mut excepts = Vec::new();
    for except_node in fields.items("except", report) {
        let (Some(cidr), Some(except)) = (cidr, network(&except_node, report)) else { continue };
        if except.prefix() <= cidr.prefix() || !cidr.contains(except.ip()) {
            report.fault(&except_node, format!("{except} is not strictly inside {cidr}"));
        }
        excepts.push(except);
    }
    cidr.filter(|_| fields.complete).map(|cidr| Peer::Block(cidr::subtract(cidr, &excepts)))
}

fn network(node: &Node<'_>, report: &mut Report) -> Option<IpNetwork> {
    let text = node.text(report)?;
    let Some(sloppy) = sloppy_cidr(text) else {
        report.fault(node, format!("{text:?} is no CIDR such as 10.0.0.0/8 or fd00::/8"));
        return None;
    };
    for warning in sloppy.warnings {
        report.warn(node, format!("{text:?} {warning}"));
    }
    Some(sloppy.value)
}

/// An entry of `ports`; `None` with a fault or a warning for one that matches nothing.
fn port(node: &Node<'_>, report: &mut Report) -> Option<Port> {
    let fields = known_fields(node, &["protocol", "port", "endPort"], report)?;
    let protocol = protocol(&fields, report);
    let end = fields.get("endPort").map(|node| (node.port(report), node));
    let port = match (fields.get("port"), end) {
        (None, None) => Some(PortSpec::All),
        (None, Some((_, node))) => {
            report.fault(&node, "needs port");
            None
        }
        (Some(node), end) if node.value().is_string() => {
            if let Some((_, end)) = end {
                report.fault(&end, "needs a port that is a number");
            }
            port_name(&node, report)
        }
        (Some(node), end) => port_range(&node, end, report),
    };
    protocol.zip(port).filter(|_| fields.complete).map(|(protocol, port)| Port { protocol, port })
}

fn port_range(node: &Node<'_>, end: Option<(Option<u16>, Node<'_>)>, report: &mut Report) -> Option<PortSpec> {
    let first = node.port(report)?;
    let Some((last, end)) = end else { return Some(PortSpec::Range(first..=first)) };
    let last = last?;
    if last < first {
        report.fault(&end, format!("{last} is below port {first}"));
    }
    Some(PortSpec::Range(first..=last))
}

/// An IANA service name, as the API server validates it: small letters, digits and single inner dashes, at least one
/// letter, at most 15 characters.
fn port_name(node: &Node<'_>, report: &mut Report) -> Option<PortSpec> {
    let name = node.text(report)?;
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let valid = name.len() <= 15
        && name.chars().all(legal)
        && name.chars().any(|c| c.is_ascii_lowercase())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.contains("--");
    if !valid {
        report.fault(node, format!("{name:?} is neither a number nor a port's name"));
        return None;
    }
    Some(PortSpec::Named(name.to_owned()))
}
