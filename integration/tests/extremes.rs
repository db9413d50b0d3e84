//! What is too much: a policy of 10,000 rules, pods that come and go by the hundred, a full disk, an address of two pods.
//!
//! In: `FLATFELL_RULES`, rules of the large policy (10,000 without it). Out: what it cost. What always holds: what is allowed passes and what
//! is forbidden does not, all the while.
#![allow(clippy::expect_used)]

mod restless;
mod world;

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use flatfell_integration::Place;
use restless::{IN_STEP, Restless, judge};
use serde_json::{Value, json};
use world::{peer, policy};

/// How long the large policy may take, in a debug build on a busy machine.
const LARGE: Duration = Duration::from_secs(60);

/// What the daemon's memory may grow by, in KiB, whatever comes and goes.
const GROWTH: u64 = 48 * 1024;

/// Pods that come and go, and how long all of them take.
const PODS: usize = 1_000;
const STORM: Duration = Duration::from_secs(10);

fn rules() -> usize {
    std::env::var("FLATFELL_RULES").map_or(10_000, |count| count.parse().expect("a number"))
}

/// A field of the daemon's /proc/PID/status, in KiB.
fn memory(restless: &Restless, field: &str) -> u64 {
    let process = restless.node.process_id().expect("a daemon");
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("a field");
    line.trim_matches(|c: char| !c.is_ascii_digit()).parse().expect("a number")
}

/// A policy of 10,000 rules is enforced; a rule of it that cannot be understood is named with its place, closes what the policy selects
/// and holds nobody else up.
#[test]
fn a_policy_of_ten_thousand_rules() {
    let mut restless = Restless::start(None, &[], 1);
    let traffic = restless.traffic();
    let rule = |at: usize| {
        let block = json!([{"ipBlock": {"cidr": format!("100.64.{}.{}/32", at / 256, at % 256)}}]);
        json!({"from": block, "ports": [{"port": 1 + at % 60_000}]})
    };
    let mut large = policy("large", "a", "ingress", (0..rules()).map(rule).collect());
    let before = memory(&restless, "VmRSS:");
    let begun = Instant::now();
    restless.node.write("large.yaml", &large.to_string()).expect("writing");
    while restless.node.enforced().is_err() {
        assert!(begun.elapsed() < LARGE, "{}", restless.node.log());
    }
    let first = begun.elapsed();
    restless.change();
    let next = restless.in_step();
    println!(
        "{} rules: in force after {first:.1?}, the next change after {next:.0?}, {} KiB more",
        rules(),
        memory(&restless, "VmRSS:").saturating_sub(before)
    );
    assert!(next <= LARGE / 6, "{next:?}");
    large["spec"]["ingress"][rules() - 1]["from"][0]["ipBlock"]["cidr"] = json!("100.64.0.0/99");
    restless.node.write("large.yaml", &large.to_string()).expect("writing");
    let field = format!("spec.ingress[{}].from[0].ipBlock.cidr", rules() - 1);
    let said = |errors: &[String]| errors.iter().any(|error| error.contains("x/large") && error.contains(&field));
    let report = restless.node.wait_for("named", |report| said(&report.source.errors));
    assert!(report.is_ok(), "{field}: {:?}", restless.node.status());
    println!("{}", judge(traffic));
}

/// A thousand pods come and go within ten seconds, by two hundred addresses: queue and memory are bounded, and a second after the
/// last one all is in step.
#[test]
fn a_thousand_pods_come_and_go() {
    let mut restless = Restless::start(None, &["--counter-grace", "1s"], 1);
    let traffic = restless.traffic();
    let before = memory(&restless, "VmRSS:");
    let pod = |at: usize| {
        let address = format!("10.244.1.{}", 50 + at % 200);
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("storm{at}"), "namespace": "x", "uid": format!("storm{at}"), "labels": {"app": "a"}},
            "spec": {"nodeName": "node1"}, "status": {"phase": "Running", "podIPs": [{"ip": address}]}})
    };
    let (begun, mut most) = (Instant::now(), 0);
    for at in 0..PODS {
        restless.node.write(&format!("storm{at}.yaml"), &pod(at).to_string()).expect("writing");
        if at >= 50 {
            restless.node.remove(&format!("storm{}.yaml", at - 50)).expect("removing");
        }
        if at % 100 == 0 {
            let metrics = restless.node.metrics().expect("metrics");
            let waiting = metrics.lines().find_map(|line| line.strip_prefix("flatfell_changes_waiting "));
            most = most.max(waiting.and_then(|number| number.parse::<u64>().ok()).expect("a metric"));
        }
        let at = u32::try_from(at).expect("few");
        thread::sleep((STORM * at / u32::try_from(PODS).expect("few")).saturating_sub(begun.elapsed()));
    }
    for at in PODS - 50..PODS {
        restless.node.remove(&format!("storm{at}.yaml")).expect("removing");
    }
    let taken = begun.elapsed();
    let time = restless.in_step();
    let grown = memory(&restless, "VmHWM:").saturating_sub(before);
    println!(
        "{PODS} pods in {taken:.1?}: in step {time:.0?} later, {most} changes waiting at most, {grown} KiB more at most"
    );
    println!("{}", judge(traffic));
    assert!(time <= IN_STEP, "{time:?}");
    assert!(grown < GROWTH, "{grown} KiB");
    assert!(most < u64::try_from(PODS).expect("few"), "{most}");
}

/// The run directory is on a disk that is full: policy is enforced as ever, the operator is told what is not remembered, and it is
/// remembered once there is room.
#[test]
fn a_full_disk() {
    let directory = tempfile::tempdir().expect("a directory");
    let daemon = flatfell_integration::node::binary().expect("a binary");
    let script = directory.path().join("flatfell");
    // The disk is in a mount namespace of the daemon's own.
    let text = format!(
        "#!/bin/sh\nfor last; do :; done\nexec unshare -m sh -c 'mkdir -p \"$0\" && mount -t tmpfs -o size=64k,mode=700 tmpfs \"$0\" && exec {} \"$@\"' \"$last\" \"$@\"\n",
        daemon.display()
    );
    fs::write(&script, text).expect("a script");
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("a script");
    let mut restless = Restless::start(Some(&script), &["--tables", "shared"], 1);
    let traffic = restless.traffic();
    let inside = PathBuf::from(format!("/proc/{}/root", restless.node.process_id().expect("a daemon")));
    let run = inside.join(restless.node.run_dir().strip_prefix("/").expect("absolute"));
    let fill = run.join("fill");
    let mut room = vec![0; 4096];
    while fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(&fill)
        .and_then(|mut file| std::io::Write::write_all(&mut file, &room))
        .is_ok()
    {
        room.fill(1);
    }
    let carried = run.join("carried.json");
    let remembered = |restless: &Restless| {
        restless.node.metrics().expect("metrics");
        fs::metadata(&carried).map_or(0, |file| file.len())
    };
    thread::sleep(Duration::from_millis(200));
    restless.node.metrics().expect("metrics");
    restless.lab.nft(Place::Node(1), "reset counters").expect("reset");
    let size = remembered(&restless);
    let told = |warnings: &[String]| warnings.iter().any(|warning| warning.contains("carried.json"));
    restless.node.wait_for("told", |report| told(&report.warnings)).expect("told");
    for _ in 0..5 {
        restless.change();
        let time = restless.in_step();
        assert!(time <= IN_STEP, "{time:?}");
        restless.assert_newest("with a full disk");
    }
    fs::remove_file(&fill).expect("room");
    restless.node.wait_for("over", |report| !told(&report.warnings)).expect("over");
    assert!(remembered(&restless) > size, "nothing is remembered");
    println!("{}", judge(traffic));
}

/// Two live pods name one address: the policies of the newer one hold for it, whatever came first, and the operator is told.
#[test]
fn an_address_of_two_pods() {
    let mut restless = Restless::start(None, &[], 1);
    let twin = |created: &str, app: &str| {
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "twin", "namespace": "x", "uid": "twin", "labels": {"app": app}, "creationTimestamp": created},
            "spec": {"nodeName": "node1"},
            "status": {"phase": "Running", "podIPs": [{"ip": Place::pod(1, 2).v4().to_string()}]}})
    };
    let traffic = restless.traffic();
    // Whoever has it: neither is `b`.
    let closed = policy("closed", "twin", "ingress", Value::Array(vec![json!({"from": [peer("b")]})]));
    restless.node.write("closed.yaml", &closed.to_string()).expect("writing");
    for created in ["2020-01-01T00:00:00Z", "2030-01-01T00:00:00Z"] {
        restless.node.apply("twin.yaml", &twin(created, "twin").to_string()).expect("applied");
        let report = restless.node.status().expect("a status");
        let says =
            |warning: &String| warning.contains("10.244.1.12") && warning.contains("x/twin") && warning.contains("x/c");
        assert!(report.warnings.iter().any(says), "{:?}", report.warnings);
    }
    restless.node.remove("twin.yaml").expect("removing");
    restless.node.wait_for("over", |report| report.warnings.iter().all(|text| !text.contains("x/twin"))).expect("over");
    println!("{}", judge(traffic));
}
