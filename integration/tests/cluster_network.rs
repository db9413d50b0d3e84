//! The reachability matrix on real parts: flanneld, the CNI plugins, kube-proxy, the API server, a daemon on each node.
//!
//! In: a backend of Flannel, a mode of kube-proxy, the families of pods. Out: each packet that went another way than policy
//! says. What always holds: every state has packets that pass and packets that do not; the paths are pod addresses,
//! ClusterIPs, NodePorts of both traffic policies, host ports and the hairpin.
#![allow(clippy::expect_used)]

use std::net::IpAddr;

use flatfell_integration::cluster::objects::{ServiceSpec, policy};
use flatfell_integration::cluster::{Backend, Cluster, ClusterConfig, Families, Flannel, HostPort, ProxyMode};
use flatfell_integration::place::tunnel_address_like;
use flatfell_integration::scene::{Expected, no, ping, tcp, udp, yes};
use flatfell_integration::{FlatfellNode, Place, Probe};
use serde_json::{Value, json};

const DB: Place = Place::pod(1, 0);
const WEB: Place = Place::pod(1, 1);
const OTHER: Place = Place::pod(1, 2);
const FAR_WEB: Place = Place::pod(2, 0);
const FAR_OTHER: Place = Place::pod(2, 1);
const PODS: [(&str, Place, &str); 5] = [
    ("db", DB, "db"),
    ("web", WEB, "web"),
    ("other", OTHER, "other"),
    ("fw", FAR_WEB, "web"),
    ("fo", FAR_OTHER, "other"),
];
/// Leads to the pod's own.
const HOST_PORT: u16 = 28080;
const TARGET: u16 = 8080;
/// NodePorts with externalTrafficPolicy Cluster and Local.
const SPREAD: u16 = 30080;
const LOCAL: u16 = 30180;

struct World {
    // Before the cluster, whose namespaces they live in.
    daemons: Vec<FlatfellNode>,
    cluster: Cluster,
    backend: Backend,
}

fn cluster_addresses() -> [IpAddr; 2] {
    ["10.96.0.10".parse().expect("an address"), "fd00:10:96::10".parse().expect("an address")]
}

fn local_addresses() -> [IpAddr; 2] {
    ["10.96.0.11".parse().expect("an address"), "fd00:10:96::11".parse().expect("an address")]
}

impl World {
    fn new(backend: Backend, nftables: bool, proxy: ProxyMode, families: Families) -> Self {
        let flannel = Some(Flannel { backend, nftables });
        let config = ClusterConfig { families, flannel, proxy: Some(proxy), ..ClusterConfig::default() };
        let mut cluster = Cluster::new(config).expect("a cluster");
        for (name, place, app) in PODS {
            let ports: &[_] = if place == DB { &[HostPort { host: HOST_PORT, pod: TARGET }] } else { &[] };
            cluster.add_pod_with("a", name, json!({"app": app}), place, ports).expect("a pod");
        }
        for (name, addresses, port) in
            [("spread", cluster_addresses(), (SPREAD, false)), ("local", local_addresses(), (LOCAL, true))]
        {
            let spec = ServiceSpec { namespace: "a", name, target: TARGET, node_port: Some(port) };
            cluster.put_service(spec, &addresses, &[DB]).expect("a Service");
        }
        let mut world = Self { daemons: Vec::new(), cluster, backend };
        world.cluster.await_all("open", &world.everything_passes()).expect("all is open without a daemon");
        world.daemons = [1, 2].map(|node| world.cluster.daemon(node, &[]).expect("a daemon")).into();
        world
    }

    /// What holds without policy.
    fn everything_passes(&self) -> Vec<Vec<Expected>> {
        let mut expected = Vec::new();
        for (_, from, _) in PODS {
            let others = PODS.iter().filter(|(_, to, _)| *to != from);
            expected
                .extend(others.clone().flat_map(|(_, to, _)| [yes(tcp(from, *to, TARGET)), yes(udp(from, *to, 53))]));
            expected.extend(others.map(|(_, to, _)| yes(ping(from, *to))));
            expected.push(yes(to_service(from)));
        }
        for node in [1, 2] {
            expected.extend([yes(to_service(Place::Node(node))), yes(self.of_node(node))]);
            expected.push(yes(node_port(node, SPREAD)));
        }
        expected.extend([yes(node_port(1, LOCAL)), no(node_port(2, LOCAL)), yes(tcp(Place::Outside, DB, TARGET))]);
        expected.push(yes(node_port(1, HOST_PORT)));
        expected
    }

    /// A node to the database, with the source that its routes choose.
    fn of_node(&self, node: u8) -> Vec<Probe> {
        let seen = |to: IpAddr| if node == 1 { Place::Node(node).source_towards(to) } else { self.entry(to) };
        DB.addresses().map(|to| Probe::tcp(Place::Node(node), to, TARGET).from_address(seen(to))).into()
    }

    /// What node 1's pods see of node 2.
    fn entry(&self, like: IpAddr) -> IpAddr {
        match self.backend {
            Backend::Vxlan => tunnel_address_like(2, like),
            Backend::HostGw => Place::Node(2).address_like(like),
        }
    }

    /// Replaces the one policy by this and waits until both nodes enforce it.
    fn policy(&mut self, spec: Value) {
        self.cluster.api().put(&policy("a", "p", spec)).expect("a policy");
        for (node, daemon) in [1, 2].into_iter().zip(&self.daemons) {
            self.cluster.settle(node, daemon).expect("settled");
        }
    }

    fn expect(&self, what: &str, expected: &[Vec<Expected>]) {
        self.cluster.expect(what, expected);
    }

    fn matrix(&mut self) {
        self.expect("no policy", &self.everything_passes());
        self.between_pods();
        self.through_node_ports();
        self.isolated();
        self.outwards();
        self.cluster.api().delete(&policy("a", "p", Value::Null)).expect("deleted");
        for (node, daemon) in [1, 2].into_iter().zip(&self.daemons) {
            self.cluster.settle(node, daemon).expect("settled");
        }
        self.expect("no policy again", &self.everything_passes());
    }

    fn between_pods(&mut self) {
        let web = json!({"podSelector": {"matchLabels": {"app": "web"}}});
        self.policy(json!({"podSelector": {"matchLabels": {"app": "db"}},
            "ingress": [{"from": [web], "ports": target()}]}));
        let mut expected = Vec::new();
        for from in [WEB, FAR_WEB] {
            expected.extend([
                yes(tcp(from, DB, TARGET)),
                yes(to_service(from)),
                no(tcp(from, DB, 80)),
                no(ping(from, DB)),
            ]);
        }
        for from in [OTHER, FAR_OTHER] {
            expected.extend([no(tcp(from, DB, TARGET)), no(to_service(from)), yes(tcp(from, WEB, 80))]);
        }
        expected.extend([yes(to_service(DB)), yes(self.of_node(1)), yes(to_service(Place::Node(1)))]);
        expected.extend([no(self.of_node(2)), no(to_service(Place::Node(2)))]);
        expected.extend([no(tcp(Place::Outside, DB, TARGET)), no(node_port(1, HOST_PORT))]);
        for node in [1, 2] {
            expected.extend([no(node_port(node, SPREAD)), no(node_port(node, LOCAL))]);
        }
        self.expect("only web", &expected);
    }

    fn through_node_ports(&mut self) {
        self.policy(blocks(Place::Outside.addresses()));
        self.expect(
            "only the client",
            &[
                yes(node_port(1, SPREAD)),
                no(node_port(2, SPREAD)),
                yes(node_port(1, LOCAL)),
                no(node_port(2, LOCAL)),
                yes(node_port(1, HOST_PORT)),
                yes(tcp(Place::Outside, DB, TARGET)),
                no(tcp(WEB, DB, TARGET)),
                no(self.of_node(2)),
            ],
        );
        self.policy(blocks(Place::Node(2).addresses().map(|like| self.entry(like))));
        self.expect(
            "only the entry node",
            &[
                no(node_port(1, SPREAD)),
                yes(node_port(2, SPREAD)),
                no(node_port(1, LOCAL)),
                no(node_port(2, LOCAL)),
                no(node_port(1, HOST_PORT)),
                yes(self.of_node(2)),
                no(tcp(FAR_WEB, DB, TARGET)),
            ],
        );
    }

    fn isolated(&mut self) {
        self.policy(json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}));
        let mut expected = vec![yes(to_service(DB)), yes(self.of_node(1)), no(self.of_node(2))];
        for (_, from, _) in PODS {
            let others = PODS.iter().filter(|(_, to, _)| *to != from);
            expected.extend(others.map(|(_, to, _)| no([tcp(from, *to, TARGET), udp(from, *to, 53)].concat())));
        }
        for from in [WEB, OTHER, FAR_WEB, FAR_OTHER] {
            expected.push(no([to_service(from), tcp(from, Place::Outside, 80)].concat()));
        }
        self.expect("all are isolated", &expected);
    }

    fn outwards(&mut self) {
        let to = |peer: Value| {
            json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Egress"],
                "egress": [{"to": peer, "ports": target()}]})
        };
        self.policy(to(json!([{"podSelector": {"matchLabels": {"app": "db"}}}])));
        for from in [WEB, FAR_WEB] {
            let expected = [yes(to_service(from)), yes(tcp(from, DB, TARGET)), no(tcp(from, OTHER, TARGET))];
            self.expect("egress to what is behind the Service", &expected);
        }
        self.policy(to(json!([{"ipBlock": {"cidr": "10.96.0.0/16"}}, {"ipBlock": {"cidr": "fd00:10:96::/48"}}])));
        let expected =
            [no(to_service(WEB)), no(to_service(FAR_WEB)), yes(to_service(OTHER)), yes(to_service(FAR_OTHER))];
        self.expect("the Service's own address decides nothing", &expected);
    }
}

/// What a Service leads to.
fn target() -> Value {
    json!([{"port": TARGET, "protocol": "TCP"}, {"port": TARGET, "protocol": "UDP"}])
}

fn to_service(from: Place) -> Vec<Probe> {
    let all = [cluster_addresses(), local_addresses()].concat();
    all.into_iter().flat_map(|to| [Probe::tcp(from, to, 80), Probe::udp(from, to, 80)]).collect()
}

fn node_port(entry: u8, port: u16) -> Vec<Probe> {
    tcp(Place::Outside, Place::Node(entry), port)
}

fn blocks(addresses: [IpAddr; 2]) -> Value {
    let peers = addresses.map(|address| {
        let length = if address.is_ipv4() { 32 } else { 128 };
        json!({"ipBlock": {"cidr": format!("{address}/{length}")}})
    });
    json!({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [{"from": peers}]})
}

#[test]
fn vxlan_with_iptables() {
    World::new(Backend::Vxlan, false, ProxyMode::Iptables, Families::Dual).matrix();
}

#[test]
fn vxlan_with_nftables() {
    World::new(Backend::Vxlan, true, ProxyMode::Nftables, Families::Dual).matrix();
}

#[test]
fn host_gw_with_iptables() {
    World::new(Backend::HostGw, false, ProxyMode::Iptables, Families::Dual).matrix();
}

#[test]
fn host_gw_with_nftables() {
    World::new(Backend::HostGw, true, ProxyMode::Nftables, Families::Dual).matrix();
}

#[test]
fn without_ipv4_among_pods() {
    World::new(Backend::Vxlan, false, ProxyMode::Nftables, Families::V6).matrix();
}
