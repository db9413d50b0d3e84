//! A token bucket.
//!
//! In: a rate, the time. Out: whether one more may pass. What always holds: in any span at most the rate times its length
//! and one burst pass; a clock that stands still gives nothing.

use std::time::Instant;

/// So many a second, so many at once.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    rate: f64,
    burst: f64,
    tokens: f64,
    last: Instant,
}

impl Bucket {
    /// A full one.
    pub fn new(rate: u32, burst: u32, now: Instant) -> Self {
        Self { rate: f64::from(rate), burst: f64::from(burst), tokens: f64::from(burst), last: now }
    }

    /// Takes a token if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        let gained = now.saturating_duration_since(self.last).as_secs_f64() * self.rate;
        self.tokens = (self.tokens + gained).min(self.burst);
        self.last = self.last.max(now);
        let is_there = self.tokens >= 1.0;
        if is_there {
            self.tokens -= 1.0;
        }
        is_there
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_passes_then_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10, 3, start);
        let mut passed = |at: Duration| (0..100).filter(|_| bucket.take(start + at)).count();
        assert_eq!(passed(Duration::ZERO), 3);
        assert_eq!(passed(Duration::from_millis(201)), 2);
        assert_eq!(passed(Duration::from_millis(100)), 0, "a clock that goes back gives nothing");
        assert_eq!(passed(Duration::from_secs(3600)), 3, "what was not used is not saved up");
    }
}
