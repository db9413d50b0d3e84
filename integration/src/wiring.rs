//! The wiring of a lab as text for `ip -batch` and `bridge -batch`.
//!
//! In: the number of nodes, a place. Out: batches, one for each namespace. What always holds: a link is made inside the
//! namespace of one of its ends, so the machine's own namespace never sees one; an
//! IPv6 address is usable at once (`nodad`), where the kernel would leave it tentative for a while.

use std::fmt::Write;
use std::net::IpAddr;

use crate::place::{Place, bridge_address_like, bridge_mac, mac_text, tunnel_address_like, tunnel_mac};

const V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
const V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED);

/// The index of each node's bridge. Which index is free depends on the tunnels a kernel makes by itself, and
/// docs/listing.nft shows it.
const BRIDGE_INDEX: u32 = 100;

/// The index of the first pod's port, likewise.
const PORT_INDEX: u32 = 200;

/// The host's side of a pod's link, a port of `cni0`.
pub fn port_name(slot: u8) -> String {
    format!("veth{slot}")
}

/// A node's side of the underlay; the cable's other end goes to the namespace `switch`.
pub(crate) fn node(node: u8, switch: &str) -> String {
    let mut text = cable(Place::Node(node), switch);
    let router = Place::Outside;
    let _ = write!(
        text,
        "link set lo up
route add default via {router4}
route add default via {router6}
",
        router4 = router.v4(),
        router6 = router.v6(),
    );
    text
}

/// What stands on the underlay, but for the pods: the bridge and the tunnels.
pub(crate) fn overlay(node: u8, nodes: u8) -> String {
    let mut text =
        format!("link add cni0 index {BRIDGE_INDEX} address {} mtu 1450 type bridge\n", mac_text(bridge_mac(node)));
    text.push_str(&tunnels(node));
    (1..=nodes).filter(|&peer| peer != node).for_each(|peer| text.push_str(&tunnel_peer(peer)));
    text
}

/// The last step of a node. A bridge that is up before its ports are takes the kernel a second to use.
pub(crate) fn raise(node: u8) -> String {
    format!(
        "link set cni0 up
address add {}/24 dev cni0
address add {}/64 dev cni0 nodad
",
        bridge_address_like(node, V4),
        bridge_address_like(node, V6),
    )
}

/// flannel.1 and flannel-v6.1, as flanneld makes them.
fn tunnels(node: u8) -> String {
    let mut text = String::new();
    for (family, like, name, length) in [(4, V4, "flannel.1", 32), (6, V6, "flannel-v6.1", 128)] {
        let detection = if family == 6 { "nodad" } else { "" };
        let _ = write!(
            text,
            "link add {name} address {mac} mtu 1450 type vxlan id 1 local {local} dev eth0 dstport 8472 nolearning
address add {own}/{length} dev {name} {detection}
link set {name} up
",
            mac = mac_text(tunnel_mac(node, family)),
            local = Place::Node(node).address_like(like),
            own = tunnel_address_like(node, like),
        );
    }
    text
}

/// Neighbour and route of another node, for both families.
fn tunnel_peer(peer: u8) -> String {
    let mut text = String::new();
    for (family, like, name, length) in [(4, V4, "flannel.1", 24), (6, V6, "flannel-v6.1", 64)] {
        let address = tunnel_address_like(peer, like);
        let mac = mac_text(tunnel_mac(peer, family));
        let _ = write!(
            text,
            "neighbour replace {address} lladdr {mac} dev {name} nud permanent
route replace {address}/{length} via {address} dev {name} onlink
"
        );
    }
    text
}

/// Forwarding entries of the other nodes, for `bridge -batch`.
pub(crate) fn forwarding(node: u8, nodes: u8) -> String {
    let mut text = String::new();
    for peer in (1..=nodes).filter(|&peer| peer != node) {
        for (family, like, name) in [(4, V4, "flannel.1"), (6, V6, "flannel-v6.1")] {
            let mac = mac_text(tunnel_mac(peer, family));
            let underlay = Place::Node(peer).address_like(like);
            let _ = writeln!(text, "fdb replace {mac} dev {name} dst {underlay} self permanent");
        }
    }
    text
}

/// The outside host: it reaches each pod range by the pod's own node.
pub(crate) fn outside(nodes: u8, switch: &str) -> String {
    let mut text = cable(Place::Outside, switch);
    text.push_str("link set lo up\n");
    for node in 1..=nodes {
        for (like, length) in [(V4, 24), (V6, 64)] {
            let range = tunnel_address_like(node, like);
            let _ = writeln!(text, "route add {range}/{length} via {}", Place::Node(node).address_like(like));
        }
    }
    text
}

/// The end of a cable that lies on the underlay, and its addresses.
fn cable(place: Place, switch: &str) -> String {
    // Ends of equal index look like no pair to the kernel, which then takes a second to use them.
    let index = 100 + u16::from(place.v4().octets()[3]);
    format!(
        "link add eth0 index {index} address {mac} type veth peer name {place} netns {switch}
address add {v4}/24 dev eth0
address add {v6}/64 dev eth0 nodad
link set eth0 up
",
        mac = mac_text(place.mac()),
        v4 = place.v4(),
        v6 = place.v6(),
    )
}

/// The underlay's segment, once all cables are plugged.
pub(crate) fn switch(nodes: u8) -> String {
    let mut text = "link set lo up\nlink add br0 type bridge\n".to_owned();
    for place in (1..=nodes).map(Place::Node).chain([Place::Outside]) {
        let _ = writeln!(text, "link set {place} master br0 up");
    }
    text
}

/// A first pod's link: at an index of its own, which docs/listing.nft shows.
pub(crate) fn first_plug(place: Place, slot: u8, pod: &str) -> String {
    link(place, slot, pod, &format!("index {}", PORT_INDEX + u32::from(slot)))
}

/// A pod's link as its node makes it: the bridge plugin sets hairpin on the port.
pub(crate) fn plug(place: Place, slot: u8, pod: &str) -> String {
    link(place, slot, pod, "")
}

fn link(place: Place, slot: u8, pod: &str, index: &str) -> String {
    let port = port_name(slot);
    format!(
        "link add {port} {index} mtu 1450 type veth peer name eth0 address {mac} mtu 1450 netns {pod}
link set {port} master cni0 up
link set {port} type bridge_slave hairpin on
",
        mac = mac_text(place.mac()),
    )
}

/// A pod's own side.
pub(crate) fn pod(place: Place, node: u8) -> String {
    format!(
        "link set lo up
link set eth0 up
address add {v4}/24 dev eth0
address add {v6}/64 dev eth0 nodad
route add default via {router4}
route add default via {router6}
",
        v4 = place.v4(),
        v6 = place.v6(),
        router4 = bridge_address_like(node, V4),
        router6 = bridge_address_like(node, V6),
    )
}
