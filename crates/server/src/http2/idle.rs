//! Idle connections end when there are so many connections that new clients have to wait.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::watch;

/// Asks idle connections to make room.
#[derive(Debug, Default)]
pub(crate) struct IdleConnections {
    /// How many connections still have to end.
    wanted: AtomicUsize,
    /// How often the connections were asked.
    asked: watch::Sender<u64>,
}

impl IdleConnections {
    /// Asks up to `connections` idle connections to end. Connections that are not idle ignore the request.
    pub(crate) fn make_room(&self, connections: usize) {
        // Relaxed, as in `take_part`: the number guards no data.
        self.wanted.store(connections, Ordering::Relaxed);
        self.asked.send_modify(|asked| *asked += 1);
    }

    /// Returns a receiver that changes when the connections are asked.
    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.asked.subscribe()
    }

    /// Reports whether an idle connection has to end. Returns `true` at most as often as [`make_room`](Self::make_room)
    /// asked for.
    pub(super) fn take_part(&self) -> bool {
        let take = |wanted: usize| wanted.checked_sub(1);
        self.wanted
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .is_ok()
    }
}
