//! `WatchService`: a snapshot of the table, then its changes.
//!
//! ```text
//!  writers ─▶ the table's change feed ─▶ tailer ─▶ change log ─▶ a watch ─▶ its client
//!  (marks)     one subscription           encodes    │
//!                                         once       └─────────▶ a watch ─▶ its client
//! ```
//!
//! * The [`tailer`] is one task of the whole server. While there are watches, the tailer holds the one subscription
//!   that writers pay for. It takes the marks at short intervals, and reads the routes of each marked node *after* it has
//!   the mark. Then it appends an entry to the change log, encoded as the message that all watches send.
//! * The [change log](change_log) keeps the latest changes. A watch's place in the log is a sequence number and nothing
//!   else, so a thousand watches cost a thousand numbers. If the log has dropped a place, its watch begins again.
//! * A [watch](stream) first takes its place, then copies the table, so changes in between are sent again. After the
//!   snapshot it sends the log from its place on. A watch is polled for the next message once HTTP/2's flow control has
//!   taken the previous message. So a slow client makes its own watch fall behind, and delays no other.
//!
//! # Why the last message is current
//!
//! The feed guarantees that routes read after a node's last mark are current. A snapshot may be newer than some changes in
//! the log, which then take the client back for a moment. But every change that the snapshot has seen early has a mark that
//! follows, so the client catches up.
//!
//! Removals of proxies come from another ring of the feed, so they may be sent before or after related changes of nodes. So
//! a removal names a *registration*. Routes read after the removal have none of that registration, even if a proxy with the
//! same ID reports again. Routes read before the removal are in the log before it, because the mark of the removal comes
//! later.

mod change_log;
mod stream;
mod tailer;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::unfold;
use nodetracker::RouteTable;
use nodetracker_proto::v1;
use tokio::sync::watch::Sender;
use tonic::Status;

use crate::convert::parse;
use crate::grpc::send_budget::SendBudget;
use crate::limits::{MAX_WATCHED_NODES, MAX_WATCHES};
use crate::rpc::instance_id::InstanceId;
use crate::rpc::watch::change_log::ChangeLog;
use crate::rpc::watch::stream::Watch;

pub(crate) use tailer::tail;

/// Begins a watch. Returns its messages, encoded with their prefixes; they never end.
///
/// The messages are not of the generated type, which tonic would encode for each stream. A message is encoded once, and all
/// streams share its bytes up to the socket. So a client that reads slowly holds no copy of the changes.
pub(crate) fn watch(
    watches: Arc<Watches>,
    request: v1::WatchRequest,
    budget: SendBudget,
) -> Result<impl Stream<Item = Result<Bytes, Status>> + Send + use<>, Status> {
    let nodes = parse::nodes(request.nodes)?;
    let watch = Watch::new(watches.take_slot(nodes.len())?, nodes, budget);
    Ok(unfold(watch, async |mut watch| {
        let message = watch.next().await;
        Some((message, watch))
    }))
}

/// The state that the tailer and all watches share.
#[derive(Debug)]
pub(crate) struct Watches {
    table: Arc<RouteTable>,
    instance_id: InstanceId,
    log: ChangeLog,
    activity: Sender<Activity>,
}

/// The open watches and the tailer. Changes under the channel's lock, so the tailer never stops just as a watch begins.
#[derive(Debug, Default)]
struct Activity {
    watches: usize,
    /// The nodes of all watches that are limited to some nodes.
    watched_nodes: usize,
    /// Whether the tailer has its subscription, so that every later change reaches the log.
    is_tailing: bool,
}

impl Watches {
    pub(crate) fn new(table: Arc<RouteTable>, instance_id: InstanceId) -> Arc<Self> {
        Arc::new(Self {
            table,
            instance_id,
            log: ChangeLog::default(),
            activity: Sender::default(),
        })
    }

    /// Returns the number of open watches.
    pub(crate) fn count(&self) -> usize {
        self.activity.borrow().watches
    }

    /// Counts one more watch, limited to `nodes` nodes, until its slot is dropped.
    ///
    /// # Errors
    ///
    /// RESOURCE_EXHAUSTED: a limit is reached.
    fn take_slot(self: &Arc<Self>, nodes: usize) -> Result<WatchSlot, Status> {
        let mut full = None;
        self.activity.send_if_modified(|activity| {
            if activity.watches == MAX_WATCHES {
                full = Some(format!("there are {MAX_WATCHES} watches"));
            } else if activity.watched_nodes + nodes > MAX_WATCHED_NODES {
                full = Some(format!(
                    "watches are about {} nodes of {MAX_WATCHED_NODES}",
                    activity.watched_nodes
                ));
            } else {
                activity.watches += 1;
                activity.watched_nodes += nodes;
            }
            full.is_none()
        });
        match full {
            Some(full) => Err(Status::resource_exhausted(format!("{full}, which is the limit"))),
            None => Ok(WatchSlot {
                watches: Arc::clone(self),
                nodes,
            }),
        }
    }
}

/// The slot of an open watch.
#[derive(Debug)]
struct WatchSlot {
    watches: Arc<Watches>,
    nodes: usize,
}

impl Drop for WatchSlot {
    fn drop(&mut self) {
        self.watches.activity.send_modify(|activity| {
            activity.watches -= 1;
            activity.watched_nodes -= self.nodes;
        });
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn there_are_no_more_watches_than_allowed() {
        let watches = Watches::new(Arc::default(), InstanceId::draw());
        let mut slots: Vec<_> = (0..MAX_WATCHES)
            .map(|_| watches.take_slot(0).expect("a slot is free"))
            .collect();
        let refused = || watches.take_slot(0).expect_err("the limit is reached");
        assert_eq!(refused().code(), Code::ResourceExhausted);
        assert_eq!(refused().message(), "there are 10000 watches, which is the limit");
        assert_eq!(watches.count(), MAX_WATCHES);
        slots.pop();
        slots.push(watches.take_slot(0).expect("a slot is free again"));
        refused();
        drop(slots);
        assert_eq!(watches.count(), 0);
    }

    #[test]
    fn watches_name_no_more_nodes_than_allowed() {
        let watches = Watches::new(Arc::default(), InstanceId::draw());
        let most = watches.take_slot(MAX_WATCHED_NODES - 1).expect("a slot is free");
        let last = watches.take_slot(1).expect("a slot is free");
        let refused = watches.take_slot(1).expect_err("the limit is reached");
        let message = "watches are about 1000000 nodes of 1000000, which is the limit";
        assert_eq!((refused.code(), refused.message()), (Code::ResourceExhausted, message));
        let of_all = watches.take_slot(0).expect("a watch of all nodes counts no nodes");
        drop((most, last, of_all));
        watches.take_slot(MAX_WATCHED_NODES).expect("the slots are free again");
    }
}
