//! The commands as a person uses them; none of them needs a kernel's help.
#![allow(missing_docs)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: x, labels: {app: x}}\nspec: {nodeName: n}\nstatus: {podIP: \
                   10.0.0.1}\n";
const DENY: &str =
    "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {podSelector: {}}\n";
const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: default}\n";

fn flatfell(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flatfell"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("FLATFELL_")) {
        command.env_remove(name);
    }
    command.args(arguments).output().expect("it runs")
}

fn manifests(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().expect("directory");
    for (name, text) in files {
        fs::write(dir.path().join(name), text).expect("file");
    }
    dir
}

fn text(bytes: &[u8], dir: &Path) -> String {
    String::from_utf8_lossy(bytes).replace(&format!("{}/", dir.display()), "")
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

#[test]
fn check_says_file_line_object_and_field() {
    let broken = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec:\n  \
                  podSelector: {}\n  ingress:\n  - from:\n    - ipBlock:\n        cidr: 10.0.0.0/33\n";
    let dir = manifests(&[("a.yaml", broken)]);
    let output = flatfell(&["check", &dir.path().display().to_string()]);
    let printed = text(&output.stdout, dir.path());
    assert!(printed.starts_with("a.yaml:9: shop/p: spec.ingress[0].from[0].ipBlock.cidr: "), "{printed}");
    assert!(printed.ends_with("1 file: 0 namespaces, 0 pods, 1 policy: 1 error, 0 warnings\n"), "{printed}");
    assert!(!printed.contains('\x1b'), "no colours in a pipe");
    assert_eq!(code(&output), Some(1));
}

#[test]
fn warnings_fail_a_strict_check_only() {
    let dir = manifests(&[("a.yaml", POD)]);
    let root = dir.path().display().to_string();
    let output = flatfell(&["check", &root]);
    assert!(text(&output.stdout, dir.path()).contains("no Namespace default in these manifests"));
    assert_eq!(code(&output), Some(0));
    assert_eq!(code(&flatfell(&["check", "--strict", &root])), Some(1));
    fs::write(dir.path().join("b.yaml"), NAMESPACE).expect("file");
    assert_eq!(code(&flatfell(&["check", "--strict", &root])), Some(0));
}

#[test]
fn a_directory_that_is_not_there_is_named() {
    for command in [vec!["check", "/nowhere"], vec!["render", "/nowhere", "--node", "n"]] {
        let output = flatfell(&command);
        assert_eq!(code(&output), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("/nowhere cannot be read: No such file"));
    }
}

#[test]
fn render_prints_a_ruleset_and_nothing_else() {
    let dir = manifests(&[("a.yaml", POD), ("b.yaml", DENY)]);
    let root = dir.path().display().to_string();
    let output = flatfell(&["render", &root, "--node", "n"]);
    assert_eq!((code(&output), text(&output.stderr, dir.path()).as_str()), (Some(0), ""));
    let json = flatfell(&["render", &root, "--node", "n", "--output", "json"]);
    assert!(serde_json::from_slice::<serde_json::Value>(&json.stdout).expect("JSON")["tables"].is_array());
    let other = flatfell(&["render", &root, "--node", "other"]);
    assert!(text(&other.stderr, dir.path()).contains("no pod with an address has spec.nodeName other"));
}

#[test]
fn render_fails_when_a_file_is_unknown() {
    let dir = manifests(&[("a.yaml", POD), ("b.yaml", "kind: [")]);
    let output = flatfell(&["render", &dir.path().display().to_string(), "--node", "n"]);
    assert_eq!(code(&output), Some(1));
    assert!(text(&output.stderr, dir.path()).starts_with("b.yaml:"), "{}", text(&output.stderr, dir.path()));
}

#[test]
fn wrong_flags_end_with_two_and_name_the_flag() {
    let cases: [(&[&str], &str); 6] = [
        (&["run", "--manifests", "/"], "--node"),
        (&["run", "--manifests", "/", "--node", "N"], "--node"),
        (&["run", "--manifests", "/", "--node", "n", "--listen", "localhost:1"], "--listen"),
        (&["run", "--manifests", "/", "--node", "n", "--pod-bridge", "a/b"], "--pod-bridge"),
        (&["run", "--manifests", "/", "--node", "n", "--established", "perhaps"], "--established"),
        (&["check", "/", "--log-level", "inof"], "--log-level"),
    ];
    for (arguments, flag) in cases {
        let output = flatfell(arguments);
        assert_eq!(code(&output), Some(2), "{arguments:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(flag), "{arguments:?}");
    }
}

#[test]
fn the_environment_is_checked_like_the_flags() {
    let output = Command::new(env!("CARGO_BIN_EXE_flatfell"))
        .args(["run", "--manifests", "/"])
        .env("FLATFELL_NODE", "not a name")
        .output()
        .expect("it runs");
    assert_eq!(code(&output), Some(2));
}

#[test]
fn run_needs_a_directory_and_a_free_port() {
    let dir = manifests(&[("a.yaml", POD)]);
    let file = dir.path().join("a.yaml").display().to_string();
    let output = flatfell(&["run", "--manifests", &file, "--node", "n", "--listen", "127.0.0.1:0"]);
    assert_eq!(code(&output), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("is no directory"));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let root = dir.path().display().to_string();
    let output = flatfell(&["run", "--manifests", &root, "--node", "n", "--listen", &address]);
    assert_eq!(code(&output), Some(1));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains(&address) && error.contains("--listen"), "{error}");
}

#[test]
fn status_without_a_daemon_says_so() {
    let free =
        std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").to_string();
    let output = flatfell(&["status", "--address", &free]);
    assert_eq!(code(&output), Some(1));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains(&format!("the daemon at {free} cannot be asked")), "{error}");
}
