//! The standard library's map behind one read-write lock.
//!
//! A refresh takes the lock for reading, and changes the time by a CAS. So refreshes run in parallel with each other
//! and with look-ups. Only a new route takes the lock for writing.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hint::black_box;
use std::sync::RwLock;

use ahash::RandomState;
use nodetracker::Added;
use uuid::Uuid;

use crate::peers::routes::{PeerRoutes, Routes, plain};
use crate::peers::world::World;
use crate::peers::{ContestantKind, Key, Peer, Setting};
use crate::support::steps::Step;

pub(crate) struct RwLocked {
    map: RwLock<Map>,
    world: World,
}

const POISONED: &str = "nobody panics with the lock";

type Map = HashMap<Key, Routes, RandomState>;

impl RwLocked {
    #[inline]
    fn look_up_in(&self, map: &Map, node: Uuid, now: u64) -> PeerRoutes {
        map.get(&Key::from(node))
            .map_or_else(PeerRoutes::new, |routes| routes.read(&self.world, now))
    }

    #[inline]
    fn refresh_in(&self, map: &Map, node: Uuid, proxy: u32, now: u64) -> bool {
        let routes = map.get(&Key::from(node));
        routes.is_some_and(|routes| routes.refresh_shared(proxy, &self.world, now))
    }

    fn add_at(&self, node: Uuid, proxy: u32, now: u64) -> Added {
        match self.map.write().expect(POISONED).entry(Key::from(node)) {
            Entry::Occupied(mut entry) => entry.get_mut().add(proxy, &self.world, now),
            Entry::Vacant(entry) => {
                entry.insert(Routes::one(proxy, now));
                Added::Inserted
            }
        }
    }
}

impl Peer for RwLocked {
    const NAME: &'static str = "RwLock<HashMap>";
    const KIND: ContestantKind = ContestantKind::Locks;

    type PeerRoutes = PeerRoutes;

    fn new(setting: &Setting) -> Self {
        Self {
            map: RwLock::new(HashMap::with_hasher(RandomState::new())),
            world: World::new(setting),
        }
    }

    #[inline]
    fn look_up(&self, node: Uuid) -> PeerRoutes {
        let now = self.world.now();
        self.look_up_in(&self.map.read().expect(POISONED), node, now)
    }

    #[inline]
    fn add(&self, node: Uuid, proxy: u32) -> Option<Added> {
        let now = self.world.now();
        self.world.life(proxy)?;
        if self.refresh_in(&self.map.read().expect(POISONED), node, proxy, now) {
            return Some(Added::Refreshed);
        }
        Some(self.add_at(node, proxy, now))
    }

    fn remove_node(&self, node: Uuid) -> bool {
        let removed = self.map.write().expect(POISONED).remove(&Key::from(node));
        removed.is_some_and(|routes| routes.has_valid(&self.world))
    }

    fn remove_proxy(&self, proxy: u32) {
        self.world.remove_proxy(proxy);
    }

    /// One call under the lock.
    fn sweep(&self, mut step: impl FnMut()) -> usize {
        let now = self.world.now();
        let mut removed = 0;
        self.map.write().expect(POISONED).retain(|_, routes| {
            removed += routes.drop_stale(&self.world, now);
            !routes.is_empty()
        });
        step();
        removed
    }

    fn plain(&self, answer: &PeerRoutes) -> Vec<(u32, u64)> {
        plain(answer)
    }

    #[inline]
    fn look_up_batch(&self, nodes: &[Step]) {
        let now = self.world.now();
        let map = self.map.read().expect(POISONED);
        for step in nodes {
            black_box(self.look_up_in(&map, step.node, now));
        }
    }

    #[inline]
    fn heartbeat(&self, nodes: &[Step], _handles: &[u64]) {
        let now = self.world.now();
        let mut gone = Vec::new();
        let map = self.map.read().expect(POISONED);
        for step in nodes {
            if self.world.life(step.proxy).is_some() && !self.refresh_in(&map, step.node, step.proxy, now) {
                gone.push(step);
            }
        }
        drop(map);
        for step in gone {
            self.add_at(step.node, step.proxy, now);
        }
    }
}
