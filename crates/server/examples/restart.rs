//! Measures a warm restart: what comes back after `kill -9`, how soon, in how much memory, and what a neighbour notices
//! while snapshots are written.
//!
//! ```console
//! $ cargo build --release -p nodetracker-server --bins --examples
//! $ target/release/examples/restart [--server FILE] [--nodes N] [--rounds N] [--seconds N]
//! ```
//!
//! 1. A client adds nodes in batches, up to 200,000 nodes a second. In the middle of that, the program kills the
//!    server, and starts it again on the same folder. Then it looks up each node that the server had acknowledged
//!    before the server began its last snapshot. The program fails if one of them is missing.
//! 2. The program fills a server, waits for a snapshot of all nodes, and kills the server. It reports the time until
//!    the next server is ready, and that server's memory.
//! 3. A neighbour makes a call each millisecond, in turns to a server without snapshots and to a server that writes a
//!    snapshot each second.
//!
//! The program reads `/proc`, so it needs Linux. The program ends by itself.

#[allow(dead_code, reason = "the other examples use the rest")]
mod client;

use std::path::{Path, PathBuf};
use std::process;
use std::time::{Duration, Instant, SystemTime};

use clap::Parser;
use nodetracker_proto::v1;
use tokio::time::sleep;

use client::memory::{memory, peak};
use client::neighbour::{Latencies, Neighbour};
use client::wire::{ADD_NODES, BATCH, Client, STATS, ask, call, connect};
use client::{Failure, Server, node, node_ids, proxy, run};

/// Nodes of a batch.
const BATCH_SIZE: u32 = 1_000;

/// The pause between two batches of the load.
const PAUSE: Duration = Duration::from_millis(5);

/// Calls of the neighbour in a second.
const RATE: u32 = 1_000;

/// Snapshots before a server is killed.
const SNAPSHOTS: u64 = 3;

#[derive(Debug, Parser)]
#[command(about = "Measures a warm restart")]
struct Options {
    /// The server's command
    #[arg(long, default_value = "target/release/nodetracker")]
    server: PathBuf,
    /// Nodes, each with one route
    #[arg(long, default_value_t = 1_000_000)]
    nodes: u32,
    /// How often each measurement is repeated
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Seconds of each round with a neighbour
    #[arg(long, default_value_t = 20)]
    seconds: u64,
}

/// A folder for snapshots, removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self, Failure> {
        let path = std::env::temp_dir().join(format!("nodetracker-restart-{}", process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    /// The arguments of a server that uses the folder.
    fn args(&self) -> Result<[&str; 6], Failure> {
        let path = self.0.to_str().ok_or("the temporary folder is not UTF-8")?;
        let all = [
            "--data-dir",
            path,
            "--snapshot-interval",
            "1s",
            "--max-share-per-client",
            "100",
        ];
        Ok(all)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn main() -> Result<(), Failure> {
    let options = Options::parse();
    for _ in 0..options.rounds {
        during_load(&options.server)?;
    }
    for _ in 0..options.rounds {
        ready(&options)?;
    }
    neighbours(&options)
}

async fn stats(client: &mut Client) -> Result<v1::StatsResponse, Failure> {
    ask(client, STATS, &v1::StatsRequest {}).await
}

async fn snapshots(client: &mut Client) -> Result<v1::SnapshotStats, Failure> {
    Ok(stats(client).await?.snapshots.unwrap_or_default())
}

fn batch(first: u32) -> v1::AddNodesRequest {
    v1::AddNodesRequest {
        nodes: Some(node_ids((first..first + BATCH_SIZE).map(node))),
        proxy: Some(proxy(first / BATCH_SIZE % 1_000)),
    }
}

/// Returns how many of the first nodes have no route.
async fn missing(addr: &str, nodes: u32) -> Result<u32, Failure> {
    let mut client = connect(addr).await?;
    let mut missing = 0;
    for first in (0..nodes).step_by(BATCH_SIZE as usize) {
        let request = v1::BatchGetProxiesRequest {
            nodes: Some(node_ids((first..first + BATCH_SIZE).map(node))),
        };
        let found: v1::BatchGetProxiesResponse = ask(&mut client, BATCH, &request).await?;
        missing += found.nodes.iter().filter(|node| node.routes.is_empty()).count() as u32;
    }
    Ok(missing)
}

/// Kills a server in the middle of load, and checks the routes of the next server.
fn during_load(command: &Path) -> Result<(), Failure> {
    let folder = Folder::new()?;
    let server = Server::start(command, &folder.args()?)?;
    let (acknowledged, before) = run(async {
        let (mut client, mut watcher) = (connect(&server.addr).await?, connect(&server.addr).await?);
        // When each batch was acknowledged.
        let mut batches: Vec<SystemTime> = Vec::new();
        loop {
            call(&mut client, ADD_NODES, &batch(batches.len() as u32 * BATCH_SIZE)).await?;
            batches.push(SystemTime::now());
            sleep(PAUSE).await;
            if !batches.len().is_multiple_of(20) {
                continue;
            }
            let written = snapshots(&mut watcher).await?;
            if written.success_count >= SNAPSHOTS {
                let end = SystemTime::try_from(written.last_time.ok_or("no time of the snapshot")?)?;
                let begun = end - Duration::try_from(written.last_duration.unwrap_or_default())?;
                // The server rounds the end down to a millisecond.
                let before = batches.partition_point(|acknowledged| *acknowledged < begun);
                return Ok((batches.len() as u32, before as u32));
            }
        }
    })?;
    // SIGKILL, while a snapshot may be in progress.
    drop(server);
    let begun = Instant::now();
    let server = Server::start(command, &folder.args()?)?;
    let took = begun.elapsed();
    let (restored, lost) = run(async {
        let mut client = connect(&server.addr).await?;
        let restored = snapshots(&mut client).await?.restored_route_count;
        Ok((restored, missing(&server.addr, before * BATCH_SIZE).await?))
    })?;
    println!(
        "kill -9 during load: {} routes acknowledged, {} of them before the last known snapshot began; {restored} came \
         back in {took:.0?}, {lost} of the {} are missing",
        acknowledged * BATCH_SIZE,
        before * BATCH_SIZE,
        before * BATCH_SIZE,
    );
    match (before, lost) {
        (0, _) => Err("no batch was acknowledged before the snapshot".into()),
        (_, 0) => Ok(()),
        _ => Err("routes are missing".into()),
    }
}

async fn fill(addr: &str, nodes: u32) -> Result<(), Failure> {
    let mut client = connect(addr).await?;
    for first in (0..nodes).step_by(BATCH_SIZE as usize) {
        call(&mut client, ADD_NODES, &batch(first)).await?;
    }
    Ok(())
}

/// Waits for a snapshot that began after this call.
async fn next_snapshot(addr: &str) -> Result<v1::SnapshotStats, Failure> {
    let mut client = connect(addr).await?;
    let before = snapshots(&mut client).await?.success_count;
    loop {
        let now = snapshots(&mut client).await?;
        if now.success_count >= before + 2 {
            return Ok(now);
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Restarts a server with all nodes, and reports the time and the memory.
fn ready(options: &Options) -> Result<(), Failure> {
    let folder = Folder::new()?;
    let empty = Server::start(&options.server, &[])?;
    let of_empty = memory(empty.pid())?.rss;
    drop(empty);
    let server = Server::start(&options.server, &folder.args()?)?;
    let written = run(async {
        fill(&server.addr, options.nodes).await?;
        next_snapshot(&server.addr).await
    })?;
    drop(server);
    let begun = Instant::now();
    let server = Server::start(&options.server, &folder.args()?)?;
    let took = begun.elapsed();
    let at_most = peak(server.pid())?;
    let (routes, rss) = run(async {
        let mut client = connect(&server.addr).await?;
        // The allocator gives memory back after a second or so.
        sleep(Duration::from_secs(3)).await;
        Ok((stats(&mut client).await?.route_count, memory(server.pid())?.rss))
    })?;
    println!(
        "{routes} routes from {:.1} MB are ready {took:.0?} after the start; peak of the resident memory {at_most} kB, \
         later {rss} kB, of an empty server {of_empty} kB: the peak is {:.2} x the loaded table",
        written.last_bytes as f64 / 1e6,
        (at_most - of_empty) as f64 / (rss - of_empty) as f64,
    );
    Ok(())
}

/// Compares the latency of a neighbour with and without snapshots, in turns.
fn neighbours(options: &Options) -> Result<(), Failure> {
    println!("| snapshots | calls | p50 ms | p99 ms | p99.9 ms | failed | a snapshot takes, ms |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for _ in 0..options.rounds {
        for with in [false, true] {
            let folder = Folder::new()?;
            let args = folder.args()?;
            let server = Server::start(&options.server, if with { &args } else { &args[4..] })?;
            run(fill(&server.addr, options.nodes))?;
            let neighbour = Neighbour::start(&server.addr, RATE)?;
            std::thread::sleep(Duration::from_secs(options.seconds));
            let samples = neighbour.stop();
            let written = run(async { snapshots(&mut connect(&server.addr).await?).await })?;
            // The first second has the connection.
            let warm = samples.first().map(|first| first.intended + Duration::from_secs(1));
            let calls = Latencies::of(&samples, |at| warm.is_some_and(|warm| at >= warm));
            println!(
                "| {} | {} | {:.2} | {:.2} | {:.2} | {} | {:.0} |",
                if with {
                    written.success_count.to_string()
                } else {
                    "none".into()
                },
                calls.count(),
                calls.millis(0.5),
                calls.millis(0.99),
                calls.millis(0.999),
                calls.failed,
                Duration::try_from(written.last_duration.unwrap_or_default())?.as_secs_f64() * 1e3,
            );
        }
    }
    Ok(())
}
