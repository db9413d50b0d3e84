//! For tests: what must be true of a packet, and random clusters to ask about.
//!
//! In: random numbers. Out: clusters, probes and verdicts. What always holds: nothing here shares code with what it
//! judges.

pub mod cluster;
pub mod coverage;
pub mod generate;
pub mod oracle;
pub mod shrink;
