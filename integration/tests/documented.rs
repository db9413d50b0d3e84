//! The policies that users copy from documentation (cases/documented), as they are: each does what it says.
//!
//! In: the files. Out: a failure that names the file and each packet that went another way.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use flatfell_integration::scene::{Expected, namespace, no, ping, pod, sctp, tcp, udp, yes};
use flatfell_integration::{Place, Probe, Scene};

const OUT: Place = Place::Outside;
/// Of namespace `my-segment`.
const FRONTEND: Place = Place::pod(1, 0);
const BACKEND: Place = Place::pod(1, 1);
const DATABASE: Place = Place::pod(1, 2);
const CRITICAL: Place = Place::pod(1, 3);
const TRUSTED: Place = Place::pod(1, 4);
const PROD_WEB: Place = Place::pod(1, 5);
const PROD_PLAIN: Place = Place::pod(1, 6);
const DEV: Place = Place::pod(1, 7);
/// Of namespace `default`.
const API: Place = Place::pod(1, 8);
const WEB: Place = Place::pod(1, 9);
const D_FRONTEND: Place = Place::pod(1, 10);
const SERVICE: Place = Place::pod(1, 11);
const D_BACKEND: Place = Place::pod(1, 12);
const PLAIN: Place = Place::pod(1, 13);
/// On the other node.
const FAR_DEV: Place = Place::pod(2, 0);
const FAR_FRONTEND: Place = Place::pod(2, 1);
const FAR_PROD: Place = Place::pod(2, 2);

fn cluster() -> String {
    [
        namespace("my-segment", ""),
        namespace("trusted", "name: trusted"),
        namespace("prod", "environment: prod"),
        namespace("dev", "environment: dev"),
        namespace("default", ""),
        pod("my-segment/frontend", FRONTEND, "role: frontend"),
        pod("my-segment/backend", BACKEND, "role: backend"),
        pod("my-segment/database", DATABASE, "role: database"),
        pod("my-segment/critical", CRITICAL, "role: critical-app"),
        pod("trusted/one", TRUSTED, "app: one"),
        pod("prod/web", PROD_WEB, "app: web"),
        pod("prod/plain", PROD_PLAIN, "app: plain"),
        pod("dev/one", DEV, "app: one"),
        pod("api", API, "app: api"),
        pod("web", WEB, "app: web"),
        pod("frontend", D_FRONTEND, "role: frontend, app: frontend"),
        pod("service", SERVICE, "app: service"),
        pod("backend", D_BACKEND, "app: backend"),
        pod("plain", PLAIN, "app: plain"),
        pod("dev/far", FAR_DEV, "app: one"),
        pod("far-frontend", FAR_FRONTEND, "role: frontend, app: frontend"),
        pod("prod/far", FAR_PROD, "app: far"),
    ]
    .concat()
}

/// From an IPv4 address beyond the outside host.
fn from_beyond(source: &str, to: Place) -> Vec<Probe> {
    let source: IpAddr = source.parse().unwrap();
    [Probe::tcp(OUT, to.v4(), 80), Probe::udp(OUT, to.v4(), 53), Probe::icmp(OUT, to.v4())]
        .map(|probe| probe.from_address(source))
        .into()
}

fn to_beyond(from: Place, to: &str) -> Vec<Probe> {
    let to: IpAddr = to.parse().unwrap();
    vec![Probe::tcp(from, to, 443), Probe::udp(from, to, 53), Probe::icmp(from, to)]
}

/// Every kind of traffic between two places.
fn any(from: Place, to: Place) -> Vec<Probe> {
    [tcp(from, to, 80), tcp(from, to, 8080), udp(from, to, 53), sctp(from, to, 9), ping(from, to)].concat()
}

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("cases/documented")
}

/// What holds with one policy (or two, joined by `+`).
fn cases() -> Vec<(&'static str, Vec<Vec<Expected>>)> {
    [segments(), production(), selectors_and_ports(), denials()].concat()
}

fn segments() -> Vec<(&'static str, Vec<Vec<Expected>>)> {
    vec![
        (
            "01-allow-specific-ingress",
            vec![
                yes(from_beyond("192.168.1.1", FRONTEND)),
                yes(from_beyond("192.168.1.255", FRONTEND)),
                no(from_beyond("192.168.2.1", FRONTEND)),
                no(any(OUT, FRONTEND)),
                no(any(BACKEND, FRONTEND)),
                yes(any(FRONTEND, BACKEND)),
                yes(any(OUT, D_FRONTEND)),
            ],
        ),
        (
            "02-basic-policy",
            vec![
                yes(from_beyond("10.0.0.1", BACKEND)),
                no(from_beyond("10.0.1.1", BACKEND)),
                no(any(FRONTEND, BACKEND)),
                no(any(FAR_DEV, BACKEND)),
                yes(any(BACKEND, FRONTEND)),
                yes(any(OUT, D_BACKEND)),
            ],
        ),
        (
            "03-advanced-policy",
            vec![
                yes(any(FRONTEND, DATABASE)),
                no(any(BACKEND, DATABASE)),
                no(any(D_FRONTEND, DATABASE)),
                no(any(OUT, DATABASE)),
                yes(to_beyond(DATABASE, "10.0.0.9")),
                no(to_beyond(DATABASE, "10.0.1.9")),
                no(any(DATABASE, FRONTEND)),
                yes(any(FRONTEND, BACKEND)),
            ],
        ),
        (
            "04-production-policy",
            vec![
                yes(any(TRUSTED, CRITICAL)),
                no(any(FRONTEND, CRITICAL)),
                no(any(DEV, CRITICAL)),
                yes(to_beyond(CRITICAL, "192.168.2.9")),
                no(to_beyond(CRITICAL, "192.168.1.9")),
                no(any(CRITICAL, TRUSTED)),
                yes(any(TRUSTED, FRONTEND)),
            ],
        ),
    ]
}

fn production() -> Vec<(&'static str, Vec<Vec<Expected>>)> {
    let from_dev = vec![
        yes(any(DEV, PROD_WEB)),
        yes(any(FAR_DEV, PROD_WEB)),
        no(any(PROD_PLAIN, PROD_WEB)),
        no(any(FAR_PROD, PROD_WEB)),
        no(any(OUT, PROD_WEB)),
    ];
    let others = vec![yes(any(DEV, PROD_PLAIN)), yes(any(PROD_WEB, DEV)), yes(any(PROD_PLAIN, WEB))];
    let denied = vec![no(any(DEV, PROD_PLAIN)), no(any(PROD_WEB, DEV)), no(any(PROD_PLAIN, WEB))];
    let apart = vec![yes(any(DEV, WEB)), yes(tcp(Place::Node(1), PROD_WEB, 80))];
    vec![
        (
            "05-default-deny-prod",
            [
                vec![no(any(DEV, PROD_WEB)), no(any(PROD_PLAIN, PROD_WEB)), no(to_beyond(PROD_WEB, "8.8.8.8"))],
                vec![no(any(PROD_WEB, Place::Node(1)))],
                denied.clone(),
                apart,
            ]
            .concat(),
        ),
        ("06-allow-from-dev", [from_dev.clone(), others].concat()),
        ("05-default-deny-prod+06-allow-from-dev", [from_dev, denied].concat()),
    ]
}

fn selectors_and_ports() -> Vec<(&'static str, Vec<Vec<Expected>>)> {
    vec![
        (
            "07-allow-api-access",
            vec![
                yes(tcp(D_FRONTEND, API, 8080)),
                yes(tcp(FAR_FRONTEND, API, 8080)),
                no(tcp(D_FRONTEND, API, 8081)),
                no(udp(D_FRONTEND, API, 8080)),
                no(ping(D_FRONTEND, API)),
                no(tcp(FRONTEND, API, 8080)),
                no(tcp(PLAIN, API, 8080)),
                yes(any(API, PLAIN)),
            ],
        ),
        (
            "08-allow-external-traffic",
            vec![
                yes(from_beyond("172.17.0.1", WEB)),
                yes(from_beyond("172.17.2.1", WEB)),
                no(from_beyond("172.17.1.1", WEB)),
                no(from_beyond("172.17.1.255", WEB)),
                no(from_beyond("172.18.0.1", WEB)),
                no(any(PLAIN, WEB)),
                yes(any(PLAIN, API)),
                yes(any(OUT, PROD_WEB)),
            ],
        ),
        (
            "09-complex-policy",
            vec![
                yes(tcp(PROD_PLAIN, WEB, 80)),
                yes(tcp(FAR_PROD, WEB, 80)),
                yes(tcp(D_FRONTEND, WEB, 80)),
                yes(tcp(FAR_FRONTEND, WEB, 80)),
                no(tcp(FRONTEND, WEB, 80)),
                no(tcp(DEV, WEB, 80)),
                no(tcp(PROD_PLAIN, WEB, 81)),
                no(udp(PROD_PLAIN, WEB, 80)),
                yes(tcp(WEB, PROD_PLAIN, 5432)),
                yes(tcp(WEB, FAR_PROD, 5432)),
                no(tcp(WEB, PROD_PLAIN, 5433)),
                no(tcp(WEB, D_FRONTEND, 5432)),
                no(udp(WEB, PROD_PLAIN, 53)),
            ],
        ),
        (
            "10-multi-port-policy",
            vec![
                yes([tcp(PLAIN, SERVICE, 80), tcp(DEV, SERVICE, 443), tcp(OUT, SERVICE, 443)].concat()),
                yes([udp(PLAIN, SERVICE, 53), udp(FAR_DEV, SERVICE, 53)].concat()),
                no([tcp(PLAIN, SERVICE, 53), tcp(PLAIN, SERVICE, 81), udp(PLAIN, SERVICE, 80)].concat()),
                no([udp(PLAIN, SERVICE, 443), sctp(PLAIN, SERVICE, 80), ping(PLAIN, SERVICE)].concat()),
                yes(any(SERVICE, PLAIN)),
            ],
        ),
    ]
}

fn denials() -> Vec<(&'static str, Vec<Vec<Expected>>)> {
    vec![
        (
            "11-default-deny",
            vec![
                no(any(PLAIN, WEB)),
                no(any(DEV, WEB)),
                no(any(WEB, DEV)),
                no(any(OUT, API)),
                no(to_beyond(API, "8.8.8.8")),
                yes(any(DEV, PROD_WEB)),
                yes(tcp(Place::Node(1), WEB, 80)),
            ],
        ),
        (
            "12-allow-frontend-backend",
            vec![
                yes(tcp(D_FRONTEND, D_BACKEND, 8080)),
                yes(tcp(FAR_FRONTEND, D_BACKEND, 8080)),
                no(tcp(D_FRONTEND, D_BACKEND, 80)),
                no(udp(D_FRONTEND, D_BACKEND, 8080)),
                no(tcp(PLAIN, D_BACKEND, 8080)),
                no(tcp(DEV, D_BACKEND, 8080)),
                yes(any(D_BACKEND, PLAIN)),
            ],
        ),
        // The first denies the frontend its egress, which the second does not give back; node 2 does not enforce here.
        (
            "11-default-deny+12-allow-frontend-backend",
            vec![
                no(tcp(D_FRONTEND, D_BACKEND, 8080)),
                yes(tcp(FAR_FRONTEND, D_BACKEND, 8080)),
                no(tcp(FAR_FRONTEND, D_BACKEND, 80)),
            ],
        ),
    ]
}

#[test]
fn each_documented_policy_does_what_it_says() {
    let mut scene = Scene::new(14, &cluster());
    for (name, expected) in cases() {
        let texts =
            name.split('+').map(|name| std::fs::read_to_string(directory().join(format!("{name}.yaml"))).unwrap());
        let report = scene.node.apply("documented.yaml", &texts.collect::<Vec<_>>().join("\n---\n")).unwrap();
        assert!(report.source.errors.is_empty() && report.source.warnings.is_empty(), "{name}: {:?}", report.source);
        scene.expect(name, &expected);
    }
}

#[test]
fn no_documented_policy_is_left_out() {
    let files: BTreeSet<String> = std::fs::read_dir(directory())
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    let known: BTreeSet<String> = cases().iter().flat_map(|(name, _)| name.split('+')).map(str::to_owned).collect();
    assert_eq!(files, known);
}
