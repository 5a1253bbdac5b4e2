//! How many tunnels are in which state, and what has happened so far.

use std::collections::BTreeMap;

use crate::pool::config::Target;

/// The tunnels of each cluster, by state.
pub type Counts = BTreeMap<String, StateCounts>;

/// Why the last attempt of a target failed: the error of the transport, or the proxy's reason to refuse the agent. A
/// target whose last attempt was successful is left out.
pub type LastErrors = BTreeMap<Target, String>;

/// How many tunnels are in each state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StateCounts {
    /// The first tunnel to a target, while it is dialled.
    pub connecting: usize,
    /// Tunnels that are dialled to find another proxy, because the target has other tunnels.
    pub discovering: usize,
    /// Tunnels that were `connecting`, and have a proxy.
    pub connected: usize,
    /// Tunnels that were `discovering`, and have a proxy of their own.
    pub discovered: usize,
    /// Leases that wait for the next attempt, and tunnels that leave and wait for the end of their streams.
    pub disconnected: usize,
}

impl StateCounts {
    /// The sum of all states.
    #[must_use]
    pub fn total(&self) -> usize {
        self.connecting + self.discovering + self.ready() + self.disconnected
    }

    /// Tunnels that have a proxy.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.connected + self.discovered
    }
}

/// What has happened since a pool was created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct PoolStats {
    /// Attempts to open a tunnel.
    pub attempts: u64,
    /// Attempts that ended before a proxy's welcome. Refusals count.
    pub failures: u64,
    /// Attempts that reached a proxy to which the pool already had a tunnel.
    pub duplicates: u64,
    /// Tunnels that were not wanted any more when the welcome came.
    pub surplus: u64,
    /// Tunnels with a proxy that have ended without a goodbye of this pool.
    pub lost: u64,
    /// Lost tunnels whose keep-alive had no answer.
    pub broken: u64,
    /// Reconnect signals.
    pub reconnects: u64,
    /// Tunnels that were closed before their streams had ended, because `close_timeout` had passed.
    pub cut: u64,
    /// Entries of lists that were ignored: bad IDs, and more proxies than a pool remembers.
    pub ignored_proxies: u64,
}

/// The counts and the statistics of a pool at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct PoolStatus {
    /// The tunnels of each cluster, by state.
    pub counts: Counts,
    /// What has happened.
    pub stats: PoolStats,
    /// Why the last attempts failed.
    pub last_errors: LastErrors,
}
