//! The node daemon: what touches the kernel and the world.

pub mod netlink;
