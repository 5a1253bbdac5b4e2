//! The results of the snapshots, for `Stats` and for metrics.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Figures of the snapshots since the start of the tracker. All operations are Relaxed: each figure stands
/// alone.
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
    /// Returns the number of routes that were restored at the start.
    pub(crate) fn restored_routes(&self) -> u64 {
        self.restored_routes.load(Ordering::Relaxed)
    }

    /// Returns when the last snapshot was complete on the disk. `None` if no snapshot was written.
    pub(crate) fn last_success(&self) -> Option<SystemTime> {
        let millis = self.last_success.load(Ordering::Relaxed);
        (millis > 0).then(|| UNIX_EPOCH + Duration::from_millis(millis))
    }

    /// Returns the size in bytes of the last snapshot that was written.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Returns how long the last snapshot took.
    pub(crate) fn duration(&self) -> Duration {
        Duration::from_micros(self.duration_micros.load(Ordering::Relaxed))
    }

    /// Returns the number of snapshots that were written.
    pub(crate) fn successes(&self) -> u64 {
        self.successes.load(Ordering::Relaxed)
    }

    /// Returns the number of snapshots that could not be written.
    pub(crate) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Reports whether the last attempt to write a snapshot failed.
    pub(crate) fn is_failing(&self) -> bool {
        self.is_failing.load(Ordering::Relaxed)
    }

    pub(crate) fn restored(&self, routes: u64) {
        self.restored_routes.store(routes, Ordering::Relaxed);
    }

    /// Records a snapshot. Reports whether the attempt before had failed.
    pub(crate) fn succeeded(&self, bytes: u64, took: Duration) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_success.store(now.as_millis() as u64, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
        self.duration_micros.store(took.as_micros() as u64, Ordering::Relaxed);
        self.successes.fetch_add(1, Ordering::Relaxed);
        self.is_failing.swap(false, Ordering::Relaxed)
    }

    /// Records a failure. Reports whether the attempt before had failed, too.
    pub(crate) fn failed(&self) -> bool {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.is_failing.swap(true, Ordering::Relaxed)
    }
}
