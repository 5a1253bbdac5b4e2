//! Calls on their way: one for each node.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use nodetracker::NodeId;

use crate::tracker::{Route, TrackerError};

pub(super) type Landed = Result<Arc<[Route]>, TrackerError>;

type Landing = Shared<BoxFuture<'static, Landed>>;

/// The calls whose answers are still current. Clones share them.
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
    landed: Landing,
}

/// A flight's right to leave its answer. A flight without a ticket is over.
#[derive(Debug)]
pub(super) struct Ticket {
    flights: Flights,
    node: NodeId,
    number: u64,
}

impl Flights {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No critical section here leaves the data half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the node's flight. Begins a flight, in a task, if there is none.
    pub(super) fn join<F>(&self, node: &NodeId, fetch: impl FnOnce(Ticket) -> F) -> Landing
    where
        F: Future<Output = Landed> + Send + 'static,
    {
        let mut state = self.lock();
        if let Some(flight) = state.flights.get(node) {
            return flight.landed.clone();
        }
        let number = state.next;
        state.next += 1;
        let task = tokio::spawn(fetch(Ticket {
            flights: self.clone(),
            node: node.clone(),
            number,
        }));
        let landed = async {
            task.await
                .unwrap_or_else(|error| Err(TrackerError::Internal(error.to_string())))
        };
        let landed = landed.boxed().shared();
        let flight = Flight {
            number,
            landed: landed.clone(),
        };
        state.flights.insert(node.clone(), flight);
        landed
    }

    /// Later look-ups of a node do not join its present flight, which leaves no answer.
    pub(super) fn forget(&self, node: &NodeId) {
        self.lock().flights.remove(node);
    }

    /// [`forget`](Self::forget) for all nodes.
    pub(super) fn forget_all(&self) {
        self.lock().flights.clear();
    }
}

impl Ticket {
    /// Calls `keep`, unless the flight was forgotten. An invalidation that forgets the flight later finds what `keep` has kept.
    pub(super) fn land(self, keep: impl FnOnce()) {
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

impl Drop for Ticket {
    /// Ends the flight, also if its task has panicked.
    fn drop(&mut self) {
        let mut state = self.flights.lock();
        if self.is_current(&state) {
            state.flights.remove(&self.node);
        }
    }
}
