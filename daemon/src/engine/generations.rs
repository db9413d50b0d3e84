//! The generation that tables name.
//!
//! In: a table as the kernel has it. Out: its generation's mark, and generations that it cannot be taken for. What always holds: a table without a
//! generation was never in force.

use flatfell_rules::compile::GENERATION_SET;
use flatfell_rules::mark::Generation;
use flatfell_rules::ruleset::{Element, Table, Value};

/// The mark of the generation that a table's own set names.
pub(super) fn mark_of(table: &Table) -> Option<u32> {
    let (element, _) = table.sets.get(GENERATION_SET)?.elements.iter().last()?;
    let Element::Key(key) = element else { return None };
    let [Value::Mark(mark)] = key.as_slice() else { return None };
    Some(*mark)
}

/// A generation such that neither it nor the next one is what a mark reads as.
pub(super) fn unlike(mark: u32) -> Generation {
    let reads_as = Generation::from_mark(mark);
    let mut generations = std::iter::successors(Some(Generation::FIRST), |last| Some(last.next()));
    let fits = |one: &Generation| reads_as != Some(*one) && reads_as != Some(one.next());
    generations.find(fits).unwrap_or(Generation::FIRST)
}
