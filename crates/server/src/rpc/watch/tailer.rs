//! The follower: from the table's change feed to the log.

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nodetracker::{Event, Lagged, NodeId, ProxyRef, Reason, Route, RouteBatch, RouteTable, Subscription};
use nodetracker_proto::v1;
use nodetracker_proto::v1::watch_change::Change;
use nodetracker_proto::v1::watch_response::Message;
use tokio::task::yield_now;
use tokio::time::sleep;
use tracing::warn;

use crate::convert::encode::{self, Collector};
use crate::grpc::frame;
use crate::limits::{MAX_WATCH_CHANGES, WATCH_INTERVAL, WATCH_MESSAGE_SIZE};
use crate::rpc::watch::Watches;
use crate::rpc::watch::change_log::Batch;

/// Follows the table for ever, while somebody watches.
///
/// It shares its thread with the acceptor and the sweeper, and the table may change faster than it can follow. So they have
/// their turn after each part, and whether there still is a watch is asked each time.
pub(crate) async fn follow(watches: &Watches) -> Infallible {
    let mut stage = watches.stage.subscribe();
    let mut complaints = Complaints::default();
    let mut events = Vec::new();
    loop {
        // The sender lives as long as `watches`.
        let _ = stage.wait_for(|stage| stage.watches > 0).await;
        let mut subscription = watches.table.subscribe();
        watches.stage.send_modify(|stage| stage.following = true);
        let mut is_up_to_date = true;
        loop {
            if is_up_to_date {
                sleep(WATCH_INTERVAL).await;
            } else {
                yield_now().await;
            }
            let stops = watches.stage.send_if_modified(|stage| {
                stage.following = stage.watches > 0;
                !stage.following
            });
            if stops {
                // What changes from here on has no number.
                watches.log.lose_all();
                break;
            }
            is_up_to_date = take(watches, &mut subscription, &mut events, &mut complaints).await;
        }
    }
}

/// Takes a part of the changes that the feed has; returns whether there are no more.
async fn take(
    watches: &Watches,
    subscription: &mut Subscription<'_>,
    events: &mut Vec<Event>,
    complaints: &mut Complaints,
) -> bool {
    events.clear();
    match subscription.poll(MAX_WATCH_CHANGES, |event| events.push(event.clone())) {
        Ok(0) => true,
        Ok(_) => {
            append(watches, events).await;
            false
        }
        Err(lagged) => {
            complaints.add(lagged);
            // What was polled before the gap is a part of what is read anew.
            watches.log.lose_all();
            false
        }
    }
}

/// Complaints about a table that changes too fast, no more than one a minute.
#[derive(Default)]
struct Complaints {
    /// Those that were not made yet.
    pending: u64,
    last: Option<Instant>,
}

impl Complaints {
    fn add(&mut self, lagged: Lagged) {
        self.pending += 1;
        if self.last.is_none_or(|last| last.elapsed() >= Duration::from_secs(60)) {
            warn!(times = self.pending, "{lagged}: all watches begin anew");
            self.pending = 0;
            self.last = Some(Instant::now());
        }
    }
}

/// Reads what the events are about, and appends it to the log.
async fn append(watches: &Watches, events: &[Event]) {
    let table = &*watches.table;
    // After the marks were taken. Each node once, however often it was marked.
    let (nodes, positions) = distinct_nodes(events);
    let mut routes = RouteBatch::new();
    table.get_proxies_batch(&nodes, &mut routes);

    let mut batch = Building::new(table, watches.log.next());
    for event in events {
        if batch.is_full() {
            let next = batch.next();
            batch.finish(watches);
            yield_now().await;
            batch = Building::new(table, next);
        }
        match event {
            Event::Node { node, reason } => {
                let routes = routes.get(positions[node]).unwrap_or_default();
                batch.node(node, *reason, routes);
            }
            Event::ProxyRemoved { proxy, id } => batch.proxy_removed(*proxy, id),
            Event::ProxyChanged { proxy } => batch.proxy_moved(*proxy),
            _ => {}
        }
    }
    batch.finish(watches);
}

/// The nodes that events are about, each once, and where each is.
fn distinct_nodes(events: &[Event]) -> (Vec<NodeId>, HashMap<&NodeId, usize>) {
    let mut nodes = Vec::new();
    let mut positions = HashMap::new();
    for event in events {
        if let Event::Node { node, .. } = event {
            positions.entry(node).or_insert_with(|| {
                nodes.push(node.clone());
                nodes.len() - 1
            });
        }
    }
    (nodes, positions)
}

/// A batch on its way.
struct Building<'t> {
    collector: Collector<'t>,
    first: u64,
    changes: Vec<v1::WatchChange>,
    nodes: Vec<Option<NodeId>>,
}

impl<'t> Building<'t> {
    fn new(table: &'t RouteTable, first: u64) -> Self {
        Self {
            collector: Collector::new(table),
            first,
            changes: Vec::new(),
            nodes: Vec::new(),
        }
    }

    /// The number of the next change.
    fn next(&self) -> u64 {
        self.first + self.changes.len() as u64
    }

    fn is_full(&self) -> bool {
        self.collector.size() >= WATCH_MESSAGE_SIZE
    }

    fn push(&mut self, node: Option<NodeId>, change: Change) {
        self.changes.push(v1::WatchChange {
            sequence: self.next(),
            change: Some(change),
        });
        self.nodes.push(node);
    }

    fn node(&mut self, node: &NodeId, reason: Reason, routes: &[Route]) {
        let reason = match reason {
            Reason::Added => v1::NodeChangeReason::Added,
            Reason::Removed => v1::NodeChangeReason::Removed,
            Reason::Expired => v1::NodeChangeReason::Expired,
            _ => v1::NodeChangeReason::Unspecified,
        };
        let change = v1::WatchNodeChange {
            routes: Some(self.collector.node(node, routes)),
            reason: reason.into(),
        };
        self.push(Some(node.clone()), Change::Node(change));
    }

    fn proxy_removed(&mut self, proxy: ProxyRef, id: &str) {
        let last = v1::Proxy {
            proxy_id: id.into(),
            ..v1::Proxy::default()
        };
        self.proxy(proxy, last, v1::ProxyChangeReason::Removed);
    }

    fn proxy_moved(&mut self, proxy: ProxyRef) {
        // If it is gone, that is told as well.
        if let Some(details) = self.collector.table().proxy(proxy) {
            self.proxy(proxy, encode::proxy(details), v1::ProxyChangeReason::Moved);
        }
    }

    fn proxy(&mut self, reference: ProxyRef, proxy: v1::Proxy, reason: v1::ProxyChangeReason) {
        let change = v1::WatchProxyChange {
            proxy: Some(v1::WatchedProxy {
                registration: reference.to_bits(),
                proxy: Some(proxy),
            }),
            reason: reason.into(),
        };
        self.push(None, Change::Proxy(change));
    }

    /// Appends the batch to the log, if there is anything in it.
    fn finish(self, watches: &Watches) {
        if self.changes.is_empty() {
            return;
        }
        let message = v1::WatchChanges {
            proxies: self.collector.watched(),
            changes: self.changes,
        };
        let (message, encoded) = encoded(message);
        watches.log.push(Batch {
            message,
            encoded,
            nodes: self.nodes,
            first: self.first,
        });
    }
}

/// Encodes changes as the message that all watches send, and gives them back.
fn encoded(changes: v1::WatchChanges) -> (v1::WatchChanges, Bytes) {
    let message = v1::WatchResponse {
        message: Some(Message::Changes(changes)),
    };
    let encoded = frame::encode(&message);
    let Some(Message::Changes(changes)) = message.message else {
        unreachable!("it was put there")
    };
    (changes, encoded)
}

#[cfg(test)]
mod tests {
    use std::pin::{Pin, pin};
    use std::sync::Arc;
    use std::task::{Context, Waker};

    use nodetracker::Proxy;
    use tokio::time::advance;

    use super::*;
    use crate::rpc::instance_id::InstanceId;

    const PART: u64 = MAX_WATCH_CHANGES as u64;

    /// One turn of the follower.
    fn poll(follower: Pin<&mut impl Future<Output = Infallible>>) {
        assert!(follower.poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }

    fn change(table: &RouteTable, nodes: std::ops::Range<u64>) {
        let proxy = Proxy {
            id: "proxy",
            cluster_name: "",
            addr: "proxy:1",
        };
        for number in nodes {
            let node = format!("node-{number}").parse().expect("a name");
            table.report_node(&node, &proxy).expect("there is room");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_shares_the_thread_has_a_turn_after_each_part() {
        let table = Arc::new(RouteTable::new());
        let watches = Watches::new(Arc::clone(&table), InstanceId::draw());
        let mut follower = pin!(follow(&watches));
        poll(follower.as_mut());
        assert_eq!(table.subscriptions(), 0);
        let entered = watches.enter(0).expect("there is room");
        poll(follower.as_mut());
        assert_eq!(table.subscriptions(), 1);

        // The table changes as fast as the follower follows, and would keep it busy for ever.
        change(&table, 0..2 * PART);
        advance(WATCH_INTERVAL).await;
        for part in 1..5 {
            poll(follower.as_mut());
            assert_eq!(watches.log.next(), 1 + part * PART);
            change(&table, (part + 1) * PART..(part + 2) * PART);
        }
        drop(entered);
        poll(follower.as_mut());
        assert_eq!(table.subscriptions(), 0, "nobody watches");
        assert_eq!(watches.log.next(), 2 + 4 * PART, "what comes now has no number");
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_of_large_changes_is_several_messages_with_turns_between_them() {
        let table = Arc::new(RouteTable::new());
        let watches = Watches::new(Arc::clone(&table), InstanceId::draw());
        let _entered = watches.enter(0).expect("there is room");
        let mut follower = pin!(follow(&watches));
        poll(follower.as_mut());
        // Each change tells of all the routes that its node has by then: two kilobytes.
        const CHANGES: u64 = 960;
        for number in 0..CHANGES {
            let proxy = Proxy {
                id: &format!("proxy-{}", number % 64),
                cluster_name: "",
                addr: "proxy:1",
            };
            let node = format!("node-{}", number / 64).parse().expect("a name");
            table.report_node(&node, &proxy).expect("there is room");
        }
        advance(WATCH_INTERVAL).await;
        let mut ends = Vec::new();
        while watches.log.next() <= CHANGES {
            poll(follower.as_mut());
            ends.push(watches.log.next());
        }
        assert_eq!(ends.last(), Some(&(1 + CHANGES)));
        assert!(ends.len() >= 3 && ends.is_sorted_by(|one, next| one < next), "{ends:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn it_rests_once_it_is_up_to_date() {
        let table = Arc::new(RouteTable::new());
        let watches = Watches::new(Arc::clone(&table), InstanceId::draw());
        let _entered = watches.enter(0).expect("there is room");
        let mut follower = pin!(follow(&watches));
        poll(follower.as_mut());
        change(&table, 0..1);
        poll(follower.as_mut());
        assert_eq!(watches.log.next(), 1, "it rests");
        advance(WATCH_INTERVAL).await;
        for _ in 0..3 {
            poll(follower.as_mut());
        }
        assert_eq!(watches.log.next(), 2);
        change(&table, 1..2);
        poll(follower.as_mut());
        assert_eq!(watches.log.next(), 2, "it rests again");
        advance(WATCH_INTERVAL).await;
        poll(follower.as_mut());
        assert_eq!(watches.log.next(), 3);
    }
}
