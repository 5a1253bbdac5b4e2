//! Watches: every kind of message. A client that applies the messages has the table's content.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nodetracker::{NodeId, Proxy, RouteTable};
use nodetracker_proto::v1;
use nodetracker_proto::v1::NodeChangeReason;
use nodetracker_proto::v1::watch_change::Change;
use nodetracker_proto::v1::watch_response::Message;
use nodetracker_proto::v1::watch_service_client::WatchServiceClient;
use nodetracker_server::{Drained, Limits};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Streaming};
use uuid::Uuid;

use crate::replica::{Replica, name_of};
use crate::support::{Running, SOON};
use crate::v1::nodes;

fn proxy(id: &str) -> Proxy<'_> {
    Proxy {
        id,
        cluster_name: "cluster",
        addr: "proxy:3080",
    }
}

fn name(text: &str) -> NodeId {
    text.parse().unwrap()
}

/// Describes a change, for comparisons.
fn described(change: &v1::WatchChange) -> String {
    match change.change.as_ref().unwrap() {
        Change::Node(node) => {
            let name = name_of(node.routes.as_ref().unwrap().node.as_ref());
            format!("{name} {:?}", node.reason())
        }
        Change::Proxy(change) => {
            let proxy = change.proxy.as_ref().unwrap().proxy.as_ref().unwrap();
            format!("{} {:?}", proxy.proxy_id, change.reason())
        }
        Change::Resync(resync) => format!("{:?} {}", resync.part, resync.is_complete),
    }
}

/// A client's copy, and checks of the contract's promises about the messages.
#[derive(Debug, Default)]
struct TableCopy {
    replica: Replica,
    /// Of the last change, or of the snapshot; `None` before.
    sequence: Option<u64>,
    is_complete: bool,
    of_some: bool,
}

impl TableCopy {
    fn take(&mut self, message: &Message) {
        match message {
            Message::Snapshot(snapshot) => {
                assert!(!self.is_complete, "a snapshot after its end");
                assert!(snapshot.nodes.iter().all(|node| !node.routes.is_empty()));
            }
            Message::SnapshotEnd(end) => {
                assert_ne!(end.generation, 0);
                let before = self.sequence.replace(end.sequence);
                assert!(before.is_none_or(|before| before == end.sequence || self.of_some));
                self.is_complete = true;
            }
            Message::Changes(changes) => {
                assert!(!changes.changes.is_empty());
                for change in &changes.changes {
                    let before = self.sequence.replace(change.sequence);
                    let is_next = |before| change.sequence == before + 1 || self.of_some && change.sequence > before;
                    assert!(before.is_none_or(is_next), "{} after {before:?}", change.sequence);
                    if let Some(Change::Node(node)) = &change.change {
                        assert_ne!(node.reason(), NodeChangeReason::Unspecified);
                    }
                }
            }
            Message::KeepAlive(keep_alive) => assert!(self.sequence <= Some(keep_alive.sequence)),
            Message::LostPlace(_) => {
                *self = TableCopy {
                    of_some: self.of_some,
                    ..TableCopy::default()
                };
            }
        }
        self.replica.apply(message);
    }

    /// Each node with the ID and the address of each of its proxies.
    fn all(&self) -> BTreeSet<(String, String, String)> {
        let routes = self.replica.nodes.iter().flat_map(|(name, node)| {
            node.routes.iter().map(|route| {
                let proxy = &self.replica.proxies[route];
                (name.clone(), proxy.proxy_id.clone(), proxy.addr.clone())
            })
        });
        routes.collect()
    }
}

/// Each node of a table with the ID and the address of each of its proxies.
fn all(table: &RouteTable) -> BTreeSet<(String, String, String)> {
    let mut all = BTreeSet::new();
    table.for_each_route(|node, route| {
        if let Some(proxy) = table.proxy(route.proxy) {
            all.insert((node.to_string(), proxy.id().to_string(), proxy.addr().to_string()));
        }
    });
    all
}

/// A watch over a real connection.
struct Watch {
    messages: Streaming<v1::WatchResponse>,
    copy: TableCopy,
}

impl Watch {
    async fn begin(server: &Running, nodes: Option<v1::NodeIds>) -> Self {
        Self::over(server.channel().await, nodes).await
    }

    async fn over(channel: Channel, nodes: Option<v1::NodeIds>) -> Self {
        let request = v1::WatchRequest {
            nodes,
            resume: None,
            accepts_resync: true,
        };
        Self::with(channel, request).await
    }

    async fn with(channel: Channel, request: v1::WatchRequest) -> Self {
        let of_some = request.nodes.is_some();
        let messages = WatchServiceClient::new(channel).watch(request).await.unwrap();
        Self {
            messages: messages.into_inner(),
            copy: TableCopy {
                of_some,
                ..TableCopy::default()
            },
        }
    }

    async fn next(&mut self) -> Message {
        let message = self.messages.message().await.unwrap();
        let message = message.expect("a watch does not end").message.unwrap();
        self.copy.take(&message);
        message
    }

    /// Reads the snapshot, to its end.
    async fn snapshot(&mut self) {
        loop {
            match self.next().await {
                Message::SnapshotEnd(_) => return,
                Message::Snapshot(_) | Message::Changes(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Reads the next `count` changes.
    async fn changes(&mut self, count: usize) -> Vec<String> {
        let mut changes = Vec::new();
        while changes.len() < count {
            match self.next().await {
                Message::Changes(message) => changes.extend(message.changes.iter().map(described)),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(changes.len(), count, "{changes:?}");
        changes
    }

    /// Reads until the copy equals the table.
    async fn until_equal(&mut self, table: &RouteTable) {
        while !self.copy.is_complete || self.copy.all() != all(table) {
            self.next().await;
        }
    }
}

#[tokio::test]
async fn a_snapshot_comes_first_and_then_every_change_with_its_reason() {
    let interval = Duration::from_secs(10);
    let (clock, table) = crate::support::manual(interval);
    let server = Running::with_table(table).await;
    let table = &server.table;
    for number in 0..3000_u128 {
        table
            .report_node(&Uuid::from_u128(number << 64).into(), &proxy("p1"))
            .unwrap();
    }
    table.report_node(&name("a"), &proxy("p1")).unwrap();
    let mut watch = Watch::begin(&server, None).await;
    watch.snapshot().await;
    assert_eq!(watch.copy.all(), all(table));
    assert_eq!(watch.copy.replica.nodes.len(), 3001);

    // Each change by itself: changes that come together are in no order.
    table.report_node(&name("b"), &proxy("p1")).unwrap();
    assert_eq!(watch.changes(1).await, ["b Added"]);
    // A refresh is none.
    table.report_node(&name("b"), &proxy("p1")).unwrap();
    table.report_node(&name("b"), &proxy("p2")).unwrap();
    assert_eq!(watch.changes(1).await, ["b Added"]);
    assert_eq!(watch.copy.replica.nodes["b"].routes.len(), 2);
    let p1 = table.find_proxy("p1").unwrap();
    table.remove_route(&name("b"), p1);
    assert_eq!(watch.changes(1).await, ["b Removed"]);
    table.remove_node(&name("b"));
    assert_eq!(watch.changes(1).await, ["b Removed"]);
    assert_eq!(watch.copy.replica.nodes.len(), 3001);

    let moved = Proxy {
        addr: "elsewhere:3080",
        ..proxy("p1")
    };
    table.report_node(&name("a"), &moved).unwrap();
    assert_eq!(watch.changes(1).await, ["p1 Moved"]);
    assert_eq!(watch.copy.all(), all(table));

    crate::support::pass(table, &clock, interval);
    for number in 0..3000_u128 {
        table
            .report_node(&Uuid::from_u128(number << 64).into(), &moved)
            .unwrap();
    }
    clock.advance(Duration::from_millis(1));
    // Two rounds: the server's sweeper may have begun one.
    for _ in 0..2 {
        while !table.sweep(256).round_completed {}
    }
    assert_eq!(watch.changes(1).await, ["a Expired"]);

    table.remove_proxy_by_id("p1");
    assert_eq!(watch.changes(1).await, ["p1 Removed"]);
    assert_eq!(watch.copy.replica.nodes.len(), 0);
    // After that, the sweeper removes routes. The tracker does not report them again.
    for _ in 0..2 {
        while !table.sweep(256).round_completed {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    assert!(
        watch
            .changes(3000)
            .await
            .iter()
            .all(|change| change.ends_with("Expired"))
    );
    assert_eq!(watch.copy.all(), BTreeSet::new());
}

/// A proxy is removed and reports again at once. The removal does not take the new routes away, in whichever order the
/// tracker reports both.
#[tokio::test]
async fn a_proxy_that_comes_back_is_another_registration() {
    let server = Running::start().await;
    server.table.report_node(&name("a"), &proxy("p1")).unwrap();
    let mut watch = Watch::begin(&server, None).await;
    watch.snapshot().await;
    for _ in 0..50 {
        server.table.remove_proxy_by_id("p1");
        server.table.report_node(&name("a"), &proxy("p1")).unwrap();
        let mut changes = watch.changes(2).await;
        changes.sort();
        assert_eq!(changes, ["a Added", "p1 Removed"]);
        assert_eq!(watch.copy.all(), all(&server.table));
    }
}

#[tokio::test]
async fn a_watch_of_some_nodes_is_told_of_these() {
    let server = Running::start().await;
    let table = &server.table;
    for node in ["a", "b", "c"] {
        table.report_node(&name(node), &proxy("p1")).unwrap();
    }
    let mut watch = Watch::begin(&server, nodes(&[7], &["a", "d"])).await;
    watch.snapshot().await;
    let known = |watch: &Watch| watch.copy.replica.nodes.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(known(&watch), ["a".to_owned()].into());

    // In one batch with changes of other nodes.
    table.report_node(&name("b"), &proxy("p2")).unwrap();
    table.report_node(&name("e"), &proxy("p3")).unwrap();
    table.report_node(&name("d"), &proxy("p3")).unwrap();
    table.report_node(&Uuid::from_u128(7).into(), &proxy("p4")).unwrap();
    let mut changes = watch.changes(2).await;
    changes.sort();
    let uuid = Uuid::from_u128(7).to_string();
    assert_eq!(changes, [format!("{uuid} Added"), "d Added".into()]);
    let found = watch.copy.all();
    let is = |node: &str, proxy: &str| (node.to_owned(), proxy.to_owned(), "proxy:3080".to_owned());
    assert_eq!(found, [is("a", "p1"), is("d", "p3"), is(&uuid, "p4")].into());

    // The tracker reports proxies in any case.
    table.remove_proxy_by_id("p2");
    assert_eq!(watch.changes(1).await, ["p2 Removed"]);
    table.remove_proxy_by_id("p1");
    assert_eq!(watch.changes(1).await, ["p1 Removed"]);
    assert_eq!(known(&watch), ["d".to_owned(), uuid].into());
}

/// The feed has room for 512 changes of one part; the tailer, which is a task of this thread, takes none of them.
#[tokio::test]
async fn when_the_tracker_cannot_keep_up_the_part_is_sent_again() {
    let server = Running::start().await;
    let table = &server.table;
    for node in ["a", "b"] {
        table.report_node(&name(node), &proxy("p1")).unwrap();
    }
    let mut watches = vec![
        Watch::begin(&server, None).await,
        Watch::begin(&server, nodes(&[], &["a", "b", "c"])).await,
    ];
    let old = v1::WatchRequest::default();
    let mut old = Watch::with(server.channel().await, old).await;
    for watch in watches.iter_mut().chain([&mut old]) {
        watch.snapshot().await;
    }
    let moved = Proxy {
        addr: "elsewhere:3080",
        ..proxy("p1")
    };
    for _ in 0..1000 {
        table.remove_node(&name("a"));
        table.report_node(&name("a"), &moved).unwrap();
        table.report_node(&name("a"), &proxy("p1")).unwrap();
    }
    table.remove_node(&name("a"));
    table.report_node(&name("c"), &moved).unwrap();
    for watch in &mut watches {
        while watch.copy.all() != all(table) {
            let message = watch.next().await;
            assert!(matches!(message, Message::Changes(_)), "{message:?}");
        }
    }
    while !matches!(old.next().await, Message::LostPlace(_)) {}
    old.snapshot().await;
    old.until_equal(table).await;
    table.remove_node(&name("b"));
    for watch in watches.iter_mut().chain([&mut old]) {
        watch.until_equal(table).await;
        assert_eq!(watch.copy.replica.nodes.len(), 1);
    }
}

#[tokio::test]
async fn a_client_that_comes_back_goes_on_without_a_snapshot() {
    let server = Running::start().await;
    let table = &server.table;
    for node in ["a", "b"] {
        table.report_node(&name(node), &proxy("p1")).unwrap();
    }
    for of_some in [false, true] {
        let request = || v1::WatchRequest {
            nodes: of_some.then(|| nodes(&[], &["a", "b", "c"]).unwrap()),
            resume: None,
            accepts_resync: true,
        };
        let mut watch = Watch::with(server.channel().await, request()).await;
        watch.snapshot().await;
        table.report_node(&name("c"), &proxy("p2")).unwrap();
        watch.until_equal(table).await;
        let copy = watch.copy;
        // No watch is left. The tracker still keeps the changes.
        drop(watch.messages);
        table.remove_node(&name("c"));
        table.remove_node(&name("a"));
        let place = copy.replica.place.unwrap();
        let again = |resume| v1::WatchRequest {
            resume: Some(resume),
            ..request()
        };
        let mut watch = Watch::with(server.channel().await, again(place)).await;
        watch.copy = copy;
        let first = watch.next().await;
        assert!(
            matches!(&first, Message::SnapshotEnd(end) if end.sequence == place.sequence),
            "{first:?}"
        );
        let mut changes = watch.changes(2).await;
        changes.sort();
        assert_eq!(changes, ["a Removed", "c Removed"]);
        watch.until_equal(table).await;
        // Places that the tracker does not have.
        for lost in [
            v1::WatchPlace { generation: 1, ..place },
            v1::WatchPlace {
                sequence: u64::MAX,
                ..place
            },
            v1::WatchPlace {
                sequence: 1 << 40,
                ..place
            },
        ] {
            let mut watch = Watch::with(server.channel().await, again(lost)).await;
            assert_eq!(watch.next().await, Message::LostPlace(v1::WatchLostPlace {}));
            watch.snapshot().await;
            assert_eq!(watch.copy.all(), all(table));
        }
        table.report_node(&name("a"), &proxy("p1")).unwrap();
    }
}

#[tokio::test]
async fn a_watch_that_does_not_read_loses_its_place_and_holds_nobody_up() {
    const CHUNK: usize = 10_000;
    let server = Running::start().await;
    // The connection buffers some thousands of changes that the client does not read.
    let channel = Endpoint::from_shared(format!("http://{}", server.addr)).unwrap();
    let channel = channel
        .initial_stream_window_size(65_535)
        .initial_connection_window_size(65_535);
    let mut slow = Watch::over(channel.connect().await.unwrap(), None).await;
    slow.snapshot().await;
    let mut fast = Watch::begin(&server, None).await;
    fast.snapshot().await;
    // More changes than the log keeps, and than the connection buffers. The fast watch reads along.
    for round in 0..8_u128 {
        for number in 0..CHUNK as u128 {
            let node = Uuid::from_u128((round << 32 | number) << 64).into();
            server.table.report_node(&node, &proxy("p1")).unwrap();
        }
        fast.changes(CHUNK).await;
    }
    assert_eq!(fast.copy.all(), all(&server.table));

    let mut lost = 0;
    while !slow.copy.is_complete || slow.copy.replica.nodes.len() < 8 * CHUNK {
        lost += usize::from(matches!(slow.next().await, Message::LostPlace(_)));
    }
    assert_eq!(lost, 1);
    assert_eq!(slow.copy.all(), all(&server.table));
    server.table.remove_node(&Uuid::from_u128(0).into());
    let gone = format!("{} Removed", Uuid::from_u128(0));
    assert_eq!(slow.changes(1).await, [&*gone]);
    assert_eq!(fast.changes(1).await, [&*gone]);
}

/// Waits for what another task is about to do.
async fn until(mut is_so: impl FnMut() -> bool) {
    while !is_so() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_thousand_watches_are_one_subscription() {
    let limits = Limits {
        watch_resume: Duration::ZERO,
        ..Limits::default()
    };
    let server = Running::with(RouteTable::new(), limits).await;
    assert_eq!(server.table.subscriptions(), 0);
    let mut watches = vec![Watch::begin(&server, None).await];
    watches[0].snapshot().await;
    assert_eq!(server.table.subscriptions(), 1, "one watch");
    // A connection has up to 64 watches.
    for _ in 0..20 {
        let channel = server.channel().await;
        for _ in 0..50 {
            watches.push(Watch::over(channel.clone(), None).await);
        }
    }
    for watch in &mut watches[1..] {
        watch.snapshot().await;
    }
    assert_eq!(server.table.subscriptions(), 1, "a thousand and one");

    server.table.report_node(&name("a"), &proxy("p1")).unwrap();
    for watch in &mut watches {
        assert_eq!(watch.changes(1).await, ["a Added"]);
    }
    // After the last watch has ended, writers pay nothing.
    drop(watches);
    until(|| server.table.subscriptions() == 0).await;
    let mut again = Watch::begin(&server, None).await;
    again.snapshot().await;
    assert_eq!(again.copy.all(), all(&server.table));
    server.table.remove_node(&name("a"));
    assert_eq!(again.changes(1).await, ["a Removed"]);
}

/// For watches, writers only mark each change once, in the table's feed. A thousand watches cost writers no more than
/// one watch, and the tracker numbers and encodes each change only once.
#[tokio::test]
async fn a_thousand_watches_cost_writers_what_one_does() {
    const COUNT: u64 = 1000;
    let interval = Duration::from_secs(60);
    let (clock, table) = crate::support::manual(interval);
    let server = Running::with_table(table).await;
    let table = &server.table;
    // As many additions, refreshes, removals and expiries. The follower, which is a task of this thread, sees none of
    // it before the end.
    let work = || {
        let before = table.marked_changes();
        let ids: Vec<NodeId> = (0..2 * u128::from(COUNT))
            .map(|number| Uuid::from_u128(number).into())
            .collect();
        let (half, rest) = ids.split_at(COUNT as usize);
        for node in &ids {
            table.report_node(node, &proxy("p1")).unwrap();
        }
        for node in rest {
            table.report_node(node, &proxy("p1")).unwrap();
        }
        for node in half {
            table.remove_node(node);
        }
        crate::support::pass(table, &clock, interval + Duration::from_millis(1));
        for _ in 0..2 {
            while !table.sweep(256).round_completed {}
        }
        assert_eq!(table.len(), 0);
        table.marked_changes() - before
    };
    assert_eq!(work(), 0, "nobody watches");

    let mut first = Watch::begin(&server, None).await;
    first.snapshot().await;
    let place = first.copy.sequence.unwrap();
    assert_eq!(work(), 4 * COUNT, "one watch");
    first.changes(4 * COUNT as usize).await;
    assert_eq!(first.copy.sequence, Some(place + 4 * COUNT));

    // These do not read what they are sent.
    let mut watches = Vec::new();
    for _ in 0..20 {
        let channel = server.channel().await;
        for _ in 0..50 {
            watches.push(Watch::over(channel.clone(), None).await);
        }
    }
    for watch in &mut watches {
        watch.snapshot().await;
    }
    let mut last = Watch::begin(&server, None).await;
    last.snapshot().await;
    assert_eq!(work(), 4 * COUNT, "a thousand and two");
    assert_eq!(table.subscriptions(), 1);
    for watch in [&mut first, &mut last] {
        watch.changes(4 * COUNT as usize).await;
        assert_eq!(watch.copy.sequence, Some(place + 8 * COUNT));
        assert_eq!(watch.copy.all(), BTreeSet::new());
    }
}

/// In the end, the copy equals the table, whatever changes during and after the snapshot.
#[tokio::test]
async fn a_copy_converges_while_everything_changes() {
    let server = Running::start().await;
    let table = Arc::clone(&server.table);
    let stop = Arc::new(AtomicBool::new(false));
    let writer = std::thread::spawn({
        let (table, stop) = (Arc::clone(&table), Arc::clone(&stop));
        move || {
            let proxies = ["p1", "p2", "p3", "p4"];
            let mut step = 0_u128;
            while !stop.load(Ordering::Relaxed) {
                // Any order will do: a small multiplicative generator.
                step = (step + 1) * 0x9E37_79B9 % 0xFFFF_FFFB;
                let node = Uuid::from_u128((step % 2_000) << 64).into();
                let id = proxies[(step >> 11) as usize % proxies.len()];
                match step % 97 {
                    0 => _ = table.remove_proxy_by_id(id),
                    1..20 => _ = table.remove_node(&node),
                    _ => {
                        let addr = format!("p:{}", 1 + step % 2);
                        let proxy = Proxy {
                            addr: &addr,
                            ..proxy(id)
                        };
                        table.report_node(&node, &proxy).unwrap();
                    }
                }
                if step.is_multiple_of(16) {
                    table.sweep(256);
                    std::thread::sleep(Duration::from_micros(100));
                }
            }
        }
    });
    let mut watches = Vec::new();
    for _ in 0..3 {
        let mut watch = Watch::begin(&server, None).await;
        for _ in 0..100 {
            watch.next().await;
        }
        watches.push(watch);
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    for watch in &mut watches {
        tokio::time::timeout(Duration::from_secs(30), watch.until_equal(&table))
            .await
            .expect("the copy is not what the table is");
    }
}

#[tokio::test]
async fn bad_nodes_are_refused() {
    let server = Running::start().await;
    let mut client = WatchServiceClient::new(server.channel().await);
    let request = v1::WatchRequest {
        nodes: nodes(&[1], &["a", ""]),
        ..v1::WatchRequest::default()
    };
    let status = client.watch(request).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::InvalidArgument, "nodes.names[1] is empty")
    );
    assert_eq!(server.table.subscriptions(), 0);
}

#[tokio::test]
async fn a_server_that_stops_ends_its_watches() {
    let server = Running::start().await;
    let mut watch = Watch::begin(&server, None).await;
    watch.snapshot().await;
    let stopped = tokio::spawn(server.stop());
    let status = watch.messages.message().await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(stopped.await.unwrap(), Drained::Completely);
}

#[tokio::test]
async fn a_connection_that_grows_old_ends_its_watches() {
    let limits = Limits {
        handshake: SOON,
        max_connection_age: 2 * SOON,
        ..Limits::default()
    };
    let server = Running::with(RouteTable::new(), limits).await;
    let mut watch = Watch::begin(&server, None).await;
    watch.snapshot().await;
    let status = watch.messages.message().await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("another"), "{status:?}");
}
