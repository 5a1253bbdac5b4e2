//! A client's figures of its trackers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::connect::addr::TrackerAddr;

/// The state of one tracker, and counts since the client was made.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TrackerStats {
    /// The tracker's address.
    pub addr: TrackerAddr,
    /// Whether the tracker is healthy, so that it gets calls. `true` before the first probe.
    pub is_healthy: bool,
    /// The time that a small call takes if nothing delays the call. `None` before the first answer to a probe.
    pub round_trip: Option<Duration>,
    /// Attempts to make a call. A call of many nodes has several messages, each with one attempt or more.
    pub attempts: u64,
    /// Attempts that got no answer.
    pub failed_attempts: u64,
    /// Probes of the tracker's health.
    pub probes: u64,
    /// Probes that got no answer.
    pub failed_probes: u64,
    /// Writes that another tracker has done and this tracker has not, because it was unhealthy or did not answer. Only
    /// with [`WriteTo::All`](crate::connect::WriteTo::All).
    pub missed_writes: u64,
}

/// The counters of [`TrackerStats`].
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) attempts: Counter,
    pub(super) failed_attempts: Counter,
    pub(super) probes: Counter,
    pub(super) failed_probes: Counter,
    pub(super) missed_writes: Counter,
}

/// A counter that guards no data, so all of its accesses are Relaxed.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add_one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
