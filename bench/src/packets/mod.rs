//! What a packet pays: the baseline and a layout on top of it, measured in turns in one run.
//!
//! In: rows ([`row`]), sizes of clusters ([`size`]), columns ([`column`]). Out: ratios to the baseline with their spread, and a report of them. What
//! always holds: the layout is what the daemon makes of manifests, not a copy of it; a ratio is of two halves of one round,
//! milliseconds apart.

pub mod bars;
pub mod bed;
pub mod churn;
pub mod column;
pub mod cpu;
mod datagram;
mod linear;
pub mod plan;
mod plot;
pub mod report;
pub mod rounds;
pub mod row;
pub mod run;
pub mod size;
pub mod stats;
pub mod traffic;
