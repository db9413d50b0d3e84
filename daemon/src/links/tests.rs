//! Links against the kernel, each test in a network namespace of its own.

use std::time::{Duration, Instant};

use super::*;
use crate::testing::{in_namespace, ip};

fn set(addresses: &[&str]) -> BTreeSet<IpAddr> {
    addresses.iter().map(|address| address.parse().expect("an address")).collect()
}

/// Local pods with these addresses.
fn pods(addresses: &[&str]) -> OrdMap<IpAddr, ObjectName> {
    set(addresses).into_iter().map(|address| (address, ObjectName::new("x", address.to_string()))).collect()
}

/// Processes events until `done` holds.
fn wait(links: &mut Links, mut done: impl FnMut(&mut Links) -> bool) {
    let start = Instant::now();
    loop {
        links.process().expect("events are read");
        if done(links) {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(5), "{:#?}", links.state);
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn bridge_with_ports() {
    // A MAC address of its own: one taken from a port changes with the ports and clears the neighbours.
    ip("link add cni0 address 02:00:00:00:00:01 type bridge nf_call_iptables 0 nf_call_ip6tables 0");
    ip("address add 10.244.1.1/24 dev cni0");
    ip("address add fd00:1::1/64 dev cni0 nodad");
    ip("link add docker0 type bridge");
    ip("address add 172.17.0.1/16 dev docker0");
    ip("link add vetha type veth peer name poda");
    ip("link set vetha master cni0");
    for link in ["cni0", "docker0", "vetha", "poda"] {
        ip(&format!("link set {link} up"));
    }
}

#[test]
fn bridges_are_found_by_name_or_by_their_pods() {
    in_namespace(|| {
        let mut links = Links::open().expect("opened before there is anything");
        assert!(links.pod_bridges(&[], &pods(&["10.244.1.5"]), &[]).is_empty());
        bridge_with_ports();
        links.process().expect("events");
        let fresh = Links::open().expect("dumped");
        for links in [&links, &fresh] {
            let found = links.pod_bridges(&[], &pods(&["10.244.1.5"]), &[]);
            assert_eq!(found.iter().map(|b| b.name.as_str()).collect::<Vec<_>>(), ["cni0"]);
            assert_eq!(links.pod_bridges(&[], &pods(&["fd00:1::7"]), &[]), found);
            assert_eq!(links.ports(&found), BTreeSet::from(["vetha".to_owned()]));
            assert!(links.pod_bridges(&[], &pods(&["10.244.2.5"]), &[]).is_empty());
            assert_eq!(links.pod_bridges(&["docker0".to_owned()], &pods(&["10.244.1.5"]), &[])[0].name, "docker0");
            assert!(links.pod_bridges(&["vetha".to_owned()], &OrdMap::new(), &[]).is_empty(), "a veth is no bridge");
            assert!(links.node_addresses().is_superset(&set(&["10.244.1.1", "fd00:1::1", "172.17.0.1"])));
        }
        ip("address del 10.244.1.1/24 dev cni0");
        ip("link set vetha nomaster");
        let change = links.process().expect("events");
        assert!(change.links && change.addresses, "{change:?}");
        assert!(links.pod_bridges(&[], &pods(&["10.244.1.5"]), &[]).is_empty());
        assert!(!links.node_addresses().contains(&"10.244.1.1".parse().expect("an address")));
        let cni0 = links.pod_bridges(&["cni0".to_owned()], &OrdMap::new(), &[]);
        assert!(links.ports(&cni0).is_empty() && links.exists("vetha"));
        assert!(!links.process().expect("nothing waits").any());
    });
}

#[test]
fn flags_are_switched_on_and_seen_when_others_switch_them_off() {
    in_namespace(|| {
        bridge_with_ports();
        let mut links = Links::open().expect("dumped");
        let cni0 = |links: &Links| links.pod_bridges(&["cni0".to_owned()], &OrdMap::new(), &[]).remove(0);
        let flags = |bridge: PodBridge| (bridge.nf_call_iptables, bridge.nf_call_ip6tables);
        let bridge = cni0(&links);
        assert_eq!(flags(bridge.clone()), (false, false));
        links.set_nf_call(&bridge, Some(true), None).expect("root may");
        assert!(links.process().expect("events").links);
        assert_eq!(flags(cni0(&links)), (true, false));
        links.set_nf_call(&bridge, None, Some(true)).expect("root may");
        links.process().expect("events");
        assert_eq!(flags(cni0(&links)), (true, true));
        assert_eq!(flags(links.pod_bridges(&["docker0".to_owned()], &OrdMap::new(), &[]).remove(0)), (false, false));
        ip("link set cni0 type bridge nf_call_iptables 0");
        assert!(links.process().expect("events").links);
        assert_eq!(flags(cni0(&links)), (false, true));
        ip("link del cni0");
        links.process().expect("events");
        let refused = links.set_nf_call(&bridge, Some(true), Some(true)).expect_err("the bridge is gone");
        assert!(refused.to_string().starts_with("bridge cni0: cannot set"), "{refused}");
    });
}

/// Tells the tables of a pod at `address` behind `port`.
fn appear(address: &str, mac: &str, port: &str) {
    ip(&format!("neighbour replace {address} lladdr {mac} dev cni0"));
    let bridge = format!("fdb replace {mac} dev {port} master static");
    let status = std::process::Command::new("bridge").args(bridge.split(' ')).status().expect("iproute2 is installed");
    assert!(status.success(), "bridge {bridge}");
}

#[test]
fn an_address_is_gone_with_its_last_interface_and_said_once() {
    in_namespace(|| {
        bridge_with_ports();
        let pods = pods(&["10.244.1.5", "fd00:1::5", "10.244.1.6"]);
        let mut links = Links::open().expect("dumped");
        assert!(links.interfaces_gone(&pods).is_empty());
        appear("10.244.1.5", "02:00:00:00:00:05", "vetha");
        appear("fd00:1::5", "02:00:00:00:00:05", "vetha");
        // Everything happens before the first look at the events.
        ip("link del vetha");
        links.process().expect("events");
        assert_eq!(links.interfaces_gone(&pods), Vec::from_iter(set(&["10.244.1.5", "fd00:1::5"])));
        assert!(links.interfaces_gone(&pods).is_empty(), "said once");
    });
}

#[test]
fn what_was_learnt_survives_the_tables_and_a_claim_by_another_pod() {
    in_namespace(|| {
        bridge_with_ports();
        ip("link add vethb type veth peer name podb");
        ip("link set vethb master cni0 up");
        appear("10.244.1.5", "02:00:00:00:00:05", "vetha");
        let pods = pods(&["10.244.1.5"]);
        let mut links = Links::open().expect("dumped");
        assert!(links.interfaces_gone(&pods).is_empty(), "learnt from the dump");
        appear("10.244.1.5", "02:00:00:00:00:06", "vethb");
        links.process().expect("events");
        ip("neighbour del 10.244.1.5 dev cni0");
        wait(&mut links, |links| links.state == picture(&mut links.requests).expect("dumped"));
        ip("link del vethb");
        links.process().expect("events");
        assert!(links.interfaces_gone(&pods).is_empty(), "its own interface lives");
        ip("link set vetha nomaster");
        wait(&mut links, |links| links.state == picture(&mut links.requests).expect("dumped"));
        assert!(links.interfaces_gone(&pods).is_empty(), "no port any more, but there");
        ip("link del vetha");
        links.process().expect("events");
        assert_eq!(links.interfaces_gone(&pods), Vec::from_iter(pods.keys().copied()));
    });
}

#[test]
fn a_real_pod_is_learnt_from_its_traffic() {
    in_namespace(|| {
        bridge_with_ports();
        let mut links = Links::open().expect("dumped");
        let pods = pods(&["10.244.1.5"]);
        links.interfaces_gone(&pods);
        let address = "address add 10.244.1.5/24 dev poda".to_owned();
        let pod = Pod::with("poda", &[&address, "link set poda up"]);
        let mut ping = std::process::Command::new("ping");
        let _ = ping.args(["-c1", "-W2", "10.244.1.5"]).output().expect("ping is installed");
        wait(&mut links, |links| !links.behind.interfaces().is_empty());
        drop(pod);
        wait(&mut links, |links| links.interfaces_gone(&pods) == Vec::from_iter(pods.keys().copied()));
    });
}

/// A process in a network namespace of its own that holds an interface; both go when it is dropped.
struct Pod(std::process::Child);

impl Pod {
    fn with(interface: &str, commands: &[&str]) -> Self {
        let child = std::process::Command::new("unshare").args(["-n", "sleep", "60"]).spawn().expect("unshare runs");
        let pod = Self(child);
        let own = std::fs::read_link("/proc/thread-self/ns/net").expect("a namespace");
        let its = format!("/proc/{}/ns/net", pod.0.id());
        while std::fs::read_link(&its).expect("the child runs") == own {
            std::thread::sleep(Duration::from_millis(2));
        }
        ip(&format!("link set {interface} netns {}", pod.0.id()));
        for command in commands {
            let enter = format!("-t {} -n ip {command}", pod.0.id());
            let entered = std::process::Command::new("nsenter").args(enter.split(' ')).status().expect("nsenter runs");
            assert!(entered.success(), "{command}");
        }
        pod
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.0.kill().expect("killed");
        self.0.wait().expect("ended");
    }
}

#[test]
fn lost_events_lead_to_a_new_dump() {
    in_namespace(|| {
        bridge_with_ports();
        ip("link add vethb type veth peer name podb");
        ip("link set vethb master cni0 up");
        appear("10.244.1.5", "02:00:00:00:00:05", "vetha");
        let pods = pods(&["10.244.1.5", "10.244.1.6"]);
        let mut links = Links::open().expect("dumped");
        links.events.widen(2048).expect("narrowed");
        links.interfaces_gone(&pods);
        for number in 0..60 {
            ip(&format!("link add d{number} type bridge"));
        }
        appear("10.244.1.6", "02:00:00:00:00:06", "vethb");
        ip("link del vetha");
        let change = links.process().expect("read again");
        assert!(change.resynced, "{change:?}");
        assert!(links.exists("d59") && !links.exists("vetha"));
        assert_eq!(links.interfaces_gone(&pods), Vec::from_iter(set(&["10.244.1.5"])));
        ip("neighbour del 10.244.1.6 dev cni0");
        links.process().expect("events");
        ip("link del vethb");
        links.process().expect("events");
        assert_eq!(links.interfaces_gone(&pods), Vec::from_iter(set(&["10.244.1.6"])), "learnt from the new dump");
        wait(&mut links, |links| links.state == picture(&mut links.requests).expect("dumped"));
    });
}

/// Reads a neighbour message as the kernel writes it.
fn neighbour(kind: u16, family: u8, attrs: &[(u16, &[u8])]) -> Option<Event> {
    let header = [family, 0, 0, 0, 7, 0, 0, 0, 2, 0, 0, 0];
    let request =
        attrs.iter().fold(Request::new(kind, DUMP, &header), |request, (kind, value)| request.attr(*kind, value));
    let bytes = request.finish(1).expect("short");
    let message = Messages::new(&bytes).next().expect("one").expect("well formed");
    read(&message).expect("reads")
}

#[test]
fn the_end_of_a_neighbour_is_no_news_of_it() {
    let (new, gone, mac) = (28, 29, [2, 0, 0, 0, 0, 5]);
    let address = IpAddr::from([10, 244, 1, 5]);
    let told = [(1, &[10, 244, 1, 5][..]), (2, &mac[..])];
    let event = |mac| Some(Event::Neighbour { device: 7, address, mac });
    assert_eq!(neighbour(new, 2, &told), event(Some(mac.to_vec())));
    assert_eq!(neighbour(gone, 2, &told), event(None));
    assert_eq!(neighbour(new, 2, &told[..1]), event(None));
    let entry = [(2, &mac[..]), (9, &[3, 0, 0, 0][..])];
    let event = |port| Some(Event::Forward { bridge: 3, mac: mac.to_vec(), vlan: 0, port });
    assert_eq!(neighbour(new, AF_BRIDGE, &entry), event(Some(7)));
    assert_eq!(neighbour(gone, AF_BRIDGE, &entry), event(None));
    assert_eq!(neighbour(new, AF_BRIDGE, &entry[..1]), None, "no bridge's entry");
}
