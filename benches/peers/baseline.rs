//! hashbrown without any synchronisation: the time that a single thread could reach.

use std::cell::RefCell;
use std::hint::black_box;

use ahash::RandomState;
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use nodetracker::Added;
use uuid::Uuid;

use crate::peers::routes::{PeerRoutes, Routes, plain};
use crate::peers::world::World;
use crate::peers::{ContestantKind, Key, Peer, Setting};
use crate::support::steps::Step;

pub(crate) struct Baseline {
    map: RefCell<Map>,
    world: World,
}

type Map = HashMap<Key, Routes, RandomState>;

impl Baseline {
    #[inline]
    fn look_up_in(&self, map: &Map, node: Uuid, now: u64) -> PeerRoutes {
        map.get(&Key::from(node))
            .map_or_else(PeerRoutes::new, |routes| routes.read(&self.world, now))
    }

    #[inline]
    fn add_to(&self, map: &mut Map, node: Uuid, proxy: u32, now: u64) -> Option<Added> {
        self.world.life(proxy)?;
        Some(match map.entry(Key::from(node)) {
            Entry::Occupied(mut entry) => entry.get_mut().add(proxy, &self.world, now),
            Entry::Vacant(entry) => {
                entry.insert(Routes::one(proxy, now));
                Added::Inserted
            }
        })
    }
}

impl Peer for Baseline {
    const NAME: &'static str = "hashbrown, one thread";
    const KIND: ContestantKind = ContestantKind::Reference;

    type PeerRoutes = PeerRoutes;

    fn new(setting: &Setting) -> Self {
        Self {
            map: RefCell::new(HashMap::with_hasher(RandomState::new())),
            world: World::new(setting),
        }
    }

    #[inline]
    fn look_up(&self, node: Uuid) -> PeerRoutes {
        self.look_up_in(&self.map.borrow(), node, self.world.now())
    }

    #[inline]
    fn add(&self, node: Uuid, proxy: u32) -> Option<Added> {
        self.add_to(&mut self.map.borrow_mut(), node, proxy, self.world.now())
    }

    fn remove_node(&self, node: Uuid) -> bool {
        let removed = self.map.borrow_mut().remove(&Key::from(node));
        removed.is_some_and(|routes| routes.has_valid(&self.world))
    }

    fn remove_proxy(&self, proxy: u32) {
        self.world.remove_proxy(proxy);
    }

    /// One call.
    fn sweep(&self, mut step: impl FnMut()) -> usize {
        let now = self.world.now();
        let mut removed = 0;
        self.map.borrow_mut().retain(|_, routes| {
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
        let map = self.map.borrow();
        for step in nodes {
            black_box(self.look_up_in(&map, step.node, now));
        }
    }

    #[inline]
    fn heartbeat(&self, nodes: &[Step], _handles: &[u64]) {
        let now = self.world.now();
        let mut map = self.map.borrow_mut();
        for step in nodes {
            black_box(self.add_to(&mut map, step.node, step.proxy, now));
        }
    }
}
