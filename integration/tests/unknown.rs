//! Closed until known: addresses of the node's pod ranges that are no known pod's.
//!
//! In: pods that the source does not show, or not yet. Out: nothing, or a packet that went another way. What always holds: no policy is there
//! unless a test says so, so that a known pod is open.
#![allow(clippy::expect_used)]

use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use flatfell_integration::cluster::{Cluster, ClusterConfig, Flannel, Runtime};
use flatfell_integration::scene::{Expected, Scene, no, ping, tcp, udp, yes};
use flatfell_integration::{Lab, Place, Probe};
use serde_json::{Value, json};

const KNOWN: Place = Place::pod(1, 0);
const FAR: Place = Place::pod(2, 0);
/// The source does not show these two.
const NEW: Place = Place::pod(1, 1);
const OTHER_NEW: Place = Place::pod(1, 2);

fn pod(name: &str, place: Place) -> Value {
    let addresses: Vec<Value> = place.addresses().iter().map(|address| json!({"ip": address.to_string()})).collect();
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "x", "uid": name},
        "spec": {"nodeName": "node1"}, "status": {"phase": "Running", "podIPs": addresses}})
}

fn list(pods: &[Value]) -> String {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}});
    let items = [&[namespace], pods].concat();
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

/// Everything a pod can send and be sent, beside its own node.
fn all(new: Place) -> Vec<Vec<Probe>> {
    let mut probes = vec![tcp(new, Place::Outside, 80), tcp(Place::Outside, new, 80)];
    for other in [KNOWN, FAR] {
        probes.extend([tcp(new, other, 80), udp(other, new, 53), ping(new, other), ping(other, new)]);
    }
    probes
}

fn closed(new: Place) -> Vec<Vec<Expected>> {
    let mut expected: Vec<Vec<Expected>> = all(new).into_iter().map(no).collect();
    let bridge = |like: IpAddr| flatfell_integration::place::bridge_address_like(1, like);
    let to_node = new.addresses().map(|like| Probe::tcp(new, bridge(like), 80));
    // A kubelet probes what it has started.
    expected.extend([no(to_node), yes(tcp(Place::Node(1), new, 80)), yes(ping(Place::Node(1), new))]);
    expected
}

fn open(new: Place) -> Vec<Vec<Expected>> {
    all(new).into_iter().map(yes).collect()
}

fn unknown_packets(scene: &Scene) -> u64 {
    let metrics = scene.node.metrics().expect("metrics");
    let line =
        metrics.lines().find_map(|line| line.strip_prefix("flatfell_guard_packets_total{guard=\"unknown-pod\"} "));
    line.expect("a guard").parse().expect("a number")
}

#[test]
fn an_address_is_closed_until_its_pod_is_known_and_stays_so_without_the_daemon() {
    let mut scene = Scene::new(3, &list(&[pod("known", KNOWN)]));
    let mut expected = closed(NEW);
    expected.extend([no(tcp(NEW, OTHER_NEW, 80)), yes(tcp(KNOWN, FAR, 80)), yes(tcp(FAR, KNOWN, 80))]);
    scene.expect("nobody knows it", &expected);
    let dropped = unknown_packets(&scene);
    assert!(dropped >= 20, "{dropped}");
    scene.cluster(&list(&[pod("known", KNOWN), pod("new", NEW)]));
    scene.expect("known", &open(NEW));
    scene.expect("the other is not", &closed(OTHER_NEW));
    scene.node.kill9().expect("killed");
    scene.lab.add_pod(1, 7).expect("a pod");
    let mut expected = [open(NEW), closed(Place::pod(1, 7))].concat();
    expected.push(no(tcp(Place::pod(1, 7), OTHER_NEW, 80)));
    scene.expect("the daemon is dead", &expected);
    scene.node.restart().expect("restarted");
    scene.expect("restarted", &[open(NEW), closed(OTHER_NEW)].concat());
    assert!(unknown_packets(&scene) > dropped, "the counter goes on");
}

#[test]
fn it_can_be_switched_off_and_a_pause_switches_it_off() {
    let scene = Scene::with(3, &list(&[pod("known", KNOWN)]), &["--unknown-pods=allow"]);
    scene.expect("switched off", &open(NEW));
    drop(scene);
    let scene = Scene::new(3, &list(&[pod("known", KNOWN)]));
    scene.expect("closed", &closed(NEW));
    scene.node.command(&["pause", "--for", "10m"]).expect("paused");
    scene.node.wait_for("open", |report| report.synced && report.paused_until.is_some()).expect("open");
    scene.expect("paused", &open(NEW));
    scene.node.command(&["resume"]).expect("resumed");
    scene.node.wait_for("closed", |report| report.synced && report.paused_until.is_none()).expect("closed");
    scene.expect("resumed", &closed(NEW));
}

#[test]
fn ranges_by_configuration_are_all_there_are() {
    let flags = ["--pod-cidr=10.244.1.11/32,fd00:10:244:1::11/128"];
    let scene = Scene::with(3, &list(&[pod("known", KNOWN)]), &flags);
    scene.expect("within", &closed(NEW));
    scene.expect("beyond", &open(OTHER_NEW));
}

fn socket(lab: &Lab, place: Place, port: u16) -> UdpSocket {
    let space = lab.netns(place).expect("a place");
    let socket = space.run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))).expect("a place").expect("a socket");
    socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a socket");
    socket
}

fn at(address: IpAddr, port: u16) -> SocketAddr {
    let address = match address {
        IpAddr::V4(four) => four.to_ipv6_mapped(),
        IpAddr::V6(six) => six,
    };
    SocketAddr::new(address.into(), port)
}

/// Whether a datagram arrives.
fn arrives(from: &UdpSocket, to: SocketAddr, at: &UdpSocket) -> bool {
    from.send_to(b"x", to).expect("sent");
    at.recv_from(&mut [0; 8]).is_ok()
}

/// A pod that gets the address of one that is gone gets nothing of its flows: neither as server nor as client.
#[test]
fn a_new_pod_does_not_inherit_flows_with_an_address() {
    let mut scene = Scene::new(3, &list(&[pod("known", KNOWN), pod("old", NEW)]));
    for (turn, address) in (0..).zip(NEW.addresses()) {
        let (served, asked) = (4000 + turn, 5000 + turn);
        let far = Place::address_like(FAR, address);
        let (client, server) = (socket(&scene.lab, FAR, served), socket(&scene.lab, FAR, asked));
        let old = [socket(&scene.lab, NEW, served), socket(&scene.lab, NEW, asked)];
        assert!(arrives(&client, at(address, served), &old[0]) && arrives(&old[0], at(far, served), &client));
        assert!(arrives(&old[1], at(far, asked), &server) && arrives(&server, at(address, asked), &old[1]));
        scene.expect_along("the node sees its interface", &[yes(tcp(Place::Node(1), NEW, 80))]);
        scene.cluster(&list(&[pod("known", KNOWN)]));
        drop(old);
        scene.lab.remove_pod(NEW).expect("removed");
        let gone =
            |report: &flatfell::status::Report| report.synced && !report.pods.iter().any(|pod| pod.name == "old");
        scene.node.wait_for("rid of it", gone).expect("gone");
        scene.lab.add_pod(1, 1).expect("a pod");
        let new = [socket(&scene.lab, NEW, served), socket(&scene.lab, NEW, asked)];
        assert!(!arrives(&new[0], at(far, served), &client), "{address}: a push into another's flow");
        assert!(!arrives(&new[1], at(far, asked), &server), "{address}: another's flow goes on");
        assert!(!arrives(&client, at(address, served), &new[0]), "{address}: a flow to another");
        assert!(!arrives(&server, at(address, asked), &new[1]), "{address}: an answer to another");
        scene.cluster(&list(&[pod("known", KNOWN), pod("old", NEW)]));
        assert!(arrives(&client, at(address, served), &new[0]), "{address}: known");
    }
}

/// The Node says where pods are before there is a bridge: a node's very first pods are closed, to each other too.
#[test]
fn the_first_pods_of_a_node_are_closed_by_what_the_node_says() {
    let flannel = Some(Flannel::default());
    let config = ClusterConfig { flannel, bridge_nf_call: false, ..ClusterConfig::default() };
    let mut cluster = Cluster::new(config).expect("a cluster");
    cluster.add_pod("x", "far", json!({}), 2, 0).expect("a pod");
    let daemon = cluster.daemon(1, &[]).expect("a daemon");
    let directory = tempfile::tempdir().expect("a directory");
    let conflist = directory.path().join("10-flannel.conflist");
    std::fs::write(
        &conflist,
        json!({"name": "cbr0", "plugins": [{"type": "flannel"}, {"type": "portmap"}]}).to_string(),
    )
    .expect("a conflist");
    let runtime = Runtime { conflist: &conflist, plugins: directory.path() };
    for (name, place) in [("a", KNOWN), ("b", NEW)] {
        cluster.start_pod(("x", name), json!({}), place, runtime).expect("started");
    }
    let between = [tcp(KNOWN, NEW, 80), tcp(NEW, KNOWN, 80), tcp(KNOWN, FAR, 80), tcp(FAR, NEW, 80)];
    // The filter of a bridge is switched on some milliseconds after the bridge is born.
    daemon.wait_for("filtering", |report| report.ready && report.synced).expect("ready");
    std::thread::sleep(Duration::from_millis(200));
    cluster.expect("not shown yet", &between.clone().map(no));
    for (name, place) in [("a", KNOWN), ("b", NEW)] {
        cluster.show_pod(("x", name), json!({}), place).expect("shown");
    }
    cluster.settle(1, &daemon).expect("settled");
    cluster.expect("shown", &between.map(yes));
}
