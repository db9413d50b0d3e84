//! Labels that many objects have, kept once.
//!
//! In: labels as they were read. Out: equal ones that share memory: those of all pods of a Deployment are one value, and
//! keys and values recur. What always holds: what comes out equals what went in; what nobody uses any more is let go.

use std::collections::HashSet;
use std::sync::Arc;

use crate::object::Labels;

/// Below this many nothing is looked through for what is no longer used.
const FEW: usize = 1024;

/// The labels in use.
#[derive(Clone, Debug, Default)]
pub struct Interner {
    labels: HashSet<Labels>,
    texts: HashSet<Arc<str>>,
    /// What was still in use when that was last looked at.
    in_use: usize,
}

impl Interner {
    /// The labels that are kept in place of these.
    pub fn share(&mut self, labels: &Labels) -> Labels {
        if let Some(kept) = self.labels.get(labels) {
            return kept.clone();
        }
        if self.labels.len() > FEW.max(2 * self.in_use) {
            self.forget_unused();
        }
        let texts = &mut self.texts;
        let shared = labels.map(|text| match texts.get(text) {
            Some(kept) => Arc::clone(kept),
            None => {
                texts.insert(Arc::clone(text));
                Arc::clone(text)
            }
        });
        self.labels.insert(shared.clone());
        shared
    }

    fn forget_unused(&mut self) {
        self.labels.retain(|labels| !labels.is_alone());
        self.texts.retain(|text| Arc::strong_count(text) > 1);
        self.in_use = self.labels.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(app: &str) -> Labels {
        Labels::from_iter([("tier", "x"), ("app", app)])
    }

    #[test]
    fn equal_labels_are_kept_once() {
        let mut interner = Interner::default();
        let first = interner.share(&labels("a"));
        let second = interner.share(&labels("a"));
        assert_eq!(first, labels("a"));
        drop(second);
        interner.share(&labels("b"));
        assert_eq!((interner.labels.len(), interner.texts.len()), (2, 5), "app, a, b, tier, x");
        assert_eq!((first.get("app"), first.get("tier"), first.get("zone")), (Some("a"), Some("x"), None));
    }

    #[test]
    fn what_nobody_uses_is_let_go() {
        let mut interner = Interner::default();
        let kept = interner.share(&labels("kept"));
        for number in 0..10_000 {
            interner.share(&labels(&number.to_string()));
        }
        assert!(interner.labels.len() <= FEW + 1 && interner.texts.len() <= FEW + 5, "{}", interner.labels.len());
        assert_eq!(interner.share(&labels("kept")), kept);
    }
}
