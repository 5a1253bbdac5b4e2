//! Pages of nodes and proxies, proxies by their ID, and routes with their proxies' details.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::ops::node;
use crate::common::proxy;
use nodetracker::{Event, ManualClock, NodeCursor, NodeId, NodeRoutes, Proxy, ProxyCursor, ProxyRef, RouteTable};
use uuid::Uuid;

fn register(table: &RouteTable, count: usize) -> Vec<ProxyRef> {
    (0..count)
        .map(|i| table.register_proxy(&proxy(&format!("proxy-{i}"))).expect("registers"))
        .collect()
}

/// All nodes, page by page, with the cursor written and read at each.
fn pages(table: &RouteTable, most: usize) -> Vec<NodeRoutes> {
    let mut nodes = Vec::new();
    let mut from = Some(NodeCursor::default());
    while let Some(cursor) = from {
        let cursor: NodeCursor = cursor.to_string().parse().expect("it can be read again");
        let page = table.nodes_page(&cursor, most, |_, _| true);
        assert!(page.nodes.len() <= most.max(1));
        nodes.extend(page.nodes);
        from = page.next;
    }
    nodes
}

#[test]
fn pages_of_any_size_have_every_node_once() {
    let (table, clock) = crate::common::table(Duration::from_secs(10));
    assert_eq!(pages(&table, 10), []);
    let proxies = register(&table, 3);
    // UUIDs and names, some with two routes; one that is expired, and one whose proxy is removed.
    table.add_node(&node(2_000), proxies[0]).expect("there is room");
    clock.advance(Duration::from_secs(11));
    let nodes: Vec<NodeId> = (0..1_000).map(node).collect();
    for (i, node) in nodes.iter().enumerate() {
        table.add_node(node, proxies[i % 2]).expect("there is room");
        if i % 5 == 0 {
            table.add_node(node, proxies[1 - i % 2]).expect("there is room");
        }
    }
    table.add_node(&node(2_001), proxies[2]).expect("there is room");
    table.remove_proxy(proxies[2]);
    assert!(nodes.iter().any(|node| node.as_uuid().is_none()) && nodes.iter().any(|node| node.as_uuid().is_some()));

    for most in [0, 1, 3, 100, usize::MAX] {
        let found = pages(&table, most);
        assert_eq!(found.len(), nodes.len(), "at most {most}");
        let distinct: HashSet<&NodeId> = found.iter().map(|found| &found.node).collect();
        assert_eq!(distinct, nodes.iter().collect());
        for found in &found {
            assert_eq!(found.routes, table.get_proxies(&found.node));
        }
    }
}

#[test]
fn the_parts_have_every_node_once() {
    let table = RouteTable::new();
    let proxies = register(&table, 2);
    let nodes: HashSet<NodeId> = (0..5_000).map(node).collect();
    for node in &nodes {
        table.add_node(node, proxies[0]).expect("there is room");
        table.add_node(node, proxies[1]).expect("there is room");
    }
    for most in [0, 7, usize::MAX] {
        let mut found = Vec::new();
        for part in 0..RouteTable::PARTS {
            let mut from = None;
            loop {
                let before = found.len();
                from = table.nodes_of_part(part, from.as_ref(), most, |node, routes| {
                    assert_eq!(table.part_of(node), part);
                    assert_eq!(routes, &*table.get_proxies(node));
                    found.push(node.clone());
                });
                assert!(found.len() - before <= most.max(1));
                if from.is_none() {
                    break;
                }
            }
        }
        assert_eq!(found.len(), nodes.len(), "at most {most}");
        assert_eq!(found.into_iter().collect::<HashSet<_>>(), nodes);
    }
    let end = table.nodes_of_part(RouteTable::PARTS, None, 1, |node, _| panic!("{node} of no part"));
    assert_eq!(end, None);
}

/// A place before the part stands for the part's beginning, and a place after it for its end.
#[test]
fn a_place_of_another_part_leads_to_no_node_of_another_part() {
    let table = RouteTable::new();
    let proxies = register(&table, 1);
    let mut counts = vec![0; RouteTable::PARTS];
    for node in (0..5_000).map(node) {
        table.add_node(&node, proxies[0]).expect("there is room");
        counts[table.part_of(&node)] += 1;
    }
    let mut places = vec![(0, NodeCursor::default())];
    for part in [0, 1, 70, 128, 200, 255] {
        places.extend(table.nodes_of_part(part, None, 1, |_, _| ()).map(|place| (part, place)));
        places.push((part, part.to_string().parse().expect("a place")));
        places.push((part, format!("{part}:0").parse().expect("a place")));
        places.push((part, format!("{part}:4294967295").parse().expect("a place")));
    }
    for (of, place) in places {
        for part in [0, 1, 69, 70, 71, 128, 255] {
            let mut found = 0;
            let next = table.nodes_of_part(part, Some(&place), usize::MAX, |node, _| {
                assert_eq!(table.part_of(node), part, "from {place}");
                found += 1;
            });
            if of < part {
                assert_eq!(found, counts[part], "part {part} from {place}");
            } else if of > part {
                assert_eq!((found, next), (0, None), "part {part} from {place}");
            }
        }
    }
}

#[test]
fn a_page_has_only_what_is_wanted() {
    let table = RouteTable::new();
    let proxies = register(&table, 2);
    for i in 0..500 {
        table
            .add_node(&node(i), proxies[usize::from(i % 10 == 0)])
            .expect("there is room");
    }
    let (mut found, mut from) = (0, Some(NodeCursor::default()));
    while let Some(cursor) = from {
        let page = table.nodes_page(&cursor, 2, |_, routes| {
            routes.iter().any(|route| route.proxy == proxies[1])
        });
        assert!(page.nodes.iter().all(|node| node.routes[0].proxy == proxies[1]));
        found += page.nodes.len();
        from = page.next;
    }
    assert_eq!(found, 50);
}

/// A cursor may hold the next nodes; its text does not.
#[test]
fn a_cursor_and_its_text_lead_to_the_same_pages() {
    let table = RouteTable::new();
    let proxies = register(&table, 2);
    for i in 0..3_000 {
        table.add_node(&node(i), proxies[0]).expect("there is room");
        if i % 7 == 0 {
            table.add_node(&node(i), proxies[1]).expect("there is room");
        }
    }
    for most in [1, 2, 5, 12, 13, 14, 100] {
        let (mut nodes, mut from) = (Vec::new(), Some(NodeCursor::default()));
        while let Some(cursor) = from {
            let read: NodeCursor = cursor.to_string().parse().expect("it can be read again");
            assert_eq!(read, cursor);
            let page = table.nodes_page(&cursor, most, |node, _| node.to_string().len() > 8);
            let again = table.nodes_page(&read, most, |node, _| node.to_string().len() > 8);
            assert!(page.nodes.len() <= most, "at most {most}");
            assert!(again.nodes.starts_with(&page.nodes) || page.nodes.starts_with(&again.nodes));
            nodes.extend(page.nodes);
            from = page.next;
        }
        let found: HashSet<&NodeId> = nodes.iter().map(|found| &found.node).collect();
        assert_eq!(found.len(), nodes.len(), "{most} a page");
        assert!(
            (0..3_000)
                .map(node)
                .filter(|node| node.to_string().len() > 8)
                .all(|node| found.contains(&node))
        );
    }
}

/// Nodes that a cursor holds may be removed, and may come back with other routes.
#[test]
fn a_page_reads_the_present_routes_of_the_nodes_that_its_cursor_holds() {
    let table = RouteTable::new();
    let proxies = register(&table, 2);
    // Each shard has several nodes, so the cursor after the first node holds others.
    let nodes: HashSet<NodeId> = (0..2_000).map(node).collect();
    nodes.iter().for_each(|node| _ = table.add_node(node, proxies[0]));
    let first = table.nodes_page(&NodeCursor::default(), 1, |_, _| true);
    table.remove_proxy(proxies[0]);
    let (kept, gone): (Vec<&NodeId>, Vec<&NodeId>) = nodes.iter().partition(|node| node.as_uuid().is_none());
    kept.iter().for_each(|node| _ = table.add_node(node, proxies[1]));
    let (mut found, mut from) = (HashSet::new(), first.next);
    while let Some(cursor) = from {
        let page = table.nodes_page(&cursor, 1, |_, _| true);
        for NodeRoutes { node, routes, .. } in page.nodes {
            assert_eq!(routes, table.get_proxies(&node));
            assert!(!gone.contains(&&node) && found.insert(node));
        }
        from = page.next;
    }
    assert!(
        kept.iter()
            .all(|node| found.contains(*node) || *node == &first.nodes[0].node)
    );
}

/// The node that a page ended with may be removed, and others may be added before it: the next page starts behind its
/// place.
#[test]
fn a_place_stays_good_whatever_becomes_of_its_node() {
    let table = RouteTable::new();
    let proxies = register(&table, 1);
    let mut left: HashSet<NodeId> = (0..2_000).map(node).collect();
    left.iter().for_each(|node| _ = table.add_node(node, proxies[0]));
    let mut from = Some(NodeCursor::default());
    while let Some(cursor) = from {
        let page = table.nodes_page(&cursor, 1, |_, _| true);
        for found in page.nodes {
            assert!(
                left.remove(&found.node),
                "{} was reported before, or is new",
                found.node
            );
            // Never twice, though it comes back.
            table.remove_node(&found.node);
            table.add_node(&found.node, proxies[0]).expect("there is room");
            table.remove_node(&found.node);
            table.sweep(usize::MAX);
        }
        from = page.next;
    }
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_node_that_stays_is_reported_once_while_shards_grow_and_shrink() {
    const STAYING: u128 = 5_000;
    let table = RouteTable::new();
    let proxies = register(&table, 2);
    let staying = |i: u128| match i % 4 {
        0 => format!("name-{i}").parse().expect("a name"),
        _ => NodeId::from(Uuid::from_u128(i << 64)),
    };
    for i in 0..STAYING {
        table.add_node(&staying(i), proxies[0]).expect("there is room");
    }
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let nodes: Vec<NodeId> = (0..20_000_u128)
                    .map(|i| NodeId::from(Uuid::from_u128(i << 32 | 1)))
                    .collect();
                table.add_nodes(&nodes, proxies[1]).expect("there is room");
                nodes.iter().for_each(|node| _ = table.remove_node(node));
                table.sweep(100_000);
            }
        });
        for most in [1, 2, 16, 300, 10_000].repeat(2 * crate::common::scale()) {
            let found = pages(&table, most);
            let distinct: HashSet<&NodeId> = found.iter().map(|found| &found.node).collect();
            assert_eq!(
                distinct.len(),
                found.len(),
                "some node was reported twice, {most} a page"
            );
            assert!(
                (0..STAYING).all(|i| distinct.contains(&staying(i))),
                "some node is missing, {most} a page"
            );
        }
        done.store(true, Ordering::Relaxed);
    });
}

/// Between two pages, nodes come and go by the thousand: shards grow, shed tombstones and move to smaller slabs.
#[test]
fn what_stays_is_in_one_page_whatever_happens_between_two() {
    let seed = crate::common::seed();
    let mut random = fastrand::Rng::with_seed(seed);
    for most in [1, 2, 7, 100, 10_000] {
        let table = RouteTable::new();
        let proxies = register(&table, 2);
        let staying: HashSet<NodeId> = (0..most.clamp(500, 2_000) as u16).map(node).collect();
        staying
            .iter()
            .for_each(|node| _ = table.add_node(node, proxies[0]).expect("there is room"));
        // UUIDs and names.
        let passing: Vec<NodeId> = (20_000..50_000).map(node).collect();
        let mut there: HashSet<&NodeId> = HashSet::new();
        let mut grown = 0;
        let mut seen: HashSet<NodeId> = HashSet::new();
        let mut from = Some(NodeCursor::default());
        let mut pages = 0;
        while let Some(cursor) = from {
            let cursor: NodeCursor = cursor.to_string().parse().expect("it can be read again");
            let page = table.nodes_page(&cursor, most, |_, _| true);
            assert!(page.nodes.len() <= most);
            for found in page.nodes {
                let node = found.node;
                assert!(
                    staying.contains(&node) || there.contains(&node),
                    "{node} is not there, seed {seed}"
                );
                // A node that comes back before the present place must not be reported again, either.
                assert!(
                    seen.insert(node.clone()),
                    "{node} came twice, {most} a page, seed {seed}"
                );
            }
            from = page.next;
            pages += 1;
            if pages % (100 / most).max(1) != 0 {
                continue;
            }
            match if grown == 0 { 0 } else { random.u8(..4) } {
                0 => {
                    let first = random.usize(..passing.len());
                    let come = &passing[first..(first + 8_000).min(passing.len())];
                    table.add_nodes(come, proxies[1]).expect("there is room");
                    there.extend(come);
                    grown += 1;
                }
                1 => {
                    let gone: Vec<&NodeId> = there.iter().copied().filter(|_| random.u8(..10) > 0).collect();
                    for node in gone {
                        assert!(table.remove_node(node));
                        there.remove(node);
                    }
                }
                2 => crate::common::sweep_fully(&table),
                _ => {}
            }
        }
        assert!(staying.is_subset(&seen), "{most} a page, seed {seed}");
        assert!(grown > 0 || most > 100, "nothing happened, seed {seed}");
    }
}

#[test]
fn a_page_looks_at_a_bounded_part_of_what_is_not_wanted() {
    let table = RouteTable::new();
    let proxies = register(&table, 1);
    let nodes: Vec<NodeId> = (0..200_000).map(|i| Uuid::from_u128(i).into()).collect();
    table.add_nodes(&nodes, proxies[0]).expect("there is room");
    for most in [1, 100, 100_000] {
        let (mut looked, mut pages, mut from) = (0, 0, Some(NodeCursor::default()));
        while let Some(cursor) = from {
            let mut of_this_page = 0;
            let page = table.nodes_page(&cursor, most, |_, _| {
                of_this_page += 1;
                false
            });
            assert_eq!(page.nodes, []);
            assert!(of_this_page <= 20_000, "{of_this_page} unwanted nodes");
            looked += of_this_page;
            pages += 1;
            from = page.next;
        }
        // Each once, and in parts that are no shorter than they have to be.
        assert_eq!(looked, nodes.len());
        assert!(pages <= 40, "{pages} pages");
    }
}

/// Otherwise the caller could not divide its work, if few nodes match.
#[test]
fn a_page_ends_where_its_caller_stops_it() {
    let table = RouteTable::new();
    let proxies = register(&table, 1);
    // UUIDs and names, and shards with several times the nodes of a page.
    let nodes: HashSet<NodeId> = (0..30_000).map(node).collect();
    let added: Vec<_> = nodes.iter().cloned().collect();
    table.add_nodes(&added, proxies[0]).expect("there is room");
    for (reads, most) in [(1, 1), (7, 3), (100, 100), (2_000, 10), (2_000, usize::MAX)] {
        for is_text in [false, true] {
            let (mut seen, mut taken) = (HashSet::new(), HashSet::new());
            let mut from = Some(NodeCursor::default());
            while let Some(cursor) = from {
                let cursor = match is_text {
                    true => cursor.to_string().parse().expect("it can be read again"),
                    false => cursor,
                };
                let mut read = 0;
                let page = table.try_nodes_page(&cursor, most, |node, _| {
                    read += 1;
                    assert!(seen.insert(node.clone()), "{node} came twice");
                    let takes = seen.len().is_multiple_of(3);
                    match read < reads {
                        true => ControlFlow::Continue(takes),
                        false => ControlFlow::Break(takes),
                    }
                });
                assert!(read <= reads && page.nodes.len() <= most, "{read} nodes of {reads}");
                taken.extend(page.nodes.into_iter().map(|found| found.node));
                from = page.next;
            }
            assert!(seen == nodes, "{} of {reads}, {most}", seen.len());
            assert_eq!(taken.len(), nodes.len() / 3, "{reads}, {most}");
        }
    }
}

#[test]
fn what_is_no_place_is_refused() {
    let no_places = [
        "",
        "256",
        "-1",
        "x",
        ">",
        "1.0",
        "99999999999999999999",
        ">\u{7}",
        "256:0",
        "1:",
        ":1",
        "1:x",
        "1:4294967296",
        "1:1:",
        "1:1:x",
        "1:1:1:1",
        "1:1:10000000000000000",
        "x>node",
        "10000000000000000>node",
    ];
    for text in no_places {
        assert!(text.parse::<NodeCursor>().is_err(), "{text:?}");
    }
    for text in [
        "0",
        "255",
        "255:1",
        "0:4294967295",
        "7:1:9e3779b97f4a7c15",
        ">node",
        "f>node",
        ">a>b",
        "1>:",
    ] {
        let place: NodeCursor = text.parse().expect("a place");
        assert_eq!(place.to_string(), text);
    }
    // A name may look like anything.
    assert!(">7".parse::<NodeCursor>().is_ok());
    for text in ["", "-1", "x", "1.0", "18446744073709551616"] {
        assert!(text.parse::<ProxyCursor>().is_err(), "{text:?}");
    }
    // A place far behind the end of a table that has no names.
    let table = RouteTable::new();
    let page = table.nodes_page(&"255".parse().expect("a place"), 1, |_, _| true);
    assert_eq!((page.nodes, page.next), (vec![], None));
    let page = table.proxies_page("18446744073709551615".parse().expect("a place"), 1);
    assert_eq!((page.proxies, page.next), (vec![], None));
}

#[test]
fn pages_of_proxies_have_each_once() {
    let table = RouteTable::new();
    let all = |most| {
        let (mut found, mut from) = (Vec::new(), Some(ProxyCursor::default()));
        while let Some(cursor) = from {
            let page = table.proxies_page(cursor, most);
            assert!(page.proxies.len() <= most.max(1));
            found.extend(page.proxies);
            from = page.next;
        }
        found
    };
    assert_eq!(all(10), []);
    let mut proxies = register(&table, 100);
    for gone in (0..50).rev() {
        assert!(table.remove_proxy(proxies.remove(gone)));
    }
    for most in [0, 1, 7, usize::MAX] {
        let found = all(most);
        let mut listed: Vec<_> = found.iter().map(|(proxy, _)| *proxy).collect();
        listed.sort();
        assert_eq!(listed, proxies, "at most {most}");
        assert!(
            found
                .iter()
                .all(|(proxy, details)| table.proxy(*proxy).as_ref() == Some(details))
        );
    }
}

#[test]
fn a_proxy_is_found_and_removed_by_its_id() {
    let table = RouteTable::new();
    assert_eq!(table.find_proxy("proxy-0"), None);
    let registered = register(&table, 2);
    assert_eq!(table.find_proxy("proxy-0"), Some(registered[0]));
    assert_eq!(table.find_proxy("proxy-00"), None);
    assert_eq!(table.find_proxy(""), None);

    table.add_node(&node(1), registered[0]).expect("there is room");
    assert!(table.remove_proxy_by_id("proxy-0"));
    assert!(!table.remove_proxy_by_id("proxy-0"));
    assert_eq!(table.find_proxy("proxy-0"), None);
    assert!(table.get_proxies(&node(1)).is_empty());
    assert_eq!(table.find_proxy("proxy-1"), Some(registered[1]));

    // The same ID is another registration: its reference differs.
    let again = register(&table, 1)[0];
    assert_ne!(again.to_bits(), registered[0].to_bits());
    assert_eq!(
        table.find_proxy("proxy-0").map(ProxyRef::to_bits),
        Some(again.to_bits())
    );
}

#[test]
fn a_number_that_is_used_again_is_another_registration() {
    let clock = ManualClock::new();
    let table = RouteTable::builder()
        .clock(clock.clone())
        .build()
        .expect("possible limits");
    let mut seen = HashSet::new();
    for _ in 0..10 {
        let proxy = register(&table, 1)[0];
        assert!(seen.insert(proxy.to_bits()), "{proxy:?}");
        table.remove_proxy(proxy);
        for _ in 0..4 {
            crate::common::sweep_fully(&table);
        }
    }
}

#[test]
fn resolved_routes_are_those_of_a_look_up_with_their_details() {
    let (table, clock) = crate::common::table(Duration::from_secs(10));
    let proxies = register(&table, 4);
    for i in [0, 3] {
        assert!(table.resolve(&node(i)).is_empty());
        for proxy in &proxies {
            table.add_node(&node(i), *proxy).expect("there is room");
            clock.advance(Duration::from_secs(3));
        }
        // The first node is expired, and the second node gone.
        let resolved = table.resolve(&node(i));
        let routes: Vec<_> = resolved
            .iter()
            .map(|route| (route.proxy, route.last_refresh, Some(route.details.clone())))
            .collect();
        let expected = table.get_proxies(&node(i));
        let expected: Vec<_> = expected
            .iter()
            .map(|route| (route.proxy, route.last_refresh, table.proxy(route.proxy)))
            .collect();
        assert_eq!(routes, expected);
        assert_eq!(routes.len(), 3);
    }
    table.remove_proxy(proxies[1]);
    assert_eq!(table.resolve(&node(3)).len(), 2);
}

#[test]
fn a_report_of_many_nodes_registers_their_proxy() {
    let table = RouteTable::builder().max_routes(150).build().expect("possible limits");
    let nodes: Vec<NodeId> = (0..100).map(node).collect();
    let added = table.report_nodes(&nodes, &proxy("one")).expect("there is room");
    assert_eq!((added.inserted, added.refreshed, added.len()), (100, 0, 100));
    let added = table.report_nodes(&nodes[50..], &proxy("one")).expect("there is room");
    assert_eq!((added.inserted, added.refreshed), (0, 50));
    assert_eq!(table.find_proxy("one"), Some(table.get_proxies(&nodes[99])[0].proxy));

    let refused = table
        .report_nodes(&nodes, &proxy("two"))
        .expect_err("there is room for 50");
    assert_eq!(
        refused.to_string(),
        "the table holds its maximum of 150 routes, after 50 nodes"
    );
    let bad = Proxy {
        addr: "nowhere",
        ..proxy("three")
    };
    let refused = table.report_nodes(&nodes, &bad).expect_err("that is no address");
    assert_eq!(refused.to_string(), "proxy address is not host:port");
    assert_eq!(table.find_proxy("three"), None);
}

#[test]
fn reports_go_on_while_their_proxy_is_removed() {
    let table = RouteTable::new();
    let nodes: Vec<NodeId> = (0..1_000).map(node).collect();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                table.remove_proxy_by_id("one");
                thread::yield_now();
            }
        });
        for _ in 0..200 * crate::common::scale() {
            let added = table.report_nodes(&nodes, &proxy("one")).expect("there is room");
            assert_eq!(added.len(), nodes.len());
        }
        done.store(true, Ordering::Relaxed);
    });
    table.report_nodes(&nodes, &proxy("one")).expect("there is room");
    assert!(nodes.iter().all(|node| table.get_proxies(node).len() == 1));
}

#[test]
fn a_proxy_that_moves_is_an_event_and_one_that_stays_is_none() {
    let table = RouteTable::new();
    let one = register(&table, 1)[0];
    let mut subscription = table.subscribe();
    let mut events = || {
        let mut events = Vec::new();
        subscription
            .drain_events(usize::MAX, |event| events.push(event.clone()))
            .expect("nothing was lost");
        events
    };
    register(&table, 2);
    assert_eq!(events(), []);
    let moved = Proxy {
        addr: "192.0.2.2:3080",
        ..proxy("proxy-0")
    };
    for _ in 0..2 {
        table.report_node(&node(1), &moved).expect("there is room");
    }
    let other_cluster = Proxy {
        cluster_name: "other",
        ..moved
    };
    table.register_proxy(&other_cluster).expect("there is room");
    let changed = Event::ProxyChanged { proxy: one };
    let reported = events();
    assert_eq!(reported.iter().filter(|event| **event == changed).count(), 2);
    assert_eq!(reported.len(), 3, "and the node: {reported:?}");
}
