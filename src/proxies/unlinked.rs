//! Objects that the registry's owner has unlinked, and that pinned readers may still read.

use crate::proxies::details::SharedPtr;
use crate::proxies::grace_period::GracePeriods;
use crate::sync::Guard;

/// Everything that one holder of the registry's lock unlinks. All of it waits for one grace period, which begins when
/// the last object is unlinked. So a sweep of many dead proxies begins at most one grace period each time it takes the
/// lock.
#[derive(Debug)]
pub(crate) struct Unlinked<'a> {
    grace: &'a GracePeriods,
    period: Option<u32>,
    shared: Vec<SharedPtr>,
}

impl<'a> Unlinked<'a> {
    pub(crate) fn new(grace: &'a GracePeriods) -> Self {
        Self {
            grace,
            period: None,
            shared: Vec::new(),
        }
    }

    pub(crate) fn grace(&self) -> &'a GracePeriods {
        self.grace
    }

    /// The number of the grace period that [`begin`](Unlinked::begin) will begin.
    pub(crate) fn period(&mut self) -> u32 {
        *self.period.get_or_insert_with(|| self.grace.reserve())
    }

    /// Frees `shared`, which no entry has any more, when the grace period is over.
    pub(crate) fn free(&mut self, shared: SharedPtr) {
        self.period();
        self.shared.push(shared);
    }

    /// Begins the grace period, if something waits for it. Returns whether it began.
    pub(crate) fn begin(&mut self, guard: &Guard) -> bool {
        let Some(period) = self.period.take() else { return false };
        for shared in self.shared.drain(..) {
            // SAFETY: no entry has the object any more, by the promise of `free`, and `drain` retires it once (D1, E1).
            unsafe { shared.retire(guard) };
        }
        self.grace.begin(period, guard);
        true
    }
}
