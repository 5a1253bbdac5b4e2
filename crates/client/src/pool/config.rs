//! The configuration of a pool, and its targets.

use std::time::Duration;

use nodetracker::NodeId;

use crate::backoff::Limits;
use crate::control::keep_alive::KeepAliveTimes;

/// The address of a load balancer, and the cluster whose proxies are behind it.
///
/// A pool counts the tunnels of each target apart. So a pool may have two tunnels to one proxy if two targets are
/// addresses of the same proxies.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// The cluster. May be empty, at most 255 bytes. No tunnel to a target with a longer name succeeds.
    pub cluster: String,
    /// The address, in the form that the transport takes.
    pub addr: String,
}

impl Target {
    /// Creates a target.
    #[must_use]
    pub fn new(cluster: impl Into<String>, addr: impl Into<String>) -> Self {
        Self {
            cluster: cluster.into(),
            addr: addr.into(),
        }
    }
}

/// The configuration of a pool.
#[derive(Debug, Clone)]
pub struct PoolConfig {
    /// The node on which the agent runs.
    pub node: NodeId,
    /// The version of the agent's program, for the proxies' operators. Cut after 255 bytes.
    pub agent_version: String,
    /// How many different proxies to have tunnels to, for each target. 0 means all proxies.
    pub connection_count: usize,
    /// How many leases a target may have at a time: tunnels that are not claimed yet. At least 1.
    pub max_leases: usize,
    /// The waits between attempts. After a tunnel that has lasted for `backoff.max`, the waits begin again with
    /// `backoff.base`.
    pub backoff: Limits,
    /// Many agents learn of a proxy, or lose a proxy, at the same moment. Each agent waits for a random part of this
    /// time, of at most an hour, before it dials.
    pub spread: Duration,
    /// The longest time from the beginning of an attempt to the proxy's welcome.
    pub connect_timeout: Duration,
    /// When a silent proxy is pinged, and when its tunnel is broken.
    pub keep_alive: KeepAliveTimes,
    /// How long the streams of a tunnel that is replaced or removed may last.
    pub close_timeout: Duration,
}

impl PoolConfig {
    /// The defaults: one tunnel; two leases; waits from 100 ms to 30 s; a spread of 2 s. 10 s to connect; a ping after
    /// 10 s, and 5 s for the answer; 60 s to close.
    #[must_use]
    pub fn new(node: NodeId) -> Self {
        Self {
            node,
            agent_version: String::new(),
            connection_count: 1,
            max_leases: 2,
            backoff: Limits::default(),
            spread: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(10),
            keep_alive: KeepAliveTimes::default(),
            close_timeout: Duration::from_secs(60),
        }
    }
}
