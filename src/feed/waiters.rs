//! Subscribers that wait for a change.
//!
//! A waiter is in a stack (Treiber, 1986). A writer takes the whole stack by one swap and wakes each waiter in it, so the stack
//! needs no reclamation, and no writer waits for another thread: wakers are kept without a lock.
//!
//! Each subscription has one waiter, which is in the stack once at most, however often its wait ends by a timeout.

use std::ptr;
use std::sync::Arc;
use std::task::Waker;

use crate::sync::{AtomicBool, AtomicPtr, AtomicWaker, Ordering};

/// What a subscription waits with.
#[derive(Default)]
pub(crate) struct Waiter {
    waker: AtomicWaker,
    /// Whether the waiter is in the stack, or was taken from it and is about to be woken.
    is_queued: AtomicBool,
}

struct Node {
    waiter: Arc<Waiter>,
    next: *mut Node,
}

/// The stack.
#[derive(Default)]
pub(crate) struct Waiters(AtomicPtr<Node>);

impl Waiters {
    /// Adds a waiter, to be woken by the next call of [`wake_all`](Waiters::wake_all).
    pub(crate) fn add(&self, waiter: &Arc<Waiter>, waker: &Waker) {
        // Before the check. A writer that has taken the waiter clears `is_queued`, and then takes the waker. If it takes an
        // older waker, its clearing comes before this in the waker's own order, and is seen below.
        #[cfg(not(loom))]
        waiter.waker.register(waker);
        #[cfg(loom)]
        waiter.waker.register_by_ref(waker);
        // Acquire: pairs with the store in `wake_all`. Release: for the swap of another thread's call.
        if waiter.is_queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let node = Box::into_raw(Box::new(Node {
            waiter: Arc::clone(waiter),
            next: ptr::null_mut(),
        }));
        // Relaxed: the CAS decides.
        let mut head = self.0.load(Ordering::Relaxed);
        loop {
            // SAFETY: the node is this thread's until the CAS succeeds.
            unsafe { (*node).next = head };
            // Release: pairs with the swap in `wake_all`, so that the node is seen whole.
            match self
                .0
                .compare_exchange_weak(head, node, Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => return,
                Err(won) => head = won,
            }
        }
    }

    /// How many waiters there are. No other thread may wake them meanwhile.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn len(&self) -> usize {
        let first = self.0.load(Ordering::Acquire);
        // SAFETY: the nodes are freed by `wake_all` alone, which no thread calls, as the caller promises.
        std::iter::successors(unsafe { first.as_ref() }, |node| unsafe { node.next.as_ref() }).count()
    }

    /// Wakes every waiter that was added before, and forgets them.
    pub(crate) fn wake_all(&self) {
        // Acquire: pairs with the CAS in `add`.
        let mut node = self.0.swap(ptr::null_mut(), Ordering::Acquire);
        while !node.is_null() {
            // SAFETY: `add` stored only pointers from `Box::into_raw`, and the swap made this stack the thread's own.
            let Node { waiter, next } = *unsafe { Box::from_raw(node) };
            // Release: pairs with the swap in `add`. A waiter that is added again from now on is in the stack again.
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
