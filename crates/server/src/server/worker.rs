//! The threads that serve connections: one single-threaded runtime each, so that a call never leaves the core that
//! read it and no two threads share a connection.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use tokio::runtime::{Builder, Runtime};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::http2::connection::{self, ConnectionContext};

/// All workers. Once this is dropped they cut what they still serve, and end.
#[derive(Debug)]
pub(crate) struct Workers {
    workers: Vec<Worker>,
    /// Connections handed over so far; also where the search for the least loaded worker starts, so that equals take
    /// turns.
    handed_over: u64,
}

#[derive(Debug)]
struct Worker {
    queue: mpsc::UnboundedSender<Handover>,
    /// Connections that are served or wait in the queue.
    load: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

struct Handover {
    stream: TcpStream,
    number: u64,
    place: Place,
}

/// A connection's place among the connections of its worker, and of the server.
struct Place {
    load: Arc<AtomicUsize>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        // Relaxed: a hint for the acceptor; it orders nothing.
        self.load.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Workers {
    /// Starts one worker for each core.
    pub(crate) fn start(context: &ConnectionContext) -> io::Result<Self> {
        let count = thread::available_parallelism().map_or(1, usize::from);
        let workers = (0..count)
            .map(|number| Worker::start(number, context.clone()))
            .collect::<io::Result<_>>()?;
        Ok(Self {
            workers,
            handed_over: 0,
        })
    }

    /// Hands a connection to the worker that serves the fewest.
    pub(crate) fn hand_over(&mut self, stream: TcpStream, permit: OwnedSemaphorePermit) {
        let number = self.handed_over;
        self.handed_over += 1;
        let count = self.workers.len();
        let first = (number % count as u64) as usize;
        let worker = (first..first + count)
            .map(|index| &self.workers[index % count])
            // Relaxed: a hint, only this thread adds to it.
            .min_by_key(|worker| worker.load.load(Ordering::Relaxed));
        if let Some(worker) = worker {
            worker.load.fetch_add(1, Ordering::Relaxed);
            let place = Place {
                load: Arc::clone(&worker.load),
                _permit: permit,
            };
            // An error means that the worker is gone, and the connection with it: it is closed here.
            let _ = worker.queue.send(Handover { stream, number, place });
        }
    }

    /// Cuts the connections that are left, and waits for the threads to end.
    pub(crate) fn stop(self) {
        for Worker { queue, thread, .. } in self.workers {
            drop(queue);
            if thread.join().is_err() {
                tracing::error!("a worker panicked");
            }
        }
    }
}

impl Worker {
    fn start(number: usize, context: ConnectionContext) -> io::Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_io()
            .enable_time()
            // Where another thread waits for the core, it goes first: often it is the one that sends the next request, which
            // is there then without any sleep, so without a wake-up. With one call at a time on each of ten connections
            // this takes 12 % off the server's CPU per call; with nobody waiting it costs a system call for each sleep.
            .on_thread_park(thread::yield_now)
            .build()?;
        let (queue, handovers) = mpsc::unbounded_channel();
        let thread = thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || work(&runtime, handovers, &context))?;
        Ok(Self {
            queue,
            load: Arc::default(),
            thread,
        })
    }
}

/// Serves what is handed over until the other end of the queue is gone.
fn work(runtime: &Runtime, mut handovers: mpsc::UnboundedReceiver<Handover>, context: &ConnectionContext) {
    runtime.block_on(async {
        while let Some(Handover { stream, number, place }) = handovers.recv().await {
            let context = context.clone();
            tokio::spawn(async move {
                connection::serve(stream, context, number).await;
                drop(place);
            });
        }
    });
}
