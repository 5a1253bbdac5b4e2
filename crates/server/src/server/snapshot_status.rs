//! How the writing of snapshots goes, for the metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The last snapshot that was written, and the failures so far. All operations are Relaxed: the figures guard no data.
#[derive(Debug, Default)]
pub(crate) struct SnapshotStatus {
    /// In milliseconds since 1970. Zero if no snapshot was written.
    last_success: AtomicU64,
    bytes: AtomicU64,
    failures: AtomicU64,
}

impl SnapshotStatus {
    /// Notes that a snapshot of `bytes` was written.
    #[cfg_attr(not(test), expect(dead_code, reason = "the server writes no snapshots yet"))]
    pub(crate) fn succeeded(&self, at: SystemTime, bytes: u64) {
        let millis = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        self.last_success.store(millis as u64, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// Notes that a snapshot could not be written.
    #[cfg_attr(not(test), expect(dead_code, reason = "the server writes no snapshots yet"))]
    pub(crate) fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns when the last snapshot was written, as the time since 1970. Zero if no snapshot was written.
    pub(crate) fn last_success(&self) -> Duration {
        Duration::from_millis(self.last_success.load(Ordering::Relaxed))
    }

    /// Returns the size of the last snapshot.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Returns how often a snapshot could not be written.
    pub(crate) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
}
