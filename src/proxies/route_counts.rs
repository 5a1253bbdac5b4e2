//! How many routes each proxy and each client has, for tables that limit them.

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use crossbeam_utils::CachePadded;

use crate::liveness::Holder;
use crate::mem::segmented_vec::SegmentedVec;
use crate::types::client::ClientId;

/// The number of routes of each proxy number, and of each client's [slot](super::clients), and their limits. A route
/// counts from its insertion until it is removed or swept.
///
/// Each count has its own cache line, since several cores insert routes of different proxies. Insertions through the
/// proxies of one client also share the line of the client's count. A table without limits has no counts, so its
/// insertions do not write them. Refreshes write no count.
///
/// A proxy number's count and the slot of the proxy's client are one word. So each change of the count also returns the
/// slot of the client that the change counts for. A proxy that moves to another client takes its present count along.
/// While no thread is in the middle of a change, the count of a client is the sum of the counts of its numbers.
///
/// All operations are Relaxed, on atomics of `std` even under loom: the counts publish no other data. Like the limit of
/// all routes, the limits are exact: a route is counted before the CAS that inserts it. If several threads compete for
/// the last places of a client, all of them may be refused. While a snapshot is loaded, a count is briefly too low, and
/// may be negative.
#[derive(Debug)]
pub(crate) struct RouteCounts {
    limit: i32,
    client_limit: i32,
    counts: SegmentedVec<CachePadded<ProxyCount>, 5>,
    clients: SegmentedVec<CachePadded<ClientCount>, 5>,
}

/// The slot of the proxy's client in the upper half, or zero. The lower half is the count plus [`ZERO`], so that a
/// count below zero takes nothing from the slot.
#[derive(Debug)]
struct ProxyCount(AtomicU64);

const SLOT_SHIFT: u32 = 32;
const ZERO: u64 = 1 << 31;

fn slot_of(word: u64) -> u32 {
    (word >> SLOT_SHIFT) as u32
}

fn routes_of(word: u64) -> i32 {
    (word as u32).wrapping_sub(ZERO as u32) as i32
}

impl Default for ProxyCount {
    fn default() -> Self {
        Self(AtomicU64::new(ZERO))
    }
}

#[derive(Debug, Default)]
struct ClientCount {
    routes: AtomicI32,
    /// The client that has the slot, or had it last, or zero: a hint.
    id: AtomicU64,
}

impl RouteCounts {
    /// Counts for the numbers below `numbers`. `limit` is the limit of a proxy, `client_limit` that of a client.
    pub(crate) fn new(limit: Option<usize>, client_limit: Option<usize>, numbers: u32) -> Self {
        let at_most = |limit: Option<usize>| limit.map_or(i32::MAX, |limit| i32::try_from(limit).unwrap_or(i32::MAX));
        Self {
            limit: at_most(limit),
            client_limit: at_most(client_limit),
            counts: SegmentedVec::new(numbers),
            // Slots begin at 1.
            clients: SegmentedVec::new(numbers + 1),
        }
    }

    /// The bytes of the counts.
    pub(crate) fn bytes(&self) -> usize {
        self.counts.bytes() + self.clients.bytes()
    }

    /// Allocates the count of a number before a proxy gets the number.
    pub(crate) fn ensure(&self, number: u32) {
        self.counts.ensure(number);
    }

    /// Whether a proxy may get a further route, or whose limit is reached.
    pub(crate) fn has_room(&self, number: u32) -> Result<(), Holder> {
        let word = self.word(number);
        match slot_of(word) {
            _ if routes_of(word) >= self.limit => Err(Holder::Proxy),
            0 => Ok(()),
            slot if self.of_client(slot) >= self.client_limit => Err(Holder::Client),
            _ => Ok(()),
        }
    }

    /// Counts a further route. If the proxy or its client has its maximum, returns which, and does not count the route.
    pub(crate) fn reserve(&self, number: u32) -> Result<(), Holder> {
        let Some(count) = self.counts.get(number) else {
            return Ok(());
        };
        let more = |word: u64| (routes_of(word) < self.limit).then(|| word + 1);
        let reserved = count.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        match reserved.map(slot_of) {
            Err(_) => Err(Holder::Proxy),
            Ok(0) => Ok(()),
            Ok(slot) => {
                if self.add_to_client(slot, 1) < self.client_limit {
                    return Ok(());
                }
                self.add(number, -1);
                Err(Holder::Client)
            }
        }
    }

    /// Adds `more` to a count, even beyond the limits. `more` may be negative.
    pub(crate) fn add(&self, number: u32, more: i32) {
        if let Some(count) = self.counts.get(number) {
            let word = count.0.fetch_add(i64::from(more) as u64, Ordering::Relaxed);
            self.add_to_client(slot_of(word), more);
        }
    }

    /// Makes a number, with its routes, count for the client of another slot, or for no client.
    pub(crate) fn move_to(&self, number: u32, slot: u32) {
        let Some(count) = self.counts.get(number) else { return };
        let moved = |word: u64| Some(u64::from(slot) << SLOT_SHIFT | u64::from(word as u32));
        let before = count.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, moved);
        if let Ok(word) = before {
            self.add_to_client(slot_of(word), -routes_of(word));
            self.add_to_client(slot, routes_of(word));
        }
    }

    /// Adds to the count of a client, if the slot has one. Returns the count before.
    fn add_to_client(&self, slot: u32, more: i32) -> i32 {
        match slot {
            0 => 0,
            // Not `get`: the slot was read with Relaxed, so its segment may not be visible yet.
            slot => self.clients.ensure(slot).routes.fetch_add(more, Ordering::Relaxed),
        }
    }

    fn word(&self, number: u32) -> u64 {
        let count = self.counts.get(number);
        count.map_or(ZERO, |count| count.0.load(Ordering::Relaxed))
    }

    /// The number of routes of a proxy.
    pub(crate) fn get(&self, number: u32) -> i32 {
        routes_of(self.word(number))
    }

    /// The number of routes of the client of a slot.
    fn of_client(&self, slot: u32) -> i32 {
        self.clients
            .get(slot)
            .map_or(0, |count| count.routes.load(Ordering::Relaxed))
    }

    /// The slot of a proxy's client, or zero.
    pub(crate) fn slot(&self, number: u32) -> u32 {
        slot_of(self.word(number))
    }

    /// Records which client has a slot.
    pub(crate) fn name_slot(&self, slot: u32, client: ClientId) {
        self.clients.ensure(slot).id.store(client.0.get(), Ordering::Relaxed);
    }

    /// Whether a proxy probably counts for a client.
    pub(crate) fn is_of(&self, number: u32, client: ClientId) -> bool {
        let of_slot = self.clients.get(self.slot(number));
        of_slot.is_some_and(|of_slot| of_slot.id.load(Ordering::Relaxed) == client.0.get())
    }

    /// The limit of a proxy or of a client.
    pub(crate) fn limit(&self, holder: Holder) -> usize {
        let limit = match holder {
            Holder::Proxy => self.limit,
            Holder::Client => self.client_limit,
        };
        limit as usize
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_proxy_moves_with_its_routes_and_nothing_is_lost_or_counted_twice() {
        const LIMIT: usize = 1_000;
        let counts = RouteCounts::new(None, Some(LIMIT), 4);
        (0..4).for_each(|number| counts.ensure(number));
        let sum = |slot| {
            (0..4)
                .filter(|&number| counts.slot(number) == slot)
                .map(|number| counts.get(number))
                .sum()
        };
        thread::scope(|scope| {
            let workers = [0, 1, 2].map(|thread| {
                let counts = &counts;
                scope.spawn(move || {
                    let mut random = fastrand::Rng::with_seed(thread);
                    let mut mine = [0; 4];
                    for _ in 0..200_000 {
                        let number = random.u32(0..4);
                        let has = &mut mine[number as usize];
                        if random.bool() && counts.reserve(number).is_ok() {
                            *has += 1;
                        } else if *has > 0 {
                            counts.add(number, -1);
                            *has -= 1;
                        }
                    }
                })
            });
            for nth in 0.. {
                counts.move_to(nth % 4, nth % 3);
                if workers.iter().all(|worker| worker.is_finished()) {
                    break;
                }
            }
        });
        for slot in 1..3 {
            assert_eq!(counts.of_client(slot), sum(slot), "slot {slot}");
        }
        // Without moves, no client exceeds its limit.
        (0..4).for_each(|number| counts.move_to(number, 1));
        while counts.reserve(0).is_ok() {}
        assert!(counts.of_client(1) >= LIMIT as i32);
        assert_eq!(
            (counts.reserve(1), counts.has_room(1)),
            (Err(Holder::Client), Err(Holder::Client))
        );
        counts.add(2, -(counts.of_client(1) - LIMIT as i32) - 1);
        assert_eq!((counts.reserve(1), counts.reserve(3)), (Ok(()), Err(Holder::Client)));
        assert_eq!(counts.of_client(1), LIMIT as i32);
    }

    #[test]
    fn a_count_below_zero_takes_nothing_from_the_slot() {
        let counts = RouteCounts::new(Some(10), None, 1);
        counts.ensure(0);
        counts.move_to(0, 7);
        counts.add(0, -3);
        assert_eq!((counts.get(0), counts.slot(0), counts.of_client(7)), (-3, 7, -3));
        counts.add(0, 13);
        assert_eq!((counts.get(0), counts.slot(0), counts.of_client(7)), (10, 7, 10));
        assert_eq!(counts.reserve(0), Err(Holder::Proxy));
    }
}
