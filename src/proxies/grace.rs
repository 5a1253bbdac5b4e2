//! Grace periods by number.

use std::sync::Arc;

use crate::sync::{AtomicU64, Guard, Ordering, after_grace};

/// Tells when everyone who was pinned at a given moment has gone on.
#[derive(Debug, Default)]
pub(crate) struct Grace {
    begun: AtomicU64,
    /// The latest period that is over. Whoever was pinned at the beginning of an earlier one was pinned, or gone, at the
    /// beginning of this one, so earlier ones are over too.
    over: Arc<AtomicU64>,
}

impl Grace {
    /// Begins a period now, and returns its number.
    pub(crate) fn begin(&self, guard: &Guard) -> u64 {
        // Relaxed: only a number; the epoch orders what matters.
        let period = self.begun.fetch_add(1, Ordering::Relaxed) + 1;
        let over = Arc::clone(&self.over);
        // Release: pairs with `is_over`: what pinned threads did before they went on is seen by whoever acts on it.
        after_grace(guard, move || _ = over.fetch_max(period, Ordering::Release));
        // The sweeper asks soon; without this the period could wait for a bag of garbage to fill up.
        guard.flush();
        period
    }

    pub(crate) fn is_over(&self, period: u64) -> bool {
        // Acquire: pairs with `begin`.
        self.over.load(Ordering::Acquire) >= period
    }
}
