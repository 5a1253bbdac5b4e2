//! A node's routes together with what is known of their proxies.

use std::time::SystemTime;

use smallvec::SmallVec;

use crate::sync::pin;
use crate::table::RouteTable;
use crate::types::node_id::NodeId;
use crate::types::proxy::{ProxyDetails, ProxyRef};

/// A route, as [`RouteTable::resolve`] returns it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedRoute {
    /// The proxy that holds the tunnel.
    pub proxy: ProxyRef,
    /// What is known of it.
    pub details: ProxyDetails,
    /// When this route was last refreshed, to the millisecond.
    pub last_refresh: SystemTime,
}

impl RouteTable {
    /// [`get_proxies`](Self::get_proxies), and [`proxy`](Self::proxy) for each of them, in one step: a proxy that is removed
    /// meanwhile is either there with its details or not at all, and it is one epoch pin for all instead of one for each.
    ///
    /// Nothing is allocated for up to two routes whose proxies' strings have 24 bytes at most.
    #[must_use]
    pub fn resolve(&self, node: &NodeId) -> SmallVec<[ResolvedRoute; 2]> {
        let (hash, now) = self.begin(node);
        let guard = pin();
        let words = self.words_of(node, hash, now, &guard);
        words
            .iter()
            .filter_map(|word| {
                let proxy = self.proxies().reference(word.proxy())?;
                Some(ResolvedRoute {
                    proxy,
                    details: self.proxies().details(proxy, &guard)?,
                    last_refresh: self.time().wall(word.time()),
                })
            })
            .collect()
    }
}
