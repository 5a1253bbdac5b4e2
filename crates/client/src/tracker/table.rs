//! A table in this process as a [`NodeTracker`].
//!
//! For a program that is its own only tracker, and for tests. Expired routes keep their memory until the table is
//! swept: see [`Sweeper`](nodetracker::Sweeper). The table's own methods have some of the same names, so use the table
//! as a `dyn NodeTracker`.

use std::time::Duration;

use async_trait::async_trait;
use nodetracker::{
    AddError, MAX_TEXT, NodeId, Proxy, RegisterError, ReportNodesError, ResolvedRoute, RouteTable, TextError,
};

use crate::tracker::{NodeTracker, Route, TrackerError};

/// After how long a full table may have room: routes expire, and the sweeper removes them.
const ROOM_AFTER: Duration = Duration::from_secs(10);

/// Every call completes without waiting for I/O. A call occupies the runtime's thread, for a time that grows with
/// the number of nodes.
#[async_trait]
impl NodeTracker for RouteTable {
    async fn add_nodes(&self, proxy: &Proxy<'_>, nodes: &[NodeId]) -> Result<(), TrackerError> {
        self.report_nodes(nodes, proxy)?;
        Ok(())
    }

    async fn get_proxies(&self, node: &NodeId) -> Result<Vec<Route>, TrackerError> {
        Ok(self.resolve(node).into_iter().map(Route::from).collect())
    }

    async fn remove_nodes(&self, proxy_id: &str, nodes: &[NodeId]) -> Result<(), TrackerError> {
        check_proxy_id(proxy_id)?;
        // An unknown proxy has no routes.
        if let Some(proxy) = self.find_proxy(proxy_id) {
            for node in nodes {
                self.remove_route(node, proxy);
            }
        }
        Ok(())
    }

    async fn remove_proxy(&self, proxy_id: &str) -> Result<(), TrackerError> {
        check_proxy_id(proxy_id)?;
        self.remove_proxy_by_id(proxy_id);
        Ok(())
    }
}

/// Checks the ID of a proxy that may be unknown.
fn check_proxy_id(id: &str) -> Result<(), TrackerError> {
    let reason = match id.len() {
        0 => TextError::Empty,
        1..=MAX_TEXT => return Ok(()),
        len => TextError::TooLong { len },
    };
    Err(TrackerError::InvalidArgument(format!("proxy ID {reason}")))
}

impl From<ResolvedRoute> for Route {
    fn from(route: ResolvedRoute) -> Self {
        Self {
            proxy: route.details,
            last_refresh: route.last_refresh,
        }
    }
}

impl From<ReportNodesError> for TrackerError {
    fn from(error: ReportNodesError) -> Self {
        let message = error.to_string();
        let exhausted = |message| TrackerError::ResourceExhausted {
            message,
            retry_after: Some(ROOM_AFTER),
        };
        match error {
            ReportNodesError::Proxy(RegisterError::Invalid { .. }) => TrackerError::InvalidArgument(message),
            ReportNodesError::Proxy(
                RegisterError::TooManyProxies { .. }
                | RegisterError::TooManyProxiesOfClient { .. }
                | RegisterError::TooMuchText { .. },
            ) => exhausted(message),
            ReportNodesError::Nodes(nodes) => match nodes.error {
                AddError::TooManyRoutes { .. }
                | AddError::TooManyRoutesOfProxy { .. }
                | AddError::TooManyRoutesOfClient { .. }
                | AddError::TooMuchText { .. }
                | AddError::OutOfMemory => exhausted(message),
                _ => TrackerError::Internal(message),
            },
            _ => TrackerError::Internal(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_table_is_a_limit_that_may_pass() {
        let table = RouteTable::builder().max_routes(2).build().unwrap();
        let proxy = Proxy {
            id: "proxy-1",
            cluster_name: "",
            addr: "10.0.0.1:3080",
        };
        let nodes: Vec<NodeId> = (0..3).map(|number| format!("node-{number}").parse().unwrap()).collect();
        let full = TrackerError::ResourceExhausted {
            message: "the table holds its maximum of 2 routes, after 2 nodes".into(),
            retry_after: Some(ROOM_AFTER),
        };
        let tracker: &dyn NodeTracker = &table;
        assert_eq!(tracker.add_nodes(&proxy, &nodes).await, Err(full));
    }
}
