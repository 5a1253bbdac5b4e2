//! Reading the change feed.

use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use crate::feed::ring::Ring;
use crate::feed::waiters::Waiter;
use crate::feed::{Event, Feed, RINGS};
use crate::sync::{Ordering, pin};

/// The most changes that are copied under one pin.
const AT_ONCE: usize = 32;

/// The subscriber was too slow: changes of one part of the table were overwritten before the subscriber took them. The
/// subscription has skipped to the latest changes of this part, and has lost no change of another part. Read the part
/// again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[error("changes were lost: the subscriber was too slow")]
pub struct Lagged {
    /// What to read again.
    pub lost: LostChanges,
}

/// Which changes a subscriber has lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LostChanges {
    /// Changes of the nodes of this part: see [`RouteTable::nodes_of_part`](crate::RouteTable::nodes_of_part).
    OfPart(usize),
    /// Removals and changes of proxies: see [`RouteTable::proxies_page`](crate::RouteTable::proxies_page).
    OfProxies,
}

impl LostChanges {
    fn of_ring(ring: usize) -> Self {
        if ring == Feed::PROXIES {
            Self::OfProxies
        } else {
            Self::OfPart(ring)
        }
    }
}

/// A place in a table's change feed, from [`RouteTable::subscribe`](crate::RouteTable::subscribe).
///
/// # Memory
///
/// The latest changes are kept in 257 rings: one for each [part](crate::RouteTable::part_of) of the nodes, and one for
/// the proxies. By default, each ring holds 512 changes. The first subscription allocates the rings for all
/// subscriptions: 1 MiB. A change takes 40 bytes until a later change overwrites it, so full rings take 6 MiB. Names of
/// more than 24 bytes take extra memory. The rings stay until the table is dropped. A subscription itself takes 2 KiB.
///
/// # Falling behind
///
/// If a ring gets more than 512 changes between two drains, the oldest changes are lost, and the drain fails with
/// [`Lagged`]. [`Builder::feed_ring`](crate::Builder::feed_ring) sets another number. The subscription then continues
/// with the next change of this ring, and the subscriber must read this part again. The other rings lose nothing. If
/// several rings have lost changes, one drain fails for each of them. The 128 rings of UUIDs hold some 60,000 changes
/// in all, if the changes are spread evenly. All changes of one node are in one ring.
pub struct Subscription<'t> {
    feed: &'t Feed,
    rings: &'t [Ring],
    /// The number of the next change to take, for each ring.
    pub(super) next: Vec<u64>,
    /// The ring at which the next call begins, so that a busy ring does not delay the others.
    ring: usize,
    /// The feed's state in which this subscription has taken every change.
    pub(super) idle_in: Option<u64>,
    /// Made by the first wait.
    waiter: Option<Arc<Waiter>>,
}

impl<'t> Subscription<'t> {
    pub(super) fn new(feed: &'t Feed, rings: &'t [Ring]) -> Self {
        let mut subscription = Self {
            feed,
            rings,
            next: vec![0; RINGS],
            ring: 0,
            idle_in: None,
            waiter: None,
        };
        for (next, ring) in subscription.next.iter_mut().zip(rings) {
            *next = ring.head();
        }
        subscription
    }

    /// Takes at most `most` changes, and calls `each` with every change. Changes of one node keep their order;
    /// otherwise the order is arbitrary. Returns the number of changes.
    ///
    /// A node has one event for each of its changes. Look its routes up after the event; the last look-up is up to
    /// date. `each` may be slow, and may call the table: it delays neither writers nor reclamation. If `each` panics,
    /// the event counts as taken, and the next call starts with the event after it.
    ///
    /// After a call that found nothing, a call costs a few nanoseconds until the table changes. Otherwise a call reads
    /// the heads of all 257 rings, or of as many rings as it takes to find `most` changes. Changes during the call may
    /// be left to the next call. [`wait`](Self::wait) and [`poll_ready`](Self::poll_ready) wait for the next change.
    ///
    /// # Errors
    ///
    /// [`Lagged`]: changes of one part were lost. The call may have taken other changes before. Read the part again;
    /// the later events of the part are complete again.
    pub fn drain_events(&mut self, most: usize, mut each: impl FnMut(&Event)) -> Result<usize, Lagged> {
        // If the state has changed but the rings seem unchanged, the fence in `go_idle` precedes the next read of the
        // heads.
        if self.idle_state().is_some() {
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

    /// The feed's state, if this subscription has taken every change.
    fn idle_state(&self) -> Option<u64> {
        self.idle_in.filter(|&state| self.feed.is_in(state))
    }

    /// Returns `Ready` if there may be events to [drain](Self::drain_events). Returns `Pending` if the last drain found
    /// nothing and nothing has changed since: then the next change wakes the task, once.
    ///
    /// A writer wakes all waiting tasks. That costs the first change after a quiet time some hundred nanoseconds per
    /// task, and later changes nothing. If other subscriptions are dropped, a task may be woken without a change.
    ///
    /// The writer calls the wakers after its change, without a lock, inside the call that changed the table. So a waker
    /// may call the table, but a slow waker delays this call, and [reclamation](crate#what-a-stopped-thread-costs). A
    /// panic of a waker ends the call after all tasks were woken, but not the drop of a subscription.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(state) = self.idle_state() else {
            return Poll::Ready(());
        };
        let waiter = self.waiter.get_or_insert_default();
        if self.feed.wait(state, waiter, cx.waker()) {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }

    /// Blocks the thread until there may be events to [drain](Self::drain_events), or until the timeout. Returns
    /// whether there may be events. Returns at once if the last drain took events.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use nodetracker::{Event, RouteTable};
    /// # let table = RouteTable::new();
    /// # let is_stopping = || true;
    /// let mut subscription = table.subscribe();
    /// loop {
    ///     match subscription.drain_events(1_000, |event| println!("{event:?}")) {
    ///         Ok(0) => _ = subscription.wait(Duration::from_secs(1)),
    ///         Ok(_) => {}
    ///         Err(lagged) => println!("{lagged}: read {:?} again", lagged.lost),
    ///     }
    ///     if is_stopping() {
    ///         break;
    ///     }
    /// }
    /// ```
    pub fn wait(&mut self, timeout: Duration) -> bool {
        struct Unpark(Thread);

        impl Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }

        let deadline = Instant::now().checked_add(timeout);
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut cx = Context::from_waker(&waker);
        while self.poll_ready(&mut cx).is_pending() {
            match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return false,
                Some(left) => thread::park_timeout(left),
                None => thread::park(),
            }
        }
        true
    }

    fn take(&mut self, most: usize, each: &mut impl FnMut(&Event)) -> Result<usize, Lagged> {
        let mut taken = 0;
        for _ in 0..RINGS {
            let ring = self.ring;
            // Leave later changes to the next call, so that a busy ring cannot prolong this call.
            let head = self.rings[ring].head();
            while self.next[ring] < head && taken < most {
                for event in self.copy(ring, head, most - taken)? {
                    // Count before `each`, so that the next call does not repeat the event if `each` panics.
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

    /// Copies the next changes of a ring before `head`: at least one, at most `most`.
    fn copy(&mut self, ring: usize, head: u64, most: usize) -> Result<SmallVec<[Event; AT_ONCE]>, Lagged> {
        #[cfg(all(test, not(loom)))]
        crate::feed::tests::pinned();
        let guard = pin();
        let next = self.next[ring];
        let end = head.min(next + most.min(AT_ONCE) as u64);
        let mut copied = SmallVec::new();
        for number in next..end {
            match self.rings[ring].entry(number, &guard).1 {
                Some(entry) if entry.number == number => copied.push(entry.event.clone()),
                _ => {
                    drop(guard);
                    self.next[ring] = self.rings[ring].head();
                    // A ring that always overflows must not keep the next call from the others.
                    self.ring = (ring + 1) % RINGS;
                    let lost = LostChanges::of_ring(ring);
                    return Err(Lagged { lost });
                }
            }
        }
        Ok(copied)
    }
}

impl Drop for Subscription<'_> {
    fn drop(&mut self) {
        // Relaxed: a mark without a subscriber does no harm.
        let left = self.feed.subscribers.fetch_sub(1, Ordering::Relaxed) - 1;
        if let Some(waiter) = &self.waiter {
            self.feed.waiters.abandon(waiter, left);
        }
    }
}

impl std::fmt::Debug for Subscription<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscription").finish_non_exhaustive()
    }
}

/// Every event of the table from now on, or [`Lagged`] if events were lost. The stream never ends.
#[cfg(feature = "stream")]
impl futures_core::Stream for Subscription<'_> {
    type Item = Result<Event, Lagged>;

    fn poll_next(self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            let mut taken = None;
            match this.drain_events(1, |event| taken = Some(event.clone())) {
                Err(lagged) => return Poll::Ready(Some(Err(lagged))),
                Ok(_) if taken.is_some() => return Poll::Ready(taken.map(Ok)),
                Ok(_) if this.poll_ready(cx).is_pending() => return Poll::Pending,
                Ok(_) => {}
            }
        }
    }
}
