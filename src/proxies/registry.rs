//! The part of the proxies that belongs to the holder of the lock.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::layout::ROUNDS;
use crate::proxies::clients::Clients;
use crate::proxies::entry::{Numbers, ProxyEntry};
use crate::proxies::grace_period::GracePeriods;
use crate::proxies::incarnations::Incarnations;
use crate::proxies::intern::{Clusters, Interner};
use crate::proxies::restarts::Restarts;

/// Numbers, shared details and ended incarnations. No step under the lock is long: the collections here grow and shrink
/// by a few elements at a time.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    /// The first FREE number that was used before. Its entry has the next number.
    free: Option<u32>,
    next: u32,
    /// The number of numbers that are not FREE.
    in_use: usize,
    /// The wait of each CLOSING or DEAD number. (A number that was revived keeps its wait, without effect.)
    waits: BTreeMap<u32, Wait>,
    pub(super) restarts: Restarts,
    pub(super) clients: Clients,
    pub(super) interner: Interner,
    pub(crate) incarnations: Incarnations,
}

/// The condition for a number's next state.
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
    pub(crate) fn take_number<'n>(&mut self, numbers: &'n Numbers, limit: usize) -> Option<(u32, ProxyEntry<'n>)> {
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
            // Of the other numbers, the generations are used up: 2^29 proxies each.
            None => return None,
        };
        self.in_use += 1;
        Some(taken)
    }

    pub(crate) fn give_number_back(&mut self, number: u32, entry: ProxyEntry<'_>, reusable: bool) {
        self.waits.remove(&number);
        self.restarts.end(number);
        self.in_use -= 1;
        if reusable {
            entry.set_next_free(self.free);
            self.free = Some(number);
        }
    }

    /// How many more numbers may be used.
    pub(crate) fn room(&self, limit: usize) -> usize {
        limit.saturating_sub(self.in_use)
    }

    /// The wait of a number.
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_free_ends_its_restart() {
        let (mut registry, numbers) = (Registry::default(), Numbers::new(4));
        let mut take = || registry.take_number(&numbers, 4).expect("there is room");
        let ((older, entry), (newer, _)) = (take(), take());
        registry.restarts.begin(older, newer);
        assert!(registry.restarts.is_recent(newer));
        registry.give_number_back(older, entry, true);
        assert!(!registry.restarts.is_recent(newer));
    }

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
