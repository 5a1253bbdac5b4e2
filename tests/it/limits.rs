//! Limits: the last tick, the last proxy number, and the last route.

use std::time::Duration;

use crate::common::{proxy, scale, sweep_fully, wait_until};
use nodetracker::{
    AddError, Added, Builder, Clock, ManualClock, NodeId, ProxyRef, RegisterError, RouteTable, SweepPace, Verdict,
};
use uuid::Uuid;

const INTERVAL: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(1);
/// How long after its beginning a table's time stands still: of 2^38 milliseconds, 2^31 are left for ages that are
/// loaded.
const LAST: Duration = Duration::from_millis((1 << 38) - 1 - (1 << 31));

fn table() -> (RouteTable, ManualClock) {
    crate::common::table(INTERVAL)
}

fn register(table: &RouteTable, id: &str) -> ProxyRef {
    table.register_proxy(&proxy(id)).expect("there is room")
}

fn answer(table: &RouteTable, node: &NodeId) -> Vec<ProxyRef> {
    table.get_proxies(node).iter().map(|route| route.proxy).collect()
}

/// Two nodes. Only the second node gets a list of routes.
fn nodes() -> [NodeId; 2] {
    [Uuid::from_u128(1).into(), "node-2".parse().expect("a name")]
}

#[test]
fn until_the_last_tick_routes_expire_as_ever() {
    let (table, clock) = table();
    let [inline, spilled] = nodes();
    let [one, two] = ["proxy-1", "proxy-2"].map(|id| register(&table, id));
    clock.set(LAST - 2 * INTERVAL - 2 * TICK);
    for (node, proxy) in [(&inline, one), (&spilled, one), (&spilled, two)] {
        assert_eq!(table.add_node(node, proxy), Ok(Added::Inserted));
    }
    clock.advance(INTERVAL);
    assert_eq!(answer(&table, &inline), [one]);
    assert_eq!(answer(&table, &spilled), [two, one]);
    assert_eq!(table.add_node(&spilled, one), Ok(Added::Refreshed));
    clock.advance(TICK);
    assert_eq!(answer(&table, &inline), []);
    assert_eq!(answer(&table, &spilled), [one]);
    clock.advance(INTERVAL);
    assert_eq!(clock.monotonic(), LAST - TICK);
    assert_eq!(answer(&table, &spilled), []);
    sweep_fully(&table);
    assert_eq!(table.len(), 0);
}

#[test]
fn at_the_last_tick_time_stands_still_and_all_else_goes_on() {
    let (table, clock) = table();
    let nodes = nodes();
    let [one, two, three] = ["proxy-1", "proxy-2", "proxy-3"].map(|id| register(&table, id));
    clock.set(LAST - TICK);
    for node in &nodes {
        assert_eq!(table.add_node(node, one), Ok(Added::Inserted));
    }
    for past in [Duration::ZERO, TICK, INTERVAL, Duration::from_secs(1 << 33)] {
        clock.set(LAST + past);
        let node = &nodes[1];
        assert_eq!(answer(&table, &nodes[0]), [one], "{past:?} past the last tick");
        assert_eq!(table.add_node(node, two), Ok(Added::Inserted));
        assert_eq!(table.add_node(node, three), Ok(Added::Inserted));
        assert_eq!(answer(&table, node), [three, two, one]);
        // Within a tick, however long it lasts, the position decides the order.
        assert_eq!(table.add_node(node, two), Ok(Added::Refreshed));
        assert_eq!(answer(&table, node), [two, three, one]);
        let ages: Vec<_> = table
            .explain(node)
            .iter()
            .map(|route| (route.age, route.verdict))
            .collect();
        let last = (Duration::ZERO, Verdict::Returned);
        assert_eq!(ages, [last, last, (TICK, Verdict::Returned)]);
        sweep_fully(&table);
        assert_eq!(table.len(), 4, "a sweep at the last tick");
        assert!(table.remove_route(node, two) && table.remove_route(node, three));
    }
    assert!(table.remove_proxy(one));
    assert!(nodes.iter().all(|node| answer(&table, node).is_empty()));
    sweep_fully(&table);
    assert_eq!(table.len(), 0);
}

/// The greatest age of a word survives a snapshot, and a new table takes it.
#[test]
fn a_snapshot_at_the_last_tick_is_read() {
    let (table, clock) = crate::common::table(Duration::MAX);
    let nodes = nodes();
    let [one, two] = ["proxy-1", "proxy-2"].map(|id| register(&table, id));
    nodes
        .iter()
        .for_each(|node| _ = table.add_node(node, one).expect("there is room"));
    clock.set(2 * LAST);
    nodes
        .iter()
        .for_each(|node| _ = table.add_node(node, two).expect("there is room"));
    assert_eq!(answer(&table, &nodes[0]), [two, one]);
    let mut bytes = Vec::new();
    table.write_snapshot(&mut bytes).expect("a vector takes all");

    // A new table has no tick for the greatest age; it gives the route the greatest age that it has a tick for.
    let new = RouteTable::builder()
        .keep_alive(Duration::MAX)
        .clock(clock)
        .build()
        .expect("possible limits");
    for table in [&table, &new] {
        let report = table.read_snapshot(bytes.as_slice()).expect("it was written just now");
        assert_eq!(report.routes, 4);
        for node in &nodes {
            let ids: Vec<_> = answer(table, node)
                .into_iter()
                .map(|proxy| table.proxy(proxy).expect("it is registered").id().to_owned())
                .collect();
            assert_eq!(ids, ["proxy-2", "proxy-1"]);
        }
    }
}

#[test]
fn an_interval_may_be_anything() {
    let (table, clock) = table();
    let [node, _] = nodes();
    let one = register(&table, "proxy-1");
    table.set_keep_alive(Duration::MAX);
    assert_eq!(table.add_node(&node, one), Ok(Added::Inserted));
    clock.set(INTERVAL + TICK);
    wait_until(|| answer(&table, &node) == [one]);
    clock.set(LAST);
    sweep_fully(&table);
    assert_eq!(answer(&table, &node), [one], "no age is more than the longest interval");
    table.set_keep_alive(Duration::ZERO);
    assert_eq!(table.keep_alive(), TICK);
    assert_eq!(answer(&table, &node), []);
    sweep_fully(&table);
    assert_eq!(table.len(), 0);
}

/// As many proxies as a table may have: the last proxy works as the first does. `NODETRACKER_SCALE=84` registers all
/// 2^23 proxies that a word can name, and takes half a gigabyte.
#[test]
fn the_last_proxy_number_is_as_good_as_the_first() {
    const NUMBERS: usize = 1 << 23;
    let count = NUMBERS.min(100_000 * scale());
    let table = RouteTable::builder()
        .max_proxies(if count == NUMBERS { Builder::MAX_PROXIES } else { count })
        .build()
        .expect("possible limits");
    let refs: Vec<_> = (0..count)
        .map(|number| register(&table, &Uuid::from_u128(number as u128).to_string()))
        .collect();
    assert_eq!(
        table.register_proxy(&proxy("one too many")),
        Err(RegisterError::TooManyProxies { limit: count })
    );
    let nodes = nodes();
    let [first, last] = [refs[0], refs[count - 1]];
    for (node, proxy) in [(&nodes[0], last), (&nodes[1], first), (&nodes[1], last)] {
        assert_eq!(table.add_node(node, proxy), Ok(Added::Inserted));
    }
    assert_eq!(answer(&table, &nodes[0]), [last]);
    assert_eq!(answer(&table, &nodes[1]), [last, first]);
    let id = table.proxy(last).expect("it is registered").id().to_owned();
    assert_eq!(id, Uuid::from_u128(count as u128 - 1).to_string());
    assert!(table.remove_proxy(last));
    assert_eq!(answer(&table, &nodes[0]), []);
    assert_eq!(answer(&table, &nodes[1]), [first]);
}

/// A refused node takes no record, for each call that adds it, so it causes no rebuild either.
#[test]
fn a_node_that_is_refused_leaves_nothing_behind() {
    const ROUTES: usize = 1_000;
    let table = RouteTable::builder()
        .max_routes(ROUTES)
        .build()
        .expect("possible limits");
    let one = register(&table, "proxy-1");
    let known: Vec<NodeId> = (0..ROUTES as u128)
        .map(|number| Uuid::from_u128(number).into())
        .collect();
    table.add_nodes(&known, one).expect("there is room");
    let records = table.stats().records;
    let refused = AddError::TooManyRoutes { limit: ROUTES };
    for number in 0..20_000_u128 {
        let uuid: NodeId = Uuid::from_u128(1 << 64 | number).into();
        let name: NodeId = format!("node-{number}").parse().expect("a name");
        assert_eq!(table.add_node(&uuid, one), Err(refused));
        assert_eq!(table.add_node(&name, one), Err(refused));
        let batch = table.add_nodes(&[uuid], one).expect_err("there is no room");
        assert_eq!((batch.added, batch.error), (0, refused));
    }
    assert_eq!(table.stats().records, records, "records for nodes that were refused");
    assert_eq!(
        (table.len(), table.add_node(&known[0], one)),
        (ROUTES, Ok(Added::Refreshed))
    );
    assert!(table.remove_node(&known[0]));
    assert_eq!(
        table.add_node(&"node-1".parse().expect("a name"), one),
        Ok(Added::Inserted)
    );
}

#[test]
fn limits_that_a_table_cannot_keep_are_refused() {
    let refused = |builder: Builder| {
        builder
            .build()
            .err()
            .map(|error| (error.limit, error.asked, error.least, error.most))
    };
    let builder = RouteTable::builder;
    let (routes, proxies, ring) = (Builder::MAX_ROUTES, Builder::MAX_PROXIES, Builder::MAX_FEED_RING);
    assert_eq!(
        refused(builder().max_routes(routes).max_proxies(proxies).feed_ring(ring)),
        None
    );
    assert_eq!(
        refused(builder().max_routes(routes + 1)),
        Some(("max_routes", routes + 1, 0, routes))
    );
    assert_eq!(
        refused(builder().max_proxies(usize::MAX)),
        Some(("max_proxies", usize::MAX, 0, proxies))
    );
    assert_eq!(
        refused(builder().feed_ring(ring + 1)),
        Some(("feed_ring", ring + 1, 1, ring))
    );
    let error = builder().feed_ring(0).build().expect_err("a ring holds a change");
    assert_eq!(error.to_string(), "feed_ring is 0, but must be between 1 and 1048576");
}

#[test]
fn no_proxy_gets_more_routes_than_its_limit() {
    const LIMIT: usize = 10;
    let refused = AddError::TooManyRoutesOfProxy { limit: LIMIT };
    let (table, clock) = crate::common::table_with(INTERVAL, |builder| builder.max_routes_per_proxy(LIMIT));
    let [one, two] = ["proxy-1", "proxy-2"].map(|id| register(&table, id));
    let nodes: Vec<NodeId> = (0..2 * LIMIT as u128)
        .map(|number| Uuid::from_u128(number << 64).into())
        .collect();
    let added = table.add_nodes(&nodes, one).expect_err("there are too many");
    assert_eq!((added.added, added.error), (LIMIT, refused));
    assert_eq!(table.add_node(&nodes[LIMIT], one), Err(refused));
    assert_eq!(table.stats().nodes, LIMIT, "a refused node leaves no record");
    assert_eq!(table.add_node(&nodes[0], one), Ok(Added::Refreshed));

    // Other proxies have their own limit, also for routes in lists.
    for node in &nodes[..LIMIT] {
        assert_eq!(table.add_node(node, two), Ok(Added::Inserted));
    }
    assert_eq!(table.add_node(&nodes[LIMIT], two), Err(refused));
    assert_eq!([one, two].map(|proxy| table.route_count(proxy)), [Some(LIMIT); 2]);
    let three = register(&table, "proxy-3");
    let others: Vec<NodeId> = (0..LIMIT)
        .map(|n| format!("other-{n}").parse().expect("a name"))
        .collect();
    table.add_nodes(&others, three).expect("there is room");
    assert_eq!(table.add_node(&nodes[0], three), Err(refused), "the node has a list");
    assert_eq!(answer(&table, &nodes[0]), [two, one]);

    // A route that was removed, swept or replaced makes room.
    assert!(table.remove_route(&nodes[0], two));
    assert!(table.remove_node(&nodes[1]));
    assert_eq!(
        [one, two].map(|proxy| table.route_count(proxy)),
        [Some(LIMIT - 1), Some(LIMIT - 2)]
    );
    assert_eq!(table.add_node(&nodes[LIMIT], one), Ok(Added::Inserted));
    assert_eq!(table.add_node(&nodes[LIMIT + 1], one), Err(refused));
    clock.advance(INTERVAL + TICK);
    assert_eq!(
        table.add_node(&nodes[LIMIT + 1], one),
        Err(refused),
        "expired, but not swept"
    );
    assert_eq!(
        table.add_node(&nodes[2], two),
        Ok(Added::Inserted),
        "it replaces an expired route of each"
    );
    assert_eq!(
        [one, two].map(|proxy| table.route_count(proxy)),
        [Some(LIMIT - 1), Some(LIMIT - 2)]
    );
    sweep_fully(&table);
    let [one, two] = ["proxy-1", "proxy-2"].map(|id| register(&table, id));
    assert_eq!([one, two].map(|proxy| table.route_count(proxy)), [Some(0), Some(1)]);
    let added = table.add_nodes(&nodes, one).expect_err("there are too many");
    assert_eq!((added.added, added.error), (LIMIT, refused));

    let (table, _) = crate::common::table(INTERVAL);
    let proxy = register(&table, "proxy");
    assert_eq!(table.route_count(proxy), None);
}

#[test]
fn threads_that_compete_for_a_proxys_last_routes_do_not_exceed_its_limit() {
    const LIMIT: usize = 1_000;
    const THREADS: u128 = 4;
    let (table, _) = crate::common::table_with(INTERVAL, |builder| builder.max_routes_per_proxy(LIMIT));
    let [one, two] = ["proxy-1", "proxy-2"].map(|id| register(&table, id));
    let node = |thread: u128, number: u128| NodeId::from(Uuid::from_u128((number << 8 | thread) << 48));
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let table = &table;
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(thread as u64);
                for _ in 0..10_000 {
                    // Half of the nodes are shared.
                    let node = node(thread * random.u128(..2), random.u128(..LIMIT as u128));
                    match random.u8(..4) {
                        0 => _ = table.remove_route(&node, one),
                        1 => _ = table.remove_node(&node),
                        _ => _ = table.add_node(&node, if random.bool() { one } else { two }),
                    }
                    let count = table.route_count(one);
                    assert!(count <= Some(LIMIT), "{count:?}");
                }
            });
        }
    });
    let mut counts = std::collections::HashMap::new();
    table.for_each_route(|_, route| *counts.entry(route.proxy).or_insert(0) += 1);
    assert_eq!(
        [one, two].map(|proxy| table.route_count(proxy)),
        [one, two].map(|proxy| counts.get(&proxy).copied())
    );
}

#[test]
fn a_proxy_that_is_removed_makes_room_at_once() {
    const NODES: usize = 100_000;
    let minutes = Duration::from_secs(300);
    let (table, clock) = crate::common::table_with(minutes, |builder| builder.max_routes(NODES));
    let [one, two] = ["proxy-1", "proxy-2"].map(|id| register(&table, id));
    let nodes: Vec<NodeId> = (0..NODES as u128)
        .map(|number| Uuid::from_u128(number << 64).into())
        .collect();
    table.add_nodes(&nodes, one).expect("there is room");
    let mut pace = SweepPace::default();
    let mut pass = |until: &dyn Fn() -> bool| {
        let begun = clock.monotonic();
        while !until() {
            clock.advance(pace.next_pause(&table));
            pace.sweep(&table);
        }
        clock.monotonic() - begun
    };
    // Let some rounds pass at the usual pace.
    let begun = clock.monotonic();
    pass(&|| clock.monotonic() - begun > minutes / 2);

    assert!(table.remove_proxy(one));
    assert!(pass(&|| table.is_empty()) < Duration::from_secs(1));
    table.add_nodes(&nodes, two).expect("there is room");

    // After a refused addition, the sweeper looks for expired routes at once.
    let more: NodeId = "more".parse().expect("a name");
    assert_eq!(
        table.add_node(&more, two),
        Err(AddError::TooManyRoutes { limit: NODES })
    );
    assert_eq!(pace.next_pause(&table), Duration::from_millis(2));
    // After two rounds, the sweeper returns to its usual pace.
    for _ in 0..100 {
        pace.sweep(&table);
        pace.next_pause(&table);
    }
    assert!(pace.next_pause(&table) > Duration::from_millis(2));
}
