//! Changes between random rulesets: the kernel takes every step, no step shows packets what it must not, and the end
//! is what was asked for.

use std::sync::Arc;

use flatfell_rules::diff::{self, Change, Held};
use flatfell_rules::ruleset::{Chain, Expr, Op, Ruleset};
use flatfell_rules::sim::kernel::FakeKernel;
use flatfell_rules::sim::random::{self, Random};
use flatfell_rules::sim::tracer::{Packet, Trace, trace};
use proptest::prelude::*;

/// Packets asked about after each step.
const PACKETS: usize = 60;

/// What can be said of a packet's end; counters and places of rules are no part of it.
fn outcome(trace: &Trace) -> (bool, Option<u32>) {
    (trace.passed, trace.mark)
}

fn packets(seed: u64) -> Vec<Packet> {
    let mut random = Random::new(seed);
    (0..PACKETS).map(|_| random::packet(&mut random)).collect()
}

fn outcomes(ruleset: &Ruleset, packets: &[Packet]) -> Vec<(bool, Option<u32>)> {
    packets.iter().map(|packet| outcome(&trace(ruleset, packet))).collect()
}

fn commit(kernel: &mut FakeKernel, step: &str, ops: &[Op]) -> Result<(), TestCaseError> {
    kernel
        .commit(ops)
        .map_err(|error| TestCaseError::fail(format!("{step}: {error}: {:?}\nin {ops:#?}", ops.get(error.index))))
}

/// Applies a change and asks at each step what must hold there.
fn walk(have: &Ruleset, want: &Ruleset, change: &Change, packets: &[Packet]) -> Result<Ruleset, TestCaseError> {
    let mut kernel = FakeKernel { ruleset: have.clone() };
    let before = outcomes(have, packets);
    commit(&mut kernel, "make", &change.make)?;
    prop_assert_eq!(&outcomes(&kernel.ruleset, packets), &before, "make changed a verdict");
    commit(&mut kernel, "switch", &change.switch)?;
    commit(&mut kernel, "clean", &change.clean)?;
    prop_assert_eq!(&kernel.ruleset, change.result.ruleset());
    if !change.tightens {
        prop_assert_eq!(change.result.ruleset(), want);
        for (packet, before) in
            packets.iter().zip(&before).filter(|(packet, (passed, _))| *passed && packet.flow.is_some())
        {
            if packet.family == flatfell_rules::ruleset::Family::Inet {
                prop_assert!(trace(want, packet).passed, "not tightening, but {packet:?} passed: {before:?}");
            }
        }
    }
    Ok(kernel.ruleset)
}

/// The same rules for another generation: constants of marks in base chains are others.
fn bump(ruleset: &Ruleset) -> Ruleset {
    let mut bumped = ruleset.clone();
    for table in bumped.tables.values_mut() {
        for (name, chain) in table.chains.clone().into_iter().filter(|(_, chain)| chain.hook.is_some()) {
            let mut chain = Chain::clone(&chain);
            for expr in chain.rules.iter_mut().flat_map(|rule| &mut rule.exprs) {
                if let Expr::CtMark { mask: 0xff00_0000, value, .. } = expr {
                    *value ^= 0x0300_0000;
                }
            }
            table.chains.insert(name, Arc::new(chain));
        }
    }
    bumped
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn random_rulesets_are_what_the_kernel_takes(seed: u64) {
        let change = diff::diff(&Held::default(), random::ruleset(seed));
        walk(&Ruleset::default(), &random::ruleset(seed), &change, &packets(seed))?;
    }

    #[test]
    fn a_sequence_of_changes_ends_at_each_wanted_ruleset(seeds: [u64; 4], rate in 1_u64..12) {
        let mut have = random::ruleset(seeds[0]);
        for seed in &seeds[1..] {
            let want = random::varied(seeds[0], *seed, rate);
            let change = diff::diff(&have.clone().into(), want.clone());
            have = walk(&have, &want, &change, &packets(*seed))?;
            prop_assert_eq!(&have, &want);
            prop_assert!(diff::diff(&have.clone().into(), want.clone()).is_empty());
        }
    }

    #[test]
    fn a_tightening_change_ends_at_the_bumped_rules(a: u64, b: u64, rate in 1_u64..30) {
        let (have, want) = (random::ruleset(a), random::varied(a, b, rate));
        let change = diff::plan(&have.clone().into(), want.clone(), || bump(&want));
        let end = walk(&have, &want, &change, &packets(a ^ b))?;
        let expected = if change.tightens { bump(&want) } else { want };
        prop_assert_eq!(end, expected);
    }

    #[test]
    fn the_switch_shows_the_wanted_rules(a: u64, b: u64, rate in 1_u64..12) {
        let (have, want) = (random::ruleset(a), random::varied(a, b, rate));
        let change = diff::diff(&have.clone().into(), want.clone());
        let mut kernel = FakeKernel { ruleset: have };
        commit(&mut kernel, "make", &change.make)?;
        commit(&mut kernel, "switch", &change.switch)?;
        for (id, table) in &want.tables {
            for (name, chain) in &table.chains {
                prop_assert_eq!(&kernel.ruleset.tables[id].chains[name], chain);
            }
            for (name, set) in &table.sets {
                let live = &kernel.ruleset.tables[id].sets[name].elements;
                prop_assert!(set.elements.iter().all(|(key, datum)| live.get(&key) == Some(&datum)));
            }
        }
    }
}
