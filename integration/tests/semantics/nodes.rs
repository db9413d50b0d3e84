//! Nodes, Services and what stands between a client and a pod.

use std::net::IpAddr;

use flatfell_integration::place::{bridge_address_like, tunnel_address_like};
use flatfell_integration::scene::{Expected, arrives, no, ping, policy, tcp, udp, yes};
use flatfell_integration::{LabConfig, NodePort, Place, Probe, Scene, Service};

use crate::{B_WEB, DB, FAR, OTHER, WEB, cluster};

const DENY_ALL: &str = "podSelector: {}, policyTypes: [Ingress, Egress]";
const NEAR: Place = Place::Node(1);

fn cluster_addresses() -> Vec<IpAddr> {
    vec!["10.96.0.10".parse().unwrap(), "fd00:10:96::10".parse().unwrap()]
}

/// Port 80 of a Service address leads to port 8080 of these pods.
fn service(backends: &[Place], node_port: Option<NodePort>) -> Service {
    let backends = backends.iter().flat_map(|pod| pod.addresses()).map(|ip| (ip, 8080).into()).collect();
    Service { addresses: cluster_addresses(), port: 80, protocol: "tcp", node_port, backends }
}

fn to_service(from: Place) -> Vec<Probe> {
    cluster_addresses().into_iter().map(|to| Probe::tcp(from, to, 80)).collect()
}

/// Row "node to its own pod": always allowed (kubelet probes; also through a Service).
#[test]
fn node_to_its_own_pod() {
    let mut scene = Scene::new(5, &cluster());
    scene.lab.set_services(&[service(&[DB], None)]).unwrap();
    scene.policies(&[policy("a/p", DENY_ALL), policy("b/p", DENY_ALL)]);
    let probes = [yes(tcp(NEAR, DB, 80)), yes(udp(NEAR, DB, 53)), yes(ping(NEAR, WEB)), yes(to_service(NEAR))];
    let denied = [no(tcp(Place::Node(2), DB, 80)), no(ping(Place::Node(2), DB)), no(to_service(Place::Node(2)))];
    scene.expect("probes of the kubelet", &[&probes[..], &denied].concat());
}

/// Every address of node 1: the underlay's, the bridge's, the tunnel's.
fn own_node(from: Place, probe: impl Fn(IpAddr) -> Probe) -> Vec<Probe> {
    let families = from.addresses();
    let of = |like| [NEAR.address_like(like), bridge_address_like(1, like), tunnel_address_like(1, like)];
    families.into_iter().flat_map(of).map(probe).collect()
}

/// Row "pod to its own node": judged by the pod's egress rules, like any other destination: every address of the node,
/// host-network processes and node-local DNS included. `--own-node-egress=allow` switches it off. Replies pass.
#[test]
fn pod_to_its_own_node() {
    let mut scene = Scene::new(5, &cluster());
    let local_dns: IpAddr = "169.254.20.10".parse().unwrap();
    scene.lab.batch(NEAR, "ip", &format!("link add nodelocaldns type bridge\naddress add {local_dns}/32 dev nodelocaldns\nlink set nodelocaldns up\n")).unwrap();
    // The tunnel's IPv6 address is the range's anycast router, which answers no TCP.
    let everything = |from| {
        let mut probes = own_node(from, |to| Probe::tcp(from, to, 80));
        probes.extend(own_node(from, |to| Probe::udp(from, to, 53)));
        probes.extend(own_node(from, |to| Probe::icmp(from, to)));
        probes.push(Probe::udp(from, local_dns, 53));
        probes
    };
    scene.policies(&[policy("a/p", "podSelector: {matchLabels: {app: db}}, policyTypes: [Egress]")]);
    scene.expect("a deny-all pod", &[no(everything(DB)), arrives(everything(WEB)), yes(tcp(NEAR, DB, 80))]);
    let blocks = "[{to: [{ipBlock: {cidr: 192.168.50.0/24}}, {ipBlock: {cidr: \"fd00:192:168:50::/64\"}}], ports: [{port: \
                  443}]}, {to: [{ipBlock: {cidr: 169.254.20.10/32}}], ports: [{port: 53, protocol: UDP}]}]";
    let spec = format!("podSelector: {{matchLabels: {{app: db}}}}, policyTypes: [Egress], egress: {blocks}");
    scene.policies(&[policy("a/p", &spec)]);
    let dns = |port| vec![Probe::udp(DB, local_dns, port)];
    let bridge =
        own_node(DB, |to| Probe::tcp(DB, to, 443)).into_iter().filter(|probe| !NEAR.addresses().contains(&probe.to));
    scene.expect(
        "by its egress rules",
        &[yes(tcp(DB, NEAR, 443)), no(tcp(DB, NEAR, 80)), no(bridge.collect::<Vec<_>>()), yes(dns(53)), no(dns(54))],
    );
    scene.policies(&[policy("a/p", "podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]")]);
    scene.expect("ingress has no say", &[arrives(everything(DB))]);
    drop(scene);
    let mut scene = Scene::with(5, &cluster(), &["--own-node-egress=allow"]);
    scene.policies(&[policy("a/p", DENY_ALL)]);
    let probes = own_node(DB, |to| Probe::tcp(DB, to, 80));
    scene.expect("--own-node-egress=allow", &[arrives(probes), no(tcp(DB, Place::Node(2), 80)), no(tcp(DB, WEB, 80))]);
}

/// Row "self": a pod can always reach itself, through its Service too. (A Service reaching its own pod: hairpin.)
#[test]
fn a_pod_reaches_itself() {
    let mut scene = Scene::new(5, &cluster());
    scene.lab.set_services(&[service(&[DB], None)]).unwrap();
    scene.policies(&[policy("a/p", DENY_ALL)]);
    scene.expect("itself", &[yes(to_service(DB)), no(to_service(WEB)), no(to_service(FAR)), no(tcp(DB, WEB, 8080))]);
    let mut direct = scene.connect(DB, DB, (DB.v4(), 7000).into()).unwrap();
    let mut direct6 = scene.connect(DB, DB, (DB.v6(), 7000).into()).unwrap();
    assert!(direct.goes_on() && direct6.goes_on());
}

/// Row "Service address": policy applies to the pod behind it (after DNAT).
#[test]
fn service_addresses() {
    let mut scene = Scene::new(5, &cluster());
    scene.lab.set_services(&[service(&[DB], None)]).unwrap();
    let db = "podSelector: {matchLabels: {app: db}}";
    let web = "podSelector: {matchLabels: {app: web}}";
    scene.policies(&[policy("a/p", &format!("{db}, ingress: [{{from: [{{{web}}}], ports: [{{port: 8080}}]}}]"))]);
    scene.expect("ingress", &[yes(to_service(WEB)), no(to_service(OTHER)), no(to_service(FAR)), no(tcp(WEB, DB, 80))]);
    let egress = |to: &str| {
        policy("a/p", &format!("{web}, policyTypes: [Egress], egress: [{{to: [{to}], ports: [{{port: 8080}}]}}]"))
    };
    scene.policies(&[egress(&format!("{{{db}}}"))]);
    scene.expect("egress", &[yes(to_service(WEB)), no(tcp(WEB, OTHER, 8080))]);
    scene.policies(&[egress("{ipBlock: {cidr: 10.96.0.0/16}}, {ipBlock: {cidr: \"fd00:10:96::/48\"}}")]);
    scene.expect("the Service's own address decides nothing", &[no(to_service(WEB)), yes(to_service(OTHER))]);
    scene.lab.set_services(&[service(&[FAR], None)]).unwrap();
    scene.policies(&[egress("{podSelector: {matchLabels: {app: far}}}")]);
    scene.expect("behind it a pod of another node", &[yes(to_service(WEB)), no(tcp(WEB, FAR, 80))]);
}

/// Outside's traffic to the NodePort, by the node's underlay addresses.
fn to_node_port(entry: u8) -> Vec<Probe> {
    tcp(Place::Outside, Place::Node(entry), 30080)
}

fn block(addresses: [IpAddr; 2]) -> String {
    let [v4, v6] = addresses;
    format!(
        "podSelector: {{matchLabels: {{app: db}}}}, ingress: [{{from: [{{ipBlock: {{cidr: {v4}/32}}}}, {{ipBlock: {{cidr: \
         \"{v6}/128\"}}}}]}}]"
    )
}

/// Row "NodePort, LoadBalancer, masquerade": the source that is seen decides: on the entry node with a local endpoint the
/// client; on another node the entry node's flannel.1 address (vxlan), never the client, unless the traffic policy is
/// Local.
#[test]
fn node_ports() {
    let mut scene = Scene::new(5, &cluster());
    let client = block(Place::Outside.addresses());
    let tunnel = block(Place::Node(2).addresses().map(|like| tunnel_address_like(2, like)));
    let say = |passes: bool, probes| -> Vec<Expected> { if passes { yes(probes) } else { no(probes) } };
    for local in [false, true] {
        let port = Some(NodePort { port: 30080, local });
        scene.lab.set_services(&[service(&[DB], port)]).unwrap();
        scene.policies(&[policy("a/p", &tunnel)]);
        // With policy Local, node 2 has no endpoint to lead to.
        let what = format!("the entry node is allowed, local: {local}");
        scene.expect(&what, &[say(!local, to_node_port(2)), no(tcp(Place::Outside, DB, 8080))]);
        scene.policies(&[policy("a/p", &client)]);
        let what = format!("the client is allowed, local: {local}");
        scene.expect(
            &what,
            &[no(to_node_port(2)), yes(tcp(Place::Outside, DB, 8080)), no(tcp(Place::Node(2), DB, 8080))],
        );
        if local {
            scene.expect("Local keeps the client", &[yes(to_node_port(1))]);
            scene.policies(&[policy("a/p", &tunnel)]);
            scene.expect("Local keeps the client, who is not allowed", &[no(to_node_port(1))]);
        }
    }
    scene.lab.set_services(&[service(&[DB], Some(NodePort { port: 30080, local: false }))]).unwrap();
    scene.policies(&[policy("a/p", &client)]);
    scene.expect("on the entry node, before masquerade: the client", &[yes(to_node_port(1))]);
    scene.policies(&[policy("a/p", &tunnel)]);
    scene.expect("on the entry node: not the node", &[no(to_node_port(1))]);
}

/// The same row: with host-gw, where nothing hides it, the entry node's own address is what is seen.
#[test]
fn another_node_by_its_own_address() {
    let mut scene = Scene::new(5, &cluster());
    let node = Place::Node(2);
    let host_gw = || DB.addresses().map(|to| Probe::tcp(node, to, 8080).from_address(node.address_like(to)));
    scene.policies(&[policy("a/p", &block(node.addresses()))]);
    scene.expect(
        "the node's address is allowed",
        &[yes(host_gw()), no(tcp(node, DB, 8080)), no(tcp(Place::Outside, DB, 8080))],
    );
    scene.policies(&[policy("a/p", &block(node.addresses().map(|like| tunnel_address_like(2, like))))]);
    scene.expect("its tunnel's is", &[no(host_gw()), yes(tcp(node, DB, 8080))]);
}

/// The same row: a LoadBalancer's address that a node takes for itself shows the client.
#[test]
fn load_balancers() {
    let mut scene = Scene::new(5, &cluster());
    let outside: Vec<IpAddr> = vec!["203.0.113.7".parse().unwrap(), "2001:db8:7::7".parse().unwrap()];
    let routes = outside.iter().map(|to| format!("route add {to} via {}\n", NEAR.address_like(*to)));
    scene.lab.batch(Place::Outside, "ip", &routes.collect::<String>()).unwrap();
    let addresses = outside.clone();
    scene.lab.set_services(&[Service { addresses, ..service(&[DB], None) }]).unwrap();
    let probes = || -> Vec<Probe> { outside.iter().map(|&to| Probe::tcp(Place::Outside, to, 80)).collect() };
    scene.policies(&[policy("a/p", &block(Place::Outside.addresses()))]);
    scene.expect("the client is allowed", &[yes(probes()), no(tcp(FAR, DB, 8080))]);
    scene.policies(&[policy("a/p", &block(NEAR.addresses()))]);
    scene.expect("the node is", &[no(probes())]);
}

/// The same row: Flannel's masquerading comes after policy on the way out, and before it on the way in by another node.
#[test]
fn masquerade() {
    let config = LabConfig { pods: 5, masquerade: true, ..LabConfig::default() };
    let mut scene = Scene::on(config, &cluster(), &[]);
    let egress = "podSelector: {matchLabels: {app: db}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: \
                  192.168.50.100/32}}, {ipBlock: {cidr: \"fd00:192:168:50::100/128\"}}]}]";
    scene.policies(&[policy("a/p", egress)]);
    scene.expect(
        "on the way out",
        &[yes(tcp(DB, Place::Outside, 80)), no(tcp(DB, Place::Node(2), 80)), no(tcp(DB, WEB, 80))],
    );
    // By node 2 instead of the pod's own.
    let routes =
        [("10.244.1.0/24", Place::Node(2).v4().to_string()), ("fd00:10:244:1::/64", Place::Node(2).v6().to_string())];
    let routes = routes.map(|(to, via)| format!("route replace {to} via {via}\n"));
    scene.lab.batch(Place::Outside, "ip", &routes.concat()).unwrap();
    let probes = || tcp(Place::Outside, DB, 8080);
    scene.policies(&[policy("a/p", &block(Place::Outside.addresses()))]);
    scene.expect("by another node: never the client", &[no(probes())]);
    scene.policies(&[policy("a/p", &block(Place::Node(2).addresses().map(|like| tunnel_address_like(2, like))))]);
    scene.expect("by another node: that node", &[yes(probes())]);
}

/// Neighbour discovery works between isolated pods: caches are empty, and what is allowed passes.
#[test]
fn neighbour_discovery() {
    let mut scene = Scene::new(5, &cluster());
    let web = "podSelector: {matchLabels: {app: web}}";
    let db = "podSelector: {matchLabels: {app: db}}";
    let deny = policy("a/deny", DENY_ALL);
    let ingress = policy("a/in", &format!("{db}, ingress: [{{from: [{{{web}}}]}}]"));
    let egress = policy("a/out", &format!("{web}, policyTypes: [Egress], egress: [{{to: [{{{db}}}]}}]"));
    scene.policies(&[deny, ingress, egress]);
    for place in [WEB, DB, OTHER] {
        scene.lab.batch(place, "ip", "neighbour flush all\n").unwrap();
    }
    scene.expect(
        "with empty caches",
        &[yes(tcp(WEB, DB, 80)), no(tcp(OTHER, DB, 80)), no(tcp(DB, WEB, 80)), no(tcp(B_WEB, DB, 80))],
    );
}
