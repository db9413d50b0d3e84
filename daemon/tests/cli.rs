//! The commands as a person uses them. Where nft or a missing privilege has a say: in a network namespace of its own.
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

/// What `check` says about a policy whose spec goes on like this, behind `a.yaml:LINE: shop/p: `.
const BAD_SPECS: [(&str, &str); 9] = [
    ("ingress: 5", "6: shop/p: spec.ingress: must be a list, not 5"),
    ("ingres: []", "6: shop/p: spec.ingres: is not known in the spec of a NetworkPolicy"),
    ("policyTypes: [Both]", "6: shop/p: spec.policyTypes[0]: must be Ingress or Egress, not \"Both\""),
    (
        "ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/33}}]}]",
        "6: shop/p: spec.ingress[0].from[0].ipBlock.cidr: \"10.0.0.0/33\" is no CIDR",
    ),
    (
        "ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/16, except: [10.1.0.0/24]}}]}]",
        "6: shop/p: spec.ingress[0].from[0].ipBlock.except[0]: 10.1.0.0/24 is not strictly inside 10.0.0.0/16",
    ),
    (
        "ingress: [{ports: [{port: 90, endPort: 80}]}]",
        "6: shop/p: spec.ingress[0].ports[0].endPort: 80 is below port 90",
    ),
    (
        "ingress: [{ports: [{port: http, endPort: 80}]}]",
        "6: shop/p: spec.ingress[0].ports[0].endPort: needs a port that is a number",
    ),
    (
        "ingress: [{ports: [{protocol: ICMP}]}]",
        "6: shop/p: spec.ingress[0].ports[0].protocol: must be TCP, UDP or SCTP, not \"ICMP\"",
    ),
    (
        "ingress: [{from: [{podSelector: {matchExpressions: [{key: a, operator: Near}]}}]}]",
        "6: shop/p: spec.ingress[0].from[0].podSelector.matchExpressions[0].operator: must be In, NotIn",
    ),
];

#[test]
fn each_bad_field_is_named_with_what_is_wrong() {
    for (spec, expected) in BAD_SPECS {
        let policy = format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: shop}}\nspec:\n  \
             podSelector: {{}}\n  {spec}\n"
        );
        let dir = manifests(&[("a.yaml", &policy)]);
        let output = flatfell(&["check", &dir.path().display().to_string()]);
        let printed = text(&output.stdout, dir.path());
        assert!(printed.contains(&format!("a.yaml:{expected}")), "{spec}: {printed}");
        assert_eq!(code(&output), Some(1), "{spec}");
    }
}

/// What `check` says about files that hold something else, and its exit code.
const ODD_FILES: [(&str, &str, i32); 7] = [
    ("kind: [", "a.yaml:2: not YAML: ", 1),
    ("a:\n\t- b\n", "a tab indents here; YAML takes spaces only", 1),
    ("hello", "a.yaml:1: expected a Kubernetes object (apiVersion, kind, metadata), found a string", 1),
    ("metadata: {name: x}", "a.yaml:1: kind: no kind: this is no Kubernetes object", 1),
    ("apiVersion: v1\nkind: Pod\nmetadata: {namespace: a}", "metadata.name is missing", 1),
    ("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}", "note: x: Deployment (apps/v1) is passed over", 0),
    ("", "1 file: 0 namespaces, 0 pods, 0 policies: nothing wrong", 0),
];

#[test]
fn each_odd_file_is_named_with_what_is_wrong() {
    for (content, expected, exit) in ODD_FILES {
        let dir = manifests(&[("a.yaml", content)]);
        let output = flatfell(&["check", &dir.path().display().to_string()]);
        let printed = text(&output.stdout, dir.path());
        assert!(printed.contains(expected), "{content:?}: {printed}");
        assert_eq!(code(&output), Some(exit), "{content:?}");
    }
}

#[test]
fn a_duplicate_names_both_places() {
    let dir = manifests(&[("a.yaml", DENY), ("b.yaml", &DENY.replace("{}}", "{}, policyTypes: [Egress]}"))]);
    let output = flatfell(&["check", &dir.path().display().to_string()]);
    let printed = text(&output.stdout, dir.path());
    assert!(
        printed.contains("b.yaml:1: default/p: metadata.name: NetworkPolicy already defined at a.yaml:1"),
        "{printed}"
    );
}

#[test]
fn what_kubectl_prints_is_taken_whole() {
    let list = r#"{"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"nodeName": "n"},
         "status": {"podIP": "10.0.0.1"}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}}]}"#;
    let dir = manifests(&[("a.json", list), ("b.yaml", DENY)]);
    let output = flatfell(&["check", "--strict", &dir.path().display().to_string()]);
    let printed = text(&output.stdout, dir.path());
    assert!(printed.ends_with("2 files: 1 namespace, 1 pod, 1 policy: nothing wrong\n"), "{printed}");
    assert_eq!(code(&output), Some(0));
}

/// Whether nft, in a network namespace of its own, would take this.
fn nft_takes(ruleset: &[u8]) -> bool {
    let mut child = Command::new("unshare")
        .args(["--net", "nft", "--check", "--file", "-"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .expect("unshare runs");
    std::io::Write::write_all(&mut child.stdin.take().expect("piped"), ruleset).expect("nft reads");
    child.wait().expect("nft ends").success()
}

#[test]
fn what_render_prints_is_taken_by_nft() {
    let dir = manifests(&[("a.yaml", POD), ("b.yaml", DENY)]);
    let root = dir.path().display().to_string();
    let whole = flatfell(&["render", &root, "--node", "n", "--pod-bridge", "cni0"]);
    assert!(nft_takes(&whole.stdout) && !nft_takes(b"table inet {"));
    fs::write(dir.path().join("b.yaml"), DENY.replace("{}}", "{}, ingress: 5}")).expect("file");
    let refused = flatfell(&["render", &root, "--node", "n", "--pod-bridge", "cni0"]);
    assert!(text(&refused.stderr, dir.path()).contains("default/p: spec.ingress: must be a list"));
    assert!(nft_takes(&refused.stdout));
    let printed = text(&refused.stdout, dir.path());
    assert!(printed.contains("10.0.0.1 : jump ingress-"), "a policy that is not understood isolates: {printed}");
}

/// Runs without a privilege, in a network namespace of its own.
fn unprivileged(arguments: &[&str]) -> Output {
    // Whoever has no privilege need not reach the build's directory.
    let dir = tempfile::tempdir().expect("directory");
    let program = dir.path().join("flatfell");
    fs::copy(env!("CARGO_BIN_EXE_flatfell"), &program).expect("copied");
    let open = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
    fs::set_permissions(dir.path(), open).expect("readable");
    Command::new("unshare")
        .args(["--net", "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&program)
        .args(arguments)
        .output()
        .expect("unshare runs")
}

#[test]
fn a_missing_privilege_is_named_once() {
    let dir = manifests(&[]);
    let open = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
    fs::set_permissions(dir.path(), open).expect("readable");
    let root = dir.path().display().to_string();
    for command in [vec!["cleanup"], vec!["run", "--manifests", &root, "--node", "n", "--listen", "127.0.0.1:0"]] {
        let output = unprivileged(&command);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        let told: Vec<&str> = error.lines().filter(|line| line.starts_with("flatfell: ")).collect();
        assert_eq!((code(&output), told.len()), (Some(1), 1), "{error}");
        assert_eq!(told[0].matches("CAP_NET_ADMIN is needed: run it as root").count(), 1, "{error}");
    }
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
