//! Tunnels to other proxies: one tunnel for each peer, and more if all of its streams are in use.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use nodetracker::ProxyDetails;
use nodetracker_proto::peer::v1 as proto;
use parking_lot::Mutex;
use proto::peer_response::Response;
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use crate::backoff::SHORTEST;
use crate::clock::now;
use crate::control::Verify;
use crate::proxy::protocol;
use crate::transport::{Transport, Tunnel, TunnelStream};

/// When peers are given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerTimes {
    /// The longest time to connect to a peer.
    pub connect_timeout: Duration,
    /// The longest time for a peer's answer.
    pub answer_timeout: Duration,
    /// How often a peer is pinged, at least a millisecond. A peer that is gone is noticed after this time and twice the
    /// time for an answer. Then the streams through the peer end.
    pub ping_interval: Duration,
    /// A tunnel without streams and dials is closed after this time.
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

/// Why there is no tunnel. Shared by all dials that wait for it.
type ConnectError = Arc<io::Error>;

/// A tunnel that is there, or comes.
type SharedTunnel = Shared<BoxFuture<'static, Result<Arc<PeerTunnel>, ConnectError>>>;

/// A tunnel to a peer.
struct PeerTunnel {
    tunnel: Arc<dyn Tunnel>,
    /// Whether a dial has used the tunnel since the last ping.
    is_used: AtomicBool,
}

/// The most tunnels to one peer.
const MAX_TUNNELS: usize = 16;

/// How many streams of a tunnel are reserved for pings: for the next ping, and for a ping in flight.
const PING_STREAMS: usize = 2;

/// For how long an address counts as dead after a failure to connect.
const DEAD_FOR: Duration = Duration::from_secs(30);

/// A tunnel's peer, and the number of the tunnel among the tunnels to this peer.
type Key = (String, usize);

/// The tunnels to peers. Clones share the tunnels.
#[derive(Clone)]
pub(super) struct Peers(Arc<Inner>);

struct Inner {
    transport: Box<dyn Transport>,
    times: PeerTimes,
    verify: Box<Verify>,
    tunnels: Mutex<HashMap<Key, SharedTunnel>>,
    /// When the last attempt to connect to an address failed. Old failures are removed.
    failures: Mutex<HashMap<String, Instant>>,
}

impl Peers {
    pub(super) fn new(transport: impl Transport, times: PeerTimes, verify: Box<Verify>) -> Self {
        Self(Arc::new(Inner {
            transport: Box::new(transport),
            times,
            verify,
            tunnels: Mutex::default(),
            failures: Mutex::default(),
        }))
    }

    /// The number of tunnels, those that come among them.
    pub(super) fn len(&self) -> usize {
        self.0.tunnels.lock().len()
    }

    /// Whether a recent attempt to connect to an address has failed.
    pub(super) fn has_failed(&self, addr: &str) -> bool {
        let failures = self.0.failures.lock();
        failures.get(addr).is_some_and(|failed| failed.elapsed() < DEAD_FOR)
    }

    /// Opens a stream to a peer, and sends a request. Returns the answer, and the stream behind the answer.
    ///
    /// If a tunnel has ended, connects again. If a tunnel is full, opens another tunnel.
    pub(super) async fn request(
        &self,
        peer: &ProxyDetails,
        request: &proto::PeerRequest,
    ) -> io::Result<(Option<Response>, TunnelStream)> {
        let limit = self.0.times.answer_timeout;
        let addr = peer.addr();
        for number in 0..MAX_TUNNELS {
            let key = (addr.to_owned(), number);
            let mut tunnel = self.verified_tunnel(&key, peer.id()).await?;
            let mut answer = exchange(&*tunnel.tunnel, PING_STREAMS, request, limit).await;
            if matches!(&answer, Err(error @ ExchangeError::Open(_)) if !error.is_full()) {
                self.0.forget(&key, &tunnel);
                tunnel = self.verified_tunnel(&key, peer.id()).await?;
                answer = exchange(&*tunnel.tunnel, PING_STREAMS, request, limit).await;
            }
            match answer {
                Err(error) if error.is_full() => {}
                answer => return answer.map_err(ExchangeError::into_inner),
            }
        }
        let reason = format!("{MAX_TUNNELS} tunnels to {addr} have all of their streams in use");
        Err(io::Error::new(io::ErrorKind::QuotaExceeded, reason))
    }

    /// Returns a tunnel to a peer whose certificates allow its ID.
    async fn verified_tunnel(&self, key: &Key, id: &str) -> io::Result<Arc<PeerTunnel>> {
        let tunnel = self.tunnel(key).await?;
        if let Err(reason) = (self.0.verify)(id, tunnel.tunnel.peer_certificates()) {
            // The next dial may find another certificate.
            self.0.forget(key, &tunnel);
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
        }
        tunnel.is_used.store(true, Relaxed);
        Ok(tunnel)
    }

    /// Returns a tunnel to a peer. All dials of the tunnel share one attempt to connect.
    async fn tunnel(&self, key: &Key) -> io::Result<Arc<PeerTunnel>> {
        let shared = {
            let mut tunnels = self.0.tunnels.lock();
            let connect = || connect(Arc::downgrade(&self.0), key.clone()).boxed().shared();
            tunnels.entry(key.clone()).or_insert_with(connect).clone()
        };
        shared
            .await
            .map_err(|error| io::Error::new(error.kind(), error.to_string()))
    }
}

/// Connects to a peer, in a task of its own: an attempt ends even if no dial waits for it any more. `inner` holds this
/// future, so the future does not hold `inner`.
async fn connect(inner: Weak<Inner>, key: Key) -> Result<Arc<PeerTunnel>, ConnectError> {
    let Some(present) = inner.upgrade() else {
        return Err(Arc::new(io::Error::other("the dialer is gone")));
    };
    let attempt = tokio::spawn(try_connect(present, key.clone()));
    attempt.await.unwrap_or_else(|panic| {
        if let Some(inner) = inner.upgrade() {
            inner.tunnels.lock().remove(&key);
        }
        Err(Arc::new(io::Error::other(panic)))
    })
}

async fn try_connect(inner: Arc<Inner>, key: Key) -> Result<Arc<PeerTunnel>, ConnectError> {
    let connect = timeout(inner.times.connect_timeout, inner.transport.connect(&key.0));
    match connect.await.map_err(io::Error::from).flatten() {
        Ok(tunnel) => {
            inner.failures.lock().remove(&key.0);
            let is_used = AtomicBool::new(true);
            let tunnel = Arc::new(PeerTunnel { tunnel, is_used });
            let times = inner.times;
            tokio::spawn(keep_alive(Arc::downgrade(&inner), times, key, Arc::clone(&tunnel)));
            Ok(tunnel)
        }
        Err(error) => {
            let mut failures = inner.failures.lock();
            failures.retain(|_, failed| failed.elapsed() < DEAD_FOR);
            failures.insert(key.0.clone(), Instant::now());
            drop(failures);
            inner.tunnels.lock().remove(&key);
            Err(Arc::new(error))
        }
    }
}

/// Opens a stream, sends a request, and receives the answer. The time limit covers all of these. Leaves `spare` streams
/// of the tunnel for others.
async fn exchange(
    tunnel: &dyn Tunnel,
    spare: usize,
    request: &proto::PeerRequest,
    limit: Duration,
) -> Result<(Option<Response>, TunnelStream), ExchangeError> {
    let exchange = async {
        let mut stream = tunnel.open_leaving(spare).await.map_err(ExchangeError::Open)?;
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

    /// Whether the tunnel has no stream to spare.
    fn is_full(&self) -> bool {
        matches!(self, Self::Open(error) if error.kind() == io::ErrorKind::QuotaExceeded)
    }
}

/// Pings a peer until the peer is gone, or until its tunnel has been idle for the idle timeout. After the end of the
/// dialer, until the last stream has ended. Holds the tunnel: a tunnel ends, with its streams, when its last holder
/// drops it.
async fn keep_alive(inner: Weak<Inner>, times: PeerTimes, key: Key, tunnel: Arc<PeerTunnel>) {
    let forget = || inner.upgrade().iter().for_each(|inner| inner.forget(&key, &tunnel));
    let mut last_use = Instant::now();
    let mut is_known = true;
    loop {
        sleep(times.ping_interval.max(SHORTEST)).await;
        let is_idle = tunnel.tunnel.open_streams() == 0;
        if tunnel.is_used.swap(false, Relaxed) || !is_idle {
            last_use = Instant::now();
        }
        if is_known && (inner.strong_count() == 0 || last_use.elapsed() >= times.idle_timeout) {
            forget();
            is_known = false;
        }
        // A dial that has begun before may still open a stream.
        if !is_known && is_idle && Arc::strong_count(&tunnel) == 1 {
            return;
        }
        let begun = now();
        if ping(&*tunnel.tunnel, times).await.is_ok() {
            continue;
        }
        match ping(&*tunnel.tunnel, times).await {
            // The answers may wait behind the bytes of busy streams.
            Err(reason) if tunnel.tunnel.last_received() < begun => {
                debug!("the tunnel to peer {} is given up: {reason}", key.0);
                return forget();
            }
            _ => {}
        }
    }
}

async fn ping(tunnel: &dyn Tunnel, times: PeerTimes) -> Result<(), String> {
    match exchange(tunnel, 0, &protocol::ping(None), times.answer_timeout).await {
        Ok((Some(Response::Pong(_)), _)) => Ok(()),
        Ok((answer, _)) => Err(format!("no pong, but {answer:?}")),
        // No stream for a ping is no sign that the peer is gone.
        Err(error) if error.is_full() => Ok(()),
        Err(error) => Err(error.into_inner().to_string()),
    }
}

impl Inner {
    /// Forgets a tunnel, so that later dials do not use the tunnel.
    fn forget(&self, key: &Key, tunnel: &Arc<PeerTunnel>) {
        let mut tunnels = self.tunnels.lock();
        // A shared future that was never polled is not complete yet.
        let shared = tunnels.get(key).and_then(|shared| shared.clone().now_or_never());
        if shared.is_some_and(|shared| shared.is_ok_and(|known| Arc::ptr_eq(&known, tunnel))) {
            tunnels.remove(key);
        }
    }
}
