//! What a packet pays: the baseline and a layout on top of it, measured in turns in one run.
//!
//! In: rows ([`row`]), sizes of clusters ([`size`]), columns. Out: ratios to the baseline with their spread. What always holds: the layout is what the
//! daemon makes of manifests, not a copy of it; a ratio is of two halves of one round, milliseconds apart.

pub mod bed;
pub mod cpu;
mod datagram;
pub mod rounds;
pub mod row;
pub mod size;
pub mod stats;
pub mod traffic;
