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
pub(super) struct Outage(Mutex<Option<Latest>>);

#[derive(Debug)]
struct Latest {
    failed: Instant,
    /// Whether a look-up has begun to try the trackers again.
    has_trial: bool,
}

impl Outage {
    /// Records the end of a call.
    pub(super) fn ended(&self, now: Instant, error: Option<&TrackerError>) {
        let is_silent = matches!(
            error,
            Some(TrackerError::Unavailable(_) | TrackerError::DeadlineExceeded(_))
        );
        *self.0.lock() = is_silent.then_some(Latest {
            failed: now,
            has_trial: false,
        });
    }

    /// Whether the trackers were silent a moment ago.
    pub(super) fn may_be(&self, now: Instant) -> bool {
        let latest = self.0.lock();
        latest
            .as_ref()
            .is_some_and(|latest| now.duration_since(latest.failed) < KNOWN_FOR)
    }

    /// Returns `true` to the look-up that has to try the trackers again, and to all look-ups if the outage is over.
    pub(super) fn begins_trial(&self, now: Instant) -> bool {
        let mut latest = self.0.lock();
        let Some(latest) = &mut *latest else { return true };
        let is_due = now.duration_since(latest.failed) >= PAUSE;
        is_due && !std::mem::replace(&mut latest.has_trial, true)
    }
}
