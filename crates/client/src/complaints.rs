//! Routes that look-ups leave out for a while, because a proxy was dialled in vain.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use nodetracker::{MAX_ROUTES_PER_NODE, NodeId};
use tokio::time::Instant;

use crate::clock::bounded;
use crate::tracker::Route;

/// The most nodes with complaints. A complaint about another node then replaces the complaints about the node that was
/// looked up least recently.
const MAX_NODES: u64 = 10_000;

#[derive(Debug)]
pub(crate) struct Complaints {
    ttl: Duration,
    /// The latest last. The cache's clock only frees memory; `at` decides.
    by_node: Cache<NodeId, Arc<[Arc<Complaint>]>>,
    begun: Instant,
    /// Milliseconds from `begun` to the end of the latest complaint. Afterwards, look-ups do not search.
    end: AtomicU64,
}

/// The latest complaint about one route.
#[derive(Debug)]
struct Complaint {
    proxy_id: String,
    at: Instant,
    /// A refresh of the route after this moment ends the complaint. If the complaint came without a moment, the time of
    /// the route in the next answer.
    until_refresh_after: OnceLock<SystemTime>,
}

impl Complaints {
    pub(crate) fn new(ttl: Duration) -> Self {
        let ttl = bounded(ttl);
        Self {
            ttl,
            by_node: Cache::builder()
                .max_capacity(MAX_NODES)
                .eviction_policy(EvictionPolicy::lru())
                .time_to_live(ttl)
                .build(),
            begun: Instant::now(),
            end: AtomicU64::new(0),
        }
    }

    /// Leaves a route out from now on, until the complaint is too old, or the route has a refresh after the given
    /// moment. Without a moment, the time of the route in the next answer counts.
    pub(crate) fn add(&self, node: &NodeId, proxy_id: &str, until_refresh_after: Option<SystemTime>) {
        let now = Instant::now();
        let complaint = Arc::new(Complaint {
            proxy_id: proxy_id.to_owned(),
            at: now,
            until_refresh_after: until_refresh_after.map(OnceLock::from).unwrap_or_default(),
        });
        let add = |entry: Option<moka::Entry<NodeId, Arc<[Arc<Complaint>]>>>| {
            let before = entry.map(moka::Entry::into_value).unwrap_or_default();
            let others = before
                .iter()
                .filter(|other| self.is_current(other, now) && other.proxy_id != proxy_id);
            let others: Vec<_> = others.cloned().collect();
            // A node has no more routes.
            let excess = (others.len() + 1).saturating_sub(MAX_ROUTES_PER_NODE);
            others.into_iter().skip(excess).chain([complaint]).collect()
        };
        self.by_node.entry_by_ref(node).and_upsert_with(add);
        let end = (now + self.ttl).duration_since(self.begun).as_millis();
        // Relaxed, here and below: a look-up that any synchronization orders after this call reads this end.
        let end = u64::try_from(end).unwrap_or(u64::MAX).saturating_add(1);
        self.end.fetch_max(end, Ordering::Relaxed);
    }

    /// Returns whether a route of the node is to be left out.
    pub(crate) fn about(&self, node: &NodeId) -> impl Fn(&Route) -> bool {
        let now = Instant::now();
        let end = Duration::from_millis(self.end.load(Ordering::Relaxed));
        let may_be = now.duration_since(self.begun) < end;
        let complaints = may_be.then(|| self.by_node.get(node)).flatten().unwrap_or_default();
        move |route| {
            let complaint = complaints.iter().find(|one| one.proxy_id == route.proxy.id());
            complaint.is_some_and(|complaint| {
                let then = complaint.until_refresh_after.get_or_init(|| route.last_refresh);
                self.is_current(complaint, now) && route.last_refresh <= *then
            })
        }
    }

    fn is_current(&self, complaint: &Complaint, now: Instant) -> bool {
        now.duration_since(complaint.at) < self.ttl
    }
}

#[cfg(test)]
mod tests {
    use nodetracker::Proxy;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_latest_complaints_of_a_node_count() {
        let complaints = Complaints::new(Duration::from_secs(30));
        let node: NodeId = "node-1".parse().unwrap();
        let ids = Vec::from_iter((0..3 * MAX_ROUTES_PER_NODE).map(|number| format!("proxy-{number}")));
        for id in &ids {
            complaints.add(&node, id, None);
        }
        let left_out = || {
            let is_left_out = complaints.about(&node);
            let route = |id: &&String| Route {
                proxy: Proxy {
                    id,
                    cluster_name: "",
                    addr: "proxy:1",
                }
                .into(),
                last_refresh: SystemTime::UNIX_EPOCH,
            };
            let left_out = ids.iter().filter(|id| is_left_out(&route(id)));
            left_out.cloned().collect::<Vec<_>>()
        };
        assert_eq!(left_out(), ids[2 * MAX_ROUTES_PER_NODE..]);
        tokio::time::advance(Duration::from_secs(30)).await;
        assert_eq!(left_out(), [""; 0]);
    }
}
