//! A client's copy of the table, kept up to date by the messages of a watch.

use std::collections::{HashMap, HashSet};

use nodetracker_proto::v1;
use nodetracker_proto::v1::ProxyChangeReason;
use nodetracker_proto::v1::node_id::Id;
use nodetracker_proto::v1::watch_change::Change;
use nodetracker_proto::v1::watch_response::Message;
use uuid::Uuid;

/// A node of the copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    /// The part of the table that the node belongs to.
    part: u32,
    /// The registrations of the proxies that the node has routes through, newest first; never empty.
    pub(crate) routes: Vec<u64>,
}

/// A copy of the table, or of some of its nodes.
#[derive(Debug, Default)]
pub(crate) struct Replica {
    pub(crate) nodes: HashMap<String, Node>,
    pub(crate) proxies: HashMap<u64, v1::Proxy>,
    /// Where a new watch can resume; `None` until the snapshot is complete.
    pub(crate) place: Option<v1::WatchPlace>,
    /// For each part that is sent again: the nodes that were not sent yet.
    unsent_nodes: HashMap<u32, HashSet<String>>,
    /// If the proxies are sent again: the registrations that were not sent yet.
    unsent_proxies: HashSet<u64>,
}

impl Replica {
    /// Does what a message says.
    pub(crate) fn apply(&mut self, message: &Message) {
        match message {
            Message::Snapshot(snapshot) => {
                for node in &snapshot.nodes {
                    self.set_node(node, snapshot.part, &snapshot.proxies);
                }
            }
            Message::SnapshotEnd(end) => {
                self.place = Some(v1::WatchPlace {
                    generation: end.generation,
                    sequence: end.sequence,
                });
            }
            Message::Changes(changes) => {
                for change in &changes.changes {
                    self.change(change, &changes.proxies);
                    self.reach(change.sequence);
                }
            }
            Message::KeepAlive(keep_alive) => self.reach(keep_alive.sequence),
            Message::LostPlace(_) => *self = Self::default(),
        }
    }

    /// Changes that come between the messages of a snapshot give the client no place.
    fn reach(&mut self, sequence: u64) {
        if let Some(place) = &mut self.place {
            place.sequence = sequence;
        }
    }

    fn change(&mut self, change: &v1::WatchChange, proxies: &[v1::WatchedProxy]) {
        match &change.change {
            Some(Change::Node(node)) => {
                if let Some(routes) = &node.routes {
                    self.set_node(routes, node.part, proxies);
                }
            }
            Some(Change::Proxy(change)) => {
                let Some(proxy) = &change.proxy else { return };
                if change.reason() == ProxyChangeReason::Removed {
                    self.remove_proxy(proxy.registration);
                } else {
                    self.set_proxy(proxy);
                }
            }
            Some(Change::Resync(resync)) => self.resync(resync),
            // A newer tracker's change.
            None => {}
        }
    }

    fn resync(&mut self, resync: &v1::WatchResync) {
        match (resync.part, resync.is_complete) {
            (Some(part), false) => {
                let nodes = self.nodes.iter().filter(|(_, node)| node.part == part);
                let names = nodes.map(|(name, _)| name.clone()).collect();
                self.unsent_nodes.insert(part, names);
            }
            (Some(part), true) => {
                for name in self.unsent_nodes.remove(&part).unwrap_or_default() {
                    self.nodes.remove(&name);
                }
            }
            (None, false) => self.unsent_proxies = self.proxies.keys().copied().collect(),
            (None, true) => {
                for registration in std::mem::take(&mut self.unsent_proxies) {
                    self.remove_proxy(registration);
                }
            }
        }
    }

    fn set_node(&mut self, node: &v1::NodeRoutes, part: u32, proxies: &[v1::WatchedProxy]) {
        let name = name_of(node.node.as_ref());
        if let Some(unsent) = self.unsent_nodes.get_mut(&part) {
            unsent.remove(&name);
        }
        let mut routes = Vec::new();
        for route in &node.routes {
            if let Some(proxy) = proxies.get(route.proxy_index as usize) {
                self.set_proxy(proxy);
                routes.push(proxy.registration);
            }
        }
        if routes.is_empty() {
            self.nodes.remove(&name);
        } else {
            self.nodes.insert(name, Node { part, routes });
        }
    }

    fn set_proxy(&mut self, proxy: &v1::WatchedProxy) {
        self.unsent_proxies.remove(&proxy.registration);
        let details = proxy.proxy.clone().unwrap_or_default();
        self.proxies.insert(proxy.registration, details);
    }

    fn remove_proxy(&mut self, registration: u64) {
        self.unsent_proxies.remove(&registration);
        self.proxies.remove(&registration);
        self.nodes.retain(|_, node| {
            node.routes.retain(|route| *route != registration);
            !node.routes.is_empty()
        });
    }
}

/// Returns a node as text.
pub(crate) fn name_of(node: Option<&v1::NodeId>) -> String {
    match node.and_then(|node| node.id.as_ref()) {
        Some(Id::Uuid(bytes)) => Uuid::from_slice(bytes).unwrap_or_default().to_string(),
        Some(Id::Name(name)) => name.clone(),
        None => String::new(),
    }
}
