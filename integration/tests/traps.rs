//! The traps of the data plane, each with real packets: what would walk round an isolated pod's policy, and what policy
//! must not break.
//!
//! Numbers and words are those of the design's list of traps. Not here: 13 (flushes: `engine.rs`), 15 (memory:
//! `memory.rs`).
#![allow(clippy::unwrap_used)]

use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use flatfell::engine::EngineConfig;
use flatfell_integration::inprocess::{InProcess, defaults, deny_all, pod, pod_with, policy};
use flatfell_integration::patience::patient;
use flatfell_integration::raw::{self, Flow, Watch};
use flatfell_integration::{Framing, Lab, LabConfig, Outcome, Place, Probe, Protocol, Service, packet};
use flatfell_rules::compile::Guard;
use flatfell_rules::index::Change;
use flatfell_rules::object::ObjectName;
use serde_json::{Value, json};

const A: Place = Place::pod(1, 0);
const B: Place = Place::pod(1, 1);
const C: Place = Place::pod(1, 2);

fn lab(nodes: u8, pods: u8) -> Lab {
    Lab::new(LabConfig { nodes, pods, ..LabConfig::default() }).unwrap()
}

/// Node 1 with the pods A, B and C and these policies.
fn enforced(lab: &Lab, policies: &[Value]) -> InProcess {
    let objects = [&[pod(A), pod(B), pod(C)], policies].concat();
    InProcess::start(lab, 1, defaults(), &objects).unwrap()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Sends each and wants it to be delivered or not.
fn expect(lab: &Lab, probes: &[(Probe, bool)]) {
    let sent: Vec<Probe> = probes.iter().map(|(probe, _)| probe.clone()).collect();
    for ((probe, wanted), outcome) in probes.iter().zip(lab.probes(&sent).unwrap()) {
        assert_eq!(outcome.delivered, *wanted, "{probe:?}: {outcome:?}");
    }
}

/// For both families of `to`.
fn both(to: Place, make: impl Fn(IpAddr) -> (Probe, bool)) -> Vec<(Probe, bool)> {
    to.addresses().into_iter().map(make).collect()
}

fn allow_from(name: &str, app: &str, from: &Value, ports: &Value) -> Value {
    policy(name, app, json!({"policyTypes": ["Ingress"], "ingress": [{"from": from, "ports": ports}]}))
}

/// How many packets a guard drops while `work` runs.
fn guarded_by(daemon: &InProcess, guard: Guard, work: impl FnOnce()) -> u64 {
    let before = daemon.guarded(guard).unwrap();
    work();
    daemon.guarded(guard).unwrap() - before
}

/// Trap 1: a pod isolated without selecting itself reaches itself, also through its own Service; nobody else does.
#[test]
fn trap_01_a_pod_reaches_itself_through_its_own_service() {
    let lab = lab(2, 3);
    let addresses = vec![address("10.96.0.10"), address("fd00:10:96::10")];
    let backends = A.addresses().map(|ip| (ip, 8080).into()).to_vec();
    let service = Service { addresses: addresses.clone(), port: 80, protocol: "tcp", node_port: None, backends };
    lab.set_services(&[service]).unwrap();
    let daemon = enforced(&lab, &[deny_all("p0")]);
    for to in addresses {
        let outcome = lab.probe(&Probe::tcp(A, to, 80)).unwrap();
        assert!(outcome.answered && outcome.arrivals[0].place == A, "{to}: {outcome:?}");
        expect(&lab, &[(Probe::tcp(B, to, 80), false), (Probe::tcp(Place::pod(2, 0), to, 80), false)]);
    }
    expect(&lab, &both(A, |to| (Probe::tcp(B, to, 8080), false)));
    drop(daemon);
}

/// Trap 2: neighbour discovery and MLD pass between isolated pods, and between them and their node.
#[test]
fn trap_02_isolated_pods_keep_neighbour_discovery_and_mld() {
    let lab = lab(1, 3);
    let to_b = policy("out", "p0", json!({"policyTypes": ["Egress"], "egress": [{"to": [{"podSelector": {}}]}]}));
    let from_a = allow_from("in", "p1", &json!([{"podSelector": {"matchLabels": {"app": "p0"}}}]), &json!([]));
    let daemon = enforced(&lab, &[deny_all("p0"), deny_all("p1"), to_b, from_a]);
    for place in [A, B, Place::Node(1)] {
        lab.batch(place, "ip", "-6 neigh flush all\n")
            .or_else(|_| lab.batch(place, "ip", "neigh flush all\n"))
            .unwrap();
    }
    expect(&lab, &[(Probe::tcp(A, B.v6(), 80), true), (Probe::tcp(Place::Node(1), B.v6(), 80), true)]);
    expect(&lab, &[(Probe::tcp(B, A.v6(), 80), false)]);
    let watch = Watch::new(&lab, B, "icmpv6 type mld-listener-query").unwrap();
    let flow = Flow { from: (A.link_local().into(), 0), to: (address("ff02::1"), 0) };
    lab.send_frame(A, &packet::frame([0x33, 0x33, 0, 0, 0, 1], A.mac(), &[], &raw::icmp(flow, 130, 0, &[0; 20])))
        .unwrap();
    wait(|| watch.count().unwrap() == 1);
    drop(daemon);
}

/// Trap 2: what only looks like discovery and leaves the bridge is judged like any other packet.
#[test]
fn trap_02_discovery_does_not_carry_an_isolated_pod_to_another_node() {
    let lab = lab(2, 3);
    let far = Place::pod(2, 0);
    let daemon = enforced(&lab, &[deny_all("p0")]);
    let arrived = |from: Place, kind: u8| {
        let source = from.v6();
        let watch = Watch::new(&lab, far, &format!("ip6 saddr {source} icmpv6 type {kind}")).unwrap();
        let flow = Flow { from: (source.into(), 0), to: (far.v6().into(), 0) };
        let router = [2, 0xff, 0, 1, 0, 1];
        lab.send_frame(from, &packet::frame(router, from.mac(), &[], &raw::icmp(flow, kind, 0, &[0; 20]))).unwrap();
        std::thread::sleep(patient(Duration::from_millis(60)));
        watch.count().unwrap()
    };
    for kind in [133, 135, 136, 130, 131, 132, 143] {
        assert_eq!((arrived(A, kind), arrived(C, kind)), (0, 1), "type {kind}");
    }
    drop(daemon);
}

/// Trap 2: no pod makes itself a router: router advertisements and redirects between pods, and to the node, are dropped,
/// whether or not anybody is isolated (CVE-2020-10749).
#[test]
fn trap_02_router_advertisements_and_redirects_are_dropped() {
    let lab = lab(1, 3);
    let node = address("fe80::ff:ff:fe01:1");
    let forged: Vec<Probe> = [Protocol::RouterAdvertisement, Protocol::Redirect]
        .into_iter()
        .flat_map(|protocol| {
            [address("ff02::1"), B.link_local().into(), node].map(|to| Probe::new(A, to, protocol, 0).in_frame(&[]))
        })
        .collect();
    let all = |wanted: bool| expect(&lab, &forged.iter().map(|probe| (probe.clone(), wanted)).collect::<Vec<_>>());
    all(true);
    let mut daemon = enforced(&lab, &[]);
    for isolated in [false, true] {
        if isolated {
            daemon.enforce(&[deny_all("p1")]).unwrap();
        }
        let dropped = guarded_by(&daemon, Guard::RouterAdvertisement, || all(false));
        assert!(dropped >= 6, "{dropped}");
    }
}

/// Trap 3: link-local IPv6 walks round every address map, also where the cluster has IPv4 only: dropped and counted to
/// and from isolated pods, untouched on a node without any.
#[test]
fn trap_03_link_local_traffic_is_dropped_on_a_node_with_isolated_pods() {
    for v4_only in [true, false] {
        let lab = lab(1, 3);
        let known = |place: Place| if v4_only { pod_with(place, &[place.v4().into()]) } else { pod(place) };
        let mut daemon = InProcess::start(&lab, 1, defaults(), &[known(A), known(B), known(C)]).unwrap();
        let probes = |wanted| {
            let each = |from: Place, to: Place| {
                let to = to.link_local();
                [(Probe::tcp(from, to, 80).in_frame(&[]), wanted), (Probe::udp(from, to, 53).in_frame(&[]), wanted)]
            };
            [each(A, B), each(B, A)].concat()
        };
        assert_eq!(guarded_by(&daemon, Guard::LinkLocal, || expect(&lab, &probes(true))), 0);
        daemon.enforce(&[deny_all("p1")]).unwrap();
        assert_eq!(guarded_by(&daemon, Guard::LinkLocal, || expect(&lab, &probes(false))), 4, "v4 only: {v4_only}");
    }
}

/// Trap 4: broadcast and multicast reach pods without naming them: dropped and counted on a node with isolated pods,
/// untouched on one without.
#[test]
fn trap_04_broadcast_and_multicast_do_not_reach_isolated_pods() {
    let lab = lab(1, 3);
    let mut daemon = enforced(&lab, &[]);
    let groups = ["10.244.1.255", "255.255.255.255", "224.0.0.251", "239.1.2.3", "ff02::1", "ff05::99"];
    let probes = groups.map(address).map(|to| Probe::udp(A, to, 5353).from_address(A.address_like(to)).in_frame(&[]));
    // The node itself may hear them: that is not policy between pods.
    let reaches_pods = |probes: &[Probe]| -> Vec<bool> {
        let outcomes = lab.probes(probes).unwrap();
        let pods = |outcome: &Outcome| outcome.arrivals.iter().any(|arrival| arrival.place != Place::Node(1));
        outcomes.iter().map(pods).collect()
    };
    let open = guarded_by(&daemon, Guard::Multicast, || assert_eq!(reaches_pods(&probes), [true; 6]));
    assert_eq!(open, 0);
    daemon.enforce(&[deny_all("p1")]).unwrap();
    let closed = guarded_by(&daemon, Guard::Multicast, || assert_eq!(reaches_pods(&probes), [false; 6]));
    assert!(closed >= 6, "{closed}");
    let local = [Probe::udp(A, address("ff02::1"), 5353).in_frame(&[])];
    assert!(guarded_by(&daemon, Guard::LinkLocal, || assert_eq!(reaches_pods(&local), [false])) >= 1);
}

fn tagged(to: Place) -> Vec<(Probe, bool)> {
    let tags: [&[u16]; 4] = [&[0], &[7], &[0, 0], &[7, 9]];
    tags.iter().flat_map(|tags| both(to, |ip| (Probe::udp(A, ip, 53).in_frame(tags), false))).collect()
}

/// Trap 5: frames with a VLAN tag (id 0, single, double) pass by br_netfilter and are taken by the pod: dropped and
/// counted at every pod port, also at one that appears while the daemon runs.
#[test]
fn trap_05_tagged_frames_are_dropped_at_every_pod_port() {
    let mut lab = lab(1, 3);
    let open: Vec<(Probe, bool)> = tagged(B).into_iter().map(|(probe, _)| (probe, true)).collect();
    expect(&lab, &open);
    let daemon = enforced(&lab, &[deny_all("p1")]);
    assert_eq!(guarded_by(&daemon, Guard::Frame, || expect(&lab, &tagged(B))), 8);
    let flow = Flow { from: (A.v4().into(), 1), to: (B.v4().into(), 53) };
    let mut stacked = packet::frame(B.mac(), A.mac(), &[7, 9], &raw::udp(flow, &[]));
    stacked[12..14].copy_from_slice(&[0x88, 0xa8]);
    assert_eq!(guarded_by(&daemon, Guard::Frame, || lab.send_frame(A, &stacked).unwrap()), 1, "802.1ad");
    let late = lab.add_pod(1, 7).unwrap();
    daemon.until("without waiting work", |status| status.synced).unwrap();
    let from_late = |tags: &[u16]| both(B, |ip| (Probe::udp(late, ip, 53).in_frame(tags), false));
    wait(|| port_is_guarded(&lab, "veth7"));
    assert_eq!(guarded_by(&daemon, Guard::Frame, || expect(&lab, &[from_late(&[0]), from_late(&[7, 9])].concat())), 4);
}

fn port_is_guarded(lab: &Lab, port: &str) -> bool {
    let listing =
        lab.netns(Place::Node(1)).unwrap().feed("nft", &["list", "set", "bridge", "flatfell-3a", "ports"], "");
    listing.unwrap().contains(port)
}

/// Trap 5, the other side: tagged frames on a bridge that carries no pods are nobody's business.
#[test]
fn trap_05_a_bridge_without_pods_keeps_its_tags() {
    let lab = lab(1, 4);
    let stranger = Place::pod(1, 3);
    let daemon = InProcess::start(&lab, 1, defaults(), &[pod(A), pod(B), deny_all("p1")]).unwrap();
    let move_to_own_bridge =
        "link add br9 type bridge\nlink set br9 up\nlink set veth2 master br9\nlink set veth3 master br9\n";
    lab.batch(Place::Node(1), "ip", move_to_own_bridge).unwrap();
    wait(|| !port_is_guarded(&lab, "veth3"));
    let probes = both(stranger, |ip| {
        let probe = Probe::udp(C, ip, 53).in_frame(&[7]);
        (Probe { framing: Framing::Frame { tags: vec![7], to: Some(stranger.mac()) }, ..probe }, true)
    });
    assert_eq!(guarded_by(&daemon, Guard::Frame, || expect(&lab, &probes)), 0);
    assert_eq!(guarded_by(&daemon, Guard::Frame, || expect(&lab, &tagged(B))), 8);
}

/// Trap 6: later fragments have no ports; fragmented datagrams are judged whole, by their port.
#[test]
fn trap_06_fragments_are_judged_by_the_port_of_the_whole() {
    let lab = lab(2, 3);
    let ports = json!([{"protocol": "UDP", "port": 53}]);
    let daemon = enforced(
        &lab,
        &[allow_from(
            "in",
            "p1",
            &json!([{"podSelector": {}}, {"ipBlock": {"cidr": "10.244.2.0/24"}}, {"ipBlock": {"cidr": "fd00:10:244:2::/64"}}]),
            &ports,
        )],
    );
    for from in [A, Place::pod(2, 0)] {
        expect(&lab, &both(B, |ip| (Probe::udp(from, ip, 53).in_fragments(), true)));
        expect(&lab, &both(B, |ip| (Probe::udp(from, ip, 54).in_fragments(), false)));
    }
    for to in B.addresses() {
        assert_eq!([53, 54].map(|port| large_datagram_arrives(&lab, (A, B), to, port)), [true, false], "{to}");
    }
    drop(daemon);
}

fn large_datagram_arrives(lab: &Lab, (from, to): (Place, Place), ip: IpAddr, port: u16) -> bool {
    let receiver = lab.netns(to).unwrap().run(|| UdpSocket::bind((ip, port)).unwrap()).unwrap();
    let sender = lab.netns(from).unwrap().run(|| UdpSocket::bind((from.address_like(ip), 0)).unwrap()).unwrap();
    receiver.set_read_timeout(Some(patient(Duration::from_millis(150)))).unwrap();
    sender.send_to(&[7; 4000], (ip, port)).unwrap();
    receiver.recv(&mut [0; 8000]).is_ok_and(|length| length == 4000)
}

/// Trap 7: an egress allow goes on to the ingress half and never ends the evaluation.
#[test]
fn trap_07_an_egress_allow_goes_on_to_ingress() {
    let lab = lab(1, 3);
    let out = policy("out", "p0", json!({"policyTypes": ["Egress"], "egress": [{"to": [{"podSelector": {}}]}]}));
    let daemon = enforced(&lab, &[out, deny_all("p1")]);
    let icmp = |to: Place, wanted| both(to, move |ip| (Probe::icmp(A, ip), wanted));
    expect(&lab, &[both(B, |ip| (Probe::tcp(A, ip, 80), false)), icmp(B, false)].concat());
    expect(&lab, &[both(C, |ip| (Probe::tcp(A, ip, 80), true)), icmp(C, true)].concat());
    drop(daemon);
}

fn blocks(blocks: &[Value]) -> Value {
    blocks.iter().map(|block| json!({"ipBlock": block})).collect()
}

fn tcp_port(port: u16) -> Value {
    json!([{"protocol": "TCP", "port": port}])
}

/// Trap 8: `except` is subtracted from its own cidr and leaves the other rules alone.
#[test]
fn trap_08_except_does_not_reach_into_other_rules() {
    let lab = lab(1, 3);
    let all_but_a = blocks(&[
        json!({"cidr": "10.244.0.0/16", "except": ["10.244.1.10/32"]}),
        json!({"cidr": "fd00:10:244::/48", "except": ["fd00:10:244:1::10/128"]}),
    ]);
    let a = json!([{"podSelector": {"matchLabels": {"app": "p0"}}}]);
    let rules = json!([{"from": all_but_a, "ports": tcp_port(80)}, {"from": a, "ports": tcp_port(81)}]);
    let daemon = enforced(&lab, &[policy("in", "p1", json!({"policyTypes": ["Ingress"], "ingress": rules}))]);
    for (from, port, wanted) in [(A, 80, false), (C, 80, true), (A, 81, true), (C, 81, false)] {
        expect(&lab, &both(B, |ip| (Probe::tcp(from, ip, port), wanted)));
    }
    drop(daemon);
}

/// Trap 9: overlapping blocks in one policy and across policies are merged, and a policy that cannot be understood
/// stops no other.
#[test]
fn trap_09_overlapping_blocks_and_a_bad_policy_do_not_stop_the_others() {
    let lab = lab(1, 3);
    let cidrs = |list: &[&str]| blocks(&list.iter().map(|cidr| json!({"cidr": cidr})).collect::<Vec<_>>());
    let first = ["10.244.0.0/16", "10.244.1.0/24", "10.244.1.10/32", "fd00:10:244::/48", "fd00:10:244:1::/64"];
    let second = ["10.244.1.8/29", "10.244.1.0/28", "fd00:10:244:1::10/124", "fd00:10:244:1::10/128"];
    let mut bad = policy("bad", "p2", json!({}));
    bad["spec"]["ingress"] = json!([{"from": [{"ipBlock": {"cidr": "10.244.1.0/99"}}]}]);
    let policies = [
        allow_from("one", "p1", &cidrs(&first), &tcp_port(80)),
        allow_from("two", "p1", &cidrs(&second), &tcp_port(80)),
        allow_from("three", "p1", &cidrs(&second[1..]), &tcp_port(81)),
        bad,
    ];
    let daemon = enforced(&lab, &policies);
    for (to, port, wanted) in [(B, 80, true), (B, 81, true), (B, 82, false), (C, 80, false)] {
        expect(&lab, &both(to, |ip| (Probe::tcp(A, ip, port), wanted)));
    }
    drop(daemon);
}

/// Trap 10: an ICMP error about an allowed flow passes into an isolated pod, an echo request does not.
#[test]
fn trap_10_errors_about_allowed_flows_pass_and_echo_requests_do_not() {
    let lab = lab(2, 3);
    let far = Place::pod(2, 0);
    let out = json!({"policyTypes": ["Ingress", "Egress"], "egress": [{"ports": [{"protocol": "UDP", "port": 53}]}]});
    let daemon = enforced(&lab, &[policy("out", "p0", out)]);
    lab.batch(Place::Node(2), "ip", "link set cni0 mtu 1300\n").unwrap();
    for to in [B, far].into_iter().flat_map(Place::addresses) {
        assert_eq!([53, 54].map(|port| refusal_is_heard(&lab, to, port)), [true, false], "{to}");
    }
    for to in far.addresses() {
        let socket = lab.netns(A).unwrap().run(|| UdpSocket::bind((A.address_like(to), 0)).unwrap()).unwrap();
        // A refusal of an earlier datagram comes up in a later call.
        wait(|| socket.send_to(&[0; 1380], (to, 53)).is_ok() && route(&lab, A, to).contains("mtu 1300"));
    }
    expect(&lab, &[both(A, |ip| (Probe::icmp(B, ip), false)), both(A, |ip| (Probe::icmp(far, ip), false))].concat());
    let flow = Flow { from: (far.v4().into(), 0), to: (A.v4().into(), 0) };
    let watch = Watch::new(&lab, A, "icmp type destination-unreachable").unwrap();
    let about = Flow { from: (A.v4().into(), 40_000), to: (far.v4().into(), 99) };
    let unreachable = raw::icmp(flow, 3, 3, &[&[0; 4][..], &raw::udp(about, &[0; 8])].concat());
    let router = [2, 0xff, 0, 2, 0, 1];
    lab.send_frame(far, &packet::frame(router, far.mac(), &[], &unreachable)).unwrap();
    std::thread::sleep(patient(Duration::from_millis(60)));
    assert_eq!(watch.count().unwrap(), 0, "an error about no flow");
    drop(daemon);
}

/// Whether the sender at A learns that nobody listens there.
fn refusal_is_heard(lab: &Lab, to: IpAddr, port: u16) -> bool {
    let socket = lab.netns(A).unwrap().run(|| UdpSocket::bind((A.address_like(to), 0)).unwrap()).unwrap();
    socket.connect((to, port)).unwrap();
    socket.set_read_timeout(Some(patient(Duration::from_millis(150)))).unwrap();
    socket.send(b"anybody?").unwrap();
    socket.recv(&mut [0; 16]).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

fn route(lab: &Lab, from: Place, to: IpAddr) -> String {
    lab.netns(from).unwrap().feed("ip", &["route", "get", &to.to_string()], "").unwrap()
}

/// Trap 11: SCTP is judged by its port, and INIT ACK is no invalid packet.
#[test]
fn trap_11_sctp_is_judged_by_port_and_answered() {
    let lab = lab(2, 3);
    let far = Place::pod(2, 0);
    let ports = json!([{"protocol": "SCTP", "port": 9}]);
    let out = json!({"policyTypes": ["Egress"], "egress": [{"ports": ports}]});
    let rules = json!({"policyTypes": ["Ingress"], "ingress": [{"ports": ports}]});
    let daemon = enforced(&lab, &[policy("in", "p1", rules), policy("out", "p0", out)]);
    let mut probes = Vec::new();
    for (from, to) in [(A, B), (far, B), (A, far)] {
        for ip in to.addresses() {
            assert!(lab.probe(&Probe::sctp(from, ip, 9)).unwrap().answered, "{from} to {ip}");
            probes.extend([(Probe::sctp(from, ip, 10), false), (Probe::tcp(from, ip, 9), false)]);
        }
    }
    expect(&lab, &probes);
    drop(daemon);
}

/// Trap 12: a packet with a forged address is judged as what it claims to be. It gets where the owner of the address may
/// go and nowhere else, its answer goes to the owner, and a forger gains no flow of its own. That is so where nobody is held to
/// sending as itself; the guard has tests of its own (`spoof.rs`).
#[test]
fn trap_12_a_forged_address_gets_no_further_than_its_owner() {
    let lab = lab(1, 3);
    let from_b =
        allow_from("in", "p0", &json!([{"podSelector": {"matchLabels": {"app": "p1"}}}]), &json!([{"port": 80}]));
    let daemon = enforced(&lab, &[from_b]);
    let arrived = |claimed: Place, port: u16| {
        let watch = Watch::new(&lab, A, &format!("tcp dport {port}")).unwrap();
        for ip in A.addresses() {
            let flow = Flow { from: (claimed.address_like(ip), 30_000), to: (ip, port) };
            lab.send_frame(C, &packet::frame(A.mac(), C.mac(), &[], &raw::tcp(flow, 0x02, 77))).unwrap();
        }
        std::thread::sleep(patient(Duration::from_millis(60)));
        watch.count().unwrap()
    };
    let stranger = Place::pod(2, 0);
    let seen = [(B, 80), (B, 81), (C, 80), (stranger, 80)].map(|(claimed, port)| arrived(claimed, port));
    assert_eq!(seen, [2, 0, 0, 0]);
    // What the forged flows left in conntrack opens nothing for the forger itself.
    expect(&lab, &both(A, |ip| (Probe::tcp(C, ip, 80), false)));
    drop(daemon);
}

fn phase(mut pod: Value, name: &str, phase: &str) -> Value {
    pod["metadata"]["name"] = json!(name);
    pod["metadata"]["uid"] = json!(name);
    pod["metadata"]["labels"]["app"] = json!(name);
    pod["status"]["phase"] = json!(phase);
    pod
}

/// Trap 16: a completed pod keeps its address in the API while another pod gets it: the address is the living pod's,
/// whichever the daemon heard of first.
#[test]
fn trap_16_an_address_is_the_living_pods() {
    let lab = lab(1, 3);
    let (done, living) = (phase(pod(B), "done", "Succeeded"), phase(pod(B), "living", "Running"));
    for order in [[done.clone(), living.clone()], [living, done]] {
        for (isolated, wanted) in [("done", true), ("living", false)] {
            let objects = [&[pod(A), deny_all(isolated)][..], &order].concat();
            let daemon = InProcess::start(&lab, 1, defaults(), &objects).unwrap();
            expect(&lab, &both(B, |ip| (Probe::tcp(A, ip, 80), wanted)));
            drop(daemon);
        }
    }
}

/// Traps 14 and 16: a pod that left the API stays isolated while its interface lives; when that goes, its address is free
/// for another pod.
#[test]
fn trap_14_a_deleted_interface_frees_what_the_pod_held() {
    let mut lab = lab(1, 3);
    let objects = [pod(A), pod(B), pod(C), deny_all("p1")];
    let config = EngineConfig { close_unknown: false, ..defaults() };
    let mut daemon = InProcess::start(&lab, 1, config, &objects).unwrap();
    expect(&lab, &both(B, |ip| (Probe::tcp(A, ip, 80), false)));
    // Their neighbours know B's addresses from here on, and so the daemon does.
    expect(&lab, &both(A, |ip| (Probe::tcp(Place::Node(1), ip, 80), true)));
    expect(&lab, &both(B, |ip| (Probe::tcp(Place::Node(1), ip, 80), true)));
    daemon.change(Change::DeletePod(ObjectName::new("default", "p1")));
    daemon.sync().unwrap();
    expect(&lab, &both(B, |ip| (Probe::tcp(A, ip, 80), false)));
    lab.remove_pod(B).unwrap();
    wait(|| {
        daemon.sync().unwrap();
        let enforced = daemon.engine.status().enforced.clone().unwrap();
        B.addresses().iter().all(|ip| !enforced.local().contains_key(ip))
    });
    lab.add_pod(1, 1).unwrap();
    expect(&lab, &both(B, |ip| (Probe::tcp(A, ip, 80), true)));
}

/// A packet that conntrack does not know, or takes for no part of any flow, does not pass by policy.
#[test]
fn packets_that_belong_to_no_flow_do_not_reach_isolated_pods() {
    let lab = lab(1, 3);
    let daemon = enforced(&lab, &[deny_all("p1")]);
    let arrived = |to: Place| {
        let watch = Watch::new(&lab, to, "tcp dport 80").unwrap();
        for ip in to.addresses() {
            for (number, flags) in [(1_u16, 0x10), (2, 0x04), (3, 0x11), (4, 0x3f), (5, 0), (6, 0x12)] {
                let flow = Flow { from: (A.address_like(ip), 30_000 + number), to: (ip, 80) };
                lab.send_frame(A, &packet::frame(to.mac(), A.mac(), &[], &raw::tcp(flow, flags, 77))).unwrap();
            }
        }
        std::thread::sleep(patient(Duration::from_millis(60)));
        watch.count().unwrap()
    };
    assert_eq!((arrived(B), arrived(C)), (0, 12));
    let untracked = "table inet lab-raw { chain pre { type filter hook prerouting priority raw; notrack; }; }";
    lab.nft(Place::Node(1), untracked).unwrap();
    assert_eq!((arrived(B), arrived(C)), (0, 12), "untracked");
    expect(&lab, &[both(B, |ip| (Probe::udp(A, ip, 53), false)), both(C, |ip| (Probe::udp(A, ip, 53), true))].concat());
    drop(daemon);
}

/// Until it holds; a second is far more than anything here takes.
fn wait(mut holds: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + patient(Duration::from_secs(3));
    while !holds() {
        assert!(std::time::Instant::now() < deadline, "it does not come to hold");
        std::thread::sleep(Duration::from_millis(5));
    }
}
