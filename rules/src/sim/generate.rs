//! Random clusters, changes of them and packets, from a seed.
//!
//! In: a seed. Out: [`Cluster`]s and [`Probe`]s. What always holds: the same seed gives the same values on every machine;
//! weights are set so that every row of the semantics decides verdicts (see [`super::coverage`]); each pod address is one of
//! the lab's (see [`super::cluster::pod_v4`]).

mod objects;
mod policies;
mod probes;

use serde_json::{Value, json};

use super::cluster::{Cluster, Probe};
pub use probes::probe;

/// A small generator of pseudo-random numbers (splitmix64).
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit` (which is not 0).
    pub fn below(&mut self, limit: usize) -> usize {
        let limit = u64::try_from(limit).unwrap_or(u64::MAX);
        usize::try_from(self.bits() % limit).unwrap_or_default()
    }

    /// A number of a range, both ends included.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    /// True so many times in a hundred.
    pub fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    /// One of some.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// One of some, each as often as its weight says.
    pub fn weighted<'a, T>(&mut self, from: &'a [(usize, T)]) -> &'a T {
        let mut left = self.below(from.iter().map(|(weight, _)| weight).sum());
        for (weight, item) in from {
            match left.checked_sub(*weight) {
                Some(rest) => left = rest,
                None => return item,
            }
        }
        &from[0].1
    }
}

/// Which families the pods of a cluster have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Families {
    Four,
    Six,
    Both,
}

/// A random cluster: 2 to 6 namespaces, 3 to 20 pods on 3 nodes, 2 to 9 policies.
pub fn cluster(random: &mut Random) -> Cluster {
    let mut cluster =
        Cluster { own_node_open: random.percent(8), unknown_open: random.percent(15), ..Cluster::empty() };
    let families = *random.weighted(&[(20, Families::Four), (15, Families::Six), (65, Families::Both)]);
    let namespaces = objects::namespace_names(random);
    for name in &namespaces {
        if !random.percent(15) {
            cluster.objects.push(objects::namespace(random, name));
        }
    }
    let pods = objects::pods(random, &namespaces, families, &cluster.nodes);
    for index in 0..random.between(2, 9) {
        let namespace = policies::home(random, &namespaces, &pods);
        cluster.objects.push(policies::policy(random, index, &namespace));
    }
    cluster.objects.extend(pods);
    shuffle(random, &mut cluster.objects);
    cluster
}

/// Random probes of a cluster, each with a pod of the node under test at one end at least.
pub fn probes(random: &mut Random, cluster: &Cluster, count: usize) -> Vec<Probe> {
    (0..count).map(|_| probe(random, cluster)).collect()
}

/// The same cluster after something happened to it: a relabelling, a policy that came or went, a pod that ended or went.
pub fn change(random: &mut Random, cluster: &Cluster) -> Cluster {
    let mut changed = cluster.clone();
    let kind = *random.weighted(&[(35, "Pod"), (15, "Namespace"), (50, "NetworkPolicy")]);
    let places: Vec<usize> =
        (0..changed.objects.len()).filter(|place| changed.objects[*place]["kind"] == kind).collect();
    if places.is_empty() {
        return changed;
    }
    let place = *random.pick(&places);
    match (kind, random.below(3)) {
        ("Namespace", _) => changed.objects[place]["metadata"]["labels"] = objects::namespace_labels(random),
        ("Pod", 0) => changed.objects[place]["status"]["phase"] = json!("Succeeded"),
        ("Pod", 1) => changed.objects[place]["metadata"]["labels"] = objects::pod_labels(random),
        ("NetworkPolicy", 0) => replace_spec(random, &mut changed.objects[place]),
        _ => drop(changed.objects.remove(place)),
    }
    changed
}

/// An edit of a policy: it keeps its name.
fn replace_spec(random: &mut Random, policy: &mut Value) {
    let namespace = policy["metadata"]["namespace"].as_str().unwrap_or("default").to_owned();
    policy["spec"] = policies::policy(random, 0, &namespace)["spec"].take();
}

/// Another order: no verdict may depend on it.
fn shuffle(random: &mut Random, objects: &mut [Value]) {
    for last in (1..objects.len()).rev() {
        objects.swap(last, random.below(last + 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_cluster_again() {
        let make = |seed| {
            let mut random = Random::new(seed);
            let cluster = cluster(&mut random);
            let probes = probes(&mut random, &cluster, 20);
            (cluster, probes)
        };
        assert_eq!(make(7), make(7));
        assert_ne!(make(7).0, make(8).0);
    }

    #[test]
    fn names_reach_the_longest_that_kubernetes_allows() {
        let mut random = Random::new(1);
        let names: Vec<(usize, usize)> = (0..200)
            .flat_map(|_| cluster(&mut random).objects)
            .map(|object| {
                let length = |field: &str| object["metadata"][field].as_str().map_or(0, str::len);
                (length("name"), length("namespace"))
            })
            .collect();
        assert_eq!(names.iter().map(|name| name.0).max(), Some(253));
        assert_eq!(names.iter().map(|name| name.1).max(), Some(63));
    }
}
