//! The worker threads, each with a single-threaded runtime. No two threads share a connection, so a call never changes
//! threads.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tracing::error;

use crate::grpc::worker_counters::WorkerCounters;
use crate::http2::connection::{self, ConnectionContext};
use crate::log::peer::OfPeer;
use crate::quota::ClientQuota;

/// How long a server that stops waits for its workers. A worker ends within a turn of some milliseconds.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// All workers. On drop, the workers cut their connections and end.
#[derive(Debug)]
pub(crate) struct Workers {
    workers: Vec<Worker>,
    /// The number of connections so far. The search for the least loaded worker starts at this number, so that equally
    /// loaded workers take turns.
    handed_over: u64,
}

#[derive(Debug)]
struct Worker {
    queue: mpsc::UnboundedSender<Order>,
    /// The number of connections that are open or wait in the queue.
    load: Arc<AtomicUsize>,
    counters: WorkerCounters,
    /// Closed when the thread ends.
    ended: oneshot::Receiver<Infallible>,
    thread: JoinHandle<()>,
}

/// A task of a worker.
enum Order {
    /// Serve a connection.
    Serve(Handover),
    /// Show that the worker's thread runs.
    Respond(oneshot::Sender<()>),
}

struct Handover {
    incoming: Incoming,
    number: u64,
    slot: ConnectionSlot,
    client_slot: OwnedSemaphorePermit,
}

/// A connection that was accepted.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) stream: TcpStream,
    pub(super) peer: SocketAddr,
    pub(super) client: ClientQuota,
}

/// A connection's slot among all connections, and its part of the worker's load.
struct ConnectionSlot {
    load: Arc<AtomicUsize>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        // Relaxed: the load is a hint for the acceptor, and guards no data.
        self.load.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Workers {
    /// Starts one worker for each core. Each worker gets turns and counters of its own.
    pub(crate) fn start(context: &ConnectionContext) -> io::Result<Self> {
        let count = thread::available_parallelism().map_or(1, usize::from);
        let workers = (0..count)
            .map(|number| {
                let turns = Arc::default();
                let counters = WorkerCounters::new(context.router.methods());
                Worker::start(
                    number,
                    ConnectionContext {
                        turns,
                        counters,
                        ..context.clone()
                    },
                )
            })
            .collect::<io::Result<_>>()?;
        Ok(Self {
            workers,
            handed_over: 0,
        })
    }

    /// Returns the counters of each worker.
    pub(crate) fn counters(&self) -> Vec<WorkerCounters> {
        self.workers.iter().map(|worker| worker.counters.clone()).collect()
    }

    /// Hands a connection, with its slots among all connections and among those of its client, to the worker with the
    /// fewest connections.
    pub(super) fn hand_over(&mut self, incoming: Incoming, [slot, client_slot]: [OwnedSemaphorePermit; 2]) {
        let number = self.handed_over;
        self.handed_over += 1;
        let count = self.workers.len();
        let first = (number % count as u64) as usize;
        let worker = (first..first + count)
            .map(|index| &self.workers[index % count])
            // The connections of a worker whose thread has ended are closed, so its load would attract all others.
            .filter(|worker| !worker.queue.is_closed())
            // Relaxed: the load is a hint, and only this thread increments it.
            .min_by_key(|worker| worker.load.load(Ordering::Relaxed));
        if let Some(worker) = worker {
            worker.load.fetch_add(1, Ordering::Relaxed);
            let slot = ConnectionSlot {
                load: Arc::clone(&worker.load),
                _permit: slot,
            };
            let handover = Handover {
                incoming,
                number,
                slot,
                client_slot,
            };
            if worker.queue.send(Order::Serve(handover)).is_err() {
                error!("a connection was closed: its worker has just ended");
            }
        } else {
            error!("a connection was closed: all workers have ended");
        }
    }

    /// Returns a check of the workers, for a watchdog.
    pub(crate) fn liveness(&self) -> Liveness {
        Liveness(self.workers.iter().map(|worker| worker.queue.downgrade()).collect())
    }

    /// Cuts the remaining connections, and waits until the threads have ended, for up to [`STOP_LIMIT`]. A thread that
    /// is stuck must not keep the server from its last snapshot. Such a thread ends with the process.
    pub(crate) async fn stop(self) {
        let deadline = Instant::now() + STOP_LIMIT;
        let (threads, queues): (Vec<_>, Vec<_>) = self
            .workers
            .into_iter()
            .map(|worker| ((worker.ended, worker.thread), worker.queue))
            .unzip();
        drop(queues);
        for (number, (ended, thread)) in threads.into_iter().enumerate() {
            match timeout_at(deadline, ended).await {
                Err(_) => error!("worker-{number} is stuck: the server stops without it"),
                // The thread has nothing left to do.
                Ok(_) if thread.join().is_err() => error!("worker-{number} panicked"),
                Ok(_) => {}
            }
        }
    }

    /// Returns workers and a guard. One worker is stuck until the guard is dropped.
    #[cfg(test)]
    pub(crate) fn with_stuck_worker() -> (Self, impl Sized) {
        let (queue, orders) = mpsc::unbounded_channel();
        let (running, ended) = oneshot::channel();
        let (release, released) = std::sync::mpsc::channel::<Infallible>();
        let stuck = move || {
            let _ = released.recv();
            drop((orders, running));
        };
        let worker = Worker {
            queue,
            load: Arc::default(),
            counters: WorkerCounters::new(&crate::grpc::method::MethodTable::new(Vec::new())),
            ended,
            thread: thread::spawn(stuck),
        };
        let workers = Self {
            workers: vec![worker],
            handed_over: 0,
        };
        (workers, release)
    }
}

/// Checks that the threads of the workers run. Does not keep the workers from ending.
#[derive(Debug)]
pub(crate) struct Liveness(Vec<mpsc::WeakUnboundedSender<Order>>);

impl Liveness {
    /// Waits until each worker has looked at its queue. If a worker's thread is stuck, waits until the thread runs
    /// again.
    pub(crate) async fn check(&self) {
        for queue in &self.0 {
            runs(queue).await;
        }
    }

    /// Returns the number of the first worker that has not looked at its queue within `limit`. `None` if all have.
    pub(crate) async fn stuck(&self, limit: Duration) -> Option<usize> {
        let deadline = Instant::now() + limit;
        for (number, queue) in self.0.iter().enumerate() {
            if timeout_at(deadline, runs(queue)).await.is_err() {
                return Some(number);
            }
        }
        None
    }

    /// Returns a check of a worker that never looks at its queue, and a part that ends the worker when it is dropped.
    #[cfg(test)]
    pub(crate) fn of_stuck_worker() -> (Self, impl Sized) {
        let worker = mpsc::unbounded_channel();
        (Self(vec![worker.0.downgrade()]), worker)
    }
}

/// Waits until a worker has looked at its queue, or has ended.
async fn runs(queue: &mpsc::WeakUnboundedSender<Order>) {
    let (answer, answered) = oneshot::channel();
    // Errors mean that the worker has ended. The sender must not outlive the send: it would keep the worker.
    let sent = queue.upgrade().map(|queue| queue.send(Order::Respond(answer)));
    if let Some(Ok(())) = sent {
        let _ = answered.await;
    }
}

impl Worker {
    fn start(number: usize, context: ConnectionContext) -> io::Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_io()
            .enable_time()
            // Before the thread sleeps, it yields its core. Often another thread waits for that core to send the next
            // request, which then arrives without a sleep and a wake-up. With one call at a time on each of ten
            // connections, yielding saves 12 % of the server's CPU per call. If no thread waits, yielding costs a
            // system call for each sleep.
            .on_thread_park(thread::yield_now)
            .build()?;
        let (queue, orders) = mpsc::unbounded_channel();
        let counters = context.counters.clone();
        let (running, ended) = oneshot::channel();
        let work = move || {
            // Dropped last, also after a panic.
            let _running = running;
            let (runtime, context) = (runtime, context);
            work(&runtime, orders, &context);
        };
        let thread = thread::Builder::new().name(format!("worker-{number}")).spawn(work)?;
        Ok(Self {
            queue,
            load: Arc::default(),
            counters,
            ended,
            thread,
        })
    }
}

/// Serves connections until the sender of the queue is dropped.
fn work(runtime: &Runtime, mut orders: mpsc::UnboundedReceiver<Order>, context: &ConnectionContext) {
    runtime.block_on(async {
        while let Some(order) = orders.recv().await {
            let Handover {
                incoming,
                number,
                slot,
                client_slot,
            } = match order {
                Order::Serve(handover) => handover,
                Order::Respond(answer) => {
                    let _ = answer.send(());
                    continue;
                }
            };
            let Incoming { stream, peer, client } = incoming;
            let context = context.clone();
            let connection = async move {
                connection::serve(stream, client, client_slot, context, number).await;
                drop(slot);
            };
            // Every line about a connection names the client.
            tokio::spawn(OfPeer::new(peer, Box::pin(connection)));
        }
    });
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc as std_mpsc};

    use bytes::Bytes;
    use tokio::sync::Semaphore;
    use tokio::time::timeout;

    use super::*;
    use crate::auth::Access;
    use crate::grpc::handler::Handler;
    use crate::grpc::method::{Method, MethodTable};
    use crate::http2::connection::tests::context;
    use crate::limits::{Limits, MAX_MESSAGE_SIZE};

    /// Opens a connection to a worker, and makes a call.
    async fn call(workers: &mut Workers) -> h2::client::ResponseFuture {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = tokio::net::TcpStream::connect(listener.local_addr().unwrap());
        let client = client.await.unwrap();
        let (stream, peer) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        let incoming = Incoming {
            stream,
            peer,
            client: ClientQuota::alone(),
        };
        let slots = Arc::new(Semaphore::new(2));
        let permits = [(), ()].map(|()| Arc::clone(&slots).try_acquire_owned().unwrap());
        workers.hand_over(incoming, permits);
        let (mut requests, connection) = h2::client::handshake(client).await.unwrap();
        tokio::spawn(connection);
        let request = http::Request::post("http://tracker/Stuck/Call").header("content-type", "application/grpc");
        let (response, mut stream) = requests.send_request(request.body(()).unwrap(), false).unwrap();
        stream.send_data(Bytes::from_static(&[0; 5]), true).unwrap();
        response
    }

    #[tokio::test]
    async fn a_worker_that_has_ended_gets_no_connections() {
        let answer = Handler::Immediate(Arc::new(|_, _| Ok(Bytes::from_static(&[0; 5]))));
        let method = Method::new("/Stuck/Call", MAX_MESSAGE_SIZE, Access::Everyone, answer);
        let (_draining, context) = context(MethodTable::new(vec![method]), Limits::default());
        let worker = |number| Worker::start(number, context.clone()).unwrap();
        let mut workers = Workers {
            workers: vec![worker(0), worker(1)],
            handed_over: 0,
        };
        workers.workers[0].queue = mpsc::unbounded_channel().0;
        for _ in 0..4 {
            call(&mut workers).await.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_worker_that_is_stuck_is_noticed_and_a_worker_that_has_ended_is_not() {
        let (entered, mut has_entered) = mpsc::unbounded_channel();
        let (release, released) = std_mpsc::channel::<()>();
        let released = Mutex::new(released);
        let stuck = Handler::Immediate(Arc::new(move |_, _| {
            let _ = entered.send(());
            let _ = released.lock().unwrap().recv();
            Ok(Bytes::from_static(&[0; 5]))
        }));
        let methods = MethodTable::new(vec![Method::new(
            "/Stuck/Call",
            MAX_MESSAGE_SIZE,
            Access::Everyone,
            stuck,
        )]);
        let (_draining, context) = context(methods, Limits::default());
        let mut workers = Workers::start(&context).unwrap();
        let liveness = workers.liveness();
        liveness.check().await;

        let response = call(&mut workers).await;
        has_entered.recv().await.unwrap();
        assert!(timeout(Duration::from_millis(50), liveness.check()).await.is_err());
        // The first connection is the first worker's.
        assert_eq!(liveness.stuck(Duration::from_millis(50)).await, Some(0));
        release.send(()).unwrap();
        response.await.unwrap();
        liveness.check().await;
        assert_eq!(liveness.stuck(Duration::from_secs(60)).await, None);

        workers.stop().await;
        liveness.check().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_is_stuck_does_not_hold_up_the_stop() {
        let (workers, release) = Workers::with_stuck_worker();
        let begun = Instant::now();
        workers.stop().await;
        assert_eq!(begun.elapsed(), STOP_LIMIT);
        drop(release);
    }
}
