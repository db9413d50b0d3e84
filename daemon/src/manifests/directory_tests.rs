//! What a directory gives, file by file and change by change.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::*;
use crate::manifests::Kind;

/// A directory that is gone when the test is.
struct Lab {
    dir: tempfile::TempDir,
    directory: Directory,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let directory = Directory::new(dir.path());
        Self { dir, directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(name), text).expect("file");
    }

    /// What changed, as `+name` and `-name`.
    fn refresh(&mut self) -> Vec<String> {
        words(&self.directory.refresh(&Scope::everything()))
    }

    fn refresh_files(&mut self, names: &[&str]) -> Vec<String> {
        let files = names.iter().map(|name| self.path(name)).collect();
        words(&self.directory.refresh(&Scope { files, ..Scope::default() }))
    }

    fn objects(&self) -> Vec<String> {
        self.directory.objects().map(|object| object.key().to_string()).collect()
    }

    fn problems(&self) -> Vec<String> {
        let root = format!("{}/", self.dir.path().display());
        self.directory.problems().iter().map(|problem| problem.to_string().replace(&root, "")).collect()
    }
}

fn words(refresh: &Refresh) -> Vec<String> {
    let word = |update: &Update| match update {
        Update::Put(object) => format!("+{}", object.key()),
        Update::Remove(key) => format!("-{key}"),
    };
    refresh.updates.iter().map(word).collect()
}

fn policy(name: &str, app: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}}}\nspec:\n  podSelector: \
         {{matchLabels: {{app: {app}}}}}\n  ingress: [{{}}]\n---\n"
    )
}

fn pod(name: &str, address: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nstatus: {{podIP: {address}}}\n---\n")
}

#[test]
fn files_come_change_and_go() {
    let mut lab = Lab::new();
    assert_eq!(lab.refresh(), [""; 0]);
    lab.write("a.yaml", policy("p", "a") + &pod("x", "10.0.0.1"));
    assert_eq!(lab.refresh(), ["+default/x", "+default/p"]);
    assert_eq!(lab.refresh(), [""; 0], "nothing changed");
    lab.write("a.yaml", policy("p", "b") + &pod("x", "10.0.0.1"));
    assert_eq!(lab.refresh_files(&["a.yaml"]), ["+default/p"], "only what changed");
    lab.write("new", pod("y", "10.0.0.2"));
    fs::rename(lab.path("new"), lab.path("a.yaml")).expect("renamed over");
    assert_eq!(lab.refresh(), ["-default/x", "+default/y", "-default/p"]);
    fs::remove_file(lab.path("a.yaml")).expect("removed");
    assert_eq!(lab.refresh_files(&["a.yaml"]), ["-default/y"]);
    assert!(lab.directory.problems().is_empty());
}

#[test]
fn an_object_that_moves_to_another_file_does_not_flicker() {
    let mut lab = Lab::new();
    lab.write("a.yaml", pod("x", "10.0.0.1"));
    lab.refresh();
    fs::rename(lab.path("a.yaml"), lab.path("b.yaml")).expect("renamed");
    assert_eq!(lab.refresh(), [""; 0]);
}

#[test]
fn a_volume_of_a_config_map_is_swapped_at_once() {
    let mut lab = Lab::new();
    for (version, app) in [("..1", "a"), ("..2", "b")] {
        fs::create_dir(lab.path(version)).expect("version");
        lab.write(&format!("{version}/p.yaml"), policy("p", app));
    }
    symlink("..1", lab.path("..data")).expect("link");
    symlink("..data/p.yaml", lab.path("p.yaml")).expect("link");
    assert_eq!(lab.refresh(), ["+default/p"]);
    symlink("..2", lab.path("..data_tmp")).expect("link");
    fs::rename(lab.path("..data_tmp"), lab.path("..data")).expect("swapped");
    assert_eq!(lab.refresh(), ["+default/p"]);
    assert!(lab.directory.problems().is_empty());
}

#[test]
fn a_broken_file_keeps_its_last_good_content_and_others_go_on() {
    let mut lab = Lab::new();
    lab.write("a.yaml", policy("p", "a"));
    lab.write("b.yaml", policy("q", "a"));
    lab.refresh();
    lab.write("a.yaml", "apiVersion: networking.k8s.io/v1\nkind: [");
    lab.write("b.yaml", policy("q", "b"));
    assert_eq!(lab.refresh(), ["+default/q"]);
    assert_eq!(lab.objects(), ["default/p", "default/q"]);
    let problems = lab.problems();
    assert!(problems[0].starts_with("a.yaml:3: not YAML"), "{problems:?}");
    assert!(problems[0].ends_with("its last good content stays in use"), "{problems:?}");
    assert!(lab.directory.unknown().is_empty(), "what is in use is known");
    lab.write("a.yaml", policy("p", "c"));
    assert_eq!(lab.refresh(), ["+default/p"]);
    assert!(lab.directory.problems().is_empty());
}

#[test]
fn a_file_that_was_never_good_is_unknown() {
    let mut lab = Lab::new();
    lab.write("a.yaml", [0xff, 0xfe]);
    lab.write("b.yaml", pod("bad", "nonsense"));
    assert_eq!(lab.refresh(), [""; 0]);
    let unknown = lab.directory.unknown();
    assert_eq!(unknown.len(), 2, "{unknown:?}");
    assert!(unknown[0].contains("a.yaml:1: not UTF-8"), "{unknown:?}");
    assert!(unknown[1].contains("Pod default/bad"), "{unknown:?}");
}

#[test]
fn a_truncated_file_is_half_written() {
    let mut lab = Lab::new();
    lab.write("a.yaml", policy("p", "a"));
    lab.refresh();
    lab.write("a.yaml", "");
    assert_eq!(lab.refresh(), [""; 0]);
    assert!(lab.problems()[0].contains("half-written"));
    lab.write("a.yaml", "# nothing any more\n");
    assert_eq!(lab.refresh(), ["-default/p"]);
}

#[test]
fn a_file_that_a_writer_has_open_is_left_alone() {
    let mut lab = Lab::new();
    lab.write("a.yaml", policy("p", "a"));
    let busy = BTreeSet::from([lab.path("a.yaml")]);
    let refresh = lab.directory.refresh(&Scope { busy: busy.clone(), ..Scope::everything() });
    assert!(refresh.updates.is_empty());
    let refresh = lab.directory.refresh(&Scope { files: busy.clone(), busy, ..Scope::default() });
    assert!(refresh.updates.is_empty());
    assert_eq!(lab.refresh(), ["+default/p"]);
}

#[test]
fn a_refused_pod_stays_what_it_was() {
    let mut lab = Lab::new();
    lab.write("a.yaml", pod("x", "10.0.0.1"));
    lab.refresh();
    lab.write("a.yaml", pod("x", "10.0.0.999"));
    assert_eq!(lab.refresh(), [""; 0]);
    assert_eq!(lab.objects(), ["default/x"]);
    assert!(lab.problems()[0].ends_with("its last good state stays in use"), "{:?}", lab.problems());
}

#[test]
fn a_refused_policy_isolates() {
    let mut lab = Lab::new();
    lab.write("a.yaml", policy("p", "a").replace("[{}]", "[{from: [{ipBlock: {cidr: x}}]}]"));
    assert_eq!(lab.refresh(), ["+default/p"]);
    let Some(Object::Policy(policy)) = lab.directory.objects().next().map(Arc::as_ref) else {
        panic!("a policy");
    };
    assert!(policy.refusal.is_some());
    assert_eq!(policy.ingress, Some(Vec::new()));
    assert!(lab.problems()[0].starts_with("a.yaml:6: default/p: spec.ingress[0].from[0].ipBlock.cidr: "));
}

#[test]
fn two_different_policies_of_one_name_isolate_what_both_select() {
    let mut lab = Lab::new();
    lab.write("a.yaml", policy("p", "a"));
    lab.write("b.yaml", policy("p", "b"));
    assert_eq!(lab.refresh(), ["+default/p", "+default/p#2"]);
    for object in lab.directory.objects() {
        let Object::Policy(policy) = object.as_ref() else { panic!("a policy") };
        assert_eq!(policy.ingress, Some(Vec::new()), "isolated, nothing allowed");
        assert!(policy.refusal.is_some());
    }
    assert_eq!(
        lab.problems()
            .iter()
            .map(|problem| problem.replace(&lab.dir.path().display().to_string(), ""))
            .collect::<Vec<_>>(),
        ["b.yaml:1: default/p: metadata.name: NetworkPolicy already defined at a.yaml:1 with other content: both are \
             refused, and each isolates what it selects"]
    );
    fs::remove_file(lab.path("a.yaml")).expect("removed");
    assert_eq!(lab.refresh(), ["-default/p#2", "+default/p"]);
    assert!(lab.directory.problems().is_empty());
}

#[test]
fn the_same_object_twice_counts_once_and_is_an_error() {
    let mut lab = Lab::new();
    let twice = format!(
        "{{\"kind\": \"List\", \"items\": [{0}, {0}]}}",
        r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "status": {"podIP": "10.0.0.1"}}"#
    );
    lab.write("a.json", &twice);
    assert_eq!(lab.refresh(), ["+default/x"]);
    assert_eq!(lab.problems().len(), 1);
    assert!(lab.problems()[0].ends_with("with the same content"), "{:?}", lab.problems());
}

#[test]
fn of_two_different_pods_the_first_by_path_counts() {
    let mut lab = Lab::new();
    lab.write("b.yaml", pod("x", "10.0.0.2"));
    lab.refresh();
    lab.write("a.yaml", pod("x", "10.0.0.1"));
    assert_eq!(lab.refresh(), ["+default/x"]);
    let Some(Object::Pod(pod)) = lab.directory.objects().next().map(Arc::as_ref) else { panic!("a pod") };
    assert_eq!(*pod.addresses, ["10.0.0.1".parse::<std::net::IpAddr>().expect("address")]);
}

#[test]
fn lists_hand_their_kind_down_and_kinds_without_use_are_noted() {
    let mut lab = Lab::new();
    lab.write(
        "a.yaml",
        "apiVersion: v1\nkind: PodList\nitems:\n- metadata: {name: x}\n---\napiVersion: v1\nkind: List\nitems:\n- apiVersion: \
         v1\n  kind: Service\n  metadata: {name: s, namespace: n}\n- apiVersion: v1\n  kind: Namespace\n  metadata: {name: n}\n",
    );
    assert_eq!(lab.refresh(), ["+n", "+default/x"]);
    assert_eq!(lab.problems(), ["a.yaml:9: note: n/s: Service (v1) is passed over: policy has no use for it"]);
}

#[test]
fn what_looks_like_a_policy_but_is_none_is_a_warning() {
    let mut lab = Lab::new();
    lab.write("a.yaml", "apiVersion: crd.projectcalico.org/v1\nkind: NetworkPolicy\nmetadata: {name: p}\n");
    assert_eq!(lab.refresh(), [""; 0]);
    assert!(
        lab.problems()[0].starts_with("a.yaml:1: warning: p: NetworkPolicy (crd.projectcalico.org/v1) is not enforced")
    );
}

#[test]
fn what_is_no_object_is_an_error() {
    let mut lab = Lab::new();
    lab.write("a.yaml", "text\n---\n[1]\n---\nmetadata: {}\n---\nkind: List\nitems: 5\n");
    lab.refresh();
    let expected = "expected a Kubernetes object (apiVersion, kind, metadata), found";
    assert_eq!(
        lab.problems(),
        [
            format!("a.yaml:1: {expected} a string"),
            format!("a.yaml:3: {expected} a list"),
            "a.yaml:5: kind: no kind: this is no Kubernetes object".to_owned(),
            "a.yaml:8: items: expected a list, found a number".to_owned(),
        ]
    );
}

#[test]
fn a_root_that_vanishes_keeps_everything() {
    let dir = tempfile::tempdir().expect("directory");
    let root = dir.path().join("root");
    fs::create_dir(&root).expect("root");
    fs::write(root.join("a.yaml"), pod("x", "10.0.0.1")).expect("file");
    let mut directory = Directory::new(&root);
    directory.refresh(&Scope::everything());
    fs::rename(&root, dir.path().join("elsewhere")).expect("moved");
    assert!(directory.refresh(&Scope::everything()).updates.is_empty());
    assert_eq!(directory.unknown().len(), 1);
    fs::rename(dir.path().join("elsewhere"), &root).expect("moved back");
    assert!(directory.refresh(&Scope::everything()).updates.is_empty());
    assert!(directory.unknown().is_empty());
}

#[test]
fn a_subdirectory_that_moves_away_takes_its_objects() {
    let mut lab = Lab::new();
    fs::create_dir(lab.path("sub")).expect("subdirectory");
    lab.write("sub/a.yaml", pod("x", "10.0.0.1"));
    assert_eq!(lab.refresh(), ["+default/x"]);
    fs::rename(lab.path("sub"), lab.path(".sub")).expect("hidden");
    assert_eq!(lab.refresh_files(&["sub"]), ["-default/x"], "a path that is no file looks at everything");
}

#[test]
fn problems_appear_and_are_solved_once() {
    let mut lab = Lab::new();
    lab.write("a.yaml", "text");
    let first = lab.directory.refresh(&Scope::everything());
    let second = lab.directory.refresh(&Scope::everything());
    lab.write("a.yaml", "# nothing");
    let third = lab.directory.refresh(&Scope::everything());
    assert_eq!([first.appeared.len(), second.appeared.len(), third.appeared.len()], [1, 0, 0]);
    assert_eq!([first.solved.len(), second.solved.len(), third.solved.len()], [0, 0, 1]);
}

#[test]
fn ten_thousand_files_cost_what_changed() {
    let mut lab = Lab::new();
    for number in 0..10_000 {
        lab.write(&format!("{number}.yaml"), policy(&format!("p{number}"), "a"));
    }
    assert_eq!(lab.refresh().len(), 10_000);
    lab.write("77.yaml", policy("p77", "b"));
    let start = std::time::Instant::now();
    assert_eq!(lab.refresh_files(&["77.yaml"]), ["+default/p77"]);
    let one = start.elapsed();
    let start = std::time::Instant::now();
    assert_eq!(lab.refresh(), [""; 0]);
    let all = start.elapsed();
    assert!(one < all, "one file {one:?}, all stamps {all:?}");
}

#[test]
fn one_file_is_a_directory_too() {
    let dir = tempfile::tempdir().expect("directory");
    let file: &Path = &dir.path().join("any-name");
    fs::write(file, pod("x", "10.0.0.1")).expect("file");
    let mut directory = Directory::new(file);
    assert_eq!(words(&directory.refresh(&Scope::everything())), ["+default/x"]);
}

#[test]
fn kinds_have_their_words() {
    assert_eq!(Kind::of("NetworkPolicy"), Some(Kind::NetworkPolicy));
    assert_eq!(Kind::of("Service"), None);
}
