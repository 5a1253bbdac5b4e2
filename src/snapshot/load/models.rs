//! loom models of loads beside proxies that are registered and removed; see `src/verify/models.rs`. loom does not know
//! rayon's threads, so a model loads one part, as one of rayon's threads does.

use super::*;
use crate::snapshot::decode::Nodes;
use crate::types::proxy::ProxyRef;
use crate::verify::models::{World, addition, node};

/// Loads one route of the node through the snapshot's first proxy, which is `proxy` in the table.
fn load(world: &World, proxy: ProxyRef) {
    let table = &world.table;
    let mut nodes = Nodes::default();
    nodes.push(node(), 0, &[Word::live(0, table.now())]);
    let part = Part {
        shard: table.shards().number_of(&node(), table.hash(&node())),
        nodes,
    };
    assert!(table.route_limit().reserve(1));
    let bulk = Bulk {
        table,
        proxies: &[Some(proxy)],
        room: Room {
            count: table.route_limit(),
            routes: 1,
        },
        tally: Tally::default(),
    };
    let tally = bulk.add(&part);
    assert_eq!(tally.map(|tally| tally.inserted + tally.refused).ok(), Some(1));
}

#[test]
fn a_stalled_fill_never_becomes_another_proxys_routes() {
    addition(3, |_, _| (), load);
}

#[test]
fn a_stalled_load_never_becomes_another_proxys_routes() {
    addition(3, World::add_and_remove, load);
}
