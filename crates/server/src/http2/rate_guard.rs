//! A guard against floods of events that clients cause for good reasons, too, but never at a high rate for long.
//!
//! One such event is a call that the client cancels before the server looks at it ("Rapid Reset"). Such a call costs
//! the server little, and its client less. But the deadlines of a client's calls may pass while the server or the
//! network stands still, all at the same time. So only a high rate over seconds is a flood.

use tokio::time::Instant;

/// The events that one connection may still cause.
#[derive(Debug)]
pub(super) struct RateGuard {
    burst: u32,
    per_second: u32,
    left: f64,
    counted: Instant,
}

impl RateGuard {
    /// Allows `burst` events at once, and `per_second` events a second in the long run.
    pub(super) fn new(burst: u32, per_second: u32) -> Self {
        Self {
            burst,
            per_second,
            left: f64::from(burst),
            counted: Instant::now(),
        }
    }

    /// Counts events. Returns `false` if they are a flood.
    pub(super) fn allow(&mut self, events: u32) -> bool {
        let now = Instant::now();
        let passed = (now - self.counted).as_secs_f64();
        let regained = passed * f64::from(self.per_second);
        self.counted = now;
        self.left = (self.left + regained).min(f64::from(self.burst)) - f64::from(events);
        self.left >= 0.0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;
    use crate::limits::{CANCELLED_CALLS, CANCELLED_CALLS_PER_SECOND, MAX_CONCURRENT_STREAMS};

    fn cancelled_calls() -> RateGuard {
        RateGuard::new(CANCELLED_CALLS, CANCELLED_CALLS_PER_SECOND)
    }

    #[tokio::test(start_paused = true)]
    async fn all_calls_may_be_cancelled_ten_times_a_second() {
        let mut guard = cancelled_calls();
        for _ in 0..1000 {
            assert!(guard.allow(MAX_CONCURRENT_STREAMS));
            advance(Duration::from_millis(100)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_allowed_and_a_flood_is_not() {
        let mut guard = cancelled_calls();
        assert!(guard.allow(CANCELLED_CALLS));
        assert!(!guard.allow(1));
        advance(Duration::from_secs(3600)).await;
        assert!(guard.allow(CANCELLED_CALLS));
        advance(Duration::from_millis(100)).await;
        assert!(!guard.allow(MAX_CONCURRENT_STREAMS + 1));
    }
}
