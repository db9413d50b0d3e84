//! When to try again what failed.
//!
//! In: how often in a row it failed, and what the last try cost. Out: how long to wait. What always holds: what is in the way may be gone
//! any moment, and the node is in step again within a second of that; only tries that cost much come less often.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
/// However often it failed.
pub(super) const LAST: Duration = Duration::from_millis(700);
/// A try that costs much rests so many times as long, up to a limit.
const SHARE: u32 = 3;
const LONGEST: Duration = Duration::from_secs(5);

/// How long to wait after so many failures in a row, the last of which took so long.
pub(super) fn after(failures: u32, cost: Duration) -> Duration {
    let wait = FIRST.saturating_mul(1 << failures.saturating_sub(1).min(7)).min(LAST);
    wait.max(cost.saturating_mul(SHARE).min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_tried_within_a_second_unless_that_costs_a_quarter_of_the_time() {
        let ms = Duration::from_millis;
        assert_eq!([1, 2, 3, 4, 1000].map(|failures| after(failures, ms(2))), [100, 200, 400, 700, 700].map(ms));
        assert_eq!((after(1, ms(1000)), after(9, ms(60_000))), (ms(3000), LONGEST));
    }
}
