//! papaya: lock-free, each entry in a box of its own.
//!
//! Replacing a value allocates, retires, and every 32 retirements interrupts all of the process's threads
//! (`membarrier`); so a refresh is a CAS on the time inside the entry, and only a change of membership replaces it. (A
//! refresh that meets such a change of the same node may be lost; the others do not lose any.)

use std::cell::Cell;

use ahash::RandomState;
use nodetracker::Added;
use papaya::{HashMap, Operation};
use uuid::Uuid;

use crate::peers::routes::{Answer, Routes, plain};
use crate::peers::world::World;
use crate::peers::{Key, Peer, Setting};

pub(crate) struct Papaya {
    map: HashMap<Key, Routes, RandomState>,
    world: World,
}

impl Peer for Papaya {
    const NAME: &'static str = "papaya";

    type Answer = Answer;
    type Room = ();

    fn new(setting: &Setting) -> Self {
        Self {
            map: HashMap::with_hasher(RandomState::new()),
            world: World::new(setting),
        }
    }

    #[inline]
    fn look_up(&self, node: Uuid) -> Answer {
        let now = self.world.now();
        let map = self.map.pin();
        map.get(&Key::from(node))
            .map_or_else(Answer::new, |routes| routes.read(&self.world, now))
    }

    #[inline]
    fn add(&self, node: Uuid, proxy: u32) -> Option<Added> {
        let now = self.world.now();
        self.world.life(proxy)?;
        let map = self.map.pin();
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

    fn plain(&self, answer: &Answer) -> Vec<(u32, u64)> {
        plain(answer)
    }
}
