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

use std::error::Error;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use nodetracker_proto::api::AddNodeRequest;
use nodetracker_proto::api::node_tracker_service_client::NodeTrackerServiceClient;
use nodetracker_proto::v1::route_service_client::RouteServiceClient;
use nodetracker_proto::v1::session_request::Request;
use nodetracker_proto::v1::session_response::Response;
use nodetracker_proto::v1::session_service_client::SessionServiceClient;
use nodetracker_proto::v1::{self, SessionRefusal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};
use uuid::Uuid;

type Failure = Box<dyn Error + Send + Sync>;

/// Messages of a session, or batches of a connection, that wait for their answers.
const PIPELINE: usize = 4;

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

/// The server under test; killed when dropped.
struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start(options: &Options) -> Result<Self, Failure> {
        let mut child = Command::new(&options.server)
            .args(["serve", "--listen", "127.0.0.1:0", "--proxy-keep-alive-interval", "1h"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut line = String::new();
        let stdout = child.stdout.take().ok_or("no stdout")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let addr = line
            .trim_end()
            .strip_prefix("listening on ")
            .ok_or("the server did not start")?;
        let url = format!("http://{addr}");
        Ok(Self { child, url })
    }

    async fn connect(&self) -> Result<Channel, Failure> {
        Ok(Endpoint::from_shared(self.url.clone())?.connect().await?)
    }

    /// The CPU time that the process and the kernel on its behalf have used, to a hundredth of a second.
    fn cpu(&self) -> Result<Duration, Failure> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
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
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
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
        let (started, before) = (Instant::now(), server.cpu()?);
        work.await?;
        Ok(Self {
            routes,
            cpu: server.cpu()? - before,
            elapsed: started.elapsed(),
        })
    }

    fn nanos_per_route(&self) -> f64 {
        self.cpu.as_nanos() as f64 / self.routes as f64
    }
}

fn node(number: u32) -> Uuid {
    // Any numbers that are spread evenly.
    let mixed = |salt: u64| {
        (u64::from(number) ^ salt)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29)
            ^ salt
    };
    Uuid::from_u64_pair(mixed(0x0123_4567_89ab_cdef), mixed(0xfedc_ba98_7654_3210))
}

fn proxy(number: u32) -> v1::Proxy {
    v1::Proxy {
        proxy_id: Uuid::from_u64_pair(7, number.into()).to_string(),
        cluster_name: "cluster".into(),
        addr: format!("10.0.0.{}:3080", number % 250 + 1),
    }
}

/// One proxy's session, with the handles of its nodes.
struct Session {
    requests: mpsc::Sender<v1::SessionRequest>,
    answers: Streaming<v1::SessionResponse>,
    limits: v1::SessionLimits,
    handles: Vec<u8>,
}

impl Session {
    async fn begin(channel: Channel, number: u32) -> Result<Self, Failure> {
        let (requests, sent) = mpsc::channel(PIPELINE);
        let answers = SessionServiceClient::new(channel)
            .session(ReceiverStream::new(sent))
            .await?;
        let mut session = Self {
            requests,
            answers: answers.into_inner(),
            limits: v1::SessionLimits::default(),
            handles: Vec::new(),
        };
        let hello = v1::SessionHello {
            proxy: Some(proxy(number)),
            incarnation: 1,
            ..v1::SessionHello::default()
        };
        session.send(Request::Hello(hello)).await?;
        match session.answer().await? {
            Response::Welcome(welcome) => session.limits = welcome.limits.ok_or("no limits")?,
            other => return Err(format!("unexpected: {other:?}").into()),
        }
        Ok(session)
    }

    async fn send(&mut self, request: Request) -> Result<(), Failure> {
        let request = v1::SessionRequest {
            sequence: 0,
            request: Some(request),
        };
        Ok(self.requests.send(request).await?)
    }

    async fn answer(&mut self) -> Result<Response, Failure> {
        let answer = self.answers.message().await?.ok_or("the session ended")?;
        Ok(answer.response.ok_or("an empty answer")?)
    }

    async fn announce(&mut self, nodes: &[Uuid]) -> Result<(), Failure> {
        for nodes in nodes.chunks(self.limits.max_nodes as usize) {
            let nodes = v1::NodeIds {
                uuids: nodes.iter().flat_map(|node| node.into_bytes()).collect(),
                names: Vec::new(),
            };
            self.send(Request::NodesUp(v1::SessionNodesUp { nodes: Some(nodes) }))
                .await?;
            match self.answer().await? {
                Response::Handles(handles) if handles.refusal() == SessionRefusal::Unspecified => {
                    self.handles.extend(handles.handles);
                }
                other => return Err(format!("unexpected: {other:?}").into()),
            }
        }
        Ok(())
    }

    /// Refreshes every route `rounds` times.
    async fn beat(mut self, rounds: u32) -> Result<(), Failure> {
        let messages: Vec<v1::SessionHeartbeat> = self
            .handles
            .chunks(8 * self.limits.max_handles as usize)
            .map(|handles| v1::SessionHeartbeat {
                handles: handles.to_vec().into(),
            })
            .collect();
        let mut waiting = 0;
        for _ in 0..rounds {
            for message in &messages {
                if waiting == PIPELINE {
                    self.acked().await?;
                    waiting -= 1;
                }
                self.send(Request::Heartbeat(message.clone())).await?;
                waiting += 1;
            }
        }
        for _ in 0..waiting {
            self.acked().await?;
        }
        Ok(())
    }

    async fn acked(&mut self) -> Result<(), Failure> {
        match self.answer().await? {
            Response::Ack(ack) if ack.gone_handles.is_empty() => Ok(()),
            other => Err(format!("unexpected: {other:?}").into()),
        }
    }
}

async fn all(mut tasks: JoinSet<Result<(), Failure>>) -> Result<(), Failure> {
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
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
        let channel = server.connect().await?;
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
        let channel = server.connect().await?;
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
    let server = Server::start(&options)?;

    let mut sessions = Vec::new();
    let announced = Cost::of(&server, options.nodes.into(), async {
        for by in 0..options.proxies {
            let nodes: Vec<_> = (by..options.nodes)
                .step_by(options.proxies as usize)
                .map(node)
                .collect();
            let mut session = Session::begin(server.connect().await?, by).await?;
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
