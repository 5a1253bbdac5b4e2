//! The `bench` command: a load generator that makes calls at a constant rate, even if the server is slow.
//!
//! * [`schedule`] decides when calls are due, and [`work`] builds the requests of the calls.
//! * [`lane`] is the loop of a connection: it makes each call at its time. [`calls`] and [`session`] are the two kinds
//!   of lanes, over the wire of [`connection`].
//! * [`generator`] runs the lanes in threads, and [`tally`] counts the outcomes of the calls.
//! * [`report`] prints the tally, and [`plot`] draws it.
//! * [`guard`] protects trackers that are in use, and cleans up.

mod calls;
mod connection;
mod cpu;
mod generator;
mod guard;
mod lane;
mod plot;
mod progress;
mod report;
mod schedule;
mod session;
mod tally;
mod timer;
mod work;

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use crate::cli::commands::CommandError;
use crate::cli::commands::bench::generator::{Interrupts, LaneCalls, Load};
use crate::cli::commands::bench::report::{Report, Settings};
use crate::cli::commands::bench::schedule::{Extent, Pace, Phase, Rate};
use crate::cli::commands::bench::work::{Population, Work};
use crate::cli::open_files;
use crate::cli::print::{Format, Print};
use crate::config::duration;
use clap::{Args, ValueEnum};
use procfs::process::Process;

/// Nodes in a call of the modes `batch` and `session`, without `--batch-size`.
const BATCH_SIZE: u32 = 100;

/// The longest phase of a run, and the longest time for a reply.
const LONGEST: Duration = Duration::from_secs(31 * 24 * 3600);

/// Proxies, without `--proxies`.
const PROXIES: u32 = 100;

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// What the calls do
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,
    /// Calls per second, over all connections, or a part of the maximum, as in 50%; without it, as many calls as
    /// --in-flight allows (a closed loop)
    #[arg(long, value_name = "RATE")]
    rate: Option<Rate>,
    /// How long to measure
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = positive, conflicts_with = "total")]
    duration: Duration,
    /// How many calls to measure, instead of --duration
    #[arg(long, value_name = "CALLS", value_parser = clap::value_parser!(u64).range(1..))]
    total: Option<u64>,
    /// How long to make calls before the measurement
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = period)]
    warm_up: Duration,
    /// How long to measure the maximum, if --rate is a part of the maximum
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = positive)]
    probe: Duration,
    /// Connections; in mode session, each has the session of one proxy
    #[arg(long, value_name = "COUNT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: u32,
    /// Calls in flight on each connection; further calls wait, and their waiting counts
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    in_flight: u32,
    /// Threads that make the calls
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    threads: u32,
    /// Distinct nodes
    #[arg(long, value_name = "COUNT", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    nodes: u32,
    /// Distinct proxies [default: 100; in mode session, as many as connections]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    proxies: Option<u32>,
    /// Nodes in one call [default: 100 in the modes batch and session, 1 in mode look-up]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch_size: Option<u32>,
    /// Where the nodes and proxies come from: the same number gives the same [default: random]
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Load the tracker although it is on another machine, or in use
    #[arg(long)]
    yes: bool,
    /// Draw the latencies by percentile
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// The process of a server on this machine, to report the server's CPU time for each call
    #[arg(long, value_name = "PID")]
    server_pid: Option<i32>,
    #[command(flatten)]
    print: Print,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Mode {
    /// AddNode of the frozen contract: one node per call
    #[default]
    Unary,
    /// AddNodes: --batch-size nodes per call
    Batch,
    /// Heartbeats in sessions: --batch-size nodes per message
    Session,
    /// GetProxies of the frozen contract; with a --batch-size above 1, BatchGetProxies
    LookUp,
    /// Nine AddNode to one GetProxies, mixed at random
    Mixed,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::Unary => "unary",
            Self::Batch => "batch",
            Self::Session => "session",
            Self::LookUp => "look-up",
            Self::Mixed => "mixed",
        }
    }
}

fn period(text: &str) -> Result<Duration, String> {
    match duration::parse(text)? {
        period if period > LONGEST => Err(format!("a run may not be longer than {}", duration::format(LONGEST))),
        period => Ok(period),
    }
}

fn positive(text: &str) -> Result<Duration, String> {
    match period(text)? {
        Duration::ZERO => Err("must be longer than 0s".into()),
        period => Ok(period),
    }
}

impl Bench {
    /// Returns what the lanes do, and the nodes and proxies.
    fn kind(&self) -> Result<(LaneCalls, Population), CommandError> {
        let usage = |text: &str| Err(CommandError::Usage(text.to_owned()));
        let (kind, batch_size) = match (self.mode, self.batch_size) {
            (Mode::Unary | Mode::Mixed, Some(2..)) => {
                return usage("--batch-size: a call of the modes unary and mixed has one node");
            }
            (Mode::Unary, _) => (LaneCalls::Unary(Work::AddNode), 1),
            (Mode::Mixed, _) => (LaneCalls::Unary(Work::Mixed), 1),
            (Mode::LookUp, None | Some(1)) => (LaneCalls::Unary(Work::GetProxies), 1),
            (Mode::LookUp, Some(size)) => (LaneCalls::Unary(Work::BatchGetProxies), size),
            (Mode::Batch, size) => (LaneCalls::Unary(Work::AddNodes), size.unwrap_or(BATCH_SIZE)),
            (Mode::Session, size) => (LaneCalls::Session, size.unwrap_or(BATCH_SIZE)),
        };
        let proxies = match (self.mode, self.proxies) {
            (Mode::Session, Some(proxies)) if proxies != self.connections => {
                return usage("--proxies: in mode session, there are as many proxies as --connections");
            }
            (Mode::Session, _) => self.connections,
            (_, proxies) => proxies.unwrap_or_else(|| PROXIES.min(self.nodes)),
        };
        if proxies > self.nodes {
            return usage(&format!(
                "--nodes: {} nodes are fewer than the {proxies} proxies",
                self.nodes
            ));
        }
        let population = Population {
            seed: self.seed.unwrap_or_else(|| fastrand::u32(..).into()),
            nodes: self.nodes,
            proxies,
            batch_size,
        };
        Ok((kind, population))
    }

    fn extent(&self) -> Extent {
        self.total.map_or(Extent::For(self.duration), Extent::Calls)
    }

    /// Fails if the server's process cannot be read.
    fn check_server(&self) -> Result<(), CommandError> {
        let Some(pid) = self.server_pid else {
            return Ok(());
        };
        let stat = Process::new(pid).and_then(|process| process.stat());
        stat.map(drop)
            .map_err(|error| CommandError::Usage(format!("--server-pid {pid}: {error}")))
    }

    /// Creates the file of the plot before the run, which would otherwise be for nothing if the file cannot be written.
    fn plot_file(&self) -> Result<Option<File>, CommandError> {
        let create = |path: &PathBuf| {
            File::create(path).map_err(|error| CommandError::Usage(format!("--plot {}: {error}", path.display())))
        };
        self.plot.as_ref().map(create).transpose()
    }
}

/// Makes the calls, prints the report, and removes what the calls added.
pub(crate) async fn bench(bench: Bench) -> Result<(), CommandError> {
    let (kind, population) = bench.kind()?;
    bench.check_server()?;
    let at = &bench.print.at;
    guard::check(at, bench.yes).await?;
    let plot = bench.plot_file()?;
    open_files::raise_limit(bench.connections.saturating_mul(2));
    let mut interrupts = Interrupts::install().map_err(CommandError::Signals)?;
    let measured = measure(&bench, kind, population, &mut interrupts).await;
    let outcome = measured.and_then(|report| {
        print(&report, bench.print.format)?;
        if let Some(mut file) = plot {
            file.write_all(report.plot().as_bytes())?;
        }
        report.outcome()
    });
    interrupts.unless_second(guard::remove_proxies(at, &population)).await?;
    outcome
}

/// Adds the nodes, measures the maximum if the rate is a part of the maximum, and measures.
async fn measure(
    bench: &Bench,
    kind: LaneCalls,
    population: Population,
    interrupts: &mut Interrupts,
) -> Result<Report, CommandError> {
    let load = Load {
        at: bench.print.at.clone(),
        tls: bench.print.at.tls()?,
        population,
        connections: bench.connections,
        in_flight: bench.in_flight as usize,
        threads: bench.threads,
        timeout: bench.print.at.timeout.min(LONGEST),
        server_pid: bench.server_pid,
    };
    // A session announces its nodes when it begins.
    if kind != LaneCalls::Session {
        add_nodes(&load, interrupts).await?;
    }
    let closed = |warm_up, extent| Phase {
        pace: Pace::Closed,
        warm_up,
        extent,
    };
    let (pace, maximum) = match bench.rate {
        None => (Pace::Closed, None),
        Some(Rate::PerSecond(rate)) => (Pace::Open(rate), None),
        Some(Rate::OfMaximum(part)) => {
            let phase = closed(bench.warm_up, Extent::For(bench.probe));
            let probed = load.run("maximum", kind, phase, interrupts).await?.tally;
            interrupts.check()?;
            let maximum = probed.success_rate();
            if maximum == 0.0 {
                return Err(CommandError::Failed(format!(
                    "no call succeeded: {}",
                    probed.first_error()
                )));
            }
            (Pace::Open(part * maximum), Some(maximum))
        }
    };
    let phase = Phase {
        pace,
        ..closed(bench.warm_up, bench.extent())
    };
    let measured = load.run("measurement", kind, phase, interrupts).await?;
    let settings = Settings {
        mode: bench.mode,
        pace,
        maximum,
        connections: bench.connections,
        in_flight: bench.in_flight,
        population,
        was_interrupted: interrupts.check().is_err(),
    };
    Ok(Report::new(&settings, &measured))
}

/// Adds all nodes, so that the calls of the measurement find and refresh routes.
async fn add_nodes(load: &Load, interrupts: &mut Interrupts) -> Result<(), CommandError> {
    // The frozen contract, which each server has, has no batches.
    let work = match load.population.batch_size {
        1 => Work::AddNode,
        _ => Work::AddNodes,
    };
    let calls = u64::from(load.population.batches());
    let phase = Phase {
        pace: Pace::Closed,
        warm_up: Duration::ZERO,
        extent: Extent::Calls(calls),
    };
    let added = load
        .run("adding nodes", LaneCalls::Unary(work), phase, interrupts)
        .await?
        .tally;
    interrupts.check()?;
    match calls - added.succeeded() {
        0 => Ok(()),
        failed => Err(CommandError::Failed(format!(
            "{failed} of {calls} calls that add the nodes failed: {}",
            added.first_error()
        ))),
    }
}

fn print(report: &Report, format: Format) -> Result<(), CommandError> {
    match format {
        Format::Json => format.done(report),
        Format::Table => {
            let mut out = io::stdout().lock();
            write!(out, "{report}")?;
            Ok(out.flush()?)
        }
    }
}
