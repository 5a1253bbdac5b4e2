//! Calls in flight: at most one for each node, as in Go's `singleflight`.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use nodetracker::NodeId;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::tracker::{Route, TrackerError};

pub(super) type Fetched = Result<Arc<[Route]>, TrackerError>;

pub(super) type SharedFetch = Shared<BoxFuture<'static, Fetched>>;

/// The calls whose answers are still current. Clones share the calls. The holder of the lock must not drop a
/// [`Flight`], which locks them too.
#[derive(Debug, Clone, Default)]
pub(super) struct Flights(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    flights: HashMap<NodeId, Joinable>,
    /// The number of the next flight.
    next: u64,
}

#[derive(Debug)]
struct Joinable {
    number: u64,
    result: SharedFetch,
}

/// A flight whose call is still to be made. The flight fails if it is dropped without a result.
#[derive(Debug)]
pub(super) struct Flight {
    flights: Flights,
    pub(super) node: NodeId,
    number: u64,
    result: Option<oneshot::Sender<Fetched>>,
}

impl Flights {
    /// Returns the result of the node's flight. If there is no flight, the caller gets a new flight, and makes the
    /// call.
    pub(super) fn join(&self, node: &NodeId) -> (SharedFetch, Option<Flight>) {
        let mut state = self.0.lock();
        if let Some(joinable) = state.flights.get(node) {
            return (joinable.result.clone(), None);
        }
        let number = state.next;
        state.next += 1;
        let (sender, receiver) = oneshot::channel();
        let no_result = |_| Err(TrackerError::Internal("the call has ended without a result".to_owned()));
        let result = receiver
            .map(move |result| result.unwrap_or_else(no_result))
            .boxed()
            .shared();
        let joinable = Joinable {
            number,
            result: result.clone(),
        };
        state.flights.insert(node.clone(), joinable);
        let flight = Flight {
            flights: self.clone(),
            node: node.clone(),
            number,
            result: Some(sender),
        };
        (result, Some(flight))
    }

    /// Returns the result of the node's flight, if there is a flight.
    pub(super) fn present(&self, node: &NodeId) -> Option<SharedFetch> {
        let state = self.0.lock();
        state.flights.get(node).map(|joinable| joinable.result.clone())
    }

    /// Forgets the flight of a node: later look-ups do not join it, and its answer is not kept.
    pub(super) fn forget(&self, node: &NodeId) {
        self.0.lock().flights.remove(node);
    }

    /// [`forget`](Self::forget) for all nodes.
    pub(super) fn forget_all(&self) {
        self.0.lock().flights.clear();
    }
}

impl Flight {
    /// Ends the flight. Calls `keep` with an answer, unless the flight was forgotten. A later invalidation finds the
    /// answer that `keep` has stored.
    pub(super) fn finish(mut self, result: Fetched, keep: impl FnOnce(&NodeId, &Arc<[Route]>)) {
        let mut state = self.flights.0.lock();
        if self.is_current(&state) {
            if let Ok(routes) = &result {
                keep(&self.node, routes);
            }
            // Before the send: a look-up that the result wakes must not join this flight again.
            state.flights.remove(&self.node);
        }
        drop(state);
        if let Some(sender) = self.result.take() {
            // An error means that no look-up waits any more.
            let _ = sender.send(result);
        }
    }

    fn is_current(&self, state: &State) -> bool {
        state
            .flights
            .get(&self.node)
            .is_some_and(|joinable| joinable.number == self.number)
    }
}

impl Drop for Flight {
    /// Ends the flight, also if its task has panicked.
    fn drop(&mut self) {
        let mut state = self.flights.0.lock();
        if self.is_current(&state) {
            state.flights.remove(&self.node);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Context, Wake, Waker};

    use super::*;

    /// A look-up that waits for a flight, and looks up again when it is woken.
    struct LooksUpAgain {
        flights: Flights,
        node: NodeId,
        has_new_flight: AtomicBool,
    }

    impl Wake for LooksUpAgain {
        fn wake(self: Arc<Self>) {
            let (_, flight) = self.flights.join(&self.node);
            self.has_new_flight.store(flight.is_some(), Ordering::Relaxed);
        }
    }

    #[test]
    fn a_look_up_that_a_result_wakes_does_not_join_the_ended_flight() {
        let node: NodeId = "node-1".parse().expect("a name");
        for fetched in [Ok(Arc::from([])), Err(TrackerError::Unavailable("down".to_owned()))] {
            let flights = Flights::default();
            let (mut result, flight) = flights.join(&node);
            let waiting = Arc::new(LooksUpAgain {
                flights: flights.clone(),
                node: node.clone(),
                has_new_flight: AtomicBool::new(false),
            });
            let waker = Waker::from(Arc::clone(&waiting));
            assert!(result.poll_unpin(&mut Context::from_waker(&waker)).is_pending());
            flight.expect("the first flight").finish(fetched, |_, _| {});
            assert!(waiting.has_new_flight.load(Ordering::Relaxed));
        }
    }
}
