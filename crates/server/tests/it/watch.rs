//! Watches: every kind of message. A client that applies the messages has the table's content.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nodetracker::{NodeId, Proxy, RouteTable};
use nodetracker_proto::v1;
use nodetracker_proto::v1::node_id::Id;
use nodetracker_proto::v1::watch_change::Change;
use nodetracker_proto::v1::watch_response::Message;
use nodetracker_proto::v1::watch_service_client::WatchServiceClient;
use nodetracker_proto::v1::{NodeChangeReason, ProxyChangeReason};
use nodetracker_server::{Drained, Limits};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Streaming};
use uuid::Uuid;

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

/// What a change was, in words that tests can compare.
fn told(change: &v1::WatchChange) -> String {
    match change.change.as_ref().unwrap() {
        Change::Node(node) => format!("{} {:?}", shown(node.routes.as_ref().unwrap()), node.reason()),
        Change::Proxy(change) => {
            let proxy = change.proxy.as_ref().unwrap().proxy.as_ref().unwrap();
            format!("{} {:?}", proxy.proxy_id, change.reason())
        }
    }
}

fn shown(node: &v1::NodeRoutes) -> String {
    match node.node.as_ref().unwrap().id.as_ref().unwrap() {
        Id::Uuid(bytes) => Uuid::from_slice(bytes).unwrap().to_string(),
        Id::Name(name) => name.clone(),
    }
}

/// A client that does what the messages say.
#[derive(Debug, Default)]
struct Copy {
    /// The registrations that each node has routes through, newest first.
    nodes: HashMap<String, Vec<u64>>,
    proxies: HashMap<u64, v1::Proxy>,
    /// Of the last change, or of the snapshot; `None` while a snapshot comes.
    sequence: Option<u64>,
    of_some: bool,
}

impl Copy {
    fn take(&mut self, message: &Message) {
        match message {
            Message::Snapshot(snapshot) => {
                assert_eq!(self.sequence, None, "a snapshot among changes");
                for node in &snapshot.nodes {
                    let routes = self.routes(node, &snapshot.proxies);
                    assert!(!routes.is_empty());
                    assert_eq!(self.nodes.insert(shown(node), routes), None, "twice in a snapshot");
                }
            }
            Message::SnapshotEnd(end) => {
                assert_ne!(end.generation, 0);
                assert_eq!(self.sequence.replace(end.sequence), None);
            }
            Message::Changes(changes) => {
                assert!(!changes.changes.is_empty());
                for change in &changes.changes {
                    let before = self.sequence.replace(change.sequence).expect("a snapshot comes first");
                    if self.of_some {
                        assert!(change.sequence > before);
                    } else {
                        assert_eq!(change.sequence, before + 1);
                    }
                    self.change(change, &changes.proxies);
                }
            }
            Message::KeepAlive(_) => {}
            Message::LostPlace(_) => {
                *self = Copy {
                    of_some: self.of_some,
                    ..Copy::default()
                };
            }
        }
    }

    fn change(&mut self, change: &v1::WatchChange, proxies: &[v1::WatchedProxy]) {
        match change.change.as_ref().unwrap() {
            Change::Node(change) => {
                assert_ne!(change.reason(), NodeChangeReason::Unspecified);
                let node = change.routes.as_ref().unwrap();
                let routes = self.routes(node, proxies);
                if routes.is_empty() {
                    self.nodes.remove(&shown(node));
                } else {
                    self.nodes.insert(shown(node), routes);
                }
            }
            Change::Proxy(change) => {
                let proxy = change.proxy.clone().unwrap();
                match change.reason() {
                    ProxyChangeReason::Removed => {
                        self.proxies.remove(&proxy.registration);
                        self.nodes.retain(|_, routes| {
                            routes.retain(|route| *route != proxy.registration);
                            !routes.is_empty()
                        });
                    }
                    ProxyChangeReason::Moved => {
                        self.proxies.insert(proxy.registration, proxy.proxy.unwrap());
                    }
                    ProxyChangeReason::Unspecified => panic!("no reason"),
                }
            }
        }
    }

    fn routes(&mut self, node: &v1::NodeRoutes, proxies: &[v1::WatchedProxy]) -> Vec<u64> {
        let routes = node.routes.iter().map(|route| {
            assert!(route.last_refresh_time.is_some());
            let proxy = &proxies[route.proxy_index as usize];
            self.proxies.insert(proxy.registration, proxy.proxy.clone().unwrap());
            proxy.registration
        });
        routes.collect()
    }

    /// Each node with the ID and the address of each of its proxies.
    fn all(&self) -> BTreeSet<(String, String, String)> {
        let routes = self.nodes.iter().flat_map(|(node, routes)| {
            routes.iter().map(|route| {
                let proxy = &self.proxies[route];
                (node.clone(), proxy.proxy_id.clone(), proxy.addr.clone())
            })
        });
        routes.collect()
    }
}

/// The same of a table.
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
    copy: Copy,
}

impl Watch {
    async fn begin(server: &Running, nodes: Option<v1::NodeIds>) -> Self {
        Self::over(server.channel().await, nodes).await
    }

    async fn over(channel: Channel, nodes: Option<v1::NodeIds>) -> Self {
        let of_some = nodes.is_some();
        let request = v1::WatchRequest { nodes };
        let messages = WatchServiceClient::new(channel).watch(request).await.unwrap();
        Self {
            messages: messages.into_inner(),
            copy: Copy {
                of_some,
                ..Copy::default()
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
                Message::Snapshot(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// The next changes, so many of them.
    async fn changes(&mut self, count: usize) -> Vec<String> {
        let mut changes = Vec::new();
        while changes.len() < count {
            match self.next().await {
                Message::Changes(message) => changes.extend(message.changes.iter().map(told)),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(changes.len(), count, "{changes:?}");
        changes
    }

    /// Reads until the copy is what the table is.
    async fn until_equal(&mut self, table: &RouteTable) {
        while self.copy.sequence.is_none() || self.copy.all() != all(table) {
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
    assert_eq!(watch.copy.nodes.len(), 3001);

    // Each change by itself: changes that come together are in no order.
    table.report_node(&name("b"), &proxy("p1")).unwrap();
    assert_eq!(watch.changes(1).await, ["b Added"]);
    // A refresh is none.
    table.report_node(&name("b"), &proxy("p1")).unwrap();
    table.report_node(&name("b"), &proxy("p2")).unwrap();
    assert_eq!(watch.changes(1).await, ["b Added"]);
    assert_eq!(watch.copy.nodes["b"].len(), 2);
    let p1 = table.find_proxy("p1").unwrap();
    table.remove_route(&name("b"), p1);
    assert_eq!(watch.changes(1).await, ["b Removed"]);
    table.remove_node(&name("b"));
    assert_eq!(watch.changes(1).await, ["b Removed"]);
    assert_eq!(watch.copy.nodes.len(), 3001);

    let moved = Proxy {
        addr: "elsewhere:3080",
        ..proxy("p1")
    };
    table.report_node(&name("a"), &moved).unwrap();
    assert_eq!(watch.changes(1).await, ["p1 Moved"]);
    assert_eq!(watch.copy.all(), all(table));

    clock.advance(interval);
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
    assert_eq!(watch.copy.nodes.len(), 0);
    // What the sweeper takes away after that is nothing new.
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

/// A proxy is removed and reports again at once. The removal does not take the new routes away, in whichever order the tracker
/// reports both.
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
    let known = |watch: &Watch| watch.copy.nodes.keys().cloned().collect::<BTreeSet<_>>();
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

/// The feed has room for 512 changes of one shard; the follower, which is a task of this thread, takes none of them.
#[tokio::test]
async fn when_the_tracker_cannot_keep_up_every_watch_begins_anew() {
    let server = Running::start().await;
    let mut watches = vec![
        Watch::begin(&server, None).await,
        Watch::begin(&server, nodes(&[], &["b"])).await,
    ];
    for watch in &mut watches {
        watch.snapshot().await;
    }
    for _ in 0..1000 {
        server.table.report_node(&name("a"), &proxy("p1")).unwrap();
        server.table.remove_node(&name("a"));
    }
    server.table.report_node(&name("b"), &proxy("p1")).unwrap();
    for watch in &mut watches {
        assert_eq!(watch.next().await, Message::LostPlace(v1::WatchLostPlace {}));
        watch.snapshot().await;
        assert_eq!(watch.copy.all(), all(&server.table));
        assert_eq!(watch.copy.all().len(), 1);
    }
    server.table.remove_node(&name("b"));
    for watch in &mut watches {
        assert_eq!(watch.changes(1).await, ["b Removed"]);
    }
}

#[tokio::test]
async fn a_watch_that_does_not_read_loses_its_place_and_holds_nobody_up() {
    const CHUNK: usize = 10_000;
    let server = Running::start().await;
    // Its connection takes some thousands of changes that it does not read.
    let channel = Endpoint::from_shared(format!("http://{}", server.addr)).unwrap();
    let channel = channel
        .initial_stream_window_size(65_535)
        .initial_connection_window_size(65_535);
    let mut slow = Watch::over(channel.connect().await.unwrap(), None).await;
    slow.snapshot().await;
    let mut fast = Watch::begin(&server, None).await;
    fast.snapshot().await;
    // More than the log keeps, and than the connection takes. The tracker keeps up with it: the fast one reads along.
    for round in 0..8_u128 {
        for number in 0..CHUNK as u128 {
            let node = Uuid::from_u128((round << 32 | number) << 64).into();
            server.table.report_node(&node, &proxy("p1")).unwrap();
        }
        fast.changes(CHUNK).await;
    }
    assert_eq!(fast.copy.all(), all(&server.table));

    let mut lost = 0;
    while slow.copy.sequence.is_none() || slow.copy.nodes.len() < 8 * CHUNK {
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
    let server = Running::start().await;
    assert_eq!(server.table.subscriptions(), 0);
    let mut watches = vec![Watch::begin(&server, None).await];
    watches[0].snapshot().await;
    assert_eq!(server.table.subscriptions(), 1, "one watch");
    // A connection has up to 256 calls.
    for _ in 0..4 {
        let channel = server.channel().await;
        for _ in 0..250 {
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
    // When the last one is gone, writers pay for none.
    drop(watches);
    until(|| server.table.subscriptions() == 0).await;
    let mut again = Watch::begin(&server, None).await;
    again.snapshot().await;
    assert_eq!(again.copy.all(), all(&server.table));
    server.table.remove_node(&name("a"));
    assert_eq!(again.changes(1).await, ["a Removed"]);
}

/// What the writers do for watches is to mark each change once, in the table's feed. It is the same for one watch as for a
/// thousand, and so is what is numbered and encoded for them.
#[tokio::test]
async fn a_thousand_watches_cost_writers_what_one_does() {
    const COUNT: u64 = 1000;
    let interval = Duration::from_secs(60);
    let (clock, table) = crate::support::manual(interval);
    let server = Running::with_table(table).await;
    let table = &server.table;
    // As many additions, refreshes, removals and expiries. The follower, which is a task of this thread, sees none of it
    // before the end.
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
        clock.advance(interval + Duration::from_millis(1));
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
    for _ in 0..4 {
        let channel = server.channel().await;
        for _ in 0..250 {
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

/// Whatever happens while the snapshot is sent, and after: in the end the copy is what the table is.
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
