//! Subscribers that wait for a change.
//!
//! Waiters are in a stack (Treiber, 1986). A writer takes the whole stack by one swap and wakes each waiter in it. So
//! the stack needs no reclamation. Wakers are kept without a lock, so no writer waits for another thread.
//!
//! Each subscription has one waiter, which is in the stack at most once, however often its wait ends by a timeout.

use std::ptr;
use std::sync::Arc;
use std::task::Waker;

use crate::sync::{AtomicBool, AtomicPtr, AtomicWaker, Ordering};

/// The waker of a subscription.
#[derive(Default)]
pub(crate) struct Waiter {
    waker: AtomicWaker,
    /// Whether the waiter is in the stack, or was taken from the stack and is about to be woken.
    is_queued: AtomicBool,
}

struct Node {
    waiter: Arc<Waiter>,
    next: *mut Node,
}

/// The stack of waiters.
#[derive(Default)]
pub(crate) struct Waiters(AtomicPtr<Node>);

impl Waiters {
    /// Adds a waiter. The next call of [`wake_all`](Waiters::wake_all) wakes it.
    pub(crate) fn add(&self, waiter: &Arc<Waiter>, waker: &Waker) {
        // Register before the swap. A writer that has taken the waiter clears `is_queued`, and then takes the waker. If
        // the writer takes an older waker, its store precedes this registration in the waker's own order, so the swap
        // sees it.
        #[cfg(not(loom))]
        waiter.waker.register(waker);
        #[cfg(loom)]
        waiter.waker.register_by_ref(waker);
        // Acquire: pairs with the store in `wake_all`. Only the subscription calls this, so no swap needs to see
        // another.
        if waiter.is_queued.swap(true, Ordering::Acquire) {
            return;
        }
        let node = Box::into_raw(Box::new(Node {
            waiter: Arc::clone(waiter),
            next: ptr::null_mut(),
        }));
        // Relaxed: the CAS decides.
        let mut head = self.0.load(Ordering::Relaxed);
        loop {
            // SAFETY: this thread owns the node until the CAS succeeds.
            unsafe { (*node).next = head };
            // Release: pairs with the swap in `wake_all`, so that the whole node is visible.
            match self
                .0
                .compare_exchange_weak(head, node, Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => return,
                Err(won) => head = won,
            }
        }
    }

    /// The number of waiters. No other thread may call `wake_all` meanwhile.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn len(&self) -> usize {
        // Acquire: pairs with the CAS in `add`.
        let mut node = self.0.load(Ordering::Acquire);
        let mut count = 0;
        // SAFETY: only `wake_all` frees nodes, and the caller promises that no thread calls it.
        while let Some(found) = unsafe { node.as_ref() } {
            (node, count) = (found.next, count + 1);
        }
        count
    }

    /// Wakes and removes every waiter that was added before.
    pub(crate) fn wake_all(&self) {
        // Acquire: pairs with the CAS in `add`.
        let mut node = self.0.swap(ptr::null_mut(), Ordering::Acquire);
        while !node.is_null() {
            // SAFETY: `add` stored only pointers from `Box::into_raw`, and the swap gave this stack to this thread.
            let Node { waiter, next } = *unsafe { Box::from_raw(node) };
            // Release: pairs with the swap in `add`. From now on, a waiter that is added again is pushed again.
            waiter.is_queued.store(false, Ordering::Release);
            waiter.waker.wake();
            node = next;
        }
    }
}

impl Drop for Waiters {
    fn drop(&mut self) {
        self.wake_all();
    }
}
