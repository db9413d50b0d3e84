//! Who names an address as its own.
//!
//! In: pods and their addresses. Out: the pod with the best claim on one. What always holds: that depends on the claims
//! there are, not on the order they came in. Nearly every address is named by one pod: only others take more memory.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::rank;
use crate::object::{Lifetime, ObjectName, Pod};

/// A pod for each address. The families are apart: together each entry would be as long as the longer.
#[derive(Clone, Debug, Default)]
struct Best {
    v4: HashMap<Ipv4Addr, Arc<Pod>>,
    v6: HashMap<Ipv6Addr, Arc<Pod>>,
}

impl Best {
    fn get(&self, address: IpAddr) -> Option<&Arc<Pod>> {
        match address {
            IpAddr::V4(address) => self.v4.get(&address),
            IpAddr::V6(address) => self.v6.get(&address),
        }
    }

    fn get_mut(&mut self, address: IpAddr) -> Option<&mut Arc<Pod>> {
        match address {
            IpAddr::V4(address) => self.v4.get_mut(&address),
            IpAddr::V6(address) => self.v6.get_mut(&address),
        }
    }

    fn insert(&mut self, address: IpAddr, pod: Arc<Pod>) {
        match address {
            IpAddr::V4(address) => drop(self.v4.insert(address, pod)),
            IpAddr::V6(address) => drop(self.v6.insert(address, pod)),
        }
    }

    fn remove(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => drop(self.v4.remove(&address)),
            IpAddr::V6(address) => drop(self.v6.remove(&address)),
        }
    }

    fn keys(&self) -> impl Iterator<Item = IpAddr> {
        self.v4.keys().copied().map(IpAddr::V4).chain(self.v6.keys().copied().map(IpAddr::V6))
    }
}

/// The pods that name each address.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims {
    best: Best,
    /// The others, where there are others.
    rivals: HashMap<IpAddr, Vec<Arc<Pod>>>,
}

impl Claims {
    /// The pod with the best claim.
    pub(super) fn owner(&self, address: IpAddr) -> Option<&Arc<Pod>> {
        self.best.get(address)
    }

    /// All that somebody names.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.best.keys()
    }

    /// Addresses that several live pods name, each with the pod that has it and one that does not.
    pub(super) fn contested(&self) -> impl Iterator<Item = (IpAddr, &ObjectName, &ObjectName)> {
        self.rivals.iter().filter_map(|(address, rivals)| {
            let best = self.best.get(*address).filter(|best| best.lifetime == Lifetime::Live)?;
            let rival =
                rivals.iter().filter(|rival| rival.lifetime == Lifetime::Live).map(|rival| &rival.name).min()?;
            Some((*address, &best.name, rival))
        })
    }

    /// The pod names the address; naming it twice is naming it once.
    pub(super) fn insert(&mut self, address: IpAddr, pod: &Arc<Pod>) {
        let Some(best) = self.best.get_mut(address) else {
            self.best.insert(address, Arc::clone(pod));
            return;
        };
        if best.name == pod.name {
            return;
        }
        let mut rival = Arc::clone(pod);
        if rank(pod) < rank(best) {
            std::mem::swap(best, &mut rival);
        }
        let rivals = self.rivals.entry(address).or_default();
        if rivals.iter().all(|other| other.name != rival.name) {
            rivals.push(rival);
        }
    }

    /// The pod of this name no longer names the address.
    pub(super) fn remove(&mut self, address: IpAddr, name: &ObjectName) {
        if self.best.get(address).is_some_and(|best| best.name == *name) {
            self.best.remove(address);
        }
        let Some(mut rivals) = self.rivals.remove(&address) else { return };
        rivals.retain(|rival| rival.name != *name);
        if self.best.get(address).is_none()
            && let Some(next) = (0..rivals.len()).min_by_key(|place| rank(&rivals[*place]))
        {
            self.best.insert(address, rivals.swap_remove(next));
        }
        if !rivals.is_empty() {
            self.rivals.insert(address, rivals);
        }
    }
}
