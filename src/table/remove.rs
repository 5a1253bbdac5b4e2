//! Removing routes of one node.

use crate::shard::routes::Change;
use crate::sync::pin;
use crate::table::RouteTable;
use crate::types::node_id::NodeId;
use crate::types::proxy::ProxyRef;

/// # Removing routes
impl RouteTable {
    /// Removes all routes of a node. Returns `true` if [`get_proxies`](Self::get_proxies) would have returned at least
    /// one of them.
    ///
    /// In rare cases a removal needs memory. If there is none, the call removes nothing and returns `false`; the routes
    /// expire.
    pub fn remove_node(&self, node: &NodeId) -> bool {
        self.remove(node, Change::RemoveNode)
    }

    /// Removes the route of a node through one proxy. Returns `true` if [`get_proxies`](Self::get_proxies) would have
    /// returned the route.
    ///
    /// A removal from three routes or more needs memory. If there is none, the call removes nothing and returns
    /// `false`; the route expires.
    pub fn remove_route(&self, node: &NodeId, proxy: ProxyRef) -> bool {
        let guard = pin();
        // The pin covers the removal, too, so the number cannot become another proxy's meanwhile.
        let is_current = self.proxies.reference(proxy.number) == Some(proxy);
        let removed = is_current && self.remove(node, Change::RemoveRoute(proxy.number));
        drop(guard);
        removed
    }

    fn remove(&self, node: &NodeId, what: Change) -> bool {
        let (hash, now) = self.begin(node);
        let guard = pin();
        let valid = self.shards.remove(node, hash, what, &self.scope_at(now, &guard));
        valid > 0
    }
}
