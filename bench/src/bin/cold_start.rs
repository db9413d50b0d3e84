//! From the start of the daemon to policy in force, and the memory it holds, with a real API server.
//!
//! In: numbers of pods as arguments (10,000 without one). Out: a row for each, as Markdown. What always holds: the daemon
//! is the one built beside this program (release, by `make cold-start`), and on demand another one in turns; the cluster is [`Size::with_pods`], and all of it
//! is in force when the clock stops. The API server has the same two cores: its share is in the time.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Parser;
use flatfell_bench::Size;
use flatfell_integration::Place;
use flatfell_integration::cluster::{Api, Cluster, ClusterConfig};
use flatfell_integration::node::FlatfellNode;
use serde_json::Value;

/// Writers to the API server.
const WRITERS: usize = 4;
/// The daemon gives memory back some seconds after a list.
const REST: Duration = Duration::from_secs(6);
const PAUSE: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(120);

/// From process start to policy in force, with a real API server.
#[derive(Parser)]
struct Args {
    /// Numbers of pods.
    #[arg(default_value = "10000")]
    pods: Vec<usize>,
    /// Starts of each daemon for each number of pods.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..))]
    starts: u8,
    /// Another build of the daemon, to start in turns with the one next to this program.
    #[arg(long, value_name = "FILE")]
    beside: Option<PathBuf>,
}

/// One start.
struct Start {
    time: Duration,
    /// Processor time until then.
    daemon: Duration,
    server: Duration,
    /// KiB when policy is in force.
    then: u64,
    /// KiB some seconds later, and the most there ever was.
    rest: u64,
    highest: u64,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    println!("load average at the start: {}", fs::read_to_string("/proc/loadavg")?.trim());
    println!(
        "| daemon | pods | in force after, median (range of {}) | CPU of the daemon | of the API server | VmRSS then | at rest | highest |",
        args.starts
    );
    println!("|---|---|---|---|---|---|---|---|");
    for pods in &args.pods {
        measure(Size::with_pods(*pods), &args)?;
    }
    Ok(())
}

fn measure(size: Size, args: &Args) -> anyhow::Result<()> {
    let cluster = Cluster::new(ClusterConfig { nodes: 1, flannel: None, proxy: None, ..ClusterConfig::default() })?;
    fill(cluster.api(), size)?;
    // The server collects its own garbage of all the writing.
    thread::sleep(REST);
    let (mut own, mut other) = (Vec::new(), Vec::new());
    for _ in 0..args.starts {
        own.push(start(&cluster, size, None)?);
        if let Some(binary) = &args.beside {
            other.push(start(&cluster, size, Some(binary))?);
        }
    }
    report("this", size, own);
    report("beside", size, other);
    Ok(())
}

fn report(name: &str, size: Size, mut starts: Vec<Start>) {
    starts.sort_by_key(|start| start.time);
    let (Some(first), Some(median), Some(last)) = (starts.first(), starts.get(starts.len() / 2), starts.last()) else {
        return;
    };
    let mib = |kib: u64| kib.div_ceil(1024);
    println!(
        "| {name} | {} | {} ms ({} to {}) | {} ms | {} ms | {} MiB | {} MiB | {} MiB |",
        size.pods,
        median.time.as_millis(),
        first.time.as_millis(),
        last.time.as_millis(),
        median.daemon.as_millis(),
        median.server.as_millis(),
        mib(median.then),
        mib(median.rest),
        mib(median.highest)
    );
}

/// Starts the daemon on a node without a rule.
fn start(cluster: &Cluster, size: Size, binary: Option<&Path>) -> anyhow::Result<Start> {
    cluster.lab.nft(Place::Node(1), "flush ruleset\n")?;
    let server = cluster.server.process_id().context("the API server is gone")?;
    let server_before = processor_time(server)?;
    let begin = Instant::now();
    let kubeconfig = cluster.server.kubeconfig("flatfell")?;
    let mut node = FlatfellNode::launch_binary(binary, &cluster.lab, 1, &kubeconfig, &[])?;
    while !node.get("/readyz").is_ok_and(|body| body.starts_with("ready")) {
        ensure!(begin.elapsed() < PATIENCE, "not in force: {:?}\n{}", node.get("/readyz"), node.log());
        thread::sleep(PAUSE);
    }
    let time = begin.elapsed();
    let process = node.process_id().context("the daemon is gone")?;
    let (daemon, server) = (processor_time(process)?, processor_time(server)? - server_before);
    let then = memory(process)?["VmRSS"];
    let isolated = node.status()?.pods.iter().filter(|pod| !pod.ingress.policies.is_empty()).count();
    ensure!(isolated == size.local, "{isolated} of {} local pods are isolated", size.local);
    thread::sleep(REST);
    let rest = memory(process)?;
    node.stop()?;
    Ok(Start { time, daemon, server, then, rest: rest["VmRSS"], highest: rest["VmHWM"] })
}

/// What all threads of a process took (proc_pid_stat(5): fields 14 and 15, in hundredths of a second).
fn processor_time(process: u32) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("no name in stat")?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(Duration::from_millis(ticks * 10))
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
fn memory(process: u32) -> anyhow::Result<BTreeMap<String, u64>> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_owned(), value.trim().strip_suffix(" kB")?.trim().parse().ok()?))
    };
    Ok(status.lines().filter_map(line).collect())
}
