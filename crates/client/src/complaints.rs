//! Routes that look-ups leave out for a while, because a proxy was dialled in vain.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use nodetracker::NodeId;
use tokio::time::Instant;

use crate::tracker::Route;

/// The most nodes with complaints. While so many nodes have current complaints, a complaint about another node leaves
/// no route out.
const MAX_NODES: usize = 10_000;

#[derive(Debug)]
pub(crate) struct Complaints {
    ttl: Duration,
    by_node: RwLock<HashMap<NodeId, Vec<Complaint>>>,
    /// Whether there ever was a complaint. If there was none, look-ups take no lock.
    any: AtomicBool,
}

/// The latest complaint about one route.
#[derive(Debug)]
struct Complaint {
    proxy_id: String,
    at: Instant,
    /// A refresh of the route after this moment ends the complaint; `None` if only time ends the complaint.
    until_refresh_after: Option<SystemTime>,
}

impl Complaints {
    pub(crate) fn new(ttl: Duration) -> Self {
        Self {
            ttl,
            by_node: RwLock::default(),
            any: AtomicBool::new(false),
        }
    }

    /// Leaves a route out from now on, until the complaint is too old, or the route has a refresh after the given
    /// moment.
    pub(crate) fn add(&self, node: &NodeId, proxy_id: &str, until_refresh_after: Option<SystemTime>) {
        let mut by_node = self.by_node.write().unwrap_or_else(PoisonError::into_inner);
        if by_node.len() >= MAX_NODES {
            by_node.retain(|_, complaints| complaints.iter().any(|complaint| self.is_current(complaint)));
        }
        if by_node.len() < MAX_NODES || by_node.contains_key(node) {
            let complaints = by_node.entry(node.clone()).or_default();
            complaints.retain(|complaint| self.is_current(complaint) && complaint.proxy_id != proxy_id);
            complaints.push(Complaint {
                proxy_id: proxy_id.to_owned(),
                at: Instant::now(),
                until_refresh_after,
            });
            // Relaxed, here and below: a look-up that any synchronization orders after this call reads `true`.
            self.any.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a route is to be left out.
    pub(crate) fn has(&self, node: &NodeId, route: &Route) -> bool {
        if !self.any.load(Ordering::Relaxed) {
            return false;
        }
        let by_node = self.by_node.read().unwrap_or_else(PoisonError::into_inner);
        by_node.get(node).into_iter().flatten().any(|complaint| {
            let is_refreshed = complaint
                .until_refresh_after
                .is_some_and(|then| route.last_refresh > then);
            complaint.proxy_id == route.proxy.id() && self.is_current(complaint) && !is_refreshed
        })
    }

    fn is_current(&self, complaint: &Complaint) -> bool {
        complaint.at.elapsed() < self.ttl
    }
}
