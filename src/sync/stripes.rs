//! Stripes for counters that many threads change: each group of threads has its own cache line.

use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;

/// How many groups of threads there are, each with a stripe.
pub(crate) const STRIPES: usize = if cfg!(loom) { 1 } else { 16 };

/// The calling thread's group. Threads join the groups in turn.
#[cfg(not(loom))]
#[inline]
pub(crate) fn stripe() -> usize {
    use std::cell::Cell;

    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        // `const`, so that an access is one load, without lazy initialization or a destructor.
        static STRIPE: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    let stripe = STRIPE.get();
    if stripe < STRIPES {
        return stripe;
    }
    // Relaxed: a number that orders nothing; any distribution is correct.
    let stripe = NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES;
    STRIPE.set(stripe);
    stripe
}

#[cfg(loom)]
pub(crate) fn stripe() -> usize {
    0
}

/// A sum that many threads change. Only the sum of all stripes has a meaning.
///
/// All operations are Relaxed: a figure for display. It uses the atomics of `std` even under loom, because no protocol
/// depends on the sum.
pub(crate) struct StripedCounter([CachePadded<AtomicUsize>; STRIPES]);

impl StripedCounter {
    pub(crate) const fn new() -> Self {
        Self([const { CachePadded::new(AtomicUsize::new(0)) }; STRIPES])
    }

    #[inline]
    pub(crate) fn add(&self, more: usize) {
        self.0[stripe()].fetch_add(more, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn sub(&self, fewer: usize) {
        self.0[stripe()].fetch_sub(fewer, Ordering::Relaxed);
    }

    /// The sum. Changes during the call may or may not count.
    pub(crate) fn get(&self) -> usize {
        let add = |sum: usize, stripe: &CachePadded<AtomicUsize>| sum.wrapping_add(stripe.load(Ordering::Relaxed));
        let sum = self.0.iter().fold(0, add);
        // Negative: the stripes were read while other threads subtracted.
        if (sum as isize) < 0 { 0 } else { sum }
    }
}
