//! The lab: network namespaces laid out as Flannel lays out nodes, packets sent through them, and what arrived.
//!
//! In: how many nodes and pods; probes; streams of traffic. Out: where each probe arrived, what each stream lost. What
//! always holds: nothing outside the lab's own namespaces changes, and they go when the lab goes.
//!
//! ```no_run
//! use flatfell_integration::{Lab, LabConfig, Place, Probe};
//! let lab = Lab::new(LabConfig::default())?;
//! let (front, back) = (Place::pod(1, 0), Place::pod(2, 0));
//! let outcome = lab.probe(&Probe::tcp(front, back.v4(), 8080))?;
//! assert!(outcome.delivered);
//! # Ok::<(), flatfell_integration::LabError>(())
//! ```

pub mod cluster;
pub mod inprocess;
pub mod lab;
pub mod netns;
pub mod node;
pub mod packet;
pub mod patience;
pub mod place;
pub mod probe;
pub mod raw;
pub mod scene;
pub mod service;
mod sight;
mod station;
mod sys;
pub mod traffic;

pub mod wiring;

pub use lab::{Lab, LabConfig, LabError};
pub use netns::Netns;
pub use node::{FlatfellNode, NodeError};
pub use packet::Protocol;
pub use place::Place;
pub use probe::{Arrival, Framing, Outcome, Probe};
pub use scene::Scene;
pub use service::{NodePort, Service};
pub use traffic::{Flow, Report, Stream, Traffic};
