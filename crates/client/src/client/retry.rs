//! When a call that failed is made again.
//!
//! Most calls are repeatable: a repeated call has the effect of one call. So such a call may be made again even if a
//! tracker may have done it. [`Call::IS_REPEATABLE`] has the exceptions.
//!
//! | error | a repeatable call | any other call |
//! | --- | --- | --- |
//! | `Unavailable`, without a connection | after a [`Backoff`], or at once on another tracker | the same |
//! | `Unavailable`, after the call was sent | the same | never |
//! | `ResourceExhausted` with `retry_after` | after that delay, at the least | the same |
//! | `Internal`, if one tracker has to do the call | once on each other tracker, at once | never |
//! | any other | never | never |
//!
//! All attempts end at the call's deadline, and no attempt begins after it.

use std::time::{Duration, Instant};

use crate::backoff::{Backoff, Limits};
use crate::client::calls::Call;
use crate::tracker::TrackerError;

/// Why an attempt failed.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Failure {
    pub(super) error: TrackerError,
    /// The shortest wait before the call may succeed; `None` if the call must not be made again.
    pub(super) wait: Option<Duration>,
}

impl Failure {
    /// Returns the failure of a call. `is_sent`: whether the tracker may have received the call.
    pub(super) fn of<C: Call>(error: TrackerError, is_sent: bool) -> Self {
        let wait = match error {
            TrackerError::Unavailable(_) => (C::IS_REPEATABLE || !is_sent).then_some(Duration::ZERO),
            // The tracker has refused the call.
            TrackerError::ResourceExhausted { retry_after, .. } => retry_after,
            _ => None,
        };
        Self { error, wait }
    }
}

/// Whether a call with this error got no answer: the tracker may be dead, and may or may not have done the call.
pub(super) fn has_no_answer(error: &TrackerError) -> bool {
    matches!(error, TrackerError::Unavailable(_) | TrackerError::DeadlineExceeded(_))
}

/// The retries of one call. A retry makes the call once more on each tracker that may answer.
#[derive(Debug, Clone)]
pub(super) struct Retries {
    deadline: Instant,
    backoff: Backoff,
}

impl Retries {
    /// Returns the retries of a call that ends at `deadline`. Retries with the same seed draw the same waits.
    pub(super) fn new(deadline: Instant, backoff: Limits, seed: u64) -> Self {
        Self {
            deadline,
            backoff: Backoff::new(backoff, seed),
        }
    }

    /// Returns no retries.
    pub(super) fn none() -> Self {
        Self::new(Instant::now(), Limits::default(), 0)
    }

    /// Returns when the next retry may begin, if the last attempts failed and `wait` is the longest wait that their
    /// errors ask for. `None` if the call has failed.
    pub(super) fn next(&mut self, now: Instant, wait: Duration) -> Option<Instant> {
        let at = now.checked_add(self.backoff.next_wait().max(wait));
        at.filter(|at| *at < self.deadline)
    }
}

/// Limits the repeated attempts on one tracker to a share of all attempts, so that many callers do not flood a tracker
/// that cannot answer.
///
/// The algorithm is the retry throttling of gRPC (proposal A6): a bucket of tokens. An attempt that fails takes a
/// token, an attempt that is answered adds a tenth. While at most half of the tokens are left, there are no repeated
/// attempts.
#[derive(Debug, Clone, Copy)]
pub(super) struct RetryBudget {
    /// Tenths of a token.
    tenths: u32,
}

impl RetryBudget {
    const TOKEN: u32 = 10;
    const MOST: u32 = 10 * Self::TOKEN;

    pub(super) fn new() -> Self {
        Self { tenths: Self::MOST }
    }

    pub(super) fn answered(&mut self) {
        self.tenths = (self.tenths + 1).min(Self::MOST);
    }

    pub(super) fn failed(&mut self) {
        self.tenths = self.tenths.saturating_sub(Self::TOKEN);
    }

    pub(super) fn allows_retry(self) -> bool {
        self.tenths > Self::MOST / 2
    }
}

#[cfg(test)]
mod tests {
    use nodetracker_proto::v1;

    use super::*;

    #[test]
    fn only_calls_that_may_succeed_and_were_not_done_are_made_again() {
        let second = Duration::from_secs(1);
        let exhausted = |retry_after| TrackerError::ResourceExhausted {
            message: String::new(),
            retry_after,
        };
        let unavailable = TrackerError::Unavailable(String::new());
        let at_once = Some(Duration::ZERO);
        for (error, is_sent, repeatable, other) in [
            (unavailable.clone(), false, at_once, at_once),
            (unavailable, true, at_once, None),
            (exhausted(Some(second)), true, Some(second), Some(second)),
            (exhausted(None), true, None, None),
            (TrackerError::InvalidArgument(String::new()), true, None, None),
            (TrackerError::PermissionDenied(String::new()), true, None, None),
            (TrackerError::DeadlineExceeded(second), true, None, None),
            (TrackerError::Internal(String::new()), true, None, None),
        ] {
            let waits = [
                Failure::of::<v1::AddNodesRequest>(error.clone(), is_sent).wait,
                Failure::of::<v1::RemoveProxyRequest>(error.clone(), is_sent).wait,
            ];
            assert_eq!(waits, [repeatable, other], "{error:?}, sent: {is_sent}");
        }
    }

    #[test]
    fn no_retry_begins_at_the_deadline_or_before_the_wait_has_passed() {
        let limits = Limits {
            base: Duration::from_millis(100),
            max: Duration::from_secs(1),
        };
        let longest_wait = Duration::from_secs(3);
        let (mut retries_begun, mut waits) = (0, 0);
        for seed in 0..300 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut now = Instant::now();
            let deadline = now + Duration::from_millis(random.u64(1..10_000));
            let mut retries = Retries::new(deadline, limits, seed);
            loop {
                let wait = Duration::from_millis([0, 0, random.u64(0..3000)][random.usize(0..3)]);
                let Some(at) = retries.next(now, wait) else { break };
                retries_begun += 1;
                waits += u32::from(at > now + wait);
                assert!(at >= now + wait && at < deadline, "seed {seed}");
                // The retry takes a while.
                now = at + Duration::from_millis(random.u64(0..100));
            }
            assert!(now + longest_wait >= deadline, "seed {seed}: gave up early");
        }
        assert!(retries_begun > 300 && waits > 300, "{retries_begun} {waits}");
    }

    #[test]
    fn a_wait_that_a_tracker_asks_for_may_be_the_longest_of_the_wire() {
        let now = Instant::now();
        let limits = Limits::default();
        let mut retries = Retries::new(now + Duration::from_secs(60), limits, 1);
        assert_eq!(retries.next(now, Duration::from_secs(i64::MAX as u64)), None);
    }

    #[test]
    fn a_tracker_that_never_answers_gets_few_repeated_attempts() {
        let mut budget = RetryBudget::new();
        let mut repeated = 0;
        for _call in 0..100 {
            budget.failed();
            while budget.allows_retry() {
                repeated += 1;
                budget.failed();
            }
        }
        assert_eq!(repeated, 4);
        // A tenth of a token for each answer.
        for _ in 0..50 {
            assert!(!budget.allows_retry());
            budget.answered();
        }
        budget.answered();
        assert!(budget.allows_retry());
    }
}
