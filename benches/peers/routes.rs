//! A node's routes as the peers keep them: one word each, two of them without an allocation.
//!
//! The words are atomics, so that a peer whose look-up hands out a shared reference can refresh a route in place.

use std::cmp::Reverse;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use nodetracker::Added;
use smallvec::SmallVec;

use crate::peers::world::World;

const TIME_BITS: u32 = 40;
const MAX_ROUTES: usize = 64;

/// A route as a look-up returns it. It has the size of the table's own route.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    pub(crate) proxy: u32,
    #[allow(dead_code, reason = "callers would look the proxy up with it")]
    pub(crate) life: u32,
    pub(crate) last_refresh: SystemTime,
}

pub(crate) type PeerRoutes = SmallVec<[Found; 2]>;

#[derive(Debug, Clone, Copy)]
struct Word(u64);

impl Word {
    fn new(proxy: u32, time: u64) -> Self {
        Self(u64::from(proxy) << TIME_BITS | time)
    }

    fn proxy(self) -> u32 {
        (self.0 >> TIME_BITS) as u32
    }

    fn time(self) -> u64 {
        self.0 & ((1 << TIME_BITS) - 1)
    }

    #[inline]
    fn is_valid(self, world: &World, now: u64) -> bool {
        world.is_fresh(self.time(), now) && world.life(self.proxy()).is_some()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Routes(SmallVec<[AtomicU64; 2]>);

impl Routes {
    pub(crate) fn one(proxy: u32, now: u64) -> Self {
        Self([AtomicU64::new(Word::new(proxy, now).0)].into_iter().collect())
    }

    fn words(&self) -> impl Iterator<Item = Word> {
        // Relaxed: a word publishes no other data.
        self.0.iter().map(|word| Word(word.load(Ordering::Relaxed)))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn has_valid(&self, world: &World) -> bool {
        let now = world.now();
        self.words().any(|word| word.is_valid(world, now))
    }

    /// The answer of a look-up.
    #[inline]
    pub(crate) fn read(&self, world: &World, now: u64) -> PeerRoutes {
        let found = |word: Word| {
            let life = world.is_fresh(word.time(), now).then(|| world.life(word.proxy()))??;
            Some(Found {
                proxy: word.proxy(),
                life,
                last_refresh: world.wall(word.time()),
            })
        };
        let mut answer: PeerRoutes = self.words().filter_map(found).collect();
        if answer.len() > 1 {
            answer.sort_by_key(|found| Reverse(found.last_refresh));
        }
        answer
    }

    /// Refreshes a route that is valid, in place. Returns whether there is such a route.
    #[inline]
    pub(crate) fn refresh_shared(&self, proxy: u32, world: &World, now: u64) -> bool {
        for slot in &self.0 {
            // Relaxed, all: as in `words`.
            let mut word = Word(slot.load(Ordering::Relaxed));
            while word.proxy() == proxy && word.is_valid(world, now) {
                if word.time() >= now {
                    return true;
                }
                let new = Word::new(proxy, now).0;
                match slot.compare_exchange(word.0, new, Ordering::Relaxed, Ordering::Relaxed) {
                    Ok(_) => return true,
                    Err(won) => word = Word(won),
                }
            }
        }
        false
    }

    /// The same for a caller with exclusive access to the node.
    #[inline]
    pub(crate) fn refresh(&mut self, proxy: u32, world: &World, now: u64) -> bool {
        for slot in &mut self.0 {
            let word = Word(*slot.get_mut());
            if word.proxy() == proxy && word.is_valid(world, now) {
                *slot.get_mut() = Word::new(proxy, now.max(word.time())).0;
                return true;
            }
        }
        false
    }

    /// Adds or refreshes a route, and drops stale routes.
    #[inline]
    pub(crate) fn add(&mut self, proxy: u32, world: &World, now: u64) -> Added {
        if self.refresh(proxy, world, now) {
            return Added::Refreshed;
        }
        self.drop_stale(world, now);
        if self.0.len() == MAX_ROUTES {
            let stalest = (0..MAX_ROUTES).min_by_key(|&at| Word(*self.0[at].get_mut()).time());
            self.0.remove(stalest.unwrap_or(0));
        }
        self.0.push(AtomicU64::new(Word::new(proxy, now).0));
        Added::Inserted
    }

    /// A copy of these routes after [`add`](Self::add).
    pub(crate) fn with(&self, proxy: u32, world: &World, now: u64) -> (Self, Added) {
        let mut copy = Self(self.words().map(|word| AtomicU64::new(word.0)).collect());
        let added = copy.add(proxy, world, now);
        (copy, added)
    }

    /// Returns how many routes were stale.
    #[inline]
    pub(crate) fn drop_stale(&mut self, world: &World, now: u64) -> usize {
        let before = self.0.len();
        self.0.retain(|word| Word(*word.get_mut()).is_valid(world, now));
        before - self.0.len()
    }

    /// The same as a copy; `None` if no route is stale.
    pub(crate) fn without_stale(&self, world: &World, now: u64) -> Option<(Self, usize)> {
        if self.words().all(|word| word.is_valid(world, now)) {
            return None;
        }
        let mut copy = Self(self.words().map(|word| AtomicU64::new(word.0)).collect());
        let stale = copy.drop_stale(world, now);
        Some((copy, stale))
    }
}

/// An answer as [`Peer::plain`](crate::peers::Peer::plain) returns it.
pub(crate) fn plain(answer: &PeerRoutes) -> Vec<(u32, u64)> {
    let ms = |time: SystemTime| {
        time.duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |d| d.as_millis() as u64)
    };
    answer
        .iter()
        .map(|found| (found.proxy, ms(found.last_refresh)))
        .collect()
}
