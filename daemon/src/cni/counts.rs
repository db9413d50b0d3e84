//! How often the plugin asked, and how often it was put back into its chain.
//!
//! In: events. Out: [`Numbers`]. What always holds: numbers only rise.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Counts of one daemon.
#[derive(Debug, Default)]
pub struct Counts(Mutex<Numbers>);

/// The counts at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Requests by command and outcome.
    pub requests: BTreeMap<(&'static str, &'static str), u64>,
    /// Times the plugin was put into its chain.
    pub insertions: u64,
}

impl Counts {
    /// A request was answered.
    pub fn answered(&self, command: &'static str, outcome: &'static str) {
        *self.lock().requests.entry((command, outcome)).or_default() += 1;
    }

    /// The plugin was put into its chain.
    pub fn inserted(&self) {
        self.lock().insertions += 1;
    }

    /// All of them; every command and outcome has a number.
    pub fn read(&self) -> Numbers {
        let mut numbers = self.lock().clone();
        for command in ["add", "check", "delete", "gc", "status"] {
            for outcome in ["done", "not-yet", "refused"] {
                numbers.requests.entry((command, outcome)).or_default();
            }
        }
        numbers
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Numbers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
