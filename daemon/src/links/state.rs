//! What the kernel said about interfaces, kept.
//!
//! In: [`Event`]s in the kernel's order. Out: the current links, addresses, neighbours and bridge forwarding entries.
//! What always holds: nothing refers to a link that is gone; the two views of the neighbours agree.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    LinkChange,
    read::{Assigned, Event, Link, Mac},
};

/// A picture of the node's interfaces.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    pub links: BTreeMap<u32, Link>,
    pub addresses: BTreeSet<Assigned>,
    neighbours: BTreeMap<(u32, IpAddr), Mac>,
    /// The neighbours again, to be found by MAC address.
    holders: BTreeSet<(u32, Mac, IpAddr)>,
    forward: BTreeMap<(u32, Mac, u16), u32>,
}

impl State {
    /// Takes one event in and says what it changed.
    pub fn apply(&mut self, event: Event) -> LinkChange {
        let nothing = LinkChange::default();
        match event {
            Event::Link { index, link } => {
                let links = self.links.get(&index) != Some(&link);
                self.links.insert(index, link);
                LinkChange { links, ..nothing }
            }
            Event::LinkGone { index } => self.link_gone(index),
            Event::Address(assigned) => LinkChange { addresses: self.addresses.insert(assigned), ..nothing },
            Event::AddressGone(assigned) => LinkChange { addresses: self.addresses.remove(&assigned), ..nothing },
            Event::Neighbour { device, address, mac } => {
                LinkChange { neighbours: self.set_neighbour(device, address, mac), ..nothing }
            }
            Event::Forward { bridge, mac, vlan, port } => {
                LinkChange { neighbours: self.set_forward((bridge, mac, vlan), port), ..nothing }
            }
        }
    }

    fn link_gone(&mut self, index: u32) -> LinkChange {
        let links = self.links.remove(&index).is_some();
        let before = self.addresses.len();
        self.addresses.retain(|assigned| assigned.index != index);
        self.neighbours.retain(|(device, _), _| *device != index);
        self.holders.retain(|(device, _, _)| *device != index);
        self.forward.retain(|(bridge, _, _), port| *bridge != index && *port != index);
        LinkChange { links, addresses: before != self.addresses.len(), ..LinkChange::default() }
    }

    fn set_neighbour(&mut self, device: u32, address: IpAddr, mac: Option<Mac>) -> bool {
        let key = (device, address);
        let before = match &mac {
            Some(mac) => self.neighbours.insert(key, mac.clone()),
            None => self.neighbours.remove(&key),
        };
        let changed = before != mac;
        if let Some(before) = before {
            self.holders.remove(&(device, before, address));
        }
        if let Some(mac) = mac {
            self.holders.insert((device, mac, address));
        }
        changed
    }

    fn set_forward(&mut self, key: (u32, Mac, u16), port: Option<u32>) -> bool {
        match port {
            Some(port) => self.forward.insert(key, port) != Some(port),
            None => self.forward.remove(&key).is_some(),
        }
    }

    /// The ports of `bridge` behind which `mac` was last seen: one for each VLAN.
    pub fn ports_of(&self, bridge: u32, mac: &Mac) -> impl Iterator<Item = u32> {
        self.forward.range((bridge, mac.clone(), 0)..=(bridge, mac.clone(), u16::MAX)).map(|(_, port)| *port)
    }

    /// The addresses that `mac` answers for on `device`.
    pub fn addresses_of<'a>(&'a self, device: u32, mac: &'a Mac) -> impl Iterator<Item = IpAddr> + 'a {
        let first = (device, mac.clone(), IpAddr::from([0, 0, 0, 0]));
        let same = move |(d, m, _): &&(u32, Mac, IpAddr)| *d == device && m == mac;
        self.holders.range(first..).take_while(same).map(|(_, _, address)| *address)
    }

    /// Every neighbour: device, address, MAC address.
    pub fn neighbours(&self) -> impl Iterator<Item = (u32, IpAddr, &Mac)> {
        self.neighbours.iter().map(|((device, address), mac)| (*device, *address, mac))
    }
}
