//! [`ProxyService`]: the parts of a proxy, connected.

use std::sync::{Arc, Weak};
use std::time::Duration;

use nodetracker::{NodeId, Proxy, ProxyDetails};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::cache::{CacheConfig, RouteCache};
use crate::client::{ClientError, ClientOptions, TrackerClient};
use crate::connect::addr::TrackerAddr;
use crate::control::proto::ProxyInfo;
use crate::listener::{AgentListener, ListenerConfig, ListenerConfigError, NodeObserver};
use crate::proxy::dialer::{Dialer, DialerConfig};
use crate::proxy::peer_server::{PeerServer, PeerServerConfig};
use crate::proxy::report_nodes::ReportNodes;
use crate::session::{DrainError, ProxySession, SessionConfig, SessionConfigError};
use crate::tracker::NodeTracker;
use crate::transport::Transport;
use crate::transport::tcp::TcpAcceptor;

/// How long after the window the last agents may still connect to another proxy.
const LAST_AGENTS: Duration = Duration::from_secs(5);

/// The configuration of a [`ProxyService`], with the configuration of each part. The ID of the proxy and its
/// incarnation in [`session`](Self::session) count for all parts.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ProxyServiceConfig {
    /// What the proxy reports to which trackers.
    pub session: SessionConfig,
    /// How the proxy serves agents.
    pub listener: ListenerConfig,
    /// How the proxy asks trackers.
    pub client: ClientOptions,
    /// For how long the proxy uses answers of trackers.
    pub cache: CacheConfig,
    /// How the proxy serves peers.
    pub peer_server: PeerServerConfig,
    /// How the proxy dials peers.
    pub dialer: DialerConfig,
}

/// Why a [`ProxyService`] cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyServiceError {
    /// The configuration of the session cannot be used.
    #[error(transparent)]
    Session(#[from] SessionConfigError),
    /// The configuration of the listener cannot be used.
    #[error(transparent)]
    Listener(#[from] ListenerConfigError),
    /// The client of the trackers cannot be made.
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl ProxyServiceConfig {
    /// The defaults of all parts. `proxy` has the address at which peers reach this proxy; `version` is for operators.
    #[must_use]
    pub fn new(proxy: Proxy<'_>, version: &str, trackers: Vec<TrackerAddr>) -> Self {
        let session = SessionConfig::new(proxy, trackers);
        let info = ProxyInfo {
            proxy_id: proxy.id.to_owned(),
            incarnation: session.incarnation,
            version: version.to_owned(),
        };
        Self {
            session,
            listener: ListenerConfig::new(info),
            client: ClientOptions {
                reporter_id: proxy.id.to_owned(),
                ..ClientOptions::default()
            },
            cache: CacheConfig::default(),
            peer_server: PeerServerConfig::new(proxy.id),
            dialer: DialerConfig::new(proxy.id),
        }
    }
}

/// A whole proxy: accepts agents, reports their nodes to trackers, and reaches every node of the fleet.
///
/// To change the list of proxies that agents learn, call
/// [`set_proxies`](crate::listener::AgentListener::set_proxies) of [`agents`](Self::agents). To use a
/// [`Replica`](crate::replica::Replica) or verify certificates, build a proxy from the [parts](crate::proxy).
///
/// Dropping the service stops it at once, with its tunnels and streams. The routes stay until they expire.
pub struct ProxyService {
    proxy: ProxyDetails,
    session: Arc<ProxySession>,
    agents: AgentListener,
    peers: PeerServer,
    dialer: Dialer,
    /// The acceptors, which end with the service.
    _acceptors: JoinSet<()>,
}

impl ProxyService {
    /// Starts to accept agents and peers, and to report to the trackers. `transport` reaches peers. Needs a tokio
    /// runtime.
    ///
    /// # Errors
    ///
    /// If the configuration cannot be used.
    pub fn start(
        mut config: ProxyServiceConfig,
        agents: TcpAcceptor,
        peers: TcpAcceptor,
        transport: impl Transport,
    ) -> Result<Self, ProxyServiceError> {
        let proxy = config.session.proxy.clone();
        for id in [
            &mut config.listener.proxy.proxy_id,
            &mut config.client.reporter_id,
            &mut config.peer_server.proxy_id,
            &mut config.dialer.proxy_id,
        ] {
            proxy.id().clone_into(id);
        }
        config.listener.proxy.incarnation = config.session.incarnation;
        let client = TrackerClient::new(config.session.trackers.clone(), config.client)?;
        let session = Arc::new(ProxySession::begin(config.session)?);
        let listener = AgentListener::new(config.listener, ReportWhileRunning(Arc::downgrade(&session)))?;
        let server = PeerServer::new(config.peer_server, listener.clone());
        let routes: Arc<dyn NodeTracker> = Arc::new(RouteCache::new(Arc::new(client), config.cache));
        let mut acceptors = JoinSet::new();
        acceptors.spawn({
            let listener = listener.clone();
            async move { listener.serve(agents).await }
        });
        acceptors.spawn({
            let server = server.clone();
            async move { server.serve(peers).await }
        });
        Ok(Self {
            proxy,
            session,
            dialer: Dialer::new(config.dialer, listener.clone(), routes, transport),
            agents: listener,
            peers: server,
            _acceptors: acceptors,
        })
    }

    /// Returns this proxy as trackers know it.
    #[must_use]
    pub fn proxy(&self) -> &ProxyDetails {
        &self.proxy
    }

    /// Returns the dialer, which opens streams to nodes. Clones may outlive the service, and then reach nodes through
    /// peers only.
    #[must_use]
    pub fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    /// Returns the session, which reports to the trackers. Watch [`ProxySession::superseded`].
    #[must_use]
    pub fn session(&self) -> &ProxySession {
        &self.session
    }

    /// Returns the listener of this proxy's agents.
    #[must_use]
    pub fn agents(&self) -> &AgentListener {
        &self.agents
    }

    /// Returns the server of this proxy's peers.
    #[must_use]
    pub fn peers(&self) -> &PeerServer {
        &self.peers
    }

    /// Stops the proxy. Asks the agents to find other proxies within `window`, and gives the last agents some seconds
    /// more. Then waits for the open streams for at most `limit`, and ends this proxy's routes, which takes up to
    /// another `limit`.
    ///
    /// # Errors
    ///
    /// If not all trackers have confirmed the end.
    pub async fn stop(self, window: Duration, limit: Duration) -> Result<(), DrainError> {
        self.agents.drain(window);
        let _ = timeout(window.saturating_add(LAST_AGENTS), self.agents.until_empty()).await;
        tokio::join!(self.peers.close(limit), self.agents.close(limit));
        self.session.drain(limit).await
    }
}

impl Drop for ProxyService {
    fn drop(&mut self) {
        self.agents.close_at_once();
        self.peers.stop();
    }
}

/// Reports nodes as long as the service has its session. Clones of the dialer keep the listener, and so its observer.
struct ReportWhileRunning(Weak<ProxySession>);

impl ReportWhileRunning {
    fn report(&self) -> Option<ReportNodes> {
        self.0.upgrade().map(ReportNodes)
    }
}

impl NodeObserver for ReportWhileRunning {
    fn connected(&self, node: &NodeId) {
        self.report().iter().for_each(|report| report.connected(node));
    }

    fn seen(&self, node: &NodeId) {
        self.report().iter().for_each(|report| report.seen(node));
    }

    fn gone(&self, node: &NodeId) {
        self.report().iter().for_each(|report| report.gone(node));
    }
}
