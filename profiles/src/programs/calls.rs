//! Calls that allocate nothing.

use std::time::Duration;

use nodetracker::{Added, NodeId};

use crate::heap::allocations;
use crate::input::{Fleet, PROXIES, named_node, node};
use crate::programs::Findings;

const NODES: u64 = 100_000;

/// Nodes of one proxy, which are named together in a call.
const BATCH: usize = (NODES / PROXIES) as usize;

/// Calls `f` with the number of each node, and counts the allocations.
fn count(f: impl Fn(u64)) -> f64 {
    let before = allocations();
    (0..NODES).for_each(f);
    (allocations() - before) as f64
}

/// Calls `f` with each proxy's number and all nodes of this proxy, and counts the allocations. Does not count the
/// allocations of the first call, in which buffers grow.
fn count_batches(mut f: impl FnMut(u64, &[NodeId; BATCH])) -> f64 {
    let mut batch = |n| f(n, &std::array::from_fn(|i| node(n % PROXIES + PROXIES * i as u64)));
    batch(0);
    let before = allocations();
    (1..=PROXIES).for_each(batch);
    (allocations() - before) as f64
}

pub(crate) fn calls(findings: &mut Findings) {
    let fleet = Fleet::with_nodes(NODES);
    for n in 0..NODES {
        fleet.add_through(&named_node(n), fleet.proxy(n));
    }
    let tick = || fleet.clock.advance(Duration::from_millis(1));

    tick();
    let refresh = |n| assert_eq!(fleet.add(n), Added::Refreshed);
    findings.found("refresh", count(refresh));
    let refresh_named = |n| assert_eq!(fleet.add_through(&named_node(n), fleet.proxy(n)), Added::Refreshed);
    findings.found("refresh-named", count(refresh_named));
    let look_up = |n| {
        assert_eq!(fleet.table.get_proxies(&node(n)).len(), 1);
        assert_eq!(fleet.table.get_proxies(&named_node(n)).len(), 1);
        assert!(fleet.table.get_proxies(&node(NODES + n)).is_empty());
    };
    findings.found("look-up", count(look_up));

    for n in 0..NODES {
        assert_eq!(fleet.add_second(n), Added::Inserted);
    }
    tick();
    findings.found("refresh-of-two", count(refresh));
    let look_up_two = |n| assert_eq!(fleet.table.get_proxies(&node(n)).len(), 2);
    findings.found("look-up-of-two", count(look_up_two));

    tick();
    let look_up_batch = |_, nodes: &[_; BATCH]| {
        let mut answers = fleet.table.get_proxies_batch(nodes);
        assert!(answers.all(|routes| routes.len() == 2));
    };
    findings.found("look-up-batch", count_batches(look_up_batch));
    let batch = |n| std::array::from_fn::<_, BATCH, _>(|i| node(n + PROXIES * i as u64));
    let announce = |n| fleet.table.add_nodes_with_handles(&batch(n), fleet.proxy(n));
    let announced: Vec<_> = (0..PROXIES).map(announce).collect();
    let refresh_batch = |n, nodes: &[_; BATCH]| {
        let proxy = fleet.proxy(n);
        let added = fleet.table.add_nodes(nodes, proxy);
        assert_eq!(added.map(|added| added.refreshed), Ok(BATCH));
        tick();
        let announced = announced[(n % PROXIES) as usize].as_ref().expect("there is room");
        let refreshed = fleet.table.refresh_routes(&announced.handles, proxy);
        assert_eq!(refreshed.map(|refreshed| refreshed.refreshed), Ok(BATCH));
    };
    findings.found("refresh-batch", count_batches(refresh_batch));
}
