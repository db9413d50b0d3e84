//! Debian's Prometheus scrapes two daemons, known traffic is sent, and each query of each panel and alert says what was sent.
#![allow(clippy::expect_used)]

mod scraped;
mod shipped;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::RangeInclusive;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use flatfell::status::Transactions;
use flatfell_integration::{FlatfellNode, Lab, LabConfig, Place};
use scraped::server::{Prometheus, Sample};
use scraped::table::{Expect, Facts, WINDOW, check, table};
use scraped::traffic::{self, AUDITED, CLIENT, DB, DENIED_DB, DENIED_WEB, IDLE, STRANGER, WEB};
use serde_json::Value;
use shipped::Query;

/// From the first scrape to the questions: a rate is taken as if the last scrape's distance came on top.
const SCRAPED_FOR: Duration = Duration::from_secs(22);

fn pod(name: &str, place: Place) -> String {
    let node = place.node().expect("a pod");
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: {name}, labels: {{app: {name}}}}}\n\
         spec: {{nodeName: node{node}}}\nstatus: {{podIP: {}, podIPs: [{{ip: {}}}, {{ip: \"{}\"}}]}}\n---\n",
        place.v4(),
        place.v4(),
        place.v6()
    )
}

fn policy(name: &str, annotations: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{name: {name}, namespace: shop, annotations: {{{annotations}}}}}\nspec: {spec}\n---\n"
    )
}

/// Both nodes know all of it.
fn manifests() -> String {
    let pods = [("web", WEB), ("db", DB), ("idle", IDLE), ("client", CLIENT), ("stranger", STRANGER)];
    let pods: String = pods.into_iter().map(|(name, place)| pod(name, place)).collect();
    let of = |app: &str| format!("podSelector: {{matchLabels: {{app: {app}}}}}");
    let ports = "ports: [{port: 8080, protocol: UDP}]";
    let allow =
        format!("{{{}, ingress: [{{from: [{{{}}}], {ports}}}, {{ports: [{{port: 9999}}]}}]}}", of("web"), of("client"));
    let egress = format!("{{{}, policyTypes: [Egress], egress: [{{to: [{{{}}}], {ports}}}]}}", of("client"), of("web"));
    let broken = format!("{{{}, ingress: [{{from: [{{ipBlock: {{cidr: 10.0.0.0/99}}}}]}}]}}", of("nobody"));
    [
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\n".to_owned(),
        pods,
        policy("allow-client", "", &allow),
        policy("deny-all", "", &format!("{{{}}}", of("db"))),
        policy("client-egress", "", &egress),
        policy("audited", "flatfell.io/mode: audit", &format!("{{{}}}", of("idle"))),
        policy("broken", "", &broken),
    ]
    .concat()
}

/// Somebody removes the daemon's tables and switches a bridge's filter off.
fn meddle(lab: &Lab, node: &FlatfellNode) {
    let repairs = |kind: &str| {
        node.metrics().expect("metrics").contains(&format!("flatfell_repairs_total{{kind=\"{kind}\"}} 1\n"))
    };
    let wait = |kind: &str| {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !repairs(kind) {
            assert!(Instant::now() < deadline, "{kind} is not repaired: {}", node.metrics().expect("metrics"));
            thread::sleep(Duration::from_millis(20));
        }
    };
    // What was counted since the last reading would go with the table.
    let deadline = Instant::now() + Duration::from_secs(10);
    while logged_and_denied(node)[0] < f64::from(DENIED_WEB + DENIED_DB + AUDITED) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(20));
    }
    let slot = node.status().expect("a status").slot;
    lab.nft(Place::Node(1), &format!("delete table inet {slot}\n")).expect("nft");
    wait("tables");
    lab.batch(Place::Node(1), "ip", "link set cni0 type bridge nf_call_iptables 0\n").expect("ip");
    wait("bridge-filter");
}

/// What is read of a process and its node by /proc.
#[derive(Clone, Copy, Debug)]
struct Reading {
    entries: [f64; 2],
    memory: f64,
    cpu: f64,
    files: f64,
    age: f64,
}

fn read(lab: &Lab, node: &FlatfellNode) -> Reading {
    let process = node.process_id().expect("it runs");
    let file = |name: &str| fs::read_to_string(format!("/proc/{process}/{name}")).expect("a process");
    let status = file("status");
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
    let rss: f64 = rss.trim().trim_end_matches(" kB").parse().expect("a number");
    let threads = fs::read_dir(format!("/proc/{process}/task")).expect("threads").flatten();
    let ran = |task: fs::DirEntry| fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
    let ran: f64 =
        threads.map(|task| ran(task).split(' ').next().and_then(|time| time.parse::<f64>().ok()).unwrap_or(0.0)).sum();
    let files = fs::read_dir(format!("/proc/{process}/fd")).expect("descriptors").count();
    let started = fs::metadata(format!("/proc/{process}")).and_then(|entry| entry.modified()).expect("a start");
    Reading {
        entries: [1, 2].map(|node| conntrack(lab, node, "count")),
        memory: rss * 1024.0,
        cpu: ran / 1e9,
        files: f64::from(u32::try_from(files).expect("few")),
        age: SystemTime::now().duration_since(started).unwrap_or_default().as_secs_f64(),
    }
}

fn conntrack(lab: &Lab, node: u8, what: &str) -> f64 {
    let path = format!("/proc/sys/net/netfilter/nf_conntrack_{what}");
    let text = lab.netns(Place::Node(node)).expect("a node").run(|| fs::read_to_string(&path)).expect("a namespace");
    text.expect("conntrack").trim().parse().expect("a number")
}

fn range(one: f64, other: f64, slack: f64) -> RangeInclusive<f64> {
    one.min(other) - slack..=one.max(other) + slack
}

/// Objects of our tables as `nft` lists them, without the elements, which it folds.
fn objects(lab: &Lab) -> Vec<(&'static str, f64)> {
    let listing = lab.netns(Place::Node(1)).expect("a node").feed("nft", &["-j", "list", "ruleset"], "").expect("nft");
    let listing: Value = serde_json::from_str(&listing).expect("JSON");
    let all = listing["nftables"].as_array().expect("objects");
    let ours = |object: &Value, key: &str| {
        object[key][if key == "table" { "name" } else { "table" }]
            .as_str()
            .is_some_and(|name| name.starts_with("flatfell-"))
    };
    let count = |keys: &[&str]| {
        let count = all.iter().filter(|object| keys.iter().any(|key| ours(object, key))).count();
        f64::from(u32::try_from(count).expect("few"))
    };
    vec![
        ("tables", count(&["table"])),
        ("chains", count(&["chain"])),
        ("rules", count(&["rule"])),
        ("sets", count(&["set", "map"])),
        ("counters", count(&["counter"])),
    ]
}

/// Variables as somebody would choose them.
fn filled(place: &str, expr: &str) -> String {
    let one = if place.starts_with("policy: ") { ("shop", "allow-client") } else { (".*", ".*") };
    let node = if place.starts_with("node: ") { "node1" } else { ".*" };
    let window = format!("{WINDOW}s");
    let filled = [
        ("$__rate_interval", window.as_str()),
        ("$__range", &window),
        ("$namespace", one.0),
        ("$policy", one.1),
        ("$node", node),
        ("$pod", ".*"),
    ]
    .into_iter()
    .fold(expr.to_owned(), |expr, (variable, value)| expr.replace(variable, value));
    assert!(!filled.contains('$'), "{place}: {filled}");
    filled
}

/// What is wrong with an answer.
fn complaint(table: &BTreeMap<&str, Expect>, query: &Query, answer: &Result<Vec<Sample>, String>) -> Option<String> {
    let verdict = match (table.get(query.place.as_str()), answer) {
        (None, _) => Err("is not in the table".to_owned()),
        (Some(_), Err(error)) => Err(error.clone()),
        (Some(expect), Ok(answer)) => check(expect, answer),
    };
    verdict.err().map(|why| format!("{}\n  {}\n  {why}", query.place, query.expr))
}

/// Packets that the flow log accounts for, and those that policy denied or would deny: one reading, which has each of them in both.
fn logged_and_denied(node: &FlatfellNode) -> [f64; 2] {
    let metrics = node.metrics().expect("metrics");
    let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
    let sum = |names: [&str; 2]| {
        let of_names = metrics.lines().filter(|line| names.iter().any(|name| line.starts_with(&format!("{name}{{"))));
        of_names.filter_map(value).sum()
    };
    [
        sum(["flatfell_flow_log_records_total", "flatfell_flow_log_lost_total"]),
        sum(["flatfell_dropped_packets_total", "flatfell_would_drop_packets_total"]),
    ]
}

/// What is known by other ways than Prometheus.
fn gather(
    lab: &Lab,
    nodes: &[FlatfellNode; 2],
    before: &(Transactions, Reading),
    [first, last]: [Reading; 2],
) -> Facts {
    let report = nodes[0].status().expect("a status");
    let rule = |report: &flatfell::status::Report, policy: &str, index| {
        report.rules.iter().find(|rule| rule.policy == policy && rule.index == index).expect("a rule").clone()
    };
    let used = rule(&report, "allow-client", 0);
    let (peers, ports) = used.content.trim_start_matches("accept peers ").split_once(" ports ").expect("a content");
    let own = nodes[0].metrics().expect("metrics");
    let value = |line: &str| -> f64 {
        let found = own.lines().find_map(|own| own.strip_prefix(line)).unwrap_or_else(|| panic!("no {line}: {own}"));
        found.trim().parse().expect("a number")
    };
    let flow_log = |metric: &str, label: &'static str, words: &[&'static str]| -> Vec<(&'static str, f64)> {
        words
            .iter()
            .map(|word| (*word, value(&format!("flatfell_flow_log_{metric}_total{{{label}=\"{word}\"}}"))))
            .collect()
    };
    let records = flow_log("records", "verdict", &["denied", "audited"]);
    let lost = flow_log("lost", "reason", &["rate", "pod", "socket", "writer", "unreadable"]);
    let [logged, denied] = logged_and_denied(&nodes[0]);
    let sent = f64::from(DENIED_WEB + DENIED_DB + AUDITED);
    assert_eq!([logged, denied], [sent; 2], "{records:?} {lost:?}\n{own}");
    let limit = value("flatfell_rule_ids_limit{direction=\"ingress\"}").max(1.0);
    let count = |after: u64, before: u64| f64::from(u32::try_from(after - before).expect("few"));
    Facts {
        used: used.rule.clone(),
        unused: rule(&report, "allow-client", 1).rule,
        egress: rule(&nodes[1].status().expect("a status"), "client-egress", 0).rule,
        peers: peers.to_owned(),
        ports: ports.to_owned(),
        committed: count(report.transactions.committed, before.0.committed),
        operations: count(report.transactions.operations, before.0.operations),
        generation: f64::from(report.generation),
        age: range(first.age, last.age, 2.0),
        conntrack: [0, 1].map(|node| range(first.entries[node], last.entries[node], 1.0)),
        conntrack_max: conntrack(lab, 1, "max"),
        // The kernel counts pages in batches, by processor: what it says in two places differs.
        memory: range(first.memory * 0.99, last.memory * 1.01, 2e6),
        cpu: range((first.cpu - before.1.cpu) * 0.85, (last.cpu - before.1.cpu) * 1.15, 0.05),
        files: range(first.files, last.files, 2.0),
        objects: [objects(lab), vec![("elements", value("flatfell_programmed_objects{kind=\"elements\"}"))]].concat(),
        series: value("flatfell_series "),
        records,
        lost,
        ids: ["ingress", "egress"]
            .map(|direction| (direction, value(&format!("flatfell_rule_ids{{direction=\"{direction}\"}}")) / limit))
            .into(),
    }
}

#[test]
fn each_query_says_what_was_sent() {
    let lab = Lab::new(LabConfig { nodes: 2, pods: 3, ..LabConfig::default() }).expect("a lab");
    let text = manifests();
    let start = |node| {
        FlatfellNode::start_with(&lab, node, &[("all.yaml", &text)], &["--listen=0.0.0.0:9469", "--tables=shared"])
            .expect("a daemon")
    };
    let mut nodes = [start(1), start(2)];
    lab.nft(Place::Node(2), "add table ip calico\n").expect("nft");
    let before = (nodes[0].status().expect("a status").transactions, read(&lab, &nodes[0]));
    let prometheus = Prometheus::start(&lab, 2);
    prometheus.wait_for("flatfell_rule_info", 3);
    let since = Instant::now();
    traffic::send(&lab);
    for node in &mut nodes {
        node.settle().expect("settled");
    }
    meddle(&lab, &nodes[0]);
    prometheus.wait_for("flatfell_foreign_engine_info", 1);
    thread::sleep(SCRAPED_FOR.saturating_sub(since.elapsed()));

    let first = read(&lab, &nodes[0]);
    let answers: Vec<_> = shipped::queries()
        .into_iter()
        .map(|query| (prometheus.query(&filled(&query.place, &query.expr)), query))
        .collect();
    let recorded: Vec<_> = shipped::rule_queries("recording-rules.yaml")
        .into_iter()
        .map(|rule| (prometheus.query(&rule.place), rule))
        .collect();
    let last = read(&lab, &nodes[0]);

    let table = table(&gather(&lab, &nodes, &before, [first, last]));
    let answered = answers.iter().chain(&recorded);
    let wrong: Vec<String> = answered.filter_map(|(answer, query)| complaint(&table, query, answer)).collect();
    let places: BTreeSet<&str> = answers.iter().map(|(_, query)| query.place.as_str()).collect();
    let stale: Vec<_> = table.keys().filter(|place| !places.contains(*place)).collect();
    let (count, text) = (wrong.len(), wrong.join("\n"));
    assert!(wrong.is_empty() && stale.is_empty(), "{count} of {}:\n{text}\nwithout a query: {stale:?}", table.len());
    println!("{} queries say what was sent", answers.len() + recorded.len());
}
