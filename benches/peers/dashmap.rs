//! dashmap: hashbrown tables behind one read-write lock each, four shards for every core by default.
//!
//! A refresh takes the shard's write lock and finds the key (`get_mut`). If the key is missing, the refresh calls
//! `entry`, which must make room for a key before it searches. With as many shards as the table has, threads meet locks
//! less often, and a shard that grows stops a smaller part of the map. So the benches run dashmap with both numbers of
//! shards.

use std::hint::black_box;

use ahash::RandomState;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use nodetracker::Added;
use uuid::Uuid;

use crate::peers::routes::{PeerRoutes, Routes, plain};
use crate::peers::world::World;
use crate::peers::{ContestantKind, Key, Peer, Setting};
use crate::support::steps::Step;

/// `SHARDS` of zero leaves the number of shards to dashmap.
pub(crate) struct Dash<const SHARDS: usize> {
    map: DashMap<Key, Routes, RandomState>,
    world: World,
}

pub(crate) type Default = Dash<0>;
pub(crate) type ManyShards = Dash<256>;

impl<const SHARDS: usize> Dash<SHARDS> {
    #[inline]
    fn look_up_at(&self, node: Uuid, now: u64) -> PeerRoutes {
        self.map
            .get(&Key::from(node))
            .map_or_else(PeerRoutes::new, |routes| routes.read(&self.world, now))
    }

    #[inline]
    fn add_at(&self, node: Uuid, proxy: u32, now: u64) -> Option<Added> {
        self.world.life(proxy)?;
        let key = Key::from(node);
        if let Some(mut routes) = self.map.get_mut(&key) {
            return Some(routes.add(proxy, &self.world, now));
        }
        Some(match self.map.entry(key) {
            Entry::Occupied(mut entry) => entry.get_mut().add(proxy, &self.world, now),
            Entry::Vacant(entry) => {
                entry.insert(Routes::one(proxy, now));
                Added::Inserted
            }
        })
    }
}

impl<const SHARDS: usize> Peer for Dash<SHARDS> {
    const NAME: &'static str = if SHARDS == 0 { "dashmap" } else { "dashmap, 256 shards" };
    const KIND: ContestantKind = ContestantKind::Locks;

    type PeerRoutes = PeerRoutes;

    fn new(setting: &Setting) -> Self {
        Self {
            map: match SHARDS {
                0 => DashMap::with_hasher(RandomState::new()),
                _ => DashMap::with_hasher_and_shard_amount(RandomState::new(), SHARDS),
            },
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
        let removed = self.map.remove(&Key::from(node));
        removed.is_some_and(|(_, routes)| routes.has_valid(&self.world))
    }

    fn remove_proxy(&self, proxy: u32) {
        self.world.remove_proxy(proxy);
    }

    /// One call that locks shard after shard.
    fn sweep(&self, mut step: impl FnMut()) -> usize {
        let now = self.world.now();
        let mut removed = 0;
        self.map.retain(|_, routes| {
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
