//! Pods that come, go, end, and share an address in turn.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use flatfell_integration::patience::patient;
use flatfell_integration::scene::{namespace, no, pod, pod_in_phase, policy, tcp, yes};
use flatfell_integration::{Place, Scene};

use crate::{DB, FAR, OTHER, WEB, namespaces};

/// Ingress of db from web, and of web from nobody.
fn db_from_web() -> Vec<String> {
    vec![
        policy(
            "a/p",
            "podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]",
        ),
        policy("a/q", "podSelector: {matchLabels: {app: web}}"),
    ]
}

fn in_phase(phase: &str) -> String {
    pod_in_phase("a/web", WEB, "app: web", "", &WEB.addresses(), phase)
}

fn with_metadata(pod: &str, more: &str) -> String {
    pod.replacen("metadata: {", &format!("metadata: {{{more}, "), 1)
}

/// Row "pod lifetime": Pending with an address, Unknown, not ready, deletionTimestamp: counts fully. Succeeded, Failed or
/// gone from the API: no peer any more; on its own node its isolation stays until its interface is gone or another pod
/// owns the address. (A completed Job's IP.)
#[test]
fn pod_lifetime() {
    let rest = [namespaces(), pod("a/db", DB, "app: db"), pod("a/other", OTHER, "app: other")].concat();
    // The last pod here is one that the API never shows.
    let cluster = [rest.clone(), in_phase("Running")].concat();
    let mut scene = Scene::with(5, &cluster, &["--unknown-pods=allow"]);
    scene.policies(&db_from_web());
    let not_ready =
        in_phase("Running").replacen("status: {", "status: {conditions: [{type: Ready, status: \"False\"}], ", 1);
    let going = with_metadata(&in_phase("Running"), "deletionTimestamp: \"2026-01-01T00:00:00Z\"");
    for live in [in_phase("Pending"), in_phase("Unknown"), not_ready, going] {
        scene.cluster(&[rest.clone(), live.clone()].concat());
        scene.expect(
            &format!("counts fully: {live}"),
            &[yes(tcp(WEB, DB, 80)), no(tcp(OTHER, WEB, 80)), no(tcp(OTHER, DB, 80))],
        );
    }
    for ended in [in_phase("Succeeded"), in_phase("Failed"), String::new()] {
        scene.cluster(&[rest.clone(), in_phase("Running")].concat());
        scene.cluster(&[rest.clone(), ended.clone()].concat());
        let what = format!("no peer, still isolated: {ended}");
        scene.expect(&what, &[no(tcp(WEB, DB, 80)), no(tcp(OTHER, WEB, 80)), yes(tcp(WEB, OTHER, 80))]);
    }
    scene.cluster(&[rest.clone(), in_phase("Running")].concat());
    // Another pod owns the address now.
    let heir = [rest.clone(), pod("a/heir", WEB, "app: heir")].concat();
    scene.cluster(&heir);
    scene.expect("another pod owns the address", &[yes(tcp(OTHER, WEB, 80)), no(tcp(WEB, DB, 80))]);
    // Its interface goes, and a pod that the API never showed gets the same slot.
    scene.cluster(&[rest.clone(), in_phase("Running")].concat());
    scene.expect("a probe of the kubelet shows which interface", &[yes(tcp(Place::Node(1), WEB, 80))]);
    scene.cluster(&rest);
    scene.expect("gone, its interface still here", &[no(tcp(OTHER, WEB, 80))]);
    scene.lab.remove_pod(WEB).unwrap();
    let addresses: Vec<String> = WEB.addresses().map(|address| address.to_string()).to_vec();
    let gone = |report: &flatfell::status::Report| {
        report.synced && !report.pods.iter().any(|pod| pod.addresses.iter().any(|address| addresses.contains(address)))
    };
    scene.node.wait_for("rid of the pod whose interface is gone", gone).unwrap();
    scene.lab.add_pod(1, 0).unwrap();
    scene.expect("a new interface, no policy", &[yes(tcp(OTHER, WEB, 80))]);
}

/// Row "one address, two pods": not terminal before terminal, then newest creation time, then UID; an order that a relist
/// cannot change. (An IP that two pods claim in turn.) An address change under one UID removes the old address.
#[test]
fn one_address_two_pods() {
    let rest = [namespaces(), pod("a/db", DB, "app: db"), pod("a/other", OTHER, "app: other")].concat();
    let mut scene = Scene::new(5, &rest);
    scene.policies(&db_from_web());
    let claim = |name: &str, app: &str, phase: &str, created: &str| {
        let pod = pod_in_phase(name, WEB, &format!("app: {app}"), "", &WEB.addresses(), phase);
        with_metadata(&pod, &format!("creationTimestamp: \"{created}\""))
    };
    let (early, late) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
    for (what, web, job, web_owns) in [
        (
            "not terminal before terminal",
            claim("a/web", "web", "Running", early),
            claim("a/job", "job", "Succeeded", late),
            true,
        ),
        ("and the other way", claim("a/web", "web", "Failed", late), claim("a/job", "job", "Running", early), false),
        ("the newest", claim("a/web", "web", "Running", late), claim("a/job", "job", "Running", early), true),
        (
            "the newest, the other way",
            claim("a/web", "web", "Running", early),
            claim("a/job", "job", "Pending", late),
            false,
        ),
        // The UIDs are a-job and a-web.
        ("the UID", claim("a/web", "web", "Running", late), claim("a/job", "job", "Running", late), false),
    ] {
        let expected = if web_owns {
            [yes(tcp(WEB, DB, 80)), no(tcp(OTHER, WEB, 80))]
        } else {
            [no(tcp(WEB, DB, 80)), yes(tcp(OTHER, WEB, 80))]
        };
        for order in [[&web, &job], [&job, &web]] {
            scene.cluster(&[rest.clone(), order[0].clone(), order[1].clone()].concat());
            scene.expect(what, &expected);
            // A relist: all of them gone and back.
            scene.node.restart().unwrap();
            scene.expect(&format!("{what}, read anew"), &expected);
        }
        scene.cluster(&rest);
    }
    address_change(&mut scene, &rest);
}

fn address_change(scene: &mut Scene, rest: &str) {
    let more: [IpAddr; 2] = ["10.244.1.99".parse().unwrap(), "fd00:10:244:1::99".parse().unwrap()];
    // The kernel joins an address's solicited-node group some time after it has the address.
    more.iter().for_each(|&address| scene.lab.add_address(WEB, address).unwrap());
    scene.cluster(&[rest, &pod("a/web", WEB, "app: web")].concat());
    scene.expect("the old address", &[yes(tcp(WEB, DB, 80))]);
    scene.cluster(&[rest, &pod_in_phase("a/web", WEB, "app: web", "", &more, "Running")].concat());
    scene.expect("no longer a peer by the old one", &[no(tcp(WEB, DB, 80))]);
    let probes =
        more.map(|source| flatfell_integration::Probe::tcp(WEB, DB.address_like(source), 80).from_address(source));
    scene.expect("but by the new one", &[yes(probes)]);
}

/// Row "pod addresses": status.podIPs, else podIP; mirror pods count; ephemeral containers change nothing.
#[test]
fn pod_addresses() {
    let pod_ip = format!(
        "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: web, namespace: a, labels: {{app: web}}, annotations: \
         {{kubernetes.io/config.mirror: x}}}}, spec: {{nodeName: node1, ephemeralContainers: [{{name: shell, ports: [{{name: \
         web, containerPort: 80}}]}}]}}, status: {{podIP: {}}}}}\n",
        WEB.v4()
    );
    let mut scene = Scene::new(5, &[namespaces(), pod("a/db", DB, "app: db"), pod_ip].concat());
    scene.policies(&db_from_web());
    let to_db = [flatfell_integration::Probe::tcp(WEB, DB.v4(), 80)];
    let to_web = [flatfell_integration::Probe::tcp(OTHER, WEB.v4(), 80)];
    scene.expect("podIP, of a mirror pod", &[yes(to_db), no(to_web.clone())]);
    scene.policies(&[policy("a/q", "podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: web}]}]")]);
    scene.expect("a port of an ephemeral container has no name", &[no(to_web)]);
}

/// Row "a namespace that is going": policies deleted from a Terminating namespace keep their effect until its pods are
/// gone (switchable).
#[test]
fn a_namespace_that_is_going() {
    let going = with_metadata(&namespace("a", "team: a"), "deletionTimestamp: \"2026-01-01T00:00:00Z\"");
    let pods = pod("a/db", DB, "app: db");
    let deny = [policy("a/p", "podSelector: {}")];
    for (terminating, kept) in [("keep", true), ("forget", false)] {
        // The client is no pod of the API.
        let flags = [&format!("--terminating={terminating}"), "--unknown-pods=allow"];
        let mut scene = Scene::with(5, &[namespace("a", "team: a"), pods.clone()].concat(), &flags);
        scene.policies(&deny);
        scene.policies(&[]);
        scene.expect("deleted from a namespace that stays", &[yes(tcp(WEB, DB, 80))]);
        scene.policies(&deny);
        scene.cluster(&[going.clone(), pods.clone()].concat());
        scene.policies(&[]);
        let probes = tcp(WEB, DB, 80);
        scene.expect("deleted from one that is going", &[if kept { no(probes) } else { yes(probes) }]);
        if kept {
            scene.expect("a probe of the kubelet shows which interface", &[yes(tcp(Place::Node(1), DB, 80))]);
            scene.cluster(&going);
            scene.lab.remove_pod(DB).unwrap();
            scene.node.wait_for("rid of the last pod", |report| report.synced && report.pods.len() == 1).unwrap();
            scene.lab.add_pod(1, 1).unwrap();
            scene.cluster(&[going.clone(), pods.clone()].concat());
            scene.expect("its pods were gone once", &[yes(tcp(WEB, DB, 80))]);
        }
    }
}

/// Row "new pod": isolated before it starts, init containers included, once its policy was handled; allow rules may
/// follow.
#[test]
fn a_new_pod_is_isolated_before_it_starts() {
    let new = Place::pod(1, 9);
    let mut scene = Scene::new(5, &[namespaces(), pod("a/web", WEB, "app: web"), pod("a/db", DB, "app: db")].concat());
    let deny = policy("a/deny", "podSelector: {matchLabels: {app: new}}, policyTypes: [Ingress, Egress]");
    scene.policies(std::slice::from_ref(&deny));
    let pending = pod_in_phase("a/new", new, "app: new", "", &new.addresses(), "Pending");
    scene.node.apply("new.yaml", &pending).unwrap();
    scene.lab.add_pod(1, 9).unwrap();
    let tagged = new.addresses().map(|to| flatfell_integration::Probe::tcp(WEB, to, 80).in_frame(&[0]));
    // Not settled here: what holds for its first packet was decided before its interface was there.
    scene.expect_along("its first packets", &[no(tcp(WEB, new, 80)), no(tcp(new, DB, 80)), no(tcp(FAR, new, 80))]);
    scene.node.settle().unwrap();
    scene.expect("tagged frames", &[no(tagged)]);
    let allow = "podSelector: {matchLabels: {app: new}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]";
    scene.policies(&[deny, policy("a/allow", allow)]);
    scene.expect("allow rules follow", &[yes(tcp(WEB, new, 80)), no(tcp(DB, new, 80)), no(tcp(new, DB, 80))]);
}

/// What a change takes to reach the kernel. On a busy machine others take most of the time: the fastest quarter counts.
#[test]
fn changes_take_effect_in_milliseconds() {
    let mut scene = Scene::new(3, &[namespaces(), pod("a/db", DB, "app: db")].concat());
    let mut times: Vec<Duration> = (0..20)
        .map(|round| {
            let policies = if round % 2 == 0 { vec![policy("a/p", "podSelector: {}")] } else { Vec::new() };
            let start = Instant::now();
            scene.policies(&policies);
            start.elapsed()
        })
        .collect();
    times.sort();
    assert!(times[4] < patient(Duration::from_millis(100)), "{times:?}");
}
