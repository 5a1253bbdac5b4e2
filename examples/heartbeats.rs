//! Many nodes of one proxy: announce them once, then refresh their routes by handle, which looks nothing up.
//!
//! `cargo run --release --example heartbeats`

use std::time::Instant;

use nodetracker::{NodeId, Proxy, RouteTable};
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

    let began = Instant::now();
    let announced = table.add_nodes_with_handles(&nodes, proxy)?;
    println!("announced {} nodes in {:?}", announced.added.len(), began.elapsed());

    // The next heartbeat: one of the nodes was removed meanwhile.
    table.remove_node(&nodes[7]);
    let began = Instant::now();
    let heartbeat = table.refresh_routes(&announced.handles, proxy)?;
    println!("refreshed {} routes in {:?}", heartbeat.refreshed, began.elapsed());

    // A handle may be gone although the node is connected, as when its record has moved: announce such nodes again.
    for position in heartbeat.gone {
        println!("announcing {} again", nodes[position]);
        table.add_node(&nodes[position], proxy)?;
    }

    let began = Instant::now();
    let answers = table.get_proxies_batch(&nodes);
    let found = answers.filter(|routes| !routes.is_empty()).count();
    println!("looked up {found} nodes in {:?}", began.elapsed());
    Ok(())
}
