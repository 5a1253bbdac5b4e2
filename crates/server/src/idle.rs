//! Idle connections end when there are so many connections that new clients have to wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::watch;

/// How many of the connections that were asked still have to end.
#[derive(Debug)]
pub(crate) struct WantedEnds(AtomicUsize);

impl WantedEnds {
    /// Wants so many connections to end.
    pub(crate) fn new(connections: usize) -> Arc<Self> {
        Arc::new(Self(AtomicUsize::new(connections)))
    }

    /// Reports whether an idle connection has to end. Returns `true` at most as often as ends are wanted.
    pub(crate) fn take_one(&self) -> bool {
        // Relaxed: the number guards no data.
        let take = |wanted: usize| wanted.checked_sub(1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

/// Asks the idle connections of one client to make room.
#[derive(Debug, Default)]
pub(crate) struct IdleConnections(watch::Sender<Option<Arc<WantedEnds>>>);

impl IdleConnections {
    /// Asks idle connections to end while ends are wanted. Connections that are not idle ignore the request.
    pub(crate) fn ask(&self, wanted: &Arc<WantedEnds>) {
        self.0.send_replace(Some(Arc::clone(wanted)));
    }

    /// Returns a receiver that changes when the connections are asked.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Option<Arc<WantedEnds>>> {
        self.0.subscribe()
    }
}
