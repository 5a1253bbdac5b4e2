//! [`PeerServer`]: serves other proxies.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt;
use nodetracker_proto::peer::v1 as proto;
use proto::peer_request::Request;
use proto::peer_response::Response;
use tokio::io::{AsyncWriteExt, copy_bidirectional};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::clock::{after, now};
use crate::control::Verify;
use crate::listener::{AgentListener, OpenError};
use crate::proxy::gossip::Announcer;
use crate::proxy::protocol::{self, RefusalReason};
use crate::transport::slots::{Slot, Slots};
use crate::transport::tcp::{Handshake, Handshakes, PEER_ALPN, TcpAcceptor};
use crate::transport::{Tunnel, TunnelStream};
use crate::wire::{InvalidNode, node_id};

/// The configuration of a [`PeerServer`].
#[derive(Debug, Clone)]
pub struct PeerServerConfig {
    /// The ID of this proxy.
    pub proxy_id: String,
    /// The most peers at a time, those in the TLS handshake among them. Further connections are closed at once.
    pub max_peers: usize,
    /// The longest time for each of a TLS handshake, a peer's first dial, a stream's request, and the writing of the
    /// answer.
    pub handshake_timeout: Duration,
    /// A peer that sends nothing for this long, not even a ping, is gone: its tunnel is closed. Several times the
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
    announcer: OnceLock<Announcer>,
    peers: Slots,
    /// Set by `close`: streams may last until then.
    closing: watch::Sender<Option<std::time::Instant>>,
    counters: Counters,
    /// Ends the tasks of the server.
    stop: CancellationToken,
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
    /// TLS handshakes that failed or took too long, and requests of peers whose certificates did not allow their ID.
    pub failed: u64,
    /// Streams to nodes that were opened for peers.
    pub dialed: u64,
    /// Requests that were refused.
    pub refused: u64,
}

impl fmt::Debug for PeerServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerServer")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl PeerServer {
    /// Creates a server that accepts every peer. Use it for plaintext on trusted networks, or with an authority that
    /// certifies only proxies.
    #[must_use]
    pub fn new(config: PeerServerConfig, agents: AgentListener) -> Self {
        Self::with_verify(config, agents, Box::new(|_, _| Ok(())))
    }

    /// Like [`PeerServer::new`], with a check of each request: the ID of the proxy that asks, and its certificates. A
    /// peer whose certificates do not allow its ID loses its tunnel.
    #[must_use]
    pub fn with_verify(config: PeerServerConfig, agents: AgentListener, verify: Box<Verify>) -> Self {
        let peers = Slots::new(config.max_peers);
        Self(Arc::new(Shared {
            config,
            agents,
            verify,
            announcer: OnceLock::new(),
            peers,
            closing: watch::Sender::new(None),
            counters: Counters::default(),
            stop: CancellationToken::new(),
        }))
    }

    /// From now on, answers the presence of a peer with the presence of this proxy.
    pub(super) fn announce(&self, announcer: Announcer) {
        let _ = self.0.announcer.set(announcer);
    }

    /// Accepts peers until the server is closed, or the future is dropped. The server serves accepted peers until they
    /// leave, or the server is closed.
    pub async fn serve(&self, acceptor: TcpAcceptor) {
        let handshakes = Handshakes {
            alpn: PEER_ALPN,
            limit: self.0.config.handshake_timeout,
        };
        let mut closing = self.0.closing.subscribe();
        let closed = async { drop(closing.wait_for(Option::is_some).await) };
        let serve = |handshake: Handshake, slot| {
            let shared = Arc::clone(&self.0);
            let served = async move {
                match handshake.await {
                    Ok(tunnel) => shared.serve_tunnel(Arc::new(tunnel), slot).await,
                    Err(error) => shared.failed(&error.to_string()),
                }
            };
            self.0.stop.clone().run_until_cancelled_owned(served).map(drop)
        };
        acceptor.serve(handshakes, closed, || self.admit(), serve).await;
    }

    /// Ends all tunnels, with their streams.
    pub(super) fn stop(&self) {
        self.0.stop.cancel();
    }

    /// Serves the peer at the other end of a tunnel, until the tunnel ends. For transports other than TCP.
    pub async fn serve_tunnel(&self, tunnel: Arc<dyn Tunnel>) {
        if let Some(slot) = self.admit() {
            let served = self.0.clone().serve_tunnel(tunnel, slot);
            self.0.stop.run_until_cancelled(served).await;
        }
    }

    fn admit(&self) -> Option<Slot> {
        let slot = self.0.peers.try_take(0);
        if slot.is_none() {
            self.0.counters.full.fetch_add(1, Relaxed);
        }
        slot
    }

    /// Stops: refuses all dials. Waits until the streams to nodes have ended, at most for `limit`, and then closes each
    /// tunnel. Handshakes that are under way may take their own time.
    ///
    /// Close the server before its [`AgentListener`]: a peer then tries another proxy, and makes no complaint about
    /// this proxy.
    pub async fn close(&self, limit: Duration) {
        self.0.closing.send_replace(Some(after(now(), limit)));
        self.0.peers.until_at_most(0).await;
    }

    /// Returns how many peers there are, and what has happened so far.
    #[must_use]
    pub fn stats(&self) -> PeerServerStats {
        let Shared { peers, counters, .. } = &*self.0;
        PeerServerStats {
            peers: peers.taken(),
            full: counters.full.load(Relaxed),
            failed: counters.failed.load(Relaxed),
            dialed: counters.dialed.load(Relaxed),
            refused: counters.refused.load(Relaxed),
        }
    }
}

/// A peer at the other end of a tunnel.
struct Peer {
    tunnel: Arc<dyn Tunnel>,
    /// Whether a request's ID was allowed.
    is_verified: watch::Sender<bool>,
    /// Whether a request's ID was not allowed. Then the tunnel ends after the answer.
    is_refused: AtomicBool,
}

/// Why a request is refused, and details.
type Refusal = (RefusalReason, String);

impl Shared {
    async fn serve_tunnel(self: Arc<Self>, tunnel: Arc<dyn Tunnel>, _slot: Slot) {
        let peer = Arc::new(Peer {
            tunnel,
            is_verified: watch::Sender::new(false),
            is_refused: AtomicBool::new(false),
        });
        let mut is_verified = peer.is_verified.subscribe();
        // The tunnel bounds the number of streams. Their tasks end with the tunnel.
        let mut streams = JoinSet::new();
        let mut closing = self.closing.subscribe();
        let begun = now();
        let mut heard = begun;
        loop {
            let closes_at = *closing.borrow_and_update();
            if closes_at.is_some() && streams.is_empty() {
                return;
            }
            let limit = match *is_verified.borrow_and_update() {
                true => after(heard.max(peer.tunnel.last_received()), self.config.silence_timeout),
                // A peer connects in order to dial or to announce itself. Its other pings do not delay the limit.
                false => after(begun, self.config.handshake_timeout),
            };
            if limit < heard {
                return;
            }
            let limit = closes_at.map_or(limit, |closes_at| closes_at.min(limit));
            tokio::select! {
                // Streams before the limit, so that a stall of this process ends no tunnel.
                biased;
                // The server has the sender, and `peer` has the other one.
                _ = closing.changed() => {}
                _ = is_verified.changed() => {}
                Some(_) = streams.join_next() => {
                    if peer.is_refused.load(Relaxed) {
                        return;
                    }
                }
                stream = peer.tunnel.accept() => {
                    let Some(stream) = stream else { return };
                    heard = now();
                    let (shared, peer) = (Arc::clone(&self), Arc::clone(&peer));
                    streams.spawn(async move {
                        if let Err(error) = shared.serve_stream(stream, &peer).await {
                            debug!("a peer's stream has ended: {error}");
                        }
                    });
                }
                () = sleep_until(limit.into()) => {
                    let is_heard = after(peer.tunnel.last_received(), self.config.silence_timeout) > limit;
                    if closes_at == Some(limit) || !*is_verified.borrow() || !is_heard {
                        return;
                    }
                }
            }
        }
    }

    async fn serve_stream(&self, mut stream: TunnelStream, peer: &Peer) -> io::Result<()> {
        let limit = self.config.handshake_timeout;
        let request: proto::PeerRequest = timeout(limit, protocol::receive(&mut stream)).await??;
        let (response, node) = match request.request {
            Some(Request::Ping(ping)) => match self.pong(ping, peer) {
                Ok(pong) => (answer(Response::Pong(pong)), None),
                Err((reason, text)) => (self.refused(reason, &text), None),
            },
            Some(Request::Dial(dial)) => match self.open(&dial, peer).await {
                Ok(node) => (answer(Response::Dialed(proto::Dialed {})), Some(node)),
                Err((reason, text)) => (self.refused(reason, &text), None),
            },
            None => (self.refused(RefusalReason::Invalid, "unknown request"), None),
        };
        timeout(limit, protocol::send(&mut stream, &response)).await??;
        match node {
            Some(mut node) => {
                self.counters.dialed.fetch_add(1, Relaxed);
                copy_bidirectional(&mut stream, &mut node).await?;
            }
            None => timeout(limit, stream.shutdown()).await??,
        }
        Ok(())
    }

    fn pong(&self, ping: proto::Ping, peer: &Peer) -> Result<proto::Pong, Refusal> {
        let (Some(presence), Some(announcer)) = (ping.presence, self.announcer.get()) else {
            return Ok(proto::Pong::default());
        };
        let id = presence.proxy.as_ref().map_or("", |proxy| &proxy.proxy_id);
        self.verify(id, peer)?;
        announcer.heard(presence);
        Ok(proto::Pong {
            presence: Some(announcer.presence()),
        })
    }

    /// Checks whether the certificates of a peer allow its ID.
    fn verify(&self, id: &str, peer: &Peer) -> Result<(), Refusal> {
        if let Err(reason) = (self.verify)(id, peer.tunnel.peer_certificates()) {
            self.failed(&format!("{id:?}: {reason}"));
            peer.is_refused.store(true, Relaxed);
            let text = "the proxy's ID does not belong to the certificate".to_owned();
            return Err((RefusalReason::Invalid, text));
        }
        peer.is_verified.send_replace(true);
        Ok(())
    }

    async fn open(&self, dial: &proto::Dial, peer: &Peer) -> Result<TunnelStream, Refusal> {
        let invalid = |error: InvalidNode| (RefusalReason::Invalid, format!("dial.node: {error}"));
        let node = node_id(dial.node.as_ref()).map_err(invalid)?;
        let origin = &dial.origin_proxy_id;
        if dial.hop_count > 0 || *origin == self.config.proxy_id {
            let text = format!("from {origin:?} after {} hops", dial.hop_count);
            return Err((RefusalReason::Loop, text));
        }
        self.verify(origin, peer)?;
        if self.closing.borrow().is_some() {
            return Err((RefusalReason::Stopping, String::new()));
        }
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
