//! A record of the flow log, as it is written, sent and read back.
//!
//! In: what the reader found. Out: a [`Record`] as one line of JSON, or in words; whether a [`Filter`] takes it. What always
//! holds: a name that is not known is missing, never made up.

use std::fmt;
use std::net::IpAddr;

use clap::ValueEnum;
use flatfell_rules::object::ObjectName;
use flatfell_rules::policy::Direction;
use serde::{Deserialize, Serialize};

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It was dropped.
    Denied,
    /// An audited policy would have dropped it.
    Audited,
}

impl Verdict {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Denied, Self::Audited];

    /// The word in records, metrics and tables.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::Audited => "audited",
        }
    }
}

/// Which of its directions the local pod is isolated in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

impl Way {
    /// The word in records and tables.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

impl From<Way> for Direction {
    fn from(way: Way) -> Self {
        match way {
            Way::Ingress => Self::Ingress,
            Way::Egress => Self::Egress,
        }
    }
}

/// Namespace and name of a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl From<&ObjectName> for PodName {
    fn from(name: &ObjectName) -> Self {
        Self { namespace: name.namespace.to_string(), name: name.name.to_string() }
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Who is at the other end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum Peer {
    /// A pod of the cluster.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Its address.
        ip: IpAddr,
    },
    /// A node of the cluster.
    Node {
        /// Its name.
        name: String,
        /// Its address.
        ip: IpAddr,
    },
    /// Nobody that is known by name.
    Address {
        /// The address.
        ip: IpAddr,
    },
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod { namespace, name, .. } => write!(f, "pod {namespace}/{name}"),
            Self::Node { name, .. } => write!(f, "node {name}"),
            Self::Address { ip } => write!(f, "{ip}"),
        }
    }
}

/// One end of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Its address.
    pub ip: IpAddr,
    /// Its port, where the packet has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// What an ICMP packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Icmp {
    /// Type.
    #[serde(rename = "type")]
    pub kind: u8,
    /// Code.
    pub code: u8,
}

/// One packet that was denied, or would have been.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When the daemon read it, RFC 3339 in UTC; the kernel holds it back for a tenth of a second at most.
    pub time: String,
    /// What became of it.
    pub verdict: Verdict,
    /// In which direction of the pod.
    pub direction: Way,
    /// The node it was seen on.
    pub node: String,
    /// The local pod whose policies decided; missing where it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodName>,
    /// Those policies, `namespace/name`.
    pub policies: Vec<String>,
    /// The other end.
    pub peer: Peer,
    /// Who sent it.
    pub source: End,
    /// Whom it was for.
    pub destination: End,
    /// `tcp`, `udp`, `sctp`, `icmp`, `icmpv6`, or a number.
    pub protocol: String,
    /// Type and code, of ICMP alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp: Option<Icmp>,
    /// The packet's length.
    pub bytes: u32,
}

impl Record {
    /// The local pod in words.
    pub fn pod_text(&self) -> String {
        self.pod.as_ref().map_or_else(|| self.own_address().to_string(), ToString::to_string)
    }

    /// The address of the local pod.
    pub fn own_address(&self) -> IpAddr {
        match self.direction {
            Way::Ingress => self.destination.ip,
            Way::Egress => self.source.ip,
        }
    }

    /// Protocol and destination port, or ICMP's type.
    pub fn service(&self) -> String {
        match (self.destination.port, self.icmp) {
            (Some(port), _) => format!("{}/{port}", self.protocol),
            (None, Some(icmp)) => format!("{} type {}", self.protocol, icmp.kind),
            (None, None) => self.protocol.clone(),
        }
    }

    /// All of it as a sentence.
    pub fn sentence(&self) -> String {
        let word = match self.verdict {
            Verdict::Denied => "denied",
            Verdict::Audited => "would be denied",
        };
        let toward = match self.direction {
            Way::Ingress => "from",
            Way::Egress => "to",
        };
        let (way, peer, service) = (self.direction.word(), &self.peer, self.service());
        format!("{way} of pod {} {toward} {peer} {service} {word} ({})", self.pod_text(), self.policies_text())
    }

    fn policies_text(&self) -> String {
        match self.policies.as_slice() {
            [] => "its policy is gone".to_owned(),
            [one] => format!("policy {one}"),
            several => format!("policies {}", several.join(", ")),
        }
    }
}

/// Which records are asked for; everything that is given must fit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// The local pod's namespace.
    pub namespace: Option<String>,
    /// The local pod: `name` or `namespace/name`.
    pub pod: Option<String>,
    /// One of the policies: `name` or `namespace/name`.
    pub policy: Option<String>,
    /// The verdict.
    pub verdict: Option<Verdict>,
}

impl Filter {
    /// Whether it takes a record.
    pub fn takes(&self, record: &Record) -> bool {
        let pod = record.pod.as_ref();
        let in_namespace = |wanted: &String| pod.is_some_and(|pod| pod.namespace == *wanted);
        let is_pod = |wanted: &String| pod.is_some_and(|pod| is_named(wanted, &pod.namespace, &pod.name));
        let by_policy = |wanted: &String| {
            let mut names = record.policies.iter().filter_map(|policy| policy.split_once('/'));
            names.any(|(namespace, name)| is_named(wanted, namespace, name))
        };
        self.namespace.as_ref().is_none_or(in_namespace)
            && self.pod.as_ref().is_none_or(is_pod)
            && self.policy.as_ref().is_none_or(by_policy)
            && self.verdict.is_none_or(|wanted| wanted == record.verdict)
    }
}

fn is_named(wanted: &str, namespace: &str, name: &str) -> bool {
    match wanted.split_once('/') {
        Some((in_namespace, called)) => in_namespace == namespace && called == name,
        None => wanted == name,
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A packet to `shop/db`, port 5432, from `web/frontend`.
    pub fn record() -> Record {
        Record {
            time: "2026-01-31T12:00:00.123Z".to_owned(),
            verdict: Verdict::Denied,
            direction: Way::Ingress,
            node: "worker-1".to_owned(),
            pod: Some(PodName { namespace: "shop".to_owned(), name: "db".to_owned() }),
            policies: vec!["shop/default-deny".to_owned(), "shop/db".to_owned()],
            peer: Peer::Pod {
                namespace: "web".to_owned(),
                name: "frontend".to_owned(),
                ip: IpAddr::from([10, 244, 2, 10]),
            },
            source: End { ip: IpAddr::from([10, 244, 2, 10]), port: Some(40000) },
            destination: End { ip: IpAddr::from([10, 244, 1, 10]), port: Some(5432) },
            protocol: "tcp".to_owned(),
            icmp: None,
            bytes: 60,
        }
    }

    #[test]
    fn a_record_is_the_documented_line() {
        let line = serde_json::to_string(&record()).expect("JSON");
        assert_eq!(
            line,
            r#"{"time":"2026-01-31T12:00:00.123Z","verdict":"denied","direction":"ingress","node":"worker-1","pod":{"namespace":"shop","name":"db"},"policies":["shop/default-deny","shop/db"],"peer":{"kind":"pod","namespace":"web","name":"frontend","ip":"10.244.2.10"},"source":{"ip":"10.244.2.10","port":40000},"destination":{"ip":"10.244.1.10","port":5432},"protocol":"tcp","bytes":60}"#
        );
        let page = include_str!("../../../docs/operations.md");
        assert!(page.contains(&line), "docs/operations.md shows another line");
        assert_eq!(serde_json::from_str::<Record>(&line).expect("a record"), record());
        let icmp = Record {
            pod: None,
            peer: Peer::Address { ip: IpAddr::from([8, 8, 8, 8]) },
            source: End { ip: IpAddr::from([8, 8, 8, 8]), port: None },
            icmp: Some(Icmp { kind: 8, code: 0 }),
            ..record()
        };
        let line = serde_json::to_string(&icmp).expect("JSON");
        assert!(line.contains(r#""peer":{"kind":"address","ip":"8.8.8.8"},"source":{"ip":"8.8.8.8"}"#), "{line}");
        assert!(line.contains(r#""icmp":{"type":8,"code":0}"#) && !line.contains("pod"), "{line}");
        assert_eq!(serde_json::from_str::<Record>(&line).expect("a record"), icmp);
    }

    #[test]
    fn a_sentence_names_everybody() {
        let said = record().sentence();
        assert_eq!(
            said,
            "ingress of pod shop/db from pod web/frontend tcp/5432 denied (policies shop/default-deny, shop/db)"
        );
        let egress = Record {
            verdict: Verdict::Audited,
            direction: Way::Egress,
            pod: None,
            policies: Vec::new(),
            peer: Peer::Node { name: "worker-2".to_owned(), ip: IpAddr::from([1, 2, 3, 4]) },
            destination: End { ip: IpAddr::from([1, 2, 3, 4]), port: None },
            protocol: "icmp".to_owned(),
            icmp: Some(Icmp { kind: 8, code: 0 }),
            ..record()
        };
        assert_eq!(
            egress.sentence(),
            "egress of pod 10.244.2.10 to node worker-2 icmp type 8 would be denied (its policy is gone)"
        );
    }

    #[test]
    fn a_filter_takes_what_fits_all_of_it() {
        let filter = |text: &str| {
            let mut filter = Filter::default();
            for word in text.split_whitespace() {
                let (field, value) = word.split_once('=').expect("a field");
                match field {
                    "namespace" => filter.namespace = Some(value.to_owned()),
                    "pod" => filter.pod = Some(value.to_owned()),
                    "policy" => filter.policy = Some(value.to_owned()),
                    _ => filter.verdict = Some(Verdict::Audited),
                }
            }
            filter.takes(&record())
        };
        for text in ["", "namespace=shop", "pod=db", "pod=shop/db policy=db", "policy=shop/default-deny"] {
            assert!(filter(text), "{text}");
        }
        for text in ["namespace=web", "pod=web/db", "pod=frontend", "policy=web/db", "verdict=", "pod=db namespace=x"] {
            assert!(!filter(text), "{text}");
        }
    }
}
