//! Calls in flight: at most one for each node, as in Go's `singleflight`.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use nodetracker::NodeId;

use crate::tracker::{Route, TrackerError};

pub(super) type Fetched = Result<Arc<[Route]>, TrackerError>;

type SharedFetch = Shared<BoxFuture<'static, Fetched>>;

/// The calls whose answers are still current. Clones share the calls.
///
/// A call runs in a task of its own, so it ends even if every look-up that waits for the call is dropped.
#[derive(Debug, Clone, Default)]
pub(super) struct Flights(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    flights: HashMap<NodeId, Flight>,
    /// The number of the next flight.
    next: u64,
}

#[derive(Debug)]
struct Flight {
    number: u64,
    result: SharedFetch,
}

/// Ends a flight when it is dropped.
#[derive(Debug)]
pub(super) struct FlightGuard {
    flights: Flights,
    node: NodeId,
    number: u64,
}

impl Flights {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No critical section here leaves the data half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the result of the node's flight. Begins a flight, in a task, if there is none.
    pub(super) fn join<F>(&self, node: &NodeId, fetch: impl FnOnce(FlightGuard) -> F) -> SharedFetch
    where
        F: Future<Output = Fetched> + Send + 'static,
    {
        let mut state = self.lock();
        if let Some(flight) = state.flights.get(node) {
            return flight.result.clone();
        }
        let number = state.next;
        state.next += 1;
        let task = tokio::spawn(fetch(FlightGuard {
            flights: self.clone(),
            node: node.clone(),
            number,
        }));
        let result = async {
            task.await
                .unwrap_or_else(|error| Err(TrackerError::Internal(error.to_string())))
        };
        let result = result.boxed().shared();
        let flight = Flight {
            number,
            result: result.clone(),
        };
        state.flights.insert(node.clone(), flight);
        result
    }

    /// Forgets the flight of a node: later look-ups do not join it, and its answer is not kept.
    pub(super) fn forget(&self, node: &NodeId) {
        self.lock().flights.remove(node);
    }

    /// [`forget`](Self::forget) for all nodes.
    pub(super) fn forget_all(&self) {
        self.lock().flights.clear();
    }
}

impl FlightGuard {
    /// Calls `keep`, unless the flight was forgotten. A later invalidation finds the answer that `keep` has stored.
    pub(super) fn finish(self, keep: impl FnOnce()) {
        let state = self.flights.lock();
        if self.is_current(&state) {
            keep();
        }
        drop(state);
    }

    fn is_current(&self, state: &State) -> bool {
        state
            .flights
            .get(&self.node)
            .is_some_and(|flight| flight.number == self.number)
    }
}

impl Drop for FlightGuard {
    /// Ends the flight, also if its task has panicked.
    fn drop(&mut self) {
        let mut state = self.flights.lock();
        if self.is_current(&state) {
            state.flights.remove(&self.node);
        }
    }
}
