//! How much of the server's CPU a route costs: reported by unary `AddNode` calls, by `AddNodes` in batches and by
//! heartbeats in sessions; looked up by unary `GetProxies` calls and in batches.
//!
//! ```console
//! $ cargo build --release -p nodetracker-server --bins --examples
//! $ target/release/examples/load target/release/nodetracker
//! ```
//!
//! The program starts the server, and announces the nodes in sessions, one for each proxy. Then it refreshes the nodes
//! and looks them up, in each way. It reads CPU times, which include system calls, from `/proc`, so it needs Linux. The
//! program ends by itself in less than a minute. Only the ratios of one run mean something.
//!
//! The last column is the share of a core that the client used. The client has one thread. If its share is near 100 %,
//! the client limits the rate, and the server could do more.
//!
//! The client encodes the calls beforehand. Of a reply to a look-up, it reads only what it needs to count the nodes that
//! have a route, so that it does not slow the server down. tonic reads the `grpc-status` of each call.

#[allow(dead_code, reason = "the other examples use the rest")]
mod client;
#[path = "client/raw.rs"]
mod raw;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use clap::Parser;
use http::uri::PathAndQuery;
use nodetracker_proto::{api, v1};
use prost::Message;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};
use uuid::Uuid;

use client::cpu::cpu;
use client::{Failure, PIPELINE, Server, Session, all, node, node_ids, proxy};
use raw::Raw;

/// The server's allocator: with another allocator, the client's calls would cost more than the server's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Nodes in one batch.
const BATCHES: [u32; 2] = [100, 1000];

#[derive(Debug, Clone, Parser)]
#[command(about = "Measures the server's CPU time for each route that is reported or looked up")]
struct Options {
    /// The server's command
    server: PathBuf,
    /// Nodes, each with one route
    #[arg(long, default_value_t = 1_000_000)]
    nodes: u32,
    /// Proxies, each with one session and one connection
    #[arg(long, default_value_t = 10)]
    proxies: u32,
    /// AddNode calls to measure, and GetProxies calls
    #[arg(long, default_value_t = 500_000)]
    calls: u32,
    /// Unary calls that a connection has in flight
    #[arg(long, default_value_t = 10)]
    in_flight: u32,
    /// How many times each route is refreshed, or looked up, in batches
    #[arg(long, default_value_t = 20)]
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

/// What one way of refreshing routes, or of looking them up, cost.
struct Cost {
    routes: u64,
    cpu: Duration,
    client_cpu: Duration,
    elapsed: Duration,
}

impl Cost {
    /// The cost of `work`, which is about so many routes.
    async fn of(
        server: &Server,
        routes: u64,
        work: impl Future<Output = Result<(), Failure>>,
    ) -> Result<Self, Failure> {
        let client_cpu = || cpu(std::process::id());
        let (started, before, client_before) = (Instant::now(), cpu(server.pid())?, client_cpu()?);
        work.await?;
        Ok(Self {
            routes,
            cpu: cpu(server.pid())? - before,
            client_cpu: client_cpu()? - client_before,
            elapsed: started.elapsed(),
        })
    }

    fn nanos_per_route(&self) -> f64 {
        self.cpu.as_nanos() as f64 / self.routes as f64
    }
}

/// A unary method, and what its answers must be like.
struct Method {
    path: &'static str,
    right: fn(&Call, Bytes) -> bool,
}

/// A request that is ready to be sent, and how many routes it is about.
#[derive(Clone)]
struct Call {
    request: Bytes,
    routes: u32,
}

impl Call {
    fn new(message: &impl Message, routes: usize) -> Self {
        Self {
            request: message.encode_to_vec().into(),
            routes: routes as u32,
        }
    }
}

const ADD_NODE: Method = Method {
    path: "/api.NodeTrackerService/AddNode",
    right: |_, answer| answer.is_empty(),
};
const GET_PROXIES: Method = Method {
    path: "/api.NodeTrackerService/GetProxies",
    right: |_, answer| !answer.is_empty(),
};
const ADD_NODES: Method = Method {
    path: "/nodetracker.v1.RouteService/AddNodes",
    right: |call, answer| v1::AddNodesResponse::decode(answer).is_ok_and(|added| added.refreshed_count == call.routes),
};
const BATCH_GET_PROXIES: Method = Method {
    path: "/nodetracker.v1.RouteService/BatchGetProxies",
    right: |call, answer| nodes_with_routes(answer) == Some(call.routes),
};

/// Of a `BatchGetProxiesResponse`, how many of its nodes are not empty. `None` where it is something else.
fn nodes_with_routes(mut answer: Bytes) -> Option<u32> {
    const PROXIES: u8 = 1 << 3 | 2;
    const NODES: u8 = 2 << 3 | 2;
    let mut nodes = 0;
    while answer.has_remaining() {
        let tag = answer.get_u8();
        let len = prost::encoding::decode_varint(&mut answer).ok()? as usize;
        match tag {
            PROXIES => {}
            NODES => nodes += u32::from(len > 0),
            _ => return None,
        }
        if len > answer.len() {
            return None;
        }
        answer.advance(len);
    }
    Some(nodes)
}

/// Makes `count` calls over one connection, one after the other.
async fn lane(channel: Channel, method: &'static Method, calls: Vec<Call>, count: usize) -> Result<(), Failure> {
    let path = PathAndQuery::from_static(method.path);
    let mut client = tonic::client::Grpc::new(channel);
    for call in calls.iter().cycle().take(count) {
        client.ready().await?;
        let request = tonic::Request::new(call.request.clone());
        let answer = client.unary(request, path.clone(), Raw).await?.into_inner();
        if !(method.right)(call, answer) {
            return Err(format!("{}: not the right answer", method.path).into());
        }
    }
    Ok(())
}

/// What `count` calls cost that are made over as many connections as there are proxies, `lanes` at a time over each.
async fn calls(
    server: &Server,
    options: &Options,
    method: &'static Method,
    (lanes, count): (u32, u32),
    of_connection: impl Fn(u32) -> Vec<Call>,
) -> Result<Cost, Failure> {
    let count = (count / options.proxies / lanes) as usize;
    let mut routes = 0;
    let mut tasks = Vec::new();
    for connection in 0..options.proxies {
        let channel = connect(server).await?;
        let calls = of_connection(connection);
        for at in 0..lanes {
            let calls: Vec<_> = calls
                .iter()
                .skip(at as usize)
                .step_by(lanes as usize)
                .cloned()
                .collect();
            routes += calls
                .iter()
                .cycle()
                .take(count)
                .map(|call| u64::from(call.routes))
                .sum::<u64>();
            tasks.push(lane(channel.clone(), method, calls, count));
        }
    }
    Cost::of(server, routes, async {
        all(tasks.into_iter().collect::<JoinSet<_>>()).await
    })
    .await
}

/// The nodes that are reached through one proxy.
fn nodes_of(options: &Options, proxy: u32) -> Vec<Uuid> {
    (proxy..options.nodes)
        .step_by(options.proxies as usize)
        .map(node)
        .collect()
}

/// A connection's share of the nodes, reached through all of the proxies.
fn share(options: &Options, connection: u32) -> Vec<Uuid> {
    let each = options.nodes / options.proxies;
    (connection * each..(connection + 1) * each).map(node).collect()
}

fn add_node(by: &v1::Proxy, node: Uuid) -> Call {
    let request = api::AddNodeRequest {
        node_id: node.to_string(),
        proxy_id: by.proxy_id.clone(),
        cluster_name: by.cluster_name.clone(),
        addr: by.addr.clone(),
    };
    Call::new(&request, 1)
}

fn get_proxies(node: Uuid) -> Call {
    let node_id = node.to_string();
    Call::new(&api::GetProxiesRequest { node_id }, 1)
}

fn add_nodes(by: &v1::Proxy, nodes: &[Uuid]) -> Call {
    let request = v1::AddNodesRequest {
        proxy: Some(by.clone()),
        nodes: Some(node_ids(nodes.iter().copied())),
    };
    Call::new(&request, nodes.len())
}

fn batch_get_proxies(nodes: &[Uuid]) -> Call {
    let request = v1::BatchGetProxiesRequest {
        nodes: Some(node_ids(nodes.iter().copied())),
    };
    Call::new(&request, nodes.len())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let options = Options::parse();
    let server = Server::start(&options.server, &[])?;

    let mut sessions = Vec::new();
    let announced = Cost::of(&server, options.nodes.into(), async {
        for by in 0..options.proxies {
            let mut session = Session::begin(connect(&server).await?, by).await?;
            session.announce(&nodes_of(&options, by)).await?;
            sessions.push(session);
        }
        Ok(())
    })
    .await?;

    let unary = (options.in_flight, options.calls);
    let reported = calls(&server, &options, &ADD_NODE, unary, |by| {
        let nodes = nodes_of(&options, by).into_iter();
        let by = proxy(by);
        nodes.map(|node| add_node(&by, node)).collect()
    })
    .await?;
    let looked_up = calls(&server, &options, &GET_PROXIES, unary, |connection| {
        share(&options, connection).into_iter().map(get_proxies).collect()
    })
    .await?;

    let mut rows = vec![("AddNode, unary".to_owned(), 0, reported)];
    for batch in BATCHES {
        let in_batches = (PIPELINE as u32, options.batch_rounds * options.nodes / batch);
        let cost = calls(&server, &options, &ADD_NODES, in_batches, |by| {
            let nodes = nodes_of(&options, by);
            let by = proxy(by);
            nodes
                .chunks(batch as usize)
                .map(|nodes| add_nodes(&by, nodes))
                .collect()
        })
        .await?;
        rows.push((format!("AddNodes, {batch} at a time"), 0, cost));
    }
    rows.push(("session: nodes up, all new".to_owned(), 0, announced));
    let beats = u64::from(options.nodes) * u64::from(options.rounds);
    let heartbeats = Cost::of(&server, beats, async {
        let sessions = sessions.into_iter().map(|session| session.beat(options.rounds));
        all(sessions.collect()).await
    })
    .await?;
    rows.push(("session: heartbeats".to_owned(), 0, heartbeats));

    let first = rows.len();
    rows.push(("GetProxies, unary".to_owned(), first, looked_up));
    for batch in BATCHES {
        let in_batches = (PIPELINE as u32, options.batch_rounds * options.nodes / batch);
        let cost = calls(&server, &options, &BATCH_GET_PROXIES, in_batches, |connection| {
            let nodes = share(&options, connection);
            nodes.chunks(batch as usize).map(batch_get_proxies).collect()
        })
        .await?;
        rows.push((format!("BatchGetProxies, {batch} at a time"), first, cost));
    }

    server.stop()?;

    println!(
        "{:32}{:>11}{:>9}{:>13}{:>10}{:>8}{:>9}",
        "", "routes", "seconds", "routes/s", "CPU ns", "ratio", "client"
    );
    for (name, unary, cost) in &rows {
        let ratio = rows[*unary].2.nanos_per_route() / cost.nanos_per_route();
        let (seconds, nanos) = (cost.elapsed.as_secs_f64(), cost.nanos_per_route());
        let rate = cost.routes as f64 / seconds;
        let client = 100.0 * cost.client_cpu.as_secs_f64() / seconds;
        println!(
            "{name:32}{:>11}{seconds:>9.2}{rate:>13.0}{nanos:>10.1}{ratio:>8.1}{client:>7.0} %",
            cost.routes
        );
    }
    Ok(())
}
