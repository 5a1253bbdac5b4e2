//! The expiry brake: if many routes are about to expire at once, the table holds their expiry, for a bounded time.
//!
//! Proxies send a heartbeat for each of their nodes every third of the keep-alive interval. A route is *late* when its
//! last refresh is two heartbeat intervals ago: the route expires within the next heartbeat interval. Single routes are
//! late because their nodes left. Many late routes have another reason, such as a network that is down. If these routes
//! expired, missing heartbeats would become an outage.
//!
//! The sweeper counts late routes when it visits them, and the brake sums up the last visits of all shards. So the sum
//! always covers the time of a round. A round takes a quarter of the interval, and routes are late for a third. So the
//! sum has all routes that became late at one time before they expire. When the sum reaches both limits of the brake,
//! expiry is held at the present tick (`time.rs`).
//!
//! The hold ends when the sum is at most half of the limit, because heartbeats have returned. The hold also ends when
//! the effective interval reaches `max_intervals` keep-alive intervals. Then the routes that are still late expire at
//! once. The self-preservation of Netflix's Eureka has no such bound, and its registries keep dead instances for days
//! (Eureka issue 1247). Here, no route is returned that is older than the bound: a later hold holds only routes that
//! have not expired when the hold begins. Routes of removed proxies are never held, and not counted.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::layout::SHARDS;
use crate::sweep::Step;
use crate::time::Time;

/// When the expiry of many routes is held: see [`Builder::expiry_brake`](crate::Builder::expiry_brake).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExpiryBrake {
    /// The brake acts if at least this percentage of all routes would expire within the next third of the keep-alive
    /// interval; 15 by default. At 100 or more, the brake never acts.
    pub percent: u32,
    /// The brake acts only if at least this number of routes would expire within that time; 100 by default.
    pub min_routes: usize,
    /// The greatest effective keep-alive interval, in keep-alive intervals; 3 by default. At 1 or less, the brake never
    /// acts.
    pub max_intervals: u32,
}

impl Default for ExpiryBrake {
    fn default() -> Self {
        Self {
            percent: 15,
            min_routes: 100,
            max_intervals: 3,
        }
    }
}

impl ExpiryBrake {
    /// Sets the [percentage](Self::percent).
    #[must_use]
    pub fn percent(mut self, percent: u32) -> Self {
        self.percent = percent;
        self
    }

    /// Sets the [number of routes](Self::min_routes).
    #[must_use]
    pub fn min_routes(mut self, routes: usize) -> Self {
        self.min_routes = routes;
        self
    }

    /// Sets the [greatest effective interval](Self::max_intervals).
    #[must_use]
    pub fn max_intervals(mut self, intervals: u32) -> Self {
        self.max_intervals = intervals;
        self
    }
}

/// Heartbeats in a keep-alive interval.
pub(crate) const HEARTBEATS_PER_INTERVAL: u32 = 3;

/// A table's brake. All operations are Relaxed: the counts publish no other data, and [`Time`] orders the holds.
#[derive(Debug)]
pub(crate) struct Brake {
    options: Option<ExpiryBrake>,
    /// The late routes of each stage of the sweeper's round (a shard), as its last visit counted them. None without
    /// options.
    of_stages: Box<[AtomicUsize]>,
    /// The late routes of this visit of a stage so far.
    of_visit: AtomicUsize,
    /// The sum of `of_stages`: the late routes of the last whole round, up to now.
    late: AtomicUsize,
    /// Whether the brake has begun a hold, and the sweeper has not noticed its end yet.
    holds: AtomicBool,
}

impl Brake {
    pub(crate) fn new(options: Option<ExpiryBrake>) -> Self {
        let options = options.filter(|options| options.percent < 100 && options.max_intervals > 1);
        Self {
            options,
            of_stages: (0..if options.is_some() { 2 * SHARDS + 1 } else { 0 })
                .map(|_| AtomicUsize::new(0))
                .collect(),
            of_visit: AtomicUsize::new(0),
            late: AtomicUsize::new(0),
            holds: AtomicBool::new(false),
        }
    }

    /// Returns the tick before which the last refresh of a late route was. `keep_alive`: the interval that was set, in
    /// ticks.
    pub(crate) fn late_before(&self, now: u64, keep_alive: u64) -> u64 {
        match self.options {
            Some(_) => now.saturating_sub(keep_alive - keep_alive / u64::from(HEARTBEATS_PER_INTERVAL)),
            None => 0,
        }
    }

    /// Whether the brake holds expiry.
    pub(crate) fn holds(&self, time: &Time) -> bool {
        self.holds.load(Ordering::Relaxed) && time.hold_left() > 0
    }

    /// Begins or ends a hold after a step of the sweeper. `routes` counts the table's routes.
    pub(crate) fn after_step(&self, step: &Step, routes: impl FnOnce() -> usize, keep_alive: u64, time: &Time) {
        let Some(options) = self.options else { return };
        let holds = self.holds.load(Ordering::Relaxed);
        let is_held = time.hold_left() > 0;
        if !holds && is_held {
            // A grace after a stop: heartbeats are about to return, so these late routes do not count.
            self.forget();
            return;
        }
        let late = self.count(step);
        let share = (routes() as u128 * u128::from(options.percent) / 100) as usize;
        let limit = options.min_routes.max(share);
        if !holds {
            if late >= limit.max(1) && time.hold(keep_alive.saturating_mul(u64::from(options.max_intervals - 1))) {
                self.holds.store(true, Ordering::Relaxed);
            }
        } else if !is_held {
            // The hold has reached its bound. The routes that were late have expired.
            self.holds.store(false, Ordering::Relaxed);
            self.forget();
        } else if late <= limit / 2 {
            self.holds.store(false, Ordering::Relaxed);
            time.release();
        }
    }

    /// Counts the late routes of a step. Returns the late routes of the last whole round, up to now.
    fn count(&self, step: &Step) -> usize {
        let of_visit = self.of_visit.fetch_add(step.late, Ordering::Relaxed) + step.late;
        if !step.stage_completed {
            return self.late.load(Ordering::Relaxed);
        }
        self.of_visit.store(0, Ordering::Relaxed);
        let before = self.of_stages[step.stage].swap(of_visit, Ordering::Relaxed);
        let late = self.late.load(Ordering::Relaxed) + of_visit;
        let late = late.saturating_sub(before);
        self.late.store(late, Ordering::Relaxed);
        late
    }

    fn forget(&self) {
        if self.late.swap(0, Ordering::Relaxed) > 0 {
            self.of_stages.iter().for_each(|late| late.store(0, Ordering::Relaxed));
        }
        self.of_visit.store(0, Ordering::Relaxed);
    }
}
