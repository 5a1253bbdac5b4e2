//! Whether the latest call has had no answer. Then a look-up with an older answer need not wait for a call.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::tracker::TrackerError;

/// For this time after a call without an answer, look-ups with an older answer do not wait.
const PAUSE: Duration = Duration::from_secs(1);

/// For this time after a call without an answer, look-ups with an older answer do not wait while another look-up tries
/// the trackers again. A call may take some seconds. If nobody has asked for longer, the trackers may be back.
const KNOWN_FOR: Duration = Duration::from_secs(10);

/// The latest call without an answer, until a call has an answer.
#[derive(Debug, Default)]
pub(super) struct Outage(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// When a call last had an answer.
    answered: Option<Instant>,
    /// The latest call without an answer, if no call has had an answer since this call began.
    latest: Option<Latest>,
}

#[derive(Debug)]
struct Latest {
    failed: Instant,
    /// Whether a look-up has begun to try the trackers again.
    has_trial: bool,
}

impl Outage {
    /// Records the end of a call that began at `asked`. A call that began before another call had its answer, and ends
    /// later without an answer, is no sign of an outage.
    pub(super) fn ended(&self, asked: Instant, now: Instant, error: Option<&TrackerError>) {
        let is_silent = matches!(
            error,
            Some(TrackerError::Unavailable(_) | TrackerError::DeadlineExceeded(_))
        );
        let mut state = self.0.lock();
        if !is_silent {
            *state = State {
                answered: Some(now),
                latest: None,
            };
        } else if state.answered.is_none_or(|answered| answered <= asked) {
            state.latest = Some(Latest {
                failed: now,
                has_trial: false,
            });
        }
    }

    /// Whether the trackers were silent a moment ago.
    pub(super) fn may_be(&self, now: Instant) -> bool {
        let state = self.0.lock();
        state
            .latest
            .as_ref()
            .is_some_and(|latest| now.duration_since(latest.failed) < KNOWN_FOR)
    }

    /// Returns `true` to the look-up that has to try the trackers again, and to all look-ups if the outage is over.
    pub(super) fn begins_trial(&self, now: Instant) -> bool {
        let mut state = self.0.lock();
        let Some(latest) = &mut state.latest else { return true };
        let is_due = now.duration_since(latest.failed) >= PAUSE;
        is_due && !std::mem::replace(&mut latest.has_trial, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_failure_of_an_earlier_call_is_no_outage() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let silent = TrackerError::DeadlineExceeded(Duration::from_secs(2));
        let outage = Outage::default();
        outage.ended(at(0), at(2), None);
        outage.ended(at(1), at(3), Some(&silent));
        assert!(!outage.may_be(at(3)));
        outage.ended(at(3), at(4), Some(&silent));
        assert!(outage.may_be(at(4)));
    }
}
