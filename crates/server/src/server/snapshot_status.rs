//! What became of the snapshots, for `Stats` and for metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nodetracker_proto::v1;

use crate::convert::encode;
use crate::rpc::admin::SnapshotFigures;

/// Figures of the snapshots since the start of the tracker. All are zero without a `data_dir`. All operations are
/// Relaxed: each figure stands alone.
#[derive(Debug, Default)]
pub(crate) struct SnapshotStatus {
    restored_routes: AtomicU64,
    /// Milliseconds since the Unix epoch, or 0.
    last_success: AtomicU64,
    bytes: AtomicU64,
    duration_micros: AtomicU64,
    successes: AtomicU64,
    failures: AtomicU64,
    is_failing: AtomicBool,
}

impl SnapshotStatus {
    /// The routes that were restored at the start.
    pub(crate) fn restored_routes(&self) -> u64 {
        self.restored_routes.load(Ordering::Relaxed)
    }

    /// The time at which the last snapshot was complete on the disk; `None` if there was none.
    pub(crate) fn last_success(&self) -> Option<SystemTime> {
        let millis = self.last_success.load(Ordering::Relaxed);
        (millis > 0).then(|| UNIX_EPOCH + Duration::from_millis(millis))
    }

    /// The length of the last snapshot that was written.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// How long the last snapshot took.
    pub(crate) fn duration(&self) -> Duration {
        Duration::from_micros(self.duration_micros.load(Ordering::Relaxed))
    }

    /// The number of snapshots that were written.
    pub(crate) fn successes(&self) -> u64 {
        self.successes.load(Ordering::Relaxed)
    }

    /// The number of snapshots that could not be written.
    pub(crate) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Whether the last attempt to write a snapshot failed.
    pub(crate) fn is_failing(&self) -> bool {
        self.is_failing.load(Ordering::Relaxed)
    }

    /// Returns a function that reads the figures, for `Stats`.
    pub(super) fn figures(self: &Arc<Self>) -> SnapshotFigures {
        let status = Arc::clone(self);
        SnapshotFigures(Box::new(move || v1::SnapshotStats {
            last_time: status.last_success().map(encode::time),
            last_bytes: status.bytes(),
            last_duration: Some(encode::duration(status.duration())),
            success_count: status.successes(),
            failure_count: status.failures(),
            failing: status.is_failing(),
            restored_route_count: status.restored_routes(),
        }))
    }

    pub(super) fn restored(&self, routes: u64) {
        self.restored_routes.store(routes, Ordering::Relaxed);
    }

    /// Records a snapshot. Returns whether the one before had failed.
    pub(super) fn succeeded(&self, bytes: u64, took: Duration) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_success.store(now.as_millis() as u64, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
        self.duration_micros.store(took.as_micros() as u64, Ordering::Relaxed);
        self.successes.fetch_add(1, Ordering::Relaxed);
        self.is_failing.swap(false, Ordering::Relaxed)
    }

    /// Records a failure. Returns whether the attempt before had failed, too.
    pub(super) fn failed(&self) -> bool {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.is_failing.swap(true, Ordering::Relaxed)
    }
}
