//! Network policy, from parsed objects to nftables rulesets as plain data.
//!
//! One way through the house: [`parse`] turns a Kubernetes object into its meaning or a refusal, `index` holds all
//! that is known, [`effective`] says what holds for each pod of this node, [`compile`] turns that into a
//! [`ruleset::Ruleset`], `diff` into the change that leads from what the kernel has to what it shall have, and `encode`
//! into netlink messages. Everything here is a function of its arguments: this crate knows no cluster, no socket, no
//! clock, no environment and no logger.

pub mod cidr;
pub mod compile;
pub mod diff;
pub mod effective;
pub mod encode;
pub mod ids;
pub mod index;
mod intern;
pub mod judge;
pub mod mark;
pub mod names;
pub mod object;
pub mod parse;
pub mod policy;
pub mod ranges;
pub mod ruleset;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
#[cfg(test)]
mod testing;
