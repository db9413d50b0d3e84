//! Which interfaces a pod's address was seen behind, and when the last of them went.
//!
//! In: sightings and the ends of interfaces. Out: each watched address once, when every interface it was ever seen
//! behind is gone. What always holds: a pod that claims another's address can only delay the report, never cause it
//! while the other's interface lives; only watched addresses take memory.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::net::IpAddr;

use flatfell_rules::object::ObjectName;
use imbl::OrdMap;
use imbl::ordmap::DiffItem;

/// Sightings of the watched addresses.
#[derive(Debug, Clone, Default)]
pub struct Behind {
    watched: OrdMap<IpAddr, ObjectName>,
    ports: BTreeMap<IpAddr, BTreeSet<u32>>,
    gone: BTreeSet<IpAddr>,
}

impl Behind {
    /// Changes what is watched; returns whether there is something new in it.
    pub fn watch(&mut self, watched: &OrdMap<IpAddr, ObjectName>) -> bool {
        let mut more = false;
        if !watched.ptr_eq(&self.watched) {
            more = self.watched.diff(watched).any(|item| matches!(item, DiffItem::Add(..)));
            self.watched.clone_from(watched);
            self.ports.retain(|address, _| watched.contains_key(address));
            self.gone.retain(|address| watched.contains_key(address));
        }
        more
    }

    /// The address was seen behind this interface.
    pub fn seen(&mut self, address: IpAddr, port: u32) {
        if self.watched.contains_key(&address) {
            self.ports.entry(address).or_default().insert(port);
            self.gone.remove(&address);
        }
    }

    /// The interface is gone, and with it the addresses that were behind no other.
    pub fn interface_gone(&mut self, port: u32) {
        let gone = &mut self.gone;
        self.ports.retain(|address, ports| {
            if ports.remove(&port) && ports.is_empty() {
                gone.insert(*address);
            }
            !ports.is_empty()
        });
    }

    /// The interfaces that watched addresses were seen behind.
    pub fn interfaces(&self) -> BTreeSet<u32> {
        self.ports.values().flatten().copied().collect()
    }

    /// The addresses whose interfaces went since the last call.
    pub fn take_gone(&mut self) -> Vec<IpAddr> {
        mem::take(&mut self.gone).into_iter().collect()
    }
}
