//! Counters that many threads change: a cache line for each of some groups of threads, rather than one for all.

/// How many groups of threads there are.
pub(crate) const STRIPES: usize = if cfg!(loom) { 1 } else { 16 };

/// The calling thread's group; threads are dealt out in turn.
#[cfg(not(loom))]
#[inline]
pub(crate) fn stripe() -> usize {
    use std::cell::Cell;
    use std::sync::atomic::{AtomicUsize, Ordering};

    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        // A constant, so that looking at it is one load, and needs no destructor.
        static STRIPE: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    let stripe = STRIPE.get();
    if stripe < STRIPES {
        return stripe;
    }
    // Relaxed: any dealing out will do.
    let stripe = NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES;
    STRIPE.set(stripe);
    stripe
}

#[cfg(loom)]
pub(crate) fn stripe() -> usize {
    0
}
