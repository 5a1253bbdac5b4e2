//! The memory of a session's nodes. A program of its own, since the allocator is the process's.

#[path = "../../../benches/support/counting.rs"]
#[expect(dead_code, reason = "the benches use more of it")]
mod counting;

use std::alloc::System;
use std::time::Instant;

use counting::{Counting, live};
use nodetracker_client::Uuid;
use nodetracker_client::session::nodes::NodeSet;

#[global_allocator]
static ALLOCATOR: Counting<System> = Counting(System);

/// Bytes of a node beside its ID, at most.
const BOUND: usize = 64;

/// The same while the map grows, when it has its old table and a new table.
const GROWTH_BOUND: usize = 128;

#[test]
fn a_node_costs_less_than_64_bytes_beside_its_id_and_twice_while_the_map_grows() {
    let now = Instant::now();
    let mut random = fastrand::Rng::with_seed(1);
    let empty = live();
    let nodes = NodeSet::new(usize::MAX, 1, now);
    let fixed = live() - empty;
    println!("an empty set: {fixed} bytes");
    let mut worst = 0;
    // Through several doublings of the map.
    for count in 1..=400_000 {
        nodes.up(&Uuid::from_u128(random.u128(..)).into(), now).unwrap();
        if count >= 20_000 {
            let beside = (live() - empty - fixed) / count - size_of::<Uuid>();
            worst = worst.max(beside);
            let bound = if count % 20_000 == 0 { BOUND } else { GROWTH_BOUND };
            assert!(beside < bound, "{count} nodes: {beside} bytes a node beside its ID");
            if count % 20_000 == 0 {
                println!("{count} nodes: {beside} bytes a node beside its ID, {worst} at most so far");
            }
        }
    }
}
