//! A manifest of a directory, up to the kernel's bytes.
//!
//! In: the text of a file, JSON if it begins with a brace. Out: nothing. What always holds: beside it lies a file with the cluster of
//! [`crate::world`]; whatever passes afterwards, the specification's oracle lets pass on the same objects.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use flatfell::manifests::{Directory, Kind, Object, Scope, Update, change, yaml};
use flatfell_rules::index::Index;
use flatfell_rules::sim::cluster::Cluster;
use flatfell_rules::sim::oracle::Oracle;
use serde_json::Value;

use crate::scratch;
use crate::world;

/// Runs the target.
pub fn run(bytes: &[u8]) {
    let cluster = world::cluster();
    let name = if bytes.first() == Some(&b'{') { "b.json" } else { "b.yaml" };
    let directory = read(&cluster, name, bytes);
    let objects: Vec<_> = directory.objects().cloned().collect();
    let mut index = Index::new(cluster.node.clone());
    for object in &objects {
        index.apply(change(Update::Put(object.clone())));
    }
    let ruleset = world::ruleset(&index);
    let probes = world::probes(&cluster);
    let passing = world::passing(&cluster, &ruleset, &probes);
    if passing.is_empty() {
        return;
    }
    let own = |object: &Object| object.key().namespace.is_empty() || object.key().name.as_str() == world::SHUT;
    let says = |object: &Object| !own(object) && world::concerns_the_shut(&change(Update::Put(object.clone().into())));
    assert!(objects.iter().any(|object| says(object)), "opened by nothing that was understood: {}", passing[0]);
    let Some(raw) = raw(&cluster, name, bytes) else { return };
    let oracle = Oracle::new(&raw);
    if let Some(probe) = passing.into_iter().find(|probe| !oracle.allowed(probe)) {
        panic!("passes, and the specification forbids it: {probe}");
    }
}

/// The directory with both files.
fn read(cluster: &Cluster, name: &str, bytes: &[u8]) -> Directory {
    let root = scratch::directory("manifests");
    let good = root.join("a.json");
    if !good.exists() {
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": cluster.objects});
        fs::write(&good, list.to_string()).expect("a file");
    }
    for other in ["b.json", "b.yaml"] {
        let _ = fs::remove_file(root.join(other));
    }
    fs::write(root.join(name), bytes).expect("a file");
    let mut directory = Directory::new(&root);
    directory.refresh(&Scope::everything());
    directory.problems().iter().for_each(|problem| assert!(!problem.to_string().is_empty()));
    directory.unknown();
    directory
}

/// The cluster with the raw objects of the text; `None` where one name has several objects: the specification knows no such thing.
fn raw(cluster: &Cluster, name: &str, bytes: &[u8]) -> Option<Cluster> {
    let text = std::str::from_utf8(bytes).ok()?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let is_json = Path::new(name).extension().is_some_and(|it| it == "json");
    let documents = if is_json { yaml::json(text) } else { yaml::documents(text) }.ok()?;
    let mut cluster = cluster.clone();
    documents.iter().for_each(|document| flatten(document.to_json(), &mut cluster.objects));
    let mut keys = BTreeSet::new();
    let all_once = cluster.objects.iter().all(|object| keys.insert(key(object)));
    all_once.then_some(cluster)
}

/// What a document holds, lists opened.
fn flatten(document: Value, objects: &mut Vec<Value>) {
    let kind = document["kind"].as_str().unwrap_or_default();
    match (kind.strip_suffix("List"), document["items"].as_array()) {
        (Some(item), Some(items)) => {
            for one in items {
                let mut one = one.clone();
                if !item.is_empty() && one["kind"].is_null() && one.is_object() {
                    one["kind"] = item.into();
                    one["apiVersion"] = document["apiVersion"].clone();
                }
                flatten(one, objects);
            }
        }
        _ if Kind::of(kind).is_some() => objects.push(document),
        _ => {}
    }
}

fn key(object: &Value) -> (String, String, String) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = &object["metadata"];
    (text(&object["kind"]), text(&metadata["namespace"]), text(&metadata["name"]))
}
