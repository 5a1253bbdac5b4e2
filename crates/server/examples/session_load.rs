//! How much of the server's CPU a route costs: by unary `AddNode` calls, by `AddNodes` in batches, and by heartbeats in
//! sessions.
//!
//! ```console
//! $ cargo build --release -p nodetracker-server --bins --examples
//! $ target/release/examples/session_load target/release/nodetracker
//! ```
//!
//! It starts the server, announces the nodes in sessions, one for each proxy, then refreshes them each way, and reads the
//! server's CPU time, its system calls included, from `/proc` (so it needs Linux). It ends by itself, after a minute or so.
//! Only the ratios of one run mean something.

mod client;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use nodetracker_proto::api::AddNodeRequest;
use nodetracker_proto::api::node_tracker_service_client::NodeTrackerServiceClient;
use nodetracker_proto::v1;
use nodetracker_proto::v1::route_service_client::RouteServiceClient;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};
use uuid::Uuid;

use client::{Failure, PIPELINE, Server, Session, all, node, proxy};

#[derive(Debug, Clone, Parser)]
#[command(about = "Measures the server's CPU time for each refreshed route")]
struct Options {
    /// The server's command
    server: PathBuf,
    /// Nodes, each with one route
    #[arg(long, default_value_t = 1_000_000)]
    nodes: u32,
    /// Proxies, each with one session and one connection
    #[arg(long, default_value_t = 10)]
    proxies: u32,
    /// AddNode calls to measure
    #[arg(long, default_value_t = 500_000)]
    calls: u32,
    /// AddNode calls that a connection has in flight
    #[arg(long, default_value_t = 10)]
    in_flight: u32,
    /// Nodes in one AddNodes call
    #[arg(long, default_value_t = 1000)]
    batch: u32,
    /// How many times each route is refreshed by AddNodes
    #[arg(long, default_value_t = 10)]
    batch_rounds: u32,
    /// How many times each route is refreshed by heartbeats
    #[arg(long, default_value_t = 100)]
    rounds: u32,
}

async fn connect(server: &Server) -> Result<Channel, Failure> {
    Ok(Endpoint::from_shared(format!("http://{}", server.addr))?
        .connect()
        .await?)
}

/// The CPU time that the process and the kernel on its behalf have used, to a hundredth of a second.
fn cpu(server: &Server) -> Result<Duration, Failure> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.pid()))?;
    // The command's name may have blanks; utime and stime are the 14th and 15th field, and the name is the second.
    let (_, after_name) = stat.rsplit_once(')').ok_or("an unknown format of stat")?;
    let ticks: u64 = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(str::parse::<u64>)
        .sum::<Result<_, _>>()?;
    Ok(Duration::from_millis(10 * ticks))
}

/// What one way of refreshing routes cost.
struct Cost {
    routes: u64,
    cpu: Duration,
    elapsed: Duration,
}

impl Cost {
    async fn of(
        server: &Server,
        routes: u64,
        work: impl Future<Output = Result<(), Failure>>,
    ) -> Result<Self, Failure> {
        let (started, before) = (Instant::now(), cpu(server)?);
        work.await?;
        Ok(Self {
            routes,
            cpu: cpu(server)? - before,
            elapsed: started.elapsed(),
        })
    }

    fn nanos_per_route(&self) -> f64 {
        self.cpu.as_nanos() as f64 / self.routes as f64
    }
}

/// Refreshes `count` of a proxy's nodes, one call after the other.
async fn calls(channel: Channel, by: u32, nodes: Vec<Uuid>, count: u32) -> Result<(), Failure> {
    let mut client = NodeTrackerServiceClient::new(channel);
    let by = proxy(by);
    for node in nodes.iter().cycle().take(count as usize) {
        let request = AddNodeRequest {
            node_id: node.to_string(),
            proxy_id: by.proxy_id.clone(),
            cluster_name: by.cluster_name.clone(),
            addr: by.addr.clone(),
        };
        client.add_node(request).await?;
    }
    Ok(())
}

async fn unary(server: &Server, options: &Options) -> Result<(), Failure> {
    let mut tasks = JoinSet::new();
    for by in 0..options.proxies {
        let channel = connect(server).await?;
        for lane in 0..options.in_flight {
            let nodes = (by..options.nodes).step_by(options.proxies as usize);
            let nodes = nodes.skip(lane as usize).step_by(options.in_flight as usize);
            let count = options.calls / options.proxies / options.in_flight;
            tasks.spawn(calls(channel.clone(), by, nodes.map(node).collect(), count));
        }
    }
    all(tasks).await
}

/// Refreshes nodes of a proxy `rounds` times, one batch after the other.
async fn batch_calls(channel: Channel, requests: Vec<v1::AddNodesRequest>, rounds: u32) -> Result<(), Failure> {
    let mut client = RouteServiceClient::new(channel);
    for _ in 0..rounds {
        for request in &requests {
            let nodes = request.nodes.as_ref().map_or(0, |nodes| nodes.uuids.len() / 16);
            let added = client.add_nodes(request.clone()).await?.into_inner();
            if added.refreshed_count as usize != nodes {
                return Err(format!("{nodes} nodes, all known before, but {added:?}").into());
            }
        }
    }
    Ok(())
}

async fn batches(server: &Server, options: &Options) -> Result<(), Failure> {
    let mut tasks = JoinSet::new();
    for by in 0..options.proxies {
        let channel = connect(server).await?;
        let nodes: Vec<_> = (by..options.nodes)
            .step_by(options.proxies as usize)
            .map(node)
            .collect();
        let requests: Vec<_> = nodes
            .chunks(options.batch as usize)
            .map(|nodes| v1::AddNodesRequest {
                proxy: Some(proxy(by)),
                nodes: Some(v1::NodeIds {
                    uuids: nodes.iter().flat_map(|node| node.into_bytes()).collect(),
                    names: Vec::new(),
                }),
            })
            .collect();
        for lane in 0..PIPELINE {
            let requests = requests.iter().skip(lane).step_by(PIPELINE).cloned().collect();
            tasks.spawn(batch_calls(channel.clone(), requests, options.batch_rounds));
        }
    }
    all(tasks).await
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let options = Options::parse();
    let server = Server::start(&options.server, &[])?;

    let mut sessions = Vec::new();
    let announced = Cost::of(&server, options.nodes.into(), async {
        for by in 0..options.proxies {
            let nodes: Vec<_> = (by..options.nodes)
                .step_by(options.proxies as usize)
                .map(node)
                .collect();
            let mut session = Session::begin(connect(&server).await?, by).await?;
            session.announce(&nodes).await?;
            sessions.push(session);
        }
        Ok(())
    })
    .await?;
    let unary = Cost::of(&server, options.calls.into(), unary(&server, &options)).await?;
    let refreshes = u64::from(options.nodes) * u64::from(options.batch_rounds);
    let batches = Cost::of(&server, refreshes, batches(&server, &options)).await?;
    let beats = u64::from(options.nodes) * u64::from(options.rounds);
    let heartbeats = Cost::of(&server, beats, async {
        let mut tasks = JoinSet::new();
        for session in sessions {
            tasks.spawn(session.beat(options.rounds));
        }
        all(tasks).await
    })
    .await?;
    server.stop()?;

    println!(
        "{:34}{:>12}{:>10}{:>14}{:>10}",
        "", "routes", "seconds", "CPU ns/route", "ratio"
    );
    for (name, cost) in [
        ("AddNode, unary", &unary),
        ("AddNodes, in batches", &batches),
        ("session: nodes up, all of them new", &announced),
        ("session: heartbeats", &heartbeats),
    ] {
        let ratio = unary.nanos_per_route() / cost.nanos_per_route();
        let (routes, seconds, nanos) = (cost.routes, cost.elapsed.as_secs_f64(), cost.nanos_per_route());
        println!("{name:34}{routes:>12}{seconds:>10.2}{nanos:>14.1}{ratio:>10.1}");
    }
    Ok(())
}
