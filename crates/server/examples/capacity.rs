//! Measures what a tracker needs: memory by the number of routes, and CPU by the heartbeats a second.
//!
//! ```console
//! $ cargo build --release -p nodetracker-server --bins --examples
//! $ target/release/examples/capacity [--server FILE] [--routes NUMBER,...] [--seconds NUMBER]
//! ```
//!
//! `cargo xtask capacity` runs the program and writes its tables into `docs/deployment.md`. The first table: the
//! program fills a server for each number of routes, and reads the server's resident memory. The second table: a server
//! has a million routes of ten proxies. The clients refresh the routes at a constant rate, each in one way, and the
//! program reads the server's CPU time. A rate that the server or the clients do not reach is `-`. The program reads
//! `/proc`, so it needs Linux. The program ends by itself.

#[allow(dead_code, reason = "the other examples use the rest")]
mod client;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use nodetracker_proto::{api, v1};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tonic::transport::Endpoint;

use client::cpu::cpu;
use client::memory::memory;
use client::wire::{ADD, ADD_NODES, Client, call, connect};
use client::{Failure, Server, Session, all, node, node_ids, proxy};

/// The proxies that report the routes. Each has a connection of its own.
const PROXIES: u32 = 10;

/// Nodes in one call.
const BATCH: u32 = 1_000;

/// How long the server has to settle before its memory is read. Its allocator gives memory back after a second or so.
const SETTLING: Duration = Duration::from_secs(3);

/// How often a client looks for calls that are due.
const TICK: Duration = Duration::from_millis(5);

/// Calls that wait on one connection. With more, the server does not reach the rate.
const MOST_WAITING: usize = 5_000;

/// The share of a rate that counts as the rate.
const REACHED: f64 = 0.95;

#[derive(Debug, Parser)]
#[command(about = "Measures a tracker's memory by its routes, and its CPU by the heartbeats a second")]
struct Options {
    /// The server's command
    #[arg(long, default_value = "target/release/nodetracker")]
    server: PathBuf,
    /// Numbers of routes for the memory
    #[arg(long, value_delimiter = ',', default_values_t = [10_000, 100_000, 1_000_000, 10_000_000])]
    routes: Vec<u32>,
    /// Heartbeats a second
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 10_000, 100_000, 1_000_000, 10_000_000])]
    rates: Vec<u32>,
    /// Routes for the CPU
    #[arg(long, default_value_t = 1_000_000)]
    fleet: u32,
    /// How long to measure each rate
    #[arg(long, default_value_t = 10)]
    seconds: u64,
}

/// A way to refresh routes.
#[derive(Debug, Clone, Copy)]
enum Way {
    Session,
    /// Calls with this many nodes each.
    Calls(u32),
}

/// Starts a server whose table can hold `routes` routes. One address may report all of them.
fn start(command: &Path, routes: u32) -> Result<Server, Failure> {
    let max_routes = routes.max(1_000).to_string();
    Server::start(command, &["--max-routes", &max_routes, "--max-share-per-client", "100"])
}

/// Adds routes to these nodes through a proxy.
async fn add(client: &mut Client, number: u32, nodes: std::ops::Range<u32>) -> Result<(), Failure> {
    for from in nodes.clone().step_by(BATCH as usize) {
        let request = v1::AddNodesRequest {
            nodes: Some(node_ids((from..nodes.end.min(from + BATCH)).map(node))),
            proxy: Some(proxy(number)),
        };
        call(client, ADD_NODES, &request).await?;
    }
    Ok(())
}

/// The nodes of a proxy.
fn nodes_of(number: u32, routes: u32) -> std::ops::Range<u32> {
    let share = routes / PROXIES;
    number * share..(number + 1) * share
}

async fn fill(server: &Server, routes: u32) -> Result<(), Failure> {
    let mut client = connect(&server.addr).await?;
    for number in 0..PROXIES {
        add(&mut client, number, nodes_of(number, routes)).await?;
    }
    Ok(())
}

async fn print_memory(options: &Options) -> Result<(), Failure> {
    println!("| routes | resident memory, MB | bytes for each route |");
    println!("| ---: | ---: | ---: |");
    for &routes in &options.routes {
        let server = start(&options.server, routes)?;
        sleep(SETTLING).await;
        let before = memory(server.pid())?.rss;
        fill(&server, routes).await?;
        sleep(SETTLING).await;
        let after = memory(server.pid())?.rss;
        let (megabytes, grown) = (after as f64 * 1.024e-3, after.saturating_sub(before) * 1024);
        println!(
            "| {} | {megabytes:.0} | {:.0} |",
            thousands(routes),
            grown as f64 / f64::from(routes)
        );
        server.stop()?;
    }
    Ok(())
}

/// Makes calls at a constant rate, each as soon as it is due. Returns when all have their replies: `false` if too many
/// waited.
async fn call_at(
    client: Client,
    rate: f64,
    time: Duration,
    make: impl Fn(Client, u32) -> Calling,
) -> Result<bool, Failure> {
    let (begin, mut made, mut calls) = (Instant::now(), 0, JoinSet::new());
    let mut tick = begin;
    while tick - begin < time {
        tick += TICK;
        sleep_until(tick).await;
        while f64::from(made) < rate * (tick - begin).as_secs_f64() {
            calls.spawn(make(client.clone(), made));
            made += 1;
            if calls.len() > MOST_WAITING {
                return Ok(false);
            }
        }
        while let Some(done) = calls.try_join_next() {
            done??;
        }
    }
    all(calls).await?;
    Ok(true)
}

/// A call in flight.
type Calling = std::pin::Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>;

/// Refreshes the routes of one proxy at a rate, with calls. Returns whether the rate was reached.
async fn refresh(
    client: Client,
    batch: u32,
    number: u32,
    fleet: u32,
    rate: f64,
    time: Duration,
) -> Result<bool, Failure> {
    let nodes = nodes_of(number, fleet);
    let count = nodes.end - nodes.start;
    call_at(client, rate / f64::from(batch), time, move |mut client, made| {
        let from = nodes.start + (u64::from(made) * u64::from(batch) % u64::from(count)) as u32;
        let nodes = from..(from + batch).min(nodes.end);
        match batch {
            1 => Box::pin(async move { add_one(&mut client, number, from).await }),
            _ => Box::pin(async move { add(&mut client, number, nodes).await }),
        }
    })
    .await
}

/// Adds a route with the call of the frozen contract.
async fn add_one(client: &mut Client, number: u32, from: u32) -> Result<(), Failure> {
    let v1::Proxy {
        proxy_id,
        cluster_name,
        addr,
    } = proxy(number);
    let request = api::AddNodeRequest {
        node_id: node(from).to_string(),
        proxy_id,
        cluster_name,
        addr,
    };
    call(client, ADD, &request).await.map(drop)
}

/// Refreshes all routes at a rate. Returns whether the rate was reached.
async fn refresh_all(
    server: &Server,
    way: Way,
    sessions: &mut Vec<Session>,
    options: &Options,
    rate: u32,
) -> Result<bool, Failure> {
    let time = Duration::from_secs(options.seconds);
    let of_each = f64::from(rate) / f64::from(PROXIES);
    let begin = Instant::now();
    match way {
        Way::Session => {
            let mut beating = JoinSet::new();
            for mut session in sessions.drain(..) {
                beating.spawn(async move {
                    session.beat_at(of_each, time).await?;
                    Ok::<_, Failure>(session)
                });
            }
            while let Some(session) = beating.join_next().await {
                sessions.push(session??);
            }
        }
        Way::Calls(batch) => {
            let mut refreshing = JoinSet::new();
            for number in 0..PROXIES {
                let client = connect(&server.addr).await?;
                refreshing.spawn(refresh(client, batch, number, options.fleet, of_each, time));
            }
            while let Some(reached) = refreshing.join_next().await {
                if !reached?? {
                    return Ok(false);
                }
            }
        }
    }
    Ok(time.as_secs_f64() / begin.elapsed().as_secs_f64() >= REACHED)
}

async fn print_cpu(options: &Options) -> Result<(), Failure> {
    let server = start(&options.server, options.fleet)?;
    let mut sessions = Vec::new();
    for number in 0..PROXIES {
        let channel = Endpoint::from_shared(format!("http://{}", server.addr))?
            .connect()
            .await?;
        let mut session = Session::begin(channel, number).await?;
        let nodes: Vec<_> = nodes_of(number, options.fleet).map(node).collect();
        session.announce(&nodes).await?;
        sessions.push(session);
    }
    println!("| heartbeats/s | in sessions | `AddNodes`, {BATCH} at a time | `AddNode` |");
    println!("| ---: | ---: | ---: | ---: |");
    // A way that does not reach a rate is left out afterwards.
    let mut ways = [Way::Session, Way::Calls(BATCH), Way::Calls(1)].map(Some);
    for &rate in &options.rates {
        let mut row = format!("| {}", thousands(rate));
        for slot in &mut ways {
            let (begin, before) = (Instant::now(), cpu(server.pid())?);
            let reached = match *slot {
                Some(way) => refresh_all(&server, way, &mut sessions, options, rate).await?,
                None => false,
            };
            let share = (cpu(server.pid())? - before).as_secs_f64() / begin.elapsed().as_secs_f64();
            if !reached {
                *slot = None;
            }
            row += &match reached {
                true => format!(" | {:.1} %", 100.0 * share),
                false => " | -".to_owned(),
            };
        }
        println!("{row} |");
    }
    drop(sessions);
    server.stop()
}

/// Writes a number with a comma before each three digits.
fn thousands(number: u32) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev();
    let groups: Vec<_> = groups.map(String::from_utf8_lossy).collect();
    groups.join(",")
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let options = Options::parse();
    print_memory(&options).await?;
    println!();
    println!(
        "The share of one core, measured for {} s each; {} routes:",
        options.seconds,
        thousands(options.fleet)
    );
    println!();
    print_cpu(&options).await
}
