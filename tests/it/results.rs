//! The types that calls return.

use std::time::Duration;

use nodetracker::{AddError, Builder, NodeId, Proxy, ProxyDetails, ProxyRef, ResolvedRoute, Route, RouteTable, Routes};
use uuid::Uuid;

use crate::common::{self, proxy};

fn register(table: &RouteTable, count: usize) -> Vec<ProxyRef> {
    let register = |i| {
        table
            .register_proxy(&proxy(&format!("proxy-{i}")))
            .expect("there is room")
    };
    (0..count).map(register).collect()
}

#[test]
fn routes_are_a_slice_and_an_iterator_by_reference_and_by_value() {
    let table = RouteTable::new();
    let node: NodeId = "node-1".parse().expect("a good ID");
    for count in [0, 1, 2, 3, 64] {
        for proxy in register(&table, count) {
            table.add_node(&node, proxy).expect("there is room");
        }
        let routes = table.get_proxies(&node);
        assert_eq!(routes.len(), count);
        let by_reference: Vec<Route> = (&routes).into_iter().copied().collect();
        assert_eq!(by_reference, *routes);
        assert_eq!(format!("{routes:?}"), format!("{by_reference:?}"));
        assert_eq!(routes, by_reference.iter().copied().collect());
        let backwards: Vec<Route> = routes.clone().into_iter().rev().collect();
        assert!(backwards.iter().eq(by_reference.iter().rev()));
        let mut by_value = routes.into_iter();
        assert_eq!(by_value.len(), count);
        assert!(by_value.by_ref().eq(by_reference));
        assert_eq!((by_value.next(), by_value.len()), (None, 0));
    }
    assert!(Routes::<Route>::default().is_empty());
}

/// Two routes and a length: no call gets slower from a larger answer.
#[test]
fn routes_have_room_for_two() {
    assert_eq!(size_of::<Routes>(), size_of::<[Route; 2]>() + size_of::<usize>());
    assert_eq!(
        size_of::<Routes<ResolvedRoute>>(),
        size_of::<[ResolvedRoute; 2]>() + size_of::<usize>()
    );
}

/// Nodes with any number of routes, known and unknown, UUIDs and names, so that a group has more routes than it has
/// room for.
#[test]
fn a_batch_of_look_ups_returns_what_single_look_ups_return() {
    let table = RouteTable::new();
    let proxies = register(&table, 64);
    let name = |i: u128| format!("node-{i}").parse().expect("a good name");
    let nodes: Vec<NodeId> = (0..300)
        .map(|i| if i % 3 == 0 { name(i) } else { Uuid::from_u128(i).into() })
        .collect();
    for (i, node) in nodes.iter().enumerate() {
        let count = if i < 100 { i % 3 } else { i % 65 };
        for proxy in &proxies[..count] {
            table.add_node(node, *proxy).expect("there is room");
        }
    }
    for len in [0, 1, 63, 64, 65, 128, 300] {
        let mut batch = table.get_proxies_batch(&nodes[..len]);
        for (i, node) in nodes[..len].iter().enumerate() {
            assert_eq!((batch.len(), batch.size_hint()), (len - i, (len - i, Some(len - i))));
            assert_eq!(batch.next(), Some(table.get_proxies(node)), "node {i} of {len}");
        }
        assert_eq!((batch.len(), batch.next(), batch.next()), (0, None, None));
    }
}

#[test]
fn a_batch_that_does_not_fit_returns_the_handles_of_the_nodes_that_did() {
    const ROOM: usize = 100;
    let table = Builder::default().max_routes(ROOM).build().expect("possible limits");
    let proxy = register(&table, 1)[0];
    let nodes: Vec<NodeId> = (0..150).map(|i| Uuid::from_u128(i).into()).collect();
    let refused = table.add_nodes_with_handles(&nodes, proxy).expect_err("too many");
    assert_eq!(refused.error, AddError::TooManyRoutes { limit: ROOM });
    assert_eq!(refused.handles.len(), ROOM);
    let error = format!("the table holds its maximum of {ROOM} routes, after {ROOM} nodes");
    assert_eq!(refused.to_string(), error);
    let refreshed = table.refresh_routes(&refused.handles, proxy).expect("it is registered");
    assert_eq!((refreshed.refreshed, refreshed.gone), (ROOM, vec![]));
}

#[test]
fn details_are_the_strings_of_the_proxy() {
    let long = "a name that does not fit into 24 bytes";
    for proxy in [
        proxy("proxy-1"),
        Proxy {
            cluster_name: long,
            ..proxy("proxy-1")
        },
    ] {
        let details = ProxyDetails::from(proxy);
        assert_eq!(
            (details.id(), details.cluster_name(), details.addr()),
            (proxy.id, proxy.cluster_name, proxy.addr)
        );
        assert_eq!(Proxy::from(&details), proxy);
        let (id, cluster_name, addr) = details.into_parts();
        assert_eq!(
            (&*id, &*cluster_name, &*addr),
            (proxy.id, proxy.cluster_name, proxy.addr)
        );
    }
}

/// Nodes with one route and with two, so that records and lists are swept.
#[test]
fn a_sweep_counts_expired_routes_apart_from_those_of_removed_proxies() {
    let keep_alive = Duration::from_secs(10);
    let (table, clock) = common::table_with(keep_alive, |builder| builder.max_routes(12_345));
    let [stays, goes] = register(&table, 2)[..] else {
        unreachable!("two were registered")
    };
    let node = |number| NodeId::from(Uuid::from_u128(number));
    for number in 0..30 {
        table.add_node(&node(number), goes).expect("there is room");
    }
    for number in 20..100 {
        table.add_node(&node(number), stays).expect("there is room");
    }
    let sweep_round = || {
        let (mut removed, mut expired) = (0, 0);
        for _ in 0..2 {
            loop {
                let report = table.sweep(1000);
                removed += report.removed;
                expired += report.expired;
                if report.round_completed {
                    break;
                }
            }
        }
        (removed, expired)
    };
    assert_eq!(sweep_round(), (0, 0));
    assert!(table.remove_proxy(goes));
    assert_eq!(sweep_round(), (30, 0));
    clock.advance(2 * keep_alive);
    assert_eq!(sweep_round(), (80, 80));
    assert!(table.is_empty());
    assert_eq!(table.limits().routes, 12_345);
}
