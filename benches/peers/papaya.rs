//! papaya: lock-free, each entry in a box of its own.
//!
//! Replacing a value allocates, retires, and every 32 retirements interrupts all of the process's threads
//! (`membarrier`): a refresh by `insert` takes 1.3 times as long as one by a CAS on the time inside the entry, with
//! batches of 1,024 retirements still 1.2 times. So a refresh is that CAS, and only a change of membership replaces an
//! entry. (A refresh that meets such a change of the same node may be lost; the other peers lose none.)
//!
//! Three costs remain, and make papaya slow with a million entries. Each was found by leaving out one thing at a time:
//!
//! * a look-up goes from the metadata to the pointer to the box, one dependent cache miss more than in a table of
//!   entries. As long as look-ups overlap, that hardly shows: under one pin and without a clock, 66 ns beside
//!   dashmap's 53. If each look-up reads the clock, which waits for earlier loads, the miss costs its whole time: 308
//!   beside 208;
//! * a pin ends with a `swap`, which also stops look-ups from overlapping: 107 ns with a pin for each. So a batch has
//!   one pin, and a call of one operation has one, too;
//! * an entry in a box of its own is an allocation: filling the map takes 421 ns per entry, 224 with all of the
//!   capacity from the beginning, which a table that does not know its nodes cannot have.
//!
//! Three things make no difference once the map has grown: that capacity, `ResizeMode::Blocking` (and the map grows no
//! faster), and the place of the clock's reading, before the pin, after it, or after the look-up. So these are
//! defaults.

use std::cell::Cell;
use std::hint::black_box;

use ahash::RandomState;
use nodetracker::Added;
use papaya::{HashMap, HashMapRef, LocalGuard, Operation};
use uuid::Uuid;

use crate::peers::routes::{PeerRoutes, Routes, plain};
use crate::peers::world::World;
use crate::peers::{ContestantKind, Key, Peer, Setting};
use crate::support::steps::Step;

pub(crate) struct Papaya {
    map: HashMap<Key, Routes, RandomState>,
    world: World,
}

type Pinned<'a> = HashMapRef<'a, Key, Routes, RandomState, LocalGuard<'a>>;

impl Papaya {
    #[inline]
    fn look_up_in(&self, map: &Pinned<'_>, node: Uuid, now: u64) -> PeerRoutes {
        map.get(&Key::from(node))
            .map_or_else(PeerRoutes::new, |routes| routes.read(&self.world, now))
    }

    #[inline]
    fn add_to(&self, map: &Pinned<'_>, node: Uuid, proxy: u32, now: u64) -> Option<Added> {
        self.world.life(proxy)?;
        let key = Key::from(node);
        if let Some(routes) = map.get(&key) {
            if routes.refresh_shared(proxy, &self.world, now) {
                return Some(Added::Refreshed);
            }
        } else if map.try_insert(key, Routes::one(proxy, now)).is_ok() {
            return Some(Added::Inserted);
        }
        let done = Cell::new(Added::Inserted);
        map.compute(key, |entry| -> Operation<Routes, ()> {
            let (routes, added) = match entry {
                Some((_, routes)) => routes.with(proxy, &self.world, now),
                None => (Routes::one(proxy, now), Added::Inserted),
            };
            done.set(added);
            Operation::Insert(routes)
        });
        Some(done.get())
    }
}

impl Peer for Papaya {
    const NAME: &'static str = "papaya";
    const KIND: ContestantKind = ContestantKind::LockFree;

    type PeerRoutes = PeerRoutes;

    fn new(setting: &Setting) -> Self {
        Self {
            map: HashMap::with_hasher(RandomState::new()),
            world: World::new(setting),
        }
    }

    #[inline]
    fn look_up(&self, node: Uuid) -> PeerRoutes {
        self.look_up_in(&self.map.pin(), node, self.world.now())
    }

    #[inline]
    fn add(&self, node: Uuid, proxy: u32) -> Option<Added> {
        self.add_to(&self.map.pin(), node, proxy, self.world.now())
    }

    fn remove_node(&self, node: Uuid) -> bool {
        let map = self.map.pin();
        map.remove(&Key::from(node))
            .is_some_and(|routes| routes.has_valid(&self.world))
    }

    fn remove_proxy(&self, proxy: u32) {
        self.world.remove_proxy(proxy);
    }

    /// One call, without a lock.
    fn sweep(&self, mut step: impl FnMut()) -> usize {
        let now = self.world.now();
        let mut removed = 0;
        let map = self.map.pin();
        for (key, routes) in &map {
            if routes.without_stale(&self.world, now).is_none() {
                continue;
            }
            let stale = Cell::new(0);
            map.compute(*key, |entry| {
                let shorter = entry.and_then(|(_, routes)| routes.without_stale(&self.world, now));
                match shorter {
                    Some((shorter, count)) => {
                        stale.set(count);
                        if shorter.is_empty() {
                            Operation::Remove
                        } else {
                            Operation::Insert(shorter)
                        }
                    }
                    None => Operation::Abort(()),
                }
            });
            removed += stale.get();
        }
        step();
        removed
    }

    fn plain(&self, answer: &PeerRoutes) -> Vec<(u32, u64)> {
        plain(answer)
    }

    #[inline]
    fn look_up_batch(&self, nodes: &[Step]) {
        let now = self.world.now();
        let map = self.map.pin();
        for step in nodes {
            black_box(self.look_up_in(&map, step.node, now));
        }
    }

    #[inline]
    fn heartbeat(&self, nodes: &[Step], _handles: &[u64]) {
        let now = self.world.now();
        let map = self.map.pin();
        for step in nodes {
            black_box(self.add_to(&map, step.node, step.proxy, now));
        }
    }
}
