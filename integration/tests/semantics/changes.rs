//! Running connections, replies, and what survives a restart, an edit and a cleanup.

use std::io;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use flatfell_integration::patience::patient;
use flatfell_integration::scene::{Talk, namespace, no, ping, pod, policy, sctp, tcp, udp, yes};
use flatfell_integration::{Place, Probe, Scene};

use crate::{B_WEB, DB, FAR, OTHER, WEB, cluster, namespaces};

const DB_FROM_WEB: &str =
    "podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]";
const DENY_ALL: &str = "podSelector: {}, policyTypes: [Ingress, Egress]";

/// A connection in each family.
fn talks(scene: &Scene, from: Place, to: Place, port: u16) -> Vec<Talk> {
    to.addresses().map(|address| scene.connect(from, to, (address, port).into()).unwrap()).into()
}

#[track_caller]
fn all(talks: &mut [Talk], go_on: bool, what: &str) {
    for talk in talks {
        assert_eq!(talk.goes_on(), go_on, "{what}: {talk:?}");
    }
}

/// Row "replies": allowed implicitly; ICMP errors about an allowed flow too.
#[test]
fn replies_and_icmp_errors() {
    let mut scene = Scene::new(5, &cluster());
    let deny = policy("a/deny", DENY_ALL);
    let out = "podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: \
               {app: far}}}, {podSelector: {matchLabels: {app: db}}}]}]";
    let to_db = policy("a/in", DB_FROM_WEB);
    scene.policies(&[deny.clone(), policy("a/out", out), to_db.clone()]);
    for to in [FAR, DB] {
        let replies = [yes(tcp(WEB, to, 80)), yes(udp(WEB, to, 53)), yes(sctp(WEB, to, 9)), yes(ping(WEB, to))];
        scene.expect("replies", &replies);
        scene.expect("nothing of their own", &[no(tcp(to, WEB, 80)), no(udp(to, WEB, 53)), no(ping(to, WEB))]);
        for address in to.addresses() {
            assert_eq!(refused(&scene, WEB, address), io::ErrorKind::ConnectionRefused, "{address}");
        }
    }
    scene.policies(&[deny, to_db]);
    for address in FAR.addresses() {
        assert_eq!(refused(&scene, WEB, address), io::ErrorKind::WouldBlock, "a forbidden flow has no errors");
    }
}

/// What a datagram to a port without a socket comes to.
fn refused(scene: &Scene, from: Place, to: IpAddr) -> io::ErrorKind {
    let send = || -> io::Result<()> {
        let socket = UdpSocket::bind((from.address_like(to), 0))?;
        socket.set_read_timeout(Some(patient(Duration::from_millis(400))))?;
        socket.connect((to, 9999))?;
        socket.send(b"anybody?")?;
        socket.recv(&mut [0; 8]).map(|_| ())
    };
    scene.lab.netns(from).unwrap().run(send).unwrap().unwrap_err().kind()
}

/// Row "label, namespace-label and policy changes": take effect on new connections in milliseconds; forbidden running
/// connections are cut (default; can be switched off), also those that ran before the daemon started.
#[test]
fn changes_cut_running_connections() {
    let usual = cluster();
    let mut scene = Scene::new(5, &usual);
    let by_namespace = "podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}, \
                        {namespaceSelector: {matchLabels: {team: b}}}]}]";
    scene.policies(&[policy("a/p", by_namespace)]);
    let mut web = talks(&scene, WEB, DB, 7000);
    let mut b_web = talks(&scene, B_WEB, DB, 7001);
    let mut far = talks(&scene, FAR, OTHER, 7002);
    let relabelled = usual.replacen("labels: {app: web}", "labels: {app: former}", 1);
    scene.cluster(&relabelled);
    all(&mut web, false, "the peer lost its label");
    all(&mut b_web, true, "untouched");
    scene.expect_along("new ones", &[no(tcp(WEB, DB, 80)), yes(tcp(B_WEB, DB, 80))]);
    scene.cluster(&relabelled.replace("team: b", "team: c"));
    all(&mut b_web, false, "its namespace lost its label");
    scene.expect_along("new ones", &[no(tcp(B_WEB, DB, 80)), yes(tcp(FAR, OTHER, 80))]);
    scene.policies(&[policy("a/p", by_namespace), policy("a/q", "podSelector: {matchLabels: {app: other}}")]);
    assert!(far.iter_mut().all(|talk| !talk.server_is_heard()), "a server that speaks first");
    let mut far = talks(&scene, FAR, WEB, 7003);
    scene.cluster(&usual.replacen("labels: {app: web}", "labels: {app: db}", 1));
    all(&mut far, false, "the pod itself got a label that isolates it");
    scene.policies(&[]);
    scene.expect_along("allowed again", &[yes(tcp(WEB, DB, 80)), yes(tcp(B_WEB, DB, 80)), yes(tcp(FAR, OTHER, 80))]);
}

/// The same, for a server that pushes to a client which stays silent: no packet of the client tells that policy changed.
#[test]
fn a_pushed_flow_is_cut() {
    let mut scene = Scene::new(5, &cluster());
    scene.policies(&[]);
    for client in [OTHER, FAR] {
        let mut flows = DB.addresses().map(|to| pushed_flow(&scene, client, to));
        let heard = |(server, client): &mut (UdpSocket, UdpSocket)| {
            server.send(b"news").is_ok() && client.recv(&mut [0; 8]).is_ok()
        };
        assert!(flows.iter_mut().all(heard), "before");
        scene.policies(&[policy("a/p", DB_FROM_WEB)]);
        assert!(!flows.iter_mut().any(heard), "cut");
        scene.policies(&[]);
    }
}

/// A server that a client has spoken to once, and the client.
fn pushed_flow(scene: &Scene, from: Place, to: IpAddr) -> (UdpSocket, UdpSocket) {
    let socket = |place: Place| {
        let bind = || UdpSocket::bind((place.address_like(to), 5000));
        let socket = scene.lab.netns(place).unwrap().run(bind).unwrap().unwrap();
        socket.set_read_timeout(Some(patient(Duration::from_millis(150)))).unwrap();
        socket
    };
    let (server, client) = (socket(DB), socket(from));
    client.connect((to, 5000)).unwrap();
    client.send(b"hello").unwrap();
    let (_, peer) = server.recv_from(&mut [0; 8]).unwrap();
    server.connect(peer).unwrap();
    (server, client)
}

/// The same, for connections that ran before the daemon started.
#[test]
fn connections_from_before_the_start_are_cut() {
    let mut scene = Scene::new(5, &cluster());
    scene.policies(&[]);
    scene.node.stop().unwrap();
    scene.node.command(&["cleanup"]).unwrap();
    let mut near = talks(&scene, OTHER, DB, 7000);
    let mut far = talks(&scene, FAR, DB, 7001);
    let mut web = talks(&scene, WEB, DB, 7002);
    scene.node.write("policies.yaml", &policy("a/p", DB_FROM_WEB)).unwrap();
    scene.node.restart().unwrap();
    all(&mut near, false, "of the same bridge");
    all(&mut far, false, "of another node");
    all(&mut web, true, "an allowed one");
}

/// The same, switched off: running connections stay, new ones do not begin.
#[test]
fn established_connections_can_be_kept() {
    let mut scene = Scene::with(5, &cluster(), &["--established=keep"]);
    scene.policies(&[]);
    let mut running = talks(&scene, OTHER, DB, 7000);
    scene.policies(&[policy("a/p", DB_FROM_WEB)]);
    all(&mut running, true, "kept");
    scene.expect_along("new ones", &[no(tcp(OTHER, DB, 80)), yes(tcp(WEB, DB, 80))]);
}

/// A flow that rides on an old conntrack entry with the same ICMP id; UDP with the same ports too.
#[test]
fn old_conntrack_entries_carry_nothing() {
    let mut scene = Scene::new(5, &cluster());
    scene.policies(&[]);
    let again = |from: Place| -> Vec<Probe> {
        let mut probes = [ping(from, DB), udp(from, DB, 53)].concat();
        probes.iter_mut().for_each(|probe| probe.source_port = Some(4711));
        probes
    };
    scene.expect("before", &[yes(again(OTHER)), yes(again(FAR)), yes(again(WEB))]);
    scene.policies(&[policy("a/p", DB_FROM_WEB)]);
    scene.expect_along("the same id again", &[no(again(OTHER)), no(again(FAR)), yes(again(WEB))]);
    scene.policies(&[]);
    scene.expect_along("allowed again", &[yes(again(OTHER)), yes(again(FAR)), yes(again(WEB))]);
}

/// The packets of the one rule of `a/p`, by what it says.
fn packets(scene: &Scene, content: &str) -> u64 {
    let report = scene.node.status().unwrap();
    let rules = report.rules.iter().filter(|rule| rule.policy == "p" && rule.content.contains(content));
    rules.map(|rule| rule.traffic.packets).sum()
}

/// Counters that fall to zero when a policy is edited or its rules are reordered; and when the agent restarts.
#[test]
fn counters_survive_edits_and_restarts() {
    let mut scene = Scene::new(5, &cluster());
    let web = "{from: [{podSelector: {matchLabels: {app: web}}}]}";
    let other = "{from: [{podSelector: {matchLabels: {app: other}}}], ports: [{port: 80}]}";
    let more = "{ports: [{port: 443}]}";
    let spec = |rules: &[&str]| {
        policy("a/p", &format!("podSelector: {{matchLabels: {{app: db}}}}, ingress: [{}]", rules.join(", ")))
    };
    scene.policies(&[spec(&[web, other])]);
    scene.expect("both count", &[yes(tcp(WEB, DB, 80)), yes(tcp(OTHER, DB, 80)), no(tcp(FAR, DB, 80))]);
    let before = (packets(&scene, "web"), packets(&scene, "other"));
    assert!(before.0 > 0 && before.1 > 0, "{before:?}");
    let dropped = |scene: &Scene| {
        let report = scene.node.status().unwrap();
        report.pods.iter().find(|pod| pod.name == "db").unwrap().ingress.dropped.packets
    };
    let drops = dropped(&scene);
    assert!(drops >= 2, "drops have a pod's name: {drops}");
    for rules in [&[other, web][..], &[more, other, web], &[web, other]] {
        scene.policies(&[spec(rules)]);
        let after = (packets(&scene, "web"), packets(&scene, "other"));
        assert!(
            after.0 >= before.0 && after.1 >= before.1 && dropped(&scene) >= drops,
            "{rules:?}: {before:?} {after:?}"
        );
    }
    scene.node.kill9().unwrap();
    scene.node.restart().unwrap();
    let after = (packets(&scene, "web"), packets(&scene, "other"));
    assert!(after.0 >= before.0 && after.1 >= before.1 && dropped(&scene) >= drops, "{before:?} {after:?}");
    let metrics = scene.node.metrics().unwrap();
    assert!(metrics.contains("policy=\"p\"") && metrics.contains("pod=\"db\""), "{metrics}");
}

/// Traffic open while the agent restarts; rules left behind after uninstall.
#[test]
fn rules_stay_without_the_daemon_until_cleanup() {
    let mut scene = Scene::new(5, &cluster());
    scene.policies(&[policy("a/p", DB_FROM_WEB)]);
    let held = [yes(tcp(WEB, DB, 80)), no(tcp(OTHER, DB, 80)), no(tcp(FAR, DB, 80))];
    scene.node.kill9().unwrap();
    scene.expect("killed", &held);
    scene.node.restart().unwrap();
    scene.expect("started again", &held);
    assert!(scene.node.command(&["cleanup"]).is_err(), "refused while it runs");
    scene.node.stop().unwrap();
    scene.expect("stopped", &held);
    scene.node.command(&["cleanup"]).unwrap();
    scene.expect("cleaned up", &[yes(tcp(OTHER, DB, 80)), yes(tcp(FAR, DB, 80))]);
    let left = scene.lab.netns(Place::Node(1)).unwrap().feed("nft", &["list", "ruleset"], "").unwrap();
    assert_eq!(left, "", "nothing is left");
}

/// Row "audit mode": an audited policy isolates nothing and its rules allow nothing; "would drop" is what would change if
/// it were enforced. A namespace's annotation audits its NetworkPolicies.
#[test]
fn audit_mode() {
    let usual = cluster();
    let mut scene = Scene::new(5, &usual);
    let audited =
        |manifest: String| manifest.replacen("metadata: {", "metadata: {annotations: {flatfell.io/mode: audit}, ", 1);
    let would_drop = |scene: &Scene| {
        let report = scene.node.status().unwrap();
        report.pods.iter().find(|pod| pod.name == "db" && pod.namespace == "a").unwrap().ingress.would_drop.packets
    };
    scene.policies(&[audited(policy("a/p", DB_FROM_WEB))]);
    scene.expect("what it allows", &[yes(tcp(WEB, DB, 80))]);
    assert_eq!(would_drop(&scene), 0);
    scene.expect("isolates nothing", &[yes(tcp(OTHER, DB, 80)), yes(tcp(FAR, DB, 80))]);
    assert_eq!(would_drop(&scene), 4, "each new flow once");
    let other =
        "podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: other}}}]}]";
    scene.policies(&[policy("a/q", other), audited(policy("a/p", DB_FROM_WEB))]);
    scene.expect("its rules allow nothing", &[yes(tcp(OTHER, DB, 80)), no(tcp(WEB, DB, 80))]);
    scene.policies(&[policy("a/p", DB_FROM_WEB), policy("b/p", "podSelector: {}")]);
    scene.cluster(&usual.replace(&namespace("a", "team: a"), &audited(namespace("a", "team: a"))));
    scene.expect("a whole namespace", &[yes(tcp(OTHER, DB, 80)), no(tcp(WEB, B_WEB, 80))]);
    scene.cluster(&usual);
    scene.expect("enforced", &[no(tcp(OTHER, DB, 80))]);
}

/// Two daemons' worth of pods: a connection between nodes obeys the destination's node alone and the source's node alone.
#[test]
fn each_node_enforces_its_own_pods() {
    let pods = [namespaces(), pod("a/db", DB, "app: db"), pod("a/far", FAR, "app: far")];
    let mut scene = Scene::new(5, &pods.concat());
    let far = policy("a/p", "podSelector: {matchLabels: {app: far}}, policyTypes: [Ingress, Egress]");
    scene.policies(&[far]);
    scene.expect("node 2's pods are node 2's to isolate", &[yes(tcp(FAR, DB, 80)), yes(tcp(DB, FAR, 80))]);
    let text = std::fs::read_to_string(scene.node.root().join("cluster.yaml")).unwrap();
    let policies = std::fs::read_to_string(scene.node.root().join("policies.yaml")).unwrap();
    let files = [("cluster.yaml", text.as_str()), ("policies.yaml", policies.as_str())];
    let second = flatfell_integration::FlatfellNode::start(&scene.lab, 2, &files).unwrap();
    scene.expect("and it does", &[no(tcp(FAR, DB, 80)), no(tcp(DB, FAR, 80)), no(tcp(Place::pod(2, 1), FAR, 80))]);
    drop(second);
}
