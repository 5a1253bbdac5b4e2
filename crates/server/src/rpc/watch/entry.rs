//! The entries of the change log, as they are built.

use bytes::Bytes;
use nodetracker::{LostChanges, NodeId, ProxyRef, Route, RouteTable};
use nodetracker_proto::v1;
use nodetracker_proto::v1::watch_change::Change;
use nodetracker_proto::v1::watch_response::Message;

use crate::convert::encode::{self, RouteCollector};
use crate::grpc::frame;
use crate::limits::WATCH_MESSAGE_SIZE;
use crate::rpc::watch::Watches;
use crate::rpc::watch::change_log::LogEntry;

/// A log entry under construction.
pub(super) struct EntryBuilder<'t> {
    collector: RouteCollector<'t>,
    first: u64,
    changes: Vec<v1::WatchChange>,
    nodes: Vec<Option<(usize, NodeId)>>,
    begins_resync: bool,
}

impl<'t> EntryBuilder<'t> {
    pub(super) fn new(table: &'t RouteTable, first: u64) -> Self {
        Self {
            collector: RouteCollector::new(table),
            first,
            changes: Vec::new(),
            nodes: Vec::new(),
            begins_resync: false,
        }
    }

    /// Returns the number of the next change.
    pub(super) fn next(&self) -> u64 {
        self.first + self.changes.len() as u64
    }

    pub(super) fn is_full(&self) -> bool {
        self.collector.size() >= WATCH_MESSAGE_SIZE
    }

    fn push(&mut self, node: Option<(usize, NodeId)>, change: Change) {
        self.changes.push(v1::WatchChange {
            sequence: self.next(),
            change: Some(change),
        });
        self.nodes.push(node);
    }

    pub(super) fn node(&mut self, node: &NodeId, reason: v1::NodeChangeReason, routes: &[Route]) {
        let part = self.collector.table().part_of(node);
        let change = v1::WatchNodeChange {
            routes: Some(self.collector.node(node, routes)),
            reason: reason.into(),
            part: part as u32,
        };
        self.push(Some((part, node.clone())), Change::Node(change));
    }

    pub(super) fn resync(&mut self, lost: LostChanges, is_complete: bool) {
        self.begins_resync |= !is_complete;
        let part = match lost {
            LostChanges::OfPart(part) => Some(part as u32),
            LostChanges::OfProxies => None,
        };
        self.push(None, Change::Resync(v1::WatchResync { part, is_complete }));
    }

    pub(super) fn proxy_removed(&mut self, proxy: ProxyRef, id: &str) {
        let last = v1::Proxy {
            proxy_id: id.into(),
            ..v1::Proxy::default()
        };
        self.proxy(proxy, last, v1::ProxyChangeReason::Removed);
    }

    pub(super) fn proxy_moved(&mut self, proxy: ProxyRef) {
        // If the proxy is gone, its removal is a change of its own.
        if let Some(details) = self.collector.table().proxy(proxy) {
            self.proxy(proxy, encode::proxy(details), v1::ProxyChangeReason::Moved);
        }
    }

    pub(super) fn proxy(&mut self, reference: ProxyRef, proxy: v1::Proxy, reason: v1::ProxyChangeReason) {
        let change = v1::WatchProxyChange {
            proxy: Some(v1::WatchedProxy {
                registration: reference.to_bits(),
                proxy: Some(proxy),
            }),
            reason: reason.into(),
        };
        self.push(None, Change::Proxy(change));
    }

    /// Appends the entry to the log, unless the entry is empty. Returns its encoded size.
    pub(super) fn finish(self, watches: &Watches) -> usize {
        if self.changes.is_empty() {
            return 0;
        }
        let message = v1::WatchChanges {
            proxies: self.collector.watched_proxies(),
            changes: self.changes,
        };
        let (message, encoded) = encode_changes(message);
        let size = encoded.len();
        watches.log.push(LogEntry {
            message,
            encoded,
            nodes: self.nodes,
            begins_resync: self.begins_resync,
            first: self.first,
        });
        size
    }
}

/// Encodes changes as the message that all watches send. Returns the changes too.
fn encode_changes(changes: v1::WatchChanges) -> (v1::WatchChanges, Bytes) {
    let message = v1::WatchResponse {
        message: Some(Message::Changes(changes)),
    };
    let encoded = frame::encode(&message);
    let Some(Message::Changes(changes)) = message.message else {
        unreachable!("the message has changes")
    };
    (changes, encoded)
}
