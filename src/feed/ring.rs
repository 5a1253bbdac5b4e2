//! A ring of the latest changes of one shard. SAFETY comments cite these rules:
//!
//! * F1: *An entry is written before the CAS that puts it into its place* (Release), and does not change afterwards.
//! * F2: *An entry is retired once, by the thread whose CAS replaced it.* So the entry lives while a thread that found
//!   it stays pinned.

use crate::feed::Event;
#[cfg(loom)]
use crate::sync::epoch::Fate;
use crate::sync::{AtomicPtr, AtomicU64, Guard, Ordering, Reclaim, failpoint, retire};

/// A change in a ring, with its number there.
pub(super) struct RingEntry {
    pub(super) number: u64,
    pub(super) event: Event,
    #[cfg(loom)]
    fate: Fate,
}

impl Reclaim for RingEntry {
    fn after_grace(&self) {}

    unsafe fn free(object: *mut Self) {
        // SAFETY: the entry came from `Box::into_raw` in `push`, and the caller has the only pointer to it.
        drop(unsafe { Box::from_raw(object) });
    }

    fn bytes(&self) -> usize {
        size_of::<Self>()
    }

    #[cfg(loom)]
    fn fate(&self) -> &Fate {
        &self.fate
    }
}

/// The latest changes of one shard.
pub(super) struct Ring {
    /// The number of the next change.
    pub(super) head: AtomicU64,
    entries: Box<[AtomicPtr<RingEntry>]>,
}

impl Ring {
    pub(super) fn new(len: usize) -> Self {
        Self {
            head: AtomicU64::new(0),
            entries: (0..len).map(|_| AtomicPtr::new(std::ptr::null_mut())).collect(),
        }
    }

    /// The bytes of the ring and of its changes, without the names of nodes.
    pub(super) fn bytes(&self) -> usize {
        // Relaxed: a figure for display.
        let changes = self.head.load(Ordering::Relaxed).min(self.entries.len() as u64) as usize;
        size_of::<Self>() + size_of_val(&*self.entries) + changes * size_of::<RingEntry>()
    }

    fn place(&self, number: u64) -> &AtomicPtr<RingEntry> {
        &self.entries[(number % self.entries.len() as u64) as usize]
    }

    /// The number of the ring's next change, as a subscriber reads it.
    pub(super) fn head(&self) -> u64 {
        #[cfg(all(test, not(loom)))]
        crate::feed::tests::looked();
        // Acquire: pairs with `advance`, so that the places are at least as new as the head.
        self.head.load(Ordering::Acquire)
    }

    /// The entry at a number's place, if there is one, as a pointer and as a reference.
    pub(super) fn entry<'g>(&self, number: u64, _guard: &'g Guard) -> (*mut RingEntry, Option<&'g RingEntry>) {
        // Acquire: pairs with the CAS in `push`, so that the whole entry is visible.
        let entry = self.place(number).load(Ordering::Acquire);
        // SAFETY: the entry is whole (F1), and lives while the guard is pinned (F2).
        let found = unsafe { entry.as_ref() };
        #[cfg(loom)]
        if let Some(entry) = found {
            entry.fate.assert_alive();
        }
        (entry, found)
    }

    pub(super) fn push(&self, event: Event, guard: &Guard) {
        let new = Box::into_raw(Box::new(RingEntry {
            number: 0,
            event,
            #[cfg(loom)]
            fate: Default::default(),
        }));
        loop {
            // Acquire: pairs with `advance`, so that the place is at least as new as the head.
            let number = self.head.load(Ordering::Acquire);
            let (old, entry) = self.entry(number, guard);
            if entry.is_some_and(|entry| entry.number >= number) {
                // Another writer put its entry there, and has not advanced the head yet. Or the writers went round the
                // ring since the head was loaded. To replace a later entry with this entry would lose both.
                self.advance(number);
                continue;
            }
            // SAFETY: this thread owns the entry until the CAS below succeeds (F1).
            unsafe { (*new).number = number };
            // Release: pairs with the load in `entry`. If the CAS fails, the place has a later entry, and the head has
            // moved or is about to move. If it succeeds, the place still had the entry of an earlier round.
            if self
                .place(number)
                .compare_exchange(old, new, Ordering::Release, Ordering::Relaxed)
                .is_ok()
            {
                failpoint("feed: before the head");
                self.advance(number);
                if !old.is_null() {
                    // SAFETY: the CAS above unlinked the entry (F2).
                    unsafe { retire(guard, old) };
                }
                return;
            }
        }
    }

    fn advance(&self, number: u64) {
        // Release: pairs with the load of the head. That load acquires the earlier advances, too: a CAS continues the
        // release sequence of the store that it read. On failure, another writer has advanced the head.
        _ = self
            .head
            .compare_exchange(number, number + 1, Ordering::Release, Ordering::Relaxed);
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        for entry in &self.entries {
            // Relaxed: dropping the ring needs exclusive access.
            let entry = entry.load(Ordering::Relaxed);
            if !entry.is_null() {
                // SAFETY: no other thread can reach the entry; replaced entries are no longer in the ring.
                unsafe { RingEntry::free(entry) };
            }
        }
    }
}
