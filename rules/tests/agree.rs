//! Random clusters: the product's answer is the oracle's.
//!
//! In: seeds (`FLATFELL_SEED`, `FLATFELL_CLUSTERS`). Out: nothing, or the smallest cluster and packet on which the two
//! differ. What always holds: the oracle sees raw objects only, so that parsing is judged too.

use std::env;
use std::io::Write;
use std::net::IpAddr;
use std::ops::Range;

use flatfell_rules::compile::{Layout, Slot, compile};
use flatfell_rules::diff::plan;
use flatfell_rules::effective::{Effective, evaluate};
use flatfell_rules::ids::{COUNTERS, Ids, Origin};
use flatfell_rules::index::{Change, Index};
use flatfell_rules::judge::{Flow, Judge, Judgement};
use flatfell_rules::mark::{Generation, allowed_mark, id_mask};
use flatfell_rules::object::Protocol;
use flatfell_rules::parse;
use flatfell_rules::policy::Direction;
use flatfell_rules::ranges::PodRanges;
use flatfell_rules::ruleset::Value::Mark;
use flatfell_rules::ruleset::{Datum, Element, Ruleset};
use flatfell_rules::sim::cluster::packet::{passed, traces, untracked};
use flatfell_rules::sim::cluster::{self, Cluster, Packet, Path, Probe};
use flatfell_rules::sim::coverage::Coverage;
use flatfell_rules::sim::generate::{Random, change, cluster, probes};
use flatfell_rules::sim::kernel::FakeKernel;
use flatfell_rules::sim::oracle::{Oracle, Origins};
use flatfell_rules::sim::shrink::{show, shrink};
use ipnetwork::IpNetwork;
use serde_json::Value;

/// Packets asked about in each cluster.
const PROBES: usize = 20;

/// Asks somebody whether packets pass on the cluster's node.
type Answer<'a> = dyn Fn(&Cluster, &[Probe]) -> Vec<bool> + 'a;

fn from_environment(name: &str, otherwise: u64) -> u64 {
    env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

/// The seeds of a test's clusters.
fn seeds(otherwise: u64) -> Range<u64> {
    let first = from_environment("FLATFELL_SEED", 1);
    first..first + from_environment("FLATFELL_CLUSTERS", otherwise)
}

/// Compares somebody's answers with the oracle's, on the packets that `asked` leaves: of each cluster, and of what becomes
/// of it by one change.
fn agree(seeds: Range<u64>, asked: impl Fn(&Probe) -> bool, answer: &Answer<'_>) {
    for seed in seeds {
        let mut random = Random::new(seed);
        let cluster = cluster(&mut random);
        let probes: Vec<Probe> = probes(&mut random, &cluster, PROBES).into_iter().filter(&asked).collect();
        compare(seed, &cluster, &probes, answer);
        compare(seed, &change(&mut random, &cluster), &probes, answer);
    }
}

fn compare(seed: u64, cluster: &Cluster, probes: &[Probe], answer: &Answer<'_>) {
    let oracle = Oracle::new(cluster);
    for (probe, answered) in probes.iter().zip(answer(cluster, probes)) {
        if oracle.allowed(probe) == answered {
            continue;
        }
        let differ = |cluster: &Cluster, probe: &Probe| {
            Oracle::new(cluster).allowed(probe) != answer(cluster, std::slice::from_ref(probe))[0]
        };
        let (cluster, probe) = shrink(cluster, probe, differ);
        let verdict = Oracle::new(&cluster).verdict(&probe);
        panic!("seed {seed}: the oracle says {verdict:?}, the product the opposite\n{}", show(&cluster, &probe));
    }
}

/// One object as the index takes it; `None` where nothing of it can be used.
fn understood(object: &Value) -> Option<Change> {
    match object["kind"].as_str()? {
        "Pod" => parse::pod(object).ok().map(|pod| Change::UpsertPod(pod.value)),
        "Namespace" => parse::namespace(object).ok().map(|namespace| Change::UpsertNamespace(namespace.value)),
        "NetworkPolicy" => parse::policy(object).ok().map(|policy| Change::UpsertPolicy(policy.value)),
        _ => None,
    }
}

/// What holds on the cluster's node, by parse, index and effective.
fn effective(cluster: &Cluster) -> Effective {
    let mut index = Index::new(cluster.node.clone());
    for object in &cluster.objects {
        if let Some(change) = understood(object) {
            index.apply(change);
        }
    }
    evaluate(&index)
}

/// A probe as the judge takes it.
fn flow(probe: &Probe, path: Path) -> Flow {
    let protocol = match (probe.packet, probe.source.is_ipv4()) {
        (Packet::Tcp, _) => Protocol::Tcp.number(),
        (Packet::Udp, _) => Protocol::Udp.number(),
        (Packet::Sctp, _) => Protocol::Sctp.number(),
        (_, true) => 1,
        (_, false) => 58,
    };
    Flow {
        source: probe.source,
        destination: probe.destination,
        protocol,
        port: probe.packet.protocol().map(|_| probe.port),
        from_node: path == Path::Output,
        to_node: path == Path::Input,
    }
}

/// Where the lab's plan has the pods of the cluster's node.
fn pod_ranges(cluster: &Cluster) -> PodRanges {
    let node = cluster.nodes.iter().find(|node| node.name == cluster.node).filter(|_| !cluster.unknown_open);
    let range = |gateway: &IpAddr| {
        let length = if gateway.is_ipv4() { 24 } else { 64 };
        IpNetwork::new(*gateway, length).expect("a prefix")
    };
    let prefixes: Vec<IpNetwork> = node.into_iter().flat_map(|node| node.gateway.iter().map(range)).collect();
    let broadcast = prefixes.iter().filter(|prefix| prefix.is_ipv4()).map(IpNetwork::broadcast);
    PodRanges::new(&prefixes, node.into_iter().flat_map(cluster::Node::addresses).chain(broadcast))
}

/// The judge's answers.
fn judged(cluster: &Cluster, probes: &[Probe]) -> Vec<bool> {
    let effective = effective(cluster);
    let ranges = pod_ranges(cluster);
    let judge = Judge::new(&effective, !cluster.own_node_open).within(&ranges);
    let passes = |probe: &Probe| match probe.path(&cluster.node) {
        Path::Elsewhere => true,
        path => judge.judge(&flow(probe, path)).is_allowed(),
    };
    probes.iter().map(passes).collect()
}

/// The judge speaks of connections between addresses; discovery, link-local and group addresses are the ruleset's.
fn between_addresses(probe: &Probe) -> bool {
    let global = |address: std::net::IpAddr| match address {
        std::net::IpAddr::V4(four) => !four.is_multicast() && four.octets()[3] != 255,
        std::net::IpAddr::V6(six) => !six.is_multicast() && !six.is_unicast_link_local(),
    };
    let discovery = probe.packet.protocol().is_none() && probe.packet != Packet::Echo;
    !discovery && global(probe.source) && global(probe.destination)
}

#[test]
fn the_judge_agrees_with_the_oracle() {
    agree(seeds(1000), between_addresses, &judged);
}

/// The rules of the cluster's node.
fn compiled(cluster: &Cluster, generation: u8) -> Ruleset {
    let effective = effective(cluster);
    let layout = Layout {
        bridges: ["cni0".to_owned()].into(),
        own_node_egress: !cluster.own_node_open,
        pod_ranges: pod_ranges(cluster),
        generation: Generation::new(generation).expect("a generation"),
        ids: Ids::fresh(&effective),
        ..Layout::default()
    };
    compile(&effective, &layout).ruleset
}

/// The answers of the compiled rules.
fn traced(cluster: &Cluster, probes: &[Probe]) -> Vec<bool> {
    let ruleset = compiled(cluster, 7);
    probes.iter().map(|probe| passed(&traces(&ruleset, cluster, probe))).collect()
}

/// The name of the counter that a mark has for this half; `None` where the half has no id.
fn counted_for(ruleset: &Ruleset, mark: u32, half: Direction) -> Option<&str> {
    let key = Element::key([Mark(mark & id_mask(half))]);
    let table = &ruleset.tables[&Slot::A.inet()];
    match table.sets[COUNTERS].elements.get(&key) {
        Some(Datum::Counter(name)) if mark & id_mask(half) != 0 => Some(name),
        _ => None,
    }
}

/// Compares the mark that compiled rules leave with the judge's and with what the specification lets count.
fn compare_origins(seed: u64, cluster: &Cluster, probes: &[Probe]) -> usize {
    let effective = effective(cluster);
    let ids = Ids::fresh(&effective);
    let (ruleset, ranges) = (compiled(cluster, 7), pod_ranges(cluster));
    let judge = Judge::new(&effective, !cluster.own_node_open).within(&ranges);
    let oracle = Oracle::new(cluster);
    let mut compared = 0;
    for probe in probes.iter().filter(|probe| between_addresses(probe) && oracle.allowed(probe)) {
        let path = probe.path(&cluster.node);
        let Some(mark) = traces(&ruleset, cluster, probe).first().and_then(|trace| trace.mark) else { continue };
        let Judgement::Allowed { egress, ingress } = judge.judge(&flow(probe, path)) else {
            panic!("seed {seed}: the judge denies\n{}", show(cluster, probe));
        };
        let mut bits = 0;
        for (half, origin) in [(Direction::Egress, egress), (Direction::Ingress, ingress)] {
            let may = oracle.origins(probe, half == Direction::Egress);
            assert_eq!(origin.is_some(), may.is_some(), "seed {seed}: {half}\n{}", show(cluster, probe));
            let (Some(origin), Some(may)) = (origin, may) else { continue };
            bits |= ids.written(half, origin);
            compared += 1;
            assert!(
                lets(origin, &may, &effective),
                "seed {seed}: {half} {origin:?}, not {may:?}\n{}",
                show(cluster, probe)
            );
            let name = origin.names(half).counter;
            assert_eq!(counted_for(&ruleset, mark, half), Some(name.as_ref()), "seed {seed}\n{}", show(cluster, probe));
        }
        if path != Path::Output && bits != 0 {
            let wanted = allowed_mark(Generation::new(7).expect("a generation"), bits);
            assert_eq!(mark, wanted, "seed {seed}: {mark:#x}, not {wanted:#x}\n{}", show(cluster, probe));
        }
    }
    compared
}

/// Whether the specification lets a connection count for this.
fn lets(origin: Origin<'_>, may: &Origins, effective: &Effective) -> bool {
    match origin {
        Origin::Default(pod) => may.rules.is_empty() && may.pod == pod.to_string(),
        Origin::Rule(identity) => {
            let pod = effective.pods().values().find(|pod| pod.name.to_string() == may.pod).expect("a pod");
            let mut rules = pod.isolation(identity.direction).rules.iter();
            let rule = rules.find(|rule| *rule.identity == *identity).expect("a rule");
            may.rules.contains(&(identity.policy.to_string(), rule.index))
        }
    }
}

/// Compiled rules, judge and specification agree for whom each half of an allowed connection counts.
#[test]
fn halves_count_for_the_rule_that_lets_them_through() {
    let mut compared = 0;
    for seed in seeds(2000) {
        let mut random = Random::new(seed);
        let cluster = cluster(&mut random);
        let probes = probes(&mut random, &cluster, PROBES);
        compared += compare_origins(seed, &cluster, &probes);
        compared += compare_origins(seed, &change(&mut random, &cluster), &probes);
    }
    assert!(compared > 1000, "{compared} halves");
}

/// Says what decided the verdicts, past the test harness, which hides what passing tests print.
fn report(coverage: &Coverage, seeds: &Range<u64>) {
    let text = format!("oracle = tracer: seeds {} to {}\n{coverage}", seeds.start, seeds.end - 1);
    std::io::stderr().write_all(text.as_bytes()).expect("standard error");
}

/// Compares, and counts what decided, over a part of the seeds.
fn compare_and_count(seeds: Range<u64>) -> Coverage {
    agree(seeds.clone(), |_| true, &traced);
    Coverage::measure(seeds, PROBES)
}

#[test]
fn the_compiled_rules_agree_with_the_oracle() {
    let seeds = seeds(10_000);
    let middle = seeds.start.midpoint(seeds.end);
    let coverage = std::thread::scope(|threads| {
        let first = threads.spawn(|| compare_and_count(seeds.start..middle));
        let second = compare_and_count(middle..seeds.end);
        let mut coverage = first.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        coverage.merge(&second);
        coverage
    });
    report(&coverage, &seeds);
    if seeds.end - seeds.start >= 500 {
        coverage.assert_bars();
    }
}

/// A packet that conntrack does not know is judged as a first one: no rule that needs a flow opens the way.
/// Without such pods nothing here would say that the split decides like the list.
#[test]
fn random_clusters_have_pods_whose_rules_are_split_by_port() {
    let is_split = |seed: &u64| {
        let ruleset = compiled(&cluster(&mut Random::new(*seed)), 1);
        ruleset.tables.values().any(|table| table.sets.keys().any(|name| name.contains("gress-ports-")))
    };
    let count = (0..200).filter(is_split).count();
    assert!(count >= 10, "{count} of 200");
}

#[test]
fn untracked_packets_are_judged_like_new_ones() {
    let answers = |cluster: &Cluster, probes: &[Probe]| {
        let ruleset = compiled(cluster, 7);
        probes.iter().map(|probe| passed(&untracked(&ruleset, cluster, probe))).collect::<Vec<_>>()
    };
    agree(seeds(1000), |_| true, &answers);
}

/// Whether the pods behind a probe's addresses are the same in both policies, with the same addresses.
fn same_pods(before: &Effective, after: &Effective, probe: &Probe) -> bool {
    let owner = |effective: &Effective, address: &IpAddr| {
        let pod = effective.pod_at(*address);
        pod.map(|pod| (pod.name.clone(), pod.addresses.clone()))
    };
    [probe.source, probe.destination].iter().all(|address| owner(before, address) == owner(after, address))
}

/// A change in force in part: a packet that both policies forbid does not pass; one that both allow passes, unless an
/// address of it changes hands (until the last step the old pod's rules still have it: fewer packets pass, not more).
fn between(seed: u64, before: &Cluster, after: &Cluster, probes: &[Probe]) {
    let have = compiled(before, 7);
    let change = plan(&have.clone().into(), compiled(after, 7), || compiled(after, 8));
    let (was, becomes) = (Oracle::new(before), Oracle::new(after));
    let (old, new) = (effective(before), effective(after));
    let steady: Vec<&Probe> = probes
        .iter()
        .filter(|probe| was.allowed(probe) == becomes.allowed(probe))
        .filter(|probe| !was.allowed(probe) || same_pods(&old, &new, probe))
        .collect();
    let mut kernel = FakeKernel { ruleset: have };
    for (name, step) in [("make", &change.make), ("switch", &change.switch), ("clean", &change.clean)] {
        if let Err(error) = kernel.commit(step) {
            panic!("seed {seed}: {name} is refused: {error}: {:?}", step.get(error.index));
        }
        for probe in &steady {
            let passes = passed(&traces(&kernel.ruleset, after, probe));
            assert_eq!(passes, was.allowed(probe), "seed {seed}: after {name}\n{}", show(after, probe));
        }
    }
    let end = compiled(after, if change.tightens { 8 } else { 7 });
    assert_eq!(kernel.ruleset, end, "seed {seed}: the end is not what was wanted");
    assert_eq!(*change.result.ruleset(), end, "seed {seed}: the change does not know its end");
}

#[test]
fn no_step_of_a_change_shows_packets_what_neither_policy_says() {
    for seed in seeds(1000) {
        let mut random = Random::new(seed);
        let before = cluster(&mut random);
        let probes = probes(&mut random, &before, PROBES);
        let after = change(&mut random, &before);
        between(seed, &before, &after, &probes);
        let (own_node_open, unknown_open) = (before.own_node_open, before.unknown_open);
        let other = Cluster { own_node_open, unknown_open, ..cluster(&mut random) };
        between(seed, &after, &other, &probes);
    }
}

/// A change that nothing noticed until it was in force tightens whenever it forbids what was allowed.
#[test]
fn a_change_that_forbids_something_tightens() {
    let mut tightened = 0;
    for seed in seeds(1000) {
        let mut random = Random::new(seed);
        let before = cluster(&mut random);
        let probes = probes(&mut random, &before, PROBES);
        let after = change(&mut random, &before);
        let change = plan(&compiled(&before, 7).into(), compiled(&after, 7), || compiled(&after, 8));
        let (was, becomes) = (Oracle::new(&before), Oracle::new(&after));
        for probe in probes.iter().filter(|probe| was.allowed(probe) && !becomes.allowed(probe)) {
            tightened += 1;
            assert!(
                change.tightens,
                "seed {seed}: does not tighten\n{}\nand after\n{}",
                show(&before, probe),
                show(&after, probe)
            );
        }
    }
    assert!(tightened > 0, "no change forbade anything");
}

/// What an object is known by.
fn identity(object: &Value) -> (Value, Value, Value) {
    let metadata = &object["metadata"];
    (object["kind"].clone(), metadata.get("namespace").cloned().unwrap_or("default".into()), metadata["name"].clone())
}

/// What the index is told when an object leaves the API.
fn gone(object: &Value) -> Option<Change> {
    Some(match understood(object)? {
        Change::UpsertPod(pod) => Change::DeletePod(pod.name),
        Change::UpsertNamespace(namespace) => Change::DeleteNamespace(namespace.name),
        Change::UpsertPolicy(policy) => Change::DeletePolicy(policy.name),
        _ => return None,
    })
}

/// What must still hold of an object that left the API: a pod of this node stays isolated as a terminal one does; a policy
/// keeps its effect while its namespace is going and has pods.
fn afterlife(object: &Value, after: &Cluster) -> Option<Value> {
    let namespace = identity(object).1;
    let going = |it: &Value| it["metadata"]["name"] == namespace && !it["metadata"]["deletionTimestamp"].is_null();
    let stays = match object["kind"].as_str()? {
        "Pod" => object["spec"]["nodeName"] == after.node.as_str(),
        "NetworkPolicy" => {
            after.kind("Namespace").any(going) && after.kind("Pod").any(|pod| identity(pod).1 == namespace)
        }
        _ => false,
    };
    let mut object = object.clone();
    if object["kind"] == "Pod" {
        object["status"]["phase"] = "Failed".into();
    }
    stays.then_some(object)
}

/// Whether a pod left whose address another pod names too: the semantics do not say which of two ended pods it stays with.
fn leaves_a_shared_address(before: &Cluster, after: &Cluster) -> bool {
    let mut left = before.kind("Pod").filter(|pod| !after.objects.iter().any(|it| identity(it) == identity(pod)));
    let named = |status: &Value| {
        let many = status["podIPs"].as_array().into_iter().flatten().map(|entry| &entry["ip"]);
        many.chain([&status["podIP"]]).filter(|address| !address.is_null()).cloned().collect::<Vec<_>>()
    };
    let still: Vec<Value> = after.kind("Pod").flat_map(|pod| named(&pod["status"])).collect();
    let shares = |pod: &Value| named(&pod["status"]).iter().any(|address| still.contains(address));
    left.any(shares)
}

/// The index of one cluster, told what became another, and that other cluster with what must still hold of the first.
fn told(before: &Cluster, after: &Cluster) -> (Index, Cluster) {
    let mut index = Index::new(before.node.clone());
    for object in &before.objects {
        index.apply(understood(object).expect("an object"));
    }
    let mut expected = after.clone();
    let stays = |object: &Value| after.objects.iter().any(|it| identity(it) == identity(object));
    for object in before.objects.iter().filter(|object| !stays(object)) {
        index.apply(gone(object).expect("an object"));
        expected.objects.extend(afterlife(object, after));
    }
    for object in after.objects.iter().filter(|object| !before.objects.contains(object)) {
        index.apply(understood(object).expect("an object"));
    }
    (index, expected)
}

#[test]
fn an_index_that_was_told_of_a_change_agrees() {
    for seed in seeds(1000) {
        let mut random = Random::new(seed);
        let before = cluster(&mut random);
        let after = change(&mut random, &before);
        if leaves_a_shared_address(&before, &after) {
            continue;
        }
        let (index, expected) = told(&before, &after);
        let effective = evaluate(&index);
        let (oracle, ranges) = (Oracle::new(&expected), pod_ranges(&expected));
        let judge = Judge::new(&effective, !expected.own_node_open).within(&ranges);
        for probe in probes(&mut random, &before, PROBES).iter().filter(|probe| between_addresses(probe)) {
            let path = probe.path(&before.node);
            let passes = path == Path::Elsewhere || judge.judge(&flow(probe, path)).is_allowed();
            if oracle.allowed(probe) != passes {
                let verdict = oracle.verdict(probe);
                panic!("seed {seed}: the oracle says {verdict:?}\n{}", show(&expected, probe));
            }
        }
    }
}
