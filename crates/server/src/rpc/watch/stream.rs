//! One watch: a snapshot, then the change log from its place on.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::vec::IntoIter;

use bytes::Bytes;
use nodetracker::{NodeCursor, NodeId, NodeRoutes, RouteTable, Routes};
use nodetracker_proto::v1;
use nodetracker_proto::v1::watch_change::Change;
use nodetracker_proto::v1::watch_response::Message;
use tonic::Status;

use crate::convert::encode::RouteCollector;
use crate::grpc::frame;
use crate::grpc::send_budget::SendBudget;
use crate::limits::{MAX_SNAPSHOT_NODES, SNAPSHOT_COPY, WATCH_MESSAGE_SIZE};
use crate::rpc::watch::WatchSlot;
use crate::rpc::watch::change_log::{LogEntry, LostPlace};

/// A watch.
#[derive(Debug)]
pub(super) struct Watch {
    slot: WatchSlot,
    /// The watched nodes. If empty, all nodes.
    nodes: HashSet<NodeId>,
    /// Pays for the messages that are built for this watch alone.
    budget: SendBudget,
    progress: Progress,
}

#[derive(Debug)]
enum Progress {
    /// The watch has no place yet.
    Beginning,
    Snapshot {
        /// The place in the log of the first change that the snapshot may lack.
        place: u64,
        /// The start of the next part of the table, if there is one.
        from: Option<NodeCursor>,
        /// The rest of the last part, which was not sent yet.
        copied: IntoIter<NodeRoutes>,
    },
    Changes {
        /// The number of the next change to send.
        place: u64,
    },
}

impl Watch {
    pub(super) fn new(slot: WatchSlot, nodes: Vec<NodeId>, budget: SendBudget) -> Self {
        Self {
            slot,
            nodes: nodes.into_iter().collect(),
            budget,
            progress: Progress::Beginning,
        }
    }

    /// Returns the next encoded message, or the status that ends the watch. Called once flow control has taken the previous message; may be cancelled while it
    /// waits.
    pub(super) async fn next(&mut self) -> Result<Bytes, Status> {
        let watches = Arc::clone(&self.slot.watches);
        loop {
            match &mut self.progress {
                Progress::Beginning => {
                    // An error cannot happen: the sender lives as long as `watches`. The tailer continues while this watch
                    // has its slot.
                    let mut activity = watches.activity.subscribe();
                    let _ = activity.wait_for(|activity| activity.is_tailing).await;
                    // The place before the table, so that no change is missed in between.
                    self.progress = Progress::Snapshot {
                        place: watches.log.next(),
                        from: Some(NodeCursor::default()),
                        copied: IntoIter::default(),
                    };
                }
                Progress::Snapshot { place, from, copied } => {
                    if copied.len() == 0 && from.is_none() {
                        let end = v1::WatchSnapshotEnd {
                            generation: watches.instance_id.get(),
                            sequence: *place - 1,
                        };
                        self.progress = Progress::Changes { place: *place };
                        return Ok(encode(Message::SnapshotEnd(end)));
                    }
                    // Other calls of this worker take their turn.
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
                        return Ok(reservation.charge(encode(Message::Snapshot(part)))?);
                    }
                }
                Progress::Changes { place } => match watches.log.entry_at(*place) {
                    Ok(None) => watches.log.changed(*place).await,
                    Ok(Some(entry)) if self.nodes.is_empty() => {
                        *place = entry.end();
                        return Ok(entry.encoded.clone());
                    }
                    Ok(Some(entry)) => {
                        // The log may drop the entry while the watch waits for its budget.
                        drop(entry);
                        let mut reservation = self.budget.reserve().await;
                        if let Ok(Some(entry)) = watches.log.entry_at(*place) {
                            *place = entry.end();
                            if let Some(part) = part_of(&entry, &self.nodes) {
                                return Ok(reservation.charge(encode(Message::Changes(part)))?);
                            }
                        }
                    }
                    Err(LostPlace) => {
                        self.progress = Progress::Beginning;
                        return Ok(encode(Message::LostPlace(v1::WatchLostPlace {})));
                    }
                },
            }
        }
    }
}

/// Encodes a message of the stream.
fn encode(message: Message) -> Bytes {
    frame::encode(&v1::WatchResponse { message: Some(message) })
}

/// Returns those of `nodes` that have routes.
fn routes_of(nodes: &HashSet<NodeId>, table: &RouteTable) -> Vec<NodeRoutes> {
    let nodes: Vec<NodeId> = nodes.iter().cloned().collect();
    let routes: Vec<Routes> = table.get_proxies_batch(&nodes).collect();
    nodes
        .into_iter()
        .zip(routes)
        .filter(|(_, routes)| !routes.is_empty())
        .map(|(node, routes)| NodeRoutes { node, routes })
        .collect()
}

/// Moves as many nodes as fit into one message of a snapshot. Returns `None` if no node has a registered proxy.
fn snapshot_of(copied: &mut IntoIter<NodeRoutes>, table: &RouteTable) -> Option<v1::WatchSnapshot> {
    let mut collector = RouteCollector::new(table);
    let mut nodes = Vec::new();
    while nodes.len() < MAX_SNAPSHOT_NODES
        && collector.size() < WATCH_MESSAGE_SIZE
        && let Some(NodeRoutes { node, routes }) = copied.next()
    {
        let node = collector.node(&node, &routes);
        // All proxies of a node may have been removed since the copy.
        if !node.routes.is_empty() {
            nodes.push(node);
        }
    }
    (!nodes.is_empty()).then(|| v1::WatchSnapshot {
        proxies: collector.watched_proxies(),
        nodes,
    })
}

/// Returns the changes of `nodes`, and of all proxies. Returns `None` if there are no such changes.
fn part_of(entry: &LogEntry, nodes: &HashSet<NodeId>) -> Option<v1::WatchChanges> {
    let mut part = v1::WatchChanges::default();
    // The position in the part of each proxy of the entry.
    let mut indexes = HashMap::new();
    for (change, node) in entry.message.changes.iter().zip(&entry.nodes) {
        if node.as_ref().is_some_and(|node| !nodes.contains(node)) {
            continue;
        }
        let mut change = change.clone();
        if let Some(Change::Node(change)) = &mut change.change {
            for route in change.routes.iter_mut().flat_map(|node| &mut node.routes) {
                let known = route.proxy_index;
                route.proxy_index = *indexes.entry(known).or_insert_with(|| {
                    part.proxies.push(entry.message.proxies[known as usize].clone());
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

    /// Reports whether a future is pending after a few polls.
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
        watches.activity.send_modify(|activity| activity.is_tailing = true);
        let begin = || {
            Watch::new(
                watches.take_slot(nodes.len()).unwrap(),
                nodes.clone(),
                SendBudget::default(),
            )
        };
        let (mut whole, mut cut) = (begin(), begin());
        let mut counts = Vec::new();
        while let message = whole.next().await.unwrap()
            && let Message::Snapshot(part) = decoded(&message)
        {
            assert!(message.len() < WATCH_MESSAGE_SIZE + 60_000);
            counts.push(part.nodes.len());
        }
        assert!(counts.len() >= 4, "{counts:?}");
        assert_eq!(counts.iter().sum::<usize>(), nodes.len());

        // Later messages have no routes through proxies that were removed before.
        assert!(matches!(decoded(&cut.next().await.unwrap()), Message::Snapshot(_)));
        for proxy in proxies {
            table.remove_proxy(proxy);
        }
        assert!(matches!(decoded(&cut.next().await.unwrap()), Message::SnapshotEnd(_)));
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
        watches.activity.send_modify(|activity| activity.is_tailing = true);
        for nodes in [vec![], vec![node.clone()]] {
            let of_some = !nodes.is_empty();
            let budget = SendBudget::default();
            let mut watch = Watch::new(watches.take_slot(nodes.len()).unwrap(), nodes, budget.clone());
            let reserve_all = || std::iter::from_fn(|| budget.try_reserve()).collect::<Vec<_>>();

            let reserved = reserve_all();
            {
                let mut snapshot = pin!(watch.next());
                assert!(waits(snapshot.as_mut()));
                drop(reserved);
                snapshot.await.unwrap();
            }
            // The end of the snapshot.
            watch.next().await.unwrap();

            // Watches of all nodes share the bytes of a change. A part of the changes is encoded for its watch alone.
            watches.log.push(LogEntry {
                first: watches.log.next(),
                nodes: vec![Some(node.clone())],
                message: v1::WatchChanges {
                    changes: vec![v1::WatchChange::default()],
                    proxies: vec![],
                },
                encoded: Bytes::new(),
            });
            let reserved = reserve_all();
            let mut changes = pin!(watch.next());
            assert_eq!(waits(changes.as_mut()), of_some);
            drop(reserved);
        }
    }
}
