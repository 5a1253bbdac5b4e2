//! Measures how soon many watches of a large, changing table become up to date, and how much CPU the server needs.
//!
//! ```console
//! $ cargo build --release -p nodetracker-server --bins --examples
//! $ target/release/examples/watches target/release/nodetracker
//! ```
//!
//! The program starts the server on the loopback interface, fills the table, and changes other nodes at a constant
//! rate. Then it opens all watches at once, each on its own connection, and reads them. The program prints the time of
//! the snapshots, and then the age of changes on arrival: a change carries the time of its route. CPU times come from
//! `/proc`, so the program needs Linux. The program ends by itself. It fails if a watch is not up to date within the
//! time limit.
//!
//! All clients share the machine with the server, and each snapshot crosses the loopback interface once for each watch.
//! So the snapshots take as long as the machine needs to copy that many bytes.

#[allow(dead_code, reason = "the other examples use the rest")]
mod client;
#[path = "client/raw.rs"]
mod raw;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use clap::Parser;
use http::uri::PathAndQuery;
use nodetracker_proto::v1;
use nodetracker_proto::v1::route_service_client::RouteServiceClient;
use nodetracker_proto::v1::watch_change::Change;
use nodetracker_proto::v1::watch_response::Message;
use prost::Message as _;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tonic::transport::{Channel, Endpoint};

use client::{Failure, Server, Session, all, node, node_ids, proxy};
use raw::Raw;

/// The server's allocator: with another allocator, the clients would cost more than the server.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A watch decodes one of this many messages with changes: decoding all would take more CPU than the server takes.
const DECODED: u64 = 16;

#[derive(Debug, Clone, Parser)]
#[command(about = "Measures how soon many watches of a changing table are up to date")]
struct Options {
    /// The server's command
    server: PathBuf,
    /// Nodes, each with one route
    #[arg(long, default_value_t = 1_000_000)]
    nodes: u32,
    /// Watches of all nodes
    #[arg(long, default_value_t = 100)]
    watches: usize,
    /// Changes a second
    #[arg(long, default_value_t = 8_000)]
    rate: u32,
    /// How many seconds to follow the changes after all snapshots
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// The longest time for all snapshots, in seconds
    #[arg(long, default_value_t = 300)]
    limit: u64,
}

/// What all watches have seen.
#[derive(Debug, Default)]
struct Seen {
    bytes: AtomicU64,
    lost_places: AtomicU64,
    /// Ages of changes on arrival, since the last time they were taken.
    ages: Mutex<Vec<Duration>>,
}

impl Seen {
    fn take_ages(&self) -> Vec<Duration> {
        let mut ages = std::mem::take(&mut *self.ages.lock().unwrap_or_else(PoisonError::into_inner));
        ages.sort_unstable();
        ages
    }
}

/// The age of the newest route of a message.
fn age(changes: &v1::WatchChanges) -> Option<Duration> {
    let routes = changes.changes.iter().filter_map(|change| match &change.change {
        Some(Change::Node(node)) => node.routes.as_ref()?.routes.first()?.last_refresh_time,
        _ => None,
    });
    let times = routes.filter_map(|time| SystemTime::try_from(time).ok());
    SystemTime::now().duration_since(times.max()?).ok()
}

/// Opens a watch. Reports the end of its snapshot, and then reads until the program ends.
async fn follow(server: Arc<str>, seen: Arc<Seen>, up_to_date: tokio::sync::mpsc::Sender<()>) -> Result<(), Failure> {
    let channel = Endpoint::from_shared(format!("http://{server}"))?.connect().await?;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await?;
    let request = v1::WatchRequest {
        accepts_resync: true,
        ..v1::WatchRequest::default()
    };
    let request = tonic::Request::new(request.encode_to_vec().into());
    let path = PathAndQuery::from_static("/nodetracker.v1.WatchService/Watch");
    let mut messages = client.server_streaming(request, path, Raw).await?.into_inner();
    let mut count = 0;
    while let Some(message) = messages.message().await? {
        seen.bytes.fetch_add(message.len() as u64, Ordering::Relaxed);
        // The field's number is in the first byte.
        match message.first().map(|tag| tag >> 3) {
            Some(2) => up_to_date.send(()).await?,
            Some(3) => {
                count += 1;
                if count % DECODED == 0
                    && let Some(Message::Changes(changes)) = v1::WatchResponse::decode(message)?.message
                    && let Some(age) = age(&changes)
                {
                    seen.ages.lock().unwrap_or_else(PoisonError::into_inner).push(age);
                }
            }
            Some(4) => _ = seen.lost_places.fetch_add(1, Ordering::Relaxed),
            _ => {}
        }
    }
    Err("a watch ended".into())
}

/// Adds and removes nodes at a rate, without end. Each step is a batch, every 10 ms.
async fn change(channel: Channel, options: Options) -> Result<(), Failure> {
    let mut client = RouteServiceClient::new(channel);
    let batch = (options.rate / 100).max(1);
    let mut ticks = interval(Duration::from_millis(10));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for step in 0.. {
        ticks.tick().await;
        let first = options.nodes + step / 2 % 1000 * batch;
        let nodes = Some(node_ids((first..first + batch).map(node)));
        if step % 2 == 0 {
            let proxy = Some(proxy(step % 10));
            client.add_nodes(v1::AddNodesRequest { nodes, proxy }).await?;
        } else {
            let proxy_id = String::new();
            client.remove_nodes(v1::RemoveNodesRequest { nodes, proxy_id }).await?;
        }
    }
    Ok(())
}

/// The CPU time that a process has used, to a hundredth of a second.
fn cpu(process: u32) -> Result<Duration, Failure> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The command's name may have blanks; utime and stime are the 14th and 15th field, and the name is the second.
    let (_, after_name) = stat.rsplit_once(')').ok_or("an unknown format of stat")?;
    let fields = after_name.split_whitespace().skip(11).take(2);
    let ticks: u64 = fields.map(str::parse::<u64>).sum::<Result<_, _>>()?;
    Ok(Duration::from_millis(10 * ticks))
}

/// The most memory that a process has used, as the kernel writes it.
fn peak_memory(process: u32) -> Result<String, Failure> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    Ok(line.ok_or("an unknown format of status")?.trim().to_owned())
}

async fn fill(server: &Server, options: &Options) -> Result<(), Failure> {
    let mut sessions = JoinSet::new();
    for number in 0..10 {
        let channel = Endpoint::from_shared(format!("http://{}", server.addr))?
            .connect()
            .await?;
        let nodes: Vec<_> = (number..options.nodes).step_by(10).map(node).collect();
        sessions.spawn(async move { Session::begin(channel, number).await?.announce(&nodes).await });
    }
    all(sessions).await
}

async fn measure(options: Options) -> Result<(), Failure> {
    let server = Server::start(&options.server, &[])?;
    fill(&server, &options).await?;
    let mut tasks = JoinSet::new();
    let channel = Endpoint::from_shared(format!("http://{}", server.addr))?
        .connect()
        .await?;
    tasks.spawn(change(channel, options.clone()));

    let seen = Arc::new(Seen::default());
    let addr: Arc<str> = server.addr.as_str().into();
    let (up_to_date, mut completed) = tokio::sync::mpsc::channel(options.watches.max(1));
    let (started, before) = (Instant::now(), cpu(server.pid())?);
    for _ in 0..options.watches {
        tasks.spawn(follow(Arc::clone(&addr), Arc::clone(&seen), up_to_date.clone()));
    }
    let mut first = None;
    let snapshots = async {
        for _ in 0..options.watches {
            tokio::select! {
                _ = completed.recv() => {}
                Some(ended) = tasks.join_next() => ended??,
            }
            first.get_or_insert_with(|| started.elapsed());
        }
        Ok::<_, Failure>(())
    };
    timeout(Duration::from_secs(options.limit), snapshots).await??;
    let elapsed = started.elapsed();
    println!(
        "{} watches of {} nodes, {} changes a second",
        options.watches, options.nodes, options.rate
    );
    println!(
        "snapshots: the first after {:.2} s, the last after {:.2} s; {:.2} s of the server's CPU, {} MB sent, {} places lost",
        first.unwrap_or_default().as_secs_f64(),
        elapsed.as_secs_f64(),
        (cpu(server.pid())? - before).as_secs_f64(),
        seen.bytes.load(Ordering::Relaxed) / 1_000_000,
        seen.lost_places.load(Ordering::Relaxed)
    );

    // Changes that the snapshots delayed have a second to arrive.
    tokio::time::sleep(Duration::from_secs(1)).await;
    seen.take_ages();
    let (before, began) = (cpu(server.pid())?, Instant::now());
    tokio::time::sleep(Duration::from_secs(options.seconds)).await;
    let share = (cpu(server.pid())? - before).as_secs_f64() / began.elapsed().as_secs_f64();
    let ages = seen.take_ages();
    let quantile = |share: f64| ages.get((ages.len() as f64 * share) as usize).or(ages.last());
    println!(
        "changes: {} measured, p50 {:?}, p99 {:?}, the oldest {:?}; the server takes {:.0} % of a core; {} places lost; {}",
        ages.len(),
        quantile(0.5).unwrap_or(&Duration::MAX),
        quantile(0.99).unwrap_or(&Duration::MAX),
        ages.last().unwrap_or(&Duration::MAX),
        100.0 * share,
        seen.lost_places.load(Ordering::Relaxed),
        peak_memory(server.pid())?
    );
    tasks.shutdown().await;
    server.stop()
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    measure(Options::parse()).await
}
