//! How soon the sweeper frees a number. The only test of its process, since other threads' pins would delay grace
//! periods.

mod common;

use std::num::NonZeroU64;
use std::time::Duration;

use common::ops::node;
use common::proxy;
use nodetracker::{ManualClock, NodeId, RouteTable};

const INTERVAL: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(1);

/// As `Builder::max_proxies` says. One proxy restarts once a round, so at most 15 of its numbers wait.
#[test]
fn a_number_comes_back_within_15_rounds() {
    const MOST: usize = 20;
    const ROUNDS: u64 = 200;
    let clock = ManualClock::new();
    let table = RouteTable::builder()
        .keep_alive(INTERVAL)
        .clock(clock.clone())
        .max_proxies(MOST)
        .build()
        .expect("possible limits");
    // Other proxies hold the same nodes, and their routes have expired by the next round. So lists of routes are
    // replaced, and wait for the end of grace periods too.
    let others = ["a", "b", "c", "d"].map(|id| table.register_proxy(&proxy(id)).expect("there is room"));
    let nodes: Vec<NodeId> = (0..1_000).map(node).collect();
    for round in 1..=ROUNDS {
        clock.advance(INTERVAL + TICK);
        let incarnation = NonZeroU64::new(round).expect("not zero");
        let begun = table.begin_incarnation(&proxy("restarts"), incarnation);
        let begun = begun.unwrap_or_else(|error| panic!("round {round}: {error}"));
        // The lower half of a reference is the proxy's number. A number that no proxy had before is the next one.
        let number = begun.proxy.to_bits() as u32;
        let in_use = others.len() + 1 + 15;
        assert!((number as usize) < in_use, "round {round}: number {number}");
        for other in &others {
            let added = table.add_nodes(&nodes, *other).map(|added| added.inserted);
            assert_eq!(added, Ok(nodes.len()));
        }
        let ends = (0..1_000).any(|_| table.sweep(4096).round_completed);
        assert!(ends, "round {round} does not end");
    }
    assert_eq!(table.stats().proxies, others.len() + 1);
}
