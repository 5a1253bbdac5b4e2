//! How a proxy's session is set up.

use std::num::NonZeroU64;
use std::time::{SystemTime, UNIX_EPOCH};

use nodetracker::{Proxy, ProxyDetails};

use crate::connect::addr::TrackerAddr;
use crate::connect::channel::ConnectConfig;
use crate::connect::{NoTls, WriteTo};
use crate::session::machine::Identity;
use crate::session::times::SessionTimes;

/// Incarnations are below this bound.
const MAX_INCARNATION: u64 = 1 << 63;

/// The maximum of nodes, unless another maximum is set.
const MAX_NODES: usize = 1 << 20;

/// How a [`ProxySession`](crate::session::ProxySession) is set up.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SessionConfig {
    /// The proxy. If a text is invalid, a tracker refuses the session each time that it connects.
    pub proxy: ProxyDetails,
    /// A number that grows with each start of the proxy, from 1 to 2^63 - 1. By default, the time in milliseconds.
    ///
    /// The trackers drop the routes of lesser incarnations at once, and refuse their sessions. So if the clock was set
    /// back since the last start, a session with the default is
    /// [superseded](crate::session::ProxySession::superseded) by the earlier start. Its embedder decides what follows.
    /// If no other process can be this proxy, the embedder begins a session with
    /// [`latest_incarnation`](crate::session::machine::Superseded::latest_incarnation) plus one. Trackers forget an
    /// incarnation a keep-alive interval after its end. An embedder with a stored counter does not depend on the clock.
    pub incarnation: u64,
    /// The trackers, at least one.
    pub trackers: Vec<TrackerAddr>,
    /// To which of the trackers the session reports the nodes.
    pub write_to: WriteTo,
    /// How to connect. A half-open connection is noticed after the sum of the two keep-alive times.
    pub connect: ConnectConfig,
    /// The most nodes, 1,048,576 by default. Each tracker has its own count: nodes that are up, and nodes that went
    /// down and that the tracker may still have.
    pub max_nodes: usize,
    /// The waits and the paces.
    pub times: SessionTimes,
}

/// Why a session cannot begin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionConfigError {
    /// No tracker is named.
    #[error("trackers is empty: name at least one tracker")]
    NoTracker,
    /// The incarnation is out of range.
    #[error("incarnation is {0}: it must be from 1 to 2^63 - 1")]
    Incarnation(u64),
    /// An address asks for TLS, and the configuration names no authority to trust.
    #[error(transparent)]
    NoTls(#[from] NoTls),
}

impl SessionConfig {
    /// Reports the nodes of a proxy to trackers, with the defaults for everything else.
    #[must_use]
    pub fn new(proxy: Proxy<'_>, trackers: Vec<TrackerAddr>) -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            proxy: proxy.into(),
            incarnation: u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX),
            trackers,
            write_to: WriteTo::default(),
            connect: ConnectConfig::default(),
            max_nodes: MAX_NODES,
            times: SessionTimes::default(),
        }
    }

    pub(super) fn identity(&self) -> Result<Identity, SessionConfigError> {
        let incarnation = NonZeroU64::new(self.incarnation).filter(|number| number.get() < MAX_INCARNATION);
        Ok(Identity {
            proxy: self.proxy.clone(),
            incarnation: incarnation.ok_or(SessionConfigError::Incarnation(self.incarnation))?,
        })
    }

    /// Returns the trackers of each machine: a machine for each tracker, or one machine for all trackers.
    pub(super) fn groups(&self) -> Result<Vec<Vec<TrackerAddr>>, SessionConfigError> {
        self.connect.check(&self.trackers)?;
        match (self.trackers.is_empty(), self.write_to) {
            (true, _) => Err(SessionConfigError::NoTracker),
            (false, WriteTo::All) => Ok(self.trackers.iter().map(|tracker| vec![tracker.clone()]).collect()),
            (false, WriteTo::One) => Ok(vec![self.trackers.clone()]),
        }
    }
}
