//! The limit on open files.

use std::thread;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

use crate::limits::{MAX_DIAG_CONNECTIONS, MAX_WAITING};

/// Files that the server opens besides connections: connections that wait, connections of the diagnostics port,
/// sockets, snapshots, certificates, and the log.
const OTHER_FILES: u64 = (MAX_WAITING + MAX_DIAG_CONNECTIONS) as u64 + 64;

/// The most files of a worker: its event queue, and the files that wake the worker.
const FILES_OF_WORKER: u64 = 4;

/// Raises the soft limit to the hard limit. Returns how many of `connections` may be open at one time, and logs if
/// these are fewer. Otherwise connections would take every file, and probes, snapshots and the reload of certificates
/// would fail.
///
/// Shells and service managers set low soft limits for the sake of programs that use `select`.
pub(super) fn raise_limit(connections: u32) -> u32 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    let workers = thread::available_parallelism().map_or(1, usize::from);
    // `None` is no limit.
    let most = current.map_or(connections, |files| fitting(connections, files, workers));
    if most < connections {
        let files = current.unwrap_or_default();
        warn!(
            "{files} files may be open, so at most {most} connections, not {connections}: raise the limit (ulimit -Hn)"
        );
    }
    most
}

/// Returns how many connections leave room for the other files. If there is hardly room for these, half of all files.
fn fitting(connections: u32, files: u64, workers: usize) -> u32 {
    let other = OTHER_FILES + FILES_OF_WORKER * workers as u64;
    let most = files.saturating_sub(other).max(files / 2).max(1);
    u32::try_from(most).unwrap_or(u32::MAX).min(connections)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_room_for_other_files() {
        assert_eq!(fitting(10_000, 1 << 20, 2), 10_000);
        let most = fitting(100_000, 65_536, 2);
        assert!((65_000..65_536 - 200).contains(&most), "{most}");
        assert!(fitting(100_000, 65_536, 64) < most);
        assert_eq!([48, 1, 0].map(|files| fitting(10_000, files, 2)), [24, 1, 1]);
        assert_eq!(fitting(u32::MAX, u64::MAX, 2), u32::MAX);
    }
}
