//! Subscribers that wait for a change.
//!
//! Waiters are in a stack (Treiber, 1986). A writer takes the whole stack by one swap and wakes each waiter in it. So
//! the stack needs no reclamation. Wakers are kept without a lock, so no writer waits for another thread.
//!
//! Each subscription has one waiter, which is in the stack at most once, however often its wait ends by a timeout. A
//! waiter cannot leave the stack by itself. If its subscription is dropped, the waiter becomes *abandoned*, and loses
//! its waker. When most waiters may be abandoned, the thread that drops a subscription takes the whole stack and wakes
//! all waiters: the other subscriptions wait again. So a stack without changes has at most [`MOST_ABANDONED`] waiters
//! more than twice the number of subscriptions.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;
use std::sync::Arc;
use std::task::Waker;

use crate::sync::{AtomicPtr, AtomicU32, AtomicUsize, AtomicWaker, Ordering};

/// From this many abandoned waiters on, beside one for each subscription, the stack is taken.
const MOST_ABANDONED: usize = if cfg!(loom) { 0 } else { 64 };

/// The waiter is not in the stack.
const FREE: u32 = 0;
/// The waiter is in the stack, or was taken from the stack and is about to be woken.
const QUEUED: u32 = 1;
/// The waiter's subscription was dropped.
const ABANDONED: u32 = 2;

/// The waker of a subscription.
#[derive(Default)]
pub(crate) struct Waiter {
    waker: AtomicWaker,
    /// FREE, QUEUED or ABANDONED.
    state: AtomicU32,
}

struct Node {
    waiter: Arc<Waiter>,
    next: *mut Node,
}

/// The stack of waiters.
#[derive(Default)]
pub(crate) struct Waiters {
    top: AtomicPtr<Node>,
    /// How many waiters in the stack are abandoned, or more.
    abandoned: AtomicUsize,
}

impl Waiters {
    /// Adds a waiter. The next call of [`wake_all`](Waiters::wake_all) wakes it.
    pub(crate) fn add(&self, waiter: &Arc<Waiter>, waker: &Waker) {
        // Register before the swap. A writer that has taken the waiter frees its state, and then takes the waker. If
        // the writer takes an older waker, its swap precedes this registration in the waker's own order, so the swap
        // here sees it.
        #[cfg(not(loom))]
        waiter.waker.register(waker);
        #[cfg(loom)]
        waiter.waker.register_by_ref(waker);
        // Acquire: pairs with the swap in `wake_all`. Only the subscription calls this, so no swap here needs to see
        // another.
        if waiter.state.swap(QUEUED, Ordering::Acquire) == QUEUED {
            return;
        }
        let node = Box::into_raw(Box::new(Node {
            waiter: Arc::clone(waiter),
            next: ptr::null_mut(),
        }));
        // Relaxed: the CAS decides.
        let mut head = self.top.load(Ordering::Relaxed);
        loop {
            // SAFETY: this thread owns the node until the CAS succeeds.
            unsafe { (*node).next = head };
            // Release: pairs with the swap in `wake_all`, so that the whole node is visible.
            match self
                .top
                .compare_exchange_weak(head, node, Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => return,
                Err(won) => head = won,
            }
        }
    }

    /// Abandons a waiter whose subscription is being dropped. `subscriptions` are left.
    pub(crate) fn abandon(&self, waiter: &Waiter, subscriptions: usize) {
        // Drop the waker now: it may keep a task allocated.
        #[cfg(not(loom))]
        drop(waiter.waker.take());
        #[cfg(loom)]
        drop(waiter.waker.take_waker());
        // Count before the swap, so that `wake_all` never subtracts first. Relaxed: the swap orders it.
        let abandoned = self.abandoned.fetch_add(1, Ordering::Relaxed) + 1;
        // Release: pairs with the swap in `wake_all`, so that its subtraction follows the addition.
        if waiter.state.swap(ABANDONED, Ordering::Release) != QUEUED {
            // Relaxed: no thread subtracts for this waiter.
            self.abandoned.fetch_sub(1, Ordering::Relaxed);
        } else if abandoned >= MOST_ABANDONED + subscriptions {
            // Ignore panics, which were reported when they began. A panic of another task's waker must not end this
            // task, and must not end the process if this task is panicking already.
            _ = catch_unwind(AssertUnwindSafe(|| self.wake_all()));
        }
    }

    /// The number of waiters. No other thread may call `wake_all` meanwhile.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn len(&self) -> usize {
        // Acquire: pairs with the CAS in `add`.
        let mut node = self.top.load(Ordering::Acquire);
        let mut count = 0;
        // SAFETY: only `wake_all` frees nodes, and the caller promises that no thread calls it.
        while let Some(found) = unsafe { node.as_ref() } {
            (node, count) = (found.next, count + 1);
        }
        count
    }

    /// Wakes and removes every waiter that was added before. If wakers panic, the first panic is resumed after all
    /// waiters were woken: no other thread would wake the rest.
    pub(crate) fn wake_all(&self) {
        // Acquire: pairs with the CAS in `add`.
        let mut node = self.top.swap(ptr::null_mut(), Ordering::Acquire);
        let mut panic: Option<Box<dyn Any + Send>> = None;
        while !node.is_null() {
            // SAFETY: `add` stored only pointers from `Box::into_raw`, and the swap gave this stack to this thread.
            let Node { waiter, next } = *unsafe { Box::from_raw(node) };
            // Release: pairs with the swap in `add`. From now on, a waiter that is added again is pushed again.
            // Acquire: pairs with the swap in `abandon`.
            if waiter.state.swap(FREE, Ordering::AcqRel) == ABANDONED {
                // Relaxed: `abandon` has added before.
                self.abandoned.fetch_sub(1, Ordering::Relaxed);
            }
            let woken = catch_unwind(AssertUnwindSafe(|| waiter.waker.wake()));
            panic = panic.or(woken.err());
            node = next;
        }
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Waiters {
    fn drop(&mut self) {
        self.wake_all();
    }
}
