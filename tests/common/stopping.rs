//! One thread that stops inside a call: at the next allocation, or where the table reads its clock.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

thread_local! {
    static STOPS: Cell<bool> = const { Cell::new(false) };
}

static IS_STOPPED: AtomicBool = AtomicBool::new(false);
static MAY_CONTINUE: AtomicBool = AtomicBool::new(false);

/// Makes this thread stop at its next [`point`].
pub(crate) fn stop_here() {
    STOPS.set(true);
}

/// A point at which a thread stops, if it is to stop.
pub(crate) fn point() {
    if STOPS.replace(false) {
        // Release: pairs with the load in `wait_for`.
        IS_STOPPED.store(true, Ordering::Release);
        wait_for(&MAY_CONTINUE);
    }
}

/// Waits until the other thread has stopped. The thread continues when the result is dropped, also after a panic.
pub(crate) fn wait_for_stop() -> Stopped {
    wait_for(&IS_STOPPED);
    Stopped
}

fn wait_for(flag: &AtomicBool) {
    // Acquire: pairs with the stores of the flags.
    while !flag.load(Ordering::Acquire) {
        thread::yield_now();
    }
}

/// A thread that has stopped.
pub(crate) struct Stopped;

impl Drop for Stopped {
    fn drop(&mut self) {
        // Release: pairs with the load in `wait_for`.
        MAY_CONTINUE.store(true, Ordering::Release);
    }
}
