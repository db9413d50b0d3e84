//! Where this node's pods have their addresses.
//!
//! In: configuration, what the Node says, the bridges. Out: [`PodRanges`]. What always holds: what is configured is all there is; else what
//! the Node says, and beside that the bridges which it does not speak of: the Node knows before there is a bridge.

use flatfell_rules::ranges::PodRanges;
use ipnetwork::IpNetwork;

use super::EngineConfig;
use crate::links::{Links, PodBridge, overlap};

/// Nobody says it; a node without pods may have no bridge yet.
const UNKNOWN: &str = "where this node's pods have their addresses is not known, so new pods are open until the API shows them: \
                       --pod-cidr (FLATFELL_POD_CIDRS) says it";

/// What is said of it.
pub(super) struct Ranges {
    /// Whether it matters.
    is_closing: bool,
    configured: Vec<IpNetwork>,
    node: Vec<IpNetwork>,
    is_known: bool,
}

impl Ranges {
    pub(super) fn new(config: &EngineConfig) -> Self {
        let configured = config.pod_cidrs.clone();
        Self { is_closing: config.close_unknown, configured, node: Vec::new(), is_known: true }
    }

    /// Takes in what the Node says.
    pub(super) fn tell(&mut self, node: Vec<IpNetwork>) {
        self.node = node;
    }

    /// What configuration or Node say, if it matters.
    pub(super) fn told(&self) -> &[IpNetwork] {
        match (self.is_closing, self.configured.as_slice()) {
            (false, _) => &[],
            (true, []) => &self.node,
            (true, configured) => configured,
        }
    }

    /// Where an address must be a known pod's. A bridge that is no part of what the Node says has ranges of its own.
    pub(super) fn find(&mut self, bridges: &[PodBridge], links: &Links) -> PodRanges {
        let mut prefixes = self.told().to_vec();
        if self.is_closing && self.configured.is_empty() {
            let apart = |prefix: &IpNetwork| !self.node.iter().any(|told| overlap(told, prefix));
            prefixes.extend(links.prefixes_of(bridges).filter(apart));
        }
        self.is_known = !self.is_closing || !prefixes.is_empty();
        PodRanges::new(&prefixes, links.node_addresses().into_iter().chain(links.broadcasts()))
    }

    /// What an operator should read.
    pub(super) fn warning(&self) -> Option<String> {
        (!self.is_known).then(|| UNKNOWN.to_owned())
    }
}
