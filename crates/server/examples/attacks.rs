//! Attacks a tracker in many ways, and shows what its other clients notice.
//!
//! ```console
//! $ cargo build --release -p nodetracker-server --bins --examples
//! $ target/release/examples/attacks [--server FILE] [--seconds N] [--limit-mb N] [--all] [NAME...]
//! ```
//!
//! For each attack, a fresh `nodetracker serve` gets 100,000 nodes. A neighbour, with its own connection, reports and
//! looks up a node a thousand times a second. It does so for some seconds at rest, and then for as long during the
//! attack. The neighbour measures from the time when a call was due. The printed table has the neighbour's latencies,
//! the number of failed calls, and the most memory that the server held. The table also shows whether all nodes are
//! there afterwards.
//!
//! During the attacks on watches, ten watches follow all nodes. A second table has the age of the changes when they
//! reach the watches, the resyncs, and the watches that lost their place.
//!
//! `--all` runs every attack at once, except the mass expiry, which needs a server with a short keep-alive interval.
//! `--limit-mb` limits the server's address space, like `ulimit -v`. The attackers are other processes, with the lowest
//! priority, on the same machine. All processes use only the loopback interface, and end by themselves.

#[allow(dead_code, reason = "the other examples use the rest")]
mod client;

use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Parser;
use clap::builder::PossibleValuesParser;
use tokio::time::timeout;

use client::attackers::{ATTACKS, CONTROLS, EXPIRING, EXPIRY, ON_WATCHES, attack, fill, is_intact};
use client::memory::peak;
use client::neighbour::{Latencies, Neighbour};
use client::role::{Priority, Role};
use client::watchers::{COLUMNS, watch};
use client::{Failure, Server, run};

/// Calls of the neighbour in a second.
const RATE: u32 = 1_000;

/// Watches of all nodes during the attacks on watches.
const WATCHES: &str = "10";

/// The longest time for the preparation of an attack, and for a mass expiry.
const LIMIT: Duration = Duration::from_secs(120);

#[derive(Debug, Parser)]
#[command(about = "Attacks a tracker in many ways, and shows what its other clients notice")]
#[command(after_help = attacks())]
struct Options {
    /// The server's command
    #[arg(long, default_value = "target/release/nodetracker")]
    server: PathBuf,
    /// How many seconds to measure at rest, and during each attack
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Megabytes of the server's address space [default: no limit]
    #[arg(long)]
    limit_mb: Option<u64>,
    /// Run every attack at once
    #[arg(long)]
    all: bool,
    /// The attacks to run [default: each]
    #[arg(value_parser = PossibleValuesParser::new(ATTACKS.iter().map(|(name, _)| *name)))]
    names: Vec<String>,
}

fn attacks() -> String {
    let attacks: Vec<_> = ATTACKS.iter().map(|(name, what)| format!("  {name}: {what}")).collect();
    format!("The attacks:\n{}", attacks.join("\n"))
}

fn main() -> Result<(), Failure> {
    let args: Vec<_> = std::env::args().collect();
    match &args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, "attack", name, addr] => run(attack(name, addr)),
        [_, "watch", count, addr] => run(watch(count.parse()?, addr)),
        _ => report(&Options::parse()),
    }
}

fn report(options: &Options) -> Result<(), Failure> {
    println!(
        "| attack | p50 ms, before, during | p99 ms, before, during | p99.9 ms, before, during | failed calls | peak memory, MB | table |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let mut watches = Vec::new();
    let names: Vec<_> = ATTACKS.iter().map(|(name, _)| *name).collect();
    let asked = |name: &&str| options.names.is_empty() || options.names.iter().any(|asked| asked == name);
    if options.all {
        // The attacks that need a long preparation come first.
        let others = names
            .into_iter()
            .filter(|name| !ON_WATCHES.contains(name) && !CONTROLS.contains(name));
        let all: Vec<_> = ["flaps", "moves"].into_iter().chain(others).collect();
        row(options, "all at once", &all, &mut watches);
    } else {
        for name in names.into_iter().filter(asked) {
            row(options, name, &[name], &mut watches);
        }
    }
    if !watches.is_empty() {
        println!("\n| attack | {COLUMNS} |\n| --- | --- | --- | --- | --- |");
        for line in watches {
            println!("{line}");
        }
    }
    Ok(())
}

/// Runs attacks at once, and prints their line of the table. If there are watches, adds their line to `watches`.
fn row(options: &Options, title: &str, attacks: &[&str], watches: &mut Vec<String>) {
    match one(options, attacks) {
        Ok((line, seen)) => {
            println!("| {title} | {line} |");
            watches.extend(seen.map(|seen| format!("| {title} | {seen} |")));
        }
        Err(error) => println!("| {title} | {error} | | | | | |"),
    }
}

/// Runs attacks at once. Returns their line of the table, and the line of the watches.
fn one(options: &Options, attacks: &[&str]) -> Result<(String, Option<String>), Failure> {
    let args: &[&str] = match attacks.contains(&EXPIRY) {
        true => EXPIRING,
        false => &[],
    };
    let mut server = Server::start_limited(&options.server, args, options.limit_mb)?;
    let addr = server.addr.clone();
    run(fill(&addr))?;
    let mut watchers = None;
    if attacks.iter().any(|name| ON_WATCHES.contains(name)) {
        let role = Role::start(Priority::Normal, &["watch", WATCHES, &addr])?;
        role.expect("on", LIMIT)?;
        watchers = Some(role);
    }
    // With the short keep-alive interval, the nodes expire unless they are refreshed.
    let keeper = attacks.contains(&EXPIRY).then(|| addr.clone());
    let (ended, end) = std::sync::mpsc::channel::<()>();
    let keeper = std::thread::spawn(move || {
        while let Some(addr) = &keeper
            && end.recv_timeout(Duration::from_secs(5)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
        {
            if let Err(error) = run(fill(addr)) {
                eprintln!("the nodes were not refreshed: {error}");
            }
        }
    });

    let span = Duration::from_secs(options.seconds);
    let neighbour = Neighbour::start(&addr, RATE)?;
    // The first calls connect.
    sleep(Duration::from_millis(200));
    let rest = Instant::now();
    sleep(span);
    let rest_end = Instant::now();
    let mut begun = rest_end;
    let mut attackers = Vec::new();
    for name in attacks {
        // Start each attacker after the previous attacker is ready. Later attackers may be refused while they prepare,
        // so the attacks with a long preparation come first.
        let attacker = Role::start(Priority::Lowest, &["attack", name, &addr])?;
        begun = begun.max(attacker.expect("on", LIMIT)?);
        attackers.push(attacker);
    }
    if let Some(watchers) = &mut watchers {
        watchers.ask(LIMIT)?;
    }
    match attacks {
        [EXPIRY] => _ = attackers[0].expect("off", LIMIT)?,
        _ => sleep(span),
    }
    let end = Instant::now();
    let seen = watchers.as_mut().map(|watchers| watchers.ask(LIMIT)).transpose()?;
    drop(attackers);
    drop(watchers);
    drop(ended);
    let samples = neighbour.stop();
    let _ = keeper.join();

    let before = Latencies::of(&samples, |at| (rest..rest_end).contains(&at));
    let during = Latencies::of(&samples, |at| (begun..end).contains(&at));
    let peak = peak(server.pid()).map_or_else(|_| "?".into(), |kilobytes| (kilobytes / 1024).to_string());
    let state = match server.ended()? {
        Some(status) => format!("the server died: {status}"),
        None => match run(async { Ok(timeout(Duration::from_secs(20), is_intact(&addr)).await) })? {
            Ok(Ok(true)) => "whole".into(),
            Ok(Ok(false)) => "nodes are missing".into(),
            Ok(Err(error)) => format!("no answer: {error}"),
            Err(_) => "no answer for 20 s".into(),
        },
    };
    let pair = |quantile| format!("{:.2}, {:.2}", before.millis(quantile), during.millis(quantile));
    let line = format!(
        "{} | {} | {} | {} of {} | {peak} | {state}",
        pair(0.5),
        pair(0.99),
        pair(0.999),
        during.failed,
        during.count(),
    );
    Ok((line, seen))
}
