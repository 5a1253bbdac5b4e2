//! Numbered grace periods.

use std::sync::Arc;

use crate::sync::{AtomicU32, Guard, Ordering, after_grace};

/// Numbers grace periods. A period is over when every thread that was pinned at its beginning has unpinned.
#[derive(Debug, Default)]
pub(crate) struct GracePeriods {
    begun: AtomicU32,
    /// The latest period that is over. A thread that was pinned when an earlier period began was still pinned, or had
    /// unpinned, when this period began. So earlier periods are over, too.
    over: Arc<AtomicU32>,
}

/// How many periods there are before their numbers repeat. If a period is older than half of them, `is_over` may return
/// `false` for it, until the numbers have wrapped around.
pub(crate) const PERIODS: u32 = 1 << 30;

fn is_past(period: u32, of: u32) -> bool {
    of.wrapping_sub(period) % PERIODS < PERIODS / 2
}

impl GracePeriods {
    /// Returns the number of a period that is about to [begin](GracePeriods::begin), below [`PERIODS`]. The registry's
    /// owner reserves a number, and begins the period before it reserves another number.
    pub(crate) fn reserve(&self) -> u32 {
        // Relaxed: the registry's lock orders reservations; the epoch orders the work that waits for the period.
        self.begun.fetch_add(1, Ordering::Relaxed).wrapping_add(1) % PERIODS
    }

    /// Begins a period now.
    pub(crate) fn begin(&self, period: u32, guard: &Guard) {
        let over = Arc::clone(&self.over);
        after_grace(guard, move || {
            // Relaxed: the CAS decides.
            let mut latest = over.load(Ordering::Relaxed);
            while !is_past(period, latest) {
                // Release: pairs with the load in `is_over`: a thread that finds the period over sees the writes of the
                // pinned threads before they unpinned.
                match over.compare_exchange_weak(latest, period, Ordering::Release, Ordering::Relaxed) {
                    Ok(_) => break,
                    Err(won) => latest = won,
                }
            }
        });
    }

    /// How many periods have begun.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn begun(&self) -> u32 {
        // Relaxed: as in `reserve`.
        self.begun.load(Ordering::Relaxed)
    }

    pub(crate) fn is_over(&self, period: u32) -> bool {
        // Acquire: pairs with the CAS in `begin`.
        is_past(period, self.over.load(Ordering::Acquire))
    }
}
