//! The change feed: which nodes' routes have changed.
//!
//! Each shard has a ring of its latest changes. The first subscription allocates the rings. A writer marks the node
//! *after* its CAS. A subscriber reads the node's routes from the table *after* it has taken the mark. So in any order
//! of marks and reads, the last event of a node shows the routes that the table holds. No event shows routes that the
//! table never held. Events of different nodes have no order among them.
//!
//! Marking is one CAS on a place of the ring and one on the ring's head. Any writer may advance the head, so a writer
//! that stops leaves no gap. Subscribers only read: a thousand subscribers cost the writers no more than one. If the
//! writers overtake a subscriber in a ring, its next [`drain_events`](Subscription::drain_events) fails with
//! [`Lagged`], which names the ring's part of the table. The other rings lose nothing.
//!
//! A subscriber that has taken every change goes idle: it then reads one word, [`Feed::state`], and no ring. To go
//! idle, it sets IDLE in the word, *then* reads the heads of all rings once more, and remembers the word. A writer
//! moves a ring's head, *then* reads the word, and clears IDLE if it is set, which also changes the count in the word.
//! Both have a fence in between, so the subscriber sees the change, or the writer sees IDLE. While the table is busy,
//! writers only load the word. The first change after a quiet time pays for a CAS, and wakes the subscribers that wait
//! ([`waiters`]).
//!
//! Without a subscriber, a change costs a fence and the load of one counter. The fence is for the race between a writer
//! that finds no subscriber and a new subscriber that reads the table before the writer's CAS. Each does its own write
//! first (the CAS; the count of subscribers), then a fence, then reads the other's write. So at least one sees the
//! other. A refresh is not a change, and is not marked.

#[cfg(all(test, loom))]
mod models;
mod ring;
mod subscription;
#[cfg(all(test, not(loom)))]
mod tests;
mod waiters;

use std::sync::Arc;
use std::task::Waker;

use once_cell::race::OnceBox;

pub use subscription::{Lagged, LostChanges, Subscription};

use crate::feed::ring::Ring;
use crate::feed::waiters::{Waiter, Waiters};
use crate::layout::SHARDS;
use crate::sync::{AtomicU64, AtomicUsize, Guard, Ordering, fence};
use crate::types::node_id::NodeId;
use crate::types::proxy::ProxyRef;

/// The default number of changes per ring. A place takes 8 bytes, so the rings take 1 MiB in all. An entry takes 40
/// bytes, so full rings take 6 MiB, plus the memory of names that do not fit into their entry.
pub(crate) const RING: usize = if cfg!(loom) { 2 } else { 512 };

/// One ring for each shard of UUIDs and of names, and one for the proxies.
const RINGS: usize = 2 * SHARDS + 1;

/// The bit of [`Feed::state`] for an idle subscriber.
const IDLE: u64 = 1;

/// Why a node's routes changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Reason {
    /// A route was added.
    Added,
    /// A call removed a route or all routes.
    Removed,
    /// The sweeper or an addition removed routes that were expired or whose proxy was removed.
    Expired,
}

/// A change of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The routes of a node changed. Look the node up for its present routes.
    Node {
        /// The node.
        node: NodeId,
        /// Why the routes changed.
        reason: Reason,
    },
    /// A proxy was removed with all its routes, or a greater incarnation has taken over. The nodes have no events until
    /// the sweeper or an addition removes these routes.
    ProxyRemoved {
        /// The proxy's reference while it was registered.
        proxy: ProxyRef,
        /// The proxy's ID. Another proxy may be registered under it by now.
        id: Arc<str>,
    },
    /// A proxy was registered again with another address or cluster, which applies to all its routes.
    ProxyChanged {
        /// The proxy. Look it up for its present details. If it was removed meanwhile, it has none, and the event of
        /// the removal may come before or after this event.
        proxy: ProxyRef,
    },
}

/// The rings of a table, and the number of their subscribers.
pub(crate) struct Feed {
    /// The number of changes per ring.
    ring_len: usize,
    subscribers: AtomicUsize,
    /// IDLE, and in the other bits how often IDLE was cleared.
    state: AtomicU64,
    rings: OnceBox<Box<[Ring]>>,
    waiters: Waiters,
}

impl Default for Feed {
    fn default() -> Self {
        Self::new(RING)
    }
}

impl Feed {
    /// `ring_len`: the number of changes per ring, at least one.
    pub(crate) fn new(ring_len: usize) -> Self {
        Self {
            ring_len,
            subscribers: AtomicUsize::new(0),
            state: AtomicU64::new(0),
            rings: OnceBox::new(),
            waiters: Waiters::default(),
        }
    }

    /// Marks a change after the CAS or store that made it. `ring` is [`PROXIES`](Self::PROXIES) or the shard's number;
    /// the shards of names follow those of UUIDs.
    #[inline]
    pub(crate) fn mark(&self, ring: usize, guard: &Guard, event: impl FnOnce() -> Event) {
        if self.is_followed()
            && let Some(rings) = self.rings.get()
        {
            rings[ring].push(event(), guard);
            self.wake();
        }
    }

    /// Makes idle subscribers read the rings again after a head has moved.
    fn wake(&self) {
        // Pairs with the fence in `go_idle`. It also covers a head that another writer moved, because `advance` has
        // read the head.
        fence(Ordering::SeqCst);
        // Relaxed: the fence orders it.
        let state = self.state.load(Ordering::Relaxed);
        if state & IDLE != 0 {
            // Adding one clears IDLE, and the carry counts. Relaxed: the fence in `go_idle` orders it. On failure,
            // another writer has cleared IDLE. If a subscriber has set it again, the subscriber's fence follows this
            // fence, so it sees the head.
            let is_cleared = self
                .state
                .compare_exchange(state, state + 1, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
            if is_cleared {
                // Pairs with the fence in `wait`.
                fence(Ordering::SeqCst);
                self.waiters.wake_all();
            }
        }
    }

    /// Sets IDLE, and returns the state. If a subscriber then finds nothing in the rings, it has no change to take
    /// until the state differs.
    fn go_idle(&self) -> u64 {
        // Relaxed: the fence orders it.
        let state = self.state.fetch_or(IDLE, Ordering::Relaxed);
        // Pairs with the fence in `wake`.
        fence(Ordering::SeqCst);
        state | IDLE
    }

    /// Makes the next change after an idle `state` wake the waker. Returns `false` if the state has changed since.
    fn wait(&self, state: u64, waiter: &Arc<Waiter>, waker: &Waker) -> bool {
        self.waiters.add(waiter, waker);
        // Pairs with the fence in `wake`: the writer that clears IDLE takes the waiter, or `is_in` sees the change.
        fence(Ordering::SeqCst);
        self.is_in(state)
    }

    /// Whether the state has not changed.
    fn is_in(&self, state: u64) -> bool {
        // Relaxed: fences order it, in `go_idle` and in `wait`.
        self.state.load(Ordering::Relaxed) == state
    }

    /// Whether to mark a change that was made before this call. If not, a later subscriber sees the change in the
    /// table.
    #[inline]
    pub(crate) fn is_followed(&self) -> bool {
        // Pairs with the fence in `subscribe`.
        fence(Ordering::SeqCst);
        // Relaxed: the fence orders it.
        self.subscribers.load(Ordering::Relaxed) > 0
    }

    pub(crate) fn subscriptions(&self) -> usize {
        // Relaxed: a figure for display.
        self.subscribers.load(Ordering::Relaxed)
    }

    pub(crate) fn marked(&self) -> u64 {
        let rings = self.rings.get().into_iter().flatten();
        // Relaxed: a figure for display.
        rings.map(|ring| ring.head.load(Ordering::Relaxed)).sum()
    }

    /// The bytes of the rings and of their changes, without the names of nodes.
    pub(crate) fn bytes(&self) -> usize {
        self.rings.get().into_iter().flatten().map(Ring::bytes).sum()
    }

    /// The ring of removed and changed proxies.
    pub(crate) const PROXIES: usize = RINGS - 1;

    /// Begins at the latest change: a later read of the table, and the events, together miss no change.
    pub(crate) fn subscribe(&self) -> Subscription<'_> {
        let rings = self
            .rings
            .get_or_init(|| Box::new((0..RINGS).map(|_| Ring::new(self.ring_len)).collect()));
        // Relaxed: the fence orders it.
        self.subscribers.fetch_add(1, Ordering::Relaxed);
        // Pairs with the fence in `is_followed`.
        fence(Ordering::SeqCst);
        Subscription::new(self, rings)
    }
}
