//! Complete lists taken in at once.
//!
//! In: everything there is of a kind. Out: the changes that make it so. What always holds: what is not listed is deleted.

use std::collections::BTreeMap;

use super::{Change, Index};
use crate::object::{Namespace, Pod};
use crate::policy::Policy;

impl Index {
    /// Takes a complete list of everything; whether policy can see a difference.
    pub fn replace(
        &mut self,
        namespaces: impl IntoIterator<Item = Namespace>,
        policies: impl IntoIterator<Item = Policy>,
        pods: impl IntoIterator<Item = Pod>,
    ) -> bool {
        // Namespaces first: whether a policy that is missing keeps its effect depends on its namespace.
        let namespaces = self.replace_namespaces(namespaces);
        let policies = self.replace_policies(policies);
        let pods = self.replace_pods(pods);
        namespaces || policies || pods
    }

    /// Takes the complete list of pods; whether policy can see a difference.
    pub fn replace_pods(&mut self, pods: impl IntoIterator<Item = Pod>) -> bool {
        let listed: BTreeMap<_, _> = pods.into_iter().map(|pod| (pod.name.clone(), pod)).collect();
        let missing: Vec<_> =
            self.pods().map(|pod| &pod.name).filter(|name| !listed.contains_key(*name)).cloned().collect();
        self.apply_all(listed.into_values().map(Change::UpsertPod).chain(missing.into_iter().map(Change::DeletePod)))
    }

    /// Takes the complete list of namespaces; whether policy can see a difference.
    pub fn replace_namespaces(&mut self, namespaces: impl IntoIterator<Item = Namespace>) -> bool {
        let listed: BTreeMap<_, _> =
            namespaces.into_iter().map(|namespace| (namespace.name.clone(), namespace)).collect();
        let missing = missing(&self.namespaces, &listed).map(Change::DeleteNamespace);
        self.apply_all(listed.into_values().map(Change::UpsertNamespace).chain(missing))
    }

    /// Takes the complete list of policies; whether policy can see a difference.
    pub fn replace_policies(&mut self, policies: impl IntoIterator<Item = Policy>) -> bool {
        let listed: BTreeMap<_, _> = policies.into_iter().map(|policy| (policy.name.clone(), policy)).collect();
        let missing = missing(self.policies.present(), &listed).map(Change::DeletePolicy);
        self.apply_all(listed.into_values().map(Change::UpsertPolicy).chain(missing))
    }

    fn apply_all(&mut self, changes: impl Iterator<Item = Change>) -> bool {
        changes.map(|change| self.apply(change)).filter(|changed| *changed).count() > 0
    }
}

/// The keys that are known and not listed.
fn missing<K: Ord + Clone, V, L>(known: &BTreeMap<K, V>, listed: &BTreeMap<K, L>) -> std::vec::IntoIter<K> {
    known.keys().filter(|key| !listed.contains_key(*key)).cloned().collect::<Vec<_>>().into_iter()
}
