//! Pods that left the API while their interface may still carry traffic.
//!
//! In: pods with the addresses they still hold. Out: whose a held address is. What always holds: no ghost holds nothing,
//! and no address is held by two.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use super::{PodId, id};
use crate::object::{ObjectName, Pod};

/// All of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Ghosts {
    by_id: BTreeMap<PodId, Pod>,
    held: HashMap<IpAddr, PodId>,
}

impl Ghosts {
    /// By name, then by UID.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Pod> {
        self.by_id.values()
    }

    /// The one that holds an address.
    pub(super) fn at(&self, address: IpAddr) -> Option<&Pod> {
        if self.held.is_empty() {
            return None;
        }
        self.by_id.get(self.held.get(&address)?)
    }

    /// The one of a pod.
    pub(super) fn get(&self, id: &PodId) -> Option<&Pod> {
        self.by_id.get(id)
    }

    /// Those of a name, by UID.
    pub(super) fn named<'a>(&'a self, name: &ObjectName) -> impl Iterator<Item = &'a Pod> + use<'a> {
        let first = (name.clone(), Box::default());
        let name = name.clone();
        self.by_id.range(first..).map(|(_, ghost)| ghost).take_while(move |ghost| ghost.name == name)
    }

    /// Whether a namespace has any.
    pub(super) fn are_in(&self, namespace: &str) -> bool {
        let first = self.by_id.range((ObjectName::new(namespace, ""), Box::default())..).next();
        first.is_some_and(|((name, _), _)| *name.namespace == *namespace)
    }

    /// A pod that holds these of its addresses, which no other ghost holds.
    pub(super) fn insert(&mut self, ghost: Pod) {
        let id = id(&ghost);
        self.held.extend(ghost.addresses.iter().map(|address| (*address, id.clone())));
        self.by_id.insert(id, ghost);
    }

    /// The pod is in the API again.
    pub(super) fn remove(&mut self, id: &PodId) {
        for address in self.by_id.remove(id).into_iter().flat_map(|ghost| ghost.addresses) {
            self.held.remove(&address);
        }
    }

    /// Nobody holds the address any more.
    pub(super) fn lay(&mut self, address: IpAddr) {
        let Some(id) = self.held.remove(&address) else { return };
        let Some(ghost) = self.by_id.get_mut(&id) else { return };
        ghost.addresses.retain(|held| *held != address);
        if ghost.addresses.is_empty() {
            self.by_id.remove(&id);
        }
    }
}
