//! A queue in which clients take turns, and a limit on tasks that run at the same time, which uses this queue.
//!
//! Each client has one task in each round of the queue, however many tasks it has. So a client with 400 tasks delays
//! another client's next task by one task.

use std::collections::{HashMap, VecDeque};
use std::iter;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::client_key::ClientKey;

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

/// Permits for the tasks that may run at one time. Clients take turns for the permits.
#[derive(Debug)]
pub(crate) struct FairPermits {
    limit: usize,
    permits: Mutex<Permits>,
}

#[derive(Debug, Default)]
struct Permits {
    taken: usize,
    waiting: FairQueue<Permit>,
}

impl FairPermits {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            permits: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Permits> {
        // No critical section here leaves the data half changed.
        self.permits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a permit for a task of a client. `None` means that the runtime stops.
    pub(crate) async fn take(self: &Arc<Self>, client: ClientKey) -> Option<Permit> {
        let granted = {
            let mut permits = self.lock();
            if permits.taken < self.limit {
                permits.taken += 1;
                return Some(Permit(Arc::clone(self)));
            }
            let (grant, granted) = oneshot::channel();
            permits.waiting.push(client, Waiting { work: 0, grant });
            granted
        };
        granted.await.ok()
    }
}

/// The permit of one task. On drop, the next task gets the permit.
#[derive(Debug)]
pub(crate) struct Permit(Arc<FairPermits>);

impl Drop for Permit {
    fn drop(&mut self) {
        let next = {
            let mut permits = self.0.lock();
            let next = permits.waiting.pop();
            if next.is_none() {
                permits.taken -= 1;
            }
            next
        };
        if let Some(next) = next {
            // An error drops the permit, which goes to the task after the next.
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
        let permits = FairPermits::new(LIMIT);
        let [crowd, other] = [1, 2].map(ClientKey::V6);
        let mut taken = Vec::new();
        for _ in 0..LIMIT {
            taken.extend(permits.take(crowd).await);
        }
        let waiting = |client| {
            let permits = Arc::clone(&permits);
            tokio::spawn(async move { permits.take(client).await })
        };
        let crowd: Vec<_> = (0..100).map(|_| waiting(crowd)).collect();
        yield_now().await;
        let cancelled = waiting(other);
        let next = waiting(other);
        yield_now().await;
        cancelled.abort();
        yield_now().await;
        // One permit for the crowd, and the next for the other client.
        taken.truncate(LIMIT - 2);
        taken.extend(next.await.unwrap());
        assert_eq!(permits.lock().waiting.len(), 99);
        // If a task with a granted permit is dropped, the next task gets the permit.
        crowd.iter().for_each(|waiting| waiting.abort());
        drop(taken);
        for task in crowd {
            let _ = task.await;
        }
        let permits = permits.lock();
        assert_eq!((permits.taken, permits.waiting.len()), (0, 0));
    }
}
