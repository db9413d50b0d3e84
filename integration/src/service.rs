//! Services: a NAT table that stands in for kube-proxy, and Flannel's masquerading.
//!
//! In: Services with their backends. Out: text for `nft -f -`. What always holds: the tables are replaced whole, in one
//! transaction, and are named `lab-services` and `lab-flannel`.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use crate::place::{Place, range_of};

/// The bit of the packet mark that asks for masquerading, kube-proxy's choice.
const MASQUERADE: &str = "0x4000";

/// A port on every node that leads to a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodePort {
    /// The port on the node's underlay addresses.
    pub port: u16,
    /// externalTrafficPolicy: Local, only backends on the entry node, the client's address kept.
    pub local: bool,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// ClusterIPs, of either family or both.
    pub addresses: Vec<IpAddr>,
    /// The port at those addresses.
    pub port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: &'static str,
    /// Also on the nodes.
    pub node_port: Option<NodePort>,
    /// Where it leads; each family uses its own.
    pub backends: Vec<SocketAddr>,
}

/// The tables of both families for a node.
pub(crate) fn table(services: &[Service], node: u8) -> String {
    format!("{}{}", family(services, node, true), family(services, node, false))
}

fn family(services: &[Service], node: u8, v4: bool) -> String {
    let name = if v4 { "ip" } else { "ip6" };
    let (mut chains, mut rules) = (String::new(), String::new());
    for (number, service) in services.iter().enumerate() {
        let backends: Vec<SocketAddr> = service.backends.iter().copied().filter(|at| at.is_ipv4() == v4).collect();
        chains.push_str(&balancer(&format!("svc-{number}"), service.protocol, &backends));
        for address in service.addresses.iter().filter(|address| address.is_ipv4() == v4) {
            let (protocol, port) = (service.protocol, service.port);
            let _ = writeln!(rules, "    {name} daddr {address} {protocol} dport {port} goto svc-{number}");
        }
        if let Some(port) = service.node_port {
            node_port(&mut chains, &mut rules, (number, node, v4), (service, port, &backends));
        }
    }
    format!(
        "table {name} lab-services
delete table {name} lab-services
table {name} lab-services {{
{chains}  chain services {{
{rules}  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    jump services
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    jump services
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    meta mark & {MASQUERADE} == {MASQUERADE} masquerade
  }}
}}
"
    )
}

/// The chain and the rule of a port on a node.
fn node_port(
    chains: &mut String,
    rules: &mut String,
    (number, node, v4): (usize, u8, bool),
    (service, port, backends): (&Service, NodePort, &[SocketAddr]),
) {
    let own = Place::Node(node).addresses()[usize::from(!v4)];
    let name = if v4 { "ip" } else { "ip6" };
    let _ = writeln!(rules, "    {name} daddr {own} {} dport {} goto ext-{number}", service.protocol, port.port);
    if !port.local {
        let _ = writeln!(
            chains,
            "  chain ext-{number} {{\n    meta mark set meta mark | {MASQUERADE}\n    goto svc-{number}\n  }}"
        );
        return;
    }
    let here: Vec<SocketAddr> = backends.iter().copied().filter(|at| range_of(at.ip()) == Some(node)).collect();
    chains.push_str(&balancer(&format!("ext-{number}"), service.protocol, &here));
}

/// A chain that picks a backend; without any it drops.
fn balancer(chain: &str, protocol: &str, backends: &[SocketAddr]) -> String {
    let mut text = String::new();
    let mut picks = Vec::new();
    for (number, backend) in backends.iter().enumerate() {
        let family = if backend.is_ipv4() { "ip" } else { "ip6" };
        let address = backend.ip();
        let _ = writeln!(
            text,
            "  chain {chain}-{number} {{
    {family} saddr {address} meta mark set meta mark | {MASQUERADE}
    meta l4proto {protocol} dnat to {backend}
  }}"
        );
        picks.push(format!("{number} : goto {chain}-{number}"));
    }
    let pick = match picks.len() {
        0 => "drop".to_owned(),
        count => format!("numgen random mod {count} vmap {{ {} }}", picks.join(", ")),
    };
    let _ = writeln!(text, "  chain {chain} {{\n    {pick}\n  }}");
    text
}

/// Flannel's rules: what leaves the pod ranges leaves with the node's address, and what enters them from elsewhere too,
/// unless it is for this node's own pods.
pub(crate) fn flannel_masquerade(node: u8) -> String {
    let mut text = String::new();
    for (family, pods, own, multicast) in [
        ("ip", "10.244.0.0/16".to_owned(), format!("10.244.{node}.0/24"), "224.0.0.0/4"),
        ("ip6", "fd00:10:244::/48".to_owned(), format!("fd00:10:244:{node}::/64"), "ff00::/8"),
    ] {
        let _ = write!(
            text,
            "table {family} lab-flannel
delete table {family} lab-flannel
table {family} lab-flannel {{
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    {family} saddr {pods} {family} daddr {pods} return
    {family} saddr {pods} {family} daddr != {multicast} masquerade fully-random
    {family} saddr != {pods} {family} daddr {own} return
    {family} saddr != {pods} {family} daddr {pods} masquerade fully-random
  }}
}}
"
        );
    }
    text
}
