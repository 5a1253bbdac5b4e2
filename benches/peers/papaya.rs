//! papaya: lock-free, each entry in a box of its own.
//!
//! `insert` replaces a value: it allocates, retires, and after every 32 retirements interrupts all threads of the
//! process (`membarrier`). A refresh by `insert` takes 1.3 times as long as a CAS on the time inside the entry. With
//! batches of 1,024 retirements, a refresh still takes 1.2 times as long. So a refresh here is this CAS, and only a
//! change of membership replaces an entry. (A refresh that meets such a change of the same node may be lost. The other
//! peers lose no refresh.)
//!
//! Three costs remain, and make papaya slow with a million entries. For each cost, a run without its cause gave the
//! figures:
//!
//! * A look-up goes from the metadata to a pointer to the box: one more dependent cache miss than in a table of
//!   entries. While look-ups overlap, the miss hardly shows: 66 ns beside dashmap's 53, under one pin and without a
//!   clock. If each look-up reads the clock, which waits for earlier loads, the miss costs its whole time: 308 ns
//!   beside 208.
//! * A pin ends with a `swap`, which also keeps look-ups from overlapping: 107 ns with a pin for each look-up. So a
//!   batch has one pin, and a single call has one, too.
//! * Each entry is an allocation: filling the map takes 421 ns per entry, and 224 ns if the map allocates its whole
//!   capacity first. A table that does not know its nodes cannot do so.
//!
//! Once the map has grown, three things make no difference: the capacity at the start; `ResizeMode::Blocking`, which
//! does not make growth faster either; and the moment of reading the clock: before the pin, after the pin, or after the
//! look-up. So all three keep their defaults.

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
