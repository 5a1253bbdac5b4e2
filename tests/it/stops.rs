//! A process that was stopped, or a clock that jumps: no route expires before every proxy could send a heartbeat.

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use nodetracker::{Clock, ManualClock, NodeId, ProxyRef, RouteTable, SweepPace, Sweeper, Verdict};

use crate::common::{proxy, sweep_fully, table};

const INTERVAL: Duration = Duration::from_secs(30);
const HEARTBEAT: Duration = Duration::from_secs(10);
const STOP: Duration = Duration::from_secs(300);
const TICK: Duration = Duration::from_millis(1);
const NODES: usize = 1_000;

/// A table with a sweeper that steps once a second.
struct Swept {
    table: RouteTable,
    clock: ManualClock,
    pace: SweepPace,
    nodes: Vec<NodeId>,
    proxy: ProxyRef,
}

impl Swept {
    fn new() -> Self {
        let (table, clock) = table(INTERVAL);
        let nodes = (0..NODES).map(|number| format!("node-{number}").parse().expect("a good name"));
        let swept = Self {
            proxy: table.register_proxy(&proxy("proxy")).expect("there is room"),
            pace: SweepPace::default(),
            nodes: nodes.collect(),
            table,
            clock,
        };
        swept.report(NODES);
        swept
    }

    fn report(&self, nodes: usize) {
        for node in &self.nodes[..nodes] {
            self.table.add_node(node, self.proxy).expect("there is room");
        }
    }

    /// Lets time pass, with all steps of the sweeper. Returns the number of routes that it removed.
    fn pass(&mut self, time: Duration) -> usize {
        let (mut left, mut removed) = (time, 0);
        loop {
            let pause = self.pace.next_pause(&self.table).min(left);
            self.clock.advance(pause);
            removed += self.pace.sweep(&self.table).removed;
            left -= pause;
            if left.is_zero() {
                return removed;
            }
        }
    }

    fn returned(&self) -> usize {
        self.nodes.iter().map(|node| self.table.get_proxies(node).len()).sum()
    }
}

#[test]
fn after_a_stop_no_route_expires_for_a_heartbeat_interval() {
    let mut swept = Swept::new();
    let idle = swept.table.register_proxy(&proxy("idle")).expect("there is room");
    let refreshed = swept.clock.wall();
    assert_eq!(swept.pass(2 * HEARTBEAT), 0);
    swept.clock.advance(STOP);

    assert_eq!(swept.returned(), NODES, "the first look-ups after the stop");
    sweep_fully(&swept.table);
    assert_eq!(swept.table.len(), NODES);
    assert!(swept.table.proxy(idle).is_some());
    let [route] = &swept.table.explain(&swept.nodes[0])[..] else {
        panic!("one route");
    };
    assert_eq!(route.verdict, Verdict::Held);
    assert_eq!((route.age, route.last_refresh), (2 * HEARTBEAT + STOP, refreshed));
    assert_eq!(swept.table.resolve(&swept.nodes[0])[0].last_refresh, refreshed);
    assert_eq!(swept.table.get_proxies_batch(&swept.nodes).flatten().count(), NODES);
    assert_eq!(swept.table.keep_alive(), INTERVAL);
    assert_eq!(swept.table.effective_keep_alive(), INTERVAL + STOP);
    assert_eq!(swept.table.stats().effective_keep_alive, INTERVAL + STOP);

    swept.report(NODES / 4);
    assert_eq!(swept.pass(HEARTBEAT - TICK), 0);
    assert_eq!(swept.returned(), NODES, "the last look-ups of the grace");
    assert_eq!(swept.table.effective_keep_alive(), INTERVAL + STOP + HEARTBEAT - TICK);
    swept.clock.advance(TICK);
    assert_eq!(swept.returned(), NODES / 4, "the first look-ups after the grace");
    assert_eq!(swept.table.effective_keep_alive(), INTERVAL);
    sweep_fully(&swept.table);
    assert_eq!(swept.table.len(), NODES / 4);

    // The refreshed routes have the usual age.
    assert_eq!(swept.pass(INTERVAL - HEARTBEAT), 0);
    assert_eq!(swept.returned(), NODES / 4);
    swept.clock.advance(TICK);
    assert_eq!(swept.returned(), 0);
}

#[test]
fn without_a_stop_routes_expire_after_their_interval() {
    let mut swept = Swept::new();
    for _ in 0..3 {
        // Exactly a heartbeat interval without a reading is no stop.
        swept.clock.advance(HEARTBEAT);
        assert_eq!(swept.returned(), NODES);
        assert_eq!(swept.table.effective_keep_alive(), INTERVAL);
    }
    swept.clock.advance(TICK);
    assert_eq!(swept.returned(), 0);
    swept.report(NODES);
    assert_eq!(swept.pass(INTERVAL), 0);
    assert_eq!(swept.returned(), NODES);
    swept.clock.advance(TICK);
    assert_eq!(swept.returned(), 0);
}

#[test]
fn what_expired_before_a_stop_stays_expired_and_a_removed_proxy_is_not_held() {
    let mut swept = Swept::new();
    swept.pass(INTERVAL);
    swept.report(NODES / 2);
    swept.clock.advance(TICK);
    assert_eq!(swept.returned(), NODES / 2);
    let other = swept.table.register_proxy(&proxy("other")).expect("there is room");
    swept.table.add_node(&swept.nodes[0], other).expect("there is room");
    swept.clock.advance(STOP);
    assert_eq!(swept.returned(), NODES / 2 + 1);
    swept.table.remove_proxy(swept.proxy);
    assert_eq!(swept.returned(), 1);
    sweep_fully(&swept.table);
    assert_eq!(swept.table.len(), 1);
}

#[test]
fn a_grace_ends_however_often_the_process_is_stopped() {
    let mut swept = Swept::new();
    swept.pass(TICK);
    // A second stop restarts the grace.
    swept.clock.advance(STOP);
    assert_eq!(swept.returned(), NODES);
    swept.clock.advance(STOP);
    assert_eq!(swept.returned(), NODES);
    assert_eq!(swept.pass(HEARTBEAT / 2), 0);
    assert_eq!(swept.returned(), NODES);
    let stops = (0..100).take_while(|_| {
        swept.clock.advance(STOP);
        swept.returned() > 0
    });
    assert!((1..10).contains(&stops.count()));
}

#[test]
fn every_thread_gets_the_grace() {
    const THREADS: usize = 4;
    for _ in 0..20 {
        let mut swept = Swept::new();
        swept.pass(HEARTBEAT);
        swept.clock.advance(STOP);
        let start = Barrier::new(THREADS);
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    start.wait();
                    assert_eq!(swept.returned(), NODES);
                    sweep_fully(&swept.table);
                });
            }
        });
        assert_eq!(swept.table.len(), NODES);
    }
}

#[test]
fn a_table_that_no_pace_sweeps_has_no_stops() {
    let swept = Swept::new();
    swept.clock.advance(STOP);
    assert_eq!(swept.returned(), 0);

    let Swept {
        table, clock, nodes, ..
    } = Swept::new();
    let table = std::sync::Arc::new(table);
    drop(Sweeper::start(std::sync::Arc::clone(&table)).expect("a thread can be started"));
    clock.advance(STOP);
    assert!(table.get_proxies(&nodes[0]).is_empty());
}
