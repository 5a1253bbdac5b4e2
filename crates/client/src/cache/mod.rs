//! The latest answers of a tracker, for a proxy that asks on every dial.
//!
//! A [`RouteCache`] asks the tracker that it is given, and keeps the answers for a short time. Several look-ups of one
//! node at the same time make one call. If no tracker answers, the cache returns an older answer for a bounded time,
//! and marks the answer as stale. An error is never kept: the next look-up makes the next call.
//!
//! The size is bounded by the crate moka, which keeps the nodes that are asked for often. Ages are decided here,
//! on tokio's clock, because an expired answer is still of use if no tracker answers.
//!
//! [`RouteCache::follow`] watches a tracker, and drops a node's answer when the tracker sends a change of the node.
//! Without `follow`, a fresh answer is at most [`ttl`](CacheConfig::ttl) old. With `follow`, an answer of the followed
//! tracker is some milliseconds old while the watch lasts. If the cache asks another tracker, which has not received
//! the change yet, the cache keeps the former answer for up to `ttl`.
//!
//! On Linux, ages leave out the time for which the machine was suspended.
//!
//! ```no_run
//! use std::sync::Arc;
//! use nodetracker_client::NodeId;
//! use nodetracker_client::cache::{CacheConfig, Freshness, RouteCache};
//! use nodetracker_client::tracker::NodeTracker;
//!
//! # async fn example(tracker: Arc<dyn NodeTracker>) -> Result<(), Box<dyn std::error::Error>> {
//! let cache = RouteCache::new(tracker, CacheConfig::default());
//! let node: NodeId = "550e8400-e29b-41d4-a716-446655440000".parse()?;
//! let answer = cache.look_up(&node).await?;
//! if let Freshness::Stale(age) = answer.freshness {
//!     println!("no tracker answers, this is {age:?} old");
//! }
//! for route in answer.routes.iter() {
//!     println!("dial {}", route.proxy.addr());
//! }
//! # Ok(())
//! # }
//! ```

mod flights;
mod follow;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use nodetracker::{NodeId, Proxy};
use tokio::time::Instant;

use crate::cache::flights::{Fetched, FlightGuard, Flights};
use crate::complaints::Complaints;
use crate::tracker::{NodeTracker, Route, TrackerError};

pub use follow::Follower;

/// The most calls that one batch makes at the same time.
const MAX_BATCH_CALLS: usize = 32;

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
    /// The greatest age of an answer that is returned because no tracker answers. If this is not more than `ttl`, no
    /// stale answer is returned.
    pub max_stale: Duration,
    /// How long a route is left out after [`RouteCache::report_unreachable`], unless its proxy refreshes it.
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
    /// No tracker answered the look-up. The cache asked for this answer so long ago.
    Stale(Duration),
}

/// Figures of a cache, counted since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct CacheStats {
    /// Look-ups with a fresh answer in the cache.
    pub hits: u64,
    /// Look-ups that waited for a call.
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
/// its tracker. A write through the cache drops the answers of its nodes. Clones share one cache.
#[derive(Clone)]
pub struct RouteCache(Arc<Inner>);

struct Inner {
    tracker: Arc<dyn NodeTracker>,
    config: CacheConfig,
    kept: moka::sync::Cache<NodeId, Arc<Kept>>,
    flights: Flights,
    complaints: Complaints,
    counters: Counters,
}

impl RouteCache {
    /// Creates an empty cache before a tracker. The tracker's calls must end by themselves, as the calls of a client
    /// with deadlines do. Look-ups need a tokio runtime.
    #[must_use]
    pub fn new(tracker: Arc<dyn NodeTracker>, config: CacheConfig) -> Self {
        Self(Arc::new(Inner {
            tracker,
            config,
            kept: moka::sync::Cache::builder()
                .max_capacity(config.capacity)
                .time_to_live(config.max_stale.max(config.ttl).max(config.negative_ttl))
                .support_invalidation_closures()
                .build(),
            flights: Flights::default(),
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
        let inner = &*self.0;
        if let Some(kept) = inner.kept.get(node)
            && kept.is_fresh(&inner.config, Instant::now())
        {
            add_one(&inner.counters.hits);
            return Ok(inner.answer(node, Arc::clone(&kept.routes), Freshness::Fresh));
        }
        add_one(&inner.counters.misses);
        let fetch = |guard| Inner::fetch(Arc::clone(&self.0), node.clone(), guard);
        match inner.flights.join(node, fetch).await {
            Ok(routes) => Ok(inner.answer(node, routes, Freshness::Fresh)),
            // A tracker has answered.
            Err(error @ (TrackerError::InvalidArgument(_) | TrackerError::PermissionDenied(_))) => Err(error),
            Err(error) => inner.stale(node).ok_or(error),
        }
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
    /// for [`complaint_ttl`](CacheConfig::complaint_ttl), or until the proxy refreshes the route. The cache passes the
    /// report to the tracker. It leaves out routes of at most 10,000 nodes.
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

    /// Drops all answers with a route through a proxy.
    fn invalidate_proxy(&self, id: &str) {
        let inner = &*self.0;
        inner.flights.forget_all();
        let id = id.to_owned();
        let has_route = move |_: &NodeId, kept: &Arc<Kept>| kept.routes.iter().any(|route| route.proxy.id() == id);
        // An error cannot happen: the cache supports closures.
        let _ = inner.kept.invalidate_entries_if(has_route);
        add_one(&inner.counters.invalidations);
    }
}

impl Inner {
    /// Asks the tracker, and keeps the answer, unless the answer was invalidated meanwhile.
    async fn fetch(inner: Arc<Self>, node: NodeId, guard: FlightGuard) -> Fetched {
        let asked = Instant::now();
        add_one(&inner.counters.calls);
        let result = inner.tracker.get_proxies(&node).await.map(Arc::<[Route]>::from);
        if result.is_err() {
            add_one(&inner.counters.failures);
        }
        guard.finish(|| {
            if let Ok(routes) = &result {
                let kept = Kept {
                    routes: Arc::clone(routes),
                    asked,
                    has_complaint: AtomicBool::new(false),
                };
                inner.kept.insert(node, Arc::new(kept));
            }
        });
        result
    }

    /// The answer without the routes that are reported as unreachable.
    fn answer(&self, node: &NodeId, routes: Arc<[Route]>, freshness: Freshness) -> Answer {
        let is_reported = |route: &Route| self.complaints.has(node, route);
        let routes = if routes.iter().any(is_reported) {
            routes.iter().filter(|route| !is_reported(route)).cloned().collect()
        } else {
            routes
        };
        Answer { routes, freshness }
    }

    fn stale(&self, node: &NodeId) -> Option<Answer> {
        let kept = self.kept.get(node)?;
        let age = kept.asked.elapsed();
        if age >= self.config.max_stale {
            return None;
        }
        add_one(&self.counters.stale_answers);
        Some(self.answer(node, Arc::clone(&kept.routes), Freshness::Stale(age)))
    }
}

#[async_trait]
impl NodeTracker for RouteCache {
    async fn add_nodes(&self, proxy: &Proxy<'_>, nodes: &[NodeId]) -> Result<(), TrackerError> {
        let result = self.0.tracker.add_nodes(proxy, nodes).await;
        nodes.iter().for_each(|node| self.invalidate(node));
        result
    }

    async fn get_proxies(&self, node: &NodeId) -> Result<Vec<Route>, TrackerError> {
        Ok(self.look_up(node).await?.routes.to_vec())
    }

    async fn remove_nodes(&self, proxy_id: &str, nodes: &[NodeId]) -> Result<(), TrackerError> {
        let result = self.0.tracker.remove_nodes(proxy_id, nodes).await;
        nodes.iter().for_each(|node| self.invalidate(node));
        result
    }

    async fn remove_proxy(&self, proxy_id: &str) -> Result<(), TrackerError> {
        let result = self.0.tracker.remove_proxy(proxy_id).await;
        self.invalidate_proxy(proxy_id);
        result
    }

    /// Makes a call for each node that is not in the cache, at most 32 at the same time.
    async fn get_proxies_batch(&self, nodes: &[NodeId]) -> Result<Vec<Vec<Route>>, TrackerError> {
        let calls: Vec<_> = nodes.iter().map(|node| NodeTracker::get_proxies(self, node)).collect();
        stream::iter(calls).buffered(MAX_BATCH_CALLS).try_collect().await
    }

    async fn get_latest_proxies(&self, node: &NodeId) -> Result<Vec<Route>, TrackerError> {
        self.0.flights.forget(node);
        let fetch = |guard| Inner::fetch(Arc::clone(&self.0), node.clone(), guard);
        let routes = self.0.flights.join(node, fetch).await?;
        Ok(self.0.answer(node, routes, Freshness::Fresh).routes.to_vec())
    }

    async fn report_unreachable(&self, node: &NodeId, proxy_id: &str) -> Result<(), TrackerError> {
        Self::report_unreachable(self, node, proxy_id).await
    }
}
