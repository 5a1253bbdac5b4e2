//! A barrier for threads that check things. If one thread panics, the other threads panic too, and do not wait any
//! longer.

use std::hint;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

/// How often a waiting thread looks before it lets others run: threads that wait on cores of their own continue
/// together.
const SPINS: usize = 1_000;

/// A reusable barrier, to be used through one [`Pass`] per thread.
#[derive(Debug)]
pub(crate) struct Gate {
    threads: usize,
    arrived: AtomicUsize,
    round: AtomicUsize,
    broken: AtomicBool,
}

/// One thread's use of a gate. Dropped by a panic, it breaks the gate.
#[derive(Debug)]
pub(crate) struct Pass<'a>(&'a Gate);

impl Gate {
    pub(crate) fn new(threads: usize) -> Self {
        Self {
            threads,
            arrived: AtomicUsize::new(0),
            round: AtomicUsize::new(0),
            broken: AtomicBool::new(false),
        }
    }

    pub(crate) fn pass(&self) -> Pass<'_> {
        Pass(self)
    }
}

impl Pass<'_> {
    /// Waits until every thread has come here.
    pub(crate) fn wait(&self) {
        let Self(gate) = self;
        // Relaxed: this thread takes part in this round, so the round cannot end before the `fetch_add` below.
        let round = gate.round.load(Ordering::Relaxed);
        // AcqRel: the last to arrive sees what each of the others did before, and passes it on with `round`.
        if gate.arrived.fetch_add(1, Ordering::AcqRel) + 1 == gate.threads {
            // Relaxed: published by the store to `round`.
            gate.arrived.store(0, Ordering::Relaxed);
            // Release: pairs with the load below.
            gate.round.store(round + 1, Ordering::Release);
            return;
        }
        let mut spins = 0;
        // Acquire: pairs with the store above.
        while gate.round.load(Ordering::Acquire) == round {
            assert!(!self.is_broken(), "another thread panicked");
            spins += 1;
            if spins < SPINS {
                hint::spin_loop();
            } else {
                thread::yield_now();
            }
        }
    }

    /// Whether a thread that held a pass has panicked.
    pub(crate) fn is_broken(&self) -> bool {
        // Relaxed: a flag alone.
        self.0.broken.load(Ordering::Relaxed)
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            // Relaxed: a flag alone.
            self.0.broken.store(true, Ordering::Relaxed);
        }
    }
}
