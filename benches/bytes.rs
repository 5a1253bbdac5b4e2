//! How many bytes a route takes in the table and in its peers, at every size, and what loading a snapshot takes.
//!
//! ```console
//! $ cargo bench --bench bytes                       # up to 10,000,000 nodes; under a minute
//! $ NODES=1M cargo bench --bench bytes
//! $ cargo bench --bench bytes -- --record FILE
//! ```
//!
//! Each contestant grows through every size. The bytes at a size are the peak of the bytes in use up to this size, per
//! route. A machine must have this memory. The allocator's own overhead does not count. The table also keeps the
//! proxies' IDs, clusters and addresses; the peers do not.

#![allow(dead_code, reason = "a bench uses a part of what they share")]

mod peers;
mod support;

use std::alloc::System;
use std::hint::black_box;

use crate::peers::nodetracker::{Nodetracker, builder};
use crate::peers::{Peer, Setting, for_each_peer};
use crate::support::args::Args;
use crate::support::check::all_agree;
use crate::support::contestant::filled;
use crate::support::counting::{Counting, forget_peak, live, peak};
use crate::support::report::{Report, Who};
use crate::support::steps::{self, Step};

#[global_allocator]
static ALLOCATOR: Counting<System> = Counting(System);

const PROXIES: u32 = 1_000;
/// The smallest table that is reported.
const FROM: usize = 10_000;

/// The peak per route at sizes that are 2 % apart.
fn curve<P: Peer>(nodes: &[Step]) -> Vec<(usize, f64)> {
    let mut points = Vec::with_capacity(1_000);
    let before = live();
    forget_peak();
    let table = P::new(&Setting::default());
    let mut next = FROM;
    for (at, step) in nodes.iter().enumerate() {
        table.add(step.node, step.proxy);
        let routes = at + 1;
        if routes == next || routes == nodes.len() {
            points.push((routes, (peak() - before) as f64 / routes as f64));
            next += next / 50;
        }
    }
    points
}

/// The peak per route while `make` makes a table.
fn peak_of<T>(routes: usize, make: impl FnOnce() -> T) -> f64 {
    let before = live();
    forget_peak();
    black_box(make());
    (peak() - before) as f64 / routes as f64
}

fn main() -> std::io::Result<()> {
    all_agree();
    let args = Args::parse();
    if !args.is_bench {
        return Ok(());
    }
    let mut report = Report::default();
    let largest = steps::sizes(&[10_000_000]).into_iter().max().expect("a size is given");
    let nodes = steps::nodes(largest, PROXIES, 1);
    println!(
        "peak bytes per route{:>13} {:>8} {:>8} {:>8}",
        "10k", "100k", "1M", "10M"
    );
    for_each_peer!(single-threaded P => {
        let points = curve::<P>(&nodes);
        print!("  {:<24}", P::NAME);
        for size in [10_000, 100_000, 1_000_000, 10_000_000] {
            // The sizes are steps: the first from there on.
            if let Some((_, bytes)) = points.iter().find(|&&(routes, _)| routes >= size) {
                print!(" {bytes:>8.1}");
            }
        }
        println!();
        report.curve("peak bytes per route", "B", Who::of::<P>(), &points);
    });

    let million = &nodes[..nodes.len().min(1_000_000)];
    let mut snapshot = Vec::new();
    filled::<Nodetracker>(million)
        .table()
        .write_snapshot(&mut snapshot)
        .expect("memory can be written to");
    let one_by_one = peak_of(million.len(), || filled::<Nodetracker>(million));
    report.value("peak, one by one", million.len(), "B per route", one_by_one);
    let from_snapshot = peak_of(million.len(), || {
        let table = builder(&Setting::default()).build().expect("possible limits");
        table.read_snapshot(snapshot.as_slice()).expect("the snapshot is good");
        table
    });
    report.value(
        "peak, bulk build from a snapshot",
        million.len(),
        "B per route",
        from_snapshot,
    );
    report.save(&args)
}
