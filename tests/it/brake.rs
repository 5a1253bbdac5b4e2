//! The expiry brake: if many routes are about to expire at once, their expiry is held, for a bounded time.

use std::time::Duration;

use fastrand::Rng;
use nodetracker::{Builder, ExpiryBrake, HoldCause, ManualClock, NodeId, ProxyRef, RouteTable, SweepPace, Verdict};

use crate::common::proxy;

const INTERVAL: Duration = Duration::from_secs(300);
const HEARTBEAT: Duration = Duration::from_secs(100);
const TICK: Duration = Duration::from_millis(1);
const PROXIES: usize = 20;
const NODES_EACH: usize = 50;
const NODES: usize = PROXIES * NODES_EACH;
const BOUND: Duration = Duration::from_secs(900);

/// Proxies that send heartbeats for their own nodes, at different times.
struct Fleet {
    table: RouteTable,
    clock: ManualClock,
    pace: SweepPace,
    proxies: Vec<ProxyRef>,
    nodes: Vec<Vec<NodeId>>,
    elapsed: Duration,
    /// The time until the sweeper's next step.
    until_sweep: Duration,
}

impl Fleet {
    fn new(brake: ExpiryBrake) -> Self {
        Self::with(RouteTable::builder().expiry_brake(brake))
    }

    fn with(builder: Builder) -> Self {
        Self::sized(builder, NODES_EACH)
    }

    fn sized(builder: Builder, nodes_each: usize) -> Self {
        let clock = ManualClock::new();
        let table = builder
            .keep_alive(INTERVAL)
            .clock(clock.clone())
            .build()
            .expect("possible limits");
        let node = |number| format!("node-{number}").parse().expect("a good name");
        let mut fleet = Self {
            proxies: (0..PROXIES)
                .map(|number| {
                    table
                        .register_proxy(&proxy(&format!("proxy-{number}")))
                        .expect("there is room")
                })
                .collect(),
            nodes: (0..PROXIES)
                .map(|number| (number * nodes_each..(number + 1) * nodes_each).map(node).collect())
                .collect(),
            pace: SweepPace::default(),
            table,
            clock,
            elapsed: Duration::ZERO,
            until_sweep: Duration::ZERO,
        };
        (0..PROXIES).for_each(|number| fleet.report(number));
        fleet.pass(HEARTBEAT, 0..PROXIES);
        fleet
    }

    fn report(&mut self, number: usize) {
        // The sweeper drops a proxy whose routes have expired.
        self.proxies[number] = self
            .table
            .register_proxy(&proxy(&format!("proxy-{number}")))
            .expect("there is room");
        self.table
            .add_nodes(&self.nodes[number], self.proxies[number])
            .expect("there is room");
    }

    /// Lets time pass, with the sweeper, and with the heartbeats of some proxies.
    fn pass(&mut self, time: Duration, alive: impl Clone + Iterator<Item = usize>) {
        let end = self.elapsed + time;
        while self.elapsed < end {
            // Each proxy sends its heartbeat in its own second.
            let step = Duration::from_secs(1).min(end - self.elapsed);
            let second = self.elapsed.as_secs() % HEARTBEAT.as_secs();
            let due = alive.clone().filter(|&proxy| proxy as u64 * 5 == second);
            due.for_each(|proxy| self.report(proxy));
            let mut left = step;
            while !left.is_zero() {
                if self.until_sweep.is_zero() {
                    self.pace.sweep(&self.table);
                    self.until_sweep = self.pace.next_pause(&self.table);
                }
                let pause = self.until_sweep.min(left);
                self.clock.advance(pause);
                self.until_sweep -= pause;
                left -= pause;
            }
            self.elapsed += step;
        }
    }

    fn returned(&self) -> usize {
        self.nodes
            .iter()
            .flatten()
            .map(|node| self.table.get_proxies(node).len())
            .sum()
    }

    fn cause(&self) -> Option<HoldCause> {
        self.table.expiry_hold().map(|hold| hold.cause)
    }
}

#[test]
fn routes_are_held_when_all_heartbeats_stop_and_expire_at_the_bound() {
    let mut fleet = Fleet::new(ExpiryBrake::default());
    assert_eq!(fleet.cause(), None);
    fleet.pass(INTERVAL + HEARTBEAT, 0..0);
    assert_eq!(fleet.cause(), Some(HoldCause::Brake));
    assert_eq!(fleet.returned(), NODES);
    let [route] = &fleet.table.explain(&fleet.nodes[0][0])[..] else {
        panic!("one route");
    };
    assert_eq!(route.verdict, Verdict::Held);
    let hold = fleet.table.stats().expiry_hold.expect("expiry is held");
    assert_eq!(fleet.table.keep_alive(), INTERVAL);
    assert_eq!(fleet.table.effective_keep_alive(), INTERVAL + hold.raise);
    assert_eq!(hold.raise + hold.left, BOUND - INTERVAL);

    fleet.pass(hold.left - TICK, 0..0);
    assert_eq!(fleet.returned(), NODES);
    fleet.clock.advance(TICK);
    assert_eq!(fleet.returned(), 0);
    assert_eq!(fleet.table.effective_keep_alive(), INTERVAL);
    // The expired routes do not begin another hold.
    for _ in 0..INTERVAL.as_secs() {
        fleet.pass(Duration::from_secs(1), 0..0);
        assert_eq!(fleet.cause(), None);
    }
    assert_eq!(fleet.table.len(), 0);
}

/// A part of a round does not know the other routes.
#[test]
fn a_hold_lasts_until_the_end_of_a_whole_round() {
    let mut fleet = Fleet::new(ExpiryBrake::default());
    fleet.pass(INTERVAL + HEARTBEAT, 0..0);
    while !fleet.table.sweep(16).round_completed {}
    assert_eq!(fleet.cause(), Some(HoldCause::Brake));
    (0..PROXIES).for_each(|number| fleet.report(number));
    while !fleet.table.sweep(16).round_completed {
        assert_eq!(fleet.cause(), Some(HoldCause::Brake));
    }
    assert_eq!(fleet.cause(), None);
}

#[test]
fn the_hold_ends_when_heartbeats_return_and_what_stays_silent_expires() {
    let mut fleet = Fleet::new(ExpiryBrake::default());
    fleet.pass(INTERVAL + HEARTBEAT, 0..0);
    assert_eq!(fleet.cause(), Some(HoldCause::Brake));
    // One of twenty proxies stays silent.
    fleet.pass(HEARTBEAT + 2 * INTERVAL / 4, 1..PROXIES);
    assert_eq!(fleet.cause(), None);
    assert_eq!(fleet.returned(), NODES - NODES_EACH);
    fleet.pass(INTERVAL, 1..PROXIES);
    assert_eq!(fleet.table.len(), NODES - NODES_EACH);
    assert_eq!(fleet.table.effective_keep_alive(), INTERVAL);
}

#[test]
fn what_is_below_either_limit_expires() {
    // Two of twenty proxies have ten percent of the routes.
    let mut fleet = Fleet::new(ExpiryBrake::default());
    for _ in 0..4 {
        fleet.pass(HEARTBEAT, 2..PROXIES);
        assert_eq!(fleet.cause(), None);
    }
    assert_eq!(fleet.returned(), NODES - 2 * NODES_EACH);

    // All routes are late, but they are fewer than `min_routes`.
    let mut fleet = Fleet::new(ExpiryBrake::default().min_routes(NODES + 1));
    for _ in 0..4 {
        fleet.pass(HEARTBEAT, 0..0);
        assert_eq!(fleet.cause(), None);
    }
    assert_eq!(fleet.returned(), 0);
}

#[test]
fn four_of_twenty_are_enough() {
    let mut fleet = Fleet::new(ExpiryBrake::default());
    fleet.pass(INTERVAL + HEARTBEAT, 4..PROXIES);
    assert_eq!(fleet.cause(), Some(HoldCause::Brake));
    assert_eq!(fleet.returned(), NODES);
    // The heartbeats of the other proxies do not end the hold. The bound ends the hold.
    fleet.pass(BOUND - INTERVAL, 4..PROXIES);
    assert_eq!(fleet.cause(), None);
    assert_eq!(fleet.returned(), NODES - 4 * NODES_EACH);
}

/// Whatever part of a round the sweeper has done when the routes become late.
#[test]
fn routes_that_fall_silent_at_one_time_are_held_before_they_expire() {
    const EACH: usize = 1_000;
    for phase in 0..10 {
        let mut fleet = Fleet::sized(RouteTable::builder().expiry_brake(ExpiryBrake::default()), EACH);
        fleet.pass(phase * INTERVAL / 4 / 10, 0..PROXIES);
        (0..4).for_each(|number| fleet.report(number));
        fleet.pass(INTERVAL, 4..PROXIES);
        assert_eq!(fleet.cause(), Some(HoldCause::Brake), "phase {phase}");
        fleet.pass(HEARTBEAT, 4..PROXIES);
        assert_eq!(fleet.returned(), PROXIES * EACH, "phase {phase}");
    }
}

#[test]
fn without_a_brake_nothing_is_held() {
    for brake in [
        None,
        Some(ExpiryBrake::default().percent(100)),
        Some(ExpiryBrake::default().max_intervals(1)),
    ] {
        let builder = RouteTable::builder();
        let mut fleet = Fleet::with(match brake {
            Some(brake) => builder.expiry_brake(brake),
            None => builder,
        });
        fleet.pass(INTERVAL + HEARTBEAT, 0..0);
        assert_eq!((fleet.cause(), fleet.returned()), (None, 0), "{brake:?}");
    }
}

#[test]
fn a_removed_proxy_is_not_held() {
    let mut fleet = Fleet::new(ExpiryBrake::default());
    fleet.pass(INTERVAL + HEARTBEAT, 0..0);
    assert!(fleet.table.remove_proxy(fleet.proxies[0]));
    assert_eq!(fleet.returned(), NODES - NODES_EACH);
    fleet.pass(INTERVAL / 2, 0..0);
    assert_eq!(fleet.cause(), Some(HoldCause::Brake));
    assert_eq!(fleet.table.len(), NODES - NODES_EACH);
}

#[test]
fn a_stop_during_a_hold_leaves_a_heartbeat_interval() {
    let mut fleet = Fleet::new(ExpiryBrake::default());
    fleet.pass(INTERVAL + HEARTBEAT, 0..0);
    let hold = fleet.table.expiry_hold().expect("expiry is held");
    fleet.pass(hold.left - TICK, 0..0);
    fleet.clock.advance(10 * INTERVAL);
    assert_eq!(fleet.returned(), NODES);
    fleet.pass(HEARTBEAT - TICK, 0..0);
    assert_eq!(fleet.returned(), NODES);
    fleet.clock.advance(TICK);
    assert_eq!(fleet.returned(), 0);
}

/// Proxies fall silent and return at random. No returned route is older than the bound, and the holds end. If all
/// proxies stay silent, all routes expire.
#[test]
fn no_route_outlives_the_bound() {
    for seed in 0..4 {
        let mut random = Rng::with_seed(seed);
        let mut fleet = Fleet::new(ExpiryBrake::default());
        let mut holds = 0;
        for _ in 0..40 {
            let alive: Vec<usize> = (0..PROXIES).filter(|_| random.u8(..4) > 0).collect();
            let alive = if random.bool() { alive } else { Vec::new() };
            let time = Duration::from_secs(random.u64(1..400));
            fleet.pass(time, alive.into_iter());
            holds += usize::from(fleet.cause().is_some());
            assert!(fleet.table.effective_keep_alive() <= BOUND, "seed {seed}");
            for node in fleet.nodes.iter().flatten().step_by(NODES_EACH / 2) {
                for route in fleet.table.explain(node) {
                    let is_returned = matches!(route.verdict, Verdict::Returned | Verdict::Held);
                    assert_eq!(
                        is_returned,
                        route.age <= fleet.table.effective_keep_alive(),
                        "seed {seed}"
                    );
                }
            }
        }
        assert!(holds > 0, "seed {seed}");
        fleet.pass(BOUND + INTERVAL, 0..0);
        assert_eq!((fleet.table.len(), fleet.cause()), (0, None), "seed {seed}");
    }
}
