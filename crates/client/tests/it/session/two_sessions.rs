//! Two sessions of one proxy: one session ends, and does not take over again.

use std::time::Duration;

use nodetracker_client::session::SessionTimes;
use nodetracker_client::session::machine::{Event, Input, SessionSupersededReason};
use nodetracker_client::{NodeId, Uuid};

use crate::seeds::{Fault, Recovery, Seeds, recoveries};
use crate::session::model::{LIMITS, ModelTracker};
use crate::session::world::World;

const KEEP_ALIVE: Duration = Duration::from_secs(90);
const PRECISION: Duration = Duration::from_millis(5);

fn node() -> NodeId {
    Uuid::from_u128(1).into()
}

fn world(seed: u64) -> World {
    World::new(seed, vec![ModelTracker::new(KEEP_ALIVE, LIMITS, 1)])
}

/// Runs two machines. The second machine begins one second after the first.
fn two_sessions(seed: u64, incarnations: [u64; 2]) -> World {
    let mut world = world(seed);
    for incarnation in incarnations {
        let proxy = world.add_proxy("proxy", incarnation, SessionTimes::default());
        let now = world.instant();
        world.proxies[proxy].nodes.up(&node(), now).expect("there is room");
        world.run_until(world.now + Duration::from_secs(1));
    }
    world.run_until(Duration::from_secs(60));
    world
}

fn superseded(world: &World, proxy: usize) -> Option<(SessionSupersededReason, u64)> {
    world.proxies[proxy].events.iter().find_map(|event| match event {
        Event::Superseded(superseded) => Some((superseded.reason, superseded.latest_incarnation)),
        _ => None,
    })
}

#[test]
fn the_older_incarnation_ends_whichever_begins_first() {
    for seed in Seeds::new(20) {
        let expected = Some((SessionSupersededReason::NewerIncarnation, 2));
        let world = two_sessions(seed, [1, 2]);
        assert_eq!(
            (superseded(&world, 0), superseded(&world, 1)),
            (expected, None),
            "seed {seed}"
        );
        let world = two_sessions(seed, [2, 1]);
        assert_eq!(
            (superseded(&world, 0), superseded(&world, 1)),
            (None, expected),
            "seed {seed}"
        );
        assert_eq!(world.trackers[0].nodes("proxy", world.now), [node()], "seed {seed}");
    }
}

#[test]
fn of_one_incarnation_the_first_session_ends() {
    for seed in Seeds::new(20) {
        let world = two_sessions(seed, [1, 1]);
        let expected = Some((SessionSupersededReason::NewerSession, 1));
        assert_eq!(
            (superseded(&world, 0), superseded(&world, 1)),
            (expected, None),
            "seed {seed}"
        );
        assert!(world.proxies[0].machine.has_ended());
    }
}

/// The proxy gives a stream up before its hello arrives, and the tracker takes the late hello for a newer session.
#[test]
fn a_late_hello_of_the_session_itself_does_not_end_it() {
    let (mut late, mut seeds) = (0, 0);
    for seed in Seeds::new(100) {
        seeds += 1;
        let mut world = world(seed);
        world.latency = Duration::from_millis(1)..Duration::from_secs(2);
        let proxy = world.add_proxy("proxy", 1, SessionTimes::default());
        let now = world.instant();
        world.proxies[proxy].nodes.up(&node(), now).expect("there is room");
        world.drive(proxy);
        world.run_until(Duration::from_micros(10));
        world.cut(proxy, false);
        world.run_until(Duration::from_secs(30));
        assert_eq!(superseded(&world, proxy), None, "seed {seed}");
        assert!(world.proxies[proxy].machine.is_settled(), "seed {seed}");
        late += world.proxies[proxy].machine.counters().faults;
    }
    assert!(seeds == 1 || late > seeds / 10, "{late} late hellos");
}

#[test]
fn a_drain_ends_the_incarnation_even_if_the_drain_or_its_answer_is_lost() {
    for (seed, is_half_open) in Seeds::new(50).flat_map(|seed| [(seed, false), (seed, true)]) {
        let mut world = world(seed);
        world.latency = Duration::from_millis(10)..Duration::from_millis(50);
        let proxy = world.add_proxy("proxy", 1, SessionTimes::default());
        let now = world.instant();
        world.proxies[proxy].nodes.up(&node(), now).expect("there is room");
        world.run_until(Duration::from_secs(5));
        assert_eq!(world.trackers[0].nodes("proxy", world.now), [node()]);
        let now = world.instant();
        world.proxies[proxy].machine.handle(now, Input::Drain);
        world.drive(proxy);
        world.run_until(world.now + Duration::from_millis(seed * 3));
        world.cut(proxy, is_half_open);
        world.run_until(world.now + SessionTimes::default().answer_timeout + Duration::from_secs(5));
        assert_eq!(world.trackers[0].nodes("proxy", world.now), [], "seed {seed}");
        assert_eq!(world.proxies[proxy].events.last(), Some(&Event::Drained), "seed {seed}");
    }
}

/// The old process dies with messages on their way: an announcement, or even its hello. Returns how long the tracker
/// takes to have the routes of the new process, and no others.
fn restart_with_late_messages(seed: u64, is_greeted: bool) -> Recovery {
    let nodes = [1, 2, 3].map(|number| NodeId::from(Uuid::from_u128(number)));
    let mut world = world(seed);
    let old = world.add_proxy("proxy", 1, SessionTimes::default());
    up(&world, old, &nodes[0]);
    up(&world, old, &nodes[1]);
    if is_greeted {
        world.run_until(Duration::from_secs(5));
    }
    world.latency = Duration::from_secs(5)..Duration::from_secs(30);
    up(&world, old, &nodes[2]);
    let now = world.instant();
    world.proxies[old].nodes.down(&nodes[0], now);
    world.drive(old);
    world.run_until(world.now + Duration::from_millis(100));
    world.sleep_until(old, Duration::MAX);

    world.latency = Duration::from_millis(1)..Duration::from_millis(50);
    let new = world.add_proxy("proxy", 2, SessionTimes::default());
    up(&world, new, &nodes[0]);
    let time = recovery(&mut world, new, &nodes[..1]);
    let before = world.traffic.responses;
    world.run_until(world.now + Duration::from_secs(30));
    assert!(world.traffic.responses > before, "seed {seed}: nothing was late");
    assert_eq!(world.trackers[0].nodes("proxy", world.now), nodes[..1], "seed {seed}");
    assert_eq!(superseded(&world, new), None, "seed {seed}");
    assert!(world.proxies[new].machine.is_settled(), "seed {seed}");
    world.recovery(time)
}

/// The wall clock is set back by up to a day, and then the process starts again. Its incarnation, the time in
/// milliseconds, is less than before. The embedder begins a session with a greater incarnation. Returns how long the
/// tracker takes to have the routes of the new process, and no others.
fn restart_after_clock_step(seed: u64) -> Recovery {
    let nodes = [1, 2].map(|number| NodeId::from(Uuid::from_u128(number)));
    let mut world = world(seed);
    world.latency = Duration::from_millis(1)..Duration::from_millis(50);
    let before = 1_700_000_000_000;
    let old = world.add_proxy("proxy", before, SessionTimes::default());
    up(&world, old, &nodes[0]);
    world.run_until(Duration::from_secs(5));
    assert_eq!(world.trackers[0].nodes("proxy", world.now), nodes[..1], "seed {seed}");
    world.cut(old, false);
    world.sleep_until(old, Duration::MAX);

    let started = world.now;
    let after = before - world.random.u64(1..86_400_000);
    let refused = world.add_proxy("proxy", after, SessionTimes::default());
    up(&world, refused, &nodes[1]);
    while superseded(&world, refused).is_none() {
        world.run_until(world.now + PRECISION);
        assert!(world.now - started < KEEP_ALIVE, "seed {seed}: not superseded");
    }
    let latest = superseded(&world, refused).map(|(_, latest)| latest);
    assert_eq!(latest, Some(before), "seed {seed}");
    assert!(world.proxies[refused].machine.has_ended(), "seed {seed}");
    let new = world.add_proxy("proxy", before + 1, SessionTimes::default());
    up(&world, new, &nodes[1]);
    recovery(&mut world, new, &nodes[1..]);
    let time = world.now - started;
    world.run_until(world.now + Duration::from_secs(60));
    assert_eq!(superseded(&world, new), None, "seed {seed}");
    assert!(world.proxies[new].machine.is_settled(), "seed {seed}");
    world.recovery(time)
}

fn up(world: &World, proxy: usize, node: &NodeId) {
    let now = world.instant();
    world.proxies[proxy].nodes.up(node, now).expect("there is room");
}

/// Runs until a proxy is settled, and the tracker has exactly these routes.
fn recovery(world: &mut World, proxy: usize, nodes: &[NodeId]) -> Duration {
    let begin = world.now;
    while !world.proxies[proxy].machine.is_settled() || world.trackers[0].nodes("proxy", world.now) != nodes {
        world.run_until(world.now + PRECISION);
        assert!(world.now - begin < KEEP_ALIVE, "no recovery");
    }
    world.now - begin
}

/// Four round trips of up to 100 ms, and the delay of a batch.
const RESTART: Duration = Duration::from_millis(410);

recoveries! {
    100;
    proxy_restarts: Fault {
        name: "a proxy restarts under its ID, and its old messages arrive late",
        bound: RESTART,
        cost: 1,
        recovery: |seed| restart_with_late_messages(seed, seed % 2 == 0),
    },
    clock_is_set_back: Fault {
        name: "the clock is set back by up to a day, and the proxy restarts",
        bound: RESTART.saturating_mul(2),
        cost: 1,
        recovery: restart_after_clock_step,
    },
}
