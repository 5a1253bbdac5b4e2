//! [`PeerServer`]: serves other proxies.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use nodetracker_proto::peer::v1 as proto;
use proto::peer_request::Request;
use proto::peer_response::Response;
use tokio::io::copy_bidirectional;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tracing::debug;

use crate::control::Verify;
use crate::listener::{AgentListener, OpenError};
use crate::proxy::protocol::{self, RefusalReason};
use crate::transport::tcp::TcpAcceptor;
use crate::transport::{Tunnel, TunnelStream};

/// The configuration of a [`PeerServer`].
#[derive(Debug, Clone)]
pub struct PeerServerConfig {
    /// The ID of this proxy.
    pub proxy_id: String,
    /// The most peers at a time, those in the TLS handshake among them. Further connections are closed at once.
    pub max_peers: usize,
    /// The longest time for each of a TLS handshake, a stream's request, and the writing of the answer.
    pub handshake_timeout: Duration,
    /// A peer that opens no stream for so long, not even for a ping, is gone: its tunnel is closed. Several times the
    /// [`ping_interval`](crate::proxy::PeerTimes::ping_interval) of the peers.
    pub silence_timeout: Duration,
}

impl PeerServerConfig {
    /// The defaults: 1,000 peers, 10 s for a handshake, 45 s of silence.
    #[must_use]
    pub fn new(proxy_id: &str) -> Self {
        Self {
            proxy_id: proxy_id.to_owned(),
            max_peers: 1000,
            handshake_timeout: Duration::from_secs(10),
            silence_timeout: Duration::from_secs(45),
        }
    }
}

/// Serves other proxies from the tunnels that this proxy holds. Clones share one server.
#[derive(Clone)]
pub struct PeerServer(Arc<Shared>);

struct Shared {
    config: PeerServerConfig,
    agents: AgentListener,
    verify: Box<Verify>,
    peers: Arc<Semaphore>,
    /// Set by `close`: streams may last until then.
    closing: watch::Sender<Option<Instant>>,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    full: AtomicU64,
    failed: AtomicU64,
    dialed: AtomicU64,
    refused: AtomicU64,
}

/// How many peers a server has, and what has happened since it was created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct PeerServerStats {
    /// Peers at present.
    pub peers: usize,
    /// Connections that were closed because there were too many peers.
    pub full: u64,
    /// TLS handshakes that failed or took too long, and dials of peers whose certificates did not allow their ID.
    pub failed: u64,
    /// Streams to nodes that were opened for peers.
    pub dialed: u64,
    /// Requests that were refused.
    pub refused: u64,
}

impl PeerServer {
    /// Creates a server that accepts every peer. Use it for plaintext on trusted networks, or with an authority that
    /// certifies only proxies.
    #[must_use]
    pub fn new(config: PeerServerConfig, agents: AgentListener) -> Self {
        Self::with_verify(config, agents, Box::new(|_, _| Ok(())))
    }

    /// Like [`PeerServer::new`], with a check of each dial: the ID of the proxy that asks, and its certificates.
    #[must_use]
    pub fn with_verify(config: PeerServerConfig, agents: AgentListener, verify: Box<Verify>) -> Self {
        let peers = Arc::new(Semaphore::new(config.max_peers));
        Self(Arc::new(Shared {
            config,
            agents,
            verify,
            peers,
            closing: watch::Sender::new(None),
            counters: Counters::default(),
        }))
    }

    /// Accepts peers until the server is closed, or the future is dropped. The server serves accepted peers until they
    /// leave, or the server is closed.
    pub async fn serve(&self, acceptor: TcpAcceptor) {
        let acceptor = Arc::new(acceptor);
        let mut closing = self.0.closing.subscribe();
        loop {
            let (stream, peer) = tokio::select! {
                accepted = acceptor.accept() => accepted,
                _ = closing.wait_for(Option::is_some) => return,
            };
            let Some(permit) = self.admit() else { continue };
            let (shared, acceptor) = (Arc::clone(&self.0), Arc::clone(&acceptor));
            tokio::spawn(async move {
                let handshake = timeout(shared.config.handshake_timeout, acceptor.handshake(stream)).await;
                match handshake.map_err(io::Error::from).flatten() {
                    Ok(tunnel) => shared.serve_tunnel(Arc::new(tunnel), permit).await,
                    Err(error) => shared.failed(&format!("{peer}: {error}")),
                }
            });
        }
    }

    /// Serves the peer at the other end of a tunnel, until the tunnel ends. For transports other than TCP.
    pub async fn serve_tunnel(&self, tunnel: Arc<dyn Tunnel>) {
        if let Some(permit) = self.admit() {
            self.0.clone().serve_tunnel(tunnel, permit).await;
        }
    }

    fn admit(&self) -> Option<OwnedSemaphorePermit> {
        let permit = Arc::clone(&self.0.peers).try_acquire_owned().ok();
        if permit.is_none() {
            self.0.counters.full.fetch_add(1, Relaxed);
        }
        permit
    }

    /// Stops: refuses all dials. Waits until the streams to nodes have ended, at most for `limit`, and then closes each
    /// tunnel. Handshakes that are under way may take their own time.
    ///
    /// Close the server before its [`AgentListener`]: a peer then tries another proxy, and makes no complaint about this
    /// proxy.
    pub async fn close(&self, limit: Duration) {
        self.0.closing.send_replace(Some(Instant::now() + limit));
        let all = u32::try_from(self.0.config.max_peers).unwrap_or(u32::MAX);
        // The semaphore is never closed.
        let _ = self.0.peers.acquire_many(all).await;
    }

    /// Returns how many peers there are, and what has happened so far.
    #[must_use]
    pub fn stats(&self) -> PeerServerStats {
        let Shared {
            config,
            peers,
            counters,
            ..
        } = &*self.0;
        PeerServerStats {
            peers: config.max_peers - peers.available_permits(),
            full: counters.full.load(Relaxed),
            failed: counters.failed.load(Relaxed),
            dialed: counters.dialed.load(Relaxed),
            refused: counters.refused.load(Relaxed),
        }
    }
}

impl Shared {
    async fn serve_tunnel(self: Arc<Self>, tunnel: Arc<dyn Tunnel>, _permit: OwnedSemaphorePermit) {
        // The tunnel bounds the number of streams. Their tasks end with the tunnel.
        let mut streams = JoinSet::new();
        let mut heard = Instant::now();
        let mut closing = self.closing.subscribe();
        loop {
            let limit = *closing.borrow_and_update();
            if limit.is_some_and(|limit| streams.is_empty() || Instant::now() >= limit) {
                return;
            }
            tokio::select! {
                // The server has the sender.
                _ = closing.changed() => {}
                () = sleep_until(limit.unwrap_or_else(Instant::now)), if limit.is_some() => {}
                stream = timeout_at(heard + self.config.silence_timeout, tunnel.accept()) => {
                    // The tunnel has ended, or the peer is gone.
                    let Ok(Some(stream)) = stream else { return };
                    heard = Instant::now();
                    let (shared, tunnel) = (Arc::clone(&self), Arc::clone(&tunnel));
                    streams.spawn(async move {
                        if let Err(error) = shared.serve_stream(stream, &*tunnel).await {
                            debug!("a peer's stream has ended: {error}");
                        }
                    });
                }
                Some(_) = streams.join_next() => {}
            }
        }
    }

    async fn serve_stream(&self, mut peer: TunnelStream, tunnel: &dyn Tunnel) -> io::Result<()> {
        let limit = self.config.handshake_timeout;
        let request: proto::PeerRequest = timeout(limit, protocol::receive(&mut peer)).await??;
        let (response, node) = match request.request {
            Some(Request::Ping(_)) => (answer(Response::Pong(proto::Pong {})), None),
            Some(Request::Dial(dial)) => match self.open(dial, tunnel).await {
                Ok(node) => (answer(Response::Dialed(proto::Dialed {})), Some(node)),
                Err((reason, text)) => (self.refused(reason, &text), None),
            },
            None => (self.refused(RefusalReason::Invalid, "unknown request"), None),
        };
        timeout(limit, protocol::send(&mut peer, &response)).await??;
        if let Some(mut node) = node {
            self.counters.dialed.fetch_add(1, Relaxed);
            copy_bidirectional(&mut peer, &mut node).await?;
        }
        Ok(())
    }

    async fn open(&self, dial: proto::Dial, tunnel: &dyn Tunnel) -> Result<TunnelStream, (RefusalReason, String)> {
        let node = protocol::node(dial.node).map_err(|error| (RefusalReason::Invalid, error))?;
        if dial.hop_count > 0 || dial.origin_proxy_id == self.config.proxy_id {
            let text = format!("from {} after {} hops", dial.origin_proxy_id, dial.hop_count);
            return Err((RefusalReason::Loop, text));
        }
        if self.closing.borrow().is_some() {
            return Err((RefusalReason::Stopping, String::new()));
        }
        (self.verify)(&dial.origin_proxy_id, tunnel.peer_certificates()).map_err(|reason| {
            self.failed(&format!("peer {}: {reason}", dial.origin_proxy_id));
            (
                RefusalReason::Invalid,
                "origin_proxy_id does not belong to the certificate".to_owned(),
            )
        })?;
        self.agents.open_stream(&node).await.map_err(|error| {
            let reason = match error {
                OpenError::NotHeld(_) => RefusalReason::NoTunnel,
                OpenError::Tunnel { .. } => RefusalReason::TunnelFailed,
            };
            (reason, error.to_string())
        })
    }

    fn refused(&self, reason: RefusalReason, text: &str) -> proto::PeerResponse {
        self.counters.refused.fetch_add(1, Relaxed);
        protocol::refused(reason, text)
    }

    fn failed(&self, reason: &str) {
        self.counters.failed.fetch_add(1, Relaxed);
        debug!("a peer is not served: {reason}");
    }
}

fn answer(response: Response) -> proto::PeerResponse {
    proto::PeerResponse {
        response: Some(response),
    }
}
