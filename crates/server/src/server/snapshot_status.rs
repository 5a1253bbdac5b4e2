//! How the writing of snapshots goes, for the metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Figures of the snapshots since the start of the server. All operations are Relaxed: the figures guard no data.
#[derive(Debug, Default)]
pub(crate) struct SnapshotStatus {
    restored_routes: AtomicU64,
    /// In milliseconds since 1970. Zero if no snapshot was written.
    last_success: AtomicU64,
    bytes: AtomicU64,
    duration_micros: AtomicU64,
    successes: AtomicU64,
    failures: AtomicU64,
}

#[cfg_attr(not(test), expect(dead_code, reason = "the server writes no snapshots yet"))]
impl SnapshotStatus {
    /// Notes that a snapshot was loaded.
    pub(super) fn restored(&self, routes: u64) {
        self.restored_routes.store(routes, Ordering::Relaxed);
    }

    /// Notes that a snapshot of `bytes` was written.
    pub(super) fn succeeded(&self, bytes: u64, took: Duration) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_success.store(now.as_millis() as u64, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
        self.duration_micros.store(took.as_micros() as u64, Ordering::Relaxed);
        self.successes.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that a snapshot could not be written.
    pub(super) fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }
}

impl SnapshotStatus {
    /// Returns the number of routes that were restored at the start.
    pub(crate) fn restored_routes(&self) -> u64 {
        self.restored_routes.load(Ordering::Relaxed)
    }

    /// Returns when the last snapshot was written. `None` if no snapshot was written.
    pub(crate) fn last_success(&self) -> Option<SystemTime> {
        let millis = self.last_success.load(Ordering::Relaxed);
        (millis > 0).then(|| UNIX_EPOCH + Duration::from_millis(millis))
    }

    /// Returns the size of the last snapshot.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Returns how long the writing of the last snapshot took.
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
}
