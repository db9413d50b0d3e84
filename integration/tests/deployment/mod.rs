//! What `deploy/` renders, as objects.
//!
//! In: an overlay's or a values file's name. Out: objects by kind and name. What always holds: lists whose order means
//! nothing are sorted, so that equal objects compare equal.
#![allow(dead_code, clippy::expect_used)]

pub mod oci;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use flatfell::manifests::yaml;
use serde_json::Value;

/// Overlays of kustomize and values files of the chart that mean the same; `base` has no values file.
pub const VARIANTS: [&str; 13] = [
    "base",
    "kubeadm-flannel",
    "flannel-nftables",
    "k3s",
    "talos",
    "startup-taint",
    "cni",
    "events",
    "metrics",
    "pod-monitor",
    "service-monitor",
    "monitoring",
    "uninstall",
];

pub const NAMESPACE: &str = "flatfell-system";

/// Objects by kind and name.
pub type Objects = BTreeMap<String, Value>;

/// The repository's directory.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a parent").to_owned()
}

/// What kustomize renders.
pub fn kustomize(variant: &str) -> Objects {
    let directory = root().join("deploy/kustomize");
    let directory = if variant == "base" { directory.join("base") } else { directory.join("overlays").join(variant) };
    objects(&run(Command::new(tool("kubectl")).arg("kustomize").arg(directory)).expect("kustomize"))
}

/// What the chart renders with a variant's values.
pub fn chart(variant: &str) -> Objects {
    let mut values = vec!["--set".to_owned(), "namespace.create=true".to_owned()];
    if variant != "base" {
        let file = root().join(format!("deploy/helm/flatfell/values/{variant}.yaml"));
        values.extend(["--values".to_owned(), file.to_string_lossy().into_owned()]);
    }
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    objects(&helm(&values).expect("helm"))
}

/// What `helm template` prints with these arguments, or why it refuses.
pub fn helm(arguments: &[&str]) -> Result<String, String> {
    let chart = root().join("deploy/helm/flatfell");
    let mut command = Command::new(tool("helm"));
    // A helm that was built without its release's flags takes itself for a client of Kubernetes 1.20.
    let fixed = ["--namespace", NAMESPACE, "--kube-version", "1.30.0"];
    run(command.args(["template", "flatfell"]).arg(chart).args(fixed).args(arguments))
}

/// The objects of a YAML stream, each once.
pub fn objects(stream: &str) -> Objects {
    let mut objects = Objects::new();
    for document in yaml::documents(stream).expect("YAML") {
        let mut object = document.to_json();
        sort(&mut object);
        let name = format!("{} {}", text(&object, "/kind"), text(&object, "/metadata/name"));
        assert!(objects.insert(name.clone(), object).is_none(), "{name} is there twice");
    }
    objects
}

/// The DaemonSet's pod template.
pub fn template(objects: &Objects) -> &Value {
    &objects["DaemonSet flatfell"]["spec"]["template"]
}

/// The one container of the DaemonSet's pods.
pub fn container(objects: &Objects) -> &Value {
    let containers = template(objects)["spec"]["containers"].as_array().expect("containers");
    assert_eq!(containers.len(), 1);
    &containers[0]
}

/// The text at a JSON pointer.
pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("no {pointer}: {object}"))
}

/// Where `integration/fixture.sh` puts its programs, or the machine's own.
pub fn tool(name: &str) -> PathBuf {
    let cache = std::env::var_os("FLATFELL_FIXTURE").map_or_else(|| root().join("target/fixture"), PathBuf::from);
    let built = cache.join("bin").join(name);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|directory| directory.join(name));
    let found = std::iter::once(built).chain(found).find(|file| file.is_file());
    found.unwrap_or_else(|| panic!("{name} is neither in target/fixture/bin nor in PATH: run integration/fixture.sh"))
}

/// What a program prints, or what it says when it fails.
pub fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let print = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(print(&output.stdout)) } else { Err(print(&output.stderr)) }
}

/// Environment variables do not refer to each other here: their order means nothing.
fn sort(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if let Some(Value::Array(variables)) = map.get_mut("env") {
                variables.sort_by_key(|variable| variable["name"].as_str().map(str::to_owned));
            }
            map.values_mut().for_each(sort);
        }
        Value::Array(items) => items.iter_mut().for_each(sort),
        _ => {}
    }
}
