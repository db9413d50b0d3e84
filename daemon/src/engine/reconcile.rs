//! One turn: from what shall hold to what the kernel has.
//!
//! In: [`Effective`] and the node's interfaces. Out: committed transactions, bridge flags, flows cut. What always holds: a refused
//! transaction leaves the old rules in place and is tried again from what the kernel says it has; after
//! [`REFUSALS`] in a row the other slot's tables take over, then the old ones go; a bridge's flag is switched on only
//! when the table in the kernel remembers that it was off.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flatfell_rules::compile::{Compiled, Compiler, Layout, Meanings, PodPorts, Slot, Switched};
use flatfell_rules::diff::{Change, Held, diff, plan};
use flatfell_rules::effective::Effective;
use flatfell_rules::ids::{Allocator, Ids};
use flatfell_rules::mark::Generation;
use flatfell_rules::object::ObjectName;
use flatfell_rules::policy::Direction;
use flatfell_rules::ranges::PodRanges;
use flatfell_rules::ruleset::{Datum, Op, OpKind, Ruleset, TableId};
use imbl::OrdMap;
use nix::sys::eventfd::EventFd;

use super::counting::{self, Counting};
use super::filters::{Off, families};
use super::generations::{mark_of, unlike};
use super::gone::{Counters, GoneCounters};
use super::guard::Guard;
use super::pod_ports::{self, Finder};
use super::ranges::Ranges;
use super::retry;
use super::sweep::{Facts, SweepError, Sweeper};
use super::sweeping::{Bump, Sweeping};
use super::upkeep::Upkeep;
use super::{EngineConfig, EngineError, EngineStatus, RuleIds, our_tables};
use crate::kernel::{CommitError, Kernel};
use crate::links::{Links, PodBridge};
use crate::netlink::NetlinkError;

/// Refusals in a row after which the other tables take over.
const REFUSALS: u32 = 3;

/// What is known of the kernel's side.
pub(super) struct Reconciler {
    config: EngineConfig,
    kernel: Kernel,
    sweeping: Sweeping,
    guard: Guard,
    /// What the kernel has; `None` when it must be asked.
    have: Option<Held>,
    compiler: Compiler,
    slot: Slot,
    generation: Generation,
    /// The bridges whose filter was off before; what the tables remember and what they shall.
    switched: Switched,
    ranges: Ranges,
    pod_ports: Finder,
    allocator: Allocator,
    ids: Ids,
    gone: GoneCounters,
    counting: Arc<Counting>,
    refusals: u32,
    failures: u32,
    bridge_fault: Option<String>,
    status: EngineStatus,
}

/// Why a turn did not reach its end.
#[derive(Debug, thiserror::Error)]
enum TurnError {
    #[error("{0}")]
    Commit(#[from] CommitError),
    #[error("the tables cannot be read back: {0}")]
    Read(#[from] NetlinkError),
}

impl Reconciler {
    pub(super) fn open(config: EngineConfig, counting: Arc<Counting>, wake: Arc<EventFd>) -> Result<Self, EngineError> {
        let ranges = Ranges::new(&config);
        let pod_ports = Finder::new(config.anti_spoofing.clone(), config.close_unknown);
        let kernel = Kernel::open()?;
        Ok(Self {
            allocator: Allocator::new(config.rule_ids),
            ids: Ids::default(),
            gone: GoneCounters::new(config.counter_grace),
            counting,
            guard: Guard::new(config.lock_tables, &kernel)?,
            config,
            kernel,
            sweeping: Sweeping::start(wake)?,
            have: None,
            compiler: Compiler::default(),
            slot: Slot::A,
            generation: Generation::FIRST,
            switched: Switched::default(),
            ranges,
            pod_ports,
            refusals: 0,
            failures: 0,
            bridge_fault: None,
            status: EngineStatus::starting(),
        })
    }

    /// The bridges that carry pods: by configuration, by the pods' addresses, by where they have them.
    pub(super) fn pod_bridges(&self, links: &Links, pods: &OrdMap<IpAddr, ObjectName>) -> Vec<PodBridge> {
        links.pod_bridges(&self.config.pod_bridges, pods, self.ranges.told())
    }

    /// What is said of where pods have their addresses.
    pub(super) fn ranges(&mut self) -> &mut Ranges {
        &mut self.ranges
    }

    /// Who is behind which port.
    pub(super) fn pod_ports(&mut self) -> &mut Finder {
        &mut self.pod_ports
    }

    /// Whether somebody is found behind a port where nobody was. The next turn binds it.
    pub(super) fn finds_ports(&mut self, wanted: &Effective, links: &Links) -> bool {
        if !self.pod_ports.is_searching() {
            return false;
        }
        let bridges = self.pod_bridges(links, wanted.local());
        let ranges = self.ranges.find(&bridges, links);
        self.pod_ports.finds_more(&pod_ports::Node::new(wanted, &ranges, &bridges, links))
    }

    /// Brings the kernel to `wanted`. Returns when to try again, `None` when all of it holds.
    pub(super) fn reconcile(&mut self, wanted: &Arc<Effective>, links: &mut Links) -> Option<Duration> {
        let begun = Instant::now();
        let bridges = self.pod_bridges(links, wanted.local());
        match self.prepare(wanted, &bridges, links).and_then(|have| self.turn(have, wanted, &bridges, links)) {
            Ok(()) => {
                self.refusals = 0;
                self.failures = 0;
                self.status.transactions.last_error = None;
                self.status.enforced = Some(Arc::clone(wanted));
                self.status.generation = self.generation.number();
                self.status.slot = self.slot.table_name();
                self.bridge_fault.is_some().then_some(retry::LAST)
            }
            Err(error) => {
                self.failed(&error);
                Some(retry::after(self.failures, begun.elapsed()))
            }
        }
    }

    /// Whether the kernel has all of this.
    pub(super) fn enforces(&self, wanted: &Arc<Effective>) -> bool {
        self.have.is_some() && self.status.enforced.as_ref().is_some_and(|enforced| Arc::ptr_eq(enforced, wanted))
    }

    /// How many operations were committed so far.
    pub(super) fn operations(&self) -> u64 {
        self.status.transactions.operations
    }

    /// What the work costs and how late it is.
    pub(super) fn upkeep(&mut self) -> &mut Upkeep {
        &mut self.status.upkeep
    }

    /// The next turn builds the other tables and lets the ones in force go behind them.
    pub(super) fn take_over(&mut self) {
        self.refusals = 0;
        self.slot = self.slot.other();
    }

    /// What tells of edits by others; `None` while there cannot be any.
    pub(super) fn edits_fd(&self) -> Option<BorrowedFd<'_>> {
        self.guard.as_fd()
    }

    /// Looks whether somebody changed the tables. When the next turn shall put them right.
    pub(super) fn see_edits(&mut self) -> Result<Option<Instant>, NetlinkError> {
        let edits = self.guard.edits(self.kernel.port(), self.slot, Instant::now())?;
        let Some(edits) = edits.filter(|_| self.have.is_some()) else { return Ok(None) };
        self.have = None;
        edits.repairs.into_iter().for_each(|repair| self.status.upkeep.repaired(repair));
        Ok(Some(edits.due))
    }

    /// The status as far as this side knows it.
    pub(super) fn status(&self) -> EngineStatus {
        let mut status = self.status.clone();
        if status.enforced.is_some() {
            status.not_ready.clear();
        }
        status.not_ready.extend(status.transactions.last_error.as_ref().map(|error| {
            format!("the newest policy is not in the kernel, the rules before it stay, it is tried again: {error}")
        }));
        status.not_ready.extend(self.bridge_fault.clone());
        status.not_ready.extend(self.sweeping.fault().map(str::to_owned));
        status.swept = self.sweeping.is_done();
        status.warnings.extend(self.counting.fault());
        status.warnings.extend(self.ranges.warning());
        status.warnings.extend(self.guard.warning());
        status.locked = self.guard.is_locked();
        status.warnings.extend(self.pod_ports.warnings());
        status.rule_ids = self.rule_ids();
        if self.config.rule_ids > 0 && status.rule_ids.without > 0 {
            status.warnings.push(format!(
                "all {} ids of a direction are given out: {} rules and pods count as not attributed",
                status.rule_ids.limit, status.rule_ids.without
            ));
        }
        status
    }

    fn rule_ids(&self) -> RuleIds {
        RuleIds {
            ingress: self.allocator.used(Direction::Ingress),
            egress: self.allocator.used(Direction::Egress),
            limit: self.allocator.limit(),
            without: self.allocator.without(),
        }
    }

    /// Takes in the counters of the tables in force.
    fn read_counters(&mut self) -> Result<(), NetlinkError> {
        self.counting.take_in(&counting::dump(&mut self.kernel, self.slot)?);
        Ok(())
    }

    /// Whether a counter was kept long enough. The next turn removes it.
    pub(super) fn keeps_too_long(&self) -> bool {
        self.have.is_some() && self.gone.is_due(Instant::now())
    }

    /// What the kernel has, and the filter of the pod bridges on: before the first rules, or packets between pods
    /// would pass by them.
    fn prepare(&mut self, wanted: &Effective, bridges: &[PodBridge], links: &mut Links) -> Result<Held, TurnError> {
        let have = match self.have.take() {
            Some(have) => have,
            None => self.read_back(wanted, bridges, links)?,
        };
        self.switched.retain(|bridge| links.is_bridge(bridge));
        let (v4, v6) = families(wanted.local(), self.ranges.told());
        let off: Vec<Off<'_>> = bridges.iter().filter_map(|bridge| Off::of(bridge, v4, v6)).collect();
        off.iter().for_each(|off| self.status.upkeep.see_off(&off.bridge.name, off.v4, off.v6));
        let have = self.remember(have, &off)?;
        let switched_on = off.iter().try_for_each(|off| {
            links
                .set_nf_call(off.bridge, off.v4.then_some(true), off.v6.then_some(true))
                .map_err(|error| format!("bridge {}: its traffic does not reach policy: {error}", off.bridge.name))
        });
        self.bridge_fault = switched_on.err();
        Ok(have)
    }

    /// Has the table in force remember these flags, in a transaction of its own: whoever dies after it leaves no flag
    /// behind that nobody knows of.
    fn remember(&mut self, have: Held, off: &[Off<'_>]) -> Result<Held, TurnError> {
        let mut switched = self.switched.clone();
        off.iter().for_each(|off| off.note(&mut switched));
        let remembered = have.ruleset().tables.get(&self.slot.inet()).map(Switched::of);
        if off.is_empty() || remembered.is_some_and(|remembered| remembered == switched) {
            return Ok(have);
        }
        let mut want = have.ruleset().clone();
        switched.write_to(want.tables.entry(self.slot.inet()).or_default());
        let change = diff(&have, want);
        for step in change.steps() {
            self.commit(step)?;
        }
        self.switched = switched;
        Ok(change.result)
    }

    /// The ruleset of what was taken in last, with the counters that are kept a while longer, and what all of them mean.
    fn beside_gone(&mut self, layout: &Layout) -> (Ruleset, Meanings) {
        let Compiled { mut ruleset, counters: meanings } = self.compiler.compile(layout);
        let Some(table) = ruleset.tables.get_mut(&layout.slot.inet()) else { return (ruleset, meanings) };
        let kept = self.gone.beside(Counters::of(table, meanings), Instant::now());
        kept.put_into(table);
        (ruleset, kept.meanings)
    }

    fn turn(
        &mut self,
        have: Held,
        wanted: &Arc<Effective>,
        bridges: &[PodBridge],
        links: &Links,
    ) -> Result<(), TurnError> {
        let layout = self.layout(wanted, bridges, links);
        let ranges = layout.pod_ranges.clone();
        let (ruleset, meanings) = self.beside_gone(&layout);
        let next = if self.config.cut_established { self.generation.next() } else { self.generation };
        // Where no table has a generation, no flow carries one: there is nothing that a new one would set apart, and all
        // flows are swept (`begin_anew`).
        let is_first = !have.ruleset().tables.values().any(|table| mark_of(table).is_some());
        let mut change = if is_first {
            Change { tightens: false, ..diff(&have, ruleset) }
        } else {
            plan(&have, ruleset, || self.beside_gone(&Layout { generation: next, ..layout }).0)
        };
        let old_tables: Vec<TableId> =
            have.ruleset().tables.keys().filter(|table| table.name != self.slot.table_name()).cloned().collect();
        self.counting.close();
        if change.steps().flatten().any(loses_counts) {
            self.read_counters()?;
        }
        self.carry_counters(&old_tables, &mut change)?;
        for step in change.steps() {
            self.commit(step)?;
        }
        let bump = change.tightens.then_some(Bump { before: self.generation, is_urgent: !is_about_peers(&change) });
        self.status.transactions.takeovers += u64::from(!old_tables.is_empty());
        self.counting.begin(self.slot, meanings);
        self.status.upkeep.programmed = change.result.ruleset().clone();
        self.have = Some(change.result);
        if change.tightens {
            self.generation = next;
        }
        if self.config.cut_established {
            let ranges = if wanted.lifted { PodRanges::default() } else { ranges };
            self.sweeping.committed(self.facts(wanted, ranges, links), bump, Instant::now());
        }
        Ok(())
    }

    /// Asks the kernel what it has: which slot, which generation, which rules. Without a table of ours the marks in
    /// conntrack are from another life and would pass as current.
    fn read_back(&mut self, wanted: &Effective, bridges: &[PodBridge], links: &Links) -> Result<Held, TurnError> {
        self.guard.begin(&mut self.kernel)?;
        let tables = our_tables(&mut self.kernel)?;
        let untyped = self.kernel.read(&tables, &Ruleset::default())?;
        // Of both slots: a takeover may have been cut short.
        for table in untyped.tables.values() {
            self.switched.extend(Switched::of(table));
            self.pod_ports.restore(PodPorts::of(table));
        }
        let slot_in_force =
            |slot: &Slot| untyped.tables.get(&slot.inet()).is_some_and(|table| mark_of(table).is_some());
        let Some(found) = [self.slot, self.slot.other()].into_iter().find(slot_in_force) else {
            self.begin_anew(&untyped);
            return Ok(untyped.into());
        };
        let first = self.status.enforced.is_none();
        if first {
            self.slot = found;
        }
        if let Some(table) = untyped.tables.get(&found.inet()).filter(|_| first) {
            self.allocator.restore(table);
        }
        let in_force = untyped.tables.get(&self.slot.inet()).and_then(mark_of);
        if let Some(generation) = in_force.and_then(Generation::from_mark) {
            self.generation = generation;
        }
        if !self.guard.adopt(&mut self.kernel, &untyped, self.slot)? {
            self.take_over();
        }
        let layout = self.layout(wanted, bridges, links);
        let expected = self.compiler.compile(&layout).ruleset;
        // What happened to flows since the last sweep of whoever wrote these tables is not known.
        self.suspect_all(None);
        let have = self.kernel.read(&tables, &expected)?;
        self.gone.find(&have, Instant::now());
        Ok(have.into())
    }

    /// There is no table of this layout. Marks in conntrack are this run's own then, if somebody flushed its tables. Else they mean
    /// nothing, or what tables of another layout meant by them: these stay in force until ours are, and flows keep
    /// what they allow until they are swept.
    fn begin_anew(&mut self, have: &Ruleset) {
        // A table without a generation is one that only remembers bridges.
        let table = have.tables.values().rev().find(|table| mark_of(table).is_some());
        let earlier = table.and_then(mark_of);
        let mut forgotten = Ok(());
        if self.status.enforced.is_some() {
            self.generation = self.generation.next();
        } else {
            self.counting.forget();
            // Flows carry its ids until they are swept.
            table.into_iter().for_each(|table| self.allocator.restore(table));
            self.generation = earlier.map_or(Generation::FIRST, unlike);
            if earlier.is_none() {
                forgotten = forget();
            }
        }
        self.suspect_all(forgotten.err().map(|error| format!("old marks of running connections: {error}")));
    }

    /// Counters that are made anew under a name that counted before go on from there.
    fn carry_counters(&mut self, old_tables: &[TableId], change: &mut Change) -> Result<(), TurnError> {
        if !old_tables.is_empty() {
            let before = old_tables.iter().map(|table| self.kernel.counters(table)).collect::<Result<Vec<_>, _>>()?;
            self.counting.take_in(&before);
        }
        for op in change.make.iter_mut().chain(&mut change.switch).chain(&mut change.clean) {
            match &mut op.kind {
                OpKind::AddCounter { name, start, .. } => *start = self.counting.last(name).unwrap_or_default(),
                OpKind::AddElements { elements, starts, .. } => {
                    let counting = elements.values().filter_map(Datum::counter);
                    starts.extend(counting.filter_map(|name| Some((name.clone(), self.counting.last(name)?))));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn suspect_all(&mut self, fault: Option<String>) {
        if self.config.cut_established {
            self.sweeping.suspect_all(fault);
        }
    }

    /// What running connections are judged by from now on.
    fn facts(&self, wanted: &Arc<Effective>, ranges: PodRanges, links: &Links) -> Facts {
        Facts {
            effective: Arc::clone(wanted),
            ids: self.ids.clone(),
            current: self.generation,
            ranges,
            addresses: links.node_addresses(),
            own_node_egress: self.config.own_node_egress,
        }
    }

    /// When and how running connections are checked.
    pub(super) fn sweeping(&mut self) -> &mut Sweeping {
        &mut self.sweeping
    }

    /// Takes in what a sweep came to. Whether ids came free for those that have none.
    pub(super) fn take_in_sweep(&mut self) -> bool {
        let Some(swept) = self.sweeping.ended(Instant::now()) else { return false };
        self.status.transactions.flows_cut += swept.cut;
        if swept.is_current {
            self.allocator.release();
        }
        swept.is_current && self.allocator.could_give()
    }

    /// Checks what is still to be checked, and ends.
    pub(super) fn end(self) {
        self.sweeping.finish();
    }

    fn layout(&mut self, wanted: &Effective, bridges: &[PodBridge], links: &Links) -> Layout {
        self.ids = self.allocator.assign(self.compiler.follow(wanted));
        let pod_ranges = self.ranges.find(bridges, links);
        let node = pod_ports::Node::new(wanted, &pod_ranges, bridges, links);
        let pod_ports = self.pod_ports.find(&node);
        Layout {
            slot: self.slot,
            generation: self.generation,
            ids: self.ids.clone(),
            bridges: bridges.iter().map(|bridge| bridge.name.clone()).collect(),
            ports: links.ports(bridges),
            pod_ports,
            switched: self.switched.clone(),
            pod_ranges,
            own_node_egress: self.config.own_node_egress,
            counts: self.config.rule_ids > 0,
            flow_log: self.config.flow_log,
        }
    }

    fn commit(&mut self, step: &[Op]) -> Result<(), CommitError> {
        let stats = self.kernel.commit(step)?;
        self.status.transactions.commit(&stats);
        Ok(())
    }

    /// Nothing is forgotten but what the kernel has: the next turn asks it.
    fn failed(&mut self, error: &TurnError) {
        self.have = None;
        self.counting.reopen();
        self.failures += 1;
        if matches!(error, TurnError::Commit(CommitError::Refused { .. })) {
            self.refusals += 1;
        }
        if self.refusals == REFUSALS {
            self.take_over();
        }
        self.status.transactions.failed += 1;
        self.status.upkeep.retries += 1;
        let is_news = self.status.transactions.last_error.replace(error.to_string()) != Some(error.to_string());
        if is_news || self.failures.is_power_of_two() {
            tracing::error!(%error, failures = self.failures, "policy is not in the kernel; the rules before it stay");
        }
    }
}

/// Whether only elements of sets change, and base chains with the number of the generation.
fn is_about_peers(change: &Change) -> bool {
    change.steps().flatten().all(|op| match &op.kind {
        OpKind::AddElements { .. } | OpKind::DeleteElements { .. } => true,
        OpKind::FlushChain(chain) | OpKind::AddRule { chain, .. } => {
            let table = change.result.ruleset().tables.get(&op.table);
            table.and_then(|table| table.chains.get(chain)).is_some_and(|chain| chain.hook.is_some())
        }
        _ => false,
    })
}

/// Clears the marks of all flows that were ever judged.
fn forget() -> Result<(), SweepError> {
    Sweeper::open()?.forget()
}

/// Whether a counter goes with this.
fn loses_counts(op: &Op) -> bool {
    match &op.kind {
        OpKind::DeleteCounter(_) | OpKind::DeleteTable => true,
        OpKind::DeleteElements { elements, .. } => elements.values().any(|datum| datum.counter().is_some()),
        _ => false,
    }
}
