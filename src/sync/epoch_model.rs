//! A model of crossbeam-epoch: when a retired object may be freed, and which accesses that orders.
//!
//! In crossbeam, a retirement is put into a bag. The bag is *sealed* with the global epoch `e` after a SeqCst fence,
//! and its contents are freed at `e + 2`. A pin stores the epoch that it read, and then has a SeqCst fence (on x86 a
//! locked CAS, which is also a fence). The thread that advances the epoch has a SeqCst fence between reading the epoch
//! and reading the states of all threads. Each thread must be unpinned, or pinned in that epoch. Then it has an Acquire
//! fence, which pairs with the Release store of an unpin, and stores the epoch with Release. That gives these edges,
//! and the model has no others:
//!
//! 1. *From before a retirement to after each pin that it does not wait for.* The thread that advances to `e + 2` does
//!    not see the pinning thread pinned at `e`. So the pinning thread's fence comes after the advancing thread's fence,
//!    which comes after the sealing thread's fence. Three fences in this order are not a happens-before edge by
//!    themselves, but for atomics they have the same effect. A load after the last fence reads no value that was
//!    overwritten before the first fence, or by a write that happened before that. The model makes this an edge,
//!    because loom cannot express it otherwise. The table publishes its plain data by its own edges, also in executions
//!    without a retirement.
//! 2. *From before an unpin to after the grace period*, for each thread that was pinned when the period began. The
//!    advancing thread reads the unpin, by a pair of Acquire and Release. (Or it reads the thread's next pin, in the
//!    new epoch. On x86 that pin is a CAS, which continues the release sequence of the unpin. Elsewhere it is a plain
//!    store, and the memory model's wording would require more; real processors do not. crossbeam's own freeing of
//!    memory relies on this edge.)
//! 3. *The same for each thread that was pinned and has unpinned before the period began*. Therefore the end of a later
//!    period implies the end of an earlier period ([`GracePeriods`](crate::proxies)). A thread that advances twice from
//!    `e` cannot have seen such a thread pinned, or unpinned by an earlier guard. That thread's fence came before the
//!    sealing. Only models that ask for this edge with [`order_unpins`] have it: it makes them many times as large.
//!
//! There is *no* edge from a thread that pinned after the retirement to the end of the grace period. If a grace period
//! waited for a thread, there is none from its unpin to a pin after the grace period. (The table's own edges must pass
//! that on.) There is none between a thread that is pinned at a retirement and the retiring thread.
//!
//! Sealing a bag later than the retirement adds no execution. The grace period waits for a thread that pins in between,
//! and the thread may read the values from before. In the model this is the same thread pinned before the retirement,
//! because a pin does nothing else that other threads could see. (This requires that no thread acts on a Relaxed load
//! of a value that the retiring thread wrote after the retirement. No protocol of the table does.)

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use super::{AtomicUsize, Garbage, Ordering, Reclaim};

/// Whether an object was freed, which every access asserts, and a stand-in for its plain data, which loom does not see.
#[derive(Debug, Default)]
pub(crate) struct Fate {
    is_freed: Cell<bool>,
    plain_data: PlainData,
}

impl Fate {
    /// Asserts that the object was made earlier in loom's order, too, and is not freed.
    pub(crate) fn assert_alive(&self) {
        assert!(!self.is_freed.get(), "use after free");
        self.plain_data.read();
    }
}

/// Plain memory for loom: each read must come after each write.
#[derive(Debug, Default)]
pub(crate) struct PlainData(loom::cell::UnsafeCell<()>);

// SAFETY: the cell holds `()`, and loom checks that no thread reads while another thread writes.
unsafe impl Sync for PlainData {}

impl PlainData {
    pub(crate) fn read(&self) {
        self.0.with(|_| ());
    }

    pub(crate) fn write(&self) {
        self.0.with_mut(|_| ());
    }
}

/// Carries edges. Only read-modify-writes access it, so an Acquire comes after each Release before it.
type Edge = Arc<AtomicUsize>;

struct Retired {
    waits_for: Vec<u64>,
    /// Edge 2.
    unpins: Edge,
    /// Edge 3, by the length of `Model::earlier_unpins` at the retirement.
    earlier_unpins: usize,
    after_grace: Box<dyn FnOnce()>,
}

#[derive(Default)]
struct Model {
    next: u64,
    pinned: Vec<u64>,
    retired: Vec<Retired>,
    /// Edge 1: one for each retirement so far.
    retirements: Vec<Edge>,
    /// Edge 3: the unpins before the first retirement, those between the first and the second, and so on. The last
    /// entry is for unpins from now on. Empty in models that do not ask for edge 3.
    earlier_unpins: Vec<Edge>,
    /// A pin reads it and a retirement changes it, in models that ask for it. It carries no edge.
    epoch: Option<Edge>,
    /// Unused edges: loom has to know them before the threads start.
    spare_edges: Vec<Edge>,
    graves: Vec<Box<dyn FnOnce()>>,
}

impl Model {
    fn new_edge(&mut self) -> Edge {
        self.spare_edges.pop().expect("a model retires no more than begun with")
    }
}

// loom runs all of a model's threads on one OS thread. No operation of loom's may be inside a borrow: it may switch
// threads.
std::thread_local! {
    static MODEL: RefCell<Model> = RefCell::default();
}

/// Stands for crossbeam's guard.
pub(crate) struct Guard(u64);

/// Stands for `crossbeam_epoch::pin`.
pub(crate) fn pin() -> Guard {
    meet(0);
    let (guard, retirements) = MODEL.with_borrow_mut(|model| {
        model.next += 1;
        model.pinned.push(model.next);
        (Guard(model.next), model.retirements.clone())
    });
    for edge in retirements {
        edge.fetch_add(0, Ordering::Acquire);
    }
    guard
}

impl Guard {
    pub(crate) fn flush(&self) {}
}

impl Drop for Guard {
    fn drop(&mut self) {
        let edges: Vec<Edge> = MODEL.with_borrow(|model| {
            let waiting = model
                .retired
                .iter()
                .filter(|retired| retired.waits_for.contains(&self.0));
            let now = model.earlier_unpins.last();
            waiting.map(|retired| &retired.unpins).chain(now).cloned().collect()
        });
        // A retirement in between waits for this guard without the edge: less than crossbeam promises.
        for edge in edges {
            edge.fetch_add(1, Ordering::Release);
        }
        let due: Vec<(Retired, Vec<Edge>)> = MODEL.with_borrow_mut(|model| {
            model.pinned.retain(|&id| id != self.0);
            for retired in &mut model.retired {
                retired.waits_for.retain(|&id| id != self.0);
            }
            let due = model.retired.extract_if(.., |retired| retired.waits_for.is_empty());
            due.map(|retired| {
                let earlier = model.earlier_unpins[..retired.earlier_unpins].to_vec();
                (retired, earlier)
            })
            .collect()
        });
        for (retired, earlier_unpins) in due {
            for edge in earlier_unpins.into_iter().chain([retired.unpins]) {
                edge.fetch_add(0, Ordering::Acquire);
            }
            (retired.after_grace)();
        }
    }
}

/// Adds edge 3 to a model.
pub(crate) fn order_unpins() {
    MODEL.with_borrow_mut(|model| {
        let edge = model.new_edge();
        model.earlier_unpins = vec![edge];
    });
}

/// Makes a model switch threads between an unpin and the next pin, too. Then a thread may find at its next pin that a
/// grace period is over. Otherwise the two are one step to loom.
pub(crate) fn switch_at_pins() {
    MODEL.with_borrow_mut(|model| {
        let epoch = model.new_edge();
        model.epoch = Some(epoch);
    });
}

/// An operation common to pins and retirements, so that loom tries either order.
fn meet(more: usize) {
    if let Some(epoch) = MODEL.with_borrow(|model| model.epoch.clone()) {
        epoch.fetch_add(more, Ordering::Relaxed);
    }
}

pub(crate) unsafe fn retire<T: Reclaim + ?Sized + 'static>(_guard: &Guard, object: *mut T) {
    defer(Box::new(move || {
        // SAFETY: the object is freed only in `bury`, at the end of the model.
        let object_ref = unsafe { &*object };
        object_ref.after_grace();
        assert!(!object_ref.fate().is_freed.replace(true), "freed twice");
        // SAFETY: once per object, by the assertion above.
        let free = Box::new(move || unsafe { T::free(object) });
        MODEL.with_borrow_mut(|model| model.graves.push(free));
    }));
}

pub(crate) fn after_grace(_guard: &Guard, f: impl FnOnce() + Send + 'static) {
    defer(Box::new(f));
}

/// The model frees every object as soon as possible, so there is nothing to collect.
pub(crate) fn collect(_guard: &Guard, _steps: usize) {}

pub(crate) fn garbage() -> Garbage {
    Garbage::default()
}

fn defer(after_grace: Box<dyn FnOnce()>) {
    let retirement = MODEL.with_borrow_mut(Model::new_edge);
    retirement.fetch_add(1, Ordering::Release);
    meet(1);
    MODEL.with_borrow_mut(|model| {
        model.retirements.push(retirement);
        let retired = Retired {
            waits_for: model.pinned.clone(),
            unpins: model.new_edge(),
            earlier_unpins: model.earlier_unpins.len(),
            after_grace,
        };
        model.retired.push(retired);
        if !model.earlier_unpins.is_empty() {
            let edge = model.new_edge();
            model.earlier_unpins.push(edge);
        }
    });
}

/// Checks a model with at most this many preemptions, unless `LOOM_MAX_PREEMPTIONS` has another number. Prints how many
/// executions it took.
pub(crate) fn check(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    check_then(preemptions, model, || ());
}

/// [`check`] that calls `after` at the end of each execution, when every retired object is freed.
pub(crate) fn check_then(
    preemptions: usize,
    model: impl Fn() + Send + Sync + 'static,
    after: impl Fn() + Send + Sync + 'static,
) {
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
        after();
    });
    let name = std::thread::current().name().unwrap_or("model").to_owned();
    // Relaxed: one OS thread.
    println!(
        "{name}: {} executions",
        executions.load(std::sync::atomic::Ordering::Relaxed)
    );
}

/// Begins one execution of a model, before its threads start.
fn begin() {
    let edges = (0..48).map(|_| Arc::new(AtomicUsize::new(0))).collect();
    MODEL.with_borrow_mut(|model| model.spare_edges = edges);
}

/// Ends one execution of a model: every retired object must be free by now. Frees their memory.
fn bury() {
    let graves = MODEL.with_borrow_mut(|model| {
        assert!(
            model.pinned.is_empty() && model.retired.is_empty(),
            "retired, but never freed"
        );
        model.retirements.clear();
        model.earlier_unpins.clear();
        model.epoch = None;
        model.spare_edges.clear();
        std::mem::take(&mut model.graves)
    });
    graves.into_iter().for_each(|free| free());
}
