//! The node daemon: everything that touches the world.

pub mod bypass;
pub mod engine;
pub mod kernel;
pub mod links;
pub mod lock;
pub mod netlink;
#[cfg(test)]
mod testing;
