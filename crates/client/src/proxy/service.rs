//! [`ProxyService`]: the parts of a proxy, connected.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use nodetracker::{Proxy, ProxyDetails};
use nodetracker_tls::client::ClientConfigError;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::cache::{CacheConfig, Follower, RouteCache};
use crate::client::section::TrackerSection;
use crate::client::{ClientConfig, ClientError, TrackerClient};
use crate::connect::addr::TrackerAddr;
use crate::control::Verify;
use crate::control::proto::ProxyInfo;
use crate::listener::{AgentListener, ListenerConfig, ListenerConfigError};
use crate::proxy::dialer::{Dialer, DialerConfig};
use crate::proxy::gossip::Gossip;
use crate::proxy::peer_server::{PeerServer, PeerServerConfig};
use crate::proxy::sessions::{ReportWhileRunning, Sessions};
use crate::replica::{Replica, ReplicaConfig};
use crate::session::machine::Superseded;
use crate::session::{DrainError, ProxySession, SessionConfig, SessionConfigError};
use crate::tracker::NodeTracker;
use crate::transport::Transport;
use crate::transport::tcp::TcpAcceptor;

/// How long after the window the last agents may still connect to another proxy.
const LAST_AGENTS: Duration = Duration::from_secs(5);

/// How a proxy finds the proxies of nodes that it does not hold.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum LookUps {
    /// The proxy keeps the latest answers of its trackers.
    Cache {
        /// For how long the proxy uses the answers.
        config: CacheConfig,
        /// Whether watches of all changes, one at each tracker, drop answers that are out of date: see
        /// [`RouteCache::follow`].
        follow: bool,
    },
    /// The proxy keeps a copy of a tracker's table. The trackers and the connections of the session replace those of
    /// this configuration.
    Replica(ReplicaConfig),
}

impl Default for LookUps {
    /// A cache that follows the changes.
    fn default() -> Self {
        Self::Cache {
            config: CacheConfig::default(),
            follow: true,
        }
    }
}

/// The configuration of a [`ProxyService`], with the configuration of each part. Of [`session`](Self::session), all
/// parts have the proxy, its incarnation, the trackers, `connect` and `write_to`.
#[derive(Clone)]
#[non_exhaustive]
pub struct ProxyServiceConfig {
    /// What the proxy reports to which trackers, and how it connects to them.
    pub session: SessionConfig,
    /// Whether the service begins a later incarnation if a tracker refuses its first session. By default, it does not.
    ///
    /// If the clock was set back since the last start, the incarnation is less than that of the last start. Then the
    /// tracker refuses the session before it has ever been open, and the service begins a session with the latest
    /// incarnation plus one, once. Agents and peers still see the first incarnation. Set this only if no other process
    /// can be this proxy.
    pub takes_over: bool,
    /// How the proxy serves agents.
    pub listener: ListenerConfig,
    /// Verifies the node ID of each agent. By default, each agent that the acceptor admits may claim any node.
    pub verify_agents: Option<Arc<Verify>>,
    /// How the proxy asks trackers.
    pub client: ClientConfig,
    /// How the proxy looks up nodes.
    pub look_ups: LookUps,
    /// How the proxy serves peers.
    pub peer_server: PeerServerConfig,
    /// How the proxy dials peers.
    pub dialer: DialerConfig,
    /// Verifies the ID of each peer: those that dial this proxy, and those that this proxy dials. By default, each peer
    /// that the acceptor or the transport admits may be any proxy.
    pub verify_peers: Option<Arc<Verify>>,
    /// The longest time until the proxy asks again which other proxies there are, from 100 ms to an hour. Agents learn
    /// of a new proxy within this time and a second. Agents no longer learn of a proxy that has been silent for three
    /// intervals, or that drains.
    pub discovery_interval: Duration,
}

impl fmt::Debug for ProxyServiceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = f.debug_struct("ProxyServiceConfig");
        text.field("session", &self.session).field("listener", &self.listener);
        text.field("client", &self.client).field("look_ups", &self.look_ups);
        text.field("verifies_agents", &self.verify_agents.is_some());
        text.field("verifies_peers", &self.verify_peers.is_some());
        text.finish_non_exhaustive()
    }
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
    /// The defaults of all parts; a discovery each 20 s. `proxy` has the address at which peers reach this proxy;
    /// `version` is for operators.
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
            takes_over: false,
            listener: ListenerConfig::new(info),
            verify_agents: None,
            client: ClientConfig::default(),
            look_ups: LookUps::default(),
            peer_server: PeerServerConfig::new(proxy.id),
            dialer: DialerConfig::new(proxy.id),
            verify_peers: None,
            discovery_interval: Duration::from_secs(20),
        }
    }

    /// As [`new`](Self::new), with the trackers, the TLS and the `write_to` of a [`proxy_service`
    /// section](crate::client::section). Reads the key and certificate files.
    ///
    /// # Errors
    ///
    /// If a file cannot be used.
    pub fn from_section(proxy: Proxy<'_>, version: &str, section: &TrackerSection) -> Result<Self, ClientConfigError> {
        let mut config = Self::new(proxy, version, section.trackers.clone());
        config.session.connect = section.connect_config()?;
        config.session.write_to = section.write_to;
        Ok(config)
    }
}

/// A whole proxy: accepts agents, reports their nodes to trackers, and reaches every node of the fleet. Its agents
/// learn which other proxies of its cluster there are.
///
/// Dropping the service stops it at once, with its tunnels and streams. The routes stay until they expire.
///
/// ```
/// # use std::sync::Arc;
/// use std::time::Duration;
///
/// use nodetracker_client::Proxy;
/// use nodetracker_client::proxy::{ProxyService, ProxyServiceConfig};
/// use nodetracker_client::transport::tcp::{TcpAcceptor, TcpTransport};
/// use tokio::net::TcpListener;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use nodetracker_server::{Config, Limits, Server};
/// # let config = Config::default().listen_on("127.0.0.1:0");
/// # let table = Arc::new(config.table().build()?);
/// # let server = Server::bind_with_limits(&config, table, Limits::default()).await?;
/// # let tracker = server.local_addr();
/// # tokio::spawn(server.run(std::future::pending()));
/// let agents = TcpListener::bind("127.0.0.1:0").await?;
/// let peers = TcpListener::bind("127.0.0.1:0").await?;
/// let addr = peers.local_addr()?.to_string();
/// let proxy = Proxy { id: "proxy-1", cluster_name: "main", addr: &addr };
/// let config = ProxyServiceConfig::new(proxy, "1.0", vec![tracker.to_string().parse()?]);
/// let [agents, peers] = [agents, peers].map(TcpAcceptor::plaintext);
/// let service = ProxyService::start(config, agents, peers, TcpTransport::default())?;
///
/// let no_tunnel = service.dialer().dial(&"node-1".parse()?).await;
/// assert!(no_tunnel.is_err());
/// service.stop(Duration::ZERO, Duration::from_secs(10)).await?;
/// # Ok(())
/// # }
/// ```
pub struct ProxyService {
    proxy: ProxyDetails,
    parts: Arc<Parts>,
    _follower: Option<Follower>,
    /// The acceptors and other tasks, which end with the service.
    _tasks: JoinSet<()>,
}

/// The parts that have figures.
pub(crate) struct Parts {
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) agents: AgentListener,
    pub(crate) peers: PeerServer,
    pub(crate) dialer: Dialer,
    pub(crate) client: TrackerClient,
    pub(crate) routes: Routes,
}

/// Where the routes of other proxies come from.
pub(crate) enum Routes {
    Cache(RouteCache),
    Replica(Arc<Replica>),
}

impl Routes {
    fn tracker(&self) -> Arc<dyn NodeTracker> {
        match self {
            Self::Cache(cache) => Arc::new(cache.clone()),
            Self::Replica(replica) => Arc::clone(replica) as _,
        }
    }
}

/// The metrics of a [`ProxyService`]. Without the service, there are none.
#[cfg(feature = "metrics")]
#[derive(Debug, Clone)]
pub struct ProxyMetrics(pub(crate) std::sync::Weak<Parts>);

impl ProxyService {
    /// Starts to accept agents and peers, and to report to the trackers. `transport` reaches peers: with TLS, a
    /// [`TcpTransport::peer`](crate::transport::tcp::TcpTransport::peer). Needs a tokio runtime.
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
        config.client.connect = config.session.connect.clone();
        config.client.write_to = config.session.write_to;
        let SessionConfig { trackers, connect, .. } = config.session.clone();

        let client = TrackerClient::start(trackers.clone(), config.client)?;
        let sessions = Arc::new(Sessions::start(config.session.clone())?);
        let observer = ReportWhileRunning(Arc::downgrade(&sessions));
        let listener = AgentListener::with_verify(config.listener, observer, verify(config.verify_agents))?;
        let tracker = Arc::new(client.clone());
        let (routes, follower) = match config.look_ups {
            LookUps::Cache { config, follow } => {
                let cache = RouteCache::new(tracker, config);
                let follower = follow.then(|| cache.follow(&trackers, &connect));
                (Routes::Cache(cache), follower.transpose().map_err(ClientError::from)?)
            }
            LookUps::Replica(mut config) => {
                config.trackers.clone_from(&trackers);
                config.connect = connect.clone();
                let replica = Replica::start(config, tracker).map_err(ClientError::from)?;
                (Routes::Replica(Arc::new(replica)), None)
            }
        };
        let verify_peers = || verify(config.verify_peers.clone());
        let dialer = Dialer::with_verify(
            config.dialer,
            listener.clone(),
            routes.tracker(),
            transport,
            verify_peers(),
        );
        let channels = trackers.into_iter().map(|addr| {
            let channel = connect.channel(&addr);
            (addr, channel)
        });
        let gossip = Gossip::new(
            proxy.clone(),
            config.discovery_interval,
            channels.collect(),
            listener.clone(),
            dialer.clone(),
        );
        let server = PeerServer::with_verify(config.peer_server, listener.clone(), verify_peers());
        server.announce(gossip.announcer().clone());

        let mut tasks = JoinSet::new();
        tasks.spawn({
            let listener = listener.clone();
            async move { listener.serve(agents).await }
        });
        tasks.spawn({
            let server = server.clone();
            async move { server.serve(peers).await }
        });
        tasks.spawn(gossip.run());
        tasks.spawn({
            let (sessions, listener) = (Arc::clone(&sessions), listener.clone());
            async move { sessions.follow(config.session, config.takes_over, listener).await }
        });
        Ok(Self {
            proxy,
            parts: Arc::new(Parts {
                sessions,
                agents: listener,
                peers: server,
                dialer,
                client,
                routes,
            }),
            _follower: follower,
            _tasks: tasks,
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
        &self.parts.dialer
    }

    /// Returns the session, which reports to the trackers.
    #[must_use]
    pub fn session(&self) -> Arc<ProxySession> {
        self.parts.sessions.current()
    }

    /// Waits until a tracker has superseded the session, and no session [replaces](ProxyServiceConfig::takes_over) it.
    /// Then another process is this proxy, or an operator has removed this proxy. The nodes of this proxy are not
    /// reported any more, so the process should stop.
    pub async fn superseded(&self) -> Superseded {
        self.parts.sessions.superseded().await
    }

    /// Returns the listener of this proxy's agents.
    #[must_use]
    pub fn agents(&self) -> &AgentListener {
        &self.parts.agents
    }

    /// Returns the server of this proxy's peers.
    #[must_use]
    pub fn peers(&self) -> &PeerServer {
        &self.parts.peers
    }

    /// Returns the client of the trackers.
    #[must_use]
    pub fn client(&self) -> &TrackerClient {
        &self.parts.client
    }

    /// Returns the cache, unless the proxy has a replica.
    #[must_use]
    pub fn cache(&self) -> Option<&RouteCache> {
        match &self.parts.routes {
            Routes::Cache(cache) => Some(cache),
            Routes::Replica(_) => None,
        }
    }

    /// Returns the replica, unless the proxy has a cache.
    #[must_use]
    pub fn replica(&self) -> Option<&Replica> {
        match &self.parts.routes {
            Routes::Replica(replica) => Some(replica),
            Routes::Cache(_) => None,
        }
    }

    /// Returns the metrics of the parts, for a [registry](crate::metrics).
    #[cfg(feature = "metrics")]
    #[must_use]
    pub fn metrics(&self) -> ProxyMetrics {
        ProxyMetrics(Arc::downgrade(&self.parts))
    }

    /// Stops the proxy. Asks the agents to find other proxies within `window`, and gives the last agents some seconds
    /// more. Then waits for the open streams for at most `limit`, and ends this proxy's routes, which takes up to
    /// another `limit`.
    ///
    /// # Errors
    ///
    /// If not all trackers have confirmed the end.
    pub async fn stop(self, window: Duration, limit: Duration) -> Result<(), DrainError> {
        let Parts { agents, peers, .. } = &*self.parts;
        agents.drain(window);
        let _ = timeout(window.saturating_add(LAST_AGENTS), agents.until_empty()).await;
        tokio::join!(peers.close(limit), agents.close(limit));
        self.session().drain(limit).await
    }
}

impl Drop for ProxyService {
    fn drop(&mut self) {
        self.parts.agents.close_at_once();
        self.parts.peers.stop();
    }
}

/// Returns a check that admits each ID if none is configured.
fn verify(verify: Option<Arc<Verify>>) -> Box<Verify> {
    match verify {
        Some(verify) => Box::new(move |id, certificates| verify(id, certificates)),
        None => Box::new(|_, _| Ok(())),
    }
}
