//! Going through all routes, alone and while others change them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::model::millis;
use crate::common::ops::node;
use crate::common::proxy;
use nodetracker::{NodeId, ProxyRef, Route, RouteTable};
use uuid::Uuid;

/// Every route that a walk reports, node by node.
fn walk(table: &RouteTable) -> HashMap<NodeId, Vec<Route>> {
    let mut nodes: HashMap<NodeId, Vec<Route>> = HashMap::new();
    table.for_each_route(|node, route| nodes.entry(node.clone()).or_default().push(route));
    nodes
}

fn register(table: &RouteTable, count: usize) -> Vec<ProxyRef> {
    (0..count)
        .map(|i| table.register_proxy(&proxy(&format!("proxy-{i}"))).expect("registers"))
        .collect()
}

#[test]
fn a_walk_reports_what_look_ups_answer() {
    let (table, clock) = crate::common::table(Duration::from_millis(500));
    assert!(walk(&table).is_empty());
    let proxies = register(&table, 70);
    let nodes: Vec<NodeId> = (0..300).map(node).collect();
    let mut random = fastrand::Rng::with_seed(crate::common::seed());
    for _ in 0..2_000 {
        let node = &nodes[random.usize(..nodes.len())];
        table
            .add_node(node, proxies[random.usize(..proxies.len())])
            .expect("there is room");
        if random.u8(..) < 100 {
            clock.advance(Duration::from_millis(1));
        }
        if random.u8(..) < 5 {
            table.remove_node(&nodes[random.usize(..nodes.len())]);
        }
    }
    proxies.iter().for_each(|proxy| _ = table.add_node(&nodes[0], *proxy));
    table.remove_proxy(proxies[69]);

    let mut walked = walk(&table);
    assert_eq!(walked[&nodes[0]].len(), 63, "64 routes, one of a removed proxy");
    for node in &nodes {
        let answer = table.get_proxies(node).to_vec();
        assert_eq!(
            walked.remove(node).unwrap_or_default(),
            answer,
            "seed {}",
            crate::common::seed()
        );
    }
    assert!(walked.is_empty(), "{walked:?}");

    clock.advance(Duration::from_secs(1));
    assert!(walk(&table).is_empty(), "all are expired");
}

#[test]
fn the_callback_may_use_the_table() {
    let table = RouteTable::new();
    let proxies = register(&table, 1);
    (0..100).for_each(|i| _ = table.add_node(&node(i), proxies[0]));
    table.for_each_route(|node, route| {
        assert_eq!(table.get_proxies(node)[0].proxy, route.proxy);
        assert!(table.remove_node(node));
        table.sweep(1_000);
    });
    assert!(table.get_proxies(&node(1)).is_empty());
}

/// Shards rebuild and move under the walk: of the nodes that stay, each is reported once; no node is reported twice.
#[test]
fn a_route_that_stays_is_reported_exactly_once() {
    const STAYING: u128 = 20_000;
    let table = RouteTable::new();
    let proxies = register(&table, 3);
    let staying = |i: u128| NodeId::from(Uuid::from_u128(i << 64));
    for i in 0..STAYING {
        table.add_node(&staying(i), proxies[0]).expect("there is room");
        if i % 10 == 0 {
            table.add_node(&staying(i), proxies[1]).expect("there is room");
        }
    }
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        // Fills and empties, so that shards grow, shed tombstones, and move; the same keys come back.
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for i in 0..100_000_u128 {
                    let node = NodeId::from(Uuid::from_u128(i << 32 | 1));
                    table.add_node(&node, proxies[2]).expect("there is room");
                }
                for i in 0..100_000_u128 {
                    table.remove_node(&NodeId::from(Uuid::from_u128(i << 32 | 1)));
                }
            }
        });
        scope.spawn(|| {
            let mut i = 0;
            while !done.load(Ordering::Relaxed) {
                table.sweep(10_000);
                i += 1;
                table
                    .add_node(&staying(i % STAYING), proxies[0])
                    .expect("there is room");
            }
        });
        for _ in 0..20 * crate::common::scale() {
            let walked = walk(&table);
            for i in 0..STAYING {
                let routes = walked.get(&staying(i)).map_or(&[][..], Vec::as_slice);
                assert_eq!(routes.len(), if i % 10 == 0 { 2 } else { 1 }, "node {i}");
                assert!(routes.is_sorted_by_key(|route| std::cmp::Reverse(millis(route.last_refresh))));
            }
            for (node, routes) in &walked {
                assert!(routes.len() <= 2, "{node} has {routes:?}");
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}
