//! Paired rounds: the baseline and a column, one right behind the other, again and again.
//!
//! In: how to switch to either side and what to time there. Out: the ratio of each round. What always holds: a round's two halves stand beside
//! each other in time and which comes first alternates, so that what else the machine does falls on both; no round is left out.

use serde::Serialize;

use super::stats::{Spread, median};

/// A side of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Conntrack and NAT, without policy.
    Baseline,
    /// What is compared with it.
    Column,
}

/// What came of paired rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Column to baseline, round by round.
    pub ratio: Spread,
    /// Nanoseconds of an operation, median of the baseline's halves.
    pub baseline: f64,
    /// The same of the column's.
    pub column: f64,
    /// Every round: baseline, column.
    pub rounds: Vec<(f64, f64)>,
}

/// So many rounds; `half` switches to a side and gives what an operation costs there.
pub fn paired(count: usize, mut half: impl FnMut(Side) -> anyhow::Result<f64>) -> anyhow::Result<Outcome> {
    let mut rounds = Vec::new();
    for number in 0..count {
        let pair = if number % 2 == 0 {
            let baseline = half(Side::Baseline)?;
            (baseline, half(Side::Column)?)
        } else {
            let column = half(Side::Column)?;
            (half(Side::Baseline)?, column)
        };
        rounds.push(pair);
    }
    let ratios: Vec<f64> = rounds.iter().map(|(baseline, column)| column / baseline).collect();
    let of = |side: fn(&(f64, f64)) -> f64| median(&rounds.iter().map(side).collect::<Vec<_>>());
    let ratio = Spread::of(&ratios).ok_or_else(|| anyhow::anyhow!("no rounds"))?;
    Ok(Outcome { ratio, baseline: of(|round| round.0), column: of(|round| round.1), rounds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_slows_down_does_not_change_the_ratio() {
        let mut clock = 100.0;
        let outcome = paired(20, |side| {
            clock *= 1.001;
            Ok(if side == Side::Column { clock * 1.5 } else { clock })
        });
        let outcome = outcome.expect("rounds");
        assert!((outcome.ratio.median - 1.5).abs() < 0.01, "{:?}", outcome.ratio);
        assert_eq!(outcome.rounds.len(), 20);
    }
}
