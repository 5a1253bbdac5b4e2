//! The waits and the paces of a session.

use std::time::Duration;

use crate::backoff;
use crate::clock::bounded;

/// The waits and the paces of a session. The tracker dictates the heartbeat interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionTimes {
    /// For how long changes are collected before they are sent.
    pub batch_delay: Duration,
    /// If a tracker has lost its routes, each proxy announces its nodes again after a random part of this time.
    pub announce_jitter: Duration,
    /// The most nodes that are announced in a second; at least 1.
    pub announced_per_second: u32,
    /// The stream to a tracker ends if requests wait, and no answer comes for this time.
    pub answer_timeout: Duration,
    /// The waits before the next attempt to begin a session.
    pub reconnect: backoff::Limits,
    /// The waits after a tracker had no room for a node.
    pub refused: backoff::Limits,
}

impl Default for SessionTimes {
    /// Changes are collected for 10 ms. Announcements begin within 1 s, and have 50,000 nodes a second. Answers take up
    /// to 20 s. Waits before an attempt to connect are up to 100 ms at first, and up to 30 s later. Waits after refused
    /// announcements are up to 1 s at first, and up to 60 s later.
    fn default() -> Self {
        Self {
            batch_delay: Duration::from_millis(10),
            announce_jitter: Duration::from_secs(1),
            announced_per_second: 50_000,
            answer_timeout: Duration::from_secs(20),
            reconnect: backoff::Limits::default(),
            refused: backoff::Limits {
                base: Duration::from_secs(1),
                max: Duration::from_secs(60),
            },
        }
    }
}

impl SessionTimes {
    /// Returns the same times, none of them too long to add to a moment.
    pub(super) fn bounded(self) -> Self {
        Self {
            batch_delay: bounded(self.batch_delay),
            announce_jitter: bounded(self.announce_jitter),
            answer_timeout: bounded(self.answer_timeout),
            ..self
        }
    }
}
