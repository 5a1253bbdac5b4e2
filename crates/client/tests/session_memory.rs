//! The memory of a session's nodes. A program of its own, since the allocator is the process's.

#[path = "../../../benches/support/counting.rs"]
#[expect(dead_code, reason = "the benches use more of it")]
mod counting;

use std::alloc::System;
use std::time::Instant;

use counting::{Counting, live};
use nodetracker_client::session::nodes::NodeSet;
use nodetracker_client::{NodeId, Uuid};

#[global_allocator]
static ALLOCATOR: Counting<System> = Counting(System);

const NODES: usize = 200_000;

/// Below, the queue of the set's changes has a great share.
const MEASURED_FROM: usize = 50_000;

/// Takes the set, its number of nodes, and a function that returns the bytes of a node beside its ID.
type Measured<'a> = Box<dyn FnMut(&NodeSet, usize, &dyn Fn() -> usize) + 'a>;

/// Adds nodes. Returns the bytes of a node beside its ID: the mean at rest, the most at rest, and the most while a map
/// grows.
///
/// A name's ID is a [`NodeId`], and the text if it has more bytes than fit into the `NodeId`.
fn bytes_beside_the_ids(id_bytes: usize, ids: &[NodeId]) -> [usize; 3] {
    let now = Instant::now();
    let measure = |mut measured: Measured<'_>| {
        let nodes = NodeSet::new(usize::MAX, 1, now);
        let empty = live();
        for (count, id) in (1..).zip(ids) {
            nodes.up(id, now).unwrap();
            if count >= MEASURED_FROM {
                measured(&nodes, count, &|| (live() - empty) / count - id_bytes);
            }
        }
    };
    let mut growing = 0;
    measure(Box::new(|_, _, beside| growing = growing.max(beside())));
    let (mut at_rest, mut next) = (Vec::with_capacity(100), MEASURED_FROM);
    measure(Box::new(|nodes, count, beside| {
        if count == next {
            // Accesses move the nodes to the greater maps.
            ids[..count].iter().for_each(|id| _ = nodes.seen(id, now));
            at_rest.push(beside());
            next += next / 20;
        }
    }));
    let most = at_rest.iter().copied().max().unwrap_or_default();
    [at_rest.iter().sum::<usize>() / at_rest.len(), most, growing]
}

#[test]
fn a_node_costs_less_than_64_bytes_beside_its_id() {
    let mut random = fastrand::Rng::with_seed(1);
    let uuids: Vec<NodeId> = (0..NODES).map(|_| Uuid::from_u128(random.u128(..)).into()).collect();
    let names = |len: usize| -> Vec<NodeId> { (0..NODES).map(|n| format!("{n:x>len$}").parse().unwrap()).collect() };
    let name = size_of::<NodeId>();
    println!("| ID | mean | at rest, at most | while a map grows, at most |");
    println!("| --- | ---: | ---: | ---: |");
    for (what, id_bytes, ids) in [
        ("a UUID", size_of::<Uuid>(), uuids),
        ("a name of 12 bytes", name, names(12)),
        ("a name of 64 bytes", name + 64, names(64)),
    ] {
        let [mean, at_rest, growing] = bytes_beside_the_ids(id_bytes, &ids);
        println!("| {what} | {mean} B | {at_rest} B | {growing} B |");
        assert!(at_rest < 64 && growing < 72, "{what}: {mean}, {at_rest}, {growing}");
    }
}
