//! All that is known of the cluster, kept current by changes.
//!
//! In: [`Change`]s and relists of parsed objects, the name of this node. Out: what [`crate::effective::evaluate`] asks
//! for. What always holds: what is answered depends on the objects that are there now, not on the order they came in.
//! Two things are memory on purpose. A ghost is a pod of this node that left the API while its interface may still
//! carry traffic: it stays a subject, never a peer. A policy deleted from a namespace that is Terminating keeps its
//! effect until nothing lives there.

mod claims;
mod ghosts;
mod plugged;
#[cfg(test)]
mod plugged_tests;
mod policies;
mod relist;
#[cfg(test)]
mod tests;

use std::borrow::Borrow;
use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use self::claims::Claims;
use self::ghosts::Ghosts;
pub use self::plugged::Claim;
use self::plugged::Plugged;
use self::policies::Policies;
pub use self::policies::PolicyCounts;
use crate::intern::Interner;
use crate::object::{Lifetime, Mode, Namespace, ObjectName, Pod};
use crate::policy::Policy;

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

/// What a change touched, as far as [`crate::effective`] asks for it.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    /// Addresses, each once, and the peer that had it before.
    pub(crate) addresses: Vec<(IpAddr, Option<Arc<Pod>>)>,
    /// Names of pods of this node, there or gone, that may be other subjects now.
    pub(crate) subjects: Vec<ObjectName>,
    /// Namespaces that may be others.
    pub(crate) namespaces: Vec<String>,
    /// Policies that may be others.
    pub(crate) policies: Vec<ObjectName>,
}

/// Tells a pod from its successor under the same name.
type PodId = (ObjectName, Box<str>);

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
    policies: Policies,
    /// Pods that left the API; only the addresses they still hold.
    ghosts: Ghosts,
    /// Who names an address as its own.
    claims: Claims,
    /// Pods that use their node's network, by the node's addresses.
    on_hosts: Claims,
    /// Addresses of pods in the API whose interface is gone already.
    unplugged: BTreeSet<(IpAddr, PodId)>,
    /// What the network plugin said that the API does not say yet.
    plugged: Plugged,
    shared: Interner,
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

    /// The policies in effect; with those of namespaces that are going.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.iter()
    }

    /// A policy, if it is in effect.
    pub fn policy(&self, name: &ObjectName) -> Option<&Arc<Policy>> {
        self.policies.get(name)
    }

    /// How many policies are in effect, by what they do.
    pub fn policy_counts(&self) -> PolicyCounts {
        self.policies.counts()
    }

    /// Addresses that several live pods name as their own, in order: each with the pod that has it and another one.
    pub fn contested(&self) -> Vec<(IpAddr, ObjectName, ObjectName)> {
        let contested = self.claims.contested().map(|(address, has, other)| (address, has.clone(), other.clone()));
        let mut contested: Vec<_> = contested.collect();
        contested.sort_unstable();
        contested
    }

    /// Takes in what happened; whether policy can see a difference.
    pub fn apply(&mut self, change: Change) -> bool {
        self.touch(change).0
    }

    /// The same, and what it touched.
    pub(crate) fn touch(&mut self, change: Change) -> (bool, Touched) {
        let mut touched = Touched::default();
        let changed = match change {
            Change::UpsertPod(pod) => self.upsert_pod(pod, &mut touched),
            Change::DeletePod(name) => self.delete_pod(&name, &mut touched),
            Change::UpsertNamespace(namespace) => self.upsert_namespace(namespace, &mut touched),
            Change::DeleteNamespace(name) => self.delete_namespace(name, &mut touched),
            Change::UpsertPolicy(policy) => self.upsert_policy(policy, &mut touched),
            Change::DeletePolicy(name) => self.delete_policy(name, &mut touched),
            Change::InterfaceGone(address) => self.interface_gone(address, &mut touched),
            Change::Claim(claim) => self.claim(claim, &mut touched),
            Change::Release(sandbox) => self.release(&sandbox, &mut touched),
        };
        (changed, touched)
    }

    /// Everything that is known, as if it were new.
    pub(crate) fn everything(&self) -> Touched {
        let local = self.pods().filter(|pod| self.is_local(pod)).map(|pod| pod.name.clone());
        Touched {
            addresses: self.claims.addresses().map(|address| (address, None)).collect(),
            subjects: local.chain(self.ghosts.iter().map(|ghost| ghost.name.clone())).collect(),
            namespaces: self.namespaces.keys().cloned().collect(),
            policies: self.policies().map(|policy| policy.name.clone()).collect(),
        }
    }

    /// The pod an address belongs to: not terminal before terminal, then the newest, then the smallest UID.
    pub fn owner(&self, address: IpAddr) -> Option<&Pod> {
        self.shared_owner(address).map(AsRef::as_ref)
    }

    /// The same, to be kept.
    pub fn shared_owner(&self, address: IpAddr) -> Option<&Arc<Pod>> {
        self.claims.owner(address)
    }

    /// The node that has an address, as far as pods in its network tell.
    pub fn node_at(&self, address: IpAddr) -> Option<&str> {
        self.on_hosts.owner(address)?.node.as_deref()
    }

    /// The pod that is the peer at an address: it lives, and no ghost holds the address.
    pub(crate) fn peer_at(&self, address: IpAddr) -> Option<&Arc<Pod>> {
        let owner = self.shared_owner(address).filter(|owner| owner.lifetime == Lifetime::Live)?;
        self.ghosts.at(address).is_none().then_some(owner)
    }

    /// The addresses a pod in the API owns, sorted; a ghost's are not among them.
    fn owned_addresses(&self, pod: &Pod) -> Vec<IpAddr> {
        let mut owned = distinct(pod.addresses.iter().copied());
        owned.retain(|address| self.owner(*address).is_some_and(|owner| owner.name == pod.name));
        owned.retain(|address| self.ghosts.at(*address).is_none());
        owned
    }

    /// The pods of this name that policy is applied to on this node: the one in the API, then ghosts by UID.
    pub(crate) fn subjects_named(&self, name: &ObjectName) -> Vec<Subject<'_>> {
        let present = self.pod(name).filter(|pod| self.is_local(pod)).map(|pod| {
            let mut addresses = self.owned_addresses(pod);
            addresses.retain(|address| pod.lifetime == Lifetime::Live || !self.is_unplugged(*address, pod));
            Subject { pod, addresses }
        });
        let ghosts = self.ghosts.named(name).map(|pod| Subject { pod, addresses: pod.addresses.to_vec() });
        present.into_iter().chain(ghosts).filter(|subject| !subject.addresses.is_empty()).collect()
    }

    fn is_local(&self, pod: &Pod) -> bool {
        !pod.host_network && pod.node.as_deref() == Some(self.node.as_str())
    }

    fn is_unplugged(&self, address: IpAddr, pod: &Pod) -> bool {
        !self.unplugged.is_empty() && self.unplugged.contains(&(address, id(pod)))
    }

    /// Notes who has the addresses, before and after what is done to them.
    fn around<T>(&mut self, addresses: &[IpAddr], touched: &mut Touched, change: impl FnOnce(&mut Self) -> T) -> T {
        for address in addresses {
            touched.addresses.push((*address, self.peer_at(*address).cloned()));
            self.note_subjects(*address, touched);
        }
        let changed = change(self);
        for address in addresses {
            self.note_subjects(*address, touched);
        }
        changed
    }

    fn note_subjects(&self, address: IpAddr, touched: &mut Touched) {
        let owner = self.owner(address).filter(|owner| self.is_local(owner));
        for pod in owner.into_iter().chain(self.ghosts.at(address)) {
            if touched.subjects.last() != Some(&pod.name) {
                touched.subjects.push(pod.name.clone());
            }
        }
    }

    fn upsert_pod(&mut self, pod: Pod, touched: &mut Touched) -> bool {
        let pod = if self.is_local(&pod) { self.plugged.add_to(pod) } else { pod };
        let old = self.pod(&pod.name);
        if old == Some(&pod) {
            return false;
        }
        let ghost = self.ghosts.get(&id(&pod));
        let addresses = [Some(&pod), old, ghost].into_iter().flatten().flat_map(|pod| &pod.addresses);
        let addresses = distinct(addresses.copied());
        let namespace = pod.name.namespace.clone();
        self.around(&addresses, touched, |index| index.put_pod(pod));
        self.forget_policies_without_pods(&namespace, touched);
        true
    }

    fn claim(&mut self, claim: Claim, touched: &mut Touched) -> bool {
        let (name, addresses) = (claim.pod.clone(), claim.addresses.clone());
        self.around(&addresses, touched, |index| {
            // Whoever had them there before is gone; these are plugged in now.
            index.unplugged.retain(|(address, _)| !claim.addresses.contains(address));
            index.plugged.insert(claim);
        });
        self.claims_changed(&name, touched)
    }

    fn release(&mut self, sandbox: &str, touched: &mut Touched) -> bool {
        let pod = self.plugged.remove(sandbox);
        pod.is_some_and(|name| self.claims_changed(&name, touched))
    }

    /// The pod of this name as the API shows it, taken in again.
    fn claims_changed(&mut self, name: &ObjectName, touched: &mut Touched) -> bool {
        let Some(pod) = self.pod(name).cloned() else { return false };
        let pod = self.plugged.take_from(pod);
        self.upsert_pod(pod, touched)
    }

    fn put_pod(&mut self, pod: Pod) {
        match self.pod(&pod.name).filter(|old| old.uid == pod.uid) {
            Some(old) => {
                let left: Vec<IpAddr> =
                    old.addresses.iter().filter(|address| !pod.addresses.contains(address)).copied().collect();
                self.plug(&left, &pod);
                self.remove_pod(&pod.name);
            }
            // Another pod under the name: the first one is gone without a word.
            None => self.bury_pod(&pod.name),
        }
        self.ghosts.remove(&id(&pod));
        self.insert_pod(pod);
    }

    /// What was known of the interfaces of these addresses of a pod is no longer of use.
    fn plug(&mut self, addresses: &[IpAddr], pod: &Pod) {
        if !self.unplugged.is_empty() {
            for address in addresses {
                self.unplugged.remove(&(*address, id(pod)));
            }
        }
    }

    fn insert_pod(&mut self, pod: Pod) {
        let pod = Arc::new(self.shared.share(pod));
        let claims = if pod.host_network { &mut self.on_hosts } else { &mut self.claims };
        for address in &pod.addresses {
            claims.insert(*address, &pod);
        }
        self.pods.insert(ByName(Arc::clone(&pod)));
        for address in &pod.addresses {
            self.lay_overtaken_ghost(*address);
        }
    }

    fn remove_pod(&mut self, name: &ObjectName) -> Option<Arc<Pod>> {
        let ByName(pod) = self.pods.take(name)?;
        let claims = if pod.host_network { &mut self.on_hosts } else { &mut self.claims };
        for address in &pod.addresses {
            claims.remove(*address, name);
        }
        Some(pod)
    }

    fn delete_pod(&mut self, name: &ObjectName, touched: &mut Touched) -> bool {
        let Some(pod) = self.pod(name) else { return false };
        let addresses = distinct(pod.addresses.iter().copied());
        self.around(&addresses, touched, |index| index.bury_pod(name));
        self.plugged.pod_gone(name);
        self.forget_policies_without_pods(&name.namespace, touched);
        true
    }

    /// Takes a pod out of the API; what it still holds of this node it holds as a ghost.
    fn bury_pod(&mut self, name: &ObjectName) {
        let Some(pod) = self.pod(name) else { return };
        let mut held = if self.is_local(pod) { self.owned_addresses(pod) } else { Vec::new() };
        held.retain(|address| !self.is_unplugged(*address, pod));
        let Some(pod) = self.remove_pod(name) else { return };
        self.plug(&pod.addresses, &pod);
        if !held.is_empty() {
            let pod = Arc::unwrap_or_clone(pod);
            self.ghosts.insert(Pod { addresses: held.as_slice().into(), lifetime: Lifetime::Terminal, ..pod });
        }
    }

    /// A ghost loses an address that a pod with a better claim has.
    fn lay_overtaken_ghost(&mut self, address: IpAddr) {
        let overtaken = match (self.ghosts.at(address), self.owner(address)) {
            (Some(ghost), Some(owner)) => rank(owner) < rank(ghost),
            _ => false,
        };
        if overtaken {
            self.ghosts.lay(address);
        }
    }

    fn interface_gone(&mut self, address: IpAddr, touched: &mut Touched) -> bool {
        if let Some(ghost) = self.ghosts.at(address) {
            let namespace = ghost.name.namespace.clone();
            self.around(&[address], touched, |index| index.ghosts.lay(address));
            self.forget_policies_without_pods(&namespace, touched);
            return true;
        }
        let Some(owner) = self.owner(address).filter(|owner| self.is_local(owner)) else { return false };
        let (terminal, owner) = (owner.lifetime == Lifetime::Terminal, id(owner));
        self.around(&[address], touched, |index| index.unplugged.insert((address, owner))) && terminal
    }

    fn upsert_namespace(&mut self, namespace: Namespace, touched: &mut Touched) -> bool {
        let name = namespace.name.clone();
        if self.namespaces.get(&name) == Some(&namespace) {
            return false;
        }
        self.policies.audit(&name, namespace.mode == Mode::Audit);
        self.namespaces.insert(name.clone(), namespace);
        self.forget_policies_without_pods(&name, touched);
        touched.namespaces.push(name);
        true
    }

    fn delete_namespace(&mut self, name: String, touched: &mut Touched) -> bool {
        let known = self.namespaces.remove(&name).is_some();
        if known {
            self.policies.audit(&name, false);
            self.forget_policies_without_pods(&name, touched);
            touched.namespaces.push(name);
        }
        known
    }

    fn upsert_policy(&mut self, policy: Policy, touched: &mut Touched) -> bool {
        let name = policy.name.clone();
        let changed = self.policies.insert(policy);
        if changed {
            touched.policies.push(name);
        }
        changed
    }

    fn delete_policy(&mut self, name: ObjectName, touched: &mut Touched) -> bool {
        let going = self.namespaces.get(&*name.namespace).is_some_and(|namespace| namespace.terminating);
        let kept = going && !self.forget_going && self.is_inhabited(&name.namespace);
        let changed = self.policies.remove(&name, kept);
        if changed {
            touched.policies.push(name);
        }
        changed
    }

    fn is_inhabited(&self, namespace: &str) -> bool {
        let first = self.pods.range(ObjectName::new(namespace, "")..).next();
        first.is_some_and(|pod| *pod.0.name.namespace == *namespace) || self.ghosts.are_in(namespace)
    }

    /// A namespace that is empty, or that is there again and stays, no longer keeps its deleted policies. Only this one
    /// and those whose pods were touched can have become so.
    fn forget_policies_without_pods(&mut self, namespace: &str, touched: &mut Touched) {
        if !self.policies.keeps_any() {
            return;
        }
        let others = touched.subjects.iter().map(|name| &*name.namespace);
        let namespaces: BTreeSet<Arc<str>> = others.chain([namespace]).map(Arc::from).collect();
        for namespace in namespaces {
            let stays = self.namespaces.get(&*namespace).is_some_and(|namespace| !namespace.terminating);
            if stays || !self.is_inhabited(&namespace) {
                touched.policies.extend(self.policies.forget(&namespace));
            }
        }
    }
}

/// Orders the claims on an address, the best first.
fn rank(pod: &Pod) -> (Lifetime, Reverse<&str>, &str, &ObjectName) {
    (pod.lifetime, Reverse(&pod.created), &pod.uid, &pod.name)
}

fn id(pod: &Pod) -> PodId {
    (pod.name.clone(), pod.uid.clone())
}

/// Sorted, each once.
fn distinct(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = addresses.collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}
