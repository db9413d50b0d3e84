//! Changes on their way from the source to the kernel, for the metrics of that way.
//!
//! In: when the source read a change, and what it says was created. Out: [`Batch`], which goes with the policy that the changes
//! made. What always holds: policy never depends on it; it does not grow with the number of changes beyond a bound.

use std::time::{Instant, SystemTime};

/// Creations that are remembered at a time: a burst beyond them says nothing new about latency.
const CREATIONS_MAX: usize = 1000;

/// What can be created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CreatedKind {
    /// A pod of this node, when it has its first address.
    Pod,
    /// A NetworkPolicy.
    NetworkPolicy,
}

impl CreatedKind {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Pod, Self::NetworkPolicy];

    /// The word in metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::NetworkPolicy => "networkpolicy",
        }
    }
}

/// Changes that are not in the kernel yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// When the oldest of them was read.
    pub oldest: Option<Instant>,
    /// How many there are.
    pub changes: usize,
    /// Objects that were created, with the time the API server gave them.
    pub created: Vec<(CreatedKind, SystemTime)>,
}

impl Batch {
    /// A change that was read now, with nothing created.
    pub fn now() -> Self {
        Self { oldest: Some(Instant::now()), changes: 1, created: Vec::new() }
    }

    /// Takes another's changes in.
    pub fn add(&mut self, other: Self) {
        self.oldest = self.oldest.into_iter().chain(other.oldest).min();
        self.changes = self.changes.saturating_add(other.changes);
        self.created.extend(other.created);
        self.created.truncate(CREATIONS_MAX);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_oldest_counts() {
        let start = Instant::now();
        let at =
            |seconds| Batch { oldest: Some(start + Duration::from_secs(seconds)), changes: 1, created: Vec::new() };
        let mut batch = Batch::default();
        [at(2), at(1), Batch { changes: 1, ..Batch::default() }, at(3)].into_iter().for_each(|other| batch.add(other));
        assert_eq!(batch, Batch { oldest: Some(start + Duration::from_secs(1)), changes: 4, created: Vec::new() });
    }
}
