//! The figures that `AdminService.Stats` and the metrics report.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nodetracker::RouteTable;

use crate::limits::Limits;
use crate::memory::MemoryBudget;
use crate::quota::Shares;
use crate::rpc::complaints::Complaints;
use crate::rpc::session::Sessions;
use crate::rpc::watch::Watches;
use crate::snapshot_status::SnapshotStatus;

/// The parts of a tracker that have figures.
#[derive(Debug)]
pub(crate) struct Statistics {
    pub(crate) table: Arc<RouteTable>,
    pub(crate) watches: Arc<Watches>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) complaints: Arc<Complaints>,
    /// Has the counters of refusals, too.
    pub(crate) memory: Arc<MemoryBudget>,
    /// `None` if the tracker writes no snapshots.
    pub(crate) snapshots: Option<Arc<SnapshotStatus>>,
    pub(super) limits: Limits,
    /// The limits of a client.
    pub(super) shares: Shares,
    started: Instant,
}

impl Statistics {
    /// Returns the statistics of a tracker that starts now.
    pub(crate) fn new(
        table: Arc<RouteTable>,
        watches: Arc<Watches>,
        sessions: Arc<Sessions>,
        complaints: Arc<Complaints>,
        memory: Arc<MemoryBudget>,
        snapshots: Option<Arc<SnapshotStatus>>,
        limits: &Limits,
    ) -> Self {
        Self {
            table,
            watches,
            sessions,
            complaints,
            memory,
            snapshots,
            limits: limits.clone(),
            shares: Shares::new(limits),
            started: Instant::now(),
        }
    }

    /// Returns how long the tracker has been running.
    pub(crate) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }
}
