//! Calls that allocate nothing.

use std::time::Duration;

use nodetracker::Added;

use crate::heap::allocations;
use crate::input::{Fleet, named_node, node};
use crate::programs::Findings;

const NODES: u64 = 100_000;

/// Calls `f` with the number of each node, and counts the allocations.
fn count(f: impl Fn(u64)) -> f64 {
    let before = allocations();
    (0..NODES).for_each(f);
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
}
