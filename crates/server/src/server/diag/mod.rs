//! The diagnostics port: health, readiness and metrics over HTTP/1.1, for probes and for Prometheus.
//!
//! The port has no TLS and no authentication, so it is off by default, and belongs on a loopback address or in a
//! private network. No client of this port can disturb calls:
//!
//! * The calls are on the workers' threads. This port is a task beside the acceptor and the sweeper, on another thread.
//! * The port takes few connections, one request on each, and accepts the next connection after a
//!   [pause](DIAG_ACCEPT_PAUSE). So a flood takes a few percent of the thread.
//! * A request has a limit of bytes, and a request and a connection have a limit of time. If there are too many
//!   connections, an old connection makes room, so silent clients do not keep probes out.
//! * A page reads counters. No page takes a lock that a call holds for long, or walks the routes.

mod readiness;
mod respond;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{sleep, timeout};
use tracing::{Instrument, debug, debug_span, info};

pub(crate) use crate::server::diag::readiness::{Readiness, STARTING};

use crate::limits::{
    ACCEPT_BACKOFF, DIAG_ACCEPT_PAUSE, DIAG_CONNECTION_TIME, DIAG_HEADER_TIME, MAX_DIAG_CONNECTIONS,
    MAX_DIAG_HEADER_SIZE, MAX_DIAG_HEADERS,
};
use crate::server::diag::respond::{HEALTH, respond};
use crate::server::listen::Listeners;
use crate::server::metrics::Metrics;
use crate::server::worker::Liveness;

/// The port. It is served from the start to the drop.
#[derive(Debug)]
pub(super) struct Diagnostics {
    addrs: Vec<SocketAddr>,
    state: Arc<State>,
    task: JoinHandle<Infallible>,
}

#[derive(Debug)]
struct State {
    readiness: Arc<Readiness>,
    /// Set when the certificates are loaded and the workers run. The snapshot may still be loaded then.
    running: OnceLock<Running>,
}

/// What the pages show of a server whose workers run.
#[derive(Debug)]
struct Running {
    metrics: Metrics,
    liveness: Liveness,
}

/// How long `/healthz` waits for the workers. A turn of a worker takes a few milliseconds at most.
const LIVENESS_LIMIT: Duration = Duration::from_secs(5);

impl State {
    /// Returns the number of a worker whose thread is stuck.
    async fn stuck_worker(&self) -> Option<usize> {
        self.running.get()?.liveness.stuck(LIVENESS_LIMIT).await
    }
}

impl Diagnostics {
    /// Listens on an address, `host:port`, and serves the port. An error names the address.
    pub(super) async fn start(addr: &str, readiness: Arc<Readiness>) -> Result<Self, String> {
        let listeners = Listeners::bind(addr).await?;
        let addrs = listeners.addrs().to_vec();
        let names: Vec<_> = addrs.iter().map(ToString::to_string).collect();
        info!("health, readiness and metrics are on {}", names.join(" and "));
        let state = Arc::new(State {
            readiness,
            running: OnceLock::new(),
        });
        let task = tokio::spawn(serve(listeners, Arc::clone(&state)));
        Ok(Self { addrs, state, task })
    }

    /// Returns the addresses that the port listens on.
    pub(super) fn addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }

    /// Begins to serve the metrics, and to check the workers.
    pub(super) fn publish(&self, metrics: Metrics, liveness: Liveness) {
        // The server starts once, so no metrics are there yet.
        let _ = self.state.running.set(Running { metrics, liveness });
    }
}

impl Drop for Diagnostics {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A connection that is being served.
struct Connection {
    task: AbortHandle,
    /// Whether the client has sent its request.
    has_asked: Arc<AtomicBool>,
}

async fn serve(mut listeners: Listeners, state: Arc<State>) -> Infallible {
    // The oldest first.
    let mut connections = VecDeque::with_capacity(MAX_DIAG_CONNECTIONS);
    loop {
        let (stream, peer) = match listeners.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                debug!(%error, "cannot accept a connection of the diagnostics port");
                sleep(ACCEPT_BACKOFF).await;
                continue;
            }
        };
        make_room(&mut connections);
        let state = Arc::clone(&state);
        let has_asked = Arc::<AtomicBool>::default();
        let asked = Arc::clone(&has_asked);
        let connection = async move {
            let served = serve_connection(stream, &state, &asked);
            if timeout(DIAG_CONNECTION_TIME, served).await.is_err() {
                debug!("a client of the diagnostics port took too long");
            }
        };
        let task = tokio::spawn(connection.instrument(debug_span!("diagnostics", %peer))).abort_handle();
        connections.push_back(Connection { task, has_asked });
        sleep(DIAG_ACCEPT_PAUSE).await;
    }
}

/// Ends a connection if there are as many as there may be.
fn make_room(connections: &mut VecDeque<Connection>) {
    connections.retain(|connection| !connection.task.is_finished());
    if connections.len() < MAX_DIAG_CONNECTIONS {
        return;
    }
    // Relaxed: all run on this thread.
    let is_silent = |connection: &Connection| !connection.has_asked.load(Ordering::Relaxed);
    let oldest = connections.iter().position(is_silent).unwrap_or(0);
    if let Some(connection) = connections.remove(oldest) {
        connection.task.abort();
        debug!("ended an old connection of the diagnostics port to make room");
    }
}

/// Serves one request.
async fn serve_connection(stream: TcpStream, state: &State, has_asked: &AtomicBool) {
    let service = service_fn(async |request: Request<Incoming>| {
        has_asked.store(true, Ordering::Relaxed);
        let asks_for_health = request.uri().path() == HEALTH;
        let stuck = if asks_for_health {
            state.stuck_worker().await
        } else {
            None
        };
        let metrics = state.running.get().map(|running| &running.metrics);
        Ok::<_, Infallible>(respond(&request, &state.readiness, stuck, metrics))
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(DIAG_HEADER_TIME)
        .keep_alive(false)
        .max_buf_size(MAX_DIAG_HEADER_SIZE)
        .max_headers(MAX_DIAG_HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = served.await {
        debug!(%error, "a connection of the diagnostics port ended with an error");
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn the_oldest_silent_connection_makes_room_or_else_the_oldest() {
        let mut connections = VecDeque::new();
        let mut tasks = Vec::new();
        for _ in 0..MAX_DIAG_CONNECTIONS {
            let task = tokio::spawn(pending::<()>());
            let has_asked = Arc::<AtomicBool>::default();
            connections.push_back(Connection {
                task: task.abort_handle(),
                has_asked,
            });
            tasks.push(Some(task));
        }
        let mut ended = async |connections: &mut VecDeque<Connection>, number: usize| {
            make_room(connections);
            assert_eq!(connections.len(), MAX_DIAG_CONNECTIONS - 1);
            let task: JoinHandle<()> = tasks[number].take().unwrap();
            assert!(task.await.unwrap_err().is_cancelled());
            // There is room now.
            make_room(connections);
            assert_eq!(connections.len(), MAX_DIAG_CONNECTIONS - 1);
            let has_asked = Arc::new(AtomicBool::new(true));
            connections.push_back(Connection {
                task: tokio::spawn(pending::<()>()).abort_handle(),
                has_asked,
            });
        };
        connections[0].has_asked.store(true, Ordering::Relaxed);
        ended(&mut connections, 1).await;
        for connection in &connections {
            connection.has_asked.store(true, Ordering::Relaxed);
        }
        ended(&mut connections, 0).await;
    }
}
