//! The table with a hundred million routes.
//!
//! ```console
//! $ cargo bench --bench hundred_million                       # some 4 GB of memory, a minute
//! $ NODES=10M cargo bench --bench hundred_million
//! $ cargo bench --bench hundred_million -- --record FILE
//! ```
//!
//! A node is computed from its number. Only the nodes that are looked up take memory: two million from all over the
//! table.

#![allow(dead_code, reason = "a bench uses a part of what they share")]

mod peers;
mod support;

use std::fs::read_to_string;
use std::time::Duration;

use mimalloc::MiMalloc;

use crate::peers::nodetracker::Nodetracker;
use crate::peers::{Peer, Setting};
use crate::support::args::Args;
use crate::support::contestant::{Work, heartbeats, pass, sweep};
use crate::support::counting::{Counting, live, peak};
use crate::support::own_time::{Laps, Stopwatch};
use crate::support::report::Report;
use crate::support::steps::{self, Step, batches};

/// The server's allocator.
#[global_allocator]
static ALLOCATOR: Counting<MiMalloc> = Counting(MiMalloc);

const PROXIES: u32 = 1_000;
/// Nodes that are looked up and refreshed, once to warm up and once to measure.
const SAMPLE: usize = 1_000_000;

/// Nodes from all of the stream.
fn sample(routes: usize) -> Vec<Step> {
    let sample: Vec<_> = steps::stream(PROXIES, 1)
        .take(routes)
        .step_by((routes / SAMPLE / 2).max(1))
        .collect();
    steps::uniform(&sample)
}

/// The most memory that the process had, in bytes; zero if the system does not report it.
fn most_resident() -> usize {
    let status = read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.unwrap_or(0) * 1_024
}

fn main() -> std::io::Result<()> {
    let args = Args::parse();
    if !args.is_bench {
        return Ok(());
    }
    let mut report = Report::default();
    let routes = steps::sizes(&[100_000_000])[0];
    let per_route = |took: Duration| took.as_nanos() as f64 / routes as f64;
    let mut value = |operation, unit, value| report.value(operation, routes, unit, value);

    let before = live();
    let table = Nodetracker::new(&Setting::default());
    let mut longest = Duration::ZERO;
    let watch = Stopwatch::start();
    let mut laps = Laps::start();
    for step in steps::stream(PROXIES, 1).take(routes) {
        table.add(step.node, step.proxy);
        longest = longest.max(laps.lap().1);
    }
    let took = watch.elapsed();
    value("peak heap", "B per route", (peak() - before) as f64 / routes as f64);
    value(
        "peak of resident memory",
        "B per route",
        most_resident() as f64 / routes as f64,
    );
    value("insert from empty", "ns", per_route(took));
    value("longest pause of an insert", "µs", longest.as_nanos() as f64 / 1e3);

    let sample = sample(routes);
    let (warm_up, timed) = sample.split_at(sample.len() / 2);
    let works = [
        ("look-up", Work::LookUp),
        ("look-up in batches of 64", Work::LookUpBatch),
        ("refresh", Work::Refresh),
    ];
    for (operation, work) in works {
        pass(&table, work, warm_up);
        let took = pass(&table, work, timed);
        value(operation, "ns", took.as_nanos() as f64 / timed.len() as f64);
    }
    let by_proxy = [warm_up, timed].map(steps::by_proxy);
    let [warm_up, timed] = by_proxy
        .each_ref()
        .map(|nodes| -> Vec<_> { batches(nodes).map(|batch| (batch, table.announce(batch))).collect() });
    heartbeats(&table, &warm_up);
    value("refresh in batches of 64 by handle", "ns", heartbeats(&table, &timed));
    let (sweep, step) = sweep(&table, routes);
    value("sweep, nothing expired", "ns per route", sweep);
    value("longest step of a sweep", "µs", step);
    report.save(&args)
}
