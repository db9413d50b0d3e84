//! The plugin against a daemon that says what the test tells it, and against whatever a runtime may hand it.
#![allow(clippy::expect_used, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use flatfell_cni::message::{Answer, Attachment, Request, SOCKET};
use flatfell_cni::plugin;
use proptest::prelude::*;
use serde_json::{Value, json};

/// What a kubelet's runtime sets.
fn variables(command: &str) -> BTreeMap<String, String> {
    [
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/a"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin"),
        ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=x;K8S_POD_NAME=a;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

fn run(variables: &BTreeMap<String, String>, input: &[u8]) -> Result<String, String> {
    plugin::run(|name| variables.get(name).cloned(), input)
}

/// What Flannel's bridge makes.
fn result() -> Value {
    json!({"cniVersion": "0.3.1", "dns": {}, "routes": [{"dst": "10.244.0.0/16"}],
        "interfaces": [{"name": "cni0", "mac": "02:00:00:00:00:01"}, {"name": "veth1"}, {"name": "eth0", "sandbox": "/run/netns/a"}],
        "ips": [{"version": "4", "interface": 2, "address": "10.244.1.5/24", "gateway": "10.244.1.1"},
                {"version": "6", "interface": 2, "address": "fd00::5/64"}]})
}

fn conf(directory: &Path, more: Value) -> Value {
    let mut conf = json!({"cniVersion": "0.3.1", "name": "cbr0", "type": "flatfell-cni", "timeoutSeconds": 1,
        "socket": directory.join(SOCKET), "prevResult": result()});
    for (key, value) in more.as_object().expect("fields") {
        conf[key] = value.clone();
    }
    conf
}

fn closed_directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).expect("closed");
    directory
}

/// A daemon that gives one answer to everything.
fn daemon(directory: &Path, answer: Answer) -> Receiver<Request> {
    let listener = UnixListener::bind(directory.join(SOCKET)).expect("a socket");
    let (sender, asked) = channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).expect("a request");
            if sender.send(serde_json::from_str(&line).expect("a request")).is_err() {
                return;
            }
            writeln!(stream, "{}", serde_json::to_string(&answer).expect("an answer")).expect("answered");
        }
    });
    asked
}

fn call(command: &str, conf: &Value) -> Result<String, String> {
    run(&variables(command), conf.to_string().as_bytes())
}

fn code(outcome: Result<String, String>) -> u64 {
    let error: Value = serde_json::from_str(&outcome.expect_err("a failure")).expect("an error");
    assert!(error["msg"].is_string() && error["cniVersion"].is_string(), "{error}");
    error["code"].as_u64().expect("a code")
}

#[test]
fn add_tells_of_the_sandbox_and_hands_the_result_on() {
    let directory = closed_directory();
    let asked = daemon(directory.path(), Answer::Done);
    let said = call("ADD", &conf(directory.path(), json!({}))).expect("added");
    assert_eq!(serde_json::from_str::<Value>(&said).expect("a result"), result());
    let Request::Add(sandbox, within) = asked.recv().expect("asked") else { panic!("ADD") };
    assert_eq!((sandbox.namespace.as_str(), sandbox.name.as_str(), sandbox.uid.as_str()), ("x", "a", "u"));
    let addresses = ["10.244.1.5", "fd00::5"].map(|text| text.parse::<std::net::IpAddr>().expect("an address"));
    assert_eq!(sandbox.addresses, addresses);
    assert_eq!((sandbox.host_interface.as_deref(), sandbox.netns.as_str()), (Some("veth1"), "/run/netns/a"));
    assert!(within <= 1000 && within > 500, "{within}");
    assert_eq!(call("CHECK", &conf(directory.path(), json!({}))).map(|_| ()), Ok(()));
    assert!(matches!(asked.recv(), Ok(Request::Check(_))));
    call("DEL", &conf(directory.path(), json!({"prevResult": null}))).expect("deleted");
    let attachment = Attachment { container: "c1".to_owned(), interface: "eth0".to_owned() };
    assert_eq!(asked.recv(), Ok(Request::Delete(attachment.clone())));
    let valid = json!({"cniVersion": "1.1.0", "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]});
    call("GC", &conf(directory.path(), valid)).expect("collected");
    assert_eq!(asked.recv(), Ok(Request::Keep(vec![attachment])));
    call("STATUS", &conf(directory.path(), json!({"onUnavailable": "fail"}))).expect("available");
    assert_eq!(asked.recv(), Ok(Request::Status));
}

#[test]
fn without_the_policy_in_time_a_pod_is_closed_or_does_not_start() {
    for is_there in [true, false] {
        let directory = closed_directory();
        let _asked = is_there.then(|| daemon(directory.path(), Answer::NotYet("not there".to_owned())));
        let begun = Instant::now();
        let with = |command: &str, on: &str| call(command, &conf(directory.path(), json!({"onUnavailable": on})));
        assert!(with("ADD", "closed").is_ok());
        assert_eq!(code(with("ADD", "fail")), 11);
        assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
        assert!(with("STATUS", "closed").is_ok());
        assert_eq!(code(with("STATUS", "fail")), 50);
        assert_eq!(code(with("CHECK", "fail")), if is_there { 100 } else { 11 });
        for command in ["DEL", "GC"] {
            let begun = Instant::now();
            for _ in 0..2 {
                assert_eq!(with(command, "fail").as_deref(), Ok(""), "{command}");
            }
            assert!(begun.elapsed() < Duration::from_secs(1), "{command} does not wait");
        }
    }
}

#[test]
fn a_daemon_that_comes_back_in_time_is_asked() {
    let directory = closed_directory();
    let path = directory.path().to_owned();
    let late = thread::spawn(move || {
        thread::sleep(Duration::from_millis(300));
        daemon(&path, Answer::Done)
    });
    call("ADD", &conf(directory.path(), json!({"onUnavailable": "fail", "timeoutSeconds": 5}))).expect("added");
    assert!(matches!(late.join().expect("a daemon").recv(), Ok(Request::Add(..))));
}

#[test]
fn an_open_directory_is_not_trusted() {
    let directory = closed_directory();
    let asked = daemon(directory.path(), Answer::Done);
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("opened");
    let refused = call("ADD", &conf(directory.path(), json!({"onUnavailable": "fail"})));
    assert!(refused.as_ref().is_err_and(|said| said.contains("700")), "{refused:?}");
    assert_eq!(code(refused), 11);
    assert!(asked.try_recv().is_err(), "nothing is told to it");
}

#[test]
fn versions_are_named_and_others_refused() {
    let said = run(&variables("VERSION"), b"{\"cniVersion\": \"1.0.0\"}").expect("versions");
    let said: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(said["cniVersion"], "1.0.0");
    assert_eq!(said["supportedVersions"], json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
    let directory = closed_directory();
    for version in ["0.2.0", "2.0.0", ""] {
        assert_eq!(code(call("ADD", &conf(directory.path(), json!({"cniVersion": version})))), 1, "{version}");
    }
}

#[test]
fn wrong_input_has_the_specifications_code() {
    let directory = closed_directory();
    let good = || conf(directory.path(), json!({}));
    for (field, value, expected) in [
        ("onUnavailable", json!("open"), 2),
        ("timeoutSeconds", json!(0), 2),
        ("timeoutSeconds", json!("5"), 2),
        ("socket", json!("cni.sock"), 2),
        ("prevResult", Value::Null, 7),
        ("prevResult", json!(5), 7),
        ("prevResult", json!({"ips": [{"address": "nonsense"}]}), 7),
        ("cniVersion", json!(5), 6),
    ] {
        assert_eq!(code(call("ADD", &conf(directory.path(), json!({field: value})))), expected, "{field}: {value}");
    }
    for (name, value) in [
        ("CNI_COMMAND", None),
        ("CNI_COMMAND", Some("add")),
        ("CNI_CONTAINERID", None),
        ("CNI_CONTAINERID", Some("../x")),
        ("CNI_IFNAME", Some("a/b")),
        ("CNI_IFNAME", Some("sixteen-bytes-xy")),
        ("CNI_NETNS", None),
    ] {
        let mut set = variables("ADD");
        match value {
            Some(value) => drop(set.insert(name.to_owned(), value.to_owned())),
            None => drop(set.remove(name)),
        }
        assert_eq!(code(run(&set, good().to_string().as_bytes())), 4, "{name} {value:?}");
    }
    assert_eq!(code(run(&variables("ADD"), b"")), 6);
    assert_eq!(code(run(&variables("ADD"), &vec![b' '; 5 << 20])), 7, "too large");
    let mut long = variables("ADD");
    long.insert("CNI_ARGS".to_owned(), format!("K8S_POD_NAMESPACE=x;K8S_POD_NAME={}", "a".repeat(10_000)));
    assert_eq!(code(run(&long, good().to_string().as_bytes())), 4);
}

#[test]
fn what_is_no_pods_sandbox_is_passed_over() {
    let directory = closed_directory();
    let fail = conf(directory.path(), json!({"onUnavailable": "fail"}));
    let mut bare = variables("ADD");
    bare.remove("CNI_ARGS");
    assert!(run(&bare, fail.to_string().as_bytes()).is_ok());
    let without_addresses = conf(directory.path(), json!({"onUnavailable": "fail", "prevResult": {"ips": []}}));
    assert!(call("ADD", &without_addresses).is_ok());
}

proptest! {
    /// Whatever comes in: a result, or an error in JSON with a code.
    #[test]
    fn nothing_makes_it_crash(
        input in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            ".{0,100}".prop_map(String::into_bytes),
            "\\{\"cniVersion\": \"1.1.0\"(, \"(prevResult|ips|socket|cni.dev/valid-attachments)\": (null|1|\\[\\]|\\{\\}|\"x\")){0,3}\\}"
                .prop_map(String::into_bytes),
        ],
        command in prop_oneof![Just("ADD"), Just("CHECK"), Just("DEL"), Just("GC"), Just("STATUS"), Just("VERSION"), Just("X")],
        arguments in ".{0,60}",
    ) {
        let mut set = variables(command);
        set.insert("CNI_ARGS".to_owned(), arguments);
        if let Err(said) = run(&set, &input) {
            let error: Value = serde_json::from_str(&said).expect("an error");
            prop_assert!(error["code"].as_u64().is_some_and(|code| code > 0));
        }
    }
}
