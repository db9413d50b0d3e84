//! Policy as a list of jumps: iptables with a chain a pod, and ipset with a set a peer.
//!
//! In: a [`Size`], a node. Out: input of `ipset restore` and of `iptables-nft-restore`. What always holds: the shape is that of network
//! policy controllers on iptables: each pod's chain accepts established connections first, marks what a rule allows, and drops what has
//! no mark; the pods that speak stand in the middle of the list.

use std::fmt::Write;
use std::net::IpAddr;

use super::row::{Family, PORT};
use super::size::{Size, filler_address, peer_address, speakers};

const ALLOWED: &str = "0x10000/0x10000";

/// The peers' set.
pub fn sets(size: &Size, family: Family) -> String {
    let (name, inet) = match family {
        Family::V4 => ("peers4", "inet"),
        Family::V6 => ("peers6", "inet6"),
    };
    let mut text = format!("create {name} hash:ip family {inet} maxelem 262144\n");
    let speakers = speakers().map(|place| of(family, place.addresses()));
    for address in speakers.chain((0..size.peers).map(|number| of(family, peer_address(number)))) {
        let _ = writeln!(text, "add {name} {address}");
    }
    text
}

/// The filter table of a node.
pub fn filter(size: &Size, family: Family, node: u8) -> String {
    let set = if family == Family::V4 { "peers4" } else { "peers6" };
    let others: Vec<IpAddr> = (0..size.local).map(|number| of(family, filler_address(node, number))).collect();
    let (before, behind) = others.split_at(others.len() / 2);
    let own = speakers().filter(|place| place.node() == Some(node));
    let mut pods: Vec<(IpAddr, Vec<String>)> =
        before.iter().map(|address| (*address, other_rules(*address, set))).collect();
    pods.extend(own.zip(0..).map(|(place, slot)| {
        let address = of(family, place.addresses());
        (address, rules(size, address, slot, set))
    }));
    pods.extend(behind.iter().map(|address| (*address, other_rules(*address, set))));
    table(&pods)
}

fn table(pods: &[(IpAddr, Vec<String>)]) -> String {
    let (mut chains, mut jumps, mut rules) = (String::new(), String::new(), String::new());
    for (number, (address, own)) in pods.iter().enumerate() {
        let _ = writeln!(chains, ":POD-{number} - [0:0]");
        let _ = writeln!(jumps, "-A POLICY -d {address} -j POD-{number}\n-A POLICY -s {address} -j POD-{number}");
        let _ = writeln!(rules, "-A POD-{number} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT");
        for rule in own {
            let _ = writeln!(rules, "-A POD-{number} {rule} -j MARK --set-xmark {ALLOWED}");
        }
        let _ = writeln!(rules, "-A POD-{number} -m mark ! --mark {ALLOWED} -j DROP");
        let _ = writeln!(rules, "-A POD-{number} -j MARK --set-xmark 0x0/0x10000");
    }
    format!("*filter\n:FORWARD ACCEPT [0:0]\n:POLICY - [0:0]\n{chains}-A FORWARD -j POLICY\n{jumps}{rules}COMMIT\n")
}

/// What a pod that speaks may, by the slot it stands in.
fn rules(size: &Size, address: IpAddr, slot: usize, set: &str) -> Vec<String> {
    let protocol = if slot < 2 { "tcp" } else { "udp" };
    let (own, end) = if slot.is_multiple_of(2) { ("-s", "dst") } else { ("-d", "src") };
    let ports = (1..size.rules).map(Size::other_port).chain([usize::from(PORT)]);
    let rule = |port| format!("{own} {address} -p {protocol} --dport {port} -m set --match-set {set} {end}");
    ports.map(rule).collect()
}

/// Of a pod that is there for its address.
fn other_rules(address: IpAddr, set: &str) -> Vec<String> {
    vec![
        format!("-d {address} -p tcp --dport 1000 -m set --match-set {set} src"),
        format!("-s {address} -p tcp --dport 1000 -m set --match-set {set} dst"),
    ]
}

fn of(family: Family, [v4, v6]: [IpAddr; 2]) -> IpAddr {
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
    }
}
