//! The change feed: which nodes' routes have come or gone.
//!
//! Each shard has a ring of the latest changes, which are allocated when somebody subscribes first. A writer marks the node
//! *after* its CAS; a subscriber reads the node's routes from the table *after* it has taken the mark. So whatever order
//! marks and reads come in, the last event of a node shows what the table holds, and no event shows what it never held.
//! Events of different nodes have no order among them.
//!
//! Marking is one CAS on a place of the ring and one on its head, which anyone helps forward, so a writer that stops leaves
//! no gap. Subscribers only read: a thousand of them cost the writers no more than one. One that is overtaken by the writers
//! is told that it lost its place.
//!
//! Without a subscriber a change costs the look at one flag, after a fence. The fence is for the race between a writer that
//! finds no subscriber and a subscriber that is just coming and reads the table before the writer's CAS: each does its own
//! write first (the CAS; the flag), then a fence, then reads the other's. So one of them sees the other. Refreshes are no
//! changes, and do not come here.

#[cfg(all(test, loom))]
mod models;

use compact_str::CompactString;
use once_cell::race::OnceBox;

use crate::node_id::NodeId;
use crate::proxies::ProxyRef;
use crate::sync::{AtomicPtr, AtomicU64, AtomicUsize, Guard, Ordering, Reclaim, fence, pin, retire, step};
use crate::table::SHARDS;

/// Changes that each ring holds.
const RING: usize = if cfg!(loom) { 2 } else { 512 };

/// One ring for each shard of UUIDs and of names, and one for the proxies.
const RINGS: usize = 2 * SHARDS + 1;

/// Why a node's routes changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// A route was added.
    Added,
    /// A route, or all of them, were removed by a call.
    Removed,
    /// The sweeper, or an addition, took away routes that were expired or whose proxy was removed.
    Expired,
}

/// A change of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The routes of a node changed. What they are now is for the receiver to look up.
    Node {
        /// The node.
        node: NodeId,
        /// Why.
        reason: Reason,
    },
    /// A proxy was removed with all its routes. There are no events for the nodes, at least not until the sweeper comes to
    /// them.
    ProxyRemoved {
        /// The proxy's reference while it was registered.
        proxy: ProxyRef,
        /// Its ID, which another proxy may be registered under by now.
        id: CompactString,
    },
    /// A proxy was registered again with another address or cluster, which hold for all its routes.
    ProxyChanged {
        /// The proxy, whose details are for the receiver to look up.
        proxy: ProxyRef,
    },
}

/// A subscriber was too slow: changes were overwritten before it came to them. It stands at the latest change again; read
/// the table anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("changes were lost: the subscriber was too slow")]
pub struct Lagged;

/// A change in a ring, under the number that it has there.
struct Entry {
    number: u64,
    event: Event,
    #[cfg(loom)]
    fate: crate::sync::epoch::Fate,
}

impl Reclaim for Entry {
    fn after_grace(&self) {}

    unsafe fn free(object: *mut Self) {
        // SAFETY: the caller is the only one who knows the entry, which came from `Box::into_raw`.
        drop(unsafe { Box::from_raw(object) });
    }

    fn bytes(&self) -> usize {
        size_of::<Self>()
    }

    #[cfg(loom)]
    fn fate(&self) -> &crate::sync::epoch::Fate {
        &self.fate
    }
}

/// The latest changes of one shard.
struct Ring {
    /// The number of the next change.
    head: AtomicU64,
    entries: Box<[AtomicPtr<Entry>]>,
}

impl Ring {
    fn new() -> Self {
        Self {
            head: AtomicU64::new(0),
            entries: (0..RING).map(|_| AtomicPtr::new(std::ptr::null_mut())).collect(),
        }
    }

    fn place(&self, number: u64) -> &AtomicPtr<Entry> {
        &self.entries[(number % RING as u64) as usize]
    }

    /// The entry at a number's place, where there is one, and the number that it has.
    fn entry<'g>(&self, number: u64, _guard: &'g Guard) -> (*mut Entry, Option<&'g Entry>) {
        // Acquire: pairs with the CAS in `push`, so that the entry is seen whole.
        let entry = self.place(number).load(Ordering::Acquire);
        // SAFETY: an entry is retired once it has been replaced, so it lives while the guard is pinned.
        let found = unsafe { entry.as_ref() };
        #[cfg(loom)]
        if let Some(entry) = found {
            entry.fate.assert_alive();
        }
        (entry, found)
    }

    fn push(&self, event: Event, guard: &Guard) {
        let new = Box::into_raw(Box::new(Entry {
            number: 0,
            event,
            #[cfg(loom)]
            fate: Default::default(),
        }));
        loop {
            // Acquire: pairs with `advance`, so that the place is seen as it was left, or later.
            let number = self.head.load(Ordering::Acquire);
            let (old, entry) = self.entry(number, guard);
            if entry.is_some_and(|entry| entry.number >= number) {
                // Somebody put this one there, and has not come to say so yet. Or the writers went round the ring since
                // the head was loaded: putting ours in the place of a later one would lose both.
                self.advance(number);
                continue;
            }
            // SAFETY: the entry is ours until the CAS below succeeds.
            unsafe { (*new).number = number };
            // Release: pairs with `entry`. A place that has changed meanwhile has a later entry, and the head has moved
            // or is about to; one that has not is still that of an earlier round.
            if self
                .place(number)
                .compare_exchange(old, new, Ordering::Release, Ordering::Relaxed)
                .is_ok()
            {
                step("feed: before the head");
                self.advance(number);
                if !old.is_null() {
                    // SAFETY: the CAS above unlinked it.
                    unsafe { retire(guard, old) };
                }
                return;
            }
        }
    }

    fn advance(&self, number: u64) {
        // Release: pairs with the load of the head, which acquires the earlier advances, too: a CAS goes on with the release
        // sequence that it read. A failure means that somebody else has done it.
        _ = self
            .head
            .compare_exchange(number, number + 1, Ordering::Release, Ordering::Relaxed);
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        for entry in &self.entries {
            // Relaxed: whoever drops the ring is alone with it.
            let entry = entry.load(Ordering::Relaxed);
            if !entry.is_null() {
                // SAFETY: nobody else can reach it; replaced entries are not in the ring any more.
                unsafe { Entry::free(entry) };
            }
        }
    }
}

/// The rings of a table, and how many read them.
#[derive(Default)]
pub(crate) struct Feed {
    subscribers: AtomicUsize,
    rings: OnceBox<Box<[Ring]>>,
}

impl Feed {
    /// Notes a change of a node, after the CAS that made it. `ring` is the shard's number, that of a name's after those of
    /// UUIDs.
    #[inline]
    pub(crate) fn mark(&self, ring: usize, guard: &Guard, event: impl FnOnce() -> Event) {
        if self.is_followed()
            && let Some(rings) = self.rings.get()
        {
            rings[ring].push(event(), guard);
        }
    }

    /// Whether a change that was made before has to be marked: if not, whoever subscribes sees it in the table.
    #[inline]
    pub(crate) fn is_followed(&self) -> bool {
        // Pairs with the fence in `subscribe`.
        fence(Ordering::SeqCst);
        // Relaxed: the fence orders it.
        self.subscribers.load(Ordering::Relaxed) > 0
    }

    pub(crate) fn subscriptions(&self) -> usize {
        // Relaxed: a figure to be shown.
        self.subscribers.load(Ordering::Relaxed)
    }

    pub(crate) fn marked(&self) -> u64 {
        let rings = self.rings.get().into_iter().flatten();
        // Relaxed: a figure to be shown.
        rings.map(|ring| ring.head.load(Ordering::Relaxed)).sum()
    }

    /// The ring of removed and changed proxies.
    pub(crate) const PROXIES: usize = RINGS - 1;

    /// Begins at the latest change: what the table is read to hold from here on, and the events, miss nothing.
    pub(crate) fn subscribe(&self) -> Subscription<'_> {
        let rings = self
            .rings
            .get_or_init(|| Box::new((0..RINGS).map(|_| Ring::new()).collect()));
        // Relaxed: the fence orders it.
        self.subscribers.fetch_add(1, Ordering::Relaxed);
        // Pairs with the fence in `is_followed`.
        fence(Ordering::SeqCst);
        let mut subscription = Subscription {
            feed: self,
            rings,
            next: vec![0; RINGS],
            ring: 0,
        };
        subscription.catch_up();
        subscription
    }
}

/// A place in a table's change feed, from [`RouteTable::subscribe`](crate::RouteTable::subscribe).
pub struct Subscription<'t> {
    feed: &'t Feed,
    rings: &'t [Ring],
    /// The number of the next change, of each ring.
    next: Vec<u64>,
    /// The ring to begin with, so that a busy one does not keep the others waiting.
    ring: usize,
}

impl Subscription<'_> {
    /// Takes changes, `most` of them at most, in no particular order but that of each node's own; returns how many.
    ///
    /// A node is named once for each of its changes; look its routes up after that, and the last answer is the right one.
    ///
    /// # Errors
    ///
    /// [`Lagged`]: changes were lost. Read the table anew; the events from here on are complete again.
    pub fn poll(&mut self, most: usize, mut each: impl FnMut(&Event)) -> Result<usize, Lagged> {
        let mut taken = 0;
        for _ in 0..RINGS {
            while taken < most {
                let guard = pin();
                let ring = &self.rings[self.ring];
                let next = &mut self.next[self.ring];
                // Acquire: pairs with `advance`.
                let head = ring.head.load(Ordering::Acquire);
                if *next == head {
                    break;
                }
                match ring.entry(*next, &guard).1 {
                    Some(entry) if entry.number == *next => {
                        let event = entry.event.clone();
                        drop(guard);
                        *next += 1;
                        taken += 1;
                        each(&event);
                    }
                    _ => {
                        drop(guard);
                        self.catch_up();
                        return Err(Lagged);
                    }
                }
            }
            if taken == most {
                break;
            }
            self.ring = (self.ring + 1) % RINGS;
        }
        Ok(taken)
    }

    fn catch_up(&mut self) {
        for (next, ring) in self.next.iter_mut().zip(self.rings) {
            // Acquire: as in `poll`.
            *next = ring.head.load(Ordering::Acquire);
        }
    }
}

impl Drop for Subscription<'_> {
    fn drop(&mut self) {
        // Relaxed: whoever marks for nobody does no harm.
        self.feed.subscribers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Subscription<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscription").finish_non_exhaustive()
    }
}
