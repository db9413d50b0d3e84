//! Which object counts where several have one name.
//!
//! In: every object of a key, by place. Out: what counts, and problems that name both places. What always holds: nothing
//! is opened by a duplicate. Two different policies could each allow what the other one was meant to replace: both are
//! refused, so that each isolates what it selects and allows nothing. Pods and namespaces cannot be refused that way (a
//! pod without labels would be selected by nothing), so the first by place counts.

use std::collections::BTreeMap;
use std::sync::Arc;

use flatfell_rules::object::Mode;
use flatfell_rules::parse::{Fault, Refusal};
use flatfell_rules::policy::Policy;

use super::object::{Key, Object};
use super::problem::{Place, Problem, Severity};

/// Every object that goes by one name, by its place and its number in the file (a file may be one line).
pub type Claims = BTreeMap<(Place, usize), Arc<Object>>;

/// What counts: nothing for no claims, mostly one object, several for policies that contradict each other.
pub fn resolve(claims: &Claims) -> Vec<Arc<Object>> {
    let mut objects = claims.values();
    let Some(first) = objects.next() else {
        return Vec::new();
    };
    if objects.clone().all(|object| object == first) {
        return vec![Arc::clone(first)];
    }
    let policies: Vec<&Policy> = claims
        .values()
        .filter_map(|object| match object.as_ref() {
            Object::Policy(policy) => Some(policy),
            Object::Pod(_) | Object::Namespace(_) => None,
        })
        .collect();
    if policies.is_empty() {
        return vec![Arc::clone(first)];
    }
    let mode = if policies.iter().all(|policy| policy.mode == Mode::Audit) { Mode::Audit } else { Mode::Enforce };
    policies.iter().enumerate().map(|(place, policy)| Arc::new(Object::Policy(refused(policy, place, mode)))).collect()
}

/// The policy without its rules; behind the first one under a name that no object can have.
fn refused(policy: &Policy, place: usize, mode: Mode) -> Policy {
    let mut policy = policy.clone();
    let fault =
        Fault { field: "metadata.name".to_owned(), problem: "several different policies have this name".to_owned() };
    policy.refusal.get_or_insert_with(|| Refusal { faults: Vec::new() }).faults.push(fault);
    policy.mode = mode;
    policy.ingress = policy.ingress.map(|_| Vec::new());
    policy.egress = policy.egress.map(|_| Vec::new());
    if place > 0 {
        policy.name.name = format!("{}#{}", policy.name.name, place + 1).into();
    }
    policy
}

/// What is wrong: one problem for each claim behind the first.
pub fn problems(key: &Key, claims: &Claims) -> Vec<Problem> {
    let Some(((first_place, _), first)) = claims.first_key_value() else {
        return Vec::new();
    };
    let consequence = match (claims.values().all(|object| object == first), first.as_ref()) {
        (true, _) => "with the same content",
        (false, Object::Policy(_)) => "with other content: both are refused, and each isolates what it selects",
        (false, _) => "with other content: the first one counts",
    };
    claims
        .keys()
        .skip(1)
        .map(|(place, _)| {
            let text = format!("{} already defined at {first_place} {consequence}", key.kind.word());
            Problem::new(Severity::Error, place.file.clone(), place.line, text).of(key).at("metadata.name")
        })
        .collect()
}
