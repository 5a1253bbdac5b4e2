//! loom models of the shard's protocols. Each has the name of the property that it shows.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p nodetracker --release --lib models` runs them; with `-- --nocapture`, each
//! prints how many executions it took. Under loom the constants shrink: two slots a bucket, segments of two records.

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::{Arc as StdArc, atomic};

use ahash::RandomState;
use loom::sync::Arc;
use loom::thread;

use super::bulk_load::NewRecords;
use super::index::FROZEN;
use super::list::List;
use super::scan::{Next, PartEnd, Start};
use super::*;
use crate::liveness::{Holder, Liveness};
use crate::shard::Scope;
use crate::shard::routes::Change;
use crate::sync::{AtomicU32, epoch, pin};
use crate::types::node_id::NodeId;

/// A small number as a key. Like a name, a stored number owns something: its own ticket. The ticket must not be used
/// after it is freed, and must be freed exactly once.
#[derive(Clone, Copy)]
struct Number(u64);

// loom runs all of a model's threads on one OS thread. It does not see this thread-local, which therefore orders
// nothing.
std::thread_local! {
    /// The tickets of stored keys, and how many tickets there ever were.
    static TICKETS: RefCell<(HashSet<u64>, u64)> = RefCell::default();
}

fn assert_stored(stored: [u64; 2]) {
    TICKETS.with_borrow(|(tickets, _)| assert!(tickets.contains(&stored[1]), "a key is used after it was freed"));
}

impl Key for Number {
    const OWNS_MEMORY: bool = true;

    fn hash(&self, hasher: &RandomState) -> u64 {
        hasher.hash_one(self.0)
    }

    unsafe fn is(&self, stored: [u64; 2]) -> bool {
        assert_stored(stored);
        stored[0] == self.0
    }

    fn store(&self) -> Option<[u64; 2]> {
        TICKETS.with_borrow_mut(|(tickets, last)| {
            *last += 1;
            tickets.insert(*last);
            Some([self.0, *last])
        })
    }

    fn hash_stored(stored: [u64; 2], hasher: &RandomState) -> u64 {
        hasher.hash_one(stored[0])
    }

    unsafe fn node(stored: [u64; 2]) -> NodeId {
        assert_stored(stored);
        uuid::Uuid::from_u64_pair(0, stored[0]).into()
    }

    unsafe fn free(stored: [u64; 2]) {
        let was_stored = TICKETS.with_borrow_mut(|(tickets, _)| tickets.remove(&stored[1]));
        assert!(was_stored, "a key is freed twice");
    }
}

/// A shard with the surroundings of an operation, for keys that are small numbers.
struct World {
    shard: Shard<Number>,
    hasher: RandomState,
    route_limit: RouteLimit,
    /// One bit per dead proxy.
    dead: AtomicU32,
    counts: Counts,
    feed: Feed,
}

fn number_of(node: &NodeId) -> u64 {
    let (_, number) = node.as_uuid().expect("a UUID").as_u64_pair();
    number
}

/// Half of a private record's key, in the place of a free record's link. No link has this value.
const KEY_OF_PRIVATE: u64 = 1_000;

/// The number of routes of each proxy. Atomics of `std`, as in `proxies/route_counts.rs`.
type Counts = [atomic::AtomicI32; 32];

struct Proxies<'a> {
    dead: &'a AtomicU32,
    counts: &'a Counts,
}

impl Liveness for Proxies<'_> {
    fn has(&self, proxy: u32) -> bool {
        // Acquire: like the life of a proxy's entry.
        self.dead.load(Ordering::Acquire) & (1 << proxy) == 0
    }

    fn has_room(&self, _proxy: u32) -> Result<(), Holder> {
        Ok(())
    }

    fn has_text_room(&self, _len: usize) -> bool {
        true
    }

    fn reserve(&self, proxy: u32) -> Result<(), Holder> {
        self.count(proxy, 1);
        Ok(())
    }

    fn count(&self, proxy: u32, more: i32) {
        self.counts[proxy as usize].fetch_add(more, atomic::Ordering::Relaxed);
    }

    fn left(&self, proxy: u32, _tick: u64) {
        self.count(proxy, -1);
    }
}

impl World {
    fn new() -> Self {
        Self {
            shard: Shard::new(0),
            hasher: RandomState::with_seeds(1, 2, 3, 4),
            route_limit: RouteLimit::new(100),
            dead: AtomicU32::new(0),
            counts: Default::default(),
            feed: Feed::default(),
        }
    }

    fn with<R>(&self, now: u64, f: impl FnOnce(&Scope<'_, Proxies<'_>>) -> R) -> R {
        let guard = pin();
        f(&Scope {
            guard: &guard,
            hasher: &self.hasher,
            route_limit: &self.route_limit,
            proxies: &Proxies {
                dead: &self.dead,
                counts: &self.counts,
            },
            now,
            keep_alive: 10,
            kept_age: 10,
            feed: &self.feed,
        })
    }

    fn add(&self, key: u64, proxy: u32, now: u64) -> Added {
        let key = Number(key);
        self.with(now, |scope| {
            self.shard.put(&key, key.hash(&self.hasher), Change::Add(proxy), scope)
        })
        .expect("there is room")
        .0
    }

    fn remove(&self, key: u64, what: Change, now: u64) -> usize {
        let key = Number(key);
        self.with(now, |scope| {
            self.shard.remove(&key, key.hash(&self.hasher), what, scope)
        })
    }

    /// Proxies and times, newest first.
    fn get(&self, key: u64, now: u64) -> Vec<(u32, u64)> {
        let key = Number(key);
        self.with(now, |scope| {
            let words = self.shard.get(&key, key.hash(&self.hasher), scope);
            words.iter().map(|word| (word.proxy(), word.time())).collect()
        })
    }

    /// Adds routes through proxy 0: all at once if the shard is new, otherwise one by one.
    fn fill(&self, keys: &[u64], time: u64, now: u64) {
        self.with(now, |scope| {
            let keys = keys.iter().map(|&key| Number(key));
            let mut records = NewRecords::default();
            for key in keys.clone() {
                assert!(records.push(&key, &[Word::live(0, time)]));
            }
            assert_eq!(records.make_index(0, &self.hasher), Ok(()));
            assert!(scope.route_limit.reserve(keys.len()));
            if self.shard.fill(&mut records, scope) {
                scope.proxies.count(0, keys.len() as i32);
                return;
            }
            scope.route_limit.release(keys.len());
            for key in keys {
                let what = Change::Restore { proxy: 0, time };
                self.shard
                    .put(&key, key.hash(&self.hasher), what, scope)
                    .expect("there is room");
            }
        });
    }

    /// The keys that a copy reports in parts, each of `most` keys and under a pin of its own.
    fn copy_in_parts(&self, most: usize, now: u64) -> Vec<u64> {
        let mut keys = Vec::new();
        let mut part = self.scan_part(Start::Beginning, most, now, &mut keys);
        loop {
            let seed = part.seed;
            let start = match &part.next {
                Next::End => return keys,
                &Next::Rank(rank) => Start::Rank { seed, rank },
                Next::After(node) => {
                    let hash = Number(number_of(node)).hash(&self.hasher);
                    Start::After { seed, hash, node }
                }
            };
            part = self.scan_part(start, most, now, &mut keys);
        }
    }

    fn scan_part(&self, start: Start<'_>, most: usize, now: u64, keys: &mut Vec<u64>) -> PartEnd {
        self.with(now, |scope| {
            self.shard
                .scan(start, most, scope, |node, _, _| keys.push(number_of(&node)))
        })
    }

    /// The keys that a walk reports.
    fn copy(&self, now: u64) -> Vec<u64> {
        self.copy_in_parts(usize::MAX, now)
    }

    fn sweep(&self, now: u64) -> usize {
        self.with(now, |scope| {
            let mut at = Some(RecordPosition::default());
            let mut removed = 0;
            while let Some(from) = at {
                let visit = self.shard.visit(from, 100, &RebuildSlot::default(), scope, &mut |_| ());
                (at, removed) = (visit.next, removed + visit.removed);
            }
            removed
        })
    }

    /// Replaces the index, whether due or not.
    fn rebuild(&self, now: u64) {
        self.with(now, |scope| {
            let index = self.shard.root(scope.guard).expect("the model has added something");
            self.shard.rebuild(index, false, scope).expect("there is memory");
        });
    }

    /// Whether the next insertion of a key replaces the index.
    fn is_at_first_limit(&self) -> bool {
        let guard = pin();
        let index = self.shard.root(&guard).expect("the model has added something");
        index.slab().used() == max_used(index.shape().buckets)
    }

    /// Replaces the index bucket by bucket, as the sweeper replaces a large index.
    fn rebuild_in_parts(&self, now: u64) {
        let parked = RebuildSlot::default();
        while self.with(now, |scope| {
            let index = self.shard.root(scope.guard).expect("the model has added something");
            self.shard
                .rebuild_part(index, 0, &parked, scope)
                .expect("there is memory")
        }) {}
    }

    /// Moves the shard to another slab, whether due or not.
    fn compact(&self, now: u64) {
        self.with(now, |scope| {
            let index = self.shard.root(scope.guard).expect("the model has added something");
            self.shard.compact(index, scope).expect("there is memory");
        });
    }

    /// Puts the records that replaced indexes left out on the free list. No thread may be pinned.
    fn reclaim(&self) {
        self.with(0, |scope| {
            let index = self.shard.root(scope.guard).expect("the model has added something");
            index.slab().take_returned::<Number>(index, u32::MAX);
        });
    }

    /// Takes up to `count` private records, or as many as the index has segments for, and gives them back. Returns how
    /// many it took.
    fn take_and_give_back(&self, count: usize) -> usize {
        self.with(0, |scope| {
            let index = self.shard.root(scope.guard).expect("the model has added something");
            let taken: Vec<_> = (0..count)
                .map_while(|key| Private::take(index, &Number(KEY_OF_PRIVATE + key as u64)).ok())
                .collect();
            taken.len()
        })
    }

    /// The invariants at rest: no key twice, the counts are exact, nothing is frozen.
    fn check(&self) {
        self.with(0, |scope| {
            let Some(index) = self.shard.root(scope.guard) else {
                return;
            };
            let mut keys = Vec::new();
            let (mut routes, mut live) = (0, 0);
            let mut of_proxies = [0; 32];
            for slot in index.slots() {
                assert_ne!(slot.load(Ordering::Acquire), FROZEN, "a published index is frozen");
            }
            for (_, record) in index.occupied() {
                read_all(&record, scope.guard, |word| of_proxies[word.proxy() as usize] += 1);
                let word = record.load();
                let here = match word.state() {
                    State::Retired => continue,
                    State::Dead => 0,
                    State::Live => 1,
                    // SAFETY: the word was loaded under the scope's guard.
                    State::Spill => unsafe { List::of(word, scope.guard) }.words().len(),
                };
                assert!(!keys.contains(&record.key()[0]), "a key was inserted twice");
                keys.push(record.key()[0]);
                routes += here;
                live += u32::from(here > 0);
            }
            index.slab().take_returned::<Number>(index, u32::MAX);
            let free = index.slab().free_numbers(index);
            let mut numbers: Vec<_> = index.occupied().map(|(number, _)| number).chain(free).collect();
            numbers.sort_unstable();
            let all: Vec<_> = (0..index.slab().numbers()).collect();
            assert_eq!(numbers, all, "records were lost, or are in two places");
            assert_eq!(routes, self.route_limit.get(), "routes are miscounted");
            let counts = self
                .counts
                .each_ref()
                .map(|count| count.load(atomic::Ordering::Relaxed));
            assert_eq!(counts, of_proxies, "routes of a proxy are miscounted");
            assert_eq!(live, index.slab().live(), "nodes are miscounted");
            assert_eq!(
                index.occupied().count() as u32,
                index.slab().used(),
                "slots are miscounted"
            );
        });
    }
}

/// Runs one execution of a model: `before` alone, then `threads` at once, then `after` alone.
fn model<R: Send + 'static>(
    before: impl Fn(&World) + Send + Sync + 'static,
    threads: Vec<StdArc<dyn Fn(&World) -> R + Send + Sync>>,
    after: impl Fn(&World, Vec<R>) + Send + Sync + 'static,
) {
    // With three preemptions, models of three threads would take minutes.
    let preemptions = if threads.len() > 2 { 2 } else { 3 };
    model_of(preemptions, before, threads, after);
}

/// [`model`] with at most this many preemptions.
fn model_of<R: Send + 'static>(
    preemptions: usize,
    before: impl Fn(&World) + Send + Sync + 'static,
    threads: Vec<StdArc<dyn Fn(&World) -> R + Send + Sync>>,
    after: impl Fn(&World, Vec<R>) + Send + Sync + 'static,
) {
    let one = move || {
        let world = Arc::new(World::new());
        before(&world);
        let handles: Vec<_> = threads
            .iter()
            .map(|thread| {
                let (world, thread) = (Arc::clone(&world), StdArc::clone(thread));
                thread::spawn(move || thread(&world))
            })
            .collect();
        let results: Vec<R> = handles
            .into_iter()
            .map(|handle| handle.join().expect("it ends"))
            .collect();
        world.check();
        after(&world, results);
        world.check();
    };
    epoch::check_then(preemptions, one, || {
        let left = TICKETS.take().0;
        assert!(left.is_empty(), "keys were never freed");
    });
}

/// A thread of a model.
fn thread<R>(f: impl Fn(&World) -> R + Send + Sync + 'static) -> StdArc<dyn Fn(&World) -> R + Send + Sync> {
    StdArc::new(f)
}

#[test]
fn one_key_is_never_inserted_twice() {
    model(
        |_| {},
        vec![thread(|world| world.add(1, 0, 1)), thread(|world| world.add(1, 0, 1))],
        |world, added| {
            let inserted = added.iter().filter(|added| **added == Added::Inserted).count();
            assert_eq!((inserted, world.get(1, 1)), (1, vec![(0, 1)]));
        },
    );
}

#[test]
fn an_insert_during_a_freeze_is_not_lost() {
    model(
        |world| _ = world.add(1, 0, 1),
        vec![thread(|world| _ = world.add(2, 1, 1)), thread(|world| world.rebuild(1))],
        |world, _| {
            assert_eq!(world.get(1, 1), [(0, 1)]);
            assert_eq!(world.get(2, 1), [(1, 1)]);
        },
    );
}

/// The home bucket of key 4 is the first of two. If this bucket is frozen when key 4 is inserted, and the other is not
/// yet, no look-up would find key 4 in the other.
#[test]
fn an_insert_during_a_freeze_is_found_at_once() {
    model(
        |world| [1, 3].into_iter().for_each(|key| _ = world.add(key, 0, 1)),
        vec![
            thread(|world| {
                world.add(4, 1, 1);
                assert_eq!(world.get(4, 1), [(1, 1)]);
            }),
            thread(|world| world.rebuild(1)),
        ],
        |_, _| (),
    );
}

#[test]
fn a_key_that_comes_back_during_a_rebuild_is_there_once() {
    model(
        |world| {
            world.add(1, 0, 1);
            assert_eq!(world.remove(1, Change::RemoveNode, 1), 1);
        },
        vec![
            thread(|world| assert_eq!(world.add(1, 1, 2), Added::Inserted)),
            thread(|world| world.rebuild(2)),
        ],
        |world, _| assert_eq!(world.get(1, 2), [(1, 2)]),
    );
}

#[test]
fn a_key_whose_record_a_losing_rebuild_retired_comes_back_once() {
    model(
        |world| {
            world.add(1, 0, 1);
            world.with(1, |scope| {
                let old = world.shard.root(scope.guard).expect("a key was added");
                world.shard.rebuild(old, false, scope).expect("there is memory");
                assert_eq!(world.remove(1, Change::RemoveNode, 1), 1);
                world.shard.rebuild(old, false, scope).expect("there is memory");
            });
        },
        vec![thread(|world| world.add(1, 0, 2)), thread(|world| world.add(1, 1, 2))],
        |world, added| {
            assert_eq!(added, [Added::Inserted; 2]);
            assert_eq!(world.get(1, 2).len(), 2);
        },
    );
}

/// A refresh is late: it has loaded the word before a later refresh changed it, or it finds the later time there. No
/// reader sees the time decrease.
#[test]
fn of_two_refreshes_the_later_time_stays() {
    model(
        |world| _ = world.add(1, 0, 1),
        vec![
            thread(|world| assert_eq!(world.add(1, 0, 5), Added::Refreshed)),
            thread(|world| {
                assert_eq!(world.add(1, 0, 3), Added::Refreshed);
                assert_eq!(world.add(1, 0, 4), Added::Refreshed);
            }),
            thread(|world| {
                let [before, after] = [(); 2].map(|()| world.get(1, 5)[0].1);
                assert!(before <= after, "{before}, then {after}");
            }),
        ],
        |world, _| assert_eq!(world.get(1, 5), [(0, 5)]),
    );
}

/// The refresh in the list precedes the freeze of its word, or meets the frozen word, or a word of a list that is
/// retired. In the last two cases the refresh reads the record's word again.
#[test]
fn a_refresh_is_not_lost_to_a_list_that_is_replaced() {
    model(
        |world| {
            world.add(1, 0, 1);
            world.add(1, 1, 2);
        },
        vec![
            thread(|world| assert_eq!(world.add(1, 0, 5), Added::Refreshed)),
            thread(|world| assert_eq!(world.add(1, 2, 3), Added::Inserted)),
        ],
        |world, _| assert_eq!(world.get(1, 5), [(0, 5), (2, 3), (1, 2)]),
    );
}

/// The refresh and the sweep of an expired route: either CAS may come between the other thread's load and CAS.
#[test]
fn a_refreshed_route_survives_the_sweep_or_comes_back() {
    model(
        |world| _ = world.add(1, 0, 1),
        vec![
            // At tick 12, the route of tick 1 is expired.
            thread(|world| assert_eq!(world.add(1, 0, 12), Added::Inserted)),
            thread(|world| _ = world.sweep(12)),
        ],
        |world, _| assert_eq!(world.get(1, 12), [(0, 12)]),
    );
}

/// The CAS of either thread may come between the other thread's load and CAS: the refresh then inserts, or the removal
/// removes the later time.
#[test]
fn of_a_refresh_and_a_removal_one_comes_last() {
    model(
        |world| _ = world.add(1, 0, 1),
        vec![
            thread(|world| usize::from(world.add(1, 0, 2) == Added::Inserted)),
            thread(|world| world.remove(1, Change::RemoveNode, 2)),
        ],
        |world, results| {
            assert_eq!(results[1], 1, "the route was there when the removal came");
            let routes = world.get(1, 2).len();
            assert_eq!(
                routes, results[0],
                "an insertion came after the removal, a refresh before it"
            );
        },
    );
}

#[test]
fn a_change_during_a_move_is_not_lost() {
    model(
        |world| {
            world.add(1, 0, 1);
            world.add(2, 0, 1);
            world.add(2, 1, 1);
        },
        vec![
            thread(|world| {
                assert_eq!(world.add(1, 0, 5), Added::Refreshed);
                assert_eq!(world.add(2, 0, 5), Added::Refreshed);
            }),
            thread(|world| world.compact(1)),
        ],
        |world, _| {
            assert_eq!(world.get(1, 5), [(0, 5)]);
            assert_eq!(world.get(2, 5), [(0, 5), (1, 1)]);
        },
    );
}

#[test]
fn an_insert_during_a_move_is_not_lost() {
    model(
        |world| _ = world.add(1, 0, 1),
        vec![thread(|world| _ = world.add(2, 1, 1)), thread(|world| world.compact(1))],
        |world, _| {
            assert_eq!(world.get(1, 1), [(0, 1)]);
            assert_eq!(world.get(2, 1), [(1, 1)]);
        },
    );
}

/// The rebuild meets frozen words, and becomes a move. The rebuild or the move loses the CAS of the root to the other.
/// Meanwhile a route is refreshed, and a key that both leave out is inserted again.
#[test]
fn a_rebuild_and_a_move_keep_what_is_there() {
    model_of(
        2,
        |world| {
            world.add(1, 0, 1);
            world.add(2, 0, 1);
            world.remove(2, Change::RemoveNode, 1);
        },
        vec![
            thread(|world| {
                world.rebuild(1);
                assert_eq!(world.add(1, 0, 2), Added::Refreshed);
            }),
            thread(|world| {
                world.compact(1);
                assert_eq!(world.add(2, 1, 2), Added::Inserted);
            }),
        ],
        |world, _| {
            assert_eq!(world.get(1, 2), [(0, 2)]);
            assert_eq!(world.get(2, 2), [(1, 2)]);
            // The root may still have frozen words; they delay no operation.
            assert_eq!(world.add(1, 0, 3), Added::Refreshed);
            assert_eq!(world.remove(2, Change::RemoveNode, 3), 1);
            assert_eq!(world.sweep(3), 0);
        },
    );
}

/// The removal precedes the freeze of the word, or meets the frozen word before or after the CAS of the root.
#[test]
fn a_removal_during_a_move_is_not_undone() {
    model(
        |world| _ = world.add(1, 0, 1),
        vec![
            thread(|world| assert_eq!(world.remove(1, Change::RemoveNode, 1), 1)),
            thread(|world| world.compact(1)),
        ],
        |world, _| assert_eq!(world.get(1, 1), []),
    );
}

#[test]
fn of_a_refresh_a_removal_and_a_sweep_none_undoes_another() {
    model(
        |world| _ = world.add(1, 0, 1),
        vec![
            // The route of tick 1 is expired at tick 12.
            thread(|world| usize::from(world.add(1, 0, 12) == Added::Inserted)),
            thread(|world| world.remove(1, Change::RemoveNode, 12)),
            thread(|world| world.sweep(12)),
        ],
        |world, results| {
            let [inserted, removed, _] = results[..] else {
                unreachable!()
            };
            assert_eq!(inserted, 1, "the route had expired");
            assert_eq!(
                world.get(1, 12).len(),
                1 - removed,
                "the removal took away the routes that it reported"
            );
        },
    );
}

/// Both threads build a list from the same word. The loser builds another list from the winner's list, whose words it
/// freezes.
#[test]
fn of_two_lists_that_replace_one_both_additions_are_in_the_last() {
    model(
        |world| {
            world.add(1, 0, 1);
        },
        vec![
            thread(|world| assert_eq!(world.add(1, 1, 2), Added::Inserted)),
            thread(|world| assert_eq!(world.add(1, 2, 3), Added::Inserted)),
        ],
        |world, _| assert_eq!(world.get(1, 3), [(2, 3), (1, 2), (0, 1)]),
    );
}

/// A refresh races with a change after which the record's word is one route instead of another list.
#[test]
fn a_refresh_is_not_lost_to_a_list_that_becomes_one_route() {
    model(
        |world| {
            world.add(1, 0, 1);
            world.add(1, 1, 1);
        },
        vec![
            thread(|world| assert_eq!(world.add(1, 0, 5), Added::Refreshed)),
            thread(|world| assert_eq!(world.remove(1, Change::RemoveRoute(1), 2), 1)),
        ],
        |world, _| assert_eq!(world.get(1, 5), [(0, 5)]),
    );
}

/// The reader has loaded the record's word, and reads the list's words before, during or after the freeze, or after the
/// list is retired.
#[test]
fn a_list_that_is_replaced_is_read_whole() {
    model(
        |world| {
            world.add(1, 0, 1);
            world.add(1, 1, 1);
        },
        vec![
            thread(|world| {
                let routes = world.get(1, 2);
                assert!(
                    [&[(1, 1), (0, 1)][..], &[(2, 2), (1, 1), (0, 1)]].contains(&&routes[..]),
                    "{routes:?}"
                );
            }),
            thread(|world| _ = world.add(1, 2, 2)),
        ],
        |_, _| {},
    );
}

/// The record goes from key 1 to key 2 while a thread with a handle of key 1 stands between any two of its steps.
#[test]
fn a_handle_never_refreshes_a_stranger() {
    let seen = |world: &World, key: u64, proxy, now| {
        world.with(now, |scope| {
            let candidate = world.shard.numbered(0, scope.guard).expect("a record was used");
            candidate.refresh::<Number, _>(proxy, |stored| stored[0] == key, scope)
        })
    };
    model(
        |world| _ = world.add(1, 0, 1),
        vec![
            // The first record is key 1's.
            thread(move |world| _ = seen(world, 1, 0, 9)),
            thread(|world| {
                assert_eq!(world.remove(1, Change::RemoveNode, 2), 1);
                world.rebuild(2);
                world.reclaim();
                // The record is free, unless the other thread is pinned: key 2 takes it.
                world.add(2, 0, 3);
            }),
        ],
        |world, _| {
            assert_eq!(world.get(1, 9), []);
            assert_eq!(world.get(2, 9), [(0, 3)], "a handle of key 1 refreshed key 2");
        },
    );
}

/// The same for a page, which has kept the number of key 1's record.
#[test]
fn a_page_never_reads_a_stranger() {
    model(
        |world| _ = world.add(1, 0, 1),
        vec![
            thread(|world| {
                let found = world.with(9, |scope| {
                    let record = world.shard.numbered(0, scope.guard).expect("a record was used");
                    record.word(&Number(1))
                });
                assert!(
                    found.is_none_or(|word| word.proxy() == 0),
                    "a route of key 2: {found:?}"
                );
            }),
            thread(|world| {
                assert_eq!(world.remove(1, Change::RemoveNode, 2), 1);
                world.rebuild(2);
                world.reclaim();
                world.add(2, 1, 3);
            }),
        ],
        |world, _| assert_eq!(world.get(2, 9), [(1, 3)]),
    );
}

/// The reader has the record's number, and is pinned. Meanwhile, a rebuild leaves the record out, and another key asks
/// for a record.
#[test]
fn a_record_is_not_reused_while_somebody_looks_at_it() {
    model(
        |world| _ = world.add(1, 0, 1),
        vec![
            thread(|world| {
                let routes = world.get(1, 3);
                assert!(routes.is_empty() || routes == [(0, 1)], "{routes:?} of another key");
            }),
            thread(|world| {
                world.remove(1, Change::RemoveNode, 2);
                world.rebuild(2);
                world.reclaim();
                world.add(2, 1, 3);
            }),
        ],
        |world, _| assert_eq!(world.get(2, 3), [(1, 3)]),
    );
}

#[test]
fn a_free_record_is_taken_once() {
    model(
        |world| {
            world.add(1, 0, 1);
            world.add(2, 0, 1);
            world.remove(1, Change::RemoveNode, 1);
            world.remove(2, Change::RemoveNode, 1);
            world.rebuild(1);
            world.reclaim();
        },
        // Two threads take the head of the free list. One of them gives it back at once and takes again: no ABA.
        vec![
            thread(|world| {
                world.take_and_give_back(2);
                _ = world.add(3, 0, 2);
            }),
            thread(|world| _ = world.add(4, 1, 2)),
        ],
        |world, _| {
            assert_eq!(world.get(3, 2), [(0, 2)]);
            assert_eq!(world.get(4, 2), [(1, 2)]);
            world.add(5, 0, 2);
            world.add(6, 0, 2);
            assert_eq!([3, 4, 5, 6].map(|key| world.get(key, 2).len()), [1; 4]);
        },
    );
}

#[test]
fn a_number_that_was_never_used_is_taken_once() {
    model(
        |world| _ = world.add(9, 0, 1),
        vec![
            thread(|world| _ = world.add(1, 0, 1)),
            thread(|world| _ = world.add(2, 1, 1)),
        ],
        |world, _| {
            assert_eq!(world.get(1, 1), [(0, 1)]);
            assert_eq!(world.get(2, 1), [(1, 1)]);
        },
    );
}

#[test]
fn what_a_rebuild_left_out_comes_back_once() {
    model(
        |world| {
            for key in 1..=2 {
                world.add(key, 0, 1);
                world.remove(key, Change::RemoveNode, 1);
            }
        },
        vec![
            thread(|world| {
                world.rebuild(1);
                world.reclaim();
            }),
            thread(|world| _ = world.add(5, 1, 2)),
        ],
        |world, _| {
            world.reclaim();
            for key in 6..9 {
                world.add(key, 2, 2);
            }
            let routes = [5, 6, 7, 8].map(|key| world.get(key, 2));
            assert_eq!(routes, [[(1, 2)], [(2, 2)], [(2, 2)], [(2, 2)]]);
        },
    );
}

#[test]
fn of_two_rebuilds_one_wins_and_nothing_is_lost() {
    model(
        |world| {
            world.add(1, 0, 1);
            world.add(2, 0, 1);
            world.remove(2, Change::RemoveNode, 1);
        },
        vec![
            thread(|world| {
                world.rebuild(1);
                assert_eq!(world.add(2, 1, 2), Added::Inserted);
            }),
            thread(|world| world.rebuild(1)),
        ],
        |world, _| {
            assert_eq!(world.get(1, 2), [(0, 1)]);
            assert_eq!(world.get(2, 2), [(1, 2)]);
        },
    );
}

#[test]
fn of_two_moves_one_wins_and_nothing_is_lost() {
    model(
        |world| {
            world.add(1, 0, 1);
            world.add(1, 1, 1);
            world.add(2, 0, 1);
        },
        vec![thread(|world| world.compact(1)), thread(|world| world.compact(1))],
        |world, _| {
            assert_eq!(world.get(1, 1), [(1, 1), (0, 1)]);
            assert_eq!(world.get(2, 1), [(0, 1)]);
            assert_eq!(world.add(1, 0, 2), Added::Refreshed);
        },
    );
}

#[test]
fn a_sweep_finds_what_a_move_takes_elsewhere() {
    model(
        |world| {
            world.add(1, 0, 1);
            world.add(3, 1, 5);
        },
        vec![
            thread(|world| {
                // Visit one record at a time.
                let mut at = Some(RecordPosition::default());
                let mut seen = false;
                while let Some(from) = at {
                    at = world.with(12, |scope| {
                        let visit = world
                            .shard
                            .visit(from, 1, &RebuildSlot::default(), scope, &mut |route: Word| {
                                seen |= route.proxy() == 1
                            });
                        visit.next
                    });
                }
                assert!(seen, "a route that was there all along was not seen");
            }),
            thread(|world| world.compact(5)),
        ],
        |world, _| {
            // All except the route that is expired at tick 12.
            assert_eq!(world.route_limit.get(), 1);
            assert_eq!(world.get(3, 12), [(1, 5)]);
        },
    );
}

/// A stale link would make the record behind it the first of the list, or end the list there: `check` misses some
/// records, or finds them twice.
#[test]
fn a_record_that_was_given_back_is_taken_with_its_link() {
    model(
        |world| (1..=2).for_each(|key| _ = world.add(key, 0, 1)),
        vec![
            thread(|world| assert_eq!(world.take_and_give_back(2), 2)),
            thread(|world| assert_eq!(world.take_and_give_back(1), 1)),
        ],
        |world, _| assert_eq!(world.take_and_give_back(2), 2),
    );
}

/// Both threads take numbers that were never used, so either thread installs the segment, and the other increments the
/// first unused number.
#[test]
fn a_sweep_knows_the_segment_of_each_number() {
    model(
        |world| (1..=2).for_each(|key| _ = world.add(key, 0, 1)),
        vec![
            thread(|world| _ = world.take_and_give_back(2)),
            thread(|world| _ = world.take_and_give_back(1)),
            thread(|world| {
                world.with(0, |scope| {
                    let index = world.shard.root(scope.guard).expect("the model has added something");
                    let last = index.slab().numbers() - 1;
                    assert!(index.record(last).is_some(), "no segment for number {last}");
                });
            }),
        ],
        |_, _| {},
    );
}

fn a_segment_that_is_installed_is_kept(rebuild: fn(&World, u64)) {
    model(
        |world| (1..=2).for_each(|key| _ = world.add(key, 0, 1)),
        vec![
            thread(|world| _ = world.take_and_give_back(2)),
            thread(move |world| rebuild(world, 1)),
        ],
        |world, _| (3..6).for_each(|key| assert_eq!(world.add(key, 0, 1), Added::Inserted)),
    );
}

/// The segment comes before the rebuild freezes the segment's entry, or meets the frozen entry.
#[test]
fn a_segment_that_is_installed_during_a_rebuild_is_kept() {
    a_segment_that_is_installed_is_kept(World::rebuild);
}

#[test]
fn a_key_that_is_filled_in_and_added_is_there_once() {
    model(
        |_| {},
        vec![
            thread(|world| world.fill(&[1], 1, 2)),
            thread(|world| assert_eq!(world.add(1, 1, 2), Added::Inserted)),
        ],
        |world, _| {
            assert_eq!(world.get(1, 2), [(1, 2), (0, 1)]);
        },
    );
}

/// The fill that loses the CAS of the root adds its routes one by one, beside a copy of the winner's index.
#[test]
fn of_two_fills_each_route_is_there_once() {
    model(
        |_| {},
        vec![
            thread(|world| world.fill(&[1], 2, 2)),
            thread(|world| world.fill(&[1, 2], 1, 2)),
            thread(|world| {
                let copied = world.copy(2);
                assert!([&[][..], &[1], &[1, 2], &[2, 1]].contains(&&copied[..]), "{copied:?}");
            }),
        ],
        |world, _| {
            assert_eq!(world.get(1, 2), [(0, 2)]);
            assert_eq!(world.get(2, 2), [(0, 1)]);
        },
    );
}

/// A rebuild that loses retires the key's first record, so the key is inserted again with another record in the same
/// index.
#[test]
fn a_copy_has_a_key_that_came_back_once() {
    model(
        |world| _ = world.add(1, 0, 1),
        vec![
            thread(|world| {
                let copied = world.copy(2);
                assert!(copied.len() <= 1, "{copied:?}");
            }),
            thread(|world| {
                world.with(1, |scope| {
                    let old = world.shard.root(scope.guard).expect("a key was added");
                    world.shard.rebuild(old, false, scope).expect("there is memory");
                    assert_eq!(world.remove(1, Change::RemoveNode, 1), 1);
                    world.shard.rebuild(old, false, scope).expect("there is memory");
                });
                assert_eq!(world.add(1, 1, 2), Added::Inserted);
            }),
        ],
        |world, _| assert_eq!(world.copy(2), [1]),
    );
}

/// The subscriber drains between the two changes, between a change and its mark, or after both.
#[test]
fn the_last_event_of_a_node_shows_what_the_shard_holds() {
    epoch::check_then(
        3,
        || {
            let world = Arc::new(World::new());
            world.add(1, 0, 1);
            // The feed outlives the subscription.
            let feed = Arc::clone(&world);
            let mut subscription = feed.feed.subscribe();
            let writer = thread::spawn({
                let world = Arc::clone(&world);
                move || {
                    world.add(1, 1, 2);
                    world.remove(1, Change::RemoveRoute(0), 2);
                }
            });
            let mut shown = world.get(1, 2);
            let mut poll = || {
                let drained = subscription.drain_events(9, |_| ()).expect("the ring has room");
                if drained > 0 {
                    shown = world.get(1, 2);
                }
                shown.clone()
            };
            // Lets the writer run first: loom does not find this point by itself.
            thread::yield_now();
            poll();
            writer.join().expect("it ends");
            assert_eq!(poll(), [(1, 2)], "a change came after its event");
        },
        || _ = TICKETS.take(),
    );
}

#[test]
fn a_copy_during_a_move_has_what_stays_once() {
    model(
        |world| {
            world.add(1, 0, 1);
            world.add(2, 0, 1);
        },
        vec![
            thread(|world| {
                let copied = world.copy(2);
                let times = |key| copied.iter().filter(|&&copied| copied == key).count();
                assert!(times(1) == 1 && times(2) <= 1 && times(3) <= 1, "{copied:?}");
            }),
            thread(|world| {
                world.compact(2);
                world.remove(2, Change::RemoveNode, 2);
                world.add(3, 0, 2);
            }),
        ],
        |world, _| assert_eq!(world.get(1, 2), [(0, 1)]),
    );
}

/// The end of the rebuild copies slots that were filled after the copy had passed them, before the freeze or during it.
#[test]
fn an_insert_during_a_rebuild_in_parts_is_not_lost() {
    model(
        |world| [1, 3].into_iter().for_each(|key| _ = world.add(key, 0, 1)),
        vec![
            thread(|world| {
                world.add(2, 1, 1);
                assert_eq!(world.get(2, 1), [(1, 1)]);
            }),
            thread(|world| world.rebuild_in_parts(1)),
        ],
        |world, _| {
            assert_eq!(world.get(1, 1), [(0, 1)]);
            assert_eq!(world.get(2, 1), [(1, 1)]);
            assert_eq!(world.get(3, 1), [(0, 1)]);
        },
    );
}

/// The insertion that exceeds the first limit copies the index before it freezes the index. The other insertion finds
/// no empty slot there, and freezes the index meanwhile. (The models of rebuilds in parts have late insertions.)
#[test]
fn of_two_inserts_at_the_limit_one_rebuilds_ahead_and_both_stay() {
    model(
        |world| {
            world.add(1, 0, 1);
            assert!(world.is_at_first_limit());
        },
        [2, 3].map(|key| thread(move |world| _ = world.add(key, 1, 1))).into(),
        |world, _| {
            for (key, proxy) in [(1, 0), (2, 1), (3, 1)] {
                assert_eq!(world.get(key, 1), [(proxy, 1)]);
            }
        },
    );
}

/// The key's record is RETIRED while its index is the root's. So the key gets another record there, which the end
/// copies.
#[test]
fn a_key_that_comes_back_during_a_rebuild_in_parts_is_there_once() {
    model(
        |world| {
            world.add(1, 0, 1);
            world.add(2, 0, 1);
            assert_eq!(world.remove(1, Change::RemoveNode, 1), 1);
        },
        vec![
            thread(|world| {
                assert_eq!(world.add(1, 1, 2), Added::Inserted);
                assert_eq!(world.get(1, 2), [(1, 2)]);
            }),
            thread(|world| world.rebuild_in_parts(2)),
        ],
        |world, _| assert_eq!((world.get(1, 2), world.get(2, 2)), (vec![(1, 2)], vec![(0, 1)])),
    );
}

/// The home bucket of key 4 is the first: its tombstone is left out before the other rebuild, and its slot is another
/// record's afterwards.
#[test]
fn of_a_rebuild_in_parts_and_another_one_wins_and_nothing_is_lost() {
    model(
        |world| {
            world.add(1, 0, 1);
            world.add(4, 0, 1);
            world.remove(4, Change::RemoveNode, 1);
        },
        vec![
            thread(|world| {
                world.rebuild(1);
                assert_eq!(world.add(4, 1, 2), Added::Inserted);
            }),
            thread(|world| world.rebuild_in_parts(1)),
        ],
        |world, _| assert_eq!((world.get(1, 2), world.get(4, 2)), (vec![(0, 1)], vec![(1, 2)])),
    );
}

#[test]
fn a_rebuild_in_parts_during_a_move_loses_nothing() {
    model(
        |world| (1..=2).for_each(|key| _ = world.add(key, 0, 1)),
        vec![
            thread(|world| {
                world.compact(1);
                assert_eq!(world.add(1, 1, 2), Added::Inserted);
            }),
            thread(|world| world.rebuild_in_parts(1)),
        ],
        |world, _| {
            assert_eq!(world.get(1, 2), [(1, 2), (0, 1)]);
            assert_eq!(world.get(2, 2), [(0, 1)]);
            assert_eq!(world.sweep(2), 0);
        },
    );
}

/// Like `a_segment_that_is_installed_during_a_rebuild_is_kept`, but the rebuild copies the index while the segment may
/// come, and freezes the entries afterwards.
#[test]
fn a_segment_that_is_installed_during_a_rebuild_in_parts_is_kept() {
    a_segment_that_is_installed_is_kept(World::rebuild_in_parts);
}

/// Of two refreshes in one tick, the later comes first if it was called after the other had returned. This holds by
/// rank and in a new list.
#[test]
fn of_two_refreshes_in_one_tick_the_later_comes_first() {
    model(
        |world| (0..3).for_each(|proxy| _ = world.add(1, proxy, 1)),
        vec![
            thread(|world| {
                assert_eq!(world.add(1, 0, 5), Added::Refreshed);
                assert_eq!(world.add(1, 1, 5), Added::Refreshed);
                let routes = world.get(1, 5);
                let place = |proxy| routes.iter().position(|route| *route == (proxy, 5));
                assert!(place(1) < place(0), "{routes:?}");
            }),
            thread(|world| assert_eq!(world.add(1, 2, 5), Added::Refreshed)),
        ],
        |world, _| {
            let routes = world.get(1, 5);
            let place = |proxy| {
                routes
                    .iter()
                    .position(|route| *route == (proxy, 5))
                    .expect("it was refreshed")
            };
            assert!(place(1) < place(0), "{routes:?}");
        },
    );
}

/// Asserts that each of these keys was copied once, and no other key twice.
fn assert_once(copied: &[u64], keys: &[u64]) {
    let times = |key: u64| copied.iter().filter(|&&copied| copied == key).count();
    assert!(keys.iter().all(|&key| times(key) == 1), "{copied:?}");
    assert!(copied.iter().all(|&key| times(key) == 1), "{copied:?}");
}

#[test]
fn a_page_beside_a_rebuild_has_what_stays_once() {
    model(
        |world| (1..=3).for_each(|key| _ = world.add(key, 0, 1)),
        vec![
            thread(|world| assert_once(&world.copy_in_parts(1, 2), &[1, 2])),
            thread(|world| {
                world.remove(3, Change::RemoveNode, 2);
                world.rebuild(2);
                world.add(3, 1, 2);
            }),
        ],
        |world, _| assert_once(&world.copy_in_parts(2, 2), &[1, 2, 3]),
    );
}

/// The keys are displaced from their home buckets, which have two slots.
#[test]
fn a_page_beside_an_insert_has_what_stays_once() {
    model(
        |world| (1..=3).for_each(|key| _ = world.add(key, 0, 1)),
        vec![
            thread(|world| assert_once(&world.copy_in_parts(1, 2), &[1, 2, 3])),
            thread(|world| (4..=5).for_each(|key| _ = world.add(key, 1, 2))),
        ],
        |world, _| assert_once(&world.copy_in_parts(1, 2), &[1, 2, 3, 4, 5]),
    );
}

#[test]
fn a_page_beside_a_move_has_what_stays_once() {
    model(
        |world| (1..=3).for_each(|key| _ = world.add(key, 0, 1)),
        vec![
            thread(|world| assert_once(&world.copy_in_parts(1, 2), &[1, 2])),
            thread(|world| {
                world.remove(3, Change::RemoveNode, 2);
                world.compact(2);
                world.add(3, 1, 2);
            }),
        ],
        |world, _| assert_once(&world.copy_in_parts(2, 2), &[1, 2, 3]),
    );
}
