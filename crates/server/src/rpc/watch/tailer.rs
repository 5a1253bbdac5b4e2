//! The tailer: reads the table's change feed and appends to the change log.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::poll_fn;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nodetracker::{Event, Lagged, NodeId, ProxyRef, Reason, Route, RouteTable, Routes, Subscription};
use nodetracker_proto::v1;
use nodetracker_proto::v1::watch_change::Change;
use nodetracker_proto::v1::watch_response::Message;
use tokio::select;
use tokio::task::yield_now;
use tokio::time::sleep;
use tracing::warn;

use crate::convert::encode::{self, RouteCollector};
use crate::grpc::frame;
use crate::limits::{MAX_WATCH_CHANGES, WATCH_INTERVAL, WATCH_MESSAGE_SIZE};
use crate::rpc::watch::Watches;
use crate::rpc::watch::change_log::LogEntry;

/// Tails the table while there are watches. Never returns.
///
/// The tailer shares its thread with the acceptor and the sweeper, and the table may change faster than the tailer reads. So
/// the tailer yields after each part, and then checks whether there still are watches.
pub(crate) async fn tail(watches: &Watches) -> Infallible {
    let mut activity = watches.activity.subscribe();
    let mut warnings = LagWarnings::default();
    let mut events = Vec::new();
    loop {
        // An error cannot happen: the sender lives as long as `watches`.
        let _ = activity.wait_for(|activity| activity.watches > 0).await;
        let mut subscription = watches.table.subscribe();
        watches.activity.send_modify(|activity| activity.is_tailing = true);
        let mut is_up_to_date = true;
        loop {
            if is_up_to_date {
                // A pause first, so that changes come in batches.
                sleep(WATCH_INTERVAL).await;
                select! {
                    () = poll_fn(|cx| subscription.poll_ready(cx)) => {}
                    _ = activity.wait_for(|activity| activity.watches == 0) => {}
                }
            } else {
                yield_now().await;
            }
            let stops = watches.activity.send_if_modified(|activity| {
                activity.is_tailing = activity.watches > 0;
                !activity.is_tailing
            });
            if stops {
                // Later changes do not reach the log.
                watches.log.invalidate();
                break;
            }
            is_up_to_date = tail_part(watches, &mut subscription, &mut events, &mut warnings).await;
        }
    }
}

/// Appends a part of the feed's changes to the log. Returns `true` if the feed has no more.
async fn tail_part(
    watches: &Watches,
    subscription: &mut Subscription<'_>,
    events: &mut Vec<Event>,
    warnings: &mut LagWarnings,
) -> bool {
    events.clear();
    match subscription.drain_events(MAX_WATCH_CHANGES, |event| events.push(event.clone())) {
        Ok(0) => true,
        Ok(_) => {
            append(watches, events).await;
            false
        }
        Err(lagged) => {
            warnings.add(lagged);
            // Every watch takes a new snapshot, which has the changes before the gap.
            watches.log.invalidate();
            false
        }
    }
}

/// Warnings that the table changes too fast, at most one a minute.
#[derive(Default)]
struct LagWarnings {
    /// Lags since the last warning.
    pending: u64,
    last: Option<Instant>,
}

impl LagWarnings {
    fn add(&mut self, lagged: Lagged) {
        self.pending += 1;
        if self.last.is_none_or(|last| last.elapsed() >= Duration::from_secs(60)) {
            warn!(times = self.pending, "{lagged}: all watches start over with a snapshot");
            self.pending = 0;
            self.last = Some(Instant::now());
        }
    }
}

/// Reads the nodes and proxies of the events, and appends their changes to the log.
async fn append(watches: &Watches, events: &[Event]) {
    let table = &*watches.table;
    // The routes are read after the marks were taken, and once for each node.
    let (nodes, positions) = distinct_nodes(events);
    let routes: Vec<Routes> = table.get_proxies_batch(&nodes).collect();

    let mut entry = EntryBuilder::new(table, watches.log.next());
    for event in events {
        if entry.is_full() {
            let next = entry.next();
            entry.finish(watches);
            yield_now().await;
            entry = EntryBuilder::new(table, next);
        }
        match event {
            Event::Node { node, reason } => {
                entry.node(node, *reason, &routes[positions[node]]);
            }
            Event::ProxyRemoved { proxy, id } => entry.proxy_removed(*proxy, id),
            Event::ProxyChanged { proxy } => entry.proxy_moved(*proxy),
            _ => {}
        }
    }
    entry.finish(watches);
}

/// Returns the nodes of the events, each once, and the position of each.
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

/// A log entry under construction.
struct EntryBuilder<'t> {
    collector: RouteCollector<'t>,
    first: u64,
    changes: Vec<v1::WatchChange>,
    nodes: Vec<Option<NodeId>>,
}

impl<'t> EntryBuilder<'t> {
    fn new(table: &'t RouteTable, first: u64) -> Self {
        Self {
            collector: RouteCollector::new(table),
            first,
            changes: Vec::new(),
            nodes: Vec::new(),
        }
    }

    /// Returns the number of the next change.
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
        // If the proxy is gone, its removal is a change of its own.
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

    /// Appends the entry to the log, unless the entry is empty.
    fn finish(self, watches: &Watches) {
        if self.changes.is_empty() {
            return;
        }
        let message = v1::WatchChanges {
            proxies: self.collector.watched_proxies(),
            changes: self.changes,
        };
        let (message, encoded) = encode(message);
        watches.log.push(LogEntry {
            message,
            encoded,
            nodes: self.nodes,
            first: self.first,
        });
    }
}

/// Encodes changes as the message that all watches send. Returns the changes too.
fn encode(changes: v1::WatchChanges) -> (v1::WatchChanges, Bytes) {
    let message = v1::WatchResponse {
        message: Some(Message::Changes(changes)),
    };
    let encoded = frame::encode(&message);
    let Some(Message::Changes(changes)) = message.message else {
        unreachable!("the message has changes")
    };
    (changes, encoded)
}

#[cfg(test)]
mod tests {
    use std::pin::{Pin, pin};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Wake, Waker};

    use nodetracker::Proxy;
    use tokio::time::advance;

    use super::*;
    use crate::rpc::instance_id::InstanceId;

    const PART: u64 = MAX_WATCH_CHANGES as u64;

    /// One turn of the tailer.
    fn poll(tailer: Pin<&mut impl Future<Output = Infallible>>) {
        assert!(tailer.poll(&mut Context::from_waker(Waker::noop())).is_pending());
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
    async fn other_tasks_of_the_thread_run_after_each_part() {
        let table = Arc::new(RouteTable::new());
        let watches = Watches::new(Arc::clone(&table), InstanceId::draw());
        let mut tailer = pin!(tail(&watches));
        poll(tailer.as_mut());
        assert_eq!(table.subscriptions(), 0);
        let slot = watches.take_slot(0).expect("a slot is free");
        poll(tailer.as_mut());
        assert_eq!(table.subscriptions(), 1);

        // The table changes as fast as the tailer reads, so the tailer never catches up.
        change(&table, 0..2 * PART);
        advance(WATCH_INTERVAL).await;
        for part in 1..5 {
            poll(tailer.as_mut());
            assert_eq!(watches.log.next(), 1 + part * PART);
            change(&table, (part + 1) * PART..(part + 2) * PART);
        }
        drop(slot);
        poll(tailer.as_mut());
        assert_eq!(table.subscriptions(), 0, "nobody watches");
        assert_eq!(watches.log.next(), 2 + 4 * PART, "later changes have no number");
    }

    #[tokio::test(start_paused = true)]
    async fn large_changes_are_several_messages_with_turns_in_between() {
        let table = Arc::new(RouteTable::new());
        let watches = Watches::new(Arc::clone(&table), InstanceId::draw());
        let _slot = watches.take_slot(0).expect("a slot is free");
        let mut tailer = pin!(tail(&watches));
        poll(tailer.as_mut());
        // Each change has all current routes of its node: two kilobytes.
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
            poll(tailer.as_mut());
            ends.push(watches.log.next());
        }
        assert_eq!(ends.last(), Some(&(1 + CHANGES)));
        assert!(ends.len() >= 3 && ends.is_sorted_by(|one, next| one < next), "{ends:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_up_to_date_tailer_sleeps() {
        let table = Arc::new(RouteTable::new());
        let watches = Watches::new(Arc::clone(&table), InstanceId::draw());
        let _slot = watches.take_slot(0).expect("a slot is free");
        let mut tailer = pin!(tail(&watches));
        poll(tailer.as_mut());
        change(&table, 0..1);
        poll(tailer.as_mut());
        assert_eq!(watches.log.next(), 1, "the tailer sleeps");
        advance(WATCH_INTERVAL).await;
        for _ in 0..3 {
            poll(tailer.as_mut());
        }
        assert_eq!(watches.log.next(), 2);
        change(&table, 1..2);
        poll(tailer.as_mut());
        assert_eq!(watches.log.next(), 2, "the tailer sleeps again");
        advance(WATCH_INTERVAL).await;
        poll(tailer.as_mut());
        assert_eq!(watches.log.next(), 3);
    }

    /// Counts how often it is woken.
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_table_without_changes_does_not_wake_the_tailer() {
        let table = Arc::new(RouteTable::new());
        let watches = Watches::new(Arc::clone(&table), InstanceId::draw());
        let slot = watches.take_slot(0).expect("a slot is free");
        let mut tailer = pin!(tail(&watches));
        let woken = Arc::new(Woken(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&woken));
        let mut poll = || assert!(tailer.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        for _ in 0..3 {
            poll();
            advance(WATCH_INTERVAL).await;
        }
        poll();
        let before = woken.0.load(Ordering::Relaxed);
        advance(1_000 * WATCH_INTERVAL).await;
        assert_eq!(woken.0.load(Ordering::Relaxed), before, "nothing has changed");
        change(&table, 0..1);
        assert!(woken.0.load(Ordering::Relaxed) > before, "the change wakes the tailer");
        poll();
        assert_eq!(watches.log.next(), 2);

        for _ in 0..3 {
            poll();
            advance(WATCH_INTERVAL).await;
        }
        drop(slot);
        poll();
        assert_eq!(table.subscriptions(), 0, "nobody watches");
    }
}
