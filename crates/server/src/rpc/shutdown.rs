//! How the tracker stops taking new work: on a signal, or because an operator calls `AdminService.Drain`.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::rpc::health::Health;
use crate::rpc::session::Sessions;

/// Asks the server to stop, as `AdminService.Drain` does. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct DrainRequest {
    requested: CancellationToken,
    /// How long the server then serves calls, before it closes its port.
    pub(crate) shutdown_delay: Duration,
    /// How long the calls in flight then have.
    pub(crate) drain_limit: Duration,
}

impl DrainRequest {
    pub(crate) fn new(shutdown_delay: Duration, drain_limit: Duration) -> Self {
        Self {
            requested: CancellationToken::new(),
            shutdown_delay,
            drain_limit,
        }
    }

    /// Asks the server to stop.
    pub(crate) fn request(&self) {
        self.requested.cancel();
    }

    /// Reports whether the server was asked to stop.
    pub(crate) fn is_requested(&self) -> bool {
        self.requested.is_cancelled()
    }

    /// Waits until the server was asked to stop.
    pub(crate) async fn requested(&self) {
        self.requested.cancelled().await;
    }
}

/// The services that have to know that the tracker stops.
#[derive(Debug)]
pub(crate) struct Shutdown {
    health: Health,
    sessions: Arc<Sessions>,
}

impl Shutdown {
    pub(crate) fn new(health: Health, sessions: Arc<Sessions>) -> Self {
        Self { health, sessions }
    }

    /// Reports that every service takes calls.
    pub(crate) async fn serving(&self) {
        self.health.serving().await;
    }

    /// Notifies the clients that watch the health, and the sessions. The server serves them for `time_left` at least.
    pub(crate) async fn begin(&self, time_left: Duration) {
        self.health.stopping().await;
        self.sessions.go_away(time_left);
    }
}
