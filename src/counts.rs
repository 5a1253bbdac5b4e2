//! How many routes the table holds, and how many it may.

use crate::sync::{AtomicUsize, Ordering};

/// The table's routes, counted from their insertion until they are swept or removed, and their limit.
#[derive(Debug)]
pub(crate) struct RouteCount {
    count: AtomicUsize,
    limit: usize,
}

impl RouteCount {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            count: AtomicUsize::new(0),
            limit,
        }
    }

    /// Makes room for `more` routes; `false`, and nothing reserved, where that would be over the limit.
    ///
    /// It adds first and looks then, so threads that arrive together at the last place may all be refused, but never
    /// let a route in that is one too many.
    #[must_use]
    pub(crate) fn reserve(&self, more: usize) -> bool {
        if more == 0 {
            return true;
        }
        // Relaxed: the count orders nothing.
        if self.count.fetch_add(more, Ordering::Relaxed) + more <= self.limit {
            return true;
        }
        self.release(more);
        false
    }

    pub(crate) fn release(&self, fewer: usize) {
        if fewer > 0 {
            // Relaxed: as in `reserve`.
            self.count.fetch_sub(fewer, Ordering::Relaxed);
        }
    }

    pub(crate) fn get(&self) -> usize {
        // Relaxed: as in `reserve`. Threads that are about to be refused may have counted too much for a moment.
        self.count.load(Ordering::Relaxed).min(self.limit)
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }
}
