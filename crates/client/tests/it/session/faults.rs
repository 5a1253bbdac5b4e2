//! Random faults: the machine against the model of a tracker.
//!
//! A node is *live* while it is up and gives signs of life, *silent* while it gives none, and *down* after its tunnel
//! ended. The checks:
//!
//! * no node is announced or refreshed for longer than an interval and a half after its last sign of life
//! * no node is announced or refreshed after it went down, except by a request that was on its way
//! * a live node has a route [`RECOVERY`] after the last fault
//! * at all times, a node that is down has no route for longer than the keep-alive interval
//! * with one tracker, a node that is down has no route [`RECOVERY`] after the last fault, and [`WITHDRAWAL`] after its
//!   tunnel ended
//! * at the end, the tracker has the routes of the live nodes and no other routes
//!
//! `NODETRACKER_SEEDS=5000 cargo test --release -p nodetracker-client --test it session::faults` runs more of them.

use std::collections::BTreeMap;
use std::time::Duration;

use nodetracker_client::session::SessionTimes;
use nodetracker_client::session::machine::Event;
use nodetracker_client::{NodeId, Uuid};
use nodetracker_proto::v1;
use nodetracker_proto::v1::session_response::Response;

use crate::seeds::Seeds;
use crate::session::model::{LIMITS, ModelTracker};
use crate::session::world::World;

pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(90);
pub(super) const INTERVAL: Duration = Duration::from_secs(30);
/// The longest time of a message in one direction.
pub(super) const DELAY: Duration = Duration::from_secs(2);
/// The longest time between two signs of life.
pub(super) const SIGNS: Duration = Duration::from_secs(20);
pub(super) const STEP: Duration = Duration::from_millis(500);
/// An announcement may be on its way, and several withdrawals follow.
const WITHDRAWAL: Duration = Duration::from_secs(10);
/// A half-open connection is noticed with the next round, and the answer to a hello may be lost too.
const RECOVERY: Duration = Duration::from_secs(75);

fn times() -> SessionTimes {
    let mut times = SessionTimes::default();
    times.answer_timeout = Duration::from_secs(10);
    times.reconnect.max = Duration::from_secs(3);
    times.refused.max = Duration::from_secs(5);
    times
}

fn node(number: usize) -> NodeId {
    match number % 4 {
        0 => format!("node-{number}-{}", "x".repeat(number % 100))
            .parse()
            .expect("a name"),
        _ => Uuid::from_u128(number as u128).into(),
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Life {
    Live,
    Silent,
    Down,
}

/// The truth about a node.
struct Truth {
    life: Life,
    since: Duration,
    last_sign: Duration,
    next_sign: Duration,
}

pub(super) struct Run {
    pub(super) world: World,
    truth: BTreeMap<NodeId, Truth>,
    pub(super) last_fault: Duration,
    /// The last restart with a snapshot, after which the tracker holds expiry.
    expiry_held: Duration,
    /// The present incarnation of the proxy, and its position in the world.
    incarnation: u64,
    proxy: usize,
    /// Whether a change of the nodes has reported something to do.
    is_woken: bool,
    seed: u64,
}

impl Run {
    pub(super) fn new(seed: u64, trackers: u64) -> Self {
        let trackers = (1..=trackers)
            .map(|number| ModelTracker::new(KEEP_ALIVE, LIMITS, number))
            .collect();
        let mut world = World::new(seed, trackers);
        world.latency = Duration::from_millis(1)..Duration::from_millis(50);
        let proxy = world.add_proxy("proxy", 1, times());
        Self {
            world,
            truth: BTreeMap::new(),
            last_fault: Duration::ZERO,
            expiry_held: Duration::ZERO,
            incarnation: 1,
            proxy,
            is_woken: false,
            seed,
        }
    }

    fn sign(&mut self, node: &NodeId, is_up: bool) {
        let now = self.world.now;
        let wait = SIGNS.mul_f64(self.world.random.f64());
        let proxy = &self.world.proxies[self.proxy];
        self.is_woken |= match is_up {
            true => proxy.nodes.up(node, self.world.instant()).expect("there is room"),
            false => proxy.nodes.seen(node, self.world.instant()),
        };
        let truth = self.truth.entry(node.clone()).or_insert(Truth {
            life: Life::Live,
            since: now,
            last_sign: now,
            next_sign: now,
        });
        if truth.life != Life::Live {
            truth.life = Life::Live;
            truth.since = now;
        }
        truth.last_sign = now;
        truth.next_sign = now + wait;
    }

    /// Changes up to 19 nodes.
    pub(super) fn change_some(&mut self) {
        for _ in 0..self.world.random.usize(..20) {
            let number = self.world.random.usize(..100);
            self.change(node(number));
        }
    }

    fn change(&mut self, node: NodeId) {
        let now = self.world.now;
        let life = self.truth.get(&node).map(|truth| truth.life);
        match (life, self.world.random.u8(..3)) {
            (None | Some(Life::Down), _) => self.sign(&node, true),
            (Some(Life::Silent), 0) => self.sign(&node, false),
            (Some(Life::Live), 0) => self.set(&node, Life::Silent, now),
            (Some(_), _) => {
                self.is_woken |= self.world.proxies[self.proxy].nodes.down(&node, self.world.instant());
                self.set(&node, Life::Down, now);
                // Some return at once.
                if self.world.random.bool() {
                    self.sign(&node, true);
                }
            }
        }
    }

    fn set(&mut self, node: &NodeId, life: Life, since: Duration) {
        if let Some(truth) = self.truth.get_mut(node) {
            truth.life = life;
            truth.since = since;
        }
    }

    fn fault(&mut self) {
        let (world, proxy) = (&mut self.world, self.proxy);
        let tracker = world.random.usize(..world.trackers.len());
        match world.random.u8(..14) {
            0 => world.restart(tracker, false),
            1 => self.restart_with_snapshot(tracker),
            2 => world.cut(proxy, false),
            3 => world.cut(proxy, true),
            4 => world.trackers[tracker].drop_proxies(),
            5 => {
                let mut random = world.random.fork();
                world.trackers[tracker].disturb_routes(&mut random);
            }
            6 => world.trackers[tracker].capacity = world.random.usize(..60),
            7 => world.latency.end = DELAY.mul_f64(world.random.f64()).max(Duration::from_millis(2)),
            8 => world.repeats_requests ^= true,
            9 => self.sleep(Duration::from_secs(3600)),
            10 => world.broadcast(tracker, &Response::KeepAlive(v1::SessionKeepAlive {})),
            11 => world.set_reachable(tracker, !world.trackers[tracker].is_reachable),
            12 => self.restart_proxy(),
            _ => world.broadcast(
                tracker,
                &Response::GoAway(v1::SessionGoAway {
                    time_left: Duration::from_secs(5).try_into().ok(),
                }),
            ),
        }
        self.last_fault = self.world.now;
    }

    pub(super) fn restart_with_snapshot(&mut self, tracker: usize) {
        self.world.restart(tracker, true);
        self.expiry_held = self.world.now;
    }

    /// The process is killed, and all tunnels end. After a while, it starts again under its ID, and some nodes return.
    fn restart_proxy(&mut self) {
        let is_half_open = self.world.random.bool();
        self.world.cut(self.proxy, is_half_open);
        self.world.sleep_until(self.proxy, Duration::MAX);
        let killed = self.world.now;
        for truth in self.truth.values_mut().filter(|truth| truth.life != Life::Down) {
            (truth.life, truth.since) = (Life::Down, killed);
        }
        let end = killed + (2 * KEEP_ALIVE).mul_f64(self.world.random.f64().powi(3));
        while self.world.now < end {
            self.last_fault = self.world.now;
            self.step(STEP);
        }
        self.incarnation += 1;
        self.proxy = self.world.add_proxy("proxy", self.incarnation, times());
        for node in Vec::from_iter(self.truth.keys().cloned()) {
            if self.world.random.bool() {
                self.sign(&node, true);
            }
        }
    }

    /// The process sleeps. Then the live nodes give signs of life one after the other.
    pub(super) fn sleep(&mut self, time: Duration) {
        let world = &mut self.world;
        let end = world.now + time;
        world.sleep_until(self.proxy, end);
        world.run_until(end);
        for truth in self.truth.values_mut() {
            truth.next_sign = end + SIGNS.mul_f64(world.random.f64());
        }
    }

    pub(super) fn heal(&mut self) {
        for tracker in 0..self.world.trackers.len() {
            self.world.trackers[tracker].capacity = usize::MAX;
            if !self.world.trackers[tracker].is_reachable {
                self.world.set_reachable(tracker, true);
            }
        }
        self.world.repeats_requests = false;
        self.world.latency.end = Duration::from_millis(50);
        self.last_fault = self.world.now;
    }

    pub(super) fn step(&mut self, time: Duration) {
        let now = self.world.now;
        let due: Vec<NodeId> = self
            .truth
            .iter()
            .filter(|(_, truth)| truth.life == Life::Live && truth.next_sign <= now)
            .map(|(node, _)| node.clone())
            .collect();
        for node in due {
            self.sign(&node, false);
        }
        if std::mem::take(&mut self.is_woken) {
            self.world.drive(self.proxy);
        }
        self.world.run_until(now + time);
        self.check();
        self.assert_down_nodes_expire();
    }

    fn check(&mut self) {
        let seed = self.seed;
        for (at, _, node) in std::mem::take(&mut self.world.refreshes) {
            let truth = &self.truth[&node];
            let silence = at.saturating_sub(truth.last_sign);
            assert!(
                silence <= INTERVAL.mul_f64(1.5) + DELAY,
                "seed {seed}: {node} is refreshed {silence:?} after its last sign of life"
            );
            let late = at.saturating_sub(truth.since);
            assert!(
                truth.life != Life::Down || late <= DELAY,
                "seed {seed}: {node} is refreshed {late:?} after it went down"
            );
        }
        let now = self.world.now;
        let is_faulty = |tracker: &ModelTracker| tracker.capacity != usize::MAX || !tracker.is_reachable;
        if self.world.trackers.iter().any(is_faulty) {
            self.last_fault = now;
        }
        if now - self.last_fault > RECOVERY {
            let found = self.routes();
            for (node, truth) in &self.truth {
                assert!(
                    truth.life != Life::Live || now - truth.since <= RECOVERY || found.binary_search(node).is_ok(),
                    "seed {seed}: {node} is missing at {now:?}, since {:?} after the fault",
                    now - self.last_fault
                );
                assert!(
                    truth.life != Life::Down
                        || now - truth.since <= WITHDRAWAL
                        || self.world.trackers.len() > 1
                        || found.binary_search(node).is_err(),
                    "seed {seed}: {node} still has a route at {now:?}, since {:?} after it went down",
                    now - truth.since
                );
            }
        }
    }

    /// The nodes with a route at any tracker.
    pub(super) fn routes(&self) -> Vec<NodeId> {
        let trackers = self.world.trackers.iter();
        let mut nodes: Vec<_> = trackers
            .flat_map(|tracker| tracker.nodes("proxy", self.world.now))
            .collect();
        nodes.sort();
        nodes.dedup();
        nodes
    }

    /// Whether each live node has a route, and no node has a route that went down.
    pub(super) fn has_recovered(&self) -> bool {
        let routes = self.routes();
        self.truth.iter().all(|(node, truth)| match truth.life {
            Life::Live => routes.binary_search(node).is_ok(),
            Life::Silent => true,
            Life::Down => routes.binary_search(node).is_err(),
        })
    }

    fn assert_down_nodes_expire(&self) {
        for node in self.routes() {
            let truth = &self.truth[&node];
            let time = self.world.now - truth.since.max(self.expiry_held);
            assert!(
                truth.life != Life::Down || time <= KEEP_ALIVE + DELAY,
                "seed {}: {node} has a route {time:?} after it went down",
                self.seed
            );
        }
    }

    /// Runs without faults until routes that are not refreshed have expired.
    pub(super) fn settle(&mut self) {
        self.heal();
        for _ in 0..((KEEP_ALIVE + 3 * INTERVAL).as_millis() / STEP.as_millis()) {
            self.step(STEP);
        }
        let is_live = |truth: &Truth| truth.life == Life::Live;
        let live: Vec<_> = self
            .truth
            .iter()
            .filter(|(_, truth)| is_live(truth))
            .map(|(node, _)| node.clone())
            .collect();
        assert_eq!(self.routes(), live, "seed {}", self.seed);
        let up = self.truth.values().filter(|truth| truth.life != Life::Down).count();
        let proxy = &self.world.proxies[self.proxy];
        assert_eq!(proxy.nodes.len(), up, "seed {}", self.seed);
        assert!(proxy.machine.is_settled(), "seed {}", self.seed);
        let ended = |event: &Event| matches!(event, Event::Superseded(_) | Event::Drained);
        assert!(!proxy.events.iter().any(ended), "seed {}", self.seed);
    }
}

fn run(seed: u64) -> u64 {
    let trackers = 1 + u64::from(seed.is_multiple_of(4));
    let mut run = Run::new(seed, trackers);
    for _ in 0..600 {
        if run.world.random.u8(..4) == 0 {
            run.change_some();
        }
        if run.world.random.u8(..60) == 0 {
            run.fault();
        }
        if run.world.random.u8(..200) == 0 {
            run.heal();
        }
        run.step(STEP);
    }
    run.settle();
    run.world.trace()
}

#[test]
fn routes_follow_the_nodes_through_random_faults() {
    for seed in Seeds::new(300) {
        let trace = run(seed);
        if seed.is_multiple_of(50) {
            assert_eq!(run(seed), trace, "seed {seed} does not replay");
        }
    }
}
