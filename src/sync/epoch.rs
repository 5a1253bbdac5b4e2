//! Reclamation: crossbeam-epoch, with a bound on what waits to be freed.
//!
//! A bag of crossbeam's takes 64 retired objects; a full one joins a queue. Left alone, crossbeam frees at most 8 bags of the
//! queue, once in 128 pins. A batch retires a hundred objects and more under one pin, so the queue would grow without bound.
//! Each thread counts what it retires instead, and *flushes* when that comes to [`FLUSH_OBJECTS`] or [`FLUSH_BYTES`]: a
//! flush queues the bag, tries to advance the epoch, and frees up to 8 bags. So freeing is up to 8 times as fast as
//! retiring, whatever the mix of calls; and a thread that retires nothing pays nothing.
//!
//! # The bound
//!
//! A bag that was queued in epoch `e` is freed in epoch `e + 2`. Each flush advances the epoch if every pinned thread has
//! pinned in the present one, so one pin sees one advance at most. A thread that keeps calling therefore has no more waiting
//! than it retired under its last three pins and one bag: [`GARBAGE_PER_THREAD`] objects, since a call retires at most
//! [`RETIRED_PER_PIN`] objects under one pin (a batch pins for 64 nodes, the sweeper for 512 records). A thread that is
//! stopped inside a call holds back all that is retired after its pin, without bound; once it goes on, the queue drains.
//!
//! # One collector for all tables
//!
//! The collector is this crate's own, not crossbeam's default one: rayon and other crates pin and retire there, and their
//! stalls and garbage would be the table's. It serves all tables of the process, since a thread registers with a collector
//! once and finds its registration in a thread-local; so the count of garbage is the process's, too.

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_epoch::{Collector, LocalHandle};
use crossbeam_utils::CachePadded;

pub(crate) use crossbeam_epoch::Guard;

use super::stripes::{STRIPES, stripe};
use super::{Garbage, Reclaim};

/// Objects that a thread retires between two flushes: a bag of them.
const FLUSH_OBJECTS: u32 = 64;

/// Bytes that a thread retires between two flushes: an index of a thousand nodes.
const FLUSH_BYTES: usize = 4_096;

fn collector() -> &'static Collector {
    static COLLECTOR: OnceLock<Collector> = OnceLock::new();
    COLLECTOR.get_or_init(Collector::new)
}

/// A thread's registration, and what it retired since it flushed last.
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
    /// Counts a retired object; returns whether a flush is due.
    fn count(&self, bytes: usize) -> bool {
        let objects = self.objects.get() + 1;
        let bytes = self.bytes.get().saturating_add(bytes);
        let is_due = objects >= FLUSH_OBJECTS || bytes >= FLUSH_BYTES;
        self.objects.set(if is_due { 0 } else { objects });
        self.bytes.set(if is_due { 0 } else { bytes });
        is_due
    }
}

/// Keeps what is retired from here on, until the guard is dropped.
#[inline]
pub(crate) fn pin() -> Guard {
    LOCAL
        .try_with(|local| local.handle.pin())
        // The thread is ending, and its registration is gone.
        .unwrap_or_else(|_| collector().register().pin())
}

/// Frees `object` once every thread that is pinned now has gone on.
///
/// # Safety
///
/// As for [`Reclaim::free`], once the threads that are pinned now have gone on; and the object may be freed by any
/// thread.
pub(crate) unsafe fn retire<T: Reclaim + ?Sized + 'static>(guard: &Guard, object: *mut T) {
    // SAFETY: the object is not freed yet.
    let bytes = unsafe { (*object).bytes() };
    let reclaim = move || {
        // SAFETY: the caller promises that nobody reaches the object after the grace period that `defer` waits for.
        unsafe { (*object).after_grace() };
        // SAFETY: as above, and this closure runs once.
        unsafe { T::free(object) };
    };
    // SAFETY: the caller promises that the object may be freed by any thread; the closure holds nothing else.
    unsafe { defer(guard, bytes, reclaim) };
}

/// Calls `f` once every thread that is pinned now has gone on.
pub(crate) fn after_grace(guard: &Guard, f: impl FnOnce() + Send + 'static) {
    // SAFETY: the closure may run in any thread, and borrows nothing.
    unsafe { defer(guard, 0, f) };
}

/// # Safety
///
/// `f` may run in any thread, at any time after the grace period.
unsafe fn defer(guard: &Guard, bytes: usize, f: impl FnOnce() + 'static) {
    count(Count::of(bytes));
    // SAFETY: as the caller promises.
    unsafe {
        guard.defer_unchecked(move || {
            f();
            count(Count::of(bytes).negated());
        });
    }
    // Without a registration, nobody would flush later.
    if LOCAL.try_with(|local| local.count(bytes)).unwrap_or(true) {
        guard.flush();
    }
}

/// Frees some of what waits, whichever thread retired it: `steps` times 512 objects at most. What other threads have not
/// queued yet, a bag each at most, is not theirs to free.
pub(crate) fn collect(guard: &Guard, steps: usize) {
    for _ in 0..steps {
        guard.flush();
    }
}

/// Objects and bytes in one word, so that counting is one instruction: 28 bits of objects, above them 36 bits of bytes.
#[derive(Clone, Copy)]
struct Count(u64);

const OBJECT_BITS: u32 = 28;

impl Count {
    fn of(bytes: usize) -> Count {
        Count((bytes as u64) << OBJECT_BITS | 1)
    }

    fn negated(self) -> Count {
        Count(self.0.wrapping_neg())
    }
}

/// Each stripe has what its threads retired less what they freed; only the sum means anything.
static COUNTS: [CachePadded<AtomicU64>; STRIPES] = [const { CachePadded::new(AtomicU64::new(0)) }; STRIPES];

fn count(count: Count) {
    // Relaxed: a figure to be shown.
    COUNTS[stripe()].fetch_add(count.0, Ordering::Relaxed);
}

/// What was retired and is not freed yet. While other threads are at work, it may be off by what they do meanwhile.
pub(crate) fn garbage() -> Garbage {
    // Relaxed: as in `count`.
    let add = |sum: u64, count: &CachePadded<AtomicU64>| sum.wrapping_add(count.load(Ordering::Relaxed));
    let sum = COUNTS.iter().fold(0, add);
    // More was seen to be freed than to be retired.
    let sum = if (sum as i64) < 0 { 0 } else { sum };
    Garbage {
        objects: sum as usize & ((1 << OBJECT_BITS) - 1),
        bytes: (sum >> OBJECT_BITS) as usize,
    }
}
