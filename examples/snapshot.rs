//! A snapshot to a file, and back into another table. A temporary file is renamed, so a crash leaves the older
//! snapshot.
//!
//! `cargo run --example snapshot`

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Write};
use std::path::Path;

use nodetracker::{NodeId, Proxy, RouteTable};

fn save(table: &RouteTable, path: &Path) -> std::io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = BufWriter::new(File::create(&temporary)?);
    table.write_snapshot(&mut file)?;
    file.flush()?;
    file.get_ref().sync_all()?;
    fs::rename(temporary, path)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::temp_dir().join(format!("nodetracker-example-{}.snapshot", std::process::id()));

    let table = RouteTable::new();
    let node: NodeId = "node-1".parse()?;
    let proxy = table.register_proxy(&Proxy {
        id: "proxy-1",
        cluster_name: "main",
        addr: "10.0.0.1:3080",
    })?;
    table.add_node(&node, proxy)?;
    save(&table, &path)?;

    let restored = RouteTable::new();
    let report = restored.read_snapshot(BufReader::new(File::open(&path)?))?;
    println!("read {} routes, {} of them new", report.routes, report.inserted);
    for route in restored.resolve(&node) {
        println!("{node}: {} at {}", route.details.id(), route.details.addr());
    }
    fs::remove_file(path)?;
    Ok(())
}
