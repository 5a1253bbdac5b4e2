//! loom models of loads beside proxies that are registered and removed; see `src/verify/models.rs`. loom does not know
//! rayon's threads, so a model loads one part, as one of rayon's threads does.

use loom::sync::Arc;
use loom::thread;

use super::*;
use crate::sync::epoch;
use crate::types::proxy::ProxyRef;
use crate::verify::models::{World, addition, node};

/// Loads one route of the node through the snapshot's first proxy, which is `proxy` in the table.
fn load(world: &World, proxy: ProxyRef) {
    let table = &world.table;
    let mut part = ShardNodes::new(table.shards().number_of(&node(), table.hash(&node())));
    let hasher = table.shards().hasher();
    assert!(part.push(&node(), &[Word::live(0, table.now())], 0, hasher));
    assert!(make_index(table, &mut part, &[0]).is_ok());
    assert!(table.route_limit().reserve(1));
    let bulk = Bulk {
        table,
        proxies: &[Some(proxy)],
        reserved: ReservedRoutes {
            count: table.route_limit(),
            routes: 1,
        },
        tally: Tally::default(),
    };
    let tally = bulk.add(part);
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

/// A fill that loses to an insertion adds its routes one by one, through the proxies that the snapshot names.
#[test]
fn a_fill_that_loses_adds_its_routes_through_their_proxies() {
    epoch::check(3, || {
        let world = Arc::new(World::new());
        let (first, second) = (world.register("first"), world.register("second"));
        let loader = thread::spawn({
            let world = Arc::clone(&world);
            move || self::load(&world, second)
        });
        world.table.add_node(&node(), first).expect("there is room");
        loader.join().expect("it ends");
        let mut proxies: Vec<_> = world
            .table
            .get_proxies(&node())
            .iter()
            .map(|route| route.proxy)
            .collect();
        proxies.sort_unstable();
        assert_eq!(proxies, [first, second]);
    });
}
