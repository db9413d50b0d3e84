//! A Prometheus that scrapes daemons in the lab, the traffic they count, and what each shipped query must say of it.
#![allow(dead_code, clippy::expect_used)]

pub mod server;
pub mod table;
pub mod traffic;
