//! Complaints: proxies report that another proxy, dialled for a node, did not hold the node's tunnel.
//!
//! A complaint is no proof, so it changes no route. `AdminService.Explain` shows it to operators.
//!
//! The complaints are in a table of fixed size, without probing: a complaint replaces the complaint in its slot. So a
//! flood of complaints costs nothing but other complaints.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use ahash::RandomState;
use nodetracker::NodeId;

use crate::limits::COMPLAINTS;

/// The latest complaint about a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Complaint {
    pub(crate) node: NodeId,
    /// The proxy that did not hold the tunnel.
    pub(crate) proxy_id: String,
    /// The proxy that complained last; may be empty.
    pub(crate) reporter_id: String,
    pub(crate) time: SystemTime,
    /// The complaints about the route up to this complaint, without a pause of a keep-alive interval.
    pub(crate) count: u64,
    at: Instant,
}

/// Boxed, because nearly all slots are empty.
type Slot = Option<Box<Complaint>>;

/// The latest complaints.
#[derive(Debug)]
pub(crate) struct Complaints {
    slots: Box<[Mutex<Slot>]>,
    hasher: RandomState,
    total: AtomicU64,
}

impl Default for Complaints {
    fn default() -> Self {
        Self {
            slots: (0..COMPLAINTS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            total: AtomicU64::new(0),
        }
    }
}

impl Complaints {
    fn slot(&self, node: &NodeId, proxy_id: &str) -> MutexGuard<'_, Slot> {
        let slot = self.hasher.hash_one((node, proxy_id)) as usize % self.slots.len();
        // No critical section here leaves the data half changed.
        self.slots[slot].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a complaint. Forgets earlier complaints about the route that are older than `keep_alive`.
    pub(crate) fn add(&self, node: NodeId, proxy_id: String, reporter_id: String, keep_alive: Duration) {
        // Relaxed, here and in `total`: the counter guards no data.
        self.total.fetch_add(1, Ordering::Relaxed);
        let mut slot = self.slot(&node, &proxy_id);
        let before = slot
            .as_ref()
            .filter(|complaint| complaint.is_about(&node, &proxy_id, keep_alive));
        *slot = Some(Box::new(Complaint {
            count: before.map_or(0, |complaint| complaint.count) + 1,
            node,
            proxy_id,
            reporter_id,
            time: SystemTime::now(),
            at: Instant::now(),
        }));
    }

    /// Returns the latest complaint about a route, if it is not older than `keep_alive`.
    pub(crate) fn get(&self, node: &NodeId, proxy_id: &str, keep_alive: Duration) -> Option<Complaint> {
        let slot = self.slot(node, proxy_id);
        let complaint = slot
            .as_deref()
            .filter(|complaint| complaint.is_about(node, proxy_id, keep_alive));
        complaint.cloned()
    }

    /// Returns the number of complaints since the tracker started.
    pub(crate) fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
}

impl Complaint {
    fn is_about(&self, node: &NodeId, proxy_id: &str, keep_alive: Duration) -> bool {
        self.node == *node && self.proxy_id == proxy_id && self.at.elapsed() <= keep_alive
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP_ALIVE: Duration = Duration::from_secs(300);

    fn add(complaints: &Complaints, node: &NodeId, reporter: &str, keep_alive: Duration) {
        complaints.add(node.clone(), "proxy-1".to_owned(), reporter.to_owned(), keep_alive);
    }

    #[test]
    fn the_latest_complaint_about_a_route_has_the_count_of_all() {
        let complaints = Complaints::default();
        let [node, other] = ["node-1", "node-2"].map(|name| name.parse::<NodeId>().unwrap());
        let count = |node, proxy_id| {
            complaints
                .get(node, proxy_id, KEEP_ALIVE)
                .map(|complaint| complaint.count)
        };
        assert_eq!(count(&node, "proxy-1"), None);
        add(&complaints, &node, "proxy-2", KEEP_ALIVE);
        add(&complaints, &node, "proxy-3", KEEP_ALIVE);
        let latest = complaints.get(&node, "proxy-1", KEEP_ALIVE).unwrap();
        assert_eq!((latest.reporter_id.as_str(), latest.count), ("proxy-3", 2));
        assert_eq!((count(&other, "proxy-1"), count(&node, "proxy-2")), (None, None));
        // Every earlier complaint is older than no time.
        assert_eq!(complaints.get(&node, "proxy-1", Duration::ZERO), None);
        add(&complaints, &node, "proxy-2", Duration::ZERO);
        assert_eq!(count(&node, "proxy-1"), Some(1));
        assert_eq!(complaints.total(), 3);
    }

    #[test]
    fn a_flood_of_complaints_takes_no_more_than_the_slots() {
        let complaints = Complaints::default();
        let nodes: Vec<NodeId> = (0..3 * COMPLAINTS)
            .map(|number| format!("node-{number}").parse().unwrap())
            .collect();
        nodes.iter().for_each(|node| add(&complaints, node, "", KEEP_ALIVE));
        let kept = nodes
            .iter()
            .filter(|node| complaints.get(node, "proxy-1", KEEP_ALIVE).is_some())
            .count();
        assert!(kept > COMPLAINTS / 2 && kept <= COMPLAINTS, "{kept}");
        let last = nodes.last().unwrap();
        assert!(complaints.get(last, "proxy-1", KEEP_ALIVE).is_some());
    }
}
