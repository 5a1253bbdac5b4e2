//! Many nodes of one proxy: announce them once, then refresh their routes by handle, which looks nothing up.
//!
//! `cargo run --release --example heartbeats`

use std::time::Instant;

use nodetracker::{NodeId, Proxy, RouteBatch, RouteTable};
use uuid::Uuid;

const NODES: u128 = 100_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let table = RouteTable::new();
    let proxy = table.register_proxy(&Proxy {
        id: "proxy-1",
        cluster_name: "main",
        addr: "10.0.0.1:3080",
    })?;
    let nodes: Vec<NodeId> = (0..NODES).map(|number| Uuid::from_u128(number).into()).collect();

    let mut handles = Vec::new();
    let began = Instant::now();
    let added = table.add_nodes_with_handles(&nodes, proxy, &mut handles)?;
    println!("announced {} nodes in {:?}", added.len(), began.elapsed());

    // The next heartbeat: one of the nodes was removed meanwhile.
    table.remove_node(&nodes[7]);
    let mut gone = Vec::new();
    let began = Instant::now();
    let refreshed = table.refresh_routes(&handles, proxy, &mut gone)?;
    println!("refreshed {refreshed} routes in {:?}", began.elapsed());

    // A handle may be gone although the node is connected, as when its record has moved: announce such nodes again.
    for position in gone {
        println!("announcing {} again", nodes[position]);
        table.add_node(&nodes[position], proxy)?;
    }

    let mut answers = RouteBatch::new();
    let began = Instant::now();
    table.get_proxies_batch(&nodes, &mut answers);
    let found = answers.iter().filter(|routes| !routes.is_empty()).count();
    println!("looked up {found} nodes in {:?}", began.elapsed());
    Ok(())
}
