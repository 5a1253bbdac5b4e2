//! Measures whether the server's memory returns after floods, under a constant load.
//!
//! ```console
//! $ cargo build --release -p nodetracker-server --bins --examples
//! $ target/release/examples/server_soak [--server FILE] [--minutes N] [--flood SECONDS] [--settle SECONDS] [NAME...]
//! ```
//!
//! The program starts `nodetracker serve` with a keep-alive interval of 20 s, and adds 100,000 nodes. Then it measures
//! how many calls a second the server and a client can make on this machine. Then the client makes half as many, and
//! ten watches follow all nodes. Floods come one after the other: each of the attacks of `attacks.rs`, with pauses in
//! which the memory can return.
//!
//! The program prints the server's memory at the start, at the end of each flood, after each pause, and at the end. The
//! program fails if the resident set at the end exceeds that at the start by more than a tenth. It also fails if the
//! table has lost nodes.
//!
//! The attackers are other processes, with the lowest priority, on the same machine. All processes use only the
//! loopback interface, and end by themselves.

#[allow(dead_code, reason = "the other examples use the rest")]
mod client;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use clap::Parser;
use clap::builder::PossibleValuesParser;
use nodetracker_proto::{api, v1};
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, interval, timeout};

use client::attackers::{ATTACKS, CONTROLS, EXPIRING, EXPIRY, NODES, add, attack, fill, is_intact};
use client::memory::memory;
use client::neighbour::{Latencies, Neighbour};
use client::role::{Priority, Role, say};
use client::watchers::{COLUMNS, watch};
use client::wire::{ADD, GET, STATS, ask, call, connect};
use client::{Failure, Server, node, run};

/// Connections of the constant load.
const CONNECTIONS: usize = 4;

/// Calls of one connection in flight.
const IN_FLIGHT: usize = 32;

/// How long to measure the maximum rate.
const PROBE: Duration = Duration::from_secs(5);

/// How long the load runs before the program reads the memory at the start.
const WARM_UP: Duration = Duration::from_secs(60);

/// How many nodes come and go in that time, so that the server's change log and the rings of its feed are as full as
/// they become. The log holds 65,536 changes, and the rings of all UUIDs together hold as many. Refreshes are no
/// changes.
const CHANGES: u32 = 120_000;

/// How many seconds the start and the end take. The resident set of a busy server goes up and down by some megabytes.
const READINGS: usize = 20;

/// The longest time until the nodes of the last flood have expired.
const EXPIRED: Duration = Duration::from_secs(60);

/// The longest time for the preparation of a flood.
const LIMIT: Duration = Duration::from_secs(120);

#[derive(Debug, Parser)]
#[command(about = "Measures whether the server's memory returns after floods")]
struct Options {
    /// The server's command
    #[arg(long, default_value = "target/release/nodetracker")]
    server: PathBuf,
    /// How many minutes the whole run takes, about
    #[arg(long, default_value_t = 30.0)]
    minutes: f64,
    /// How many seconds a flood takes
    #[arg(long, default_value_t = 10)]
    flood: u64,
    /// The pause after a flood, in seconds
    #[arg(long, default_value_t = 60)]
    settle: u64,
    /// The floods [default: every attack]
    #[arg(value_parser = PossibleValuesParser::new(ATTACKS.iter().map(|(name, _)| *name)))]
    names: Vec<String>,
}

fn main() -> Result<(), Failure> {
    let args: Vec<_> = std::env::args().collect();
    match &args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, "attack", name, addr] => run(attack(name, addr)),
        [_, "watch", count, addr] => run(watch(count.parse()?, addr)),
        [_, "load", rate, addr] => run(load(rate.parse()?, addr)),
        _ => report(&Options::parse()),
    }
}

/// Makes a call: GetProxies for even numbers, AddNode for odd numbers.
async fn one(client: &client::wire::Client, number: u64) -> Result<(), Failure> {
    let node_id = node((number as u32).wrapping_mul(2_654_435_761) % NODES).to_string();
    let mut client = client.clone();
    if number.is_multiple_of(2) {
        call(&mut client, GET, &api::GetProxiesRequest { node_id }).await?;
    } else {
        let request = api::AddNodeRequest {
            node_id,
            proxy_id: "load".into(),
            cluster_name: "main".into(),
            addr: "load:1".into(),
        };
        call(&mut client, ADD, &request).await?;
    }
    Ok(())
}

/// Returns how many calls a second the server and this client can make.
async fn maximum(addr: &str) -> Result<u64, Failure> {
    let (begun, done) = (Instant::now(), AtomicU64::new(0));
    let connections = (0..CONNECTIONS).map(|_| async {
        let client = connect(addr).await?;
        let lanes = (0..IN_FLIGHT).map(|_| async {
            while begun.elapsed() < PROBE {
                // Relaxed: the count guards no data.
                one(&client, done.fetch_add(1, Ordering::Relaxed)).await?;
            }
            Ok::<_, Failure>(())
        });
        futures_util::future::try_join_all(lanes).await.map(drop)
    });
    futures_util::future::try_join_all(connections).await?;
    Ok((done.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64()) as u64)
}

/// Makes calls at a constant rate until the process is killed. Skips the calls of a connection that has [`IN_FLIGHT`]
/// calls in flight.
async fn load(rate: u64, addr: &str) -> Result<(), Failure> {
    const TICKS: u64 = 200;
    say("on");
    let addr: Arc<str> = addr.into();
    for connection in 0..CONNECTIONS as u64 {
        let addr = Arc::clone(&addr);
        tokio::task::spawn_local(async move {
            let mut ticks = interval(Duration::from_secs(1) / TICKS as u32);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            let mut client = None;
            let mut free = Arc::new(Semaphore::new(IN_FLIGHT));
            let (mut due, mut number) = (0, connection);
            loop {
                ticks.tick().await;
                // A call that fails closes its semaphore.
                if free.is_closed() {
                    (client, free) = (None, Arc::new(Semaphore::new(IN_FLIGHT)));
                }
                let connected = match &client {
                    Some(client) => client,
                    // The server may be full for a while.
                    None => match connect(&addr).await {
                        Ok(connected) => client.insert(connected),
                        Err(_) => continue,
                    },
                };
                due += rate / CONNECTIONS as u64;
                while due >= TICKS {
                    due -= TICKS;
                    number += 7;
                    let Ok(permit) = Arc::clone(&free).try_acquire_owned() else {
                        continue;
                    };
                    let (client, free) = (connected.clone(), Arc::clone(&free));
                    tokio::task::spawn_local(async move {
                        let done = timeout(Duration::from_secs(10), one(&client, number)).await;
                        if done.is_err() || done.is_ok_and(|done| done.is_err_and(|error| error.is::<h2::Error>())) {
                            free.close();
                        }
                        drop(permit);
                    });
                }
            }
        });
    }
    std::future::pending().await
}

/// Prints the server's memory, and returns the median of [`READINGS`] of its resident set, in kilobytes.
fn print_settled(server: &Server, began: Instant, event: &str) -> Result<u64, Failure> {
    let mut readings = Vec::new();
    for _ in 0..READINGS {
        readings.push(memory(server.pid())?.rss);
        sleep(Duration::from_secs(1));
    }
    readings.sort_unstable();
    print(server, began, event)?;
    Ok(readings[READINGS / 2])
}

/// Returns how many routes the table has.
fn route_count(addr: &str) -> Result<u64, Failure> {
    run(async {
        let mut client = connect(addr).await?;
        let stats = ask::<v1::StatsResponse>(&mut client, STATS, &v1::StatsRequest {}).await?;
        Ok(stats.route_count)
    })
}

/// Prints the server's memory.
fn print(server: &Server, began: Instant, event: &str) -> Result<(), Failure> {
    let memory = memory(server.pid())?;
    let stats = run(async {
        let mut client = connect(&server.addr).await?;
        ask::<v1::StatsResponse>(&mut client, STATS, &v1::StatsRequest {}).await
    });
    let stats = stats.map_or_else(
        |error| format!("{error} | "),
        |stats| format!("{} | {:.1}", stats.route_count, stats.client_memory_bytes as f64 / 1e6),
    );
    println!(
        "| {:.0} | {event} | {:.1} | {:.1} | {stats} |",
        began.elapsed().as_secs_f64(),
        memory.rss as f64 / 1e3,
        memory.huge as f64 / 1e3,
    );
    Ok(())
}

fn report(options: &Options) -> Result<(), Failure> {
    let began = Instant::now();
    let args = [EXPIRING, &["--max-routes", "4000000"]].concat();
    let mut server = Server::start(&options.server, &args)?;
    let addr = server.addr.clone();
    run(fill(&addr))?;
    // The nodes expire unless they are refreshed.
    let (ended, end) = mpsc::channel::<()>();
    let refreshed = addr.clone();
    let keeper = thread::spawn(move || {
        while end.recv_timeout(Duration::from_secs(4)) == Err(RecvTimeoutError::Timeout) {
            if let Err(error) = run(fill(&refreshed)) {
                eprintln!("the nodes were not refreshed: {error}");
            }
        }
    });
    let most = run(maximum(&addr))?;
    println!("at most {most} calls a second; the load is half of that\n");
    let load = Role::start(Priority::Normal, &["load", &(most / 2).to_string(), &addr])?;
    load.expect("on", LIMIT)?;
    let mut watchers = Role::start(Priority::Normal, &["watch", "10", &addr])?;
    watchers.expect("on", LIMIT)?;
    println!("| seconds | event | RSS, MB | in huge pages, MB | routes | charged to clients, MB |");
    println!("| --- | --- | --- | --- | --- | --- |");
    run(add(&addr, NODES..NODES + CHANGES))?;
    sleep(WARM_UP);
    let start = print_settled(&server, began, "start")?;
    let routes = route_count(&addr)?;

    let neighbour = Neighbour::start(&addr, 100)?;
    let default = || {
        ATTACKS
            .iter()
            .map(|&(name, _)| name)
            .filter(|name| !CONTROLS.contains(name))
    };
    let names: Vec<_> = match options.names.is_empty() {
        true => default().collect(),
        false => options.names.iter().map(String::as_str).collect(),
    };
    // The last flood leaves time for its pause.
    let round = Duration::from_secs(options.flood + options.settle);
    let last = Duration::from_secs_f64(options.minutes * 60.0).saturating_sub(round);
    for name in names.into_iter().cycle() {
        if began.elapsed() > last {
            break;
        }
        let attacker = Role::start(Priority::Lowest, &["attack", name, &addr])?;
        match name {
            EXPIRY => _ = attacker.expect("on", LIMIT),
            _ => sleep(Duration::from_secs(options.flood)),
        }
        print(&server, began, &format!("in the flood {name}"))?;
        drop(attacker);
        sleep(Duration::from_secs(options.settle));
        print(&server, began, &format!("after the flood {name}"))?;
        if let Some(status) = server.ended()? {
            return Err(format!("the server died: {status}").into());
        }
    }
    // A flood's nodes expire.
    let floods_ended = Instant::now();
    while route_count(&addr)? > routes + routes / 100 && floods_ended.elapsed() < EXPIRED {
        sleep(Duration::from_secs(1));
    }
    let end = print_settled(&server, began, "end")?;
    let samples = neighbour.stop();
    let calls = Latencies::of(&samples, |_| true);
    println!(
        "\na neighbour: {} calls, {} failed, p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms",
        calls.count(),
        calls.failed,
        calls.millis(0.5),
        calls.millis(0.99),
        calls.millis(0.999)
    );
    println!("the watches: {COLUMNS}: {}", watchers.ask(LIMIT)?);
    let is_intact = run(is_intact(&addr))?;
    drop((load, watchers, ended));
    let _ = keeper.join();
    server.stop()?;
    let growth = 100.0 * (end as f64 / start as f64 - 1.0);
    println!("the resident set has changed by {growth:+.1} %; all nodes are there: {is_intact}");
    match growth <= 10.0 && is_intact {
        true => Ok(()),
        false => Err("failed: the memory did not return, or nodes are missing".into()),
    }
}
