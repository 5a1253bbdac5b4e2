//! Copies that clients keep, under random changes, bursts, pauses and cuts: each copy becomes equal to the table.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use fastrand::Rng;
use nodetracker::{ManualClock, NodeId, Proxy, RouteTable};
use nodetracker_proto::v1;
use nodetracker_proto::v1::watch_response::Message;
use prost::Message as _;
use tokio::time::{Instant, advance};
use uuid::Uuid;

use crate::convert::encode;
use crate::grpc::frame::PREFIX;
use crate::grpc::handler::StreamContext;
use crate::limits::{Limits, RESYNC_RATE, WATCH_INTERVAL};
use crate::rpc::instance_id::InstanceId;
use crate::rpc::watch::change_log::{Capacity, ChangeLog};
use crate::rpc::watch::stream::{Watch, WatchedNodes};
use crate::rpc::watch::{Watches, tail};
use replica::Replica;

#[path = "../../../examples/client/replica.rs"]
mod replica;

const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// Few, so that each node changes often, but enough for several nodes in a part.
const NODES: u64 = 600;

/// A client, whose connection may be cut at any time.
struct Client {
    watch: Option<Watch>,
    replica: Replica,
    nodes: Vec<NodeId>,
    accepts_resync: bool,
}

/// How often clients got each kind of message that is rare.
#[derive(Debug, Default)]
struct Seen {
    resyncs: usize,
    lost_places: usize,
    resumed: usize,
}

impl Client {
    fn connect(&mut self, watches: &Arc<Watches>, resumes: bool) {
        let resume = self.replica.place.filter(|_| resumes);
        if resume.is_none() {
            self.replica = Replica::default();
        }
        let nodes = WatchedNodes::new(self.nodes.clone(), &watches.table);
        let slot = watches.take_slot(nodes.size()).expect("a slot is free");
        let context = StreamContext::default();
        self.watch = Some(Watch::new(slot, nodes, context, resume, self.accepts_resync));
    }

    /// Reads the next message, if there is one.
    fn read(&mut self, seen: &mut Seen) -> bool {
        let Some(watch) = &mut self.watch else { return false };
        let message = {
            let mut next = pin!(watch.next());
            let cx = &mut Context::from_waker(Waker::noop());
            // Parts without nodes take a poll each.
            let polled = (0..2 * RouteTable::PARTS).find_map(|_| match next.as_mut().poll(cx) {
                Poll::Ready(message) => Some(message.expect("there is memory")),
                Poll::Pending => None,
            });
            match polled {
                Some(message) => message,
                None => return false,
            }
        };
        let message = v1::WatchResponse::decode(&message[PREFIX..]).expect("a valid message");
        let message = message.message.expect("a message");
        match &message {
            Message::LostPlace(_) => seen.lost_places += 1,
            Message::SnapshotEnd(_) if self.replica.place.is_some() => seen.resumed += 1,
            Message::Changes(changes) => {
                let is_resync = |change: &v1::WatchChange| matches!(change.change, Some(v1::watch_change::Change::Resync(resync)) if !resync.is_complete);
                seen.resyncs += changes.changes.iter().filter(|change| is_resync(change)).count();
            }
            _ => {}
        }
        self.replica.apply(&message);
        true
    }

    /// Each node of the copy with the ID and the address of each of its proxies.
    fn all(&self) -> BTreeSet<(String, String, String)> {
        let routes = self.replica.nodes.iter().flat_map(|(name, node)| {
            node.routes.iter().map(|route| {
                let proxy = &self.replica.proxies[route];
                (name.clone(), proxy.proxy_id.clone(), proxy.addr.clone())
            })
        });
        routes.collect()
    }

    /// The same of the table.
    fn expected(&self, table: &RouteTable) -> BTreeSet<(String, String, String)> {
        let mut all = BTreeSet::new();
        table.for_each_route(|node, route| {
            if (self.nodes.is_empty() || self.nodes.contains(node))
                && let Some(proxy) = table.proxy(route.proxy)
            {
                all.insert((node.to_string(), proxy.id().to_string(), proxy.addr().to_string()));
            }
        });
        all
    }
}

fn node(number: u64) -> NodeId {
    if number.is_multiple_of(3) {
        format!("node-{number}").parse().expect("a name")
    } else {
        Uuid::from_u64_pair(number, number).into()
    }
}

fn report(table: &RouteTable, node: &NodeId, proxy: u8, port: u8) {
    let proxy = Proxy {
        id: &format!("proxy-{proxy}"),
        cluster_name: "cluster",
        addr: &format!("proxy:{port}"),
    };
    table.report_node(node, &proxy).expect("there is room");
}

/// One random change, or a burst of changes that overflows a ring of the feed.
fn change(table: &RouteTable, clock: &ManualClock, random: &mut Rng) {
    let any = node(random.u64(..NODES));
    match random.u8(..100) {
        0..50 => report(table, &any, random.u8(..6), random.u8(1..3)),
        50..80 => _ = table.remove_node(&any),
        80..84 => _ = table.remove_proxy_by_id(&format!("proxy-{}", random.u8(..6))),
        84..90 => {
            for _ in 0..random.u8(1..30) {
                table.remove_node(&any);
                report(table, &any, random.u8(..6), 1);
            }
            if random.bool() {
                table.remove_node(&any);
            }
        }
        90..94 => {
            // One proxy alternates its address, or comes and goes.
            for port in 0..random.u8(1..30) {
                report(table, &any, 0, 1 + port % 2);
                if random.u8(..4) == 0 {
                    table.remove_proxy_by_id("proxy-0");
                }
            }
        }
        94..97 => clock.advance(KEEP_ALIVE / 3),
        _ => _ = table.sweep(random.usize(1..200)),
    }
}

fn poll(tailer: &mut Pin<&mut impl Future<Output = Infallible>>) {
    let cx = &mut Context::from_waker(Waker::noop());
    assert!(tailer.as_mut().poll(cx).is_pending());
}

async fn run(seed: u64, seen: &mut Seen) {
    let mut random = Rng::with_seed(seed);
    let clock = ManualClock::new();
    let builder = RouteTable::builder().clock(clock.clone()).keep_alive(KEEP_ALIVE);
    let table = Arc::new(builder.feed_ring(8).build().expect("possible limits"));
    let log = ChangeLog::with_capacity(Capacity {
        changes: 300,
        bytes: 1 << 20,
    });
    let limits = Limits {
        watch_resume: Duration::from_millis(50),
        ..Limits::default()
    };
    let watches = Watches::with_log(Arc::clone(&table), InstanceId::draw(), &limits, log);
    let mut tailer = pin!(tail(&watches));
    let mut clients: Vec<_> = (0..4)
        .map(|number| Client {
            watch: None,
            replica: Replica::default(),
            nodes: (0..NODES * (number % 2)).step_by(7).map(node).collect(),
            accepts_resync: number != 2,
        })
        .collect();
    for phase in 0..3 {
        for _ in 0..1_500 {
            match random.u8(..100) {
                0..60 => change(&table, &clock, &mut random),
                60..75 => poll(&mut tailer),
                75..80 => advance(WATCH_INTERVAL).await,
                80..98 => {
                    let client = random.usize(..clients.len());
                    let client = &mut clients[client];
                    if client.watch.is_none() {
                        client.connect(&watches, random.u8(..4) > 0);
                    }
                    for _ in 0..random.u8(1..40) {
                        client.read(seen);
                    }
                }
                _ => {
                    let client = random.usize(..clients.len());
                    clients[client].watch = None;
                }
            }
        }

        // Nothing changes any more: after the stated time, each copy is equal to the table.
        while !table.sweep(512).round_completed {}
        while !table.sweep(512).round_completed {}
        for client in &mut clients {
            if client.watch.is_none() {
                client.connect(&watches, true);
            }
        }
        // Each part may have to be sent again twice: a resync may have begun before the last loss. No change takes more
        // than 1,000 bytes here.
        let resyncs = 2 * 1_000 * (table.len() + 2 * RouteTable::PARTS);
        let stated = 4 * WATCH_INTERVAL + Duration::from_secs_f64(resyncs as f64 / RESYNC_RATE as f64);
        let before = Instant::now();
        while before.elapsed() < stated {
            // The tailer has a turn for each part.
            for _ in 0..50 {
                poll(&mut tailer);
            }
            for client in &mut clients {
                while client.read(seen) {}
            }
            advance(Duration::from_millis(1)).await;
        }
        for client in &clients {
            let place = &client.replica.place;
            let (all, expected) = (client.all(), client.expected(&table));
            assert!(
                all == expected,
                "seed {seed}, phase {phase}, {place:?}: a copy is wrong"
            );
        }
    }
}

/// A snapshot is read later than the changes before its place, so it may know proxies that a resync among these changes
/// does not send.
#[test]
fn a_proxy_that_a_route_names_during_a_resync_stays() {
    let node = v1::NodeRoutes {
        node: Some(encode::node(&node(1))),
        routes: vec![v1::IndexedRoute::default()],
    };
    let proxies = vec![v1::WatchedProxy {
        registration: 5,
        proxy: Some(v1::Proxy::default()),
    }];
    let resync = |is_complete| {
        v1::watch_change::Change::Resync(v1::WatchResync {
            part: None,
            is_complete,
        })
    };
    let named = v1::watch_change::Change::Node(v1::WatchNodeChange {
        routes: Some(node.clone()),
        ..v1::WatchNodeChange::default()
    });
    let mut replica = Replica::default();
    replica.apply(&Message::Snapshot(v1::WatchSnapshot {
        proxies: proxies.clone(),
        nodes: vec![node],
        part: 0,
    }));
    let changes = [resync(false), named, resync(true)].map(|change| v1::WatchChange {
        sequence: 1,
        change: Some(change),
    });
    replica.apply(&Message::Changes(v1::WatchChanges {
        proxies,
        changes: changes.into(),
    }));
    assert_eq!((replica.nodes.len(), replica.proxies.len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn each_copy_becomes_what_the_table_is() {
    let seed = fastrand::u64(..);
    let mut seen = Seen::default();
    for round in 0..6 {
        println!("seed {}", seed.wrapping_add(round));
        run(seed.wrapping_add(round), &mut seen).await;
    }
    println!("{seen:?}");
    assert!(seen.resyncs > 0 && seen.lost_places > 0 && seen.resumed > 0, "{seen:?}");
}
