//! The pods that are peers, by what sets ask of them, and the sets that are in use.
//!
//! In: who is the peer at an address, labels of namespaces, the rules that name sets. Out: the sets of an [`Effective`].
//! What always holds: a set in use holds exactly the addresses (or endpoints) of the peers it speaks of; no other set is
//! there; what a change does not speak of is not touched, so that it stays shared.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use smallvec::SmallVec;

use super::asked::{Asked, Kind, SetKey, differing};
use super::{Effective, EffectiveRule};
use crate::object::{Labels, Pod};
use crate::policy::Namespaces;

/// All peers, and the sets they are in.
#[derive(Debug, Default)]
pub(super) struct Population {
    homes: HashMap<Arc<str>, Home>,
    asked: Asked,
    /// How many rules name each set.
    named: HashMap<SetKey, usize>,
    /// How many pods have each rule.
    rules: HashMap<ByPlace, usize>,
}

/// A namespace that is known, or has peers.
#[derive(Debug, Default)]
struct Home {
    /// Its labels, where it is known.
    labels: Option<Labels>,
    groups: HashMap<Kind, Group>,
}

/// The peers of one namespace and kind.
#[derive(Debug, Default)]
struct Group {
    /// Their addresses, sorted.
    addresses: SmallVec<[IpAddr; 2]>,
    /// The sets in use that speak of them.
    sets: Vec<SetKey>,
}

/// A rule known by where it stands in memory: that is one rule, however much it is shared.
#[derive(Debug)]
struct ByPlace(Arc<EffectiveRule>);

impl PartialEq for ByPlace {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for ByPlace {}

impl Hash for ByPlace {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

impl Population {
    /// The peer at an address is another one now.
    pub(super) fn moved(
        &mut self,
        effective: &mut Effective,
        address: IpAddr,
        (old, new): (Option<&Arc<Pod>>, Option<&Arc<Pod>>),
    ) {
        let kinds = (old.map(|pod| Kind::of(pod)), new.map(|pod| Kind::of(pod)));
        let namespace = |pod: Option<&Arc<Pod>>| pod.map(|pod| pod.name.namespace.clone());
        if kinds.0 == kinds.1 && namespace(old) == namespace(new) {
            return;
        }
        let left = old.zip(kinds.0.as_ref()).map(|(pod, kind)| (kind, self.leave(&pod.name.namespace, kind, address)));
        let joined = new.zip(kinds.1.as_ref()).map(|(pod, kind)| (kind, self.join(&pod.name.namespace, kind, address)));
        let (left, joined) = match (left, joined) {
            (Some((old, left)), Some((new, joined))) => {
                let (left, joined) = differing((old, left), (new, joined));
                (Some((old, left)), Some((new, joined)))
            }
            one => one,
        };
        for (kind, key) in left.iter().flat_map(|(kind, keys)| keys.iter().map(move |key| (kind, key))) {
            key.remove(effective, kind, address);
        }
        for (kind, key) in joined.iter().flat_map(|(kind, keys)| keys.iter().map(move |key| (kind, key))) {
            key.insert(effective, kind, address);
        }
    }

    /// Takes an address from a group; the sets it was in for that.
    fn leave(&mut self, namespace: &str, kind: &Kind, address: IpAddr) -> Vec<SetKey> {
        let Some(home) = self.homes.get_mut(namespace) else { return Vec::new() };
        let Some(group) = home.groups.get_mut(kind) else { return Vec::new() };
        if let Ok(place) = group.addresses.binary_search(&address) {
            group.addresses.remove(place);
        }
        if !group.addresses.is_empty() {
            return group.sets.clone();
        }
        let sets = home.groups.remove(kind).map(|group| group.sets).unwrap_or_default();
        if home.labels.is_none() && home.groups.is_empty() {
            self.homes.remove(namespace);
        }
        sets
    }

    /// Gives an address to a group; the sets it is in for that.
    fn join(&mut self, namespace: &Arc<str>, kind: &Kind, address: IpAddr) -> Vec<SetKey> {
        if !self.homes.contains_key(namespace) {
            self.homes.insert(Arc::clone(namespace), Home::default());
        }
        let Some(home) = self.homes.get_mut(namespace) else { return Vec::new() };
        let labels = home.labels.as_ref();
        let group = home
            .groups
            .entry(kind.clone())
            .or_insert_with(|| Group { addresses: SmallVec::new(), sets: self.asked.about((namespace, labels), kind) });
        if let Err(place) = group.addresses.binary_search(&address) {
            group.addresses.insert(place, address);
        }
        group.sets.clone()
    }

    /// A namespace has these labels now; `None` where it is not known any more.
    pub(super) fn relabel(&mut self, effective: &mut Effective, name: &str, labels: Option<&Labels>) {
        let mut home = self.homes.remove(name).unwrap_or_default();
        if home.labels.as_ref() != labels {
            home.labels = labels.cloned();
            for (kind, group) in &mut home.groups {
                let sets = self.asked.about((name, labels), kind);
                let left = std::mem::replace(&mut group.sets, sets);
                let (left, joined) = differing((kind, left), (kind, group.sets.clone()));
                for address in &group.addresses {
                    left.iter().for_each(|key| key.remove(effective, kind, *address));
                    joined.iter().for_each(|key| key.insert(effective, kind, *address));
                }
            }
        }
        if home.labels.is_some() || !home.groups.is_empty() {
            self.homes.insert(name.into(), home);
        }
    }

    /// One more pod has the rule.
    pub(super) fn acquire(&mut self, effective: &mut Effective, rule: &Arc<EffectiveRule>) {
        let pods = self.rules.entry(ByPlace(Arc::clone(rule))).or_default();
        *pods += 1;
        if *pods > 1 {
            return;
        }
        for key in rule.matches.iter().filter_map(SetKey::of) {
            let rules = self.named.entry(key.clone()).or_default();
            *rules += 1;
            if *rules == 1 {
                self.asked.insert(&key);
                let mut found = Vec::new();
                each_group(&mut self.homes, &key, |kind, group| {
                    group.sets.push(key.clone());
                    found.push((kind, &*group));
                });
                key.make(effective, found.into_iter().map(|(kind, group)| (kind, group.addresses.as_slice())));
            }
        }
    }

    /// One pod less has the rule.
    pub(super) fn release(&mut self, effective: &mut Effective, rule: &Arc<EffectiveRule>) {
        let place = ByPlace(Arc::clone(rule));
        if !is_last(&mut self.rules, &place) {
            return;
        }
        for key in rule.matches.iter().filter_map(SetKey::of) {
            if is_last(&mut self.named, &key) {
                self.asked.remove(&key);
                each_group(&mut self.homes, &key, |_, group| group.sets.retain(|other| *other != key));
                key.unmake(effective);
            }
        }
    }
}

/// Counts one less; whether that was the last one.
fn is_last<K: Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) -> bool {
    let Some(count) = counts.get_mut(key) else { return false };
    *count -= 1;
    let last = *count == 0;
    if last {
        counts.remove(key);
    }
    last
}

/// The groups that a set speaks of.
fn each_group<'a>(homes: &'a mut HashMap<Arc<str>, Home>, key: &SetKey, mut each: impl FnMut(&'a Kind, &'a mut Group)) {
    let mut of_home = |home: &'a mut Home| {
        home.groups.iter_mut().filter(|(kind, _)| key.matches(kind)).for_each(|(kind, group)| each(kind, group));
    };
    match key.pods().map(|peer| &peer.namespaces) {
        Some(Namespaces::Named(name)) => homes.get_mut(name.as_str()).into_iter().for_each(of_home),
        Some(Namespaces::Matching(selector)) => {
            let known = |home: &&mut Home| home.labels.as_ref().is_some_and(|labels| selector.matches(labels));
            homes.values_mut().filter(known).for_each(of_home);
        }
        None => homes.values_mut().for_each(&mut of_home),
    }
}
