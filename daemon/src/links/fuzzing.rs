//! A door for the fuzzers: what rtnetlink sends without a socket.
//!
//! In: a datagram. Out: whether it could be read. What always holds: what is kept afterwards is whole.

use std::net::IpAddr;

use flatfell_rules::object::ObjectName;
use netlink_packet_route::RouteNetlinkMessage;

use super::behind::Behind;
use super::peer::{self, Peer};
use super::state::State;
use super::{LinkError, take_in};
use crate::netlink::{Messages, NetlinkError};

/// Takes a dump or events in, with these addresses watched, and asks for everything that is known then.
pub fn links(datagram: &[u8], watched: &[IpAddr]) -> Result<(), LinkError> {
    let (mut state, mut behind) = (State::default(), Behind::default());
    behind.watch(&watched.iter().map(|address| (*address, ObjectName::new("x", "a"))).collect());
    let taken = take_in(&mut state, &mut behind, Messages::new(datagram));
    for (device, _, mac) in state.neighbours() {
        state.ports_of(device, mac).for_each(drop);
        state.addresses_of(device, mac).for_each(drop);
    }
    behind.take_gone();
    taken.map(drop)
}

/// What the other end of a veth pair says of itself.
pub fn peer(datagram: &[u8], namespace: i32, index: u32) -> Result<(), LinkError> {
    let asked = Peer { namespace, index };
    for message in Messages::new(datagram) {
        match peer::parse(&message.map_err(NetlinkError::from)?)? {
            RouteNetlinkMessage::NewLink(link) => drop(peer::mac_of(link, asked)),
            RouteNetlinkMessage::NewAddress(address) => drop(peer::address_of(&address, asked)),
            _ => {}
        }
    }
    Ok(())
}
