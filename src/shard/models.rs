//! loom models of the shard's protocols, named after the property that each shows.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p nodetracker --release --lib models` runs them. The constants shrink there: two slots a bucket,
//! segments of two records.

use std::sync::Arc as StdArc;

use ahash::RandomState;
use loom::sync::Arc;
use loom::thread;

use super::index::FROZEN;
use super::list::List;
use super::*;
use crate::key::UuidKey;
use crate::sync::{AtomicU32, epoch, pin};

/// A shard with all that an operation needs, for keys that are small numbers.
struct World {
    shard: Shard<UuidKey>,
    hasher: RandomState,
    count: RouteCount,
    /// One bit per dead proxy.
    dead: AtomicU32,
    feed: Feed,
}

struct Proxies<'a>(&'a AtomicU32);

impl Liveness for Proxies<'_> {
    fn has(&self, proxy: u32) -> bool {
        // Acquire: as the life of a proxy's entry.
        self.0.load(Ordering::Acquire) & (1 << proxy) == 0
    }

    fn left(&self, _proxy: u32, _tick: u64) {}
}

impl World {
    fn new() -> Self {
        Self {
            shard: Shard::new(),
            hasher: RandomState::with_seeds(1, 2, 3, 4),
            count: RouteCount::new(100),
            dead: AtomicU32::new(0),
            feed: Feed::default(),
        }
    }

    fn with<R>(&self, now: u64, f: impl FnOnce(&Scope<'_, Proxies<'_>>) -> R) -> R {
        let guard = pin();
        f(&Scope {
            guard: &guard,
            hasher: &self.hasher,
            count: &self.count,
            proxies: &Proxies(&self.dead),
            now,
            keep_alive: 10,
            shard: 0,
            feed: &self.feed,
        })
    }

    fn add(&self, key: u64, proxy: u32, now: u64) -> Added {
        let key = UuidKey([key, 7]);
        self.with(now, |scope| self.shard.add(&key, key.hash(&self.hasher), proxy, scope))
            .expect("there is room")
            .0
    }

    fn remove(&self, key: u64, what: Change, now: u64) -> usize {
        let key = UuidKey([key, 7]);
        self.with(now, |scope| {
            self.shard.remove(&key, key.hash(&self.hasher), what, scope)
        })
    }

    /// Proxies and times, newest first.
    fn get(&self, key: u64, now: u64) -> Vec<(u32, u64)> {
        let key = UuidKey([key, 7]);
        self.with(now, |scope| {
            let words = self.shard.get(&key, key.hash(&self.hasher), scope);
            words.iter().map(|word| (word.proxy(), word.time())).collect()
        })
    }

    fn sweep(&self, now: u64) -> usize {
        self.with(now, |scope| {
            let mut at = Some(Mark::default());
            let mut removed = 0;
            while let Some(from) = at {
                let visit = self.shard.visit(from, 100, scope, |_| ());
                (at, removed) = (visit.next, removed + visit.removed);
            }
            removed
        })
    }

    /// Replaces the index, whether or not that is due.
    fn rebuild(&self, now: u64) {
        self.with(now, |scope| {
            let index = self.shard.root(scope.guard).expect("the model has added something");
            self.shard.rebuild(index, false, scope).expect("there is memory");
        });
    }

    /// Moves the shard to another slab, whether or not that is due.
    fn relocate(&self, now: u64) {
        self.with(now, |scope| {
            let index = self.shard.root(scope.guard).expect("the model has added something");
            self.shard.relocate(index, scope).expect("there is memory");
        });
    }

    /// What must hold whenever nobody is at work: no key twice, the counts are exact, nothing is frozen.
    fn check(&self) {
        self.with(0, |scope| {
            let Some(index) = self.shard.root(scope.guard) else {
                return;
            };
            let mut keys = Vec::new();
            let (mut routes, mut live) = (0, 0);
            for slot in index.slots() {
                assert_ne!(slot.load(Ordering::Acquire), FROZEN, "a published index is frozen");
            }
            for (_, record) in index.occupied() {
                let word = record.load();
                let here = match word.state() {
                    State::Retired => continue,
                    State::Dead => 0,
                    State::Live => 1,
                    // SAFETY: loaded under the scope's guard.
                    State::Spill => unsafe { List::of(word, scope.guard) }.words().len(),
                };
                assert!(!keys.contains(&record.key()), "a key was inserted twice");
                keys.push(record.key());
                routes += here;
                live += u32::from(here > 0);
            }
            assert_eq!(routes, self.count.get(), "routes are miscounted");
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
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(builder.preemption_bound.unwrap_or(3));
    builder.check(move || {
        epoch::begin();
        let world = Arc::new(World::new());
        before(&world);
        let mut handles = Vec::new();
        let (last, others) = threads.split_last().expect("a model has threads");
        for thread in others {
            let (world, thread) = (Arc::clone(&world), StdArc::clone(thread));
            handles.push(thread::spawn(move || thread(&world)));
        }
        let last = last(&world);
        let mut results: Vec<R> = handles
            .into_iter()
            .map(|handle| handle.join().expect("it ends"))
            .collect();
        results.push(last);
        world.check();
        after(&world, results);
        world.check();
        drop(world);
        epoch::bury();
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

#[test]
fn a_refreshed_route_survives_the_sweep_or_comes_back() {
    model(
        |world| _ = world.add(1, 0, 1),
        vec![
            // Tick 12 finds the route of tick 1 expired.
            thread(|world| assert_eq!(world.add(1, 0, 12), Added::Inserted)),
            thread(|world| _ = world.sweep(12)),
        ],
        |world, _| assert_eq!(world.get(1, 12), [(0, 12)]),
    );
}

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
            thread(|world| world.relocate(1)),
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
        vec![
            thread(|world| _ = world.add(2, 1, 1)),
            thread(|world| world.relocate(1)),
        ],
        |world, _| {
            assert_eq!(world.get(1, 1), [(0, 1)]);
            assert_eq!(world.get(2, 1), [(1, 1)]);
        },
    );
}

#[test]
fn a_rebuild_and_a_move_keep_what_is_there() {
    model(
        |world| {
            world.add(1, 0, 1);
            world.add(2, 0, 1);
            world.remove(2, Change::RemoveNode, 1);
        },
        vec![thread(|world| world.rebuild(1)), thread(|world| world.relocate(1))],
        |world, _| {
            assert_eq!(world.get(1, 1), [(0, 1)]);
            // Frozen words may have stayed in the root; they hold nobody up.
            assert_eq!(world.add(1, 0, 2), Added::Refreshed);
            assert_eq!(world.add(2, 0, 2), Added::Inserted);
            assert_eq!(world.sweep(2), 0);
        },
    );
}

#[test]
fn a_removal_during_a_move_is_not_undone() {
    model(
        |world| _ = world.add(1, 0, 1),
        vec![
            thread(|world| assert_eq!(world.remove(1, Change::RemoveNode, 1), 1)),
            thread(|world| world.relocate(1)),
        ],
        |world, _| assert_eq!(world.get(1, 1), []),
    );
}
