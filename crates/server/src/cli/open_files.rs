//! The limit on open files.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

use crate::limits::MAX_WAITING;

/// Files that the server opens besides connections: connections that wait, sockets, the workers' event queues, logs.
const OTHER_FILES: u64 = MAX_WAITING as u64 + 64;

/// Raises the soft limit to the hard limit. Logs if the hard limit is too low for this many connections.
///
/// Shells and service managers set low soft limits for the sake of programs that use `select`.
pub(super) fn raise_limit(connections: u32) {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    // `None` is no limit.
    if let Some(files) = current
        && files < u64::from(connections) + OTHER_FILES
    {
        warn!("{files} files may be open, so fewer than {connections} connections: raise the limit (ulimit -Hn)");
    }
}
