//! `WatchService`: a snapshot of the table, then its changes.
//!
//! ```text
//!  writers ─▶ the table's change feed ─▶ tailer ─▶ change log ─▶ a watch ─▶ its client
//!  (marks)     one subscription           encodes    │              ▲
//!                                         once       └─────────▶ a watch ─▶ its client
//!                                                                   ▲
//!  the table's parts ───────────────────▶ the snapshot's chunks ─────┘
//! ```
//!
//! * The [`tailer`] is one task of the whole server. While there are watches, the tailer holds a subscription, the only
//!   subscription that writers pay for. It takes the marks at short intervals, and reads the routes of each marked node
//!   *after* it has the mark. Then it appends an entry to the change log, encoded as the message that all watches send.
//! * The [change log](change_log) keeps the latest changes. A watch's place in the log is only a sequence number, so a
//!   thousand watches cost a thousand numbers. If the log has dropped the changes at a place, the watch begins again.
//! * A [snapshot](snapshot) is read in chunks of some 1,000 nodes. All watches that begin share the encoded chunks.
//! * A [watch](stream) takes its place, and then sends chunks and the log in turns: after each chunk, the log up to the
//!   chunk's place. So the log needs to keep only the changes of two turns, however long the snapshot takes. A watch is
//!   polled for the next message once HTTP/2's flow control has taken the previous message. So a slow client makes its
//!   own watch fall behind, and delays no other.
//! * A [resync](resync) sends one part of the table again, when the feed has lost changes of the part.
//!
//! # Why the last message is current
//!
//! The feed guarantees that routes read after a node's last mark are current. The chunk's place is taken before the
//! chunk is read. A watch sends a chunk while the watch's place in the log is not after the chunk's place. So the watch
//! sends every change that the log gets after the chunk's place, and thus after the chunk. A chunk may be newer than
//! some changes that the watch sends later. These changes show the client older routes for a moment. But every change
//! that the chunk already has also has a mark that follows, so the client catches up.
//!
//! If a ring of the feed overflows, marks are lost. The subscription then continues at the ring's end, so every change
//! whose mark is lost was made before the resync of the part begins. The resync reads every node that is in the part
//! during the whole resync. If the resync does not read a node, the node was absent at some moment of the resync, or
//! was added since. An added node has a mark that follows. So a client that removes the nodes that were not sent again
//! has every lost change. A chunk that is read during a resync has the lost changes, too. So a watch whose place is
//! after the beginning of the resync lacks no change.
//!
//! Removals of proxies come from another ring of the feed, so they may be sent before or after related changes of
//! nodes. So a removal names a *registration*. Routes read after the removal have none of that registration, even if a
//! proxy with the same ID reports again. Routes read before the removal are in the log before it, because the mark of
//! the removal comes later.
//!
//! # How late a client is
//!
//! A change is in the log some milliseconds after it was made ([`WATCH_INTERVAL`](crate::limits::WATCH_INTERVAL)).
//! Nodes of a part whose ring overflowed are later by the time that its resync and the resyncs before it take
//! ([`RESYNC_RATE`](crate::limits::RESYNC_RATE)).

mod change_log;
#[cfg(test)]
mod copies;
mod entry;
mod resync;
mod snapshot;
mod stream;
mod tailer;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::unfold;
use nodetracker::RouteTable;
use nodetracker_proto::v1;
use nodetracker_proto::v1::watch_response::Message;
use tokio::sync::watch::Sender;
use tokio::time::{Instant, timeout};
use tonic::Status;

use crate::convert::parse;
use crate::grpc::frame;
use crate::grpc::handler::StreamContext;
use crate::limits::{Limits, MAX_SWEEP_WAIT, MAX_WATCHES_PER_CONNECTION};
use crate::quota::ClientQuota;
use crate::refusal::Reason;
use crate::rpc::instance_id::InstanceId;
use crate::rpc::watch::change_log::ChangeLog;
use crate::rpc::watch::snapshot::Snapshots;
use crate::rpc::watch::stream::{Watch, WatchedNodes};

pub(crate) use tailer::tail;

/// Begins a watch. Returns its messages, encoded with their prefixes; they never end.
///
/// The messages are not of the generated type, which tonic would encode for each stream. A message is encoded once, and
/// all streams share its bytes up to the socket. So a client that reads slowly holds no copy of the changes.
pub(crate) fn watch(
    watches: Arc<Watches>,
    request: v1::WatchRequest,
    context: StreamContext,
) -> Result<impl Stream<Item = Result<Bytes, Status>> + Send + use<>, Status> {
    let nodes = WatchedNodes::new(parse::nodes(request.nodes)?, &watches.table);
    let refuse = |TooManyWatches { reason, message }| context.budget.memory().refusals().refuse(reason).status(message);
    let Ok(permit) = Arc::clone(&context.watches).try_acquire_owned() else {
        return Err(refuse(TooManyWatches {
            reason: Reason::ConnectionWatches,
            message: format!("this connection has {MAX_WATCHES_PER_CONNECTION} watches, which is the limit"),
        }));
    };
    let client = context.budget.memory().client().clone();
    let slot = watches.take_slot_of(client, nodes.size()).map_err(refuse)?;
    let watch = Watch::new(slot, nodes, context, request.resume, request.accepts_resync);
    Ok(unfold((watch, permit), async |(mut watch, permit)| {
        let message = watch.next().await;
        Some((message, (watch, permit)))
    }))
}

/// Encodes a message of the stream.
fn encode(message: Message) -> Bytes {
    frame::encode(&v1::WatchResponse { message: Some(message) })
}

/// The state that the tailer and all watches share.
#[derive(Debug)]
pub(crate) struct Watches {
    table: Arc<RouteTable>,
    instance_id: InstanceId,
    log: ChangeLog,
    snapshots: Snapshots,
    activity: Sender<Activity>,
    pub(crate) max_watches: usize,
    pub(crate) max_watched_size: usize,
    /// How long the tailer continues after the last watch has ended.
    linger: Duration,
    lost_places: Counter,
    resyncs: Counter,
}

/// A counter for the metrics.
#[derive(Debug, Default)]
struct Counter(AtomicU64);

impl Counter {
    fn add_one(&self) {
        // Relaxed, here and in `get`: the counter guards no data.
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The open watches and the tailer. Changes under the channel's lock, so the tailer never stops just as a watch begins.
#[derive(Debug, Default)]
struct Activity {
    watches: usize,
    /// Bytes of the nodes of all watches that are limited to some nodes.
    watched_size: usize,
    /// When the last watch ended; `None` while there are watches.
    idle_since: Option<Instant>,
    /// Whether the tailer has its subscription, so that every later change reaches the log.
    is_tailing: bool,
    /// How often the sweeper asked the tailer to drain the feed, and how many of these drains are done.
    drains_due: u64,
    drains_done: u64,
}

impl Watches {
    pub(crate) fn new(table: Arc<RouteTable>, instance_id: InstanceId, limits: &Limits) -> Arc<Self> {
        Self::with_log(table, instance_id, limits, ChangeLog::default())
    }

    /// Returns the watches of a table. No client can resume a watch.
    #[cfg(test)]
    pub(crate) fn without_resume(table: Arc<RouteTable>) -> Arc<Self> {
        let limits = Limits {
            watch_resume: Duration::ZERO,
            ..Limits::default()
        };
        Self::new(table, InstanceId::draw(), &limits)
    }

    fn with_log(table: Arc<RouteTable>, instance_id: InstanceId, limits: &Limits, log: ChangeLog) -> Arc<Self> {
        Arc::new(Self {
            table,
            instance_id,
            log,
            snapshots: Snapshots::default(),
            activity: Sender::default(),
            max_watches: limits.max_watches,
            max_watched_size: limits.max_watched_size,
            linger: limits.watch_resume,
            lost_places: Counter::default(),
            resyncs: Counter::default(),
        })
    }

    /// Waits until the tailer has taken the changes that were made before, but at most [`MAX_SWEEP_WAIT`].
    pub(crate) async fn drain(&self) {
        let mut due = None;
        self.activity.send_if_modified(|activity| {
            if activity.is_tailing {
                activity.drains_due += 1;
                due = Some(activity.drains_due);
            }
            activity.is_tailing
        });
        if let Some(due) = due {
            let mut activity = self.activity.subscribe();
            let done = activity.wait_for(|activity| activity.drains_done >= due || !activity.is_tailing);
            // If the tailer takes longer, the sweeper continues.
            let _ = timeout(MAX_SWEEP_WAIT, done).await;
        }
    }

    /// Counts one more watch until the result is dropped.
    #[cfg(test)]
    pub(crate) fn open(self: &Arc<Self>) -> impl Sized + use<> {
        self.take_slot(0).expect("a slot is free")
    }

    /// Counts the resyncs that have begun since a place in the log, and moves the place to the log's end.
    #[cfg(test)]
    pub(crate) fn resyncs_since(&self, place: &mut u64) -> usize {
        let mut count = 0;
        while let Some(entry) = self.log.entry_at(*place).expect("no place is lost") {
            *place = entry.end();
            count += usize::from(entry.begins_resync);
        }
        count
    }

    /// Returns the number of open watches.
    pub(crate) fn count(&self) -> usize {
        self.activity.borrow().watches
    }

    /// Returns the bytes of the nodes of all watches that are limited to some nodes.
    pub(crate) fn watched_size(&self) -> usize {
        self.activity.borrow().watched_size
    }

    /// Returns how often a watch has lost its place in the changes.
    pub(crate) fn lost_places(&self) -> u64 {
        self.lost_places.get()
    }

    /// Returns how many resyncs have begun.
    pub(crate) fn resyncs(&self) -> u64 {
        self.resyncs.get()
    }

    /// Counts one more watch of a client that is alone.
    #[cfg(test)]
    fn take_slot(self: &Arc<Self>, size: usize) -> Result<WatchSlot, TooManyWatches> {
        self.take_slot_of(ClientQuota::alone(), size)
    }

    /// Counts one more watch, whose nodes take `size` bytes, until its slot is dropped.
    ///
    /// # Errors
    ///
    /// A limit is reached.
    fn take_slot_of(self: &Arc<Self>, client: ClientQuota, size: usize) -> Result<WatchSlot, TooManyWatches> {
        let mut full = None;
        // Wakes the tailer only for the first watch: clients may begin and end watches at any rate.
        self.activity.send_if_modified(|activity| {
            if activity.watches == self.max_watches {
                full = Some((Reason::Watches, format!("there are {} watches", self.max_watches)));
            } else if activity.watched_size + size > self.max_watched_size {
                let (taken, most) = (activity.watched_size, self.max_watched_size);
                let message = format!("the nodes of all watches take {taken} bytes of {most}");
                full = Some((Reason::WatchedNodes, message));
            } else if let Err(of_client) = client.take_watch(size) {
                full = Some(of_client);
            } else {
                activity.watches += 1;
                activity.watched_size += size;
                activity.idle_since = None;
            }
            full.is_none() && activity.watches == 1
        });
        match full {
            Some((reason, full)) => Err(TooManyWatches {
                reason,
                message: format!("{full}, which is the limit"),
            }),
            None => Ok(WatchSlot {
                watches: Arc::clone(self),
                client,
                size,
            }),
        }
    }
}

/// A limit on watches is reached.
#[derive(Debug, PartialEq, Eq)]
struct TooManyWatches {
    reason: Reason,
    message: String,
}

/// The slot of an open watch.
#[derive(Debug)]
struct WatchSlot {
    watches: Arc<Watches>,
    client: ClientQuota,
    /// Bytes of the watch's nodes.
    size: usize,
}

impl Drop for WatchSlot {
    fn drop(&mut self) {
        // Wakes the tailer only for the last watch.
        self.watches.activity.send_if_modified(|activity| {
            self.client.release_watch(self.size);
            activity.watches -= 1;
            activity.watched_size -= self.size;
            activity.idle_since = (activity.watches == 0).then(Instant::now);
            activity.watches == 0
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_no_more_watches_than_allowed() {
        let watches = Watches::without_resume(Arc::default());
        let mut slots: Vec<_> = (0..watches.max_watches)
            .map(|_| watches.take_slot(0).expect("a slot is free"))
            .collect();
        let refused = || watches.take_slot(0).expect_err("the limit is reached");
        let message = "there are 10000 watches, which is the limit";
        assert_eq!((refused().reason, &*refused().message), (Reason::Watches, message));
        assert_eq!(watches.count(), watches.max_watches);
        slots.pop();
        slots.push(watches.take_slot(0).expect("a slot is free again"));
        refused();
        drop(slots);
        assert_eq!(watches.count(), 0);
    }

    #[test]
    fn only_the_first_and_the_last_watch_wake_the_tailer() {
        let watches = Watches::without_resume(Arc::default());
        let mut activity = watches.activity.subscribe();
        let mut has_changed = || {
            let has_changed = activity.has_changed().expect("the sender is there");
            activity.borrow_and_update();
            has_changed
        };
        let first = watches.take_slot(0).expect("a slot is free");
        assert!(has_changed());
        let second = watches.take_slot(0).expect("a slot is free");
        drop(first);
        assert!(!has_changed());
        drop(second);
        assert!(has_changed());
    }

    #[test]
    fn the_nodes_of_watches_take_no_more_memory_than_allowed() {
        let table = RouteTable::new();
        let watches = Watches::without_resume(Arc::default());
        let names = (0..4096).map(|number| format!("{number:0>255}").parse().expect("a name"));
        let names = WatchedNodes::new(names.collect(), &table).size();
        let uuid = WatchedNodes::new(vec![uuid::Uuid::nil().into()], &table).size();
        assert!(names > 4096 * 255 && uuid < 64, "{names} and {uuid}");
        let mut slots = Vec::new();
        let refused = loop {
            match watches.take_slot(names) {
                Ok(slot) => slots.push(slot),
                Err(refused) => break refused,
            }
        };
        let taken = slots.len() * names;
        let most = watches.max_watched_size;
        assert!(taken <= most && taken + names > most);
        let message = format!("the nodes of all watches take {taken} bytes of {most}, which is the limit");
        assert_eq!((refused.reason, refused.message), (Reason::WatchedNodes, message));
        slots.push(watches.take_slot(0).expect("a watch of all nodes takes nothing"));
        drop(slots);
        watches.take_slot(most).expect("the memory is free again");
    }
}
