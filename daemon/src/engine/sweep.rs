//! Running connections that policy no longer allows.
//!
//! In: [`Facts`] and the flows of conntrack whose stamp is not current. Out: stamps: denied for
//! what is forbidden; for what is allowed the mark that the ruleset would write. What always holds: only flows with an end in a
//! local pod are stamped. It exists for flows whose client is silent: everyone else's next packet is judged in the kernel.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use flatfell_rules::effective::Effective;
use flatfell_rules::ids::{Ids, Origin};
use flatfell_rules::judge::{Flow, Judge, Judgement};
use flatfell_rules::mark::{DENIED_MARK, GENERATION_MASK, Generation, allowed_mark};
use flatfell_rules::policy::Direction;
use flatfell_rules::ranges::PodRanges;

use crate::kernel::conntrack::{Conntrack, FlowEntry, FlowKey, MarkError, Transport};
use crate::netlink::NetlinkError;

/// Which flows are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    #[error("the thread that does it has ended")]
    Ended,
}

/// What flows are judged by: policy as the rules in force have it, and facts of this node.
pub(super) struct Facts {
    /// What the kernel enforces.
    pub(super) effective: Arc<Effective>,
    /// Who counts under which id.
    pub(super) ids: Ids,
    /// The generation in force.
    pub(super) current: Generation,
    /// Where an address must be a known pod's.
    pub(super) ranges: PodRanges,
    /// The node's own addresses.
    pub(super) addresses: BTreeSet<IpAddr>,
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

    /// Clears the marks of all flows that were ever judged.
    pub(super) fn forget(&mut self) -> Result<(), SweepError> {
        let flows = self.conntrack.flows(0, 0)?;
        let stamped = flows.iter().filter(|flow| flow.mark & GENERATION_MASK != 0);
        let stamped: Vec<FlowKey> = stamped.map(FlowEntry::key).collect();
        self.conntrack.set_mark(&stamped, 0, u32::MAX)?;
        Ok(())
    }

    /// Stamps what is stale. Returns how many flows were cut.
    pub(super) fn sweep(&mut self, facts: &Facts, stale: Stale) -> Result<u64, SweepError> {
        let flows = self.stale(facts.current, stale)?;
        if flows.is_empty() {
            return Ok(0);
        }
        let mut marks = Marks {
            judge: Judge::new(&facts.effective, facts.own_node_egress).within(&facts.ranges),
            ids: &facts.ids,
            current: facts.current,
            known: HashMap::new(),
        };
        let (mut denied, mut others) = (Vec::new(), Vec::new());
        for flow in &flows {
            // Other flows are nobody's business here.
            let of_pod = |end: &IpAddr| facts.effective.local().contains_key(end) || facts.ranges.holds(*end);
            let local = [flow.orig.src, flow.reply.src].iter().any(of_pod);
            let mark = if local { marks.of(&flow_of(flow, facts)) } else { Wanted::Nobodys };
            match mark {
                Wanted::Denied => denied.push(flow.key()),
                Wanted::Allowed(mark) if mark != flow.mark => others.push((flow.key(), mark)),
                // A number comes round again: it must not find a flow of a pod that is gone.
                Wanted::Nobodys if flow.mark & GENERATION_MASK != 0 => others.push((flow.key(), 0)),
                Wanted::Allowed(_) | Wanted::Nobodys => {}
            }
        }
        let cut = self.conntrack.set_mark(&denied, DENIED_MARK, u32::MAX)?;
        self.conntrack.set_marks(&others, u32::MAX)?;
        Ok(u64::try_from(cut.set).unwrap_or(u64::MAX))
    }

    /// The flows that are to be judged again.
    fn stale(&mut self, current: Generation, stale: Stale) -> Result<Vec<FlowEntry>, SweepError> {
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
        Ok(flows)
    }
}

/// What a flow's mark shall be.
enum Wanted {
    /// It is forbidden.
    Denied,
    /// This one.
    Allowed(u32),
    /// Flows that no rule judges have none.
    Nobodys,
}

/// The marks that the ruleset writes.
struct Marks<'a> {
    judge: Judge<'a>,
    ids: &'a Ids,
    current: Generation,
    /// Ids of what let flows through, each looked up once.
    known: HashMap<(Direction, Origin<'a>), u32>,
}

impl<'a> Marks<'a> {
    fn of(&mut self, flow: &Flow) -> Wanted {
        // What the node itself begins passes no rule that stamps.
        if flow.from_node {
            return Wanted::Nobodys;
        }
        match self.judge.judge(flow) {
            Judgement::Denied { .. } | Judgement::Unknown => Wanted::Denied,
            Judgement::Allowed { egress, ingress } => {
                let ids = self.id(Direction::Egress, egress) | self.id(Direction::Ingress, ingress);
                Wanted::Allowed(allowed_mark(self.current, ids))
            }
        }
    }

    fn id(&mut self, half: Direction, origin: Option<Origin<'a>>) -> u32 {
        let Some(origin) = origin else { return 0 };
        *self.known.entry((half, origin)).or_insert_with(|| self.ids.written(half, origin))
    }
}

/// The flow as the forward hook sees its first packet: behind DNAT, before SNAT. That is the original source, and the
/// source of its replies.
fn flow_of(entry: &FlowEntry, facts: &Facts) -> Flow {
    Flow {
        source: entry.orig.src,
        destination: entry.reply.src,
        protocol: entry.orig.proto,
        port: match entry.reply.transport {
            Transport::Ports { src, .. } => Some(src),
            Transport::Icmp { .. } | Transport::None => None,
        },
        from_node: facts.addresses.contains(&entry.orig.src),
        to_node: facts.addresses.contains(&entry.reply.src),
    }
}
