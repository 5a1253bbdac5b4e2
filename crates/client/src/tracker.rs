//! The common API of node trackers.
//!
//! RFD 47 asks for a tracker *behind a common API*, so that a proxy can use different implementations. [`NodeTracker`]
//! is this API:
//!
//! | implementation | where the routes are |
//! | --- | --- |
//! | [`RouteTable`](nodetracker::RouteTable) | in this process |
//! | [`TrackerClient`](crate::client::TrackerClient) | in trackers, which the client calls by gRPC |
//! | [`RouteCache`](crate::cache::RouteCache) | the latest answers of another implementation |
//! | [`Replica`](crate::replica::Replica) | in a copy of a tracker's table |
//!
//! To write an implementation of your own, implement the four calls that have no default, and run [`conformance`] on
//! it.

pub mod conformance;
mod table;

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use nodetracker::{NodeId, Proxy, ProxyDetails};

/// A route from a node to the proxy that holds the node's tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The proxy that holds the tunnel.
    pub proxy: ProxyDetails,
    /// When a proxy last reported this route, to the millisecond, on the tracker's clock.
    pub last_refresh: SystemTime,
}

/// A node tracker: records which proxies hold the tunnels to which nodes.
///
/// Most calls can be repeated: a repeated call has the effect of one call. But trackers count reports of unreachable
/// nodes, and a repeated [`remove_proxy`](Self::remove_proxy) may remove a proxy that has registered again meanwhile.
#[async_trait]
pub trait NodeTracker: Send + Sync {
    /// Records, or refreshes, the routes of nodes through one proxy. Registers the proxy if it is unknown; its cluster
    /// and address apply to all of its routes from now on.
    ///
    /// An invalid argument changes nothing. After any other error, a part of the nodes may have been added.
    async fn add_nodes(&self, proxy: &Proxy<'_>, nodes: &[NodeId]) -> Result<(), TrackerError>;

    /// Returns the routes of a node, most recently refreshed first. An unknown node has no routes, which is no error.
    async fn get_proxies(&self, node: &NodeId) -> Result<Vec<Route>, TrackerError>;

    /// Removes the routes of nodes through one proxy. Missing routes are no error.
    async fn remove_nodes(&self, proxy_id: &str, nodes: &[NodeId]) -> Result<(), TrackerError>;

    /// Removes a proxy with all its routes. An unknown proxy is no error.
    async fn remove_proxy(&self, proxy_id: &str) -> Result<(), TrackerError>;

    /// Reports that a proxy was dialled for a node, and does not hold the node's tunnel. The route stays: a complaint
    /// is no proof. The default implementation drops the report.
    async fn report_unreachable(&self, node: &NodeId, proxy_id: &str) -> Result<(), TrackerError> {
        let _ = (node, proxy_id);
        Ok(())
    }

    /// Returns the present routes of a node from a tracker, and not from a cache. The default implementation calls
    /// [`get_proxies`](Self::get_proxies).
    async fn get_latest_proxies(&self, node: &NodeId) -> Result<Vec<Route>, TrackerError> {
        self.get_proxies(node).await
    }

    /// Returns the routes of many nodes, in the order of the nodes.
    async fn get_proxies_batch(&self, nodes: &[NodeId]) -> Result<Vec<Vec<Route>>, TrackerError> {
        let mut all = Vec::with_capacity(nodes.len());
        for node in nodes {
            all.push(self.get_proxies(node).await?);
        }
        Ok(all)
    }
}

/// Why a call on a tracker failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrackerError {
    /// An argument cannot be used. The same call fails again, on every tracker.
    #[error("invalid argument: {0}")]
    InvalidArgument(String),
    /// The tracker does not let this caller make the call.
    #[error("permission denied: {0}")]
    PermissionDenied(String),
    /// A limit of the tracker is reached.
    #[error("a limit of the tracker is reached: {message}")]
    ResourceExhausted {
        /// Which limit, in the tracker's words.
        message: String,
        /// After how long the same call may succeed; `None` if waiting does not help.
        retry_after: Option<Duration>,
    },
    /// No tracker can be reached, or the tracker stops.
    #[error("no tracker is available: {0}")]
    Unavailable(String),
    /// The call took longer than its deadline. The tracker may have done the call, or may still do it.
    #[error("the deadline of {0:?} passed")]
    DeadlineExceeded(Duration),
    /// The tracker failed in another way. The text of a remote tracker begins with the name of the gRPC status code.
    #[error("the tracker failed: {0}")]
    Internal(String),
}
