//! What readers may still look at after the registry's owner has taken it out of their reach.

use crate::proxies::details::SharedPtr;
use crate::proxies::grace::Grace;
use crate::sync::Guard;

/// Everything that is taken out of reach while the registry's lock is held once. All of it waits for one grace period, which
/// begins when the last of it is out of reach; so a sweep of many dead proxies begins as many periods as it takes the lock.
#[derive(Debug)]
pub(crate) struct Leaving<'a> {
    grace: &'a Grace,
    period: Option<u32>,
    shared: Vec<SharedPtr>,
}

impl<'a> Leaving<'a> {
    pub(crate) fn new(grace: &'a Grace) -> Self {
        Self {
            grace,
            period: None,
            shared: Vec::new(),
        }
    }

    pub(crate) fn grace(&self) -> &'a Grace {
        self.grace
    }

    /// The number of the period that will [begin](Leaving::begin).
    pub(crate) fn period(&mut self) -> u32 {
        *self.period.get_or_insert_with(|| self.grace.reserve())
    }

    /// Frees what no entry has any more, at the end of the period.
    pub(crate) fn free(&mut self, shared: SharedPtr) {
        self.period();
        self.shared.push(shared);
    }

    /// Begins the period, if something waits for it; returns whether something does.
    pub(crate) fn begin(&mut self, guard: &Guard) -> bool {
        let Some(period) = self.period.take() else { return false };
        for shared in self.shared.drain(..) {
            // SAFETY: no entry had it when `free` took it, once.
            unsafe { shared.retire(guard) };
        }
        self.grace.begin(period, guard);
        true
    }
}
