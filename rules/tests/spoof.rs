//! What pods may send: the sentences and the tracer agree on random frames from random ports, and at each step of a change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flatfell_rules::compile::{Compiled, CounterMeaning, Guard, Layout, PodPort, PodPorts, Slot, compile};
use flatfell_rules::diff::diff;
use flatfell_rules::effective::Effective;
use flatfell_rules::object::ObjectName;
use flatfell_rules::ruleset::Ruleset;
use flatfell_rules::sim::kernel::FakeKernel;
use flatfell_rules::sim::random::Random;
use flatfell_rules::sim::senders::{Behind, Content, Frame, Mac, Six, may_send};
use flatfell_rules::sim::tracer::trace;

const SEEDS: u64 = 400;
const FRAMES: usize = 60;
const PODS: u8 = 6;
const LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9);

fn mac(pod: u8) -> Mac {
    [0x0a, 0, 0, 0, 0, pod]
}

fn four(pod: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, 1, pod)
}

fn six(pod: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, pod.into())
}

fn port(pod: u8) -> String {
    format!("veth{pod}")
}

/// A node with some pods bound, some ports without a pod, some pods without a port.
fn node(random: &mut Random) -> PodPorts {
    let mut ports = PodPorts { bridges: [mac(0)].into(), ..PodPorts::default() };
    for pod in 1..=PODS {
        let mut addresses: BTreeSet<IpAddr> = BTreeSet::new();
        let kind = random.below(4);
        addresses.extend((kind != 1).then(|| IpAddr::V4(four(pod))));
        addresses.extend((kind != 0).then(|| IpAddr::V6(six(pod))));
        addresses.extend(random.once_in(6).then(|| IpAddr::V4(four(100 + pod))));
        match random.below(8) {
            0 => {
                ports.unbound.insert(port(pod));
                ports.unplaced.extend(addresses);
            }
            1 => drop(ports.unbound.insert(port(pod))),
            2 => {}
            way => {
                let name = (way != 3).then(|| ObjectName::new("shop", format!("pod{pod}")));
                let is_free = way == 4;
                ports
                    .bound
                    .insert(port(pod), PodPort { index: pod.into(), mac: mac(pod), addresses, pod: name, is_free });
            }
        }
    }
    ports
}

fn behind(ports: &PodPorts, port: &str) -> Behind {
    if let Some(bound) = ports.bound.get(port) {
        let own = bound.addresses.iter().copied().collect();
        return if bound.is_free { Behind::Free } else { Behind::Pod(bound.mac, own) };
    }
    if !ports.unbound.contains(port) {
        return Behind::Free;
    }
    let macs = ports.bound.values().map(|port| port.mac).chain(ports.bridges.iter().copied());
    Behind::Nobody(ports.unplaced.iter().copied().collect(), macs.collect())
}

/// A port without a pod while sets of addresses change: what is added comes first, what goes goes last.
fn between(before: &PodPorts, after: &PodPorts, port: &str) -> Behind {
    let both = [behind(before, port), behind(after, port)];
    let Some(Behind::Nobody(_, macs)) = both.iter().find(|one| matches!(one, Behind::Nobody(..))) else {
        return both[0].clone();
    };
    let stays = |mac: &&Mac| both.iter().all(|one| !matches!(one, Behind::Nobody(_, macs) if !macs.contains(mac)));
    let macs = macs.iter().filter(stays).copied().collect();
    Behind::Nobody(before.unplaced.union(&after.unplaced).copied().collect(), macs)
}

/// The number of a pod that a frame speaks of: its own, or any, the bridge's 0 included.
fn whose(random: &mut Random, pod: u8) -> u8 {
    if random.once_in(3) { random.pick(&[0, 1, 2, 3, 4, 5, PODS]) } else { pod }
}

/// A frame from the port of a pod: its own, or with something of another's.
fn frame(random: &mut Random, pod: u8) -> Frame {
    let source = mac(whose(random, pod));
    let other = whose(random, pod);
    let content = match random.below(6) {
        0 => {
            let sender = random.pick(&[Ipv4Addr::UNSPECIFIED, four(pod), four(other), four(other)]);
            Content::Arp(mac(whose(random, pod)), sender)
        }
        1 | 2 => Content::Four(random.pick(&[four(other), four(pod), four(100 + pod), Ipv4Addr::UNSPECIFIED])),
        _ => {
            let from = [six(other), six(pod), six(pod), LOCAL, Ipv6Addr::UNSPECIFIED];
            let advertisement = advertisement(random, pod);
            let what = random.pick(&[Six::Tcp, Six::Solicitation, advertisement.clone(), advertisement]);
            Content::Six(random.pick(&from), what)
        }
    };
    Frame { source, content }
}

fn advertisement(random: &mut Random, pod: u8) -> Six {
    let option = |kind: u8, [a, b, c, d, e, f]: Mac| [kind, 1, a, b, c, d, e, f];
    let other = whose(random, pod);
    let own = option(2, mac(pod));
    Six::Advertisement {
        target: random.pick(&[six(pod), six(pod), six(other), LOCAL, Ipv6Addr::LOCALHOST]),
        options: match random.below(8) {
            0 | 1 => Vec::new(),
            2 | 3 => vec![own],
            4 => vec![option(2, mac(whose(random, pod)))],
            5 => vec![option(1, mac(pod))],
            6 => vec![option(14, mac(pod)), option(2, mac(0))],
            _ => vec![own, option(2, mac(0))],
        },
        is_behind: random.once_in(8),
    }
}

fn frames(random: &mut Random) -> Vec<(String, Frame)> {
    let one = |_| {
        let pod = random.pick(&[1, 2, 3, 4, 5, PODS]);
        (port(pod), frame(random, pod))
    };
    (0..FRAMES).map(one).collect()
}

fn compiled(ports: &PodPorts) -> Compiled {
    let names = (1..=PODS).map(port).collect();
    compile(&Effective::default(), &Layout { ports: names, pod_ports: Some(ports.clone()), ..Layout::default() })
}

fn passes(ruleset: &Ruleset, (port, frame): &(String, Frame)) -> bool {
    trace(ruleset, &frame.at(port)).passed
}

#[test]
fn no_frame_says_it_is_another_pods() {
    let (mut passed, mut dropped) = (0, 0);
    for seed in 0..SEEDS {
        let mut random = Random::new(seed);
        let ports = node(&mut random);
        let compiled = compiled(&ports);
        for sent in frames(&mut random) {
            let wanted = may_send(&behind(&ports, &sent.0), &sent.1);
            assert_eq!(passes(&compiled.ruleset, &sent), wanted, "seed {seed}: {sent:?}\n{ports:#?}");
            let counted = trace(&compiled.ruleset, &sent.1.at(&sent.0)).counters;
            let meaning = counted.first().map(|name| CounterMeaning::clone(&compiled.counters[name.as_str()]));
            let pod = ports.bound.get(&sent.0).and_then(|bound| bound.pod.clone());
            let whose = match pod {
                Some(pod) => CounterMeaning::Spoofed { pod },
                None => CounterMeaning::Guard(Guard::UnboundPort),
            };
            assert_eq!((counted.len(), meaning), if wanted { (0, None) } else { (1, Some(whose)) }, "{sent:?}");
            *(if wanted { &mut passed } else { &mut dropped }) += 1;
        }
    }
    assert!(passed > 3000 && dropped > 3000, "{passed} passed, {dropped} dropped");
}

#[test]
fn while_ports_come_and_go_nobody_is_another_and_nobody_is_lost() {
    for seed in 0..SEEDS {
        let mut random = Random::new(seed);
        let (before, after) = (node(&mut random), node(&mut random));
        let (have, want) = (compiled(&before).ruleset, compiled(&after).ruleset);
        let sent = frames(&mut random);
        let change = diff(&have.clone().into(), want);
        assert!(!change.tightens, "flows have nothing to do with frames");
        let mut kernel = FakeKernel { ruleset: have };
        for step in change.steps() {
            kernel.commit(step).unwrap_or_else(|error| panic!("seed {seed}: {error}: {:?}", step.get(error.index)));
            for one in &sent {
                let stands = [&before, &after].map(|ports| behind(ports, &one.0));
                let allowed = stands.each_ref().map(|behind| may_send(behind, &one.1));
                let passed = passes(&kernel.ruleset, one);
                // Whose port becomes another's may lose a frame on the way; nobody gets one through that neither may send.
                let may_pass = allowed.contains(&true) || may_send(&between(&before, &after, &one.0), &one.1);
                let must_pass = allowed == [true; 2] && stands[0] == stands[1];
                assert!(passed <= may_pass && passed >= must_pass, "seed {seed}: {one:?} {stands:?}");
            }
        }
        assert_eq!(&kernel.ruleset, change.result.ruleset());
    }
}

#[test]
fn the_table_remembers_who_was_where() {
    for seed in 0..SEEDS {
        let ports = node(&mut Random::new(seed));
        let table = compiled(&ports).ruleset.tables[&Slot::A.bridge()].clone();
        let known = |port: &PodPort| PodPort { pod: None, is_free: false, ..port.clone() };
        let wanted: BTreeMap<_, _> = ports.bound.iter().map(|(name, port)| (name.clone(), known(port))).collect();
        assert_eq!(PodPorts::of(&table), wanted);
    }
}

#[test]
fn more_pods_than_a_device_list_holds_cost_no_rule_more() {
    let ports = |count: u32| {
        let port = |pod: u32| {
            let [_, _, high, low] = pod.to_be_bytes();
            let addresses = [IpAddr::from([10, 244, high, low])].into();
            let name = Some(ObjectName::new("shop", format!("pod{pod}")));
            (
                format!("veth{pod}"),
                PodPort { index: pod, mac: [2, 0, 0, 0, high, low], addresses, pod: name, is_free: false },
            )
        };
        PodPorts { bound: (1..=count).map(port).collect(), ..PodPorts::default() }
    };
    let base = |count| {
        let ruleset = compiled(&ports(count)).ruleset;
        let table = ruleset.tables[&Slot::A.bridge()].clone();
        (table.chains["frames"].clone(), table.sets["senders"].elements.len(), ruleset)
    };
    let ((few, _, _), (many, senders, ruleset)) = (base(1), base(600));
    assert_eq!((few, senders), (many, 600));
    let sent = |address: [u8; 4]| {
        let frame = Frame { source: [2, 0, 0, 0, 2, 88], content: Content::Four(address.into()) };
        trace(&ruleset, &frame.at("veth600")).passed
    };
    assert!(sent([10, 244, 2, 88]) && !sent([10, 244, 2, 87]));
}
