//! Grace periods by number.

use std::sync::Arc;

use crate::sync::{AtomicU32, Guard, Ordering, after_grace};

/// Tells when everyone who was pinned at a given moment has gone on.
#[derive(Debug, Default)]
pub(crate) struct Grace {
    begun: AtomicU32,
    /// The latest period that is over. Whoever was pinned at the beginning of an earlier one was pinned, or gone, at the
    /// beginning of this one, so earlier ones are over too.
    over: Arc<AtomicU32>,
}

/// How many periods there are before their numbers repeat. One that is asked about was begun less than half as many ago,
/// or is taken for over too late, when the numbers have come round.
pub(crate) const PERIODS: u32 = 1 << 30;

fn is_past(period: u32, of: u32) -> bool {
    of.wrapping_sub(period) % PERIODS < PERIODS / 2
}

impl Grace {
    /// The number of a period that is about to [begin](Grace::begin), below [`PERIODS`]. Who reserves a number begins the
    /// period before another number is reserved.
    pub(crate) fn reserve(&self) -> u32 {
        // Relaxed: only a number; the epoch orders what matters.
        self.begun.fetch_add(1, Ordering::Relaxed).wrapping_add(1) % PERIODS
    }

    /// Begins a period now.
    pub(crate) fn begin(&self, period: u32, guard: &Guard) {
        let over = Arc::clone(&self.over);
        after_grace(guard, move || {
            // Relaxed: the CAS decides.
            let mut latest = over.load(Ordering::Relaxed);
            while !is_past(period, latest) {
                // Release: pairs with `is_over`: what pinned threads did before they went on is seen by whoever acts on
                // it.
                match over.compare_exchange_weak(latest, period, Ordering::Release, Ordering::Relaxed) {
                    Ok(_) => break,
                    Err(won) => latest = won,
                }
            }
        });
    }

    /// How many periods there were.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn begun(&self) -> u32 {
        // Relaxed: as in `reserve`.
        self.begun.load(Ordering::Relaxed)
    }

    pub(crate) fn is_over(&self, period: u32) -> bool {
        // Acquire: pairs with `begin`.
        is_past(period, self.over.load(Ordering::Acquire))
    }
}
