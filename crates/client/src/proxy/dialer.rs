//! [`Dialer`]: opens streams to nodes, through own tunnels or through peers.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use futures_util::FutureExt;
use nodetracker::{NodeId, ProxyDetails};
use nodetracker_proto::peer::v1 as proto;
use proto::peer_response::Response;
use tracing::debug;

use crate::control::{Verify, cut};
use crate::listener::{AgentListener, OpenError};
use crate::proxy::peers::{PeerTimes, Peers};
use crate::proxy::protocol::{self, RefusalReason};
use crate::tracker::{NodeTracker, Route, TrackerError};
use crate::transport::{Transport, TunnelStream};

/// The configuration of a [`Dialer`].
#[derive(Debug, Clone)]
pub struct DialerConfig {
    /// The ID of this proxy. The dialer leaves out routes through this proxy, because it knows its own tunnels better
    /// than a tracker does.
    pub proxy_id: String,
    /// The most routes through peers that one dial tries.
    pub max_attempts: usize,
    /// When peers are given up.
    pub times: PeerTimes,
}

impl DialerConfig {
    /// The defaults: four attempts, and the default times.
    #[must_use]
    pub fn new(proxy_id: &str) -> Self {
        Self {
            proxy_id: proxy_id.to_owned(),
            max_attempts: 4,
            times: PeerTimes::default(),
        }
    }
}

/// Opens streams to nodes: through this proxy's own tunnels, or through the proxies that a tracker names. Clones share
/// one dialer.
///
/// Use a [`RouteCache`](crate::cache::RouteCache) or a [`Replica`](crate::replica::Replica) as the tracker, so that a
/// dial need not wait for a call.
#[derive(Clone)]
pub struct Dialer(Arc<Inner>);

struct Inner {
    config: DialerConfig,
    agents: AgentListener,
    tracker: Arc<dyn NodeTracker>,
    peers: Peers,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    local: AtomicU64,
    through_peers: AtomicU64,
    failed_attempts: AtomicU64,
    failed: AtomicU64,
}

/// What a dialer has done since it was created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct DialerStats {
    /// Tunnels to peers at present.
    pub peers: usize,
    /// Dials through this proxy's own tunnels.
    pub local: u64,
    /// Dials through a peer.
    pub through_peers: u64,
    /// Attempts at a peer that failed, also in dials that succeeded.
    pub failed_attempts: u64,
    /// Dials that failed.
    pub failed: u64,
}

/// A stream to a node.
pub struct Dialed {
    /// The bytes to and from the node.
    pub stream: TunnelStream,
    /// Through which proxy the stream goes.
    pub via: Via,
}

/// The proxy that a stream to a node goes through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Via {
    /// This proxy holds the node's tunnel.
    Local,
    /// This peer holds the node's tunnel.
    Peer(ProxyDetails),
}

/// Why a node was not reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// Neither this proxy nor a tracker knows the node.
    #[error("no proxy is known to hold a tunnel to node {0}")]
    Unknown(NodeId),
    /// This proxy does not hold the node, and no tracker has answered.
    #[error("node {node} has no tunnel here, and no routes are known: {error}")]
    Tracker {
        /// The node.
        node: NodeId,
        /// The error of the look-up.
        error: TrackerError,
    },
    /// No proxy that may hold the node has opened a stream.
    #[error("node {node} cannot be reached: {}", Failures(.local, .attempts))]
    Unreachable {
        /// The node.
        node: NodeId,
        /// Why this proxy's own tunnels of the node opened no stream, if there were any.
        local: Option<OpenError>,
        /// The proxies that were tried, in this order.
        attempts: Vec<(ProxyDetails, AttemptError)>,
    },
    /// This proxy holds the node, its tunnel opens no stream, and no other proxy is known.
    #[error(transparent)]
    Local(OpenError),
}

/// Why an attempt at one proxy failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttemptError {
    /// The proxy cannot be reached, or has not answered in time.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The proxy has refused.
    #[error("refused: {reason:?} {text:?}")]
    Refused {
        /// The proxy's reason.
        reason: RefusalReason,
        /// The proxy's details, at most 255 bytes.
        text: String,
    },
}

struct Failures<'a>(&'a Option<OpenError>, &'a [(ProxyDetails, AttemptError)]);

impl fmt::Display for Failures<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        if let Some(error) = self.0 {
            write!(f, "{error}")?;
            separator = "; ";
        }
        for (proxy, error) in self.1 {
            write!(f, "{separator}{} at {}: {error}", proxy.id(), proxy.addr())?;
            separator = "; ";
        }
        Ok(())
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl Dialer {
    /// Creates a dialer. `tracker` names the proxies of nodes that `agents` does not hold; `transport` reaches these
    /// proxies. The dialer believes that the proxy at an address is the proxy that the tracker names.
    #[must_use]
    pub fn new(
        config: DialerConfig,
        agents: AgentListener,
        tracker: Arc<dyn NodeTracker>,
        transport: impl Transport,
    ) -> Self {
        Self::with_verify(config, agents, tracker, transport, Box::new(|_, _| Ok(())))
    }

    /// Like [`Dialer::new`], with a check of each peer before the peer gets a request. The check gets the ID of the
    /// proxy that the tracker names, and the peer's certificates.
    #[must_use]
    pub fn with_verify(
        config: DialerConfig,
        agents: AgentListener,
        tracker: Arc<dyn NodeTracker>,
        transport: impl Transport,
        verify: Box<Verify>,
    ) -> Self {
        let peers = Peers::new(transport, config.times, verify);
        let counters = Counters::default();
        Self(Arc::new(Inner {
            config,
            agents,
            tracker,
            peers,
            counters,
        }))
    }

    /// Opens a stream to a node. Needs a tokio runtime.
    ///
    /// Tries this proxy's own tunnels, and then the proxies that the tracker names, the freshest route first. Proxies
    /// to which a recent attempt to connect failed come last. A cached answer may be out of date. So if none of these
    /// proxies opens a stream, or if the tracker names this proxy, the dialer asks the tracker for its [latest
    /// routes](crate::tracker::NodeTracker::get_latest_proxies). One attempt is kept for these routes.
    ///
    /// A dial makes at most [`max_attempts`](DialerConfig::max_attempts) attempts and two look-ups. An attempt takes at
    /// most the time to connect and the time for an answer, both twice if the tunnel has just ended. If tunnels have
    /// all of their streams in use, an attempt opens another tunnel. Dropping the future cancels the dial.
    ///
    /// # Errors
    ///
    /// If no proxy is known, or if no proxy opens a stream.
    pub async fn dial(&self, node: &NodeId) -> Result<Dialed, DialError> {
        let result = self.0.dial(node).await;
        let counters = &self.0.counters;
        let counter = match &result {
            Ok(Dialed { via: Via::Local, .. }) => &counters.local,
            Ok(Dialed { via: Via::Peer(_), .. }) => &counters.through_peers,
            Err(_) => &counters.failed,
        };
        counter.fetch_add(1, Relaxed);
        result
    }

    /// Pings a peer with the presence of this proxy. Returns the presence of the peer.
    pub(super) async fn ping(&self, peer: &ProxyDetails, presence: proto::Presence) -> io::Result<proto::Presence> {
        let request = protocol::ping(Some(presence));
        match self.0.peers.request(peer, &request).await?.0 {
            Some(Response::Pong(proto::Pong {
                presence: Some(presence),
            })) => Ok(presence),
            other => Err(io::Error::other(format!("no presence, but {other:?}"))),
        }
    }

    /// Returns what the dialer has done so far.
    #[must_use]
    pub fn stats(&self) -> DialerStats {
        let Inner { peers, counters, .. } = &*self.0;
        DialerStats {
            peers: peers.len(),
            local: counters.local.load(Relaxed),
            through_peers: counters.through_peers.load(Relaxed),
            failed_attempts: counters.failed_attempts.load(Relaxed),
            failed: counters.failed.load(Relaxed),
        }
    }
}

/// The attempts of one dial.
#[derive(Default)]
struct Attempts {
    /// Whether a route through this proxy was left out.
    names_this_proxy: bool,
    /// The proxies that were tried.
    tried: Vec<ProxyDetails>,
    failed: Vec<(ProxyDetails, AttemptError)>,
}

impl Inner {
    async fn dial(&self, node: &NodeId) -> Result<Dialed, DialError> {
        let local = match self.agents.open_stream(node).await {
            Ok(stream) => {
                return Ok(Dialed {
                    stream,
                    via: Via::Local,
                });
            }
            Err(error) => error,
        };
        let mut attempts = Attempts::default();
        let routes = self.tracker.get_proxies(node).await;
        let routes = match (routes, &local) {
            (Ok(routes), _) => routes,
            (Err(error), OpenError::NotHeld(_)) => {
                let node = node.clone();
                return Err(DialError::Tracker { node, error });
            }
            (Err(_), OpenError::Tunnel { .. }) => return Err(DialError::Local(local)),
        };
        let max = self.config.max_attempts;
        let max_first = max.min(max.saturating_sub(1).max(1));
        if let Some(dialed) = self.try_routes(node, routes, max_first, &mut attempts).await {
            return Ok(dialed);
        }
        let may_be_stale = attempts.names_this_proxy || !attempts.failed.is_empty();
        if may_be_stale && attempts.tried.len() < max {
            match self.tracker.get_latest_proxies(node).await {
                Ok(routes) => {
                    if let Some(dialed) = self.try_routes(node, routes, max, &mut attempts).await {
                        return Ok(dialed);
                    }
                }
                Err(error) => debug!("no latest routes of node {node}: {error}"),
            }
        }
        Err(failure(node, local, attempts.failed))
    }

    /// Tries the proxies of routes that were not tried before, in the order of the routes, up to `max` proxies in all.
    /// A proxy that has moved counts as another proxy. The routes' times say nothing: a cached route may have the time
    /// of another clock.
    async fn try_routes(
        &self,
        node: &NodeId,
        mut routes: Vec<Route>,
        max: usize,
        attempts: &mut Attempts,
    ) -> Option<Dialed> {
        routes.sort_by_key(|route| self.peers.has_failed(route.proxy.addr()));
        for Route { proxy, .. } in routes {
            if proxy.id() == self.config.proxy_id {
                attempts.names_this_proxy = true;
                continue;
            }
            if attempts.tried.contains(&proxy) {
                continue;
            }
            if attempts.tried.len() >= max {
                break;
            }
            attempts.tried.push(proxy.clone());
            match self.attempt(node, &proxy).await {
                Ok(stream) => {
                    return Some(Dialed {
                        stream,
                        via: Via::Peer(proxy),
                    });
                }
                Err(error) => {
                    self.counters.failed_attempts.fetch_add(1, Relaxed);
                    debug!("node {node} through {} at {}: {error}", proxy.id(), proxy.addr());
                    if let AttemptError::Refused {
                        reason: RefusalReason::NoTunnel,
                        ..
                    } = error
                    {
                        self.complain(node, &proxy);
                    }
                    attempts.failed.push((proxy, error));
                }
            }
        }
        None
    }

    /// Reports that a proxy does not hold a node, without waiting for the tracker. A cache or a replica takes the
    /// report in its first poll, so the next dial leaves the route out.
    fn complain(&self, node: &NodeId, proxy: &ProxyDetails) {
        let (tracker, node, proxy_id) = (Arc::clone(&self.tracker), node.clone(), proxy.id().to_owned());
        let mut report = Box::pin(async move {
            if let Err(error) = tracker.report_unreachable(&node, &proxy_id).await {
                debug!("the complaint about {proxy_id} for node {node} is lost: {error}");
            }
        });
        if report.as_mut().now_or_never().is_none() {
            tokio::spawn(report);
        }
    }

    async fn attempt(&self, node: &NodeId, proxy: &ProxyDetails) -> Result<TunnelStream, AttemptError> {
        let request = protocol::dial(node, &self.config.proxy_id);
        let refused = |reason, text: String| {
            let text = cut(&text).to_owned();
            Err(AttemptError::Refused { reason, text })
        };
        match self.peers.request(proxy, &request).await? {
            (Some(Response::Dialed(_)), stream) => Ok(stream),
            (Some(Response::Refused(refusal)), _) => refused(refusal.reason(), refusal.text),
            (other, _) => refused(RefusalReason::Unspecified, format!("unknown answer {other:?}")),
        }
    }
}

fn failure(node: &NodeId, local: OpenError, attempts: Vec<(ProxyDetails, AttemptError)>) -> DialError {
    let node = node.clone();
    match (attempts.is_empty(), local) {
        (false, local) => DialError::Unreachable {
            node,
            local: matches!(local, OpenError::Tunnel { .. }).then_some(local),
            attempts,
        },
        (true, OpenError::NotHeld(_)) => DialError::Unknown(node),
        (true, local) => DialError::Local(local),
    }
}
