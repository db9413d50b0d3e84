//! Which ports and protocols a rule names.

use flatfell_integration::scene::{Expected, both, no, ping, pod_with, policy, sctp, tcp, udp, yes};
use flatfell_integration::{Place, Probe, Protocol, Scene};

use crate::{B_FAR, B_WEB, DB, FAR, OTHER, WEB, cluster, namespaces};

/// db's ingress and web's egress on these ports, from and to anybody.
fn ports(ports: &str) -> [String; 2] {
    [
        policy("a/in", &format!("podSelector: {{matchLabels: {{app: db}}}}, ingress: [{{{ports}}}]")),
        policy(
            "a/out",
            &format!("podSelector: {{matchLabels: {{app: web}}}}, policyTypes: [Egress], egress: [{{{ports}}}]"),
        ),
    ]
}

fn protocol_200(from: Place, to: Place) -> Vec<Probe> {
    both(from, to, Protocol::Other(200), 0)
}

/// Ingress of db on its own node and from another, egress of web to another node, and both at once.
fn along(probes: impl Fn(Place, Place) -> Vec<Probe>) -> Vec<Probe> {
    [(B_WEB, DB), (FAR, DB), (WEB, B_FAR), (WEB, DB)].into_iter().flat_map(|(from, to)| probes(from, to)).collect()
}

fn tcp_on(port: u16) -> Vec<Probe> {
    along(move |from, to| tcp(from, to, port))
}

fn udp_on(port: u16) -> Vec<Probe> {
    along(move |from, to| udp(from, to, port))
}

fn sctp_on(port: u16) -> Vec<Probe> {
    along(move |from, to| sctp(from, to, port))
}

/// Rows "ports missing or empty": all ports and protocols; `ports: [{}]`: all TCP ports. "protocol": TCP by default; TCP,
/// UDP, SCTP. "endPort": the range port..endPort. "ICMP, other protocols": allowed by a rule without ports; denied by
/// isolation otherwise. SCTP's INIT-ACK comes back.
#[test]
fn ports_protocols_and_ranges() {
    let mut scene = Scene::new(5, &cluster());
    let everything = [yes(tcp_on(81)), yes(udp_on(53)), yes(sctp_on(9)), yes(along(ping)), yes(along(protocol_200))];
    for none in ["", "ports: []", "ports: null"] {
        scene.policies(&ports(none));
        scene.expect(&format!("all ports and protocols: {none}"), &everything);
    }
    let others = |passes: Vec<Expected>| [vec![passes], vec![no(along(ping)), no(along(protocol_200))]].concat();
    for (what, expected) in [
        ("[{}]", vec![yes(tcp_on(1)), yes(tcp_on(65535)), no(udp_on(80)), no(sctp_on(80))]),
        ("[{port: 80}]", vec![yes(tcp_on(80)), no(tcp_on(81)), no(udp_on(80)), no(sctp_on(80))]),
        ("[{protocol: UDP, port: 53}]", vec![yes(udp_on(53)), no(udp_on(54)), no(tcp_on(53)), no(sctp_on(53))]),
        ("[{protocol: SCTP, port: 9}]", vec![yes(sctp_on(9)), no(sctp_on(10)), no(tcp_on(9)), no(udp_on(9))]),
        ("[{protocol: UDP}]", vec![yes(udp_on(1)), yes(udp_on(65535)), no(tcp_on(1)), no(sctp_on(1))]),
        ("[{protocol: SCTP}]", vec![yes(sctp_on(1)), no(udp_on(1)), no(tcp_on(1))]),
        (
            "[{port: 80, endPort: 82}]",
            vec![no(tcp_on(79)), yes(tcp_on(80)), yes(tcp_on(82)), no(tcp_on(83)), no(udp_on(81))],
        ),
        ("[{port: 80, endPort: 80}]", vec![yes(tcp_on(80)), no(tcp_on(81))]),
        ("[{protocol: UDP, port: 1, endPort: 65535}]", vec![yes(udp_on(1)), yes(udp_on(65535)), no(tcp_on(80))]),
        (
            "[{port: 80, endPort: 90}, {port: 85, endPort: 99}, {port: 90}, {protocol: UDP, port: 53}]",
            vec![yes(tcp_on(80)), yes(tcp_on(90)), yes(tcp_on(99)), no(tcp_on(100)), yes(udp_on(53)), no(udp_on(80))],
        ),
    ] {
        scene.policies(&ports(&format!("ports: {what}")));
        scene.expect(what, &others(expected.concat()));
    }
}

/// More than a handful of rules go through a map of ports: each still decides by its own peers.
#[test]
fn many_rules_of_one_pod() {
    let mut scene = Scene::new(5, &cluster());
    let apps = ["web", "other", "far"];
    let rules: Vec<String> = (0..40)
        .map(|n| {
            let app = apps[n % 3];
            let port = 8000 + n;
            format!("{{from: [{{podSelector: {{matchLabels: {{app: {app}}}}}}}], ports: [{{port: {port}}}, {{protocol: UDP, port: {port}, endPort: {}}}]}}", port + 1)
        })
        .collect();
    scene.policies(&[policy(
        "a/p",
        &format!("podSelector: {{matchLabels: {{app: db}}}}, ingress: [{}]", rules.join(", ")),
    )]);
    let mut expected = Vec::new();
    for n in 0..40_u16 {
        for (place, own) in [(WEB, 0), (OTHER, 1), (FAR, 2)] {
            let at = 8000 + n;
            expected.push(if n % 3 == own { yes(tcp(place, DB, at)) } else { no(tcp(place, DB, at)) });
            // The range of the rule before reaches this port too.
            let in_range = n % 3 == own || (n > 0 && (n - 1) % 3 == own);
            expected.push(if in_range { yes(udp(place, DB, at)) } else { no(udp(place, DB, at)) });
        }
        expected.push(no(tcp(B_WEB, DB, 8000 + n)));
    }
    scene.expect("40 rules", &expected);
}

/// Row "named port": resolved on the destination pod, per pod, name and protocol equal, in its containers and its init
/// containers with restartPolicy Always (not plain init containers); several pods may resolve it differently, one pod to
/// several numbers: all of them; a destination that is no pod never matches, in an ipBlock too.
#[test]
fn named_ports() {
    let port = |name: &str, number: u16, protocol: &str| {
        format!("{{name: {name}, containerPort: {number}, protocol: {protocol}}}")
    };
    let container = |ports: &[String]| format!("{{name: c, ports: [{}]}}", ports.join(", "));
    let db = format!(
        "containers: [{}, {}], initContainers: [{{name: side, restartPolicy: Always, ports: [{}]}}, {}]",
        container(&[port("web", 8080, "TCP"), port("dns", 53, "UDP")]),
        container(&[port("web", 8081, "TCP"), port("other", 9090, "TCP")]),
        port("web", 8082, "TCP"),
        container(&[port("web", 8083, "TCP")]),
    );
    let other = format!("containers: [{}]", container(&[port("web", 80, "TCP"), port("dns", 5353, "UDP")]));
    let plain = |name: &str, place: Place, spec: &str| {
        let labels = format!("app: {}", name.split('/').next_back().unwrap());
        pod_with(name, place, &labels, spec, &place.addresses())
    };
    let pods = [
        namespaces(),
        plain("a/db", DB, &db),
        plain("a/other", OTHER, &other),
        plain("b/far", B_FAR, &other),
        plain("a/web", WEB, ""),
    ];
    let mut scene = Scene::new(5, &pods.concat());
    let web = "ports: [{port: web}]";
    scene.policies(&[policy("a/p", &format!("podSelector: {{}}, ingress: [{{{web}}}]"))]);
    let numbers =
        |from, to, numbers: &[u16]| -> Vec<Probe> { numbers.iter().flat_map(|&n| tcp(from, to, n)).collect() };
    let at_db = [
        yes(numbers(FAR, DB, &[8080, 8081, 8082])),
        no(numbers(FAR, DB, &[8083, 80, 9090, 53])),
        no(udp(FAR, DB, 8080)),
    ];
    let at_other = [yes(tcp(FAR, OTHER, 80)), no(tcp(FAR, OTHER, 8080)), no(tcp(FAR, WEB, 80))];
    scene.expect("ingress, per pod", &[&at_db[..], &at_other].concat());
    scene.policies(&[policy("a/p", "podSelector: {}, ingress: [{ports: [{port: dns}]}]")]);
    scene.expect("the protocol must be equal too", &[no(udp(FAR, DB, 53)), no(tcp(FAR, DB, 53))]);
    scene.policies(&[policy("a/p", "podSelector: {}, ingress: [{ports: [{port: dns, protocol: UDP}]}]")]);
    scene.expect(
        "UDP",
        &[yes(udp(FAR, DB, 53)), yes(udp(FAR, OTHER, 5353)), no(udp(FAR, OTHER, 53)), no(tcp(FAR, DB, 53))],
    );
    let egress = "podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: ";
    let targets = [
        yes(numbers(WEB, DB, &[8080, 8081, 8082])),
        no(numbers(WEB, DB, &[8083, 80])),
        yes(tcp(WEB, OTHER, 80)),
        no(tcp(WEB, OTHER, 8080)),
        no(tcp(WEB, Place::Outside, 80)),
        no(tcp(WEB, Place::Node(2), 80)),
    ];
    let everywhere = "to: [{ipBlock: {cidr: 0.0.0.0/0}}, {ipBlock: {cidr: \"::/0\"}}]";
    for to in ["", everywhere] {
        scene.policies(&[policy("a/p", &format!("{egress} [{{{web}, {to}}}]").replace(", }", "}"))]);
        let far = [yes(tcp(WEB, B_FAR, 80)), no(tcp(WEB, B_FAR, 8080))];
        scene.expect(&format!("egress, resolved at the destination; {to}"), &[&targets[..], &far].concat());
    }
    scene.policies(&[policy("a/p", &format!("{egress} [{{{web}, to: [{{podSelector: {{}}}}]}}]"))]);
    scene.expect("and its peer must match", &[&targets[..], &[no(tcp(WEB, B_FAR, 80))]].concat());
}
