//! Debian's Prometheus as a process in the lab.
//!
//! In: the shipped PodMonitor, of which it makes what the operator makes: targets with their labels. Out: answers to queries. What always holds: it scrapes faster than
//! anybody would, so that a rate over a short time is exact; the process goes with its handle.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use flatfell_integration::{Lab, Place};
use serde_json::Value;
use tempfile::TempDir;

use super::super::shipped::{directory, document};

/// Between two scrapes. A rate is wrong by what may lie between the last scrape and the question.
const INTERVAL: &str = "100ms";
const LISTEN: &str = "127.0.0.1:9090";
/// Where kube-state-metrics would be.
const STATE: &str = "127.0.0.1:8080";
const PATIENCE: Duration = Duration::from_secs(20);

/// One sample of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Its labels, without the name.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// A running Prometheus at [`Place::Outside`].
pub struct Prometheus<'a> {
    lab: &'a Lab,
    process: Child,
    directory: TempDir,
}

impl<'a> Prometheus<'a> {
    /// Scrapes the daemons of the first nodes; Kubernetes has one node more, and a daemon's pod there that does not
    /// answer.
    pub fn start(lab: &'a Lab, nodes: u8) -> Self {
        let directory = TempDir::new().expect("a directory");
        let config = directory.path().join("prometheus.yml");
        fs::write(&config, configuration(nodes)).expect("a file");
        let checked = Command::new("promtool").args(["check", "config"]).arg(&config).output().expect("promtool");
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
        let outside = lab.netns(Place::Outside).expect("the outside host");
        let state = outside.run(|| TcpListener::bind(STATE)).expect("a namespace").expect("an address");
        thread::spawn(move || serve_state(&state, nodes + 1));
        let log = fs::File::create(directory.path().join("log")).expect("a file");
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
            .arg(format!("--web.listen-address={LISTEN}"))
            .args(["--log.level=warn", "--query.lookback-delta=5s"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        // A child is born in the namespace of the thread that starts it.
        let process = outside.run(|| command.spawn()).expect("a namespace").expect("Debian's prometheus");
        let this = Self { lab, process, directory };
        this.wait_for("up == 1", usize::from(nodes) + 1);
        this
    }

    /// Waits until a query has so many samples.
    pub fn wait_for(&self, query: &str, samples: usize) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.query(query);
            if answer.as_ref().is_ok_and(|found| found.len() == samples) {
                return;
            }
            let log = || fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "{query} has no {samples} samples: {answer:?}\n{}", log());
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// What a query says now.
    pub fn query(&self, query: &str) -> Result<Vec<Sample>, String> {
        let body = format!("query={}", encoded(query));
        let outside = self.lab.netns(Place::Outside).map_err(|error| error.to_string())?;
        let answer = outside.run(|| ask(&body)).map_err(|error| error.to_string())?;
        let answer: Value =
            answer.and_then(|text| Ok(serde_json::from_str(&text)?)).map_err(|error| error.to_string())?;
        let data = &answer["data"];
        match (answer["status"].as_str(), data["resultType"].as_str()) {
            (Some("success"), Some("vector")) => data["result"].as_array().into_iter().flatten().map(sample).collect(),
            _ => Err(answer.to_string()),
        }
    }
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        self.process.kill().and_then(|()| self.process.wait()).ok();
    }
}

fn sample(result: &Value) -> Result<Sample, String> {
    let labels = result["metric"].as_object().ok_or("no labels")?;
    let labels = labels.iter().filter(|(name, _)| *name != "__name__");
    let labels = labels.map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned()));
    let value = result["value"][1].as_str().ok_or("no value")?;
    Ok(Sample { labels: labels.collect(), value: value.parse().map_err(|_| value.to_owned())? })
}

/// HTTP/1.0: the answer ends with the connection and is never chunked.
fn ask(body: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(LISTEN)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "POST /api/v1/query HTTP/1.0\r\nHost: prometheus\r\nContent-Type: application/x-www-form-urlencoded\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.split_once("\r\n\r\n").map_or(String::new(), |(_, body)| body.to_owned()))
}

fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

fn configuration(nodes: u8) -> String {
    let files = ["recording-rules.yaml", "alerts.yaml"].map(|file| directory().join(file).display().to_string());
    let monitor = document("../kustomize/components/pod-monitor/pod-monitor.yaml");
    let job = ["namespace", "name"].map(|key| monitor["metadata"][key].as_str().expect(key)).join("/");
    let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
    let honor = endpoint["honorLabels"].as_bool().unwrap_or(false);
    assert_eq!(endpoint["path"], "/metrics");
    let is_node =
        |rule: &Value| rule["targetLabel"] == "node" && rule["sourceLabels"][0] == "__meta_kubernetes_pod_node_name";
    let has_node = endpoint["relabelings"].as_array().is_some_and(|rules| rules.iter().any(is_node));
    let target = |node: u8, address: String| {
        let name = if has_node { format!(", node: node{node}") } else { String::new() };
        format!(
            "  - targets: ['{address}']\n    labels: {{namespace: flatfell-system, pod: flatfell-{node}, container: flatfell{name}}}\n"
        )
    };
    let daemons = (1..=nodes).map(|node| target(node, format!("{}:9469", Place::Node(node).v4())));
    let targets: String = daemons.chain([target(nodes + 1, "127.0.0.1:1".to_owned())]).collect();
    format!(
        "global: {{scrape_interval: {INTERVAL}, scrape_timeout: {INTERVAL}, evaluation_interval: 1s}}\n\
         rule_files: ['{}', '{}']\n\
         scrape_configs:\n\
         - job_name: {job}\n  honor_labels: {honor}\n  static_configs:\n{targets}\
         - job_name: kube-state-metrics\n  honor_labels: true\n  static_configs:\n  - targets: ['{STATE}']\n",
        files[0], files[1]
    )
}

/// What kube-state-metrics says of a cluster with so many nodes, until the process ends.
fn serve_state(listener: &TcpListener, nodes: u8) {
    let body: String = (1..=nodes).map(|node| format!("kube_node_info{{node=\"node{node}\"}} 1\n")).collect();
    for stream in listener.incoming().flatten() {
        // A client that goes early is its own affair.
        answer(stream, &body).ok();
    }
}

fn answer(mut stream: TcpStream, body: &str) -> io::Result<()> {
    let mut request = [0; 4096];
    let _ = stream.read(&mut request)?;
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}
