//! The waits and the paces of a session.

use std::time::Duration;

use crate::backoff;

/// The waits and the paces of a session. The tracker dictates the heartbeat interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timing {
    /// For how long changes are collected before they are sent.
    pub batch_delay: Duration,
    /// If a tracker has lost its routes, each proxy announces its nodes again after a random part of this time.
    pub announce_jitter: Duration,
    /// The most nodes that are announced in a second; at least 1.
    pub announced_per_second: u32,
    /// A tracker that answers nothing for so long, although requests wait, is given up.
    pub answer_timeout: Duration,
    /// The waits before the next attempt to begin a session.
    pub reconnect: backoff::Limits,
    /// The waits after a tracker had no room for a node.
    pub refused: backoff::Limits,
}

impl Default for Timing {
    /// Changes are collected for 10 ms; announcements begin within 1 s, and have 50,000 nodes a second; answers take up to
    /// 20 s; attempts to connect follow after up to 100 ms to 30 s, refused announcements after up to 1 s to 60 s.
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
