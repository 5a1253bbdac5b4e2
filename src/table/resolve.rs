//! A node's routes together with their proxies' details.

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
    /// The proxy's details.
    pub details: ProxyDetails,
    /// When this route was last refreshed, to the millisecond.
    pub last_refresh: SystemTime,
}

impl RouteTable {
    /// [`get_proxies`](Self::get_proxies), and [`proxy`](Self::proxy) for each route, in one step under one epoch pin.
    /// A proxy that is removed meanwhile is returned with its details, or not at all.
    ///
    /// Up to two routes need no allocation if their proxies' strings have at most 24 bytes.
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
