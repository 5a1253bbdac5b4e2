//! The contract of the public interface, one property at a time.

use std::num::NonZeroU64;
use std::time::Duration;

use crate::common::model::millis;
use crate::common::{proxy, sweep_fully};
use nodetracker::{
    AddError, Added, Builder, ClientId, ManualClock, NodeId, NodeIdError, Proxy, ProxyDetails, ProxyField, ProxyRef,
    RegisterError, ReportError, Route, RouteTable, Stats, SweepPace, SweepReport, TextError,
};
use uuid::Uuid;

const INTERVAL: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(1);

/// A table whose interval is a minute, and its clock.
fn table() -> (RouteTable, ManualClock) {
    table_with(|builder| builder)
}

fn table_with(options: impl FnOnce(Builder) -> Builder) -> (RouteTable, ManualClock) {
    crate::common::table_with(INTERVAL, options)
}

fn node(id: &str) -> NodeId {
    id.parse().expect("a node ID")
}

fn register(table: &RouteTable, id: &str) -> ProxyRef {
    table.register_proxy(&proxy(id)).expect("registers")
}

fn register_many(table: &RouteTable, count: usize) -> Vec<ProxyRef> {
    (0..count).map(|i| register(table, &format!("proxy-{i}"))).collect()
}

fn answer(table: &RouteTable, node: &NodeId) -> Vec<ProxyRef> {
    table.get_proxies(node).iter().map(|route| route.proxy).collect()
}

#[test]
fn types_are_send_and_sync() {
    fn is_send_and_sync<T: Send + Sync + 'static>() {}
    is_send_and_sync::<RouteTable>();
    is_send_and_sync::<Builder>();
    is_send_and_sync::<NodeId>();
    is_send_and_sync::<ProxyRef>();
    is_send_and_sync::<ProxyDetails>();
    is_send_and_sync::<Route>();
    is_send_and_sync::<Stats>();
    is_send_and_sync::<SweepReport>();
    is_send_and_sync::<(AddError, RegisterError, NodeIdError)>();
}

#[test]
fn proxy_ref_is_copy_and_eight_bytes() {
    fn is_copy<T: Copy>() {}
    is_copy::<ProxyRef>();
    assert_eq!(size_of::<ProxyRef>(), 8);
}

// --- names

#[test]
fn every_spelling_of_a_uuid_is_the_same_node() {
    let (table, _) = table();
    let hyphenated = "550e8400-e29b-41d4-a716-446655440000";
    let spellings = [
        hyphenated.to_owned(),
        hyphenated.replace('-', ""),
        format!("{{{hyphenated}}}"),
        format!("urn:uuid:{hyphenated}"),
        hyphenated.to_uppercase(),
        hyphenated.replace('-', "").to_uppercase(),
        format!("{{{}}}", hyphenated.to_uppercase()),
        format!("{{{}}}", hyphenated.replace('-', "")),
        format!("URN:UUID:{}", hyphenated.to_uppercase()),
    ];
    for (i, added) in spellings.iter().enumerate() {
        let proxy = register(&table, &format!("proxy-{i}"));
        assert_eq!(table.add_node(&node(added), proxy), Ok(Added::Inserted));
        for asked in &spellings {
            assert_eq!(node(asked).to_string(), hyphenated);
            assert_eq!(
                table.get_proxies(&node(asked)).len(),
                i + 1,
                "{added} added, {asked} asked for"
            );
        }
    }
    assert!(table.remove_node(&node(&spellings[3])));
    assert!(!table.remove_node(&node(&spellings[0])));
}

#[test]
fn names_are_compared_byte_by_byte() {
    let (table, _) = table();
    let proxy = register(&table, "proxy");
    let longest = "x".repeat(255);
    let names = [
        "node-1",
        "Node-1",
        " node-1",
        "550e8400-e29b-41d4-a716-446655440000.cluster",
        "550e8400-e29b-41d4-a716-44665544000",
        "é",
        "e\u{301}",
        "x",
        &longest,
    ];
    for name in names {
        assert_eq!(table.add_node(&node(name), proxy), Ok(Added::Inserted), "{name}");
        assert_eq!(node(name).to_string(), name);
    }
    assert_eq!(table.len(), names.len());
    for name in names {
        assert!(table.remove_node(&node(name)), "{name}");
    }
    assert!(names.iter().all(|name| table.get_proxies(&node(name)).is_empty()));
}

#[test]
fn node_id_errors_tell_what_and_where() {
    let error = |text: &str| text.parse::<NodeId>().expect_err("is refused").to_string();
    assert_eq!(error(""), "node ID is empty");
    assert_eq!(error(&"x".repeat(256)), "node ID is 256 bytes long, the limit is 255");
    assert_eq!(error(&"é".repeat(128)), "node ID is 256 bytes long, the limit is 255");
    assert_eq!(error("node\n1"), "node ID has the control character '\\n' at byte 4");
    assert_eq!(
        error("é\u{7f}"),
        "node ID has the control character '\\u{7f}' at byte 2"
    );
    assert_eq!(
        error("a\u{85}\0"),
        "node ID has the control character '\\u{85}' at byte 1"
    );
}

#[test]
fn addresses_can_be_dialed() {
    let (table, _) = table();
    let check = |addr: &str| {
        let proxy = Proxy { addr, ..proxy("proxy") };
        match table.register_proxy(&proxy) {
            Ok(_) => None,
            Err(RegisterError::Invalid { field, reason }) => {
                assert_eq!(field, ProxyField::Addr);
                Some(reason)
            }
            Err(error) => panic!("{error}"),
        }
    };
    for addr in [
        "proxy:1",
        "proxy-1.example.com.:3080",
        "proxy_1.proxies.svc.cluster.local:3080",
        "b\u{fc}cher.example:3080",
        "\u{4f8b}\u{3048}.jp:443",
        "127.0.0.1:65535",
        "10.0.0.0:1",
        "0.example.com:1",
        "[::1]:3080",
        "[2001:db8::0]:1",
        "[::ffff:1.2.3.4]:1",
    ] {
        assert_eq!(check(addr), None, "{addr}");
    }
    for addr in [
        "0.0.0.0:1",
        "0:1",
        "0.0:1",
        "000.0.0.0:1",
        "0x0.0.0.0:1",
        "[::]:1",
        "[0:0::0]:1",
        "[::ffff:0.0.0.0]:1",
    ] {
        assert_eq!(check(addr), Some(TextError::Unspecified), "{addr}");
    }
    for addr in [
        "", "a", ":1", "a:", "a:0", "a:+1", "a:65536", "a:1:1", "::1:1", "[a]:1", "[::1:1", "::1]:1", "[]:1",
    ] {
        let expected = if addr.is_empty() {
            TextError::Empty
        } else {
            TextError::NotHostPort
        };
        assert_eq!(check(addr), Some(expected), "{addr}");
    }
    for (host, character, at) in [
        ("*", '*', 0),
        ("a b", ' ', 1),
        ("a\u{a0}", '\u{a0}', 1),
        ("\u{feff}a", '\u{feff}', 0),
        ("a\u{202e}b", '\u{202e}', 1),
        ("a\u{ad}b", '\u{ad}', 1),
        ("a\u{2060}b", '\u{2060}', 1),
        ("a/b", '/', 1),
        ("user@a", '@', 4),
        ("a%00", '%', 1),
    ] {
        let addr = format!("{host}:1");
        assert_eq!(check(&addr), Some(TextError::NotInHost { character, at }), "{addr:?}");
    }
}

#[test]
fn proxy_errors_tell_what_and_where() {
    let (table, _) = table();
    let long = "x".repeat(256);
    let long_addr = format!("{long}:1");
    let good = proxy("proxy");
    let cases = [
        (
            Proxy { id: "", ..good },
            ProxyField::Id,
            TextError::Empty,
            "proxy ID is empty",
        ),
        (
            Proxy { id: &long, ..good },
            ProxyField::Id,
            TextError::TooLong { len: 256 },
            "proxy ID is 256 bytes long, the limit is 255",
        ),
        (
            Proxy { id: "a\0", ..good },
            ProxyField::Id,
            TextError::Control { character: '\0', at: 1 },
            "proxy ID has the control character '\\0' at byte 1",
        ),
        (
            Proxy {
                cluster_name: "east\t1",
                ..good
            },
            ProxyField::ClusterName,
            TextError::Control { character: '\t', at: 4 },
            "cluster name has the control character '\\t' at byte 4",
        ),
        (
            Proxy {
                cluster_name: &long,
                ..good
            },
            ProxyField::ClusterName,
            TextError::TooLong { len: 256 },
            "cluster name is 256 bytes long, the limit is 255",
        ),
        (
            Proxy {
                addr: &long_addr,
                ..good
            },
            ProxyField::Addr,
            TextError::TooLong { len: 258 },
            "proxy address is 258 bytes long, the limit is 255",
        ),
        (
            Proxy {
                addr: "localhost",
                ..good
            },
            ProxyField::Addr,
            TextError::NotHostPort,
            "proxy address is not host:port",
        ),
        (
            Proxy {
                addr: "prox\u{200b}y:1",
                ..good
            },
            ProxyField::Addr,
            TextError::NotInHost {
                character: '\u{200b}',
                at: 4,
            },
            "proxy address has the character '\\u{200b}' at byte 4, which no host has",
        ),
        (
            Proxy {
                addr: "0.0.0.0:1",
                ..good
            },
            ProxyField::Addr,
            TextError::Unspecified,
            "proxy address has an unspecified address, which no proxy can dial",
        ),
    ];
    for (proxy, field, reason, text) in cases {
        let error = table.register_proxy(&proxy).expect_err("is refused");
        assert_eq!(error, RegisterError::Invalid { field, reason });
        assert_eq!(error.to_string(), text);
    }
    assert_eq!(table.stats().proxies, 0);
}

#[test]
fn a_refused_registration_changes_nothing() {
    let (table, _) = table();
    let known = register(&table, "proxy");
    let before = table.proxy(known);
    for bad in [
        Proxy {
            addr: "",
            ..proxy("proxy")
        },
        Proxy {
            cluster_name: "\n",
            ..proxy("proxy")
        },
    ] {
        table.register_proxy(&bad).expect_err("is refused");
    }
    assert_eq!(table.proxy(known), before);
}

#[test]
fn a_proxy_needs_no_cluster_name() {
    let (table, _) = table();
    let proxy = table
        .register_proxy(&Proxy {
            cluster_name: "",
            ..proxy("proxy")
        })
        .expect("registers");
    assert_eq!(table.proxy(proxy).expect("is there").cluster_name(), "");
}

// --- proxies

#[test]
fn registering_again_updates_the_address_for_all_routes() {
    let (table, _) = table();
    let old = register(&table, "proxy-1");
    let nodes: Vec<NodeId> = (0..100).map(|i| node(&format!("node-{i}"))).collect();
    for node in &nodes {
        assert_eq!(table.add_node(node, old), Ok(Added::Inserted));
    }
    let moved = Proxy {
        id: "proxy-1",
        cluster_name: "west",
        addr: "198.51.100.7:443",
    };
    assert_eq!(table.register_proxy(&moved), Ok(old));
    for node in &nodes {
        let routes = table.get_proxies(node);
        let details = table.proxy(routes[0].proxy).expect("is there");
        assert_eq!(
            (details.id(), details.cluster_name(), details.addr()),
            ("proxy-1", "west", "198.51.100.7:443")
        );
    }
}

#[test]
fn a_removed_proxys_reference_is_stale_for_ever() {
    let (table, clock) = table();
    let (node, other_node) = (node("node-1"), node("node-2"));
    let (old, other) = (register(&table, "proxy-1"), register(&table, "proxy-2"));
    for proxy in [old, other] {
        assert_eq!(table.add_node(&node, proxy), Ok(Added::Inserted));
    }
    assert_eq!(table.add_node(&other_node, old), Ok(Added::Inserted));
    assert!(table.remove_proxy(old));

    let mut refs = vec![old];
    for _ in 0..20 {
        let stale = *refs.last().expect("not empty");
        assert!(!table.remove_proxy(stale));
        assert_eq!(table.proxy(stale), None);
        assert_eq!(table.add_node(&node, stale), Err(AddError::UnknownProxy));
        assert!(!table.remove_route(&node, stale));
        assert_eq!(answer(&table, &node), [other]);
        assert!(!table.remove_node(&other_node), "all its routes are of removed proxies");
        assert!(table.get_proxies(&other_node).is_empty());

        let new = register(&table, "proxy-1");
        assert!(!refs.contains(&new), "{new:?} was handed out before");
        assert_eq!(answer(&table, &node), [other], "the new registration has no routes yet");
        assert_eq!(table.add_node(&node, new), Ok(Added::Inserted));
        assert_eq!(table.add_node(&other_node, new), Ok(Added::Inserted));
        for &stale in &refs {
            assert!(!table.remove_route(&node, stale));
            assert!(!table.remove_proxy(stale));
        }
        assert_eq!(
            answer(&table, &node),
            [new, other],
            "older references reach nothing of the newer one"
        );
        assert!(table.remove_proxy(new));
        refs.push(new);
        // Time for the table to forget the number of the proxy, and to hand it out again.
        clock.advance(TICK);
        assert_eq!(table.add_node(&node, other), Ok(Added::Refreshed));
        sweep_fully(&table);
    }
    for stale in refs {
        assert_eq!(table.add_node(&node, stale), Err(AddError::UnknownProxy));
    }
    assert_eq!(table.len(), 1);
}

#[test]
fn a_proxy_is_kept_for_an_interval_without_routes() {
    let (table, clock) = table();
    let (never_used, used) = (register(&table, "never used"), register(&table, "used"));
    clock.advance(INTERVAL / 2);
    assert_eq!(table.add_node(&node("node-1"), used), Ok(Added::Inserted));
    clock.advance(INTERVAL / 2);
    sweep_fully(&table);
    assert!(table.proxy(never_used).is_some(), "idle for one interval, not longer");
    assert!(table.remove_node(&node("node-1")));
    clock.advance(INTERVAL);
    sweep_fully(&table);
    assert!(table.proxy(used).is_some(), "idle for one interval, not longer");
}

#[test]
fn a_proxy_with_a_live_route_is_never_dropped() {
    let (table, clock) = table();
    let proxy = register(&table, "proxy-1");
    for beat in 0..20 {
        let expected = if beat == 0 { Added::Inserted } else { Added::Refreshed };
        assert_eq!(table.add_node(&node("node-1"), proxy), Ok(expected));
        clock.advance(INTERVAL);
        // Enough rounds to drop the proxy twice, if no sweep saw its route.
        (0..10).for_each(|_| sweep_fully(&table));
        assert!(table.proxy(proxy).is_some());
    }
}

#[test]
fn a_batch_through_a_removed_proxy_is_refused() {
    let (table, _clock) = table();
    let proxy = register(&table, "proxy-1");
    let nodes = ["node-1", "550e8400-e29b-41d4-a716-446655440000"].map(node);
    let added = table.add_nodes_with_handles(&nodes, proxy).expect("there is room");
    assert_eq!(added.added.inserted, 2);
    assert!(table.remove_proxy(proxy));
    assert_eq!(table.refresh_routes(&added.handles, proxy), Err(AddError::UnknownProxy));
    let refused = table.add_nodes(&nodes, proxy).expect_err("the proxy is gone");
    assert_eq!((refused.added, refused.error), (0, AddError::UnknownProxy));
}

#[test]
fn a_handle_of_a_node_that_is_gone_refreshes_no_other() {
    let (table, clock) = table();
    let proxy = register(&table, "proxy-1");
    let nodes = |from: u128| -> Vec<NodeId> { (from..from + 2_000).map(|n| Uuid::from_u128(n).into()).collect() };
    let added = table.add_nodes_with_handles(&nodes(0), proxy).expect("there is room");
    assert!(nodes(0).iter().all(|node| table.remove_node(node)));
    // The shards move to slabs without the nodes, so that others get their record numbers.
    sweep_fully(&table);
    table.add_nodes(&nodes(5_000), proxy).expect("there is room");
    clock.advance(TICK);
    let refreshed = table.refresh_routes(&added.handles, proxy).expect("it is registered");
    assert_eq!(refreshed.refreshed, 0);
    assert_eq!(refreshed.gone, (0..2_000).collect::<Vec<_>>());
}

// --- routes and time

/// Two nodes have two routes each, and one route of each node is refreshed. After one interval, these routes are left;
/// after two intervals, none.
#[test]
fn only_routes_refreshed_within_the_interval_are_answered() {
    let (table, clock) = table();
    let (node_1, node_2) = (node("node-1"), node("node-2"));
    let [proxy_1, proxy_2, proxy_3] = ["proxy-1", "proxy-2", "proxy-3"].map(|id| register(&table, id));
    for (node, proxy) in [
        (&node_1, proxy_1),
        (&node_1, proxy_2),
        (&node_2, proxy_2),
        (&node_2, proxy_3),
    ] {
        assert_eq!(table.add_node(node, proxy), Ok(Added::Inserted));
    }

    clock.advance(INTERVAL);
    sweep_fully(&table);
    assert_eq!(answer(&table, &node_1), [proxy_2, proxy_1]);
    assert_eq!(answer(&table, &node_2), [proxy_3, proxy_2]);

    assert_eq!(table.add_node(&node_2, proxy_3), Ok(Added::Refreshed));
    clock.advance(INTERVAL);
    assert!(answer(&table, &node_1).is_empty());
    assert_eq!(answer(&table, &node_2), [proxy_3]);

    sweep_fully(&table);
    assert!(answer(&table, &node_1).is_empty());
    assert_eq!(answer(&table, &node_2), [proxy_3]);
    assert_eq!(table.len(), 1);
}

#[test]
fn a_route_expires_one_tick_after_its_interval() {
    let (table, clock) = table();
    let (inline, spilled) = (node("node-1"), node("node-2"));
    let [one, two] = ["proxy-1", "proxy-2"].map(|id| register(&table, id));
    let add_all = |expected| {
        for (node, proxy) in [(&inline, one), (&spilled, one), (&spilled, two)] {
            assert_eq!(table.add_node(node, proxy), Ok(expected));
        }
    };
    add_all(Added::Inserted);
    clock.advance(INTERVAL);
    assert_eq!((answer(&table, &inline).len(), answer(&table, &spilled).len()), (1, 2));
    add_all(Added::Refreshed);
    clock.advance(INTERVAL + TICK);
    assert_eq!((answer(&table, &inline).len(), answer(&table, &spilled).len()), (0, 0));
    assert!(!table.remove_route(&inline, one));
    assert!(!table.remove_route(&spilled, one));
    add_all(Added::Inserted);
    assert_eq!(table.len(), 3, "an expired route is replaced by its successor");
    clock.advance(INTERVAL + TICK);
    assert!(!table.remove_node(&inline));
    assert!(!table.remove_node(&spilled));
    sweep_fully(&table);
    assert!(table.is_empty());
}

#[test]
fn part_of_a_millisecond_does_not_count() {
    let (table, clock) = table();
    let proxy = register(&table, "proxy-1");
    clock.advance(Duration::from_micros(900));
    assert_eq!(table.add_node(&node("node-1"), proxy), Ok(Added::Inserted));
    clock.advance(INTERVAL + Duration::from_micros(99));
    assert_eq!(answer(&table, &node("node-1")), [proxy], "an age of one interval");
    clock.advance(Duration::from_micros(1));
    assert!(
        answer(&table, &node("node-1")).is_empty(),
        "an age of one interval and a tick"
    );
}

#[test]
fn routes_are_newest_first_and_tell_their_own_time() {
    let (table, clock) = table();
    let node = node("node-1");
    let proxies = register_many(&table, 5);
    for &proxy in &proxies {
        clock.advance(TICK);
        assert_eq!(table.add_node(&node, proxy), Ok(Added::Inserted));
    }
    clock.advance(TICK);
    assert_eq!(table.add_node(&node, proxies[2]), Ok(Added::Refreshed));
    let routes: Vec<_> = table
        .get_proxies(&node)
        .iter()
        .map(|r| (r.proxy, millis(r.last_refresh)))
        .collect();
    assert_eq!(
        routes,
        [(2, 6), (4, 5), (3, 4), (1, 2), (0, 1)].map(|(proxy, at)| (proxies[proxy], at))
    );
}

#[test]
fn of_two_refreshes_in_one_tick_the_later_call_is_first() {
    let (table, clock) = table();
    let node = node("node-1");
    let proxies = register_many(&table, 3);
    for &proxy in &proxies {
        assert_eq!(table.add_node(&node, proxy), Ok(Added::Inserted));
    }
    for tick in 0..2 {
        for order in [[0, 1, 2], [2, 0, 1], [1, 1, 0], [2, 1, 2]] {
            for proxy in order {
                assert_eq!(table.add_node(&node, proxies[proxy]), Ok(Added::Refreshed));
                assert_eq!(answer(&table, &node)[0], proxies[proxy], "in tick {tick}");
            }
        }
        assert_eq!(answer(&table, &node), [2, 1, 0].map(|proxy| proxies[proxy]));
        clock.advance(TICK);
    }
}

#[test]
fn a_clock_that_steps_back_leaves_the_table_at_the_latest_reading() {
    let (table, clock) = table();
    let node = node("node-1");
    let [one, two] = ["proxy-1", "proxy-2"].map(|id| register(&table, id));
    clock.set(2 * INTERVAL);
    assert_eq!(table.add_node(&node, one), Ok(Added::Inserted));
    clock.set(INTERVAL);
    assert_eq!(table.add_node(&node, two), Ok(Added::Inserted));
    assert_eq!(
        answer(&table, &node),
        [two, one],
        "added later, at the same instant of the table"
    );
    clock.set(Duration::ZERO);
    assert_eq!(answer(&table, &node), [two, one]);
    clock.set(3 * INTERVAL);
    assert_eq!(answer(&table, &node), [two, one], "neither is older than an interval");
    clock.set(3 * INTERVAL + TICK);
    assert!(answer(&table, &node).is_empty(), "both are");
}

#[test]
fn a_clock_that_steps_back_revives_nothing_that_a_look_up_saw_expired() {
    let (table, clock) = table();
    let (inline, spilled) = (node("node-1"), node("node-2"));
    let [one, two] = ["proxy-1", "proxy-2"].map(|id| register(&table, id));
    for (node, proxy) in [(&inline, one), (&spilled, one), (&spilled, two)] {
        assert_eq!(table.add_node(node, proxy), Ok(Added::Inserted));
    }
    clock.set(INTERVAL + TICK);
    assert!(answer(&table, &inline).is_empty());
    clock.set(Duration::ZERO);
    assert!(answer(&table, &inline).is_empty());
    assert!(answer(&table, &spilled).is_empty());
    assert!(!table.remove_route(&spilled, one));
    assert_eq!(table.add_node(&inline, one), Ok(Added::Inserted));
}

#[test]
fn removals_tell_whether_there_was_a_route() {
    let (table, _) = table();
    let node = node("node-1");
    let proxies = register_many(&table, 3);
    assert!(!table.remove_node(&node));
    assert!(!table.remove_route(&node, proxies[0]));
    for &proxy in &proxies {
        assert_eq!(table.add_node(&node, proxy), Ok(Added::Inserted));
    }
    assert!(table.remove_route(&node, proxies[1]));
    assert!(!table.remove_route(&node, proxies[1]));
    assert_eq!(answer(&table, &node), [proxies[2], proxies[0]]);
    assert_eq!(table.len(), 2);
    assert!(table.remove_node(&node));
    assert!(!table.remove_node(&node));
    assert!(!table.remove_route(&node, proxies[0]));
    assert_eq!(table.len(), 0);
    assert_eq!(table.add_node(&node, proxies[1]), Ok(Added::Inserted));
    assert_eq!(answer(&table, &node), [proxies[1]]);
}

// --- limits

#[test]
fn the_65th_route_of_a_node_replaces_the_stalest() {
    let (table, clock) = table();
    let node = node("node-1");
    let proxies = register_many(&table, 70);
    for &proxy in &proxies[..64] {
        assert_eq!(table.add_node(&node, proxy), Ok(Added::Inserted));
        clock.advance(TICK);
    }
    assert_eq!(
        table.add_node(&node, proxies[0]),
        Ok(Added::Refreshed),
        "the stalest is now the second"
    );
    assert_eq!(table.add_node(&node, proxies[64]), Ok(Added::Inserted));
    assert_eq!(table.len(), 64);
    let expected: Vec<_> = [64, 0]
        .into_iter()
        .chain((2..64).rev())
        .map(|proxy| proxies[proxy])
        .collect();
    assert_eq!(answer(&table, &node), expected);
    assert_eq!(
        table.add_node(&node, proxies[1]),
        Ok(Added::Inserted),
        "which was replaced, and replaces the third"
    );
    assert!(!answer(&table, &node).contains(&proxies[2]));
}

#[test]
fn among_equally_stale_routes_the_65th_replaces_the_last_in_order() {
    let (table, _) = table();
    let node = node("node-1");
    let proxies = register_many(&table, 70);
    for &proxy in &proxies {
        assert_eq!(table.add_node(&node, proxy), Ok(Added::Inserted));
    }
    let expected: Vec<_> = proxies[6..].iter().rev().copied().collect();
    assert_eq!(answer(&table, &node), expected);
    assert_eq!(table.len(), 64);
}

#[test]
fn a_route_that_is_not_live_takes_no_place_among_the_64() {
    let (table, clock) = table();
    let node = node("node-1");
    let proxies = register_many(&table, 66);
    for &proxy in &proxies[..32] {
        assert_eq!(table.add_node(&node, proxy), Ok(Added::Inserted));
    }
    clock.advance(TICK);
    for &proxy in &proxies[32..64] {
        assert_eq!(table.add_node(&node, proxy), Ok(Added::Inserted));
    }
    assert!(table.remove_proxy(proxies[63]));
    assert_eq!(table.add_node(&node, proxies[64]), Ok(Added::Inserted));
    assert_eq!(
        answer(&table, &node).len(),
        64,
        "the removed proxy's route made place, not the stalest live one"
    );
    clock.advance(INTERVAL);
    assert_eq!(table.add_node(&node, proxies[65]), Ok(Added::Inserted));
    let expected: Vec<_> = [65, 64]
        .into_iter()
        .chain((32..63).rev())
        .map(|proxy| proxies[proxy])
        .collect();
    assert_eq!(answer(&table, &node), expected);
}

/// However often routes are refreshed, added and removed within one tick: the latest call's route is first.
#[test]
fn refreshes_within_a_tick_keep_the_order_of_the_calls() {
    let (table, _) = table();
    let proxies = register_many(&table, 6);
    let node = node("node-1");
    let mut expected: Vec<ProxyRef> = Vec::new();
    let mut random = fastrand::Rng::with_seed(1);
    for step in 0..2_000 {
        let proxy = proxies[random.usize(..proxies.len())];
        let known = expected
            .iter()
            .position(|known| *known == proxy)
            .map(|at| expected.remove(at));
        if known.is_some() && random.u8(..8) == 0 {
            assert!(table.remove_route(&node, proxy));
        } else {
            let added = if known.is_some() {
                Added::Refreshed
            } else {
                Added::Inserted
            };
            assert_eq!(table.add_node(&node, proxy), Ok(added));
            expected.insert(0, proxy);
        }
        assert_eq!(answer(&table, &node), expected, "step {step}");
    }
}

#[test]
fn at_most_max_routes_are_counted() {
    let (table, clock) = table_with(|builder| builder.max_routes(3));
    let nodes = ["node-1", "node-2", "node-3"].map(node);
    let proxies = register_many(&table, 3);
    let error = AddError::TooManyRoutes { limit: 3 };
    let full = Err(error);
    assert_eq!(table.add_node(&nodes[0], proxies[0]), Ok(Added::Inserted));
    assert_eq!(table.add_node(&nodes[1], proxies[0]), Ok(Added::Inserted));
    assert_eq!(table.add_node(&nodes[1], proxies[1]), Ok(Added::Inserted));
    assert_eq!(table.add_node(&nodes[2], proxies[0]), full, "a new node");
    assert_eq!(table.add_node(&nodes[0], proxies[1]), full, "a second route");
    assert_eq!(table.add_node(&nodes[1], proxies[2]), full, "a third route");
    assert_eq!(error.to_string(), "the table holds its maximum of 3 routes");
    let of_a_shard = AddError::TooManyRoutes {
        limit: Builder::MAX_ROUTES,
    };
    let message = of_a_shard.to_string();
    assert!(
        message.ends_with("routes, or a shard its maximum of nodes"),
        "{message}"
    );
    assert!(table.get_proxies(&nodes[2]).is_empty());
    assert_eq!(answer(&table, &nodes[1]), [proxies[1], proxies[0]]);
    for (node, proxy) in [(0, 0), (1, 0), (1, 1)] {
        assert_eq!(table.add_node(&nodes[node], proxies[proxy]), Ok(Added::Refreshed));
    }

    clock.advance(INTERVAL + TICK);
    assert_eq!(table.len(), 3);
    assert_eq!(
        table.add_node(&nodes[2], proxies[0]),
        full,
        "expired routes count until they are swept"
    );
    sweep_fully(&table);
    for node in &nodes {
        assert_eq!(table.add_node(node, proxies[0]), Ok(Added::Inserted));
    }
    assert!(table.remove_route(&nodes[0], proxies[0]));
    assert_eq!(
        table.add_node(&nodes[2], proxies[1]),
        Ok(Added::Inserted),
        "there is place for one again"
    );
    assert_eq!(table.add_node(&nodes[2], proxies[2]), full);
    assert!(table.remove_node(&nodes[1]));
    assert_eq!(
        table.add_node(&nodes[2], proxies[2]),
        Ok(Added::Inserted),
        "there is place for one again"
    );
}

#[test]
fn at_max_routes_an_expired_route_of_the_same_node_may_be_replaced() {
    for routes in 1..=3 {
        for same_proxy in [true, false] {
            let (table, clock) = table_with(|builder| builder.max_routes(routes));
            let node = node("node-1");
            let proxies = register_many(&table, 4);
            for &proxy in &proxies[..routes] {
                assert_eq!(table.add_node(&node, proxy), Ok(Added::Inserted));
            }
            clock.advance(INTERVAL + TICK);
            let proxy = if same_proxy { proxies[0] } else { proxies[3] };
            assert_eq!(
                table.add_node(&node, proxy),
                Ok(Added::Inserted),
                "{routes} expired, {same_proxy}"
            );
            assert_eq!(answer(&table, &node), [proxy]);
            assert!(table.len() <= routes);
        }
    }
}

#[test]
fn at_most_max_proxies_are_registered() {
    let (table, _) = table_with(|builder| builder.max_proxies(2));
    let [one, _] = ["proxy-1", "proxy-2"].map(|id| register(&table, id));
    let error = table.register_proxy(&proxy("proxy-3")).expect_err("is refused");
    assert_eq!(error, RegisterError::TooManyProxies { limit: 2 });
    let message = "the table has no room for another proxy: it holds up to 2, and removed proxies until they are swept";
    assert_eq!(error.to_string(), message);
    assert_eq!(
        table.register_proxy(&Proxy {
            addr: "192.0.2.9:1",
            ..proxy("proxy-1")
        }),
        Ok(one)
    );
    assert_eq!(table.proxy(one).expect("is there").addr(), "192.0.2.9:1");
    // The place is free at once.
    assert!(table.remove_proxy(one));
    register(&table, "proxy-3");
    assert!(table.register_proxy(&proxy("proxy-1")).is_err());
}

/// Strangers that come and go use up the numbers of removed proxies, but not those that are kept for restarts.
#[test]
fn a_known_proxy_restarts_however_many_strangers_came_and_went() {
    let (table, _) = table_with(|builder| builder.max_proxies(100));
    let begin = |incarnation| {
        let number = NonZeroU64::new(incarnation).expect("not zero");
        table.begin_incarnation(&proxy("known"), number)
    };
    begin(1).expect("there is room");
    let strangers = (0..1_000)
        .map_while(|nth| table.register_proxy(&proxy(&format!("stranger-{nth}"))).ok())
        .inspect(|stranger| assert!(table.remove_proxy(*stranger)));
    assert!((100..1_000).contains(&strangers.count()));
    begin(2).expect("numbers are kept for restarts");
    // The refusal asks the sweeper for the numbers of the strangers.
    let mut pace = SweepPace::default();
    let freed = (0..100_000).any(|_| {
        let is_refused = table.register_proxy(&proxy("newcomer")).is_err();
        let pause = pace.next_pause(&table);
        assert!(!is_refused || pause == Duration::from_millis(2), "{pause:?}");
        pace.sweep(&table);
        // Other tests' threads can delay grace periods.
        std::thread::yield_now();
        !is_refused
    });
    assert!(freed, "the numbers of removed proxies were never free again");
}

/// Whichever limit refuses, a sweep may make room. (`tests/text_limit.rs` has the limit of text.)
#[test]
fn each_refusal_for_want_of_room_asks_for_a_sweep() {
    type Limit = fn(Builder) -> Builder;
    type Attempt = fn(&RouteTable, ProxyRef) -> bool;
    const CLIENT: ClientId = ClientId(NonZeroU64::MIN);
    let more_routes: Attempt = |table, proxy| table.add_node(&node("node"), proxy).is_err();
    let more_proxies: Attempt = |table, _| table.register_proxy(proxy("another").of_client(CLIENT)).is_err();
    let cases: [(Limit, Attempt); 5] = [
        (|builder| builder.max_routes(0), more_routes),
        (|builder| builder.max_routes_per_proxy(0), more_routes),
        (|builder| builder.max_routes_per_client(0), more_routes),
        (|builder| builder.max_proxies(1), more_proxies),
        (|builder| builder.max_proxies_per_client(1), more_proxies),
    ];
    for (number, (limit, refused)) in cases.into_iter().enumerate() {
        let (table, _) = table_with(limit);
        let known = table
            .register_proxy(proxy("known").of_client(CLIENT))
            .expect("there is room");
        let pause = || SweepPace::default().next_pause(&table);
        assert!(pause() > Duration::from_millis(2), "case {number}: nothing was refused");
        assert!(refused(&table, known), "case {number}: there is room");
        assert_eq!(
            pause(),
            Duration::from_millis(2),
            "case {number}: no sweep was asked for"
        );
    }
}

// --- the sweep

/// A move takes milliseconds, and the sweeper's thread may have other tasks.
#[test]
fn a_move_ends_a_turn_of_the_sweeper() {
    let (table, clock) = table();
    let (most, few) = (register(&table, "most"), register(&table, "few"));
    for number in 0..40_000 {
        let proxy = if number % 20 == 0 { few } else { most };
        table
            .add_node(&uuid::Uuid::from_u128(number).into(), proxy)
            .expect("there is room");
    }
    assert!(table.remove_proxy(most));
    let mut pace = SweepPace::default();
    let mut moves = 0;
    for _ in 0..20_000 {
        pace.next_pause(&table);
        clock.advance(TICK);
        while let Some(report) = pace.sweep_step(&table) {
            if report.shard_moved {
                moves += 1;
                assert_eq!(pace.sweep_step(&table), None);
            }
        }
        if moves == 10 {
            return;
        }
    }
    panic!("{moves} moves");
}

#[test]
fn a_sweep_takes_bounded_steps_and_gets_round() {
    let (table, clock) = table();
    let proxy = register(&table, "proxy-1");
    let nodes = 1_000;
    let add = |i: u128| table.add_node(&uuid::Uuid::from_u128(i).into(), proxy);
    (0..nodes).for_each(|i| assert_eq!(add(i), Ok(Added::Inserted)));
    clock.advance(INTERVAL + TICK);
    (0..nodes / 2).for_each(|i| assert_eq!(add(i), Ok(Added::Inserted)));
    let (mut visited, mut expired, mut rounds) = (0, 0, 0);
    for _ in 0..1_000_000 {
        let report = table.sweep(7);
        assert!(report.visited <= 7, "{report:?}");
        (visited, expired) = (visited + report.visited, expired + report.removed);
        rounds += usize::from(report.round_completed);
        if rounds == 2 {
            break;
        }
    }
    assert_eq!((rounds, expired), (2, 500));
    assert!(visited >= 1_000, "{visited} visited");
    assert_eq!(table.len(), 500);
}

#[test]
fn an_empty_table_answers_everything() {
    let table = RouteTable::new();
    assert!(table.is_empty());
    assert_eq!(table.len(), 0);
    assert!(table.keep_alive() > Duration::ZERO);
    assert!(table.get_proxies(&node("node-1")).is_empty());
    sweep_fully(&table);
    assert_eq!((table.stats().routes, table.stats().proxies), (0, 0));
    assert_eq!(
        RouteTable::builder()
            .keep_alive(INTERVAL)
            .build()
            .expect("possible limits")
            .keep_alive(),
        INTERVAL
    );
}

// --- reports

#[test]
fn a_report_registers_the_proxy_and_adds_the_route() {
    let (table, _) = table_with(|builder| builder.max_routes(1).max_proxies(2));
    let node_1 = node("node-1");
    assert_eq!(table.report_node(&node_1, &proxy("proxy-1")), Ok(Added::Inserted));
    assert_eq!(table.report_node(&node_1, &proxy("proxy-1")), Ok(Added::Refreshed));
    let routes = table.get_proxies(&node_1);
    assert_eq!(routes.len(), 1);
    assert_eq!(table.proxy(routes[0].proxy).expect("is registered").id(), "proxy-1");

    let bad = Proxy {
        addr: "nowhere",
        ..proxy("proxy-2")
    };
    let error = table.report_node(&node_1, &bad).expect_err("is refused");
    assert_eq!(error.to_string(), "proxy address is not host:port");
    assert_eq!(table.stats().proxies, 1);
    let error = table
        .report_node(&node("node-2"), &proxy("proxy-1"))
        .expect_err("is refused");
    assert_eq!(error, ReportError::Route(AddError::TooManyRoutes { limit: 1 }));
    assert_eq!(table.len(), 1);
}
