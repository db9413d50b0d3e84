//! What the kernel sends: dumps and events of nftables, conntrack and interfaces.
//!
//! In: a byte (who reads), a datagram. Out: nothing. What always holds: a rule that reads as a wanted one is a wanted one.

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use flatfell::fuzzing;
use flatfell_rules::ruleset::{Chain, Expr};

use crate::world;

/// The chain with the most rules of those that the cluster of [`world`] has.
static WANTED: LazyLock<Arc<Chain>> = LazyLock::new(|| {
    let ruleset = world::ruleset(&world::index(&world::cluster()));
    let chains = ruleset.tables.values().flat_map(|table| table.chains.values());
    chains.max_by_key(|chain| chain.rules.len()).expect("a chain").clone()
});

/// Runs the target.
pub fn run(bytes: &[u8]) {
    let Some((what, datagram)) = bytes.split_first() else { return };
    match what & 3 {
        0 => tables(datagram),
        1 => drop(fuzzing::flows(datagram)),
        2 => drop(fuzzing::links(datagram, &world::shut_addresses().map(IpAddr::from))),
        _ => drop(fuzzing::peer(datagram, 7, 2)),
    }
}

fn tables(datagram: &[u8]) {
    let _ = fuzzing::events(datagram, |table| table.starts_with("flatfell-"));
    let _ = fuzzing::lookout(datagram, 0x0fff_ffff);
    let Ok(dumped) = fuzzing::tables(datagram, &WANTED) else { return };
    for rule in &dumped.rules {
        let is_foreign = matches!(rule.exprs[..], [Expr::Foreign(_)]);
        assert!(is_foreign || WANTED.rules.iter().any(|wanted| wanted.exprs == rule.exprs), "{rule:?}");
    }
}
