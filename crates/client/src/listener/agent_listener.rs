//! [`AgentListener`]: accepts agents, and opens streams to their nodes.

use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use nodetracker::NodeId;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::debug;

use crate::clock::{after, now};
use crate::control::keep_alive::KeepAliveTimes;
use crate::control::proto::{ProxyInfo, ProxyList};
use crate::control::{MAX_PROXIES, MAX_TEXT, Verify, is_id, proto_duration};
use crate::listener::link::LinkTimes;
use crate::listener::nodes::{NodeObserver, Nodes};
use crate::listener::task;
use crate::transport::slots::{Slot, Slots};
use crate::transport::tcp::{AGENT_ALPN, Handshake, Handshakes, TcpAcceptor};
use crate::transport::{Tunnel, TunnelStream};

/// A list of proxies is valid for this many intervals, so that an agent may miss two lists.
const LIST_VALID_INTERVALS: u32 = 3;

/// Agents remember a list for at most an hour.
const LIST_INTERVAL: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(20 * 60);

/// The configuration of an [`AgentListener`].
#[derive(Debug, Clone)]
pub struct ListenerConfig {
    /// This proxy. Its ID must be a valid ID of a proxy; its incarnation must grow with each start.
    pub proxy: ProxyInfo,
    /// The cluster of this proxy. Agents that name another cluster are refused. If empty, agents of all clusters are
    /// accepted.
    pub cluster: String,
    /// The most agents, those in the handshake among them. Further connections are closed at once.
    pub max_agents: usize,
    /// The longest time for the TLS handshake, and after it the longest time until the agent's claim.
    pub handshake_timeout: Duration,
    /// When a silent agent is pinged, and when its tunnel is broken.
    pub keep_alive: KeepAliveTimes,
    /// How often agents get the list of proxies, also if it is unchanged. Agents forget a proxy if no list names the
    /// proxy for three intervals. From 1 s to 20 min; other intervals count as the nearest of the two.
    pub list_interval: Duration,
}

impl ListenerConfig {
    /// The defaults: all clusters; 20,000 agents; 10 s for each part of the handshake. A ping after 10 s, and 5 s for
    /// the answer; a list each 60 s.
    #[must_use]
    pub fn new(proxy: ProxyInfo) -> Self {
        Self {
            proxy,
            cluster: String::new(),
            max_agents: 20_000,
            handshake_timeout: Duration::from_secs(10),
            keep_alive: KeepAliveTimes::default(),
            list_interval: Duration::from_secs(60),
        }
    }
}

/// Accepts agents, and knows which nodes have a tunnel to this proxy. Clones share one listener.
///
/// ```
/// use nodetracker_client::control::proto::ProxyInfo;
/// use nodetracker_client::listener::{AgentListener, ListenerConfig};
/// use nodetracker_client::transport::tcp::TcpAcceptor;
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// use tokio::net::TcpListener;
///
/// # use nodetracker_client::pool::{AgentPool, PoolConfig, Target};
/// # use nodetracker_client::transport::tcp::TcpTransport;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let proxy = ProxyInfo { proxy_id: "proxy-1".into(), incarnation: 1, version: "1.0".into() };
/// let listener = AgentListener::new(ListenerConfig::new(proxy), ())?;
/// let tcp = TcpListener::bind("127.0.0.1:0").await?;
/// # let target = Target::new("main", tcp.local_addr()?.to_string());
/// tokio::spawn({
///     let (listener, acceptor) = (listener.clone(), TcpAcceptor::plaintext(tcp));
///     async move { listener.serve(acceptor).await }
/// });
/// # let mut pool = AgentPool::start(PoolConfig::new("node-1".parse()?), TcpTransport::default());
/// # pool.handle().add_target(target);
/// # tokio::spawn(async move {
/// #     while let Some(mut incoming) = pool.accept().await {
/// #         tokio::spawn(async move { incoming.stream.write_all(b"hello").await });
/// #     }
/// # });
/// # while listener.nodes().is_empty() {
/// #     tokio::task::yield_now().await;
/// # }
/// // After the agent of `node-1` has claimed this proxy:
/// let mut stream = listener.open_stream(&"node-1".parse()?).await?;
/// let mut greeting = [0; 5];
/// stream.read_exact(&mut greeting).await?;
/// assert_eq!(&greeting, b"hello");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct AgentListener {
    pub(super) shared: Arc<Shared>,
}

/// The state that the tasks of a listener share.
pub(super) struct Shared {
    pub(super) config: ListenerConfig,
    pub(super) verify: Box<Verify>,
    pub(super) nodes: Arc<Nodes>,
    pub(super) status: watch::Sender<Status>,
    pub(super) counters: Counters,
    agents: Slots,
}

/// What the tasks of agents must know.
#[derive(Debug, Clone)]
pub(super) struct Status {
    pub(super) list: Arc<ProxyList>,
    pub(super) phase: Phase,
    /// The latest call of [`AgentListener::shed`].
    pub(super) shed: Shed,
    /// Pings after a shorter silence than the configuration says.
    pub(super) ping_within: Option<Duration>,
}

/// A share of the agents should leave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Shed {
    pub(super) number: u64,
    pub(super) share: f64,
    pub(super) window: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Serving,
    /// Agents were asked to leave within the window.
    Draining(Duration),
    /// Streams may last until this time.
    Closing(Instant),
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) accepted: AtomicU64,
    pub(super) full: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) claimed: AtomicU64,
}

/// How many agents and nodes a listener has, and what has happened since it was created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ListenerStats {
    /// Agents at present, those in the handshake among them.
    pub agents: usize,
    /// Nodes at present.
    pub nodes: usize,
    /// Connections that were accepted.
    pub accepted: u64,
    /// Connections that were closed because there were too many agents.
    pub full: u64,
    /// TLS handshakes that failed, or that took too long.
    pub failed: u64,
    /// Agents that were refused: the proxy drained, the hello was invalid or not allowed, or the node had too many
    /// tunnels.
    pub refused: u64,
    /// Agents that have claimed this proxy.
    pub claimed: u64,
}

/// Why no stream to a node was opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The node has no tunnel to this proxy. Ask a tracker for another proxy.
    #[error("node {0} has no tunnel to this proxy")]
    NotHeld(NodeId),
    /// The node's tunnels have just ended, or have too many streams.
    #[error("no stream to node {node}: {error}")]
    Tunnel {
        /// The node.
        node: NodeId,
        /// The error of the oldest tunnel, which was tried last.
        error: io::Error,
    },
}

/// Agents would not accept this proxy or its list of proxies.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ListenerConfigError {
    /// The list is too long.
    #[error("{0} proxies, but agents accept lists of at most {MAX_PROXIES}")]
    TooManyProxies(usize),
    /// The ID of a proxy is no ID.
    #[error("the ID {0:?} of a proxy must have 1 to {MAX_TEXT} bytes, and no control characters")]
    ProxyId(String),
    /// The version of a proxy is too long.
    #[error("the version of proxy {proxy_id} has {len} bytes, and the maximum is {MAX_TEXT}")]
    Version {
        /// The ID of the proxy.
        proxy_id: String,
        /// The length of the version, in bytes.
        len: usize,
    },
}

impl fmt::Debug for AgentListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentListener")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl AgentListener {
    /// Creates a listener that believes each agent's node ID. Its list of proxies has only itself.
    ///
    /// # Errors
    ///
    /// If agents would not accept the ID or the version of this proxy.
    pub fn new(config: ListenerConfig, observer: impl NodeObserver) -> Result<Self, ListenerConfigError> {
        Self::with_verify(config, observer, Box::new(|_, _| Ok(())))
    }

    /// Like [`AgentListener::new`], with a check of the node ID in each agent's hello.
    ///
    /// # Errors
    ///
    /// As [`AgentListener::new`].
    pub fn with_verify(
        mut config: ListenerConfig,
        observer: impl NodeObserver,
        verify: Box<Verify>,
    ) -> Result<Self, ListenerConfigError> {
        config.list_interval = config.list_interval.clamp(*LIST_INTERVAL.start(), *LIST_INTERVAL.end());
        let list = list(&config, vec![config.proxy.clone()])?;
        let agents = Slots::new(config.max_agents);
        Ok(Self {
            shared: Arc::new(Shared {
                config,
                verify,
                nodes: Arc::new(Nodes::new(Box::new(observer))),
                status: watch::Sender::new(Status {
                    list,
                    phase: Phase::Serving,
                    shed: Shed {
                        number: 0,
                        share: 0.0,
                        window: Duration::ZERO,
                    },
                    ping_within: None,
                }),
                counters: Counters::default(),
                agents,
            }),
        })
    }

    /// Accepts agents until the listener is closed. May be called for several acceptors.
    pub async fn serve(&self, acceptor: TcpAcceptor) {
        let handshakes = Handshakes {
            alpn: AGENT_ALPN,
            limit: self.shared.config.handshake_timeout,
        };
        let serve = |handshake: Handshake, slot| {
            let shared = Arc::clone(&self.shared);
            async move {
                let tunnel = tokio::select! {
                    tunnel = handshake => tunnel,
                    () = shared.closing() => return,
                };
                match tunnel {
                    Ok(tunnel) => task::run(&shared, Arc::new(tunnel), slot).await,
                    Err(error) => shared.handshake_failed(&error),
                }
            }
        };
        acceptor
            .serve(handshakes, self.shared.closing(), || self.admit(), serve)
            .await;
    }

    /// Serves the agent at the other end of a tunnel, until the tunnel ends. For transports other than TCP.
    pub async fn serve_tunnel(&self, tunnel: Arc<dyn Tunnel>) {
        if let Some(slot) = self.admit() {
            task::run(&self.shared, tunnel, slot).await;
        }
    }

    fn admit(&self) -> Option<Slot> {
        self.shared.counters.accepted.fetch_add(1, Relaxed);
        let slot = self.shared.agents.try_take(0);
        if slot.is_none() {
            self.shared.counters.full.fetch_add(1, Relaxed);
        }
        slot
    }

    /// Sends agents a new list of the proxies behind the load balancer. This proxy is added if it is missing.
    ///
    /// # Errors
    ///
    /// If there are more than [`MAX_PROXIES`] proxies, or if agents would not accept the ID or the version of a proxy.
    /// The list stays as it was.
    pub fn set_proxies(&self, mut proxies: Vec<ProxyInfo>) -> Result<(), ListenerConfigError> {
        let own = self.proxy();
        proxies.retain(|proxy| proxy.proxy_id != own.proxy_id);
        proxies.push(own);
        let list = list(&self.shared.config, proxies)?;
        self.shared.status.send_modify(|status| status.list = list);
        Ok(())
    }

    /// Returns the proxies that agents learn, this proxy among them.
    #[must_use]
    pub fn proxies(&self) -> Vec<ProxyInfo> {
        self.shared.status.borrow().list.proxies.clone()
    }

    /// Returns this proxy, as its agents know it.
    pub(crate) fn proxy(&self) -> ProxyInfo {
        self.shared.config.proxy.clone()
    }

    /// Reports each node to the observer once more.
    pub(crate) fn report_again(&self) {
        self.shared.nodes.report_again();
    }

    /// Pings silent agents after this time, if it is shorter than the [configured](ListenerConfig::keep_alive) time.
    /// Replaces the time of an earlier call; with `None`, the configured time counts.
    pub fn ping_within(&self, silence: Option<Duration>) {
        self.shared.status.send_if_modified(|status| {
            let before = std::mem::replace(&mut status.ping_within, silence);
            before != silence
        });
    }

    /// Asks a share of the agents, from 0 to 1, to find another proxy, each at a random time within the window. For a
    /// proxy that has too many agents, or that is sick. The proxy still accepts agents, and keeps those that find no
    /// other proxy.
    pub fn shed(&self, share: f64, window: Duration) {
        self.shared.status.send_modify(|status| {
            status.shed = Shed {
                number: status.shed.number + 1,
                share,
                window,
            };
        });
    }

    /// Whether agents are asked to find another proxy, or the listener closes.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.shared.status.borrow().phase != Phase::Serving
    }

    /// Waits until [`is_draining`](Self::is_draining) has this value.
    pub(crate) async fn until_draining_is(&self, is_draining: bool) {
        let mut status = self.shared.status.subscribe();
        // `self` has the sender.
        let _ = status
            .wait_for(|status| (status.phase != Phase::Serving) == is_draining)
            .await;
    }

    /// Ends a drain: accepts agents again. Agents that have not left yet still look for another proxy, and stay if they
    /// find none. No effect on a listener that closes.
    pub fn resume(&self) {
        self.shared.status.send_if_modified(|status| {
            let is_draining = matches!(status.phase, Phase::Draining(_));
            if is_draining {
                status.phase = Phase::Serving;
            }
            is_draining
        });
    }

    /// Asks all agents to find another proxy, each at a random time within the window, and refuses new agents. Agents
    /// that find no other proxy stay.
    pub fn drain(&self, window: Duration) {
        self.shared.status.send_if_modified(|status| {
            let is_first = status.phase == Phase::Serving;
            if is_first {
                status.phase = Phase::Draining(window);
            }
            is_first
        });
    }

    /// Waits until no node has a tunnel to this proxy, except tunnels whose agents leave.
    pub(crate) async fn until_empty(&self) {
        self.shared.nodes.until_empty().await;
    }

    /// Stops: reports all nodes as gone, and opens no more streams. Waits until the open streams have ended, at most
    /// for `limit`, and then closes each tunnel. Ends handshakes at once.
    pub async fn close(&self, limit: Duration) {
        self.begin_close(limit);
        self.shared.agents.until_at_most(0).await;
    }

    /// Stops, and waits for nothing.
    pub(crate) fn close_at_once(&self) {
        self.begin_close(Duration::ZERO);
    }

    fn begin_close(&self, limit: Duration) {
        let phase = Phase::Closing(after(now(), limit).into());
        self.shared.status.send_modify(|status| status.phase = phase);
    }

    /// Opens a stream to a node, through its newest tunnel that works. Does not wait for the agent: the caller bounds
    /// the time until the agent answers.
    ///
    /// # Errors
    ///
    /// If the node has no tunnel, or if no tunnel of the node can open a stream.
    pub async fn open_stream(&self, node: &NodeId) -> Result<TunnelStream, OpenError> {
        let mut failure = OpenError::NotHeld(node.clone());
        for tunnel in self.shared.nodes.tunnels(node) {
            match tunnel.open().await {
                Ok(stream) => return Ok(stream),
                Err(error) => {
                    let node = node.clone();
                    failure = OpenError::Tunnel { node, error };
                }
            }
        }
        Err(failure)
    }

    /// Returns the nodes that have a tunnel to this proxy, in no order.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeId> {
        self.shared.nodes.ids()
    }

    /// Returns how many agents and nodes there are, and what has happened so far.
    #[must_use]
    pub fn stats(&self) -> ListenerStats {
        let shared = &self.shared;
        let count = |counter: &AtomicU64| counter.load(Relaxed);
        ListenerStats {
            agents: shared.agents.taken(),
            nodes: shared.nodes.len(),
            accepted: count(&shared.counters.accepted),
            full: count(&shared.counters.full),
            failed: count(&shared.counters.failed),
            refused: count(&shared.counters.refused),
            claimed: count(&shared.counters.claimed),
        }
    }
}

impl Shared {
    pub(super) fn times(&self) -> LinkTimes {
        LinkTimes {
            handshake_timeout: self.config.handshake_timeout,
            keep_alive: self.config.keep_alive,
            list_interval: self.config.list_interval,
        }
    }

    /// Waits until the listener closes.
    pub(super) async fn closing(&self) {
        let mut status = self.status.subscribe();
        // `self` has the sender.
        let _ = status
            .wait_for(|status| matches!(status.phase, Phase::Closing(_)))
            .await;
    }

    fn handshake_failed(&self, reason: &io::Error) {
        self.counters.failed.fetch_add(1, Relaxed);
        debug!("no tunnel: {reason}");
    }
}

fn list(config: &ListenerConfig, proxies: Vec<ProxyInfo>) -> Result<Arc<ProxyList>, ListenerConfigError> {
    if proxies.len() > MAX_PROXIES {
        return Err(ListenerConfigError::TooManyProxies(proxies.len()));
    }
    for ProxyInfo { proxy_id, version, .. } in &proxies {
        if !is_id(proxy_id) {
            return Err(ListenerConfigError::ProxyId(proxy_id.clone()));
        }
        if version.len() > MAX_TEXT {
            let (proxy_id, len) = (proxy_id.clone(), version.len());
            return Err(ListenerConfigError::Version { proxy_id, len });
        }
    }
    let valid_for = proto_duration(config.list_interval * LIST_VALID_INTERVALS);
    Ok(Arc::new(ProxyList { proxies, valid_for }))
}
