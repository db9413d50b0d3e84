//! For tests: what the specification says, what the compiled rules do, and what the kernel would take.
//!
//! In: random numbers. Out: clusters with probes, rulesets with packets, and verdicts. What always holds: nothing here shares
//! code with what it judges (parse, effective, compile, diff).

pub mod cluster;
pub mod coverage;
pub mod generate;
pub mod kernel;
pub mod oracle;
pub mod random;
pub mod senders;
pub mod shrink;
pub mod tracer;
pub mod types;
