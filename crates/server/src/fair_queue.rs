//! A queue in which clients take turns, and a limit on tasks that run at the same time, which uses this queue.
//!
//! Each client has one task in each round of the queue, however many tasks it has. So a client with 400 tasks delays
//! another client's next task by one task.

use std::collections::{HashMap, VecDeque};
use std::iter;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::quota::ClientKey;

/// A task that waits for its turn.
#[derive(Debug)]
pub(crate) struct Waiting<T> {
    /// The work of the turn.
    pub(crate) work: usize,
    /// Closed if the task was cancelled.
    pub(crate) grant: oneshot::Sender<T>,
}

impl<T> Waiting<T> {
    fn is_cancelled(&self) -> bool {
        self.grant.is_closed()
    }
}

/// The tasks that wait. Clients take turns, and so do the tasks of each client.
#[derive(Debug)]
pub(crate) struct FairQueue<T> {
    /// The clients with tasks, in the order of their turns.
    clients: VecDeque<ClientKey>,
    tasks: HashMap<ClientKey, VecDeque<Waiting<T>>, ahash::RandomState>,
    /// The number of tasks.
    len: usize,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self {
            clients: VecDeque::new(),
            tasks: HashMap::default(),
            len: 0,
        }
    }
}

impl<T> FairQueue<T> {
    pub(crate) fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    /// Returns the number of tasks.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn push(&mut self, client: ClientKey, task: Waiting<T>) {
        let tasks = self.tasks.entry(client).or_default();
        if tasks.is_empty() {
            self.clients.push_back(client);
        }
        // A client that cancels its calls while they wait must not make the queue longer.
        while tasks.pop_back_if(|last| last.is_cancelled()).is_some() {
            self.len -= 1;
        }
        tasks.push_back(task);
        self.len += 1;
    }

    /// Returns the next task. Cancelled tasks take no turn of their client.
    pub(crate) fn pop(&mut self) -> Option<Waiting<T>> {
        loop {
            let client = self.clients.pop_front()?;
            let tasks = self.tasks.get_mut(&client)?;
            let waiting = tasks.len();
            let next = iter::from_fn(|| tasks.pop_front()).find(|task| !task.is_cancelled());
            self.len -= waiting - tasks.len();
            if tasks.is_empty() {
                self.tasks.remove(&client);
            } else {
                self.clients.push_back(client);
            }
            if next.is_some() {
                return next;
            }
        }
    }
}

/// Places for the tasks that may run at one time. Clients take turns for the places.
#[derive(Debug)]
pub(crate) struct FairPlaces {
    limit: usize,
    places: Mutex<Places>,
}

#[derive(Debug, Default)]
struct Places {
    taken: usize,
    waiting: FairQueue<Place>,
}

impl FairPlaces {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            places: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        // No critical section here leaves the data half changed.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place for a task of a client. `None` means that the runtime stops.
    pub(crate) async fn take(self: &Arc<Self>, client: ClientKey) -> Option<Place> {
        let granted = {
            let mut places = self.lock();
            if places.taken < self.limit {
                places.taken += 1;
                return Some(Place(Arc::clone(self)));
            }
            let (grant, granted) = oneshot::channel();
            places.waiting.push(client, Waiting { work: 0, grant });
            granted
        };
        granted.await.ok()
    }
}

/// The place of one task. On drop, the next task gets the place.
#[derive(Debug)]
pub(crate) struct Place(Arc<FairPlaces>);

impl Drop for Place {
    fn drop(&mut self) {
        let next = {
            let mut places = self.0.lock();
            let next = places.waiting.pop();
            if next.is_none() {
                places.taken -= 1;
            }
            next
        };
        if let Some(next) = next {
            // An error drops the place, which goes to the task after the next.
            let _ = next.grant.send(Self(Arc::clone(&self.0)));
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::yield_now;

    use super::*;

    #[tokio::test]
    async fn clients_take_turns_for_places() {
        const LIMIT: usize = 8;
        let places = FairPlaces::new(LIMIT);
        let [crowd, other] = [1, 2].map(ClientKey::V6);
        let mut taken = Vec::new();
        for _ in 0..LIMIT {
            taken.extend(places.take(crowd).await);
        }
        let waiting = |client| {
            let places = Arc::clone(&places);
            tokio::spawn(async move { places.take(client).await })
        };
        let crowd: Vec<_> = (0..100).map(|_| waiting(crowd)).collect();
        yield_now().await;
        let cancelled = waiting(other);
        let next = waiting(other);
        yield_now().await;
        cancelled.abort();
        yield_now().await;
        // One place for the crowd, and the next for the other client.
        taken.truncate(LIMIT - 2);
        taken.extend(next.await.unwrap());
        assert_eq!(places.lock().waiting.len(), 99);
        // If a task with a granted place is dropped, the next task gets the place.
        crowd.iter().for_each(|waiting| waiting.abort());
        drop(taken);
        for task in crowd {
            let _ = task.await;
        }
        let places = places.lock();
        assert_eq!((places.taken, places.waiting.len()), (0, 0));
    }
}
