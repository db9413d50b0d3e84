//! ipBlock: what it covers, how its text is read, what `check` says of it.

use std::net::IpAddr;

use flatfell_integration::scene::{Expected, no, pod_with, policy, tcp, yes};
use flatfell_integration::{Place, Probe, Scene};

use crate::{B_WEB, DB, FAR, OTHER, WEB, cluster};

/// Ingress of db from these peers.
fn from(peers: &str) -> String {
    policy("a/p", &format!("podSelector: {{matchLabels: {{app: db}}}}, ingress: [{{from: [{peers}]}}]"))
}

/// Egress of db to these peers.
fn to(peers: &str) -> String {
    let spec = "podSelector: {matchLabels: {app: db}}, policyTypes: [Egress], egress: ";
    policy("a/p", &format!("{spec} [{{to: [{peers}]}}]"))
}

/// From an address beyond the outside host to db.
fn beyond(source: &str) -> Vec<Probe> {
    let source: IpAddr = source.parse().unwrap();
    vec![Probe::tcp(Place::Outside, DB.address_like(source), 80).from_address(source)]
}

/// From db to an address beyond.
fn out(to: &str) -> Vec<Probe> {
    vec![Probe::tcp(DB, to.parse::<IpAddr>().unwrap(), 80)]
}

/// Row "ipBlock": cidr minus except, IPv4 and IPv6; matches addresses of anything, pods too; an `except` takes nothing
/// away from another peer or rule.
#[test]
fn blocks_and_except() {
    let mut scene = Scene::new(5, &cluster());
    let v4 = "{ipBlock: {cidr: 198.51.100.0/24, except: [198.51.100.64/26, 198.51.100.7/32]}}";
    let v6 = "{ipBlock: {cidr: \"2001:db8::/32\", except: [\"2001:db8:1::/48\", \"2001:db8::7/128\"]}}";
    let inside = ["198.51.100.1", "198.51.100.63", "198.51.100.128", "198.51.100.255", "2001:db8::1", "2001:db8:2::1"];
    let excepted = ["198.51.100.7", "198.51.100.64", "198.51.100.127", "2001:db8::7", "2001:db8:1::1"];
    let outside = ["198.51.99.1", "198.51.101.1", "2001:db9::1"];
    let each = |of: &dyn Fn(&str) -> Vec<Probe>| -> Vec<Vec<Expected>> {
        let passing = inside.iter().map(|address| yes(of(address)));
        passing.chain(excepted.iter().chain(&outside).map(|address| no(of(address)))).collect()
    };
    // The answers to addresses beyond go out by the default route, to the same host.
    scene.policies(&[from(&format!("{v4}, {v6}"))]);
    scene.expect("ingress", &each(&beyond));
    scene.policies(&[to(&format!("{v4}, {v6}"))]);
    scene.expect("egress", &each(&out));
    pods_too(&mut scene);
    except_is_no_return(&mut scene);
}

fn pods_too(scene: &mut Scene) {
    let pods = "{ipBlock: {cidr: 10.244.0.0/16, except: [10.244.1.12/32]}}, {ipBlock: {cidr: \"fd00:10:244::/48\", \
                except: [\"fd00:10:244:1::12/128\"]}}";
    scene.policies(&[from(pods)]);
    let place = Place::Outside;
    scene.expect(
        "pods too",
        &[yes(tcp(WEB, DB, 80)), yes(tcp(FAR, DB, 80)), no(tcp(OTHER, DB, 80)), no(tcp(place, DB, 80))],
    );
    scene.policies(&[to(pods)]);
    scene.expect(
        "egress, too",
        &[yes(tcp(DB, WEB, 80)), yes(tcp(DB, FAR, 80)), no(tcp(DB, OTHER, 80)), no(tcp(DB, place, 80))],
    );
    scene.policies(&[from("{ipBlock: {cidr: 0.0.0.0/0}}")]);
    let (v4, v6) = (vec![Probe::tcp(WEB, DB.v4(), 80)], vec![Probe::tcp(WEB, DB.v6(), 80)]);
    scene.expect("one family only", &[yes(v4), no(v6)]);
}

fn except_is_no_return(scene: &mut Scene) {
    let all_but_other = "{ipBlock: {cidr: 10.244.1.0/24, except: [10.244.1.12/32]}}, {ipBlock: {cidr: \
                         \"fd00:10:244:1::/64\", except: [\"fd00:10:244:1::12/128\"]}}";
    let other = "{podSelector: {matchLabels: {app: other}}}";
    for order in [format!("{all_but_other}, {other}"), format!("{other}, {all_but_other}")] {
        scene.policies(&[from(&order)]);
        scene.expect(
            "another peer gives what is excepted",
            &[yes(tcp(OTHER, DB, 80)), yes(tcp(B_WEB, DB, 80)), no(tcp(FAR, DB, 80))],
        );
    }
    let overlapping = "{ipBlock: {cidr: 10.244.1.8/29}}, {ipBlock: {cidr: \"fd00:10:244:1::10/124\"}}";
    scene.policies(&[from(&format!("{all_but_other}, {overlapping}"))]);
    scene.expect("another block too", &[yes(tcp(OTHER, DB, 80)), yes(tcp(WEB, DB, 80))]);
    let rules = format!(
        "podSelector: {{matchLabels: {{app: db}}}}, ingress: [{{from: [{all_but_other}]}}, {{from: [{other}], ports: [{{port: \
         443}}]}}]"
    );
    scene.policies(&[policy("a/p", &rules)]);
    scene.expect("another rule too", &[yes(tcp(OTHER, DB, 443)), no(tcp(OTHER, DB, 80)), yes(tcp(WEB, DB, 80))]);
}

/// Row "ipBlock text": as the API server reads it: stored objects may hold leading zeros (decimal), host bits (masked),
/// v4-mapped addresses (are v4); `except` strictly inside cidr; `check` reports what is sloppy.
#[test]
fn block_text() {
    let mut scene = Scene::new(5, &cluster());
    for (text, near, far) in [
        ("010.244.001.010/32", true, false),
        ("10.244.1.10/29", true, false),
        ("::ffff:10.244.1.10/128", true, false),
        ("10.244.2.99/24", false, true),
    ] {
        scene.policies(&[from(&format!("{{ipBlock: {{cidr: \"{text}\"}}}}"))]);
        let v4 = |place: Place, passes: bool| {
            let probe = [Probe::tcp(place, DB.v4(), 80)];
            if passes { yes(probe) } else { no(probe) }
        };
        scene.expect(text, &[v4(WEB, near), v4(FAR, far)]);
        let report = scene.node.status().unwrap();
        assert_eq!(report.source.errors, Vec::<String>::new(), "{text}");
        assert!(report.source.warnings.iter().any(|warning| warning.contains("cidr")), "{text}: {report:?}");
        let check = scene.node.command(&["check", &scene.node.root().to_string_lossy()]).unwrap();
        assert!(check.contains("a/p") && check.contains("cidr"), "{check}");
    }
    for except in ["10.244.0.0/16", "10.244.1.0/24", "192.0.2.0/25", "fd00::/64", "x"] {
        scene.policies(&[from(&format!("{{ipBlock: {{cidr: 10.244.1.0/24, except: [\"{except}\"]}}}}"))]);
        scene.expect(except, &[no(tcp(WEB, DB, 80)), yes(tcp(DB, WEB, 80)), yes(tcp(WEB, OTHER, 80))]);
        let errors = scene.node.status().unwrap().source.errors;
        assert!(errors.iter().any(|error| error.contains("a/p") && error.contains("except")), "{except}: {errors:?}");
        assert!(scene.node.command(&["check", &scene.node.root().to_string_lossy()]).is_err(), "{except}");
    }
}

/// Row "dual stack": every address of a pod, both families; a cluster may have either alone.
#[test]
fn dual_stack() {
    let more: [IpAddr; 2] = ["10.244.1.200".parse().unwrap(), "fd00:10:244:1::200".parse().unwrap()];
    let usual = cluster();
    let mut scene = Scene::new(5, &usual);
    more.iter().for_each(|&address| scene.lab.add_address(DB, address).unwrap());
    let db = |addresses: &[IpAddr]| pod_with("a/db", DB, "app: db", "", addresses);
    let all = [DB.addresses(), more].concat();
    let usual = usual.replace(&pod_with("a/db", DB, "app: db, tier: back", "", &DB.addresses()), "");
    scene.cluster(&[usual.clone(), db(&all)].concat());
    scene.policies(&[from("{podSelector: {matchLabels: {app: web}}}")]);
    let at = |from: Place| -> Vec<Probe> { all.iter().map(|&address| Probe::tcp(from, address, 80)).collect() };
    scene.expect("every address", &[yes(at(WEB)), no(at(FAR)), no(at(Place::Outside))]);
    let of = |to: Place| -> Vec<Probe> {
        all.iter().map(|&source| Probe::tcp(DB, to.address_like(source), 80).from_address(source)).collect()
    };
    scene.policies(&[to("{podSelector: {matchLabels: {app: web}}}")]);
    scene.expect("from every address", &[yes(of(WEB)), no(of(FAR))]);
    let ingress = policy(
        "a/w",
        "podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: db}}}]}]",
    );
    scene.policies(&[ingress]);
    scene.expect("as a peer", &[yes(of(WEB)), no(tcp(OTHER, WEB, 80))]);
    for family in [0, 1] {
        let one = |name: &str, place: Place, labels: &str| {
            pod_with(name, place, labels, "", &place.addresses()[family..=family])
        };
        let alone =
            [crate::namespaces(), one("a/db", DB, "app: db"), one("a/web", WEB, "app: web"), one("a/other", OTHER, "")];
        scene.cluster(&alone.concat());
        let probe = |from: Place| vec![Probe::tcp(from, WEB.addresses()[family], 80)];
        scene.expect("one family alone", &[yes(probe(DB)), no(probe(OTHER))]);
    }
}
