//! The node daemon: what touches the kernel and the world.

pub mod bypass;
pub mod links;
pub mod lock;
pub mod netlink;
#[cfg(test)]
mod testing;
