//! Fairness: a connection that has more work lets the other connections of its thread run first.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

use tokio::task::yield_now;

/// A pause until the thread has run all tasks that are ready and has polled its sockets.
///
/// Yielding with the task's own waker is not enough. h2 wakes the task too, for example when a call replies from a task of
/// its own. The task would then continue before the thread has polled its sockets.
pub(super) struct YieldTurn {
    is_over: AtomicBool,
    task: Waker,
}

impl YieldTurn {
    /// Begins a pause of a task. The end of the pause wakes the task.
    pub(super) fn begin(cx: &Context<'_>) -> Arc<Self> {
        let turn = Arc::new(Self {
            is_over: AtomicBool::new(false),
            task: cx.waker().clone(),
        });
        let waker = Waker::from(Arc::clone(&turn));
        // One poll leaves the waker with the runtime.
        let _ = pin!(yield_now()).poll(&mut Context::from_waker(&waker));
        turn
    }

    pub(super) fn is_over(&self) -> bool {
        // Relaxed, as the store in `wake`: the runtime that has the waker runs on this thread, and the flag guards no data.
        self.is_over.load(Ordering::Relaxed)
    }
}

impl Wake for YieldTurn {
    fn wake(self: Arc<Self>) {
        // Relaxed: see `is_over`.
        self.is_over.store(true, Ordering::Relaxed);
        self.task.wake_by_ref();
    }
}
