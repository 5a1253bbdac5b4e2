//! The machine, message by message.

use std::time::{Duration, Instant, SystemTime};

use nodetracker_proto::v1;
use nodetracker_proto::v1::node_id::Id;
use nodetracker_proto::v1::watch_change::Change;
use nodetracker_proto::v1::watch_response::Message;

use super::{Event, Input, Machine, Status, Timers, Transmit};

fn machine(trackers: usize) -> (Machine, Instant) {
    let now = Instant::now();
    let machine = Machine::new(now, SystemTime::UNIX_EPOCH, trackers, Timers::default(), 1);
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
    let limit = Timers::default().silence_limit;
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
    assert_eq!(machine.next_timeout(), now + Timers::default().probe_interval);
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
        (snapshot(node(None), 0), "a node of the message has no ID"),
        (
            snapshot(node(Some(Id::Name(String::new()))), 0),
            "a node of the message: node ID is empty",
        ),
        (
            snapshot(node(Some(Id::Uuid(vec![0; 15]))), 0),
            "a UUID of the message has 15 bytes, expected 16",
        ),
        (snapshot(node(name()), 256), "part 256 of the message is not below 256"),
        (snapshot(with_route(name()), 0), "a route of the message has no proxy"),
        (Message::Snapshot(bad_proxy), "a route of the message has no proxy"),
        (
            change(Change::Node(v1::WatchNodeChange::default())),
            "a node of the message has no ID",
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
