//! Medians and quartiles.
//!
//! In: samples. Out: the middle one, and the range in which the middle half lies. What always holds: no sample is left out; a spread
//! says how far samples lie apart, not how far the median is from the truth.

use serde::Serialize;

/// The middle of samples, and their middle half.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// A quarter of the samples is smaller.
    pub low: f64,
    /// Half of the samples is smaller.
    pub median: f64,
    /// A quarter of the samples is larger.
    pub high: f64,
    /// How many samples.
    pub samples: usize,
}

impl Spread {
    /// Of these samples; `None` without any.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |quarter: usize| quantile(&sorted, quarter);
        Some(Self { low: at(1)?, median: at(2)?, high: at(3)?, samples: sorted.len() })
    }
}

/// The median of samples, 0 without any.
pub fn median(samples: &[f64]) -> f64 {
    Spread::of(samples).map_or(0.0, |spread| spread.median)
}

/// The mean of samples, 0 without any.
pub fn mean(samples: &[f64]) -> f64 {
    let count = u32::try_from(samples.len()).map_or(f64::MAX, f64::from);
    if samples.is_empty() { 0.0 } else { samples.iter().sum::<f64>() / count }
}

/// Between the two samples next to a quarter's place, in the ratio of their distances.
fn quantile(sorted: &[f64], quarter: usize) -> Option<f64> {
    let place = quarter * sorted.len().checked_sub(1)?;
    let (below, rest) = (place / 4, place % 4);
    let first = *sorted.get(below)?;
    let second = *sorted.get(below + 1).unwrap_or(&first);
    let share = [0.0, 0.25, 0.5, 0.75][rest];
    Some(first + (second - first) * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_lie_between_samples() {
        let spread = Spread::of(&[4.0, 1.0, 3.0, 2.0]).expect("samples");
        assert_eq!((spread.low, spread.median, spread.high), (1.75, 2.5, 3.25));
        assert_eq!(Spread::of(&[7.0]).map(|one| (one.low, one.high)), Some((7.0, 7.0)));
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn one_wild_sample_does_not_move_the_median() {
        assert!((median(&[1.0, 1.01, 0.99, 50.0, 1.0]) - 1.0).abs() < 1e-9);
    }
}
