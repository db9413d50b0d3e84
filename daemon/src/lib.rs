//! The daemon: everything that touches the world.

pub mod kernel;
