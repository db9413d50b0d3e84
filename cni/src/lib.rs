//! `flatfell-cni`: a chained CNI plugin that tells the daemon of a pod's sandbox and returns when the pod's policy is in the kernel.
//!
//! In: what a container runtime gives a plugin (CNI specification, 0.3.0 to 1.1.0): variables, and a network configuration on standard
//! input with the previous plugin's result. Out: that result unchanged, or an error as the specification words it. What always
//! holds: whatever comes in, there is an answer in JSON and no panic; DEL and GC never fail because of the daemon.

#![deny(clippy::indexing_slicing)]

pub mod call;
pub mod client;
pub mod conf;
pub mod error;
pub mod message;
pub mod plugin;
pub mod trust;
