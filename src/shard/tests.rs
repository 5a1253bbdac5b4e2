//! Tests that use the internals of a shard.

use std::cell::{Cell, RefCell};
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::*;
use crate::builder::Builder;
use crate::layout::{MAX_RECORDS, MAX_ROUTES_PER_NODE, SHARD_BITS, SHARDS, SLOTS_PER_BUCKET};
use crate::liveness::{Holder, Liveness};
use crate::shard::Scope;
use crate::shard::key::UuidKey;
use crate::shard::new_index::UnclearedIndex;
use crate::shard::routes::Change;
use crate::shard::scan::{Next, Start};
use crate::shard::slab::FreedNumbers;
use crate::sync::pin;
use crate::types::node_id::NodeId;

struct AllAlive;

impl Liveness for AllAlive {
    fn has(&self, _proxy: u32) -> bool {
        true
    }

    fn has_room(&self, _proxy: u32) -> Result<(), Holder> {
        Ok(())
    }

    fn has_text_room(&self, _len: usize) -> bool {
        true
    }

    fn reserve(&self, _proxy: u32) -> Result<(), Holder> {
        Ok(())
    }

    fn count(&self, _proxy: u32, _more: i32) {}

    fn left(&self, _proxy: u32, _tick: u64) {}
}

struct World {
    hasher: RandomState,
    route_limit: RouteLimit,
    feed: Feed,
}

impl World {
    fn new(hasher: RandomState) -> Self {
        Self {
            hasher,
            route_limit: RouteLimit::new(usize::MAX),
            feed: Feed::default(),
        }
    }

    fn with<R>(&self, f: impl FnOnce(&Scope<'_, AllAlive>) -> R) -> R {
        let guard = pin();
        f(&Scope {
            guard: &guard,
            hasher: &self.hasher,
            route_limit: &self.route_limit,
            proxies: &AllAlive,
            now: 1,
            keep_alive: 10,
            kept_age: 10,
            feed: &self.feed,
        })
    }
}

static FREED: AtomicUsize = AtomicUsize::new(0);

/// A key that counts how often it is freed.
struct Counted([u64; 2]);

impl Key for Counted {
    const OWNS_MEMORY: bool = true;

    fn hash(&self, hasher: &RandomState) -> u64 {
        Self::hash_stored(self.0, hasher)
    }

    unsafe fn is(&self, stored: [u64; 2]) -> bool {
        stored == self.0
    }

    fn store(&self) -> Option<[u64; 2]> {
        Some(self.0)
    }

    fn hash_stored(stored: [u64; 2], hasher: &RandomState) -> u64 {
        hasher.hash_one(stored)
    }

    unsafe fn node(_stored: [u64; 2]) -> NodeId {
        Uuid::nil().into()
    }

    unsafe fn free(_stored: [u64; 2]) {
        // Relaxed: a count alone.
        FREED.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_key_that_a_losing_move_froze_is_freed_with_the_table() {
    let world = World::new(RandomState::with_seeds(1, 2, 3, 4));
    let shard = Shard::<Counted>::new(0);
    world.with(|scope| {
        let key = Counted([1, 1]);
        shard
            .put(&key, key.hash(scope.hasher), Change::Add(0), scope)
            .expect("there is room");
        let old = shard.root(scope.guard).expect("it was made");
        shard.rebuild(old, false, scope).expect("there is memory");
        // This move began before the rebuild, and loses to it.
        shard.compact(old, scope).expect("there is memory");
        let (_, record) = shard
            .find(&key, key.hash(scope.hasher), scope.guard)
            .expect("it is there");
        assert!(record.load().is_frozen());
    });
    drop(shard);
    // Relaxed: a count alone.
    assert_eq!(FREED.load(Ordering::Relaxed), 1);
}

/// A thread that copies an index alone is stopped. The others insert into that index up to the second limit.
#[test]
fn insertions_go_on_in_an_index_that_one_thread_copies() {
    let _alone = crate::verify::failpoints::alone();
    let world = World::new(RandomState::with_seeds(1, 2, 3, 4));
    let shard = Shard::<UuidKey>::new(0);
    let insert = |number: u128| {
        world.with(|scope| {
            let key = UuidKey::from(Uuid::from_u128(number));
            let added = shard.put(&key, key.hash(scope.hasher), Change::Add(0), scope);
            assert_eq!(added.map(|(added, _)| added), Ok(Added::Inserted));
        });
    };
    let index = || {
        world.with(|scope| {
            let index = shard.root(scope.guard).expect("it was made");
            (index.shape().serial, index.slab().used(), index.shape().buckets)
        })
    };
    (0..2_000).for_each(insert);
    let (serial, mut used, buckets) = index();
    (2_000..).take((max_used(buckets) - used) as usize).for_each(insert);
    assert_eq!(index(), (serial, max_used(buckets), buckets));

    crate::verify::failpoints::with_stopped(
        "rebuild: copied",
        || insert(1 << 40),
        || {
            used = max_used(buckets) + 1;
            assert_eq!(index(), (serial, used, buckets));
            for number in 1 << 41.. {
                insert(number);
                used += 1;
                if used > most_used(buckets) {
                    break;
                }
                assert_eq!(index(), (serial, used, buckets), "the index is replaced early");
            }
            assert_eq!(index().0, serial + 1, "the index is not replaced");
        },
    );
    assert_eq!(
        (index().0, index().1),
        (serial + 1, used),
        "the copy that came too late is used"
    );
}

/// The cost of some keys.
#[derive(Debug)]
struct Cost {
    /// Buckets of all indexes, and of the largest.
    buckets: u32,
    largest: u32,
    /// How often the final indexes have changed their seeds.
    reseeds: u32,
    /// The number of keys that were compared in all look-ups.
    comparisons: usize,
    /// Only for display.
    _inserted_in: Duration,
    _found_in: Duration,
}

impl Cost {
    /// Inserts the keys, and looks each of them up.
    fn of(keys: &[UuidKey], hasher: RandomState) -> Cost {
        let world = World::new(hasher);
        let shards: Vec<Shard<UuidKey>> = (0..SHARDS).map(Shard::new).collect();
        let number_of = |hash: u64| (hash >> (64 - SHARD_BITS)) as usize;
        let begin = Instant::now();
        for key in keys {
            let hash = key.hash(&world.hasher);
            let number = number_of(hash);
            world.with(|scope| {
                shards[number]
                    .put(key, hash, Change::Add(0), scope)
                    .expect("there is room");
            });
        }
        let inserted = Instant::now();
        let guard = pin();
        let mut comparisons = 0;
        for key in keys {
            let hash = key.hash(&world.hasher);
            let index = shards[number_of(hash)].root(&guard).expect("it has keys");
            let found = index.find(hash, |record| {
                comparisons += 1;
                // SAFETY: an index has the record, and the guard is pinned.
                unsafe { key.is(record.key()) }.then_some(())
            });
            assert!(found.is_some(), "a key is lost");
        }
        let found = Instant::now();
        let shapes = || shards.iter().filter_map(|shard| Some(shard.root(&guard)?.shape()));
        Cost {
            buckets: shapes().map(|shape| shape.buckets).sum(),
            largest: shapes().map(|shape| shape.buckets).max().unwrap_or(0),
            reseeds: shapes().map(|shape| shape.reseeds).sum(),
            comparisons,
            _inserted_in: inserted - begin,
            _found_in: found - inserted,
        }
    }
}

/// For a million UUIDs, with times:
///
/// ```console
/// $ NODETRACKER_SCALE=250 cargo test --release -p nodetracker --lib chosen_uuids -- --nocapture
/// ```
#[test]
fn chosen_uuids_that_flood_one_bucket_under_a_known_seed_are_harmless_under_a_secret_one() {
    let scale: usize = std::env::var("NODETRACKER_SCALE").map_or(1, |text| text.parse().expect("a number"));
    let count = 4_000 * scale;
    let known = RandomState::with_seeds(1, 2, 3, 4);
    // All are in shard 0. Of the rest of the hash, the bits that pick the bucket agree as far as a search can afford.
    let chosen: Vec<_> = (0..u64::MAX)
        .map(|number| UuidKey([number, 7]))
        .filter(|key| {
            let hash = key.hash(&known);
            hash >> (64 - SHARD_BITS) == 0 && hash.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 59 == 0
        })
        .take(count)
        .collect();
    let random: Vec<_> = (0..count as u64).map(|number| UuidKey([number, 8])).collect();
    let few = 2_000;
    let flooded = Cost::of(&chosen[..few], known);
    let not_flooded = Cost::of(&random[..few], RandomState::new());
    let calm = Cost::of(&random, RandomState::new());
    let secret = Cost::of(&chosen, RandomState::new());
    println!("{count} random: {calm:?}\n{count} chosen: {secret:?}\n{few} under the known seed: {flooded:?}");
    assert!(
        flooded.largest > 8 * not_flooded.largest,
        "the UUIDs were chosen in vain: {flooded:?}, {not_flooded:?}"
    );
    assert!(
        secret.buckets <= 2 * calm.buckets && secret.largest <= 2 * calm.largest,
        "{secret:?}, random ones {calm:?}"
    );
    assert!(
        secret.comparisons <= 2 * calm.comparisons,
        "{secret:?}, random ones {calm:?}"
    );
    assert_eq!((secret.reseeds, calm.reseeds), (0, 0));
}

std::thread_local! {
    /// How often this thread has hashed a stored [`Chosen`]: a rebuild hashes each record that it places in an index.
    static HASHED: Cell<usize> = const { Cell::new(0) };
}

/// A key whose hash is its first half.
struct Chosen(u64);

impl Key for Chosen {
    const OWNS_MEMORY: bool = false;

    fn hash(&self, _hasher: &RandomState) -> u64 {
        self.0
    }

    unsafe fn is(&self, stored: [u64; 2]) -> bool {
        stored[0] == self.0
    }

    fn store(&self) -> Option<[u64; 2]> {
        Some([self.0, 1])
    }

    fn hash_stored(stored: [u64; 2], _hasher: &RandomState) -> u64 {
        HASHED.set(HASHED.get() + 1);
        stored[0]
    }

    unsafe fn node(stored: [u64; 2]) -> NodeId {
        Uuid::from_u64_pair(0, stored[0]).into()
    }

    unsafe fn free(_stored: [u64; 2]) {}
}

/// The hash that [`mix`] turns into `mixed` under seed 0.
fn unmixed(mixed: u64) -> u64 {
    let factor = 0x9E37_79B9_7F4A_7C15_u64;
    let inverse = (0..6).fold(factor, |inverse, _| {
        inverse.wrapping_mul(2_u64.wrapping_sub(factor.wrapping_mul(inverse)))
    });
    assert_eq!(factor.wrapping_mul(inverse), 1);
    inverse.wrapping_mul(mixed)
}

#[test]
fn a_crowded_index_gets_another_seed() {
    let world = World::new(RandomState::with_seeds(1, 2, 3, 4));
    let shard = Shard::<Chosen>::new(0);
    // The sequence of each key begins in bucket 0.
    let keys: Vec<_> = (0..3_000).map(|mixed| Chosen(unmixed(mixed))).collect();
    world.with(|scope| {
        for key in &keys {
            shard.put(key, key.0, Change::Add(0), scope).expect("there is room");
        }
        assert!(keys.iter().all(|key| shard.get(key, key.0, scope).len() == 1));
        let shape = shard.root(scope.guard).expect("it was made").shape();
        assert_ne!(shape.seed, 0, "nothing was crowded");
        assert!(shape.buckets <= 2 * buckets_for(3_000, 0), "it grew instead: {shape:?}");
    });
}

/// All sequences begin in one bucket, so a key that is inserted again gets a record in a later bucket.
#[test]
fn a_copy_has_a_key_that_came_back_meanwhile_once() {
    let world = World::new(RandomState::with_seeds(1, 2, 3, 4));
    let shard = Shard::<Chosen>::new(0);
    // Up to bit 23, the mixed hash picks only the tag.
    let keys: Vec<_> = (0..100).map(|number| Chosen(unmixed(number << 8))).collect();
    world.with(|scope| {
        let add = |key: &Chosen| shard.put(key, key.0, Change::Add(0), scope).expect("there is room").0;
        keys.iter().for_each(|key| _ = add(key));
        let old = shard.root(scope.guard).expect("it was made");
        shard.rebuild(old, false, scope).expect("there is memory");
        let mut copied = Vec::new();
        shard.scan(Start::Beginning, usize::MAX, scope, |node, _, _| {
            let (_, first) = node.as_uuid().expect("a UUID").as_u64_pair();
            if copied.is_empty() {
                // A rebuild that loses retires its record.
                let key = Chosen(first);
                assert_eq!(shard.remove(&key, first, Change::RemoveNode, scope), 1);
                shard.rebuild(old, false, scope).expect("there is memory");
                assert_eq!(add(&key), Added::Inserted);
            }
            copied.push(node);
        });
        let times = copied.iter().filter(|node| **node == copied[0]).count();
        assert_eq!((times, copied.len()), (1, 100));
    });
}

/// The hashes that a copy reports in parts of `most` keys. Calls `between` after each part with the number of keys so
/// far.
fn copied_in_parts(
    shard: &Shard<Chosen>,
    most: usize,
    scope: &Scope<'_, AllAlive>,
    mut between: impl FnMut(usize),
) -> Vec<u64> {
    let mut hashes = Vec::new();
    let hash_of = |node: &NodeId| node.as_uuid().expect("a UUID").as_u64_pair().1;
    let mut part = shard.scan(Start::Beginning, most, scope, |node, _, _| hashes.push(hash_of(&node)));
    loop {
        between(hashes.len());
        let seed = part.seed;
        let start = match &part.next {
            Next::End => return hashes,
            &Next::Rank(rank) => Start::Rank { seed, rank },
            Next::After(node) => Start::After {
                seed,
                hash: hash_of(node),
                node,
            },
        };
        part = shard.scan(start, most, scope, |node, _, _| hashes.push(hash_of(&node)));
    }
}

fn assert_each_once(mut copied: Vec<u64>, keys: &[Chosen], what: &str) {
    copied.sort_unstable();
    let mut expected: Vec<u64> = keys.iter().map(|key| key.0).collect();
    expected.sort_unstable();
    assert!(
        copied == expected,
        "{what}: {} of {} keys",
        copied.len(),
        expected.len()
    );
}

/// The keys of one bucket spill over runs of full buckets, in the middle of the index, and from its end to its
/// beginning.
#[test]
fn parts_of_any_size_have_displaced_keys_once() {
    let _alone = crate::verify::failpoints::alone();
    let world = World::new(RandomState::with_seeds(1, 2, 3, 4));
    let mut random = fastrand::Rng::with_seed(7);
    for middle in [0, 1 << 62, 1 << 63, u64::MAX - (100 << 8)] {
        let shard = Shard::<Chosen>::new(0);
        let crowd = (0..100).map(|number| unmixed(middle + (number << 8)));
        let others = (0..400).map(|_| random.u64(..));
        let keys: Vec<_> = crowd.chain(others).map(Chosen).collect();
        world.with(|scope| {
            for key in &keys {
                shard.put(key, key.0, Change::Add(0), scope).expect("there is room");
            }
            let shape = shard.root(scope.guard).expect("it was made").shape();
            assert_eq!(shape.seed, 0);
            for most in [1, 2, 7, 100, 10_000, usize::MAX] {
                let copied = copied_in_parts(&shard, most, scope, |_| ());
                assert_each_once(copied, &keys, &format!("{middle:#x}, {most} at a time"));
            }
        });
    }
}

#[test]
fn parts_have_each_key_once_though_the_seed_changes_between_them() {
    let _alone = crate::verify::failpoints::alone();
    let world = World::new(RandomState::with_seeds(1, 2, 3, 4));
    // All keys are in one bucket under seed 0.
    let flood: Vec<_> = (0..3_000).map(|number| Chosen(unmixed(number | 1 << 63))).collect();
    for most in [1, 7, 100, usize::MAX] {
        let shard = Shard::<Chosen>::new(0);
        let mut random = fastrand::Rng::with_seed(most as u64);
        // Enough keys that a walk takes several parts, too.
        let keys: Vec<_> = (0..4_000).map(|_| Chosen(random.u64(..))).collect();
        world.with(|scope| {
            let add = |key: &Chosen| _ = shard.put(key, key.0, Change::Add(0), scope).expect("there is room");
            let seed = || shard.root(scope.guard).expect("it was made").shape().seed;
            keys.iter().for_each(add);
            assert_eq!(seed(), 0);
            let mut is_flooded = false;
            let copied = copied_in_parts(&shard, most, scope, |count| {
                if count > 100 && !is_flooded {
                    flood.iter().for_each(add);
                    for key in &flood {
                        shard.remove(key, key.0, Change::RemoveNode, scope);
                    }
                    is_flooded = true;
                }
            });
            assert!(is_flooded && seed() != 0);
            assert_each_once(copied, &keys, &format!("{most} at a time"));
            // A copy that begins now has the new order, and parts as short as before.
            let part = shard.scan(Start::Beginning, 1, scope, |_, _, _| ());
            assert_eq!(part.seed, seed());
            assert!(part.slots <= 64 * SLOTS_PER_BUCKET, "{part:?}");
            let copied = copied_in_parts(&shard, most, scope, |_| ());
            assert_each_once(copied, &keys, &format!("{most} at a time, another seed"));
        });
    }
}

/// Keys with the same hash are in the order of their nodes.
#[test]
fn keys_of_one_hash_are_in_one_part_or_in_two() {
    #[derive(Debug, Clone, Copy)]
    struct Same(u64);

    impl Key for Same {
        const OWNS_MEMORY: bool = false;

        fn hash(&self, _hasher: &RandomState) -> u64 {
            5
        }

        unsafe fn is(&self, stored: [u64; 2]) -> bool {
            stored[0] == self.0
        }

        fn store(&self) -> Option<[u64; 2]> {
            Some([self.0, 1])
        }

        fn hash_stored(_stored: [u64; 2], _hasher: &RandomState) -> u64 {
            5
        }

        unsafe fn node(stored: [u64; 2]) -> NodeId {
            Uuid::from_u64_pair(0, stored[0]).into()
        }

        unsafe fn free(_stored: [u64; 2]) {}
    }

    let world = World::new(RandomState::with_seeds(1, 2, 3, 4));
    let shard = Shard::<Same>::new(0);
    world.with(|scope| {
        for number in [9, 3, 7] {
            shard
                .put(&Same(number), 5, Change::Add(0), scope)
                .expect("there is room");
        }
        let mut nodes = Vec::new();
        let mut next = shard
            .scan(Start::Beginning, 1, scope, |node, _, _| nodes.push(node))
            .next;
        while let Next::After(node) = next {
            let start = Start::After {
                seed: 0,
                hash: 5,
                node: &node,
            };
            next = shard.scan(start, 1, scope, |node, _, _| nodes.push(node)).next;
        }
        let expected = [3, 7, 9].map(|number| NodeId::from(Uuid::from_u128(number)));
        assert_eq!(nodes, expected);
    });
}

/// When every number that a slot can have is in use, the next key is refused. The numbers of removed keys become free
/// again.
#[test]
fn a_full_shard_refuses_keys_until_tombstones_are_shed() {
    const GONE: u32 = MAX_RECORDS / 16;
    let _alone = crate::verify::failpoints::alone();
    let world = World::new(RandomState::with_seeds(1, 2, 3, 4));
    let shard = Shard::new(0);
    let key = |number: u32| UuidKey([number.into(), 1]);
    let add = |number| {
        let key = key(number);
        world.with(|scope| {
            shard
                .put(&key, key.hash(scope.hasher), Change::Add(0), scope)
                .map(|(added, _)| added)
        })
    };
    for number in 0..MAX_RECORDS {
        assert_eq!(add(number), Ok(Added::Inserted), "key {number}");
    }
    assert_eq!(world.route_limit.get(), MAX_RECORDS as usize);
    for number in MAX_RECORDS..MAX_RECORDS + 10 {
        assert_eq!(add(number), Err(CapacityError::Routes), "key {number}");
    }
    assert_eq!(world.route_limit.get(), MAX_RECORDS as usize);
    for number in 0..GONE {
        let key = key(number);
        let removed = world.with(|scope| shard.remove(&key, key.hash(scope.hasher), Change::RemoveNode, scope));
        assert_eq!(removed, 1);
    }
    assert_eq!(
        add(MAX_RECORDS),
        Err(CapacityError::Routes),
        "their numbers wait for a grace period"
    );
    let come_back = (0..10_000_000).any(|_| {
        pin().flush();
        add(MAX_RECORDS).is_ok()
    });
    assert!(come_back, "the numbers of keys that went never came back");
    for number in 1..GONE {
        assert_eq!(add(MAX_RECORDS + number), Ok(Added::Inserted));
    }
    let key = key(GONE);
    assert_eq!(
        world.with(|scope| shard.get(&key, key.hash(scope.hasher), scope).len()),
        1
    );
}

/// As many routes as a table may have, distributed to shards at random, fit into each shard, tombstones included.
#[test]
fn the_greatest_limit_of_routes_can_be_reached() {
    let mean = (Builder::MAX_ROUTES / SHARDS) as f64;
    // Six standard deviations: one table in some millions has such a shard.
    let most = mean + 6.0 * mean.sqrt();
    let tombstones = most / 32.0 + f64::from(SLOTS_PER_BUCKET);
    assert!(
        most + tombstones < f64::from(MAX_RECORDS),
        "{most} records and {tombstones} tombstones"
    );
    assert!(mean > f64::from(MAX_RECORDS) * 0.9, "there is room for more");
}

/// Records until when each proxy had routes.
#[derive(Default)]
struct Left(RefCell<Vec<(u32, u64)>>);

impl Liveness for Left {
    fn has(&self, _proxy: u32) -> bool {
        true
    }

    fn has_room(&self, _proxy: u32) -> Result<(), Holder> {
        Ok(())
    }

    fn has_text_room(&self, _len: usize) -> bool {
        true
    }

    fn reserve(&self, _proxy: u32) -> Result<(), Holder> {
        Ok(())
    }

    fn count(&self, _proxy: u32, _more: i32) {}

    fn left(&self, proxy: u32, tick: u64) {
        self.0.borrow_mut().push((proxy, tick));
    }
}

#[test]
fn a_route_that_goes_was_its_proxys_until_now_or_until_it_expired() {
    let world = World::new(RandomState::with_seeds(1, 2, 3, 4));
    let (shard, left) = (Shard::new(0), Left::default());
    let key = UuidKey([1, 1]);
    let hash = key.hash(&world.hasher);
    let guard = pin();
    let at = |now| Scope {
        guard: &guard,
        hasher: &world.hasher,
        route_limit: &world.route_limit,
        proxies: &left,
        now,
        keep_alive: 10,
        kept_age: 10,
        feed: &world.feed,
    };
    for proxy in 0..3 {
        shard
            .put(&key, hash, Change::Add(proxy), &at(1))
            .expect("there is room");
    }
    assert_eq!(shard.remove(&key, hash, Change::RemoveRoute(0), &at(5)), 1);
    assert_eq!(left.0.take(), [(0, 5)]);
    assert_eq!(
        shard.put(&key, hash, Change::Add(1), &at(6)).map(|(added, _)| added),
        Ok(Added::Refreshed)
    );
    assert_eq!(left.0.take(), []);
    // The route of tick 1 was valid until tick 11, that of tick 6 until tick 16.
    let visit = shard.visit(
        RecordPosition::default(),
        100,
        &RebuildSlot::default(),
        &at(50),
        &mut |_| (),
    );
    assert_eq!(visit.removed, 2);
    let mut gone = left.0.take();
    gone.sort_unstable();
    assert_eq!(gone, [(1, 16), (2, 11)]);
}

#[test]
fn an_addition_that_was_stalled_for_an_interval_displaces_no_valid_route() {
    let world = World::new(RandomState::with_seeds(1, 2, 3, 4));
    let guard = pin();
    let at = |now| Scope {
        guard: &guard,
        hasher: &world.hasher,
        route_limit: &world.route_limit,
        proxies: &AllAlive,
        now,
        keep_alive: 10,
        kept_age: 10,
        feed: &world.feed,
    };
    // A full list, whose oldest route was refreshed before, at, or after the time of the stalled addition.
    for oldest in [19, 20, 21] {
        let shard = Shard::new(0);
        let key = UuidKey([1, 1]);
        let hash = key.hash(&world.hasher);
        let add = |proxy, now| {
            let added = shard.put(&key, hash, Change::Add(proxy), &at(now));
            added.expect("there is room").0
        };
        add(0, oldest);
        (1..MAX_ROUTES_PER_NODE as u32).for_each(|proxy| assert_eq!(add(proxy, 25), Added::Inserted));
        assert_eq!(add(100, 20), Added::Inserted);
        let valid = |now| shard.get(&key, hash, &at(now)).len();
        assert_eq!(valid(25), MAX_ROUTES_PER_NODE, "oldest {oldest}");
        // The addition's own route expires after tick 30.
        let of_others = MAX_ROUTES_PER_NODE - 1 + usize::from(oldest == 21);
        assert_eq!(valid(31), of_others, "oldest {oldest}");
    }
}

#[test]
fn a_probe_sequence_goes_on_in_the_first_bucket() {
    for hash in (0..64_u64).map(|number| number.wrapping_mul(0x0123_4567_89AB_CDEF)) {
        let shape = Shape {
            buckets: 2,
            segments: 0,
            seed: 0,
            reseeds: 0,
            serial: 0,
        };
        let mut index = NewIndex::new(Arc::new(Slab::new(0)), shape).expect("there is memory");
        assert!(
            (0..2 * SLOTS_PER_BUCKET).all(|number| index.place(number, hash)),
            "{hash:#x}"
        );
        assert!(!index.place(99, hash));
    }
}

#[test]
fn a_key_whose_record_a_losing_rebuild_retired_is_inserted_again() {
    let world = World::new(RandomState::with_seeds(1, 2, 3, 4));
    let shard = Shard::new(0);
    world.with(|scope| {
        let key = UuidKey([1, 1]);
        let hash = key.hash(scope.hasher);
        let add = || shard.put(&key, hash, Change::Add(0), scope).expect("there is room").0;
        assert_eq!(add(), Added::Inserted);
        let old = shard.root(scope.guard).expect("it was made");
        shard.rebuild(old, false, scope).expect("there is memory");
        assert_eq!(shard.remove(&key, hash, Change::RemoveNode, scope), 1);
        shard.rebuild(old, false, scope).expect("there is memory");
        assert_eq!(add(), Added::Inserted);
        assert_eq!(add(), Added::Refreshed);
        assert_eq!(shard.get(&key, hash, scope).len(), 1);
    });
}

#[test]
fn a_batch_that_a_stale_index_does_not_know_is_kept() {
    let world = World::new(RandomState::with_seeds(1, 2, 3, 4));
    let shard = Shard::new(0);
    let add = |number: u64, scope: &Scope<'_, AllAlive>| {
        let key = UuidKey([number, 1]);
        shard
            .put(&key, key.hash(scope.hasher), Change::Add(0), scope)
            .expect("there is room");
    };
    world.with(|scope| {
        add(0, scope);
        let stale = shard.root(scope.guard).expect("it was made");
        (1..1_000).for_each(|number| add(number, scope));
        let index = shard.root(scope.guard).expect("it was made");
        let Ok(private) = Private::take(index, &UuidKey([1_000, 1])) else {
            panic!("there is room");
        };
        // SAFETY: no slot has the record, and no code reads the published record.
        let (number, _) = unsafe { private.publish() };
        assert!(stale.record(number).is_none());
        index.slab().hand_over(Box::new(FreedNumbers::new(vec![number])));
        assert_eq!(stale.slab().take_returned::<UuidKey>(stale, 10), 0);
        assert_eq!(index.slab().take_returned::<UuidKey>(index, 10), 1);
        assert_eq!(index.slab().free_numbers(index), [number]);
    });
}

#[test]
fn a_sparse_shard_moves_in_a_visit_of_its_own() {
    let world = World::new(RandomState::with_seeds(1, 2, 3, 4));
    let shard = Shard::new(0);
    world.with(|scope| {
        let hash = |key: &UuidKey| key.hash(scope.hasher);
        let add = |number| {
            let key = UuidKey([number, 1]);
            shard
                .put(&key, hash(&key), Change::Add(0), scope)
                .expect("there is room");
        };
        let visit = |from| shard.visit(from, 1_000, &RebuildSlot::default(), scope, &mut |_| ());
        let move_count = || shard.root(scope.guard).expect("it was made").slab().move_count;
        (0..500).for_each(add);
        for number in 0..400 {
            let key = UuidKey([number, 1]);
            assert_eq!(shard.remove(&key, hash(&key), Change::RemoveNode, scope), 1);
        }
        let visited = visit(RecordPosition::default());
        assert_eq!((visited.visited, move_count()), (1_000, 0));
        // A record that is added meanwhile does not postpone the move.
        add(500);
        let moved = visit(visited.next.expect("the move follows"));
        assert_eq!((moved.visited, moved.next, move_count()), (1_000, None, 1));
    });
}

/// The least number of keys, from `least` on, whose index is a size larger than the index of one key less. So the
/// index has the greatest room.
fn with_most_room(least: u32) -> u32 {
    let is_larger = |keys: &u32| buckets_for(*keys, 0) > buckets_for(keys - 1, 0);
    (least..).find(is_larger).expect("sizes grow")
}

/// Without this, the names of removed nodes stay until the next nodes are inserted into their shard.
#[test]
fn a_sweep_gives_back_in_short_steps_all_that_a_rebuild_left_out() {
    const LEFT_OUT: u64 = 2_000;
    const MOST: u32 = 256;
    let world = World::new(RandomState::with_seeds(1, 2, 3, 4));
    let shard = Shard::new(0);
    world.with(|scope| {
        let key = |number: u64| UuidKey([number, 1]);
        for number in 0..with_most_room(12_000).into() {
            let key = key(number);
            shard
                .put(&key, key.hash(scope.hasher), Change::Add(0), scope)
                .expect("there is room");
        }
        shard
            .rebuild(shard.root(scope.guard).expect("it was made"), false, scope)
            .expect("there is memory");
        let index = shard.root(scope.guard).expect("it was made");
        let taken = (0..LEFT_OUT).map(|number| {
            let Ok(private) = Private::take(index, &key(1 << 32 | number)) else {
                panic!("there is room");
            };
            // SAFETY: no slot has the record, and no code reads the published record.
            unsafe { private.publish() }.0
        });
        index.slab().hand_over(Box::new(FreedNumbers::new(taken.collect())));
        let (mut at, mut free) = (Some(RecordPosition::default()), 0);
        while let Some(from) = at {
            let visit = shard.visit(from, MOST, &RebuildSlot::default(), scope, &mut |_| ());
            let given_back = index.slab().free_numbers(index).len() - free;
            assert!(given_back <= MOST as usize, "{given_back} records in a step");
            (at, free) = (visit.next, free + given_back);
        }
        assert_eq!(free, LEFT_OUT as usize);
    });
}

/// Rebuilds a shard of `keys` in parts, after removing all keys from `stay` on. Inserts `late` after the first part.
/// Returns the number of parts, and the most records that a part copied.
fn rebuild_in_parts(keys: &[Chosen], stay: usize, late: &[Chosen]) -> (u32, usize) {
    let world = World::new(RandomState::with_seeds(1, 2, 3, 4));
    let shard = Shard::<Chosen>::new(0);
    world.with(|scope| {
        let add = |key: &Chosen| _ = shard.put(key, key.0, Change::Add(0), scope).expect("there is room");
        let index = || shard.root(scope.guard).expect("it was made");
        keys.iter().for_each(add);
        shard.rebuild(index(), false, scope).expect("there is memory");
        let before = index().shape();
        for key in &keys[stay..] {
            assert_eq!(shard.remove(key, key.0, Change::RemoveNode, scope), 1);
        }
        let (parked, mut parts, mut most, mut late) = (RebuildSlot::default(), 0, 0, late.iter());
        loop {
            parts += 1;
            HASHED.set(0);
            let is_going_on = shard
                .rebuild_part(index(), 256, &parked, scope)
                .expect("there is memory");
            most = most.max(HASHED.get());
            if !is_going_on {
                break;
            }
            late.by_ref().for_each(add);
            assert_eq!(
                index().shape().serial,
                before.serial,
                "the insertions have replaced the index"
            );
        }
        let after = index().shape();
        assert_eq!(after.serial, before.serial + 1);
        assert_eq!(index().slab().used(), index().slab().live());
        assert_eq!(index().slab().live() as usize, world.route_limit.get());
        (parts, most)
    })
}

/// The buckets that a part copies, and that a part clears.
const COPIED: u32 = (256 / 64 + 1) * 8;
const CLEARED: u32 = COPIED * 16;

fn placed(count: u32, seed: u64) -> Vec<Chosen> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..count).map(|_| Chosen(random.u64(..))).collect()
}

#[test]
fn no_part_of_a_rebuild_clears_or_copies_more_than_its_share() {
    let count = 60_000;
    let stay = count - count / 10;
    let (parts, most) = rebuild_in_parts(&placed(count, 7), stay as usize, &[]);
    let of_clearing = buckets_for(stay, 0).div_ceil(CLEARED);
    let of_copying = buckets_for(count, 0).div_ceil(COPIED);
    assert_eq!(parts, 1 + of_clearing + of_copying);
    assert!(
        most <= (COPIED * SLOTS_PER_BUCKET) as usize,
        "a part copied {most} records"
    );
}

#[test]
fn a_copy_that_has_become_too_small_begins_again() {
    let count = with_most_room(20_000);
    let late = max_used(buckets_for(count, 0)) - count;
    let stay = count - count / 20;
    let slots = buckets_for(stay, 0) * SLOTS_PER_BUCKET;
    assert!(stay + late > slots, "{} keys fit into {slots} slots", stay + late);
    let (_, most) = rebuild_in_parts(&placed(count, 7), stay as usize, &placed(late, 8));
    assert!(
        most <= (COPIED * SLOTS_PER_BUCKET) as usize,
        "a part copied {most} records"
    );
}

#[test]
fn an_index_that_is_not_cleared_can_be_dropped() {
    let shape = Shape {
        buckets: 100,
        segments: 3,
        seed: 0,
        reseeds: 0,
        serial: 0,
    };
    let slab = Arc::new(Slab::new(0));
    let uncleared = UnclearedIndex::new(Arc::clone(&slab), shape);
    let mut half = UnclearedIndex::new(Arc::clone(&slab), shape).expect("there is memory");
    half.clear(50);
    drop((uncleared, half.cleared().err().expect("it is not cleared")));
    assert_eq!(Arc::strong_count(&slab), 1);
}

/// A change of a list reads all of its routes.
#[test]
fn a_step_visits_fewer_records_if_they_have_many_routes() {
    const NODES: u64 = 300;
    let world = World::new(RandomState::with_seeds(1, 2, 3, 4));
    for (routes, steps) in [(1, 2), (MAX_ROUTES_PER_NODE as u32, 10)] {
        let shard = Shard::new(0);
        world.with(|scope| {
            for (node, proxy) in (0..NODES).flat_map(|node| (0..routes).map(move |proxy| (node, proxy))) {
                let key = UuidKey([node, 1]);
                shard
                    .put(&key, key.hash(scope.hasher), Change::Add(proxy), scope)
                    .expect("there is room");
            }
            let (mut at, mut taken) = (Some(RecordPosition::default()), 0);
            while let Some(from) = at {
                let visit = shard.visit(from, 256, &RebuildSlot::default(), scope, &mut |_| ());
                assert!(visit.visited <= 256, "{visit:?}");
                (at, taken) = (visit.next, taken + 1);
            }
            assert!(
                taken >= steps,
                "{NODES} nodes with {routes} routes were visited in {taken} steps"
            );
        });
    }
}

/// A slab of UUIDs may have millions of records, and any call of any thread may free the slab.
#[test]
fn keys_that_own_no_memory_are_not_looked_for_in_a_slab_that_is_freed() {
    static FREED: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

    struct Number<const OWNS_MEMORY: bool>(u64);

    impl<const OWNS_MEMORY: bool> Key for Number<OWNS_MEMORY> {
        const OWNS_MEMORY: bool = OWNS_MEMORY;

        fn hash(&self, hasher: &RandomState) -> u64 {
            hasher.hash_one(self.0)
        }

        unsafe fn is(&self, stored: [u64; 2]) -> bool {
            stored[0] == self.0
        }

        fn store(&self) -> Option<[u64; 2]> {
            Some([self.0, 1])
        }

        fn hash_stored(stored: [u64; 2], hasher: &RandomState) -> u64 {
            hasher.hash_one(stored[0])
        }

        unsafe fn node(stored: [u64; 2]) -> NodeId {
            Uuid::from_u64_pair(0, stored[0]).into()
        }

        unsafe fn free(_stored: [u64; 2]) {
            // Relaxed: a count alone.
            FREED[usize::from(OWNS_MEMORY)].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Moves a shard of 100 keys, 40 of them removed.
    fn move_shard<const OWNS_MEMORY: bool>() -> Shard<Number<OWNS_MEMORY>> {
        let world = World::new(RandomState::with_seeds(1, 2, 3, 4));
        let shard = Shard::new(0);
        world.with(|scope| {
            for key in (0..100).map(Number::<OWNS_MEMORY>) {
                let hash = key.hash(scope.hasher);
                shard.put(&key, hash, Change::Add(0), scope).expect("there is room");
                if key.0 < 40 {
                    shard.remove(&key, hash, Change::RemoveNode, scope);
                }
            }
            let old = shard.root(scope.guard).expect("it was made");
            shard.compact(old, scope).expect("there is memory");
        });
        shard
    }

    let _alone = crate::verify::failpoints::alone();
    // Relaxed: a count alone.
    let freed = || FREED.each_ref().map(|count| count.load(Ordering::Relaxed));
    // The slab that is retired last is freed last.
    let _shards = (move_shard::<false>(), move_shard::<true>());
    let are_free = (0..10_000_000).any(|_| {
        pin().flush();
        freed()[1] == 40
    });
    assert!(are_free, "the slabs are not freed");
    assert_eq!(freed(), [0, 40]);
}
