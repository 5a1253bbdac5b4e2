//! The scenarios of RFD 47's prototype, over real connections.

use std::time::Duration;

use nodetracker::{Clock, Proxy, RouteTable};
use nodetracker_proto::api;

use crate::support::{Running, add, details, manual, pass, proxies};

const INTERVAL: Duration = Duration::from_secs(300);

/// Sweeps everything, wherever the last round stopped.
fn sweep(table: &RouteTable) {
    for _ in 0..2 {
        while !table.sweep(4096).round_completed {}
    }
}

#[tokio::test]
async fn nodes_are_added_looked_up_and_removed() {
    let (clock, table) = manual(INTERVAL);
    let server = Running::with_table(table).await;
    let mut client = server.client().await;

    client
        .add_node(add("node-1", "proxy-1", "10.0.0.1:3080"))
        .await
        .unwrap();
    let [found] = details(&mut client, "node-1").await.try_into().unwrap();
    let updated_at = Some(clock.wall().into());
    let expected = api::ProxyDetails {
        id: "proxy-1".into(),
        cluster_name: "cluster".into(),
        addr: "10.0.0.1:3080".into(),
        updated_at,
    };
    assert_eq!(found, expected);

    // Newest first, each with its own time.
    clock.advance(Duration::from_secs(1));
    client
        .add_node(add("node-1", "proxy-2", "10.0.0.2:3080"))
        .await
        .unwrap();
    let found = details(&mut client, "node-1").await;
    assert_eq!(
        found.iter().map(|proxy| proxy.id.as_str()).collect::<Vec<_>>(),
        ["proxy-2", "proxy-1"]
    );
    assert_eq!(found[0].updated_at, Some(clock.wall().into()));
    assert_eq!(found[1].updated_at, updated_at);

    // A refresh changes the order.
    clock.advance(Duration::from_secs(1));
    client
        .add_node(add("node-1", "proxy-1", "10.0.0.1:3080"))
        .await
        .unwrap();
    assert_eq!(proxies(&mut client, "node-1").await, ["proxy-1", "proxy-2"]);
    // One within the same tick of the clock too.
    client
        .add_node(add("node-1", "proxy-2", "10.0.0.2:3080"))
        .await
        .unwrap();
    assert_eq!(proxies(&mut client, "node-1").await, ["proxy-2", "proxy-1"]);

    client
        .remove_node(api::RemoveNodeRequest {
            node_id: "node-1".into(),
        })
        .await
        .unwrap();
    assert_eq!(details(&mut client, "node-1").await, []);
    assert!(server.table.is_empty());
}

#[tokio::test]
async fn stale_routes_are_cleaned() {
    let (clock, table) = manual(INTERVAL);
    let server = Running::with_table(table).await;
    let mut client = server.client().await;
    for (node, proxy) in [
        ("node-1", "proxy-1"),
        ("node-1", "proxy-2"),
        ("node-2", "proxy-2"),
        ("node-2", "proxy-3"),
    ] {
        client.add_node(add(node, proxy, "proxy:1")).await.unwrap();
    }

    pass(&server.table, &clock, INTERVAL);
    sweep(&server.table);
    assert_eq!(proxies(&mut client, "node-1").await, ["proxy-2", "proxy-1"]);
    assert_eq!(proxies(&mut client, "node-2").await, ["proxy-3", "proxy-2"]);

    client.add_node(add("node-2", "proxy-3", "proxy:1")).await.unwrap();
    pass(&server.table, &clock, INTERVAL);
    // Gone for look-ups before any sweep.
    assert_eq!(proxies(&mut client, "node-1").await, [""; 0]);
    assert_eq!(proxies(&mut client, "node-2").await, ["proxy-3"]);
    sweep(&server.table);
    assert_eq!(proxies(&mut client, "node-1").await, [""; 0]);
    assert_eq!(proxies(&mut client, "node-2").await, ["proxy-3"]);
    assert_eq!(server.table.len(), 1);
}

/// Tokio's clock is paused, and jumps to the next timer when no task is ready.
#[tokio::test(start_paused = true)]
async fn the_server_sweeps_by_itself() {
    let (clock, table) = manual(INTERVAL);
    let proxy = Proxy {
        id: "proxy-1",
        cluster_name: "",
        addr: "proxy:1",
    };
    let proxy = table.register_proxy(&proxy).unwrap();
    table.add_node(&"node-1".parse().unwrap(), proxy).unwrap();
    let server = Running::with_table(table).await;
    clock.advance(2 * INTERVAL);
    tokio::time::sleep(INTERVAL).await;
    for _ in 0..2 {
        assert_eq!(server.table.sweep(4096).removed, 0, "left for us to sweep");
    }
}

#[tokio::test]
async fn unknown_nodes_are_no_error() {
    let server = Running::start().await;
    let mut client = server.client().await;
    assert_eq!(details(&mut client, "nobody").await, []);
    client
        .remove_node(api::RemoveNodeRequest {
            node_id: "nobody".into(),
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn a_uuid_is_one_node_in_every_spelling() {
    let server = Running::start().await;
    let mut client = server.client().await;
    client
        .add_node(add("550E8400-E29B-41D4-A716-446655440000", "proxy-1", "proxy:1"))
        .await
        .unwrap();
    assert_eq!(
        proxies(&mut client, "550e8400e29b41d4a716446655440000").await,
        ["proxy-1"]
    );
}

#[tokio::test]
async fn a_proxy_that_moved_is_found_at_its_new_address() {
    let server = Running::start().await;
    let mut client = server.client().await;
    client.add_node(add("node-1", "proxy-1", "old:1")).await.unwrap();
    client.add_node(add("node-2", "proxy-1", "new:1")).await.unwrap();
    assert_eq!(details(&mut client, "node-1").await[0].addr, "new:1");
}

#[tokio::test]
async fn many_connections_see_one_table() {
    let server = Running::start().await;
    let mut clients = Vec::new();
    for number in 0..20 {
        let mut client = server.client().await;
        client
            .add_node(add("node-1", &format!("proxy-{number}"), "proxy:1"))
            .await
            .unwrap();
        clients.push(client);
    }
    for client in &mut clients {
        assert_eq!(proxies(client, "node-1").await.len(), 20);
    }
}
