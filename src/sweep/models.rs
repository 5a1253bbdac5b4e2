//! loom models of the sweeper's cursor, on a whole table; see `src/shard/models.rs`.

use std::time::Duration;

use loom::sync::Arc;
use loom::thread;
use uuid::Uuid;

use super::Cursor;
use crate::shard::routes::Change;
use crate::sync::{epoch, pin};
use crate::verify::models::{Seen, proxy};
use crate::{Added, ManualClock, NodeId, ProxyRef, RouteTable};

fn register(table: &RouteTable, id: &str) -> ProxyRef {
    table.register_proxy(&proxy(id)).expect("there is room")
}

/// An addition that was stopped when its proxy was removed continues. Of two sweepers, one sees that the grace period
/// is over, and stops before it advances; the other does the next round.
#[test]
fn a_round_after_a_grace_period_sees_what_came_before_its_end() {
    let swept = Seen::default();
    let noted = swept.clone();
    epoch::check(2, move || {
        epoch::order_unpins();
        let table = Arc::new(
            RouteTable::builder()
                .clock(ManualClock::new())
                .build()
                .expect("possible limits"),
        );
        let node: NodeId = Uuid::from_u128(1).into();
        let (old, other) = (register(&table, "old"), register(&table, "other"));
        table.add_node(&node, other).expect("there is room");
        assert!(table.remove_node(&node));
        let guard = pin();
        assert!(table.proxies().takes_routes(old));
        assert!(table.remove_proxy(old));
        let adder = thread::spawn({
            let (table, node) = (Arc::clone(&table), node.clone());
            move || {
                let (hash, now) = (table.hash(&node), table.time().now());
                let added = table.add_pinned(&node, hash, old, now, &guard);
                assert_eq!(added.expect("there is room").0, Added::Inserted);
            }
        });
        let sweeper = thread::spawn({
            let table = Arc::clone(&table);
            // Visits both shards, and the first proxy.
            move || _ = table.sweep(3)
        });
        thread::yield_now();
        for _ in 0..2 {
            while !table.sweep(100).round_completed {}
        }
        adder.join().expect("it ends");
        sweeper.join().expect("it ends");
        let is_swept = table.proxies().is_swept(old);
        noted.note(is_swept);
        let routes = table.explain(&node).len();
        assert!(
            !is_swept || routes == 0,
            "a round was to see every route, and missed one"
        );
    });
    swept.assert("the round never ended");
}

/// A proxy is about to be dropped as idle, but has a route, whose addition was stopped before it recorded the use. One
/// sweeper sees the route, the other visits the proxies.
#[test]
fn of_two_sweepers_one_sees_what_the_other_one_stamped() {
    epoch::check(3, || {
        epoch::order_unpins();
        let clock = ManualClock::new();
        let interval = Duration::from_secs(10);
        let builder = RouteTable::builder().clock(clock.clone()).keep_alive(interval);
        let table = Arc::new(builder.build().expect("possible limits"));
        let proxy = register(&table, "one");
        clock.advance(2 * interval);
        // Visit both shards of a round, then the route, then the proxies: the proxy is CLOSING, and waits for a full
        // round.
        table.sweep(2);
        {
            let guard = pin();
            assert!(table.proxies().takes_routes(proxy));
            let node = NodeId::from(Uuid::from_u64_pair(1, 1));
            let hash = table.hash(&node);
            let added = table
                .shards()
                .put(&node, hash, Change::Add(proxy.number), &table.scope(&guard));
            assert!(added.is_ok(), "there is room");
        }
        assert!(table.sweep(100).round_completed);
        // The grace period is over, and the proxy waits for a full round.
        while !table.sweep(100).round_completed {}
        let visitor = thread::spawn({
            let table = Arc::clone(&table);
            move || _ = table.sweep(2)
        });
        let sweeper = thread::spawn({
            let table = Arc::clone(&table);
            move || while !table.sweep(100).round_completed {}
        });
        visitor.join().expect("it ends");
        sweeper.join().expect("it ends");
        assert!(table.proxy(proxy).is_some(), "it was dropped with a route");
    });
}

/// Each sweeper loads the cursor before, between or after the other's steps, so most CASes of the cursor may fail.
#[test]
fn of_two_sweepers_none_goes_back() {
    epoch::check(2, || {
        let table = Arc::new(
            RouteTable::builder()
                .clock(ManualClock::new())
                .build()
                .expect("possible limits"),
        );
        let cursor = Arc::new(Cursor::default());
        let sweepers = [(); 2].map(|()| {
            let (table, cursor) = (Arc::clone(&table), Arc::clone(&cursor));
            // A round of a single sweeper: two shards of UUIDs, none of names, the proxies.
            thread::spawn(move || {
                (0..4)
                    .filter(|_| {
                        let guard = pin();
                        let step = cursor.step(100, table.shards(), table.proxies(), &table.scope(&guard), 0);
                        step.round_completed
                    })
                    .count()
            })
        });
        let completed: usize = sweepers
            .into_iter()
            .map(|sweeper| sweeper.join().expect("it ends"))
            .sum();
        assert_eq!(
            cursor.load().round as usize,
            1 + completed,
            "a round was completed twice"
        );
    });
}
