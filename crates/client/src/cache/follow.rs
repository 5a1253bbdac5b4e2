//! Drops a node's answer when a tracker sends a change of the node.
//!
//! The watch is of all nodes, and begins at the present place, so the tracker sends no snapshot. A watch of only the
//! cached nodes would send less. But the nodes of a watch are fixed, so each new node in the cache would need a new
//! watch.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use nodetracker_proto::v1;
use nodetracker_proto::v1::ProxyChangeReason;
use nodetracker_proto::v1::watch_change::Change;
use nodetracker_proto::v1::watch_response::Message;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tonic::Status;
use tracing::warn;

use crate::backoff::{Backoff, Limits};
use crate::cache::RouteCache;
use crate::connect::NoTls;
use crate::connect::addr::TrackerAddr;
use crate::connect::channel::{Channel, ConnectConfig};
use crate::watch::{place, watch};
use crate::wire::node_id;

/// How long to wait for the place at which the watch begins.
const PLACE_LIMIT: Duration = Duration::from_secs(5);

/// The cache ends a watch that is silent for this time. Trackers send a message at least every 25 seconds.
const SILENCE_LIMIT: Duration = Duration::from_secs(40);

/// Tasks that follow the changes of trackers. Dropping the follower ends the tasks.
#[derive(Debug)]
#[must_use = "the tasks end when the result is dropped"]
pub struct Follower(#[expect(dead_code, reason = "dropping it ends the tasks")] JoinSet<Infallible>);

impl RouteCache {
    /// Follows the changes of each of these trackers, until the result is dropped. The trackers should be the trackers
    /// that look-ups ask. Each tracker sends each change of the fleet, some hundred bytes. A change from any tracker
    /// drops the node's answer. The next answer may come from a tracker that lacks the change. When that tracker sends
    /// the change, the cache drops this answer, too. While the cache cannot follow a tracker, only the bounds of the
    /// [`CacheConfig`](crate::cache::CacheConfig) apply to the tracker's answers.
    ///
    /// # Errors
    ///
    /// If an address needs TLS and the configuration has none.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with its time and I/O enabled.
    pub fn follow(&self, trackers: &[TrackerAddr], config: &ConnectConfig) -> Result<Follower, NoTls> {
        config.check(trackers)?;
        let follow = |addr: &TrackerAddr| follow_forever(self.clone(), addr.clone(), config.channel(addr));
        Ok(Follower(trackers.iter().map(follow).collect()))
    }

    /// Drops the answers that a message changes. Returns `false` if the tracker has dropped changes since the place.
    pub(super) fn apply(&self, message: Message) -> bool {
        match message {
            // Answers from before the watch may have changed without a message.
            Message::SnapshotEnd(_) => self.invalidate_all(),
            Message::Changes(changes) => {
                // One search of the cache for all proxies of a message.
                let mut proxies = HashSet::new();
                let changes = changes.changes.into_iter().filter_map(|change| change.change);
                changes.for_each(|change| match change {
                    Change::Node(node) => match node_id(node.routes.and_then(|routes| routes.node).as_ref()) {
                        Ok(node) => self.invalidate(&node),
                        Err(_) => self.invalidate_all(),
                    },
                    // The beginning of the resync has dropped all answers.
                    Change::Proxy(change) if change.reason() == ProxyChangeReason::Resync => {}
                    Change::Proxy(change) => {
                        let proxy = change.proxy.and_then(|watched| watched.proxy);
                        proxies.extend(proxy.map(|proxy| proxy.proxy_id));
                    }
                    // The tracker has lost changes.
                    Change::Resync(resync) if !resync.is_complete => self.invalidate_all(),
                    Change::Resync(_) => {}
                });
                if !proxies.is_empty() {
                    self.invalidate_proxies(Arc::new(proxies));
                }
            }
            Message::LostPlace(_) => return false,
            Message::Snapshot(_) | Message::KeepAlive(_) => {}
        }
        true
    }
}

/// Follows a tracker, and begins again when its watch has ended.
async fn follow_forever(cache: RouteCache, addr: TrackerAddr, channel: Channel) -> Infallible {
    let limits = Limits::default();
    let mut backoff = Backoff::new(limits, fastrand::u64(..));
    loop {
        let begun = Instant::now();
        let Err(status) = follow(&cache, &channel).await;
        warn!("the cache no longer follows {addr}: {status}");
        if begun.elapsed() >= limits.max {
            backoff.reset();
        }
        sleep(backoff.next_wait()).await;
    }
}

/// Follows a tracker until its watch ends.
async fn follow(cache: &RouteCache, channel: &Channel) -> Result<Infallible, Status> {
    let request = v1::WatchRequest {
        nodes: None,
        resume: Some(place(channel, PLACE_LIMIT).await?),
        accepts_resync: true,
    };
    let mut messages = watch(channel, request);
    loop {
        let silent = |_| Status::deadline_exceeded(format!("no message for {SILENCE_LIMIT:?}"));
        let response = timeout(SILENCE_LIMIT, messages.try_next()).await.map_err(silent)??;
        let response = response.ok_or_else(|| Status::unavailable("the tracker ended the stream"))?;
        if !response.message.is_none_or(|message| cache.apply(message)) {
            return Err(Status::data_loss("the tracker has dropped changes"));
        }
    }
}
