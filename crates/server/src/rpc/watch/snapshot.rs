//! The snapshot's chunks, which all watches that begin share.
//!
//! A chunk is one message with some nodes of one part of the table. A chunk has a place: the number of the next change
//! when the chunk was read. A watch may send a chunk if the watch's own place is not after the chunk's place. Then the
//! watch still sends every change that the chunk lacks.
//!
//! A new watch begins at a recent chunk, with that chunk's place. It then finds the chunks that the earlier watch has
//! encoded, until it has caught up. From there on, the first watch that needs a chunk encodes the chunk for the others.
//! A watch that falls behind the kept chunks encodes its own chunks. One chunk is encoded at a time, and clients take
//! turns. So a crowd of watches takes a bounded share of the processors and of the memory.

use std::collections::VecDeque;
use std::mem;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use nodetracker::{MAX_ROUTES_PER_NODE, NodeCursor, RouteTable};
use nodetracker_proto::v1;
use nodetracker_proto::v1::watch_response::Message;

use crate::client_key::ClientKey;
use crate::convert::encode::RouteCollector;
use crate::fair_queue::{FairPermits, Permit};
use crate::limits::{
    NODE_WORK, ROUTE_WORK, SNAPSHOT_CACHE_CHUNKS, SNAPSHOT_CACHE_SIZE, SNAPSHOT_JOIN_CHANGES, WATCH_MESSAGE_SIZE,
    WORK_PER_PART, WORK_PER_PASS,
};
use crate::rpc::watch::{Watches, encode};
use crate::turns::Turns;

/// Where a chunk starts.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Start {
    part: usize,
    /// The place in the part; `None` for its beginning.
    from: Option<NodeCursor>,
}

/// Some nodes of one part.
#[derive(Debug, Clone)]
pub(super) struct Chunk {
    start: Start,
    /// The number of the first change that the chunk may lack.
    pub(super) place: u64,
    /// The encoded nodes; `None` if there are none.
    pub(super) message: Option<Bytes>,
    /// Where the next chunk of the part starts; `None` at the end of the part.
    next: Option<NodeCursor>,
}

/// The latest chunks.
#[derive(Debug)]
pub(super) struct Snapshots {
    kept: Mutex<Kept>,
    /// The permit of the watch that encodes a chunk. Clients take turns, so that the watches of one client delay the
    /// watch of another client by one chunk.
    encoding: Arc<FairPermits>,
    /// The work for a node of the last chunk; 0 before the first chunk. Relaxed: an estimate.
    work_per_node: AtomicUsize,
}

impl Default for Snapshots {
    fn default() -> Self {
        Self {
            kept: Mutex::default(),
            encoding: FairPermits::new(1),
            work_per_node: AtomicUsize::new(0),
        }
    }
}

#[derive(Debug, Default)]
struct Kept {
    chunks: VecDeque<Chunk>,
    /// Bytes of the messages in `chunks`.
    bytes: usize,
    /// How many watches read a snapshot.
    readers: usize,
}

impl Snapshots {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        // No critical section here leaves the data half changed.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a kept chunk that lacks no change before `place`.
    fn find(&self, start: &Start, place: u64) -> Option<Chunk> {
        let kept = self.lock();
        let mut newest_first = kept.chunks.iter().rev();
        newest_first
            .find(|chunk| chunk.place >= place && chunk.start == *start)
            .cloned()
    }

    /// Waits for the permit to encode a chunk.
    pub(super) async fn permit(&self, client: ClientKey) -> Option<Permit> {
        self.encoding.take(client).await
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.lock().chunks.is_empty()
    }

    fn keep(&self, chunk: &Chunk) {
        let size = |chunk: &Chunk| chunk.message.as_ref().map_or(0, Bytes::len);
        let mut kept = self.lock();
        kept.bytes += size(chunk);
        kept.chunks.push_back(chunk.clone());
        while (kept.bytes > SNAPSHOT_CACHE_SIZE || kept.chunks.len() > SNAPSHOT_CACHE_CHUNKS)
            && let Some(oldest) = kept.chunks.pop_front()
        {
            kept.bytes -= size(&oldest);
        }
    }
}

/// A snapshot that one watch reads.
#[derive(Debug)]
pub(super) struct SnapshotReader {
    watches: Arc<Watches>,
    next: Start,
    /// The part with which the snapshot began. It ends before this part.
    first: usize,
    is_complete: bool,
}

impl SnapshotReader {
    /// Begins a snapshot, at a recent part of other snapshots if `may_join`. Returns the watch's place, too.
    pub(super) fn begin(watches: &Arc<Watches>, may_join: bool) -> (Self, u64) {
        let mut kept = watches.snapshots.lock();
        kept.readers += 1;
        // After the lock, so that no kept chunk has a later place.
        let next = watches.log.next();
        let recent = kept.chunks.iter().rev().find(|chunk| chunk.start.from.is_none());
        let joined = recent
            .filter(|chunk| may_join && next - chunk.place <= SNAPSHOT_JOIN_CHANGES && watches.log.has(chunk.place))
            .map(|chunk| (chunk.start.part, chunk.place));
        let (part, place) = joined.unwrap_or((0, next));
        let reader = Self {
            watches: Arc::clone(watches),
            next: Start { part, from: None },
            first: part,
            is_complete: false,
        };
        (reader, place)
    }

    /// Returns the next chunk for a watch that is at `place`; `None` at the end of the table. The watch has taken a
    /// turn for [`WORK_PER_PART`]. If it encodes the chunk, it [pays](Turns::pay) for the rest of the work, even if its
    /// client cancels it meanwhile.
    pub(super) async fn next(&mut self, place: u64, turns: &Turns) -> Option<Chunk> {
        if self.is_complete {
            return None;
        }
        let snapshots = &self.watches.snapshots;
        let mut work = 0;
        let chunk = match snapshots.find(&self.next, place) {
            Some(chunk) => chunk,
            None => {
                let _permit = snapshots.permit(turns.client()).await;
                // The watch that had the permit may have used up the pass.
                turns.take(0).await;
                // Another watch may have encoded the chunk meanwhile.
                match snapshots.find(&self.next, place) {
                    Some(chunk) => chunk,
                    None => {
                        let chunk;
                        (chunk, work) = read(&self.watches, &self.next);
                        snapshots.keep(&chunk);
                        chunk
                    }
                }
            }
        };
        turns.pay(work.saturating_sub(WORK_PER_PART)).await;
        self.next.from.clone_from(&chunk.next);
        if chunk.next.is_none() {
            self.next.part = (self.next.part + 1) % RouteTable::PARTS;
            self.is_complete = self.next.part == self.first;
        }
        Some(chunk)
    }
}

impl Drop for SnapshotReader {
    fn drop(&mut self) {
        let mut kept = self.watches.snapshots.lock();
        kept.readers -= 1;
        if kept.readers == 0 {
            *kept = Kept::default();
        }
    }
}

/// Reads and encodes a chunk. Its nodes take about [`WORK_PER_PASS`], but fit into one step of the table and into one
/// message. The work for a node of the last chunk is the estimate. Returns the work, too.
fn read(watches: &Watches, start: &Start) -> (Chunk, usize) {
    /// The table returns some more nodes at a time, and is fastest then.
    const MANY: usize = 1000;
    let work_per_node = &watches.snapshots.work_per_node;
    let estimate = match work_per_node.load(Ordering::Relaxed) {
        0 => NODE_WORK + MAX_ROUTES_PER_NODE * ROUTE_WORK,
        estimate => estimate,
    };
    let mut most = match WORK_PER_PASS / estimate {
        MANY.. => usize::MAX,
        most => most,
    };
    let mut work = 0;
    loop {
        // The place before the table, so that no change is missed in between.
        let place = watches.log.next();
        let mut collector = RouteCollector::new(&watches.table);
        let (mut nodes, mut count, mut is_full) = (Vec::new(), 0, false);
        let before = work;
        let next = watches
            .table
            .nodes_of_part(start.part, start.from.as_ref(), most, |node, routes| {
                // The nodes may have more routes than those of the last chunk.
                is_full |= collector.size() >= WATCH_MESSAGE_SIZE || work - before >= 2 * WORK_PER_PASS;
                if is_full {
                    return;
                }
                count += 1;
                work += NODE_WORK + routes.len() * ROUTE_WORK;
                let node = collector.node(node, routes);
                // All proxies of a node may have been removed since the copy.
                if !node.routes.is_empty() {
                    nodes.push(node);
                }
            });
        if is_full {
            // A single node fits.
            most = (count / 2).max(1);
            continue;
        }
        if count > 0 {
            work_per_node.store((work - before).div_ceil(count), Ordering::Relaxed);
        }
        let message = (!nodes.is_empty()).then(|| {
            encode(Message::Snapshot(v1::WatchSnapshot {
                part: start.part as u32,
                proxies: collector.watched_proxies(),
                nodes: mem::take(&mut nodes),
            }))
        });
        let chunk = Chunk {
            start: start.clone(),
            place,
            message,
            next,
        };
        return (chunk, work);
    }
}

#[cfg(test)]
mod tests {
    use nodetracker::{NodeId, Proxy};

    use super::*;

    /// Otherwise one chunk would delay other calls by several passes.
    #[test]
    fn a_chunk_of_nodes_with_many_routes_after_nodes_with_few_is_small() {
        let table = Arc::new(RouteTable::new());
        let proxies: Vec<_> = (0..MAX_ROUTES_PER_NODE)
            .map(|number| {
                let proxy = Proxy {
                    id: &format!("proxy-{number}"),
                    cluster_name: "",
                    addr: "proxy:1",
                };
                table.register_proxy(&proxy).expect("there is room")
            })
            .collect();
        let part = table.part_of(&uuid::Uuid::nil().into());
        let nodes = (0..).map(|number| NodeId::from(uuid::Uuid::from_u128(number)));
        for node in nodes.filter(|node| table.part_of(node) == part).take(800) {
            for &proxy in &proxies {
                table.add_node(&node, proxy).expect("there is room");
            }
        }
        let watches = Watches::without_resume(table);
        watches
            .snapshots
            .work_per_node
            .store(NODE_WORK + ROUTE_WORK, Ordering::Relaxed);
        let start = Start { part, from: None };
        let (chunk, work) = read(&watches, &start);
        assert!(chunk.next.is_some() && chunk.message.is_some());
        assert!(work <= 4 * WORK_PER_PASS, "{work}");
    }
}
