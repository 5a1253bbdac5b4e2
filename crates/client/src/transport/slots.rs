//! Counts what is open at a time, up to a maximum.

use std::sync::Arc;

use tokio::sync::watch;

/// The places of connections or streams. Unlike a semaphore, a caller can wait until few places are taken, and takes
/// none.
pub(crate) struct Slots {
    taken: Arc<watch::Sender<usize>>,
    max: usize,
}

/// A place; dropping it frees the place.
pub(crate) struct Slot(Arc<watch::Sender<usize>>);

impl Slots {
    pub(crate) fn new(max: usize) -> Self {
        let taken = Arc::default();
        Self { taken, max }
    }

    /// Takes a place if more than `spare` places are free.
    pub(crate) fn try_take(&self, spare: usize) -> Option<Slot> {
        let max = self.max.saturating_sub(spare);
        let is_free = self.taken.send_if_modified(|taken| {
            let is_free = *taken < max;
            *taken += usize::from(is_free);
            is_free
        });
        is_free.then(|| Slot(Arc::clone(&self.taken)))
    }

    pub(crate) fn taken(&self) -> usize {
        *self.taken.borrow()
    }

    /// Waits until at most `count` places are taken.
    pub(crate) async fn until_at_most(&self, count: usize) {
        // Fails only without a sender, and `self` has the sender.
        let _ = self.taken.subscribe().wait_for(|taken| *taken <= count).await;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.send_modify(|taken| *taken -= 1);
    }
}
