//! The number of routes in the table, and its limit.
//!
//! A single counter would be a cache line that every insertion on every core writes. Instead, a group of threads takes
//! a chunk of the free places at a time, and its insertions take places from the group's spare places. Near the limit,
//! an insertion takes a single free place, or, if there is none, spare places of other groups. So the limit holds
//! exactly, and insertions can use every place up to the limit.

use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;

use crate::sync::stripes::{STRIPES, stripe};

/// Places that a group of threads takes at a time. A group with more than two chunks of spare places keeps one chunk,
/// and returns the others.
const CHUNK: usize = 64;

/// The table's routes, counted from their insertion until they are swept or removed, and their limit.
///
/// All operations are Relaxed: the count publishes no other data. It uses the atomics of `std` even under loom, because
/// no protocol depends on the order of counts.
#[derive(Debug)]
pub(crate) struct RouteLimit {
    limit: usize,
    /// Places that are not free: routes have them, or they are a group's spare places.
    taken: CachePadded<AtomicUsize>,
    /// The spare places of each group of threads.
    spare: [CachePadded<AtomicUsize>; STRIPES],
}

impl RouteLimit {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            taken: CachePadded::new(AtomicUsize::new(0)),
            spare: std::array::from_fn(|_| CachePadded::new(AtomicUsize::new(0))),
        }
    }

    /// Reserves places for `more` routes. Returns `false`, and reserves none, if that would exceed the limit.
    ///
    /// If several threads compete for the last places, all of them may be refused; but the count never exceeds the
    /// limit.
    #[must_use]
    #[inline]
    pub(crate) fn reserve(&self, more: usize) -> bool {
        more == 0 || take(&self.spare[stripe()], more) || self.reserve_elsewhere(more)
    }

    #[cold]
    fn reserve_elsewhere(&self, more: usize) -> bool {
        // Take a chunk only while the limit leaves room for two spare chunks in each group, and one more.
        let ample = self.limit.saturating_sub((2 * STRIPES + 1) * CHUNK);
        if self.take_new(more + CHUNK, ample) {
            self.spare[stripe()].fetch_add(CHUNK, Ordering::Relaxed);
            return true;
        }
        if self.take_new(more, self.limit) {
            return true;
        }
        // Take no more than is missing: another thread may need the rest at the same time.
        let mut found = 0;
        for spare in &self.spare {
            found += take_up_to(spare, more - found);
        }
        // The places found may be enough together with places that became free meanwhile.
        let is_enough = found == more || self.take_new(more - found, self.limit);
        if !is_enough {
            self.release(found);
        }
        is_enough
    }

    /// Takes free places, unless more than `limit` places would then be taken.
    fn take_new(&self, more: usize, limit: usize) -> bool {
        let add = |taken: usize| taken.checked_add(more).filter(|&sum| sum <= limit);
        self.taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add)
            .is_ok()
    }

    /// Returns the places of `fewer` routes.
    #[inline]
    pub(crate) fn release(&self, fewer: usize) {
        if fewer == 0 {
            return;
        }
        let spare = &self.spare[stripe()];
        let has = spare.fetch_add(fewer, Ordering::Relaxed) + fewer;
        if has > 2 * CHUNK && take(spare, has - CHUNK) {
            self.taken.fetch_sub(has - CHUNK, Ordering::Relaxed);
        }
    }

    /// How many places are reserved. Exact if no thread changes the count meanwhile.
    pub(crate) fn get(&self) -> usize {
        let spare: usize = self.spare.iter().map(|spare| spare.load(Ordering::Relaxed)).sum();
        self.taken.load(Ordering::Relaxed).saturating_sub(spare).min(self.limit)
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }
}

/// Takes `count` places from a counter. Returns `false`, and takes none, if it has fewer.
#[inline]
fn take(from: &AtomicUsize, count: usize) -> bool {
    let mut has = from.load(Ordering::Relaxed);
    while let Some(left) = has.checked_sub(count) {
        match from.compare_exchange_weak(has, left, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return true,
            Err(now) => has = now,
        }
    }
    false
}

/// Takes up to `most` places from a counter. Returns how many it took.
fn take_up_to(from: &AtomicUsize, most: usize) -> usize {
    let less = |has: usize| Some(has - has.min(most));
    let has = from.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    has.unwrap_or_default().min(most)
}

/// The place of a route that is about to be inserted. Dropping the reservation returns the place.
pub(crate) struct Reservation<'a>(&'a RouteLimit);

impl<'a> Reservation<'a> {
    /// `None` if the limit is reached.
    pub(crate) fn new(count: &'a RouteLimit) -> Option<Self> {
        count.reserve(1).then(|| Self(count))
    }

    /// Leaves the place to the inserted route.
    pub(crate) fn use_up(self) {
        std::mem::forget(self);
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.0.release(1);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::AtomicIsize;
    use std::thread;

    use super::*;

    #[test]
    fn every_place_up_to_the_limit_can_be_had_and_none_beyond() {
        for limit in [0, 1, 63, 64, 65, 1_000, 10_000] {
            let count = RouteLimit::new(limit);
            // Threads of all groups leave spare places.
            for _ in 0..STRIPES {
                let reserve = || (0..limit / STRIPES).filter(|_| count.reserve(1)).count();
                assert_eq!(
                    thread::scope(|scope| scope.spawn(reserve).join()).ok(),
                    Some(limit / STRIPES)
                );
            }
            let rest = limit - limit / STRIPES * STRIPES;
            assert!((0..rest).all(|_| count.reserve(1)), "{limit}");
            assert_eq!(count.get(), limit);
            assert!(!count.reserve(1), "{limit}");
            count.release(limit);
            assert!(count.reserve(limit), "{limit}");
            assert!(limit == 0 || !count.reserve(1), "{limit}");
            count.release(limit);
            assert_eq!(count.get(), 0);
        }
    }

    #[test]
    fn threads_that_come_and_go_never_exceed_the_limit() {
        const LIMIT: usize = 300;
        let count = RouteLimit::new(LIMIT);
        let held = AtomicIsize::new(0);
        thread::scope(|scope| {
            for thread in 0..8 {
                let (count, held) = (&count, &held);
                scope.spawn(move || {
                    let mut mine = 0;
                    let mut random = fastrand::Rng::with_seed(thread);
                    for _ in 0..20_000 {
                        let many = random.usize(1..80);
                        if random.bool() && count.reserve(many) {
                            mine += many;
                            let all = held.fetch_add(many as isize, Ordering::Relaxed) + many as isize;
                            assert!(all <= LIMIT as isize, "{all} places of {LIMIT}");
                        } else if mine >= many {
                            mine -= many;
                            held.fetch_sub(many as isize, Ordering::Relaxed);
                            count.release(many);
                        }
                    }
                    held.fetch_sub(mine as isize, Ordering::Relaxed);
                    count.release(mine);
                });
            }
        });
        assert_eq!(count.get(), 0);
        assert!(count.reserve(LIMIT) && !count.reserve(1));
    }
}
