//! Reports the listener's nodes in a session.

use std::sync::Arc;

use nodetracker::NodeId;
use tracing::warn;

use crate::listener::NodeObserver;
use crate::session::ProxySession;

/// Reports the nodes of an [`AgentListener`](crate::listener::AgentListener) to the trackers of a session. Its calls
/// never wait.
#[derive(Debug, Clone)]
pub struct ReportNodes(pub Arc<ProxySession>);

impl NodeObserver for ReportNodes {
    fn connected(&self, node: &NodeId) {
        if let Err(full) = self.0.node_up(node) {
            warn!("node {node} is not reported: {full}");
        }
    }

    fn seen(&self, node: &NodeId) {
        // Costs as much as `node_seen`, and also reports a node that found no room before. `connected` has logged that.
        let _ = self.0.node_up(node);
    }

    fn gone(&self, node: &NodeId) {
        self.0.node_down(node);
    }
}
