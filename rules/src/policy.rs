//! The meaning of a policy, parsed once.
//!
//! In: what [`crate::parse`] understood. Out: values that [`crate::index`] keeps and [`crate::effective`] evaluates.
//! What always holds: an empty list never means "any" ([`Match::Only`] of nothing matches nothing), `except` is already
//! subtracted, prefixes are in canonical form.

use std::fmt;
use std::ops::RangeInclusive;

use ipnetwork::IpNetwork;

use crate::object::{Labels, Mode, ObjectName, Protocol};

/// Everything, or only what is listed; an empty list is nothing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Match<T> {
    /// No restriction.
    Any,
    /// Only these.
    Only(Vec<T>),
}

/// The side of a connection a rule speaks of, seen from its subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Connections to the subject.
    Ingress,
    /// Connections from the subject.
    Egress,
}

impl Direction {
    /// Both, in the order they are shown.
    pub const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    /// The word in metrics and comments.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// The tiers, in the order they are walked; within one the first rule that matches decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// Cluster policies an administrator puts before everything.
    Admin,
    /// networking.k8s.io/v1 NetworkPolicy.
    NetworkPolicy,
    /// Cluster policies behind everything.
    Baseline,
}

/// What a rule does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// This direction lets the connection through.
    Accept,
    /// The connection is dropped.
    Deny,
    /// The tier is left; the next one decides.
    Pass,
}

impl Action {
    /// The word in metrics and comments.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Deny => "deny",
            Self::Pass => "pass",
        }
    }
}

/// One requirement of a label selector (metav1 LabelSelectorRequirement; matchLabels become `In` with one value).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// What must hold of its value.
    pub operator: Operator,
}

/// The operators of metav1 LabelSelectorRequirement.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    /// The key is there and its value is one of these.
    In(Vec<String>),
    /// The key is missing or its value is none of these.
    NotIn(Vec<String>),
    /// The key is there.
    Exists,
    /// The key is missing.
    DoesNotExist,
}

/// A label selector in canonical form: requirements (and the values in each) sorted, duplicates gone; none match all.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    /// All must hold.
    pub requirements: Vec<Requirement>,
}

impl Selector {
    /// Brings requirements into canonical form.
    pub fn new(mut requirements: Vec<Requirement>) -> Self {
        for requirement in &mut requirements {
            if let Operator::In(values) | Operator::NotIn(values) = &mut requirement.operator {
                values.sort();
                values.dedup();
                values.shrink_to_fit();
            }
        }
        requirements.sort();
        requirements.dedup();
        // There are thousands, most with one requirement, and room for four.
        requirements.shrink_to_fit();
        Self { requirements }
    }

    /// Whether these labels satisfy every requirement.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|requirement| {
            let value = labels.get(&requirement.key);
            match &requirement.operator {
                Operator::In(values) => value.is_some_and(|value| values.iter().any(|wanted| wanted == value)),
                Operator::NotIn(values) => value.is_none_or(|value| values.iter().all(|wanted| wanted != value)),
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            }
        })
    }
}

/// The canonical text: `app in (a,b), tier exists`; `all` without requirements.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.requirements.is_empty() {
            return f.write_str("all");
        }
        for (position, requirement) in self.requirements.iter().enumerate() {
            if position > 0 {
                f.write_str(", ")?;
            }
            let key = &requirement.key;
            match &requirement.operator {
                Operator::In(values) => write!(f, "{key} in ({})", values.join(","))?,
                Operator::NotIn(values) => write!(f, "{key} notin ({})", values.join(","))?,
                Operator::Exists => write!(f, "{key} exists")?,
                Operator::DoesNotExist => write!(f, "{key} missing")?,
            }
        }
        Ok(())
    }
}

/// Which namespaces a pod peer may live in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Namespaces {
    /// The one with this name (a peer without namespaceSelector: the policy's own), known or not.
    Named(String),
    /// Known ones whose labels match.
    Matching(Selector),
}

impl fmt::Display for Namespaces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => write!(f, "namespace {name}"),
            Self::Matching(selector) => write!(f, "namespaces {selector}"),
        }
    }
}

/// Pods a rule speaks of: namespaces AND labels. Equal values share one peer set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodPeer {
    /// Where they live.
    pub namespaces: Namespaces,
    /// Their labels.
    pub pods: Selector,
}

/// The canonical text, for comments and identities.
impl fmt::Display for PodPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pods {} in {}", self.pods, self.namespaces)
    }
}

/// One entry of `from` or `to`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// Pods by labels.
    Pods(PodPeer),
    /// Addresses: the cidr minus its `except`, as disjoint sorted prefixes (empty when nothing is left).
    Block(Vec<IpNetwork>),
}

/// One entry of `ports`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    /// The protocol, TCP where the API object names none.
    pub protocol: Protocol,
    /// Which of its ports.
    pub port: PortSpec,
}

/// Which ports of a protocol.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PortSpec {
    /// All of them.
    All,
    /// From `port` to `endPort`, or one number.
    Range(RangeInclusive<u16>),
    /// Whatever the destination pod calls by this name.
    Named(String),
}

impl Ord for PortSpec {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let rank = |spec: &Self| match spec {
            Self::All => (0, 0, 0, String::new()),
            Self::Range(range) => (1, *range.start(), *range.end(), String::new()),
            Self::Named(name) => (2, 0, 0, name.clone()),
        };
        rank(self).cmp(&rank(other))
    }
}

impl PartialOrd for PortSpec {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// One rule of a direction: any of the peers AND any of the ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What it does; NetworkPolicy rules accept.
    pub action: Action,
    /// The other side.
    pub peers: Match<Peer>,
    /// Destination ports.
    pub ports: Match<Port>,
}

/// A NetworkPolicy, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Namespace and name.
    pub name: ObjectName,
    /// metadata.uid, empty where a manifest has none.
    pub uid: String,
    /// The pods of its namespace it speaks of.
    pub subject: Selector,
    /// Its ingress rules; `None` when it does not isolate that direction.
    pub ingress: Option<Vec<Rule>>,
    /// Its egress rules; `None` when it does not isolate that direction.
    pub egress: Option<Vec<Rule>>,
    /// Its own annotation (its namespace's may audit it too).
    pub mode: Mode,
    /// Why it was refused; a refused policy isolates what it selects and its rules are empty.
    pub refusal: Option<crate::parse::Refusal>,
}

impl Policy {
    /// The rules of a direction, `None` when the policy does not isolate it.
    pub fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}
