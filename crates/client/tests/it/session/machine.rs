//! The machine, driven by hand.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nodetracker_client::session::machine::{BACKLOG, Event, Fault, Identity, Input, Machine};
use nodetracker_client::session::nodes::{NodeSet, TooManyNodes};
use nodetracker_client::session::{SessionTimes, Violation};
use nodetracker_client::{NodeId, Proxy, Uuid};
use nodetracker_proto::v1;
use nodetracker_proto::v1::session_request::Request;
use nodetracker_proto::v1::session_response::Response;

use crate::session::model::{LIMITS, ModelTracker, nodes};

const INTERVAL: Duration = Duration::from_secs(30);
const LIFETIME: Duration = Duration::from_secs(90);

struct Driver {
    machine: Machine,
    nodes: Arc<NodeSet>,
    now: Instant,
    /// The sequence of the oldest request without an answer.
    oldest: u64,
}

fn node(number: u128) -> NodeId {
    Uuid::from_u128(number).into()
}

fn welcome() -> v1::SessionWelcome {
    v1::SessionWelcome {
        generation: 7,
        heartbeat_interval: INTERVAL.try_into().ok(),
        handles_hold: false,
        limits: Some(v1::SessionLimits {
            idle_timeout: LIFETIME.try_into().ok(),
            ..LIMITS
        }),
    }
}

fn handles(handles: &[u64]) -> Response {
    Response::Handles(v1::SessionHandles {
        handles: handles.iter().flat_map(|handle| handle.to_le_bytes()).collect(),
        refusal: 0,
    })
}

fn ack() -> Response {
    Response::Ack(v1::SessionAck::default())
}

fn up(ids: &[u128]) -> Request {
    Request::NodesUp(v1::SessionNodesUp {
        nodes: Some(uuids(ids)),
    })
}

fn down(ids: &[u128]) -> Request {
    Request::NodesDown(v1::SessionNodesDown {
        nodes: Some(uuids(ids)),
    })
}

fn heartbeat(handles: &[u64]) -> Request {
    let bytes: Vec<u8> = handles.iter().flat_map(|handle| handle.to_le_bytes()).collect();
    Request::Heartbeat(v1::SessionHeartbeat { handles: bytes.into() })
}

fn uuids(ids: &[u128]) -> v1::NodeIds {
    v1::NodeIds {
        uuids: ids.iter().flat_map(|id| id.to_be_bytes()).collect(),
        names: Vec::new(),
    }
}

impl Driver {
    /// A machine that has not connected yet, for up to `max` nodes.
    fn new(max: usize) -> Self {
        Self::with_timing(max, SessionTimes::default())
    }

    fn with_timing(max: usize, times: SessionTimes) -> Self {
        Self::with_trackers(1, max, times, 1)
    }

    fn with_trackers(trackers: usize, max: usize, times: SessionTimes, seed: u64) -> Self {
        let now = Instant::now();
        let nodes = Arc::new(NodeSet::new(max, 1, now));
        let proxy = Proxy {
            id: "proxy",
            cluster_name: "main",
            addr: "10.0.0.1:3080",
        };
        let identity = Identity {
            proxy: proxy.into(),
            incarnation: NonZeroU64::MIN,
        };
        Self {
            machine: Machine::new(Arc::clone(&nodes), identity, trackers, times, seed, now),
            nodes,
            now,
            oldest: 1,
        }
    }

    /// A machine with an open session.
    fn open() -> Self {
        Self::new(1_000_000).opened()
    }

    fn opened(mut self) -> Self {
        assert!(matches!(self.requests()[..], [Request::Hello(_)]));
        self.answer(Response::Welcome(welcome()));
        self
    }

    /// A machine with an open session and a node that the tracker knows by a handle.
    fn with_node(number: u128, handle: u64) -> Self {
        let mut driver = Self::open();
        driver.up(number);
        assert_eq!(driver.flush(), [up(&[number])]);
        driver.answer(handles(&[handle]));
        assert_eq!(driver.requests(), []);
        driver
    }

    fn up(&self, number: u128) {
        self.nodes.up(&node(number), self.now).expect("there is room");
    }

    fn down(&self, number: u128) {
        self.nodes.down(&node(number), self.now);
    }

    /// What the machine sends now.
    fn requests(&mut self) -> Vec<Request> {
        self.machine.handle_timeout(self.now);
        std::iter::from_fn(|| self.machine.poll_transmit(self.now)?.request).collect()
    }

    /// What the machine sends once the changes were collected.
    fn flush(&mut self) -> Vec<Request> {
        assert_eq!(self.requests(), []);
        self.now += SessionTimes::default().batch_delay;
        self.requests()
    }

    /// What the machine sends at its next timeout.
    fn requests_at_timeout(&mut self) -> Vec<Request> {
        self.now = self.machine.next_timeout().expect("a timeout");
        self.requests()
    }

    fn answer(&mut self, response: Response) {
        let message = v1::SessionResponse {
            sequence: self.oldest,
            response: Some(response),
        };
        self.oldest += 1;
        self.machine.handle(self.now, Input::Message(message));
    }

    fn unasked(&mut self, response: Response) {
        let message = v1::SessionResponse {
            sequence: 0,
            response: Some(response),
        };
        self.machine.handle(self.now, Input::Message(message));
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.machine.poll_event()).collect()
    }
}

#[test]
fn a_node_that_goes_up_and_down_between_two_flushes_costs_nothing() {
    let mut driver = Driver::open();
    driver.up(1);
    driver.down(1);
    assert_eq!(driver.flush(), []);
    assert!(driver.nodes.is_empty());

    let mut driver = Driver::with_node(1, 10);
    driver.down(1);
    driver.up(1);
    assert_eq!(driver.flush(), []);
    assert_eq!(driver.requests_at_timeout(), [heartbeat(&[10])]);
}

#[test]
fn a_node_that_goes_down_while_it_is_announced_is_withdrawn_after_the_answer() {
    let mut driver = Driver::open();
    driver.up(1);
    assert_eq!(driver.flush(), [up(&[1])]);
    driver.down(1);
    assert_eq!(driver.requests(), []);
    driver.answer(handles(&[10]));
    assert_eq!(driver.requests(), [down(&[1])]);
    driver.up(1);
    driver.answer(ack());
    assert_eq!(driver.requests_at_timeout(), [up(&[1])]);
}

#[test]
fn a_node_that_went_down_during_an_outage_is_withdrawn_at_once() {
    let mut driver = Driver::open();
    driver.up(1);
    assert_eq!(driver.flush(), [up(&[1])]);
    // The tracker may have done the announcement.
    driver.machine.handle(driver.now, Input::Lost);
    driver.down(1);
    assert!(matches!(driver.requests_at_timeout()[..], [Request::Hello(_)]));
    driver.oldest = 3;
    driver.answer(Response::Welcome(v1::SessionWelcome {
        handles_hold: true,
        ..welcome()
    }));
    assert_eq!(driver.requests(), [down(&[1])]);
}

#[test]
fn a_withdrawal_does_not_wait_for_the_pace_of_announcements() {
    let mut driver = Driver::open();
    driver.up(1);
    driver.flush();
    driver.answer(handles(&[]));
    driver.down(1);
    assert_eq!(driver.flush(), [down(&[1])]);
    driver.answer(ack());
    // The queue of announcements still has the node's ID.
    driver.now += SessionTimes::default().refused.base;
    assert_eq!(driver.requests(), []);
    assert!(driver.machine.is_settled() && driver.nodes.is_empty());
}

#[test]
fn a_node_whose_handle_is_gone_is_announced_again_if_it_is_up() {
    let mut driver = Driver::with_node(1, 10);
    driver.up(2);
    assert_eq!(driver.flush(), [up(&[2])]);
    driver.answer(handles(&[20]));
    assert!(matches!(driver.requests_at_timeout()[..], [Request::Heartbeat(_)]));
    driver.down(2);
    driver.answer(Response::Ack(v1::SessionAck {
        gone_handles: [10_u64, 20].iter().flat_map(|handle| handle.to_le_bytes()).collect(),
        heartbeat_interval: None,
    }));
    assert_eq!(driver.requests(), [up(&[1])]);
    driver.now += SessionTimes::default().batch_delay;
    // The table may have moved the route of the other node.
    assert_eq!(driver.requests(), [down(&[2])]);
}

#[test]
fn only_nodes_that_were_seen_since_the_last_round_are_refreshed() {
    let mut driver = Driver::with_node(1, 10);
    assert_eq!(driver.requests_at_timeout(), [heartbeat(&[10])]);
    driver.answer(ack());
    // Silent: the session itself is kept.
    for _ in 0..2 {
        assert_eq!(driver.requests_at_timeout(), [heartbeat(&[])]);
        driver.answer(ack());
    }
    driver.nodes.seen(&node(1), driver.now);
    assert_eq!(driver.requests_at_timeout(), [heartbeat(&[10])]);
}

#[test]
fn the_tracker_dictates_the_interval() {
    let mut driver = Driver::with_node(1, 10);
    driver.requests_at_timeout();
    let begun = driver.now;
    driver.answer(Response::Ack(v1::SessionAck {
        gone_handles: Vec::new(),
        heartbeat_interval: Duration::from_secs(3).try_into().ok(),
    }));
    for round in 1..4 {
        assert_eq!(driver.requests_at_timeout().len(), 1);
        assert_eq!(driver.now - begun, round * Duration::from_secs(3));
        driver.answer(ack());
    }
}

#[test]
fn a_keep_alive_is_answered() {
    let mut driver = Driver::open();
    driver.unasked(Response::KeepAlive(v1::SessionKeepAlive {}));
    assert_eq!(driver.requests(), [heartbeat(&[])]);
    assert_eq!(driver.requests(), []);
}

#[test]
fn refused_nodes_are_counted_and_announced_again_later() {
    let mut driver = Driver::open();
    driver.up(1);
    driver.flush();
    for refusals in 1..4 {
        driver.answer(handles(&[]));
        assert_eq!(driver.machine.counters().refused_nodes, refusals);
        assert_eq!(driver.requests(), []);
        assert!(!driver.machine.is_settled());
        assert_eq!(driver.requests_at_timeout(), [up(&[1])]);
    }
    driver.answer(handles(&[10]));
    assert!(driver.machine.is_settled());
}

#[test]
fn after_a_resync_all_nodes_are_announced_again() {
    let mut driver = Driver::with_node(1, 10);
    assert_eq!(driver.requests_at_timeout(), [heartbeat(&[10])]);
    driver.answer(Response::Resync(v1::SessionResync {}));
    assert_eq!(driver.requests_at_timeout(), [up(&[1])]);
}

#[test]
fn proxies_that_announce_all_nodes_again_do_not_begin_at_the_same_moment() {
    let resync = |driver: &mut Driver| {
        assert_eq!(driver.requests_at_timeout(), [heartbeat(&[10])]);
        driver.answer(Response::Resync(v1::SessionResync {}));
    };
    let restart = |driver: &mut Driver| {
        driver.machine.handle(driver.now, Input::Lost);
        assert!(matches!(driver.requests_at_timeout()[..], [Request::Hello(_)]));
        driver.answer(Response::Welcome(welcome()));
    };
    for lose_routes in [resync, restart] {
        let wait = |seed| {
            let mut driver = Driver::with_trackers(1, 1, SessionTimes::default(), seed).opened();
            driver.up(1);
            assert_eq!(driver.flush(), [up(&[1])]);
            driver.answer(handles(&[10]));
            lose_routes(&mut driver);
            let lost = driver.now;
            assert_eq!(driver.requests_at_timeout(), [up(&[1])], "seed {seed}");
            driver.now - lost
        };
        let (one, other) = (wait(1), wait(2));
        assert!(one != other && one.max(other) <= SessionTimes::default().announce_jitter);
    }
}

#[test]
fn a_withdrawal_does_not_wait_behind_a_full_queue_of_announcements() {
    let mut driver = Driver::with_node(1, 10);
    (2..BACKLOG as u128 + 5_000).for_each(|number| driver.up(number));
    // The tracker refuses all announcements. The pass of the next round fills the queue.
    let mut has_round = false;
    while !has_round {
        for request in driver.requests_at_timeout() {
            has_round |= matches!(request, Request::Heartbeat(_));
            driver.answer(match request {
                Request::NodesUp(_) => handles(&[]),
                _ => ack(),
            });
        }
    }
    assert_eq!(driver.flush(), []);
    driver.down(1);
    assert_eq!(driver.flush(), [down(&[1])]);
}

#[test]
fn a_tracker_that_violates_the_contract_is_given_up_and_tried_again() {
    let with_limits = |limits| Response::Welcome(v1::SessionWelcome { limits, ..welcome() });
    let small = v1::SessionLimits {
        max_nodes: 0,
        ..welcome().limits.expect("limits")
    };
    let no_interval = v1::SessionWelcome {
        heartbeat_interval: None,
        ..welcome()
    };
    for (response, violation) in [
        (with_limits(None), Violation::Limits),
        (with_limits(Some(small)), Violation::Limits),
        (Response::Welcome(no_interval), Violation::Times),
        (ack(), Violation::Kind),
    ] {
        let mut driver = Driver::new(1);
        driver.requests();
        driver.events();
        driver.answer(response);
        assert_eq!(driver.events(), [Event::Disconnect(Fault::Violation(violation))]);
        assert!(matches!(driver.requests_at_timeout()[..], [Request::Hello(_)]));
    }
    let part = Response::Handles(v1::SessionHandles {
        handles: vec![0; 7],
        refusal: 0,
    });
    for (sequence, response, violation) in [
        (2, part, Violation::Handles),
        (2, handles(&[10, 11]), Violation::Handles),
        (2, ack(), Violation::Kind),
        (3, handles(&[10]), Violation::Order),
    ] {
        let mut driver = Driver::open();
        driver.up(1);
        driver.flush();
        driver.events();
        driver.oldest = sequence;
        driver.answer(response);
        assert_eq!(driver.events(), [Event::Disconnect(Fault::Violation(violation))]);
        assert!(matches!(driver.requests_at_timeout()[..], [Request::Hello(_)]));
        driver.oldest = 3;
        driver.answer(Response::Welcome(welcome()));
        let announced = [driver.requests(), driver.requests_at_timeout()].concat();
        assert!(announced.contains(&up(&[1])), "{announced:?}");
    }
}

#[test]
fn a_tracker_that_does_not_answer_is_given_up() {
    let mut driver = Driver::open();
    driver.up(1);
    driver.flush();
    driver.events();
    let sent = driver.now;
    let events = loop {
        driver.requests_at_timeout();
        let events = driver.events();
        if !events.is_empty() {
            break events;
        }
    };
    assert_eq!(driver.now - sent, SessionTimes::default().answer_timeout);
    assert_eq!(events, [Event::Disconnect(Fault::NoAnswer)]);
}

#[test]
fn the_nodes_move_well_before_the_tracker_stops() {
    let left = Duration::from_secs(4);
    for seed in 0..100 {
        let mut driver = Driver::with_trackers(2, 1, SessionTimes::default(), seed).opened();
        driver.events();
        driver.unasked(Response::GoAway(v1::SessionGoAway {
            time_left: left.try_into().ok(),
        }));
        let reported = driver.now;
        assert!(matches!(driver.requests_at_timeout()[..], [Request::Hello(_)]));
        assert!(
            driver.now - reported <= left * 3 / 4,
            "seed {seed}: {:?}",
            driver.now - reported
        );
        let moves = Event::Connect {
            tracker: 1,
            keeps_previous: true,
        };
        assert_eq!(driver.events(), [moves], "seed {seed}");
    }
}

#[test]
fn a_drain_waits_only_for_hellos_that_may_still_arrive() {
    for is_late in [false, true] {
        let mut driver = Driver::new(1);
        assert!(matches!(driver.requests()[..], [Request::Hello(_)]));
        if is_late {
            // The hello may be on its way.
            driver.machine.handle(driver.now, Input::Lost);
            assert!(matches!(driver.requests_at_timeout()[..], [Request::Hello(_)]));
        }
        driver.machine.handle(driver.now, Input::Unreachable);
        driver.machine.handle(driver.now, Input::Drain);
        let requests = driver.requests();
        if is_late {
            assert!(matches!(requests[..], [Request::Hello(_)]));
            driver.machine.handle(driver.now, Input::Unreachable);
            driver.now += Duration::from_secs(60);
            assert_eq!(driver.requests(), []);
        }
        assert_eq!(driver.events().last(), Some(&Event::Drained), "is_late: {is_late}");
    }
}

#[test]
fn times_without_a_bound_are_no_error() {
    let mut times = SessionTimes::default();
    (times.batch_delay, times.announce_jitter) = (Duration::MAX, Duration::MAX);
    times.answer_timeout = Duration::MAX;
    (times.reconnect.base, times.reconnect.max) = (Duration::MAX, Duration::MAX);
    (times.refused.base, times.refused.max) = (Duration::MAX, Duration::MAX);
    let mut driver = Driver::with_timing(1, times).opened();
    driver.up(1);
    driver.requests();
    driver.now = driver.now.max(driver.machine.next_timeout().expect("a timeout"));
    driver.requests();
    driver.machine.handle(driver.now, Input::Lost);
    driver.requests_at_timeout();
}

#[test]
fn a_burst_of_changes_costs_one_pass() {
    const NODES: u128 = 6_000;
    let mut driver = Driver::open();
    let before = driver.machine.counters().passes;
    (0..NODES).for_each(|number| driver.up(number));
    while !driver.machine.is_settled() {
        for request in driver.requests() {
            let Request::NodesUp(up) = request else {
                panic!("{request:?}")
            };
            let count = nodes(up.nodes.unwrap_or_default()).len() as u64;
            driver.answer(handles(&Vec::from_iter(0..count)));
        }
        driver.now += Duration::from_millis(10);
    }
    let counters = driver.machine.counters();
    assert_eq!((counters.announced_nodes, counters.passes - before), (NODES as u64, 1));
}

#[test]
fn a_set_takes_its_maximum_of_nodes() {
    let driver = Driver::new(2);
    driver.up(1);
    driver.up(2);
    let now = driver.now;
    assert_eq!(driver.nodes.up(&node(3), now), Err(TooManyNodes { max: 2 }));
    assert!(driver.nodes.up(&node(2), now).is_ok());
    assert_eq!(driver.nodes.len(), 2);
}

#[test]
fn nodes_that_come_and_go_before_the_first_session_leave_no_trace() {
    let driver = Driver::new(2);
    for number in 0..10_000 {
        driver.up(number);
        driver.down(number);
    }
    assert_eq!(driver.nodes.len(), 0);
    driver.up(1);
    let mut driver = driver.opened();
    driver.now += SessionTimes::default().batch_delay;
    assert_eq!(driver.requests(), [up(&[1])]);
}

#[test]
fn a_node_that_returns_after_its_route_has_expired_is_announced_at_once() {
    let mut driver = Driver::with_node(1, 10);
    // The process sleeps.
    driver.now += Duration::from_secs(3600);
    assert_eq!(driver.requests(), [heartbeat(&[])]);
    driver.answer(ack());
    driver.nodes.seen(&node(1), driver.now);
    assert_eq!(driver.flush(), [up(&[1])]);
}

#[test]
fn during_an_outage_nodes_that_went_down_are_forgotten_once_their_routes_have_expired() {
    let mut driver = Driver::with_node(1, 10);
    driver.down(1);
    driver.machine.handle(driver.now, Input::Lost);
    let lost = driver.now;
    while driver.now - lost < LIFETIME + 2 * INTERVAL {
        driver.requests_at_timeout();
        driver.machine.handle(driver.now, Input::Lost);
    }
    assert_eq!(driver.nodes.len(), 0);
}

#[test]
fn many_threads_change_nodes_while_the_machine_reports_them() {
    const THREADS: u128 = 4;
    const NODES: u128 = 2_000;
    // The clock hardly moves, so no node becomes silent.
    let mut times = SessionTimes::default();
    times.batch_delay = Duration::ZERO;
    times.announced_per_second = u32::MAX;
    for seed in 0..5 {
        let mut driver = Driver::with_timing(1_000_000, times).opened();
        let nodes = Arc::clone(&driver.nodes);
        let mut tracker = ModelTracker::new(LIFETIME, LIMITS, 7);
        let hello = v1::SessionHello {
            incarnation: 1,
            ..v1::SessionHello::default()
        };
        tracker.request(Duration::ZERO, "proxy", 0, Request::Hello(hello));
        let is_done = AtomicBool::new(false);
        let expected = std::thread::scope(|scope| {
            let set = &*nodes;
            let now = driver.now;
            let threads = Vec::from_iter((0..THREADS).map(|thread| {
                scope.spawn(move || {
                    let mut random = fastrand::Rng::with_seed(seed * 100 + thread as u64);
                    let mut up = vec![false; NODES as usize];
                    for _ in 0..20 * NODES {
                        let at = random.usize(..up.len());
                        let id = node(thread * NODES + at as u128);
                        match random.u8(..3) {
                            0 => {
                                up[at] = true;
                                set.up(&id, now).expect("there is room");
                            }
                            1 => {
                                up[at] = false;
                                set.down(&id, now);
                            }
                            _ => _ = set.seen(&id, now),
                        }
                    }
                    let is_up = move |at: &u128| up[*at as usize];
                    Vec::from_iter((0..NODES).filter(is_up).map(|at| node(thread * NODES + at)))
                })
            }));
            let is_done = &is_done;
            let waiter = scope.spawn(move || {
                let up = threads.into_iter().flat_map(|thread| thread.join().expect("no panic"));
                let up = Vec::from_iter(up);
                is_done.store(true, Ordering::Release);
                up
            });
            // The threads need some thousand steps. Afterwards, few steps are left.
            let mut left = 1_000;
            while left > 0 && (!is_done.load(Ordering::Acquire) || !driver.machine.is_settled()) {
                left -= usize::from(is_done.load(Ordering::Acquire));
                for request in driver.requests() {
                    let reply = tracker.request(Duration::ZERO, "proxy", 0, request);
                    driver.answer(reply.answer.expect("an answer"));
                }
                driver.now += Duration::from_nanos(10);
            }
            waiter.join().expect("no panic")
        });
        assert!(driver.machine.is_settled(), "seed {seed}");
        assert_eq!(tracker.nodes("proxy", Duration::ZERO), expected, "seed {seed}");
        assert_eq!(driver.nodes.len(), expected.len(), "seed {seed}");
    }
}
