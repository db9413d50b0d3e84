//! What HTTP answers, over a real socket on loopback, with an engine that only remembers.

use std::io::{Read, Write};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use flatfell_rules::compile::{CounterMeaning, Guard, Meanings};
use flatfell_rules::effective::{Effective, EffectivePod, Fallback, Isolation, RuleIdentity};
use flatfell_rules::object::ObjectName;
use flatfell_rules::policy::{Action, Direction};
use flatfell_rules::ruleset::{CounterValue, Name};
use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;

use super::*;
use crate::engine::{CounterSnapshot, EngineError, EngineStatus, RuleIds, TransactionStats, Upkeep};
use crate::pause::Paused;
use crate::state::{EngineView, SourceState};
use crate::status::Report;

/// An engine without a kernel.
struct Memory {
    status: Mutex<EngineStatus>,
    counters: Mutex<CounterSnapshot>,
    is_broken: AtomicBool,
}

impl EngineView for Memory {
    fn status(&self) -> Arc<EngineStatus> {
        Arc::new(self.status.lock().expect("status").clone())
    }

    fn counters(&self) -> Result<CounterSnapshot, EngineError> {
        if self.is_broken.load(Ordering::SeqCst) {
            return Err(EngineError::Silent);
        }
        Ok(CounterSnapshot { read: Some(Instant::now()), ..self.counters.lock().expect("counters").clone() })
    }
}

fn meanings() -> Meanings {
    let pod = ObjectName::new("shop", "fe");
    let identity = RuleIdentity {
        policy: ObjectName::new("shop", "allow"),
        direction: Direction::Ingress,
        action: Action::Accept,
        peers: "pods \"x\"".to_owned(),
        ports: "tcp 80".to_owned(),
        occurrence: 0,
    };
    let all = [
        ("r1", CounterMeaning::Rule { identity: identity.into(), index: 2, action: Action::Accept }),
        ("d1", CounterMeaning::Dropped { pod: pod.clone(), direction: Direction::Ingress }),
        ("w1", CounterMeaning::WouldDrop { pod, direction: Direction::Egress }),
        ("g1", CounterMeaning::Guard(Guard::Frame)),
        ("g2", CounterMeaning::Guard(Guard::Frame)),
    ];
    all.into_iter().map(|(name, meaning)| (Name::from(name), Arc::new(meaning))).collect()
}

fn effective() -> Effective {
    let isolated =
        Isolation { default: Fallback::Deny, policies: vec![ObjectName::new("shop", "allow")], rules: Vec::new() };
    let pod = EffectivePod {
        name: ObjectName::new("shop", "fe"),
        addresses: vec![IpAddr::from([10, 42, 0, 3])],
        ingress: isolated,
        egress: Isolation { default: Fallback::Audit, ..Isolation::default() },
    };
    Effective::from_iter([pod])
}

fn memory() -> Arc<Memory> {
    let mut transactions = TransactionStats { committed: 3, failed: 1, ..TransactionStats::default() };
    transactions.latency.observe(0.002);
    Arc::new(Memory {
        status: Mutex::new(EngineStatus {
            not_ready: Vec::new(),
            warnings: vec!["a flowtable of somebody else".to_owned()],
            foreign_engines: ["kube-router"].into(),
            generation: 7,
            slot: "a",
            enforced: Some(Arc::new(effective())),
            locked: true,
            synced: true,
            swept: true,
            transactions,
            upkeep: Upkeep::default(),
            rule_ids: RuleIds::default(),
        }),
        counters: Mutex::new(CounterSnapshot {
            meanings: meanings(),
            // In the order of the names: d1, g1, g2, r1, w1.
            totals: [2, 4, 5, 1, 3].map(|packets| Some(CounterValue { packets, bytes: packets * 60 })).into(),
            read: None,
        }),
        is_broken: AtomicBool::new(false),
    })
}

/// A server, what it asks, and what the controller would publish to.
struct Lab {
    engine: Arc<Memory>,
    source: watch::Sender<Arc<SourceState>>,
    paused: watch::Sender<Paused>,
    address: SocketAddr,
}

impl Lab {
    async fn start() -> Self {
        let engine = memory();
        let read =
            SourceState { read: true, refused: vec![ObjectName::new("shop", "broken")], ..SourceState::default() };
        let (source, receiver) = watch::channel(Arc::new(read));
        let (paused, shown) = watch::channel(Paused::default());
        let state = State {
            node: "n1".into(),
            source: receiver,
            paused: shown,
            engine: engine.clone(),
            metrics: Arc::default(),
            unprotected: Arc::default(),
            flows: Arc::default(),
            cni: Arc::default(),
        };
        let server = Server::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a port");
        let address = server.address;
        tokio::spawn(server.serve(state));
        Self { engine, source, paused, address }
    }

    /// What comes back until the daemon closes the connection.
    async fn ask(&self, request: &str) -> String {
        let (address, request) = (self.address, request.to_owned());
        let exchange = move || {
            let mut stream = std::net::TcpStream::connect(address).expect("connected");
            stream.set_read_timeout(Some(2 * HEADER_TIME)).expect("a time limit");
            stream.write_all(request.as_bytes()).expect("sent");
            let mut answer = Vec::new();
            match stream.read_to_end(&mut answer) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("held for ever"),
                _ => String::from_utf8_lossy(&answer).into_owned(),
            }
        };
        spawn_blocking(exchange).await.expect("an exchange")
    }

    async fn get(&self, path: &str) -> String {
        self.ask(&format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await
    }
}

#[tokio::test]
async fn metrics_have_every_series_once() {
    let lab = Lab::start().await;
    let answer = lab.get("/metrics").await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("a body");
    assert!(
        head.starts_with("HTTP/1.1 200") && head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"),
        "{head}"
    );
    let rule = r#"namespace="shop",policy="allow",direction="ingress",rule=""#;
    for expected in [
        format!("flatfell_rule_packets_total{{{rule}"),
        format!("flatfell_rule_info{{{rule}"),
        r#"index="2",peers="pods \"x\"",ports="tcp 80"} 1"#.to_owned(),
        r#"flatfell_dropped_packets_total{namespace="shop",pod="fe",direction="ingress"} 2"#.to_owned(),
        r#"flatfell_dropped_bytes_total{namespace="shop",pod="fe",direction="ingress"} 120"#.to_owned(),
        r#"flatfell_would_drop_packets_total{namespace="shop",pod="fe",direction="egress"} 3"#.to_owned(),
        r#"flatfell_guard_packets_total{guard="frame"} 9"#.to_owned(),
        r#"flatfell_transactions_total{result="committed"} 3"#.to_owned(),
        r#"flatfell_transactions_total{result="failed"} 1"#.to_owned(),
        r#"flatfell_transaction_duration_seconds_bucket{le="+Inf"} 1"#.to_owned(),
        "flatfell_generation 7".to_owned(),
        "flatfell_ready 1".to_owned(),
        r#"flatfell_policy_invalid{namespace="shop",policy="broken"} 1"#.to_owned(),
        format!("flatfell_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION")),
    ] {
        assert!(body.contains(&expected), "{expected}\n{body}");
    }
    assert!(!body.contains("# EOF"));
    let mut series: Vec<&str> = body
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.rsplit_once(' '))
        .map(|s| s.0)
        .collect();
    let all = series.len();
    series.sort_unstable();
    series.dedup();
    assert_eq!(series.len(), all, "{body}");
}

#[tokio::test]
async fn openmetrics_is_for_those_who_ask_for_it() {
    let lab = Lab::start().await;
    let accept = "accept: application/openmetrics-text;version=1.0.0;q=0.9\r\naccept: text/plain;q=0.5";
    let answer = lab.ask(&format!("GET /metrics HTTP/1.1\r\nhost: x\r\n{accept}\r\nconnection: close\r\n\r\n")).await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("a body");
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"), "{head}");
    assert!(head.contains("vary: accept") && body.ends_with("# EOF\n"), "{head}");
    assert!(body.contains("# UNIT flatfell_rule_bytes bytes\n"), "{body}");
}

#[tokio::test]
async fn counters_that_cannot_be_read_leave_the_last_values() {
    let lab = Lab::start().await;
    let frame = "flatfell_guard_packets_total{guard=\"frame\"} 9\n";
    assert!(lab.get("/metrics").await.contains(frame));
    lab.engine.is_broken.store(true, Ordering::SeqCst);
    let answer = lab.get("/metrics").await;
    assert!(answer.contains(frame) && answer.contains("flatfell_counters_read_failures_total 1\n"), "{answer}");
    let age = |answer: &str| {
        let line = answer.lines().find_map(|line| line.strip_prefix("flatfell_counters_age_seconds "));
        line.and_then(|age| age.parse::<f64>().ok()).expect("an age")
    };
    assert!(age(&answer) > 0.0, "{answer}");
    lab.engine.is_broken.store(false, Ordering::SeqCst);
    assert!(age(&lab.get("/metrics").await) < 0.001);
}

/// What stands at the end of every /readyz of the lab.
const NOTES: &str = "notes:\n- a flowtable of somebody else\n";

#[tokio::test]
async fn a_pause_is_shown_and_leaves_it_ready() {
    let lab = Lab::start().await;
    let metrics = lab.get("/metrics").await;
    assert!(metrics.contains("flatfell_paused 0\n") && !metrics.contains("\nflatfell_paused_until_timestamp_seconds "));
    let until = Timestamp::from_second(4_000_000_000).expect("a time");
    lab.paused.send_replace(Paused { until: Some(until), problem: Some("a wrong annotation".to_owned()) });
    let answer = lab.get("/readyz").await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("ready\nnotes:\n- paused until 2096-10-02"),
        "{answer}"
    );
    assert!(answer.contains("\n- a wrong annotation\n- a flowtable of somebody else\n"), "{answer}");
    let metrics = lab.get("/metrics").await;
    assert!(metrics.contains("\nflatfell_paused 1\n"), "{metrics}");
    assert!(metrics.contains("\nflatfell_paused_until_timestamp_seconds 4000000000\n"), "{metrics}");
    assert!(metrics.contains("\nflatfell_foreign_engine_info{engine=\"kube-router\"} 1\n"), "{metrics}");
    let status = lab.get("/status").await;
    let report: Report = serde_json::from_str(status.split_once("\r\n\r\n").expect("a body").1).expect("a report");
    assert!(report.paused_until.is_some_and(|until| until.starts_with("2096-10-02")) && report.notes.len() == 2);
}

#[tokio::test]
async fn a_node_that_is_cleaned_up_says_so() {
    let server = Server::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a port");
    let address = server.address;
    let lab = Lab { address, ..Lab::start().await };
    tokio::spawn(server.serve_cleaned());
    assert!(lab.get("/healthz").await.starts_with("HTTP/1.1 200"));
    let answer = lab.get("/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("cleaned up\n"), "{answer}");
    assert!(lab.get("/metrics").await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn readiness_says_why_not() {
    let lab = Lab::start().await;
    let answer = lab.get("/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(&format!("ready\n{NOTES}")), "{answer}");
    lab.engine.status.lock().expect("status").not_ready.push("br_netfilter is not loaded".to_owned());
    let answer = lab.get("/readyz").await;
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("not ready:\n- br_netfilter is not loaded\n"),
        "{answer}"
    );
    assert!(answer.ends_with(NOTES), "{answer}");
    lab.engine.status.lock().expect("status").not_ready.clear();
    lab.source.send_replace(Arc::new(SourceState {
        unknown: vec!["a.yaml:1: x".to_owned()],
        read: true,
        ..SourceState::default()
    }));
    assert!(lab.get("/readyz").await.contains("- a.yaml:1: x: correct it\n"));
    lab.source.send_replace(Arc::default());
    assert!(lab.get("/readyz").await.contains("- the manifests are not read yet\n"));
    assert!(lab.get("/healthz").await.starts_with("HTTP/1.1 200"), "alive all the same");
}

#[tokio::test]
async fn status_reads_back_what_it_was() {
    let lab = Lab::start().await;
    let answer = lab.get("/status").await;
    let report: Report = serde_json::from_str(answer.split_once("\r\n\r\n").expect("a body").1).expect("a report");
    assert_eq!((report.pods[0].ingress.isolation.as_str(), report.pods[0].ingress.dropped.packets), ("isolated", 2));
    assert_eq!((report.pods[0].egress.isolation.as_str(), report.pods[0].egress.would_drop.packets), ("audited", 3));
    assert_eq!((report.rules[0].index, report.rules[0].traffic.packets), (2, 1));
    assert_eq!(report.guards["frame"].packets, 9);
}

#[tokio::test]
async fn other_paths_and_methods_are_refused() {
    let lab = Lab::start().await;
    assert!(lab.get("/").await.starts_with("HTTP/1.1 404"));
    let answer = lab.ask("POST /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 405") && answer.to_lowercase().contains("allow: get, head"), "{answer}");
    let answer = lab.ask("HEAD /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn a_client_cannot_hold_or_fill_the_daemon() {
    let lab = Lab::start().await;
    let answer = lab.ask(&format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(2 * HEADER_BYTES))).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    let answer = lab.ask("GET /met").await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "closed after the time for headers: {answer}");
}

#[tokio::test]
async fn a_taken_address_is_named() {
    let lab = Lab::start().await;
    let error = Server::bind(lab.address).await.expect_err("taken").to_string();
    assert!(error.contains(&lab.address.to_string()) && error.contains("--listen"), "{error}");
}
