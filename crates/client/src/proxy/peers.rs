//! Tunnels to other proxies: one tunnel for each peer, while streams need the tunnel.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use nodetracker_proto::peer::v1 as proto;
use proto::peer_response::Response;
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use crate::proxy::protocol;
use crate::transport::{Transport, Tunnel, TunnelStream};

/// The time limits of tunnels to peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerTimes {
    /// The longest time to connect to a peer.
    pub connect_timeout: Duration,
    /// The longest time for a peer's answer.
    pub answer_timeout: Duration,
    /// How often a peer is pinged. A peer that is gone is noticed after this time and the time for an answer. Then the
    /// streams through the peer end.
    pub ping_interval: Duration,
    /// A tunnel without streams is closed after this time.
    pub idle_timeout: Duration,
}

impl Default for PeerTimes {
    /// 5 s to connect, 5 s for an answer; a ping each 10 s; five minutes without a stream.
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            answer_timeout: Duration::from_secs(5),
            ping_interval: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(300),
        }
    }
}

/// Why there is no tunnel. All dials that wait for the tunnel share the error.
type ConnectError = Arc<io::Error>;

/// A tunnel that is open, or that is being opened.
type SharedTunnel = Shared<BoxFuture<'static, Result<Arc<dyn Tunnel>, ConnectError>>>;

/// The tunnels to peers, by the peers' addresses. Clones share the tunnels.
#[derive(Clone)]
pub(super) struct Peers(Arc<Inner>);

struct Inner {
    transport: Box<dyn Transport>,
    times: PeerTimes,
    tunnels: Mutex<HashMap<String, SharedTunnel>>,
}

impl Peers {
    pub(super) fn new(transport: impl Transport, times: PeerTimes) -> Self {
        Self(Arc::new(Inner {
            transport: Box::new(transport),
            times,
            tunnels: Mutex::default(),
        }))
    }

    /// Returns the number of tunnels, also of those that are being opened.
    pub(super) fn len(&self) -> usize {
        self.0.tunnels().len()
    }

    /// Opens a stream to a peer, and sends a request. Returns the answer, and the stream after the answer.
    ///
    /// If the tunnel has ended, connects again.
    pub(super) async fn request(
        &self,
        addr: &str,
        request: &proto::PeerRequest,
    ) -> io::Result<(Option<Response>, TunnelStream)> {
        let limit = self.0.times.answer_timeout;
        let tunnel = self.tunnel(addr).await?;
        let answer = match exchange(&*tunnel, request, limit).await {
            Err(error @ ExchangeError::Open(_)) if !error.is_full() => {
                self.0.forget(addr, &tunnel);
                exchange(&*self.tunnel(addr).await?, request, limit).await
            }
            answer => answer,
        };
        answer.map_err(ExchangeError::into_inner)
    }

    /// Returns the tunnel to a peer. All dials of a peer share one attempt to connect.
    async fn tunnel(&self, addr: &str) -> io::Result<Arc<dyn Tunnel>> {
        let shared = {
            let mut tunnels = self.0.tunnels();
            let connect = || connect(Arc::clone(&self.0), addr.to_owned()).boxed().shared();
            tunnels.entry(addr.to_owned()).or_insert_with(connect).clone()
        };
        shared
            .await
            .map_err(|error| io::Error::new(error.kind(), error.to_string()))
    }
}

/// Connects to a peer, in a task of its own: an attempt ends even if no dial waits for it any more.
async fn connect(inner: Arc<Inner>, addr: String) -> Result<Arc<dyn Tunnel>, ConnectError> {
    let attempt = tokio::spawn(async move {
        let connect = timeout(inner.times.connect_timeout, inner.transport.connect(&addr));
        let connected = connect.await.map_err(io::Error::from).flatten();
        match &connected {
            Ok(tunnel) => drop(tokio::spawn(keep_alive(Arc::clone(&inner), addr, Arc::clone(tunnel)))),
            Err(_) => drop(inner.tunnels().remove(&addr)),
        }
        connected.map_err(Arc::new)
    });
    attempt.await.map_err(|error| Arc::new(io::Error::other(error)))?
}

/// Opens a stream, sends a request, and receives the answer. The time limit covers all of these.
async fn exchange(
    tunnel: &dyn Tunnel,
    request: &proto::PeerRequest,
    limit: Duration,
) -> Result<(Option<Response>, TunnelStream), ExchangeError> {
    let exchange = async {
        let mut stream = tunnel.open().await.map_err(ExchangeError::Open)?;
        protocol::send(&mut stream, request)
            .await
            .map_err(ExchangeError::Stream)?;
        let answer: io::Result<proto::PeerResponse> = protocol::receive(&mut stream).await;
        Ok((answer.map_err(ExchangeError::Stream)?.response, stream))
    };
    let late = |late| Err(ExchangeError::Stream(io::Error::from(late)));
    timeout(limit, exchange).await.unwrap_or_else(late)
}

/// Why there is no answer.
enum ExchangeError {
    /// No stream was opened: the peer has not seen the request.
    Open(io::Error),
    /// The stream ended, or the peer did not answer in time.
    Stream(io::Error),
}

impl ExchangeError {
    fn into_inner(self) -> io::Error {
        match self {
            Self::Open(error) | Self::Stream(error) => error,
        }
    }

    /// Whether the tunnel has as many streams as it can have.
    fn is_full(&self) -> bool {
        matches!(self, Self::Open(error) if error.kind() == io::ErrorKind::QuotaExceeded)
    }
}

/// Pings a peer until the peer is gone, or until its tunnel has been idle for the idle timeout. Holds the tunnel: a
/// tunnel ends, with its streams, when its last holder drops it.
async fn keep_alive(inner: Arc<Inner>, addr: String, tunnel: Arc<dyn Tunnel>) {
    let times = inner.times;
    let mut last_use = Instant::now();
    let mut is_known = true;
    loop {
        sleep(times.ping_interval).await;
        // Ready at once, or not idle.
        let is_idle = timeout(Duration::ZERO, tunnel.until_at_most(0)).await.is_ok();
        if !is_idle {
            last_use = Instant::now();
        }
        if is_known && last_use.elapsed() >= times.idle_timeout {
            inner.forget(&addr, &tunnel);
            is_known = false;
        }
        // A dial that has already begun may still open a stream.
        if !is_known && is_idle && Arc::strong_count(&tunnel) == 1 {
            return;
        }
        match exchange(&*tunnel, &protocol::ping(), times.answer_timeout).await {
            Ok((Some(Response::Pong(_)), _)) => {}
            // A tunnel that is full of streams has no room for a ping, and counts as alive.
            Err(error) if error.is_full() => {}
            other => {
                let reason = other
                    .err()
                    .map_or("no pong".into(), |error| error.into_inner().to_string());
                debug!("the tunnel to peer {addr} is given up: {reason}");
                return inner.forget(&addr, &tunnel);
            }
        }
    }
}

impl Inner {
    fn tunnels(&self) -> MutexGuard<'_, HashMap<String, SharedTunnel>> {
        self.tunnels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets a tunnel, so that later dials do not use the tunnel.
    fn forget(&self, addr: &str, tunnel: &Arc<dyn Tunnel>) {
        let mut tunnels = self.tunnels();
        let shared = tunnels.get(addr).and_then(|shared| shared.peek());
        if shared.is_some_and(|shared| shared.as_ref().is_ok_and(|known| Arc::ptr_eq(known, tunnel))) {
            tunnels.remove(addr);
        }
    }
}
