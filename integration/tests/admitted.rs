//! What users apply, on a real API server: it takes every object and a Pod of the DaemonSet, and the container that comes
//! of them watches with the rendered permissions alone and enforces.
#![allow(clippy::expect_used)]

mod deployment;

use std::fs;

use deployment::oci::{Container, Mount};
use deployment::{NAMESPACE, Objects, VARIANTS, kustomize, template};
use flatfell_integration::cluster::{Cluster, ClusterConfig, objects};
use flatfell_integration::{Place, Probe};
use serde_json::{Value, json};
use tempfile::TempDir;

const ACCOUNT: &str = "system:serviceaccount:flatfell-system:flatfell";
/// Where a kubelet mounts the service account's files.
const SECRETS: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

fn cluster() -> Cluster {
    Cluster::new(ClusterConfig { nodes: 1, ..ClusterConfig::default() }).expect("a cluster")
}

/// Applies all at once; the API server has no Prometheus operator.
fn apply(cluster: &Cluster, objects: &Objects) -> String {
    let is_of_operator = |object: &&Value| object["apiVersion"] == "monitoring.coreos.com/v1";
    let items: Vec<&Value> = objects.values().filter(|object| !is_of_operator(object)).collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
    // The namespace has to be there before what is in it.
    let namespace = objects["Namespace flatfell-system"].to_string();
    cluster.server.kubectl(&["apply", "--filename=-"], &namespace).expect("the namespace");
    cluster.server.kubectl(&["apply", "--filename=-"], &list).expect("the objects")
}

/// The Pod that the DaemonSet's controller would make for a node.
fn pod(objects: &Objects, name: &str, namespace: &str) -> Value {
    let mut pod = template(objects).clone();
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"]["name"] = json!(name);
    pod["metadata"]["namespace"] = json!(namespace);
    pod
}

fn can(cluster: &Cluster, verb: &str, resource: &str) -> bool {
    let account = format!("--as={ACCOUNT}");
    let answer = cluster.server.kubectl(&["auth", "can-i", verb, resource, "--all-namespaces", &account], "");
    // kubectl fails where the answer is no.
    answer.is_ok_and(|answer| answer.trim() == "yes")
}

#[test]
fn every_object_and_a_pod_of_the_daemon_set_are_accepted() {
    let cluster = cluster();
    for variant in VARIANTS {
        let objects = kustomize(variant);
        let said = apply(&cluster, &objects);
        assert!(said.contains("daemonset.apps/flatfell"), "{variant}: {said}");
        let ours = pod(&objects, variant, NAMESPACE);
        let stored = cluster.server.kubectl(&["create", "--output=json", "--filename=-"], &ours.to_string());
        let stored: Value = serde_json::from_str(&stored.expect(variant)).expect("JSON");
        let context = "/spec/containers/0/securityContext";
        assert_eq!(stored.pointer(context), ours.pointer(context), "{variant}");
        assert_eq!(stored["spec"]["priority"], 2_000_001_000, "{variant}: system-node-critical");

        let allowed = ["pods", "namespaces", "nodes", "networkpolicies.networking.k8s.io"];
        for (verb, resource) in ["list", "watch"].into_iter().flat_map(|verb| allowed.map(|resource| (verb, resource)))
        {
            assert!(can(&cluster, verb, resource), "{variant}: {verb} {resource}");
        }
        let forbidden = [("list", "secrets"), ("get", "pods"), ("update", "nodes"), ("create", "events")];
        for (verb, resource) in forbidden {
            assert!(!can(&cluster, verb, resource), "{variant}: {verb} {resource}");
        }
        assert_eq!(can(&cluster, "patch", "nodes"), variant == "startup-taint", "{variant}");
    }
}

/// That PodSecurity is in force at all: the same Pod is refused where the namespace does not admit it.
#[test]
fn a_namespace_that_does_not_admit_privileged_pods_refuses_it() {
    let cluster = cluster();
    let mut strict = objects::namespace("strict");
    strict["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] = json!("baseline");
    cluster.api().put(&strict).expect("a namespace");
    let ours = pod(&kustomize("base"), "flatfell", "strict").to_string();
    let refusal = cluster.server.kubectl(&["create", "--filename=-"], &ours).expect_err("refused").to_string();
    assert!(refusal.contains("violates PodSecurity") && refusal.contains("host namespaces"), "{refusal}");
}

/// Token, certificate and namespace as a kubelet projects them.
fn account(cluster: &Cluster, directory: &TempDir) {
    let kubectl = |arguments: &[&str]| cluster.server.kubectl(arguments, "").expect("kubectl");
    let token = kubectl(&["create", "token", "flatfell", "--namespace", NAMESPACE]);
    let authority = kubectl(&["config", "view", "--output=jsonpath={.clusters[0].cluster.certificate-authority}"]);
    fs::write(directory.path().join("token"), token.trim()).expect("a file");
    fs::copy(authority.trim(), directory.path().join("ca.crt")).expect("the certificate");
    fs::write(directory.path().join("namespace"), NAMESPACE).expect("a file");
}

#[test]
fn the_container_enforces_what_the_api_server_says() {
    let mut cluster = cluster();
    let objects = kustomize("base");
    apply(&cluster, &objects);
    let app = |name: &str| json!({"app": name});
    let server = cluster.add_pod("x", "server", app("server"), 1, 0).expect("a pod");
    let friend = cluster.add_pod("x", "friend", app("friend"), 1, 1).expect("a pod");
    let stranger = cluster.add_pod("x", "stranger", app("stranger"), 1, 2).expect("a pod");
    let spec = json!({"podSelector": {"matchLabels": app("server")},
        "ingress": [{"from": [{"podSelector": {"matchLabels": app("friend")}}]}]});
    cluster.api().put(&objects::policy("x", "server", spec)).expect("a policy");

    let secrets = TempDir::new().expect("a directory");
    account(&cluster, &secrets);
    let url = cluster.server.url();
    let (host, port) = url.trim_start_matches("https://").rsplit_once(':').expect("a port");
    let service = [format!("KUBERNETES_SERVICE_HOST={host}"), format!("KUBERNETES_SERVICE_PORT={port}")];
    let service = service.each_ref().map(String::as_str);
    let mount = Mount { host: secrets.path(), inside: SECRETS };
    let reach = |cluster: &Cluster| {
        [friend, stranger].map(|from: Place| {
            server.addresses().map(|to| cluster.lab.probe(&Probe::tcp(from, to, 80)).expect("a probe").delivered)
        })
    };
    assert_eq!(reach(&cluster), [[true; 2]; 2], "without a daemon");
    let mut container = Container::start(&cluster.lab, &objects, &service, &[mount]);
    container.wait_ready(&objects);
    assert_eq!(reach(&cluster), [[true; 2], [false; 2]], "with policy");
    container.stop();
    assert_eq!(reach(&cluster), [[true; 2], [false; 2]], "the rules stay");
}
