//! How long to wait before the next attempt.

use std::time::Duration;

use crate::clock::bounded;

/// The shortest bound of a wait, and the shortest interval. If a wait were zero, calls that end at once would make a
/// busy loop.
pub(crate) const SHORTEST: Duration = Duration::from_millis(1);

/// Exponential backoff with full jitter: before attempt *n*, wait for a random time between zero and
/// `min(max, base * 2^n)`.
///
/// Full jitter spreads clients that failed at the same moment over the whole interval. See Marc Brooker, "Exponential
/// Backoff And Jitter" (AWS Architecture Blog, 2015).
#[derive(Debug, Clone)]
pub struct Backoff {
    limits: Limits,
    attempts: u32,
    random: fastrand::Rng,
}

/// The bounds of a [`Backoff`], each at least a millisecond. Shorter bounds count as a millisecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The longest wait after the first failure.
    pub base: Duration,
    /// The longest wait after any failure.
    pub max: Duration,
}

impl Default for Limits {
    /// From 100 ms to 30 s.
    fn default() -> Self {
        Self {
            base: Duration::from_millis(100),
            max: Duration::from_secs(30),
        }
    }
}

impl Limits {
    /// Returns the same bounds, none of them too short for a loop, or too long to add to a moment.
    pub(crate) fn bounded(self) -> Self {
        Self {
            base: bounded(self.base).max(SHORTEST),
            max: bounded(self.max).max(SHORTEST),
        }
    }
}

impl Backoff {
    /// Creates a backoff before its first failure. Backoffs with the same seed wait for the same times.
    #[must_use]
    pub fn new(limits: Limits, seed: u64) -> Self {
        Self {
            limits: limits.bounded(),
            attempts: 0,
            random: fastrand::Rng::with_seed(seed),
        }
    }

    /// Returns how long to wait after one more failure.
    pub fn next_wait(&mut self) -> Duration {
        let doubled = self.limits.base.saturating_mul(2_u32.saturating_pow(self.attempts));
        self.attempts = self.attempts.saturating_add(1);
        doubled.min(self.limits.max).mul_f64(self.random.f64())
    }

    /// Records a success: the next failure counts as the first.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }

    /// Returns the number of failures since the last success.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.attempts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        base: Duration::from_millis(100),
        max: Duration::from_secs(2),
    };

    #[test]
    fn waits_are_spread_between_zero_and_a_bound_that_doubles() {
        for seed in 0..100 {
            let mut backoff = Backoff::new(LIMITS, seed);
            for bound in [100, 200, 400, 800, 1600, 2000, 2000] {
                assert!(backoff.next_wait() <= Duration::from_millis(bound), "seed {seed}");
            }
        }
        let first = |seed| Backoff::new(LIMITS, seed).next_wait();
        let low = (0..1000).filter(|&seed| first(seed) < LIMITS.base / 4).count();
        assert!(
            (150..350).contains(&low),
            "{low} of 1000 waits are in the first quarter"
        );
    }

    #[test]
    fn a_success_begins_again_with_the_shortest_wait() {
        let mut backoff = Backoff::new(LIMITS, 7);
        for _ in 0..10 {
            backoff.next_wait();
        }
        assert_eq!(backoff.attempts(), 10);
        backoff.reset();
        assert!(backoff.next_wait() <= LIMITS.base);
    }

    #[test]
    fn bounds_of_zero_are_waits_nevertheless() {
        let limits = Limits {
            base: Duration::ZERO,
            max: Duration::ZERO,
        };
        let mut backoff = Backoff::new(limits, 3);
        let waits: Vec<_> = (0..100).map(|_| backoff.next_wait()).collect();
        assert!(
            waits
                .iter()
                .all(|wait| (Duration::from_nanos(1)..SHORTEST).contains(wait))
        );
    }

    #[test]
    fn many_failures_do_not_overflow() {
        let limits = Limits {
            base: Duration::MAX,
            max: Duration::MAX,
        };
        let mut backoff = Backoff::new(limits, 1);
        for _ in 0..100 {
            backoff.next_wait();
        }
    }
}
