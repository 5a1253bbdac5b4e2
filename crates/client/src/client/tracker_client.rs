//! [`TrackerClient`]: makes calls on the right trackers, until the calls succeed or must fail.

use std::iter::zip;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use nodetracker::{NodeId, Proxy};
use nodetracker_proto::v1;
use nodetracker_tls::client::ClientConfigError;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::client::batch::{Batch, split};
use crate::client::calls::Call;
use crate::client::config::ClientConfig;
use crate::client::convert;
use crate::client::endpoint::{Deadline, Endpoint};
use crate::client::retry::{Failure, Retries, has_no_answer};
use crate::client::stats::TrackerStats;
use crate::clock::now;
use crate::connect::addr::TrackerAddr;
use crate::connect::{NoTls, WriteTo};
use crate::tracker::{NodeTracker, Route, TrackerError};
use crate::wire;

/// A client of one or several trackers: see the [module](crate::client).
///
/// Clones share one client. A client has one connection for each tracker, and connects when a call or a probe needs the
/// connection. At most 1,024 calls wait for a connection; more calls wait for room. When the last clone is dropped, the
/// probes end.
///
/// If the trackers verify clients, `add_nodes` and `remove_nodes` need a certificate of the same proxy, and
/// `remove_proxy` needs the role `Admin`.
///
/// A call has at most [`ClientConfig::deadline`]. More nodes than fit into one message are sent in several messages,
/// one after the other. If the future of a call is dropped, or its deadline passes, a tracker may still do the call.
/// The tracker may even do a report after a later removal that went over another connection. Such a route expires like
/// any other.
///
/// ```
/// use nodetracker_client::Proxy;
/// use nodetracker_client::client::{ClientConfig, TrackerClient};
/// use nodetracker_client::tracker::NodeTracker;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use nodetracker_server::{Config, Limits, Server};
/// # let config = Config::default().listen_on("127.0.0.1:0");
/// # let table = std::sync::Arc::new(config.table().build()?);
/// # let server = Server::bind_with_limits(&config, table, Limits::default()).await?;
/// # let addr = server.local_addr().to_string();
/// # tokio::spawn(server.run(std::future::pending()));
/// // One tracker or several.
/// let client = TrackerClient::start([addr.parse()?], ClientConfig::default())?;
///
/// let node = "550e8400-e29b-41d4-a716-446655440000".parse()?;
/// let proxy = Proxy { id: "proxy-1", cluster_name: "main", addr: "10.0.0.1:3080" };
/// client.add_nodes(&proxy, &[node]).await?;
///
/// let routes = client.get_proxies(&"550e8400-e29b-41d4-a716-446655440000".parse()?).await?;
/// assert_eq!(routes[0].proxy.addr(), "10.0.0.1:3080");
/// for tracker in client.stats() {
///     println!("{} missed {} writes", tracker.addr, tracker.missed_writes);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct TrackerClient(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    endpoints: Vec<Arc<Endpoint>>,
    config: ClientConfig,
    changed: watch::Sender<()>,
    /// Aborts its tasks when it is dropped.
    _probes: JoinSet<()>,
}

/// Why there is no client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// There is no tracker to ask.
    #[error("no tracker is given")]
    NoTrackers,
    /// An address asks for TLS, and the configuration names no authority to trust.
    #[error(transparent)]
    NoTls(#[from] NoTls),
    /// A key, a certificate or an authority cannot be used.
    #[error(transparent)]
    TlsFiles(#[from] ClientConfigError),
}

impl TrackerClient {
    /// Returns a client, without waiting for a connection. Probes of the trackers begin at once.
    ///
    /// # Errors
    ///
    /// If there is no tracker, or an address needs TLS and the configuration has none.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with its time and I/O enabled.
    pub fn start(trackers: impl IntoIterator<Item = TrackerAddr>, config: ClientConfig) -> Result<Self, ClientError> {
        let trackers: Vec<_> = trackers.into_iter().collect();
        if trackers.is_empty() {
            return Err(ClientError::NoTrackers);
        }
        config.connect.check(&trackers)?;
        let changed = watch::Sender::default();
        let endpoints: Vec<_> = trackers
            .into_iter()
            .map(|addr| Arc::new(Endpoint::new(addr, &config, changed.clone())))
            .collect();
        let probes = endpoints.iter().cloned();
        let probes = probes
            .map(|endpoint| async move { endpoint.probe_forever().await })
            .collect();
        Ok(Self(Arc::new(Inner {
            endpoints,
            config,
            changed,
            _probes: probes,
        })))
    }

    /// Returns the state and the counts of each tracker, in the order in which the trackers were given.
    #[must_use]
    pub fn stats(&self) -> Vec<TrackerStats> {
        self.0.endpoints.iter().map(|endpoint| endpoint.stats()).collect()
    }

    /// Waits until the statistics meet a condition, for example until a tracker has answered a probe. The condition is
    /// checked now, after each probe, and when a tracker becomes healthy or unhealthy.
    pub async fn wait_until(&self, mut condition: impl FnMut(&[TrackerStats]) -> bool) {
        let mut changes = self.0.changed.subscribe();
        while !condition(&self.stats()) {
            // Fails only without a sender, and this client has one.
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    fn deadline(&self) -> Deadline {
        Deadline::after(self.0.config.deadline)
    }

    async fn write<C: Call>(&self, request: C, deadline: Deadline) -> Result<(), TrackerError> {
        match self.0.config.write_to {
            WriteTo::All => self.call_all(request, deadline).await,
            WriteTo::One => {
                let (retries, nearest) = (self.retries(deadline), self.nearest());
                call_one(&nearest, request, retries, deadline).await.map(drop)
            }
        }
    }

    /// Returns the trackers in the order in which reads ask them.
    fn nearest(&self) -> Vec<&Arc<Endpoint>> {
        let mut endpoints: Vec<_> = self.0.endpoints.iter().collect();
        // Cached, because a distance may change during the sort.
        endpoints.sort_by_cached_key(|endpoint| endpoint.distance());
        endpoints
    }

    /// Returns the tracker to ask if the answer of `asked` has no routes. With [`WriteTo::All`], each tracker misses
    /// the routes of the proxies that cannot reach it.
    fn second<'e>(&self, nearest: &[&'e Arc<Endpoint>], asked: &Arc<Endpoint>) -> Option<&'e Arc<Endpoint>> {
        let mut others = nearest.iter().skip_while(|other| !Arc::ptr_eq(other, asked)).skip(1);
        let second = others.find(|other| other.is_healthy())?;
        (self.0.config.write_to == WriteTo::All).then_some(second)
    }

    /// Makes a call on all healthy trackers, or on all trackers if none is healthy.
    async fn call_all<C: Call>(&self, request: C, deadline: Deadline) -> Result<(), TrackerError> {
        let all = &self.0.endpoints;
        let mut endpoints: Vec<_> = all.iter().filter(|endpoint| endpoint.is_healthy()).collect();
        if endpoints.is_empty() {
            endpoints = all.iter().collect();
        }
        let mut retries = self.retries(deadline);
        let mut done = Vec::new();
        loop {
            let attempts = endpoints
                .iter()
                .map(|endpoint| endpoint.attempt(request.clone(), deadline));
            let results = join_all(attempts).await;
            let mut failed = Vec::new();
            for (endpoint, result) in endpoints.into_iter().zip(results) {
                match result {
                    Ok(_) => done.push(endpoint),
                    Err(failure) => failed.push((endpoint, failure)),
                }
            }
            if !done.is_empty() {
                // A tracker that cannot be reached is not asked again if another has done the write.
                failed.retain(|(_, failure)| !has_no_answer(&failure.error));
            }
            if failed.is_empty() {
                let missed = |endpoint: &&Arc<Endpoint>| !done.iter().any(|done| Arc::ptr_eq(done, endpoint));
                all.iter()
                    .filter(missed)
                    .for_each(|endpoint| endpoint.counters.missed_writes.add_one());
                return Ok(());
            }
            endpoints = next_retry(&mut retries, failed).await?;
            if done.is_empty() && !endpoints.iter().any(|endpoint| endpoint.is_healthy()) {
                // The trackers that were healthy have died meanwhile.
                endpoints = all.iter().collect();
            }
        }
    }

    fn retries(&self, deadline: Deadline) -> Retries {
        Retries::new(deadline.at.into_std(), self.0.config.backoff, fastrand::u64(..))
    }
}

/// Makes a call on the first of some trackers that does it. Returns the answer, and the tracker.
async fn call_one<'e, C: Call>(
    endpoints: &[&'e Arc<Endpoint>],
    request: C,
    mut retries: Retries,
    deadline: Deadline,
) -> Result<(C::Reply, &'e Arc<Endpoint>), TrackerError> {
    let mut endpoints = endpoints.to_vec();
    loop {
        let (mut failed, mut internal) = (Vec::new(), None);
        for endpoint in endpoints {
            match endpoint.attempt(request.clone(), deadline).await {
                Ok(reply) => return Ok((reply, endpoint)),
                // Another tracker may do the call.
                Err(Failure { error, .. }) if C::IS_REPEATABLE && matches!(error, TrackerError::Internal(_)) => {
                    internal = Some(error);
                }
                Err(Failure { error, wait: None }) => return Err(error),
                Err(failure) => failed.push((endpoint, failure)),
            }
        }
        match internal {
            Some(error) => return Err(error),
            None => endpoints = next_retry(&mut retries, failed).await?,
        }
    }
}

/// Asks for the routes of some nodes, with as many messages as they need. Returns the tracker that has answered last.
async fn call_batch<'e>(
    endpoints: &[&'e Arc<Endpoint>],
    nodes: &[NodeId],
    retries: &Retries,
    deadline: Deadline,
) -> Result<(Vec<Vec<Route>>, Option<&'e Arc<Endpoint>>), TrackerError> {
    let (mut all, mut asked) = (Vec::with_capacity(nodes.len()), None);
    let mut most = usize::MAX;
    while all.len() < nodes.len() {
        let batch = Batch::first_of(&nodes[all.len()..], most);
        let request = v1::BatchGetProxiesRequest {
            nodes: Some(batch.ids.clone()),
        };
        match call_one(endpoints, request, retries.clone(), deadline).await {
            Ok((reply, endpoint)) => {
                all.extend(convert::batch_routes(&batch, &reply)?);
                asked = Some(endpoint);
            }
            // The answer would have been too large.
            Err(TrackerError::ResourceExhausted { retry_after: None, .. }) if batch.len() > 1 => {
                most = batch.len() / 2;
            }
            Err(error) => return Err(error),
        }
    }
    Ok((all, asked))
}

/// Waits for the next retry of a call, and returns the trackers that it asks again. Fails with an error of the last
/// attempts if the call must not be made again, or if the deadline is too near. Fails, too, if these trackers have had
/// too many repeated attempts.
async fn next_retry<'e>(
    retries: &mut Retries,
    failed: Vec<(&'e Arc<Endpoint>, Failure)>,
) -> Result<Vec<&'e Arc<Endpoint>>, TrackerError> {
    let (mut again, mut longest) = (Vec::new(), Duration::ZERO);
    let mut last = TrackerError::Unavailable("no tracker was asked".to_owned());
    for (endpoint, Failure { error, wait }) in failed {
        let Some(wait) = wait else { return Err(error) };
        // A tracker that answers with a delay limits its repeated attempts itself.
        if !has_no_answer(&error) || endpoint.allows_retry() {
            again.push(endpoint);
            longest = longest.max(wait);
        }
        last = error;
    }
    let begin = retries.next(now(), longest);
    match begin.filter(|_| !again.is_empty()) {
        Some(begin) => {
            sleep_until(Instant::from_std(begin)).await;
            Ok(again)
        }
        None => Err(last),
    }
}

#[async_trait]
impl NodeTracker for TrackerClient {
    async fn add_nodes(&self, proxy: &Proxy<'_>, nodes: &[NodeId]) -> Result<(), TrackerError> {
        let deadline = self.deadline();
        for batch in split(nodes) {
            let request = v1::AddNodesRequest {
                proxy: Some(wire::proxy(proxy)),
                nodes: Some(batch.ids),
            };
            self.write(request, deadline).await?;
        }
        Ok(())
    }

    async fn get_proxies(&self, node: &NodeId) -> Result<Vec<Route>, TrackerError> {
        let request = v1::GetProxiesRequest {
            node: Some(wire::node(node)),
        };
        let (deadline, nearest) = (self.deadline(), self.nearest());
        let (reply, asked) = call_one(&nearest, request.clone(), self.retries(deadline), deadline).await?;
        let routes = convert::routes(reply)?;
        if routes.is_empty()
            && let Some(second) = self.second(&nearest, asked)
            && let Ok(reply) = second.attempt(request, deadline).await
        {
            return convert::routes(reply).or(Ok(routes));
        }
        Ok(routes)
    }

    async fn remove_nodes(&self, proxy_id: &str, nodes: &[NodeId]) -> Result<(), TrackerError> {
        if proxy_id.is_empty() {
            // On the wire, this would mean the routes of all proxies.
            return Err(TrackerError::InvalidArgument("proxy_id is empty".to_owned()));
        }
        let deadline = self.deadline();
        for batch in split(nodes) {
            let request = v1::RemoveNodesRequest {
                nodes: Some(batch.ids),
                proxy_id: proxy_id.to_owned(),
            };
            self.write(request, deadline).await?;
        }
        Ok(())
    }

    async fn remove_proxy(&self, proxy_id: &str) -> Result<(), TrackerError> {
        let request = v1::RemoveProxyRequest {
            proxy_id: proxy_id.to_owned(),
        };
        self.write(request, self.deadline()).await
    }

    async fn report_unreachable(&self, node: &NodeId, proxy_id: &str) -> Result<(), TrackerError> {
        let request = v1::ReportUnreachableRequest {
            node: Some(wire::node(node)),
            proxy_id: proxy_id.to_owned(),
            reporter_id: self.0.config.reporter_id.clone(),
        };
        self.write(request, self.deadline()).await
    }

    async fn get_proxies_batch(&self, nodes: &[NodeId]) -> Result<Vec<Vec<Route>>, TrackerError> {
        let (deadline, nearest) = (self.deadline(), self.nearest());
        let (mut all, asked) = call_batch(&nearest, nodes, &self.retries(deadline), deadline).await?;
        let empty = zip(0.., &all).filter(|(_, routes)| routes.is_empty());
        let empty: Vec<usize> = empty.map(|(at, _)| at).collect();
        if !empty.is_empty()
            && let Some(second) = asked.and_then(|asked| self.second(&nearest, asked))
        {
            let nodes: Vec<_> = empty.iter().map(|&at| nodes[at].clone()).collect();
            if let Ok((found, _)) = call_batch(&[second], &nodes, &Retries::none(), deadline).await {
                zip(empty, found).for_each(|(at, routes)| all[at] = routes);
            }
        }
        Ok(all)
    }
}
