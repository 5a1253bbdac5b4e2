//! What only registering and removing proxies change, behind a lock.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::proxies::details::{Clusters, Details, Interner};
use crate::proxies::entry::Entry;
use crate::proxies::grace::Grace;
use crate::proxies::incarnations::Incarnations;
use crate::sweep::ROUNDS;
use crate::sync::Guard;

/// Numbers and shared details.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    free: Vec<u32>,
    next: u32,
    /// Numbers that are not FREE.
    in_use: usize,
    /// Numbers that are ALIVE or CLOSING.
    registered: usize,
    /// What each number that is CLOSING or DEAD waits for. (One that was revived keeps what it waited for, to no effect.)
    waits: BTreeMap<u32, Wait>,
    interner: Interner,
    pub(crate) incarnations: Incarnations,
}

/// What a number waits for before it goes on in its life.
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
    /// Whether it is over, at the end of a round.
    pub(crate) fn is_over(self, round: u32, grace: &Grace) -> bool {
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
    /// A number that nobody has, unless `limit` are in use.
    pub(crate) fn take_number(&mut self, limit: usize) -> Option<u32> {
        if self.in_use >= limit {
            return None;
        }
        let number = match self.free.pop() {
            Some(number) => number,
            None if (self.next as usize) < limit => {
                self.next += 1;
                self.next - 1
            }
            // Numbers whose generations are used up: 2^29 proxies each.
            None => return None,
        };
        self.in_use += 1;
        self.registered += 1;
        Some(number)
    }

    pub(crate) fn give_number_back(&mut self, number: u32, reusable: bool) {
        self.waits.remove(&number);
        self.in_use -= 1;
        if reusable {
            self.free.push(number);
        }
    }

    /// How many numbers there are left.
    pub(crate) fn room(&self, limit: usize) -> usize {
        limit.saturating_sub(self.in_use)
    }

    /// Counts a number that has become DEAD.
    pub(crate) fn proxy_gone(&mut self) {
        self.registered -= 1;
    }

    /// How many proxies are registered.
    pub(crate) fn len(&self) -> usize {
        self.registered
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

    /// Details for one more entry, which [`set_details`](Registry::set_details) gives them to.
    pub(crate) fn intern(&mut self, cluster_name: &str, addr: &str, grace: &Grace) -> Details {
        self.interner.intern(cluster_name, addr, grace)
    }

    /// Gives an entry other details, or none; the former ones go after a grace period.
    pub(crate) fn set_details(&mut self, entry: Entry<'_>, details: Details, grace: &Grace, guard: &Guard) {
        let old = entry.replace_details(details);
        self.interner.release(old, grace, guard);
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
                Wait::Round(round).is_over(at, &Grace::default())
            };
            assert!(!is_over(0), "the round that it is has begun before");
            assert!(!is_over(ROUNDS - 1) && !is_over(ROUNDS - 1_000), "the sweeper is late");
            assert!(is_over(1) && is_over(1_000));
        }
    }
}
