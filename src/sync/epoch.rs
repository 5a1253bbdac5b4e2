//! Reclamation: crossbeam-epoch, with a bound on the garbage that waits to be freed.
//!
//! A bag of crossbeam's holds 64 retired objects; a full bag joins a queue. By itself, crossbeam frees at most 8 bags
//! of the queue, once in 128 pins. A batch retires more than a hundred objects under one pin, so the queue would grow
//! without bound. Therefore each thread counts the objects that it retires, and *flushes* after [`FLUSH_OBJECTS`]
//! objects or [`FLUSH_BYTES`] bytes. A flush queues the bag, tries to advance the epoch, and frees up to 8 bags. So
//! freeing is up to 8 times as fast as retiring, for any mix of calls.
//!
//! SAFETY comments cite two rules:
//!
//! * E1: *An object is retired once, by the thread that unlinked it*, so no thread that pins later finds the object.
//! * E2: *A retired object is freed only after each thread that was pinned at the retirement has unpinned.* crossbeam
//!   guarantees this rule.
//!
//! # The bound
//!
//! A bag that was queued in epoch `e` is freed in epoch `e + 2`. A flush advances the epoch if every pinned thread is
//! pinned in the current epoch, so one pin sees at most one advance. A thread that keeps calling therefore leaves at
//! most the objects that it retired under its last three pins, and one bag. A step of the sweeper retires the most
//! under one pin, for each of 512 records: a list and an entry of the feed. (A batch pins for 64 nodes.) So a thread
//! leaves at most [`MAX_GARBAGE_PER_THREAD`](crate::Stats::MAX_GARBAGE_PER_THREAD) objects, if no other thread stays
//! pinned meanwhile.
//!
//! A longer pin, such as that of a thread that replaces a large shard, holds back the objects that other threads retire
//! meanwhile. Their number is the time of the pin, times the rate. A move at ten million nodes pins for some 3 ms. A
//! change takes some 250 ns and retires 40 to 300 bytes. So another thread that only changes routes retires some 12,000
//! objects, or 0.5 to 4 MB, meanwhile. A thread that is stopped inside a call holds them back without bound. When the
//! thread continues, the queue drains.
//!
//! Beside the objects there are crossbeam's bags, of 2 KiB each. A thread that frees a bag retires the bag's node of
//! the queue, which is not counted here. Up to 64 such nodes, or 130 KiB, wait in a thread that pins and retires
//! nothing else, until the thread ends.
//!
//! # One collector for all tables
//!
//! The collector is this crate's own, not crossbeam's default collector. rayon and other crates pin and retire there,
//! and their stalls and garbage would be the table's. It serves all tables of the process, because a thread registers
//! with a collector once and finds its registration in a thread-local. So the count of garbage is the process's, too.

use crossbeam_epoch::{Collector, LocalHandle};
use once_cell::race::OnceBox;
use std::cell::Cell;

pub(crate) use crossbeam_epoch::Guard;

use super::stripes::StripedCounter;
use super::{Garbage, Reclaim};

/// Objects that a thread retires between two flushes: a full bag.
const FLUSH_OBJECTS: u32 = 64;

/// Bytes that a thread retires between two flushes: an index of a thousand nodes.
const FLUSH_BYTES: usize = 4_096;

/// The process's collector. Not a `OnceLock`: the first calls would wait for the thread that makes the collector.
fn collector() -> &'static Collector {
    static COLLECTOR: OnceBox<Collector> = OnceBox::new();
    COLLECTOR.get_or_init(|| Box::new(Collector::new()))
}

/// A thread's registration, and its retirements since its last flush.
struct Local {
    handle: LocalHandle,
    objects: Cell<u32>,
    bytes: Cell<usize>,
}

thread_local! {
    static LOCAL: Local = Local {
        handle: collector().register(),
        objects: Cell::new(0),
        bytes: Cell::new(0),
    };
}

impl Local {
    /// Counts a retired object. Returns whether a flush is due.
    fn count(&self, bytes: usize) -> bool {
        let objects = self.objects.get() + 1;
        let bytes = self.bytes.get().saturating_add(bytes);
        let is_due = objects >= FLUSH_OBJECTS || bytes >= FLUSH_BYTES;
        self.objects.set(if is_due { 0 } else { objects });
        self.bytes.set(if is_due { 0 } else { bytes });
        is_due
    }
}

/// Pins the thread: objects that any thread retires from now on are not freed before the guard is dropped.
#[inline]
pub(crate) fn pin() -> Guard {
    LOCAL
        .try_with(|local| local.handle.pin())
        // The thread is ending, and has dropped its registration: the guard gets a registration of its own.
        .unwrap_or_else(|_| collector().register().pin())
}

/// Frees `object` when every thread that is pinned now has unpinned.
///
/// # Safety
///
/// This thread has unlinked the object (E1). [`Reclaim::free`] may be called by any thread after the threads that are
/// pinned now have unpinned.
pub(crate) unsafe fn retire<T: Reclaim + ?Sized + 'static>(guard: &Guard, object: *mut T) {
    // SAFETY: the caller promises that the object is valid, and it is freed only after the grace period (E2).
    let bytes = unsafe { (*object).bytes() };
    let reclaim = move || {
        // SAFETY: no thread can reach the object after the grace period (E1, E2), for which `defer` waits.
        unsafe { (*object).after_grace() };
        // SAFETY: no thread can reach the object (E1, E2), and this closure runs once (E1).
        unsafe { T::free(object) };
    };
    // SAFETY: the caller promises that any thread may free the object; the closure holds nothing else.
    unsafe { defer(guard, bytes, reclaim) };
}

/// Calls `f` when every thread that is pinned now has unpinned.
pub(crate) fn after_grace(guard: &Guard, f: impl FnOnce() + Send + 'static) {
    // SAFETY: `f` is `Send + 'static`, so any thread may run it at any time.
    unsafe { defer(guard, 0, f) };
}

/// # Safety
///
/// `f` may run in any thread, at any time after the grace period.
unsafe fn defer(guard: &Guard, bytes: usize, f: impl FnOnce() + 'static) {
    count_retired(bytes);
    // SAFETY: the caller promises that `f` may run in any thread at any time after the grace period.
    unsafe {
        guard.defer_unchecked(move || {
            f();
            count_freed(bytes);
        });
    }
    // A thread that has dropped its registration will not flush later.
    if LOCAL.try_with(|local| local.count(bytes)).unwrap_or(true) {
        guard.flush();
    }
}

/// Frees some garbage of any thread: at most `steps` times 512 objects. Bags that other threads have not queued yet, at
/// most one per thread, stay.
pub(crate) fn collect(guard: &Guard, steps: usize) {
    for _ in 0..steps {
        guard.flush();
    }
}

/// The objects that are retired and not freed yet, and their bytes. Two counters, each with all its bits: while a
/// thread is stopped, there may be any number of them.
static OBJECTS: StripedCounter = StripedCounter::new();
static BYTES: StripedCounter = StripedCounter::new();

fn count_retired(bytes: usize) {
    OBJECTS.add(1);
    BYTES.add(bytes);
}

fn count_freed(bytes: usize) {
    OBJECTS.sub(1);
    BYTES.sub(bytes);
}

/// The objects that are retired and not freed yet. Retirements and frees during the call may or may not count.
pub(crate) fn garbage() -> Garbage {
    Garbage {
        objects: OBJECTS.get(),
        bytes: BYTES.get(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Other tests retire and free meanwhile, but far less.
    #[test]
    fn garbage_of_any_size_is_counted() {
        for bytes in [1 << 35, 1 << 36, 1 << 45] {
            count_retired(bytes);
            let garbage = garbage();
            count_freed(bytes);
            let is_near = garbage.bytes.abs_diff(bytes) < 1 << 34;
            assert!(is_near && garbage.objects > 0, "{bytes}: {garbage:?}");
        }
    }
}
