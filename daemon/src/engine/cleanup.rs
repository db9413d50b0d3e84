//! Takes away what the engine put into the kernel: tables, bridge flags, marks of running connections.
//!
//! In: nothing. Out: what was taken away. What always holds: no daemon runs in this network namespace meanwhile, nor as
//! long as the [`Cleanup`] lives; the tables go last, for they remember which flags are to be switched off; run again
//! after a failure, it goes on where it stopped.

use std::collections::BTreeSet;

use flatfell_rules::compile::{BridgeId, Switched};
use flatfell_rules::diff::diff;
use flatfell_rules::ruleset::Ruleset;

use super::sweep::Sweeper;
use super::{EngineError, our_tables};
use crate::kernel::Kernel;
use crate::links::Links;
use crate::lock::Lock;

/// What was taken away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Tables, as nft names them.
    pub tables: Vec<String>,
    /// Bridge flags that are off again, as `cni0 nf_call_iptables`.
    pub flags: Vec<String>,
}

/// The right to clean up; while it lives no daemon starts in this network namespace.
#[derive(Debug)]
pub struct Cleanup {
    _lock: Lock,
}

impl Cleanup {
    /// Refuses while a daemon runs in this network namespace.
    pub fn begin() -> Result<Self, EngineError> {
        Ok(Self { _lock: Lock::take()? })
    }

    /// Takes everything away, of both slots and every layout.
    pub fn run(&self) -> Result<Cleaned, EngineError> {
        let mut kernel = Kernel::open()?;
        let tables = our_tables(&mut kernel)?;
        let have = kernel.read(&tables, &Ruleset::default())?;
        let mut switched = Switched::default();
        have.tables.values().for_each(|table| switched.extend(Switched::of(table)));
        let flags = switch_off(&switched)?;
        for step in diff(&have.clone().into(), Ruleset::default()).steps() {
            kernel.commit(step)?;
        }
        if !have.tables.is_empty()
            && let Err(error) = Sweeper::open()?.forget()
        {
            // They mean nothing without the tables, and the next start clears them.
            tracing::warn!(%error, "running connections keep our bits of ct mark");
        }
        Ok(Cleaned { tables: have.tables.keys().map(ToString::to_string).collect(), flags })
    }
}

/// Switches off what was off before, on the bridges that still live.
fn switch_off(switched: &Switched) -> Result<Vec<String>, EngineError> {
    let mut flags = Vec::new();
    if switched.is_empty() {
        return Ok(flags);
    }
    let mut links = Links::open()?;
    let bridges: BTreeSet<&BridgeId> = switched.v4.union(&switched.v6).collect();
    for id in bridges {
        let Some(bridge) = links.bridge(id) else { continue };
        let v4 = bridge.nf_call_iptables && switched.v4.contains(id);
        let v6 = bridge.nf_call_ip6tables && switched.v6.contains(id);
        if v4 || v6 {
            links.set_nf_call(&bridge, v4.then_some(false), v6.then_some(false))?;
        }
        let off = [(v4, "nf_call_iptables"), (v6, "nf_call_ip6tables")].into_iter().filter(|(off, _)| *off);
        flags.extend(off.map(|(_, flag)| format!("{} {flag}", bridge.name)));
    }
    Ok(flags)
}
