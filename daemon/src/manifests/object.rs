//! The objects a manifest can hold that policy has a use for.
//!
//! In: what `flatfell_rules::parse` understood. Out: one type for all of them, and what names each. What always holds: a
//! namespace's key has no namespace of its own.

use std::fmt;

use flatfell_rules::object::{Namespace, ObjectName, Pod};
use flatfell_rules::policy::Policy;

/// The kinds in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// v1 Namespace.
    Namespace,
    /// v1 Pod.
    Pod,
    /// networking.k8s.io/v1 NetworkPolicy.
    NetworkPolicy,
}

impl Kind {
    /// The word in manifests.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Pod => "Pod",
            Self::NetworkPolicy => "NetworkPolicy",
        }
    }

    /// The apiVersion that is understood.
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::Namespace | Self::Pod => "v1",
            Self::NetworkPolicy => "networking.k8s.io/v1",
        }
    }

    /// The kind of this name.
    pub fn of(word: &str) -> Option<Self> {
        [Self::Namespace, Self::Pod, Self::NetworkPolicy].into_iter().find(|kind| kind.word() == word)
    }
}

/// What names an object: no two objects of a directory have the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for a namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// `namespace/name`, or the name alone for a namespace.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// An object that was understood; a policy may be a refused one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A namespace.
    Namespace(Namespace),
    /// A pod.
    Pod(Pod),
    /// A network policy.
    Policy(Policy),
}

impl Object {
    /// What names it.
    pub fn key(&self) -> Key {
        let named =
            |kind, name: &ObjectName| Key { kind, namespace: name.namespace.to_string(), name: name.name.to_string() };
        match self {
            Self::Namespace(namespace) => {
                Key { kind: Kind::Namespace, namespace: String::new(), name: namespace.name.clone() }
            }
            Self::Pod(pod) => named(Kind::Pod, &pod.name),
            Self::Policy(policy) => named(Kind::NetworkPolicy, &policy.name),
        }
    }
}
