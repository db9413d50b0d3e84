//! How the watch of one resource stands.
//!
//! In: what [`super::follow`] lives through. Out: a [`WatchState`] for readers. What always holds: a watch that broke has
//! a reason and a time, until it is whole again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::failure::Failure;
use super::resource::Resource;

/// A watch may be broken for this long before the daemon is not ready for it: servers end watches and restart.
pub const GRACE: Duration = Duration::from_secs(15);

/// What is known of one watch.
#[derive(Clone, Debug, PartialEq)]
pub struct WatchState {
    /// What is watched.
    pub resource: Resource,
    /// Whether it was listed completely once.
    pub listed: bool,
    /// Why it is not being watched now, and since when.
    pub broken: Option<Broken>,
    /// When the server last said anything about it.
    pub heard: Option<Instant>,
    /// How often it was listed.
    pub lists: u64,
    /// Objects that are known.
    pub objects: usize,
    /// What went wrong so far, by [`Failure::word`].
    pub failures: BTreeMap<&'static str, u64>,
}

/// A watch that does not work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Since when.
    pub since: Instant,
    /// Why.
    pub failure: Failure,
}

impl WatchState {
    /// One that has not begun.
    pub fn new(resource: Resource) -> Self {
        Self { resource, listed: false, broken: None, heard: None, lists: 0, objects: 0, failures: BTreeMap::new() }
    }

    /// Whether it was listed and its changes are heard.
    pub fn is_healthy(&self) -> bool {
        self.listed && self.broken.is_none()
    }

    /// Why policy may not be what the API server has, if so.
    pub fn reason(&self, now: Instant) -> Option<String> {
        let name = self.resource.name();
        match (&self.broken, self.listed) {
            (None, true) => None,
            (None, false) => Some(format!("{name}: not listed yet")),
            (Some(broken), false) => Some(format!("{name}: not listed yet: {}", broken.failure)),
            (Some(broken), true) => {
                let elapsed = now.saturating_duration_since(broken.since);
                let text = format!("{name}: not watched for {} s: {}", elapsed.as_secs(), broken.failure);
                (elapsed >= GRACE).then_some(format!("{text}; what was known before stays in force"))
            }
        }
    }
}
