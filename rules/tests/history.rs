//! Random histories of changes: at each step what was patched is what evaluating and compiling from nothing give.
//!
//! In: seeds (`FLATFELL_SEED`, `FLATFELL_HISTORIES`). Out: nothing, or the seed and step where the two differ. What always
//! holds: names and addresses recur, so that pods overtake each other, leave ghosts and come back.

use std::collections::BTreeSet;
use std::env;
use std::net::IpAddr;

use flatfell_rules::compile::{Compiled, Compiler, Layout, compile};
use flatfell_rules::effective::{Effective, Evaluator, evaluate};
use flatfell_rules::ids::{Allocator, Claims};
use flatfell_rules::index::{Change, Index};
use flatfell_rules::object::{Mode, ObjectName};
use flatfell_rules::parse;
use flatfell_rules::sim::cluster::Cluster;
use flatfell_rules::sim::generate::{Random, change, cluster};
use serde_json::Value;

/// Changes in a history.
const STEPS: usize = 80;

fn number(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

fn understood(object: &Value) -> Change {
    match object["kind"].as_str().expect("a kind") {
        "Pod" => Change::UpsertPod(parse::pod(object).expect("a pod").value),
        "Namespace" => Change::UpsertNamespace(parse::namespace(object).expect("a namespace").value),
        "NetworkPolicy" => Change::UpsertPolicy(parse::policy(object).expect("a policy").value),
        other => panic!("no kind {other}"),
    }
}

fn gone(object: &Value) -> Change {
    match understood(object) {
        Change::UpsertPod(pod) => Change::DeletePod(pod.name),
        Change::UpsertNamespace(namespace) => Change::DeleteNamespace(namespace.name),
        Change::UpsertPolicy(policy) => Change::DeletePolicy(policy.name),
        other => other,
    }
}

/// An address that some pod names.
fn address(random: &mut Random, clusters: &[Cluster]) -> Option<IpAddr> {
    let pods: Vec<&Value> = clusters.iter().flat_map(|cluster| cluster.kind("Pod")).collect();
    let address = &random.pick(&pods)["status"]["podIPs"][random.below(2)]["ip"];
    address.as_str().map(|text| text.parse().expect("an address"))
}

/// A pod with the addresses, the phase and the node of another.
fn moved(random: &mut Random, clusters: &[Cluster]) -> Value {
    let pods: Vec<&Value> = clusters.iter().flat_map(|cluster| cluster.kind("Pod")).collect();
    let (mut pod, other) = (Value::clone(random.pick::<&Value>(&pods)), random.pick::<&Value>(&pods));
    pod["status"] = other["status"].clone();
    pod["spec"]["hostNetwork"] = other["spec"]["hostNetwork"].clone();
    pod
}

/// The next thing that happens: objects of several clusters come, go and turn into each other.
fn next(random: &mut Random, clusters: &mut [Cluster]) -> Option<Change> {
    let which = random.below(clusters.len());
    match random.below(20) {
        0 | 1 => address(random, clusters).map(Change::InterfaceGone),
        2..=6 => Some(gone(random.pick(&clusters[which].objects))),
        7 | 8 => {
            let changed = change(random, &clusters[which]);
            let news = changed.objects.iter().find(|object| !clusters[which].objects.contains(object)).map(understood);
            if !changed.objects.is_empty() {
                clusters[which] = changed;
            }
            news
        }
        9 | 10 => Some(understood(&moved(random, clusters))),
        _ => Some(understood(random.pick(&clusters[which].objects))),
    }
}

/// What the engine keeps from one turn to the next.
struct Followed {
    compiler: Compiler,
    allocator: Allocator,
    layout: Layout,
}

impl Followed {
    /// So few ids that they run out.
    fn new() -> Self {
        Self { compiler: Compiler::default(), allocator: Allocator::new(12), layout: Layout::default() }
    }

    /// What is compiled now, which is what is compiled from nothing.
    fn follow(&mut self, random: &mut Random, effective: &Effective) -> Compiled {
        let claims = self.compiler.follow(effective);
        assert_eq!(*claims, Claims::of(effective));
        self.layout.ids = self.allocator.assign(claims);
        if random.percent(20) {
            self.layout.generation = self.layout.generation.next();
            self.allocator.release();
        }
        if random.percent(5) {
            self.layout.slot = self.layout.slot.other();
            self.layout.ports = (0..random.below(4)).map(|number| format!("veth{number}")).collect();
        }
        let compiled = self.compiler.compile(&self.layout);
        assert_eq!(compiled, compile(effective, &self.layout));
        compiled
    }
}

/// The names of the policies that are in the API.
type Present = BTreeSet<ObjectName>;

fn note(present: &mut Present, change: &Change) {
    match change {
        Change::UpsertPolicy(policy) => drop(present.insert(policy.name.clone())),
        Change::DeletePolicy(name) => drop(present.remove(name)),
        _ => {}
    }
}

/// Whether every policy that left the API and keeps its effect does so for somebody: its namespace is going and not
/// empty. A pod that left the API lives on among the local pods.
fn keeps_for_somebody(index: &Index, present: &Present, effective: &Effective) -> bool {
    let inhabited = |namespace: &str| {
        let names = index.pods().map(|pod| &pod.name).chain(effective.pods().keys());
        names.into_iter().any(|name| *name.namespace == *namespace)
    };
    let stays = |namespace: &str| index.namespace(namespace).is_some_and(|namespace| !namespace.terminating);
    let mut kept = index.policies().filter(|policy| !present.contains(&policy.name));
    kept.all(|policy| inhabited(&policy.name.namespace) && !stays(&policy.name.namespace))
}

/// Whether the addresses beside the pods are the pods' addresses.
fn is_consistent(effective: &Effective) -> bool {
    let of_pods: usize = effective.pods().values().map(|pod| pod.addresses.len()).sum();
    let own = |(address, name): (&IpAddr, _)| effective.pods()[name].addresses.contains(address);
    effective.local().len() == of_pods && effective.local().iter().all(own)
}

/// Enforced, audited and refused policies, each looked at.
fn counted(index: &Index) -> [usize; 3] {
    let mut counted = [0; 3];
    for policy in index.policies() {
        let audits = |name: &str| index.namespace(name).is_some_and(|namespace| namespace.mode == Mode::Audit);
        let audited = policy.mode == Mode::Audit || audits(&policy.name.namespace);
        counted[if policy.refusal.is_some() { 2 } else { usize::from(audited) }] += 1;
    }
    counted
}

#[test]
fn what_is_patched_is_what_is_made_anew() {
    let first = number("FLATFELL_SEED", 1);
    let mut seen = (0, 0, 0, 0);
    for seed in first..first + number("FLATFELL_HISTORIES", 400) {
        let mut random = Random::new(seed);
        let mut clusters: Vec<Cluster> = (0..3).map(|_| cluster(&mut random)).collect();
        let index = Index::new(clusters[0].node.clone()).keep_policies_of_going_namespaces(random.percent(80));
        let mut evaluator = Evaluator::new(index);
        let mut followed = Followed::new();
        let mut present = Present::new();
        for step in 0..STEPS {
            let before = evaluator.effective();
            // Often one, sometimes a burst.
            let burst = if random.percent(20) { random.between(2, 12) } else { 1 };
            let mut changed = false;
            for change in (0..burst).filter_map(|_| next(&mut random, &mut clusters)).collect::<Vec<_>>() {
                note(&mut present, &change);
                changed |= evaluator.apply(change);
            }
            let after = evaluator.effective();
            assert_eq!(after, evaluate(evaluator.index()), "seed {seed}, step {step}");
            assert!(is_consistent(&after), "seed {seed}, step {step}: {after:?}");
            assert!(changed || after == before, "seed {seed}, step {step}: a change that nobody was told of");
            let compiled = followed.follow(&mut random, &after);
            let chains = compiled.ruleset.tables.values().map(|table| table.chains.len()).sum::<usize>();
            let index = evaluator.index();
            assert!(keeps_for_somebody(index, &present, &after), "seed {seed}, step {step}");
            assert_eq!(
                index.policy_counts().modes().map(|(_, count)| count),
                counted(index),
                "seed {seed}, step {step}"
            );
            let elements = after.peers.values().map(|addresses| addresses.len()).sum::<usize>();
            let endpoints = after.endpoints.values().map(|endpoints| endpoints.len()).sum::<usize>();
            let ghosts = after.pods().keys().filter(|name| name.name.contains('~')).count();
            seen = (seen.0 + usize::from(after != before), seen.1 + elements, seen.2 + endpoints, seen.3 + ghosts);
            assert!(chains > after.pods().len(), "seed {seed}, step {step}: nothing was compiled");
        }
    }
    assert!(seen.0 > 0 && seen.1 > 0 && seen.2 > 0 && seen.3 > 0, "too little happened: {seen:?}");
}
