//! `WatchService`: following the table.
//!
//! ```text
//!  writers ─▶ the table's change feed ─▶ follower ─▶ log ─▶ a watch ─▶ its client
//!  (marks)     one subscription           encodes     │
//!                                         once        └───▶ a watch ─▶ its client
//! ```
//!
//! * The [follower](tailer) is one task of the whole server. While there are watches it holds the one subscription that
//!   writers pay for, takes the marks at short intervals, reads the routes of each node that was marked *after* it has
//!   the mark, and appends a batch of changes to the log, encoded as the message that all watches send.
//! * The [log](change_log) keeps the latest changes. A watch has a place in it, which is a sequence number, and nothing else:
//!   a thousand watches are a thousand numbers. One whose place is no longer in the log has lost it.
//! * A [watch](stream) takes its place first, and copies the table then: what changes in between comes again. After the
//!   snapshot it sends the log from its place on. It is only ever asked for the next message once HTTP/2 has taken the one
//!   before, for which the client needs to have room; so a slow client is a watch that falls behind, and holds nobody up.
//!
//! # Why the last message is the truth
//!
//! The feed promises that what is read after a node's last mark is what the table holds. A snapshot may be newer than
//! some changes in the log, which then take the client back for a moment; but each change that the snapshot has seen
//! too early has a mark that follows. Removals of proxies could be told before or after changes of nodes that they have
//! to do with, since they come from another ring of the feed. So a removal names a *registration*: a node's routes that
//! were read after the removal have none of that registration, whatever proxy reports under the same ID by then; and those
//! that were read before are in the log before the removal, since the mark comes after it.

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
use crate::rpc::watch::change_log::Log;
use crate::rpc::watch::stream::Watch;

pub(crate) use tailer::follow;

/// Begins a watch. Returns its messages, encoded with their prefixes; they never end.
///
/// The messages are not of the generated type, which tonic would encode for each stream. A message is encoded once, and all
/// streams share its bytes up to the socket. So a client that reads slowly holds no copy of the changes.
pub(crate) fn watch(
    watches: Arc<Watches>,
    request: v1::WatchRequest,
    budget: SendBudget,
) -> Result<impl Stream<Item = Bytes> + Send + use<>, Status> {
    let nodes = parse::nodes(request.nodes)?;
    let watch = Watch::new(watches.enter(nodes.len())?, nodes, budget);
    Ok(unfold(watch, async |mut watch| {
        let message = watch.next().await;
        Some((message, watch))
    }))
}

/// What the follower and all watches share.
#[derive(Debug)]
pub(crate) struct Watches {
    table: Arc<RouteTable>,
    instance_id: InstanceId,
    log: Log,
    stage: Sender<Stage>,
}

/// Who is there. It changes under the channel's lock, so the follower never stops just as a watch begins.
#[derive(Debug, Default)]
struct Stage {
    watches: usize,
    /// The nodes that watches of some nodes are about, all together.
    watched_nodes: usize,
    /// Whether the follower has its subscription: what changes from here on comes into the log.
    following: bool,
}

impl Watches {
    pub(crate) fn new(table: Arc<RouteTable>, instance_id: InstanceId) -> Arc<Self> {
        Arc::new(Self {
            table,
            instance_id,
            log: Log::default(),
            stage: Sender::default(),
        })
    }

    /// How many watches there are.
    pub(crate) fn count(&self) -> usize {
        self.stage.borrow().watches
    }

    /// Counts one more watch, of so many nodes, until the place is dropped.
    ///
    /// # Errors
    ///
    /// RESOURCE_EXHAUSTED: there are as many as there may be.
    fn enter(self: &Arc<Self>, nodes: usize) -> Result<Entered, Status> {
        let mut full = None;
        self.stage.send_if_modified(|stage| {
            if stage.watches == MAX_WATCHES {
                full = Some(format!("there are {MAX_WATCHES} watches"));
            } else if stage.watched_nodes + nodes > MAX_WATCHED_NODES {
                full = Some(format!(
                    "watches are about {} nodes of {MAX_WATCHED_NODES}",
                    stage.watched_nodes
                ));
            } else {
                stage.watches += 1;
                stage.watched_nodes += nodes;
            }
            full.is_none()
        });
        match full {
            Some(full) => Err(Status::resource_exhausted(format!("{full}, which is the limit"))),
            None => Ok(Entered {
                watches: Arc::clone(self),
                nodes,
            }),
        }
    }
}

/// A watch that is counted.
#[derive(Debug)]
struct Entered {
    watches: Arc<Watches>,
    nodes: usize,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.watches.stage.send_modify(|stage| {
            stage.watches -= 1;
            stage.watched_nodes -= self.nodes;
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
        let mut entered: Vec<_> = (0..MAX_WATCHES)
            .map(|_| watches.enter(0).expect("there is room"))
            .collect();
        let refused = || watches.enter(0).expect_err("there are as many as there may be");
        assert_eq!(refused().code(), Code::ResourceExhausted);
        assert_eq!(refused().message(), "there are 10000 watches, which is the limit");
        assert_eq!(watches.count(), MAX_WATCHES);
        entered.pop();
        entered.push(watches.enter(0).expect("one has left"));
        refused();
        drop(entered);
        assert_eq!(watches.count(), 0);
    }

    #[test]
    fn watches_are_about_no_more_nodes_than_allowed() {
        let watches = Watches::new(Arc::default(), InstanceId::draw());
        let most = watches.enter(MAX_WATCHED_NODES - 1).expect("there is room");
        let last = watches.enter(1).expect("there is room");
        let refused = watches.enter(1).expect_err("there are as many as there may be");
        let message = "watches are about 1000000 nodes of 1000000, which is the limit";
        assert_eq!((refused.code(), refused.message()), (Code::ResourceExhausted, message));
        let of_all = watches.enter(0).expect("this one counts as none");
        drop((most, last, of_all));
        watches.enter(MAX_WATCHED_NODES).expect("they have left");
    }
}
