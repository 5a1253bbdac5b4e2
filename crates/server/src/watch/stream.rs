//! One watch: a snapshot, then the log from its place on.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use nodetracker::{NodeCursor, NodeId, RouteBatch};
use nodetracker_proto::v1;
use nodetracker_proto::v1::watch_change::Change;
use nodetracker_proto::v1::watch_response::Message;

use crate::limits::{MAX_SNAPSHOT_NODES, SNAPSHOT_COPY, WATCH_MESSAGE_SIZE};
use crate::room::Room;
use crate::unary::with_prefix;
use crate::v1::answer::Collector;
use crate::watch::log::{Batch, LostPlace};
use crate::watch::{Entered, Watches};

/// A watch on its way through the stream.
#[derive(Debug)]
pub(super) struct Watch {
    entered: Entered,
    /// The nodes that it is about; all, if there are none.
    nodes: HashSet<NodeId>,
    /// What is built for this watch only needs room.
    room: Room,
    at: At,
}

#[derive(Debug)]
enum At {
    /// No place yet.
    Beginning,
    Snapshot {
        /// The place in the log at which the changes begin that the snapshot may lack.
        place: u64,
        /// Where the next part of the table begins, if there is one.
        from: Option<NodeCursor>,
        /// Messages of the part before.
        ready: VecDeque<Bytes>,
    },
    Changes {
        /// The number of the next change to be sent.
        place: u64,
    },
}

impl Watch {
    pub(super) fn new(entered: Entered, nodes: Vec<NodeId>, room: Room) -> Self {
        Self {
            entered,
            nodes: nodes.into_iter().collect(),
            room,
            at: At::Beginning,
        }
    }

    /// The next message, encoded. It is asked for once the client had room for the one before, and may be given up while it
    /// waits.
    pub(super) async fn next(&mut self) -> Bytes {
        let watches = Arc::clone(&self.entered.watches);
        loop {
            match &mut self.at {
                At::Beginning => {
                    // The sender lives as long as `watches`. The follower goes on while this watch is counted.
                    let _ = watches.stage.subscribe().wait_for(|stage| stage.following).await;
                    // The place first and the table after, so that no change falls in between.
                    self.at = At::Snapshot {
                        place: watches.log.next(),
                        from: Some(NodeCursor::default()),
                        ready: VecDeque::new(),
                    };
                }
                At::Snapshot { place, from, ready } => {
                    if let Some(message) = ready.pop_front() {
                        return message;
                    }
                    let Some(cursor) = from else {
                        let end = v1::WatchSnapshotEnd {
                            generation: watches.generation.get(),
                            sequence: *place - 1,
                        };
                        self.at = At::Changes { place: *place };
                        return encoded(Message::SnapshotEnd(end));
                    };
                    // Let the other calls of this worker have their turn.
                    tokio::task::yield_now().await;
                    let mut share = self.room.take().await;
                    let part = Snapshot::new(&watches);
                    (*ready, *from) = if self.nodes.is_empty() {
                        part.of_all(cursor)
                    } else {
                        (part.of_some(&self.nodes), None)
                    };
                    for message in ready {
                        *message = share.hold(std::mem::take(message));
                    }
                }
                At::Changes { place } => match watches.log.at(*place) {
                    Ok(None) => watches.log.changed(*place).await,
                    Ok(Some(batch)) => {
                        if self.nodes.is_empty() {
                            *place = batch.end();
                            return batch.encoded.clone();
                        }
                        let mut share = self.room.take().await;
                        *place = batch.end();
                        if let Some(part) = part_of(&batch, &self.nodes) {
                            return share.hold(encoded(Message::Changes(part)));
                        }
                    }
                    Err(LostPlace) => {
                        self.at = At::Beginning;
                        return encoded(Message::LostPlace(v1::WatchLostPlace {}));
                    }
                },
            }
        }
    }
}

/// A message of the stream, as it is sent.
pub(super) fn encoded(message: Message) -> Bytes {
    with_prefix(&v1::WatchResponse { message: Some(message) })
}

/// Messages of a snapshot on their way.
struct Snapshot<'t> {
    watches: &'t Watches,
    collector: Collector<'t>,
    nodes: Vec<v1::NodeRoutes>,
    messages: VecDeque<Bytes>,
}

impl<'t> Snapshot<'t> {
    fn new(watches: &'t Watches) -> Self {
        Self {
            watches,
            collector: Collector::new(&watches.table),
            nodes: Vec::new(),
            messages: VecDeque::new(),
        }
    }

    /// A part of the table, and where the next one begins.
    fn of_all(mut self, from: &NodeCursor) -> (VecDeque<Bytes>, Option<NodeCursor>) {
        let page = self.watches.table.nodes_page(from, SNAPSHOT_COPY, |_, _| true);
        for node in &page.nodes {
            self.add(&node.node, &node.routes);
        }
        (self.finish(), page.next)
    }

    /// Those of some nodes that have routes.
    fn of_some(mut self, nodes: &HashSet<NodeId>) -> VecDeque<Bytes> {
        let nodes: Vec<NodeId> = nodes.iter().cloned().collect();
        let mut batch = RouteBatch::new();
        self.watches.table.get_proxies_batch(&nodes, &mut batch);
        for (node, routes) in nodes.iter().zip(batch.iter()) {
            self.add(node, routes);
        }
        self.finish()
    }

    fn add(&mut self, node: &NodeId, routes: &[nodetracker::Route]) {
        let node = self.collector.node(node, routes);
        // All of its proxies may have been removed since.
        if node.routes.is_empty() {
            return;
        }
        self.nodes.push(node);
        if self.nodes.len() == MAX_SNAPSHOT_NODES || self.collector.size() >= WATCH_MESSAGE_SIZE {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let collector = std::mem::replace(&mut self.collector, Collector::new(&self.watches.table));
        let message = v1::WatchSnapshot {
            proxies: collector.watched(),
            nodes: std::mem::take(&mut self.nodes),
        };
        self.messages.push_back(encoded(Message::Snapshot(message)));
    }

    fn finish(mut self) -> VecDeque<Bytes> {
        if !self.nodes.is_empty() {
            self.flush();
        }
        self.messages
    }
}

/// What of a batch is about some nodes, or proxies; `None` where nothing is.
fn part_of(batch: &Batch, nodes: &HashSet<NodeId>) -> Option<v1::WatchChanges> {
    let mut part = v1::WatchChanges::default();
    // Where a proxy of the batch is in the part.
    let mut indexes = HashMap::new();
    for (change, node) in batch.message.changes.iter().zip(&batch.nodes) {
        if node.as_ref().is_some_and(|node| !nodes.contains(node)) {
            continue;
        }
        let mut change = change.clone();
        if let Some(Change::Node(change)) = &mut change.change {
            for route in change.routes.iter_mut().flat_map(|node| &mut node.routes) {
                let known = route.proxy_index;
                route.proxy_index = *indexes.entry(known).or_insert_with(|| {
                    part.proxies.push(batch.message.proxies[known as usize].clone());
                    part.proxies.len() as u32 - 1
                });
            }
        }
        part.changes.push(change);
    }
    (!part.changes.is_empty()).then_some(part)
}

#[cfg(test)]
mod tests {
    use std::pin::{Pin, pin};
    use std::task::{Context, Waker};

    use nodetracker::{Proxy, RouteTable};

    use super::*;
    use crate::generation::Generation;

    /// Whether a future is still not ready once it has had its turn a few times.
    fn waits(mut future: Pin<&mut impl Future>) -> bool {
        let cx = &mut Context::from_waker(Waker::noop());
        (0..10).all(|_| future.as_mut().poll(cx).is_pending())
    }

    #[tokio::test]
    async fn what_is_built_for_one_watch_waits_for_room() {
        let table = Arc::new(RouteTable::new());
        let node: NodeId = "node".parse().unwrap();
        let proxy = Proxy {
            id: "proxy",
            cluster_name: "cluster",
            addr: "proxy:1",
        };
        table.report_node(&node, &proxy).unwrap();
        let watches = Watches::new(Arc::clone(&table), Generation::draw());
        watches.stage.send_modify(|stage| stage.following = true);
        for nodes in [vec![], vec![node.clone()]] {
            let of_some = !nodes.is_empty();
            let room = Room::default();
            let mut watch = Watch::new(watches.enter().unwrap(), nodes, room.clone());
            let take_all = || std::iter::from_fn(|| room.try_take()).collect::<Vec<_>>();

            let taken = take_all();
            {
                let mut snapshot = pin!(watch.next());
                assert!(waits(snapshot.as_mut()));
                drop(taken);
                snapshot.await;
            }
            // Its end.
            watch.next().await;

            // A change is the same bytes for all, unless it is only a part of them.
            watches.log.push(Batch {
                first: watches.log.next(),
                nodes: vec![Some(node.clone())],
                message: v1::WatchChanges {
                    changes: vec![v1::WatchChange::default()],
                    proxies: vec![],
                },
                encoded: Bytes::new(),
            });
            let taken = take_all();
            let mut changes = pin!(watch.next());
            assert_eq!(waits(changes.as_mut()), of_some);
            drop(taken);
        }
    }
}
