//! From a cluster and a packet that show a difference to the smallest that still do.
//!
//! In: a cluster, a probe and a predicate. Out: a smaller pair and its text, which a person can feed to the daemon. What
//! always holds: the predicate holds for what comes out; nothing more can be taken away from it in one step.

use std::fmt::Write;

use serde_json::Value;

use super::cluster::{Cluster, Half, Probe};

/// Fields without which an object is another kind of wrong than the one that was found.
const KEPT: &[&str] = &[
    "apiVersion",
    "kind",
    "metadata",
    "name",
    "namespace",
    "uid",
    "spec",
    "status",
    "cidr",
    "key",
    "operator",
    "ip",
    "containerPort",
];

/// A step from a value to one inside it: a field or an element.
#[derive(Clone, Debug)]
enum Step {
    Field(String),
    Element(usize),
}

/// The smallest cluster and probe for which `fails` still holds; `fails` holds for what is given.
pub fn shrink(cluster: &Cluster, probe: &Probe, fails: impl Fn(&Cluster, &Probe) -> bool) -> (Cluster, Probe) {
    let (mut cluster, mut probe) = (cluster.clone(), probe.clone());
    loop {
        let objects_went = drop_objects(&mut cluster, &|smaller| fails(smaller, &probe));
        let fields_went = drop_fields(&mut cluster, &|smaller| fails(smaller, &probe));
        let probe_went = simpler_probe(&mut probe, &|simpler| fails(&cluster, simpler));
        if !(objects_went || fields_went || probe_went) {
            return (cluster, probe);
        }
    }
}

/// The objects as manifests (JSON is YAML), and the probe behind them.
pub fn show(cluster: &Cluster, probe: &Probe) -> String {
    let mut text = String::new();
    for object in &cluster.objects {
        let _ = writeln!(text, "---\n{object:#}");
    }
    let _ = writeln!(text, "# on {}: {probe}", cluster.node);
    text
}

/// Drops runs of objects, long ones first.
fn drop_objects(cluster: &mut Cluster, fails: &dyn Fn(&Cluster) -> bool) -> bool {
    let before = cluster.objects.len();
    let mut run = before;
    while run > 0 {
        let mut place = 0;
        while place < cluster.objects.len() {
            let mut smaller = cluster.clone();
            smaller.objects.drain(place..(place + run).min(cluster.objects.len()));
            if fails(&smaller) { *cluster = smaller } else { place += run }
        }
        run /= 2;
    }
    cluster.objects.len() < before
}

/// Drops fields and list elements of every object, outer ones first.
fn drop_fields(cluster: &mut Cluster, fails: &dyn Fn(&Cluster) -> bool) -> bool {
    let mut dropped = false;
    for place in 0..cluster.objects.len() {
        while let Some(smaller) = without_one(&cluster.objects[place], &|object| {
            let mut smaller = cluster.clone();
            smaller.objects[place] = object.clone();
            fails(&smaller)
        }) {
            cluster.objects[place] = smaller;
            dropped = true;
        }
    }
    dropped
}

/// The object without the first field or element that the failure does not need.
fn without_one(object: &Value, fails: &dyn Fn(&Value) -> bool) -> Option<Value> {
    let mut paths = Vec::new();
    removable(object, &mut Vec::new(), &mut paths);
    paths.iter().map(|path| without(object.clone(), path)).find(|smaller| fails(smaller))
}

/// The paths of everything that may go.
fn removable(value: &Value, here: &mut Vec<Step>, paths: &mut Vec<Vec<Step>>) {
    let inner: Vec<(Step, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(field, value)| (Step::Field(field.clone()), value)).collect(),
        Value::Array(items) => items.iter().enumerate().map(|(place, value)| (Step::Element(place), value)).collect(),
        _ => return,
    };
    for (step, value) in inner {
        let kept = matches!(&step, Step::Field(field) if KEPT.contains(&field.as_str()));
        here.push(step);
        if !kept {
            paths.push(here.clone());
        }
        removable(value, here, paths);
        here.pop();
    }
}

/// The value without what is at the path.
fn without(mut value: Value, path: &[Step]) -> Value {
    let Some((last, way)) = path.split_last() else { return value };
    let mut inner = &mut value;
    for step in way {
        inner = match step {
            Step::Field(field) => &mut inner[field],
            Step::Element(place) => &mut inner[place],
        };
    }
    match (last, inner) {
        (Step::Field(field), Value::Object(fields)) => drop(fields.remove(field)),
        (Step::Element(place), Value::Array(items)) => drop(items.remove(*place)),
        _ => {}
    }
    value
}

/// Drops what the probe says of NAT and replies.
fn simpler_probe(probe: &mut Probe, fails: &dyn Fn(&Probe) -> bool) -> bool {
    let candidates = [Probe { translated: None, ..probe.clone() }, Probe { half: Half::Opening, ..probe.clone() }];
    match candidates.into_iter().find(|simpler| simpler != probe && fails(simpler)) {
        Some(simpler) => {
            *probe = simpler;
            true
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::sim::generate::{Random, cluster, probes};
    use crate::sim::oracle::{Oracle, Row};

    #[test]
    fn a_difference_shrinks_to_what_makes_it() {
        let fails = |cluster: &Cluster, probe: &Probe| {
            let verdict = Oracle::new(cluster).verdict(probe);
            verdict.reasons.contains(&Row::EndPort) && verdict.allowed
        };
        let found = (0..).find_map(|seed| {
            let mut random = Random::new(seed);
            let cluster = cluster(&mut random);
            let probe = probes(&mut random, &cluster, 20).into_iter().find(|probe| fails(&cluster, probe))?;
            Some((cluster, probe))
        });
        let (before, probe) = found.expect("a seed");
        let (after, probe) = shrink(&before, &probe, fails);
        assert!(fails(&after, &probe));
        assert_eq!(after.objects.len(), 2, "a pod and a policy: {}", show(&after, &probe));
        let policy = after.kind("NetworkPolicy").next().expect("a policy");
        assert!(policy.to_string().contains("endPort"));
        assert!(show(&after, &probe).contains("\"endPort\""));
    }

    #[test]
    fn inner_elements_are_removed_by_path() {
        let object = json!({"kind": "x", "list": [{"a": 1}, 2]});
        let smaller = without_one(&object, &|it| it["list"][0].get("a").is_none() && it["list"][1] == 2);
        assert_eq!(smaller, Some(json!({"kind": "x", "list": [{}, 2]})));
    }
}
