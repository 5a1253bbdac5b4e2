//! The latest answers of a tracker, for a proxy that asks on every dial.
//!
//! A [`RouteCache`] asks the tracker that it is given, and keeps the answers for a short time. Several look-ups of one
//! node at the same time make one call. If no tracker answers, the cache returns an older answer for a bounded time,
//! and marks the answer as stale. An error is never kept. But after a call without an answer, look-ups with an older
//! answer return it at once for a second. After this second, one look-up at a time tries the trackers again.
//!
//! The size is bounded by the crate moka, which keeps the nodes that are asked for often. Ages are decided here,
//! on tokio's clock, because an expired answer is still of use if no tracker answers.
//!
//! [`RouteCache::follow`] watches trackers, and drops a node's answer when any of the trackers sends a change of the
//! node. Without `follow`, a fresh answer is at most [`ttl`](CacheConfig::ttl) old. With `follow`, a fresh answer is
//! some milliseconds old while the watch of the answer's tracker lasts.
//!
//! On Linux, ages leave out the time for which the machine was suspended. So after the machine wakes up, an answer from
//! before may count as fresh for the rest of its time.
//!
//! ```
//! use std::sync::Arc;
//!
//! use nodetracker::RouteTable;
//! use nodetracker_client::cache::{CacheConfig, Freshness, RouteCache};
//! use nodetracker_client::tracker::NodeTracker;
//! use nodetracker_client::{NodeId, Proxy};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Any tracker, for example a `TrackerClient`.
//! let cache = RouteCache::new(Arc::new(RouteTable::new()), CacheConfig::default());
//! let node: NodeId = "550e8400-e29b-41d4-a716-446655440000".parse()?;
//! let proxy = Proxy { id: "proxy-1", cluster_name: "main", addr: "10.0.0.1:3080" };
//! cache.add_nodes(&proxy, std::slice::from_ref(&node)).await?;
//!
//! let answer = cache.look_up(&node).await?;
//! assert_eq!(answer.routes[0].proxy.addr(), "10.0.0.1:3080");
//! if let Freshness::Stale(age) = answer.freshness {
//!     println!("no tracker answers, this is {age:?} old");
//! }
//! # Ok(())
//! # }
//! ```

mod flights;
mod follow;
mod outage;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::fmt;
use std::iter::zip;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use nodetracker::{NodeId, Proxy, ProxyDetails};
use tokio::time::Instant;

use crate::cache::flights::{Flight, Flights, SharedFetch};
use crate::cache::outage::Outage;
use crate::clock::bounded;
use crate::complaints::Complaints;
use crate::tracker::{NodeTracker, Route, TrackerError};

pub use follow::Follower;

/// The bounds of a [`RouteCache`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheConfig {
    /// The most nodes whose answers are kept.
    pub capacity: u64,
    /// How long an answer with routes is fresh.
    pub ttl: Duration,
    /// How long an answer without routes is fresh.
    pub negative_ttl: Duration,
    /// The greatest age of an answer with routes that is returned because no tracker answers. If this is not more than
    /// `ttl`, no stale answer is returned. Answers without routes are never returned after `negative_ttl`.
    pub max_stale: Duration,
    /// How long a route is left out after [`RouteCache::report_unreachable`], unless its proxy refreshes it. With
    /// several trackers, the refresh may have reached only another tracker, or may have the time of another clock. So a
    /// route may return before its proxy refreshes it, or only after this time.
    pub complaint_ttl: Duration,
}

impl Default for CacheConfig {
    /// 100,000 nodes; answers are fresh for 10 s, without routes for 1 s; complaints last 30 s. Stale answers are up to
    /// 5 minutes old, the trackers' default keep-alive interval.
    fn default() -> Self {
        Self {
            capacity: 100_000,
            ttl: Duration::from_secs(10),
            negative_ttl: Duration::from_secs(1),
            max_stale: Duration::from_secs(300),
            complaint_ttl: Duration::from_secs(30),
        }
    }
}

/// The answer to a look-up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The routes, most recently refreshed first. Shared with other look-ups of the node.
    pub routes: Arc<[Route]>,
    /// Whether the answer is fresh.
    pub freshness: Freshness,
}

/// Whether an answer is fresh, or how old it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// No older than the bounds of the [`CacheConfig`] allow.
    Fresh,
    /// No tracker answered this look-up, or a look-up a moment before. The cache asked for this answer this long ago.
    Stale(Duration),
}

/// Figures of a cache, counted since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct CacheStats {
    /// Look-ups with a fresh answer in the cache.
    pub hits: u64,
    /// Look-ups without a fresh answer in the cache.
    pub misses: u64,
    /// Calls to the tracker.
    pub calls: u64,
    /// Calls that failed.
    pub failures: u64,
    /// Look-ups with a stale answer.
    pub stale_answers: u64,
    /// Invalidations: of a node whose answer was in the cache, of a proxy, or of all nodes.
    pub invalidations: u64,
    /// Reports of unreachable nodes.
    pub complaints: u64,
    /// Nodes whose answers are in the cache at present, roughly.
    pub nodes: u64,
}

#[derive(Debug, Default)]
struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    calls: AtomicU64,
    failures: AtomicU64,
    stale_answers: AtomicU64,
    invalidations: AtomicU64,
    complaints: AtomicU64,
}

fn add_one(counter: &AtomicU64) {
    // Relaxed, here and in `stats`: the counters guard no data.
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A tracker's answer.
#[derive(Debug)]
struct Kept {
    routes: Arc<[Route]>,
    /// When the tracker was asked.
    asked: Instant,
    /// A complaint ends the freshness. Then the answer is useful only if no tracker answers.
    has_complaint: AtomicBool,
}

impl Kept {
    fn is_fresh(&self, config: &CacheConfig, now: Instant) -> bool {
        let ttl = if self.routes.is_empty() {
            config.negative_ttl
        } else {
            config.ttl
        };
        // Relaxed: a look-up that any synchronization orders after the complaint reads `true`.
        now.duration_since(self.asked) < ttl && !self.has_complaint.load(Ordering::Relaxed)
    }
}

/// The latest answers of a tracker.
///
/// As a [`NodeTracker`], a cache looks up in its answers, returns stale answers without a mark, and passes writes to
/// its tracker. A write through the cache drops the answers of its nodes, before and after the tracker's call. If the
/// caller drops the future of a write, the write still completes. Clones share one cache.
#[derive(Clone)]
pub struct RouteCache(Arc<Inner>);

struct Inner {
    tracker: Arc<dyn NodeTracker>,
    config: CacheConfig,
    kept: moka::sync::Cache<NodeId, Arc<Kept>>,
    flights: Flights,
    outage: Outage,
    complaints: Complaints,
    counters: Counters,
}

impl fmt::Debug for RouteCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = f.debug_struct("RouteCache");
        text.field("config", &self.0.config).field("stats", &self.stats());
        text.finish_non_exhaustive()
    }
}

/// What the cache has for a look-up.
enum Found {
    Fresh(Arc<[Route]>),
    /// No tracker answered a moment ago.
    Stale(Answer),
    InFlight(SharedFetch),
}

impl RouteCache {
    /// Creates an empty cache before a tracker. The tracker's calls must end by themselves, as the calls of a client
    /// with deadlines do. Look-ups and writes need a tokio runtime.
    #[must_use]
    pub fn new(tracker: Arc<dyn NodeTracker>, config: CacheConfig) -> Self {
        Self(Arc::new(Inner {
            tracker,
            config,
            kept: moka::sync::Cache::builder()
                .max_capacity(config.capacity)
                .time_to_live(bounded(config.max_stale.max(config.ttl).max(config.negative_ttl)))
                .support_invalidation_closures()
                .build(),
            flights: Flights::default(),
            outage: Outage::default(),
            complaints: Complaints::new(config.complaint_ttl),
            counters: Counters::default(),
        }))
    }

    /// Returns the routes of a node.
    ///
    /// # Errors
    ///
    /// The tracker's error, if the cache has no answer that is new enough.
    pub async fn look_up(&self, node: &NodeId) -> Result<Answer, TrackerError> {
        let (found, flight) = self.0.find(node);
        Inner::fetch(&self.0, flight.into_iter().collect());
        self.0.answer(node, found).await
    }

    /// Drops the answer of a node, because its routes changed. The cache does not keep the answers of calls that are in
    /// flight.
    pub fn invalidate(&self, node: &NodeId) {
        let inner = &*self.0;
        inner.flights.forget(node);
        if inner.kept.remove(node).is_some() {
            add_one(&inner.counters.invalidations);
        }
    }

    /// Drops all answers.
    pub fn invalidate_all(&self) {
        let inner = &*self.0;
        inner.flights.forget_all();
        inner.kept.invalidate_all();
        add_one(&inner.counters.invalidations);
    }

    /// Reports that a proxy was dialled for a node, and does not hold the node's tunnel. The cache leaves the route out
    /// for [`complaint_ttl`](CacheConfig::complaint_ttl), or until the proxy refreshes the route. If the cache has no
    /// answer with the route, a refresh after the next answer counts. The cache passes the report to the tracker. It
    /// leaves out routes of at most 10,000 nodes.
    ///
    /// # Errors
    ///
    /// The tracker's error. The cache leaves the route out nevertheless.
    pub async fn report_unreachable(&self, node: &NodeId, proxy_id: &str) -> Result<(), TrackerError> {
        let inner = &*self.0;
        add_one(&inner.counters.complaints);
        // The answers of calls that are in flight are not kept.
        inner.flights.forget(node);
        let kept = inner.kept.get(node);
        let route = kept
            .as_ref()
            .and_then(|kept| kept.routes.iter().find(|route| route.proxy.id() == proxy_id));
        inner
            .complaints
            .add(node, proxy_id, route.map(|route| route.last_refresh));
        // The next look-up asks whether the route was refreshed.
        if let Some(kept) = &kept {
            kept.has_complaint.store(true, Ordering::Relaxed);
        }
        inner.tracker.report_unreachable(node, proxy_id).await
    }

    /// Returns the figures.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        let Inner { counters, kept, .. } = &*self.0;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CacheStats {
            hits: get(&counters.hits),
            misses: get(&counters.misses),
            calls: get(&counters.calls),
            failures: get(&counters.failures),
            stale_answers: get(&counters.stale_answers),
            invalidations: get(&counters.invalidations),
            complaints: get(&counters.complaints),
            nodes: kept.entry_count(),
        }
    }

    /// Makes a write, in a task of its own: if the returned future is dropped, the write still ends. Drops the answers
    /// that the write changes when the future is dropped, and when the write ends. So an answer that a look-up got
    /// before the write is not kept.
    async fn write(
        &self,
        changed: Changed,
        call: impl Future<Output = Result<(), TrackerError>> + Send + 'static,
    ) -> Result<(), TrackerError> {
        let invalidation = |changed| Invalidation {
            cache: self.clone(),
            changed,
        };
        let (at_end, at_drop) = (invalidation(changed.clone()), invalidation(changed));
        let task = tokio::spawn(async move {
            let _at_end = at_end;
            call.await
        });
        let result = task.await;
        // The task has dropped the answers.
        at_drop.disarm();
        result.unwrap_or_else(|error| Err(TrackerError::Internal(format!("the call has ended: {error}"))))
    }

    /// Drops all answers with a route through one of these proxies.
    fn invalidate_proxies(&self, ids: Arc<HashSet<String>>) {
        let inner = &*self.0;
        inner.flights.forget_all();
        let has_route =
            move |_: &NodeId, kept: &Arc<Kept>| kept.routes.iter().any(|route| ids.contains(route.proxy.id()));
        // An error cannot happen: the cache supports closures.
        let _ = inner.kept.invalidate_entries_if(has_route);
        // Otherwise, the closures stay until the next look-up.
        inner.kept.run_pending_tasks();
        add_one(&inner.counters.invalidations);
    }
}

/// What a write changes.
#[derive(Clone)]
enum Changed {
    Nodes(Arc<[NodeId]>),
    Proxies(Arc<HashSet<String>>),
    Nothing,
}

/// Drops the answers that a write changes, when it is dropped.
struct Invalidation {
    cache: RouteCache,
    changed: Changed,
}

impl Invalidation {
    fn disarm(mut self) {
        self.changed = Changed::Nothing;
    }
}

impl Drop for Invalidation {
    fn drop(&mut self) {
        match &self.changed {
            Changed::Nodes(nodes) => nodes.iter().for_each(|node| self.cache.invalidate(node)),
            Changed::Proxies(ids) => self.cache.invalidate_proxies(Arc::clone(ids)),
            Changed::Nothing => {}
        }
    }
}

impl Inner {
    /// Returns a fresh answer, a stale answer during an outage, or the result of a call in flight. If there is no call
    /// for the node yet, also returns the flight that [`fetch`](Self::fetch) has to make.
    fn find(&self, node: &NodeId) -> (Found, Option<Flight>) {
        if let Some(kept) = self.kept.get(node)
            && kept.is_fresh(&self.config, Instant::now())
        {
            add_one(&self.counters.hits);
            return (Found::Fresh(Arc::clone(&kept.routes)), None);
        }
        add_one(&self.counters.misses);
        if self.outage.may_be(Instant::now())
            && let Some(answer) = self.stale(node)
            && !self.outage.begins_trial(Instant::now())
        {
            add_one(&self.counters.stale_answers);
            return (Found::Stale(answer), None);
        }
        let (result, flight) = self.flights.join(node);
        (Found::InFlight(result), flight)
    }

    /// Asks the tracker once for the nodes of all flights, and keeps the answers, unless they were invalidated
    /// meanwhile. The call is a task of its own, so it ends even if every look-up that waits for it is dropped.
    fn fetch(inner: &Arc<Self>, flights: Vec<Flight>) {
        if flights.is_empty() {
            return;
        }
        let inner = Arc::clone(inner);
        tokio::spawn(async move {
            let asked = Instant::now();
            add_one(&inner.counters.calls);
            let result = match &flights[..] {
                [flight] => inner.tracker.get_proxies(&flight.node).await.map(|routes| vec![routes]),
                flights => {
                    let nodes: Vec<_> = flights.iter().map(|flight| flight.node.clone()).collect();
                    inner.tracker.get_proxies_batch(&nodes).await
                }
            };
            let keep = |node: &NodeId, routes: &Arc<[Route]>| {
                let kept = Kept {
                    routes: Arc::clone(routes),
                    asked,
                    has_complaint: AtomicBool::new(false),
                };
                inner.kept.insert(node.clone(), Arc::new(kept));
            };
            inner.outage.ended(asked, Instant::now(), result.as_ref().err());
            match result {
                Ok(all) => zip(flights, all).for_each(|(flight, routes)| flight.finish(Ok(routes.into()), keep)),
                Err(error) => {
                    add_one(&inner.counters.failures);
                    flights
                        .into_iter()
                        .for_each(|flight| flight.finish(Err(error.clone()), keep));
                }
            }
        });
    }

    /// Waits for the result that was found, and returns the answer.
    async fn answer(&self, node: &NodeId, found: Found) -> Result<Answer, TrackerError> {
        let fetched = match found {
            Found::Fresh(routes) => Ok(routes),
            Found::Stale(answer) => return Ok(answer),
            Found::InFlight(result) => result.await,
        };
        match fetched {
            Ok(routes) => Ok(self.reachable(node, routes, Freshness::Fresh)),
            // A tracker has answered.
            Err(error @ (TrackerError::InvalidArgument(_) | TrackerError::PermissionDenied(_))) => Err(error),
            Err(error) => {
                let answer = self.stale(node).ok_or(error)?;
                add_one(&self.counters.stale_answers);
                Ok(answer)
            }
        }
    }

    /// The answer without the routes that are reported as unreachable.
    fn reachable(&self, node: &NodeId, routes: Arc<[Route]>, freshness: Freshness) -> Answer {
        let is_reported = self.complaints.about(node);
        let routes = if routes.iter().any(&is_reported) {
            routes.iter().filter(|route| !is_reported(route)).cloned().collect()
        } else {
            routes
        };
        Answer { routes, freshness }
    }

    fn stale(&self, node: &NodeId) -> Option<Answer> {
        let kept = self.kept.get(node)?;
        let age = kept.asked.elapsed();
        // An old answer without routes would hide that no tracker answers.
        let max = match kept.routes.is_empty() {
            true => self.config.negative_ttl.min(self.config.max_stale),
            false => self.config.max_stale,
        };
        if age >= max {
            return None;
        }
        Some(self.reachable(node, Arc::clone(&kept.routes), Freshness::Stale(age)))
    }
}

#[async_trait]
impl NodeTracker for RouteCache {
    async fn add_nodes(&self, proxy: &Proxy<'_>, nodes: &[NodeId]) -> Result<(), TrackerError> {
        let (tracker, proxy, nodes) = (
            Arc::clone(&self.0.tracker),
            ProxyDetails::from(*proxy),
            Arc::<[_]>::from(nodes),
        );
        let changed = Changed::Nodes(Arc::clone(&nodes));
        let call = async move {
            let proxy = Proxy {
                id: proxy.id(),
                cluster_name: proxy.cluster_name(),
                addr: proxy.addr(),
            };
            tracker.add_nodes(&proxy, &nodes).await
        };
        self.write(changed, call).await
    }

    async fn get_proxies(&self, node: &NodeId) -> Result<Vec<Route>, TrackerError> {
        Ok(self.look_up(node).await?.routes.to_vec())
    }

    async fn remove_nodes(&self, proxy_id: &str, nodes: &[NodeId]) -> Result<(), TrackerError> {
        let (tracker, id, nodes) = (
            Arc::clone(&self.0.tracker),
            proxy_id.to_owned(),
            Arc::<[_]>::from(nodes),
        );
        let changed = Changed::Nodes(Arc::clone(&nodes));
        self.write(changed, async move { tracker.remove_nodes(&id, &nodes).await })
            .await
    }

    async fn remove_proxy(&self, proxy_id: &str) -> Result<(), TrackerError> {
        let (tracker, id) = (Arc::clone(&self.0.tracker), proxy_id.to_owned());
        let changed = Changed::Proxies(Arc::new([id.clone()].into()));
        self.write(changed, async move { tracker.remove_proxy(&id).await })
            .await
    }

    /// Asks the tracker once for all nodes that are not in the cache.
    async fn get_proxies_batch(&self, nodes: &[NodeId]) -> Result<Vec<Vec<Route>>, TrackerError> {
        let (found, flights): (Vec<_>, Vec<_>) = nodes.iter().map(|node| self.0.find(node)).unzip();
        Inner::fetch(&self.0, flights.into_iter().flatten().collect());
        let mut all = Vec::with_capacity(nodes.len());
        for (node, found) in zip(nodes, found) {
            all.push(self.0.answer(node, found).await?.routes.to_vec());
        }
        Ok(all)
    }

    /// The answer is of a call that began after this call. So if a call is in flight, waits for its end, and then
    /// shares the next call.
    async fn get_latest_proxies(&self, node: &NodeId) -> Result<Vec<Route>, TrackerError> {
        if let Some(earlier) = self.0.flights.present(node) {
            // The next call may succeed also if this call fails.
            let _ = earlier.await;
        }
        let (result, flight) = self.0.flights.join(node);
        Inner::fetch(&self.0, flight.into_iter().collect());
        let routes = result.await?;
        Ok(self.0.reachable(node, routes, Freshness::Fresh).routes.to_vec())
    }

    async fn report_unreachable(&self, node: &NodeId, proxy_id: &str) -> Result<(), TrackerError> {
        Self::report_unreachable(self, node, proxy_id).await
    }
}
