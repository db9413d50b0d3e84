//! The CNI plugin in its chain: Flannel's conflist, the real plugins around it, the API server, the daemon.
//!
//! In: pods started as a kubelet starts them. Out: nothing, or what passed or not. What always holds: the API shows a pod's addresses long
//! after it has started, and each packet is real.
#![allow(clippy::expect_used)]

use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use flatfell_integration::cluster::objects::policy;
use flatfell_integration::cluster::{Cluster, ClusterConfig, Flannel, Runtime};
use flatfell_integration::scene::{Expected, no, tcp, yes};
use flatfell_integration::{FlatfellNode, Place};
use serde_json::{Value, json};

/// As kube-flannel.yml has it.
const CONFLIST: &str = include_str!("../../daemon/src/cni/flannel.conflist");
const DB: Place = Place::pod(1, 0);
const WEB: Place = Place::pod(1, 1);
const FAR: Place = Place::pod(2, 0);

struct World {
    // Before the cluster, whose namespaces they live in.
    daemon: FlatfellNode,
    cluster: Cluster,
    directory: tempfile::TempDir,
}

impl World {
    fn new(flags: &[&str]) -> Self {
        let config = ClusterConfig { flannel: Some(Flannel::default()), ..ClusterConfig::default() };
        let mut cluster = Cluster::new(config).expect("a cluster");
        let directory = tempfile::tempdir().expect("a directory");
        for name in ["net.d", "bin"] {
            fs::create_dir(directory.path().join(name)).expect("a directory");
        }
        fs::write(directory.path().join("net.d/10-flannel.conflist"), CONFLIST).expect("a conflist");
        cluster.add_pod("a", "db", json!({"app": "db"}), 1, 0).expect("a pod");
        cluster.add_pod("a", "far", json!({"app": "far"}), 2, 0).expect("a pod");
        // Web may come to the database and hear of it; nobody else may do anything.
        let of = |app: &str| json!([{"podSelector": {"matchLabels": {"app": app}}}]);
        cluster
            .api()
            .put(&policy("a", "all", json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})))
            .expect("a policy");
        let db = json!({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [{"from": of("web")}],
            "egress": [{"to": of("web")}], "policyTypes": ["Ingress", "Egress"]});
        cluster.api().put(&policy("a", "db", db)).expect("a policy");
        let web = json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"from": of("db")}],
            "egress": [{"to": of("db")}], "policyTypes": ["Ingress", "Egress"]});
        cluster.api().put(&policy("a", "web", web)).expect("a policy");
        let places = Self::places(&directory);
        let all: Vec<&str> = places.iter().map(String::as_str).chain(flags.iter().copied()).collect();
        let daemon = cluster.daemon(1, &all).expect("a daemon");
        let world = Self { daemon, cluster, directory };
        world.until_plugged();
        world
    }

    fn places(directory: &tempfile::TempDir) -> [String; 3] {
        let at = |name: &str| directory.path().join(name).display().to_string();
        [
            format!("--cni-conflist={}", at("net.d/10-flannel.conflist")),
            format!("--cni-bin-dir={}", at("bin")),
            format!("--cni-run-dir={}", at("run")),
        ]
    }

    fn conflist(&self) -> PathBuf {
        self.directory.path().join("net.d/10-flannel.conflist")
    }

    fn plugins(&self) -> Vec<String> {
        let text = fs::read_to_string(self.conflist()).expect("a conflist");
        let conflist: Value = serde_json::from_str(&text).unwrap_or_default();
        let plugins = conflist["plugins"].as_array().cloned().unwrap_or_default();
        plugins.iter().map(|plugin| plugin["type"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Within a second the plugin stands behind the main one.
    fn until_plugged(&self) {
        let begun = Instant::now();
        while self.plugins() != ["flannel", "flatfell-cni", "portmap"] {
            assert!(begun.elapsed() < Duration::from_secs(1), "{:?}\n{}", self.plugins(), self.daemon.log());
            sleep(Duration::from_millis(2));
        }
    }

    fn start(&mut self, name: &str, app: &str, place: Place) {
        let (conflist, plugins) = (self.conflist(), self.directory.path().join("bin"));
        let runtime = Runtime { conflist: &conflist, plugins: &plugins };
        self.cluster.start_pod(("a", name), json!({"app": app}), place, runtime).expect("started");
    }

    fn end(&mut self, name: &str, place: Place) {
        let (conflist, plugins) = (self.conflist(), self.directory.path().join("bin"));
        let runtime = Runtime { conflist: &conflist, plugins: &plugins };
        self.cluster.end_pod(("a", name), place, runtime).expect("ended");
    }

    fn insertions(&self) -> u64 {
        let metrics = self.daemon.metrics().expect("metrics");
        let line = metrics.lines().find_map(|line| line.strip_prefix("flatfell_cni_conflist_insertions_total "));
        line.expect("a metric").parse().expect("a number")
    }

    #[track_caller]
    fn expect(&self, what: &str, expected: &[Vec<Expected>]) {
        self.cluster.expect(what, expected);
    }
}

/// What holds for a web pod that the daemon knows.
fn right() -> Vec<Vec<Expected>> {
    vec![
        yes(tcp(WEB, DB, 80)),
        yes(tcp(DB, WEB, 80)),
        no(tcp(WEB, FAR, 80)),
        no(tcp(FAR, WEB, 80)),
        no(tcp(WEB, Place::Outside, 80)),
        yes(tcp(Place::Node(1), WEB, 80)),
    ]
}

/// And for one that it does not know.
fn closed() -> Vec<Vec<Expected>> {
    vec![
        no(tcp(WEB, DB, 80)),
        no(tcp(DB, WEB, 80)),
        no(tcp(WEB, FAR, 80)),
        no(tcp(WEB, Place::Outside, 80)),
        yes(tcp(Place::Node(1), WEB, 80)),
    ]
}

#[test]
fn a_pod_starts_right_long_before_the_api_shows_its_address() {
    let mut world = World::new(&["--cni-on-unavailable=fail"]);
    world.start("web", "web", WEB);
    world.expect("started", &right());
    world.daemon.restart().expect("restarted");
    world.expect("the daemon was restarted", &right());
    world.cluster.show_pod(("a", "web"), json!({"app": "web"}), WEB).expect("shown");
    let daemon = &world.daemon;
    world.cluster.settle(1, daemon).expect("settled");
    world.expect("the API shows it", &right());
    world.end("web", WEB);
    assert!(world.daemon.metrics().expect("metrics").contains("outcome=\"done\"} 1\n"));
}

#[test]
fn flannel_writes_its_conflist_again_and_nothing_changes() {
    let mut world = World::new(&["--cni-on-unavailable=fail"]);
    let before = world.insertions();
    world.start("web", "web", WEB);
    world.end("web", WEB);
    for turn in 1..=3 {
        fs::write(world.conflist(), CONFLIST).expect("flannel starts");
        world.until_plugged();
        world.start("web", "web", WEB);
        world.expect(&format!("after turn {turn}"), &right());
        world.end("web", WEB);
    }
    assert_eq!((before, world.insertions()), (1, 4));
    let places = World::places(&world.directory);
    let words: Vec<&str> = ["cleanup", "--stop"].into_iter().chain(places.iter().map(String::as_str)).collect();
    world.daemon.command(&words).expect("cleaned up");
    assert_eq!(fs::read_to_string(world.conflist()).expect("a conflist"), CONFLIST);
    assert!(!world.directory.path().join("bin/flatfell-cni").exists());
    world.daemon.wait_until_stopped().expect("stopped");
}

#[test]
fn while_the_daemon_is_down_a_pod_starts_closed() {
    let mut world = World::new(&["--cni-timeout=1s"]);
    world.daemon.kill9().expect("killed");
    let begun = Instant::now();
    world.start("web", "web", WEB);
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    world.expect("nobody knows it", &closed());
    world.daemon.restart().expect("started");
    world.expect("the API does not show it yet", &closed());
    world.cluster.show_pod(("a", "web"), json!({"app": "web"}), WEB).expect("shown");
    let daemon = &world.daemon;
    world.cluster.settle(1, daemon).expect("settled");
    world.expect("the API shows it", &right());
    world.daemon.kill9().expect("killed");
    world.end("web", WEB);
}

#[test]
fn while_the_daemon_is_down_a_pod_may_be_kept_from_starting() {
    let mut world = World::new(&["--cni-timeout=1s", "--cni-on-unavailable=fail"]);
    world.daemon.kill9().expect("killed");
    let (conflist, plugins) = (world.conflist(), world.directory.path().join("bin"));
    let runtime = Runtime { conflist: &conflist, plugins: &plugins };
    let refused = world.cluster.start_pod(("a", "web"), json!({"app": "web"}), WEB, runtime).expect_err("refused");
    assert!(refused.to_string().contains("\"code\":11"), "{refused}");
    world.end("web", WEB);
    world.daemon.restart().expect("started");
    world.start("web", "web", WEB);
    world.expect("the runtime tries again", &right());
}
