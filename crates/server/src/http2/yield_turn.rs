//! A connection that has more to do lets the others of its thread go first.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

use tokio::task::yield_now;

/// A pause until the thread has run all that is ready and has looked for what came in.
///
/// To leave the task's own waker with the runtime would not do: HTTP/2 wakes the task too, as for each answer that a task of
/// its own gives, and it would go on before the thread has looked what else there is.
pub(super) struct Rest {
    over: AtomicBool,
    task: Waker,
}

impl Rest {
    /// Begins a pause of a task, which is woken at its end.
    pub(super) fn begin(cx: &Context<'_>) -> Arc<Self> {
        let rest = Arc::new(Self {
            over: AtomicBool::new(false),
            task: cx.waker().clone(),
        });
        let waker = Waker::from(Arc::clone(&rest));
        // Leaves the waker with the runtime, and is done with that.
        let _ = pin!(yield_now()).poll(&mut Context::from_waker(&waker));
        rest
    }

    pub(super) fn is_over(&self) -> bool {
        // Relaxed, as the store in `wake`: the runtime, which has the waker, is the same thread's, and nothing else is read
        // by way of it.
        self.over.load(Ordering::Relaxed)
    }
}

impl Wake for Rest {
    fn wake(self: Arc<Self>) {
        // Relaxed: see `is_over`.
        self.over.store(true, Ordering::Relaxed);
        self.task.wake_by_ref();
    }
}
