//! A table with a sweeper: report a node, look it up.
//!
//! `cargo run --example basic`

use std::sync::Arc;

use nodetracker::{NodeId, Proxy, RouteTable, Sweeper};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let table = Arc::new(RouteTable::new());
    let _sweeper = Sweeper::start(Arc::clone(&table))?;

    let node: NodeId = "550e8400-e29b-41d4-a716-446655440000".parse()?;
    let proxy = table.register_proxy(&Proxy {
        id: "proxy-1",
        cluster_name: "main",
        addr: "10.0.0.1:3080",
    })?;
    table.add_node(&node, proxy)?;

    for route in table.resolve(&node) {
        println!("{node}: {} at {}", route.details.id(), route.details.addr());
    }
    Ok(())
}
