//! The shop: who is there, what its policies say, and who must reach whom.
//!
//! In: nothing. Out: constants and tables. What always holds: what is expected here was worked out by hand from the
//! policies in `integration/demo`, never by the program that is shown.

use std::net::IpAddr;

use flatfell_integration::{Place, Service};

/// The frontend, on node 1.
pub const FRONTEND: Place = Place::pod(1, 0);
/// The stranger, on node 1, of another namespace.
pub const STRANGER: Place = Place::pod(1, 1);
/// The backend, on node 2.
pub const BACKEND: Place = Place::pod(2, 0);
/// The database, on node 2.
pub const DATABASE: Place = Place::pod(2, 1);

/// Pods and namespaces.
pub const CLUSTER: &str = include_str!("../../../demo/shop.yaml");

/// The policies' files, in the order in which they are told.
pub const POLICIES: [(&str, &str); 4] = [
    ("default-deny.yaml", include_str!("../../../demo/default-deny.yaml")),
    ("frontend.yaml", include_str!("../../../demo/frontend.yaml")),
    (EDITED_FILE, EDITED_BEFORE),
    ("database.yaml", include_str!("../../../demo/database.yaml")),
];

/// The file that is edited while a connection runs.
pub const EDITED_FILE: &str = "backend.yaml";
/// What it says at first.
pub const EDITED_BEFORE: &str = include_str!("../../../demo/backend.yaml");

/// What it says then: the frontend is not named any more.
pub fn edited_after() -> String {
    EDITED_BEFORE.replace("app: frontend", "app: checkout")
}

/// The backend's Service, of both families.
pub fn service() -> Service {
    let backends = BACKEND.addresses().map(|address| (address, 8080).into()).to_vec();
    Service { addresses: SERVICE.to_vec(), port: 80, protocol: "tcp", node_port: None, backends }
}

const SERVICE: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 10)),
    IpAddr::V6(std::net::Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x10)),
];

/// A column of the matrix.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its heading.
    pub title: &'static str,
    /// Where packets must come out.
    pub place: Place,
    /// Whether they are sent to the Service's address instead of the place's own.
    pub through_service: bool,
    /// The port they are sent to.
    pub port: u16,
}

impl Target {
    /// The addresses to send to, of both families.
    pub fn addresses(&self) -> [IpAddr; 2] {
        if self.through_service { SERVICE } else { self.place.addresses() }
    }
}

/// The columns.
pub const TARGETS: [Target; 5] = [
    Target { title: "frontend:80", place: FRONTEND, through_service: false, port: 80 },
    Target { title: "backend:8080", place: BACKEND, through_service: false, port: 8080 },
    Target { title: "Service:80", place: BACKEND, through_service: true, port: 80 },
    Target { title: "database:5432", place: DATABASE, through_service: false, port: 5432 },
    Target { title: "world:443", place: Place::Outside, through_service: false, port: 443 },
];

/// The column of the Service.
pub const TO_SERVICE: Target = TARGETS[2];
/// The column of the database.
pub const TO_DATABASE: Target = TARGETS[3];

/// What a cell must show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Reached and answered.
    Yes,
    /// Never reached.
    No,
    /// There is nothing to send: it is the place itself, or no way leads there.
    Nothing,
}

/// A row of the matrix.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Its heading.
    pub title: &'static str,
    /// Who sends.
    pub from: Place,
    /// What must come of it once the policies are in force; before, everything is reached.
    pub expected: [Expected; 5],
}

use Expected::{No, Nothing, Yes};

/// The rows.
pub const ROWS: [Row; 6] = [
    Row { title: "frontend", from: FRONTEND, expected: [Nothing, Yes, Yes, No, No] },
    // Through its own Service a pod reaches itself, whatever policy says.
    Row { title: "backend", from: BACKEND, expected: [No, Nothing, Yes, Yes, No] },
    Row { title: "database", from: DATABASE, expected: [No, No, No, Nothing, No] },
    Row { title: "stranger", from: STRANGER, expected: [Yes, No, No, No, Yes] },
    // The kubelet's probes: a node always reaches its own pods.
    Row { title: "node 2 itself", from: Place::Node(2), expected: [Yes, Yes, Yes, Yes, Yes] },
    // No kube-proxy runs outside.
    Row { title: "host outside", from: Place::Outside, expected: [Yes, No, Nothing, No, Nothing] },
];
