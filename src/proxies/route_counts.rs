//! How many routes each proxy has, for tables that limit the routes of a proxy.

use std::sync::atomic::{AtomicI32, Ordering};

use crossbeam_utils::CachePadded;

use crate::mem::segmented_vec::SegmentedVec;

/// The number of routes of each proxy number, and their limit. A route counts from its insertion until it is removed or
/// swept.
///
/// Each count has its own cache line, since several cores insert routes of different proxies. A table without a limit
/// has no counts, so its insertions do not write them.
///
/// All operations are Relaxed, on atomics of `std` even under loom: the counts publish no other data. Like the limit of
/// all routes, the limit is exact: a route is counted before the CAS that inserts it. While a snapshot is loaded, a
/// count is briefly too low, and may be negative.
#[derive(Debug)]
pub(crate) struct RouteCounts {
    limit: i32,
    counts: SegmentedVec<CachePadded<AtomicI32>, 5>,
}

impl RouteCounts {
    /// Counts for the numbers below `numbers`.
    pub(crate) fn new(limit: usize, numbers: u32) -> Self {
        Self {
            limit: i32::try_from(limit).unwrap_or(i32::MAX),
            counts: SegmentedVec::new(numbers),
        }
    }

    /// The bytes of the counts.
    pub(crate) fn bytes(&self) -> usize {
        self.counts.bytes()
    }

    /// Allocates the count of a number before a proxy gets the number.
    pub(crate) fn ensure(&self, number: u32) {
        self.counts.ensure(number);
    }

    /// Whether a proxy may get a further route.
    pub(crate) fn has_room(&self, number: u32) -> bool {
        self.get(number) < self.limit
    }

    /// Counts a further route. Returns `false`, and does not count the route, if the proxy has its maximum.
    #[must_use]
    pub(crate) fn reserve(&self, number: u32) -> bool {
        let Some(count) = self.counts.get(number) else {
            return true;
        };
        let more = |count: i32| (count < self.limit).then(|| count + 1);
        count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// Adds `more` to a count, even beyond the limit. `more` may be negative.
    pub(crate) fn add(&self, number: u32, more: i32) {
        if let Some(count) = self.counts.get(number) {
            count.fetch_add(more, Ordering::Relaxed);
        }
    }

    pub(crate) fn get(&self, number: u32) -> i32 {
        self.counts.get(number).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit as usize
    }
}
