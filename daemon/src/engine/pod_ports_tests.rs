use std::net::Ipv4Addr;

use flatfell_rules::effective::{EffectivePod, Isolation};

use super::*;
use crate::links::Peer;

/// What the kernel says of each port's other end.
#[derive(Default)]
struct Kernel(BTreeMap<u32, PeerFacts>);

impl Ends for Kernel {
    fn facts(&mut self, veth: &Veth) -> Result<Option<PeerFacts>, LinkError> {
        Ok(self.0.get(&veth.index).cloned())
    }
}

fn ip(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 244, 1, last).into()
}

fn mac(last: u8) -> Mac {
    [2, 0, 0, 0, 0, last]
}

fn name(pod: &str) -> ObjectName {
    ObjectName::new("shop", pod)
}

fn pod(pod: &str, addresses: &[u8]) -> EffectivePod {
    EffectivePod {
        name: name(pod),
        addresses: addresses.iter().map(|last| ip(*last)).collect(),
        ingress: Isolation::default(),
        egress: Isolation::default(),
    }
}

/// A node with ports of these indices, a finder, and what the kernel says.
struct Bed {
    finder: Finder,
    kernel: Kernel,
    ports: BTreeSet<u32>,
}

impl Bed {
    fn new(ports: &[u32]) -> Self {
        let config = AntiSpoofing { is_on: true, exempt: ["free".to_owned()].into() };
        Self { finder: Finder::new(config, true), kernel: Kernel::default(), ports: ports.iter().copied().collect() }
    }

    /// The kernel says that the other end of this port has these addresses, the oldest first.
    fn shows(&mut self, port: u32, own: u8, addresses: &[(u32, u8)]) {
        let addresses = addresses.iter().map(|(since, last)| (*since, ip(*last))).collect();
        self.kernel.0.insert(port, PeerFacts { mac: mac(own), addresses });
    }

    fn find(&mut self, pods: &[EffectivePod]) -> PodPorts {
        let wanted: Effective = pods.iter().cloned().collect();
        let veth =
            |index: &u32| Veth { index: *index, name: format!("veth{index}"), peer: Peer { namespace: 0, index: 2 } };
        let veths = self.ports.iter().map(veth).collect();
        let prefixes = vec!["10.244.1.0/24".parse().expect("a prefix")];
        let node = Node { wanted: &wanted, prefixes, others: [ip(1)].into(), bridges: [mac(1)].into(), veths };
        self.finder.settle(&node, &mut self.kernel);
        self.finder.picture(&node)
    }

    fn tell(&mut self, port: u32, whose: &str, own: Option<u8>, last: u8) {
        let told =
            ToldPort { port: format!("veth{port}"), pod: name(whose), mac: own.map(mac), addresses: [ip(last)].into() };
        self.finder.tell(vec![told]);
    }
}

/// The pod, MAC and addresses that a port is bound to.
fn at(ports: &PodPorts, port: u32) -> Option<(Option<&str>, u8, Vec<IpAddr>)> {
    let bound = ports.bound.get(&format!("veth{port}"))?;
    Some((bound.pod.as_ref().map(|pod| &*pod.name), bound.mac[5], bound.addresses.iter().copied().collect()))
}

#[test]
fn what_a_pod_makes_of_its_interface_later_changes_nothing() {
    let mut bed = Bed::new(&[5, 6]);
    bed.shows(5, 10, &[(100, 10)]);
    let pods = [pod("a", &[10]), pod("b", &[11])];
    assert_eq!(at(&bed.find(&pods), 5), Some((Some("a"), 10, vec![ip(10)])));
    // It takes the other's address and MAC before the other has a port.
    bed.shows(5, 11, &[(90, 11)]);
    bed.shows(6, 11, &[(200, 11)]);
    let found = bed.find(&pods);
    assert_eq!(at(&found, 5), Some((Some("a"), 10, vec![ip(10)])));
    assert_eq!(at(&found, 6), Some((Some("b"), 11, vec![ip(11)])));
    assert!(found.unbound.is_empty() && found.unplaced.is_empty());
}

#[test]
fn who_had_an_address_first_is_right() {
    for (mine, others) in [(100, 200), (200, 100)] {
        let mut bed = Bed::new(&[5, 6]);
        bed.shows(5, 10, &[(mine, 10)]);
        bed.shows(6, 11, &[(others, 10)]);
        let found = bed.find(&[pod("a", &[10])]);
        let (bound, unbound) = if mine < others { (5, "veth6") } else { (6, "veth5") };
        assert!(at(&found, bound).is_some_and(|(pod, ..)| pod == Some("a")), "{found:?}");
        assert_eq!(found.unbound, [unbound.to_owned()].into());
    }
}

#[test]
fn the_plugins_word_comes_first() {
    let mut bed = Bed::new(&[5, 6]);
    bed.shows(5, 10, &[(100, 12)]);
    let pods = [pod("a", &[12])];
    assert!(at(&bed.find(&pods), 5).is_some());
    bed.tell(6, "a", Some(20), 12);
    let found = bed.find(&pods);
    assert_eq!(at(&found, 6), Some((Some("a"), 20, vec![ip(12)])));
    assert_eq!(found.unbound, ["veth5".to_owned()].into(), "it was not the pod");
    // Without a word about the MAC, the kernel's.
    bed.shows(6, 21, &[]);
    bed.tell(6, "b", None, 13);
    assert_eq!(at(&bed.find(&pods), 6), Some((Some("b"), 21, vec![ip(13)])), "the API shows it later");
}

#[test]
fn nobody_gets_a_mac_that_is_anothers_or_nobodys() {
    for taken in [1, 10] {
        let mut bed = Bed::new(&[5, 6]);
        bed.shows(5, 10, &[(100, 10)]);
        bed.shows(6, taken, &[(200, 11)]);
        let found = bed.find(&[pod("a", &[10]), pod("b", &[11])]);
        assert!(at(&found, 5).is_some() && at(&found, 6).is_none(), "{found:?}");
        assert!(bed.finder.fault.is_some());
    }
    let mut bed = Bed::new(&[5]);
    bed.kernel.0.insert(5, PeerFacts { mac: [1, 0, 0, 0, 0, 9], addresses: vec![(1, ip(10))] });
    assert!(at(&bed.find(&[pod("a", &[10])]), 5).is_none());
}

#[test]
fn a_pod_that_the_api_does_not_show_has_one_address_of_its_own() {
    let mut bed = Bed::new(&[5]);
    bed.shows(5, 10, &[(100, 20), (101, 21)]);
    let found = bed.find(&[]);
    assert_eq!(at(&found, 5), Some((None, 10, vec![ip(20)])), "not a second one to keep from others");
    assert_eq!(at(&bed.find(&[pod("a", &[20])]), 5), Some((Some("a"), 10, vec![ip(20)])));
    // The node's own address is no pod's, and one from elsewhere neither.
    let mut bed = Bed::new(&[5]);
    bed.shows(5, 10, &[(100, 1)]);
    assert_eq!(bed.find(&[]).unbound.len(), 1);
}

#[test]
fn a_binding_goes_with_the_port_and_with_the_pods_address() {
    let mut bed = Bed::new(&[5]);
    bed.shows(5, 10, &[(100, 10)]);
    assert!(at(&bed.find(&[pod("a", &[10])]), 5).is_some());
    // A second address comes with the API; a new sandbox has none of the first one's.
    assert_eq!(at(&bed.find(&[pod("a", &[10, 11])]), 5), Some((Some("a"), 10, vec![ip(10), ip(11)])));
    bed.shows(5, 10, &[]);
    let moved = bed.find(&[pod("a", &[12])]);
    assert_eq!((at(&moved, 5), &moved.unplaced), (None, &[ip(12)].into()));
    bed.ports = [6].into();
    bed.shows(6, 12, &[(300, 12)]);
    assert_eq!(at(&bed.find(&[pod("a", &[12])]), 6), Some((Some("a"), 12, vec![ip(12)])));
    // Gone from the API, with its interface still there: it stays who it was.
    assert_eq!(at(&bed.find(&[]), 6), Some((Some("a"), 12, vec![ip(12)])));
    // Until the address is another's.
    assert_eq!(at(&bed.find(&[pod("b", &[12])]), 6), Some((Some("b"), 12, vec![ip(12)])));
}

#[test]
fn what_a_table_remembers_counts_and_a_free_namespace_is_free() {
    let mut bed = Bed::new(&[5, 6]);
    bed.shows(5, 11, &[(90, 11)]);
    let remembered = PodPort { index: 5, mac: mac(10), addresses: [ip(10)].into(), pod: None, is_free: false };
    let gone = PodPort { index: 9, ..remembered.clone() };
    bed.finder.restore([("veth5".to_owned(), remembered), ("veth9".to_owned(), gone)].into());
    let mut free = pod("b", &[11]);
    free.name = ObjectName::new("free", "b");
    bed.shows(6, 12, &[(200, 11)]);
    let found = bed.find(&[pod("a", &[10]), free]);
    assert_eq!(at(&found, 5), Some((Some("a"), 10, vec![ip(10)])), "not who it says it is now");
    assert_eq!(found.bound.values().map(|port| port.is_free).collect::<Vec<_>>(), [false, true]);
    assert_eq!(found.bound.len(), 2);
}
