//! Idle connections end when new connections have to wait for a slot.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::watch;

/// How many of the connections that were asked still have to end.
#[derive(Debug)]
pub(crate) struct EvictionBudget(AtomicUsize);

impl EvictionBudget {
    /// Returns a budget for the end of `connections` connections.
    pub(crate) fn new(connections: usize) -> Arc<Self> {
        Arc::new(Self(AtomicUsize::new(connections)))
    }

    /// Reports whether one more idle connection has to end. Returns `true` once for each connection of the budget.
    pub(crate) fn take_one(&self) -> bool {
        // Relaxed: the number guards no data.
        let take = |left: usize| left.checked_sub(1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

/// Asks the idle connections of one client to make room.
#[derive(Debug, Default)]
pub(crate) struct IdleConnections(watch::Sender<Option<Arc<EvictionBudget>>>);

impl IdleConnections {
    /// Asks idle connections to end, as many as the budget allows. Connections that are not idle ignore the request.
    pub(crate) fn ask(&self, evictions: &Arc<EvictionBudget>) {
        self.0.send_replace(Some(Arc::clone(evictions)));
    }

    /// Returns a receiver that changes when the connections are asked.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Option<Arc<EvictionBudget>>> {
        self.0.subscribe()
    }
}
