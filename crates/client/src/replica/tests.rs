//! The machine, message by message, and what a replica answers.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use nodetracker::{NodeId, Proxy, RouteTable};
use nodetracker_proto::v1;
use nodetracker_proto::v1::node_id::Id;
use nodetracker_proto::v1::watch_change::Change;
use nodetracker_proto::v1::watch_response::Message;

use tokio::sync::watch as channel;

use super::{Event, Input, Machine, Replica, ReplicaTimes, Status, Transmit};
use crate::backoff::Limits;
use crate::complaints::Complaints;
use crate::tracker::{NodeTracker, Route};

fn machine(trackers: usize) -> (Machine, Instant) {
    let now = Instant::now();
    let machine = Machine::new(now, SystemTime::UNIX_EPOCH, trackers, ReplicaTimes::default(), 1);
    (machine, now)
}

/// Waits until the machine begins a watch. Returns the tracker, and whether the watch resumes.
fn watch(machine: &mut Machine, now: &mut Instant) -> (usize, bool) {
    loop {
        match machine.poll_transmit(*now) {
            Some(Transmit::Watch { tracker, request }) => return (tracker, request.resume.is_some()),
            Some(Transmit::Close | Transmit::Probe) => {}
            None => *now = machine.next_timeout(),
        }
    }
}

fn send(machine: &mut Machine, now: Instant, message: Message) {
    machine.handle(now, Input::Message(v1::WatchResponse { message: Some(message) }));
}

fn end(machine: &mut Machine, now: Instant) {
    machine.handle(now, Input::Ended("cut".to_owned()));
}

fn snapshot_end() -> Message {
    Message::SnapshotEnd(v1::WatchSnapshotEnd {
        generation: 1,
        sequence: 10,
    })
}

#[test]
fn a_tracker_that_sent_its_table_is_watched_again_and_any_other_is_left() {
    let (mut machine, mut now) = machine(3);
    for expected in [0, 1, 2, 0, 1] {
        assert_eq!(watch(&mut machine, &mut now), (expected, false));
        end(&mut machine, now);
    }
    assert_eq!(watch(&mut machine, &mut now), (2, false));
    send(&mut machine, now, snapshot_end());
    assert_eq!(machine.stats().status, Status::Following);
    end(&mut machine, now);
    assert_eq!(machine.stats().status, Status::Behind);
    assert_eq!(watch(&mut machine, &mut now), (2, true));
    // This time, the tracker does not answer.
    end(&mut machine, now);
    assert_eq!(watch(&mut machine, &mut now), (0, true));
    send(&mut machine, now, Message::LostPlace(v1::WatchLostPlace {}));
    end(&mut machine, now);
    assert_eq!(watch(&mut machine, &mut now), (1, false), "no place is left");
    assert_eq!(machine.stats().ended, 8);
}

#[test]
fn a_silent_watch_is_given_up() {
    let (mut machine, mut now) = machine(1);
    watch(&mut machine, &mut now);
    send(&mut machine, now, snapshot_end());
    let limit = ReplicaTimes::default().silence_limit;
    now += limit / 2;
    send(
        &mut machine,
        now,
        Message::KeepAlive(v1::WatchKeepAlive { sequence: 10 }),
    );
    machine.handle_timeout(now + limit - Duration::from_millis(1));
    assert_eq!(machine.stats().status, Status::Following);
    machine.handle_timeout(now + limit);
    assert_eq!(machine.stats().status, Status::Behind);
    assert_eq!(machine.poll_transmit(now + limit), Some(Transmit::Close));
}

#[test]
fn a_probe_bounds_the_staleness_when_its_place_is_reached() {
    let (mut machine, mut now) = machine(1);
    let start = now;
    assert_eq!(machine.view().staleness(now), None);
    watch(&mut machine, &mut now);
    now += Duration::from_secs(3);
    send(&mut machine, now, snapshot_end());
    assert_eq!(machine.view().staleness(now), Some(now - start));
    let sent = now;
    assert_eq!(machine.poll_transmit(sent), Some(Transmit::Probe));
    assert_eq!(machine.poll_transmit(sent), None);
    now += Duration::from_secs(1);
    let place = |generation, sequence| Input::Probed(Some(v1::WatchPlace { generation, sequence }));
    machine.handle(now, place(1, 11));
    assert_eq!(machine.view().staleness(now), Some(now - start), "change 11 is missing");
    now += Duration::from_secs(1);
    send(
        &mut machine,
        now,
        Message::KeepAlive(v1::WatchKeepAlive { sequence: 11 }),
    );
    assert_eq!(machine.view().staleness(now), Some(now - sent));
    // The place of another generation says nothing.
    now = machine.next_timeout();
    assert_eq!(machine.poll_transmit(now), Some(Transmit::Probe));
    machine.handle(now, place(2, 1));
    assert_eq!(machine.view().staleness(now), Some(now - sent));
    assert_eq!(machine.next_timeout(), now + ReplicaTimes::default().probe_interval);
}

#[test]
fn a_bad_message_ends_the_watch_and_is_named() {
    let node = |id| v1::NodeRoutes {
        node: Some(v1::NodeId { id }),
        routes: Vec::new(),
    };
    let with_route = |id| v1::NodeRoutes {
        routes: vec![v1::IndexedRoute::default()],
        ..node(id)
    };
    let snapshot = |node, part| {
        Message::Snapshot(v1::WatchSnapshot {
            nodes: vec![node],
            proxies: Vec::new(),
            part,
        })
    };
    let change = |change| {
        Message::Changes(v1::WatchChanges {
            proxies: Vec::new(),
            changes: vec![v1::WatchChange {
                sequence: 11,
                change: Some(change),
            }],
        })
    };
    let name = || Some(Id::Name("node".to_owned()));
    let bad_proxy = v1::WatchSnapshot {
        proxies: vec![v1::WatchedProxy::default()],
        ..v1::WatchSnapshot::default()
    };
    for (message, reason) in [
        (snapshot(node(None), 0), "a node of the message: the ID is missing"),
        (
            snapshot(node(Some(Id::Name(String::new()))), 0),
            "a node of the message: node ID is empty",
        ),
        (
            snapshot(node(Some(Id::Uuid(vec![0; 15]))), 0),
            "a node of the message: the UUID has 15 bytes, expected 16",
        ),
        (snapshot(node(name()), 256), "part 256 of the message is not below 256"),
        (snapshot(with_route(name()), 0), "a route of the message has no proxy"),
        (Message::Snapshot(bad_proxy), "a route of the message has no proxy"),
        (
            change(Change::Node(v1::WatchNodeChange::default())),
            "a node of the message: the ID is missing",
        ),
        (
            change(Change::Proxy(v1::WatchProxyChange::default())),
            "a route of the message has no proxy",
        ),
        (
            change(Change::Resync(v1::WatchResync {
                part: Some(1_000),
                is_complete: false,
            })),
            "part 1000 of the message is not below 256",
        ),
    ] {
        let (mut machine, mut now) = machine(1);
        watch(&mut machine, &mut now);
        send(&mut machine, now, snapshot_end());
        assert_eq!(machine.poll_event(), Some(Event::Following { tracker: 0 }));
        send(&mut machine, now, message);
        let reason = reason.to_owned();
        assert_eq!(machine.poll_event(), Some(Event::Ended { tracker: 0, reason }));
        assert_eq!(machine.poll_transmit(now), Some(Transmit::Close));
        assert_eq!(watch(&mut machine, &mut now), (0, false), "the copy is of no use");
    }
}

const HOUR: Duration = Duration::from_secs(3600);

/// A machine with a complete snapshot, in which `node-1` has routes through these proxies.
fn following(proxies: &[&str]) -> (Machine, Instant) {
    following_since(SystemTime::now(), proxies)
}

/// As [`following`], with a machine that began at this wall-clock time.
fn following_since(wall: SystemTime, proxies: &[&str]) -> (Machine, Instant) {
    let mut now = Instant::now();
    let mut machine = Machine::new(now, wall, 1, ReplicaTimes::default(), 1);
    watch(&mut machine, &mut now);
    let (proxies, nodes) = routes_of_node(proxies);
    let snapshot = v1::WatchSnapshot {
        nodes: vec![nodes],
        proxies,
        part: 0,
    };
    send(&mut machine, now, Message::Snapshot(snapshot));
    send(&mut machine, now, snapshot_end());
    (machine, now)
}

fn routes_of_node(proxies: &[&str]) -> (Vec<v1::WatchedProxy>, v1::NodeRoutes) {
    let watched = |id: &&str| v1::WatchedProxy {
        registration: u64::from(id.as_bytes()[0]),
        proxy: Some(v1::Proxy {
            proxy_id: (*id).to_owned(),
            cluster_name: String::new(),
            addr: "proxy:1".to_owned(),
        }),
    };
    let index = |proxy_index| v1::IndexedRoute {
        proxy_index,
        ..v1::IndexedRoute::default()
    };
    let node = v1::NodeRoutes {
        node: Some(v1::NodeId {
            id: Some(Id::Name("node-1".to_owned())),
        }),
        routes: (0..proxies.len() as u32).map(index).collect(),
    };
    (proxies.iter().map(watched).collect(), node)
}

/// The routes of `node-1` now are through these proxies.
fn change_of_node(proxies: &[&str]) -> Message {
    let (proxies, routes) = routes_of_node(proxies);
    let change = v1::WatchChange {
        sequence: 11,
        change: Some(Change::Node(v1::WatchNodeChange {
            routes: Some(routes),
            ..v1::WatchNodeChange::default()
        })),
    };
    Message::Changes(v1::WatchChanges {
        proxies,
        changes: vec![change],
    })
}

fn node(name: &str) -> NodeId {
    name.parse().expect("a name")
}

/// A replica with the machine's copy, before a tracker in which `node-1` has routes through these proxies.
fn replica(machine: &Machine, max_staleness: Duration, of_tracker: &[&str]) -> Replica {
    let table = RouteTable::new();
    for id in of_tracker {
        let proxy = Proxy {
            id,
            cluster_name: "",
            addr: "proxy:1",
        };
        table.report_node(&node("node-1"), &proxy).expect("there is room");
    }
    Replica {
        view: Arc::clone(machine.view()),
        stats: channel::channel(machine.stats()).1,
        tracker: Arc::new(table),
        max_staleness,
        max_negative_staleness: HOUR,
        of_copy: Complaints::new(HOUR),
        of_tracker: Complaints::new(HOUR),
        task: tokio::spawn(async {}),
    }
}

fn ids(routes: &[Route]) -> Vec<&str> {
    routes.iter().map(|route| route.proxy.id()).collect()
}

/// The answers for `node-1`, which are the same in a batch and alone.
async fn get(replica: &Replica) -> Vec<Route> {
    let nodes = [node("other"), node("node-1"), node("another")];
    let all = replica.get_proxies_batch(&nodes).await.expect("the table answers");
    let alone = replica.get_proxies(&nodes[1]).await.expect("the table answers");
    assert_eq!(all, [vec![], alone.clone(), vec![]]);
    alone
}

async fn complain(replica: &Replica, proxy_id: &str) {
    let complaint = replica.report_unreachable(&node("node-1"), proxy_id).await;
    complaint.expect("the table takes it");
}

#[tokio::test]
async fn a_tracker_is_asked_if_the_copy_is_too_old() {
    let (machine, _) = following(&["a"]);
    for (max_staleness, expected) in [(HOUR, "a"), (Duration::ZERO, "b")] {
        let replica = replica(&machine, max_staleness, &["b"]);
        assert_eq!(ids(&get(&replica).await), [expected]);
        assert_eq!(ids(&replica.look_up(&node("node-1")).expect("a copy")), ["a"]);
    }
}

#[tokio::test]
async fn a_tracker_is_asked_for_a_node_without_a_route_if_the_copy_is_older_than_for_others() {
    for (proxies, expected) in [(&["a"][..], "a"), (&[][..], "b")] {
        let (machine, _) = following(proxies);
        let mut replica = replica(&machine, HOUR, &["b"]);
        let before = ids(&get(&replica).await).concat();
        assert_eq!(before, proxies.concat());
        replica.max_negative_staleness = Duration::ZERO;
        assert_eq!(ids(&get(&replica).await), [expected]);
    }
}

#[tokio::test(start_paused = true)]
async fn another_route_does_not_bring_a_reported_route_back() {
    let (mut machine, now) = following(&["a"]);
    let replica = replica(&machine, HOUR, &[]);
    complain(&replica, "a").await;
    let look_up = || replica.look_up(&node("node-1")).expect("a copy");
    for (seconds, present, expected) in [
        (1, &["b", "a"][..], &["b"][..]),
        (2, &["c", "b", "a"][..], &["c", "b"][..]),
        (3, &["b", "a"][..], &["b"][..]),
        // The reported route is lost and comes again.
        (4, &["b"][..], &["b"][..]),
        (5, &["a", "b"][..], &["a", "b"][..]),
    ] {
        send(
            &mut machine,
            now + Duration::from_secs(seconds),
            change_of_node(present),
        );
        assert_eq!(ids(&look_up()), expected, "{present:?}");
    }
    // The reported route is lost and comes again, in one change.
    tokio::time::advance(HOUR).await;
    complain(&replica, "a").await;
    assert_eq!(ids(&look_up()), ["b"]);
    send(&mut machine, now + 2 * HOUR, change_of_node(&["a", "b"]));
    assert_eq!(ids(&look_up()), ["a", "b"]);
}

#[tokio::test]
async fn a_reported_route_is_left_out_until_the_copy_gets_it_again() {
    let (mut machine, now) = following(&["a", "b"]);
    let replica = replica(&machine, HOUR, &["a", "c"]);
    complain(&replica, "a").await;
    assert_eq!(ids(&get(&replica).await), ["b"]);
    complain(&replica, "b").await;
    assert_eq!(replica.look_up(&node("node-1")), Some(vec![]));
    assert_eq!(
        ids(&get(&replica).await),
        ["c"],
        "the copy has no other, so the tracker is asked"
    );

    for present in [&[][..], &["a"]] {
        send(&mut machine, now + HOUR, change_of_node(present));
    }
    assert_eq!(ids(&get(&replica).await), ["a"]);
}

#[tokio::test]
async fn a_reported_route_of_the_tracker_is_left_out() {
    let (machine, _) = machine(1);
    let replica = replica(&machine, HOUR, &["a"]);
    assert_eq!(ids(&get(&replica).await), ["a"]);
    complain(&replica, "a").await;
    assert_eq!(get(&replica).await, []);
}

#[tokio::test]
async fn the_latest_routes_of_the_tracker_leave_out_a_reported_route() {
    let (machine, _) = following(&["a", "b"]);
    let replica = replica(&machine, HOUR, &["a", "b"]);
    complain(&replica, "a").await;
    let latest = replica.get_latest_proxies(&node("node-1")).await;
    assert_eq!(ids(&latest.expect("the table answers")), ["b"]);
}

#[tokio::test]
async fn a_complaint_does_not_depend_on_the_wall_clock() {
    // Since its beginning, the machine was suspended for an hour, or the wall clock was set, back or forward.
    for wall in [SystemTime::now() - HOUR, SystemTime::now() + HOUR] {
        let (mut machine, now) = following_since(wall, &["a", "b"]);
        let replica = replica(&machine, HOUR, &["a"]);
        complain(&replica, "a").await;
        assert_eq!(ids(&get(&replica).await), ["b"]);
        for present in [&["b"][..], &["a", "b"]] {
            send(&mut machine, now + HOUR / 2, change_of_node(present));
        }
        assert_eq!(ids(&get(&replica).await), ["a", "b"]);
    }
}

#[test]
fn a_tracker_whose_message_cannot_be_applied_is_left() {
    let (mut machine, mut now) = machine(2);
    assert_eq!(watch(&mut machine, &mut now), (0, false));
    send(&mut machine, now, snapshot_end());
    let no_part = v1::WatchSnapshot {
        nodes: vec![routes_of_node(&[]).1],
        proxies: Vec::new(),
        part: 256,
    };
    send(&mut machine, now, Message::Snapshot(no_part));
    assert_eq!(watch(&mut machine, &mut now), (1, false));
}

#[test]
fn a_probe_interval_of_zero_is_no_busy_loop() {
    let times = ReplicaTimes {
        probe_interval: Duration::ZERO,
        ..ReplicaTimes::default()
    };
    let mut now = Instant::now();
    let mut machine = Machine::new(now, SystemTime::UNIX_EPOCH, 1, times, 1);
    watch(&mut machine, &mut now);
    send(&mut machine, now, snapshot_end());
    assert_eq!(machine.poll_transmit(now), Some(Transmit::Probe));
    let place = v1::WatchPlace {
        generation: 1,
        sequence: 10,
    };
    machine.handle(now, Input::Probed(Some(place)));
    assert!(machine.next_timeout() > now);
}

#[test]
fn times_without_a_bound_are_no_error() {
    let times = ReplicaTimes {
        probe_interval: Duration::MAX,
        silence_limit: Duration::MAX,
        backoff: Limits {
            base: Duration::MAX,
            max: Duration::MAX,
        },
    };
    let mut now = Instant::now();
    let mut machine = Machine::new(now, SystemTime::UNIX_EPOCH, 1, times, 1);
    watch(&mut machine, &mut now);
    send(&mut machine, now, snapshot_end());
    assert_eq!(machine.poll_transmit(now), Some(Transmit::Probe));
    machine.handle(now, Input::Probed(None));
    machine.handle_timeout(now);
    assert!(machine.next_timeout() > now);
    end(&mut machine, now);
    assert!(machine.next_timeout() > now);
}
