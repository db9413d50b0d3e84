//! From what holds for each pod to the ruleset that makes it so.
//!
//! In: [`crate::effective::Effective`] and the [`Layout`] (facts of this node, the generation). Out: [`Compiled`]: the ruleset and what
//! each counter in it means. What always holds: a function of its arguments only; `docs/dataplane.md` draws the result.

use std::collections::BTreeSet;
use std::sync::Arc;

use imbl::OrdMap;

use crate::effective::{Effective, RuleIdentity};
use crate::ids::Ids;
use crate::mark::Generation;
use crate::names;
use crate::object::ObjectName;
use crate::policy::{Action, Direction};
use crate::ranges::PodRanges;
use crate::ruleset::{Family, Name, Ruleset, TableId};

mod allow;
mod base;
mod compiler;
mod count;
#[cfg(test)]
mod counting_tests;
mod log;
mod part;
mod pod;
mod ports;
mod registry;
mod sets;
mod shared;
mod spoof;
mod switched;
#[cfg(test)]
mod tests;
mod unknown;

pub use compiler::Compiler;
pub use spoof::{Mac, PodPort, PodPorts};
pub use switched::{BridgeId, Switched};

/// The set of the inet table whose one element is the current generation's mark: for whoever takes the table over.
pub const GENERATION_SET: &str = "generation";

/// Which of the two names the daemon's tables have: a second table takes over where the first cannot be changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slot {
    /// `flatfell-3a`.
    #[default]
    A,
    /// `flatfell-3b`.
    B,
}

impl Slot {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::A, Self::B];

    /// Whether a table of this name is a daemon's, of either slot and of whatever layout: who finds one of an earlier or a
    /// later layout takes over from it.
    pub fn is_of_any_layout(name: &str) -> bool {
        let number = name.strip_prefix("flatfell-").and_then(|rest| rest.strip_suffix(['a', 'b']));
        number
            .is_some_and(|number| number.parse::<u16>().is_ok_and(|layout| layout > 0 && layout.to_string() == number))
    }

    /// The name of its tables. The number is the layout's: user data cannot change in place, so another layout is
    /// another table.
    pub const fn table_name(self) -> &'static str {
        match self {
            Self::A => "flatfell-3a",
            Self::B => "flatfell-3b",
        }
    }

    /// The other one.
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// The table that judges packets.
    pub fn inet(self) -> TableId {
        TableId { family: Family::Inet, name: self.table_name().to_owned() }
    }

    /// The table that guards bridge ports.
    pub fn bridge(self) -> TableId {
        TableId { family: Family::Bridge, name: self.table_name().to_owned() }
    }
}

/// What a ruleset depends on beside policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The tables' names.
    pub slot: Slot,
    /// The current generation.
    pub generation: Generation,
    /// Who counts under which id.
    pub ids: Ids,
    /// The bridges that carry pods.
    pub bridges: BTreeSet<String>,
    /// The ports of those bridges.
    pub ports: BTreeSet<String>,
    /// Who is behind those ports, where pods are held to sending as themselves.
    pub pod_ports: Option<PodPorts>,
    /// The bridges whose filter was off before the daemon came: remembered, for no packet.
    pub switched: Switched,
    /// Where this node's pods have their addresses: what is there and is no known pod is closed. Empty: nothing is.
    pub pod_ranges: PodRanges,
    /// Whether pods are held to their egress rules towards their own node.
    pub own_node_egress: bool,
    /// Whether each packet counts for what let its connection through. Without, two look-ups a packet are saved.
    pub counts: bool,
    /// Where denials are logged; `None` for nowhere.
    pub flow_log: Option<FlowLog>,
}

impl Layout {
    /// Whether nothing but the ids differs.
    fn same_but_ids(&self, other: &Self) -> bool {
        fn all(layout: &Layout) -> impl PartialEq + '_ {
            let Layout {
                slot,
                generation,
                ids: _,
                bridges,
                ports,
                pod_ports,
                switched,
                pod_ranges,
                own_node_egress,
                counts,
                flow_log,
            } = layout;
            (slot, generation, bridges, ports, pod_ports, switched, pod_ranges, own_node_egress, counts, flow_log)
        }
        all(self) == all(other)
    }
}

/// Where denials are logged, and how many of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowLog {
    /// The NFLOG group.
    pub group: u16,
    /// Packets a second at most, for each verdict and direction; as many may come at once.
    pub rate: u32,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            slot: Slot::A,
            generation: Generation::FIRST,
            ids: Ids::default(),
            bridges: BTreeSet::new(),
            ports: BTreeSet::new(),
            pod_ports: None,
            switched: Switched::default(),
            pod_ranges: PodRanges::default(),
            own_node_egress: true,
            counts: true,
            flow_log: None,
        }
    }
}

/// A ruleset that can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    /// The tables.
    pub ruleset: Ruleset,
    /// What each counter counts, of elements too.
    pub counters: Meanings,
}

/// What a counter counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CounterMeaning {
    /// Of a rule that accepts: all packets of its connections, both ways. Of any other: the packets it decided.
    Rule {
        /// The rule.
        identity: Arc<RuleIdentity>,
        /// Its place in its policy: shown, never a key.
        index: usize,
        /// What it does.
        action: Action,
    },
    /// Connections that a rule accepted: their number is that of the packets.
    RuleConnections {
        /// The rule.
        identity: Arc<RuleIdentity>,
        /// Its place in its policy: shown, never a key.
        index: usize,
        /// What it does.
        action: Action,
    },
    /// All packets, both ways, of a pod's connections that pass without a rule: it is not isolated in this direction, only audited
    /// policies speak of it, or it reaches itself.
    DefaultAllowed {
        /// The pod.
        pod: ObjectName,
        /// The direction.
        direction: Direction,
    },
    /// The number of those connections, as packets.
    DefaultAllowedConnections {
        /// The pod.
        pod: ObjectName,
        /// The direction.
        direction: Direction,
    },
    /// Packets that passed and are counted for no rule and no pod: all ids are given out, or conntrack does not know them.
    Unattributed,
    /// Packets of a pod that its isolation dropped.
    Dropped {
        /// The isolated pod.
        pod: ObjectName,
        /// The direction it is isolated in.
        direction: Direction,
    },
    /// Packets that an audited policy would have dropped.
    WouldDrop {
        /// The pod.
        pod: ObjectName,
        /// The direction.
        direction: Direction,
    },
    /// Frames that a pod sent as somebody else.
    Spoofed {
        /// The pod.
        pod: ObjectName,
    },
    /// Packets that no policy speaks of and that are a way round it.
    Guard(Guard),
    /// Denied and audited packets, as the flow log got them or not.
    FlowLog(Logged),
}

/// What became of a denied or audited packet in the kernel's part of the flow log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Logged {
    /// It was given to the log's group.
    Sent,
    /// It was beyond the rate.
    BeyondRate,
}

impl Logged {
    /// The name of its counter, the same in every table.
    pub fn counter(self) -> Name {
        names::name("flow-log", self.word(), self.word())
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::BeyondRate => "beyond-rate",
        }
    }
}

/// The ways round policy that are closed before any rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Guard {
    /// IPv6 router advertisements and redirects from pods (CVE-2020-10749).
    RouterAdvertisement,
    /// Link-local IPv6 that is no neighbour discovery and no MLD.
    LinkLocal,
    /// Broadcast, multicast and anycast between pods.
    Multicast,
    /// Frames with a VLAN tag or of another protocol than IP and ARP.
    Frame,
    /// Replies of flows that were denied.
    DeniedReply,
    /// Addresses of the node's pod ranges that are no known pod's.
    UnknownPod,
    /// Frames from ports of pod bridges that no pod was found behind.
    UnboundPort,
}

impl Guard {
    /// The word in metrics and comments.
    pub const fn word(self) -> &'static str {
        match self {
            Self::RouterAdvertisement => "router-advertisement",
            Self::LinkLocal => "link-local",
            Self::Multicast => "multicast",
            Self::Frame => "frame",
            Self::DeniedReply => "denied-reply",
            Self::UnknownPod => "unknown-pod",
            Self::UnboundPort => "unbound-port",
        }
    }
}

/// What counters count, by their names (unique over all tables).
pub type Meanings = OrdMap<Name, Arc<CounterMeaning>>;

/// Contributions that are to go from a table, and then those that are to come.
#[derive(Clone, Debug, Default)]
struct Pending {
    take_out: Vec<part::Part>,
    put_in: Vec<part::Part>,
}

/// The ruleset of a node.
pub fn compile(effective: &Effective, layout: &Layout) -> Compiled {
    let mut compiler = Compiler::default();
    compiler.follow(effective);
    compiler.compile(layout)
}
