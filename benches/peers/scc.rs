//! scc::HashMap: buckets of 32 entries, each under a lock of its own; growing moves a few buckets with each operation.
//!
//! A refresh calls `update_sync`. Only a new key also needs `entry_sync`.

use std::hint::black_box;

use ahash::RandomState;
use nodetracker::Added;
use scc::HashMap;
use scc::hash_map::Entry;
use uuid::Uuid;

use crate::peers::routes::{PeerRoutes, Routes, plain};
use crate::peers::world::World;
use crate::peers::{ContestantKind, Key, Peer, Setting};
use crate::support::steps::Step;

pub(crate) struct Scc {
    map: HashMap<Key, Routes, RandomState>,
    world: World,
}

impl Scc {
    #[inline]
    fn look_up_at(&self, node: Uuid, now: u64) -> PeerRoutes {
        self.map
            .read_sync(&Key::from(node), |_, routes| routes.read(&self.world, now))
            .unwrap_or_default()
    }

    #[inline]
    fn add_at(&self, node: Uuid, proxy: u32, now: u64) -> Option<Added> {
        self.world.life(proxy)?;
        let key = Key::from(node);
        let known = self
            .map
            .update_sync(&key, |_, routes| routes.add(proxy, &self.world, now));
        Some(known.unwrap_or_else(|| match self.map.entry_sync(key) {
            Entry::Occupied(mut entry) => entry.get_mut().add(proxy, &self.world, now),
            Entry::Vacant(entry) => {
                entry.insert_entry(Routes::one(proxy, now));
                Added::Inserted
            }
        }))
    }
}

impl Peer for Scc {
    const NAME: &'static str = "scc";
    const KIND: ContestantKind = ContestantKind::Locks;

    type PeerRoutes = PeerRoutes;

    fn new(setting: &Setting) -> Self {
        Self {
            map: HashMap::with_hasher(RandomState::new()),
            world: World::new(setting),
        }
    }

    #[inline]
    fn look_up(&self, node: Uuid) -> PeerRoutes {
        self.look_up_at(node, self.world.now())
    }

    #[inline]
    fn add(&self, node: Uuid, proxy: u32) -> Option<Added> {
        self.add_at(node, proxy, self.world.now())
    }

    fn remove_node(&self, node: Uuid) -> bool {
        let removed = self.map.remove_sync(&Key::from(node));
        removed.is_some_and(|(_, routes)| routes.has_valid(&self.world))
    }

    fn remove_proxy(&self, proxy: u32) {
        self.world.remove_proxy(proxy);
    }

    /// One call that locks bucket after bucket.
    fn sweep(&self, mut step: impl FnMut()) -> usize {
        let now = self.world.now();
        let mut removed = 0;
        self.map.retain_sync(|_, routes| {
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
        for step in nodes {
            black_box(self.look_up_at(step.node, now));
        }
    }

    #[inline]
    fn heartbeat(&self, nodes: &[Step], _handles: &[u64]) {
        let now = self.world.now();
        for step in nodes {
            black_box(self.add_at(step.node, step.proxy, now));
        }
    }
}
