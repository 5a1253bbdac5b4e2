//! Look-ups per second through a replica, a cache and calls, side by side, and the memory of a replica.
//!
//! ```console
//! $ cargo run --release -p nodetracker-client --example look_ups -- [NODES] [SECONDS]
//! ```
//!
//! Starts a tracker in this process. Each way looks up random nodes for some seconds, in one task.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nodetracker::{NodeId, Proxy, RouteTable, Uuid};
use nodetracker_client::cache::{CacheConfig, RouteCache};
use nodetracker_client::client::{ClientConfig, TrackerClient};
use nodetracker_client::connect::addr::TrackerAddr;
use nodetracker_client::replica::{Replica, ReplicaConfig};
use nodetracker_client::tracker::NodeTracker;
use nodetracker_server::{Config, Server};

const PROXIES: usize = 100;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let nodes: u128 = args.next().map_or(Ok(100_000), |text| text.parse())?;
    let period = Duration::from_secs(args.next().map_or(Ok(2), |text| text.parse())?);
    if nodes == 0 || period.is_zero() {
        return Err("NODES and SECONDS are at least 1".into());
    }
    let nodes: Vec<NodeId> = (0..nodes).map(|number| Uuid::from_u128(number << 64).into()).collect();

    let table = Arc::new(RouteTable::new());
    for (number, nodes) in nodes.chunks(nodes.len().div_ceil(PROXIES).max(1)).enumerate() {
        let proxy = Proxy {
            id: &format!("proxy-{number}"),
            cluster_name: "main",
            addr: &format!("10.0.0.{number}:3080"),
        };
        table.report_nodes(nodes, &proxy)?;
    }
    let server = Server::bind(&Config::default().listen_on("127.0.0.1:0"), table).await?;
    let addr: TrackerAddr = server.local_addr().to_string().parse()?;
    tokio::spawn(server.run(std::future::pending()));

    let remote = Arc::new(TrackerClient::start(vec![addr.clone()], ClientConfig::default())?);
    let before = resident_bytes();
    let begun = Instant::now();
    let replica = Replica::start(ReplicaConfig::new([addr]), Arc::clone(&remote) as Arc<dyn NodeTracker>)?;
    replica.ready().await;
    let bytes = resident_bytes().saturating_sub(before);
    println!("{} nodes; the snapshot took {:?}", nodes.len(), begun.elapsed());
    println!(
        "{} bytes a node, the snapshot's garbage included",
        bytes / nodes.len().max(1)
    );

    let cache = RouteCache::new(Arc::clone(&remote) as Arc<dyn NodeTracker>, CacheConfig::default());
    let replica = &replica;
    report("replica", &nodes, period, async |node| {
        replica.look_up(node).map_or(0, |routes| routes.len())
    })
    .await;
    let hot = &nodes[..nodes.len().min(10_000)];
    report("cache, 10,000 nodes", hot, period, async |node| {
        cache.look_up(node).await.map_or(0, |answer| answer.routes.len())
    })
    .await;
    let stats = cache.stats();
    println!("    {} hits, {} calls", stats.hits, stats.calls);
    report("call", &nodes, period, async |node| {
        remote.get_proxies(node).await.map_or(0, |routes| routes.len())
    })
    .await;
    Ok(())
}

/// Looks up random nodes for a while, and prints the rate.
async fn report(way: &str, nodes: &[NodeId], period: Duration, look_up: impl AsyncFn(&NodeId) -> usize) {
    let mut random = fastrand::Rng::with_seed(1);
    let (begun, mut count, mut found) = (Instant::now(), 0_u32, 0);
    while begun.elapsed() < period {
        for _ in 0..64 {
            found += black_box(look_up(&nodes[random.usize(..nodes.len())]).await);
            count += 1;
        }
    }
    let each = begun.elapsed() / count;
    println!(
        "{way}: {:.0} a second, {each:?} each, {found} routes of {count}",
        1.0 / each.as_secs_f64()
    );
}

/// Returns the resident memory of this process.
fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm
        .split_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse::<usize>().ok());
    pages.unwrap_or(0) * 4096
}
