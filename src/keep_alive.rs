//! The keep-alive interval, which may change at any time.
//!
//! Two ages follow from the interval. A route older than [`returned`](KeepAlive::returned) is not returned; a call may
//! remove a route older than [`kept`](KeepAlive::kept). Both ages equal the interval, except while a longer interval
//! comes into force. Calls that began before still have the shorter `kept`, and might remove a route that another call
//! has returned under the longer interval. So `kept` grows at once, but `returned` only after a grace period, when
//! those calls have ended.

#[cfg(all(test, loom))]
mod models;

use std::sync::Arc;

use crate::sync::{AtomicU64, Guard, Mutex, Ordering, after_grace, collect, pin};
use crate::word::LAST_TICK;

/// The bits of an interval; the rest of [`AgeLimits::returned`] is its version.
const INTERVAL: u64 = LAST_TICK;
const VERSION: u64 = INTERVAL + 1;

/// How often `set` checks whether the grace period of a longer interval is over, before it returns without further
/// waiting. `set` yields the processor in between. A grace period that no stopped thread holds up takes a few checks.
const LOOKS: usize = if cfg!(loom) { 0 } else { 10_000 };

#[derive(Debug)]
pub(crate) struct KeepAlive {
    ages: Arc<AgeLimits>,
    /// Held while an interval is set, so that both ages come from one interval.
    setting: Mutex<()>,
}

#[derive(Debug)]
struct AgeLimits {
    /// The age in ticks, and above it a version: how many intervals were set. If the interval is set again, the version
    /// makes the end of an older grace period have no effect.
    returned: AtomicU64,
    /// Never less than `returned`, for a thread that pinned after it was set.
    kept: AtomicU64,
}

impl KeepAlive {
    /// The first interval, in ticks; at least one tick, and at most [`LAST_TICK`].
    pub(crate) fn new(interval: u64) -> Self {
        let interval = interval.clamp(1, LAST_TICK);
        Self {
            ages: Arc::new(AgeLimits {
                returned: AtomicU64::new(interval),
                kept: AtomicU64::new(interval),
            }),
            setting: Mutex::new(()),
        }
    }

    /// The age in ticks up to which routes are returned. Read it before the routes.
    #[inline]
    pub(crate) fn returned(&self) -> u64 {
        // Acquire: pairs with the CAS in `raise_after_grace`. A thread that reads the longer age reads the routes as
        // the last call with the shorter `kept` left them.
        self.ages.returned.load(Ordering::Acquire) & INTERVAL
    }

    /// The age in ticks up to which a call may not remove a route. Read it under the pin of that call. It is also the
    /// interval that was set last.
    #[inline]
    pub(crate) fn kept(&self) -> u64 {
        // Relaxed: pairs with no store; the epoch orders the store of a longer age before each pin for which the grace
        // period does not wait.
        self.ages.kept.load(Ordering::Relaxed)
    }

    /// Sets the interval. A longer interval is in force when this returns, unless a thread stays pinned. Then the
    /// interval comes into force after that thread has unpinned and some thread has collected garbage.
    pub(crate) fn set(&self, interval: u64) {
        let interval = interval.clamp(1, LAST_TICK);
        let setting = self.setting.lock();
        // Relaxed, all: as in `kept`. The lock orders the stores of two calls. No other thread relies on a shorter age.
        let was = self.ages.returned.load(Ordering::Relaxed);
        let version = (was & !INTERVAL).wrapping_add(VERSION);
        if interval <= was & INTERVAL {
            self.ages.returned.store(version | interval, Ordering::Relaxed);
            self.ages.kept.store(interval, Ordering::Relaxed);
            return;
        }
        let waiting = version | was & INTERVAL;
        self.ages.returned.store(waiting, Ordering::Relaxed);
        self.ages.kept.store(interval, Ordering::Relaxed);
        self.raise_after_grace(waiting, interval, &pin());
        drop(setting);
        for _ in 0..LOOKS {
            collect(&pin(), 1);
            if self.ages.returned.load(Ordering::Relaxed) != waiting {
                break;
            }
            std::thread::yield_now();
        }
    }

    /// Raises `returned` to `interval` after a grace period, unless the interval is set again before.
    fn raise_after_grace(&self, waiting: u64, interval: u64, guard: &Guard) {
        let ages = Arc::clone(&self.ages);
        after_grace(guard, move || {
            // Release: pairs with `returned`. On failure, the interval was set again.
            _ = ages.returned.compare_exchange(
                waiting,
                waiting & !INTERVAL | interval,
                Ordering::Release,
                Ordering::Relaxed,
            );
        });
    }
}
