//! The one place that knows whether the table runs for real or inside a loom model.
//!
//! Outside of loom this is `std`'s atomics, the global allocator and crossbeam-epoch. Under `--cfg loom` the atomics are
//! loom's, and reclamation is a model: what is retired is freed once every guard that was pinned at that moment is gone,
//! and is then only *marked* as freed, so that each access can assert that nobody comes too late. The bookkeeping of
//! that model is invisible to loom on purpose: a real epoch orders retirement against pins, and nothing else, so the
//! model must not add edges that hide a missing one.

use std::sync::{MutexGuard, PoisonError, TryLockError};

#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

pub(crate) use epoch::{Guard, after_grace, pin, retire};

/// A point within an operation where a thread may be stopped for ever, with others going on; `stalls.rs` stops it there.
/// Nothing outside of unit tests.
#[inline(always)]
pub(crate) fn step(_name: &'static str) {
    #[cfg(all(test, not(loom)))]
    crate::stalls::step(_name);
}

/// A lock for what is outside of the lock-free promise. Whoever panicked with it leaves nothing half done, so it is never
/// poisoned.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(std::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(std::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock, where nobody has it.
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// A heap object that leaves the table while readers may still look at it.
pub(crate) trait Reclaim {
    /// Runs once nobody can reach the object any more, before it is freed. It must not touch records or indexes: the
    /// table may be gone by then.
    fn after_grace(&self);

    /// Gives the memory back.
    ///
    /// # Safety
    ///
    /// `object` came from its type's own allocation, nobody can reach it, and it is freed once.
    unsafe fn free(object: *mut Self);

    /// Where accesses look whether they come too late.
    #[cfg(loom)]
    fn fate(&self) -> &epoch::Fate;
}

#[cfg(not(loom))]
mod epoch {
    pub(crate) use crossbeam_epoch::{Guard, pin};

    use super::Reclaim;

    /// Frees `object` once every thread that is pinned now has gone on.
    ///
    /// # Safety
    ///
    /// As for [`Reclaim::free`], once the threads that are pinned now have gone on; and the object may be freed by any
    /// thread.
    pub(crate) unsafe fn retire<T: Reclaim + ?Sized + 'static>(guard: &Guard, object: *mut T) {
        #[cfg(test)]
        crate::stalls::retired();
        let reclaim = move || {
            #[cfg(test)]
            crate::stalls::freed();
            // SAFETY: the caller promises that nobody reaches the object after the grace period that `defer` waits for.
            unsafe { (*object).after_grace() };
            // SAFETY: as above, and this closure runs once.
            unsafe { T::free(object) };
        };
        // SAFETY: the caller promises that the object may be freed by any thread; the closure holds nothing else.
        unsafe { guard.defer_unchecked(reclaim) };
    }

    /// Calls `f` once every thread that is pinned now has gone on.
    pub(crate) fn after_grace(guard: &Guard, f: impl FnOnce() + Send + 'static) {
        guard.defer(f);
    }
}

#[cfg(loom)]
pub(crate) mod epoch {
    use std::cell::{Cell, RefCell};
    use std::sync::Arc;

    use super::{AtomicUsize, Ordering, Reclaim};

    /// Whether an object was freed, for every access to assert.
    #[derive(Debug, Default)]
    pub(crate) struct Fate(Cell<bool>);

    impl Fate {
        pub(crate) fn assert_alive(&self) {
            assert!(!self.0.get(), "use after free");
        }
    }

    struct Retired {
        waits_for: Vec<u64>,
        /// What carries the edges that a real epoch has: from before a retirement to each pin that the retirement does
        /// not wait for (both have a fence between their write and their look at the other's), and from what those did
        /// that it waits for to what comes after the grace period.
        edge: Arc<AtomicUsize>,
        after_grace: Box<dyn FnOnce()>,
    }

    #[derive(Default)]
    struct Model {
        next: u64,
        pinned: Vec<u64>,
        retired: Vec<Retired>,
        /// Edges of what was ever retired.
        edges: Vec<Arc<AtomicUsize>>,
        /// Edges to be used: what loom has to know before the threads start.
        spare_edges: Vec<Arc<AtomicUsize>>,
        graves: Vec<Box<dyn FnOnce()>>,
        /// What carries the edges from each unpin to the grace periods that end after it, in models that ask for them.
        unpins: Option<Arc<AtomicUsize>>,
    }

    // loom runs all of a model's threads on one OS thread. No operation of loom's may come inside of a borrow: it may
    // switch threads.
    std::thread_local! {
        static MODEL: RefCell<Model> = RefCell::default();
    }

    /// Stands for crossbeam's guard.
    pub(crate) struct Guard(u64);

    /// Stands for `crossbeam_epoch::pin`.
    pub(crate) fn pin() -> Guard {
        let (guard, edges) = MODEL.with_borrow_mut(|model| {
            model.next += 1;
            model.pinned.push(model.next);
            (Guard(model.next), model.edges.clone())
        });
        for edge in edges {
            edge.fetch_add(0, Ordering::Acquire);
        }
        guard
    }

    impl Guard {
        pub(crate) fn flush(&self) {}
    }

    impl Drop for Guard {
        fn drop(&mut self) {
            let waiting: Vec<_> = MODEL.with_borrow(|model| {
                let waiting = model
                    .retired
                    .iter()
                    .filter(|retired| retired.waits_for.contains(&self.0));
                waiting.map(|retired| Arc::clone(&retired.edge)).collect()
            });
            for edge in waiting.into_iter().chain(unpins()) {
                edge.fetch_add(0, Ordering::Release);
            }
            let due: Vec<Retired> = MODEL.with_borrow_mut(|model| {
                model.pinned.retain(|&id| id != self.0);
                for retired in &mut model.retired {
                    retired.waits_for.retain(|&id| id != self.0);
                }
                let due: Vec<Retired> = model
                    .retired
                    .extract_if(.., |retired| retired.waits_for.is_empty())
                    .collect();
                // At once: whoever pins from here on is not waited for.
                model.edges.extend(due.iter().map(|retired| Arc::clone(&retired.edge)));
                due
            });
            for retired in due {
                for edge in std::iter::once(retired.edge).chain(unpins()) {
                    edge.fetch_add(0, Ordering::Acquire);
                }
                (retired.after_grace)();
            }
        }
    }

    fn unpins() -> Option<Arc<AtomicUsize>> {
        MODEL.with_borrow(|model| model.unpins.clone())
    }

    /// Orders what any thread did before it unpinned before the end of later grace periods, for a model of what follows a
    /// grace period. It is no part of all models, since it makes them many times as large.
    pub(crate) fn order_unpins() {
        let edge = Arc::new(AtomicUsize::new(0));
        MODEL.with_borrow_mut(|model| model.unpins = Some(edge));
    }

    pub(crate) unsafe fn retire<T: Reclaim + ?Sized + 'static>(_guard: &Guard, object: *mut T) {
        defer(Box::new(move || {
            // SAFETY: freed only in `bury`, at the end of the model.
            let object_ref = unsafe { &*object };
            object_ref.after_grace();
            assert!(!object_ref.fate().0.replace(true), "freed twice");
            // SAFETY: once per object, as the assertion above says.
            let free = Box::new(move || unsafe { T::free(object) });
            MODEL.with_borrow_mut(|model| model.graves.push(free));
        }));
    }

    pub(crate) fn after_grace(_guard: &Guard, f: impl FnOnce() + Send + 'static) {
        defer(Box::new(f));
    }

    fn defer(after_grace: Box<dyn FnOnce()>) {
        let edge = MODEL
            .with_borrow_mut(|model| model.spare_edges.pop())
            .expect("a model retires no more than begun with");
        edge.fetch_add(1, Ordering::Release);
        MODEL.with_borrow_mut(|model| {
            let waits_for = model.pinned.clone();
            model.edges.push(Arc::clone(&edge));
            model.retired.push(Retired {
                waits_for,
                edge,
                after_grace,
            });
        });
    }

    /// Checks a model with so many preemptions at most, unless `LOOM_MAX_PREEMPTIONS` says otherwise, and tells how many
    /// executions it took.
    pub(crate) fn check(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(builder.preemption_bound.unwrap_or(preemptions));
        builder.max_branches = 10_000;
        let executions = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = Arc::clone(&executions);
        builder.check(move || {
            // Relaxed: one OS thread.
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            begin();
            model();
            bury();
        });
        let name = std::thread::current().name().unwrap_or("model").to_owned();
        // Relaxed: as above.
        println!(
            "{name}: {} executions",
            executions.load(std::sync::atomic::Ordering::Relaxed)
        );
    }

    /// Begins one execution of a model, before its threads start.
    fn begin() {
        let edges = (0..32).map(|_| Arc::new(AtomicUsize::new(0))).collect();
        MODEL.with_borrow_mut(|model| model.spare_edges = edges);
    }

    /// Ends one execution of a model: everything retired must be free by now, and its memory goes.
    fn bury() {
        let graves = MODEL.with_borrow_mut(|model| {
            assert!(
                model.pinned.is_empty() && model.retired.is_empty(),
                "retired, but never freed"
            );
            model.edges.clear();
            model.spare_edges.clear();
            model.unpins = None;
            std::mem::take(&mut model.graves)
        });
        graves.into_iter().for_each(|free| free());
    }
}
