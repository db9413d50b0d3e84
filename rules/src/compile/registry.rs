//! What several share, and how often each is named.
//!
//! In: what is named and given back. Out: the same value for all who name it. What always holds: it is there for as long as somebody
//! names it, and no longer.

use std::collections::HashMap;
use std::hash::Hash;

/// Shared values by key.
#[derive(Clone, Debug)]
pub(super) struct Registry<K, V> {
    entries: HashMap<K, Entry<V>>,
}

#[derive(Clone, Debug)]
struct Entry<V> {
    uses: usize,
    value: V,
}

impl<K, V> Default for Registry<K, V> {
    fn default() -> Self {
        Self { entries: HashMap::new() }
    }
}

impl<K: Eq + Hash + Clone, V> Registry<K, V> {
    /// The value of a key, which is made when it is first named.
    pub(super) fn name(&mut self, key: &K, make: impl FnOnce() -> V) -> &mut V {
        let entry = self.entries.entry(key.clone()).or_insert_with(|| Entry { uses: 0, value: make() });
        entry.uses += 1;
        &mut entry.value
    }

    /// One that named it does no more. The value, if that was the last.
    pub(super) fn release(&mut self, key: &K) -> Option<V> {
        let entry = self.entries.get_mut(key)?;
        entry.uses -= 1;
        if entry.uses > 0 { None } else { self.entries.remove(key).map(|entry| entry.value) }
    }

    /// The value of a key that is named.
    pub(super) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.entries.get_mut(key).map(|entry| &mut entry.value)
    }
}
