//! From the start of the daemon to policy in force, and the memory it holds, with a real API server.
//!
//! In: numbers of pods as arguments (10,000 without one). Out: a row for each, as Markdown. What always holds: the daemon
//! is the one built beside this program (release, by `make cold-start`); the cluster is [`Size::with_pods`], and all of it
//! is in force when the clock stops. The API server has the same two cores: its share is in the time.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use flatfell_bench::Size;
use flatfell_integration::Place;
use flatfell_integration::cluster::{Api, Cluster, ClusterConfig};
use flatfell_integration::node::FlatfellNode;
use serde_json::Value;

/// Starts of the daemon for each size.
const STARTS: usize = 5;
/// Writers to the API server.
const WRITERS: usize = 4;
/// The daemon gives memory back some seconds after a list.
const REST: Duration = Duration::from_secs(6);
const PAUSE: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(120);

/// One start.
struct Start {
    time: Duration,
    /// KiB when policy is in force.
    then: u64,
    /// KiB some seconds later, and the most there ever was.
    rest: u64,
    highest: u64,
}

fn main() -> anyhow::Result<()> {
    let sizes: Result<Vec<usize>, _> = std::env::args().skip(1).map(|size| size.parse()).collect();
    let mut sizes = sizes.context("numbers of pods")?;
    if sizes.is_empty() {
        sizes.push(10_000);
    }
    println!("| pods | in force after, median (range of {STARTS}) | VmRSS then | VmRSS at rest | highest |");
    println!("|---|---|---|---|---|");
    for pods in sizes {
        measure(Size::with_pods(pods))?;
    }
    Ok(())
}

fn measure(size: Size) -> anyhow::Result<()> {
    let cluster = Cluster::new(ClusterConfig { nodes: 1, flannel: None, proxy: None, ..ClusterConfig::default() })?;
    fill(cluster.api(), size)?;
    let mut starts = (0..STARTS).map(|_| start(&cluster, size)).collect::<anyhow::Result<Vec<Start>>>()?;
    starts.sort_by_key(|start| start.time);
    let median = &starts[STARTS / 2];
    let mib = |kib: u64| kib.div_ceil(1024);
    println!(
        "| {} | {} ms ({} to {}) | {} MiB | {} MiB | {} MiB |",
        size.pods,
        median.time.as_millis(),
        starts[0].time.as_millis(),
        starts[STARTS - 1].time.as_millis(),
        mib(median.then),
        mib(median.rest),
        mib(median.highest)
    );
    Ok(())
}

/// Starts the daemon on a node without a rule.
fn start(cluster: &Cluster, size: Size) -> anyhow::Result<Start> {
    cluster.lab.nft(Place::Node(1), "flush ruleset\n")?;
    let begin = Instant::now();
    let mut node = FlatfellNode::launch(&cluster.lab, 1, &cluster.server.kubeconfig("flatfell")?, &[])?;
    while !node.get("/readyz").is_ok_and(|body| body.starts_with("ready")) {
        ensure!(begin.elapsed() < PATIENCE, "not in force: {:?}\n{}", node.get("/readyz"), node.log());
        thread::sleep(PAUSE);
    }
    let time = begin.elapsed();
    let then = memory(&node)?["VmRSS"];
    let isolated = node.status()?.pods.iter().filter(|pod| !pod.ingress.policies.is_empty()).count();
    ensure!(isolated == size.local, "{isolated} of {} local pods are isolated", size.local);
    thread::sleep(REST);
    let rest = memory(&node)?;
    node.stop()?;
    Ok(Start { time, then, rest: rest["VmRSS"], highest: rest["VmHWM"] })
}

/// Writes all objects, several at a time.
fn fill(api: &Api, size: Size) -> anyhow::Result<()> {
    eprintln!("writing {} pods and {} policies to the API server", size.pods, size.policies);
    for namespace in size.namespaces() {
        api.put(&namespace)?;
    }
    let objects: Vec<Value> = size.network_policies().into_iter().chain(size.pods()).map(unborn).collect();
    thread::scope(|scope| {
        let write = |objects: &[Value]| objects.iter().try_for_each(|object| api.put(object).map(drop));
        let share = objects.len().div_ceil(WRITERS);
        let writers: Vec<_> = objects.chunks(share).map(|part| scope.spawn(move || write(part))).collect();
        writers.into_iter().try_for_each(|writer| match writer.join() {
            Ok(written) => written.map_err(Into::into),
            Err(_) => anyhow::bail!("a writer died"),
        })
    })
}

/// Without what the API server gives.
fn unborn(mut object: Value) -> Value {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("uid");
        metadata.remove("creationTimestamp");
    }
    object
}

/// The memory lines of the process, in KiB (proc_pid_status(5)).
fn memory(node: &FlatfellNode) -> anyhow::Result<BTreeMap<String, u64>> {
    let process = node.process_id().context("the daemon is gone")?;
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_owned(), value.trim().strip_suffix(" kB")?.trim().parse().ok()?))
    };
    Ok(status.lines().filter_map(line).collect())
}
