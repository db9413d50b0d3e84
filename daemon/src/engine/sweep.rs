//! Running connections that policy no longer allows.
//!
//! In: [`Effective`] and the flows of conntrack whose stamp is not current. Out: stamps: denied for what is forbidden, the
//! current generation for what is allowed. What always holds: only flows with an end in a local pod are stamped, and only the
//! generation's bits. It exists for flows whose client is silent: everyone else's next packet is judged in the kernel.

use std::collections::BTreeSet;
use std::net::IpAddr;

use flatfell_rules::compile::{DENIED_MARK, GENERATION_MASK, Generation};
use flatfell_rules::effective::Effective;
use flatfell_rules::judge::{Flow, Judge, Judgement};

use crate::kernel::conntrack::{Conntrack, FlowEntry, FlowKey, MarkError, Transport};
use crate::netlink::NetlinkError;

/// Which flows are looked at.
pub(super) enum Stale {
    /// Those the generation before the current one judged, and those nobody judged.
    Generation(Generation),
    /// All: what has become of stamps is not known, so even a current one proves nothing.
    Any,
}

/// Why running connections are not all checked.
#[derive(Debug, thiserror::Error)]
pub(super) enum SweepError {
    #[error("conntrack cannot be read: {0}")]
    Dump(#[from] NetlinkError),
    #[error("conntrack cannot be marked: {0}")]
    Mark(#[from] MarkError),
}

/// Facts of this node that a flow is judged by.
pub(super) struct Node<'a> {
    /// The addresses of local pods: other flows are nobody's business here.
    pub(super) pods: &'a BTreeSet<IpAddr>,
    /// The node's own addresses.
    pub(super) addresses: &'a BTreeSet<IpAddr>,
    /// Whether pods are held to their egress rules towards their own node.
    pub(super) own_node_egress: bool,
}

/// Owns the conntrack socket.
pub(super) struct Sweeper {
    conntrack: Conntrack,
}

impl Sweeper {
    pub(super) fn open() -> Result<Self, NetlinkError> {
        Ok(Self { conntrack: Conntrack::open()? })
    }

    /// Clears every stamp.
    pub(super) fn forget(&mut self) -> Result<(), SweepError> {
        let flows = self.conntrack.flows(0, 0)?;
        let stamped = flows.iter().filter(|flow| flow.mark & GENERATION_MASK != 0);
        let stamped: Vec<FlowKey> = stamped.map(FlowEntry::key).collect();
        self.conntrack.set_mark(&stamped, 0, GENERATION_MASK)?;
        Ok(())
    }

    /// Stamps what is stale. Returns how many flows were cut.
    pub(super) fn sweep(
        &mut self,
        effective: &Effective,
        node: &Node<'_>,
        current: Generation,
        stale: Stale,
    ) -> Result<u64, SweepError> {
        let mut flows = match stale {
            Stale::Any => self.conntrack.flows(0, 0)?,
            // One walk through the kernel's table for both: a mark without any bit that this generation has not. No
            // later generation and no denied mark is among them, for they are greater numbers; after a sweep
            // of each no older one is, and would be as stale.
            Stale::Generation(before) => self.conntrack.flows(0, GENERATION_MASK & !before.mark())?,
        };
        flows.retain(|flow| flow.mark & GENERATION_MASK != DENIED_MARK);
        if matches!(stale, Stale::Generation(_)) {
            flows.retain(|flow| flow.mark & GENERATION_MASK != current.mark());
        }
        let (flows, foreign): (Vec<&FlowEntry>, Vec<&FlowEntry>) =
            flows.iter().partition(|flow| [flow.orig.src, flow.reply.src].iter().any(|end| node.pods.contains(end)));
        // A number comes round again: it must not find a flow of a pod that is gone.
        let stamped = foreign.iter().filter(|flow| flow.mark & GENERATION_MASK != 0).map(|flow| flow.key());
        self.conntrack.set_mark(&stamped.collect::<Vec<FlowKey>>(), 0, GENERATION_MASK)?;
        let judge = Judge::new(effective, node.own_node_egress);
        let (denied, allowed): (Vec<&FlowEntry>, Vec<&FlowEntry>) =
            flows.into_iter().partition(|flow| matches!(judge.judge(&flow_of(flow, node)), Judgement::Denied { .. }));
        let keys = |flows: &[&FlowEntry]| flows.iter().map(|flow| flow.key()).collect::<Vec<FlowKey>>();
        let cut = self.conntrack.set_mark(&keys(&denied), DENIED_MARK, GENERATION_MASK)?;
        self.conntrack.set_mark(&keys(&allowed), current.mark(), GENERATION_MASK)?;
        Ok(u64::try_from(cut.set).unwrap_or(u64::MAX))
    }
}

/// The flow as the forward hook sees its first packet: behind DNAT, before SNAT. That is the original source, and the
/// source of its replies.
fn flow_of(entry: &FlowEntry, node: &Node<'_>) -> Flow {
    Flow {
        source: entry.orig.src,
        destination: entry.reply.src,
        protocol: entry.orig.proto,
        port: match entry.reply.transport {
            Transport::Ports { src, .. } => Some(src),
            Transport::Icmp { .. } | Transport::None => None,
        },
        from_node: node.addresses.contains(&entry.orig.src),
        to_node: node.addresses.contains(&entry.reply.src),
    }
}
