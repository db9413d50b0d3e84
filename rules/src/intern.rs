//! What many pods have in common, kept once.
//!
//! In: pods as they were read. Out: pods that share the memory of their labels and ports, namespaces and nodes: the labels
//! of all pods of a Deployment are one value, and keys and values recur. What always holds: what comes out equals what went in; what nobody
//! uses any more is let go.

use std::collections::HashSet;
use std::sync::Arc;

use crate::object::{Labels, NamedPort, ObjectName, Pod};

/// Below this many nothing is looked through for what is no longer used.
const FEW: usize = 1024;

/// What is in use.
#[derive(Clone, Debug, Default)]
pub struct Interner {
    labels: HashSet<Labels>,
    texts: HashSet<Arc<str>>,
    ports: HashSet<Arc<[NamedPort]>>,
    /// What was still in use when that was last looked at.
    in_use: usize,
}

impl Interner {
    /// The same pod, with what is kept in place of its own.
    pub fn share(&mut self, pod: Pod) -> Pod {
        if self.len() > FEW.max(2 * self.in_use) {
            self.forget_unused();
        }
        Pod {
            name: ObjectName { namespace: self.share_text(&pod.name.namespace), ..pod.name },
            labels: self.share_labels(&pod.labels),
            ports: self.share_ports(&pod.ports),
            node: pod.node.map(|node| self.share_text(&node)),
            ..pod
        }
    }

    fn share_ports(&mut self, ports: &Arc<[NamedPort]>) -> Arc<[NamedPort]> {
        if let Some(kept) = self.ports.get(ports) {
            return Arc::clone(kept);
        }
        self.ports.insert(Arc::clone(ports));
        Arc::clone(ports)
    }

    fn share_text(&mut self, text: &Arc<str>) -> Arc<str> {
        if let Some(kept) = self.texts.get(text) {
            return Arc::clone(kept);
        }
        self.texts.insert(Arc::clone(text));
        Arc::clone(text)
    }

    fn share_labels(&mut self, labels: &Labels) -> Labels {
        if let Some(kept) = self.labels.get(labels) {
            return kept.clone();
        }
        let shared = labels.map(|text| self.share_text(text));
        self.labels.insert(shared.clone());
        shared
    }

    fn len(&self) -> usize {
        self.labels.len() + self.ports.len()
    }

    fn forget_unused(&mut self) {
        self.labels.retain(|labels| !labels.is_alone());
        self.texts.retain(|text| Arc::strong_count(text) > 1);
        self.ports.retain(|ports| Arc::strong_count(ports) > 1);
        self.in_use = self.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(app: &str) -> Labels {
        Labels::from_iter([("tier", "x"), ("app", app)])
    }

    /// A pod with this label and a port of this name.
    fn pod(app: &str) -> Pod {
        let pod = crate::testing::pod("x/a", "10.0.0.1", serde_json::json!({}));
        let port = NamedPort { name: app.to_owned(), protocol: crate::object::Protocol::Tcp, number: 80 };
        let pod = crate::parse::pod(&pod).expect("a pod").value;
        Pod { labels: labels(app), ports: [port].into(), ..pod }
    }

    #[test]
    fn what_is_equal_is_kept_once() {
        let mut interner = Interner::default();
        let first = interner.share(pod("a"));
        let second = interner.share(pod("a"));
        assert_eq!(first, pod("a"));
        assert!(Arc::ptr_eq(&first.ports, &second.ports));
        drop(second);
        interner.share(pod("b"));
        assert_eq!(
            (interner.labels.len(), interner.texts.len()),
            (2, 6),
            "app, a, b, tier, x (the namespace, too) and the node"
        );
        let labels = &first.labels;
        assert_eq!((labels.get("app"), labels.get("tier"), labels.get("zone")), (Some("a"), Some("x"), None));
    }

    #[test]
    fn what_nobody_uses_is_let_go() {
        let mut interner = Interner::default();
        let kept = interner.share(pod("kept"));
        let many = pod("many");
        for number in 0..2_000 {
            let number = number.to_string();
            interner.share(Pod { labels: labels(&number), ..many.clone() });
            interner.share(Pod { ports: [NamedPort { name: number, ..many.ports[0].clone() }].into(), ..many.clone() });
        }
        assert!(interner.len() <= FEW + 2 && interner.texts.len() <= FEW + 7, "{}", interner.len());
        assert!(Arc::ptr_eq(&interner.share(pod("kept")).ports, &kept.ports));
    }
}
