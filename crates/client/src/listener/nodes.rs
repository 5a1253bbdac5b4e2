//! Which nodes have a tunnel to this proxy.

use std::collections::HashMap;
use std::sync::Arc;

use nodetracker::NodeId;
use parking_lot::Mutex;

use crate::transport::Tunnel;
use crate::transport::slots::{Slot, Slots};

/// The most tunnels of one node. An agent needs one tunnel. Others may be of other agents on the node, or of earlier
/// processes of the agent whose end the proxy has not noticed yet.
pub const MAX_TUNNELS: usize = 8;

/// Learns which nodes have a tunnel to this proxy. For each node, the calls are in the order of the events.
///
/// The calls come from the tasks of agents, some under a lock. So they must not block, and must not call the listener.
pub trait NodeObserver: Send + Sync + 'static {
    /// The node has its first tunnel.
    fn connected(&self, node: &NodeId);
    /// A tunnel of the node is alive. The listener calls this for each ping and each pong of the agent.
    fn seen(&self, node: &NodeId);
    /// The node's last tunnel has ended, or its agent leaves.
    fn gone(&self, node: &NodeId);
}

/// Observes nothing.
impl NodeObserver for () {
    fn connected(&self, _: &NodeId) {}
    fn seen(&self, _: &NodeId) {}
    fn gone(&self, _: &NodeId) {}
}

pub(super) struct Nodes {
    tunnels: Mutex<HashMap<NodeId, Vec<Arc<dyn Tunnel>>>>,
    observer: Box<dyn NodeObserver>,
    /// How many tunnels there are.
    held: Slots,
}

impl Nodes {
    pub(super) fn new(observer: Box<dyn NodeObserver>) -> Self {
        Self {
            tunnels: Mutex::default(),
            observer,
            held: Slots::new(usize::MAX),
        }
    }

    /// Adds a tunnel of a node. Returns `None` if the node has its maximum of tunnels.
    pub(super) fn hold(self: &Arc<Self>, node: &NodeId, tunnel: &Arc<dyn Tunnel>) -> Option<Held> {
        let mut nodes = self.tunnels.lock();
        let tunnels = nodes.entry(node.clone()).or_default();
        if tunnels.len() == MAX_TUNNELS {
            return None;
        }
        let slot = self.held.try_take(0)?;
        tunnels.push(Arc::clone(tunnel));
        if tunnels.len() == 1 {
            self.observer.connected(node);
        }
        Some(Held {
            nodes: Arc::clone(self),
            node: node.clone(),
            tunnel: Arc::clone(tunnel),
            _slot: slot,
        })
    }

    /// Reports each node as connected once more.
    pub(super) fn report_again(&self) {
        self.tunnels
            .lock()
            .keys()
            .for_each(|node| self.observer.connected(node));
    }

    /// Waits until no node has a tunnel.
    pub(super) async fn until_empty(&self) {
        self.held.until_at_most(0).await;
    }

    /// The tunnels of a node, the newest first.
    pub(super) fn tunnels(&self, node: &NodeId) -> Vec<Arc<dyn Tunnel>> {
        self.tunnels
            .lock()
            .get(node)
            .into_iter()
            .flatten()
            .rev()
            .cloned()
            .collect()
    }

    pub(super) fn ids(&self) -> Vec<NodeId> {
        self.tunnels.lock().keys().cloned().collect()
    }

    pub(super) fn len(&self) -> usize {
        self.tunnels.lock().len()
    }
}

/// A tunnel of a node; dropping it removes the tunnel.
pub(super) struct Held {
    nodes: Arc<Nodes>,
    node: NodeId,
    tunnel: Arc<dyn Tunnel>,
    _slot: Slot,
}

impl Held {
    pub(super) fn seen(&self) {
        self.nodes.observer.seen(&self.node);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut nodes = self.nodes.tunnels.lock();
        let Some(tunnels) = nodes.get_mut(&self.node) else {
            return;
        };
        tunnels.retain(|tunnel| !Arc::ptr_eq(tunnel, &self.tunnel));
        if tunnels.is_empty() {
            nodes.remove(&self.node);
            self.nodes.observer.gone(&self.node);
        }
    }
}
