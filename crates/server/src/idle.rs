//! Idle connections end when new connections have to wait for a slot. If none is idle, connections of the client with
//! the most connections drain.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::watch;

/// How many of the connections that were asked still have to end.
#[derive(Debug)]
pub(crate) struct EvictionBudget {
    left: AtomicUsize,
    /// Whether connections with calls in flight end, too.
    includes_busy: bool,
}

impl EvictionBudget {
    /// Returns a budget for the end of `connections` idle connections.
    pub(crate) fn new(connections: usize) -> Arc<Self> {
        Arc::new(Self {
            left: AtomicUsize::new(connections),
            includes_busy: false,
        })
    }

    /// Returns a budget for the end of `connections` connections, idle or not.
    pub(crate) fn with_busy(connections: usize) -> Arc<Self> {
        Arc::new(Self {
            left: AtomicUsize::new(connections),
            includes_busy: true,
        })
    }

    /// Reports whether one more connection has to end. Returns `true` once for each connection of the budget.
    pub(crate) fn take_one(&self, is_idle: bool) -> bool {
        // Relaxed: the number guards no data.
        let take = |left: usize| left.checked_sub(1);
        (is_idle || self.includes_busy)
            && self
                .left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
                .is_ok()
    }
}

/// Asks the connections of one client to make room, the idle connections first.
#[derive(Debug, Default)]
pub(crate) struct IdleConnections(watch::Sender<Option<Arc<EvictionBudget>>>);

impl IdleConnections {
    /// Asks connections to end, as many as the budget allows. Connections that the budget does not include ignore the
    /// request.
    pub(crate) fn ask(&self, evictions: &Arc<EvictionBudget>) {
        self.0.send_replace(Some(Arc::clone(evictions)));
    }

    /// Returns a receiver that changes when the connections are asked.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Option<Arc<EvictionBudget>>> {
        self.0.subscribe()
    }
}
