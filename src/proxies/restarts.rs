//! Which proxies restarted so lately that the number of the older incarnation is still in use.
//!
//! A restart needs a number, and the older number is free only after its routes are swept. Above the limit for new
//! proxies ([`most_numbers_for_new`](super::begin::most_numbers_for_new)), a proxy may have one such older number. So
//! one proxy that restarts again and again cannot use up the numbers with which the other proxies restart.

use std::collections::{BTreeMap, BTreeSet};

/// The restarts whose older number is still in use.
#[derive(Debug, Default)]
pub(crate) struct Restarts {
    /// The newer number of each older number.
    newer: BTreeMap<u32, u32>,
    /// The newer numbers.
    recent: BTreeSet<u32>,
}

impl Restarts {
    /// Records that a number has replaced an older number of the same proxy.
    pub(crate) fn begin(&mut self, older: u32, newer: u32) {
        self.newer.insert(older, newer);
        self.recent.insert(newer);
    }

    /// Whether the number that this number has replaced is still in use.
    pub(crate) fn is_recent(&self, number: u32) -> bool {
        self.recent.contains(&number)
    }

    /// Records that a number is free.
    pub(crate) fn end(&mut self, number: u32) {
        if let Some(newer) = self.newer.remove(&number) {
            self.recent.remove(&newer);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_restart_is_recent_until_the_older_number_is_free() {
        let mut restarts = Restarts::default();
        restarts.begin(1, 2);
        restarts.begin(2, 3);
        restarts.begin(4, 5);
        assert!([2, 3, 5].into_iter().all(|number| restarts.is_recent(number)));
        restarts.end(1);
        assert!(!restarts.is_recent(2) && restarts.is_recent(3));
        restarts.end(2);
        restarts.end(3);
        assert!(!restarts.is_recent(3) && restarts.is_recent(5));
        restarts.end(4);
        assert!(restarts.newer.is_empty() && restarts.recent.is_empty());
    }
}
