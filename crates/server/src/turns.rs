//! Fairness: the connections of a worker share its thread by the work that their calls cause.
//!
//! A worker runs in passes: it polls its sockets, then runs the tasks that are ready. If a pass were long, every call
//! that arrives meanwhile would wait for the end of the pass. So a pass does about [`WORK_PER_PASS`] of the work that
//! can be postponed. This work is batches, pages of lists, snapshots of watches, and the calls that a connection could
//! not finish in its turn. A task that wants to do such work asks for a turn. If the pass has used up its work, the
//! task waits in a queue, and the next passes grant the turns in order. If a connection has few small calls, these
//! calls never wait.
//!
//! The small calls of a connection take no turn before they begin, but their work counts for the pass. When the pass
//! has done [`SMALL_WORK_PER_PASS`], or a quarter of this work while many tasks wait, each further connection may do
//! only [`MIN_TURN_WORK`]. The connection waits for a turn with the rest. All connections of one client may do
//! [`MIN_TURNS_WORK_PER_CLIENT`] in this way; its other connections wait. A new connection waits for a turn, too. Input
//! that makes no call has its price as well ([`INPUT_PER_WORK`](crate::limits::INPUT_PER_WORK)).
//!
//! While several clients share the worker, each has a share of each pass without a turn: half of [`WORK_PER_PASS`], or
//! less with more clients. The system calls to read and write count, too ([`POLL_WORK`]). The connections of a client
//! that has used up its share wait for turns, and leave their sockets alone meanwhile. What the client has done beyond
//! its share counts as a debt in the next passes. So thousands of connections of one client delay another client by
//! about the granted turns of one pass. A client that is alone has no such limit, and loses nothing.
//!
//! The clients whose tasks wait get turns one after the other, independent of the number of their tasks. So an address
//! with 400 busy connections gets no more turns than an address with one connection. A connection of a client has at
//! most one task in the queue, and its other tasks wait for this task. So a connection with 256 batches gets no more
//! turns than a connection with one batch. Besides that task, the connection itself may wait with its small calls.
//!
//! A task takes a turn before the work, because a client may cancel its call after the work. If the work is unknown
//! before, the task [pays](Turns::pay) for the rest at once: the rest takes the client's next turns, even if the call
//! ends.
//!
//! A message of a session is one piece of work, however large. So the session first waits for a turn, and then decodes
//! and handles the message. Responses of services of other crates take a turn for each message.
//!
//! The unit of work is about a tenth of a microsecond: see [`limits`](crate::limits). A mutex guards the queue, and
//! only the worker's thread takes the mutex.

use std::collections::HashMap;
use std::mem;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, oneshot};
use tokio::task::yield_now;

use crate::client_key::ClientKey;
use crate::fair_queue::{FairPermits, FairQueue, Permit, Waiting};
use crate::limits::{
    CALL_WORK, CROWD, LARGE_CALLS, MAX_DEBT, MAX_TURN_INPUT, MIN_TURN_INPUT, MIN_TURN_WORK, MIN_TURNS_WORK_PER_CLIENT,
    POLL_WORK, SHARED_PASSES, SHORT_TURN_WORK, SMALL_WORK_PER_PASS, TURN_WORK, WORK_PER_PART, WORK_PER_PASS,
};

/// The turns of one worker.
#[derive(Debug)]
pub(crate) struct WorkerTurns {
    pass: Mutex<Pass>,
    /// Permits for the calls that build a large reply.
    large: Arc<FairPermits>,
}

impl Default for WorkerTurns {
    fn default() -> Self {
        Self {
            pass: Mutex::default(),
            large: FairPermits::new(LARGE_CALLS),
        }
    }
}

/// The current pass.
#[derive(Debug, Default)]
struct Pass {
    /// The work that was done or granted since [`WorkerTurns::grant`] last began a pass.
    spent: usize,
    /// The client of the last turn.
    last_client: Option<ClientKey>,
    /// For this many passes, the worker counts as shared by several clients.
    shared_passes: usize,
    /// The work of each client in this pass: of its turns of [`MIN_TURN_WORK`], or of all its turns while the worker
    /// is shared. Then a part that exceeds the client's share is carried over to the next pass, up to [`MAX_DEBT`].
    debts: HashMap<ClientKey, usize, ahash::RandomState>,
    /// The clients with debts at the end of the last pass.
    clients: usize,
    waiting: FairQueue<()>,
    /// Whether a task begins the passes and grants the turns.
    is_granting: bool,
}

impl Pass {
    /// Notes that a client has something to do. Reports whether several clients share the worker.
    fn note(&mut self, client: ClientKey) -> bool {
        if self.last_client.replace(client).is_some_and(|last| last != client) {
            self.shared_passes = SHARED_PASSES;
        }
        self.shared_passes > 0
    }

    /// Returns the work of a client after which its connections wait for turns, while several clients share the worker.
    fn share(&self) -> usize {
        (WORK_PER_PASS / self.clients.max(2)).max(MIN_TURN_WORK)
    }

    /// Reports whether a client has used up its share of a worker that several clients share.
    fn is_over_share(&self, client: ClientKey) -> bool {
        self.shared_passes > 0 && self.debt(client) >= self.share()
    }

    fn debt(&self, client: ClientKey) -> usize {
        self.debts.get(&client).copied().unwrap_or(0)
    }

    /// Adds work to the debt of a client, and returns the debt.
    fn add_debt(&mut self, client: ClientKey, work: usize) -> usize {
        let debt = self.debts.entry(client).or_default();
        *debt = (*debt + work).min(MAX_DEBT);
        *debt
    }

    /// Begins the next pass. Reports whether the last pass was long.
    fn begin(&mut self) -> bool {
        self.clients = self.debts.len();
        self.shared_passes = self.shared_passes.saturating_sub(1);
        let is_long = mem::take(&mut self.spent) >= WORK_PER_PASS;
        if self.shared_passes == 0 || self.waiting.is_empty() && !is_long {
            self.debts.clear();
        } else {
            let share = self.share();
            self.debts.retain(|_, debt| {
                *debt = debt.saturating_sub(share);
                *debt > 0
            });
        }
        is_long
    }
}

/// Returns the limit of small calls for a pass in which `waiting` tasks wait. Beyond this work, each further connection
/// may do only [`MIN_TURN_WORK`].
fn small_work_per_pass(waiting: usize) -> usize {
    (SMALL_WORK_PER_PASS * CROWD / waiting.max(CROWD)).max(WORK_PER_PASS)
}

impl WorkerTurns {
    fn lock(&self) -> MutexGuard<'_, Pass> {
        // No critical section here leaves the pass half changed.
        self.pass.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the queue. The turn comes in a later pass.
    fn enqueue(self: &Arc<Self>, client: ClientKey, work: usize) -> oneshot::Receiver<()> {
        let (grant, granted) = oneshot::channel();
        let mut pass = self.lock();
        pass.waiting.push(client, Waiting { work, grant });
        if !mem::replace(&mut pass.is_granting, true) {
            tokio::spawn(Arc::clone(self).grant());
        }
        granted
    }

    /// Begins each pass, and grants its turns, until no task waits and the last pass was short.
    async fn grant(self: Arc<Self>) {
        loop {
            // The runtime polls the sockets and runs the tasks that are ready, then this task.
            yield_now().await;
            let mut pass = self.lock();
            let was_long = pass.begin();
            if pass.waiting.is_empty() && !was_long {
                pass.is_granting = false;
                return;
            }
            while pass.spent < WORK_PER_PASS
                && let Some(Waiting { work, grant }) = pass.waiting.pop()
            {
                if grant.send(()).is_ok() {
                    pass.spent += work;
                }
            }
        }
    }
}

/// The polls of the runtime after which all sockets with input have been found. Each poll finds up to 1,024 sockets.
const SOCKET_POLLS: u32 = 16;

/// The turns in which a connection reads all that the system holds for the connection: several megabytes.
const TURNS_OF_SOCKET: usize = 128;

/// Completes when the turn comes.
pub(crate) type TurnFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The turns of one connection. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Turns {
    worker: Arc<WorkerTurns>,
    client: ClientKey,
    /// The connection's task that is in the queue holds the permit.
    first: Arc<Semaphore>,
    input: Arc<Input>,
}

/// The input of one connection. Relaxed: only the worker's thread uses it.
#[derive(Debug, Default)]
struct Input {
    /// Whether the connection waits for a turn to read its input.
    waits: AtomicBool,
    /// Whether that turn has only [`MIN_TURN_WORK`].
    is_least: AtomicBool,
    /// The connection's turns that have ended.
    turns: AtomicUsize,
}

impl Turns {
    /// Returns the turns of a new connection of a client.
    pub(crate) fn new(worker: Arc<WorkerTurns>, client: ClientKey) -> Self {
        Self {
            worker,
            client,
            first: Arc::new(Semaphore::new(1)),
            input: Arc::default(),
        }
    }

    /// Takes a turn if the worker has time for `work` now. Reports whether the turn was taken.
    fn try_take(&self, work: usize) -> bool {
        let mut pass = self.worker.lock();
        let has_time = pass.waiting.is_empty() && pass.spent < WORK_PER_PASS && !pass.is_over_share(self.client);
        if has_time {
            pass.spent += work;
        }
        has_time
    }

    /// Takes a turn now, and returns `None`, if the worker has time. Otherwise returns a future that takes the turn, as
    /// [`take`](Self::take) does.
    pub(crate) fn begin(&self, work: usize) -> Option<TurnFuture> {
        if self.try_take(work) {
            return None;
        }
        let turns = self.clone();
        Some(Box::pin(async move { turns.take(work).await }))
    }

    /// Waits until the worker has time for `work`.
    pub(crate) async fn take(&self, work: usize) {
        if self.try_take(work) {
            return;
        }
        let _first = self.first.acquire().await;
        // An error means that the runtime stops.
        let _ = self.worker.enqueue(self.client, work).await;
    }

    /// Counts work that was done without a turn, or beyond a turn. Work for which the pass has no time takes the next
    /// turns of the client, even if the returned future is dropped. Waits for these turns.
    pub(crate) async fn pay(&self, work: usize) {
        let mut rest = {
            let mut pass = self.worker.lock();
            let now = work.min(WORK_PER_PASS.saturating_sub(pass.spent));
            pass.spent += now;
            work - now
        };
        let mut turns = Vec::new();
        while rest > 0 {
            // A pass grants turns until its work is used up, and forgets by how much the last turn exceeds its work.
            let turn = rest.min(WORK_PER_PASS);
            turns.push(self.worker.enqueue(self.client, turn));
            rest -= turn;
        }
        if turns.is_empty() {
            return;
        }
        // Otherwise a client that cancels its call would pay nothing: a turn that nobody waits for is not counted.
        let paid = tokio::spawn(async move {
            for turn in turns {
                // An error means that the runtime stops.
                let _ = turn.await;
            }
        });
        let _ = paid.await;
    }

    /// Waits until fewer than [`LARGE_CALLS`] calls of the worker build a large reply. So the memory for replies that
    /// are being built does not grow with the number of calls. `None` means that the runtime stops.
    pub(crate) async fn large_reply(&self) -> Option<Permit> {
        self.worker.large.take(self.client).await
    }

    /// Returns the client of the connection.
    pub(crate) fn client(&self) -> ClientKey {
        self.client
    }

    /// Asks for a turn in a later pass, for the connection's small calls after the turn `last`. If that turn had no
    /// work, many connections of the client wait, and each gets a little.
    pub(crate) fn next_after(&self, last: &SmallCalls) -> oneshot::Receiver<()> {
        self.next_of(match last.work {
            0 => MIN_TURN_WORK,
            _ => SHORT_TURN_WORK,
        })
    }

    fn next_of(&self, work: usize) -> oneshot::Receiver<()> {
        self.input.waits.store(true, Ordering::Relaxed);
        self.input.is_least.store(work == MIN_TURN_WORK, Ordering::Relaxed);
        self.worker.enqueue(self.client, work + POLL_WORK)
    }

    /// Returns the turn that a connection has for its small calls now. `is_granted` if the connection has waited for
    /// the turn. If the turn has no work, the connection has to wait, and must not use its socket meanwhile.
    pub(crate) fn small_calls(&self, is_granted: bool) -> SmallCalls {
        let mut pass = self.worker.lock();
        let is_shared = pass.note(self.client);
        let work = match is_granted {
            true if self.input.is_least.load(Ordering::Relaxed) => MIN_TURN_WORK,
            true => SHORT_TURN_WORK,
            false if pass.is_over_share(self.client) => 0,
            false if pass.spent >= small_work_per_pass(pass.waiting.len()) => match pass.debt(self.client) {
                MIN_TURNS_WORK_PER_CLIENT.. => 0,
                _ => MIN_TURN_WORK,
            },
            false if pass.waiting.is_empty() => TURN_WORK,
            false => SHORT_TURN_WORK,
        };
        SmallCalls {
            work,
            input: match work {
                MIN_TURN_WORK => MIN_TURN_INPUT,
                _ => MAX_TURN_INPUT,
            },
            is_granted,
            is_shared,
        }
    }

    /// Waits until the connection has read the input that has arrived by now: at most for [`TURNS_OF_SOCKET`], because
    /// a client may send without end. Meanwhile, the waiting task takes turns, too.
    pub(crate) async fn input_is_read(self) {
        for _ in 0..SOCKET_POLLS {
            // The runtime polls the sockets and runs the connections that have input, then this task.
            yield_now().await;
        }
        let Input { waits, turns, .. } = &*self.input;
        let before = turns.load(Ordering::Relaxed);
        while waits.load(Ordering::Relaxed) && turns.load(Ordering::Relaxed).wrapping_sub(before) < TURNS_OF_SOCKET {
            self.take(CALL_WORK).await;
            yield_now().await;
        }
    }

    /// Counts the work of a turn for small calls. If the turn was granted, the pass has counted that work before.
    /// `has_traffic` if the connection has read or written bytes.
    pub(crate) fn end(&self, turn: &SmallCalls, work: usize, has_traffic: bool) {
        let Input { waits, turns, .. } = &*self.input;
        waits.store(false, Ordering::Relaxed);
        // No locked instruction: no other thread adds.
        turns.store(turns.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        let uncounted = work.saturating_sub(if turn.is_granted { turn.work } else { 0 });
        if uncounted == 0 && !(turn.is_shared && has_traffic) {
            return;
        }
        let mut pass = self.worker.lock();
        pass.spent += uncounted;
        let mut begins = pass.spent >= WORK_PER_PASS;
        if turn.is_shared {
            let work = work + if has_traffic { POLL_WORK } else { 0 };
            // Before the client has used up its share: the passes of an idle worker end the debts.
            begins |= pass.add_debt(self.client, work) >= pass.share() / 2;
        } else if turn.work == MIN_TURN_WORK && !turn.is_granted {
            pass.add_debt(self.client, work);
        }
        // `grant` sets `spent` to zero for each pass. If no task ran `grant`, the work of many passes would add up.
        if begins && !mem::replace(&mut pass.is_granting, true) {
            tokio::spawn(Arc::clone(&self.worker).grant());
        }
    }
}

/// The turn of a connection for its small calls.
#[derive(Debug)]
pub(crate) struct SmallCalls {
    /// The work after which the other calls wait for the next turn.
    pub(crate) work: usize,
    /// The bytes that the connection may read.
    pub(crate) input: usize,
    is_granted: bool,
    /// Whether several clients share the worker.
    is_shared: bool,
}

/// Divides the nodes of a call into parts, of one turn each.
///
/// The work for a node is unknown until its routes are read. So a part assumes as much work for each node as the
/// previous part had, and the first part assumes the most. A client may order its nodes against that rule. So a part
/// also ends once its work [is enough](Self::is_enough).
#[derive(Debug)]
pub(crate) struct Parts {
    work_per_node: usize,
}

impl Parts {
    /// Begins a call whose nodes have at most `work_per_node` of work each.
    pub(crate) fn new(work_per_node: usize) -> Self {
        Self { work_per_node }
    }

    /// Waits for a turn, and returns the most nodes to handle in it.
    pub(crate) async fn next(&self, turns: &Turns) -> usize {
        turns.take(WORK_PER_PART).await;
        (WORK_PER_PART / self.work_per_node).max(1)
    }

    /// Reports whether a part that has done this work has to end before the next node.
    pub(crate) fn is_enough(work: usize) -> bool {
        work >= WORK_PER_PART
    }

    /// Records how much work a part with this many nodes was.
    pub(crate) fn done(&mut self, nodes: usize, work: usize) {
        self.work_per_node = (work / nodes.max(1)).max(1);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::RefCell;
    use std::pin::pin;
    use std::rc::Rc;
    use std::task::{Context, Waker};

    use tokio::task::{LocalSet, spawn_local};

    use super::*;

    impl WorkerTurns {
        /// Returns the work of the current pass.
        pub(crate) fn spent(&self) -> usize {
            self.lock().spent
        }
    }

    impl Turns {
        /// Asks for a turn in a later pass, for the connection's small calls.
        pub(crate) fn next(&self) -> oneshot::Receiver<()> {
            self.next_of(SHORT_TURN_WORK)
        }

        /// Reports whether no task waits for a turn.
        pub(crate) fn is_free(&self) -> bool {
            self.worker.lock().waiting.is_empty()
        }

        /// Returns the turns of a connection of a worker's only client.
        pub(crate) fn of_one_client(worker: Arc<WorkerTurns>) -> Self {
            Self::new(worker, ClientKey::V6(1))
        }
    }

    /// Runs tasks that each take turns for a whole pass, and returns the order of their turns.
    async fn order(connections: &[Turns], turns: usize) -> Vec<usize> {
        let order = Rc::new(RefCell::new(Vec::new()));
        LocalSet::new()
            .run_until(async {
                let tasks: Vec<_> = connections
                    .iter()
                    .cloned()
                    .enumerate()
                    .map(|(number, connection)| {
                        let order = Rc::clone(&order);
                        spawn_local(async move {
                            for _ in 0..turns {
                                connection.take(WORK_PER_PASS).await;
                                order.borrow_mut().push(number);
                            }
                        })
                    })
                    .collect();
                for task in tasks {
                    task.await.unwrap();
                }
            })
            .await;
        Rc::into_inner(order).unwrap().into_inner()
    }

    #[tokio::test]
    async fn connections_take_turns() {
        let worker = Arc::<WorkerTurns>::default();
        let [a, b] = [0; 2].map(|_| Turns::of_one_client(Arc::clone(&worker)));
        // Three tasks of one connection get as many turns as the only task of the other.
        let order = order(&[a.clone(), a.clone(), a, b], 4).await;
        let at = |last| order.iter().rposition(|&number| number == last).unwrap();
        assert!(at(3) <= 8, "{order:?}");
        assert!(worker.lock().waiting.is_empty());
    }

    #[tokio::test]
    async fn clients_take_turns_however_many_connections_they_have() {
        let worker = Arc::<WorkerTurns>::default();
        let of = |client| Turns::new(Arc::clone(&worker), ClientKey::V6(client));
        let connections: Vec<_> = (0..20).map(|_| of(1)).chain([of(2)]).collect();
        let order = order(&connections, 4).await;
        let last = order.iter().rposition(|&number| number == 20);
        assert!(last <= Some(8), "{order:?}");
        let queue = &worker.lock().waiting;
        assert!(queue.is_empty());
    }

    #[tokio::test]
    async fn a_pass_has_so_much_work_and_no_more() {
        let worker = Arc::<WorkerTurns>::default();
        let connections: Vec<_> = (0..100).map(|_| Turns::of_one_client(Arc::clone(&worker))).collect();
        const WORK: usize = WORK_PER_PASS / 4;
        // The first pass was used up.
        connections[0].take(WORK_PER_PASS).await;
        let mut waiting: Vec<_> = connections
            .iter()
            .map(|connection| connection.worker.enqueue(connection.client, WORK))
            .collect();
        assert_eq!(connections[0].small_calls(true).work, SHORT_TURN_WORK);
        let mut passes = 0;
        while !waiting.is_empty() {
            let before = waiting.len();
            yield_now().await;
            waiting.retain_mut(|granted| granted.try_recv().is_err());
            assert!(before - waiting.len() <= 4);
            passes += 1;
        }
        assert!(passes >= 25);
        yield_now().await;
        assert_eq!(connections[0].small_calls(false).work, TURN_WORK);
    }

    #[tokio::test]
    async fn a_pass_that_has_done_its_work_leaves_a_few_calls_to_each_connection() {
        let worker = Arc::<WorkerTurns>::default();
        let connections: Vec<_> = (0..20).map(|_| Turns::of_one_client(Arc::clone(&worker))).collect();
        let works: Vec<_> = connections
            .iter()
            .map(|connection| {
                let turn = connection.small_calls(false);
                connection.end(&turn, turn.work / 2, true);
                turn.work
            })
            .collect();
        let most = SMALL_WORK_PER_PASS / (TURN_WORK / 2);
        assert_eq!(works[..most], vec![TURN_WORK; most]);
        assert_eq!(works[most..], vec![MIN_TURN_WORK; works.len() - most]);

        // A connection waits. Then the next pass begins, with its turn.
        let waits = connections[9].next();
        assert_eq!(connections[0].small_calls(false).work, MIN_TURN_WORK);
        waits.await.unwrap();
        assert_eq!(worker.lock().spent, SHORT_TURN_WORK + POLL_WORK);
        let turn = connections[9].small_calls(true);
        connections[9].end(&turn, turn.work, true);
        assert_eq!(
            worker.lock().spent,
            SHORT_TURN_WORK + POLL_WORK,
            "the work was counted twice"
        );
        assert_eq!(connections[0].small_calls(false).work, TURN_WORK);
    }

    #[tokio::test]
    async fn a_pass_does_not_grow_with_the_connections_of_a_client() {
        let worker = Arc::<WorkerTurns>::default();
        let of = |client| Turns::new(Arc::clone(&worker), ClientKey::V6(client));
        let turn = of(1).small_calls(false);
        of(1).end(&turn, SMALL_WORK_PER_PASS, true);
        let mut work = 0;
        for _ in 0..1000 {
            let turn = of(1).small_calls(false);
            of(1).end(&turn, turn.work, true);
            work += turn.work;
        }
        assert_eq!(work, MIN_TURNS_WORK_PER_CLIENT);
        let late = of(1);
        let turn = late.small_calls(false);
        assert_eq!(turn.work, 0);
        let _waits = late.next_after(&turn);
        assert_eq!(late.small_calls(true).work, MIN_TURN_WORK);
        assert_eq!(of(2).small_calls(false).work, MIN_TURN_WORK);
        // The next pass has work for all.
        for _ in 0..4 {
            yield_now().await;
        }
        assert_eq!(of(1).small_calls(false).work, TURN_WORK);
    }

    /// Connections that have one call each whenever they may have it.
    struct Crowd {
        /// With the turn that each connection waits for.
        connections: Vec<(Turns, Option<oneshot::Receiver<()>>)>,
    }

    impl Crowd {
        fn new(connections: impl Iterator<Item = Turns>) -> Self {
            Self {
                connections: connections.map(|connection| (connection, None)).collect(),
            }
        }

        /// Polls each connection once. Returns the connections that had a turn.
        fn poll(&mut self) -> usize {
            let mut served = 0;
            for (connection, waits) in &mut self.connections {
                let granted = waits.as_mut().map(|granted| granted.try_recv().is_ok());
                if granted == Some(false) {
                    continue;
                }
                let is_granted = granted.is_some();
                let turn = connection.small_calls(is_granted);
                *waits = match turn.work {
                    0 => Some(connection.next_after(&turn)),
                    _ => {
                        connection.end(&turn, CALL_WORK, true);
                        served += 1;
                        None
                    }
                };
            }
            served
        }
    }

    #[tokio::test]
    async fn a_shared_pass_does_not_grow_with_the_connections_of_a_client() {
        const PASSES: usize = 100;
        let worker = Arc::<WorkerTurns>::default();
        let of = |client| Turns::new(Arc::clone(&worker), ClientKey::V6(client));
        let other = of(2);
        let mut crowd = Crowd::new((0..1_000).map(|_| of(1)));
        let mut all = 0;
        for pass in 0..PASSES {
            let turn = other.small_calls(false);
            assert_ne!(turn.work, 0, "the other client waits");
            other.end(&turn, CALL_WORK, true);
            let served = crowd.poll();
            all += served;
            let work = served * (CALL_WORK + POLL_WORK);
            // In the first pass, only the share bounds the work: no debt is left from an earlier pass.
            assert!(work <= WORK_PER_PASS, "{work} in pass {pass}");
            yield_now().await;
        }
        // The pass has time for this many granted turns.
        let turns = WORK_PER_PASS / (MIN_TURN_WORK + POLL_WORK);
        assert!(all >= PASSES / 2 * turns, "{all}");
    }

    #[tokio::test]
    async fn a_client_that_is_alone_does_not_wait_for_the_price_of_its_polls() {
        let worker = Arc::<WorkerTurns>::default();
        let of = |client| Turns::new(Arc::clone(&worker), ClientKey::V6(client));
        let mut crowd = Crowd::new((0..400).map(|_| of(1)));
        for _ in 0..10 {
            assert_eq!(crowd.poll(), 400);
            yield_now().await;
        }
        // Another client has one call.
        let other = of(2);
        let turn = other.small_calls(false);
        other.end(&turn, CALL_WORK, true);
        for _ in 0..SHARED_PASSES {
            yield_now().await;
            assert!(crowd.poll() < 400);
        }
        // The connections that wait come first.
        for _ in 0..400 {
            yield_now().await;
            crowd.poll();
        }
        assert_eq!(crowd.poll(), 400);
    }

    #[tokio::test]
    async fn the_calls_of_an_idle_worker_add_up_to_no_debt() {
        let worker = Arc::<WorkerTurns>::default();
        let [client, other] = [1, 2].map(|client| Turns::new(Arc::clone(&worker), ClientKey::V6(client)));
        for _ in 0..1_000 {
            for client in [&client, &other] {
                let turn = client.small_calls(false);
                assert_eq!(turn.work, TURN_WORK);
                client.end(&turn, CALL_WORK, true);
                yield_now().await;
            }
        }
    }

    #[tokio::test]
    async fn many_clients_have_smaller_shares() {
        const CLIENTS: usize = 100;
        let worker = Arc::<WorkerTurns>::default();
        let of = |client: usize| Turns::new(Arc::clone(&worker), ClientKey::V6(client as u64));
        let mut crowd = Crowd::new((0..10 * CLIENTS).map(|number| of(number % CLIENTS)));
        for _ in 0..10 {
            crowd.poll();
            yield_now().await;
        }
        let work = crowd.poll() * (CALL_WORK + POLL_WORK);
        assert!(work <= CLIENTS * MIN_TURN_WORK + WORK_PER_PASS, "{work}");
    }

    #[tokio::test]
    async fn small_calls_have_less_of_a_pass_while_many_tasks_wait() {
        assert_eq!([0, CROWD].map(small_work_per_pass), [SMALL_WORK_PER_PASS; 2]);
        assert_eq!(small_work_per_pass(2 * CROWD), SMALL_WORK_PER_PASS / 2);
        assert_eq!([4 * CROWD, usize::MAX].map(small_work_per_pass), [WORK_PER_PASS; 2]);

        let worker = Arc::<WorkerTurns>::default();
        let connection = Turns::of_one_client(Arc::clone(&worker));
        let waiting: Vec<_> = (0..4 * CROWD).map(|_| connection.next()).collect();
        let works = [(); 3].map(|()| {
            let turn = connection.small_calls(false);
            connection.end(&turn, WORK_PER_PASS / 2, true);
            turn.work
        });
        assert_eq!(works, [SHORT_TURN_WORK, SHORT_TURN_WORK, MIN_TURN_WORK]);
        for turn in waiting {
            turn.await.unwrap();
        }
        assert_eq!(worker.lock().waiting.len(), 0);
    }

    #[tokio::test]
    async fn the_work_of_short_passes_does_not_add_up() {
        let worker = Arc::<WorkerTurns>::default();
        let connection = Turns::of_one_client(Arc::clone(&worker));
        for _ in 0..10 {
            let turn = connection.small_calls(false);
            assert_eq!(turn.work, TURN_WORK);
            connection.end(&turn, SMALL_WORK_PER_PASS / 2, true);
            yield_now().await;
        }
        yield_now().await;
        yield_now().await;
        assert!(!worker.lock().is_granting);
    }

    #[tokio::test]
    async fn a_client_that_sends_without_end_is_read_for_some_turns_only() {
        let worker = Arc::<WorkerTurns>::default();
        let connection = Turns::of_one_client(Arc::clone(&worker));
        let mut turn = connection.next();
        let waits = tokio::spawn(connection.clone().input_is_read());
        let mut turns = 0;
        while !waits.is_finished() {
            turn.await.unwrap();
            // The connection has more input at the end of its turn.
            connection.end(&connection.small_calls(true), 0, true);
            turn = connection.next();
            turns += 1;
            assert!(turns < 2 * TURNS_OF_SOCKET, "the task waits for the end of the input");
        }
        assert!(turns >= TURNS_OF_SOCKET);
    }

    #[tokio::test]
    async fn cancelled_tasks_delay_no_task_of_their_client() {
        const OTHERS: usize = 50;
        let worker = Arc::<WorkerTurns>::default();
        let [client, other] = [1, 2].map(|client| Turns::new(Arc::clone(&worker), ClientKey::V6(client)));
        let others: Vec<_> = (0..OTHERS)
            .map(|_| worker.enqueue(other.client, WORK_PER_PASS))
            .collect();
        let live: Vec<_> = (0..2)
            .map(|_| {
                let cancelled: Vec<_> = (0..OTHERS)
                    .map(|_| worker.enqueue(client.client, WORK_PER_PASS))
                    .collect();
                let live = worker.enqueue(client.client, WORK_PER_PASS);
                drop(cancelled);
                live
            })
            .collect();
        for live in live {
            live.await.unwrap();
        }
        let waiting = others
            .into_iter()
            .filter_map(|mut other| other.try_recv().err())
            .count();
        assert!(waiting >= OTHERS - 3, "{waiting}");
    }

    #[tokio::test]
    async fn the_queue_does_not_grow_with_tasks_that_are_cancelled() {
        let worker = Arc::<WorkerTurns>::default();
        let connection = Turns::of_one_client(Arc::clone(&worker));
        for _ in 0..1000 {
            drop(connection.next());
        }
        assert_eq!(worker.lock().waiting.len(), 1);
        let live = connection.next();
        assert_eq!(worker.lock().waiting.len(), 1);
        live.await.unwrap();
        assert_eq!(worker.lock().waiting.len(), 0);
    }

    #[tokio::test]
    async fn a_client_that_cancels_a_call_has_paid_for_what_the_call_has_done() {
        let worker = Arc::<WorkerTurns>::default();
        let [client, other] = [1, 2].map(|client| Turns::new(Arc::clone(&worker), ClientKey::V6(client)));
        client.take(WORK_PER_PART).await;
        {
            let mut pay = pin!(client.pay(4 * WORK_PER_PASS));
            assert!(pay.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
        assert_eq!(worker.spent(), WORK_PER_PASS);
        let next = tokio::spawn(async move { client.take(1).await });
        let others = tokio::spawn(async move { other.take(1).await });
        let (mut passes, mut before) = (0, 0);
        while !next.is_finished() {
            yield_now().await;
            passes += 1;
            before += usize::from(!others.is_finished());
        }
        assert!(passes >= 4, "{passes}");
        assert!(before <= 3, "the other client has waited for {before} passes");
    }

    #[tokio::test]
    async fn a_cancelled_task_takes_no_turn() {
        let worker = Arc::<WorkerTurns>::default();
        let connection = Turns::of_one_client(Arc::clone(&worker));
        let cancelled = connection.worker.enqueue(connection.client, WORK_PER_PASS);
        let patient = connection.worker.enqueue(connection.client, 1);
        drop(cancelled);
        patient.await.unwrap();
        assert_eq!(worker.lock().spent, 1);
    }
}
