//! Attacks a tracker in many ways, and shows what its other clients notice.
//!
//! ```console
//! $ cargo run --release -p nodetracker-server --example attacks -- [--server FILE] [--seconds N] [--limit-mb N] [NAME...]
//! ```
//!
//! For each attack, a fresh `nodetracker serve` gets 100,000 nodes. A neighbour, with a connection of its own, reports
//! and looks up a node a thousand times a second: for some seconds at rest, then for as long during the attack. The
//! printed table has the neighbour's median and 99th percentile, the calls that failed, and the most memory that the
//! server held. It also shows whether all nodes are there afterwards. The attacker is another process, with the lowest
//! priority, on the same machine. `--limit-mb` limits the server's address space, like `ulimit -v`. All processes use
//! only the loopback interface, and end by themselves.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use nodetracker_proto::v1::session_request::Request;
use nodetracker_proto::v1::session_response::Response;
use nodetracker_proto::{api, v1};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{interval, sleep, timeout};

type Error = Box<dyn std::error::Error + Send + Sync>;
type Result<T> = std::result::Result<T, Error>;

/// An attack: its name, and what the attacker does.
const ATTACKS: &[(&str, &str)] = &[
    ("nothing", "no attack: the same for comparison"),
    (
        "refused-batches-10",
        "10 connections, 4 batches each of 4,096 times one node with 64 routes",
    ),
    ("refused-batches-100", "the same with 100 connections"),
    ("refused-batches-400", "the same with 400 connections"),
    (
        "large-replies",
        "100 connections, 256 batches each, replies of 3 MB, none is read",
    ),
    (
        "lists",
        "100 connections list nodes with 64 routes, 4 pages each at a time",
    ),
    (
        "small-replies",
        "400 connections, 256 look-ups each of a node with 64 routes, no reply is read",
    ),
    ("headers", "400 connections, 256 open calls each with 6 kB of headers"),
    (
        "half-requests",
        "200 connections, 64 batches each of 200 kB without the last byte",
    ),
    ("watches", "10 connections, 200 watches each, none is read"),
    ("adds", "20 connections add 4,096 new nodes at a time"),
    (
        "sessions",
        "400 connections, a session each that sends full messages of new nodes and of handles",
    ),
    ("connections", "2,000 connections that do nothing"),
    ("calls", "400 connections, 64 small calls in flight each"),
];

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let mut options = Options {
        server: "target/release/nodetracker".into(),
        seconds: 5,
        limit_mb: None,
        names: Vec::new(),
    };
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--server" => options.server = value()?,
            "--seconds" => options.seconds = value()?.parse()?,
            "--limit-mb" => options.limit_mb = Some(value()?.parse()?),
            "--attack" => {
                let name = value()?;
                let addr = value()?.parse()?;
                return tokio::task::LocalSet::new().block_on(&runtime()?, attack(&name, addr));
            }
            name if ATTACKS.iter().any(|(known, _)| *known == name) => options.names.push(name.to_owned()),
            _ => {
                let names: Vec<_> = ATTACKS.iter().map(|(name, what)| format!("  {name}: {what}")).collect();
                return Err(format!("unknown: {arg}; the attacks are\n{}", names.join("\n")).into());
            }
        }
    }
    runtime()?.block_on(report(&options))
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

struct Options {
    server: String,
    seconds: u64,
    limit_mb: Option<u64>,
    names: Vec<String>,
}

async fn report(options: &Options) -> Result<()> {
    println!("| attack | p50 ms, before, during | p99 ms, before, during | failed calls | peak memory, MB | table |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for (name, _) in ATTACKS {
        if options.names.is_empty() || options.names.iter().any(|asked| asked == name) {
            let line = one(options, name).await;
            println!(
                "| {name} | {} |",
                line.unwrap_or_else(|error| format!("{error} | | | | |"))
            );
        }
    }
    Ok(())
}

/// Mounts one attack, and returns its line of the table.
async fn one(options: &Options, name: &str) -> Result<String> {
    let mut server = Server::start(options)?;
    fill(server.addr).await?;
    let span = Duration::from_secs(options.seconds);
    let before = neighbour(server.addr, span).await;
    let mut attacker = Command::new("nice")
        .args(["-n", "19"])
        .arg(std::env::current_exe()?)
        .args(["--attack", name, &server.addr.to_string()])
        .stderr(Stdio::null())
        .spawn()?;
    // The attackers connect first.
    sleep(Duration::from_secs(1)).await;
    let during = neighbour(server.addr, span).await;
    attacker.kill()?;
    attacker.wait()?;
    let peak = server.peak_mb();
    let state = match server.child.try_wait()? {
        Some(status) => format!("the server died: {status}"),
        None => match timeout(Duration::from_secs(20), intact(server.addr)).await {
            Ok(Ok(true)) => "whole".into(),
            Ok(Ok(false)) => "nodes are missing".into(),
            Ok(Err(error)) => format!("no answer: {error}"),
            Err(_) => "no answer for 20 s".into(),
        },
    };
    Ok(format!(
        "{}, {} | {}, {} | {} of {} | {peak} | {state}",
        before.at(0.5),
        during.at(0.5),
        before.at(0.99),
        during.at(0.99),
        during.failed,
        during.failed + during.millis.len(),
    ))
}

/// A server in a process of its own, killed on drop.
struct Server {
    child: Child,
    addr: SocketAddr,
}

impl Server {
    fn start(options: &Options) -> Result<Self> {
        let limit = match options.limit_mb {
            Some(megabytes) => format!("ulimit -v {}; ", megabytes * 1024),
            None => String::new(),
        };
        let mut child = Command::new("sh")
            .args([
                "-c",
                &format!("{limit}ulimit -n 20000; exec \"$0\" serve --listen 127.0.0.1:0"),
            ])
            .arg(&options.server)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line)?;
        let addr = line
            .trim()
            .strip_prefix("listening on ")
            .ok_or("the server did not start")?;
        Ok(Self {
            addr: addr.parse()?,
            child,
        })
    }

    /// The most memory that the server held.
    fn peak_mb(&self) -> String {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = peak.and_then(|peak| peak.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        kilobytes.map_or_else(|| "?".into(), |kilobytes| (kilobytes / 1024).to_string())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const NODES: u32 = 100_000;
/// Nodes with 64 routes each.
const HEAVY: u32 = 1_000;

fn uuid(number: u32) -> [u8; 16] {
    // Spread like random ones.
    let mixed = u128::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    mixed.to_be_bytes()
}

fn nodes(numbers: impl Iterator<Item = u32>) -> Option<v1::NodeIds> {
    Some(v1::NodeIds {
        uuids: numbers.flat_map(uuid).collect(),
        names: Vec::new(),
    })
}

fn proxy(number: u32) -> Option<v1::Proxy> {
    Some(v1::Proxy {
        proxy_id: format!("proxy-{number}-{}", "x".repeat(200)),
        cluster_name: "main".into(),
        addr: format!("{}.example:3080", "y".repeat(200)),
    })
}

/// Adds the nodes.
async fn fill(addr: SocketAddr) -> Result<()> {
    let mut client = connect(addr).await?;
    for first in (0..NODES).step_by(4_000) {
        let request = v1::AddNodesRequest {
            nodes: nodes(first..first + 4_000),
            proxy: proxy(0),
        };
        call(&mut client, ADD_NODES, &request).await?;
    }
    for number in 0..64 {
        let request = v1::AddNodesRequest {
            nodes: nodes(0..HEAVY),
            proxy: proxy(number),
        };
        call(&mut client, ADD_NODES, &request).await?;
    }
    Ok(())
}

/// Reports whether all nodes have routes.
async fn intact(addr: SocketAddr) -> Result<bool> {
    let mut client = connect(addr).await?;
    for first in (HEAVY..NODES).step_by(3_000) {
        let request = v1::BatchGetProxiesRequest {
            nodes: nodes(first..first + 3_000),
        };
        let reply = call(&mut client, BATCH, &request).await?;
        let reply = v1::BatchGetProxiesResponse::decode(&reply[5..])?;
        if reply.nodes.len() != 3_000 || reply.nodes.iter().any(|node| node.routes.is_empty()) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[derive(Default)]
struct Latencies {
    millis: Vec<f64>,
    failed: usize,
}

impl Latencies {
    fn at(&self, quantile: f64) -> String {
        let mut sorted = self.millis.clone();
        sorted.sort_by(f64::total_cmp);
        let at = (sorted.len() as f64 * quantile) as usize;
        sorted
            .get(at)
            .map_or_else(|| "-".into(), |millis| format!("{millis:.2}"))
    }
}

/// A client with a call in flight at a time, up to a thousand a second. A call takes 10 s at most.
async fn neighbour(addr: SocketAddr, span: Duration) -> Latencies {
    let mut latencies = Latencies::default();
    let mut ticks = interval(Duration::from_millis(1));
    let begun = Instant::now();
    let mut client = None;
    let mut number = 0;
    while begun.elapsed() < span {
        ticks.tick().await;
        number += 1;
        let at = Instant::now();
        let result = timeout(Duration::from_secs(10), async {
            let client = match &mut client {
                Some(client) => client,
                none => none.insert(connect(addr).await?),
            };
            if number % 2 == 0 {
                let request = api::GetProxiesRequest {
                    node_id: "neighbour".into(),
                };
                call(client, GET, &request).await
            } else {
                let request = api::AddNodeRequest {
                    node_id: "neighbour".into(),
                    proxy_id: "neighbour".into(),
                    cluster_name: "main".into(),
                    addr: "neighbour:1".into(),
                };
                call(client, ADD, &request).await
            }
        });
        match result.await {
            Ok(Ok(_)) => latencies.millis.push(at.elapsed().as_secs_f64() * 1e3),
            _ => {
                latencies.failed += 1;
                client = None;
            }
        }
    }
    latencies
}

const ADD: &str = "/api.NodeTrackerService/AddNode";
const GET: &str = "/api.NodeTrackerService/GetProxies";
const ADD_NODES: &str = "/nodetracker.v1.RouteService/AddNodes";
const BATCH: &str = "/nodetracker.v1.RouteService/BatchGetProxies";
const LIST: &str = "/nodetracker.v1.AdminService/ListNodes";
const SESSION: &str = "/nodetracker.v1.SessionService/Session";
const WATCH: &str = "/nodetracker.v1.WatchService/Watch";

type Client = SendRequest<Bytes>;

async fn connect(addr: SocketAddr) -> Result<Client> {
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let mut builder = h2::client::Builder::new();
    builder
        .initial_connection_window_size(8 << 20)
        .initial_window_size(8 << 20);
    let (client, connection) = builder.handshake(stream).await?;
    tokio::spawn(connection);
    Ok(client)
}

fn request(path: &str) -> http::request::Builder {
    http::Request::post(format!("http://tracker{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
}

fn framed(message: &impl Message) -> Bytes {
    let mut bytes = vec![0];
    bytes.extend((message.encoded_len() as u32).to_be_bytes());
    message.encode(&mut bytes).expect("a vector grows");
    bytes.into()
}

/// Makes a call, and returns its reply with the prefix. A call that was refused is an error.
async fn call(client: &mut Client, path: &str, message: &impl Message) -> Result<Bytes> {
    *client = client.clone().ready().await?;
    let (response, mut stream) = client.send_request(request(path).body(())?, false)?;
    send(&mut stream, framed(message)).await?;
    let response = response.await?;
    let status = |headers: &http::HeaderMap| headers.get("grpc-status").is_none_or(|status| status == "0");
    if !status(response.headers()) {
        return Err("refused".into());
    }
    let mut body = response.into_body();
    let mut reply = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        reply.extend(data);
    }
    match body.trailers().await? {
        Some(trailers) if !status(&trailers) => Err("refused".into()),
        _ => Ok(reply.into()),
    }
}

async fn send(stream: &mut h2::SendStream<Bytes>, message: Bytes) -> Result<()> {
    stream.send_data(message, true)?;
    Ok(())
}

/// Attacks until the process is killed.
async fn attack(name: &str, addr: SocketAddr) -> Result<()> {
    let connections = match name {
        "refused-batches-10" | "watches" => 10,
        "adds" => 20,
        "half-requests" => 200,
        "refused-batches-400" | "small-replies" | "headers" | "calls" | "sessions" => 400,
        "connections" => 2_000,
        "nothing" => 0,
        _ => 100,
    };
    for number in 0..connections {
        let name = name.to_owned();
        tokio::task::spawn_local(async move {
            loop {
                // A connection that the server closes is opened again.
                let _ = attacker(&name, addr, number).await;
                sleep(Duration::from_millis(100)).await;
            }
        });
    }
    sleep(Duration::from_secs(600)).await;
    Ok(())
}

/// One connection of an attack.
async fn attacker(name: &str, addr: SocketAddr, number: u32) -> Result<()> {
    if name == "connections" {
        let mut stream = TcpStream::connect(addr).await?;
        stream
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
            .await?;
        let _ = stream.read_to_end(&mut Vec::new()).await;
        return Ok(());
    }
    let client = connect(addr).await?;
    let heavy = v1::BatchGetProxiesRequest {
        nodes: nodes(std::iter::repeat_n(0, 4_096)),
    };
    let third = v1::BatchGetProxiesRequest {
        nodes: nodes(std::iter::repeat_n(0, 1_600)),
    };
    match name {
        "refused-batches-10" | "refused-batches-100" | "refused-batches-400" => {
            in_flight(client, 4, async |mut client| {
                call(&mut client, BATCH, &heavy).await.map(drop)
            })
            .await
        }
        "lists" => {
            let list = v1::ListNodesRequest {
                page_size: 1_000,
                ..Default::default()
            };
            in_flight(client, 4, async |mut client| {
                call(&mut client, LIST, &list).await.map(drop)
            })
            .await
        }
        "calls" => {
            let get = api::GetProxiesRequest {
                node_id: "neighbour".into(),
            };
            in_flight(client, 64, async |mut client| {
                call(&mut client, GET, &get).await.map(drop)
            })
            .await
        }
        "adds" => {
            let mut client = client;
            for round in 0.. {
                let first = NODES + number * 10_000_000 + round * 4_096;
                let add = v1::AddNodesRequest {
                    nodes: nodes(first..first + 4_096),
                    proxy: proxy(1_000 + number),
                };
                let _ = call(&mut client, ADD_NODES, &add).await;
            }
            Ok(())
        }
        "sessions" => session(client, number).await,
        "large-replies" => unread(client, 256, request(BATCH), framed(&third), true).await,
        "small-replies" => {
            let get = v1::GetProxiesRequest {
                node: Some(v1::NodeId {
                    id: Some(v1::node_id::Id::Uuid(uuid(0).to_vec())),
                }),
            };
            let path = "/nodetracker.v1.RouteService/GetProxies";
            unread(client, 256, request(path), framed(&get), true).await
        }
        "watches" => unread(client, 200, request(WATCH), framed(&v1::WatchRequest::default()), true).await,
        "headers" => {
            let request = request(ADD).header("x-filler", "f".repeat(6_000));
            unread(client, 256, request, Bytes::new(), false).await
        }
        "half-requests" => {
            let add = v1::AddNodesRequest {
                nodes: Some(v1::NodeIds {
                    uuids: Vec::new(),
                    names: (0..4_000).map(|name| format!("{name:050}")).collect(),
                }),
                proxy: proxy(1),
            };
            let whole = framed(&add);
            unread(client, 64, request(ADD_NODES), whole.slice(..whole.len() - 1), false).await
        }
        _ => Err("unknown attack".into()),
    }
}

/// A session that reports 2,048 nodes again and again, and then their handles twice.
async fn session(mut client: Client, number: u32) -> Result<()> {
    client = client.ready().await?;
    let (response, mut requests) = client.send_request(request(SESSION).body(())?, false)?;
    let mut send = |request| {
        requests.send_data(
            framed(&v1::SessionRequest {
                sequence: 1,
                request: Some(request),
            }),
            false,
        )
    };
    send(Request::Hello(v1::SessionHello {
        proxy: proxy(1_000 + number),
        incarnation: 1,
        ..Default::default()
    }))?;
    let mut responses = Responses {
        body: response.await?.into_body(),
        bytes: BytesMut::new(),
    };
    responses.next().await?;
    loop {
        let first = NODES + number * 2_048;
        send(Request::NodesUp(v1::SessionNodesUp {
            nodes: nodes(first..first + 2_048),
        }))?;
        let Some(Response::Handles(up)) = responses.next().await?.response else {
            return Err("no handles".into());
        };
        send(Request::Heartbeat(v1::SessionHeartbeat {
            handles: up.handles.repeat(2).into(),
        }))?;
        responses.next().await?;
    }
}

/// The responses of a session.
struct Responses {
    body: h2::RecvStream,
    bytes: BytesMut,
}

impl Responses {
    async fn next(&mut self) -> Result<v1::SessionResponse> {
        loop {
            if let Some((&[_, a, b, c, d], rest)) = self.bytes.split_first_chunk() {
                let len = u32::from_be_bytes([a, b, c, d]) as usize;
                if rest.len() >= len {
                    let message = self.bytes.split_to(5 + len);
                    return Ok(v1::SessionResponse::decode(&message[5..])?);
                }
            }
            let data = self.body.data().await.ok_or("the session ended")??;
            self.body.flow_control().release_capacity(data.len())?;
            self.bytes.extend_from_slice(&data);
        }
    }
}

/// Keeps a number of calls in flight. Repeats calls that fail.
async fn in_flight(client: Client, calls: usize, one: impl AsyncFn(Client) -> Result<()>) -> Result<()> {
    let calls = (0..calls).map(|_| async {
        loop {
            if one(client.clone()).await.is_err_and(|error| error.is::<h2::Error>()) {
                return;
            }
        }
    });
    futures_util::future::join_all(calls).await;
    Ok(())
}

/// Makes calls and reads no reply, until the connection is closed. Repeats calls that the server refuses.
async fn unread(client: Client, calls: usize, request: http::request::Builder, body: Bytes, ends: bool) -> Result<()> {
    let request = request.body(())?;
    let calls = (0..calls).map(|_| async {
        loop {
            let mut client = client.clone().ready().await?;
            let (response, mut stream) = client.send_request(request.clone(), false)?;
            stream.send_data(body.clone(), ends)?;
            let mut response = response.await?;
            if response.headers().contains_key("grpc-status") {
                sleep(Duration::from_millis(100)).await;
                continue;
            }
            // This may read the first frame, but releases no flow-control window.
            let _ = timeout(Duration::from_secs(60), std::future::pending::<()>()).await;
            let _ = response.body_mut();
        }
        #[allow(unreachable_code, reason = "gives the block its type")]
        Ok::<(), Error>(())
    });
    futures_util::future::join_all(calls).await;
    Ok(())
}
