//! The node daemon: objects in on one side, nftables rules in the kernel on the other, counters back.
//!
//! In: the API server ([`cluster`]) or a directory of manifests ([`manifests`]), flags ([`config`]). Out: rules in the kernel ([`engine`]), metrics and status over
//! HTTP ([`http`]). What always holds: one owner for each state. The [`controller`] owns what is known, the engine owns
//! the kernel, everything else reads.

pub mod batch;
pub mod bypass;
pub mod cluster;
pub mod cni;
pub mod commands;
pub mod config;
pub mod control;
pub mod controller;
pub mod engine;
pub mod flows;
#[doc(hidden)]
pub mod fuzzing;
pub mod histogram;
pub mod http;
pub mod kernel;
pub mod links;
pub mod lock;
pub mod logging;
pub mod manifests;
pub mod memory;
pub mod metrics;
pub mod netlink;
pub mod pause;
pub mod state;
pub mod status;
#[cfg(test)]
mod testing;
pub mod totals;
