//! The CNI plugin's daemon side: pods start when their policy is in the kernel.
//!
//! In: what the plugin tells over its socket ([`server`]), the node's CNI configuration ([`keeper`]). Out: addresses of pods before the API
//! shows them ([`sandboxes`]), the plugin in the chain of plugins ([`conflist`], [`install`]). What always holds: nothing here opens
//! traffic; without all of it new pods are closed until the API shows their addresses.

pub mod conflist;
mod counts;
pub mod install;
pub mod keeper;
pub mod sandboxes;
mod scan;
pub mod server;

pub use counts::{Counts, Numbers};
