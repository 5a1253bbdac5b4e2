//! The limits of a client: of its proxies, and of their routes.

use std::num::NonZeroU64;
use std::thread;
use std::time::Duration;

use crate::common::{proxy, scale, sweep_fully};
use nodetracker::{
    AddError, Added, BeginError, Builder, ClientId, NodeId, ProxyRef, RegisterError, ReportError, ReportNodesError,
    RouteTable,
};
use uuid::Uuid;

const LIMIT: usize = 10;
const FULL: AddError = AddError::TooManyRoutesOfClient { limit: LIMIT };

fn table(options: impl FnOnce(Builder) -> Builder) -> RouteTable {
    crate::common::table_with(Duration::from_secs(10), options).0
}

fn client(number: u64) -> ClientId {
    ClientId(NonZeroU64::new(number).expect("not zero"))
}

fn node(number: u128) -> NodeId {
    Uuid::from_u128(number << 64).into()
}

fn nodes(from: u128, count: usize) -> Vec<NodeId> {
    (from..).take(count).map(node).collect()
}

fn try_register(table: &RouteTable, id: &str, of: u64) -> Result<ProxyRef, RegisterError> {
    table.register_proxy(proxy(id).of_client(client(of)))
}

fn register(table: &RouteTable, id: &str, of: u64) -> ProxyRef {
    try_register(table, id, of).expect("there is room")
}

fn try_begin(table: &RouteTable, id: &str, of: u64, incarnation: u64) -> Result<ProxyRef, BeginError> {
    let incarnation = NonZeroU64::new(incarnation).expect("not zero");
    let begun = table.begin_incarnation(proxy(id).of_client(client(of)), incarnation);
    begun.map(|begun| begun.proxy)
}

fn begin(table: &RouteTable, id: &str, of: u64, incarnation: u64) -> ProxyRef {
    try_begin(table, id, of, incarnation).expect("there is room")
}

/// Sweeps until an attempt succeeds. Threads of other tests may be inside a call for a while.
fn after_sweeps<R, E>(table: &RouteTable, attempt: impl Fn() -> Result<R, E>) -> R {
    let done = (0..10_000).find_map(|_| {
        sweep_fully(table);
        attempt().ok()
    });
    done.expect("the sweeper makes room")
}

#[test]
fn however_many_proxies_a_client_has_their_routes_have_one_limit() {
    let table = table(|builder| builder.max_routes_per_client(LIMIT));
    let [one, two] = ["one", "two"].map(|id| register(&table, id, 1));
    let other = register(&table, "other", 2);
    table.add_nodes(&nodes(0, 6), one).expect("there is room");
    let added = table.add_nodes(&nodes(6, 5), two).expect_err("there are too many");
    assert_eq!((added.added, added.error), (4, FULL));
    assert_eq!(table.add_node(&node(10), one), Err(FULL));
    assert_eq!(table.add_node(&node(0), two), Err(FULL), "the node has a route");
    let one_again = proxy("one");
    let reported = one_again.of_client(client(1));
    assert_eq!(table.report_node(&node(10), reported), Err(ReportError::Route(FULL)));
    assert_eq!(table.stats().nodes, LIMIT, "a refused node leaves no record");
    assert_eq!(table.report_node(&node(0), reported), Ok(Added::Refreshed));

    // Other clients have their own limit, and so has nobody's proxy.
    table.add_nodes(&nodes(0, LIMIT), other).expect("there is room");
    assert_eq!(table.add_node(&node(10), other), Err(FULL));
    let nobodys = table.register_proxy(&proxy("nobody's")).expect("there is room");
    table.add_nodes(&nodes(0, 2 * LIMIT), nobodys).expect("no limit");

    // A route that is removed or swept makes room.
    assert!(table.remove_route(&node(0), one));
    assert_eq!(table.add_node(&node(10), two), Ok(Added::Inserted));
    assert_eq!(table.add_node(&node(11), two), Err(FULL));
    assert!(table.remove_proxy(two));
    assert_eq!(table.add_node(&node(12), one), Err(FULL), "not swept yet");
    sweep_fully(&table);
    let added = table.add_nodes(&nodes(20, LIMIT), one).expect_err("there are too many");
    assert_eq!((added.added, added.error), (5, FULL));
}

#[test]
fn a_client_has_a_limit_of_proxies_and_removed_proxies_count_until_they_are_swept() {
    let table = table(|builder| builder.max_proxies(100).max_proxies_per_client(4));
    let full = RegisterError::TooManyProxiesOfClient { limit: 4 };
    for id in ["1", "2", "3", "4"] {
        register(&table, id, 1);
    }
    assert_eq!(try_register(&table, "5", 1), Err(full));
    assert_eq!(try_begin(&table, "5", 1, 1), Err(BeginError::Proxy(full)));
    let report = table.report_nodes(&[node(1)], proxy("5").of_client(client(1)));
    assert_eq!(report.err(), Some(ReportNodesError::Proxy(full)));
    // Known proxies start.
    begin(&table, "1", 1, 1);
    begin(&table, "1", 1, 2);

    // A client that registers and removes proxies without end leaves numbers for the others.
    let next = |nth: usize| {
        let last = table.find_proxy(&nth.to_string()).expect("it is registered");
        assert!(table.remove_proxy(last));
        try_register(&table, &(nth + 1).to_string(), 1)
    };
    let registered = (4..100).take_while(|nth| next(*nth).is_ok()).count();
    assert_eq!(registered, 12 - 5, "of the numbers, 5 are in use already");
    assert_eq!(try_register(&table, "more", 1), Err(full));
    for id in ["a", "b", "c", "d"] {
        register(&table, id, 2);
    }
    assert_eq!(try_register(&table, "e", 2), Err(full));
    after_sweeps(&table, || try_register(&table, "more", 1));
    assert_eq!(try_register(&table, "and more", 1), Err(full));
}

#[test]
fn a_client_uses_half_of_the_numbers_for_restarts() {
    let table = table(|builder| builder.max_proxies(100).max_proxies_per_client(50));
    let id = |of: u64, nth: usize| format!("{of}-{nth}");
    for of in [1, 2] {
        (0..50).for_each(|nth| _ = begin(&table, &id(of, nth), of, 1));
    }
    let restarts = |of| {
        let restart = |nth: &usize| try_begin(&table, &id(of, *nth), of, 2);
        let restarted = (0..50).take_while(|nth| restart(nth).is_ok()).count();
        (restarted, restart(&restarted))
    };
    // New proxies are refused if 114 numbers are in use. For restarts, there are 14 more.
    assert_eq!(restarts(1), (14, Err(BeginError::RestartsTooOften)));
    assert_eq!(restarts(2), (7, Err(BeginError::RestartsTooOften)));
    after_sweeps(&table, || try_begin(&table, "1-49", 1, 2));
}

#[test]
fn a_proxy_that_comes_from_another_client_counts_for_this_client_if_it_has_room() {
    let table = table(|builder| builder.max_routes_per_client(LIMIT).max_proxies_per_client(2));
    let full = RegisterError::TooManyProxiesOfClient { limit: 2 };
    let moves = begin(&table, "moves", 1, 1);
    let stays = begin(&table, "stays", 1, 1);
    table.add_nodes(&nodes(0, LIMIT), moves).expect("there is room");
    assert_eq!(table.add_node(&node(100), stays), Err(FULL));

    // The same incarnation comes from another client, with its routes.
    assert_eq!(begin(&table, "moves", 2, 1), moves);
    table.add_nodes(&nodes(100, LIMIT), stays).expect("there is room");
    assert_eq!(table.add_node(&node(10), moves), Err(FULL));
    register(&table, "third", 1);
    assert_eq!(try_register(&table, "fourth", 1), Err(full));

    // It counts as before if it comes from a client without room.
    let [one, _] = ["full-1", "full-2"].map(|id| register(&table, id, 3));
    assert_eq!(begin(&table, "moves", 3, 1), moves);
    table.add_nodes(&nodes(200, LIMIT), one).expect("no route came");
    assert_eq!(table.add_node(&node(10), moves), Err(FULL));
    let restarted = begin(&table, "moves", 3, 2);
    assert_ne!(restarted, moves);
    // The routes of the older incarnation count until they are swept.
    assert_eq!(table.add_node(&node(10), restarted), Err(FULL));
    after_sweeps(&table, || table.add_node(&node(10), restarted));
    register(&table, "second of 2", 2);
    assert_eq!(try_register(&table, "third of 2", 2), Err(full));

    // A restart comes from a client with room.
    begin(&table, "moves", 4, 3);
    register(&table, "second of 4", 4);
    assert_eq!(try_register(&table, "third of 4", 4), Err(full));
    register(&table, "third of 2", 2);
}

#[test]
fn a_proxy_of_a_snapshot_counts_for_the_first_client_that_adds_a_route() {
    let limited = |builder: Builder| builder.max_routes_per_client(LIMIT).max_proxies_per_client(2);
    let saved = table(limited);
    for (id, of) in [("one", 1), ("two", 2)] {
        let proxy = register(&saved, id, of);
        saved.add_nodes(&nodes(0, LIMIT), proxy).expect("there is room");
    }
    let mut bytes = Vec::new();
    saved.write_snapshot(&mut bytes).expect("memory can be written to");
    let table = table(limited);
    table.read_snapshot(bytes.as_slice()).expect("a good snapshot");
    let own = register(&table, "own", 1);
    table.add_nodes(&nodes(20, LIMIT), own).expect("no route counts yet");
    for (id, of) in [("one", 2), ("two", 3)] {
        let id = proxy(id);
        let reported = id.of_client(client(of));
        assert_eq!(table.report_node(&node(0), reported), Ok(Added::Refreshed));
        let added = table.report_nodes(&nodes(LIMIT as u128, 1), reported);
        assert_eq!(added.map(|added| added.inserted), Ok(1));
        assert_eq!(table.report_node(&node(50), reported), Err(ReportError::Route(FULL)));
    }
    register(&table, "second of 2", 2);
    let full = RegisterError::TooManyProxiesOfClient { limit: 2 };
    assert_eq!(try_register(&table, "third of 2", 2), Err(full));
}

#[test]
fn a_clients_routes_are_counted_exactly_while_its_proxies_move() {
    const LIMIT: usize = 100;
    const IDS: [&str; 3] = ["one", "two", "three"];
    let table = table(|builder| builder.max_routes_per_client(LIMIT));
    let proxies = IDS.map(|id| begin(&table, id, 1, 1));
    let seed = crate::common::seed();
    println!("NODETRACKER_SEED={seed}");
    thread::scope(|scope| {
        for thread in 0..4 {
            let (table, mut random) = (&table, fastrand::Rng::with_seed(seed ^ thread));
            scope.spawn(move || {
                for _ in 0..20_000 * scale() {
                    let node = node(random.u128(..60));
                    let nth = random.usize(..IDS.len());
                    match random.u8(..20) {
                        0 => _ = begin(table, IDS[nth], random.u64(1..3), 1),
                        1 => _ = table.sweep(64),
                        2..6 => _ = table.remove_route(&node, proxies[nth]),
                        6 => _ = table.remove_node(&node),
                        _ => _ = table.add_node(&node, proxies[nth]),
                    }
                }
            });
        }
    });
    for id in IDS {
        begin(&table, id, 3, 1);
    }
    let present = table.len();
    let more = nodes(1_000, LIMIT);
    let added = table.add_nodes(&more, proxies[0]);
    assert_eq!(
        present + added.map_or_else(|error| error.added, |added| added.inserted),
        LIMIT.max(present)
    );
    // The clients from which the proxies came have no routes.
    for of in [1, 2] {
        let proxy = register(&table, &format!("new-{of}"), of);
        let added = table.add_nodes(&more, proxy).expect("there is room");
        assert_eq!(added.inserted, LIMIT);
    }
}

/// Otherwise one client could fill the memory of incarnations, and for a keep-alive interval no other client could
/// begin a new proxy.
#[test]
fn a_client_that_begins_and_ends_incarnations_leaves_room_for_the_others() {
    const KNOWN: usize = 29;
    const OTHERS: usize = 20;
    let interval = Duration::from_secs(10);
    let options = |builder: Builder| builder.max_proxies(40).max_proxies_per_client(20);
    let (table, clock) = crate::common::table_with(interval, options);
    let full = Err(BeginError::TooManyIncarnationsOfClient { limit: KNOWN });
    for nth in 0..KNOWN {
        // Each number is in use until the sweeper has seen that it has no routes.
        let proxy = after_sweeps(&table, || try_begin(&table, &format!("gone-{nth}"), 1, 1));
        assert!(table.remove_proxy(proxy));
    }
    assert_eq!(try_begin(&table, "newcomer", 1, 1), full);
    let limits = table.limits();
    assert_eq!((limits.incarnations, limits.incarnations_per_client), (50, Some(KNOWN)));
    assert_eq!(table.stats().incarnations, KNOWN);
    // A proxy that is registered without an incarnation cannot begin one either.
    after_sweeps(&table, || try_register(&table, "registered", 1));
    assert_eq!(try_begin(&table, "registered", 1, 1), full);
    // Known IDs begin again, and other clients have room for all their proxies.
    after_sweeps(&table, || try_begin(&table, "gone-0", 1, 2));
    for nth in 0..OTHERS {
        after_sweeps(&table, || try_begin(&table, &format!("other-{nth}"), 2, 1));
    }
    clock.advance(interval + Duration::from_millis(1));
    after_sweeps(&table, || try_begin(&table, "newcomer", 1, 1));
}
