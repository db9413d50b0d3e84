//! Which policies hold a pod, and whether they let a connection through.
//!
//! In: a connection seen from its subject. Out: yes or no. What always holds: a function for each sentence.

use std::net::IpAddr;

use serde_json::Value;

use super::refuse::Fault;
use super::world::{Pod, Policy, items};
use super::{Connection, Direction, Reading, Row};

impl<'a> Reading<'a> {
    /// "A pod is isolated in a direction once any policy with that policyType selects it; otherwise everything passes."
    /// "Policies only add."
    pub(super) fn direction_allows(&self, connection: &Connection<'_>) -> bool {
        let policies = self.isolating(connection.subject, connection.direction);
        if policies.is_empty() {
            return !self.mistaken(Row::Open);
        }
        if self.any_lost_to_except(&policies, connection) && self.mistaken(Row::ExceptScope) {
            return false;
        }
        let mut allowing = policies.iter().map(|policy| self.policy_allows(policy, connection));
        if policies.len() > 1 && self.mistaken(Row::Union) {
            return allowing.all(|it| it);
        }
        allowing.any(|it| it) || self.mistaken(Row::Isolation)
    }

    /// Whether a pod of this node is isolated in a direction: "only while the node has at least one isolated local pod".
    pub(super) fn someone_is_isolated(&self) -> bool {
        let owns =
            |pod: &Pod<'a>, address: IpAddr| self.local_pod(address).is_some_and(|owner| std::ptr::eq(owner, pod));
        self.world.pods.iter().any(|pod| {
            pod.pod_ips.iter().copied().chain(pod.pod_ip).any(|address| owns(pod, address))
                && [Direction::Ingress, Direction::Egress].iter().any(|it| !self.isolating(pod, *it).is_empty())
        })
    }

    /// The policies that isolate a pod in a direction: those of its namespace that enforce, speak of the direction and select
    /// it.
    pub(super) fn isolating(&self, pod: &Pod<'_>, direction: Direction) -> Vec<&'a Policy<'a>> {
        let policies = self.world.policies.get(pod.namespace).into_iter().flatten();
        let isolates = |policy: &&Policy<'_>| {
            self.has_effect(policy, pod)
                && self.speaks_of(policy, direction)
                && self.has_subject(policy, pod)
                && !self.is_new(pod)
        };
        policies.filter(isolates).collect()
    }

    /// The audited policies that would isolate a pod in a direction.
    pub(super) fn auditing(&self, pod: &Pod<'_>, direction: Direction) -> Vec<&'a Policy<'a>> {
        let policies = self.world.policies.get(pod.namespace).into_iter().flatten();
        let would = |policy: &&Policy<'_>| {
            !self.has_effect(policy, pod) && self.speaks_of(policy, direction) && self.has_subject(policy, pod)
        };
        policies.filter(would).collect()
    }

    /// "New pod: isolated before it starts, init containers included."
    fn is_new(&self, pod: &Pod<'_>) -> bool {
        pod.raw["status"]["phase"] == "Pending" && self.mistaken(Row::NewPod)
    }

    /// What takes a whole policy out of force: audit mode. What does not: its namespace going, or not being known, or the
    /// policy's being refused.
    fn has_effect(&self, policy: &Policy<'_>, pod: &Pod<'_>) -> bool {
        let namespace = self.world.namespaces.get(pod.namespace).map(|(_, raw)| *raw);
        let audited = is_audited(policy.raw) || namespace.is_some_and(is_audited);
        let going = namespace.is_some_and(|raw| !raw["metadata"]["deletionTimestamp"].is_null());
        !((audited && !self.mistaken(Row::Audit))
            || (going && self.mistaken(Row::Terminating))
            || (namespace.is_none() && self.mistaken(Row::UnknownByName))
            || (!policy.faults.is_empty() && self.mistaken(Row::Refused)))
    }

    /// "policyTypes unset: Ingress always; Egress only if the policy has egress rules." "policyTypes set: rules of a
    /// direction that is not in it are ignored." "Both directions if policyTypes cannot be read."
    fn speaks_of(&self, policy: &Policy<'_>, direction: Direction) -> bool {
        let spec = &policy.raw["spec"];
        if policy.faults.contains(&Fault::Types) {
            return !self.mistaken(Row::RefusedTypes);
        }
        let types = items(&spec["policyTypes"]);
        let rules = spec.get(direction.rules());
        if types.is_empty() {
            let holds = direction == Direction::Ingress || !items(&spec["egress"]).is_empty();
            return if self.mistaken(Row::TypesUnset) { rules.is_some() } else { holds };
        }
        types.iter().any(|word| word == direction.word()) || (rules.is_some() && self.mistaken(Row::TypesSet))
    }

    /// "podSelector {}: every pod of the namespace." "A refused policy isolates what its podSelector selects, the whole
    /// namespace if that cannot be read."
    fn has_subject(&self, policy: &Policy<'_>, pod: &Pod<'_>) -> bool {
        if policy.faults.contains(&Fault::Selector) {
            return !self.mistaken(Row::RefusedSelector);
        }
        self.selects(&policy.raw["spec"]["podSelector"], &pod.labels)
    }

    /// "`ingress: []` or missing: nothing." A refused policy allows nothing.
    fn policy_allows(&self, policy: &Policy<'_>, connection: &Connection<'_>) -> bool {
        let overlooked = |fault: &Fault| *fault == Fault::BlockBesidePeer && self.mistaken(Row::BlockBesidePeer);
        if !policy.faults.iter().all(overlooked) {
            return false;
        }
        let rules = rules(policy, connection.direction);
        if rules.is_empty() {
            return self.mistaken(Row::RulesEmpty);
        }
        let namespace = connection.subject.namespace;
        rules.iter().any(|rule| self.rule_matches(rule, namespace, connection))
    }

    fn any_lost_to_except(&self, policies: &[&Policy<'_>], connection: &Connection<'_>) -> bool {
        let sound = policies.iter().filter(|policy| policy.faults.is_empty());
        sound.flat_map(|policy| rules(policy, connection.direction)).any(|rule| self.lost_to_except(rule, connection))
    }
}

/// The rules of a direction.
pub(super) fn rules<'p>(policy: &Policy<'p>, direction: Direction) -> &'p [Value] {
    items(&policy.raw["spec"][direction.rules()])
}

/// The annotation `flatfell.io/mode: audit`, on a policy or on its namespace.
fn is_audited(object: &Value) -> bool {
    object["metadata"]["annotations"]["flatfell.io/mode"] == "audit"
}
