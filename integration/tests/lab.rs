//! The lab proves itself: what is reachable without policy is delivered, what rules drop is not.
#![allow(clippy::unwrap_used)]

use std::net::IpAddr;
use std::time::{Duration, Instant};

use flatfell_integration::place::{bridge_address_like, tunnel_address_like};
use flatfell_integration::{Flow, Lab, LabConfig, NodePort, Outcome, Place, Probe, Protocol, Service, Stream, Traffic};

fn lab(nodes: u8, pods: u8) -> Lab {
    Lab::new(LabConfig { nodes, pods, ..LabConfig::default() }).unwrap()
}

/// All protocols to both families of `to`.
fn all_protocols(from: Place, to: Place) -> Vec<Probe> {
    let each = |address: IpAddr| {
        [
            Probe::tcp(from, address, 80),
            Probe::udp(from, address, 53),
            Probe::sctp(from, address, 9),
            Probe::icmp(from, address),
            Probe::new(from, address, Protocol::Other(200), 0),
        ]
    };
    to.addresses().into_iter().flat_map(each).collect()
}

/// Sends all and wants each to arrive at `place` and to be answered.
fn all_arrive(lab: &Lab, probes: &[Probe], place: impl Fn(&Probe) -> Place) {
    for (probe, outcome) in probes.iter().zip(lab.probes(probes).unwrap()) {
        let places: Vec<Place> = outcome.arrivals.iter().map(|arrival| arrival.place).collect();
        assert_eq!(places, [place(probe)], "{probe:?}");
        assert!(outcome.answered, "no answer: {probe:?}");
    }
}

fn drop_in_forward(rule: &str) -> String {
    format!("table inet t {{ chain f {{ type filter hook forward priority -10; {rule} }}; }}")
}

fn delivered(outcomes: &[Outcome]) -> Vec<bool> {
    outcomes.iter().map(|outcome| outcome.delivered).collect()
}

#[test]
fn everybody_reaches_everybody() {
    let start = Instant::now();
    let lab = lab(2, 8);
    assert!(start.elapsed() < Duration::from_secs(3), "built in {:?}", start.elapsed());
    let ends = [Place::pod(1, 0), Place::pod(1, 7), Place::pod(2, 3), Place::Node(1), Place::Node(2), Place::Outside];
    for from in ends {
        for to in ends {
            all_arrive(&lab, &all_protocols(from, to), |_| to);
        }
    }
    let batch: Vec<Probe> = (0..8).flat_map(|slot| all_protocols(Place::pod(1, 0), Place::pod(2, slot))).collect();
    let start = Instant::now();
    all_arrive(&lab, &batch, |probe| {
        (0..8).map(|slot| Place::pod(2, slot)).find(|p| p.addresses().contains(&probe.to)).unwrap()
    });
    assert!(start.elapsed() < Duration::from_millis(500), "{} probes in {:?}", batch.len(), start.elapsed());
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn what_a_rule_drops_is_not_delivered() {
    let lab = lab(2, 3);
    let (a, b, far) = (Place::pod(1, 0), Place::pod(1, 1), Place::pod(2, 0));
    let probes = [all_protocols(a, b), all_protocols(a, far), all_protocols(Place::Outside, a)].concat();
    lab.nft(Place::Node(1), &drop_in_forward("drop;")).unwrap();
    let same_node = probes.len() / 3;
    let expected: Vec<bool> = (0..probes.len()).map(|at| at < same_node).collect();
    assert_eq!(delivered(&lab.probes(&probes).unwrap()), expected, "bridged packets pass by forward");
    lab.call_from_bridge(1, true).unwrap();
    let start = Instant::now();
    let outcomes = lab.probes(&probes).unwrap();
    assert!(start.elapsed() < Duration::from_millis(150), "{:?}", start.elapsed());
    assert_eq!(delivered(&outcomes), vec![false; probes.len()]);
}

#[test]
fn a_dropped_answer_is_no_answer() {
    let lab = lab(2, 1);
    let (a, b) = (Place::pod(1, 0), Place::pod(2, 0));
    lab.nft(Place::Node(1), &drop_in_forward(&format!("ip daddr {0} drop; ip6 daddr {1} drop;", a.v4(), a.v6())))
        .unwrap();
    for outcome in lab.probes(&all_protocols(a, b)).unwrap() {
        assert!(outcome.delivered && !outcome.answered, "{outcome:?}");
    }
}

#[test]
fn conntrack_finds_nothing_invalid() {
    let lab = Lab::new(LabConfig { nodes: 3, pods: 2, bridge_nf_call: true, ..LabConfig::default() }).unwrap();
    for node in 1..=3 {
        lab.nft(Place::Node(node), &drop_in_forward("ct state invalid drop;")).unwrap();
    }
    let from = Place::pod(1, 0);
    for to in [Place::pod(1, 1), Place::pod(2, 0), Place::pod(3, 1), Place::Outside] {
        all_arrive(&lab, &all_protocols(from, to), |_| to);
    }
}

#[test]
fn a_node_is_observed_behind_its_input_hook() {
    let lab = lab(2, 1);
    let (pod, node) = (Place::pod(1, 0), Place::Node(1));
    let like = [address("1.1.1.1"), address("::1")];
    let own = like.into_iter().flat_map(|like| [bridge_address_like(1, like), tunnel_address_like(1, like)]);
    let probes: Vec<Probe> = own.map(|to| Probe::udp(pod, to, 53)).chain(all_protocols(pod, node)).collect();
    assert_eq!(delivered(&lab.probes(&probes).unwrap()), vec![true; probes.len()]);
    lab.nft(node, "table inet t { chain i { type filter hook input priority -10; iifname cni0 drop; }; }").unwrap();
    lab.flush_conntrack(1).unwrap();
    assert_eq!(delivered(&lab.probes(&probes).unwrap()), vec![false; probes.len()]);
}

#[test]
fn the_source_seen_is_the_one_routing_gives() {
    let lab = lab(2, 2);
    let pod = Place::pod(2, 0);
    for to in pod.addresses() {
        for (from, expected) in [
            (Place::pod(1, 0), Place::pod(1, 0).address_like(to)),
            (Place::Node(1), tunnel_address_like(1, to)),
            (Place::Node(2), bridge_address_like(2, to)),
            (Place::Outside, Place::Outside.address_like(to)),
        ] {
            let outcome = lab.probe(&Probe::tcp(from, to, 80)).unwrap();
            assert_eq!(outcome.arrivals[0].source, expected, "{from} to {to}");
            // The plan's idea of a source must be the kernel's.
            let kernel = lab.netns(from).unwrap().run(|| {
                let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = std::net::UdpSocket::bind(any).unwrap();
                socket.connect((to, 80)).unwrap();
                socket.local_addr().unwrap().ip()
            });
            assert_eq!(kernel.unwrap(), expected, "{from} to {to}");
        }
    }
}

#[test]
fn the_outside_host_stands_for_every_address_beyond() {
    let lab = lab(2, 1);
    for to in [address("8.8.8.8"), address("2001:db8::1")] {
        let outcome = lab.probe(&Probe::tcp(Place::pod(1, 0), to, 443)).unwrap();
        assert_eq!((outcome.arrivals[0].place, outcome.answered), (Place::Outside, true));
    }
}

#[test]
fn flannel_masquerades_when_asked_to() {
    let lab = Lab::new(LabConfig { pods: 1, masquerade: true, ..LabConfig::default() }).unwrap();
    for to in Place::Outside.addresses() {
        let outcome = lab.probe(&Probe::udp(Place::pod(1, 0), to, 53)).unwrap();
        assert_eq!((outcome.arrivals[0].source, outcome.answered), (Place::Node(1).address_like(to), true));
    }
    all_arrive(&lab, &all_protocols(Place::pod(1, 0), Place::pod(2, 0)), |_| Place::pod(2, 0));
}

fn service(backends: &[Place], node_port: Option<NodePort>) -> Service {
    let backends = backends.iter().flat_map(|pod| pod.addresses()).map(|ip| (ip, 8080).into()).collect();
    let addresses = vec![address("10.96.0.10"), address("fd00:10:96::10")];
    Service { addresses, port: 80, protocol: "tcp", node_port, backends }
}

#[test]
fn a_service_leads_to_its_backend() {
    let lab = Lab::new(LabConfig { pods: 2, bridge_nf_call: true, ..LabConfig::default() }).unwrap();
    let backend = Place::pod(1, 0);
    let service = service(&[backend], None);
    lab.set_services(std::slice::from_ref(&service)).unwrap();
    for from in [backend, Place::pod(1, 1), Place::pod(2, 0), Place::Node(1), Place::Node(2)] {
        for &to in &service.addresses {
            let outcome = lab.probe(&Probe::tcp(from, to, 80)).unwrap();
            assert!(outcome.answered, "{from} to {to}");
            assert_eq!((outcome.arrivals[0].place, outcome.arrivals[0].port), (backend, 8080));
            if from == backend {
                assert_eq!(outcome.arrivals[0].source, bridge_address_like(1, to), "hairpin is masqueraded");
            }
        }
    }
    lab.set_services(&[]).unwrap();
    assert!(
        lab.probe(&Probe::tcp(Place::pod(2, 0), service.addresses[0], 80))
            .unwrap()
            .arrivals
            .iter()
            .all(|a| a.place == Place::Outside)
    );
}

#[test]
fn two_backends_share_the_load() {
    let lab = lab(2, 2);
    let service = service(&[Place::pod(1, 0), Place::pod(2, 0)], None);
    lab.set_services(std::slice::from_ref(&service)).unwrap();
    let probes: Vec<Probe> = (0..60).map(|_| Probe::tcp(Place::pod(1, 1), service.addresses[0], 80)).collect();
    let outcomes = lab.probes(&probes).unwrap();
    let near = outcomes.iter().filter(|outcome| outcome.arrivals[0].place == Place::pod(1, 0)).count();
    assert!((5..55).contains(&near), "{near} of 60");
}

#[test]
fn a_node_port_shows_whom_its_traffic_policy_says() {
    let lab = lab(2, 1);
    let backend = Place::pod(2, 0);
    for to in [1, 2].into_iter().flat_map(|node| Place::Node(node).addresses()) {
        let probe = Probe::tcp(Place::Outside, to, 30080);
        lab.set_services(&[service(&[backend], Some(NodePort { port: 30080, local: false }))]).unwrap();
        let outcome = lab.probe(&probe).unwrap();
        let entry = [1, 2].into_iter().find(|&node| Place::Node(node).addresses().contains(&to)).unwrap();
        let seen = if entry == 2 { bridge_address_like(2, to) } else { tunnel_address_like(1, to) };
        assert_eq!((outcome.arrivals[0].source, outcome.answered), (seen, true), "{to}");
        lab.set_services(&[service(&[backend], Some(NodePort { port: 30080, local: true }))]).unwrap();
        let outcome = lab.probe(&probe).unwrap();
        let seen: Vec<IpAddr> = outcome.arrivals.iter().map(|arrival| arrival.source).collect();
        let expected = if entry == 2 { vec![Place::Outside.address_like(to)] } else { vec![] };
        assert_eq!(seen, expected, "{to}");
    }
}

#[test]
fn frames_pass_where_nothing_guards() {
    let lab = lab(1, 3);
    let (from, to) = (Place::pod(1, 0), Place::pod(1, 1));
    let group = address("ff02::1");
    let single = [
        Probe::udp(from, to.v4(), 53).in_frame(&[]),
        Probe::udp(from, to.v6(), 53).in_frame(&[0]),
        Probe::udp(from, to.v4(), 53).in_frame(&[7]),
        Probe::udp(from, to.v6(), 53).in_frame(&[0, 0]),
        Probe::tcp(from, to.link_local(), 80).in_frame(&[]),
    ];
    for (probe, outcome) in single.iter().zip(lab.probes(&single).unwrap()) {
        assert_eq!(outcome.arrivals.iter().map(|arrival| arrival.place).collect::<Vec<_>>(), [to], "{probe:?}");
    }
    let all = [
        Probe::new(from, group, Protocol::RouterAdvertisement, 0).in_frame(&[]),
        Probe::udp(from, group, 5353).in_frame(&[]),
        Probe::udp(from, address("10.244.1.255"), 5353).in_frame(&[]),
        Probe::udp(from, address("255.255.255.255"), 5353).in_frame(&[]),
        Probe::udp(from, address("224.0.0.251"), 5353).in_frame(&[]),
    ];
    for (probe, outcome) in all.iter().zip(lab.probes(&all).unwrap()) {
        let places: Vec<Place> = outcome.arrivals.iter().map(|arrival| arrival.place).collect();
        assert!(places.contains(&to) && places.contains(&Place::pod(1, 2)), "{probe:?}: {places:?}");
    }
    let guard = "table bridge t { chain p { type filter hook prerouting priority -300; ether type != { ip, ip6, arp } drop; }; }";
    lab.nft(Place::Node(1), guard).unwrap();
    assert_eq!(delivered(&lab.probes(&single).unwrap()), [true, false, false, false, true]);
}

#[test]
fn a_frame_with_tag_zero_reaches_a_real_socket() {
    let lab = lab(1, 2);
    let (from, to) = (Place::pod(1, 0), Place::pod(1, 1));
    let socket = lab.netns(to).unwrap().run(|| std::net::UdpSocket::bind((to.v4(), 53)).unwrap()).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    lab.probe(&Probe::udp(from, to.v4(), 53).in_frame(&[0])).unwrap();
    let mut buffer = [0; 64];
    assert_eq!(socket.recv_from(&mut buffer).unwrap().1.ip(), IpAddr::from(from.v4()));
}

#[test]
fn fragments_arrive_whole() {
    let lab = Lab::new(LabConfig { pods: 2, bridge_nf_call: true, ..LabConfig::default() }).unwrap();
    lab.nft(Place::Node(1), &drop_in_forward("udp dport 54 drop; ct state invalid drop;")).unwrap();
    let from = Place::pod(1, 0);
    for to in [Place::pod(1, 1), Place::pod(2, 0), Place::Node(1)].iter().flat_map(|place| place.addresses()) {
        let probes = [Probe::udp(from, to, 53).in_fragments(), Probe::udp(from, to, 54).in_fragments()];
        let dropped = !Place::Node(1).addresses().contains(&to);
        assert_eq!(delivered(&lab.probes(&probes).unwrap()), [true, !dropped], "{to}");
    }
}

#[test]
fn pods_come_go_and_are_renumbered() {
    let mut lab = lab(2, 1);
    let near = Place::pod(1, 0);
    let pod = lab.add_pod(2, 7).unwrap();
    all_arrive(&lab, &all_protocols(near, pod), |_| pod);
    assert!(lab.add_pod(2, 7).is_err());
    let more = [address("10.244.2.200"), address("fd00:10:244:2::200")];
    more.iter().for_each(|&more| lab.add_address(pod, more).unwrap());
    for to in more {
        let there = lab.probe(&Probe::tcp(near, to, 80)).unwrap();
        assert!(there.answered, "{to}: {there:?}");
        let back = lab.probe(&Probe::tcp(pod, near.address_like(to), 80).from_address(to)).unwrap();
        assert_eq!((back.arrivals[0].source, back.answered), (to, true));
    }
    lab.renumber(pod, pod.v4().into(), address("10.244.2.99")).unwrap();
    assert!(!lab.probe(&Probe::tcp(near, pod.v4(), 80)).unwrap().answered);
    assert!(lab.probe(&Probe::tcp(near, address("10.244.2.99"), 80)).unwrap().answered);
    lab.remove_pod(pod).unwrap();
    assert!(!lab.probe(&Probe::tcp(near, pod.v6(), 80)).unwrap().delivered);
    all_arrive(&lab, &all_protocols(near, Place::pod(2, 0)), |_| Place::pod(2, 0));
    lab.add_pod(2, 7).unwrap();
    all_arrive(&lab, &all_protocols(near, pod), |_| pod);
}

fn names_of(lab: &Lab) -> Vec<String> {
    lab.places().into_iter().map(|place| lab.netns(place).unwrap().name().to_owned()).collect()
}

fn exists(name: &str) -> bool {
    std::path::Path::new("/run/netns").join(name).exists()
}

#[test]
fn a_panic_leaves_nothing_behind() {
    let names = std::sync::Mutex::new(Vec::new());
    let panicked = std::panic::catch_unwind(|| {
        let lab = lab(1, 1);
        names.lock().unwrap().extend(names_of(&lab));
        panic!("a test that fails");
    });
    let names = names.into_inner().unwrap();
    assert!(panicked.is_err() && names.len() == 3);
    assert!(names.iter().all(|name| !exists(name)));
}

#[test]
fn leftovers_of_the_dead_go_and_of_the_living_stay() {
    let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let left = format!("ff{}-0-n1", child.id());
    let space = flatfell_integration::Netns::create(std::slice::from_ref(&left)).unwrap();
    flatfell_integration::Netns::clean_leftovers();
    assert!(exists(&left));
    child.kill().unwrap();
    child.wait().unwrap();
    flatfell_integration::Netns::clean_leftovers();
    assert!(!exists(&left));
    drop(space);
}

#[test]
fn processes_and_closures_run_inside() {
    let lab = lab(1, 1);
    let place = Place::pod(1, 0);
    let output = lab.netns(place).unwrap().command("ip").args(["-o", "address"]).output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().contains("10.244.1.10/24"));
    let own = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    let before = own();
    assert_ne!(lab.netns(place).unwrap().run(own).unwrap(), before);
    assert_eq!(own(), before);
}

#[test]
fn traffic_counts_every_packet() {
    let lab = lab(2, 1);
    let (client, server) = (Place::pod(1, 0), Place::pod(2, 0));
    lab.nft(Place::Node(1), &drop_in_forward("udp dport 6000 drop;")).unwrap();
    let streams = |port| server.addresses().map(|address| Stream::new(client, server, address, port, Flow::Fresh));
    let traffic = Traffic::start(&lab, &[streams(5000), streams(6000)].concat(), Duration::from_millis(1)).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let reports = traffic.stop(Duration::from_millis(200)).unwrap();
    for report in &reports[..2] {
        assert!(report.lost() == 0 && report.received() > 50, "{} lost", report.lost());
    }
    for report in &reports[2..] {
        assert!(report.received() == 0 && report.lost() > 50, "{} received", report.received());
    }
}
