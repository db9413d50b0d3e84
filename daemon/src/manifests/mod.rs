//! A directory of Kubernetes manifests as a source of objects.
//!
//! In: a directory with `.yaml`, `.yml` and `.json` files, subdirectories included, hidden names left out. Out: which
//! objects are there, what changed, and [`Problem`]s with file and line. What always holds:
//!
//! - A file is taken whole or not at all: one that cannot be read keeps its last good content; one that never had any is
//!   named as unknown.
//! - A policy that cannot be understood is kept as a refused one, which isolates what it selects.
//! - Two different policies of one name are both refused, and each isolates what it selects. Of two different pods or
//!   namespaces of one name the first by path counts. Each is an error that names both places.
//! - What comes out depends on the files as they are (and, where one is broken, on its last good content), not on the
//!   order in which they came.

mod directory;
mod duplicates;
mod follow;
mod object;
mod problem;
mod read;
mod scan;
mod watch;
pub mod yaml;

pub use directory::{Directory, Refresh, Update};
pub use follow::{Manifests, change};
pub use object::{Key, Kind, Object};
pub use problem::{Place, Problem, Severity};
pub use scan::Scope;
pub use watch::{Watch, WatchError};
