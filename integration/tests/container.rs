//! The image in a container with exactly the DaemonSet's security context: it enforces, and leaves its rules.
//!
//! What always holds: the container is runc's, its network a lab node's, and every packet is real.
#![allow(clippy::expect_used)]

mod deployment;

use std::fs;
use std::path::Path;

use deployment::oci::{Container, Image, Mount, image};
use deployment::{Objects, kustomize};
use flatfell_integration::{Lab, LabConfig, Place, Probe};
use serde_json::{Value, json};
use tempfile::TempDir;

const SERVER: Place = Place::pod(1, 0);
const FRIEND: Place = Place::pod(1, 1);
const STRANGER: Place = Place::pod(1, 2);

fn lab() -> Lab {
    Lab::new(LabConfig { nodes: 1, pods: 3, ..LabConfig::default() }).expect("a lab")
}

fn pod(name: &str, place: Place) -> Value {
    let addresses = place.addresses().map(|address| json!({"ip": address.to_string()}));
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "x", "labels": {"app": name}},
        "spec": {"nodeName": "node1"}, "status": {"phase": "Running", "podIPs": addresses}})
}

/// Only the friend may come to the server.
fn manifests() -> String {
    let peers = json!([{"podSelector": {"matchLabels": {"app": "friend"}}}]);
    let items = json!([
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}},
        pod("server", SERVER),
        pod("friend", FRIEND),
        pod("stranger", STRANGER),
        {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "server", "namespace": "x"},
            "spec": {"podSelector": {"matchLabels": {"app": "server"}}, "ingress": [{"from": peers}]}},
    ]);
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

/// Whether friend and stranger get through, over IPv4 and IPv6.
fn reach(lab: &Lab) -> [[bool; 2]; 2] {
    [FRIEND, STRANGER]
        .map(|from| SERVER.addresses().map(|to| lab.probe(&Probe::tcp(from, to, 80)).expect("a probe").delivered))
}

fn start<'a>(lab: &'a Lab, objects: &Objects, manifests: &Path) -> Container<'a> {
    let mount = Mount { host: manifests, inside: "/manifests" };
    Container::start(lab, objects, &["FLATFELL_MANIFESTS=/manifests"], &[mount])
}

#[test]
fn it_enforces_with_the_daemon_sets_security_context() {
    let (lab, objects, files) = (lab(), kustomize("base"), TempDir::new().expect("a directory"));
    fs::write(files.path().join("all.json"), manifests()).expect("a file");
    assert_eq!(reach(&lab), [[true; 2]; 2], "without policy");

    let mut container = start(&lab, &objects, files.path());
    container.wait_ready(&objects);
    assert_eq!(reach(&lab), [[true; 2], [false; 2]], "with policy");

    let only_net_admin = format!("{:016x}", 1_u64 << 12);
    for (field, expected) in [
        ("Uid", "0\t0\t0\t0"),
        ("CapEff", &only_net_admin),
        ("CapPrm", &only_net_admin),
        ("CapBnd", &only_net_admin),
        ("CapInh", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
    ] {
        assert_eq!(container.process_status(field), expected, "{field}");
    }
    let status = container.exec(&["/flatfell", "status"]).expect("flatfell status");
    assert!(status.contains("x/server"), "{status}");
    assert!(container.exec(&["sh", "-c", "true"]).is_err(), "there is no shell");

    container.stop();
    assert_eq!(reach(&lab), [[true; 2], [false; 2]], "the rules stay");
}

/// The uninstall overlay's container leaves the node as it was.
#[test]
fn it_cleans_up_with_the_same_security_context() {
    let (lab, objects, files) = (lab(), kustomize("base"), TempDir::new().expect("a directory"));
    fs::write(files.path().join("all.json"), manifests()).expect("a file");
    let state = || {
        let node = lab.netns(Place::Node(1)).expect("the node");
        let flags = node.feed("ip", &["-details", "link", "show", "cni0"], "").expect("ip");
        let flags: Vec<String> =
            flags.split(' ').skip_while(|word| !word.starts_with("nf_call")).take(6).map(str::to_owned).collect();
        assert!(!flags.is_empty(), "the bridge's flags");
        (node.feed("nft", &["list", "ruleset"], "").expect("nft"), flags)
    };
    let before = state();
    let mut daemon = start(&lab, &objects, files.path());
    daemon.wait_ready(&objects);
    assert_ne!(state(), before);
    daemon.stop();
    let objects = kustomize("uninstall");
    let mut cleanup = Container::start(&lab, &objects, &[], &[]);
    cleanup.wait_ready(&objects);
    assert_eq!(state(), before);
    assert_eq!(reach(&lab), [[true; 2]; 2], "nothing is enforced");
    cleanup.stop();
}

/// The image holds what the binary loads and what its licence asks for, and no program beside it.
#[test]
fn the_image_is_small_and_complete() {
    let Image { root, config, compressed } = image();
    assert_eq!(config["config"]["Entrypoint"], json!(["/flatfell"]));
    assert!(*compressed < 30_000_000, "{compressed} bytes");
    println!("{compressed} bytes compressed");
    for shell in ["bin/sh", "usr/bin/sh", "bin/busybox"] {
        assert!(!root.join(shell).exists(), "{shell}");
    }
    for text in [
        "usr/share/common-licenses/GPL-3",
        "usr/share/doc/flatfell/LICENSE",
        "usr/share/doc/flatfell/NOTICE",
        "usr/share/doc/flatfell/crates",
        "usr/share/doc/libnftnl11/copyright",
        "usr/share/doc/libmnl0/copyright",
        "usr/share/doc/libc6/copyright",
    ] {
        assert!(fs::metadata(root.join(text)).is_ok_and(|file| file.len() > 0), "{text}");
    }
    let version = deployment::run(std::process::Command::new("chroot").arg(root).args(["/flatfell", "--version"]));
    assert_eq!(version.expect("chroot"), format!("flatfell {}\n", env!("CARGO_PKG_VERSION")));
}
