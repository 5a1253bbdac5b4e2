//! The diagnostics port: health, readiness and metrics over HTTP/1.1, for probes and for Prometheus.
//!
//! The port has no TLS and no authentication, so it is off by default, and belongs on a loopback address or in a private
//! network. No client of this port can disturb calls:
//!
//! * The calls are on the workers' threads. This port is a task beside the acceptor and the sweeper, on another thread.
//! * The port takes few connections, one request on each, and accepts the next connection after a
//!   [pause](DIAG_ACCEPT_PAUSE). So a flood takes a few percent of the thread.
//! * A request has a limit of bytes, and a connection has a limit of time.
//! * A page reads counters. No page takes a lock that a call holds for long, or walks the routes.

mod readiness;
mod respond;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tracing::{Instrument, debug, debug_span, info};

pub(crate) use crate::server::diag::readiness::{Readiness, STARTING};

use crate::limits::{
    ACCEPT_BACKOFF, DIAG_ACCEPT_PAUSE, DIAG_CONNECTION_TIME, MAX_DIAG_CONNECTIONS, MAX_DIAG_HEADER_SIZE,
    MAX_DIAG_HEADERS,
};
use crate::server::diag::respond::respond;
use crate::server::listen::Listeners;
use crate::server::metrics::Metrics;

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
    /// Set when the server has started.
    metrics: OnceLock<Metrics>,
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
            metrics: OnceLock::new(),
        });
        let task = tokio::spawn(serve(listeners, Arc::clone(&state)));
        Ok(Self { addrs, state, task })
    }

    /// Returns the addresses that the port listens on.
    pub(super) fn addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }

    /// Begins to serve the metrics.
    pub(super) fn publish(&self, metrics: Metrics) {
        // The server starts once, so no metrics are there yet.
        let _ = self.state.metrics.set(metrics);
    }
}

impl Drop for Diagnostics {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut listeners: Listeners, state: Arc<State>) -> Infallible {
    let slots = Arc::new(Semaphore::new(MAX_DIAG_CONNECTIONS));
    loop {
        let slot = Arc::clone(&slots).acquire_owned().await;
        let (stream, peer) = match listeners.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                debug!(%error, "cannot accept a connection of the diagnostics port");
                sleep(ACCEPT_BACKOFF).await;
                continue;
            }
        };
        let state = Arc::clone(&state);
        let connection = async move {
            if timeout(DIAG_CONNECTION_TIME, serve_connection(stream, &state))
                .await
                .is_err()
            {
                debug!("a client of the diagnostics port took too long");
            }
            drop(slot);
        };
        tokio::spawn(connection.instrument(debug_span!("diagnostics", %peer)));
        sleep(DIAG_ACCEPT_PAUSE).await;
    }
}

/// Serves one request.
async fn serve_connection(stream: TcpStream, state: &State) {
    let service =
        service_fn(async |request| Ok::<_, Infallible>(respond(&request, &state.readiness, state.metrics.get())));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .max_buf_size(MAX_DIAG_HEADER_SIZE)
        .max_headers(MAX_DIAG_HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = served.await {
        debug!(%error, "a connection of the diagnostics port ended with an error");
    }
}
