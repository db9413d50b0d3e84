//! What one scrape costs the daemon, and what it costs a change of policy that comes meanwhile.
//!
//! In: numbers of rules as arguments (10,000 without one). Out: a row for each, as Markdown. What always holds: the daemon is the one
//! built beside this program (release, by `make scrape`); its rules and counters are in a kernel's table; CPU is that of all its
//! threads as the scheduler counts it, less what it takes without a scrape in the same time.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use flatfell::config::DEFAULT_LISTEN;
use flatfell_integration::{FlatfellNode, Lab, LabConfig, Place};
use serde_json::{Value, json};

/// Rules of each policy; each policy has a pod of its own.
const RULES_OF_POLICY: usize = 40;
const SCRAPES: u32 = 50;
/// Changes of policy that are timed with and without scrapes.
const CHANGES: u32 = 40;
const CHANGE_EVERY: Duration = Duration::from_millis(400);

fn main() -> anyhow::Result<()> {
    let sizes: Result<Vec<usize>, _> = std::env::args().skip(1).map(|size| size.parse()).collect();
    let mut sizes = sizes.context("numbers of rules")?;
    if sizes.is_empty() {
        sizes.push(10_000);
    }
    println!(
        "| rules | counted | series | answer | CPU of a scrape | of it system | a change without scrapes | with scrapes all the time |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for rules in sizes {
        measure(rules)?;
    }
    Ok(())
}

fn measure(rules: usize) -> anyhow::Result<()> {
    let lab = Lab::new(LabConfig { nodes: 1, pods: 1, ..LabConfig::default() })?;
    let cluster = json!({"apiVersion": "v1", "kind": "List", "items": objects(rules)}).to_string();
    let node = FlatfellNode::start(&lab, 1, &[("cluster.json", &cluster)])?;
    // The first one renders what the others find.
    let body = scrape(&lab)?;
    let series = body.lines().filter(|line| !line.starts_with('#')).count();
    let counted = body.lines().filter(|line| line.starts_with("flatfell_rule_packets_total{")).count();
    ensure!(counted > 0, "no rule is counted");
    let process = node.process_id().context("the daemon is gone")?;
    let begin = (Instant::now(), cpu(process)?);
    for _ in 0..SCRAPES {
        ensure!(scrape(&lab)?.len() > body.len() / 2, "an answer that is cut off");
    }
    let (time, busy) = (begin.0.elapsed(), cpu(process)? - begin.1);
    let begin = cpu(process)?;
    thread::sleep(time);
    let idle = cpu(process)? - begin;
    let each = |cpu: Cpu| cpu.ran.as_secs_f64() * 1000.0 / f64::from(SCRAPES);
    let quiet = changes(&node)?;
    let scraped = while_scraping(&lab, || changes(&node))?;
    println!(
        "| {rules} | {counted} | {series} | {} KiB | {:.1} ms | {:.0} % | {:.1} ms | {:.1} ms |",
        body.len() / 1024,
        each(busy) - each(idle),
        busy.system_share * 100.0,
        quiet,
        scraped
    );
    Ok(())
}

/// Pods with a policy each, whose rules differ in their peer's address and their port; half of each for either direction,
/// for each direction has its own ids.
fn objects(rules: usize) -> Vec<Value> {
    (0..rules.div_ceil(RULES_OF_POLICY)).flat_map(|number| pod_and_policy(number, rules)).collect()
}

fn pod_and_policy(number: usize, rules: usize) -> [Value; 2] {
    let first = number * RULES_OF_POLICY;
    let rule = |rule: usize| {
        let (high, low) = (rule / 250, rule % 250);
        let peers = if rule.is_multiple_of(2) { "from" } else { "to" };
        let block = json!({"ipBlock": {"cidr": format!("172.16.{high}.{low}/32")}});
        json!({peers: [block], "ports": [{"port": 1000 + rule}]})
    };
    let every_second =
        |from: usize| -> Vec<Value> { (from..rules.min(first + RULES_OF_POLICY)).step_by(2).map(rule).collect() };
    let name = format!("application-{number}");
    let labels = json!({"app": name});
    let address = format!("10.244.{}.{}", 1 + number / 250, number % 250);
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "production", "uid": name, "labels": labels},
        "spec": {"nodeName": "node1"}, "status": {"podIP": address}});
    let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "production"},
        "spec": {"podSelector": {"matchLabels": labels}, "policyTypes": ["Ingress", "Egress"],
            "ingress": every_second(first), "egress": every_second(first + 1)}});
    [pod, policy]
}

/// As Prometheus asks, in the node's namespace.
fn scrape(lab: &Lab) -> anyhow::Result<String> {
    let answer = lab.netns(Place::Node(1))?.run(|| -> std::io::Result<String> {
        let mut stream = TcpStream::connect(DEFAULT_LISTEN)?;
        let accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: flatfell\r\nAccept: {accept}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })??;
    let (_, body) = answer.split_once("\r\n\r\n").context("no body")?;
    Ok(body.to_owned())
}

/// CPU time of a process.
#[derive(Clone, Copy)]
struct Cpu {
    ran: Duration,
    user: f64,
    system: f64,
    /// Of a difference: how much of it was the kernel's.
    system_share: f64,
}

impl std::ops::Sub for Cpu {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        let (user, system) = (self.user - other.user, self.system - other.system);
        let system_share = if user + system > 0.0 { system / (user + system) } else { 0.0 };
        Self { ran: self.ran.saturating_sub(other.ran), user, system, system_share }
    }
}

fn cpu(process: u32) -> anyhow::Result<Cpu> {
    let mut ran = 0;
    for task in fs::read_dir(format!("/proc/{process}/task"))? {
        // A thread may end meanwhile.
        let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        ran += text.split(' ').next().and_then(|time| time.parse::<u64>().ok()).unwrap_or_default();
    }
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("a process")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks = |number: usize| fields.get(number).and_then(|field| field.parse::<f64>().ok()).unwrap_or_default();
    Ok(Cpu { ran: Duration::from_nanos(ran), user: ticks(11), system: ticks(12), system_share: 0.0 })
}

/// Milliseconds from seeing an edit to the kernel's acknowledgement, on average, as the daemon itself counts them.
fn changes(node: &FlatfellNode) -> anyhow::Result<f64> {
    let begin = event_to_kernel(node)?;
    for number in 0..CHANGES {
        let port = 10 + number % 2;
        let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": "changing", "namespace": "production"},
            "spec": {"podSelector": {"matchLabels": {"app": "application-0"}}, "ingress": [{"ports": [{"port": port}]}]}});
        node.write("changing.json", &policy.to_string())?;
        // Asking whether it is enforced would be another scrape.
        thread::sleep(CHANGE_EVERY);
    }
    let end = event_to_kernel(node)?;
    ensure!(end.1 > begin.1, "no change was timed");
    Ok((end.0 - begin.0) * 1000.0 / (end.1 - begin.1))
}

/// The daemon's own sum and count.
fn event_to_kernel(node: &FlatfellNode) -> anyhow::Result<(f64, f64)> {
    let metrics = node.metrics()?;
    let value = |end: &str| {
        let name = format!("flatfell_event_to_kernel_seconds_{end} ");
        let line = metrics.lines().find_map(|line| line.strip_prefix(&name)).context("no latency")?;
        line.parse::<f64>().context("a number")
    };
    Ok((value("sum")?, value("count")?))
}

fn while_scraping<T>(lab: &Lab, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let scraper = scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                scrape(lab)?;
            }
            anyhow::Ok(())
        });
        let done = work();
        stop.store(true, Ordering::SeqCst);
        scraper.join().map_err(|_| anyhow::anyhow!("the scraper died"))??;
        done
    })
}
