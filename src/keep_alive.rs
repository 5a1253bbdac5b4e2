//! The effective keep-alive interval, which may change at any time.
//!
//! Two ages follow from it: beyond [`returned`](KeepAlive::returned) a route is not returned any more, beyond
//! [`kept`](KeepAlive::kept) a call may take the route away. Both are the interval, except while a longer interval comes into
//! force. Calls that are under way still have the shorter `kept`, and might take away a route that others have been returned
//! under the longer interval. So `kept` grows at once, and `returned` only after a grace period, when those calls have ended.

#[cfg(all(test, loom))]
mod models;

use std::sync::Arc;

use crate::shard::word::LAST_TICK;
use crate::sync::{AtomicU64, Guard, Mutex, Ordering, after_grace, collect, pin};

/// The bits of an interval; the rest of [`Ages::returned`] is its version.
const INTERVAL: u64 = LAST_TICK;
const VERSION: u64 = INTERVAL + 1;

/// How often to look whether the threads that are pinned have gone on, giving them the processor in between, before a longer
/// interval is left to come into force later. A call that is not stopped takes a few of these.
const LOOKS: usize = if cfg!(loom) { 0 } else { 10_000 };

#[derive(Debug)]
pub(crate) struct KeepAlive {
    ages: Arc<Ages>,
    /// Held while an interval is set, so that the two ages are of one interval.
    setting: Mutex<()>,
}

#[derive(Debug)]
struct Ages {
    /// The age in ticks, and above it how many intervals were set. The version lets a grace period that ends late do nothing.
    returned: AtomicU64,
    /// Never less than `returned`, for a thread that pinned after it was set.
    kept: AtomicU64,
}

impl KeepAlive {
    /// Sets the first interval, in ticks; at least one, and at most [`LAST_TICK`].
    pub(crate) fn new(interval: u64) -> Self {
        let interval = interval.clamp(1, LAST_TICK);
        Self {
            ages: Arc::new(Ages {
                returned: AtomicU64::new(interval),
                kept: AtomicU64::new(interval),
            }),
            setting: Mutex::new(()),
        }
    }

    /// The age in ticks up to which routes are returned; to be read before the routes.
    #[inline]
    pub(crate) fn returned(&self) -> u64 {
        // Acquire: pairs with the CAS in `raise_after_grace`. A thread that reads a longer age reads routes as they are after the
        // last call that had a shorter `kept`.
        self.ages.returned.load(Ordering::Acquire) & INTERVAL
    }

    /// The age in ticks up to which a call may not take a route away; to be read under the pin of that call. It is also the
    /// interval that was set last.
    #[inline]
    pub(crate) fn kept(&self) -> u64 {
        // Relaxed: the epoch orders a longer age before the pins that a grace period does not wait for.
        self.ages.kept.load(Ordering::Relaxed)
    }

    /// Sets the interval. A longer one is in force when this returns, unless a thread that is pinned does not go on: then as
    /// soon as that thread has gone on, and garbage is collected.
    pub(crate) fn set(&self, interval: u64) {
        let interval = interval.clamp(1, LAST_TICK);
        let setting = self.setting.lock();
        // Relaxed, all: as in `kept`; a shorter age is no promise.
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

    /// Returns routes up to the age `interval` after a grace period, unless `returned` is set again before.
    fn raise_after_grace(&self, waiting: u64, interval: u64, guard: &Guard) {
        let ages = Arc::clone(&self.ages);
        after_grace(guard, move || {
            // Release: pairs with `returned`. A failure means that the interval was set again.
            _ = ages.returned.compare_exchange(
                waiting,
                waiting & !INTERVAL | interval,
                Ordering::Release,
                Ordering::Relaxed,
            );
        });
    }
}
