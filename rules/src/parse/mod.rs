//! From a Kubernetes object as JSON to its meaning, or to a refusal with a reason.
//!
//! In: whole objects, as the API server shows them or as a manifest has them; the defaults an API server applies are
//! applied. Out: [`Parsed`] values, or a [`Refusal`] that names every field that is wrong. What always holds: `null` is
//! the same as missing; what is not understood never widens what is allowed. A field that an API server of a newer
//! version may know and that could narrow a rule makes that rule, peer or port match nothing, with a warning; a policy
//! whose isolation or subject is not understood is refused, and a refused policy isolates and allows nothing.

mod address;
mod network_policy;
mod objects;
mod selector;
#[cfg(test)]
mod tests;
mod walk;

use std::fmt;

use serde_json::Value;

use crate::object::{Namespace, ObjectName, Pod};
use crate::policy::Policy;

pub use address::cidr;

/// The annotation that says whether a policy, or every policy of a namespace, is enforced or audited.
pub const MODE_ANNOTATION: &str = "flatfell.io/mode";

/// What was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed<T> {
    /// The object's meaning.
    pub value: T,
    /// What is sloppy, or matches nothing because it is not known.
    pub warnings: Vec<Fault>,
}

/// Why an object was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Refusal {
    /// What is wrong, each with the path of the field.
    pub faults: Vec<Fault>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, fault) in self.faults.iter().enumerate() {
            let separator = if position > 0 { "; " } else { "" };
            write!(f, "{separator}{fault}")?;
        }
        Ok(())
    }
}

/// One thing that is wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The field, as `spec.ingress[0].from[1].ipBlock.cidr`; empty for the object itself.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() { f.write_str(&self.problem) } else { write!(f, "{}: {}", self.field, self.problem) }
    }
}

/// A core/v1 Pod.
///
/// # Errors
/// Every field that is wrong.
pub fn pod(object: &Value) -> Result<Parsed<Pod>, Refusal> {
    objects::pod(object)
}

/// A core/v1 Namespace; its label kubernetes.io/metadata.name is its name, whatever the object says.
///
/// # Errors
/// Every field that is wrong.
pub fn namespace(object: &Value) -> Result<Parsed<Namespace>, Refusal> {
    objects::namespace(object)
}

/// A networking.k8s.io/v1 NetworkPolicy. One whose metadata can be read but whose spec cannot is a policy with a
/// [`Policy::refusal`]: it isolates what its podSelector selects (its whole namespace if that cannot be read) in the
/// directions of its policyTypes (both if they cannot be read) and allows nothing.
///
/// # Errors
/// Its name or namespace cannot be read.
pub fn policy(object: &Value) -> Result<Parsed<Policy>, Refusal> {
    network_policy::policy(object)
}

/// What a namespaced object seems to be called, to speak of one that was refused; `None` when it has no name.
pub fn name_of(object: &Value) -> Option<ObjectName> {
    let metadata = object.get("metadata")?;
    let name = metadata.get("name")?.as_str()?;
    let namespace = metadata.get("namespace").and_then(Value::as_str).unwrap_or(objects::DEFAULT_NAMESPACE);
    Some(ObjectName::new(namespace, name))
}
