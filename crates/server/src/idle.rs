//! Idle connections end when new connections have to wait for a slot. If no connection is idle, connections of the
//! client with the most connections drain.
//!
//! A question wakes only as many connections as have to end. The next connection is that of the client with the most
//! connections that were not asked. Of this client, it is the connection that was not asked for the longest time. A
//! connection that is not idle passes the question on to the next, until all have been asked. So a question about ten
//! of 10,000 connections wakes ten of them, if these are idle. A client with many busy connections loses its own idle
//! connections before clients with few connections lose theirs.

use std::cmp::{Ordering, Reverse};
use std::collections::binary_heap::PeekMut;
use std::collections::{BinaryHeap, VecDeque};
use std::future::poll_fn;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use tokio::time::{Instant, sleep_until};

use crate::limits::HANDSHAKE_GRACE;

/// Locks a mutex, poisoned or not: no critical section here leaves its data half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes one of a number that guards no data, unless the number is zero.
fn take_one(number: &AtomicUsize) -> bool {
    let less = |number: usize| number.checked_sub(1);
    number.fetch_update(Relaxed, Relaxed, less).is_ok()
}

/// How many connections have to end.
#[derive(Debug)]
struct Eviction {
    left: AtomicUsize,
    /// The clients whose connections may still be asked.
    unasked: Mutex<BinaryHeap<Unasked>>,
    /// Whether connections with calls in flight end, too.
    includes_busy: bool,
}

/// A client's connections that may still be asked. The greatest client has the most connections. Of clients with
/// equally many connections, the client that came first is the greatest.
#[derive(Debug)]
struct Unasked {
    connections: usize,
    number: Reverse<u64>,
    client: Arc<IdleConnections>,
}

impl Unasked {
    fn key(&self) -> (usize, Reverse<u64>) {
        (self.connections, self.number)
    }
}

impl PartialEq for Unasked {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Unasked {}

impl PartialOrd for Unasked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Unasked {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

/// Asks idle connections of several clients to end, up to `count` of them. Each client comes with its number.
pub(crate) fn ask_clients(clients: impl Iterator<Item = (u64, Arc<IdleConnections>)>, count: usize) {
    Eviction::begin(clients, count, false);
}

impl Eviction {
    fn begin(clients: impl Iterator<Item = (u64, Arc<IdleConnections>)>, count: usize, includes_busy: bool) {
        let unasked = clients.map(|(number, client)| Unasked {
            connections: client.len(),
            number: Reverse(number),
            client,
        });
        let unasked: BinaryHeap<_> = unasked.collect();
        let all: usize = unasked.iter().map(|client| client.connections).sum();
        let eviction = Arc::new(Self {
            left: AtomicUsize::new(count),
            unasked: Mutex::new(unasked),
            includes_busy,
        });
        for _ in 0..count.min(all) {
            eviction.ask_next();
        }
    }

    /// Asks the next connection, unless all have been asked or enough end.
    fn ask_next(self: &Arc<Self>) {
        while self.left.load(Relaxed) > 0
            && let Some(connection) = self.next()
        {
            let question = Question {
                eviction: Arc::clone(self),
                ends: false,
            };
            if connection.ask(question) {
                break;
            }
        }
    }

    /// Returns the connection to ask next. `None` if all have been asked.
    fn next(&self) -> Option<Arc<Connection>> {
        let mut unasked = lock(&self.unasked);
        loop {
            let mut most = unasked.peek_mut()?;
            let next = match most.connections.checked_sub(1) {
                Some(rest) => {
                    most.connections = rest;
                    most.client.next()
                }
                None => None,
            };
            if next.is_some() {
                return next;
            }
            // The client has no further connection.
            PeekMut::pop(most);
        }
    }
}

/// The connections of one client, which can be asked to make room.
#[derive(Debug, Default)]
pub(crate) struct IdleConnections {
    /// The connection that was not asked for the longest time is the first.
    connections: Mutex<VecDeque<Weak<Connection>>>,
}

impl IdleConnections {
    /// Asks idle connections to end, up to `count` of them.
    pub(crate) fn ask(self: &Arc<Self>, count: usize) {
        self.ask_for(count, false);
    }

    /// Asks `count` connections to end, idle or not.
    pub(crate) fn ask_busy(self: &Arc<Self>, count: usize) {
        self.ask_for(count, true);
    }

    fn ask_for(self: &Arc<Self>, count: usize, includes_busy: bool) {
        Eviction::begin([(0, Arc::clone(self))].into_iter(), count, includes_busy);
    }

    /// Returns the number of open connections.
    fn len(&self) -> usize {
        let mut connections = lock(&self.connections);
        connections.retain(|connection| connection.strong_count() > 0);
        connections.len()
    }

    /// Returns the connection that was not asked for the longest time, and moves it to the end.
    fn next(&self) -> Option<Arc<Connection>> {
        let mut connections = lock(&self.connections);
        while let Some(next) = connections.pop_front() {
            if let Some(connection) = next.upgrade() {
                connections.push_back(next);
                return Some(connection);
            }
        }
        None
    }

    fn add(&self, connection: &Arc<Connection>) {
        let mut connections = lock(&self.connections);
        // Connections that have ended are removed as often as the memory would have to grow.
        if connections.len() == connections.capacity() {
            connections.retain(|connection| connection.strong_count() > 0);
            let left = connections.len();
            connections.reserve(left.max(1));
        }
        connections.push_back(Arc::downgrade(connection));
    }
}

/// One connection, as others ask it.
#[derive(Debug, Default)]
struct Connection {
    question: Mutex<Option<Question>>,
    /// Whether there is a question. Release pairs with Acquire: the flag announces the question.
    is_asked: AtomicBool,
    waker: AtomicWaker,
}

impl Connection {
    /// Asks the connection, unless it has not answered the last question yet. Reports whether it is asked.
    fn ask(&self, question: Question) -> bool {
        let mut waiting = lock(&self.question);
        if waiting.is_some() {
            // The caller asks another connection.
            question.forget();
            return false;
        }
        *waiting = Some(question);
        drop(waiting);
        self.is_asked.store(true, Release);
        self.waker.wake();
        true
    }

    fn take(&self) -> Option<Question> {
        // An ordinary poll of a connection takes no lock.
        self.is_asked.load(Acquire).then(|| {
            self.is_asked.store(false, Relaxed);
            lock(&self.question).take()
        })?
    }

    fn poll_question(&self, cx: &mut Context<'_>) -> Poll<Question> {
        let question = self.take().or_else(|| {
            self.waker.register(cx.waker());
            self.take()
        });
        question.map_or(Poll::Pending, Poll::Ready)
    }
}

/// A connection that can be asked to make room: with the connections of all clients, or with those of its client.
#[derive(Debug)]
pub(crate) struct Evictable {
    connection: Arc<Connection>,
    since: Instant,
}

impl Evictable {
    /// Returns a new connection of a client, which can be asked from now on.
    pub(crate) fn new(client: &IdleConnections) -> Self {
        let connection = Arc::default();
        client.add(&connection);
        let since = Instant::now();
        Self { connection, since }
    }

    /// Waits until the connection is asked to make room.
    pub(crate) async fn asked(&self) -> Question {
        poll_fn(|cx| self.connection.poll_question(cx)).await
    }

    /// Waits until the connection has to make room because its handshake has not ended within [`HANDSHAKE_GRACE`].
    pub(crate) async fn handshake_makes_room(&self) {
        loop {
            let question = self.asked().await;
            sleep_until(self.since + HANDSHAKE_GRACE).await;
            if question.has_to_end(true) {
                return;
            }
        }
    }
}

/// A question to one connection. On drop, the next connection is asked, unless this connection ends.
#[derive(Debug)]
#[must_use]
pub(crate) struct Question {
    eviction: Arc<Eviction>,
    ends: bool,
}

impl Question {
    /// Reports whether the connection has to end.
    pub(crate) fn has_to_end(mut self, is_idle: bool) -> bool {
        self.ends = (is_idle || self.eviction.includes_busy) && take_one(&self.eviction.left);
        self.ends
    }

    /// Drops the question, and asks no other connection.
    fn forget(mut self) {
        self.ends = true;
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        if !self.ends {
            self.eviction.ask_next();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::{JoinHandle, yield_now};

    use super::*;

    /// A connection that counts how often it is woken.
    struct Counted {
        woken: Arc<AtomicUsize>,
        task: JoinHandle<()>,
    }

    fn connections(client: &IdleConnections, count: usize, is_idle: &Arc<AtomicBool>) -> Vec<Counted> {
        let connection = |_| {
            let evictable = Evictable::new(client);
            let (woken, is_idle) = (Arc::<AtomicUsize>::default(), Arc::clone(is_idle));
            let counted = Arc::clone(&woken);
            let task = tokio::spawn(async move {
                loop {
                    let question = evictable.asked().await;
                    counted.fetch_add(1, Relaxed);
                    if question.has_to_end(is_idle.load(Relaxed)) {
                        break;
                    }
                }
            });
            Counted { woken, task }
        };
        (0..count).map(connection).collect()
    }

    fn woken(connections: &[Counted]) -> usize {
        let woken = |connection: &Counted| connection.woken.load(Relaxed);
        connections.iter().map(woken).sum()
    }

    fn ended(connections: &[Counted]) -> usize {
        connections
            .iter()
            .filter(|connection| connection.task.is_finished())
            .count()
    }

    async fn settle() {
        for _ in 0..1_000 {
            yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_question_wakes_only_the_connections_that_have_to_end() {
        let all = Arc::<IdleConnections>::default();
        let connections = connections(&all, 100, &Arc::new(true.into()));
        settle().await;
        for round in 1..4 {
            all.ask(5);
            settle().await;
            assert_eq!((woken(&connections), ended(&connections)), (5 * round, 5 * round));
        }
        // The connections that have waited the longest come first.
        assert_eq!(ended(&connections[..15]), 15);
    }

    #[tokio::test]
    async fn connections_that_are_not_idle_pass_the_question_on_to_all_others_once() {
        let (all, is_idle) = (Arc::<IdleConnections>::default(), Arc::new(AtomicBool::new(false)));
        let connections = connections(&all, 100, &is_idle);
        settle().await;
        all.ask(3);
        settle().await;
        assert_eq!((woken(&connections), ended(&connections)), (100, 0));
        all.ask_busy(3);
        settle().await;
        assert_eq!((woken(&connections), ended(&connections)), (103, 3));
    }

    #[tokio::test]
    async fn a_new_connection_is_not_asked_an_old_question() {
        let all = Arc::<IdleConnections>::default();
        all.ask(5);
        let connections = connections(&all, 2, &Arc::new(true.into()));
        settle().await;
        assert_eq!(woken(&connections), 0);
        all.ask(1);
        settle().await;
        assert_eq!(ended(&connections), 1);
    }

    #[tokio::test]
    async fn connections_that_have_ended_are_forgotten() {
        let client = IdleConnections::default();
        let _open: Vec<_> = (0..100).map(|_| Evictable::new(&client)).collect();
        for _ in 0..10_000 {
            drop(Evictable::new(&client));
        }
        assert!(lock(&client.connections).capacity() <= 1_000);
    }

    #[tokio::test]
    async fn a_connection_that_ends_without_an_answer_passes_the_question_on() {
        let client = Arc::<IdleConnections>::default();
        let [first, second, third] = [(); 3].map(|()| Evictable::new(&client));
        client.ask(1);
        // The other question goes to a connection that was not asked.
        client.ask(1);
        assert!(second.asked().await.has_to_end(true));
        drop((first, second));
        assert!(third.asked().await.has_to_end(true));
    }
}
