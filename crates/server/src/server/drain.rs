//! How a server stops: new connections are refused, calls in flight finish, and the rest is cut at the deadline.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tracing::{info, warn};

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Drained {
    /// Every call in flight was finished.
    Completely,
    /// Some connections were still open at the deadline, and were cut.
    Cut {
        /// The number of connections that were cut.
        connections: usize,
    },
}

impl Drained {
    /// Logs how the server ended.
    pub(super) fn log(self) {
        match self {
            Drained::Completely => info!("stopped"),
            Drained::Cut { connections } => warn!(connections, "stopped: some connections were cut"),
        }
    }
}

/// Asks every connection to drain, and waits for their ends up to `deadline`.
///
/// Each open connection holds one of the `max_connections` permits of `slots`.
pub(super) async fn drain(
    slots: &Arc<Semaphore>,
    max_connections: u32,
    deadline: Duration,
    draining: &watch::Sender<bool>,
) -> Drained {
    let open = || max_connections as usize - slots.available_permits();
    let connections = open();
    info!(
        connections,
        "stopping: calls in flight have up to {deadline:?} to finish"
    );
    draining.send_replace(true);
    match timeout(deadline, slots.acquire_many(max_connections)).await {
        Ok(_) => Drained::Completely,
        Err(_) => Drained::Cut { connections: open() },
    }
}
