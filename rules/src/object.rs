//! The slim objects policy needs: pods, namespaces and what names them.
//!
//! In: nothing. Out: plain values that [`crate::parse`] makes and [`crate::index`] keeps. What always holds: a value
//! here was fully understood; what could not be understood never becomes one.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use smallvec::SmallVec;

/// Namespace and name of a namespaced object; shown as `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// The namespace the object lives in.
    pub namespace: Arc<str>,
    /// Its name there.
    pub name: Arc<str>,
}

impl ObjectName {
    /// The name `namespace/name`.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Labels of an object, by key: small, and cheap to share between the objects that have the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Labels(Arc<[(Arc<str>, Arc<str>)]>);

impl Labels {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        let place = self.0.binary_search_by(|(own, _)| own.as_ref().cmp(key)).ok()?;
        Some(&self.0[place].1)
    }

    /// Keys and values, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_ref(), value.as_ref()))
    }

    /// Where they stand in memory.
    pub(crate) fn place(&self) -> *const () {
        Arc::as_ptr(&self.0).cast()
    }

    /// Whether nobody else has these.
    pub(crate) fn is_alone(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    /// The same with other memory for each text.
    pub(crate) fn map(&self, mut text: impl FnMut(&Arc<str>) -> Arc<str>) -> Self {
        Self(self.0.iter().map(|(key, value)| (text(key), text(value))).collect())
    }
}

/// The last one of a key counts.
impl<K: Into<Arc<str>>, V: Into<Arc<str>>> FromIterator<(K, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(labels: I) -> Self {
        let sorted: BTreeMap<Arc<str>, Arc<str>> =
            labels.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        Self(sorted.into_iter().collect())
    }
}

/// A transport protocol that a policy can name (core/v1 Protocol).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP, the API's default.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// Every protocol a policy can name.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// The number in the IP header (IANA protocol numbers).
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The word nft uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// Where a pod is in its life, as far as policy cares (core/v1 PodStatus.phase).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lifetime {
    /// Pending, Running or Unknown, deletion asked for or not: counts fully.
    Live,
    /// Succeeded or Failed: no peer any more; its own isolation stays until its address is free.
    Terminal,
}

/// A port that a container (or a restartable init container) declares by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    /// The port's name.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number.
    pub number: u16,
}

/// What policy needs to know of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub name: ObjectName,
    /// metadata.uid: tells a pod from its successor under the same name.
    pub uid: Box<str>,
    /// metadata.labels.
    pub labels: Labels,
    /// spec.nodeName, once it is scheduled.
    pub node: Option<Arc<str>>,
    /// spec.hostNetwork: such a pod is never a subject and no selector matches it.
    pub host_network: bool,
    /// status.podIPs, else status.podIP.
    pub addresses: SmallVec<[IpAddr; 2]>,
    /// status.phase.
    pub lifetime: Lifetime,
    /// metadata.creationTimestamp as RFC 3339 text in UTC: compares as text.
    pub created: Box<str>,
    /// Named ports of its containers and of its init containers with restartPolicy Always.
    pub ports: Arc<[NamedPort]>,
}

impl Pod {
    /// All numbers the pod calls by this name (several containers may declare it).
    pub fn port_numbers(&self, protocol: Protocol, name: &str) -> impl Iterator<Item = u16> {
        self.ports.iter().filter(move |port| port.protocol == protocol && port.name == name).map(|port| port.number)
    }
}

/// Whether a policy decides, or only counts what it would decide (annotation `flatfell.io/mode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// The policy decides.
    #[default]
    Enforce,
    /// The policy isolates nothing and allows nothing; what would change is counted.
    Audit,
}

/// What policy needs to know of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// metadata.labels, `kubernetes.io/metadata.name` included.
    pub labels: Labels,
    /// Audit here audits every NetworkPolicy of the namespace.
    pub mode: Mode,
    /// metadata.deletionTimestamp is set: policies deleted from it keep their effect until its pods are gone.
    pub terminating: bool,
}
