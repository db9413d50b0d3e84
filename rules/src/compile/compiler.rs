//! From one state of policy to the next: only what differs is compiled.
//!
//! In: [`Effective`] values and [`Layout`]s, one after the other. Out: [`Compiled`]. What always holds: the result depends on the last two
//! alone, as if they had been the first; what did not change is shared with the result before.

use std::collections::HashMap;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use super::part::{Part, Whole};
use super::pod::Built;
use super::sets::{Ip, Key};
use super::shared::Shared;
use super::{Compiled, Layout, Pending, PodPorts, base, pod};
use crate::effective::{Effective, EffectivePod};
use crate::ids::Claims;
use crate::object::ObjectName;
use crate::ranges::PodRanges;
use crate::ruleset::Ruleset;

/// Compiles one state of policy after the other.
#[derive(Clone, Debug, Default)]
pub struct Compiler {
    effective: Effective,
    pods: HashMap<ObjectName, Built>,
    /// How many pods are isolated.
    closed: usize,
    shared: Shared,
    pending: Pending,
    inet: Whole,
    fixed: Option<Fixed>,
}

/// What the layout contributes.
#[derive(Clone, Debug)]
struct Fixed {
    layout: Layout,
    closed: bool,
    inet: Part,
    bridge: Whole,
}

impl Compiler {
    /// Takes in what shall hold. Those that want an id for it.
    pub fn follow(&mut self, effective: &Effective) -> &Claims {
        let before = std::mem::replace(&mut self.effective, effective.clone());
        let gone = self.pods(before.pods());
        for built in &gone {
            self.shared.release(&built.named, &mut self.pending);
        }
        self.pending.take_out.extend(gone.into_iter().map(|built| built.part));
        for key in differing(&before.peers, &effective.peers) {
            for ip in Ip::BOTH {
                self.shared.refresh(&Key::Peer(ip, Arc::clone(key)), effective, &mut self.pending);
            }
        }
        for key in differing(&before.endpoints, &effective.endpoints) {
            for ip in Ip::BOTH {
                self.shared.refresh(&Key::Endpoints(ip, Arc::clone(key)), effective, &mut self.pending);
            }
        }
        self.shared.allows.claims()
    }

    /// Builds the pods that differ from those before. What they were.
    fn pods(&mut self, before: &OrdMap<ObjectName, Arc<EffectivePod>>) -> Vec<Built> {
        let mut gone = Vec::new();
        let Self { effective, pods, closed, shared, pending, .. } = self;
        for item in before.diff(effective.pods()) {
            let (name, built) = match item {
                DiffItem::Add(name, pod) | DiffItem::Update { new: (name, pod), .. } => {
                    (name, Some(pod::build(pod, effective, shared, pending)))
                }
                DiffItem::Remove(name, _) => (name, None),
            };
            if let Some(built) = pods.remove(name) {
                *closed -= usize::from(built.is_closed);
                gone.push(built);
            }
            if let Some(built) = built {
                *closed += usize::from(built.is_closed);
                pending.put_in.push(built.part.clone());
                pods.insert(name.clone(), built);
            }
        }
        gone
    }

    /// The ruleset of what was taken in last.
    pub fn compile(&mut self, layout: &Layout) -> Compiled {
        if self.effective.lifted {
            let pod_ports = layout.pod_ports.clone().map(PodPorts::lifted);
            return self.of(&Layout { pod_ranges: PodRanges::default(), pod_ports, ..layout.clone() });
        }
        self.of(layout)
    }

    fn of(&mut self, layout: &Layout) -> Compiled {
        self.shared.allows.number(&layout.ids, &mut self.pending);
        let closed = self.closed > 0;
        let fixed = match self.fixed.take() {
            Some(fixed) if fixed.closed == closed && fixed.layout.same_but_ids(layout) => fixed,
            before => {
                let fixed = Fixed::new(layout, closed);
                self.pending.take_out.extend(before.map(|before| before.inet));
                // Its sets take the elements of all others.
                self.pending.put_in.insert(0, fixed.inet.clone());
                fixed
            }
        };
        let Pending { take_out, put_in } = std::mem::take(&mut self.pending);
        take_out.iter().for_each(|part| self.inet.take_out(part));
        put_in.iter().for_each(|part| self.inet.put_in(part));
        let bridge = (layout.slot.bridge(), fixed.bridge.table.clone());
        let mut counters = self.inet.meanings.clone();
        counters.extend(fixed.bridge.meanings.clone());
        self.fixed = Some(fixed);
        Compiled {
            ruleset: Ruleset { tables: [(layout.slot.inet(), self.inet.table.clone()), bridge].into() },
            counters,
        }
    }
}

impl Fixed {
    fn new(layout: &Layout, closed: bool) -> Self {
        let mut inet = Part::default();
        base::add_sets(&mut inet, layout);
        base::add_chains(&mut inet, layout, closed);
        layout.switched.add_to(&mut inet);
        let mut guard = Part::default();
        base::add_frame_guard(&mut guard, layout);
        let mut bridge = Whole::default();
        bridge.put_in(&guard);
        Self { layout: layout.clone(), closed, inet, bridge }
    }
}

/// The keys of what one has and the other has not, or otherwise.
fn differing<'a, K: Ord, V: PartialEq>(one: &'a OrdMap<K, V>, other: &'a OrdMap<K, V>) -> impl Iterator<Item = &'a K> {
    one.diff(other).map(|item| match item {
        DiffItem::Add(key, _) | DiffItem::Remove(key, _) | DiffItem::Update { new: (key, _), .. } => key,
    })
}
