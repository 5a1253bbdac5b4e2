//! Stripes for counters that many threads change: each group of threads has its own cache line.

/// How many groups of threads there are, each with a stripe.
pub(crate) const STRIPES: usize = if cfg!(loom) { 1 } else { 16 };

/// The calling thread's group. Threads join the groups in turn.
#[cfg(not(loom))]
#[inline]
pub(crate) fn stripe() -> usize {
    use std::cell::Cell;
    use std::sync::atomic::{AtomicUsize, Ordering};

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
