//! A proxy's own copy of a tracker's table: look-ups without a call.
//!
//! A [`Replica`] watches one tracker, applies the tracker's changes to a [`RouteTable`](nodetracker::RouteTable), and
//! answers from that table. If the watch ends, the replica serves its last copy while [`Replica::staleness`] grows. It
//! watches the same tracker or the next tracker, and resumes at its place or gets a new snapshot. A new snapshot is
//! complete before it replaces the old copy.
//!
//! # How old an answer is
//!
//! Each route of an answer was a route of the tracker at some moment that is no longer ago than [`Replica::staleness`].
//! The same is true of the address of its proxy. Each route that the tracker has had for longer than the staleness is
//! in the answer. [`View::staleness`] has the exceptions. No route of a replica expires by itself. The tracker sends
//! the end of a route when it sweeps the route, at most a third of a keep-alive interval after the expiry.
//!
//! A tracker does not send refreshes. So [`Route::last_refresh`] of an answer is the time when the replica last got the
//! route, or its present place among the node's routes, on the replica's clock. The routes have the order that they had
//! on the tracker at that time.
//!
//! As a [`NodeTracker`], a replica bounds the age of its answers: see [`ReplicaConfig::max_staleness`].
//!
//! # Costs
//!
//! A copy is a table of all routes, and a set of all nodes. While a new snapshot comes, there are two copies. A change
//! of the fleet is a message to each replica. `examples/look_ups.rs` measures look-ups.
//!
//! ```
//! use std::sync::Arc;
//!
//! use nodetracker_client::client::{ClientConfig, TrackerClient};
//! use nodetracker_client::replica::{Replica, ReplicaConfig};
//! use nodetracker_client::tracker::NodeTracker;
//! use nodetracker_client::{NodeId, Proxy};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # use nodetracker_server::{Config, Limits, Server};
//! # let config = Config::default().listen_on("127.0.0.1:0");
//! # let table = Arc::new(config.table().build()?);
//! # let server = Server::bind_with_limits(&config, table, Limits::default()).await?;
//! # let addr = server.local_addr().to_string();
//! # tokio::spawn(server.run(std::future::pending()));
//! let tracker = addr.parse()?;
//! let client = TrackerClient::start([Clone::clone(&tracker)], ClientConfig::default())?;
//! let node: NodeId = "550e8400-e29b-41d4-a716-446655440000".parse()?;
//! let proxy = Proxy { id: "proxy-1", cluster_name: "main", addr: "10.0.0.1:3080" };
//! client.add_nodes(&proxy, std::slice::from_ref(&node)).await?;
//!
//! let replica = Replica::start(ReplicaConfig::new([tracker]), Arc::new(client))?;
//! replica.ready().await;
//! let staleness = replica.staleness();
//! let routes = replica.look_up(&node).unwrap_or_default();
//! println!("dial {}, known {staleness:?} ago", routes[0].proxy.addr());
//! # Ok(())
//! # }
//! ```

mod copy;
mod machine;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use std::fmt;
use std::iter::zip;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures_util::StreamExt;
use nodetracker::{NodeId, Proxy};
use nodetracker_proto::v1;
use tokio::select;
use tokio::sync::watch as channel;
use tokio::task::JoinHandle;
use tokio::time::sleep_until;
use tonic::Status as GrpcStatus;
use tracing::{info, warn};

use crate::clock::now;
use crate::complaints::Complaints;
use crate::connect::NoTls;
use crate::connect::addr::TrackerAddr;
use crate::connect::channel::{Channel, ConnectConfig};
use crate::tracker::{NodeTracker, Route, TrackerError};
use crate::watch::{Messages, place, watch};

pub use crate::wire::InvalidNode;
pub use copy::ApplyError;
pub use machine::{Event, Input, Machine, ReplicaTimes, Stats, Status, Transmit, View};

/// How a replica reaches its trackers.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ReplicaConfig {
    /// The trackers. The replica watches one tracker at a time, from the first tracker on.
    pub trackers: Vec<TrackerAddr>,
    /// TLS and timeouts of the connections.
    pub connect: ConnectConfig,
    /// Intervals of the protocol.
    pub times: ReplicaTimes,
    /// From this [staleness](Replica::staleness) on, the look-ups of the replica as a [`NodeTracker`] are calls to a
    /// tracker.
    pub max_staleness: Duration,
    /// As `max_staleness`, for nodes without a route in the copy: the node may have connected since. Should be more
    /// than [`ReplicaTimes::probe_interval`] and a round trip. Otherwise, such look-ups are calls also while the
    /// replica follows a tracker.
    pub max_negative_staleness: Duration,
    /// How long a route is left out after a report that the node is unreachable there, unless the route is refreshed.
    /// For answers of several trackers, the note at
    /// [`CacheConfig::complaint_ttl`](crate::cache::CacheConfig::complaint_ttl) applies.
    pub complaint_ttl: Duration,
}

impl ReplicaConfig {
    /// Returns the default configuration. Look-ups use the copy until it is 5 minutes old, which is the
    /// trackers' default keep-alive interval, or 15 s old if it has no route; a complaint lasts for 30 s. Without
    /// trackers, the replica has no answer.
    pub fn new(trackers: impl IntoIterator<Item = TrackerAddr>) -> Self {
        Self {
            trackers: trackers.into_iter().collect(),
            connect: ConnectConfig::default(),
            times: ReplicaTimes::default(),
            max_staleness: Duration::from_secs(300),
            max_negative_staleness: Duration::from_secs(15),
            complaint_ttl: Duration::from_secs(30),
        }
    }
}

/// A copy of a tracker's table, kept up to date by a task.
///
/// As a [`NodeTracker`], a replica looks up in its copy, and writes to the tracker that it was given. An answer may
/// lack a write that was done a moment before. A look-up is a call to that tracker, too,
///
/// * until the first snapshot is complete,
/// * if the copy is older than [`max_staleness`](ReplicaConfig::max_staleness) allows,
/// * if the copy has no route of the node, and is older than
///   [`max_negative_staleness`](ReplicaConfig::max_negative_staleness) allows,
/// * if the copy has routes of the node, and each of these was reported as unreachable.
///
/// A report that a node is unreachable through a proxy goes to the tracker. For
/// [`complaint_ttl`](ReplicaConfig::complaint_ttl), the replica leaves the route out of all answers. The route returns
/// earlier if the proxy reports it again: to the copy, or to the tracker after the tracker's first answer with the
/// route.
pub struct Replica {
    view: Arc<View>,
    stats: channel::Receiver<Stats>,
    tracker: Arc<dyn NodeTracker>,
    max_staleness: Duration,
    max_negative_staleness: Duration,
    /// Complaints end on the clock that wrote the times of the routes.
    of_copy: Complaints,
    of_tracker: Complaints,
    task: JoinHandle<()>,
}

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = f.debug_struct("Replica");
        text.field("stats", &self.stats()).field("staleness", &self.staleness());
        text.finish_non_exhaustive()
    }
}

impl Replica {
    /// Starts a replica. Its task ends when the replica is dropped.
    ///
    /// # Errors
    ///
    /// If an address needs TLS and the configuration has none.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with its time and I/O enabled.
    pub fn start(config: ReplicaConfig, tracker: Arc<dyn NodeTracker>) -> Result<Self, NoTls> {
        config.connect.check(&config.trackers)?;
        let channels: Vec<Channel> = config
            .trackers
            .iter()
            .map(|addr| config.connect.channel(addr))
            .collect();
        let (now, seed) = (now(), fastrand::u64(..));
        let machine = Machine::new(now, SystemTime::now(), channels.len(), config.times, seed);
        let view = Arc::clone(machine.view());
        let (sender, stats) = channel::channel(machine.stats());
        let shell = Shell {
            machine,
            addrs: config.trackers,
            channels,
            probe_limit: config.times.probe_interval,
            watch: None,
            probe: None,
        };
        Ok(Self {
            view,
            stats,
            tracker,
            max_staleness: config.max_staleness,
            max_negative_staleness: config.max_negative_staleness,
            of_copy: Complaints::new(config.complaint_ttl),
            of_tracker: Complaints::new(config.complaint_ttl),
            task: tokio::spawn(shell.run(sender)),
        })
    }

    /// Returns the routes of a node in the copy, however old, most recently refreshed first; `None` until the first
    /// snapshot is complete. Leaves out the routes that were reported as unreachable. Makes no call, and waits for no
    /// call.
    #[must_use]
    pub fn look_up(&self, node: &NodeId) -> Option<Vec<Route>> {
        Some(without(&self.of_copy, node, self.view.look_up(node)?))
    }

    /// Returns how far the replica may be behind: see [`View::staleness`].
    #[must_use]
    pub fn staleness(&self) -> Option<Duration> {
        self.view.staleness(now())
    }

    /// Waits until the first snapshot is complete.
    pub async fn ready(&self) {
        self.wait_until(|stats| stats.status != Status::Starting).await;
    }

    /// Whether the first snapshot is complete.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.stats.borrow().status != Status::Starting
    }

    /// Waits until the figures meet a condition, for example have another status.
    pub async fn wait_until(&self, condition: impl FnMut(&Stats) -> bool) {
        // An error cannot happen: the task ends with the replica.
        let _ = self.stats.clone().wait_for(condition).await;
    }

    /// Returns the figures.
    #[must_use]
    pub fn stats(&self) -> Stats {
        *self.stats.borrow()
    }

    /// The answer of the copy, unless the tracker has to be asked.
    fn current(&self, node: &NodeId) -> Option<Vec<Route>> {
        // Before the look-up, so that this bounds the age of the answer.
        let staleness = self.staleness()?;
        if staleness >= self.max_staleness {
            return None;
        }
        let routes = self.view.look_up(node)?;
        if routes.is_empty() {
            return (staleness < self.max_negative_staleness).then_some(routes);
        }
        let reachable = without(&self.of_copy, node, routes);
        (!reachable.is_empty()).then_some(reachable)
    }
}

/// The routes that are not reported as unreachable.
fn without(complaints: &Complaints, node: &NodeId, mut routes: Vec<Route>) -> Vec<Route> {
    let is_reported = complaints.about(node);
    routes.retain(|route| !is_reported(route));
    routes
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[async_trait]
impl NodeTracker for Replica {
    async fn add_nodes(&self, proxy: &Proxy<'_>, nodes: &[NodeId]) -> Result<(), TrackerError> {
        self.tracker.add_nodes(proxy, nodes).await
    }

    async fn get_proxies(&self, node: &NodeId) -> Result<Vec<Route>, TrackerError> {
        match self.current(node) {
            Some(routes) => Ok(routes),
            None => Ok(without(&self.of_tracker, node, self.tracker.get_proxies(node).await?)),
        }
    }

    async fn remove_nodes(&self, proxy_id: &str, nodes: &[NodeId]) -> Result<(), TrackerError> {
        self.tracker.remove_nodes(proxy_id, nodes).await
    }

    async fn remove_proxy(&self, proxy_id: &str) -> Result<(), TrackerError> {
        self.tracker.remove_proxy(proxy_id).await
    }

    async fn get_proxies_batch(&self, nodes: &[NodeId]) -> Result<Vec<Vec<Route>>, TrackerError> {
        let current: Vec<_> = nodes.iter().map(|node| self.current(node)).collect();
        let missing = zip(nodes, &current).filter(|(_, routes)| routes.is_none());
        let missing: Vec<_> = missing.map(|(node, _)| node.clone()).collect();
        let mut fetched = match missing.is_empty() {
            true => Vec::new().into_iter(),
            false => self.tracker.get_proxies_batch(&missing).await?.into_iter(),
        };
        let answer = |(node, current): (_, Option<_>)| {
            current.unwrap_or_else(|| without(&self.of_tracker, node, fetched.next().unwrap_or_default()))
        };
        Ok(zip(nodes, current).map(answer).collect())
    }

    async fn get_latest_proxies(&self, node: &NodeId) -> Result<Vec<Route>, TrackerError> {
        let routes = self.tracker.get_latest_proxies(node).await?;
        Ok(without(&self.of_tracker, node, routes))
    }

    async fn report_unreachable(&self, node: &NodeId, proxy_id: &str) -> Result<(), TrackerError> {
        self.of_copy.add(node, proxy_id, Some(self.view.clock(now())));
        self.of_tracker.add(node, proxy_id, None);
        self.tracker.report_unreachable(node, proxy_id).await
    }
}

type PlaceCall = Pin<Box<dyn Future<Output = Result<v1::WatchPlace, GrpcStatus>> + Send>>;

/// Connects the machine to gRPC.
struct Shell {
    machine: Machine,
    addrs: Vec<TrackerAddr>,
    channels: Vec<Channel>,
    probe_limit: Duration,
    watch: Option<(Channel, Messages)>,
    probe: Option<PlaceCall>,
}

impl Shell {
    async fn run(mut self, stats: channel::Sender<Stats>) {
        loop {
            while let Some(transmit) = self.machine.poll_transmit(now()) {
                self.send(transmit);
            }
            while let Some(event) = self.machine.poll_event() {
                self.log(&event);
            }
            stats.send_replace(self.machine.stats());
            let timeout = self.machine.next_timeout();
            let input = select! {
                input = next_message(&mut self.watch) => input,
                input = next_place(&mut self.probe) => input,
                () = sleep_until(timeout.into()) => {
                    self.machine.handle_timeout(now());
                    continue;
                }
            };
            self.machine.handle(now(), input);
        }
    }

    fn send(&mut self, transmit: Transmit) {
        self.probe = None;
        match transmit {
            Transmit::Watch { tracker, request } => {
                self.watch = self
                    .channels
                    .get(tracker)
                    .map(|channel| (channel.clone(), watch(channel, request)));
            }
            Transmit::Probe => {
                if let Some((channel, _)) = &self.watch {
                    let (channel, limit) = (channel.clone(), self.probe_limit);
                    self.probe = Some(Box::pin(async move { place(&channel, limit).await }));
                }
            }
            Transmit::Close => self.watch = None,
        }
    }

    fn log(&self, event: &Event) {
        let addr = |tracker: &usize| self.addrs.get(*tracker).map(ToString::to_string).unwrap_or_default();
        match event {
            Event::Following { tracker } => info!("following {}", addr(tracker)),
            Event::Ended { tracker, reason } => warn!("the watch of {} has ended: {reason}", addr(tracker)),
        }
    }
}

/// Waits for the next message of the watch. Without a watch, never returns.
async fn next_message(watch: &mut Option<(Channel, Messages)>) -> Input {
    let Some((_, messages)) = watch else {
        return std::future::pending().await;
    };
    let ended = match messages.next().await {
        Some(Ok(message)) => return Input::Message(message),
        Some(Err(status)) => status.to_string(),
        None => "the tracker ended the stream".to_owned(),
    };
    *watch = None;
    Input::Ended(ended)
}

/// Waits for the answer to the probe. Without a probe, never returns.
async fn next_place(probe: &mut Option<PlaceCall>) -> Input {
    let Some(call) = probe else {
        return std::future::pending().await;
    };
    let place = call.await.ok();
    *probe = None;
    Input::Probed(place)
}
