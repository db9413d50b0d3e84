//! What each shipped query must say, of [`super::traffic`] and what else was done.
//!
//! In: [`Facts`]: what was sent, and what was read of the nodes by other ways. Out: [`Expect`] by the place of the query. What
//! always holds: rates and increases are those of [`WINDOW`], or of the rule's own window; all of the traffic lies within each.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::server::Sample;
use super::traffic::{
    ADVERTISEMENTS, ALLOWED_PACKETS, AUDITED, CONNECTIONS, DENIED_DB, DENIED_WEB, allowed_bytes, silent_bytes,
};

/// `$__rate_interval` and `$__range`, in seconds.
pub const WINDOW: f64 = 120.0;
/// What `rate5m` is over.
const FIVE: f64 = 300.0;

/// What a query must return.
#[derive(Clone, Debug)]
pub enum Expect {
    /// No sample at all.
    Nothing,
    /// These samples; others may be there if they are zero.
    Samples(Vec<(Labels, Value)>),
    /// Samples that are no number, since nothing was observed.
    NoNumber,
}

type Labels = BTreeMap<String, String>;

/// What a sample must be.
#[derive(Clone, Debug)]
pub enum Value {
    /// This, within 1 %.
    Is(f64),
    /// Within these, both ends included.
    Between(RangeInclusive<f64>),
}

impl Value {
    fn holds(&self, value: f64) -> bool {
        match self {
            Self::Is(expected) => (value - expected).abs() <= expected.abs() * 0.01,
            Self::Between(range) => range.contains(&value),
        }
    }
}

/// Why an answer is not what it must be.
pub fn check(expect: &Expect, answer: &[Sample]) -> Result<(), String> {
    let expected = match expect {
        Expect::Nothing if answer.is_empty() => return Ok(()),
        Expect::NoNumber if !answer.is_empty() && answer.iter().all(|sample| sample.value.is_nan()) => return Ok(()),
        Expect::Nothing | Expect::NoNumber => return Err(format!("{expect:?} expected: {answer:?}")),
        Expect::Samples(samples) => samples,
    };
    for (labels, value) in expected {
        let found: Vec<&Sample> = answer.iter().filter(|sample| sample.labels == *labels).collect();
        match found[..] {
            [sample] if value.holds(sample.value) => {}
            [] => return Err(format!("no {labels:?}: {answer:#?}")),
            _ => return Err(format!("{labels:?} must be {value:?}: {found:?}")),
        }
    }
    let is_more =
        |sample: &&Sample| sample.value != 0.0 && !expected.iter().any(|(labels, _)| *labels == sample.labels);
    match answer.iter().find(is_more) {
        Some(more) => Err(format!("{more:?} is not expected")),
        None => Ok(()),
    }
}

/// What is known by other ways than Prometheus.
#[derive(Debug)]
pub struct Facts {
    /// The labels `rule` of allow-client's rules with and without traffic, and of client-egress.
    pub used: String,
    pub unused: String,
    pub egress: String,
    /// Peers and ports of the first.
    pub peers: String,
    pub ports: String,
    /// Of node 1, since the first scrape.
    pub committed: f64,
    pub operations: f64,
    pub generation: f64,
    /// Of node 1: seconds since the daemon's start.
    pub age: RangeInclusive<f64>,
    /// Entries of conntrack by node, and how many there may be.
    pub conntrack: [RangeInclusive<f64>; 2],
    pub conntrack_max: f64,
    /// Of node 1's process.
    pub memory: RangeInclusive<f64>,
    pub cpu: RangeInclusive<f64>,
    pub files: RangeInclusive<f64>,
    /// What node 1's tables hold, as `nft` lists them.
    pub objects: Vec<(&'static str, f64)>,
    /// Of node 1's own answer.
    pub series: f64,
    pub ids: Vec<(&'static str, f64)>,
    /// Records of the flow log by verdict, and what it lost by reason; together they are all that was denied or audited.
    pub records: Vec<(&'static str, f64)>,
    pub lost: Vec<(&'static str, f64)>,
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn samples<const N: usize>(all: [(&[(&str, &str)], f64); N]) -> Expect {
    Expect::Samples(all.iter().map(|(pairs, value)| (labels(pairs), Value::Is(*value))).collect())
}

fn one(value: f64) -> Expect {
    samples([(&[], value)])
}

/// Numbers over the whole window, a second, each with the word of its label.
fn rates(label: &'static str, all: &[(&'static str, f64)]) -> Expect {
    let sample = |(word, count): &(&str, f64)| (labels(&[(label, word)]), Value::Is(count / WINDOW));
    Expect::Samples(all.iter().map(sample).collect())
}

fn within(range: RangeInclusive<f64>) -> Expect {
    Expect::Samples(vec![(labels(&[]), Value::Between(range))])
}

/// A latency that was observed: more than nothing, less than the test takes.
fn latency() -> Expect {
    within(0.000_01..=10.0)
}

/// By place; a query without an entry fails the test, and so does an entry without a query.
pub fn table(facts: &Facts) -> BTreeMap<&'static str, Expect> {
    let mut table = BTreeMap::new();
    for part in
        [in_force(facts), traffic(facts), policy(facts), node(facts), daemon(facts), alerts(facts), recorded(facts)]
    {
        for (place, expect) in part {
            assert!(table.insert(place, expect).is_none(), "{place} stands twice");
        }
    }
    table
}

type Part = Vec<(&'static str, Expect)>;

const SHOP_IN: [(&str, &str); 2] = [("namespace", "shop"), ("direction", "ingress")];
const SHOP_OUT: [(&str, &str); 2] = [("namespace", "shop"), ("direction", "egress")];

fn in_force(facts: &Facts) -> Part {
    let nodes = |value| samples([(&[("node", "node1")], value), (&[("node", "node2")], value)]);
    vec![
        ("cluster: Nodes with a daemon: A", one(2.0)),
        ("cluster: Nodes not ready: A", one(0.0)),
        ("cluster: Nodes paused: A", one(0.0)),
        ("cluster: Bridge filters off: A", one(0.0)),
        ("cluster: Refused policies: A", one(1.0)),
        ("cluster: Alerts firing: A", one(0.0)),
        ("cluster: Pods by isolation: A", pods()),
        ("cluster: From event to kernel: A", latency()),
        ("cluster: From event to kernel: B", latency()),
        ("cluster: Nodes: A", nodes(1.0)),
        ("cluster: Nodes: B", nodes(1.0)),
        ("cluster: Nodes: C", ratios(facts)),
        ("cluster: Nodes: D", samples([(&[("node", "node1")], f64::from(DENIED_WEB + DENIED_DB) / WINDOW)])),
    ]
}

/// On each node one pod more, the one that tells when files are enforced.
fn pods() -> Expect {
    samples([
        (&[("direction", "ingress"), ("isolation", "isolated")], 2.0),
        (&[("direction", "ingress"), ("isolation", "audited")], 1.0),
        (&[("direction", "ingress"), ("isolation", "open")], 4.0),
        (&[("direction", "egress"), ("isolation", "isolated")], 1.0),
        (&[("direction", "egress"), ("isolation", "open")], 6.0),
    ])
}

fn ratios(facts: &Facts) -> Expect {
    let of = |range: &RangeInclusive<f64>| {
        let ratio = |entries: f64| entries / facts.conntrack_max;
        Value::Between(ratio(*range.start()) * 0.99..=ratio(*range.end()) * 1.01)
    };
    let names = ["node1", "node2"].map(|node| labels(&[("node", node)]));
    Expect::Samples(names.into_iter().zip(facts.conntrack.iter().map(of)).collect())
}

fn traffic(facts: &Facts) -> Part {
    let bytes = allowed_bytes();
    let connections = f64::from(CONNECTIONS);
    let busiest =
        |policy, direction, rule| [("namespace", "shop"), ("policy", policy), ("direction", direction), ("rule", rule)];
    let isolated = |pod, policy| [("namespace", "shop"), ("pod", pod), ("direction", "ingress"), ("policy", policy)];
    vec![
        ("cluster: Allowed by rules: A", samples([(&SHOP_IN, bytes / WINDOW), (&SHOP_OUT, bytes / WINDOW)])),
        ("cluster: Dropped: A", samples([(&SHOP_IN, f64::from(DENIED_WEB + DENIED_DB) / WINDOW)])),
        (
            "cluster: New connections by rules: A",
            samples([(&SHOP_IN, connections / WINDOW), (&SHOP_OUT, connections / WINDOW)]),
        ),
        // The stranger is open: what it sends passes on its node, also what the other one drops.
        (
            "cluster: Allowed without a rule: A",
            samples([
                (&SHOP_IN, silent_bytes(AUDITED) / WINDOW),
                (&SHOP_OUT, silent_bytes(AUDITED + DENIED_WEB + DENIED_DB) / WINDOW),
            ]),
        ),
        (
            "cluster: Drops, and the policies that isolate: A",
            samples([
                (&isolated("web", "allow-client"), f64::from(DENIED_WEB)),
                (&isolated("db", "deny-all"), f64::from(DENIED_DB)),
            ]),
        ),
        (
            "cluster: Busiest rules: A",
            samples([
                (&busiest("allow-client", "ingress", &facts.used), bytes),
                (&busiest("client-egress", "egress", &facts.egress), bytes),
            ]),
        ),
        ("cluster: Would be dropped (audit): A", samples([(&SHOP_IN, f64::from(AUDITED) / WINDOW)])),
    ]
}

/// With `namespace` shop and `policy` allow-client.
fn policy(facts: &Facts) -> Part {
    let bytes = allowed_bytes();
    let connections = f64::from(CONNECTIONS);
    let rule = [("direction", "ingress"), ("rule", facts.used.as_str())];
    let whole = [&[("namespace", "shop"), ("policy", "allow-client")], &rule[..]].concat();
    let says = [&whole[..], &[("index", "0"), ("peers", &facts.peers), ("ports", &facts.ports)]].concat();
    let unused = [("direction", "ingress"), ("rule", facts.unused.as_str())];
    let web = [("namespace", "shop"), ("pod", "web"), ("direction", "ingress")];
    vec![
        ("policy: Pods it isolates: A", one(1.0)),
        ("policy: Rules in use: A", one(2.0)),
        ("policy: Refused: A", one(0.0)),
        ("policy: Connections: A", one(connections)),
        ("policy: Bytes: A", one(bytes)),
        ("policy: Drops of its pods: A", one(f64::from(DENIED_WEB))),
        ("policy: Rules: A", samples([(&says, connections)])),
        ("policy: Rules: B", samples([(&whole, f64::from(ALLOWED_PACKETS))])),
        ("policy: Rules: C", samples([(&whole, bytes)])),
        ("policy: Bytes by rule: A", samples([(&rule, bytes / WINDOW)])),
        ("policy: Connections by rule: A", samples([(&rule, connections / WINDOW)])),
        ("policy: Bytes by node: A", samples([(&[("node", "node1")], bytes / WINDOW)])),
        ("policy: Rules without traffic: A", samples([(&unused, 0.0)])),
        ("policy: Dropped by pod: A", samples([(&web, f64::from(DENIED_WEB) / WINDOW)])),
        (
            "policy: Would be dropped (audit): A",
            samples([(&[("pod", "idle"), ("direction", "ingress")], f64::from(AUDITED) / WINDOW)]),
        ),
    ]
}

/// With `node` node1.
fn node(facts: &Facts) -> Part {
    let pod = |name| [("namespace", "shop"), ("pod", name), ("direction", "ingress")];
    vec![
        ("node: Ready: A", one(1.0)),
        ("node: Newest policy: A", one(1.0)),
        ("node: Paused: A", one(0.0)),
        ("node: Bridge filter: A", one(1.0)),
        ("node: Running for: A", within(facts.age.clone())),
        ("node: Oldest change waiting: A", one(0.0)),
        ("node: Counters read: A", within(0.0..=0.1)),
        ("node: Generation: A", one(facts.generation)),
        (
            "node: Dropped by pod: A",
            samples([(&pod("web"), f64::from(DENIED_WEB) / WINDOW), (&pod("db"), f64::from(DENIED_DB) / WINDOW)]),
        ),
        (
            "node: Allowed by rules: A",
            samples([(&[("namespace", "shop"), ("policy", "allow-client")], allowed_bytes() / WINDOW)]),
        ),
        ("node: Allowed without a rule: A", samples([(&pod("idle"), silent_bytes(AUDITED) / WINDOW)])),
        (
            "node: Ways round policy, closed: A",
            samples([(&[("guard", "router-advertisement")], f64::from(ADVERTISEMENTS) / WINDOW)]),
        ),
        ("node: Ways round policy, closed: B", one(0.0)),
        ("node: Flow log: A", rates("verdict", &facts.records)),
        ("node: Flow log: B", rates("reason", &facts.lost)),
        ("node: Connection table: A", within(facts.conntrack[0].clone())),
        ("node: Connection table: B", one(facts.conntrack_max)),
    ]
}

fn daemon(facts: &Facts) -> Part {
    let by = |name: &'static str, all: &[(&'static str, f64)]| {
        Expect::Samples(all.iter().map(|(word, value)| (labels(&[(name, word)]), Value::Is(*value))).collect())
    };
    vec![
        ("node: From event to kernel: A", latency()),
        ("node: From event to kernel: B", latency()),
        ("node: From event to kernel: C", latency()),
        // A directory has no creation timestamps.
        ("node: From creation to kernel: A", Expect::NoNumber),
        ("node: Commit: A", latency()),
        ("node: Commit: B", latency()),
        ("node: Transactions: A", by("result", &[("committed", facts.committed / WINDOW)])),
        ("node: Transactions: B", one(0.0)),
        ("node: Operations in a transaction: A", one(facts.operations / facts.committed)),
        ("node: Changes waiting: A", one(0.0)),
        ("node: Objects in the kernel: A", by("kind", &facts.objects)),
        ("node: Repairs, takeovers, flows cut: A", by("kind", &[("tables", 1.0), ("bridge-filter", 1.0)])),
        ("node: Repairs, takeovers, flows cut: B", one(0.0)),
        ("node: Repairs, takeovers, flows cut: C", one(0.0)),
        // A directory is no API server.
        ("node: API server: silence: A", Expect::Nothing),
        ("node: CPU: A", within(facts.cpu.start() / WINDOW..=facts.cpu.end() / WINDOW)),
        ("node: Memory: A", within(facts.memory.clone())),
        ("node: Open files: A", within(facts.files.clone())),
        ("node: Series and rule ids: A", one(facts.series / 200_000.0)),
        ("node: Series and rule ids: B", by("direction", &facts.ids)),
    ]
}

fn alerts(facts: &Facts) -> Part {
    let third = [
        ("node", "node3"),
        ("job", "flatfell-system/flatfell"),
        ("instance", "127.0.0.1:1"),
        ("namespace", "flatfell-system"),
        ("pod", "flatfell-3"),
        ("container", "flatfell"),
    ];
    let repair = |kind| [("node", "node1"), ("kind", kind)];
    let quiet = [
        "FlatfellNotReady",
        "FlatfellStaleSync",
        "FlatfellBridgeFilterOff",
        "FlatfellAbsent",
        "FlatfellPaused",
        "FlatfellCommitsFail",
        "FlatfellProgrammingSlow",
        "FlatfellConntrackNearFull",
        "FlatfellConntrackFull",
        "FlatfellWatchBroken",
        "FlatfellRestarts",
        "FlatfellCountersUnread",
        "FlatfellRuleIdsNearlyUsed",
        "FlatfellSeriesNearlyUsed",
        "FlatfellUnattributed",
    ];
    let loud = [
        ("FlatfellNodeWithoutDaemon", samples([(&[("node", "node3")], 1.0)])),
        ("FlatfellTargetDown", samples([(&third, 0.0)])),
        ("FlatfellForeignEngine", samples([(&[("node", "node2"), ("engine", "calico")], 1.0)])),
        ("FlatfellRepairs", samples([(&repair("tables"), 1.0), (&repair("bridge-filter"), 1.0)])),
        ("FlatfellInvalidPolicy", samples([(&[("namespace", "shop"), ("policy", "broken")], 1.0)])),
        ("FlatfellDropsRising", samples([(&[("namespace", "shop")], f64::from(DENIED_WEB + DENIED_DB) / FIVE)])),
        (
            "FlatfellGuardDrops",
            samples([(&[("node", "node1"), ("guard", "router-advertisement")], f64::from(ADVERTISEMENTS))]),
        ),
    ];
    let lost = facts.lost.iter().filter(|(_, count)| *count > 100.0);
    let lost = lost.map(|(reason, count)| (labels(&[("node", "node1"), ("reason", reason)]), Value::Is(*count)));
    let lost = ("FlatfellFlowLogLost", Expect::Samples(lost.collect()));
    quiet.map(|name| (name, Expect::Nothing)).into_iter().chain(loud).chain([lost]).collect()
}

fn recorded(facts: &Facts) -> Part {
    let bytes = allowed_bytes() / FIVE;
    let connections = f64::from(CONNECTIONS) / FIVE;
    let policy = |name| [("namespace", "shop"), ("policy", name)];
    let policies = |value| samples([(&policy("allow-client"), value), (&policy("client-egress"), value)]);
    let pod = |name| [("namespace", "shop"), ("pod", name), ("direction", "ingress")];
    let (web, db) = (f64::from(DENIED_WEB) / FIVE, f64::from(DENIED_DB) / FIVE);
    let nodes = ["node1", "node2"].map(|node| (labels(&[("node", node)]), Value::Between(0.000_01..=10.0)));
    vec![
        ("namespace:flatfell_rule_bytes:rate5m", samples([(&[("namespace", "shop")], 2.0 * bytes)])),
        ("namespace_policy:flatfell_rule_bytes:rate5m", policies(bytes)),
        ("namespace_policy:flatfell_rule_connections:rate5m", policies(connections)),
        ("namespace:flatfell_dropped_packets:rate5m", samples([(&[("namespace", "shop")], web + db)])),
        ("namespace_pod_direction:flatfell_dropped_packets:rate5m", samples([(&pod("web"), web), (&pod("db"), db)])),
        ("node:flatfell_dropped_packets:rate5m", samples([(&[("node", "node1")], web + db)])),
        ("node:flatfell_event_to_kernel_seconds:p99_15m", Expect::Samples(nodes.into())),
        ("node:flatfell_conntrack_entries:ratio", ratios(facts)),
    ]
}
