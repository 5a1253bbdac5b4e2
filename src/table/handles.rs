//! Handles: adding many nodes, and refreshing their routes without look-ups.

use thiserror::Error;

use crate::error::AddError;
use crate::sync::pin;
use crate::table::RouteTable;
use crate::table::batch::{AddedNodes, GROUP};
use crate::types::handle::RouteHandle;
use crate::types::node_id::NodeId;
use crate::types::proxy::ProxyRef;

/// The result of [`add_nodes_with_handles`](RouteTable::add_nodes_with_handles).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct AddedHandles {
    /// How many routes were inserted and refreshed.
    pub added: AddedNodes,
    /// The handle of each node's route, in the order of the nodes.
    pub handles: Vec<RouteHandle>,
}

/// Why not all nodes of [`add_nodes_with_handles`](RouteTable::add_nodes_with_handles) were added.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{error}, after {} nodes", .handles.len())]
#[non_exhaustive]
pub struct AddHandlesError {
    /// The handles of the nodes that were added, from the first node on. These nodes stay.
    pub handles: Vec<RouteHandle>,
    /// Why the next node was not added.
    #[source]
    pub error: AddError,
}

/// The result of [`refresh_routes`](RouteTable::refresh_routes).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct RefreshedRoutes {
    /// The number of refreshed routes.
    pub refreshed: usize,
    /// The positions of the other handles, in ascending order: their route was removed or has expired, or its record
    /// has moved.
    pub gone: Vec<usize>,
}

/// # Handles
impl RouteTable {
    /// [`add_nodes`](Self::add_nodes) that also returns the handle of each node's route. With the handles,
    /// [`refresh_routes`](Self::refresh_routes) refreshes the routes without their nodes.
    ///
    /// # Errors
    ///
    /// [`AddHandlesError`]: as for `add_nodes`. The error has the handles of the nodes that were added before.
    pub fn add_nodes_with_handles(&self, nodes: &[NodeId], proxy: ProxyRef) -> Result<AddedHandles, AddHandlesError> {
        let mut added = AddedNodes::default();
        let mut handles = Vec::with_capacity(nodes.len());
        match self.add_each(nodes, proxy, &mut added, |handle| handles.push(handle)) {
            Ok(()) => Ok(AddedHandles { added, handles }),
            Err(error) => Err(AddHandlesError { handles, error }),
        }
    }

    /// Refreshes the routes that `handles` name, all of them through `proxy`. Returns the positions of the handles that
    /// are gone: add their nodes again.
    ///
    /// Refreshing by handle is the fastest way to write to the table, because it needs no look-up. If no handle is
    /// gone, the call allocates nothing.
    ///
    /// # Errors
    ///
    /// [`AddError::UnknownProxy`]: the proxy is no longer registered. Routes that were refreshed before stay refreshed.
    pub fn refresh_routes(&self, handles: &[RouteHandle], proxy: ProxyRef) -> Result<RefreshedRoutes, AddError> {
        let mut gone = Vec::new();
        for (nth, group) in handles.chunks(GROUP).enumerate() {
            let guard = pin();
            if !self.proxies().takes_routes(proxy) {
                return Err(AddError::UnknownProxy);
            }
            let scope = self.scope(&guard);
            let mut records = [None; GROUP];
            for (record, handle) in records.iter_mut().zip(group) {
                *record = self.shards().numbered(*handle, &guard);
            }
            for (at, (handle, record)) in group.iter().zip(records).enumerate() {
                let refresh = |record| self.shards().refresh(record, *handle, proxy.number, &scope);
                if !record.is_some_and(refresh) {
                    gone.push(nth * GROUP + at);
                }
            }
        }
        Ok(RefreshedRoutes {
            refreshed: handles.len() - gone.len(),
            gone,
        })
    }
}
