//! The worker threads, each with a single-threaded runtime. No two threads share a connection, so a call never changes
//! threads.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use tokio::runtime::{Builder, Runtime};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tracing::{Instrument, debug_span, error};

use crate::grpc::call_counters::CallCounters;
use crate::http2::connection::{self, ConnectionContext};
use crate::quota::ClientQuota;

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
    queue: mpsc::UnboundedSender<Handover>,
    /// The number of connections that are open or wait in the queue.
    load: Arc<AtomicUsize>,
    counters: Arc<CallCounters>,
    thread: JoinHandle<()>,
}

struct Handover {
    incoming: Incoming,
    number: u64,
    slot: ConnectionSlot,
}

/// A connection that was accepted.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) stream: TcpStream,
    pub(super) peer: SocketAddr,
    pub(super) client: ClientQuota,
}

/// A connection's slot among all connections, its slot among its client's connections, and its part of the worker's
/// load.
struct ConnectionSlot {
    load: Arc<AtomicUsize>,
    _permits: [OwnedSemaphorePermit; 2],
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
                let counters = CallCounters::new(context.router.methods());
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
    pub(crate) fn counters(&self) -> Vec<Arc<CallCounters>> {
        let counters = |worker: &Worker| Arc::clone(&worker.counters);
        self.workers.iter().map(counters).collect()
    }

    /// Hands a connection to the worker with the fewest connections.
    pub(super) fn hand_over(&mut self, incoming: Incoming, permits: [OwnedSemaphorePermit; 2]) {
        let number = self.handed_over;
        self.handed_over += 1;
        let count = self.workers.len();
        let first = (number % count as u64) as usize;
        let worker = (first..first + count)
            .map(|index| &self.workers[index % count])
            // Relaxed: the load is a hint, and only this thread increments it.
            .min_by_key(|worker| worker.load.load(Ordering::Relaxed));
        if let Some(worker) = worker {
            worker.load.fetch_add(1, Ordering::Relaxed);
            let slot = ConnectionSlot {
                load: Arc::clone(&worker.load),
                _permits: permits,
            };
            // An error means that the worker is gone. The connection closes here.
            let _ = worker.queue.send(Handover { incoming, number, slot });
        }
    }

    /// Cuts the remaining connections, and waits until the threads have ended.
    pub(crate) fn stop(self) {
        for Worker { queue, thread, .. } in self.workers {
            drop(queue);
            if thread.join().is_err() {
                error!("a worker panicked");
            }
        }
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
        let (queue, handovers) = mpsc::unbounded_channel();
        let counters = Arc::clone(&context.counters);
        let thread = thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || work(&runtime, handovers, &context))?;
        Ok(Self {
            queue,
            load: Arc::default(),
            counters,
            thread,
        })
    }
}

/// Serves connections until the sender of the queue is dropped.
fn work(runtime: &Runtime, mut handovers: mpsc::UnboundedReceiver<Handover>, context: &ConnectionContext) {
    runtime.block_on(async {
        while let Some(handover) = handovers.recv().await {
            let Handover { incoming, number, slot } = handover;
            let Incoming { stream, peer, client } = incoming;
            let context = context.clone();
            let connection = async move {
                connection::serve(stream, client, context, number).await;
                drop(slot);
            };
            // Every line about a connection names the client.
            tokio::spawn(connection.instrument(debug_span!("connection", %peer)));
        }
    });
}
