//! One watch: a snapshot and the change log in turns, then the change log.

use std::collections::HashMap;
use std::mem;
use std::sync::Arc;

use bytes::Bytes;
use nodetracker::{NodeId, RouteTable};
use nodetracker_proto::v1;
use nodetracker_proto::v1::watch_change::Change;
use nodetracker_proto::v1::watch_response::Message;
use tokio::select;
use tokio::sync::watch::Receiver;
use tokio::time::{Instant, sleep_until};
use tonic::Status;

use crate::convert::encode::RouteCollector;
use crate::grpc::handler::StreamContext;
use crate::limits::{
    BYTES_PER_WORK, CALL_WORK, COMPARISONS_PER_WORK, NODE_WORK, ROUTE_WORK, SMALL_REPLY_SIZE, STREAM_KEEP_ALIVE,
    WORK_PER_PART,
};
use crate::memory::OutOfBudget;
use crate::rpc::watch::change_log::{LogEntry, LostPlace};
use crate::rpc::watch::snapshot::SnapshotReader;
use crate::rpc::watch::{WatchSlot, Watches, encode};
use crate::turns::Parts;

/// The nodes of a watch that is limited to some nodes; empty if the watch is about all nodes.
#[derive(Debug)]
pub(super) struct WatchedNodes {
    /// Each node with its part, sorted.
    nodes: Vec<(usize, NodeId)>,
}

impl WatchedNodes {
    pub(super) fn new(nodes: Vec<NodeId>, table: &RouteTable) -> Self {
        let mut nodes: Vec<_> = nodes.into_iter().map(|node| (table.part_of(&node), node)).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes.shrink_to_fit();
        Self { nodes }
    }

    /// Returns how many bytes the nodes take.
    pub(super) fn size(&self) -> usize {
        let name = |(_, node): &(usize, NodeId)| node.as_name().map_or(0, str::len);
        mem::size_of_val(&*self.nodes) + self.nodes.iter().map(name).sum::<usize>()
    }

    fn are_all(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Whether the watch sends a change of this node, or of no node.
    fn include(&self, node: Option<&(usize, NodeId)>) -> bool {
        node.is_none_or(|node| self.are_all() || self.nodes.binary_search(node).is_ok())
    }
}

/// A watch.
#[derive(Debug)]
pub(super) struct Watch {
    slot: WatchSlot,
    nodes: WatchedNodes,
    /// Has the budget for the messages that wait for this watch's client.
    context: StreamContext,
    accepts_resync: bool,
    /// The place where the client wants to resume.
    resume: Option<v1::WatchPlace>,
    /// The number of the next change to send.
    place: u64,
    /// The number of the next change that the log gets.
    log_end: Receiver<u64>,
    progress: Progress,
    /// When the next keep-alive message is due.
    keep_alive_due: Instant,
}

#[derive(Debug)]
enum Progress {
    /// The watch has no place yet.
    Beginning,
    Snapshot {
        rest: Rest,
        /// The place of the last chunk. The watch sends the changes up to there before the next chunk.
        until: u64,
    },
    Changes,
}

/// The rest of the snapshot.
#[derive(Debug)]
enum Rest {
    All(SnapshotReader),
    /// The position of the next watched node.
    Some(usize),
}

impl Watch {
    pub(super) fn new(
        slot: WatchSlot,
        nodes: WatchedNodes,
        context: StreamContext,
        resume: Option<v1::WatchPlace>,
        accepts_resync: bool,
    ) -> Self {
        Self {
            log_end: slot.watches.log.subscribe(),
            slot,
            nodes,
            context,
            accepts_resync,
            resume,
            place: 0,
            progress: Progress::Beginning,
            keep_alive_due: Instant::now() + STREAM_KEEP_ALIVE,
        }
    }

    /// Returns the next encoded message. Called once flow control has taken the previous message; may be cancelled
    /// while it waits.
    ///
    /// # Errors
    ///
    /// The status that ends the watch: the server's memory has no room for its messages.
    pub(super) async fn next(&mut self) -> Result<Bytes, Status> {
        let message = self.next_message().await?;
        self.keep_alive_due = Instant::now() + STREAM_KEEP_ALIVE;
        Ok(message)
    }

    async fn next_message(&mut self) -> Result<Bytes, Status> {
        let watches = Arc::clone(&self.slot.watches);
        loop {
            let sent = match &self.progress {
                Progress::Beginning => {
                    // An error cannot happen: the sender lives as long as `watches`. The tailer continues while this
                    // watch has its slot.
                    let mut activity = watches.activity.subscribe();
                    let _ = activity.wait_for(|activity| activity.is_tailing).await;
                    Ok(self.begin(&watches))
                }
                Progress::Snapshot { until, .. } if self.place < *until => self.send_changes(&watches).await,
                Progress::Snapshot { .. } => self.send_snapshot(&watches).await,
                Progress::Changes => match self.send_changes(&watches).await {
                    Ok(None) => Ok(self.wait().await),
                    sent => sent,
                },
            };
            match sent {
                Ok(Some(message)) => return Ok(message),
                Ok(None) => {}
                Err(Interruption::LostPlace) => {
                    self.progress = Progress::Beginning;
                    return Ok(lost_place(&watches));
                }
                Err(Interruption::OutOfBudget(full)) => return Err(full.into()),
            }
        }
    }

    /// Takes the watch's place in the log. Returns a message if the client wants to resume.
    fn begin(&mut self, watches: &Arc<Watches>) -> Option<Bytes> {
        if let Some(resume) = self.resume.take() {
            self.place = resume.sequence.saturating_add(1);
            if resume.generation != watches.instance_id.get() || !watches.log.has(self.place) {
                return Some(lost_place(watches));
            }
            self.progress = Progress::Changes;
            return Some(self.snapshot_end(watches));
        }
        let rest = if self.nodes.are_all() {
            let reader;
            (reader, self.place) = SnapshotReader::begin(watches, self.accepts_resync);
            Rest::All(reader)
        } else {
            // The place before the table, so that no change is missed in between.
            self.place = watches.log.next();
            Rest::Some(0)
        };
        let until = self.place;
        self.progress = Progress::Snapshot { rest, until };
        None
    }

    /// Returns the next part of the snapshot, or its end. Returns `None` if the part has no nodes.
    async fn send_snapshot(&mut self, watches: &Watches) -> Result<Option<Bytes>, Interruption> {
        let Progress::Snapshot { rest, until } = &mut self.progress else {
            return Ok(None);
        };
        self.context.turns.take(WORK_PER_PART).await;
        let mut reservation = self.context.budget.reserve().await;
        let next = match rest {
            Rest::All(reader) => {
                let chunk = reader.next(self.place, &self.context.turns).await;
                chunk.map(|chunk| (chunk.place, chunk.message))
            }
            Rest::Some(position) => {
                let place = watches.log.next();
                let message = routes_of(&self.nodes.nodes, position, &watches.table);
                message.map(|message| (place, message))
            }
        };
        let Some((place, message)) = next else {
            self.progress = Progress::Changes;
            return Ok(Some(self.snapshot_end(watches)));
        };
        *until = place;
        Ok(message.map(|message| reservation.charge(message)).transpose()?)
    }

    fn snapshot_end(&self, watches: &Watches) -> Bytes {
        encode(Message::SnapshotEnd(v1::WatchSnapshotEnd {
            generation: watches.instance_id.get(),
            sequence: self.place - 1,
        }))
    }

    /// Returns the next changes in the log. Returns `None` if there are none, or none of this watch's nodes.
    async fn send_changes(&mut self, watches: &Watches) -> Result<Option<Bytes>, Interruption> {
        let Some(mut entry) = watches.log.entry_at(self.place)? else {
            return Ok(None);
        };
        if let Some(turn) = self.context.turns.begin(self.work(&entry)) {
            // The log may drop the entry while the watch waits.
            drop(entry);
            turn.await;
            match watches.log.entry_at(self.place)? {
                Some(now) => entry = now,
                None => return Ok(None),
            }
        }
        if entry.begins_resync && !self.accepts_resync {
            return Err(Interruption::LostPlace);
        }
        if !entry.nodes.iter().any(|node| self.nodes.include(node.as_ref())) {
            self.place = entry.end();
            return Ok(None);
        }
        if self.sends_whole(&entry) && entry.encoded.len() <= SMALL_REPLY_SIZE {
            self.place = entry.end();
            return Ok(Some(entry.encoded.clone()));
        }
        // The log may drop the entry while the watch waits for its budget.
        drop(entry);
        let mut reservation = self.context.budget.reserve().await;
        let Some(entry) = watches.log.entry_at(self.place)? else {
            return Ok(None);
        };
        let message = if self.sends_whole(&entry) {
            Some(entry.encoded.clone())
        } else {
            part_of(&entry, &self.nodes, self.place).map(|part| encode(Message::Changes(part)))
        };
        self.place = entry.end();
        Ok(message.map(|message| reservation.charge(message)).transpose()?)
    }

    /// Returns the work to send the changes of an entry: the system copies each byte to each client. A watch of some
    /// nodes looks for the node of each change among its own.
    fn work(&self, entry: &LogEntry) -> usize {
        let comparisons = self
            .nodes
            .nodes
            .len()
            .checked_ilog2()
            .map_or(0, |most| most as usize + 1);
        let sends = match self.nodes.are_all() {
            true => entry.encoded.len() / BYTES_PER_WORK,
            false => entry.nodes.len() * comparisons / COMPARISONS_PER_WORK,
        };
        CALL_WORK + sends
    }

    fn sends_whole(&self, entry: &LogEntry) -> bool {
        self.nodes.are_all() && self.place == entry.first
    }

    /// Waits for the next change. Returns a keep-alive message if there is none for long.
    async fn wait(&mut self) -> Option<Bytes> {
        let place = self.place;
        select! {
            // First, because other nodes may change all the time.
            biased;
            () = sleep_until(self.keep_alive_due) => Some(encode(Message::KeepAlive(v1::WatchKeepAlive {
                sequence: place - 1,
            }))),
            // An error cannot happen: the sender lives as long as the watch's slot.
            _ = self.log_end.wait_for(|next| *next > place) => None,
        }
    }
}

/// Why a watch does not send its next message.
enum Interruption {
    LostPlace,
    OutOfBudget(OutOfBudget),
}

impl From<LostPlace> for Interruption {
    fn from(_: LostPlace) -> Self {
        Self::LostPlace
    }
}

impl From<OutOfBudget> for Interruption {
    fn from(full: OutOfBudget) -> Self {
        Self::OutOfBudget(full)
    }
}

fn lost_place(watches: &Watches) -> Bytes {
    watches.lost_places.add_one();
    encode(Message::LostPlace(v1::WatchLostPlace {}))
}

/// Encodes the next watched nodes, all of one part, in about [`WORK_PER_PART`], and moves the position. Returns `None`
/// at the end, and no message if the nodes have no routes.
fn routes_of(nodes: &[(usize, NodeId)], position: &mut usize, table: &RouteTable) -> Option<Option<Bytes>> {
    let rest = nodes.get(*position..)?;
    let part = rest.first()?.0;
    let mut collector = RouteCollector::new(table);
    let mut message = v1::WatchSnapshot {
        part: part as u32,
        ..v1::WatchSnapshot::default()
    };
    let mut work = 0;
    for (_, node) in rest.iter().take_while(|(of, _)| *of == part) {
        if Parts::is_enough(work) {
            break;
        }
        *position += 1;
        let routes = table.get_proxies(node);
        work += NODE_WORK + routes.len() * ROUTE_WORK;
        let routes = collector.node(node, &routes);
        if !routes.routes.is_empty() {
            message.nodes.push(routes);
        }
    }
    message.proxies = collector.watched_proxies();
    Some((!message.nodes.is_empty()).then(|| encode(Message::Snapshot(message))))
}

/// Returns the changes of `nodes` and those that every watch sends, from a place on. Returns `None` if there are none.
fn part_of(entry: &LogEntry, nodes: &WatchedNodes, place: u64) -> Option<v1::WatchChanges> {
    let mut part = v1::WatchChanges::default();
    // The position in the part of each proxy of the entry.
    let mut indexes = HashMap::new();
    for (change, node) in entry.message.changes.iter().zip(&entry.nodes) {
        if change.sequence < place || !nodes.include(node.as_ref()) {
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
    use std::time::Duration;

    use nodetracker::Proxy;
    use prost::Message as _;

    use super::*;
    use crate::client_key::ClientKey;
    use crate::grpc::frame::PREFIX;
    use crate::limits::{WATCH_BACKLOG, WATCH_MESSAGE_SIZE, WORK_PER_PASS};
    use crate::turns::Turns;

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
        let watches = Watches::without_resume(Arc::clone(&table));
        watches.activity.send_modify(|activity| activity.is_tailing = true);
        let begin = || {
            let nodes = WatchedNodes::new(nodes.clone(), &table);
            Watch::new(
                watches.take_slot(0).unwrap(),
                nodes,
                StreamContext::default(),
                None,
                true,
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
        let watches = Watches::without_resume(Arc::clone(&table));
        watches.activity.send_modify(|activity| activity.is_tailing = true);
        // Small changes of all nodes need no budget: the number of streams bounds them.
        let cases = [
            (vec![], 0, false),
            (vec![], SMALL_REPLY_SIZE + 1, true),
            (vec![node.clone()], 0, true),
        ];
        for (nodes, size, needs_budget) in cases {
            let context = StreamContext::default();
            let budget = context.budget.clone();
            let nodes = WatchedNodes::new(nodes, &table);
            let mut watch = Watch::new(watches.take_slot(0).unwrap(), nodes, context, None, true);
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

            watches.log.push(LogEntry {
                first: watches.log.next(),
                nodes: vec![Some((table.part_of(&node), node.clone()))],
                begins_resync: false,
                message: v1::WatchChanges {
                    changes: vec![v1::WatchChange::default()],
                    proxies: vec![],
                },
                encoded: vec![0; size].into(),
            });
            let reserved = reserve_all();
            let mut changes = pin!(watch.next());
            assert_eq!(waits(changes.as_mut()), needs_budget);
            drop(reserved);
        }
    }

    /// A table with some hundred nodes in each part of UUIDs.
    fn large_table() -> Arc<RouteTable> {
        let table = RouteTable::new();
        let proxy = Proxy {
            id: "proxy",
            cluster_name: "cluster",
            addr: "proxy:1",
        };
        let proxy = table.register_proxy(&proxy).unwrap();
        for number in 0..20_000 {
            table
                .add_node(&uuid::Uuid::from_u128(number << 64).into(), proxy)
                .unwrap();
        }
        Arc::new(table)
    }

    fn watches_of(table: &Arc<RouteTable>) -> Arc<Watches> {
        let watches = Watches::without_resume(Arc::clone(table));
        watches.activity.send_modify(|activity| activity.is_tailing = true);
        watches
    }

    fn watch_of(watches: &Arc<Watches>, nodes: Vec<NodeId>) -> Watch {
        let nodes = WatchedNodes::new(nodes, &watches.table);
        Watch::new(
            watches.take_slot(0).unwrap(),
            nodes,
            StreamContext::default(),
            None,
            true,
        )
    }

    /// Appends changes of another node to the log.
    fn push_changes(watches: &Watches, count: usize) {
        push_entry(watches, count, 0, false);
    }

    /// Appends an entry with this many changes, and of at least this many bytes.
    fn push_entry(watches: &Watches, count: usize, size: usize, begins_resync: bool) {
        let other = NodeId::from(uuid::Uuid::nil());
        watches.log.push(LogEntry {
            first: watches.log.next(),
            nodes: vec![Some((watches.table.part_of(&other), other)); count],
            message: v1::WatchChanges::default(),
            begins_resync,
            encoded: match size {
                0 => encode(Message::Changes(v1::WatchChanges::default())),
                size => vec![0; size].into(),
            },
        });
        watches.log.publish();
    }

    /// Returns some nodes that are in the same part of a table, and not the nil UUID.
    fn nodes_of_one_part(table: &RouteTable, count: usize) -> Vec<NodeId> {
        let part = table.part_of(&uuid::Uuid::from_u128(1).into());
        let nodes = (1..).map(|number| NodeId::from(uuid::Uuid::from_u128(number)));
        nodes.filter(|node| table.part_of(node) == part).take(count).collect()
    }

    /// Returns how many passes the worker needs for the snapshot of a watch.
    async fn passes_of_snapshot(table: &Arc<RouteTable>, nodes: &[NodeId]) -> usize {
        let mut watch = watch_of(&watches_of(table), nodes.to_vec());
        let reading = tokio::spawn(async move { while next_part(&mut watch).await.is_some() {} });
        let mut passes = 0;
        while !reading.is_finished() {
            tokio::task::yield_now().await;
            passes += 1;
        }
        reading.await.unwrap();
        passes
    }

    /// Otherwise watches that encode their own chunks would delay other calls.
    #[tokio::test]
    async fn a_chunk_of_a_snapshot_takes_a_turn_for_its_work() {
        const NODES: usize = 6_000;
        let table = Arc::new(RouteTable::new());
        // Parts without nodes take turns, too.
        let without_nodes = passes_of_snapshot(&table, &[]).await;
        let proxy = Proxy {
            id: "proxy",
            cluster_name: "cluster",
            addr: "proxy:1",
        };
        let proxy = table.register_proxy(&proxy).unwrap();
        let nodes = nodes_of_one_part(&table, NODES);
        for node in &nodes {
            table.add_node(node, proxy).unwrap();
        }
        // A pass may begin work for as much as another pass.
        let expected = |nodes: usize| nodes * (NODE_WORK + ROUTE_WORK) / (2 * WORK_PER_PASS);
        let passes = passes_of_snapshot(&table, &[]).await;
        assert!(
            passes >= without_nodes + expected(NODES),
            "{passes} after {without_nodes}"
        );
        let passes = passes_of_snapshot(&table, &nodes[..4000]).await;
        assert!(passes > expected(4000), "{passes}");
    }

    /// Otherwise many watches of some nodes, whose clients cause the changes, would delay other calls.
    #[tokio::test]
    async fn watches_of_some_nodes_take_turns_to_look_for_changes() {
        const NODES: usize = 64;
        const CHANGES: usize = 1_000;
        const WATCHES: usize = 40;
        let watches = watches_of(&Arc::new(RouteTable::new()));
        let nodes = nodes_of_one_part(&watches.table, NODES);
        let context = StreamContext::default();
        let mut reading = Vec::new();
        for _ in 0..WATCHES {
            let nodes = WatchedNodes::new(nodes.clone(), &watches.table);
            let slot = watches.take_slot(0).unwrap();
            let mut watch = Watch::new(slot, nodes, context.clone(), None, true);
            while next_part(&mut watch).await.is_some() {}
            reading.push(watch);
        }
        push_changes(&watches, CHANGES);
        let mut next: Vec<_> = reading.iter_mut().map(|watch| Box::pin(watch.next())).collect();
        // The watches that have looked for the changes in a pass wait for further changes.
        let place = watches.log.next();
        let mut passes = 0;
        loop {
            assert!(next.iter_mut().all(|next| waits(next.as_mut())));
            passes += 1;
            if context.turns.is_free() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(next);
        assert!(reading.iter().all(|watch| watch.place == place));
        let work = WATCHES * CHANGES * NODES.ilog2() as usize / COMPARISONS_PER_WORK;
        // A pass may begin work for as much as another pass.
        assert!(passes >= work / (2 * WORK_PER_PASS), "{passes}");
    }

    /// Otherwise one large message to many watches would delay other calls.
    #[tokio::test]
    async fn watches_take_turns_to_send_large_messages() {
        const WATCHES: usize = 40;
        const SIZE: usize = 64 * 1024;
        let watches = watches_of(&Arc::new(RouteTable::new()));
        let mut reading: Vec<_> = (0..WATCHES).map(|_| watch_of(&watches, vec![])).collect();
        // Each has a connection of its own: of one connection, one task at a time waits for a turn.
        let worker = Arc::default();
        for watch in &mut reading {
            watch.context.turns = Turns::of_one_client(Arc::clone(&worker));
            while next_part(watch).await.is_some() {}
        }
        push_entry(&watches, 1, SIZE, false);
        let mut next: Vec<_> = reading.iter_mut().map(|watch| Box::pin(watch.next())).collect();
        let (mut sent, mut passes) = (0, 0);
        while sent < WATCHES {
            next.retain_mut(|next| waits(next.as_mut()));
            let now = WATCHES - next.len();
            passes += usize::from(now > sent);
            sent = now;
            tokio::task::yield_now().await;
        }
        // A pass may begin work for as much as another pass.
        let work = WATCHES * SIZE / BYTES_PER_WORK;
        assert!(passes >= work / (2 * WORK_PER_PASS), "{passes}");
    }

    /// The snapshot of a client must not wait for all snapshots that another client has begun before.
    #[tokio::test]
    async fn clients_take_turns_to_encode_chunks() {
        let watches = watches_of(&large_table());
        let of = |client| {
            let mut watch = watch_of(&watches, vec![]);
            watch.context.turns = Turns::new(Arc::default(), ClientKey::V6(client));
            watch
        };
        let encoding = watches.snapshots.permit(ClientKey::V6(1)).await;
        let mut crowd: Vec<_> = (0..20).map(|_| of(1)).collect();
        let mut crowd: Vec<_> = crowd.iter_mut().map(|watch| Box::pin(watch.next())).collect();
        assert!(crowd.iter_mut().all(|next| waits(next.as_mut())));
        let mut other = of(2);
        let mut other = pin!(other.next());
        assert!(waits(other.as_mut()));
        drop(encoding);
        // The crowd's first watch gets the place, and then the other client, before the rest of the crowd.
        assert!(!waits(crowd[0].as_mut()));
        assert!(!waits(other));
    }

    #[tokio::test]
    async fn the_first_chunk_assumes_that_nodes_have_many_routes() {
        let watches = watches_of(&large_table());
        let mut watch = watch_of(&watches, vec![]);
        let Message::Snapshot(first) = decoded(&watch.next().await.unwrap()) else {
            panic!("the snapshot has no nodes");
        };
        assert!(first.nodes.len() <= WORK_PER_PASS / (NODE_WORK + nodetracker::MAX_ROUTES_PER_NODE * ROUTE_WORK));
    }

    /// The log drops the changes since the beginning of the snapshot long before the snapshot is complete.
    #[tokio::test]
    async fn a_snapshot_is_complete_however_fast_the_table_changes() {
        let table = large_table();
        let watches = watches_of(&table);
        let mut watch = watch_of(&watches, vec![]);
        let (mut nodes, mut parts) = (0, 0);
        loop {
            match decoded(&watch.next().await.unwrap()) {
                Message::Snapshot(part) => {
                    (nodes, parts) = (nodes + part.nodes.len(), parts + 1);
                    push_changes(&watches, WATCH_BACKLOG / 3);
                }
                Message::Changes(_) => {}
                Message::SnapshotEnd(_) => break,
                other => panic!("{other:?} after {parts} parts"),
            }
        }
        assert!(watches.log.has(watch.place), "the watch begins again");
        assert_eq!(nodes, table.len());
        assert!(parts >= 128, "{parts}");
    }

    /// Returns the address of the next part of a snapshot; `None` at its end.
    async fn next_part(watch: &mut Watch) -> Option<usize> {
        loop {
            let message = watch.next().await.unwrap();
            match decoded(&message) {
                Message::Snapshot(_) => return Some(message.as_ptr() as usize),
                Message::Changes(_) => {}
                Message::SnapshotEnd(_) => return None,
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn watches_that_begin_share_the_parts_of_their_snapshots() {
        let watches = watches_of(&large_table());
        let [mut first, mut second, mut late] = [(); 3].map(|()| watch_of(&watches, vec![]));
        let (mut parts, mut late_parts) = (Vec::new(), Vec::new());
        while let Some(part) = next_part(&mut first).await {
            assert_eq!(next_part(&mut second).await, Some(part));
            parts.push(part);
            push_changes(&watches, 1);
            if parts.len() > 20 {
                late_parts.extend(next_part(&mut late).await);
            }
        }
        assert_eq!(next_part(&mut second).await, None);
        // The late watch has begun at the last part at that time.
        assert_eq!(late_parts, parts[20..]);
        while let Some(part) = next_part(&mut late).await {
            late_parts.push(part);
        }
        // The first chunk of all was small, because the work for a node was unknown.
        assert_eq!(late_parts.len() + 1, parts.len());
        assert!(watches.snapshots.is_empty(), "no watch reads a snapshot any more");
    }

    /// Otherwise the watch would begin at the same part again and again, before the resync.
    #[tokio::test]
    async fn a_watch_that_accepts_no_resync_begins_after_it() {
        let watches = watches_of(&large_table());
        let mut stalled = watch_of(&watches, vec![]);
        next_part(&mut stalled).await.unwrap();
        push_entry(&watches, 1, 0, true);
        let mut watch = watch_of(&watches, vec![]);
        watch.accepts_resync = false;
        // Fails at a lost place.
        while next_part(&mut watch).await.is_some() {}
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_without_changes_sends_keep_alive_messages() {
        let watches = watches_of(&large_table());
        let mut of_all = watch_of(&watches, vec![]);
        while next_part(&mut of_all).await.is_some() {}
        let mut of_one = watch_of(&watches, vec![uuid::Uuid::from_u128(1 << 64).into()]);
        while next_part(&mut of_one).await.is_some() {}
        let keep_alive = |message: &Bytes| match decoded(message) {
            Message::KeepAlive(keep_alive) => keep_alive.sequence,
            other => panic!("{other:?}"),
        };
        for _ in 0..3 {
            let before = Instant::now();
            assert_eq!(keep_alive(&of_all.next().await.unwrap()), watches.log.next() - 1);
            assert_eq!(before.elapsed(), STREAM_KEEP_ALIVE);
        }
        of_one.next().await.unwrap();
        // Changes of other nodes are not sent. The keep-alive message reports them.
        let before = Instant::now();
        let mut next = pin!(of_one.next());
        for _ in 1..STREAM_KEEP_ALIVE.as_secs() {
            assert!(waits(next.as_mut()));
            push_changes(&watches, 1);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(keep_alive(&next.await.unwrap()), watches.log.next() - 1);
        assert_eq!(before.elapsed(), STREAM_KEEP_ALIVE);
        assert!(matches!(decoded(&of_all.next().await.unwrap()), Message::Changes(_)));
    }
}
