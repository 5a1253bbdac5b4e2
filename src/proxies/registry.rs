//! The part of the proxies that only the holder of a lock reads and changes.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use crate::layout::ROUNDS;
use crate::proxies::entry::{Entry, Numbers};
use crate::proxies::grace_period::GracePeriods;
use crate::proxies::incarnations::Incarnations;
use crate::proxies::intern::{Clusters, Details, Interner};
use crate::proxies::unlinked::Unlinked;
use crate::sync::{Guard, MutexGuard};

/// Numbers, shared details and ended incarnations. No step under the lock is long: the collections here grow and shrink by a
/// few elements at a time.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    /// The first FREE number that was used before. Its entry has the next one.
    free: Option<u32>,
    next: u32,
    /// Numbers that are not FREE.
    in_use: usize,
    /// What each number that is CLOSING or DEAD waits for. (A number that was revived keeps its wait, without effect.)
    waits: BTreeMap<u32, Wait>,
    interner: Interner,
    pub(crate) incarnations: Incarnations,
}

/// What a number waits for before its next state.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wait {
    /// The end of a grace period.
    Grace(u32),
    /// A full round of the sweeper that starts after this one.
    Round(u32),
    /// The end of the grace period that follows the round.
    LastGrace(u32),
}

impl Wait {
    /// Whether the wait is over, at the end of `round`.
    pub(crate) fn is_over(self, round: u32, grace: &GracePeriods) -> bool {
        match self {
            Wait::Grace(period) | Wait::LastGrace(period) => grace.is_over(period),
            Wait::Round(after) => {
                let since = round.wrapping_sub(after) % ROUNDS;
                since > 0 && since < ROUNDS / 2
            }
        }
    }
}

impl Registry {
    /// A number that no proxy has, unless `limit` numbers are in use.
    pub(crate) fn take_number<'n>(&mut self, numbers: &'n Numbers, limit: usize) -> Option<(u32, Entry<'n>)> {
        if self.in_use >= limit {
            return None;
        }
        let taken = match self.free {
            Some(number) => {
                let entry = numbers.ensure(number);
                self.free = entry.next_free();
                (number, entry)
            }
            None if (self.next as usize) < limit => {
                self.next += 1;
                (self.next - 1, numbers.ensure(self.next - 1))
            }
            // The generations of the other numbers are used up: 2^29 proxies each.
            None => return None,
        };
        self.in_use += 1;
        Some(taken)
    }

    pub(crate) fn give_number_back(&mut self, number: u32, entry: Entry<'_>, reusable: bool) {
        self.waits.remove(&number);
        self.in_use -= 1;
        if reusable {
            entry.set_next_free(self.free);
            self.free = Some(number);
        }
    }

    /// How many numbers there are left.
    pub(crate) fn room(&self, limit: usize) -> usize {
        limit.saturating_sub(self.in_use)
    }

    /// What a number waits for.
    pub(crate) fn wait_of(&self, number: u32) -> Option<Wait> {
        self.waits.get(&number).copied()
    }

    pub(crate) fn wait_for(&mut self, number: u32, wait: Wait) {
        self.waits.insert(number, wait);
    }

    /// Names of clusters, for readers.
    pub(crate) fn clusters(&self) -> Arc<Clusters> {
        self.interner.clusters()
    }
}

/// The registry with its lock held.
pub(crate) struct Owner<'a> {
    /// The first field, so that the lock is released before `flush` is dropped.
    registry: MutexGuard<'a, Registry>,
    unlinked: Unlinked<'a>,
    flush: Flush<'a>,
}

/// Flushes a guard when it is dropped, if something was deferred. A flush may free what other threads have retired, so it
/// comes after the lock is released. (With the lock held, only a thread that retires a bag full of objects, or a large array,
/// flushes: 512 objects at most are freed then.)
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

impl Deref for Owner<'_> {
    type Target = Registry;

    fn deref(&self) -> &Registry {
        &self.registry
    }
}

impl DerefMut for Owner<'_> {
    fn deref_mut(&mut self) -> &mut Registry {
        &mut self.registry
    }
}

impl Drop for Owner<'_> {
    fn drop(&mut self) {
        self.flush.is_due = self.unlinked.begin(self.flush.guard);
    }
}

impl<'a> Owner<'a> {
    pub(crate) fn new(registry: MutexGuard<'a, Registry>, grace: &'a GracePeriods, guard: &'a Guard) -> Self {
        Self {
            registry,
            unlinked: Unlinked::new(grace),
            flush: Flush { guard, is_due: false },
        }
    }

    /// Details for one more entry: give them to it by [`set_details`](Owner::set_details) or `Entry::occupy`.
    pub(crate) fn intern(&mut self, cluster_name: &str, addr: &str) -> Details {
        self.registry.interner.intern(cluster_name, addr, self.unlinked.grace())
    }

    /// Gives an entry other details, or none. The former details are freed after a grace period.
    pub(crate) fn set_details(&mut self, entry: Entry<'_>, details: Details) {
        let old = entry.replace_details(details);
        self.registry.interner.release(old, &mut self.unlinked);
    }

    /// Makes a number wait for the grace period that begins just before the lock is released.
    pub(crate) fn wait_for_grace(&mut self, number: u32) {
        let period = self.unlinked.period();
        self.wait_for(number, Wait::Grace(period));
    }

    /// As [`wait_for_grace`](Owner::wait_for_grace), when a round has found no route of the number.
    pub(crate) fn wait_for_last_grace(&mut self, number: u32) {
        let period = self.unlinked.period();
        self.wait_for(number, Wait::LastGrace(period));
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_late_sweeper_does_not_act_on_a_round_to_come() {
        for round in [10, 0, ROUNDS - 1] {
            let is_over = |ahead: u32| {
                let at = round.wrapping_add(ahead) % ROUNDS;
                Wait::Round(round).is_over(at, &GracePeriods::default())
            };
            assert!(!is_over(0), "the round that it is has begun before");
            assert!(!is_over(ROUNDS - 1) && !is_over(ROUNDS - 1_000), "the sweeper is late");
            assert!(is_over(1) && is_over(1_000));
        }
    }
}
