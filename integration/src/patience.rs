//! How long a test waits, on a machine that is slower than usual.
//!
//! In: `FLATFELL_PATIENCE`, a factor (1 without it; an emulated processor needs 10 or more). Out: time limits. What always
//! holds: without the factor a limit is what is written; with it nothing is said about how fast anything is.

use std::sync::LazyLock;
use std::time::Duration;

static FACTOR: LazyLock<u32> = LazyLock::new(|| {
    let wanted = std::env::var("FLATFELL_PATIENCE").ok().and_then(|text| text.parse().ok());
    wanted.unwrap_or(1).max(1)
});

/// The time limit on this machine.
pub fn patient(limit: Duration) -> Duration {
    limit * *FACTOR
}
