//! One watch: a snapshot, then the log from its place on.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::vec::IntoIter;

use bytes::Bytes;
use nodetracker::{NodeCursor, NodeId, NodeRoutes, RouteBatch, RouteTable};
use nodetracker_proto::v1;
use nodetracker_proto::v1::watch_change::Change;
use nodetracker_proto::v1::watch_response::Message;

use crate::convert::encode::Collector;
use crate::grpc::frame;
use crate::grpc::send_budget::SendBudget;
use crate::limits::{MAX_SNAPSHOT_NODES, SNAPSHOT_COPY, WATCH_MESSAGE_SIZE};
use crate::rpc::watch::Entered;
use crate::rpc::watch::change_log::{Batch, LostPlace};

/// A watch on its way through the stream.
#[derive(Debug)]
pub(super) struct Watch {
    entered: Entered,
    /// The nodes that it is about; all, if there are none.
    nodes: HashSet<NodeId>,
    /// Pays for the messages that are built for this watch alone.
    budget: SendBudget,
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
        /// What is left of the part that was copied last.
        copied: IntoIter<NodeRoutes>,
    },
    Changes {
        /// The number of the next change to be sent.
        place: u64,
    },
}

impl Watch {
    pub(super) fn new(entered: Entered, nodes: Vec<NodeId>, budget: SendBudget) -> Self {
        Self {
            entered,
            nodes: nodes.into_iter().collect(),
            budget,
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
                        copied: IntoIter::default(),
                    };
                }
                At::Snapshot { place, from, copied } => {
                    if copied.len() == 0 && from.is_none() {
                        let end = v1::WatchSnapshotEnd {
                            generation: watches.instance_id.get(),
                            sequence: *place - 1,
                        };
                        self.at = At::Changes { place: *place };
                        return encoded(Message::SnapshotEnd(end));
                    }
                    // Let the other calls of this worker have their turn.
                    tokio::task::yield_now().await;
                    let mut reservation = self.budget.reserve().await;
                    if copied.len() == 0
                        && let Some(cursor) = from
                    {
                        let part;
                        (part, *from) = if self.nodes.is_empty() {
                            let page = watches.table.nodes_page(cursor, SNAPSHOT_COPY, |_, _| true);
                            (page.nodes, page.next)
                        } else {
                            (routes_of(&self.nodes, &watches.table), None)
                        };
                        *copied = part.into_iter();
                    }
                    if let Some(part) = snapshot_of(copied, &watches.table) {
                        return reservation.charge(encoded(Message::Snapshot(part)));
                    }
                }
                At::Changes { place } => match watches.log.at(*place) {
                    Ok(None) => watches.log.changed(*place).await,
                    Ok(Some(batch)) if self.nodes.is_empty() => {
                        *place = batch.end();
                        return batch.encoded.clone();
                    }
                    Ok(Some(batch)) => {
                        // While the watch waits for its budget, the log may drop the batch.
                        drop(batch);
                        let mut reservation = self.budget.reserve().await;
                        if let Ok(Some(batch)) = watches.log.at(*place) {
                            *place = batch.end();
                            if let Some(part) = part_of(&batch, &self.nodes) {
                                return reservation.charge(encoded(Message::Changes(part)));
                            }
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
fn encoded(message: Message) -> Bytes {
    frame::encode(&v1::WatchResponse { message: Some(message) })
}

/// Those of some nodes that have routes.
fn routes_of(nodes: &HashSet<NodeId>, table: &RouteTable) -> Vec<NodeRoutes> {
    let nodes: Vec<NodeId> = nodes.iter().cloned().collect();
    let mut batch = RouteBatch::new();
    table.get_proxies_batch(&nodes, &mut batch);
    let with_routes = nodes
        .into_iter()
        .zip(batch.iter())
        .filter(|(_, routes)| !routes.is_empty());
    with_routes
        .map(|(node, routes)| NodeRoutes {
            node,
            routes: routes.into(),
        })
        .collect()
}

/// Takes as many nodes as one message of a snapshot has; `None` where there are none whose proxies are still there.
fn snapshot_of(copied: &mut IntoIter<NodeRoutes>, table: &RouteTable) -> Option<v1::WatchSnapshot> {
    let mut collector = Collector::new(table);
    let mut nodes = Vec::new();
    while nodes.len() < MAX_SNAPSHOT_NODES
        && collector.size() < WATCH_MESSAGE_SIZE
        && let Some(NodeRoutes { node, routes }) = copied.next()
    {
        let node = collector.node(&node, &routes);
        // All of its proxies may have been removed since.
        if !node.routes.is_empty() {
            nodes.push(node);
        }
    }
    (!nodes.is_empty()).then(|| v1::WatchSnapshot {
        proxies: collector.watched(),
        nodes,
    })
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

    use nodetracker::Proxy;
    use prost::Message as _;

    use super::*;
    use crate::grpc::frame::PREFIX;
    use crate::rpc::instance_id::InstanceId;
    use crate::rpc::watch::Watches;

    /// Whether a future is still not ready once it has had its turn a few times.
    fn waits(mut future: Pin<&mut impl Future>) -> bool {
        let cx = &mut Context::from_waker(Waker::noop());
        (0..10).all(|_| future.as_mut().poll(cx).is_pending())
    }

    fn decoded(message: &Bytes) -> Message {
        let message = v1::WatchResponse::decode(&message[PREFIX..]).unwrap();
        message.message.unwrap()
    }

    #[tokio::test]
    async fn a_snapshot_is_built_message_by_message() {
        let table = Arc::new(RouteTable::new());
        let long = "x".repeat(200);
        let nodes: Vec<NodeId> = (0..100)
            .map(|number| format!("node-{number}").parse().unwrap())
            .collect();
        let mut proxies = Vec::new();
        for (number, node) in nodes.iter().enumerate() {
            for route in 0..64 {
                let proxy = Proxy {
                    id: &format!("{long}-{number}-{route}"),
                    cluster_name: &long,
                    addr: &format!("{long}:1"),
                };
                let proxy = table.register_proxy(&proxy).unwrap();
                table.add_node(node, proxy).unwrap();
                proxies.push(proxy);
            }
        }
        let watches = Watches::new(Arc::clone(&table), InstanceId::draw());
        watches.stage.send_modify(|stage| stage.following = true);
        let begin = || {
            Watch::new(
                watches.enter(nodes.len()).unwrap(),
                nodes.clone(),
                SendBudget::default(),
            )
        };
        let (mut whole, mut cut) = (begin(), begin());
        let mut counts = Vec::new();
        while let message = whole.next().await
            && let Message::Snapshot(part) = decoded(&message)
        {
            assert!(message.len() < WATCH_MESSAGE_SIZE + 60_000);
            counts.push(part.nodes.len());
        }
        assert!(counts.len() >= 4, "{counts:?}");
        assert_eq!(counts.iter().sum::<usize>(), nodes.len());

        // What is not built yet has none of what is gone by then.
        assert!(matches!(decoded(&cut.next().await), Message::Snapshot(_)));
        for proxy in proxies {
            table.remove_proxy(proxy);
        }
        assert!(matches!(decoded(&cut.next().await), Message::SnapshotEnd(_)));
    }

    #[tokio::test]
    async fn a_message_for_one_watch_waits_for_its_budget() {
        let table = Arc::new(RouteTable::new());
        let node: NodeId = "node".parse().unwrap();
        let proxy = Proxy {
            id: "proxy",
            cluster_name: "cluster",
            addr: "proxy:1",
        };
        table.report_node(&node, &proxy).unwrap();
        let watches = Watches::new(Arc::clone(&table), InstanceId::draw());
        watches.stage.send_modify(|stage| stage.following = true);
        for nodes in [vec![], vec![node.clone()]] {
            let of_some = !nodes.is_empty();
            let budget = SendBudget::default();
            let mut watch = Watch::new(watches.enter(nodes.len()).unwrap(), nodes, budget.clone());
            let take_all = || std::iter::from_fn(|| budget.try_reserve()).collect::<Vec<_>>();

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
