//! How a [`TrackerClient`](crate::client::TrackerClient) makes its calls.

use std::time::Duration;

use crate::backoff::Limits;
use crate::client::health::HealthConfig;
use crate::connect::WriteTo;
use crate::connect::channel::ConnectConfig;

/// How a [`TrackerClient`](crate::client::TrackerClient) makes its calls.
///
/// ```
/// use std::time::Duration;
///
/// use nodetracker_client::client::ClientConfig;
///
/// let config = ClientConfig {
///     deadline: Duration::from_secs(2),
///     ..ClientConfig::default()
/// };
/// assert!(config.attempt_timeout < config.deadline);
/// ```
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// How to connect.
    pub connect: ConnectConfig,
    /// Which trackers get the writes.
    pub write_to: WriteTo,
    /// The ID of this proxy, which its complaints about other proxies name: see
    /// [`NodeTracker::report_unreachable`](crate::tracker::NodeTracker::report_unreachable). May be empty.
    pub reporter_id: String,
    /// The longest time of a call of [`NodeTracker`](crate::tracker::NodeTracker), with all its messages, attempts and
    /// waits.
    pub deadline: Duration,
    /// The longest time of one attempt on one tracker. A tracker that stops answering delays a call by this time, until
    /// [`HealthConfig::unhealthy_after`] is reached.
    pub attempt_timeout: Duration,
    /// The waits before an attempt on a tracker that the call has already tried.
    pub backoff: Limits,
    /// When trackers count as unhealthy.
    pub health: HealthConfig,
}

impl Default for ClientConfig {
    /// Writes go to all trackers, and complaints name no reporter. A call has 5 s, an attempt 1 s, and waits are from
    /// 50 ms to 1 s.
    fn default() -> Self {
        Self {
            connect: ConnectConfig::default(),
            write_to: WriteTo::default(),
            reporter_id: String::new(),
            deadline: Duration::from_secs(5),
            attempt_timeout: Duration::from_secs(1),
            backoff: Limits {
                base: Duration::from_millis(50),
                max: Duration::from_secs(1),
            },
            health: HealthConfig::default(),
        }
    }
}
