//! Frames that pods send as somebody else, with real packets.
//!
//! In: frames as raw bytes out of a pod's own interface. Out: whether they reach another pod. What always holds: each frame is sent with the
//! guard off first, where it arrives: what does not arrive with it on was dropped by the guard.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use flatfell::engine::{AntiSpoofing, EngineConfig, ToldPort};
use flatfell_integration::inprocess::{InProcess, defaults, pod};
use flatfell_integration::patience::patient;
use flatfell_integration::raw::{self, Flow, Watch};
use flatfell_integration::{Lab, LabConfig, Place, Probe, packet};
use flatfell_rules::compile::{CounterMeaning, Guard};
use flatfell_rules::object::ObjectName;
use serde_json::Value;

/// Who hears it.
const A: Place = Place::pod(1, 0);
/// Who is forged.
const B: Place = Place::pod(1, 1);
/// Who sends.
const C: Place = Place::pod(1, 2);
const STRANGER: Place = Place::pod(2, 0);
const EVERYBODY: [u8; 6] = [0xff; 6];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

fn strict() -> EngineConfig {
    EngineConfig { anti_spoofing: AntiSpoofing { is_on: true, ..AntiSpoofing::default() }, ..defaults() }
}

fn lab(pods: u8) -> Lab {
    Lab::new(LabConfig { nodes: 1, pods, ..LabConfig::default() }).unwrap()
}

fn start(lab: &Lab, config: EngineConfig) -> InProcess {
    InProcess::start(lab, 1, config, &[pod(A), pod(B), pod(C)]).unwrap()
}

/// A frame, and what it looks like to the pod that hears it, in nft's words.
struct Sent {
    frame: Vec<u8>,
    looks: String,
}

fn ip(source_mac: [u8; 6], source: IpAddr, port: u16) -> Sent {
    let flow = Flow { from: (source, 40_000), to: (A.address_like(source), port) };
    let looks = format!("udp dport {port} {} saddr {source}", if source.is_ipv4() { "ip" } else { "ip6" });
    Sent { frame: packet::frame(A.mac(), source_mac, &[], &raw::udp(flow, b"spoof")), looks }
}

fn arp(source_mac: [u8; 6], (mac, sender): ([u8; 6], Ipv4Addr), operation: u16, target: Ipv4Addr) -> Sent {
    let mut frame = [EVERYBODY, source_mac].concat();
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4]);
    frame.extend(operation.to_be_bytes());
    frame.extend([&mac[..], &sender.octets(), &[0; 6], &target.octets()].concat());
    let text = mac.map(|byte| format!("{byte:02x}")).join(":");
    Sent { frame, looks: format!("arp operation {operation} arp saddr ip {sender} arp saddr ether {text}") }
}

/// A neighbour advertisement with these options. Its owner's own ones look otherwise.
fn advertisement(source: Ipv6Addr, target: Ipv6Addr, options: &[[u8; 8]]) -> Sent {
    let mut body = vec![0x20, 0, 0, 0];
    body.extend(target.octets());
    body.extend(options.concat());
    let flow = Flow { from: (source.into(), 0), to: (ALL_NODES.into(), 0) };
    let frame = packet::frame([0x33, 0x33, 0, 0, 0, 1], C.mac(), &[], &raw::icmp(flow, 136, 0, &body));
    let mut looks = format!(
        "icmpv6 type nd-neighbor-advert ip6 saddr {source} ip6 length {} @th,64,128 {:#x}",
        24 + 8 * options.len(),
        target.to_bits()
    );
    if let Some(option) = options.first() {
        looks.push_str(&format!(" @th,192,64 {:#x}", u64::from_be_bytes(*option)));
    }
    Sent { frame, looks }
}

fn option(kind: u8, [a, b, c, d, e, f]: [u8; 6]) -> [u8; 8] {
    [kind, 1, a, b, c, d, e, f]
}

/// Everything C can say of itself that is not so.
fn forged() -> Vec<Sent> {
    let bridge = [2, 0xff, 0, 1, 0, 1];
    let mut all = vec![
        // Another's MAC, its own address, and the other way round.
        ip(B.mac(), C.v4().into(), 7001),
        ip(bridge, C.v4().into(), 7002),
        ip(C.mac(), B.v4().into(), 7003),
        ip(C.mac(), B.v6().into(), 7004),
        ip(B.mac(), B.v4().into(), 7005),
        ip(B.mac(), C.v6().into(), 7006),
        // Addresses of nobody here.
        ip(C.mac(), STRANGER.v4().into(), 7007),
        ip(C.mac(), STRANGER.v6().into(), 7008),
        ip(C.mac(), Place::Outside.v4().into(), 7009),
        ip(C.mac(), Ipv4Addr::new(10, 244, 1, 1).into(), 7010),
    ];
    for operation in [1, 2] {
        all.extend([
            arp(C.mac(), (C.mac(), B.v4()), operation, A.v4()),
            arp(C.mac(), (B.mac(), C.v4()), operation, A.v4()),
            arp(B.mac(), (C.mac(), C.v4()), operation, B.v4()),
            arp(C.mac(), (C.mac(), Ipv4Addr::new(10, 244, 1, 1)), operation, Ipv4Addr::new(10, 244, 1, 1)),
        ]);
    }
    all.extend([
        advertisement(C.v6(), B.v6(), &[option(2, C.mac())]),
        advertisement(C.v6(), C.v6(), &[option(2, B.mac())]),
        advertisement(C.link_local(), B.v6(), &[]),
        advertisement(B.v6(), C.v6(), &[option(2, C.mac())]),
        // An option in front of the one that counts.
        advertisement(C.v6(), C.v6(), &[option(14, [0; 6]), option(2, B.mac())]),
        advertisement(C.v6(), C.v6(), &[option(2, C.mac()), option(2, B.mac())]),
    ]);
    all
}

/// What a pod sends in a good life.
fn own() -> Vec<Sent> {
    vec![
        ip(C.mac(), C.v4().into(), 7101),
        ip(C.mac(), C.v6().into(), 7102),
        ip(C.mac(), C.link_local().into(), 7103),
        arp(C.mac(), (C.mac(), C.v4()), 1, A.v4()),
        arp(C.mac(), (C.mac(), C.v4()), 2, A.v4()),
        // It announces itself; it asks whether anybody has its address.
        arp(C.mac(), (C.mac(), C.v4()), 1, C.v4()),
        arp(C.mac(), (C.mac(), Ipv4Addr::UNSPECIFIED), 1, C.v4()),
        advertisement(C.v6(), C.v6(), &[option(2, C.mac())]),
        advertisement(C.v6(), C.v6(), &[]),
        advertisement(C.link_local(), C.link_local(), &[option(2, C.mac())]),
    ]
}

/// Which of these arrive at A.
fn arrive(lab: &Lab, all: &[Sent]) -> Vec<bool> {
    let arrives = |sent: &Sent| {
        let watch = Watch::new(lab, A, &sent.looks).unwrap();
        lab.send_frame(C, &sent.frame).unwrap();
        std::thread::sleep(patient(Duration::from_millis(20)));
        watch.count().unwrap() > 0
    };
    all.iter().map(arrives).collect()
}

fn expect(lab: &Lab, all: &[Sent], wanted: bool) {
    let wrong: Vec<&str> = arrive(lab, all)
        .iter()
        .zip(all)
        .filter(|(it, _)| **it != wanted)
        .map(|(_, sent)| sent.looks.as_str())
        .collect();
    assert!(wrong.is_empty(), "arrived: {}, wanted: {wanted}: {wrong:#?}", !wanted);
}

fn spoofed(daemon: &InProcess) -> BTreeMap<String, u64> {
    let snapshot = daemon.engine.counters().unwrap();
    let by_pod = snapshot.iter().filter_map(|(_, meaning, value)| match &**meaning {
        CounterMeaning::Spoofed { pod } => Some((pod.name.to_string(), value.packets)),
        _ => None,
    });
    by_pod.collect()
}

fn reach(lab: &Lab, from: Place, to: Place, wanted: bool) {
    let probes: Vec<Probe> = to
        .addresses()
        .into_iter()
        .flat_map(|ip| [Probe::tcp(from, ip, 80), Probe::udp(from, ip, 53), Probe::icmp(from, ip)])
        .collect();
    for (probe, outcome) in probes.iter().zip(lab.probes(&probes).unwrap()) {
        assert_eq!(outcome.delivered, wanted, "{probe:?}: {outcome:?}");
    }
}

#[test]
fn a_pod_sends_as_itself_and_nobody_else() {
    let lab = lab(3);
    let daemon = start(&lab, EngineConfig { close_unknown: false, ..defaults() });
    expect(&lab, &forged(), true);
    expect(&lab, &own(), true);
    drop(daemon);
    let daemon = start(&lab, EngineConfig { close_unknown: false, ..strict() });
    assert_eq!(daemon.engine.status().warnings, Vec::<String>::new());
    expect(&lab, &forged(), false);
    let dropped = u64::try_from(forged().len()).unwrap();
    assert_eq!(spoofed(&daemon), [("p0", 0), ("p1", 0), ("p2", dropped)].map(|(pod, n)| (pod.to_owned(), n)).into());
    expect(&lab, &own(), true);
    assert_eq!(spoofed(&daemon)["p2"], dropped, "what is its own is not counted");
    // With caches empty everybody is found by ARP and discovery.
    for place in [A, B, C] {
        lab.batch(place, "ip", "neighbour flush all\n").unwrap();
    }
    for (from, to) in [(A, B), (B, C), (C, A)] {
        reach(&lab, from, to, true);
    }
    // A restart takes over who was where from the table.
    drop(daemon);
    let daemon = start(&lab, EngineConfig { close_unknown: false, ..strict() });
    expect(&lab, &forged(), false);
    expect(&lab, &own(), true);
    drop(daemon);
}

#[test]
fn a_pod_that_makes_itself_another_is_cut_off_and_the_other_is_not() {
    let lab = lab(3);
    let daemon = start(&lab, strict());
    // It has CAP_NET_ADMIN, and takes B's address and MAC for its own.
    lab.batch(C, "ip", &format!("address add {}/24 dev eth0\n", B.v4())).unwrap();
    std::thread::sleep(patient(Duration::from_millis(300)));
    expect(&lab, &[ip(C.mac(), B.v4().into(), 7201), arp(C.mac(), (C.mac(), B.v4()), 2, A.v4())], false);
    reach(&lab, B, A, true);
    drop(daemon);
    // Also for a daemon that comes later, and whoever has a table that remembers nothing.
    let daemon = start(&lab, strict());
    expect(&lab, &[ip(C.mac(), B.v4().into(), 7202)], false);
    drop(daemon);
    lab.nft(Place::Node(1), "flush ruleset\n").unwrap();
    let daemon = start(&lab, strict());
    expect(&lab, &[ip(C.mac(), B.v4().into(), 7203)], false);
    reach(&lab, B, A, true);
    drop(daemon);
}

#[test]
fn a_new_interface_under_an_old_address_is_found_and_a_free_namespace_is_free() {
    let mut lab = lab(3);
    let mut daemon = start(&lab, strict());
    lab.remove_pod(C).unwrap();
    lab.add_pod(1, 2).unwrap();
    daemon.until("bound", |status| status.synced).unwrap();
    std::thread::sleep(patient(Duration::from_millis(300)));
    reach(&lab, C, A, true);
    expect(&lab, &[ip(C.mac(), B.v4().into(), 7301)], false);
    daemon.sync().unwrap();
    drop(daemon);
    let exempt = AntiSpoofing { is_on: true, exempt: ["default".to_owned()].into() };
    let daemon = start(&lab, EngineConfig { anti_spoofing: exempt, close_unknown: false, ..defaults() });
    expect(&lab, &forged(), true);
    drop(daemon);
}

#[test]
fn until_a_pod_is_found_a_port_is_nobody_and_the_plugins_word_is_enough() {
    let lab = lab(3);
    // C is no pod that the source shows, and its interface has no address that says who it is.
    lab.batch(C, "ip", "address flush dev eth0 scope global\n").unwrap();
    let daemon = InProcess::start(&lab, 1, strict(), &[pod(A), pod(B)]).unwrap();
    expect(&lab, &[ip(C.mac(), B.v4().into(), 7401), ip(C.mac(), STRANGER.v4().into(), 7402)], false);
    expect(&lab, &[ip(C.mac(), C.v4().into(), 7403), arp(C.mac(), (C.mac(), C.v4()), 2, A.v4())], false);
    assert!(daemon.guarded(Guard::UnboundPort).unwrap() >= 4);
    let told = ToldPort {
        port: "veth2".to_owned(),
        pod: ObjectName::new("default", "p2"),
        mac: Some(C.mac()),
        addresses: C.addresses().into(),
    };
    daemon.engine.pod_ports(vec![told]);
    std::thread::sleep(patient(Duration::from_millis(200)));
    // It is somebody now, though not known: its ARP is its own.
    expect(&lab, &[arp(C.mac(), (C.mac(), C.v4()), 2, A.v4())], true);
    expect(&lab, &[ip(C.mac(), B.v4().into(), 7404), arp(C.mac(), (C.mac(), B.v4()), 2, A.v4())], false);
    assert!(spoofed(&daemon)["p2"] >= 2);
    drop(daemon);
}

#[test]
fn more_pods_than_a_device_list_holds_are_all_held() {
    const MORE: u16 = 300;
    let lab = lab(3);
    // Ports of one more namespace each would take minutes: their other ends lie together in that of B, one address each.
    let space = lab.netns(B).unwrap().name().to_owned();
    let mut wiring = String::new();
    for pod in 0..MORE {
        wiring.push_str(&format!("link add more{pod} type veth peer name m{pod} netns {space}\n"));
        wiring.push_str(&format!("link set more{pod} master cni0 up\n"));
    }
    lab.batch(Place::Node(1), "ip", &wiring).unwrap();
    let address = |pod: u16| Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 244, 7, 0)) + u32::from(pod));
    let addresses: String = (0..MORE).map(|pod| format!("address add {}/32 dev m{pod}\n", address(pod))).collect();
    lab.batch(B, "ip", &addresses).unwrap();
    let more = |pod: u16| {
        let mut object: Value = flatfell_integration::inprocess::pod_with(B, &[address(pod).into()]);
        object["metadata"]["name"] = format!("more{pod}").into();
        object["metadata"]["uid"] = format!("more{pod}").into();
        object
    };
    let objects: Vec<Value> = [pod(A), pod(B), pod(C)].into_iter().chain((0..MORE).map(more)).collect();
    let daemon = InProcess::start(&lab, 1, strict(), &objects).unwrap();
    assert_eq!(daemon.engine.status().warnings, Vec::<String>::new(), "all were found");
    assert_eq!(spoofed(&daemon).len(), usize::from(MORE) + 3);
    expect(&lab, &[ip(C.mac(), B.v4().into(), 7501), ip(C.mac(), address(299).into(), 7502)], false);
    reach(&lab, C, A, true);
    drop(daemon);
}

#[test]
fn large_packets_pass_as_they_did() {
    let lab = lab(3);
    for place in [A, C] {
        lab.batch(place, "ip", "link set eth0 mtu 9000\n").unwrap();
    }
    lab.batch(Place::Node(1), "ip", "link set veth0 mtu 9000\nlink set veth2 mtu 9000\nlink set cni0 mtu 9000\n")
        .unwrap();
    let daemon = start(&lab, strict());
    let large = |source: IpAddr, port: u16| {
        let flow = Flow { from: (source, 40_000), to: (A.address_like(source), port) };
        let frame = packet::frame(A.mac(), C.mac(), &[], &raw::udp(flow, &[7; 8000]));
        Sent { frame, looks: format!("udp dport {port}") }
    };
    expect(&lab, &[large(C.v4().into(), 7601), large(C.v6().into(), 7602)], true);
    expect(&lab, &[large(B.v4().into(), 7603), large(B.v6().into(), 7604)], false);
    drop(daemon);
}
