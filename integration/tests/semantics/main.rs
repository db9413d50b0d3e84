//! Each row of the NetworkPolicy semantics with real packets; a test's comment quotes its row's words.
//!
//! In: manifests for the daemon on node 1. Out: each packet that went another way than its row says. What always holds:
//! every row has packets that pass and packets that do not.
#![allow(clippy::unwrap_used)]

mod blocks;
mod changes;
mod closed;
mod isolation;
mod lifetime;
mod nodes;
mod peers;
mod ports;

use flatfell_integration::Place;
use flatfell_integration::scene::{namespace, pod};

/// Pods of the usual cluster. Policy is enforced on node 1.
const WEB: Place = Place::pod(1, 0);
const DB: Place = Place::pod(1, 1);
const OTHER: Place = Place::pod(1, 2);
/// Of namespace `b`.
const B_WEB: Place = Place::pod(1, 3);
const B_DB: Place = Place::pod(1, 4);
/// On node 2, of namespaces `a` and `b`.
const FAR: Place = Place::pod(2, 0);
const B_FAR: Place = Place::pod(2, 1);

/// Namespaces `a` (team: a) and `b` (team: b, old: yes).
fn namespaces() -> String {
    [namespace("a", "team: a"), namespace("b", "team: b, old: \"yes\"")].concat()
}

/// The usual cluster.
fn cluster() -> String {
    [
        namespaces(),
        pod("a/web", WEB, "app: web"),
        pod("a/db", DB, "app: db, tier: back"),
        pod("a/other", OTHER, "app: other"),
        pod("b/web", B_WEB, "app: web"),
        pod("b/db", B_DB, "app: db, tier: back"),
        pod("a/far", FAR, "app: far"),
        pod("b/far", B_FAR, "app: far"),
    ]
    .concat()
}
