//! What bytes of others may do to the daemon: one target for each place where they come in.
//!
//! In: any bytes. Out: nothing; a panic is a finding. What always holds: a target depends on its bytes alone; the fuzzers (`libfuzzer`) and the test
//! that replays their corpora on a stable compiler run the same functions, and name them from [`TARGETS`].
//!
//! Where a target has several inputs the first byte says which; the rest is the input.

pub mod api;
pub mod cni;
pub mod manifests;
pub mod netlink;
pub mod nflog;
mod scratch;
pub mod state;
mod world;

/// A target's name, which is its corpus' directory too, and the function.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 6] = [
    ("manifests", manifests::run),
    ("api", api::run),
    ("netlink", netlink::run),
    ("nflog", nflog::run),
    ("cni", cni::run),
    ("state", state::run),
];
