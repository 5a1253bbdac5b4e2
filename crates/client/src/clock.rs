//! Moments and waits of the state machines.

use std::time::{Duration, Instant};

/// The longest wait: 30 years. The sum of a moment and a few such waits is a moment.
const LONGEST: Duration = Duration::from_secs(30 * 365 * 86_400);

/// Returns the time on tokio's clock, which tests can pause.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Returns a wait that may be added to a moment without an overflow.
pub(crate) fn bounded(wait: Duration) -> Duration {
    wait.min(LONGEST)
}

/// Returns the moment after a wait.
pub(crate) fn after(now: Instant, wait: Duration) -> Instant {
    now + bounded(wait)
}
