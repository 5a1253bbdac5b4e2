//! Measures the latency of a neighbour during large but ordinary work: routes that expire, lists, snapshots of watches,
//! new nodes.
//!
//! ```console
//! $ cargo build --release -p nodetracker-server --bins --examples
//! $ target/release/examples/situations [--server FILE] [--nodes N] [--samples N] [NAME...]
//! ```
//!
//! For each situation, the program starts a fresh `nodetracker serve` and a neighbour that makes a call each
//! millisecond. The neighbour measures from the time when the call was due. Another process, with the lowest priority,
//! causes the situation again and again, with rests between. The table compares the calls that were due during the
//! situation with the calls that were due during the rests of the same run. The program ends by itself when there are
//! enough samples.

#[allow(dead_code, reason = "the other examples use the rest")]
mod client;

use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Parser;
use clap::builder::PossibleValuesParser;
use nodetracker_proto::v1;
use tonic::transport::Endpoint;

use client::neighbour::{Latencies, Neighbour};
use client::role::{Priority, Role, say};
use client::wire::{ADD_NODES, LIST, Messages, REMOVE_PROXY, WATCH, ask, call, connect, routes};
use client::{Failure, KEEP_ALIVE, Server, Session, node, node_ids, proxy, run};

/// Calls of the neighbour in a second.
const RATE: u32 = 1_000;

/// How long the neighbour is alone between two situations.
const REST: Duration = Duration::from_secs(5);

/// A sample counts only if this much time has passed since the end of a situation.
const SETTLING: Duration = Duration::from_millis(500);

/// The longest time for one step of a situation.
const LIMIT: Duration = Duration::from_secs(120);

/// The proxies that hold the nodes.
const PROXIES: u32 = 10;

/// The situations: a name and a description.
const SITUATIONS: &[(&str, &str)] = &[
    ("rest", "nothing"),
    ("expiry", "all nodes expire at once, with a keep-alive interval of 30 s"),
    ("list", "a client lists all nodes, a page at a time"),
    ("snapshot", "a watch takes its snapshot of all nodes"),
    ("sessions", "ten sessions add all nodes"),
    ("batches", "four clients add all nodes, 4,096 at a time"),
];

#[derive(Debug, Parser)]
#[command(about = "Measures what a neighbour notices of large but ordinary work")]
#[command(after_help = situations())]
struct Options {
    /// The server's command
    #[arg(long, default_value = "target/release/nodetracker")]
    server: PathBuf,
    /// Nodes, each with one route
    #[arg(long, default_value_t = 1_000_000)]
    nodes: u32,
    /// Calls of the neighbour during each situation, at least
    #[arg(long, default_value_t = 20_000)]
    samples: u32,
    /// The most seconds for each situation
    #[arg(long, default_value_t = 300)]
    limit: u64,
    /// The situations to measure [default: each]
    #[arg(value_parser = PossibleValuesParser::new(SITUATIONS.iter().map(|(name, _)| *name)))]
    names: Vec<String>,
}

fn situations() -> String {
    let situations: Vec<_> = SITUATIONS
        .iter()
        .map(|(name, what)| format!("  {name}: {what}"))
        .collect();
    format!("The situations:\n{}", situations.join("\n"))
}

fn main() -> Result<(), Failure> {
    let args: Vec<_> = std::env::args().collect();
    match &args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, "cause", name, nodes, addr] => run(cause(name, nodes.parse()?, addr)),
        _ => report(&Options::parse()),
    }
}

fn report(options: &Options) -> Result<(), Failure> {
    println!(
        "| situation | calls | takes, s | p50 ms, rest, during | p99 ms, rest, during | p99.9 ms, rest, during | ratio of p99.9 | failed |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    for (name, _) in SITUATIONS {
        if options.names.is_empty() || options.names.iter().any(|asked| asked == name) {
            let line = one(options, name).unwrap_or_else(|error| format!("{error} | | | | | | |"));
            println!("| {name} | {line} |");
        }
    }
    Ok(())
}

/// Causes one situation until there are enough samples, and returns its line of the table.
fn one(options: &Options, name: &str) -> Result<String, Failure> {
    let args: &[&str] = match name {
        "expiry" => &[KEEP_ALIVE, "30s", "--expiry-brake-percent", "100"],
        _ => &[],
    };
    let server = Server::start(&options.server, args)?;
    if matches!(name, "rest" | "list" | "snapshot") {
        run(fill(&server.addr, options.nodes))?;
    }
    let neighbour = Neighbour::start(&server.addr, RATE)?;
    let role = Role::start(
        Priority::Lowest,
        &["cause", name, &options.nodes.to_string(), &server.addr],
    )?;
    let began = Instant::now();
    let enough = Duration::from_secs(1) * options.samples / RATE;
    let (mut rests, mut situations, mut took) = (Vec::new(), Vec::new(), Duration::ZERO);
    while took < enough && began.elapsed() < Duration::from_secs(options.limit) {
        let rest = role.expect("rest", LIMIT)?;
        let on = role.expect("on", LIMIT)?;
        // The sweeper and the tailer may still work after the previous situation.
        rests.push(rest + SETTLING..on);
        let off = role.expect("off", LIMIT)?;
        situations.push(on..off);
        took += off - on;
    }
    drop(role);
    let samples = neighbour.stop();
    server.stop()?;
    let rest = Latencies::of(&samples, |at| rests.iter().any(|span| span.contains(&at)));
    let during = Latencies::of(&samples, |at| situations.iter().any(|span| span.contains(&at)));
    let pair = |quantile| format!("{:.2}, {:.2}", rest.millis(quantile), during.millis(quantile));
    Ok(format!(
        "{}, {} | {:.1} | {} | {} | {} | {:.1} | {}",
        rest.count(),
        during.count(),
        took.as_secs_f64() / situations.len() as f64,
        pair(0.5),
        pair(0.99),
        pair(0.999),
        during.millis(0.999) / rest.millis(0.999),
        rest.failed + during.failed,
    ))
}

async fn session(addr: &str, number: u32) -> Result<Session, Failure> {
    let channel = Endpoint::from_shared(format!("http://{addr}"))?.connect().await?;
    Session::begin(channel, number).await
}

/// Adds the nodes in sessions, all at once.
async fn fill(addr: &str, nodes: u32) -> Result<(), Failure> {
    let sessions = (0..PROXIES).map(|number| async move {
        let mut session = session(addr, number).await?;
        let nodes: Vec<_> = (number..nodes).step_by(PROXIES as usize).map(node).collect();
        session.announce(&nodes).await
    });
    futures_util::future::try_join_all(sessions).await.map(drop)
}

/// Adds the nodes in batches, four at a time.
async fn fill_in_batches(addr: &str, nodes: u32) -> Result<(), Failure> {
    let clients = (0..4).map(|number| async move {
        let mut client = connect(addr).await?;
        for first in (number * 4_096..nodes).step_by(4 * 4_096) {
            let request = v1::AddNodesRequest {
                nodes: Some(node_ids((first..nodes.min(first + 4_096)).map(node))),
                proxy: Some(proxy(number)),
            };
            call(&mut client, ADD_NODES, &request).await?;
        }
        Ok::<_, Failure>(())
    });
    futures_util::future::try_join_all(clients).await.map(drop)
}

/// Removes all nodes, and waits until their memory is free.
async fn empty(addr: &str) -> Result<(), Failure> {
    let mut client = connect(addr).await?;
    for number in 0..PROXIES {
        let request = v1::RemoveProxyRequest {
            proxy_id: proxy(number).proxy_id,
        };
        // Only some of the proxies have nodes.
        let _ = call(&mut client, REMOVE_PROXY, &request).await;
    }
    wait_for_routes(addr, |routes| routes < 1_000).await
}

async fn wait_for_routes(addr: &str, right: impl Fn(u64) -> bool) -> Result<(), Failure> {
    let mut client = connect(addr).await?;
    while !right(routes(&mut client).await?) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn list(addr: &str) -> Result<(), Failure> {
    let mut client = connect(addr).await?;
    let mut request = v1::ListNodesRequest {
        page_size: 1_000,
        ..Default::default()
    };
    loop {
        let page: v1::ListNodesResponse = ask(&mut client, LIST, &request).await?;
        if page.next_page_token.is_empty() {
            return Ok(());
        }
        request.page_token = page.next_page_token;
    }
}

async fn snapshot(addr: &str) -> Result<(), Failure> {
    const SNAPSHOT_END: u8 = 2;
    let mut client = connect(addr).await?;
    let mut messages = Messages::begin(&mut client, WATCH, &v1::WatchRequest::default()).await?;
    while let Some(message) = messages.next().await? {
        if message.first().is_some_and(|tag| tag >> 3 == SNAPSHOT_END) {
            return Ok(());
        }
    }
    Err("the watch ended".into())
}

/// Causes a situation until the process is killed. Prints "rest", "on" and "off" as the phases begin.
async fn cause(name: &str, nodes: u32, addr: &str) -> Result<(), Failure> {
    loop {
        match name {
            "expiry" => {
                fill(addr, nodes).await?;
                say("rest");
                let full = u64::from(nodes);
                wait_for_routes(addr, |routes| routes + 1_000 < full).await?;
                say("on");
                wait_for_routes(addr, |routes| routes < 1_000).await?;
                say("off");
                continue;
            }
            "sessions" | "batches" => empty(addr).await?,
            _ => {}
        }
        say("rest");
        sleep(REST);
        say("on");
        match name {
            "rest" => sleep(REST),
            "list" => list(addr).await?,
            "snapshot" => snapshot(addr).await?,
            "sessions" => fill(addr, nodes).await?,
            "batches" => fill_in_batches(addr, nodes).await?,
            _ => return Err("unknown situation".into()),
        }
        say("off");
    }
}
