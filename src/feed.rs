//! The change feed: which nodes' routes have come or gone.
//!
//! Each shard has a ring of its latest changes; the first subscription allocates the rings. A writer marks the node *after*
//! its CAS; a subscriber reads the node's routes from the table *after* it has taken the mark. So whatever the order of marks
//! and reads, the last event of a node shows what the table holds, and no event shows what it never held. Events of different
//! nodes have no order among them.
//!
//! Marking is one CAS on a place of the ring and one on its head. Any writer helps the head forward, so a writer that stops
//! leaves no gap. Subscribers only read: a thousand subscribers cost the writers no more than one. If the writers overtake a
//! subscriber, its next poll fails with [`Lagged`].
//!
//! A subscriber that has taken everything goes idle: its polls read one word, [`Feed::state`], and no ring. To go idle, it
//! sets IDLE in the word, *then* reads the heads of all rings once more, and remembers the word. A writer moves a ring's
//! head, *then* reads the word, and clears IDLE if it is set, which also changes the count in the word. With a fence in
//! between on either side, the subscriber sees the change, or the writer sees IDLE. So while the table is busy, writers only
//! load the word; the first change after a quiet time pays a CAS.
//!
//! Without a subscriber, a change costs a fence and the load of one counter. The fence is for the race between a writer that
//! finds no subscriber and a new subscriber that reads the table before the writer's CAS: each does its own write first (the
//! CAS; the count of subscribers), then a fence, then reads the other's write. So one of them sees the other. A refresh is not
//! a change, and is not marked.

#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(loom)))]
mod tests;

use compact_str::CompactString;
use once_cell::race::OnceBox;
use smallvec::SmallVec;

use crate::layout::SHARDS;
use crate::sync::{AtomicPtr, AtomicU64, AtomicUsize, Guard, Ordering, Reclaim, fence, pin, retire, step};
use crate::types::node_id::NodeId;
use crate::types::proxy::ProxyRef;

/// Changes that each ring holds. A place takes 8 bytes, so the rings take 1 MiB in all. An entry takes 48 bytes, so full rings
/// take 7 MiB, and the memory of names that do not fit into their entry.
const RING: usize = if cfg!(loom) { 2 } else { 512 };

/// One ring for each shard of UUIDs and of names, and one for the proxies.
const RINGS: usize = 2 * SHARDS + 1;

/// Changes that a poll copies under one pin at most.
const AT_ONCE: usize = 32;

/// The bit of [`Feed::state`] that says that a subscriber is idle.
const IDLE: u64 = 1;

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
    /// The routes of a node changed. Look the node up for its present routes.
    Node {
        /// The node.
        node: NodeId,
        /// Why.
        reason: Reason,
    },
    /// A proxy was removed with all its routes, or a greater incarnation has taken over. The nodes have no events until the
    /// sweeper removes these routes.
    ProxyRemoved {
        /// The proxy's reference while it was registered.
        proxy: ProxyRef,
        /// Its ID, which another proxy may be registered under by now.
        id: CompactString,
    },
    /// A proxy was registered again with another address or cluster, which apply to all its routes.
    ProxyChanged {
        /// The proxy. Look it up for its present details.
        proxy: ProxyRef,
    },
}

/// The subscriber was too slow: changes were overwritten before it took them. The subscription has skipped to the latest
/// changes; read the whole table again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("changes were lost: the subscriber was too slow")]
pub struct Lagged;

/// A change in a ring, under the number that it has there.
struct RingEntry {
    number: u64,
    event: Event,
    #[cfg(loom)]
    fate: crate::sync::epoch::Fate,
}

impl Reclaim for RingEntry {
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
    entries: Box<[AtomicPtr<RingEntry>]>,
}

impl Ring {
    fn new() -> Self {
        Self {
            head: AtomicU64::new(0),
            entries: (0..RING).map(|_| AtomicPtr::new(std::ptr::null_mut())).collect(),
        }
    }

    fn place(&self, number: u64) -> &AtomicPtr<RingEntry> {
        &self.entries[(number % RING as u64) as usize]
    }

    /// The number of the ring's next change, as a subscriber reads it.
    fn head(&self) -> u64 {
        #[cfg(all(test, not(loom)))]
        tests::looked();
        // Acquire: pairs with `advance`, so that the places are seen as they were when the head came there, or later.
        self.head.load(Ordering::Acquire)
    }

    /// The entry at a number's place, if there is one, as a pointer and as a reference.
    fn entry<'g>(&self, number: u64, _guard: &'g Guard) -> (*mut RingEntry, Option<&'g RingEntry>) {
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
        let new = Box::into_raw(Box::new(RingEntry {
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
                // Another writer put its entry there, and has not advanced the head yet. Or the writers went round the ring
                // since the head was loaded: to replace a later entry by ours would lose both.
                self.advance(number);
                continue;
            }
            // SAFETY: the entry is ours until the CAS below succeeds.
            unsafe { (*new).number = number };
            // Release: pairs with the load in `entry`. If the CAS fails, the place has a later entry, and the head has moved
            // or is about to. If it succeeds, the place still had the entry of an earlier round.
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
        // Release: pairs with the load of the head, which acquires the earlier advances, too: a CAS continues the release
        // sequence that it read. A failure means that another writer has advanced the head.
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
                unsafe { RingEntry::free(entry) };
            }
        }
    }
}

/// The rings of a table, and how many read them.
#[derive(Default)]
pub(crate) struct Feed {
    subscribers: AtomicUsize,
    /// IDLE, and in the other bits how often it was cleared.
    state: AtomicU64,
    rings: OnceBox<Box<[Ring]>>,
}

impl Feed {
    /// Marks a change after the CAS or store that made it. `ring` is [`PROXIES`](Self::PROXIES) or the shard's number; the
    /// shards of names follow those of UUIDs.
    #[inline]
    pub(crate) fn mark(&self, ring: usize, guard: &Guard, event: impl FnOnce() -> Event) {
        if self.is_followed()
            && let Some(rings) = self.rings.get()
        {
            rings[ring].push(event(), guard);
            self.wake();
        }
    }

    /// Makes idle subscribers read the rings again, after a head has moved.
    fn wake(&self) {
        // Pairs with the fence in `go_idle`. It also covers a head that another writer moved: `advance` has read it.
        fence(Ordering::SeqCst);
        // Relaxed: the fence orders it.
        let state = self.state.load(Ordering::Relaxed);
        if state & IDLE != 0 {
            // One more clears IDLE, and the carry counts. Relaxed: the fence in `go_idle` orders it. A failure means that
            // another writer cleared IDLE. A subscriber that has set it again has its fence after this one, and sees the head.
            _ = self
                .state
                .compare_exchange(state, state + 1, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Sets IDLE, and returns the state. If a subscriber finds nothing in the rings after this, there is no change for it
    /// until the state differs.
    fn go_idle(&self) -> u64 {
        // Relaxed: the fence orders it.
        let state = self.state.fetch_or(IDLE, Ordering::Relaxed);
        // Pairs with the fence in `wake`.
        fence(Ordering::SeqCst);
        state | IDLE
    }

    /// Whether to mark a change that was made before this call. If not, a later subscriber sees the change in the table.
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

    /// Begins at the latest change: a read of the table after this, and the events, together miss no change.
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
            idle_in: None,
        };
        subscription.catch_up();
        subscription
    }
}

/// A place in a table's change feed, from [`RouteTable::subscribe`](crate::RouteTable::subscribe).
///
/// # Memory
///
/// The latest changes are kept in 257 rings: 128 for UUIDs and 128 for names, to which nodes are assigned by their hash, and
/// one for the proxies. Each ring holds 512 changes. The first subscription allocates the rings for all, 1 MiB. Each change
/// takes 48 bytes more until another change overwrites it, so full rings take 7 MiB; names of more than 24 bytes take extra
/// memory. The rings stay until the table is dropped. A subscription itself takes 2 KiB.
///
/// # Falling behind
///
/// If a ring gets more than 512 changes between two polls, the oldest changes are lost, and the poll fails with [`Lagged`].
/// The subscription then continues with the next change of *every* ring, and the subscriber has to read the whole table again.
/// If changes are spread evenly, 128 rings hold some 60,000 changes of UUIDs; all changes of one node are in one ring.
pub struct Subscription<'t> {
    feed: &'t Feed,
    rings: &'t [Ring],
    /// The number of the next change to take, for each ring.
    next: Vec<u64>,
    /// The ring to begin with, so that a busy ring does not delay the others.
    ring: usize,
    /// The feed's state in which this subscription has taken every change.
    idle_in: Option<u64>,
}

impl Subscription<'_> {
    /// Takes at most `most` changes, and calls `each` with every one. Changes of one node keep their order; otherwise the
    /// order is arbitrary. Returns the number of changes.
    ///
    /// A node has one event for each of its changes. Look its routes up after the event; the last look-up is up to date.
    /// `each` may be slow, and may call the table: it delays neither writers nor the freeing of memory. If `each` panics, the
    /// event counts as taken, and the next poll starts with the event after it.
    ///
    /// After a poll that found nothing, a poll costs a few nanoseconds until the table changes. Otherwise a poll reads the
    /// heads of all 257 rings, or of as many as it takes to find `most` changes. Changes during the poll may be left to the
    /// next poll.
    ///
    /// # Errors
    ///
    /// [`Lagged`]: changes were lost. Read the whole table again; from now on the events are complete again.
    pub fn poll(&mut self, most: usize, mut each: impl FnMut(&Event)) -> Result<usize, Lagged> {
        // Relaxed: if the state has changed, but the rings seem unchanged, the fence in `go_idle` comes before the next look.
        if self.idle_in == Some(self.feed.state.load(Ordering::Relaxed)) {
            return Ok(0);
        }
        self.idle_in = None;
        let taken = self.take(most, &mut each)?;
        if taken > 0 || most == 0 {
            return Ok(taken);
        }
        let state = self.feed.go_idle();
        let taken = self.take(most, &mut each)?;
        self.idle_in = (taken == 0).then_some(state);
        Ok(taken)
    }

    fn take(&mut self, most: usize, each: &mut impl FnMut(&Event)) -> Result<usize, Lagged> {
        let mut taken = 0;
        for _ in 0..RINGS {
            let ring = self.ring;
            // Later changes are left to the next poll, so that a busy ring does not keep this poll from its end.
            let head = self.rings[ring].head();
            while self.next[ring] < head && taken < most {
                for event in self.copy(ring, head, most - taken)? {
                    // Before `each`, so that the next poll does not repeat the event if `each` panics.
                    self.next[ring] += 1;
                    taken += 1;
                    each(&event);
                }
            }
            self.ring = (ring + 1) % RINGS;
            if taken == most {
                break;
            }
        }
        Ok(taken)
    }

    /// Copies the next changes of a ring that are before `head`, at least one, and at most `most`.
    fn copy(&mut self, ring: usize, head: u64, most: usize) -> Result<SmallVec<[Event; AT_ONCE]>, Lagged> {
        #[cfg(all(test, not(loom)))]
        tests::pinned();
        let guard = pin();
        let next = self.next[ring];
        let end = head.min(next + most.min(AT_ONCE) as u64);
        let mut copied = SmallVec::new();
        for number in next..end {
            match self.rings[ring].entry(number, &guard).1 {
                Some(entry) if entry.number == number => copied.push(entry.event.clone()),
                _ => {
                    drop(guard);
                    self.catch_up();
                    return Err(Lagged);
                }
            }
        }
        Ok(copied)
    }

    fn catch_up(&mut self) {
        for (next, ring) in self.next.iter_mut().zip(self.rings) {
            *next = ring.head();
        }
    }
}

impl Drop for Subscription<'_> {
    fn drop(&mut self) {
        // Relaxed: a mark without a subscriber does no harm.
        self.feed.subscribers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Subscription<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscription").finish_non_exhaustive()
    }
}
