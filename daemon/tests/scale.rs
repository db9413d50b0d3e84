//! What a large cluster costs: memory and time of the real daemon, against the fake API server. Not part of the suite:
//! `cargo test --release -p flatfell --test scale -- --ignored --nocapture`, as root.
#![allow(missing_docs)]

mod fake_api;

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fake_api::{FakeApi, Streams};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use tokio::time::sleep;

/// A pod as large as they are: most of it of no use to policy.
fn pod(number: usize) -> Value {
    let (a, b) = (number / 250, number % 250 + 2);
    let node = if number < 250 { "n".to_owned() } else { format!("worker-{}", number / 30) };
    let address = format!("10.{}.{}.{b}", a / 250, a % 250);
    let mut labels = json!({
        "app.kubernetes.io/name": format!("service-{}", number % 400), "app.kubernetes.io/part-of": "shop",
        "pod-template-hash": format!("{:010x}", number % 400), "tier": format!("tier-{}", number % 5),
    });
    if number.is_multiple_of(10) {
        labels["statefulset.kubernetes.io/pod-name"] = json!(format!("service-{}-{number}", number % 400));
    }
    let env: Vec<Value> = (0..20).map(|n| json!({"name": format!("SETTING_{n}"), "value": "x".repeat(60)})).collect();
    let fields = json!({"f:metadata": {"f:labels": {"f:a": {}}}, "f:spec": {"f:containers": {"x".repeat(900): {}}}});
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {
            "name": format!("service-{}-{:010x}-{number:05}", number % 400, number % 400),
            "namespace": format!("team-{}", number % 100), "uid": format!("{number:08x}-1111-2222-3333-444444444444"),
            "creationTimestamp": "2026-01-02T03:04:05Z", "labels": labels,
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "x".repeat(1200)},
            "managedFields": [fields.clone(), fields],
        },
        "spec": {
            "nodeName": node, "volumes": [{"name": "token", "projected": {"sources": ["x".repeat(300)]}}],
            "containers": [{"name": "c", "image": "x".repeat(80), "env": env,
                "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}]}],
        },
        "status": {
            "phase": "Running", "podIP": address, "podIPs": [{"ip": address}, {"ip": format!("fd00::{a:x}:{b:x}")}],
            "conditions": [{"type": "Ready", "message": "x".repeat(200)}], "startTime": "2026-01-02T03:04:05Z",
        },
    })
}

fn policy(number: usize) -> Value {
    let name = format!("service-{}", number % 400);
    json!({
        "kind": "NetworkPolicy", "apiVersion": "networking.k8s.io/v1",
        "metadata": {"name": format!("policy-{number}"), "namespace": format!("team-{}", number % 100)},
        "spec": {
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": name}}, "policyTypes": ["Ingress"],
            "ingress": [{
                "from": [{"podSelector": {"matchLabels": {"tier": format!("tier-{}", number % 5)}}},
                         {"ipBlock": {"cidr": format!("192.168.{}.0/24", number % 250)}}],
                "ports": [{"port": 8080}],
            }],
        },
    })
}

fn fill(api: &FakeApi, pods: usize) {
    api.apply(json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "n"}, "spec": {}}));
    for number in 0..100 {
        let name = format!("team-{number}");
        api.apply(
            json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name, "labels": {"team": name}}}),
        );
    }
    for number in 0..1000 {
        api.apply(policy(number));
    }
    for number in 0..pods {
        api.apply(pod(number));
    }
    api.edit(fake_api::World::compact);
}

/// A daemon in the calling thread's network namespace.
fn daemon(api: &FakeApi, kubeconfig: &std::path::Path) -> Child {
    fs::write(kubeconfig, api.kubeconfig()).expect("a kubeconfig");
    Command::new(env!("CARGO_BIN_EXE_flatfell"))
        .args(["run", "--node", "n", "--listen", "127.0.0.1:9469", "--kubeconfig"])
        .arg(kubeconfig)
        .stderr(Stdio::inherit())
        .spawn()
        .expect("the daemon")
}

fn memory(pid: u32) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let wanted = |line: &&str| ["VmHWM", "VmRSS", "RssAnon", "RssFile"].iter().any(|name| line.starts_with(name));
    status
        .lines()
        .filter(wanted)
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Whether the daemon says that the kernel has it all.
async fn is_synced() -> bool {
    let text = tokio::task::spawn_blocking(|| {
        let output = Command::new(env!("CARGO_BIN_EXE_flatfell")).args(["status", "--output", "json"]).output();
        output.map(|output| output.stdout).unwrap_or_default()
    });
    let text = text.await.unwrap_or_default();
    serde_json::from_slice::<Value>(&text)
        .is_ok_and(|report| report["synced"] == true && report["source"]["objects"] != 0)
}

async fn measure(pods: usize, streams: Streams) {
    let mut api = FakeApi::start().await;
    fill(&api, pods);
    api.edit(|world| world.streams = streams);
    let directory = tempfile::tempdir().expect("directory");
    let began = Instant::now();
    let mut child = daemon(&api, &directory.path().join("config"));
    while !is_synced().await {
        assert!(began.elapsed() < Duration::from_secs(120), "never in force");
        sleep(Duration::from_millis(20)).await;
    }
    println!("{pods} pods, {streams:?}: in force after {:?}: {}", began.elapsed(), memory(child.id()));
    sleep(Duration::from_secs(4)).await;
    println!("{pods} pods, {streams:?}: at rest: {}", memory(child.id()));
    api.edit(fake_api::World::compact);
    api.edit(|world| world.version += 1);
    api.edit(fake_api::World::compact);
    api.restart().await;
    sleep(Duration::from_secs(5)).await;
    println!("{pods} pods, {streams:?}: after everything was listed again: {}", memory(child.id()));
    child.kill().expect("killed");
    child.wait().expect("gone");
}

#[test]
#[ignore = "a measurement"]
fn memory_of_a_large_cluster() {
    for (pods, streams) in
        [(0, Streams::Yes), (10_000, Streams::Yes), (10_000, Streams::RefusedInStatus), (50_000, Streams::Yes)]
    {
        let namespace = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("root");
            assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("iproute2").success());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(measure(pods, streams));
        });
        namespace.join().expect("a measurement");
    }
}
