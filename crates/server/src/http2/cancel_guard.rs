//! The guard against floods of calls that the client cancels before the server looks at them ("Rapid Reset").
//!
//! Such a call costs the server little, and its client less. Clients cancel calls for good reasons, too: their
//! deadlines may pass while the server or the network stands still, all at the same time. So only a high rate over
//! seconds is a flood.

use tokio::time::Instant;

use crate::limits::{CANCELLED_CALLS, CANCELLED_CALLS_PER_SECOND};

/// The cancelled calls that one connection may still have.
pub(super) struct CancelGuard {
    left: f64,
    counted: Instant,
}

impl CancelGuard {
    pub(super) fn new() -> Self {
        Self {
            left: f64::from(CANCELLED_CALLS),
            counted: Instant::now(),
        }
    }

    /// Counts cancelled calls. Returns `false` if they are a flood.
    pub(super) fn allow(&mut self, cancelled: u32) -> bool {
        let now = Instant::now();
        let passed = (now - self.counted).as_secs_f64();
        let regained = passed * f64::from(CANCELLED_CALLS_PER_SECOND);
        self.counted = now;
        self.left = (self.left + regained).min(f64::from(CANCELLED_CALLS)) - f64::from(cancelled);
        self.left >= 0.0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;
    use crate::limits::MAX_CONCURRENT_STREAMS;

    #[tokio::test(start_paused = true)]
    async fn all_calls_may_be_cancelled_ten_times_a_second() {
        let mut guard = CancelGuard::new();
        for _ in 0..1000 {
            assert!(guard.allow(MAX_CONCURRENT_STREAMS));
            advance(Duration::from_millis(100)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_allowed_and_a_flood_is_not() {
        let mut guard = CancelGuard::new();
        assert!(guard.allow(CANCELLED_CALLS));
        assert!(!guard.allow(1));
        advance(Duration::from_secs(3600)).await;
        assert!(guard.allow(CANCELLED_CALLS));
        advance(Duration::from_millis(100)).await;
        assert!(!guard.allow(MAX_CONCURRENT_STREAMS + 1));
    }
}
