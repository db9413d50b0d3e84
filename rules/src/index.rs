//! All that is known of the cluster, kept current by changes.
//!
//! In: [`Change`]s and relists of parsed objects, the name of this node. Out: what [`crate::effective::evaluate`] asks
//! for. What always holds: what is answered depends on the objects that are there now, not on the order they came in.
//! Two things are memory on purpose. A ghost is a pod of this node that left the API while its interface may still
//! carry traffic: it stays a subject, never a peer. A policy deleted from a namespace that is Terminating keeps its
//! effect until nothing lives there.

use std::borrow::Borrow;
use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use crate::intern::Interner;
use crate::object::{Lifetime, Namespace, ObjectName, Pod};
use crate::policy::Policy;

mod claims;

pub use claims::Claim;
use claims::Claims;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A pod appeared or changed.
    UpsertPod(Pod),
    /// A pod left the API.
    DeletePod(ObjectName),
    /// A namespace appeared or changed.
    UpsertNamespace(Namespace),
    /// A namespace left the API.
    DeleteNamespace(String),
    /// A policy appeared or changed.
    UpsertPolicy(Policy),
    /// A policy left the API.
    DeletePolicy(ObjectName),
    /// The interface of this node that carried the address is gone, and no other carries it.
    InterfaceGone(IpAddr),
    /// The network plugin gave a pod of this node addresses.
    Claim(Claim),
    /// The sandbox of this name has ended.
    Release(String),
}

/// A pod that policy is applied to on this node, with the addresses it owns (never none).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject<'a> {
    /// The pod as the API last showed it.
    pub pod: &'a Pod,
    /// Its addresses that no other pod owns, sorted.
    pub addresses: Vec<IpAddr>,
}

/// Tells a pod from its successor under the same name.
type PodId = (ObjectName, String);

/// A pod, found and sorted by its name. Each is held once, however many addresses it claims.
#[derive(Clone, Debug)]
struct ByName(Arc<Pod>);

impl Borrow<ObjectName> for ByName {
    fn borrow(&self) -> &ObjectName {
        &self.0.name
    }
}

impl PartialEq for ByName {
    fn eq(&self, other: &Self) -> bool {
        self.0.name == other.0.name
    }
}

impl Eq for ByName {}

impl PartialOrd for ByName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByName {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.name.cmp(&other.0.name)
    }
}

/// The state of the cluster as policy sees it.
#[derive(Clone, Debug, Default)]
pub struct Index {
    node: String,
    forget_going: bool,
    namespaces: BTreeMap<String, Namespace>,
    pods: BTreeSet<ByName>,
    policies: BTreeMap<ObjectName, Policy>,
    /// Policies deleted from a namespace that is going.
    going: BTreeMap<ObjectName, Policy>,
    /// Pods that left the API; only the addresses they still hold.
    ghosts: BTreeMap<PodId, Pod>,
    /// Who names an address as its own; nearly always one.
    claims: HashMap<IpAddr, Vec<Arc<Pod>>>,
    /// Pods that use their node's network, by the node's addresses.
    on_hosts: HashMap<IpAddr, Vec<Arc<Pod>>>,
    /// Addresses of pods in the API whose interface is gone already.
    unplugged: BTreeSet<(IpAddr, PodId)>,
    /// What the network plugin said that the API does not say yet.
    plugged: Claims,
    labels: Interner,
}

impl Index {
    /// An empty index for the node of this name.
    pub fn new(node: impl Into<String>) -> Self {
        Self { node: node.into(), ..Self::default() }
    }

    /// Whether policies deleted from a Terminating namespace keep their effect until its pods are gone (they do unless
    /// this says otherwise).
    #[must_use]
    pub fn keep_policies_of_going_namespaces(mut self, keep: bool) -> Self {
        self.forget_going = !keep;
        self
    }

    /// The node it is for.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The pods in the API.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.iter().map(|pod| pod.0.as_ref())
    }

    fn pod(&self, name: &ObjectName) -> Option<&Pod> {
        self.pods.get(name).map(|pod| pod.0.as_ref())
    }

    /// The namespaces in the API.
    pub fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.namespaces.values()
    }

    /// A namespace, if it is known.
    pub fn namespace(&self, name: &str) -> Option<&Namespace> {
        self.namespaces.get(name)
    }

    /// The policies in effect, sorted by name within their namespace; with those of namespaces that are going.
    pub fn policies(&self) -> impl Iterator<Item = &Policy> {
        self.policies.values().chain(self.going.values())
    }

    /// The policies in effect in a namespace, sorted by name.
    pub fn policies_in(&self, namespace: &str) -> Vec<&Policy> {
        let mut policies: Vec<&Policy> =
            in_namespace(&self.policies, namespace).chain(in_namespace(&self.going, namespace)).collect();
        policies.sort_by(|a, b| a.name.cmp(&b.name));
        policies
    }

    /// Takes in what happened; whether policy can see a difference.
    pub fn apply(&mut self, change: Change) -> bool {
        let changed = match change {
            Change::UpsertPod(pod) => self.upsert_pod(pod),
            Change::DeletePod(name) => self.delete_pod(&name),
            Change::UpsertNamespace(namespace) => self.upsert_namespace(namespace),
            Change::DeleteNamespace(name) => self.namespaces.remove(&name).is_some(),
            Change::UpsertPolicy(policy) => self.upsert_policy(policy),
            Change::DeletePolicy(name) => self.delete_policy(&name),
            Change::InterfaceGone(address) => self.interface_gone(address),
            Change::Claim(claim) => self.claim(claim),
            Change::Release(sandbox) => self.release(&sandbox),
        };
        self.forget_policies_without_pods();
        changed
    }

    /// Takes a complete list of everything; whether policy can see a difference. What is not listed is deleted.
    pub fn replace(
        &mut self,
        namespaces: impl IntoIterator<Item = Namespace>,
        policies: impl IntoIterator<Item = Policy>,
        pods: impl IntoIterator<Item = Pod>,
    ) -> bool {
        // Namespaces first: whether a policy that is missing keeps its effect depends on its namespace.
        let namespaces = self.replace_namespaces(namespaces);
        let policies = self.replace_policies(policies);
        let pods = self.replace_pods(pods);
        namespaces || policies || pods
    }

    /// Takes the complete list of pods; whether policy can see a difference.
    pub fn replace_pods(&mut self, pods: impl IntoIterator<Item = Pod>) -> bool {
        let listed: BTreeMap<_, _> = pods.into_iter().map(|pod| (pod.name.clone(), pod)).collect();
        let missing: Vec<_> =
            self.pods().map(|pod| &pod.name).filter(|name| !listed.contains_key(*name)).cloned().collect();
        self.apply_all(listed.into_values().map(Change::UpsertPod).chain(missing.into_iter().map(Change::DeletePod)))
    }

    /// Takes the complete list of namespaces; whether policy can see a difference.
    pub fn replace_namespaces(&mut self, namespaces: impl IntoIterator<Item = Namespace>) -> bool {
        let listed: BTreeMap<_, _> =
            namespaces.into_iter().map(|namespace| (namespace.name.clone(), namespace)).collect();
        let missing = missing(&self.namespaces, &listed).map(Change::DeleteNamespace);
        self.apply_all(listed.into_values().map(Change::UpsertNamespace).chain(missing))
    }

    /// Takes the complete list of policies; whether policy can see a difference.
    pub fn replace_policies(&mut self, policies: impl IntoIterator<Item = Policy>) -> bool {
        let listed: BTreeMap<_, _> = policies.into_iter().map(|policy| (policy.name.clone(), policy)).collect();
        let missing = missing(&self.policies, &listed).map(Change::DeletePolicy);
        self.apply_all(listed.into_values().map(Change::UpsertPolicy).chain(missing))
    }

    fn apply_all(&mut self, changes: impl Iterator<Item = Change>) -> bool {
        changes.map(|change| self.apply(change)).filter(|changed| *changed).count() > 0
    }

    /// The pod an address belongs to: not terminal before terminal, then the newest, then the smallest UID.
    pub fn owner(&self, address: IpAddr) -> Option<&Pod> {
        self.shared_owner(address).map(AsRef::as_ref)
    }

    /// The same, to be kept.
    pub fn shared_owner(&self, address: IpAddr) -> Option<&Arc<Pod>> {
        self.claims.get(&address)?.iter().min_by_key(|pod| rank(pod))
    }

    /// The node that has an address, as far as pods in its network tell.
    pub fn node_at(&self, address: IpAddr) -> Option<&str> {
        self.on_hosts.get(&address)?.iter().min_by_key(|pod| rank(pod))?.node.as_deref()
    }

    /// The addresses a pod in the API owns, sorted; a ghost's are not among them.
    pub fn owned_addresses(&self, pod: &Pod) -> Vec<IpAddr> {
        let mut owned: Vec<IpAddr> = pod
            .addresses
            .iter()
            .copied()
            .filter(|address| self.owner(*address).is_some_and(|owner| owner.name == pod.name))
            .filter(|address| self.ghost(*address).is_none())
            .collect();
        owned.sort_unstable();
        owned.dedup();
        owned
    }

    /// The pods of this node that policy is applied to: those in the API by name, then ghosts by name and UID.
    pub fn subjects(&self) -> Vec<Subject<'_>> {
        let present = self.pods().filter(|pod| self.is_local(pod)).map(|pod| Subject {
            pod,
            addresses: self
                .owned_addresses(pod)
                .into_iter()
                .filter(|address| pod.lifetime == Lifetime::Live || !self.is_unplugged(*address, pod))
                .collect(),
        });
        let ghosts = self.ghosts.values().map(|pod| Subject { pod, addresses: pod.addresses.clone() });
        present.chain(ghosts).filter(|subject| !subject.addresses.is_empty()).collect()
    }

    fn is_local(&self, pod: &Pod) -> bool {
        !pod.host_network && pod.node.as_deref() == Some(self.node.as_str())
    }

    fn is_unplugged(&self, address: IpAddr, pod: &Pod) -> bool {
        self.unplugged.contains(&(address, id(pod)))
    }

    fn ghost(&self, address: IpAddr) -> Option<&Pod> {
        self.ghosts.values().find(|ghost| ghost.addresses.contains(&address))
    }

    fn upsert_pod(&mut self, pod: Pod) -> bool {
        let pod = if self.is_local(&pod) { self.plugged.add_to(pod) } else { pod };
        self.put_pod(pod)
    }

    fn claim(&mut self, claim: Claim) -> bool {
        let name = claim.pod.clone();
        // Whoever had them there before is gone; these are plugged in now.
        self.unplugged.retain(|(address, _)| !claim.addresses.contains(address));
        self.plugged.insert(claim);
        self.claims_changed(&name)
    }

    fn release(&mut self, sandbox: &str) -> bool {
        let pod = self.plugged.remove(sandbox);
        pod.is_some_and(|name| self.claims_changed(&name))
    }

    /// The pod of this name as the API shows it, taken in again.
    fn claims_changed(&mut self, name: &ObjectName) -> bool {
        let Some(pod) = self.pod(name).cloned() else { return false };
        let pod = self.plugged.take_from(pod);
        self.upsert_pod(pod)
    }

    fn put_pod(&mut self, pod: Pod) -> bool {
        if self.pod(&pod.name) == Some(&pod) {
            return false;
        }
        let same = self.pod(&pod.name).is_some_and(|old| old.uid == pod.uid);
        if same {
            self.remove_pod(&pod.name);
            self.unplugged.retain(|(address, owner)| *owner != id(&pod) || pod.addresses.contains(address));
        } else {
            // Another pod under the name: the first one is gone without a word.
            self.delete_pod(&pod.name);
        }
        self.ghosts.remove(&id(&pod));
        self.insert_pod(pod);
        true
    }

    fn insert_pod(&mut self, pod: Pod) {
        let addresses = pod.addresses.clone();
        let pod = Arc::new(Pod { labels: self.labels.share(&pod.labels), ..pod });
        let claims = if pod.host_network { &mut self.on_hosts } else { &mut self.claims };
        for address in &addresses {
            claims.entry(*address).or_insert_with(|| Vec::with_capacity(1)).push(Arc::clone(&pod));
        }
        self.pods.insert(ByName(pod));
        for address in addresses {
            self.lay_overtaken_ghost(address);
        }
    }

    fn remove_pod(&mut self, name: &ObjectName) -> Option<Pod> {
        let ByName(pod) = self.pods.take(name)?;
        let all = if pod.host_network { &mut self.on_hosts } else { &mut self.claims };
        for address in &pod.addresses {
            if let Some(claims) = all.get_mut(address) {
                claims.retain(|claim| claim.name != *name);
                if claims.is_empty() {
                    all.remove(address);
                }
            }
        }
        Some(Arc::unwrap_or_clone(pod))
    }

    fn delete_pod(&mut self, name: &ObjectName) -> bool {
        let Some(pod) = self.pod(name) else { return false };
        let local = self.is_local(pod);
        let mut held = self.owned_addresses(pod);
        held.retain(|address| local && !self.is_unplugged(*address, pod));
        let Some(pod) = self.remove_pod(name) else { return false };
        self.plugged.pod_gone(name);
        self.unplugged.retain(|(_, owner)| *owner != id(&pod));
        if !held.is_empty() {
            self.ghosts.insert(id(&pod), Pod { addresses: held, lifetime: Lifetime::Terminal, ..pod });
        }
        true
    }

    /// A ghost loses an address that a pod with a better claim has.
    fn lay_overtaken_ghost(&mut self, address: IpAddr) {
        let overtaken = match (self.ghost(address), self.owner(address)) {
            (Some(ghost), Some(owner)) => rank(owner) < rank(ghost),
            _ => false,
        };
        if overtaken {
            self.lay_ghost(address);
        }
    }

    fn lay_ghost(&mut self, address: IpAddr) -> bool {
        let Some(ghost) = self.ghosts.values_mut().find(|ghost| ghost.addresses.contains(&address)) else {
            return false;
        };
        ghost.addresses.retain(|held| *held != address);
        self.ghosts.retain(|_, ghost| !ghost.addresses.is_empty());
        true
    }

    fn interface_gone(&mut self, address: IpAddr) -> bool {
        if self.lay_ghost(address) {
            return true;
        }
        let Some(owner) = self.owner(address).filter(|owner| self.is_local(owner)) else { return false };
        let (terminal, owner) = (owner.lifetime == Lifetime::Terminal, id(owner));
        self.unplugged.insert((address, owner)) && terminal
    }

    fn upsert_namespace(&mut self, namespace: Namespace) -> bool {
        let old = self.namespaces.insert(namespace.name.clone(), namespace.clone());
        old.is_none_or(|old| old != namespace)
    }

    fn upsert_policy(&mut self, policy: Policy) -> bool {
        let kept = self.going.remove(&policy.name);
        let old = self.policies.insert(policy.name.clone(), policy.clone()).or(kept);
        old.is_none_or(|old| old != policy)
    }

    fn delete_policy(&mut self, name: &ObjectName) -> bool {
        let Some(policy) = self.policies.remove(name) else { return false };
        let going = self.namespaces.get(&name.namespace).is_some_and(|namespace| namespace.terminating);
        let kept = going && !self.forget_going && self.is_inhabited(&name.namespace);
        if kept {
            self.going.insert(name.clone(), policy);
        }
        !kept
    }

    fn is_inhabited(&self, namespace: &str) -> bool {
        let first = self.pods.range(ObjectName::new(namespace, "")..).next();
        first.is_some_and(|pod| pod.0.name.namespace == namespace)
            || self.ghosts.keys().any(|(name, _)| name.namespace == namespace)
    }

    /// A namespace that is empty, or that is there again and stays, no longer keeps its deleted policies.
    fn forget_policies_without_pods(&mut self) {
        let mut going = std::mem::take(&mut self.going);
        going.retain(|name, _| {
            let stays = self.namespaces.get(&name.namespace).is_some_and(|namespace| !namespace.terminating);
            !stays && self.is_inhabited(&name.namespace)
        });
        self.going = going;
    }
}

/// Orders the claims on an address, the best first.
fn rank(pod: &Pod) -> (Lifetime, Reverse<&str>, &str, &ObjectName) {
    (pod.lifetime, Reverse(&pod.created), &pod.uid, &pod.name)
}

fn id(pod: &Pod) -> PodId {
    (pod.name.clone(), pod.uid.clone())
}

/// The objects of a namespace; a map by name keeps them side by side.
fn in_namespace<'a, 'n, T>(
    objects: &'a BTreeMap<ObjectName, T>,
    namespace: &'n str,
) -> impl Iterator<Item = &'a T> + use<'a, 'n, T> {
    objects
        .range(ObjectName::new(namespace, "")..)
        .take_while(move |(name, _)| name.namespace == namespace)
        .map(|(_, object)| object)
}

/// The keys that are known and not listed.
fn missing<K: Ord + Clone, V>(known: &BTreeMap<K, V>, listed: &BTreeMap<K, V>) -> std::vec::IntoIter<K> {
    known.keys().filter(|key| !listed.contains_key(*key)).cloned().collect::<Vec<_>>().into_iter()
}

#[cfg(test)]
mod claim_tests;
#[cfg(test)]
mod tests;
