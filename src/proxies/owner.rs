//! The holder of the registry's lock.

use std::ops::{Deref, DerefMut};
use std::sync::atomic;
use std::thread;

use crate::proxies::Proxies;
use crate::proxies::details::Details;
use crate::proxies::entry::ProxyEntry;
use crate::proxies::registry::{Registry, Wait};
use crate::proxies::unlinked::Unlinked;
use crate::sync::{Guard, MutexGuard, Ordering};

/// How often the sweeper yields to threads that wait for the lock before it tries to take the lock.
const YIELDS: usize = if cfg!(loom) { 0 } else { 200 };

/// The registry, with its lock held.
pub(crate) struct RegistryGuard<'a> {
    /// The first field, so that the lock is released before `flush` is dropped.
    registry: MutexGuard<'a, Registry>,
    unlinked: Unlinked<'a>,
    flush: Flush<'a>,
    /// [`Proxies::known`].
    known: &'a atomic::AtomicUsize,
}

/// Flushes a guard when it is dropped, if something was deferred. A flush may free objects that other threads have
/// retired, so it runs after the lock is released. (With the lock held, a thread flushes only if it retires a bag full
/// of objects, or a large array. At most 512 objects are freed then.)
struct Flush<'a> {
    guard: &'a Guard,
    is_due: bool,
}

impl Drop for Flush<'_> {
    fn drop(&mut self) {
        if self.is_due {
            // The sweeper waits for the period, which without a flush would not end before a bag of garbage is full.
            self.guard.flush();
        }
    }
}

impl Deref for RegistryGuard<'_> {
    type Target = Registry;

    fn deref(&self) -> &Registry {
        &self.registry
    }
}

impl DerefMut for RegistryGuard<'_> {
    fn deref_mut(&mut self) -> &mut Registry {
        &mut self.registry
    }
}

impl Drop for RegistryGuard<'_> {
    fn drop(&mut self) {
        self.flush.is_due = self.unlinked.begin(self.flush.guard);
        // Relaxed: a figure for display.
        self.known.store(self.registry.incarnations.len(), Ordering::Relaxed);
    }
}

impl<'a> RegistryGuard<'a> {
    fn new(registry: MutexGuard<'a, Registry>, proxies: &'a Proxies, guard: &'a Guard) -> Self {
        Self {
            registry,
            unlinked: Unlinked::new(&proxies.grace),
            flush: Flush { guard, is_due: false },
            known: &proxies.known,
        }
    }

    /// Details for one more entry: pass them to [`set_details`](RegistryGuard::set_details) or `ProxyEntry::occupy`.
    pub(crate) fn intern(&mut self, cluster_name: &str, addr: &str) -> Details {
        self.registry.interner.intern(cluster_name, addr, self.unlinked.grace())
    }

    /// Gives an entry other details, or none. The former details are freed after a grace period.
    pub(crate) fn set_details(&mut self, entry: ProxyEntry<'_>, details: Details) {
        let old = entry.replace_details(details);
        self.registry.interner.release(old, &mut self.unlinked);
    }

    /// Makes a number wait for the grace period that begins just before the lock is released.
    pub(crate) fn wait_for_grace(&mut self, number: u32) {
        let period = self.unlinked.period();
        self.wait_for(number, Wait::Grace(period));
    }

    /// Like [`wait_for_grace`](RegistryGuard::wait_for_grace), after a round has found no route of the number.
    pub(crate) fn wait_for_last_grace(&mut self, number: u32) {
        let period = self.unlinked.period();
        self.wait_for(number, Wait::LastGrace(period));
    }
}

impl Proxies {
    /// Takes the registry's lock; waits if another thread has it.
    pub(super) fn own<'a>(&'a self, guard: &'a Guard) -> RegistryGuard<'a> {
        // Relaxed, both: a hint for the sweeper.
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let registry = self.registry.lock();
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        RegistryGuard::new(registry, self, guard)
    }

    /// Takes the registry's lock for the sweeper, if no thread has it. The sweeper takes the lock again and again, so a
    /// waiting thread that wakes up would find it taken each time. So the sweeper first yields to waiting threads, but
    /// does not wait for them.
    pub(super) fn try_own<'a>(&'a self, guard: &'a Guard) -> Option<RegistryGuard<'a>> {
        for _ in 0..YIELDS {
            // Relaxed: as in `own`.
            if self.waiting.load(Ordering::Relaxed) == 0 {
                break;
            }
            thread::yield_now();
        }
        Some(RegistryGuard::new(self.registry.try_lock()?, self, guard))
    }
}
