//! From what holds for each pod to the ruleset that makes it so.
//!
//! In: [`crate::effective::Effective`] and the [`Layout`] (facts of this node, the generation). Out: [`Compiled`]: the ruleset and what
//! each named counter in it means. What always holds: a function of its arguments only; `docs/dataplane.md` draws the result.

use std::collections::{BTreeMap, BTreeSet};

use crate::effective::RuleIdentity;
use crate::object::ObjectName;
use crate::policy::{Action, Direction};
use crate::ruleset::Ruleset;

/// Which of the two names the daemon's tables have: a second table takes over where the first cannot be changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slot {
    /// `flatfell-1a`.
    #[default]
    A,
    /// `flatfell-1b`.
    B,
}

/// The number of the current policy in the ct marks of judged flows: 1 to 254; 0 is "not judged", 255 "denied".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(u8);

impl Generation {
    /// The first.
    pub const FIRST: Self = Self(1);

    /// The generation with this number; `None` for the two numbers that are none.
    pub const fn new(number: u8) -> Option<Self> {
        if number == 0 || number == u8::MAX { None } else { Some(Self(number)) }
    }

    /// Its number.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// The one behind it; 1 follows 254.
    pub const fn next(self) -> Self {
        if self.0 == u8::MAX - 1 { Self::FIRST } else { Self(self.0 + 1) }
    }
}

/// What a ruleset depends on beside policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The tables' names.
    pub slot: Slot,
    /// The current generation.
    pub generation: Generation,
    /// The bridges that carry pods.
    pub bridges: BTreeSet<String>,
    /// The ports of those bridges.
    pub ports: BTreeSet<String>,
    /// Whether pods are held to their egress rules towards their own node.
    pub own_node_egress: bool,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            slot: Slot::A,
            generation: Generation::FIRST,
            bridges: BTreeSet::new(),
            ports: BTreeSet::new(),
            own_node_egress: true,
        }
    }
}

/// A ruleset that can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    /// The tables.
    pub ruleset: Ruleset,
    /// What each named counter counts, by its name (unique over all tables).
    pub counters: BTreeMap<String, CounterMeaning>,
}

/// What a named counter counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CounterMeaning {
    /// Packets that a rule decided.
    Rule {
        /// The rule.
        identity: RuleIdentity,
        /// Its place in its policy: shown, never a key.
        index: usize,
        /// What it does.
        action: Action,
    },
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
    /// Packets that no policy speaks of and that are a way round it.
    Guard(Guard),
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
}
